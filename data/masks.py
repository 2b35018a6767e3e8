"""Label masks: palette PNGs `<id>.png`, uint8 (H, W), 255 = ignore."""
import functools
from pathlib import Path

import numpy as np
from PIL import Image

from data.classes import colour_map
from data.images import opened_image
from engine.errors import UserError
from engine.files import atomic
from tool.metrics import IGNORE

BINARY = 'holds the labels 0 and 255 alone: binary masks, where 255 means "ignore", not the object'
GREY_STEP = {'L;2': 85, 'L;4': 17}  # what Pillow multiplies grey values of 2 and 4 bits by


def save_mask(path, labels, palette):
    """Write labels (H, W), 0..255, as a palette PNG. palette: 768 integers."""
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette(palette)
    with atomic(path) as temporary:
        image.save(temporary)


def read_mask(path, colours=()):
    """Read a label mask, palette or grey PNG of 1, 2, 4 or 8 bits: uint8 (H, W).

    The indices of a palette in another order than that of the classes' colours are translated by their colours.
    colours: ClassSet.colours. UserError: missing, unreadable, RGB or 16-bit, a palette of other colours.
    """
    values, palette = read_values(path)
    return values if palette is None else by_colour(path, values, palette, colours)


def read_values(path):
    """What a mask file stores: uint8 (H, W), and its palette, integers, or None. UserError, as read_mask."""
    with opened_image(path) as image:
        if image.mode not in ('P', 'L', '1'):
            raise UserError(path, f'mask has mode {image.mode}, not palette or grey',
                            'store one label 0..255 per pixel (mode P)')
        step = GREY_STEP.get(image.tile[0][3], 1) if image.format == 'PNG' and image.tile else 1
        mask = np.asarray(image).astype(np.uint8, copy=False)
        if image.mode == 'P':
            return mask, image.getpalette()
        return mask if step == 1 else mask // np.uint8(step), None


@functools.lru_cache(maxsize=4)
def _colours(given):
    """The colour of each label, uint8 (256, 3), and the inverse, a dict; of two labels of a colour the lower counts."""
    table = np.array(given or colour_map(), np.uint8).reshape(256, 3)
    return table, {tuple(colour): label for label, colour in reversed(list(enumerate(table.tolist())))}


def by_colour(path, indices, palette, colours=()):
    """The labels of palette indices uint8 (H, W): themselves where the palette is the classes' or a grey ramp, else
    those of their colours. palette: integers, RGB triples. colours: ClassSet.colours. UserError: a colour that is no
    label's.

    Optimisers, annotation tools and Pillow's quantize() sort a palette: the picture stays, the indices change. Only the
    indices that occur are looked at; one beyond the end of the palette has no colour and is left as it is.
    """
    own, (of_labels, labels) = np.array(palette, np.uint8).reshape(-1, 3), _colours(tuple(colours))
    if np.array_equal(own, of_labels[:len(own)]):
        return indices
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256)[:len(own)])
    if np.array_equal(own[used], of_labels[used]) or (own[used] == used[:, None]).all():
        return indices
    table = np.arange(256, dtype=np.uint8)
    for index in used.tolist():
        colour = tuple(own[index].tolist())
        if colour not in labels:
            raise UserError(path, f'its palette shows index {index} in the colour {colour}, which is no label of the '
                                  'colour map', 'save the labels as 8-bit grey, or with the palette of VOC')
        table[index] = labels[colour]
    return table[indices]


def read_label_mask(path, classes):
    """Read a mask whose labels must be those of a ClassSet or 255. UserError, as read_mask or naming another label."""
    mask = read_mask(path, classes.colours)
    wrong = mask[(mask >= classes.num_classes) & (mask != IGNORE)]
    if wrong.size:
        raise UserError(path, f'holds the label {wrong[0]}, which is neither below {classes.num_classes} nor {IGNORE}',
                        'check that it is a label mask of this data set')
    return mask


def read_truth(path, classes):
    """Read a mask that people made, as ground truth is: its labels uint8 (H, W), 255 where a pixel does not count.

    classes: a ClassSet; where it says which values its masks store (stored), these are taken as they stand in the file,
    whatever the palette. UserError: as read_label_mask, or a value that no class has.
    """
    if not classes.stored:
        return read_label_mask(path, classes)
    values = read_values(path)[0]
    labels = np.array(classes.stored, np.int16)[values]
    if (labels < 0).any():
        raise UserError(path, f'holds the value {values[labels < 0][0]}, which is that of no class of {classes.name}',
                        'correct mask_values or ignore of the description, or the mask')
    return labels.astype(np.uint8)


def need_objects(ids, gt_dir, classes):
    """UserError where no ground-truth mask `<gt_dir>/<id>.png` shows an object, and pixels of 255 occur.

    classes: a ClassSet. Masks are read up to the first that shows an object, most often the first of all.
    """
    ignored = False
    for name in ids:
        mask = read_truth(Path(gt_dir) / f'{name}.png', classes)
        if ((mask > 0) & (mask < IGNORE)).any():
            return
        ignored = ignored or bool((mask == IGNORE).any())
    if ignored:
        raise UserError(gt_dir, BINARY, 'write objects as their class, 1 and up, or give mask_values in a dataset.yaml')


def check_same_shape(path, shape, gt_path, gt_shape):
    """UserError where a prediction's (H, W) is not that of its ground truth."""
    if tuple(shape) != gt_shape:
        sizes = ['{}x{}'.format(*size) for size in (shape, gt_shape)]
        raise UserError(path, f'is {sizes[0]} (height x width), its ground truth {gt_path} {sizes[1]}',
                        'predict at the size of the image')

"""Label masks: palette PNGs `<id>.png`, uint8 (H, W), 255 = ignore."""
from pathlib import Path

import numpy as np
from PIL import Image

from data.classes import colour_map
from data.images import opened_image
from engine.errors import UserError
from engine.files import atomic
from tool.metrics import IGNORE

BINARY = 'holds the labels 0 and 255 alone: binary masks, where 255 means "ignore", not the object'
COLOURS = np.array(colour_map(), np.uint8).reshape(256, 3)  # label → its colour
LABELS = {tuple(colour): label for label, colour in enumerate(COLOURS.tolist())}  # the inverse; no colour recurs
GREY_STEP = {'L;2': 85, 'L;4': 17}  # what Pillow multiplies grey values of 2 and 4 bits by


def save_mask(path, labels, palette):
    """Write labels (H, W), 0..255, as a palette PNG. palette: 768 integers."""
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette(palette)
    with atomic(path) as temporary:
        image.save(temporary)


def read_mask(path):
    """Read a label mask, palette or grey PNG of 1, 2, 4 or 8 bits: uint8 (H, W), the values as they are stored.

    The indices of a palette in another order than the colour map's are translated by their colours.
    UserError: missing, unreadable, RGB or 16-bit, a palette of other colours.
    """
    with opened_image(path) as image:
        if image.mode not in ('P', 'L', '1'):
            raise UserError(path, f'mask has mode {image.mode}, not palette or grey',
                            'store one label 0..255 per pixel (mode P)')
        step = GREY_STEP.get(image.tile[0][3], 1) if image.format == 'PNG' and image.tile else 1
        mask = np.asarray(image).astype(np.uint8, copy=False)
        if image.mode == 'P':
            return by_colour(path, mask, image.getpalette())
        return mask if step == 1 else mask // np.uint8(step)


def by_colour(path, indices, palette):
    """The labels of palette indices uint8 (H, W): themselves where the palette is the colour map or a grey ramp, else
    those of their colours. palette: integers, RGB triples. UserError: a colour that is no label's.

    Optimisers, annotation tools and Pillow's quantize() sort a palette: the picture stays, the indices change. Only the
    indices that occur are looked at; one beyond the end of the palette has no colour and is left as it is.
    """
    own = np.array(palette, np.uint8).reshape(-1, 3)
    if np.array_equal(own, COLOURS[:len(own)]):
        return indices
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256)[:len(own)])
    if np.array_equal(own[used], COLOURS[used]) or (own[used] == used[:, None]).all():
        return indices
    table = np.arange(256, dtype=np.uint8)
    for index in used.tolist():
        colour = tuple(own[index].tolist())
        if colour not in LABELS:
            raise UserError(path, f'its palette shows index {index} in the colour {colour}, which is no label of the '
                                  'colour map', 'save the labels as 8-bit grey, or with the palette of VOC')
        table[index] = LABELS[colour]
    return table[indices]


def read_label_mask(path, num_classes):
    """Read a mask whose labels must be 0..num_classes-1 or 255. UserError, as read_mask or naming another label."""
    mask = read_mask(path)
    wrong = mask[(mask >= num_classes) & (mask != IGNORE)]
    if wrong.size:
        raise UserError(path, f'holds the label {wrong[0]}, which is neither below {num_classes} nor {IGNORE}',
                        'check that it is a label mask of this data set')
    return mask


def need_objects(ids, gt_dir):
    """UserError where no ground-truth mask `<gt_dir>/<id>.png` shows an object, and pixels of 255 occur.

    Masks are read up to the first that shows an object, most often the first of all.
    """
    ignored = False
    for name in ids:
        mask = read_mask(Path(gt_dir) / f'{name}.png')
        if ((mask > 0) & (mask < IGNORE)).any():
            return
        ignored = ignored or bool((mask == IGNORE).any())
    if ignored:
        raise UserError(gt_dir, BINARY, 'write objects as their class, 1 and up')


def check_same_shape(path, shape, gt_path, gt_shape):
    """UserError where a prediction's (H, W) is not that of its ground truth."""
    if tuple(shape) != gt_shape:
        sizes = ['{}x{}'.format(*size) for size in (shape, gt_shape)]
        raise UserError(path, f'is {sizes[0]} (height x width), its ground truth {gt_path} {sizes[1]}',
                        'predict at the size of the image')

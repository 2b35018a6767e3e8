"""Label masks: palette PNGs `<id>.png`, uint8 (H, W), 255 = ignore."""
import numpy as np
from PIL import Image

from data.images import opened_image
from engine.errors import UserError
from engine.files import atomic
from tool.metrics import IGNORE


def save_mask(path, labels, palette):
    """Write labels (H, W), 0..255, as a palette PNG. palette: 768 integers."""
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette(palette)
    with atomic(path) as temporary:
        image.save(temporary)


def read_mask(path):
    """Read a label mask, palette or grey PNG: uint8 (H, W). UserError: missing, unreadable, RGB or 16-bit."""
    with opened_image(path) as image:
        if image.mode not in ('P', 'L'):
            raise UserError(path, f'mask has mode {image.mode}, not palette or grey',
                            'store one label 0..255 per pixel (mode P)')
        return np.asarray(image)


def read_label_mask(path, num_classes):
    """Read a mask whose labels must be 0..num_classes-1 or 255. UserError, as read_mask or naming another label."""
    mask = read_mask(path)
    wrong = mask[(mask >= num_classes) & (mask != IGNORE)]
    if wrong.size:
        raise UserError(path, f'holds the label {wrong[0]}, which is neither below {num_classes} nor {IGNORE}',
                        'check that it is a label mask of this data set')
    return mask


def check_same_shape(path, shape, gt_path, gt_shape):
    """UserError where a prediction's (H, W) is not that of its ground truth."""
    if tuple(shape) != gt_shape:
        sizes = ['{}x{}'.format(*size) for size in (shape, gt_shape)]
        raise UserError(path, f'is {sizes[0]} (height x width), its ground truth {gt_path} {sizes[1]}',
                        'predict at the size of the image')

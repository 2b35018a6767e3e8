"""Saliency maps, the supervision of EPS: `<saliency_dir>/<id>.png`, 8-bit grey, 0..255, of the size of the image.

A map that is zero everywhere says that nothing in the image is salient: it is used, with a warning.
"""
import numpy as np

from data.images import opened_image
from engine.errors import UserError


def read_saliency(path, size):
    """Read the saliency map of an image of `size` (H, W): uint8 (H, W).

    UserError: missing or unreadable, another colour mode or size, values 0..1 instead of 0..255.
    """
    with opened_image(path) as image:
        wrong = problem(image, size)
        if wrong:
            raise UserError(path, f'saliency map {wrong}', 'write it as an 8-bit grey PNG, 0..255, of the size of its '
                                                           'image, or take the image off the list')
        return np.asarray(image)


def problem(image, size):
    """What is wrong with an opened saliency map (PIL image) of an image of `size` (H, W): 'is …', 'has …' or ''."""
    if image.mode != 'L':
        return f'has mode {image.mode}, not 8-bit grey'
    if image.size != (size[1], size[0]):
        return f'is {image.width}x{image.height} pixels, its image {size[1]}x{size[0]}'
    return 'has values 0..1, not 0..255' if image.getextrema()[1] == 1 else ''


def is_black(image):
    """Whether an opened saliency map (PIL image) is zero everywhere."""
    return image.getextrema()[1] == 0

"""Photos: reading them safely, and their sizes. No torch here."""
import contextlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.errors import UserError

MIN_SIDE = 8  # pixels, the stride of the networks: a smaller image has no feature map


def image_folder(voc12_root):
    """The folder of the photos in a devkit."""
    return Path(voc12_root) / 'JPEGImages'


@contextlib.contextmanager
def opened_image(path):
    """The PIL image at `path`, pixels not decoded yet. An exception while the block reads it becomes a UserError."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(path, 'image not found', 'check the list and the data folder') from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(path, f'image cannot be read ({error})', 'replace the file') from error


def read_image(path, convert=False):
    """Read an RGB image: uint8 (H, W, 3).

    Grey, palette, alpha and CMYK files are refused unless `convert` (--convert_rgb). Published code turned them into
    RGB without a word, and the colours that a CMYK file then gets depend on the library.
    UserError: missing, unreadable or truncated file, another colour mode, a side under 8 pixels.
    """
    with opened_image(path) as image:
        if min(image.size) < MIN_SIDE:
            raise UserError(path, f'image is {image.width}x{image.height} pixels, under {MIN_SIDE}',
                            'take it off the list')
        if image.mode != 'RGB' and not convert:
            raise UserError(path, f'image mode is {image.mode}, not RGB', 'convert the file, or add --convert_rgb')
        return np.asarray(image.convert('RGB'))


def image_size(path):
    """(H, W) of an image from its header alone. UserError where the file is missing or no image."""
    with opened_image(path) as image:
        return image.height, image.width

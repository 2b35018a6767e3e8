"""Photos: finding their files by id, reading them safely and upright, and their sizes. No torch here."""
import contextlib
import os
import struct
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from engine.errors import UserError

MIN_SIDE = 8  # pixels, the stride of the networks: a smaller image has no feature map
SUFFIXES = ('.jpg', '.jpeg', '.png')  # of photos, in any case; where an id has several, the first of this order counts
# What is read, whatever a file is called. Of Pillow's other formats some start programs: PostScript Ghostscript.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF', 'PPM', 'JPEG2000')
BLANK = 3  # grey levels: a photo whose channels all deviate less from their mean shows nothing
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


# ---------------------------------------------------------------- finding files by id

def image_folder(voc12_root):
    """The folder of the photos in a devkit."""
    return Path(voc12_root) / 'JPEGImages'


@dataclass(frozen=True)
class PhotoFolders:
    """Where the photos of a data set lie: one folder or more, and the endings that photos have, in lower case."""
    folders: tuple
    suffixes: tuple = SUFFIXES

    def find(self, ids):
        """{id: Path} of those `ids` that have a photo, in the order of `ids`; of several, the first folder's."""
        found = {}
        for folder in self.folders[::-1]:
            found |= found_files(ids, folder, self.suffixes)
        return {i: found[i] for i in ids if i in found}

    def need(self, ids):
        """The photos of all `ids`: {id: Path}. UserError naming the first that is missing."""
        if len(self.folders) == 1:
            return need_images(ids, self.folders[0], self.suffixes, '--voc12_root')
        found = self.find(ids)
        missing = [i for i in ids if i not in found]
        if missing:
            raise UserError(Path(self.folders[0]) / (missing[0] + self.suffixes[0]),
                            f'file not found, nor in the other folders of the images ({len(missing)} of {len(ids)} are '
                            'missing)', 'correct the list or --voc12_root')
        return found


def devkit_photos(voc12_root):
    """The PhotoFolders of a VOC devkit."""
    return PhotoFolders((image_folder(voc12_root),))


def need_images(ids, folder, suffixes, flag):
    """found_files of all `ids`. UserError naming the first without a file, and what lies there in its place."""
    found = found_files(ids, folder, suffixes)
    missing = [i for i in ids if i not in found]
    if missing:
        raise UserError(Path(folder) / (missing[0] + suffixes[0]),
                        f'file not found ({len(missing)} of {len(ids)} are missing{_near(missing[0], folder)})',
                        f'correct the list or {flag}')
    return found


def found_files(ids, folder, suffixes):
    """{id: Path} of those `ids` that have a file `<id><suffix>` in a folder, in the order of `ids`.

    The folder is listed once. suffixes: in lower case, the preferred first; files may write them in any case. An id may
    be written in composed letters (é) and its file in decomposed ones (e + accent), as macOS archives them, or the
    other way round: they look the same. A file that is called `<id><suffix>` to the letter comes before all others.
    """
    folder, same, alike = Path(folder), {}, {}  # the best file of a stem to the letter, and of those that look like it
    for name in _listing(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            rank = suffixes.index(suffix.lower()), suffix not in suffixes, name
            same[stem] = min(rank, same.get(stem, rank))
            alike[_composed(stem)] = min(rank, alike.get(_composed(stem), rank))
    found = {i: same.get(i) or alike.get(_composed(i)) for i in ids}
    return {i: folder / rank[-1] for i, rank in found.items() if rank}


def _composed(text):
    """Text with every letter in one form, accent included, so that texts which look the same are equal."""
    return text if text.isascii() else unicodedata.normalize('NFC', text)


def _listing(folder):
    """The names in a folder; none where it is missing."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _near(name, folder):
    """What may be meant by an id without a file, for a message: '' or '; …'."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in SUFFIXES and found_files([stem], folder, SUFFIXES):
        return f'; {stem} is there: a line of a list is an id without {suffix}, or a path that begins with /'
    first = name.split()[0]
    if first != name and found_files([first], folder, SUFFIXES):
        return f'; {first} is there: a line of a list is one id with all its blanks'
    with_underscore = f'{name[:4]}_{name[4:]}'
    if name.isdigit() and found_files([with_underscore], folder, SUFFIXES):
        return f'; {with_underscore} is there: a list names ids as the files are called'
    other = next((file for file in _listing(folder) if os.path.splitext(file)[0] == name), None)
    return f'; {other} is there, which has none of the endings {", ".join(SUFFIXES)}' if other else ''


# ---------------------------------------------------------------- reading

@contextlib.contextmanager
def opened_image(path):
    """The PIL image at `path`, pixels not decoded yet. An exception while the block reads it becomes a UserError.

    Where there is no such file, one whose name looks the same (found_files) is opened.
    """
    try:
        with Image.open(path if os.path.exists(path) else _same_name(path), formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise UserError(path, 'image not found', 'check the list and the data folder') from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(path, f'image cannot be read ({error})', 'replace the file') from error


def _same_name(path):
    """`path`, or a file beside it whose name differs only in how its letters are composed."""
    name = os.path.basename(path)
    forms = (os.path.join(os.path.dirname(path), unicodedata.normalize(form, name)) for form in ('NFC', 'NFD'))
    return next((other for other in forms if os.path.exists(other)), path)


def read_image(path, convert=False):
    """Read an RGB image, upright: uint8 (H, W, 3).

    Upright: as viewers show it, turned by its EXIF orientation. Published code read photos as they are stored, and
    masks that people drew on what they saw then lay turned on them.
    Grey, palette, alpha and CMYK files are refused unless `convert` (--convert_rgb). Published code turned them into
    RGB without a word, and the colours that a CMYK file then gets depend on the library. 16-bit grey is divided by 257,
    so that its full range becomes 0..255; values of 32 bits have no known range and are refused.
    UserError: missing, unreadable or truncated file, another colour mode, a side under 8 pixels.
    """
    with opened_image(path) as image:
        if min(image.size) < MIN_SIDE:
            raise UserError(path, f'image is {image.width}x{image.height} pixels, under {MIN_SIDE}',
                            'take it off the list')
        if image.mode != 'RGB' and not convert:
            raise UserError(path, f'image mode is {image.mode}, not RGB', 'convert the file, or add --convert_rgb')
        turned = orientation(image)
        image = eight_bits(path, image).convert('RGB')
        return np.asarray(image if turned == 1 else image.transpose(TURNS[turned]))


# What makes an image upright, by its EXIF orientation.
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}


def orientation(image):
    """The EXIF orientation 1..8 of an opened PIL image, from its header alone; 1 (upright) where it has none.

    A tag that cannot be read counts as none, as in viewers. TIFF files count as upright: Pillow turns them itself.
    """
    if image.format == 'TIFF':
        return 1
    try:
        # The method of the base class: PNG's own decodes the whole image to look for tags behind the pixels.
        tag = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (ValueError, SyntaxError, OSError, LookupError, TypeError, AttributeError, struct.error):
        return 1
    return tag if tag in TURNS else 1


def eight_bits(path, image):
    """An opened PIL image, its grey values scaled to 8 bits where they have 16. UserError: values of 32 bits."""
    if image.mode.startswith('I;16') or image.mode == 'I' and image.format == 'PNG':
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ('I', 'F'):
        raise UserError(path, f'image mode is {image.mode}: values of 32 bits, whose black and white are not known',
                        'save it with 8 bits a channel')
    return image


def image_size(path):
    """(H, W) of an upright image from its header alone. UserError where the file is missing or no image."""
    with opened_image(path) as image:
        return (image.width, image.height) if orientation(image) in SIDEWAYS else (image.height, image.width)


def is_blank(pixels):
    """Whether a photo, uint8 (H, W, 3), is of one colour but for noise: a lens cap, a failed download."""
    return bool(pixels.std((0, 1)).max() < BLANK)

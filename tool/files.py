"""Reading what others wrote, safely, and writing so that a file which exists is whole. No torch here."""
import contextlib
import json
import math
import os
import pickle
import tokenize
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tool import safe_pickle
from tool.cli import UserError, repo_path

MIN_SIDE = 8  # pixels: the stride of the networks; a smaller image has no feature map worth the name


# ---------------------------------------------------------------- writing

@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path` (same suffix); rename it to `path` when the block ends well.

    The temporary name is fixed, so that a run that was killed leaves nothing the next one does not overwrite.
    Raises UserError naming `path` where the disk is full, the folder is missing or may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.stem}.tmp{path.suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(path, f'cannot be written ({error.strerror or error})',
                        'free space or choose another folder') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def out_dir(path, flag):
    """Create the folder that `flag` names and check that it can be written. Returns it as a Path; UserError if not."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / '.probe.tmp'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(flag, f'folder {path} cannot be written ({error.strerror})', 'choose another folder') from error
    return path


def save_npy(path, value):
    """Write an array, or a dict (pickled inside the .npy, as published), to `path`, atomically."""
    with atomic(path) as temporary:
        np.save(temporary, value)


def save_mask(path, labels, palette):
    """Write labels (H, W), 0..255, as a palette PNG. palette: 768 integers."""
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette(palette)
    with atomic(path) as temporary:
        image.save(temporary)


def save_text(path, text):
    """Write a text file, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def save_json(path, value):
    """Write `value` as indented JSON, atomically."""
    save_text(path, json.dumps(value, indent=2, default=str) + '\n')


# ---------------------------------------------------------------- pictures

@contextlib.contextmanager
def opened_image(path):
    """The PIL image at `path`, pixels not decoded yet; whatever fails while it is read becomes a UserError."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(path, 'image not found', 'check the list and the data folder') from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(path, f'image cannot be read ({error})', 'replace the file') from error


def read_image(path, convert=False):
    """Read an RGB image: uint8 (H, W, 3).

    Grey, palette, alpha and CMYK files are refused unless `convert` (--convert_rgb): published code turned them into
    RGB without a word, and what a CMYK file becomes depends on the library.
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
    """(H, W) of an image from its header alone. UserError where it is missing or no image."""
    with opened_image(path) as image:
        return image.height, image.width


def read_mask(path):
    """Read a label mask, palette or grey PNG: uint8 (H, W). UserError: missing, unreadable, RGB or 16-bit."""
    with opened_image(path) as image:
        if image.mode not in ('P', 'L'):
            raise UserError(path, f'mask has mode {image.mode}, not palette or grey',
                            'store one label 0..255 per pixel (mode P)')
        return np.asarray(image)


# ---------------------------------------------------------------- arrays

def read_npy(path):
    """Read a .npy file: the array or, where it holds a pickled object, that object (a dict, say).

    Pickles are read by tool/safe_pickle.py, so a hostile file cannot run code.
    UserError: missing, truncated, not a .npy file, or a pickle of anything but arrays and plain containers.
    """
    try:
        with open(path, 'rb') as file:
            version = np.lib.format.read_magic(file)
            form = np.lib.format
            read_header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
            shape, _, dtype = read_header(file)
            if dtype.hasobject:
                value = safe_pickle.load(file)
                return value.item() if value.shape == () else value
            if math.prod(shape) * dtype.itemsize > os.fstat(file.fileno()).st_size:
                raise ValueError(f'shorter than an array of shape {shape}')
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(path, 'file not found', 'run the step that writes it, or correct the folder') from None
    except OSError as error:
        raise UserError(path, f'cannot be read ({error.strerror or error})', 'check the file') from error
    except (ValueError, EOFError, pickle.UnpicklingError, ArithmeticError, AttributeError, LookupError, MemoryError,
            RecursionError, SyntaxError, TypeError, tokenize.TokenError) as error:  # where damage can lead
        raise UserError(path, f'not a .npy file this project reads ({error})', 'write it again') from error


def read_cams(path, num_foreground):
    """Read `<out_cam>/<id>.npy`: dict {class 0..num_foreground-1: float32 (H, W)}, as a class array and a stack.

    Returns keys (K,) int64 ascending and cams (K, H, W) float32. UserError: not such a dict, no class in it,
    a class out of range, shapes that differ, values that are not finite.
    """
    value = read_npy(path)
    redo = 'write it again with contrast_infer.py --out_cam'
    if not isinstance(value, dict):
        raise UserError(path, f'holds {type(value).__name__}, not a dict of CAMs', redo)
    if not value:
        raise UserError(path, 'holds no class', 'the image needs at least one image-level label')
    try:
        keys = np.array(sorted(int(key) for key in value), np.int64)
        cams = np.stack([np.asarray(value[key], np.float32) for key in sorted(value, key=int)])
    except (ValueError, TypeError) as error:
        raise UserError(path, f'holds no CAMs of one shape ({error})', redo) from error
    if keys[0] < 0 or keys[-1] >= num_foreground or cams.ndim != 3:
        raise UserError(path, f'classes {keys.tolist()} of shape {cams.shape[1:]} do not fit {num_foreground} classes',
                        redo)
    if not np.isfinite(cams).all():
        raise UserError(path, 'holds values that are not finite', redo)
    return keys, cams


# ---------------------------------------------------------------- lists and labels

def read_list(path, flag='list'):
    """Read a list of image ids: one a line, or `/JPEGImages/<id>.jpg /SegmentationClassAug/<id>.png`.

    Returns the ids as strings, in order. UserError: missing or empty file, an id named twice.
    """
    path = repo_path(path)
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()  # -sig: Windows editors begin with a BOM
    except FileNotFoundError:
        raise UserError(path, 'list not found', f'correct {flag}; voc12/prepare.py writes the VOC lists') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f'list cannot be read ({error})', f'correct {flag}') from error
    ids = [image_id(line.split()[0]) for line in lines if line.strip()]
    if not ids:
        raise UserError(path, 'list is empty', 'name at least one image id')
    if len(set(ids)) < len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise UserError(path, f'names {twice} twice', 'name each image once')
    return ids


def image_id(entry):
    """The id in a list entry: the entry itself or, for a path, its file name without .jpg or .png.

    Published: the characters [-15:-4], which fits VOC's eleven-character ids only.
    """
    name = entry.replace('\\', '/').rsplit('/', 1)[-1]
    return name[:-4] if name.lower().endswith(('.jpg', '.png')) else name


def read_labels(path, num_foreground):
    """Read image-level labels: dict id → float32 (num_foreground,), values 0 or 1. UserError: another content."""
    value = read_npy(repo_path(path))
    redo = 'write it with voc12/prepare.py'
    if not isinstance(value, dict) or not value:
        raise UserError(path, 'is not a dict of labels', redo)
    try:
        with np.errstate(over='ignore'):  # inf is refused below
            labels = {str(key): np.asarray(label, np.float32).reshape(-1) for key, label in value.items()}
    except (ValueError, TypeError) as error:
        raise UserError(path, f'holds a label that is no array of numbers ({error})', redo) from error
    for key, label in labels.items():
        if len(label) != num_foreground or not np.isin(label, (0, 1)).all():
            raise UserError(path, f'label of {key} is not {num_foreground} values of 0 or 1', redo)
    return labels


def labels_of(ids, labels, path):
    """The labels of `ids`, in order: float32 (N, C). UserError naming the first id without a label."""
    missing = [i for i in ids if i not in labels]
    if missing:
        raise UserError(path, f'no label for {missing[0]} ({len(missing)} of {len(ids)} ids lack one)',
                        'add them, or correct the list')
    return np.stack([labels[i] for i in ids])


def missing_files(ids, folder, suffix):
    """The ids whose `<folder>/<id><suffix>` does not exist: one directory listing, no stat per file."""
    try:
        present = set(os.listdir(folder))
    except OSError:
        present = set()
    return [i for i in ids if i + suffix not in present]


def need_files(ids, folder, suffix, flag):
    """Check that `<folder>/<id><suffix>` exists for all ids. UserError naming the first that does not."""
    missing = missing_files(ids, folder, suffix)
    if missing:
        raise UserError(Path(folder) / (missing[0] + suffix),
                        f'file not found ({len(missing)} of {len(ids)} are missing)', f'correct the list or {flag}')

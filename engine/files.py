"""Paths, whole files, `.npy` files. A leaf that every package but tool/ may import; no torch here."""
import contextlib
import json
import math
import os
import pickle
import platform
import re
import time
import tokenize
from pathlib import Path

import numpy as np

from engine import safe_pickle
from engine.errors import UserError

REPO = Path(__file__).resolve().parent.parent
HOST = re.sub(r'\W', '_', platform.node())
TEMPORARY = re.compile(r'\..*\.(\w+)-(\d+)\.tmp(\..*)?')  # .<stem>.<host>-<process id>.tmp<suffix>
DAY = 24 * 60 * 60  # seconds


def repo_path(path):
    """The path as the user gave it or, where that does not exist and it names a file of voc12/ or coco14/, the
    repository's file.

    It lets `--infer_list voc12/val.txt` work from any folder, and `voc12/trainaug.txt` mean voc12/train_aug.txt.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    if path.name == 'trainaug.txt' and path.parent.name == 'voc12':
        path = path.with_name('train_aug.txt')
    return REPO / path if path.parts[:1] in (('voc12',), ('coco14',)) and not path.exists() else path


# ---------------------------------------------------------------- writing

@contextlib.contextmanager
def writing(path):
    """UserError naming `path` where the block cannot write it: the disk is full, the folder is missing or closed."""
    try:
        yield
    except OSError as error:
        raise UserError(path, f'cannot be written ({error.strerror or error})',
                        'free space or choose another folder') from error


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path in the folder of `path` (same suffix); rename it to `path` when the block ends well.

    The temporary name is this process's own, so that two processes may write the same file: the later one counts.
    What a killed process left is removed by out_dir. UserError as in `writing`.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.stem}.{HOST}-{os.getpid()}.tmp{path.suffix}')
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def out_dir(path, flag):
    """Create the folder that `flag` names and check that it can be written. Returns it as a Path; UserError if not.

    Removes the temporary files that killed processes left in it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f'.probe.{HOST}-{os.getpid()}.tmp'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(flag, f'folder {path} cannot be written ({error.strerror})', 'choose another folder') from error
    for name in filter(TEMPORARY.fullmatch, os.listdir(path)):
        with contextlib.suppress(OSError):
            if is_left_over(path / name):
                (path / name).unlink()
    return path


def is_left_over(temporary):
    """Whether the process that writes a temporary file is gone; of another machine's, whether the file is a day old."""
    host, process = TEMPORARY.fullmatch(temporary.name).group(1, 2)
    if host != HOST:
        return time.time() - temporary.stat().st_mtime > DAY
    try:
        os.kill(int(process), 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def save_text(path, text):
    """Write a text file, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


# ---------------------------------------------------------------- JSON

def save_json(path, value):
    """Write `value` as indented JSON, atomically."""
    save_text(path, json.dumps(value, indent=2, default=str) + '\n')


def read_json(path, remedy):
    """The content of a JSON file; None where the file does not exist. UserError, with `remedy`: damaged, no file."""
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(path, f'is no JSON ({error})', remedy) from error


# ---------------------------------------------------------------- .npy

def save_npy(path, value):
    """Write an array, or a dict (pickled inside the .npy, as published), to `path`, atomically."""
    with atomic(path) as temporary:
        np.save(temporary, value)


def read_npy(path):
    """Read a .npy file: the array or, where it holds a pickled object, that object (for example a dict).

    Pickles are read by engine/safe_pickle.py, so a hostile file cannot run code.
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
    # Exceptions seen when reading damaged files: tests/test_files.py damages files at random.
    except (ValueError, EOFError, pickle.UnpicklingError, ArithmeticError, AttributeError, LookupError, MemoryError,
            RecursionError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise UserError(path, f'not a .npy file this project reads ({error})', 'write it again') from error


# ---------------------------------------------------------------- files of a list

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


def unfinished(ids, outputs):
    """The ids of which some output file is missing, in order. outputs: (folder, suffix) of each kind of file."""
    missing = {i for folder, suffix in outputs for i in missing_files(ids, folder, suffix)}
    return [i for i in ids if i in missing]

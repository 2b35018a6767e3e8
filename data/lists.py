"""Lists of image ids, one a line: `<id>`, or the published `/JPEGImages/<id>.jpg /SegmentationClassAug/<id>.png`.

A line that begins with / is of the published form; any other line is the id, whole: its blanks and points belong to it.
"""
import collections
import re

from data.images import SUFFIXES
from engine.errors import UserError
from engine.files import REPO, repo_path, save_text


def is_id(name):
    """Whether a text names a file in its folder, whatever ending is added: not hidden, not empty, no path."""
    return bool(name.strip()) and not name.startswith('.') and not set(name) & set('/\\\0')


def save_list(path, ids, with_mask=()):
    """Write a list, in the published form for those ids that are in `with_mask`, else the id alone."""
    save_text(path, ''.join(f'/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n' if i in with_mask else f'{i}\n'
                            for i in ids))


def read_list(path, flag='list'):
    """The ids of a list, as strings, in order. `flag` is what an error message tells the user to correct.

    UserError: missing or empty file, an id named twice, a path that does not begin with /.
    """
    path = repo_path(path)
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()  # -sig: Windows editors begin with a BOM
    except FileNotFoundError:
        own = path.parent.name if path.parent.parent == REPO and (path.parent / 'prepare.py').is_file() else None
        raise UserError(path, 'list not found', f'run python {own}/prepare.py, which writes it' if own
                        else f'correct {flag}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f'list cannot be read ({error})', f'correct {flag}') from error
    ids = [image_id(line.strip(), path) for line in lines if line.strip()]
    if not ids:
        raise UserError(path, 'list is empty', 'name at least one image id')
    if len(set(ids)) < len(ids):
        twice = collections.Counter(ids).most_common(1)[0][0]
        raise UserError(path, f'names {twice} twice', 'name each image once')
    return ids


def image_id(line, path):
    """The id in a line of the list at `path`: the line itself or, where it begins with /, the name of the first file
    without its ending.

    Published: the characters [-15:-4], which fits VOC's eleven-character ids only.
    UserError: a path that does not begin with /. It cannot be an id, which is a file's name. An id that would name a
    hidden file, a folder or no file at all.
    """
    if not line.startswith('/'):
        if '/' in line or '\\' in line:
            raise UserError(path, f'the line {line!r} is neither an id nor a path that begins with /',
                            'write the ids alone, or /JPEGImages/<id>.jpg')
        name = line
    else:
        name = re.split(r'\s+/', line)[0].rsplit('/', 1)[-1]
        suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), '')
        name = name[:len(name) - len(suffix)]
    if not is_id(name):
        raise UserError(path, f'the line {line[:100]!r} names no image', 'write an id, the name of a file without its '
                                                                          'ending')
    return name

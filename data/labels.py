"""Image-level labels, `cls_labels.npy`: a pickled dict id → float32 (foreground classes,), values 0 or 1.

Files of IRN and what descends from it name images by whole numbers, 2007000032 for 2007_000032.
"""
import collections
import unicodedata

import numpy as np

from engine.errors import UserError
from engine.files import read_npy, repo_path, save_npy


def save_labels(path, labels):
    """Write labels, a dict id → float32 (foreground classes,)."""
    save_npy(path, labels)


def read_labels(path, num_foreground):
    """Read labels: dict id → float32 (num_foreground,), values 0 or 1. UserError: another content."""
    value = read_npy(repo_path(path))
    redo = 'write it with voc12/prepare.py'
    if not isinstance(value, dict) or not value:
        raise UserError(path, 'is not a dict of labels', redo)
    try:
        with np.errstate(over='ignore'):  # a number beyond float32 becomes inf, which is refused below
            labels = {str(key): np.asarray(label, np.float32).reshape(-1) for key, label in value.items()}
    except (ValueError, TypeError) as error:
        raise UserError(path, f'holds a label that is no array of numbers ({error})', redo) from error
    for key, label in labels.items():
        if len(label) != num_foreground or not np.isin(label, (0, 1)).all():
            raise UserError(path, f'label of {key} is not {num_foreground} values of 0 or 1', redo)
    return labels


def labels_of(ids, labels, path):
    """The labels of `ids`, in order: float32 (N, C − 1).

    An id stands for itself, else for what looks the same (é and e + accent), else for the number of its digits.
    UserError naming the first id without a label, or a number that stands for two ids.
    """
    alike = {unicodedata.normalize('NFC', key): key for key in labels}
    names = {i: i if i in labels else alike.get(unicodedata.normalize('NFC', i)) or _number(i) for i in ids}
    missing = [i for i in ids if names[i] not in labels]
    if missing:
        raise UserError(path, f'no label for {missing[0]} ({len(missing)} of {len(ids)} ids lack one)',
                        'add them, or correct the list')
    if len(set(names.values())) < len(names):
        twice, = collections.Counter(names.values()).most_common(1)
        raise UserError(path, f'the label of {twice[0]} fits {twice[1]} ids of the list', 'name images by their ids')
    return np.stack([labels[names[i]] for i in ids])


def _number(name):
    """The whole number that stands for an id of digits and underscores in IRN's files, as text; '' for other ids."""
    digits = name.replace('_', '')
    return str(int(digits)) if digits.isascii() and digits.isdigit() else ''

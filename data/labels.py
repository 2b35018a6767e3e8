"""Image-level labels, in one of three forms.

`.npy`: a pickled dict id → float32 (foreground classes,), values 0 or 1. Files of IRN and what descends from it name
images by whole numbers, 2007000032 for 2007_000032. `.csv`: lines `id,class,class`; the id alone for an image without
any class; a first line that begins with `id` is a heading. A folder: label masks `<id>.png`, whose labels are taken.
"""
import collections
import csv
import unicodedata

import numpy as np

from data.images import SUFFIXES, need_images
from data.masks import read_truth
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
        if len(label) != num_foreground or not ((label == 0) | (label == 1)).all():
            raise UserError(path, f'label of {key} is not {num_foreground} values of 0 or 1', redo)
    return labels


def image_labels(ids, path, classes):
    """The labels of `ids`, in order: float32 (N, C − 1), from any of the three forms. classes: a ClassSet.

    UserError: a malformed file, an id without a label.
    """
    found = repo_path(path)
    if found.is_dir():
        masks = need_images(ids, found, ('.png',), '--cls_labels')
        return np.stack([labels_of_mask(read_truth(masks[i], classes), classes) for i in ids])
    read = read_csv(path, classes) if found.suffix.lower() == '.csv' else read_labels(path, classes.num_foreground)
    return labels_of(ids, read, path)


def labels_of_mask(mask, classes):
    """Which classes a label mask (H, W) shows: float32 (C − 1,), 0 or 1. classes: a ClassSet."""
    return (np.bincount(mask.ravel(), minlength=256)[1:classes.num_classes] > 0).astype(np.float32)


def read_csv(path, classes):
    """Read labels `id,class,class` of a ClassSet: dict id → float32 (C − 1,), values 0 or 1.

    UserError: missing or unreadable file, a class that the data set lacks, an id on two lines.
    """
    labels = {}
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:  # -sig: Windows editors begin with a BOM
            for number, row in enumerate(csv.reader(file, strict=True), 1):
                name, *words = [cell.strip() for cell in row] or ['']
                if not name and not any(words) or number == 1 and name == 'id':
                    continue
                _add_row(labels, f'{path} line {number}', name, list(filter(None, words)), classes)
    except FileNotFoundError:
        raise UserError(path, 'labels not found', 'correct --cls_labels or the description') from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(path, f'labels cannot be read ({error})', 'write lines of id,class,class in UTF-8') from error
    if not labels:
        raise UserError(path, 'holds no label', 'write lines of id,class,class')
    return labels


def _add_row(labels, where, name, words, classes):
    """Add the label of one line to the dict `labels`. UserError, as read_csv."""
    unknown = [word for word in words if word not in classes.foreground]
    if not name or name in labels:
        raise UserError(where, f'names {name} a second time' if name else 'has no id', 'give each image one line')
    if unknown:
        raise UserError(where, f'names the class {unknown[0]!r}, which {classes.name} lacks',
                        'correct it, or add it to the classes')
    labels[name] = np.array([foreground in words for foreground in classes.foreground], np.float32)


def labels_of(ids, labels, path):
    """The labels of `ids`, in order: float32 (N, C − 1).

    An id stands for itself, else for what looks the same (é and e + accent), else for the number of its digits.
    UserError naming the first id without a label, or a number that stands for two ids.
    """
    alike = {unicodedata.normalize('NFC', key): key for key in labels}
    names = {i: i if i in labels else alike.get(unicodedata.normalize('NFC', i)) or _number(i) for i in ids}
    missing = [i for i in ids if names[i] not in labels]
    if missing:
        file = next((f'; {missing[0] + suffix} has one' for suffix in SUFFIXES if missing[0] + suffix in labels), '')
        raise UserError(path, f'no label for {missing[0]} ({len(missing)} of {len(ids)} ids lack one{file})',
                        'write ids without their ending' if file else 'add them, or correct the list')
    if len(set(names.values())) < len(names):
        twice, = collections.Counter(names.values()).most_common(1)
        raise UserError(path, f'the label of {twice[0]} fits {twice[1]} ids of the list', 'name images by their ids')
    return np.stack([labels[names[i]] for i in ids])


def _number(name):
    """The whole number that stands for an id of digits and underscores in IRN's files, as text; '' for other ids."""
    digits = name.replace('_', '')
    return digits.lstrip('0') or '0' if digits.isascii() and digits.isdigit() else ''

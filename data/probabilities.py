"""Class probabilities after aff_prepare.py's CRF, `<out_crf>/<alpha>/<id>.npy`: the labels of AffinityNet.

A pickled dict {mask label: float16 (H, W)}: 0 is the background, k + 1 foreground class k; present classes only.
"""
from pathlib import Path

import numpy as np

from engine.errors import UserError
from engine.files import need_files, read_npy, save_npy

SUM = 0.5, 1.01  # of a pixel's probabilities: below 1 by those of absent classes, above it by rounding
REDO = 'write it again with aff_prepare.py'
SAMPLE = 16  # images looked at to tell the low from the high alpha


def save_probabilities(path, labels, probabilities):
    """Write the probabilities of an image. labels: K mask labels; probabilities: float32 (K, H, W), not changed."""
    # Values below float16's normal range are slow to convert and never decide the argmax: set them to 0.
    kept = np.where(probabilities < np.finfo(np.float16).smallest_normal, 0, probabilities)
    save_npy(path, dict(zip(labels, kept.astype(np.float16))))


def read_probabilities(path, num_classes, size=None):
    """Read the probabilities of an image: labels (K,) int64, mask values, 0 first, and scores (K, H, W).

    Reads the dict and, as published code writes it, an array (num_classes, H, W). size: the (H, W) they must have.
    UserError: another content, labels out of range or without background, CAMs, another size.
    """
    value = read_npy(path)
    if not isinstance(value, dict):
        fits = isinstance(value, np.ndarray) and value.ndim == 3 and len(value) == num_classes
        value = dict(enumerate(value)) if fits else {}
    try:
        maps = {int(key): item for key, item in value.items()}
        labels = sorted(maps)
        fits = len(maps) == len(value) and labels[0] == 0 and labels[-1] < num_classes
        scores = np.stack([np.asarray(maps[label]) for label in labels[:num_classes]])
    except (ValueError, TypeError, OverflowError, IndexError) as error:
        raise UserError(path, f'holds no class probabilities of one shape ({error})', REDO) from error
    if not fits or scores.ndim != 3 or scores.dtype.kind != 'f':
        raise UserError(path, f'labels {str(list(value))[:200]} of shape {scores.shape[1:]} are no class probabilities',
                        REDO)
    labels = np.array(labels, np.int64)
    if not are_probabilities(scores):
        raise UserError(path, 'holds scores that do not add up to 1, such as CAMs, no class probabilities',
                        "give a folder of aff_prepare.py's --out_crf")
    if size is not None and scores.shape[1:] != tuple(size):
        raise UserError(path, f'is {scores.shape[2]}x{scores.shape[1]}, the image is {size[1]}x{size[0]}', REDO)
    return labels, scores


def are_probabilities(scores):
    """Whether scores (K, H, W) can be the probabilities of an image's classes: CAMs are near 0 or above 1 together."""
    total = scores.sum(0, dtype=np.float32)
    return bool(total.size and SUM[0] <= total.min() and total.max() <= SUM[1])


def check_alphas(ids, low_dir, high_dir, num_classes):
    """Refuse --la_crf_dir and --ha_crf_dir that are the same, hold the same, or are swapped (UserError).

    A higher alpha gives less background, so the background pixels of up to 16 images tell the two folders apart, unless
    none of them has any class.
    Published: aff_prepare.py wrote one alpha into all its folders, and nobody was told.
    """
    low_dir, high_dir = Path(low_dir), Path(high_dir)
    need_files(ids, low_dir, '.npy', '--la_crf_dir')
    need_files(ids, high_dir, '.npy', '--ha_crf_dir')
    if low_dir.resolve() == high_dir.resolve():
        raise UserError('--ha_crf_dir', f'is the folder of --la_crf_dir ({low_dir})',
                        'give that of the high alpha (24.00)')
    sample = [ids[k] for k in np.unique(np.linspace(0, len(ids) - 1, SAMPLE).round().astype(int))]
    low, high = ([_label_map(folder / f'{i}.npy', num_classes) for i in sample] for folder in (low_dir, high_dir))
    pairs = [pair for pair in zip(low, high) if all(labels is not None for labels in pair)]
    if not pairs:
        return
    low, high = zip(*pairs)
    if all(np.array_equal(a, b) for a, b in zip(low, high)):
        raise UserError('--ha_crf_dir', f'has the labels of --la_crf_dir in all of {len(pairs)} images',
                        'run aff_prepare.py with a low and a high --alpha')
    if sum(np.count_nonzero(a) for a in low) > sum(np.count_nonzero(b) for b in high):
        raise UserError('--la_crf_dir', f'has less background than --ha_crf_dir (over {len(pairs)} images)',
                        'swap the two: la is the low alpha (4.00), ha the high one (24.00)')


def _label_map(path, num_classes):
    """The strongest label per pixel (H, W); None for an image without any class."""
    labels, scores = read_probabilities(path, num_classes)
    return labels[scores.argmax(0)] if len(labels) > 1 else None

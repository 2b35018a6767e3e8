"""The files between the parts of Step 2: CAMs, and the CRF's class probabilities under two alphas. No torch here."""
from pathlib import Path

import numpy as np

from tool import files
from tool.cli import UserError
from voc12.classes import VOC

SAMPLE = 16  # images looked at to tell the low from the high alpha


def read_cams(path, size):
    """CAMs of an image of size (H, W): classes (K,) int64, 0-based foreground, and cams float32 (K, H, W).

    UserError: as files.read_cams, or CAMs of another size.
    """
    classes, cams = files.read_cams(path, VOC.num_foreground)
    if cams.shape[1:] != tuple(size):
        raise UserError(path, f'CAMs are {cams.shape[2]}x{cams.shape[1]}, the image is {size[1]}x{size[0]}',
                        'write them again from these images with contrast_infer.py --out_cam')
    return classes, cams


def read_probabilities(path, size=None):
    """One file of aff_prepare.py: labels (K,) int64 (0: background, k + 1: class k) and scores (K, H, W).

    Reads its dict {label: (H, W)} and, as the published code writes it, an array (21, H, W). size: the image's (H, W).
    UserError: another content, labels out of range or without background, another size.
    """
    value = files.read_npy(path)
    redo = 'write it again with aff_prepare.py'
    if not isinstance(value, dict):
        value = dict(enumerate(value)) if np.ndim(value) == 3 and len(value) == VOC.num_classes else {}
    try:
        labels = np.array(sorted(int(key) for key in value), np.int64)
        scores = np.stack([np.asarray(value[key]) for key in sorted(value, key=int)])
    except (ValueError, TypeError) as error:
        raise UserError(path, f'holds no class probabilities of one shape ({error})', redo) from error
    if labels[0] != 0 or labels[-1] >= VOC.num_classes or scores.ndim != 3 or scores.dtype.kind != 'f':
        raise UserError(path, f'labels {labels.tolist()} of shape {scores.shape[1:]} are no class probabilities', redo)
    if size is not None and scores.shape[1:] != tuple(size):
        raise UserError(path, f'is {scores.shape[2]}x{scores.shape[1]}, the image is {size[1]}x{size[0]}', redo)
    return labels, scores


def check_alphas(ids, low_dir, high_dir):
    """Refuse --la_crf_dir and --ha_crf_dir that are the same, hold the same, or are swapped (UserError).

    A higher alpha gives less background; the share of background pixels over up to 16 images tells which is which.
    Published: aff_prepare.py wrote one alpha into all its folders, and nobody was told.
    """
    low_dir, high_dir = Path(low_dir), Path(high_dir)
    files.need_files(ids, low_dir, '.npy', '--la_crf_dir')
    files.need_files(ids, high_dir, '.npy', '--ha_crf_dir')
    if low_dir.resolve() == high_dir.resolve():
        raise UserError('--ha_crf_dir', f'is the folder of --la_crf_dir ({low_dir})', 'give that of the high alpha (24.00)')
    sample = [ids[k] for k in np.unique(np.linspace(0, len(ids) - 1, SAMPLE).round().astype(int))]
    low, high = ([_label_map(folder / f'{i}.npy') for i in sample] for folder in (low_dir, high_dir))
    if all(np.array_equal(a, b) for a, b in zip(low, high)):
        raise UserError('--ha_crf_dir', f'has the labels of --la_crf_dir in all of {len(sample)} images',
                        'run aff_prepare.py with a low and a high --alpha')
    if sum(np.count_nonzero(a) for a in low) > sum(np.count_nonzero(b) for b in high):
        raise UserError('--la_crf_dir', f'has less background than --ha_crf_dir (over {len(sample)} images)',
                        'swap the two: la is the low alpha (4.00), ha the high one (24.00)')


def _label_map(path):
    labels, scores = read_probabilities(path)
    return labels[scores.argmax(0)]

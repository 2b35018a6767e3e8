"""CAM files, `<out_cam>/<id>.npy`: a pickled dict {foreground index 0..: float32 (H, W)} of the present classes."""
import numpy as np

from data.probabilities import are_probabilities
from engine.errors import UserError
from engine.files import read_npy, save_npy

REDO = 'write it again with contrast_infer.py --out_cam'


def save_cams(path, present, cams):
    """Write the CAMs of an image. present (K,): foreground indices from 0; cams: K maps float32 (H, W)."""
    save_npy(path, dict(zip(present.tolist(), cams)))


def read_cams(path, num_foreground, size=None):
    """Read the CAMs of an image: present (K,) int64, foreground indices from 0, ascending; cams float32 (K, H, W).

    size: the (H, W) that they must have. UserError: not such a dict, no class in it, a class out of range, shapes
    that differ, values that are not finite, class probabilities (data/probabilities.py), another size.
    """
    value = read_npy(path)
    if not isinstance(value, dict):
        raise UserError(path, f'holds {type(value).__name__}, not a dict of CAMs', REDO)
    if not value:
        raise UserError(path, 'holds no class', 'the image needs at least one image-level label')
    try:
        present = np.array(sorted(int(key) for key in value), np.int64)
        cams = np.stack([np.asarray(value[key], np.float32) for key in sorted(value, key=int)])
    except (ValueError, TypeError) as error:
        raise UserError(path, f'holds no CAMs of one shape ({error})', REDO) from error
    if present[0] < 0 or present[-1] >= num_foreground or cams.ndim != 3:
        raise UserError(path, f'classes {present.tolist()} of shape {cams.shape[1:]} do not fit {num_foreground} '
                              'classes', REDO)
    if len(present) > 1 and present[0] == 0 and are_probabilities(cams):
        raise UserError(path, "holds class probabilities, with the background as 0, as aff_prepare.py's CRF writes "
                              'them, no CAMs', "give the folder of contrast_infer.py's --out_cam")
    if not np.isfinite(cams).all():
        raise UserError(path, 'holds values that are not finite', REDO)
    if size is not None and cams.shape[1:] != tuple(size):
        raise UserError(path, f'CAMs are {cams.shape[2]}x{cams.shape[1]}, the image is {size[1]}x{size[0]}',
                        'write them again from these images with contrast_infer.py --out_cam')
    return present, cams

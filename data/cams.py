"""CAM files, `<out_cam>/<id>.npy`: a pickled dict {foreground index 0..: float32 (H, W)} of the present classes.

The dict of an image without any class is empty. Files of IRN and what descends from it are read too: a dict of 'keys'
(K,), foreground indices, and 'high_res' (K, H, W), CAMs at the size of the image.
"""
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

    size: the (H, W) that they must have. An image without any class has CAMs (0, H, W), or (0, 0, 0) without `size`.
    UserError: not such a dict, a class out of range, shapes that differ, values that are not finite, class
    probabilities (data/probabilities.py), another size.
    """
    value = read_npy(path)
    if not isinstance(value, dict):
        raise UserError(path, f'holds {type(value).__name__}, not a dict of CAMs', REDO)
    value = _of_irn(path, value) if 'keys' in value else value
    if not value:
        return np.zeros(0, np.int64), np.zeros((0, *(size or (0, 0))), np.float32)
    try:
        maps = {int(key): item for key, item in value.items()}
        present = sorted(maps)
        # Compared before the maps are put together: there may be any number of them.
        fits = len(maps) == len(value) and 0 <= present[0] and present[-1] < num_foreground
        cams = np.stack([np.asarray(maps[key], np.float32) for key in present[:num_foreground]])
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(path, f'holds no CAMs of one shape ({error})', REDO) from error
    if not fits or cams.ndim != 3:
        raise UserError(path, f'classes {str(list(value))[:200]} of shape {cams.shape[1:]} do not fit {num_foreground} '
                              'classes', REDO)
    present = np.array(present, np.int64)
    if len(present) > 1 and present[0] == 0 and are_probabilities(cams):
        raise UserError(path, "holds class probabilities, with the background as 0, as aff_prepare.py's CRF writes "
                              'them, no CAMs', "give the folder of contrast_infer.py's --out_cam")
    if not np.isfinite(cams).all():
        raise UserError(path, 'holds values that are not finite', REDO)
    if size is not None and cams.shape[1:] != tuple(size):
        raise UserError(path, f'CAMs are {cams.shape[2]}x{cams.shape[1]}, the image is {size[1]}x{size[0]}',
                        'write them again from these images with contrast_infer.py --out_cam')
    return present, cams


def _of_irn(path, value):
    """The dict {foreground index: (H, W)} of a dict in IRN's layout. UserError: its parts do not fit, no 'high_res'."""
    if 'high_res' not in value:
        raise UserError(path, f"is in IRN's layout ({', '.join(map(str, value))}) without 'high_res', the CAMs at the "
                              'size of the image', 'save them as high_res, or as a dict {class 0..: float32 (H, W)}')
    try:
        keys, maps = np.asarray(value['keys']).reshape(-1), np.asarray(value['high_res'])
    except ValueError as error:
        raise UserError(path, f"is in IRN's layout, but its parts are no arrays ({error})", REDO) from error
    if keys.dtype.kind not in 'iu' or len(set(keys.tolist())) != len(keys) or maps.shape[:1] != keys.shape:
        raise UserError(path, f"is in IRN's layout, but its {len(keys)} keys do not fit high_res of shape {maps.shape}",
                        'save one map a key')
    return dict(zip(keys.tolist(), maps))

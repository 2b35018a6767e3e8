"""From CAM scores to labels: the background rules that turn scores of present classes into a label map.

METHOD 4.2, 6.1. NumPy only.
"""
import numpy as np


def with_background(cams, background):
    """Put the background first: cams (K, H, W), 0..1 → (1 + K, H, W). background: its score, a number or (H, W)."""
    return np.concatenate([np.broadcast_to(np.float32(background), (1, *cams.shape[1:])), cams])


def alpha_background(cams, alpha):
    """SEAM's background score (1 − strongest class)^alpha: (H, W) float32. A higher alpha gives less background.

    A score above 1, as CAM files of other programs may hold, counts as 1. An image without any class is background.
    """
    if not len(cams):
        return np.ones(cams.shape[1:], np.float32)
    return np.maximum(0, 1 - cams.max(0)) ** np.float32(alpha)


def label_map(present, cams, background):
    """The strongest label per pixel, background first on a tie: uint8 (H, W) of mask values, 0 and present + 1.

    present (K,): foreground indices from 0, ascending; cams (K, H, W): their scores; background as in with_background.
    """
    return np.append(0, np.asarray(present) + 1).astype(np.uint8)[with_background(cams, background).argmax(0)]

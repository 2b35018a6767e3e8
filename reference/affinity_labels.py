"""AffinityNet's labels as its authors make them: NumPy, image by image, while it is loaded. METHOD 6.2.

Plain twin of tool/affinity.py: cell_labels, pair_labels (and of tool/pairs.py: cell_means, pair_views).
"""
import numpy as np


def cell_labels(low, high):
    """The two CRFs' score maps (21, H, W), sides multiples of 8, 0 outside the image → label (h, w), 255 = ignore."""
    low, high = mean_pool(low), mean_pool(high)
    no_score = np.max(np.concatenate([low, high]), axis=0) < 1e-5
    low, high = np.argmax(low, axis=0), np.argmax(high, axis=0)
    label = low.copy()
    label[low == 0] = 255
    label[high == 0] = 0
    label[no_score] = 255
    return label


def mean_pool(maps):
    """8×8 means, cell by cell: (21, H, W) → (21, H/8, W/8)."""
    out = np.zeros((len(maps), maps.shape[1] // 8, maps.shape[2] // 8), np.float32)
    for y in range(out.shape[1]):
        for x in range(out.shape[2]):
            out[:, y, x] = np.mean(maps[:, 8 * y:8 * y + 8, 8 * x:8 * x + 8], axis=(1, 2))
    return out


def pair_labels(label, radius=5):
    """label (h, w), 255 = ignore → bg, fg, neg: float32 (34, pairs) each."""
    reach = radius - 1
    height, width = label.shape
    from_label = label[:-reach, reach:-reach].reshape(-1)
    to_labels, valid = [], []
    for dy, dx in [(0, dx) for dx in range(1, radius)] + [
            (dy, dx) for dy in range(1, radius) for dx in range(-reach, radius) if dx * dx + dy * dy < radius * radius]:
        to_label = label[dy:height - reach + dy, reach + dx:width - reach + dx].reshape(-1)
        to_labels.append(to_label)
        valid.append(np.logical_and(np.less(to_label, 255), np.less(from_label, 255)))
    to_labels, valid = np.stack(to_labels), np.stack(valid)
    equal = np.equal(from_label[None], to_labels)
    bg = np.logical_and(np.logical_and(equal, valid), np.equal(from_label, 0)[None])
    fg = np.logical_and(np.logical_and(equal, valid), np.not_equal(from_label, 0)[None])
    neg = np.logical_and(np.logical_not(equal), valid)
    return bg.astype(np.float32), fg.astype(np.float32), neg.astype(np.float32)

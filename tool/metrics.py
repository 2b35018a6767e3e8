"""The one confusion matrix, and the curve over background scores from one pass over each image. METHOD 5.

Plain twin: reference/curve.py.
"""
import numpy as np

IGNORE = 255  # mask value: in the ground truth the pixel does not count; in a prediction it has no label, a miss
CURVE = np.arange(60) / 100  # the background scores of --curve


def confusion(gt, predicted, num_classes):
    """Count the pixels of one image by true and predicted label.

    gt, predicted: uint8 of one shape, labels 0..num_classes-1 or 255. Returns int64 (num_classes, num_classes + 1):
    rows true, columns predicted, the last column for 255. Counts of several images add up. ValueError: any other label.
    """
    counted = gt != IGNORE
    rows, columns = gt[counted].astype(np.int64), predicted[counted].astype(np.int64)
    if (rows >= num_classes).any() or ((columns >= num_classes) & (columns != IGNORE)).any():
        raise ValueError(f'labels must be below {num_classes} or {IGNORE}')
    columns[columns == IGNORE] = num_classes
    cells = num_classes * (num_classes + 1)
    return np.bincount(rows * (num_classes + 1) + columns, minlength=cells).reshape(num_classes, num_classes + 1)


def class_iou(counts):
    """IoU per class in percent, float64 (..., C), of confusion counts (..., C, C + 1): TP / (T + P − TP + 1e-10).

    A class that is neither present nor predicted has IoU 0 and stays in the mean, as published.
    """
    square = counts[..., :counts.shape[-2]]
    hits = np.diagonal(square, axis1=-2, axis2=-1)
    return 100 * hits / (counts.sum(-1) + square.sum(-2) - hits + 1e-10)


def mean_iou(counts):
    """mIoU in percent, float64 (...,): the mean of class_iou over all classes, background included."""
    return class_iou(counts).mean(-1)


def occurring(counts):
    """Which classes are present or predicted at all, bool (..., C), of confusion counts (..., C, C + 1)."""
    return counts.sum(-1) + counts[..., :counts.shape[-2]].sum(-2) > 0


def mean_iou_occurring(counts):
    """The mean of class_iou over the classes that occur, in percent, float64 (...,); 0 where none does."""
    return class_iou(counts).sum(-1) / np.maximum(1, occurring(counts).sum(-1))


def score_histogram(gt, cams, thresholds, num_classes):
    """Count one image's pixels by true label, best foreground class and score: what every threshold's result needs.

    gt uint8 (H, W), labels 0..num_classes-1 or 255; cams float32 (K, H, W), K present classes in ascending order;
    thresholds ascending. Returns int64 (num_classes, K, len(thresholds) + 1): the last index is the number of
    thresholds below the score. The cost does not grow with the thresholds (but for a binary search among them).

    Equal to writing t into channel 0 of a float32 stack and taking the argmax, as published: t is compared as float32,
    ties go to background and then to the lower class, and absent classes (score 0) never win because t >= 0.
    """
    counted = gt != IGNORE
    scores = np.asarray(cams, np.float32)[:, counted]
    best = scores.argmax(0)
    thresholds = np.asarray(thresholds, np.float32)
    below = np.searchsorted(thresholds, np.take_along_axis(scores, best[None], 0)[0], side='left')
    shape = (num_classes, len(cams), len(thresholds) + 1)
    rows = gt[counted].astype(np.int64)
    if (rows >= num_classes).any():
        raise ValueError(f'labels must be below {num_classes} or {IGNORE}')
    return np.bincount(np.ravel_multi_index((rows, best, below), shape), minlength=np.prod(shape)).reshape(shape)


def curve_confusions(histogram):
    """Confusion counts per threshold, int64 (thresholds, C, C + 1), from score_histogram's counts over ALL foreground
    classes (C, C - 1, thresholds + 1): a pixel is foreground at threshold i where more than i thresholds lie below it.
    """
    num_classes, _, bins = histogram.shape
    foreground = histogram[..., ::-1].cumsum(-1)[..., -2::-1]  # at i: the sum over bins i + 1, i + 2, …
    counts = np.zeros((bins - 1, num_classes, num_classes + 1), np.int64)
    counts[:, :, 1:num_classes] = np.moveaxis(foreground, -1, 0)
    counts[:, :, 0] = histogram.sum((1, 2)) - counts[:, :, 1:num_classes].sum(-1)
    return counts


def mean_average_precision(scores, labels):
    """Mean over classes of the average precision of ranking images by score.

    scores, labels (0/1): (N, C). Classes that no image carries are left out; nan where none is left.
    """
    values = []
    for score, label in zip(scores.T, labels.T):
        hits = label[np.argsort(-score, kind='stable')] > 0
        if hits.any():
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            values.append(precision[hits].mean())
    return float(np.mean(values)) if values else float('nan')

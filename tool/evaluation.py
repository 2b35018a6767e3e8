"""Scoring a folder of predictions against ground-truth masks: the reading around tool/metrics.py, in parallel."""
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tool import files, metrics, parallel
from tool.cli import UserError

SUFFIX = {'npy': '.npy', 'png': '.png'}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns. Percentages are 0..100.

    classes: the ClassSet. images: their number. counts: int64 (T, C, C + 1), per threshold a metrics.confusion.
    thresholds: (T,) background scores, ascending; None for masks (then T is 1).
    """
    classes: object
    images: int
    counts: np.ndarray
    thresholds: np.ndarray = None

    @property
    def miou(self):
        """mIoU in percent per threshold, (T,)."""
        return metrics.mean_iou(self.counts)

    @property
    def class_iou(self):
        """IoU in percent per threshold and class, (T, C)."""
        return metrics.class_iou(self.counts)

    @property
    def best(self):
        """Index of the threshold of highest mIoU (the lowest such threshold)."""
        return int(self.miou.argmax())

    def at(self, threshold):
        """Index of a threshold that was asked for."""
        return int(np.flatnonzero(self.thresholds == threshold)[0])

    @property
    def unlabelled(self):
        """Share, 0..1, of the counted pixels to which a predicted mask gives no label (255): each counts as a miss."""
        return self.counts[0, :, -1].sum() / max(1, self.counts[0].sum())


def evaluate(ids, predict_dir, gt_dir, classes, type='npy', thresholds=metrics.CURVE, workers=0):
    """Score the predictions of `ids` in one pass over the files. Returns an Evaluation.

    predict_dir: `<id>.npy` (CAM dicts, see files.read_cams) or, for type 'png', label masks `<id>.png`.
    gt_dir: `<id>.png`.
    classes: a ClassSet (num_classes, names). thresholds: background scores 0..1 for npy; unused for png.
    workers: processes (0: this one). UserError: missing or malformed file, shapes that differ, labels out of range.
    """
    files.need_files(ids, predict_dir, SUFFIX[type], '--predict_dir')
    files.need_files(ids, gt_dir, '.png', '--gt_dir')
    num_classes = classes.num_classes
    work = functools.partial(score_image, predict_dir=Path(predict_dir), gt_dir=Path(gt_dir), num_classes=num_classes,
                             type=type, thresholds=tuple(sorted(set(thresholds))))
    scored = parallel.map_images(work, ids, workers, 'evaluate')
    if type == 'png':
        return Evaluation(classes, len(ids), sum(scored)[None])
    histogram = np.zeros((num_classes, num_classes - 1, len(work.keywords['thresholds']) + 1), np.int64)
    for rows, keys, counts in scored:
        histogram[np.ix_(rows, keys)] += counts
    return Evaluation(classes, len(ids), metrics.curve_confusions(histogram), np.array(work.keywords['thresholds']))


def score_image(image, predict_dir, gt_dir, num_classes, type, thresholds):
    """Count one image (an id). png: confusion counts. npy: score_histogram's counts as (rows, keys, counts[rows]), the
    rows being the true labels that occur: all a worker sends back, and all that is kept until the end, is small.
    """
    gt_path, path = gt_dir / f'{image}.png', predict_dir / (image + SUFFIX[type])
    gt = read_labels(gt_path, num_classes)
    if type == 'png':
        predicted = read_labels(path, num_classes)
        same_shape(path, predicted.shape, gt_path, gt.shape)
        return metrics.confusion(gt, predicted, num_classes)
    keys, cams = files.read_cams(path, num_classes - 1)
    same_shape(path, cams.shape[1:], gt_path, gt.shape)
    counts = metrics.score_histogram(gt, cams, thresholds, num_classes)
    rows = np.flatnonzero(counts.any((1, 2)))
    return rows, keys, counts[rows].astype(np.int32)


def read_labels(path, num_classes):
    """Read a mask whose labels must be 0..num_classes-1 or 255. UserError naming a label that is not."""
    mask = files.read_mask(path)
    wrong = mask[(mask >= num_classes) & (mask != metrics.IGNORE)]
    if wrong.size:
        raise UserError(path, f'holds the label {wrong[0]}, which is neither below {num_classes} nor {metrics.IGNORE}',
                        'check that it is a label mask of this data set')
    return mask


def same_shape(path, shape, gt_path, gt_shape):
    """UserError where a prediction's (H, W) is not that of its ground truth."""
    if tuple(shape) != gt_shape:
        sizes = ['{}x{}'.format(*size) for size in (shape, gt_shape)]
        raise UserError(path, f'is {sizes[0]} (height x width), its ground truth {gt_path} {sizes[1]}',
                        'predict at the size of the image')

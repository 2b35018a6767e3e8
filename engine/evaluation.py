"""Scoring a folder of predictions against ground-truth masks: the reading around tool/metrics.py, in parallel."""
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.classes import ClassSet
from data.images import need_images
from data.masks import need_objects
from engine import files, parallel, workers
from tool import metrics


@dataclass(frozen=True)
class Evaluation:
    """What the evaluate functions return. Percentages are 0..100.

    classes: the ClassSet. images: their number. counts: int64 (T, C, C + 1), per threshold a metrics.confusion.
    pixels: of all images, those included that the ground truth leaves out.
    thresholds: (T,) background scores, ascending; None for masks (then T is 1).
    """
    classes: ClassSet
    images: int
    counts: np.ndarray
    pixels: int
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
    def occurring(self):
        """Which classes are in the ground truth or were predicted, per threshold: bool (T, C)."""
        return metrics.occurring(self.counts)

    @property
    def miou_occurring(self):
        """Mean IoU in percent per threshold over the classes that occur, (T,)."""
        return metrics.mean_iou_occurring(self.counts)

    @property
    def best(self):
        """Index of the threshold of highest mIoU (the lowest such threshold)."""
        return int(self.miou.argmax())

    def at(self, threshold):
        """Index of a threshold that was asked for."""
        return int(np.flatnonzero(self.thresholds == threshold)[0])

    @property
    def ignored(self):
        """Fraction of the images' pixels that do not count, because the ground truth is 255 there."""
        return 1 - self.counts[0].sum() / max(1, self.pixels)

    @property
    def binary(self):
        """Whether the predictions hold 0 and 255 alone: masks of another convention, where 255 is the object."""
        predicted = self.counts[0].sum(0)
        return bool(predicted[-1]) and not predicted[1:-1].any()

    @property
    def unlabelled(self):
        """Fraction of the counted pixels to which a predicted mask gives no label (255): each counts as a miss."""
        return self.counts[0, :, -1].sum() / max(1, self.counts[0].sum())


def absent_text(counts):
    """A sentence on the classes that do not occur, with the mean over the others; '' where all occur.

    counts: a metrics.confusion, int64 (C, C + 1).
    """
    absent = len(counts) - int(metrics.occurring(counts).sum())
    if not absent:
        return ''
    return (f'{absent} of {len(counts)} classes do not occur, neither in the ground truth nor in the predictions, and '
            f'count as 0 in mIoU; mean over the {len(counts) - absent} others: '
            f'{metrics.mean_iou_occurring(counts):.2f}')


def evaluate_masks(ids, predict_dir, gt_dir, classes, num_workers=0):
    """Score the masks `<predict_dir>/<id>.png` of `ids`. Returns an Evaluation.

    gt_dir: `<id>.png`. classes: a ClassSet. num_workers: processes (0: this one).
    UserError: missing or malformed file, shapes that differ, labels out of range.
    """
    work = prepared(workers.count_mask, ids, predict_dir, '.png', gt_dir, classes)
    counts, pixels = 0, 0
    for found, size in parallel.each_image(work, ids, num_workers, 'evaluate'):
        counts, pixels = counts + found, pixels + size
    return Evaluation(classes, len(ids), counts[None], pixels)


def evaluate_cams(ids, predict_dir, gt_dir, classes, thresholds=metrics.CURVE, num_workers=0):
    """Score the CAMs `<predict_dir>/<id>.npy` of `ids` at all thresholds in one pass over the files.

    thresholds: background scores 0..1. All else as in evaluate_masks.
    """
    thresholds = tuple(sorted(set(thresholds)))
    work = prepared(workers.count_cams, ids, predict_dir, '.npy', gt_dir, classes, thresholds=thresholds)
    histogram, pixels = np.zeros((classes.num_classes, classes.num_foreground, len(thresholds) + 1), np.int64), 0
    for labels, present, counts, size in parallel.each_image(work, ids, num_workers, 'evaluate'):
        histogram[np.ix_(labels, present)] += counts
        pixels += size
    return Evaluation(classes, len(ids), metrics.curve_confusions(histogram), pixels, np.array(thresholds))


def prepared(count, ids, predict_dir, suffix, gt_dir, classes, **options):
    """`count` of engine/workers.py with its folders, once all files are known to exist and the ground truth to show
    objects (UserError)."""
    if suffix == '.png':  # masks may come from other programs, which write a name's letters in another form
        need_images(ids, predict_dir, (suffix,), '--predict_dir')
    else:
        files.need_files(ids, predict_dir, suffix, '--predict_dir')
    need_images(ids, gt_dir, ('.png',), '--gt_dir')
    need_objects(ids, gt_dir, classes)
    return functools.partial(count, predict_dir=Path(predict_dir), gt_dir=Path(gt_dir), classes=classes, **options)

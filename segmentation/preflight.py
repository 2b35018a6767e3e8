"""Check of all pseudo masks before training, because a training on a wrong folder wastes hours."""
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.images import found_files
from data.masks import BINARY
from engine import parallel
from engine.errors import UserError
from engine.evaluation import absent_text
from engine.workers import count_pseudo_mask
from tool import metrics

MOST_BACKGROUND = 0.95  # highest fraction of background among the labelled pixels; VOC's own masks have 0.73
MOST_EMPTY = 0.5  # highest fraction of masks without an object, although every training image shows an object
MOST_IGNORED = 0.9  # highest fraction of ignored pixels


@dataclass(frozen=True)
class Summary:
    """Statistics of the masks. masks: their number. pixels: int64 (256,), pixels per label. empty: masks without a
    foreground pixel. counts: confusion matrix (metrics.confusion) of the masks that have ground truth. scored: how many
    have."""
    masks: int
    pixels: np.ndarray
    empty: int
    counts: np.ndarray
    scored: int

    @property
    def ignored(self):
        """Fraction of the pixels that are ignored."""
        return self.pixels[metrics.IGNORE] / self.pixels.sum()

    @property
    def histogram(self):
        """Fraction of the labelled pixels per class, (C,)."""
        labelled = self.pixels[:len(self.counts)]
        return labelled / max(1, labelled.sum())

    def text(self, names):
        """The report, for the log. names: the class names."""
        lines = [f'{self.masks} pseudo masks: {100 * self.ignored:.2f}% of the pixels ignored, '
                 f'{self.empty} masks without any object; of the labelled pixels, in %:']
        percent = [f'{name} {100 * fraction:.2f}' for name, fraction in zip(names, self.histogram)]
        lines += ['  ' + ', '.join(percent[i:i + 7]) for i in range(0, len(percent), 7)]
        if self.scored:
            lines.append(f'  mIoU {metrics.mean_iou(self.counts):.2f} against the ground truth, '
                         f'which {self.scored} of the {self.masks} images have')
            absent = absent_text(self.counts)
            lines += [f'  {absent}'] if absent else []
            if self.counts.trace() > 0.995 * self.counts.sum():
                lines.append('  warning: these are the ground truth, or nearly: the result is not weakly supervised')
        return '\n'.join(lines)


def check(ids, photos, mask_dir, gt_dir, classes, workers, allow_unusual=False):
    """Read the masks `<mask_dir>/<id>.png` of `ids` in parallel and return their Summary.

    photos: a data.images.PhotoFolders. gt_dir: folder of ground truth, '' for none; masks of images that have ground
    truth are scored, for the report only. classes: a ClassSet.
    UserError: masks missing (named), in RGB, not of the image's size, with a label out of range; a folder of binary
    masks or, unless allow_unusual, one that is mostly background, mostly without objects or mostly ignored.
    """
    mask_dir = Path(mask_dir)
    refuse_missing(ids, mask_dir)
    paths, truth = photos.need(ids), found_files(ids, gt_dir, ('.png',)) if gt_dir else {}
    read = functools.partial(count_pseudo_mask, mask_dir=mask_dir, classes=classes)
    items = [(name, paths[name], truth.get(name)) for name in ids]
    pixels, counts, empty = 0, 0, 0
    for found, confusion in parallel.each_image(read, items, workers, 'check masks'):
        pixels, counts = pixels + found, counts + confusion
        empty += not found[1:classes.num_classes].any()
    summary = Summary(len(ids), pixels, empty, counts, len(truth))
    refuse(summary, mask_dir, allow_unusual)
    return summary


def refuse_missing(ids, mask_dir):
    """UserError naming the ids without a mask (the first ten)."""
    found = found_files(ids, mask_dir, ('.png',))
    missing = [i for i in ids if i not in found]
    if missing:
        named = ', '.join(missing[:10]) + (', …' if len(missing) > 10 else '')
        raise UserError(mask_dir, f'{len(missing)} of {len(ids)} pseudo masks are missing: {named}',
                        'finish the step that writes them, or correct --pseudo_gt (DATA_PSEUDO_GT)')


def refuse(summary, mask_dir, allow_unusual):
    """UserError where the masks cannot be right, being binary, or are unlikely to be: nearly all background, without
    objects, or ignored. allow_unusual: take these; small objects and sets of mostly negative images are like that."""
    look = ('check --pseudo_gt (DATA_PSEUDO_GT) and the step that wrote it or, if the masks are right, add '
            '--allow_unusual_masks')
    if summary.ignored > MOST_IGNORED and not allow_unusual:
        raise UserError(mask_dir, f'{100 * summary.ignored:.1f}% of the pixels are ignored', look)
    if summary.empty == summary.masks and summary.pixels[metrics.IGNORE]:
        raise UserError(mask_dir, BINARY, 'write objects as their class, 1 and up')
    if allow_unusual:
        return
    if summary.histogram[0] > MOST_BACKGROUND:
        raise UserError(mask_dir, f'{100 * summary.histogram[0]:.1f}% of the labelled pixels are background', look)
    if summary.empty > MOST_EMPTY * summary.masks:
        raise UserError(mask_dir, f'{summary.empty} of {summary.masks} masks show no object at all', look)

"""What a worker process does for one image, free of torch: counting, checking. See crf_workers.py for the rest."""
import hashlib
from dataclasses import dataclass

import numpy as np

from data.cams import read_cams
from data.images import image_size, is_blank, opened_image, orientation, read_image
from data.masks import check_same_shape, read_label_mask, read_truth
from data.saliency import is_black, problem
from engine.errors import UserError
from tool import metrics

# ---------------------------------------------------------------- evaluation


def count_mask(name, predict_dir, gt_dir, classes):
    """Confusion counts of the mask of one image (an id): int64 (C, C + 1), see tool.metrics.confusion; and its pixels.

    classes: a ClassSet.
    """
    gt_path, path = gt_dir / f'{name}.png', predict_dir / f'{name}.png'
    gt, predicted = read_truth(gt_path, classes), read_label_mask(path, classes)
    check_same_shape(path, predicted.shape, gt_path, gt.shape)
    return metrics.confusion(gt, predicted, classes.num_classes), gt.size


def count_cams(name, predict_dir, gt_dir, classes, thresholds):
    """Score histogram of the CAMs of one image (an id): (labels, present, counts[labels], pixels of the image).

    labels: the true labels that occur. present: foreground indices from 0. counts: tool.metrics.score_histogram's.
    What a worker sends back, and what is kept until the end, is small.
    """
    gt_path, path = gt_dir / f'{name}.png', predict_dir / f'{name}.npy'
    gt = read_truth(gt_path, classes)
    present, cams = read_cams(path, classes.num_foreground)
    if not len(present):
        # An image without any class is background at every threshold, as a map of any class far below them would be.
        present, cams = np.array([0]), np.full((1, *gt.shape), -np.inf, np.float32)
    check_same_shape(path, cams.shape[1:], gt_path, gt.shape)
    counts = metrics.score_histogram(gt, cams, thresholds, classes.num_classes)
    labels = np.flatnonzero(counts.any((1, 2)))
    return labels, present, counts[labels].astype(np.int32), gt.size


# ---------------------------------------------------------------- checks before training

def count_pseudo_mask(item, mask_dir, classes):
    """Pixels per label, int64 (256,), and confusion counts of one pseudo mask.

    item: its id, the path of its photo, that of its ground truth or None. classes: a ClassSet.
    UserError: a mask that cannot be read, of another size than its image, with a label out of range.
    """
    name, photo, gt_path = item
    path = mask_dir / f'{name}.png'
    mask = read_label_mask(path, classes)
    size = image_size(photo)
    if mask.shape != size:
        raise UserError(path, f'is {mask.shape[0]}x{mask.shape[1]} (height x width), its image {size[0]}x{size[1]}',
                        'write the masks at the size of the images')
    counts = np.zeros((classes.num_classes, classes.num_classes + 1), np.int64)
    if gt_path:
        gt = read_truth(gt_path, classes)
        check_same_shape(path, mask.shape, gt_path, gt.shape)
        counts = metrics.confusion(gt, mask, classes.num_classes)
    return np.bincount(mask.ravel(), minlength=256), counts


def check_saliency(item, saliency_dir):
    """(what is wrong with a saliency map, in a few words, or '', whether it is zero everywhere).

    item: the id of its image, the path of the photo.
    """
    name, photo = item
    with opened_image(saliency_dir / f'{name}.png') as picture:
        wrong = problem(picture, image_size(photo))
        return wrong, not wrong and is_black(picture)


# ---------------------------------------------------------------- the doctor

@dataclass(frozen=True)
class Look:
    """What a look at a photo found. size: (H, W), upright. mode: its colour mode. turned: by EXIF. blank: of one
    colour. digest: of the file. problem: None, or (what is wrong, what to do) of a photo that the scripts refuse."""
    size: tuple = (0, 0)
    mode: str = ''
    turned: bool = False
    blank: bool = False
    digest: str = ''
    problem: tuple = None


def look_at_photo(path, convert):
    """The Look of a photo, which is read as the scripts read it. convert: --convert_rgb."""
    try:
        pixels = read_image(path, convert)
        with opened_image(path) as image:
            mode, turned = image.mode, orientation(image) != 1
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Look(pixels.shape[:2], mode, turned, is_blank(pixels), digest)
    except UserError as error:
        return Look(problem=(f'{error.what}: {error.wrong}', error.do))


def look_at_mask(item, classes):
    """Pixels per label of a ground-truth mask, int64 (256,), and None or (what is wrong, what to do).

    item: its path, the size (H, W) of its photo. classes: a ClassSet.
    """
    path, size = item
    try:
        mask = read_truth(path, classes)
    except UserError as error:
        return np.zeros(256, np.int64), (f'{error.what}: {error.wrong}', error.do)
    if mask.shape != size:
        wrong = f'is {mask.shape[0]}x{mask.shape[1]} (height x width), its image {size[0]}x{size[1]}'
        return np.zeros(256, np.int64), (f'{path}: {wrong}', 'write masks at the size of the upright images')
    return np.bincount(mask.ravel(), minlength=256), None

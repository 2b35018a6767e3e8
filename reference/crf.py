"""The CRFs as published: all 21 labels carried, all built anew for every call. METHOD 4.3, 6.1, 6.5, 10.

Plain twin of tool/crf.py: refine_labels, with its settings SEED (labels_crf) and AFFINITY (affinity_crf), and of
engine/crf_workers.py: refine_walked_as_published (walked_crf).
"""
import numpy as np
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_labels, unary_from_softmax


def labels_crf(image, labels, iterations=10, num_labels=21, gt_prob=0.7, sxy=50, srgb=5):
    """contrast_infer.py's CRF: image uint8 (H, W, 3), labels (H, W) → float32 (21, H, W)."""
    field = _field(image, labels, num_labels, gt_prob)
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(np.copy(image)), compat=10)
    return np.array(field.inference(iterations)).reshape(num_labels, *labels.shape)


def affinity_crf(image, labels, iterations=10, num_labels=21, gt_prob=0.7):
    """aff_prepare.py's CRF, for one alpha: its features come from pydensecrf's helpers, rows before columns."""
    field = _field(image, labels, num_labels, gt_prob)
    field.addPairwiseEnergy(create_pairwise_gaussian(sdims=(3, 3), shape=labels.shape), compat=3)
    bilateral = create_pairwise_bilateral(sdims=(80, 80), schan=(13, 13, 13), img=image, chdim=2)
    field.addPairwiseEnergy(bilateral, compat=10)
    return np.array(field.inference(iterations)).reshape(num_labels, *labels.shape)


def walked_crf(normalised, scores, iterations=1):
    """aff_infer.py's CRF, which is commented out there, on scores of the padded image as they are.

    normalised: the padded image as the network sees it, float32 (H, W, 3). scores (21, H, W) → float32 (21, H, W).
    """
    image = (normalised * np.float32((0.229, 0.224, 0.225)) + np.float32((0.485, 0.456, 0.406))) * 255
    # Published: cut to whole numbers without the hundredth, so that a grey level which normalising made a hair smaller
    # becomes the one below it (METHOD 9.29).
    image = np.floor(image + 1e-2).clip(0, 255).astype(np.uint8)
    field = DenseCRF2D(image.shape[1], image.shape[0], len(scores))
    field.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(scores)))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(field.inference(iterations)).reshape(scores.shape)


def _field(image, labels, num_labels, gt_prob):
    """A CRF whose unary energies say that a pixel has its label with probability gt_prob."""
    field = DenseCRF2D(image.shape[1], image.shape[0], num_labels)
    field.setUnaryEnergy(unary_from_labels(labels.astype(np.int32), num_labels, gt_prob=gt_prob, zero_unsure=False))
    return field

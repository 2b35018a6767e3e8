"""The CRF from hard labels as published: all 21 labels carried, all built anew for every call. METHOD 4.3, 6.1, 10.

Plain twin of tool/crf.py: refine_labels, with its settings SEED (labels_crf) and AFFINITY (affinity_crf).
"""
import numpy as np
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_labels


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


def _field(image, labels, num_labels, gt_prob):
    """A CRF whose unary energies say that a pixel has its label with probability gt_prob."""
    field = DenseCRF2D(image.shape[1], image.shape[0], num_labels)
    field.setUnaryEnergy(unary_from_labels(labels.astype(np.int32), num_labels, gt_prob=gt_prob, zero_unsure=False))
    return field

"""Makes crf_small.npz: pydensecrf's marginals on small images, called as published, without any of this code.

    python tests/golden/crf_small.py      # needs requirements-pydensecrf.txt

The images are crops of the golden photos and drawn stripes; small enough that the exact mean field, a sum over all
pairs of pixels, can be computed beside them (tests/test_crf.py).
"""
from pathlib import Path

import numpy as np
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_labels

FOLDER = Path(__file__).parent
LABELS = 21


def crops():
    """{name: uint8 (H, W, 3)}. The first two have H·W mod 4 = 0, the others 1, 3 and 0."""
    chain = np.load(FOLDER / 'chain.npz')
    first, second = chain['image_2011_000001'], chain['image_2011_000002']
    rng = np.random.default_rng(0)
    stripes = np.repeat(rng.integers(0, 256, (4, 3)), 8, 0) + rng.normal(0, 12, (24, 32, 3))
    return {'photo1': first[40:64, 60:100], 'photo2': second[30:58, 40:72], 'odd1': first[80:105, 20:53],
            'odd3': second[60:87, 10:39], 'stripes': stripes.clip(0, 255).astype(np.uint8)}


def noisy_labels(image):
    """Hard labels 0, 4 or 9 by brightness, a fifth of them wrong: int (H, W)."""
    grey = image.mean(2)
    labels = np.digitize(grey, np.quantile(grey, [.4, .75]))
    rng = np.random.default_rng(1)
    wrong = rng.random(labels.shape) < .2
    return np.array([0, 4, 9])[np.where(wrong, rng.integers(0, 3, labels.shape), labels)]


def marginals(image, labels, setting):
    """float32 (21, H, W) under one of the published settings."""
    height, width = labels.shape
    field = DenseCRF2D(width, height, LABELS)
    field.setUnaryEnergy(unary_from_labels(labels.astype(np.int32), LABELS, gt_prob=0.7, zero_unsure=False))
    image = np.ascontiguousarray(image)
    if setting == 'AFFINITY':
        field.addPairwiseEnergy(create_pairwise_gaussian(sdims=(3, 3), shape=labels.shape), compat=3)
        bilateral = create_pairwise_bilateral(sdims=(80, 80), schan=(13, 13, 13), img=image, chdim=2)
        field.addPairwiseEnergy(bilateral, compat=10)
        return np.array(field.inference(10)).reshape(LABELS, height, width)
    sxy, s2, srgb, compat, iterations = {'SEED': (3, 50, 5, 10, 10), 'EPS': (3, 80, 13, 10, 5),
                                         'DEEPLAB': (1, 67, 3, 4, 10)}[setting]
    field.addPairwiseGaussian(sxy=sxy, compat=3)
    field.addPairwiseBilateral(sxy=s2, srgb=srgb, rgbim=image, compat=compat)
    return np.array(field.inference(iterations)).reshape(LABELS, height, width)


def main():
    arrays = {}
    for name, image in crops().items():
        labels = noisy_labels(image)
        arrays |= {f'image_{name}': image, f'labels_{name}': labels.astype(np.uint8)}
        for setting in ('SEED', 'AFFINITY', 'EPS', 'DEEPLAB'):
            # The other 18 labels are alike: one of them stands for all.
            arrays[f'{setting}_{name}'] = marginals(image, labels, setting)[[0, 4, 9, 20]]
    np.savez_compressed(FOLDER / 'crf_small.npz', **arrays)


if __name__ == '__main__':
    main()

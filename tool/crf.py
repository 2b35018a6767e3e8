"""The dense CRF of all stages (Krähenbühl and Koltun, NIPS 2011), on pydensecrf. METHOD 10. No torch here.

Labels whose unary energy is the same at every pixel are exchangeable: mean field gives them the same marginals. So
the m labels that occur nowhere are carried as ONE label, which counts m times in the normaliser. The marginals are
those of the full CRF, at the cost of the labels that do occur. Plain twin: reference/crf.py.
"""
import math
from dataclasses import dataclass

import numpy as np
from pydensecrf.densecrf import DenseCRF

PADDING_ENERGY = 60.  # energy of padding labels: no probability, yet exp(−60) is not denormal
CHUNK = 2 ** 17  # work per chunk of the normalisation: stays in cache and below BLAS's threading threshold
CLIP = 1e-5  # probabilities below it count as it before the logarithm, as in pydensecrf's unary_from_softmax


@dataclass(frozen=True)
class Settings:
    """One stage's CRF. Widths in pixels (sxy) and grey levels (srgb); compat: the weight of a kernel's Potts term.

    axes: order of the pixel coordinates in the kernels' feature vectors. The Gaussians do not care, but the
    permutohedral lattice that approximates them does: it moves the marginals of single pixels by up to 0.9 on a small
    photo. Published: aff_prepare.py passes (y, x), the others (x, y).
    """
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int
    axes: str = 'xy'


SEED = Settings(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=50, bilateral_srgb=5, bilateral_compat=10,
                iterations=10)
AFFINITY = Settings(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10,
                    iterations=10, axes='yx')
EPS = Settings(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10,
               iterations=5)
WALK = Settings(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10,
                iterations=1)
DEEPLAB = Settings(gaussian_sxy=1, gaussian_compat=3, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4,
                   iterations=10)


def refine_labels(image, label_maps, classes, num_classes, settings, gt_prob=0.7):
    """CRF of hard labels: each pixel's label has probability gt_prob, the other num_classes - 1 share the rest.

    image: uint8 (H, W, 3). label_maps: A maps (H, W) of labels 0..num_classes-1; they share the pairwise terms, which
    are built once. classes: the K labels wanted. settings: Settings. num_classes: with the background.
    Returns float32 (A, K, H, W): the marginals of `classes` in a CRF of all num_classes labels.

    A label that occurs in no map never beats one that does: its unary energy is nowhere lower and, by induction over
    the iterations, its messages nowhere stronger. So the argmax over `classes` is the full CRF's if they hold what
    occurs.
    """
    label_maps = np.asarray(label_maps)
    occurring = np.flatnonzero(np.bincount(label_maps.ravel(), minlength=num_classes))
    absent = num_classes - len(occurring)
    other = -np.log((1 - gt_prob) / (num_classes - 1))
    unaries = np.full((len(label_maps), len(occurring), *label_maps.shape[1:]), other, np.float32)
    unaries[label_maps[:, None] == occurring[:, None, None]] = -np.log(gt_prob)
    marginals = _infer(image, unaries, other, absent, settings)
    place = {label: i for i, label in enumerate(occurring.tolist())}
    # The last marginal is that of the label which stands for all that occur nowhere.
    return np.stack([marginals[:, place.get(c, -1)] for c in np.asarray(classes).tolist()], axis=1)


def refine_probabilities(image, probabilities, settings, absent=0):
    """CRF of soft scores: unary energy −log(probability), probabilities clipped to 1e-5..1.

    image: uint8 (H, W, 3). probabilities: float (K, H, W). absent: number of further labels whose probability is 0
    everywhere. Returns float32 (K, H, W): the marginals of the K labels in a CRF of K + absent labels.
    """
    unary = -np.log(np.clip(probabilities, CLIP, 1)).astype(np.float32)
    return _infer(image, unary[None], -np.log(CLIP), absent, settings)[0, :len(probabilities)]


def label_map(probabilities, classes):
    """The most probable label per pixel. probabilities (K, H, W), classes (K,) → uint8 (H, W)."""
    return np.asarray(classes, np.uint8)[np.argmax(probabilities, axis=0)]


def _infer(image, unaries, absent_energy, absent, settings):
    """Mean field for each of `unaries` (A, K, H, W), with one label of constant energy that stands for `absent` labels.

    Returns float32 (A, K or K + 1, H, W): that label's own marginal, where absent > 0, comes last.

    All A go through the lattices at once, as A groups of labels that are normalised by themselves after every
    iteration: two maps then cost a quarter more than one.
    """
    count, labels, height, width = unaries.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f'image {image.shape} {image.dtype} does not fit label maps of {(height, width)}')
    carried = labels + (absent > 0)
    group = carried if carried < 3 else 4 * math.ceil(carried / 4)  # the lattices take labels by four: three are slower
    energies = np.full((count, group, height * width), PADDING_ENERGY, np.float32)
    energies[:, :carried] = absent_energy
    energies[:, :labels] = unaries.reshape(count, labels, -1)
    position, appearance = _features(image, settings)
    field = DenseCRF(height * width, count * group)
    field.addPairwiseEnergy(position, compat=settings.gaussian_compat)
    field.addPairwiseEnergy(appearance, compat=settings.bilateral_compat)
    field.setUnaryEnergy(energies.reshape(count * group, -1))
    state = field.startInference()
    marginals = np.asarray(state[0]).T.reshape(-1, group)  # a view: every step writes it
    members = np.zeros((group, group), np.float32)
    members[:carried] = absent
    members[:labels] = 1
    # Normalise in chunks: they fit the cache and are too small for BLAS to spawn threads.
    chunks = np.array_split(marginals, math.ceil(len(marginals) * group ** 2 / CHUNK))
    for iteration in range(settings.iterations + 1):
        if iteration:
            field.stepInference(*state)
        for chunk in chunks:
            chunk /= chunk @ members  # the product: a group's sum, repeated for each of its labels
    marginals = marginals.reshape(height, width, count, group)[..., :carried]
    return np.ascontiguousarray(marginals.transpose(2, 3, 0, 1))


def _features(image, settings):
    """The kernels' feature vectors per pixel: position (2, H·W) and position with colour (5, H·W), float32."""
    height, width = image.shape[:2]
    columns = np.tile(np.arange(width, dtype=np.float32), height)
    rows = np.arange(height, dtype=np.float32).repeat(width)
    position = np.stack([columns, rows] if settings.axes == 'xy' else [rows, columns])
    appearance = np.empty((5, height * width), np.float32)
    np.divide(position, np.float32(settings.bilateral_sxy), out=appearance[:2])
    np.divide(image.reshape(-1, 3).T, np.float32(settings.bilateral_srgb), out=appearance[2:])
    return position / np.float32(settings.gaussian_sxy), appearance

"""The dense CRF of all stages (Krähenbühl and Koltun, NIPS 2011). METHOD 10.

    import numpy as np
    from tool import crf

    refined, = crf.refine_labels(image, label_map[None], classes, num_classes=21, settings=crf.SEED)
    labels = crf.label_map(refined, classes)                        # uint8 (H, W)
    refined = crf.refine_probabilities(image, probabilities, crf.DEEPLAB, device='cuda')

Mean field has two engines with the same result up to rounding: 'torch' (tool/crf_torch.py), on any device, and
'pydensecrf' (tool/crf_pydensecrf.py), the authors' code, where that is installed. Importing this module loads neither.

Labels whose unary energy is the same at every pixel are exchangeable: mean field gives them the same marginals. So
the m labels that occur nowhere are carried as ONE label, which counts m times in the normaliser. The marginals are
those of the full CRF, at the cost of the labels that do occur. Plain twin: reference/crf.py.
"""
import importlib
from dataclasses import dataclass

import numpy as np

ENGINES = ('torch', 'pydensecrf')
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


class EngineMissing(ImportError):
    """An engine of ENGINES cannot be loaded here: what it is written in is not installed."""


def load_engine(name):
    """The module of an engine, 'torch' or 'pydensecrf': its marginals() does the mean field.

    Loaded here and not where modules begin: PyTorch takes a second, which parsers of arguments need not wait, and
    pydensecrf need not be installed. EngineMissing where it is not; ValueError for another name.
    """
    if name not in ENGINES:
        raise ValueError(f'no CRF engine {name!r}: use {" or ".join(ENGINES)}')
    try:
        return importlib.import_module(f'tool.crf_{name}')
    except ImportError as error:  # some builds of pydensecrf import as an empty package, without densecrf
        raise EngineMissing(f'the CRF engine {name} cannot be loaded ({error})') from error


def refine_labels(image, label_maps, classes, num_classes, settings, gt_prob=0.7, *, engine='torch', device='cpu'):
    """CRF of hard labels: each pixel's label has probability gt_prob, the other num_classes - 1 share the rest.

    image: uint8 (H, W, 3). label_maps: A maps (H, W) of labels 0..num_classes-1; they share the pairwise terms, which
    are built once. classes: the K labels wanted. settings: Settings. num_classes: with the background. engine: one of
    ENGINES. device: of the engine 'torch', as PyTorch names it.
    Returns float32 (A, K, H, W): the marginals of `classes` in a CRF of all num_classes labels.
    ValueError: sizes that do not fit, labels out of range. EngineMissing: see load_engine.

    A label that occurs in no map never beats one that does: its unary energy is nowhere lower and, by induction over
    the iterations, its messages nowhere stronger. So the argmax over `classes` is the full CRF's if they hold what
    occurs.
    """
    label_maps = np.asarray(label_maps)
    occurring = np.flatnonzero(np.bincount(label_maps.ravel(), minlength=num_classes))
    if occurring[-1] >= num_classes:
        raise ValueError(f'label {occurring[-1]} is not below num_classes, {num_classes}')
    absent = num_classes - len(occurring)
    other = -np.log((1 - gt_prob) / (num_classes - 1))
    unaries = np.full((len(label_maps), len(occurring), *label_maps.shape[1:]), other, np.float32)
    unaries[label_maps[:, None] == occurring[:, None, None]] = -np.log(gt_prob)
    marginals = _marginals(image, unaries, other, absent, settings, engine, device)
    place = {label: i for i, label in enumerate(occurring.tolist())}
    # The last marginal is that of the label which stands for all that occur nowhere.
    return np.stack([marginals[:, place.get(c, -1)] for c in np.asarray(classes).tolist()], axis=1)


def refine_probabilities(image, probabilities, settings, absent=0, *, engine='torch', device='cpu'):
    """CRF of soft scores: unary energy −log(probability), probabilities clipped to 1e-5..1.

    image: uint8 (H, W, 3). probabilities: float (K, H, W). absent: number of further labels whose probability is 0
    everywhere. engine, device: as for refine_labels.
    Returns float32 (K, H, W): the marginals of the K labels in a CRF of K + absent labels.
    ValueError: sizes that do not fit. EngineMissing: see load_engine.
    """
    unary = -np.log(np.clip(probabilities, CLIP, 1)).astype(np.float32)
    marginals = _marginals(image, unary[None], -np.log(CLIP), absent, settings, engine, device)
    return marginals[0, :len(probabilities)]


def label_map(probabilities, classes):
    """The most probable label per pixel. probabilities (K, H, W), classes (K,) → uint8 (H, W)."""
    return np.asarray(classes, np.uint8)[np.argmax(probabilities, axis=0)]


def _marginals(image, unaries, absent_energy, absent, settings, engine, device):
    """The engine's marginals of `unaries` float32 (A, K, H, W), see tool.crf_torch.marginals, after a look at sizes."""
    image, size = np.asarray(image), unaries.shape[2:]
    if image.shape != (*size, 3) or image.dtype != np.uint8:
        raise ValueError(f'image {image.shape} {image.dtype} does not fit label maps of {size}')
    return load_engine(engine).marginals(image, unaries, absent_energy, absent, settings, device)

"""What a worker process does for one image with a CRF: refine and write.

No torch here: the CRF's engine loads what it needs when the first image comes.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.cams import read_cams, save_cams
from data.classes import ClassSet
from data.images import read_image
from data.masks import save_mask
from data.probabilities import save_probabilities
from engine.crf_engine import CrfEngine
from engine.files import save_npy
from tool import crf, random_walk, seeds
from tool.pairs import STRIDE, cell_means

PADDING_COLOUR = 123, 116, 103  # RGB of ImageNet's mean, cut to whole numbers: what a normalised 0 stands for


# ---------------------------------------------------------------- Step 1: seeds

@dataclass(frozen=True)
class SeedSettings:
    """How contrast_infer.py turns CAMs into seeds. background: their constant background score. classes: a ClassSet.

    crf: name of the settings in tool.crf; iterations: of mean field. alpha None: the CRF refines the seeds' hard
    labels and, as published, all classes count in its normaliser. alpha a number (EPS): it refines the scores of the
    present classes, with the background score (1 − strongest)^alpha. engine: what runs it.
    """
    background: float
    crf: str
    iterations: int
    alpha: float
    classes: ClassSet
    engine: CrfEngine = CrfEngine()


def write_seeds(paths, image, present, cams, settings):
    """Write the outputs of one image: {'cam', 'pred', 'crf': path}, those that are wanted.

    image: uint8 (H, W, 3). present (K,): foreground indices from 0; cams: their CAMs (K, H, W).
    """
    palette = settings.classes.palette
    if 'cam' in paths:
        save_cams(paths['cam'], present, cams)
    if 'pred' in paths:
        save_mask(paths['pred'], seeds.label_map(present, cams, settings.background), palette)
    if 'crf' in paths:
        refined = refine_seeds(image, present, cams, settings)
        save_mask(paths['crf'], crf.label_map(refined, [0, *(present + 1)]), palette)


def refine_seeds(image, present, cams, settings):
    """The CRF's marginals of the labels 0 and present + 1: float32 (1 + K, H, W). Arguments as in write_seeds."""
    crf_settings = replace(getattr(crf, settings.crf), iterations=settings.iterations)
    if settings.alpha is None:
        label_map = seeds.label_map(present, cams, settings.background)
        refined, = crf.refine_labels(image, label_map[None], [0, *(present + 1)], settings.classes.num_classes,
                                     crf_settings, **settings.engine.options)
        return refined
    scores = seeds.with_background(cams, seeds.alpha_background(cams, settings.alpha))
    return crf.refine_probabilities(image, scores, crf_settings, **settings.engine.options)


# ---------------------------------------------------------------- Step 2: labels of AffinityNet, pseudo masks

def write_probabilities(item, cam_dir, folders, iterations, num_classes, convert_rgb, overwrite, engine=CrfEngine()):
    """Write the CRF's probabilities of one image under every alpha. item: its id, the path of its photo. folders:
    {alpha: folder}.

    All alphas are computed even where some files exist: they share the CRF's labels, so that a run which was
    interrupted between two alphas writes the same bytes as an uninterrupted run.
    """
    name, photo = item
    image = read_image(photo, convert_rgb)
    present, cams = read_cams(cam_dir / f'{name}.npy', num_classes - 1, image.shape[:2])
    label_maps = [seeds.label_map(present, cams, seeds.alpha_background(cams, alpha)) for alpha in folders]
    labels = [0, *(present + 1).tolist()]
    refined = crf.refine_labels(image, label_maps, labels, num_classes, replace(crf.AFFINITY, iterations=iterations),
                                **engine.options)
    for folder, probabilities in zip(folders.values(), refined):
        path = folder / f'{name}.npy'
        if overwrite or not path.exists():
            save_probabilities(path, labels, probabilities)


@dataclass(frozen=True)
class WalkSettings:
    """How aff_infer.py walks. bg: the background score 0..1, or 'alpha': (1 − strongest CAM)^alpha. beta: exponent of
    the affinities. The walk makes 2^logt steps. crf: how masks are refined, a key of WALKED_CRFS. crf_iters:
    iterations, or None for those of the CRF's settings. engine: what runs the CRF. stride: pixels per cell of the
    affinities."""
    bg: object
    alpha: float
    beta: float
    logt: int
    crf: str
    crf_iters: int
    classes: ClassSet
    engine: CrfEngine = CrfEngine()
    stride: int = STRIDE


def write_pseudo_mask(paths, cam_path, image, affinity, settings):
    """Walk from the CAMs of one image and write the outputs. paths: {'rw': .png, 'crf': .png after the CRF,
    'npy': .npy of the walked CAMs}, those that are wanted.

    image: uint8 (H, W, 3). affinity: (O, P). settings: WalkSettings.
    """
    size, num_classes = image.shape[:2], settings.classes.num_classes
    present, cams = read_cams(cam_path, num_classes - 1, size)
    background = seeds.alpha_background(cams, settings.alpha) if settings.bg == 'alpha' else settings.bg
    # Walk a map of ones too: where it falls below 1, a border cell was diluted by padding.
    scores = seeds.with_background(seeds.with_background(cams, background), 1)
    walked = random_walk.walk(cell_means(scores, settings.stride), affinity, settings.beta, 2 ** settings.logt)
    undiluted, *scores = random_walk.to_pixels(walked, *size, settings.stride)
    if 'npy' in paths:
        # Dividing by that map undoes the dilution, so eval.py --curve can apply any constant background score.
        save_cams(paths['npy'], present, [cam / undiluted for cam in scores[1:]])
    labels, palette = [0, *(present + 1)], settings.classes.palette
    if 'rw' in paths:
        save_mask(paths['rw'], crf.label_map(scores, labels), palette)
    if 'crf' in paths:
        refine = WALKED_CRFS[settings.crf]
        refined = refine(image, walked[1:], settings.crf_iters, num_classes, settings.engine, settings.stride)
        save_mask(paths['crf'], crf.label_map(refined, labels), palette)


def refine_walked(image, walked, iterations, num_classes, engine=CrfEngine(), stride=STRIDE):
    """The CRF of the segmentation stage on walked scores, divided by their sum. METHOD 6.5.

    image: uint8 (H, W, 3). walked: scores of its cells (1 + K, h, w), background first. iterations: None for those of
    the settings. engine: what runs the CRF. stride: pixels per cell. Returns float32 (1 + K, H, W).
    """
    scores = np.maximum(random_walk.to_pixels(walked, *image.shape[:2], stride), 0)
    probabilities = scores / np.maximum(scores.sum(0), crf.CLIP)
    settings = replace(crf.DEEPLAB, iterations=iterations or crf.DEEPLAB.iterations)
    return crf.refine_probabilities(image, probabilities, settings, num_classes - len(scores), **engine.options)


def refine_walked_as_published(image, walked, iterations, num_classes, engine=CrfEngine(), stride=STRIDE):
    """The CRF that stands commented out in the published code: raw scores, and the image padded as the network sees it.

    METHOD 6.5. Arguments and result as in refine_walked.
    """
    height, width = image.shape[:2]
    size = walked.shape[1] * stride, walked.shape[2] * stride
    padded = np.full((*size, 3), PADDING_COLOUR, np.uint8)
    padded[:height, :width] = image
    settings = replace(crf.WALK, iterations=iterations or crf.WALK.iterations)
    scores = random_walk.to_pixels(walked, *size, stride)
    refined = crf.refine_probabilities(padded, scores, settings, num_classes - len(scores), **engine.options)
    return refined[:, :height, :width]


WALKED_CRFS = {'deeplab': refine_walked, 'published': refine_walked_as_published}


# ---------------------------------------------------------------- Step 3: segmentations

def write_segmentation(output, name, pixels, probabilities, logits):
    """Write an image's results, those after the CRF included.

    output: segmentation.predictions.Output. pixels: uint8 (H, W, 3). probabilities: {'single', 'multi' or one of them:
    float32 (C, H, W)}. logits: float16 (C, H, W), or None.
    """
    for scale, scores in probabilities.items():
        if scale in output.folders:
            save_mask(output.folders[scale] / f'{name}.png', scores.argmax(0), output.classes.palette)
        if f'{scale}_crf' in output.folders:
            labels = refine_segmentation(pixels, scores, output.crf_iters, output.engine)
            save_mask(output.folders[f'{scale}_crf'] / f'{name}.png', labels, output.classes.palette)
    if output.logits:
        save_npy(Path(output.logits) / f'{name}.npy', logits)


def refine_segmentation(pixels, probabilities, iterations, engine=CrfEngine()):
    """DeepLab's CRF (METHOD 7.2): probabilities float32 (C, H, W) → labels uint8 (H, W). See refine_scores."""
    return crf.label_map(*refine_scores(pixels, probabilities, iterations, engine))


def refine_scores(pixels, probabilities, iterations, engine=CrfEngine()):
    """The marginals (K, H, W) of DeepLab's CRF, and the classes (K,) whose they are.

    Classes that the CRF's clipping makes constant over the whole image count as absent, which leaves the result exactly
    as it is with all C labels (tool/crf.py) and costs less. No pixel can choose such a class: another is likelier.
    """
    kept = np.flatnonzero(probabilities.max((1, 2)) > crf.CLIP)
    settings = replace(crf.DEEPLAB, iterations=iterations)
    absent = len(probabilities) - len(kept)
    return crf.refine_probabilities(pixels, probabilities[kept], settings, absent, **engine.options), kept

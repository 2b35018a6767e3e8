"""Work that the CPU does while a GPU runs the networks: CRFs, random walk, loading of images. Seconds of a core.

The CRF can run on the GPU instead: one row says how fast.
"""
import functools

import numpy as np
import torch
from PIL import Image

from benchmarks import inputs
from benchmarks.frame import Options
from benchmarks.gpu_parts.measure import Row, attempt, seconds_on_one_core, speed
from benchmarks.stages import step1, step2
from contrast_infer import SCALES
from data import segmentation, transforms
from engine.crf_workers import refine_segmentation, refine_walked
from segmentation.experiment.config import Config
from tool import crf as tool_crf
from tool import seeds
from tool.pairs import cell_means
from voc12.classes import VOC

ONE_CORE = Options(quick=False, threads=1)


def photo_size(settings):
    """(H, W) of the photo."""
    return (40, 52) if settings.tiny else inputs.SIZE


def measured(part, settings, calls):
    """A Row for each of {work: function that makes the callable}, on a photo."""
    size = photo_size(settings)
    for work, make in calls.items():
        row = Row(part, work, f'photo {size[0]}x{size[1]}')
        yield attempt(row, lambda: seconds_on_one_core(make(), settings))


def crf(settings):
    """The CRFs of seeds, of aff_prepare.py's two alphas, after the walk, and of DeepLab."""
    size = photo_size(settings)
    yield from measured('crf', settings, {
        'CRF of seeds': lambda: step2.crf(ONE_CORE, size).ours,
        'aff_prepare': lambda: step2.aff_prepare(ONE_CORE, size).ours,
        'CRF after the walk': lambda: walked_crf(size),
        'CRF of DeepLab': lambda: deeplab_crf(size)})
    yield attempt(Row('crf', 'CRF of seeds on the device', f'photo {size[0]}x{size[1]}'),
                  lambda: crf_on_device(settings, size))


def crf_on_device(settings, size):
    """Fields of a Row: images/s of the CRF of a seed with two classes, and how many of its labels a CPU gives too."""
    photo, (present, cams) = inputs.photo(*size), inputs.cams(*size)
    label_map, labels = seeds.label_map(present, cams, 0.26), [0, *(present + 1)]

    def refine(device=settings.device):
        refined, = tool_crf.refine_labels(photo, label_map[None], labels, VOC.num_classes, tool_crf.SEED, device=device)
        return tool_crf.label_map(refined, labels)
    row = speed(refine, 1, settings)
    same = (refine() == refine('cpu')).mean()
    return {**row, 'note': f'{100 * same:.3f} % of labels as on a CPU'}


def walked_crf(size):
    """aff_infer.py --crf on the scores of a photo with two classes."""
    _, cams = inputs.cams(*size)
    cells = cell_means(seeds.with_background(cams, 0.27))
    return functools.partial(refine_walked, inputs.photo(*size), cells, 10, VOC.num_classes)


def deeplab_crf(size):
    """segmentation/experiment/test.py's CRF of a result: four likely classes, all others almost without probability."""
    logits = np.concatenate([9 * inputs.smooth(4, *size), np.full((VOC.num_classes - 4, *size), -9, np.float32)])
    return functools.partial(refine_segmentation, inputs.photo(*size), torch.from_numpy(logits).softmax(0).numpy(), 10)


def walk(settings):
    """The random walk alone."""
    size = (120, 160) if settings.tiny else inputs.SIZE  # a smaller map has no pairs
    row = Row('walk', 'random walk', f'photo {size[0]}x{size[1]}')
    yield attempt(row, lambda: seconds_on_one_core(step2.random_walk(ONE_CORE, size).ours, settings))


def loading(settings):
    """The work of a loader's process for an image of each kind; only that for training images decodes the file."""
    yield from measured('loading', settings, {
        'load a training image': lambda: step1.data_loading(ONE_CORE, images=1).ours,
        'load all scales': lambda: all_scales(photo_size(settings)),
        'labels of AffinityNet': lambda: step2.affinity_labels(ONE_CORE, repeats=1).ours,
        'augment for DeepLab': lambda: deeplab_augmentation(photo_size(settings))})


def all_scales(size):
    """The scales of contrast_infer.py, with flips."""
    photo = inputs.photo(*size)

    def scale_all():
        scaled = [transforms.at_scale(photo, scale) for scale in SCALES]
        return [torch.stack([image, image.flip(2)]) for image in scaled]

    return scale_all


def deeplab_augmentation(size):
    """A training image of segmentation/experiment/train.py, from the decoded photo and mask."""
    config = Config()
    augment = segmentation.Augmentation(
        config.DATA_RANDOMCROP, config.DATA_RANDOMSCALE,
        (config.DATA_RANDOM_H, config.DATA_RANDOM_S, config.DATA_RANDOM_V), config.DATA_RANDOMFLIP)
    photo = inputs.photo(*size)
    mask = np.asarray(Image.fromarray(photo).convert('L')) // 13  # 0..19
    return functools.partial(augment, photo, mask)

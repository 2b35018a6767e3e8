"""tool/crf.py: the collapsed CRF is the full CRF, and both are the published one's (golden chain)."""
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydensecrf.densecrf import DenseCRF2D

from engine.errors import UserError
from engine.files import REPO
from reference.crf import affinity_crf, labels_crf
from tool import crf
from voc12.classes import VOC

GOLDEN = Path(__file__).parent / 'golden'
IDS = ('2011_000001', '2011_000002')


@pytest.fixture(scope='module')
def chain():
    return np.load(GOLDEN / 'chain.npz')


def classes_of(chain, i):
    return np.append(0, chain[f'cam_keys_{i}'] + 1)


def alpha_maps(chain, i):
    """The hard labels aff_prepare starts from: argmax of the CAMs under backgrounds (1 − max)^4 and (1 − max)^24."""
    cams, classes = chain[f'cam_{i}'], classes_of(chain, i)
    return [classes[np.concatenate([(1 - cams.max(0, keepdims=True)) ** a, cams]).argmax(0)] for a in (4, 24)]


def blocks(present, height=44, width=61, seed=0):
    """A noisy image with one coloured stripe per label of `present`, and a noisy label map of the stripes."""
    rng = np.random.default_rng(seed)
    stripes = np.minimum(np.arange(width) * len(present) // width, len(present) - 1)
    stripes = np.broadcast_to(stripes, (height, width))
    image = np.clip(rng.integers(0, 256, (len(present), 3))[stripes] + rng.normal(0, 15, (height, width, 3)), 0, 255)
    labels = np.where(rng.random((height, width)) < 0.3, rng.integers(0, len(present), (height, width)), stripes)
    return image.astype(np.uint8), np.asarray(present)[labels]


@pytest.mark.parametrize('present', [[7], [0, 15], [0, 3, 8, 15, 20], list(range(VOC.num_classes)),
                                     list(range(1, VOC.num_classes))])
@pytest.mark.parametrize('settings, published', [(crf.SEED, labels_crf), (crf.AFFINITY, affinity_crf)])
def test_collapse_is_exact(present, settings, published):
    image, labels = blocks(present)
    every = np.arange(VOC.num_classes)  # the absent ones too: each has its share of the representative
    ours = crf.refine_labels(image, [labels], every, VOC.num_classes, settings)[0]
    full = published(image, labels)
    np.testing.assert_allclose(ours, full, atol=1e-4)
    assert (crf.label_map(ours, every) == full.argmax(0)).all()
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-4)


def test_collapse_of_scores_is_exact():
    image, labels = blocks([0, 4, 9])
    scores = np.stack([(labels == c) * 0.6 + 0.1 for c in (0, 4, 9)]).astype(np.float32)
    absent = VOC.num_classes - 3
    ours = crf.refine_probabilities(image, scores, crf.DEEPLAB, absent=absent)
    padded = np.concatenate([scores, np.full((absent, *labels.shape), crf.CLIP, np.float32)])
    field = DenseCRF2D(labels.shape[1], labels.shape[0], len(padded))
    field.setUnaryEnergy(-np.log(padded).reshape(len(padded), -1))
    field.addPairwiseGaussian(sxy=1, compat=3)
    field.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    full = np.array(field.inference(10)).reshape(padded.shape)
    np.testing.assert_allclose(ours, full[:3], atol=1e-4)


def test_iterations_and_every_setting_matter():
    image, labels = blocks([0, 4, 9])
    base = crf.refine_labels(image, [labels], [0, 4, 9], VOC.num_classes, crf.SEED)
    for field in dataclasses.fields(crf.Settings):
        value = 'yx' if field.name == 'axes' else getattr(crf.SEED, field.name) + 2
        other = dataclasses.replace(crf.SEED, **{field.name: value})
        changed = crf.refine_labels(image, [labels], [0, 4, 9], VOC.num_classes, other)
        assert np.abs(changed - base).max() > 1e-4, field.name


def test_two_maps_share_the_lattice_and_not_their_results():
    image, first = blocks([0, 4, 9])
    _, second = blocks([0, 4, 20], seed=1)
    classes = [0, 4, 9, 20]
    both = crf.refine_labels(image, [first, second], classes, VOC.num_classes, crf.AFFINITY)
    for together, labels in zip(both, (first, second)):
        alone = crf.refine_labels(image, [labels], classes, VOC.num_classes, crf.AFFINITY)[0]
        np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize('i', IDS)
def test_golden_seed_crf(chain, i):
    classes = classes_of(chain, i)
    out = crf.refine_labels(chain[f'image_{i}'], [chain[f'pred_{i}']], classes, VOC.num_classes, crf.SEED)[0]
    assert (crf.label_map(out, classes) == chain[f'crf_{i}']).mean() >= 0.999


@pytest.mark.parametrize('i', IDS)
def test_golden_affinity_crf(chain, i):
    classes = classes_of(chain, i)
    out = crf.refine_labels(chain[f'image_{i}'], alpha_maps(chain, i), np.arange(VOC.num_classes), VOC.num_classes,
                            crf.AFFINITY)
    for alpha, ours in zip(('4.00', '24.00'), out):
        np.testing.assert_allclose(ours[:, ::5, ::5], chain[f'affcrf{alpha}_{i}'], atol=1e-4)
        assert (crf.label_map(ours[classes], classes) == chain[f'affcrf{alpha}_argmax_{i}']).mean() >= 0.999


@pytest.mark.parametrize('i', IDS)
def test_the_published_rendering_is_the_published_one(chain, i):
    image = chain[f'image_{i}']
    assert (labels_crf(image, chain[f'pred_{i}']).argmax(0) == chain[f'crf_{i}']).mean() >= 0.999
    full = affinity_crf(image, alpha_maps(chain, i)[0])
    np.testing.assert_allclose(full[:, ::5, ::5], chain[f'affcrf4.00_{i}'], atol=1e-4)


def test_image_of_another_size_is_refused():
    image, labels = blocks([0, 4])
    with pytest.raises(ValueError, match='does not fit'):
        crf.refine_labels(image[:-1], [labels], [0, 4], VOC.num_classes, crf.SEED)


def test_without_pydensecrf_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf.densecrf', None)
    image, labels = blocks([0, 4])
    with pytest.raises(UserError, match='pip install pydensecrf2'):
        crf.refine_labels(image, [labels], [0, 4], VOC.num_classes, crf.SEED)


def test_module_loads_neither_torch_nor_pydensecrf():
    code = 'import sys, tool.crf; print([m for m in ("torch", "pydensecrf") if m in sys.modules])'
    run = subprocess.run([sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True)
    assert run.stdout.strip() == '[]', run.stderr

"""tool/crf.py: the collapsed CRF is the full CRF, and both are the published one's (golden chain)."""
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_refused, golden
from pydensecrf.densecrf import DenseCRF2D

from engine.files import REPO
from reference.crf import affinity_crf, labels_crf
from tool import crf
from voc12.classes import VOC

CHAIN = golden('chain.npz')
IDS = ('2011_000001', '2011_000002')
EVERY = np.arange(VOC.num_classes)


def classes_of(i):
    """The labels that may occur in a golden image: the background and the classes of its CAMs."""
    return np.append(0, CHAIN[f'cam_keys_{i}'] + 1)


def alpha_maps(i):
    """The hard labels aff_prepare starts from: argmax of the CAMs under backgrounds (1 − max)^4 and (1 − max)^24."""
    cams, classes = CHAIN[f'cam_{i}'], classes_of(i)
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
@pytest.mark.parametrize('settings, published', [(crf.SEED, labels_crf), (crf.AFFINITY, affinity_crf)],
                         ids=['seed', 'affinity'])
def test_one_label_for_all_that_occur_nowhere_is_exact(present, settings, published):
    """The marginals of every class, the absent ones too: each has its part of the label that stands for them."""
    image, labels = blocks(present)
    ours = crf.refine_labels(image, [labels], EVERY, VOC.num_classes, settings)[0]
    full = published(image, labels)
    np.testing.assert_allclose(ours, full, atol=1e-4)
    np.testing.assert_array_equal(crf.label_map(ours, EVERY), full.argmax(0))
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-4)


def test_one_label_for_all_of_score_zero_is_exact():
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
def test_seeds_after_the_crf_are_the_golden_ones(i):
    classes = classes_of(i)
    refined, = crf.refine_labels(CHAIN[f'image_{i}'], [CHAIN[f'pred_{i}']], classes, VOC.num_classes, crf.SEED)
    assert (crf.label_map(refined, classes) == CHAIN[f'crf_{i}']).mean() >= 0.999


@pytest.mark.parametrize('i', IDS)
def test_labels_of_affinitynet_after_the_crf_are_the_golden_ones(i):
    classes = classes_of(i)
    refined = crf.refine_labels(CHAIN[f'image_{i}'], alpha_maps(i), EVERY, VOC.num_classes, crf.AFFINITY)
    for alpha, ours in zip(('4.00', '24.00'), refined):
        np.testing.assert_allclose(ours[:, ::5, ::5], CHAIN[f'affcrf{alpha}_{i}'], atol=1e-4)
        assert (crf.label_map(ours[classes], classes) == CHAIN[f'affcrf{alpha}_argmax_{i}']).mean() >= 0.999


@pytest.mark.parametrize('i', IDS)
def test_the_reference_is_the_published_crf(i):
    image = CHAIN[f'image_{i}']
    assert (labels_crf(image, CHAIN[f'pred_{i}']).argmax(0) == CHAIN[f'crf_{i}']).mean() >= 0.999
    full = affinity_crf(image, alpha_maps(i)[0])
    np.testing.assert_allclose(full[:, ::5, ::5], CHAIN[f'affcrf4.00_{i}'], atol=1e-4)


def test_an_image_of_another_size_is_refused():
    image, labels = blocks([0, 4])
    with pytest.raises(ValueError, match='does not fit'):
        crf.refine_labels(image[:-1], [labels], [0, 4], VOC.num_classes, crf.SEED)


# ---------------------------------------------------------------- what is loaded

def forget(monkeypatch, *modules):
    """Make Python import these modules anew, until the test ends."""
    for name in modules:
        package, _, last = name.rpartition('.')
        monkeypatch.delitem(sys.modules, name, raising=False)
        if package in sys.modules:
            monkeypatch.delattr(sys.modules[package], last, raising=False)


@pytest.mark.parametrize('script, argv', [
    ('contrast_infer', ['--weights', 'x', '--out_crf', 'x']), ('aff_prepare', ['--cam_dir', 'x', '--out_crf', 'x']),
    ('aff_infer', ['--weights', 'x', '--cam_dir', 'x', '--out_rw', 'x']), ('segmentation/experiment/test', [])])
def test_without_pydensecrf_every_script_that_needs_it_says_what_to_install(capsys, monkeypatch, script, argv):
    forget(monkeypatch, 'tool.crf', 'engine.crf_workers', 'segmentation.inference')
    monkeypatch.setitem(sys.modules, 'pydensecrf.densecrf', None)
    error = assert_refused(capsys, script, *argv)
    assert error.startswith('error: pydensecrf: the CRF cannot be loaded')
    assert error.endswith('pip install pydensecrf2')


@pytest.mark.parametrize('module', ['tool.crf', 'engine.workers', 'engine.crf_workers'])
def test_worker_processes_load_no_torch(module):
    code = f'import sys, {module}; print([name for name in ("torch", "matplotlib") if name in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr

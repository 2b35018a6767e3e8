"""The engines of tool/crf.py against each other, and both against the published CRF. Skipped without pydensecrf."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import golden
from PIL import Image
from test_crf import CHAIN, EVERY, IDS, SETTINGS, alpha_maps, blocks

from data.transforms import to_normalised
from engine.crf_workers import refine_walked_as_published
from tool import crf
from voc12.classes import VOC

densecrf = pytest.importorskip('pydensecrf.densecrf')
published = pytest.importorskip('reference.crf')
small = pytest.importorskip('golden.crf_small')

OURS = {'SEED': published.labels_crf, 'AFFINITY': published.affinity_crf}


@pytest.mark.parametrize('engine', crf.ENGINES)
@pytest.mark.parametrize('present', [[7], [0, 15], [0, 3, 8, 15, 20], list(range(VOC.num_classes)),
                                     list(range(1, VOC.num_classes))])
@pytest.mark.parametrize('setting', OURS)
def test_one_label_for_all_that_occur_nowhere_is_exact(present, setting, engine):
    """The marginals of every class, the absent ones too: each has its part of the label that stands for them."""
    image, labels = blocks(present)
    ours = crf.refine_labels(image, [labels], EVERY, VOC.num_classes, SETTINGS[setting], engine=engine)[0]
    full = OURS[setting](image, labels)
    np.testing.assert_allclose(ours, full, atol=1e-4)
    np.testing.assert_array_equal(crf.label_map(ours, EVERY), full.argmax(0))
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize('engine', crf.ENGINES)
def test_one_label_for_all_of_score_zero_is_exact(engine):
    image, labels = blocks([0, 4, 9])
    scores = np.stack([(labels == c) * 0.6 + 0.1 for c in (0, 4, 9)]).astype(np.float32)
    absent = VOC.num_classes - 3
    ours = crf.refine_probabilities(image, scores, crf.DEEPLAB, absent, engine=engine)
    padded = np.concatenate([scores, np.full((absent, *labels.shape), crf.CLIP, np.float32)])
    field = densecrf.DenseCRF2D(labels.shape[1], labels.shape[0], len(padded))
    field.setUnaryEnergy(-np.log(padded).reshape(len(padded), -1))
    field.addPairwiseGaussian(sxy=1, compat=3)
    field.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    full = np.array(field.inference(10)).reshape(padded.shape)
    np.testing.assert_allclose(ours, full[:3], atol=1e-4)


@pytest.mark.parametrize('setting', SETTINGS)
@pytest.mark.parametrize('i', IDS)
def test_both_engines_agree_on_photos(i, setting):
    image, maps = CHAIN[f'image_{i}'], alpha_maps(i)
    one, other = (crf.refine_labels(image, maps, EVERY, VOC.num_classes, SETTINGS[setting], engine=engine)
                  for engine in crf.ENGINES)
    # Where H·W is no multiple of 4, pydensecrf has lattice points of pixels that do not exist (METHOD 10.5).
    np.testing.assert_allclose(one, other, atol=1e-4 if image[..., 0].size % 4 == 0 else 2e-3)
    assert (one.argmax(1) == other.argmax(1)).mean() >= 0.9999


@pytest.mark.parametrize('i', IDS)
def test_the_reference_is_the_published_crf(i):
    image = CHAIN[f'image_{i}']
    assert (published.labels_crf(image, CHAIN[f'pred_{i}']).argmax(0) == CHAIN[f'crf_{i}']).mean() >= 0.999
    full = published.affinity_crf(image, alpha_maps(i)[0])
    np.testing.assert_allclose(full[:, ::5, ::5], CHAIN[f'affcrf4.00_{i}'], atol=1e-4)


def test_the_script_makes_the_golden_file_of_small_images():
    stored = golden('crf_small.npz')
    for name, image in small.crops().items():
        labels = small.noisy_labels(image)
        np.testing.assert_array_equal(image, stored[f'image_{name}'])
        np.testing.assert_array_equal(labels, stored[f'labels_{name}'])
        np.testing.assert_allclose(small.marginals(image, labels, 'SEED')[[0, 4, 9, 20]], stored[f'SEED_{name}'],
                                   atol=1e-5)


def test_pydensecrf_stays_on_the_cpu():
    image, labels = blocks([0, 4])
    with pytest.raises(ValueError, match='runs on the CPU, not on cuda'):
        crf.refine_labels(image, [labels], [0, 4], VOC.num_classes, crf.SEED, engine='pydensecrf', device='cuda')


def test_the_published_crf_of_the_walk_is_the_one_that_is_commented_out():
    """Against all 21 labels carried, on the padded image; the photo has 45×51 pixels and three labels."""
    rng = np.random.default_rng(0)
    image, walked = rng.integers(0, 256, (45, 51, 3)).astype(np.uint8), rng.random((3, 6, 7), np.float32) / 2
    ours = refine_walked_as_published(image, walked, None, VOC.num_classes)
    scores = np.zeros((VOC.num_classes, 48, 56), np.float32)
    scores[[0, 3, 7]] = F.interpolate(torch.from_numpy(walked)[None], (48, 56), mode='bilinear')[0].numpy()
    normalised = F.pad(to_normalised()(Image.fromarray(image)), (0, 5, 0, 3))
    full = published.walked_crf(normalised.permute(1, 2, 0).numpy(), scores)[:, :45, :51]
    np.testing.assert_allclose(ours, full[[0, 3, 7]], atol=1e-4)

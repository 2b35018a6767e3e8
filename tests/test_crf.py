"""tool/crf.py: what any engine's CRF must be. Golden files, the exact mean field, odd images, what is loaded when.

Against pydensecrf itself, where it is installed: test_crf_pydensecrf.py.
"""
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import assert_refused, golden
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import parallel
from engine.crf_engine import CrfEngine, chosen_engine
from engine.files import REPO
from tool import crf
from voc12.classes import VOC

CHAIN, SMALL = golden('chain.npz'), golden('crf_small.npz')
IDS = ('2011_000001', '2011_000002')
SETTINGS = {'SEED': crf.SEED, 'AFFINITY': crf.AFFINITY, 'EPS': crf.EPS, 'DEEPLAB': crf.DEEPLAB}
EVERY = np.arange(VOC.num_classes)
few = settings(deadline=None, max_examples=15, derandomize=True)


@pytest.fixture(params=crf.ENGINES, scope='module')
def engine(request):
    """Each engine that is installed."""
    if request.param == 'pydensecrf':
        pytest.importorskip('pydensecrf.densecrf')
    return request.param


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


# ---------------------------------------------------------------- golden files

@pytest.mark.parametrize('i', IDS)
def test_seeds_after_the_crf_are_the_golden_ones(engine, i):
    classes = classes_of(i)
    refined, = crf.refine_labels(CHAIN[f'image_{i}'], [CHAIN[f'pred_{i}']], classes, VOC.num_classes, crf.SEED,
                                 engine=engine)
    assert (crf.label_map(refined, classes) == CHAIN[f'crf_{i}']).mean() >= 0.9999


@pytest.mark.parametrize('i', IDS)
def test_labels_of_affinitynet_after_the_crf_are_the_golden_ones(engine, i):
    classes, image = classes_of(i), CHAIN[f'image_{i}']
    refined = crf.refine_labels(image, alpha_maps(i), EVERY, VOC.num_classes, crf.AFFINITY, engine=engine)
    # pydensecrf's SSE code takes pixels by four. Where H·W is no multiple of 4, the pixels that are missing lie at the
    # origin and are black: they carry nothing, but their lattice points exist and let values pass in the blur.
    atol = 1e-4 if image[..., 0].size % 4 == 0 or engine == 'pydensecrf' else 2e-3
    for alpha, ours in zip(('4.00', '24.00'), refined):
        np.testing.assert_allclose(ours[:, ::5, ::5], CHAIN[f'affcrf{alpha}_{i}'], atol=atol)
        assert (crf.label_map(ours[classes], classes) == CHAIN[f'affcrf{alpha}_argmax_{i}']).mean() >= 0.9999


# ---------------------------------------------------------------- the mathematics

def exact_kernel(features):
    """K̃ of METHOD 10.1 without a lattice: features (N, d) → (N, N)."""
    kernel = np.exp(-((features[:, None] - features) ** 2).sum(2) / 2)
    scale = 1 / np.sqrt(kernel.sum(1) + 1e-20)
    return scale[:, None] * kernel * scale


def exact_mean_field(image, labels, setting, num_classes=VOC.num_classes):
    """METHOD 10.2 for hard labels, as sums over all pairs of pixels in double precision: (C, H, W)."""
    height, width = labels.shape
    place = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    appearance = np.concatenate([place / setting.bilateral_sxy, image.reshape(-1, 3) / setting.bilateral_srgb], 1)
    kernel = (setting.gaussian_compat * exact_kernel(place / setting.gaussian_sxy)
              + setting.bilateral_compat * exact_kernel(appearance))
    prior = np.full((num_classes, labels.size), np.log(.3 / (num_classes - 1)))
    prior[labels.ravel(), np.arange(labels.size)] = np.log(.7)
    q = np.exp(prior) / np.exp(prior).sum(0)
    for _ in range(setting.iterations):
        energy = prior + q @ kernel
        q = np.exp(energy - energy.max(0))
        q /= q.sum(0)
    return q.reshape(num_classes, height, width)


@pytest.mark.parametrize('setting', SETTINGS)
@pytest.mark.parametrize('name', ['photo1', 'photo2', 'odd1', 'odd3', 'stripes'])
def test_no_further_from_the_exact_mean_field_than_pydensecrf(engine, name, setting):
    image, labels, theirs = SMALL[f'image_{name}'], SMALL[f'labels_{name}'], SMALL[f'{setting}_{name}']
    labels_kept = [0, 4, 9, 20]
    ours, = crf.refine_labels(image, [labels], labels_kept, VOC.num_classes, SETTINGS[setting], engine=engine)
    exact = exact_mean_field(image, labels, SETTINGS[setting])[labels_kept]
    own, other = (np.sqrt(((marginals - exact) ** 2).mean()) for marginals in (ours, theirs))
    assert own <= 1.02 * other
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_label_map_of_one_label_stays_that_label(engine):
    image, _ = blocks([0, 4])
    labels = np.full(image.shape[:2], 7)
    refined, = crf.refine_labels(image, [labels], EVERY, VOC.num_classes, crf.SEED, engine=engine)
    assert (refined.argmax(0) == 7).all() and refined[7].min() > .7
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-4)
    others = np.delete(refined, 7, 0)
    assert (others == others[0]).all()  # labels that occur nowhere share one marginal


def test_on_a_constant_image_the_majority_wins(engine):
    """All pixels are alike to the appearance kernel but for their place, and a tenth of them has another label."""
    image = np.full((40, 40, 3), 90, np.uint8)
    labels = np.where(np.random.default_rng(0).random((40, 40)) < .1, 3, 5)
    refined, = crf.refine_labels(image, [labels], [3, 5], VOC.num_classes, crf.AFFINITY, engine=engine)
    assert (crf.label_map(refined, [3, 5]) == 5).all()


@pytest.mark.parametrize('size', [(1, 57), (57, 1), (1, 1), (8, 8), (7, 11), (30, 43)])
@pytest.mark.parametrize('setting', SETTINGS)
def test_marginals_of_every_size_are_probabilities(engine, size, setting):
    image, labels = blocks([0, 4, 9], *size)
    refined, = crf.refine_labels(image, [labels], EVERY, VOC.num_classes, SETTINGS[setting], engine=engine)
    assert refined.shape == (VOC.num_classes, *size) and refined.dtype == np.float32
    assert refined.min() >= 0
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-4)
    exact = exact_mean_field(image, labels, SETTINGS[setting])
    assert np.sqrt(((refined - exact) ** 2).mean()) < .1


# ---------------------------------------------------------------- invariances

@few
@given(st.integers(0, 2 ** 16), st.integers(2, 20), st.integers(2, 20))
def test_labels_are_only_names(seed, height, width):
    """Exchanged labels have exchanged marginals, and absent ones do not care which they are."""
    image, labels = blocks([0, 4, 9], height, width, seed)
    names = np.random.default_rng(seed).permutation(VOC.num_classes)
    refined, = crf.refine_labels(image, [labels], EVERY, VOC.num_classes, crf.AFFINITY)
    renamed, = crf.refine_labels(image, [names[labels]], EVERY, VOC.num_classes, crf.AFFINITY)
    np.testing.assert_allclose(renamed[names], refined, atol=1e-4)


@few
@given(st.integers(0, 2 ** 16))
def test_swapped_axes_and_a_turned_image_are_the_same(seed):
    image, labels = blocks([0, 4], 12, 17, seed)
    swapped = dataclasses.replace(crf.SEED, axes='yx')
    refined, = crf.refine_labels(image, [labels], [0, 4], VOC.num_classes, crf.SEED)
    turned, = crf.refine_labels(image.swapaxes(0, 1).copy(), [labels.T], [0, 4], VOC.num_classes, swapped)
    np.testing.assert_allclose(turned.swapaxes(1, 2), refined, atol=1e-4)


@few
@given(st.integers(0, 2 ** 16), st.integers(2, 25))
def test_absent_labels_are_labels_of_probability_zero(seed, absent):
    image, labels = blocks([0, 4, 9], 12, 16, seed)
    scores = np.stack([(labels == c) * 0.6 + 0.1 for c in (0, 4, 9)]).astype(np.float32)
    short = crf.refine_probabilities(image, scores, crf.DEEPLAB, absent)
    padded = np.concatenate([scores, np.zeros((absent, 12, 16), np.float32)])
    np.testing.assert_allclose(short, crf.refine_probabilities(image, padded, crf.DEEPLAB)[:3], atol=1e-4)


def test_iterations_and_every_setting_matter(engine):
    image, labels = blocks([0, 4, 9])
    base = crf.refine_labels(image, [labels], [0, 4, 9], VOC.num_classes, crf.SEED, engine=engine)
    for field in dataclasses.fields(crf.Settings):
        value = 'yx' if field.name == 'axes' else getattr(crf.SEED, field.name) + 2
        other = dataclasses.replace(crf.SEED, **{field.name: value})
        changed = crf.refine_labels(image, [labels], [0, 4, 9], VOC.num_classes, other, engine=engine)
        assert np.abs(changed - base).max() > 1e-4, field.name


def test_two_maps_share_the_lattice_and_not_their_results(engine):
    image, first = blocks([0, 4, 9])
    _, second = blocks([0, 4, 20], seed=1)
    classes = [0, 4, 9, 20]
    both = crf.refine_labels(image, [first, second], classes, VOC.num_classes, crf.AFFINITY, engine=engine)
    for together, labels in zip(both, (first, second)):
        alone = crf.refine_labels(image, [labels], classes, VOC.num_classes, crf.AFFINITY, engine=engine)[0]
        np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_large_weights_do_not_overflow():
    """Their energies are beyond what exp can take; the largest of each field is subtracted."""
    image, labels = blocks([0, 4])
    strong = dataclasses.replace(crf.SEED, gaussian_compat=150, bilateral_compat=200)
    refined = crf.refine_labels(image, [labels, labels[::-1]], EVERY, VOC.num_classes, strong)
    np.testing.assert_allclose(refined.sum(1), 1, atol=1e-4)


def test_one_and_two_threads_give_the_same_bytes():
    image, labels = blocks([0, 4, 9], 120, 161)
    before, out = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out.append(crf.refine_labels(image, [labels], [0, 4, 9], VOC.num_classes, crf.SEED).tobytes())
    torch.set_num_threads(before)
    assert out[0] == out[1]


def test_position_kernels_are_kept_for_a_few_sizes():
    keep = crf.load_engine('torch').position_kernel
    for width in range(8, 8 + 2 * keep.cache_info().maxsize):
        image, labels = blocks([0, 4], 8, width)
        for _ in range(2):
            crf.refine_labels(image, [labels], [0], VOC.num_classes, crf.SEED)
    assert keep.cache_info().currsize == keep.cache_info().maxsize == 4
    assert keep.cache_info().hits >= 8


LARGE = """
import resource
import numpy as np
from tool import crf
rng = np.random.default_rng(0)
image = rng.integers(0, 64, (20, 30, 3)).repeat(100, 0).repeat(100, 1) * 3 + rng.integers(0, 9, (2000, 3000, 3))
labels = rng.integers(0, 2, (20, 30)).repeat(100, 0).repeat(100, 1)
refined = crf.refine_labels(image.astype(np.uint8), [labels], [0, 1], 21, crf.SEED)
assert refined.shape == (1, 2, 2000, 3000) and np.isfinite(refined).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20)
"""


@pytest.mark.long
def test_a_photo_of_six_megapixels_stays_under_five_gib():
    done = subprocess.run([sys.executable, '-c', LARGE], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5


# ---------------------------------------------------------------- refusals

def test_what_does_not_fit_is_refused(engine):
    image, labels = blocks([0, 4])
    with pytest.raises(ValueError, match='does not fit'):
        crf.refine_labels(image[:-1], [labels], [0, 4], VOC.num_classes, crf.SEED, engine=engine)
    with pytest.raises(ValueError, match='label 4 is not below'):
        crf.refine_labels(image, [labels], [0], 4, crf.SEED, engine=engine)
    with pytest.raises(ValueError, match="no CRF engine 'gpu': use torch or pydensecrf"):
        crf.load_engine('gpu')


# ---------------------------------------------------------------- what is loaded

def forget_pydensecrf(monkeypatch):
    """Make pydensecrf impossible to import, until the test ends."""
    monkeypatch.delitem(sys.modules, 'tool.crf_pydensecrf', raising=False)
    monkeypatch.setitem(sys.modules, 'pydensecrf.densecrf', None)


@pytest.mark.parametrize('script, argv', [
    ('contrast_infer', ['--weights', 'x', '--out_crf', 'x']), ('aff_prepare', ['--cam_dir', 'x', '--out_crf', 'x']),
    ('aff_infer', ['--weights', 'x', '--cam_dir', 'x', '--out_rw', 'x', '--crf']),
    ('segmentation/experiment/test', [])])
def test_without_pydensecrf_every_script_that_is_to_run_it_says_what_to_install(capsys, monkeypatch, script, argv):
    forget_pydensecrf(monkeypatch)
    error = assert_refused(capsys, script, *argv, '--crf_engine', 'pydensecrf')
    assert error.startswith('error: --crf_engine pydensecrf: the CRF engine pydensecrf cannot be loaded')
    assert error.endswith('; pip install -r requirements-pydensecrf.txt')


def test_without_pydensecrf_the_crf_works(monkeypatch):
    forget_pydensecrf(monkeypatch)
    image, labels = blocks([0, 4])
    assert crf.refine_labels(image, [labels], [0, 4], VOC.num_classes, crf.EPS).shape == (1, 2, *labels.shape)
    with pytest.raises(ImportError, match='pydensecrf cannot be loaded'):
        crf.refine_labels(image, [labels], [0, 4], VOC.num_classes, crf.EPS, engine='pydensecrf')


@pytest.mark.parametrize('module', ['tool.crf', 'engine.workers', 'engine.crf_engine', 'engine.crf_workers'])
def test_importing_these_loads_no_engine(module):
    code = (f'import sys, {module}\n'
            'print([name for name in ("torch", "matplotlib", "pydensecrf") if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_a_worker_process_runs_one_thread(monkeypatch):
    """Whatever number of threads the user gave to the networks."""
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    with parallel.executor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1


def test_on_a_gpu_no_worker_process_runs_the_crf():
    assert CrfEngine('torch', 'cuda:1').workers(8) == 0
    assert CrfEngine('torch', 'cpu').workers(8) == 8
    assert chosen_engine('torch', torch.device('cuda', 1)) == CrfEngine('torch', 'cuda:1')

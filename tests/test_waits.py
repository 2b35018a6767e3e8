"""What would make a GPU wait, draw other numbers or need a compiler, seen on a CPU by the tensors that are used."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import run_main, script, tree_bytes
from torch.utils._python_dispatch import TorchDispatchMode

from data.classification import LabelledImages
from data.images import devkit_photos, image_size
from data.lists import read_list
from data.probabilities import save_probabilities
from data.transforms import RandomLongSide, classification_train
from engine import device as device_module
from engine.device import select_device
from engine.files import out_dir
from engine.loading import Seeded, training_batches, validation_batches
from engine.training import Run
from network import deeplab
from segmentation import inference, predictor
from segmentation.experiment.config import Config
from segmentation.predictions import Output
from tool import crf, crf_torch, seam
from voc12.classes import VOC


def test_loading_in_the_main_process_leaves_the_generators_of_gpus_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded.append)
    images = Seeded([0.] * 4, seed=1)
    before = torch.get_rng_state()
    assert images[0, 2] == 0. and seeded == []
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_draws_what_it_drew_before():
    class Drawing(torch.utils.data.Dataset):
        def __getitem__(self, index):
            return torch.rand(3)
    state = np.random.SeedSequence([4, 1, 5]).generate_state(1, np.uint64)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(int(state[0])))
    assert torch.equal(Seeded(Drawing(), seed=4)[1, 5], expected)


def test_a_resize_to_one_size_draws_nothing():
    before = torch.get_rng_state()
    RandomLongSide(40, 40)(torch.zeros(3, 60, 50))
    assert torch.equal(torch.get_rng_state(), before)
    RandomLongSide(40, 41)(torch.zeros(3, 60, 50))
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_batch_brings_its_present_channels_so_that_they_are_pinned_with_it(toy, workers):
    ids = read_list(toy.train)
    images = LabelledImages(ids, devkit_photos(toy.root), toy.labels, VOC, classification_train(32, 32, 40))
    cpu = torch.device('cpu')
    for batches in (training_batches(images, 4, 0, 0, 2, workers, cpu), validation_batches(images, 4, workers, cpu)):
        batch = next(batches)
        assert isinstance(batch['present'], seam.PresentChannels)
        expected = seam.present_channels(batch['label'])
        assert torch.equal(batch['present'].index, expected.index)
        assert torch.equal(batch['present'].mask, expected.mask)


class InnerSizes(TorchDispatchMode):
    """Notes the inner size of every product."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            self.sizes.append(args[0].shape[-1])
        return function(*args, **(kwargs or {}))


def test_the_classification_loss_has_no_product_for_which_a_gpu_needs_a_compiler():
    cam = torch.randn(2, 5, 6, 7, requires_grad=True)
    label = torch.tensor([[1., 0, 0, 1], [0, 1, 0, 0]])
    with InnerSizes() as products:
        loss = seam.classification_loss(cam, label, (40, 50))
        loss.backward()
    assert 1 not in products.sizes
    rows, columns = (seam._interpolation_mean(small, large, cam) for small, large in ((6, 40), (7, 50)))
    twin = cam.detach().clone().requires_grad_()
    logits = torch.einsum('nchw,h,w->nc', twin, rows, columns)
    expected = torch.nn.functional.multilabel_soft_margin_loss(logits[:, 1:], label)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(cam.grad, twin.grad, rtol=1e-6, atol=1e-9)


def test_cam_inference_moves_an_images_channels_once_and_each_scale_without_its_flip(toy, tmp_path, monkeypatch):
    moved, to = {}, torch.Tensor.to  # by identity: torchvision's images come here twice for one call

    def noted(tensor, *args, **options):
        moved.update((id(tensor), tensor) for argument in args if isinstance(argument, torch.device))
        return to(tensor, *args, **options)
    monkeypatch.setattr(torch.Tensor, 'to', noted)
    run_main('contrast_infer', '--weights', toy.net, '--infer_list', toy.val, '--voc12_root', toy.root, '--cls_labels',
             toy.labels, '--out_cam', tmp_path, '--scales', 0.5, 1, '--num_workers', 0, '--device', 'cpu')
    images = len(read_list(toy.val))
    assert sum(x.dtype == torch.int64 and x.dim() == 1 for x in moved.values()) == images
    assert sum(x.dtype == torch.float32 and x.dim() == 3 and len(x) == 3 for x in moved.values()) == 2 * images


class Readings(TorchDispatchMode):
    """Notes the operations whose result, or the size of it, is known only once the device has come to them."""

    KINDS = ('_local_scalar_dense', 'equal', 'is_nonzero', 'nonzero', 'masked_select', '_unique2', 'unique_dim',
             'unique_consecutive', 'bincount', 'repeat_interleave')

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        masks = name in ('index', 'index_put_') and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.KINDS or masks:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def test_a_reading_is_noted():
    values = torch.arange(3.)
    with Readings() as readings:
        values.sum().item()
        values[values > 1]
        values.nonzero()
    assert readings.seen == ['_local_scalar_dense', 'index', 'nonzero']


@pytest.fixture
def readings_of_steps(monkeypatch):
    """A list that gets the readings of each training step, from its batch to the update of the weights."""
    steps, batches = [], Run.batches

    def watched(run, dataset):
        for batch in batches(run, dataset):
            with Readings() as readings:
                steps.append(readings.seen)
                yield batch
    monkeypatch.setattr(Run, 'batches', watched)
    return steps


def classifier_flags(toy, folder):
    """Flags of contrast_train.py: three steps on the toy, of which the last alone reads losses."""
    return ['--weights', toy.backbone, '--voc12_root', toy.root, '--train_list', toy.train, '--cls_labels', toy.labels,
            '--val_list', '', '--session_name', folder / 'run', '--tblog_dir', '', '--batch_size', 4, '--crop_size', 64,
            '--resize_long', 64, 80, '--max_epoches', 1, '--log_every', 100, '--picture_every', 0, '--device', 'cpu',
            '--num_workers', 0]


@pytest.mark.parametrize('flags', [
    ('--baseline', 'seam'), ('--baseline', 'seam', '--accumulate', '2'), ('--baseline', 'cam'), ('--baseline', 'eps'),
    ('--baseline', 'eps_plain')], ids=' '.join)
def test_a_step_of_the_classifier_reads_nothing_that_it_computes(toy, tmp_path, readings_of_steps, flags):
    saliency = ('--saliency_dir', toy.saliency) if 'eps' in flags[1] else ()
    view2 = ('--view2_size', 32) if flags[1] != 'eps_plain' else ()
    run_main('contrast_train', *classifier_flags(toy, tmp_path), *flags, *saliency, *view2)
    assert readings_of_steps[:2] == [[], []]


def test_a_step_of_affinitynet_reads_nothing_that_it_computes(toy, tmp_path, readings_of_steps):
    for alpha, background in ((4, .7), (24, .4)):
        for name, photo in devkit_photos(toy.root).need(read_list(toy.train)).items():
            maps = np.full(image_size(photo), background), np.full(image_size(photo), 1 - background)
            save_probabilities(out_dir(tmp_path / str(alpha), '') / f'{name}.npy', [0, 1], np.float32(maps))
    flags = classifier_flags(toy, tmp_path)
    labels, resize = flags.index('--cls_labels'), flags.index('--resize_long')
    run_main('aff_train', *flags[:labels], *flags[labels + 2:resize], *flags[resize + 3:],
             '--la_crf_dir', tmp_path / '4', '--ha_crf_dir', tmp_path / '24')
    assert readings_of_steps[:2] == [[], []]


def test_a_step_of_deeplab_reads_nothing_that_it_computes(toy, tmp_path, readings_of_steps):
    run_main('segmentation/experiment/train', '--MODEL_BACKBONE_PRETRAIN', toy.backbone, '--voc12_root', toy.root,
             '--pseudo_gt', toy.root / 'SegmentationClass', '--train_list', toy.train, '--EXP_NAME', tmp_path / 'run',
             '--tblog_dir', '', '--TRAIN_BATCHES', 2, '--TRAIN_ITERATION', 3, '--DATA_RANDOMCROP', 32, '--log_every',
             100, '--picture_every', 0, '--device', 'cpu', '--num_workers', 0, '--allow_unusual_masks')
    assert readings_of_steps[:2] == [[], []]


@pytest.fixture
def waits(monkeypatch):
    """What makes a host wait for a device, in order: plain copies to the host, and engine.device.arrays."""
    seen, cpu, arrays = [], torch.Tensor.cpu, device_module.arrays
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda tensor: (seen.append(tuple(tensor.shape)), cpu(tensor))[1])
    for module in (inference, predictor):
        monkeypatch.setattr(module, 'arrays', lambda *tensors: (seen.append('arrays'), arrays(*tensors))[1])
    return seen


def test_deeplabs_test_waits_once_an_image_for_all_that_it_keeps(tmp_path, waits):
    net = deeplab.build('deeplabv1_resnet38', VOC.num_classes, 1 / 16).eval()
    folders = {name: out_dir(tmp_path / name, '') for name in ('single', 'multi')}
    image = np.zeros((24, 36, 3), np.uint8)
    item = {'name': 'a', 'pixels': image, 'scaled': [torch.zeros(3, 24, 36), torch.ones(3, 12, 18)]}
    args = SimpleNamespace(num_workers=0, amp='off')
    config = Config(TEST_MULTISCALE=(1., .5))
    inference.segment(net, [item] * 3, config, Output(folders, out_dir(tmp_path / 'logits', ''), 1, VOC),
                      torch.device('cpu'), args, 'test')
    assert waits == ['arrays'] * 3
    assert np.load(tmp_path / 'logits' / 'a.npy').shape == (21, 24, 36)
    assert len(tree_bytes(tmp_path, '.png')) == 2


@pytest.mark.parametrize('flags, expected', [({'classes': ('dog',)}, ['arrays']),
                                             ({}, [(20,), 'arrays'])])  # the scores choose the classes
def test_predict_waits_once_a_photo_unless_the_scores_choose_the_classes(toy, waits, flags, expected):
    predict = script('predict').load(toy.net, device='cpu', scales=(1., .5), **flags)
    predict(np.zeros((24, 36, 3), np.uint8))
    assert waits == expected


def test_the_crf_copies_an_image_and_its_energies_before_it_gives_the_device_work(monkeypatch):
    copies, kernels = [], []
    kernel, tensor, to, new_tensor = crf_torch.GaussianKernel, torch.tensor, torch.Tensor.to, torch.Tensor.new_tensor

    def noted(make):
        def made(value, *args, **options):
            if 'device' in options or any(isinstance(argument, torch.device) for argument in args):
                copies.append((np.shape(value), len(kernels)))
            return make(value, *args, **options)
        return made
    monkeypatch.setattr(crf_torch, 'GaussianKernel', lambda *args: (kernels.append(args), kernel(*args))[1])
    monkeypatch.setattr(torch, 'tensor', noted(tensor))
    monkeypatch.setattr(torch.Tensor, 'to', noted(to))
    monkeypatch.setattr(torch.Tensor, 'new_tensor', noted(new_tensor))
    crf_torch.position_kernel.cache_clear()
    image = np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)
    crf.refine_labels(image, np.zeros((1, 9, 11), int), [0, 1], 3, crf.SEED)
    assert copies[:2] == [((9, 11, 3), 0), ((1, 1, 9, 11), 0)]
    assert [shape for shape, _ in copies[2:]] == [(6 ** 5, 6), (3 ** 2, 3)]  # how corners are numbered, for each kernel


@pytest.mark.parametrize('build, driver, warned', [('13.0', True, True), ('13.0', False, False), (None, True, False)])
def test_auto_says_where_the_build_has_cuda_and_no_device_answers(tmp_path, monkeypatch, capsys, build, driver, warned):
    (tmp_path / 'driver').touch()
    monkeypatch.setattr(device_module, 'NVIDIA_DRIVER', tmp_path / ('driver' if driver else 'none'))
    monkeypatch.setattr(torch.version, 'cuda', build)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert select_device('auto') == torch.device('cpu')
    assert ('finds no device' in capsys.readouterr().err) == warned

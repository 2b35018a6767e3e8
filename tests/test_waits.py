"""What would make a GPU wait, draw other numbers or need a compiler, seen on a CPU by the tensors that are used."""
import numpy as np
import pytest
import torch
from helpers import run_main
from torch.utils._python_dispatch import TorchDispatchMode

from data.classification import LabelledImages
from data.images import devkit_photos
from data.lists import read_list
from data.transforms import RandomLongSide, classification_train
from engine import device as device_module
from engine.device import select_device
from engine.loading import Seeded, training_batches, validation_batches
from tool import seam
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


@pytest.mark.parametrize('build, driver, warned', [('13.0', True, True), ('13.0', False, False), (None, True, False)])
def test_auto_says_where_the_build_has_cuda_and_no_device_answers(tmp_path, monkeypatch, capsys, build, driver, warned):
    (tmp_path / 'driver').touch()
    monkeypatch.setattr(device_module, 'NVIDIA_DRIVER', tmp_path / ('driver' if driver else 'none'))
    monkeypatch.setattr(torch.version, 'cuda', build)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert select_device('auto') == torch.device('cpu')
    assert ('finds no device' in capsys.readouterr().err) == warned

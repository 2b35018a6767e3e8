"""network/resnet38_contrast.py against the published network; what is frozen, and the optimiser's groups."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.training import parameter_groups
from network import resnet38_contrast, weights
from network.layout import to_mkldnn
from network.resnet38_contrast import Net, revise
from network.resnet38d import FrozenResNet38, width_of

GOLDEN = Path(__file__).parent / 'golden'
FROZEN = ('conv1a', 'b2', 'b2_1', 'b2_2')
PCM = ('f8_3', 'f8_4', 'f9')


@pytest.fixture(scope='module')
def published(published_weights):
    """The network at full width, filled, to infer with."""
    with torch.device('meta'):  # no time spent on initial values
        net = Net()
    net.load_state_dict(torch.load(published_weights, weights_only=True), assign=True)
    return net.eval()


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Net(width=1 / 16)


def layer(key):
    return key.split('.')[0]


def test_keys_shapes_and_their_order_are_the_published_ones():
    manifest = json.loads((GOLDEN / 'keys' / 'manifest_resnet38_contrast.json').read_text())
    with torch.device('meta'):
        net = Net()
    assert [(key, list(value.shape)) for key, value in net.state_dict().items()] == list(manifest.items())


@pytest.mark.parametrize('size', ['64x96', '65x97'])
def test_forward_is_the_published_one(published, size):
    golden = np.load(GOLDEN / f'resnet38_contrast_{size}.npz')
    with torch.no_grad():
        cam, cam_rv, f_proj, cam_rv_down = published(torch.from_numpy(golden['x']))
    ours = {'cam': cam[:, :, ::4, ::4], 'cam_rv': cam_rv[:, :, ::4, ::4], 'f_proj': f_proj, 'cam_rv_down': cam_rv_down}
    for name, value in ours.items():
        assert value.shape == golden[name].shape, name
        assert np.abs(value.numpy() - golden[name]).max() <= 1e-4 * np.abs(golden[name]).max(), name


class LargestTensor(TorchDispatchMode):
    """Notes the most entries of any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.entries = max([self.entries, *(value.numel() for value in made if isinstance(value, torch.Tensor))])
        return out


@pytest.mark.parametrize('entries', [1, 1000, 50000])
def test_pcm_in_blocks_is_the_whole_and_keeps_its_memory_rule(monkeypatch, entries):
    torch.manual_seed(0)
    cam, features = torch.rand(2, 2, 11, 16), torch.randn(2, 3, 11, 16)
    pixels = 11 * 16
    whole = revise(cam, features)
    with LargestTensor() as with_gradients:
        revise(cam, features)
    assert with_gradients.entries == 2 * pixels ** 2  # training keeps A whole anyway, for the backward pass
    monkeypatch.setattr(resnet38_contrast, 'BLOCK_ENTRIES', entries)
    with torch.no_grad(), LargestTensor() as largest:
        blocks = revise(cam, features)
    assert (blocks - whole).abs().max() <= 1e-6
    others = 2 * 3 * pixels  # the features and the CAMs themselves
    assert largest.entries <= max(entries, 2 * pixels, others)


def test_pcm_is_the_formula():
    torch.manual_seed(0)
    cam, features = torch.rand(2, 3, 4, 5, dtype=torch.double), torch.randn(2, 6, 4, 5, dtype=torch.double)
    f = features.flatten(2)
    f = f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-5)
    affinity = torch.einsum('ndi,ndj->nij', f, f).relu()
    affinity = affinity / (affinity.sum(1, keepdim=True) + 1e-5)
    expected = torch.einsum('nci,nij->ncj', cam.flatten(2), affinity).view_as(cam)
    torch.testing.assert_close(revise(cam, features), expected)


def test_training_mode_freezes_batchnorm_and_nothing_else(tiny):
    assert tiny.train() is tiny and tiny.eval() is tiny
    tiny.train()
    norms = [m for m in tiny.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [buffer.clone() for m in norms for buffer in m.buffers()]
    tiny(torch.randn(2, 3, 48, 48))
    assert len(norms) > 30 and not any(m.training for m in norms)
    assert all(map(torch.equal, [buffer for m in norms for buffer in m.buffers()], before))
    assert all(m.training for m in tiny.modules() if isinstance(m, nn.Dropout2d))
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_published_dropout_rates(tiny):
    rates = {name: m.p for name, m in tiny.named_modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {'b6.dropout_2b1': 0.3, 'b6.dropout_2b2': 0.3, 'b7.dropout_2b1': 0.5, 'b7.dropout_2b2': 0.5,
                     'dropout7': 0.5}


def test_what_gets_a_gradient(tiny):
    tiny.train()
    cam, cam_rv, f_proj = tiny.maps(torch.randn(2, 3, 48, 48))
    cam_rv.square().sum().backward(retain_graph=True)
    assert {layer(key) for key, p in tiny.named_parameters() if p.grad is not None} == set(PCM)
    (cam.square().sum() + f_proj.square().sum()).backward()
    trained = {key for key, p in tiny.named_parameters() if p.grad is not None}
    assert trained == {key for key, p in tiny.named_parameters() if 'bn' not in key and layer(key) not in FROZEN}
    assert all(p.grad.abs().sum() > 0 for p in tiny.parameters() if p.grad is not None)


def test_class_logits_are_the_means_of_the_foreground_cams(tiny):
    x = torch.randn(2, 3, 41, 56)
    with torch.no_grad():
        torch.testing.assert_close(tiny.eval().class_logits(x), tiny.maps(x)[0].mean((2, 3))[:, 1:])


def test_mixed_precision_leaves_the_revised_cam_in_float32(tiny):
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        _, reference, _ = tiny.eval().maps(x)
        with torch.autocast('cpu', torch.bfloat16):
            cam, cam_rv, _ = tiny.maps(x)
    assert cam.dtype == torch.bfloat16 and cam_rv.dtype == torch.float32
    assert (cam_rv - reference).abs().mean() < 0.05 * reference.abs().mean()


@pytest.mark.parametrize('width', [1 / 16, 1 / 8, 1 / 2])
def test_width_scales_every_channel_count_but_colours_classes_and_contrast_features(width):
    with torch.device('meta'):
        full, net = Net().state_dict(), Net(width).state_dict()
    assert width_of(net) == width and weights.width_of_weights(net) == width
    fixed = {('conv1a.weight', 1), ('fc8.weight', 0), ('fc_proj.weight', 0)}
    for key, value in full.items():
        for axis, channels in enumerate(value.shape[:2]):
            colours = 3 if (key, axis) == ('f9.weight', 1) else 0  # the PCM reads the image itself too
            expected = channels if (key, axis) in fixed else (channels - colours) * width + colours
            assert net[key].shape[axis] == expected, key


def test_the_net_is_built_at_the_width_of_its_weights(tiny):
    other = weights.build_net('network.resnet38_contrast', tiny.state_dict(), num_classes=5)
    assert other.width == 1 / 16 and other.fc8.out_channels == 5


class Biased(FrozenResNet38):
    """A network with biases and BatchNorm on both sides of the line between pretrained and new."""
    from_scratch = ('head',)

    def __init__(self):
        nn.Module.__init__(self)
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.fixed = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.head = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Linear(5, 2))


def test_four_groups_with_their_rates_and_decays():
    net = Biased()
    groups = parameter_groups(net, lr=0.01, weight_decay=5e-4)
    expected = [(0.01, 5e-4, [net.trunk[0].weight, net.trunk[2].weight]),
                (0.02, 0., [net.trunk[0].bias, net.trunk[2].bias]),
                (0.1, 5e-4, [net.head[0].weight, net.head[2].weight]),
                (0.2, 0., [net.head[0].bias, net.head[2].bias])]
    assert len(groups) == 4
    for group, (lr, decay, members) in zip(groups, expected):
        assert (group['lr'], group['weight_decay']) == (pytest.approx(lr), decay)
        assert [id(p) for p in group['params']] == [id(p) for p in members]


def test_groups_hold_every_trained_parameter_once(tiny):
    groups = parameter_groups(tiny, 0.01, 5e-4)
    assert [group['lr'] for group in groups] == [0.01, pytest.approx(0.1)]  # no layer of this network has a bias
    members = [id(p) for group in groups for p in group['params']]
    assert sorted(members) == sorted(id(p) for p in tiny.parameters() if p.requires_grad)
    new = {id(p) for key, p in tiny.named_parameters() if layer(key) in ('fc8', 'fc_proj', *PCM)}
    assert {id(p) for p in groups[1]['params']} == new


def test_inference_on_a_cpu_runs_in_blocks_and_training_does_not(tiny):
    x = torch.randn(2, 3, 40, 48)
    net = tiny.eval()
    with torch.inference_mode():
        assert to_mkldnn(x, net).is_mkldnn == torch.backends.mkldnn.is_available()
        assert all(not tap.is_mkldnn for tap in net.features(x).values())
        in_blocks = net.maps(x)
        with torch.autocast('cpu', torch.bfloat16):
            assert not to_mkldnn(x, net).is_mkldnn
        assert not to_mkldnn(x.double(), net).is_mkldnn
        assert not to_mkldnn(x, net.train()).is_mkldnn
    net.eval()
    assert not to_mkldnn(x, net).is_mkldnn  # gradients
    for ours, usual in zip(in_blocks, net.maps(x)):
        torch.testing.assert_close(ours, usual, rtol=1e-5, atol=1e-5 * usual.abs().max().item())

"""network/: resnet38_contrast against the published network, heads on any backbone, what is frozen, the optimiser."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, golden
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.training import parameter_groups
from network import heads, weights
from network.heads import PCM, PROJECTION, CAMHeads, revise
from network.layout import to_mkldnn
from network.resnet38_contrast import Net
from network.resnet38d import FrozenResNet38
from network.width import width_of
from tool.cam import peak_norm, resize, winner_take_all
from voc12.classes import VOC

FROZEN = ('conv1a', 'b2', 'b2_1', 'b2_2')
PCM_LAYERS = ('f8_3', 'f8_4', 'f9')


@pytest.fixture(scope='module')
def published(published_weights):
    """The network at full width, filled, to infer with."""
    with torch.device('meta'):  # no time spent on initial values
        net = Net(VOC.num_classes)
    net.load_state_dict(torch.load(published_weights, weights_only=True), assign=True)
    return net.eval()


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Net(VOC.num_classes, 1 / 16)


def layer(key):
    return key.split('.')[0]


# ---------------------------------------------------------------- against the published network

def test_keys_shapes_and_their_order_are_the_published_ones():
    manifest = json.loads((GOLDEN / 'keys' / 'manifest_resnet38_contrast.json').read_text())
    with torch.device('meta'):
        net = Net(VOC.num_classes)
    assert [(key, list(value.shape)) for key, value in net.state_dict().items()] == list(manifest.items())


@pytest.mark.wide
@pytest.mark.parametrize('size', ['64x96', '65x97'])
def test_outputs_are_the_published_ones(published, size):
    case = golden(f'resnet38_contrast_{size}.npz')
    with torch.no_grad():
        cam, cam_rv, f_proj, cam_rv_down = published(torch.from_numpy(case['x']))
    ours = {'cam': cam[:, :, ::4, ::4], 'cam_rv': cam_rv[:, :, ::4, ::4], 'f_proj': f_proj, 'cam_rv_down': cam_rv_down}
    for name, value in ours.items():
        assert value.shape == case[name].shape, name
        assert np.abs(value.numpy() - case[name]).max() <= 1e-4 * np.abs(case[name]).max(), name


def test_dropout_rates_are_the_published_ones(tiny):
    rates = {name: m.p for name, m in tiny.named_modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {'b6.dropout_2b1': 0.3, 'b6.dropout_2b2': 0.3, 'b7.dropout_2b1': 0.5, 'b7.dropout_2b2': 0.5,
                     'dropout7': 0.5}


# ---------------------------------------------------------------- the pixel correlation module

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
    monkeypatch.setattr(heads, 'BLOCK_ENTRIES', entries)
    with torch.no_grad(), LargestTensor() as largest:
        blocks = revise(cam, features)
    assert (blocks - whole).abs().max() <= 1e-6
    others = 2 * 3 * pixels  # the features and the CAMs themselves
    assert largest.entries <= max(entries, 2 * pixels, others)


def test_pcm_is_the_formula_of_the_method():
    """METHOD 1.3, in double precision."""
    torch.manual_seed(0)
    cam, features = torch.rand(2, 3, 4, 5, dtype=torch.double), torch.randn(2, 6, 4, 5, dtype=torch.double)
    f = features.flatten(2)
    f = f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-5)
    affinity = torch.einsum('ndi,ndj->nij', f, f).relu()
    affinity = affinity / (affinity.sum(1, keepdim=True) + 1e-5)
    expected = torch.einsum('nci,nij->ncj', cam.flatten(2), affinity).view_as(cam)
    torch.testing.assert_close(revise(cam, features), expected)


# ---------------------------------------------------------------- heads on another backbone

class SmallBackbone(nn.Module):
    """What CAMHeads asks of a backbone, and no more: `features` of three levels at one stride, `channels`, `width`."""

    def __init__(self):
        super().__init__()
        self.channels, self.width = {'low': 5, 'middle': 6, 'high': 7}, 1 / 16
        self.stem = nn.Conv2d(3, 5, 4, 4)
        self.second, self.third = nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)

    def features(self, x):
        low = F.relu(self.stem(x))
        middle = F.relu(self.second(low))
        return {'low': low, 'middle': middle, 'high': F.relu(self.third(middle))}


class SmallNet(CAMHeads, SmallBackbone):
    """Four classes and the background."""

    def __init__(self, parts, dropout=0.5):
        super().__init__()
        self.add_heads(5, parts, dropout)


@pytest.fixture(scope='module')
def small_state():
    """The weights of a SmallNet with both parts: a net with fewer loads those of its layers."""
    torch.manual_seed(0)
    return SmallNet((PCM, PROJECTION)).state_dict()


def small_net(parts, state):
    """A SmallNet with these parts, to infer with."""
    net = SmallNet(parts).eval()
    net.load_state_dict({key: state[key] for key in net.state_dict()})
    return net


PARTS = [(), (PCM,), (PROJECTION,), (PCM, PROJECTION)]
IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('parts', PARTS)
def test_heads_have_the_layers_of_their_parts(parts):
    net = SmallNet(parts)
    layers = {'fc8': (5, 7), 'fc_proj': (128, 7), 'f8_3': (4, 5), 'f8_4': (8, 6), 'f9': (12, 15)}
    expected = [name for name in layers
                if name == 'fc8' or (PROJECTION in parts if name == 'fc_proj' else PCM in parts)]
    assert set(net.parts) == set(parts) and list(net.from_scratch) == expected
    own = [key for key in net.state_dict() if layer(key) not in ('stem', 'second', 'third')]
    assert own == [f'{name}.weight' for name in expected]
    for name in expected:
        assert getattr(net, name).weight.shape == (*layers[name], 1, 1), name


@pytest.mark.parametrize('parts', PARTS)
def test_heads_on_another_backbone_make_the_maps_of_their_parts(small_state, parts):
    net = small_net(parts, small_state)
    with torch.no_grad():
        view, levels = net.view(IMAGES), net.features(IMAGES)
        cam = net.fc8(levels['high'])
        assert view.size == (24, 32) and view.cam.shape == (2, 5, 6, 8)
        assert torch.equal(view.cam, cam)
        assert (view.features is None) == (PROJECTION not in parts)
        if PROJECTION in parts:
            assert view.features.shape == (2, 128, 6, 8)
            assert torch.equal(view.features, F.relu(net.fc_proj(levels['high'])))
        assert (view.revised is None) == (PCM not in parts)
        if PCM in parts:
            read = [resize(IMAGES, (6, 8)), F.relu(net.f8_3(levels['low'])), F.relu(net.f8_4(levels['middle']))]
            spread = winner_take_all(peak_norm(cam)[:, 1:])
            torch.testing.assert_close(view.revised, revise(spread, net.f9(torch.cat(read, 1))))
            assert view.revised.shape == (2, 5, 6, 8)


@pytest.mark.parametrize('wanted', PARTS)
@pytest.mark.parametrize('parts', PARTS)
def test_a_view_holds_what_is_wanted_and_there(small_state, parts, wanted):
    whole, net = small_net((PCM, PROJECTION), small_state), small_net(parts, small_state)
    with torch.no_grad():
        every, view = whole.view(IMAGES), net.view(IMAGES, wanted)
    assert torch.equal(view.cam, every.cam)
    for part, ours, expected in ((PCM, view.revised, every.revised), (PROJECTION, view.features, every.features)):
        assert torch.equal(ours, expected) if part in parts and part in wanted else ours is None, part


@pytest.mark.parametrize('parts', PARTS)
def test_cams_and_class_logits_are_those_of_the_view(small_state, parts):
    net = small_net(parts, small_state)
    with torch.no_grad():
        view = net.view(IMAGES)
        assert torch.equal(net.cams(IMAGES, revised=False), view.cam)
        torch.testing.assert_close(net.class_logits(IMAGES), view.cam.mean((2, 3))[:, 1:])
        if PCM in parts:
            assert torch.equal(net.cams(IMAGES), view.revised)
        else:
            with pytest.raises(ValueError, match='no PCM'):
                net.cams(IMAGES)


def test_dropout_before_the_heads_is_a_choice(small_state):
    with_dropout, without = SmallNet(()).train(), SmallNet((), dropout=0).train()
    for net in (with_dropout, without):
        net.load_state_dict({key: small_state[key] for key in net.state_dict()})
    expected = small_net((), small_state).view(IMAGES).cam
    torch.manual_seed(0)
    assert torch.equal(without.view(IMAGES).cam, expected)
    assert not torch.equal(with_dropout.view(IMAGES).cam, expected)


# ---------------------------------------------------------------- training

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


def test_revised_cams_train_the_pcm_alone_and_all_else_but_the_frozen_layers_is_trained(tiny):
    tiny.train()
    view = tiny.view(torch.randn(2, 3, 48, 48))
    view.revised.square().sum().backward(retain_graph=True)
    assert {layer(key) for key, p in tiny.named_parameters() if p.grad is not None} == set(PCM_LAYERS)
    (view.cam.square().sum() + view.features.square().sum()).backward()
    trained = {key for key, p in tiny.named_parameters() if p.grad is not None}
    assert trained == {key for key, p in tiny.named_parameters() if 'bn' not in key and layer(key) not in FROZEN}
    assert all(p.grad.abs().sum() > 0 for p in tiny.parameters() if p.grad is not None)


def test_class_logits_are_the_means_of_the_foreground_cams(tiny):
    x = torch.randn(2, 3, 41, 56)
    with torch.no_grad():
        torch.testing.assert_close(tiny.eval().class_logits(x), tiny.view(x).cam.mean((2, 3))[:, 1:])


def test_mixed_precision_leaves_cam_and_revised_cam_in_float32(tiny):
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        reference = tiny.eval().view(x).revised
        with torch.autocast('cpu', torch.bfloat16):
            view, raw = tiny.view(x), tiny.cams(x, revised=False)
    assert raw.dtype == view.features.dtype == torch.bfloat16  # so the convolutions were
    assert view.cam.dtype == view.revised.dtype == torch.float32
    assert torch.equal(view.cam, raw.float())
    assert (view.revised - reference).abs().mean() < 0.05 * reference.abs().mean()


class Biased(FrozenResNet38):
    """A network with biases and BatchNorm on both sides of the line between pretrained and new."""
    from_scratch = ('head',)

    def __init__(self):
        nn.Module.__init__(self)
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.fixed = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.head = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Linear(5, 2))


def test_the_optimiser_has_four_groups_with_their_rates_and_decays():
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
    new = {id(p) for key, p in tiny.named_parameters() if layer(key) in ('fc8', 'fc_proj', *PCM_LAYERS)}
    assert {id(p) for p in groups[1]['params']} == new


# ---------------------------------------------------------------- width and memory layout

@pytest.mark.parametrize('width', [1 / 16, 1 / 8, 1 / 2])
def test_width_scales_every_channel_count_but_colours_classes_and_contrast_features(width):
    with torch.device('meta'):
        full, net = Net(VOC.num_classes).state_dict(), Net(VOC.num_classes, width).state_dict()
    assert width_of(net) == width and weights.width_of_weights(net) == width
    fixed = {('conv1a.weight', 1), ('fc8.weight', 0), ('fc_proj.weight', 0)}
    for key, value in full.items():
        for axis, channels in enumerate(value.shape[:2]):
            colours = 3 if (key, axis) == ('f9.weight', 1) else 0  # the PCM reads the image itself too
            expected = channels if (key, axis) in fixed else (channels - colours) * width + colours
            assert net[key].shape[axis] == expected, key


def test_the_net_is_built_at_the_width_of_its_weights(tiny):
    other = weights.build_net('network.resnet38_contrast', tiny.state_dict(), 'cams', num_classes=5)
    assert other.width == 1 / 16 and other.fc8.out_channels == 5


def test_inference_on_a_cpu_uses_mkldnn_layout_and_training_does_not(tiny):
    x = torch.randn(2, 3, 40, 48)
    net = tiny.eval()
    with torch.inference_mode():
        assert to_mkldnn(x, net).is_mkldnn == torch.backends.mkldnn.is_available()
        assert all(not level.is_mkldnn for level in net.features(x).values())
        in_blocks = net.view(x)
        with torch.autocast('cpu', torch.bfloat16):
            assert not to_mkldnn(x, net).is_mkldnn
        assert not to_mkldnn(x.double(), net).is_mkldnn
        assert not to_mkldnn(x, net.train()).is_mkldnn
    net.eval()
    assert not to_mkldnn(x, net).is_mkldnn  # gradients
    for ours, usual in zip(in_blocks[:3], net.view(x)[:3]):
        torch.testing.assert_close(ours, usual, rtol=1e-5, atol=1e-5 * usual.abs().max().item())

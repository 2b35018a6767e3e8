"""tool/affinity.py and network/resnet38_aff.py: pairs, labels, loss and forward pass of AffinityNet."""
import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN, filled, golden

from network.resnet38_aff import Net
from reference import affinity_labels as published
from tool import affinity, pairs
from tool.metrics import IGNORE
from voc12.classes import VOC


def plain_pairs(height, width, radius):
    """The pairs of METHOD 1.5, cell by cell: list over offsets of lists of ((y, x), (y2, x2))."""
    reach = radius - 1
    offsets = [(0, dx) for dx in range(1, radius)]
    offsets += [(dy, dx) for dy in range(1, radius) for dx in range(-reach, radius) if dx * dx + dy * dy < radius ** 2]
    firsts = [(y, x) for y in range(height - reach) for x in range(reach, width - reach)]
    return [[((y, x), (y + dy, x + dx)) for y, x in firsts] for dy, dx in offsets]


@pytest.mark.parametrize('size, radius, offsets', [((56, 56), 5, 34), ((11, 30), 5, 34), ((10, 30), 4, 22),
                                                   ((15, 7), 3, 12), ((5, 5), 2, 4), ((4, 9), 1, 0), ((2, 2), 0, 0)])
def test_pairs_of_a_map_of_any_size_are_those_of_the_method(size, radius, offsets):
    assert pairs.pair_radius(*size) == radius
    assert len(pairs.pair_offsets(radius)) == offsets
    place = np.arange(size[0] * size[1]).reshape(size)
    first, seconds = pairs.pair_views(place)
    assert len(seconds) == offsets
    if offsets:
        for expected, second in zip(plain_pairs(*size, radius), seconds, strict=True):
            assert [(place[a], place[b]) for a, b in expected] == list(zip(first.ravel(), second.ravel()))


def test_kinds_of_pairs_are_the_published_ones():
    case = golden('affinity_labels.npz')
    ours = affinity.pair_labels(torch.from_numpy(case['label'])[None], IGNORE)
    for name, alike in zip(('bg', 'fg', 'neg'), ours):
        np.testing.assert_array_equal(alike[0].numpy(), case[name] > 0)
    for name, alike in zip(('bg', 'fg', 'neg'), published.pair_labels(case['label'])):
        np.testing.assert_array_equal(alike, case[name])


def test_a_cell_is_a_class_where_low_sees_it_and_background_where_high_does():
    """Six cells in a row: low and high alpha's labels, and what becomes of them. The last one has no scores."""
    low, high = [0, 0, 3, 7, 3, 0], [0, 7, 0, 7, 3, 0]
    expected = [0, IGNORE, 0, 7, 3, IGNORE]
    classes = np.array([0, 3, 7])
    maps = [np.kron(0.8 * (classes[:, None, None] == [labels]), np.ones((8, 8))).astype(np.float16)
            for labels in (low, high)]
    for scores in maps:
        scores[:, :, -8:] = 0
    ours = affinity.cell_labels((classes, maps[0]), (classes, maps[1]), IGNORE)
    assert ours.tolist() == [expected]


def test_cell_labels_are_the_published_ones():
    rng = np.random.default_rng(0)
    classes = np.array([0, 4, 9, 15])
    low, high = rng.dirichlet(np.ones(4) / 2, (2, 6, 7)).transpose(0, 3, 1, 2)
    low, high = (np.kron(maps, np.ones((8, 8))) * rng.uniform(0.6, 1, (48, 56)) for maps in (low, high))
    low[:, 40:], high[:, 40:] = 0, 0
    full = np.zeros((2, VOC.num_classes, 48, 56))
    full[0, classes], full[1, classes] = low, high
    ours = affinity.cell_labels((classes, low), (classes, high), IGNORE)
    np.testing.assert_array_equal(ours, published.cell_labels(*full))
    assert {0, IGNORE} < set(ours.ravel().tolist())


def test_terms_are_the_means_over_their_pairs():
    rng = np.random.default_rng(0)
    aff = rng.random((2, 34, 9))
    kind = rng.integers(0, 4, aff.shape)  # 3: no valid pair
    terms = affinity.affinity_loss(torch.from_numpy(aff), *(torch.from_numpy(kind == k) for k in range(3)))
    assert terms['loss_bg'].item() == pytest.approx(-np.log(aff[kind == 0] + 1e-5).mean(), rel=1e-5)
    assert terms['loss_fg'].item() == pytest.approx(-np.log(aff[kind == 1] + 1e-5).mean(), rel=1e-5)
    assert terms['loss_neg'].item() == pytest.approx(-np.log(1 + 1e-5 - aff[kind == 2]).mean(), rel=1e-5)
    for name, weight in {'loss_bg': 0.25, 'loss_fg': 0.25, 'loss_neg': 0.5}.items():
        assert affinity.WEIGHTS[name] == weight, name


def test_loss_without_any_pair_is_zero_and_has_a_gradient():
    aff = torch.full((1, 34, 4), 0.5, requires_grad=True)
    none = torch.zeros(aff.shape, dtype=torch.bool)
    total = sum(affinity.affinity_loss(aff, none, none, none).values())
    total.backward()
    assert total.item() == 0 and aff.grad.abs().max() == 0


def test_affinities_and_their_gradient_are_those_of_plain_autograd():
    torch.manual_seed(0)
    features = torch.randn(2, 6, 13, 12, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 34, 9 * 4, dtype=torch.float64)
    ours, = torch.autograd.grad((affinity.affinities(features) * weights).sum(), features)
    first, seconds = pairs.pair_views(features)
    plain = torch.stack([torch.exp(-(first - second).abs().mean(1)) for second in seconds], 1).flatten(2)
    torch.testing.assert_close(affinity.affinities(features), plain)
    torch.testing.assert_close(ours, torch.autograd.grad((plain * weights).sum(), features)[0])


def test_identical_features_have_affinity_one_and_a_small_map_has_none():
    affinities = affinity.affinities(torch.ones(1, 8, 12, 13))
    assert affinities.shape == (1, 34, 8 * 5) and (affinities == 1).all()
    assert affinity.affinities(torch.rand(2, 8, 3, 3)).shape == (2, 0, 9)


def test_keys_and_shapes_are_the_published_ones():
    manifest = json.loads((GOLDEN / 'keys' / 'manifest_resnet38_aff.json').read_text())
    with torch.device('meta'):
        ours = {key: list(value.shape) for key, value in Net().state_dict().items()}
    assert ours == manifest


@pytest.mark.wide
def test_affinities_are_the_published_ones():
    case = golden('resnet38_aff_120x160.npz')
    with torch.inference_mode():
        aff = filled(Net)(torch.from_numpy(case['x'])).numpy()
    assert aff.shape == case['aff'].shape
    np.testing.assert_allclose(aff, case['aff'], rtol=1e-4, atol=1e-6)


def test_gradients_reach_all_but_the_frozen_layers():
    torch.manual_seed(0)
    net = Net(width=1 / 16).train()
    label = torch.randint(0, VOC.num_classes, (2, 12, 12))
    terms = affinity.affinity_loss(net(torch.randn(2, 3, 96, 96)), *affinity.pair_labels(label, IGNORE))
    sum(affinity.WEIGHTS[name] * term for name, term in terms.items()).backward()
    for name, parameter in net.named_parameters():
        frozen = name.split('.')[0] in net.not_trained or 'bn' in name
        assert (parameter.grad is None) == frozen, name
    assert all(getattr(net, name).weight.grad.abs().sum() > 0 for name in net.from_scratch)

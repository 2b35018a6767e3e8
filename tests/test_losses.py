"""tool/seam.py and tool/contrast.py: published terms and gradients, a rendering in plain loops, no wait for the device.
"""
import collections
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import golden, run_flags, take_ties_as_published
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.training import Run
from reference import contrast_loss as published
from tool import contrast, seam
from tool.cam import View, resize
from voc12.classes import VOC

VIEW1, VIEW2 = (448, 448), (128, 128)  # as published
SIZES = (48, 36), (20, 16)  # of the views in tests with random maps
CONTRAST_WEIGHT = 0.1
SEAM_TERMS = ('cls', 'rvmin', 'er', 'ecr')


def target_of(label):
    """The seam.Target of image-level labels."""
    return seam.Target(label, seam.present_channels(label))


def all_terms(view1, view2, label, **options):
    """Every named term of a step of SEAM with contrast. options: of contrast.losses."""
    return seam.losses(view1, view2, target_of(label)) | contrast.losses(view1, view2, label, **options)


def leaves(*views):
    """The tensors of the views, in the order cam, revised, features."""
    return [tensor for view in views for tensor in view[:3]]


# ---------------------------------------------------------------- the published terms

@pytest.fixture(scope='module')
def case():
    return golden('contrast_losses.npz')


def published_views(case):
    """The two views of the golden file; their tensors collect gradients."""
    return [View(*(torch.from_numpy(case[f'{name}{view}']).float().requires_grad_()
                   for name in ('cam', 'cam_rv', 'f_proj')), size)
            for view, size in ((1, VIEW1), (2, VIEW2))]


@pytest.fixture
def published_ties(monkeypatch):
    """Prototypes average the pixels that they averaged when the golden file was measured."""
    take_ties_as_published(monkeypatch, contrast)


@pytest.mark.usefixtures('published_ties')
def test_terms_are_the_published_ones(case):
    terms = all_terms(*published_views(case), torch.from_numpy(case['label']))
    terms = {name: value.item() for name, value in terms.items()}
    assert terms['cls'] == pytest.approx((case['loss_cls1'] + case['loss_cls2']) / 2, rel=1e-4)
    assert terms['rvmin'] == pytest.approx((case['loss_rvmin1'] + case['loss_rvmin2']) / 2, rel=1e-4)
    assert terms['cls'] + terms['rvmin'] == pytest.approx(case['loss_cls'], rel=1e-4)
    assert terms['er'] == pytest.approx(case['loss_er'], rel=1e-4)
    assert terms['ecr'] == pytest.approx(case['loss_ecr'], rel=1e-4)
    assert CONTRAST_WEIGHT * terms['cross_prototype'] == pytest.approx(case['loss_cross_nce'], rel=1e-3)
    assert CONTRAST_WEIGHT * terms['cross_cam'] == pytest.approx(case['loss_cross_nce2'], rel=1e-3)


def test_taking_the_first_of_the_ties_moves_the_contrast_by_less_than_a_hundredth(case):
    terms = contrast.losses(*published_views(case), torch.from_numpy(case['label']),
                            wanted=('cross_prototype', 'cross_cam'))
    for name, key in (('cross_prototype', 'loss_cross_nce'), ('cross_cam', 'loss_cross_nce2')):
        ours = CONTRAST_WEIGHT * terms[name].item()
        assert ours != pytest.approx(case[key], rel=1e-3) and ours == pytest.approx(case[key], rel=1e-2)


@pytest.mark.usefixtures('published_ties')
def test_gradients_are_the_published_ones(case):
    views = published_views(case)
    terms = all_terms(*views, torch.from_numpy(case['label']), wanted=('cross_prototype', 'cross_cam'))
    weights = {'cls': 1, 'rvmin': 1, 'er': 1, 'ecr': 1, 'cross_prototype': CONTRAST_WEIGHT,
               'cross_cam': CONTRAST_WEIGHT}
    sum(weight * terms[name] for name, weight in weights.items()).backward()
    for number, view, stride in ((1, views[0], 4), (2, views[1], 1)):
        for name, tensor in zip(('cam', 'cam_rv', 'f_proj'), leaves(view)):
            expected = case[f'grad_{name}{number}']
            ours = tensor.grad[:, :, ::stride, ::stride].numpy()
            tolerance = 1e-3 if name == 'f_proj' else 1e-4
            assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max(), (name, number)


@pytest.mark.usefixtures('published_ties')
def test_mean_and_spread_of_the_intra_view_term_are_the_published_ones(case):
    label = torch.from_numpy(case['label'])
    torch.manual_seed(0)
    with torch.no_grad():
        # View 1 is brought to view 2's size once, not in every draw.
        size = case['cam2'].shape[2:]
        views = [view._replace(revised=resize(view.revised, size), features=resize(view.features, size))
                 for view in published_views(case)]
        draws = [CONTRAST_WEIGHT * contrast.losses(*views, label, wanted=('intra',))['intra'].item()
                 for _ in range(200)]
    published_error, our_error = case['intra_std'] / case['intra_draws'] ** 0.5, np.std(draws) / len(draws) ** 0.5
    assert abs(np.mean(draws) - case['intra_mean']) <= 4 * np.hypot(published_error, our_error)
    assert np.std(draws) == pytest.approx(case['intra_std'], rel=0.5)  # as random as the published sampling


# ---------------------------------------------------------------- against plain loops

def labels_with(*counts, num_foreground=VOC.num_foreground):
    """Image-level labels with so many classes present in each image."""
    generator = torch.Generator().manual_seed(sum(counts))
    label = torch.zeros(len(counts), num_foreground)
    for row, count in zip(label, counts):
        row[torch.randperm(num_foreground, generator=generator)[:count]] = 1.
    return label


def random_views(label, sides=((12, 9), (5, 4)), sizes=SIZES, channels=8):
    """Two random views, their maps of these sides; the tensors are leaves that collect gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(label), label.shape[1] + 1)
    return [View(torch.randn(*shape, *side, generator=generator).requires_grad_(),
                 torch.randn(*shape, *side, generator=generator).requires_grad_(),
                 torch.randn(len(label), channels, *side, generator=generator).relu().requires_grad_(), size)
            for side, size in zip(sides, sizes)]


def plain_terms(view1, view2, label):
    """The terms of reference/contrast_loss.py by our names, the contrast's without their weight."""
    full = [(resize(view.cam, view.size), resize(view.revised, view.size), view.features, view.revised)
            for view in (view1, view2)]
    terms = published.losses(*full, label, small=view2.size)
    for name in contrast.TERMS:
        terms[name] = terms[name] / CONTRAST_WEIGHT
    for name in ('cls', 'rvmin'):
        terms[name] = (terms.pop(f'{name}1') + terms.pop(f'{name}2')) / 2
    return terms


CASES = {'one class each': (1, 1, 1), 'as in VOC': (1, 3, 2, 1), 'more channels than the top 20% holds': (7, 5, 1),
         'all classes': (VOC.num_foreground, 2), 'an image without a class': (0, 2),
         'batch of one': (2,), 'batch of one, all classes': (VOC.num_foreground,)}


def gradients(value, views):
    """The gradients of a term with respect to the tensors of both views; 0 where it does not depend on one."""
    found = torch.autograd.grad(value, leaves(*views), retain_graph=True, allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize('counts', CASES.values(), ids=CASES.keys())
def test_terms_and_gradients_are_those_of_the_plain_loops(counts):
    label = labels_with(*counts)
    ours, plain = random_views(label), random_views(label)
    terms, expected = all_terms(*ours, label), plain_terms(*plain, label)
    assert terms['intra'].shape == expected['intra'].shape  # its value is random: see below
    for name in expected.keys() - {'intra'}:
        assert terms[name].shape == ()
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-5, atol=1e-6)
        for a, b in zip(gradients(terms[name], ours), gradients(expected[name], plain), strict=True):
            assert (a - b).abs().max() <= 1e-5 * max(b.abs().max(), 1e-6), name


def prototypes_in_loops(scores, features, k):
    """One class and one pixel at a time: the k best, of equal ones the first of the batch (METHOD 3.4, 9.7)."""
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2)
    found = []
    for values in scores.transpose(0, 1).flatten(1).tolist():
        best = sorted(range(len(values)), key=lambda pixel: (-values[pixel], pixel))[:k]
        mean = sum(values[pixel] * pixels[pixel] for pixel in best) / sum(values[pixel] for pixel in best)
        found.append(mean / mean.norm())
    return torch.stack(found)


@pytest.mark.parametrize('images', [1, 2, 8, 13])
def test_of_equal_scores_a_prototype_takes_the_first(images):
    torch.manual_seed(0)
    # Scores of three steps, so that most are equal; the background's all are, and those of a class that is nowhere.
    scores = torch.randint(0, 3, (images, 5, 16, 16)) / 2
    scores[:, 0], scores[:, 3] = 0.2, -1.
    features = torch.rand(images, 7, 16, 16)
    torch.testing.assert_close(contrast.prototypes(scores, features, 32), prototypes_in_loops(scores, features, 32))


def test_classes_that_no_pixel_shows_have_the_backgrounds_prototype():
    torch.manual_seed(0)
    label, features = labels_with(2, 1), torch.rand(2, 7, 16, 16)
    revised = torch.zeros(2, 21, 16, 16)
    image, foreground = label.nonzero().unbind(1)
    revised[image, foreground + 1] = torch.rand(len(image), 16, 16)
    scores, labels = contrast.pseudo_labels(revised, label, 0.2)
    found = contrast.prototypes(scores, features, 32)
    nowhere = [c for c in range(1, 21) if not revised[:, c].any()]
    torch.testing.assert_close(found[nowhere], found[:1].expand(len(nowhere), -1))
    to_prototypes = contrast.unit_pixels(features) @ found.T / 0.1
    background = labels.flatten() == 0
    loss = F.cross_entropy(to_prototypes[background], labels.flatten()[background])
    assert background.any() and loss >= math.log(len(nowhere) + 1)


def test_images_that_score_no_higher_leave_a_prototype_as_it_is():
    torch.manual_seed(0)
    scores = torch.randint(0, 3, (8, 5, 16, 16)) / 2
    scores[:, 0] = 0.2
    scores[2:, 1:] = 0.
    features = torch.rand(8, 7, 16, 16)
    few, many = (contrast.prototypes(scores[:images], features[:images], 32) for images in (2, 8))
    assert torch.equal(few, many)


def test_only_the_largest_differences_count_in_the_cross_regularisation():
    # Seven classes and the background are 8 of 21 channels, more than the 20% that count: some entries are left out.
    torch.manual_seed(0)
    maps, revised = torch.rand(1, 8, 20, 16), torch.rand(1, 8, 20, 16)
    difference = (published.max_onehot(published.background_first(maps)) - revised).abs().flatten()
    top = difference.sort(descending=True).values[:int(VOC.num_classes * 20 * 16 * 0.2)]
    assert len(top) < len(difference)
    target = seam.ecr_target(maps[:, 1:], None)
    torch.testing.assert_close(seam.cross_regularisation(target, revised, VOC.num_classes), top.mean())


def test_the_contrast_gives_features_a_gradient_and_maps_none():
    label = labels_with(2, 1)
    views = random_views(label)
    sum(contrast.losses(*views, label).values()).backward()
    for view in views:
        assert view.revised.grad is None and view.cam.grad is None
        assert view.features.grad.abs().sum() > 0


@pytest.mark.parametrize('wanted', [(), ('intra',), ('cross_cam', 'cross_prototype')])
def test_the_contrast_gives_only_the_terms_that_are_wanted(wanted):
    label = labels_with(1)
    assert contrast.losses(*random_views(label), label, wanted=wanted).keys() == set(wanted)


@pytest.mark.parametrize('change', [{'temperature': 0.5}, {'fraction': 0.5}, {'bg_threshold': 0.6}])
def test_every_setting_of_the_contrast_changes_it(change):
    label = labels_with(2, 1)
    views = random_views(label)
    base, other = (contrast.losses(*views, label, wanted=('cross_prototype',), **options)['cross_prototype']
                   for options in ({}, change))
    assert abs(other - base) > 1e-3


# ---------------------------------------------------------------- the intra-view term: its sampling is random

def pixel_losses(similarity, labels):
    """−log of each pixel's fraction among its own prototype and the 4th to 13th most similar (P,), pixel by pixel."""
    losses = []
    for row, label in zip(similarity, labels.tolist()):
        ranked = sorted(range(len(row)), key=lambda c: -row[c].item())[3:13]
        own = row[label].exp()
        losses.append(-torch.log(own / (own + sum(row[c].exp() for c in ranked))))
    return torch.stack(losses)


def semi_hard(own, members):
    """Of the int(0.6 n) members least similar to their prototype, the last floor(n/2)."""
    band = sorted(members, key=lambda p: own[p].item())[:int(0.6 * len(members))]
    return band[len(band) - len(members) // 2:]


def members_of(labels):
    """{class: list of its pixels} of the classes seen."""
    found = collections.defaultdict(list)
    for pixel, label in enumerate(labels.tolist()):
        found[label].append(pixel)
    return found


LAYOUTS = {'many classes': [0] * 11 + [1] * 2 + [5] * 3 + [20] * 10, 'a class of one pixel': [4] + [9] * 7,
           'only one class': [3] * 9, 'only classes of one pixel': [2, 7, 20], 'pairs': [6, 6, 8, 8],
           'one pixel': [13]}


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_intra_view_term_samples_half_a_class_at_random_and_half_of_its_hard_pixels(layout):
    torch.manual_seed(0)
    labels = torch.tensor(layout)[torch.randperm(len(layout))]
    similarity = torch.randn(len(labels), VOC.num_classes).requires_grad_()
    plain = pixel_losses(similarity, labels)
    pixels = torch.arange(len(labels))
    alone = torch.autograd.grad(plain.sum(), similarity)[0][pixels, labels]
    own, groups = similarity.detach()[pixels, labels], members_of(labels)
    chosen_at_random = torch.zeros(len(labels))
    draws = 300
    for _ in range(draws):
        loss = contrast.intra_view(similarity, labels, *contrast.sample(similarity, labels))
        weight = torch.autograd.grad(loss, similarity)[0][pixels, labels] / alone  # of each pixel's loss
        torch.testing.assert_close(loss, (weight * plain).sum(), rtol=1e-4, atol=1e-6)
        for members in groups.values():
            half = len(members) // 2
            times = weight[members] * len(groups) * 2 * half  # how often each was chosen: 0, 1 or 2 times
            expected = torch.tensor([float(p in semi_hard(own, members)) for p in members])
            at_random = times - expected if half else weight[members]
            torch.testing.assert_close(at_random, at_random.round(), atol=1e-3, rtol=0)
            assert set(at_random.round().tolist()) <= {0., 1.} and round(at_random.sum().item()) == half
            chosen_at_random[members] += at_random.round()
    for members in groups.values():
        fraction = len(members) // 2 / len(members)
        deviation = (fraction * (1 - fraction) / draws) ** 0.5
        assert (chosen_at_random[members] / draws - fraction).abs().max() <= 4 * deviation


def test_mean_of_the_intra_view_term_is_that_of_the_plain_loops():
    label = labels_with(3, 1)
    views = random_views(label, sides=((6, 6), (6, 6)))
    with torch.no_grad():
        torch.manual_seed(0)
        random.seed(0)  # of the plain loops
        ours = [contrast.losses(*views, label, wanted=('intra',))['intra'].item() for _ in range(200)]
        with_bg = torch.cat([torch.ones(len(label), 1), label], 1)[:, :, None, None]
        compared = [(view.features, view.revised) for view in views]
        plain = [published.contrast_losses(*compared, with_bg)['intra'].item() / CONTRAST_WEIGHT for _ in range(40)]
    standard_error = np.hypot(np.std(ours) / len(ours) ** 0.5, np.std(plain) / len(plain) ** 0.5)
    assert abs(np.mean(ours) - np.mean(plain)) <= 4 * standard_error


# ---------------------------------------------------------------- tensor code, no wait for the device

class Operations(TorchDispatchMode):
    """Counts the operations that reach the device. Those that make the host wait for values are errors."""
    synchronising = ('_local_scalar_dense', 'item', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique_dim',
                     '_unique2', 'bincount', 'repeat_interleave')

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix('aten::')
        assert name not in self.synchronising, f'{name} waits for the device'
        if name in ('index', 'index_put', 'index_put_'):
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), 'a boolean index waits for the device'
        self.count[name] += 1
        return func(*args, **(kwargs or {}))


def forward_and_backward(label, sides, sizes):
    """The operations of a step's losses, by name."""
    view1, view2 = random_views(label, sides, sizes)
    target = target_of(label)  # from the CPU's labels, before they go to the device
    with Operations() as operations:
        terms = seam.losses(view1, view2, target) | contrast.losses(view1, view2, label)
        sum(terms.values()).backward()
    return operations.count


def test_work_is_the_same_for_any_number_of_pixels_classes_and_images():
    few = forward_and_backward(labels_with(1, 1, num_foreground=12), ((6, 6), (3, 3)), ((20, 20), (10, 10)))
    more_labels = labels_with(1, 2, 3, 2, 1, 3, num_foreground=40)
    many = forward_and_backward(more_labels, ((21, 18), (12, 10)), ((90, 70), (33, 30)))
    assert few == many
    assert few.total() < 1000


def test_losses_never_look_at_values():
    # Tensors on the meta device have none: whatever asked for one, a boolean index too, would raise.
    label = labels_with(2, 1)
    target = target_of(label).to('meta')
    view1, view2 = (View(*(tensor.detach().to('meta').requires_grad_() for tensor in leaves(view)), view.size)
                    for view in random_views(label))
    terms = seam.losses(view1, view2, target) | contrast.losses(view1, view2, target.label)
    sum(terms.values()).backward()
    for name in (*SEAM_TERMS, *contrast.TERMS):
        assert terms[name].is_meta and terms[name].shape == (), name


@pytest.mark.parametrize('momentum', [5e-4, 0.9])
def test_training_steps_between_readings_never_wait(tmp_path, momentum):
    net = nn.Conv2d(1, 2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    args = run_flags(tmp_path, '--log_every', 4, '--save_every', 0)
    run = Run(tmp_path / 'run', net, optimizer, device=torch.device('cpu'), args=args, before={}, images=12,
              batch_size=2, epochs=1)
    images = torch.randn(12, 1, 3, 3)
    logged = []
    for batch in run.batches(images):
        if run.step in (3, 5):  # the readings: every fourth step, and the end of the epoch
            run.update({'a': net(batch).square().mean()}, {'a': 2.})
        else:
            with Operations() as operations:
                run.update({'a': net(batch).square().mean()}, {'a': 2.})
            assert operations.count
        logged.append(len((tmp_path / 'run.losses.jsonl').read_text().splitlines()))
    assert logged == [0, 0, 0, 4, 4, 6]
    run.finish()

"""EPS: networks and saliency loss against the published ones, its terms, its data, and its commands from end to end."""
import dataclasses
import json
import math
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, golden, run_main
from PIL import Image
from torchvision.transforms import v2

from data import transforms
from data.cams import read_cams
from data.classification import SalientImages
from data.images import devkit_photos, image_size
from data.lists import read_list
from data.masks import read_mask
from engine.crf_workers import SeedSettings, write_seeds
from engine.errors import UserError
from engine.loss_log import read_loss_log
from engine.training_pictures import cam_figure
from golden.fill import fill_state_dict
from network import resnet38_eps, resnet38_eps_contrast, weights
from tool import contrast, eps, seam
from tool.cam import EPSILON, View, resize
from tool.recipes import RECIPES
from voc12.classes import VOC

CHANNELS = VOC.num_classes
PLAIN_TERMS = ('cls', 'saliency')
TWO_VIEWS = ('--view2_size', 32)
PCM_TERMS = ('saliency_rv', 'rvmin', 'er', 'ecr')


def background_first(maps):
    """Published EPS order (background last) → ours."""
    return torch.roll(torch.from_numpy(maps), 1, 1)


def assert_close(ours, published, tolerance):
    """Largest difference relative to the largest value."""
    assert (ours - published).abs().max() <= tolerance * published.abs().max()


# ---------------------------------------------------------------- networks

@pytest.fixture(scope='module')
def published_state():
    """EPS + PPC as published, full width. Its values depend on the keys alone, so plain EPS is a part of it."""
    shapes = json.loads((GOLDEN / 'keys' / 'manifest_eps_resnet38_contrast.json').read_text())
    return fill_state_dict({key: torch.zeros(shape, dtype=torch.long if key.endswith('tracked') else torch.float)
                            for key, shape in shapes.items()})


def network(module, state):
    """The module's Net with these weights, to infer with."""
    with torch.device('meta'):  # shapes only: drawing initial values for 100 M weights takes seconds
        net = module.Net(CHANNELS)
    net.load_state_dict(state, assign=True)
    return net.eval()


@pytest.mark.wide
@torch.no_grad()
def test_maps_of_the_network_with_contrast_are_the_published_ones(published_state):
    case = golden('eps_resnet38_contrast_64x96.npz')
    net = network(resnet38_eps_contrast, weights.from_published_eps(published_state))
    view = net.view(torch.from_numpy(case['x']))
    assert_close(view.cam, background_first(case['cam']), 1e-5)
    assert_close(view.revised, background_first(case['cam_rv']), 1e-5)
    assert_close(view.features, torch.from_numpy(case['feat']), 1e-5)
    assert_close(view.cam.mean((2, 3)), background_first(case['pred']), 1e-5)
    assert_close(view.revised.mean((2, 3)), background_first(case['pred_rv']), 1e-5)


@pytest.mark.wide
@torch.no_grad()
def test_maps_of_the_plain_network_are_the_published_ones(published_state):
    case = golden('eps_resnet38_eps_64x96.npz')
    keys = json.loads((GOLDEN / 'keys' / 'manifest_eps_resnet38_eps.json').read_text())
    net = network(resnet38_eps, weights.from_published_eps({key: published_state[key] for key in keys}))
    x = torch.from_numpy(case['x'])
    logits, cam = net(x)
    assert_close(cam, background_first(case['cam']), 1e-5)
    assert_close(logits, background_first(case['pred']), 1e-5)
    assert torch.equal(net.class_logits(x), logits[:, 1:])
    view = net.view(x)
    assert torch.equal(view.cam, cam) and view.revised is None and view.features is None


def test_the_heads_see_all_channels_in_training_too():
    """No dropout between conv6 and the CAM head, as in the published EPS networks."""
    torch.manual_seed(0)
    net = resnet38_eps_contrast.Net(CHANNELS, 1 / 16).train()
    seen = {}
    net.bn7.register_forward_hook(lambda _, inputs, out: seen.update(conv6=F.relu(out)))
    view = net.view(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(view.cam, net.fc8(seen['conv6']))


# ---------------------------------------------------------------- losses

@pytest.fixture(scope='module')
def saliency_case():
    """(cam, saliency, present channels, golden file)."""
    case = golden('eps_saliency_loss.npz')
    present = seam.present_channels(torch.from_numpy(case['label']))
    return background_first(case['cam']), torch.from_numpy(case['saliency']), present, case


def test_saliency_loss_and_its_gradient_are_the_published_ones(saliency_case):
    cam, saliency, present, case = saliency_case
    cam = cam.clone().requires_grad_()
    loss = eps.saliency_loss(cam, saliency, present, tau=0.4, alpha=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(case['loss'].item(), rel=1e-5)
    assert_close(cam.grad, background_first(case['grad']), 1e-5)


def test_explained_maps_are_the_published_ones(saliency_case):
    cam, saliency, present, case = saliency_case
    foreground, background = eps.explained(cam, F.interpolate(saliency, cam.shape[2:], mode='nearest'), present, 0.4)
    assert_close(foreground, torch.from_numpy(case['fg_map']), 1e-5)
    assert_close(1 - background, torch.from_numpy(case['bg_map']), 1e-5)  # published: inverted


@pytest.fixture
def ecr_case():
    """(view 1, view 2, target, golden file) of EPS + PPC; the maps collect gradients."""
    case = golden('eps_ecr.npz')
    views = [View(*(background_first(case[f'{name}{number}']).requires_grad_() for name in ('cam', 'cam_rv')), None,
                  (8 * side, 8 * side)) for number, side in ((1, 24), (2, 16))]
    label = torch.from_numpy(case['label'])
    return *views, seam.Target(label, seam.present_channels(label), torch.from_numpy(case['saliency'])), case


def test_er_and_ecr_and_their_gradients_are_the_published_ones(ecr_case):
    view1, view2, target, case = ecr_case
    terms = eps.losses(view1, view2, target, tau=0.4, alpha=0.5)
    for name, maps in (('er', {'cam1': view1.cam, 'cam2': view2.cam}),
                       ('ecr', {'cam_rv1': view1.revised, 'cam_rv2': view2.revised})):
        assert terms[name].item() == pytest.approx(case[f'loss_{name}'].item(), rel=1e-5), name
        gradients = torch.autograd.grad(terms[name], maps.values(), retain_graph=True)
        for key, gradient in zip(maps, gradients):
            assert_close(gradient, background_first(case[f'grad_{name}_{key}']), 1e-5)


def test_the_target_of_seam_is_another(ecr_case):
    view1, view2, target, case = ecr_case
    published, seams = (eps.losses(view1, view2, target, 0.4, 0.5, name) for name in ('published', 'seam'))
    assert seams['ecr'].item() == pytest.approx(seam.losses(*map(eps.at_feature_size, (view1, view2)),
                                                            target)['ecr'].item())
    assert abs(seams['ecr'].item() - case['loss_ecr']) > 0.01
    assert all(torch.equal(published[name], seams[name]) for name in published if name != 'ecr')


def test_in_the_published_target_background_and_classes_compete_and_the_first_class_is_spared():
    # Three pixels; the image has the classes 0 and 4. Each channel's values are those of the three pixels.
    present = seam.present_channels(torch.eye(VOC.num_foreground)[[0]] + torch.eye(VOC.num_foreground)[[4]])
    foreground = torch.tensor([[0.1, 0.8, 0.3], [0.2, 0.3, 0.7]]).view(1, 2, 1, 3)
    target = eps.published_ecr_target(foreground, present)[0, :, 0]
    torch.testing.assert_close(target, torch.tensor([[0.8, 0., 0.], [0.1, 0.8, 0.3], [0., 0.3, 0.7]]))
    # Without the first class, a class beats the background or is cleared.
    present = seam.present_channels(torch.eye(VOC.num_foreground)[[3]] + torch.eye(VOC.num_foreground)[[4]])
    target = eps.published_ecr_target(foreground, present)[0, :, 0]
    torch.testing.assert_close(target, torch.tensor([[0.8, 0., 0.], [0., 0.8, 0.], [0., 0., 0.7]]))


def test_saliency_loss_of_view_2_and_its_gradient_are_the_published_ones(ecr_case):
    _, view2, target, case = ecr_case
    loss = eps.saliency_loss(view2.cam, eps.view_saliency(target.saliency, view2), target.present, tau=0.4, alpha=0.5)
    gradient, = torch.autograd.grad(loss, view2.cam)
    assert loss.item() == pytest.approx(case['loss_sal_view2'].item(), rel=1e-5)
    assert_close(gradient, background_first(case['grad_sal_cam2']), 1e-5)
    # Straight to the map, without view 2's size between, it samples elsewhere.
    straight = eps.saliency_loss(view2.cam, target.saliency, target.present, tau=0.4, alpha=0.5)
    assert abs(straight.item() - case['loss_sal_view2']) > 1e-3


def test_tau_and_alpha_change_the_saliency_loss(saliency_case):
    cam, saliency, present, _ = saliency_case
    foreground, _ = eps.explained(cam, F.interpolate(saliency, cam.shape[2:]), present, tau=1.)
    assert not foreground.any()  # no class is salient everywhere
    losses = [eps.saliency_loss(cam, saliency, present, 0.4, alpha).item() for alpha in (0., 0.5, 1.)]
    assert len(set(losses)) == 3


@pytest.fixture(scope='module')
def step():
    """(view 1, view 2, target): maps of 14×14 and 8×8, labels of one and of three classes, saliency."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(2, VOC.num_foreground)
    label[0, 3] = label[1, [0, 7, 19]] = 1
    views = [View(*(torch.randn(2, CHANNELS, side, side, generator=generator) for _ in range(2)), None,
                  (8 * side, 8 * side)) for side in (14, 8)]
    saliency = torch.rand(2, 1, 112, 112, generator=generator)
    return *views, seam.Target(label, seam.present_channels(label), saliency)


def all_channels(view1, view2, label, ecr_target):
    """METHOD 3.2, 3.3 and 8.2 in their own words, on all channels: rvmin, er, ecr of EPS."""
    allowed = torch.cat([torch.ones(len(label), 1), label], 1)[:, :, None, None]
    size = view2.cam.shape[2:]

    def stretched(p):
        p = F.relu(p)
        low, high = p.amin((2, 3), keepdim=True), p.amax((2, 3), keepdim=True)
        return resize(F.relu(p - low - EPSILON) / (high - low + EPSILON), size) * allowed

    def one_hot(a):
        a = a.clone()
        a[:, 0] = 1 - a[:, 1:].amax(1)
        compete = list(range(1, CHANNELS)) if ecr_target == 'seam' else [0, *range(2, CHANNELS)]
        winner = a[:, compete].amax(1, keepdim=True)
        a[:, compete] = torch.where(a[:, compete] < winner, 0., a[:, compete])
        return a

    def rvmin(revised):
        lowest = (revised * allowed)[:, 1:].amax(1).flatten(1)
        return F.relu(lowest.topk(int(0.25 * lowest.shape[1]), largest=False).values).mean()

    (a1, r1), (a2, r2) = ([stretched(maps) for maps in view[:2]] for view in (view1, view2))
    k = int(CHANNELS * size[0] * size[1] * 0.2)
    return {'rvmin': (rvmin(view1.revised) + rvmin(view2.revised)) / 2, 'er': (a1 - a2)[:, 1:].abs().mean(),
            'ecr': sum((one_hot(a) - r).abs().flatten(1).topk(k).values.mean() for a, r in ((a2, r1), (a1, r2)))}


@pytest.mark.parametrize('ecr_target', ['published', 'seam'])
def test_terms_are_those_of_the_method(step, ecr_target):
    view1, view2, target = step
    terms = eps.losses(view1, view2, target, 0.4, 0.5, ecr_target)
    for name, value in all_channels(view1, view2, target.label, ecr_target).items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6, msg=name)
    cls = [F.multilabel_soft_margin_loss(view.cam.mean((2, 3))[:, 1:], target.label) for view in (view1, view2)]
    torch.testing.assert_close(terms['cls'], sum(cls) / 2)
    for name, pair in (('saliency', (view1.cam, view2.cam)), ('saliency_rv', (view1.revised, view2.revised))):
        saliency = target.saliency, resize(target.saliency, view2.size)
        both = [eps.saliency_loss(maps, seen, target.present, 0.4, 0.5) for maps, seen in zip(pair, saliency)]
        torch.testing.assert_close(terms[name], sum(both) / 2)


def test_plain_eps_has_the_terms_that_need_no_revised_cam_of_one_view(step):
    view1, _, target = step
    plain = RECIPES['eps_plain'].loss_terms(view1._replace(revised=None), None, target)
    assert plain.keys() == {*PLAIN_TERMS}
    cls = F.multilabel_soft_margin_loss(view1.cam.mean((2, 3))[:, 1:], target.label)
    torch.testing.assert_close(plain['cls'], cls)
    assert plain['saliency'] == eps.saliency_loss(view1.cam, target.saliency, target.present, 0.4, 0.5)


def test_without_the_terms_that_need_a_pcm_eps_keeps_its_two_views(step):
    view1, view2, target = step
    whole = eps.losses(view1, view2, target, 0.4, 0.5)
    recipe = dataclasses.replace(RECIPES['eps'], weights=dict.fromkeys(PLAIN_TERMS, 1.))
    plain = recipe.loss_terms(*(view._replace(revised=None) for view in (view1, view2)), target)
    assert plain.keys() == {*PLAIN_TERMS}
    for name in PLAIN_TERMS:
        torch.testing.assert_close(plain[name], whole[name])


# ---------------------------------------------------------------- inference

def test_multi_scale_is_the_softmax_summed_over_scales_and_flips():
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(3, 40, 56, generator=generator)
    head = torch.randn(CHANNELS, 3, generator=generator)
    images = [resize(image[None], size)[0] for size in ((24, 32), (40, 56))]

    def cams_of(x):
        return torch.einsum('kc,nchw->nkhw', head, F.avg_pool2d(x, 8))

    got = eps.multi_scale(cams_of, [torch.stack([x, x.flip(2)]) for x in images], torch.tensor([1, 4]), (40, 56))
    total = torch.zeros(2, 40, 56)
    for x in images:
        for flipped in (False, True):
            scores = cams_of((x.flip(2) if flipped else x)[None]).softmax(1)[:, [2, 5]]  # foreground 1, 4
            scores = F.interpolate(scores, (40, 56), mode='bilinear', align_corners=False)[0]
            total += scores.flip(2) if flipped else scores
    torch.testing.assert_close(got, total / (total.amax((1, 2), keepdim=True) + 1e-5))


# ---------------------------------------------------------------- images with saliency

def test_image_and_saliency_move_together():
    """A bright blob on black, equal in both: whatever is drawn, both show it at the same place."""
    y, x = np.mgrid[:60, :90]
    blob = np.uint8(255 * np.exp(-((y - 33) ** 2 + (x - 50) ** 2) / 150))
    augment = transforms.classification_train(64, 100, 140)
    for seed in range(8):
        torch.manual_seed(seed)
        image, saliency = augment(Image.fromarray(blob).convert('RGB'), transforms.Saliency(blob[None]))
        assert image.shape == (3, 64, 64) and saliency.shape == (1, 64, 64) and saliency.dtype == torch.uint8
        bright = transforms.denormalise(image).mean(2).astype(float)
        assert np.corrcoef(bright.ravel(), saliency.numpy().ravel())[0, 1] > 0.99


def test_saliency_keeps_its_values_and_is_zero_outside():
    augment = transforms.classification_train(64, 40, 60)
    white = Image.new('RGB', (90, 60), 'white')
    for seed in range(4):
        torch.manual_seed(seed)
        image, saliency = augment(white, transforms.Saliency(torch.full((1, 60, 90), 200, dtype=torch.uint8)))
        inside = image.abs().sum(0) > 1e-5
        assert saliency[0][inside].unique().tolist() == [200]  # ColorJitter would have changed it
        assert inside.any() and not saliency[0][~inside].any()


def sides(width, height, target):
    """(H, W) to which RandomLongSide resizes a photo if it draws `target` as the long side."""
    photo = torch.empty(3, height, width, device='meta')
    return tuple(transforms.RandomLongSide(target, target).make_params([photo])['size'])


def test_the_short_side_is_multiplied_before_it_is_divided():
    targets = range(448, 769)
    exact = [(math.floor(Fraction(375 * target, 500)), Fraction(375 * target, 500) % 1) for target in targets]
    halves = [index for index, (_, rest) in enumerate(exact) if rest == Fraction(1, 2)]
    assert len(halves) == 80
    for index in halves:
        whole = exact[index][0]
        assert sides(500, 375, targets[index]) == (whole + whole % 2, targets[index])  # a half goes to the even side
    assert [sides(375, 500, target)[1] for target in targets] == [sides(500, 375, target)[0] for target in targets]
    # A ratio computed first sends some of the halves to the other side.
    assert sum(round(375 * (target / 500)) != round(375 * target / 500) for target in targets) == 6


def test_saliency_does_not_change_what_happens_to_the_image():
    augment = transforms.classification_train(64, 70, 120)
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (60, 90, 3), np.uint8))
    torch.manual_seed(5)
    alone = augment(picture)
    torch.manual_seed(5)
    image, _ = augment(picture, transforms.Saliency(torch.zeros(1, 60, 90, dtype=torch.uint8)))
    assert torch.equal(alone, image) and isinstance(image, torch.Tensor)


@pytest.fixture
def saliency_dir(toy, tmp_path):
    """A copy of the toy set's saliency maps, to damage."""
    return shutil.copytree(toy.saliency, tmp_path / 'saliency')


def salient(toy, folder):
    return SalientImages(read_list(toy.train), devkit_photos(toy.root), toy.labels, VOC, v2.ToImage(), folder)


def test_an_item_has_its_saliency_map_in_0_to_1(toy, saliency_dir):
    item = salient(toy, saliency_dir)[0]
    stored = np.asarray(Image.open(saliency_dir / f'{item["name"]}.png'))
    np.testing.assert_array_equal(item['saliency'].numpy(), stored[None].astype(np.float32) / 255)
    assert type(item['saliency']) is torch.Tensor


@pytest.mark.parametrize('damage, words', [
    (lambda image: image.resize((40, 32)), 'is 40x32 pixels'),
    (lambda image: image.convert('RGB'), 'has mode RGB'),
    (lambda image: image.point(lambda value: value > 127), 'has values 0..1'),
])
def test_a_saliency_map_that_does_not_fit_is_refused(toy, saliency_dir, damage, words):
    dataset = salient(toy, saliency_dir)
    path = saliency_dir / f'{dataset.ids[0]}.png'
    damage(Image.open(path)).save(path)
    with pytest.raises(UserError, match=words) as caught:
        dataset[0]
    assert caught.value.what == path


def test_a_saliency_map_that_is_missing_or_broken_is_refused(toy, saliency_dir):
    path = saliency_dir / f'{read_list(toy.train)[0]}.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match='cannot be read'):
        salient(toy, saliency_dir)[0]
    path.unlink()
    with pytest.raises(UserError, match=r'file not found \(1 of 12'):
        salient(toy, saliency_dir)


# ---------------------------------------------------------------- the picture of a training step

@pytest.mark.parametrize('saliency, revised, titles', [
    (False, True, ['image', 'CAM', 'revised CAM', 'pseudo label']), (True, False, ['image', 'saliency', 'CAM']),
    (True, True, ['image', 'saliency', 'CAM', 'revised CAM', 'pseudo label'])])
def test_a_picture_shows_what_the_baseline_has(step, saliency, revised, titles):
    view, _, target = step
    view = view if revised else view._replace(revised=None)
    target = target if saliency else target._replace(saliency=None)
    figure = cam_figure(torch.randn(2, 3, 112, 112), view, target, 0.1, VOC.palette)
    assert [axes.get_title() for axes in figure.axes[:len(titles)]] == titles
    assert len(figure.axes) == 2 * len(titles)  # a row per image


# ---------------------------------------------------------------- from end to end

def train(toy, session, *flags):
    """Train EPS for an epoch of three steps; the rows of its loss log."""
    run_main('contrast_train', '--weights', toy.backbone, '--voc12_root', toy.root, '--cls_labels', toy.labels,
             '--train_list', toy.train, '--val_list', '', '--session_name', session,
             '--tblog_dir', session.parent / 'tb', '--num_workers', 0, '--device', 'cpu',
             '--saliency_dir', toy.saliency, '--batch_size', 4, '--max_epoches', 1, '--crop_size', 64,
             '--resize_long', 64, 96, '--picture_every', 0, *flags)
    return read_loss_log(session.with_name(session.name + '.losses.jsonl'))


def infer(toy, network_weights, out, *flags):
    """Make seeds of the val images; {id: (present classes, CAMs)}."""
    run_main('contrast_infer', '--weights', network_weights, '--voc12_root', toy.root, '--cls_labels', toy.labels,
             '--infer_list', toy.val, '--out_cam', out / 'cam', '--out_cam_pred', out / 'pred',
             '--out_crf', out / 'crf', '--num_workers', 0, '--device', 'cpu', '--scales', 1, *flags)
    return {i: read_cams(out / 'cam' / f'{i}.npy', VOC.num_foreground) for i in read_list(toy.val)}


def same_cams(first, second):
    return all(np.array_equal(a, b) for i in first for a, b in zip(first[i], second[i]))


def test_eps_with_contrast_trains_and_makes_seeds_and_its_layouts_are_the_same_network(toy, tmp_path):
    session, baseline = tmp_path / 'run', ('--baseline', 'eps')
    rows = train(toy, session, *baseline, *TWO_VIEWS, '--save_layout', 'published')
    assert len(rows) == 3
    for name in (*PLAIN_TERMS, *PCM_TERMS, *contrast.TERMS):
        assert all(row[name] >= 0 for row in rows), name

    # The published layout: background last, proj_fc; the checkpoint keeps ours. There and back, bit by bit.
    published = torch.load(tmp_path / 'run.pth', weights_only=True)
    ours = torch.load(tmp_path / 'run.ckpt', weights_only=True)['model']
    assert 'proj_fc.weight' in published and torch.equal(published['fc8.weight'][-1], ours['fc8.weight'][0])
    read = weights.read_weights(tmp_path / 'run.pth')
    assert read.keys() == ours.keys() and all(torch.equal(read[key], ours[key]) for key in read)
    back = weights.to_published_eps(read)
    assert back.keys() == published.keys() and all(torch.equal(back[key], published[key]) for key in back)

    cams = infer(toy, tmp_path / 'run.pth', tmp_path, *baseline)
    assert same_cams(cams, infer(toy, tmp_path / 'run.ckpt', tmp_path / 'ckpt', *baseline))
    for i, (present, maps) in cams.items():
        assert maps.shape[1:] == image_size(toy.root / 'JPEGImages' / f'{i}.jpg')
        assert maps.min() >= 0 and np.allclose(maps.max((1, 2)), 1, atol=1e-3)
        assert set(np.unique(read_mask(tmp_path / 'crf' / f'{i}.png'))) <= {0, *(present + 1)}


def test_plain_eps_trains_and_makes_seeds_and_its_published_layout_must_be_named(toy, tmp_path):
    plain = ('--baseline', 'eps_plain')
    rows = train(toy, tmp_path / 'run', *plain, '--w_cross_prototype', 0, '--w_cross_cam', 0, '--w_intra', 0)
    for name in PLAIN_TERMS:
        assert all(row[name] > 0 for row in rows), name
    assert not rows[0].keys() & {*PCM_TERMS, *contrast.TERMS}
    ours = weights.read_weights(tmp_path / 'run.pth')
    torch.save(weights.to_published_eps(ours), tmp_path / 'published.pth')
    cams = infer(toy, tmp_path / 'run.pth', tmp_path, *plain)
    assert same_cams(cams, infer(toy, tmp_path / 'published.pth', tmp_path / 'published', *plain, '--background_last'))
    assert not same_cams(cams, infer(toy, tmp_path / 'published.pth', tmp_path / 'wrong', *plain))


def test_plain_eps_never_makes_a_second_view(toy, tmp_path, monkeypatch):
    seen, view = [], resnet38_eps.Net.view
    monkeypatch.setattr(resnet38_eps.Net, 'view', lambda net, x, parts: seen.append(x.shape) or view(net, x, parts))
    train(toy, tmp_path / 'run', '--baseline', 'eps_plain')
    assert seen == [(4, 3, 64, 64)] * 3  # one forward pass of the crop a step


def test_the_ecr_target_of_the_flag_is_the_one_that_trains(toy, tmp_path):
    rows = {name: train(toy, tmp_path / name, '--baseline', 'eps', *TWO_VIEWS, *flags)
            for name, flags in {'published': (), 'seam': ('--ecr_target', 'seam')}.items()}
    assert rows['seam'][0]['ecr'] != rows['published'][0]['ecr']
    assert rows['seam'][0]['er'] == rows['published'][0]['er']  # the same images and weights in the first step


def test_the_larger_alpha_the_less_background_in_the_pseudo_masks(tmp_path):
    y, x = np.mgrid[:32, :48]
    cams = np.exp(-((y - 16) ** 2 + (x - 20) ** 2) / 120).astype(np.float32)[None]
    image = np.repeat(np.uint8(255 * cams[0])[:, :, None], 3, 2)
    foreground = []
    for alpha in (1, 8, 32):
        path = tmp_path / f'{alpha}.png'
        write_seeds({'crf': path}, image, np.array([4]), cams, SeedSettings(0.26, 'EPS', 5, alpha, VOC))
        foreground.append((read_mask(path) == 5).mean())
    assert 0 < foreground[0] < foreground[1] < foreground[2] < 1

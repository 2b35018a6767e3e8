"""EPS: networks and saliency loss against the published ones, its terms, its data, and its commands from end to end."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

import contrast_infer
import contrast_train
from data import transforms
from data.cams import read_cams
from data.classification import SalientImages
from data.images import image_size
from data.lists import read_list
from data.masks import read_mask
from engine.errors import UserError
from engine.loss_log import read_loss_log
from golden.fill import fill_state_dict
from network import resnet38_eps, resnet38_eps_contrast, weights
from tool import eps, recipes, seam
from tool.cam import EPSILON, resize
from voc12.classes import VOC

GOLDEN = Path(__file__).parent / 'golden'
CHANNELS = VOC.num_classes


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
    with torch.device('meta'):  # shapes only: drawing initial values for 100 M weights takes seconds
        net = module.Net()
    net.load_state_dict(state, assign=True)
    return net.eval()


@torch.no_grad()
def test_contrast_network_matches_the_published_one(published_state):
    golden = np.load(GOLDEN / 'eps_resnet38_contrast_64x96.npz')
    net = network(resnet38_eps_contrast, weights.from_published_eps(published_state))
    cam, rv, features = net.maps(torch.from_numpy(golden['x']))
    assert_close(cam, background_first(golden['cam']), 1e-5)
    assert_close(rv, background_first(golden['cam_rv']), 1e-5)
    assert_close(features, torch.from_numpy(golden['feat']), 1e-5)
    assert_close(cam.mean((2, 3)), background_first(golden['pred']), 1e-5)
    assert_close(rv.mean((2, 3)), background_first(golden['pred_rv']), 1e-5)


@torch.no_grad()
def test_plain_network_matches_the_published_one(published_state):
    golden = np.load(GOLDEN / 'eps_resnet38_eps_64x96.npz')
    keys = json.loads((GOLDEN / 'keys' / 'manifest_eps_resnet38_eps.json').read_text())
    state = weights.from_published_eps({key: published_state[key] for key in keys})
    net = network(resnet38_eps, state)
    x = torch.from_numpy(golden['x'])
    logits, cam = net(x)
    assert_close(cam, background_first(golden['cam']), 1e-5)
    assert_close(logits, background_first(golden['pred']), 1e-5)
    assert torch.equal(net.class_logits(x), logits[:, 1:])


def test_no_dropout_before_the_heads():
    """In training too the CAM head sees the whole of conv6, as in the published EPS networks."""
    torch.manual_seed(0)
    net = resnet38_eps_contrast.Net(1 / 16, CHANNELS).train()
    seen = {}
    net.bn7.register_forward_hook(lambda _, inputs, out: seen.update(conv6=F.relu(out)))
    cam, _, _ = net.maps(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(cam, net.fc8(seen['conv6']))


# ---------------------------------------------------------------- losses

@pytest.fixture(scope='module')
def saliency_case():
    golden = np.load(GOLDEN / 'eps_saliency_loss.npz')
    return {'cam': background_first(golden['cam']), 'saliency': torch.from_numpy(golden['saliency']),
            'present': seam.present_channels(torch.from_numpy(golden['label'])), 'golden': golden}


def test_saliency_loss_and_gradient_match_the_published_ones(saliency_case):
    golden, cam = saliency_case['golden'], saliency_case['cam'].clone().requires_grad_()
    loss = eps.saliency_loss(cam, saliency_case['saliency'], saliency_case['present'], tau=0.4, alpha=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(golden['loss'].item(), rel=1e-5)
    assert_close(cam.grad, background_first(golden['grad']), 1e-5)


def test_saliency_maps_match_the_published_ones(saliency_case):
    golden, cam = saliency_case['golden'], saliency_case['cam']
    saliency = F.interpolate(saliency_case['saliency'], cam.shape[2:], mode='nearest')
    foreground, background = eps.explained(cam, saliency, saliency_case['present'], 0.4)
    assert_close(foreground, torch.from_numpy(golden['fg_map']), 1e-5)
    assert_close(1 - background, torch.from_numpy(golden['bg_map']), 1e-5)  # published: inverted


def test_tau_and_alpha_count(saliency_case):
    cam, saliency, present = (saliency_case[key] for key in ('cam', 'saliency', 'present'))
    foreground, _ = eps.explained(cam, F.interpolate(saliency, cam.shape[2:]), present, tau=1.)
    assert not foreground.any()  # no class is salient everywhere
    losses = [eps.saliency_loss(cam, saliency, present, 0.4, alpha).item() for alpha in (0., 0.5, 1.)]
    assert len(set(losses)) == 3


@pytest.fixture(scope='module')
def views():
    """Two views' (cam, cam_rv) at 14×14 and 8×8, labels of one and of three classes, saliency."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(2, VOC.num_foreground)
    label[0, 3] = label[1, [0, 7, 19]] = 1
    maps = [tuple(torch.randn(2, CHANNELS, size, size, generator=generator) for _ in range(2)) for size in (14, 8)]
    return maps, label, torch.rand(2, 1, 112, 112, generator=generator)


def all_channels(maps, label, size):
    """SPEC sections 3 and 8 in their own words, on all channels: rvmin, er, ecr of EPS."""
    allowed = torch.cat([torch.ones(len(label), 1), label], 1)[:, :, None, None]

    def stretched(p):
        p = F.relu(p)
        low, high = p.amin((2, 3), keepdim=True), p.amax((2, 3), keepdim=True)
        return resize(F.relu(p - low - EPSILON) / (high - low + EPSILON), size) * allowed

    def one_hot(a):
        a = a.clone()
        a[:, 0] = 1 - a[:, 1:].amax(1)
        winner = a[:, 1:].amax(1, keepdim=True)
        return torch.cat([a[:, :1], torch.where(a[:, 1:] < winner, 0., a[:, 1:])], 1)

    def rvmin(rv):
        lowest = (rv * allowed)[:, 1:].amax(1).flatten(1)
        return F.relu(lowest.topk(int(0.25 * lowest.shape[1]), largest=False).values).mean()

    (a1, r1), (a2, r2) = ([stretched(m) for m in view] for view in maps)
    k = int(CHANNELS * size[0] * size[1] * 0.2)
    return {'rvmin': (rvmin(maps[0][1]) + rvmin(maps[1][1])) / 2, 'er': (a1 - a2)[:, 1:].abs().mean(),
            'ecr': sum((one_hot(a) - r).abs().flatten(1).topk(k).values.mean() for a, r in ((a2, r1), (a1, r2)))}


def test_terms_are_those_of_the_specification(views):
    maps, label, saliency = views
    present = seam.present_channels(label)
    terms = eps.losses(*maps, label, present, saliency, tau=0.4, alpha=0.5)
    assert set(terms) == {'cls', 'saliency', 'saliency_rv', 'rvmin', 'er', 'ecr'}
    for name, value in all_channels(maps, label, (8, 8)).items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6, msg=name)
    cls = [F.multilabel_soft_margin_loss(cam.mean((2, 3))[:, 1:], label) for cam, _ in maps]
    torch.testing.assert_close(terms['cls'], sum(cls) / 2)
    for name, index in (('saliency', 0), ('saliency_rv', 1)):
        both = [eps.saliency_loss(view[index], saliency, present, 0.4, 0.5) for view in maps]
        torch.testing.assert_close(terms[name], sum(both) / 2)


def test_terms_without_revised_cam(views):
    maps, label, saliency = views
    present = seam.present_channels(label)
    whole = eps.losses(*maps, label, present, saliency, 0.4, 0.5)
    plain = eps.losses(*((cam, None) for cam, _ in maps), label, present, saliency, 0.4, 0.5)
    assert plain == {name: whole[name] for name in ('cls', 'saliency')}


# ---------------------------------------------------------------- inference

def test_multi_scale_is_the_softmax_summed_over_scales_and_flips():
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(3, 40, 56, generator=generator)
    head = torch.randn(CHANNELS, 3, generator=generator)
    images = [resize(image[None], size)[0] for size in ((24, 32), (40, 56))]

    def cams_of(x):
        return torch.einsum('kc,nchw->nkhw', head, F.avg_pool2d(x, 8))

    got = eps.multi_scale(cams_of, [torch.stack([x, x.flip(2)]) for x in images], torch.tensor([2, 5]), (40, 56))
    total = torch.zeros(2, 40, 56)
    for x in images:
        for flipped in (False, True):
            scores = cams_of((x.flip(2) if flipped else x)[None]).softmax(1)[:, [2, 5]]
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
    folder = tmp_path / 'saliency'
    folder.mkdir()
    for path in (toy.root / 'SALImages').glob('*.png'):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def salient(toy, folder):
    return SalientImages(read_list(toy.train), toy.root, toy.labels, v2.ToImage(), folder)


def test_saliency_item(toy, saliency_dir):
    item = salient(toy, saliency_dir)[0]
    stored = np.asarray(Image.open(saliency_dir / f'{item["name"]}.png'))
    np.testing.assert_array_equal(item['saliency'].numpy(), stored[None].astype(np.float32) / 255)
    assert type(item['saliency']) is torch.Tensor


@pytest.mark.parametrize('damage, words', [
    (lambda image: image.resize((40, 32)), 'is 40x32 pixels'),
    (lambda image: image.convert('RGB'), 'has mode RGB'),
    (lambda image: image.point(lambda _: 0), 'is zero everywhere'),
    (lambda image: image.point(lambda value: value > 127), 'has values 0..1'),
])
def test_unfit_saliency_map(toy, saliency_dir, damage, words):
    dataset = salient(toy, saliency_dir)
    path = saliency_dir / f'{dataset.ids[0]}.png'
    damage(Image.open(path)).save(path)
    with pytest.raises(UserError, match=words) as caught:
        dataset[0]
    assert caught.value.what == path


def test_missing_or_broken_saliency_map(toy, saliency_dir):
    path = saliency_dir / f'{read_list(toy.train)[0]}.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match='cannot be read'):
        salient(toy, saliency_dir)[0]
    path.unlink()
    with pytest.raises(UserError, match=r'file not found \(1 of 12'):
        salient(toy, saliency_dir)


# ---------------------------------------------------------------- flags

def parsed(script, *words):
    required = ['--weights', 'w.pth', *(['--session_name', 's'] if script is contrast_train else [])]
    return script.get_args_parser().parse_args([*required, *words])


def test_the_defaults_are_those_of_the_baseline():
    names = ('network', 'max_epoches', 'bg_threshold', 'prototype_share', 'tau', 'alpha', 'w_saliency', 'w_intra',
             'save_layout')
    flags = {
        'seam': ('network.resnet38_contrast', 8, 0.20, 1 / 8, None, None, None, 0.1, None),
        'eps': ('network.resnet38_eps_contrast', 15, 0.10, 1 / 16, 0.4, 0.5, 1, 0.1, 'ours'),
    }
    parser = contrast_train.get_args_parser()
    for baseline in ('eps', 'seam', 'eps'):  # one parser: nothing is left of an earlier baseline
        args = parser.parse_args(['--weights', 'w', '--session_name', 's', '--baseline', baseline])
        assert tuple(getattr(args, name) for name in names) == flags[baseline]
    changed = ('--bg_threshold', '0.2', '--max_epoches', '8', '--w_saliency', '0')
    args = parsed(contrast_train, '--baseline', 'eps', *changed)
    assert (args.bg_threshold, args.max_epoches, args.w_saliency, args.prototype_share) == (0.2, 8, 0, 1 / 16)
    assert (parsed(contrast_infer).crf_iters, parsed(contrast_infer, '--baseline', 'eps').crf_iters) == (10, 5)
    assert parsed(contrast_infer, '--baseline', 'eps', '--crf_iters', '10', '--alpha', '16').crf_iters == 10


@pytest.mark.parametrize('script, words, what', [
    (contrast_train, ['--saliency_dir', 'SALImages'], '--saliency_dir'),
    (contrast_train, ['--baseline', 'seam', '--tau', '0.4'], '--tau'),
    (contrast_train, ['--save_layout', 'published'], '--save_layout'),
    (contrast_train, ['--w_saliency', '1'], '--w_saliency'),
    (contrast_train, ['--network', 'network.resnet38_eps'], '--network'),
    (contrast_train, ['--baseline', 'eps'], '--saliency_dir'),
    (contrast_train, ['--baseline', 'eps', '--saliency_dir', 's', '--network', recipes.PLAIN, '--w_intra', '0.1'],
     '--w_intra'),
    (contrast_infer, ['--alpha', '8'], '--alpha'),
    (contrast_infer, ['--network', 'network.resnet38_eps'], '--network'),
])
def test_flags_that_do_not_go_together_are_refused(script, words, what):
    with pytest.raises(UserError) as caught:
        script.main(parsed(script, *words))
    assert caught.value.what == what


# ---------------------------------------------------------------- the picture of a training step

@pytest.mark.parametrize('saliency, revised, titles', [
    (False, True, ['image', 'CAM', 'revised CAM', 'pseudo label']), (True, False, ['image', 'saliency', 'CAM']),
    (True, True, ['image', 'saliency', 'CAM', 'revised CAM', 'pseudo label'])])
def test_sheet_shows_what_the_baseline_has(views, saliency, revised, titles):
    maps, label, salient = views
    cam, rv = maps[0]
    shown = {'saliency': salient if saliency else None, 'CAM': cam, 'revised CAM': rv if revised else None}
    figure = contrast_train.sheet(torch.randn(2, 3, 112, 112), shown, label, 0.1, VOC.palette)
    assert [axes.get_title() for axes in figure.axes[:len(titles)]] == titles
    assert len(figure.axes) == 2 * len(titles)  # a row per image


# ---------------------------------------------------------------- from end to end

def train(toy, session, *words):
    script = ['--weights', toy.backbone, '--voc12_root', toy.root, '--cls_labels', toy.labels,
              '--train_list', toy.train, '--val_list', '', '--session_name', session,
              '--tblog_dir', session.parent / 'tb', '--num_workers', 0, '--device', 'cpu',
              '--baseline', 'eps', '--saliency_dir', toy.root / 'SALImages',
              '--batch_size', 4, '--max_epoches', 1, '--crop_size', 64, '--resize_long', 64, 96, '--view2_size', 32,
              '--picture_every', 0, *words]
    contrast_train.main(contrast_train.get_args_parser().parse_args(list(map(str, script))))
    return read_loss_log(session.with_name(session.name + '.losses.jsonl'))


def infer(toy, network_weights, out, *words):
    script = ['--weights', network_weights, '--voc12_root', toy.root, '--cls_labels', toy.labels,
              '--infer_list', toy.val, '--out_cam', out / 'cam', '--out_cam_pred', out / 'pred',
              '--out_crf', out / 'crf', '--num_workers', 0, '--device', 'cpu', '--baseline', 'eps', '--scales', 1, *words]
    contrast_infer.main(contrast_infer.get_args_parser().parse_args(list(map(str, script))))
    return {i: read_cams(out / 'cam' / f'{i}.npy', VOC.num_foreground) for i in read_list(toy.val)}


def same_cams(first, second):
    return all(np.array_equal(a, b) for i in first for a, b in zip(first[i], second[i]))


def test_eps_with_contrast_from_end_to_end(toy, tmp_path):
    session = tmp_path / 'run'
    rows = train(toy, session, '--save_layout', 'published')
    assert len(rows) == 3
    assert set(rows[0]) == {'step', 'loss', *contrast_train.TERMS}

    # The published layout: background last, proj_fc; the checkpoint keeps ours. There and back, bit by bit.
    published = torch.load(tmp_path / 'run.pth', weights_only=True)
    ours = torch.load(tmp_path / 'run.ckpt', weights_only=True)['model']
    assert 'proj_fc.weight' in published and torch.equal(published['fc8.weight'][-1], ours['fc8.weight'][0])
    read = weights.read_weights(tmp_path / 'run.pth')
    assert read.keys() == ours.keys() and all(torch.equal(read[key], ours[key]) for key in read)
    back = weights.to_published_eps(read)
    assert back.keys() == published.keys() and all(torch.equal(back[key], published[key]) for key in back)

    cams = infer(toy, tmp_path / 'run.pth', tmp_path)
    assert same_cams(cams, infer(toy, tmp_path / 'run.ckpt', tmp_path / 'ckpt'))
    for i, (classes, maps) in cams.items():
        assert maps.shape[1:] == image_size(toy.root / 'JPEGImages' / f'{i}.jpg')
        assert maps.min() >= 0 and np.allclose(maps.max((1, 2)), 1, atol=1e-3)
        assert set(np.unique(read_mask(tmp_path / 'crf' / f'{i}.png'))) <= {0, *(classes + 1)}


def test_plain_eps_from_end_to_end(toy, tmp_path):
    plain = ('--network', 'network.resnet38_eps')
    rows = train(toy, tmp_path / 'run', *plain, '--w_cross_prototype', 0, '--w_cross_cam', 0, '--w_intra', 0)
    assert set(rows[0]) == {'step', 'loss', 'cls', 'saliency'}
    ours = weights.read_weights(tmp_path / 'run.pth')
    torch.save(weights.to_published_eps(ours), tmp_path / 'published.pth')
    cams = infer(toy, tmp_path / 'run.pth', tmp_path, *plain)
    assert same_cams(cams, infer(toy, tmp_path / 'published.pth', tmp_path / 'published', *plain, '--background_last'))
    assert not same_cams(cams, infer(toy, tmp_path / 'published.pth', tmp_path / 'wrong', *plain))


def test_alpha_sets_the_background_of_the_pseudo_masks(tmp_path):
    y, x = np.mgrid[:32, :48]
    cams = np.exp(-((y - 16) ** 2 + (x - 20) ** 2) / 120).astype(np.float32)[None]
    image = np.repeat(np.uint8(255 * cams[0])[:, :, None], 3, 2)
    share = []
    for alpha in (1, 8, 32):
        path = tmp_path / f'{alpha}.png'
        contrast_infer.write({'crf': path}, image, np.array([4]), cams, 0.26, alpha, 5, CHANNELS, VOC.palette)
        share.append((read_mask(path) == 5).mean())
    assert 0 < share[0] < share[1] < share[2] < 1

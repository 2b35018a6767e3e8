"""Step 3: augmentation, settings, pre-flight check, resuming, four numbers, the server's archive, users' mistakes."""
import dataclasses
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_refused, filled, run_main, script, tree_bytes
from PIL import Image

from data.images import devkit_photos
from data.lists import save_list
from data.masks import read_mask, save_mask
from data.segmentation import Augmentation, ScaledImages, at_scale, rescale, shift_hsv
from data.transforms import normalise
from engine.crf_workers import refine_segmentation
from engine.errors import UserError
from engine.files import REPO
from engine.loss_log import read_loss_log
from network import deeplab
from network.resnet38d import ResNet38
from reference import resize
from segmentation import inference, preflight, server_archive
from segmentation.experiment import config as configs
from segmentation.losses import segmentation_loss
from tool import crf, metrics
from tool.metrics import IGNORE
from voc12.classes import VOC

TRAIN, TEST = 'segmentation/experiment/train', 'segmentation/experiment/test'
IDS = [f'image_{i}' for i in range(6)]
SIZE = (40, 56)  # H, W
WIDTH = 1 / 32  # of the ResNet-38: every layer is there, and a step takes milliseconds


def make_data(root):
    """A devkit of six images, a box of one class in each, its pseudo masks, a list, and weights of a small backbone.

    Fills and returns the folder.
    """
    for folder in ('VOC2012/JPEGImages', 'VOC2012/SegmentationClass', 'masks'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(IDS):
        image = rng.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
        mask = np.zeros(SIZE, np.uint8)
        image[8:30, 10:40] += np.uint8(30 * i)
        mask[8:30, 10:40] = i + 1
        Image.fromarray(image).save(root / f'VOC2012/JPEGImages/{name}.jpg', quality=95)
        mask[7] = IGNORE
        save_mask(root / f'VOC2012/SegmentationClass/{name}.png', mask, VOC.palette)
        mask[20:] = 0  # a pseudo mask is not quite right
        save_mask(root / f'masks/{name}.png', mask, VOC.palette)
    save_list(root / 'list.txt', IDS)
    torch.manual_seed(0)
    torch.save(ResNet38(WIDTH).state_dict(), root / 'backbone.pth')
    net = filled(deeplab.build, 'deeplabv1_resnet38', VOC.num_classes, width=WIDTH)
    with torch.no_grad():  # else every pixel shows the same class: let those of the masks compete on equal terms
        net.cls_conv.bias -= net(torch.from_numpy(normalise(image)).permute(2, 0, 1)[None]).mean((0, 2, 3))
        net.cls_conv.bias[len(IDS) + 1:] -= 10
    torch.save(net.state_dict(), root / 'deeplab.pth')
    return root


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """The folder of make_data. Not to be changed."""
    return make_data(tmp_path_factory.mktemp('data'))


def train_argv(data, session, **flags):
    """The command line of a short training run on `data`; `flags` replace or add."""
    flags = {'voc12_root': data / 'VOC2012', 'train_list': data / 'list.txt', 'pseudo_gt': data / 'masks',
             'weights': data / 'backbone.pth', 'session_name': session, 'tblog_dir': f'{session}_tb', 'num_workers': 0,
             'device': 'cpu', 'TRAIN_BATCHES': 2, 'TRAIN_ITERATION': 12, 'DATA_RANDOMCROP': 41, 'save_every': 2,
             'log_every': 1, 'picture_every': 0, **flags}
    return [text for name, value in flags.items() for text in (f'--{name}', value)]


def infer_argv(data, out_dir, **flags):
    """The command line of test.py on `data`; `flags` replace or add."""
    flags = {'voc12_root': data / 'VOC2012', 'infer_list': data / 'list.txt', 'weights': data / 'deeplab.pth',
             'num_workers': 0, 'device': 'cpu', 'out_dir': out_dir, **flags}
    return ['--TEST_MULTISCALE', 0.5, 1, 1.5, *(text for name, value in flags.items() for text in (f'--{name}', value))]


# ---------------------------------------------------------------- augmentation and loss

def test_augmentation_without_chance_is_normalisation():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    mask = np.arange(image[..., 0].size, dtype=np.uint8).reshape(SIZE)
    out, labels = Augmentation(60, (1, 1), (0, 0, 0), flip=1)(image, mask)
    top, left = [(np.flatnonzero((labels != IGNORE).any(1 - axis).numpy())[0]) for axis in (0, 1)]
    box = slice(top, top + SIZE[0]), slice(left, left + SIZE[1])
    np.testing.assert_array_equal(labels[box], mask[:, ::-1])
    np.testing.assert_allclose(out.permute(1, 2, 0)[box], normalise(image)[:, ::-1])
    outside = np.ones((60, 60), bool)
    outside[box] = False
    assert (labels.numpy()[outside] == IGNORE).all()
    assert (out.numpy()[:, outside] == 0).all()


def test_augmentation_keeps_image_and_mask_together():
    """The image shows its own labels: wherever a label survives, the pixel must have that label's grey."""
    values = np.arange(0, 240, 20, dtype=np.uint8)
    mask = np.repeat(np.repeat(values.reshape(3, 4), 30, 0), 30, 1)
    image = np.repeat(mask[..., None], 3, 2)
    augment = Augmentation(64, (0.5, 1.5), (0, 0, 0), flip=0.5)
    agree = []
    for seed in range(10):
        torch.manual_seed(seed)
        out, labels = augment(image, mask)
        grey = (out[0] * 0.229 + 0.485) * 255
        labelled = labels != IGNORE
        assert set(labels[labelled].tolist()) <= set(values.tolist())  # labels are never mixed
        agree.append(((grey - labels).abs() < 10)[labelled].float().mean().item())
    assert min(agree) > 0.85  # what is left is blur along the edges
    torch.manual_seed(9)
    assert torch.equal(augment(image, mask)[0], out)


# At odd sizes and at these factors the exact factor and the rounded size sample at different places.
FACTORS = 0.5, 0.6137, 0.75, 1.25, 1.5, 1.75


@pytest.mark.parametrize('factor', FACTORS)
def test_image_and_mask_are_resized_by_the_exact_factor(factor):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (23, 31, 3)).astype(np.uint8), rng.integers(0, 256, (23, 31)).astype(np.uint8)
    resized, labels = rescale(image, mask, factor)
    np.testing.assert_array_equal(labels, resize.nearest(mask, factor))
    exact = resize.bicubic(image.astype(float), factor).clip(0, 255)
    assert np.abs(resized - exact).max() < 1  # OpenCV computes in whole numbers


@pytest.mark.parametrize('factor', FACTORS)
def test_a_test_image_is_resized_by_the_exact_factor(factor):
    image = np.random.default_rng(0).standard_normal((23, 31, 3)).astype(np.float32)
    ours, plain = at_scale(image, factor).permute(1, 2, 0).numpy(), resize.bicubic(image, factor)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    rounded = cv2.resize(image, plain.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    assert np.abs(rounded - plain).max() > 0.1


def test_a_side_that_a_factor_leaves_nothing_of_keeps_a_pixel():
    resized, labels = rescale(np.zeros((1, 40, 3), np.uint8), np.zeros((1, 40), np.uint8), 0.4)
    assert resized.shape == (1, 16, 3) and labels.shape == (1, 16)


def test_hue_goes_round_its_circle_saturation_and_value_are_clipped():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    np.testing.assert_array_equal(shift_hsv(red, (60, 0, 0)), np.full_like(red, (0, 255, 0)))
    np.testing.assert_array_equal(shift_hsv(red, (-60, 0, 0)), np.full_like(red, (0, 0, 255)))  # round the circle
    np.testing.assert_array_equal(shift_hsv(red, (0, 10, 10)), red)  # clipped, not wrapped
    np.testing.assert_array_equal(shift_hsv(red, (0, 0, -55)), np.full_like(red, (200, 0, 0)))


def test_loss_is_the_mean_over_labelled_pixels():
    logits, mask = torch.randn(2, VOC.num_classes, 5, 6), torch.randint(0, VOC.num_classes, (2, 5, 6))
    mask[0] = IGNORE
    torch.testing.assert_close(segmentation_loss(logits, mask), F.cross_entropy(logits[1:], mask[1:]))
    mask[:] = IGNORE
    assert segmentation_loss(logits, mask) == 0  # a batch without labels is no NaN


# ---------------------------------------------------------------- settings

@pytest.mark.parametrize('name, network', [
    ('SEAM_deeplabv1_resnet38', 'deeplabv1_resnet38'), ('EPS_deeplabv1_resnet101', 'deeplabv1_resnet101'),
    ('EPS_deeplabv2_resnet101', 'deeplabv2_resnet101')])
def test_experiments_have_the_published_settings(name, network):
    config = configs.EXPERIMENTS[name]
    assert config.network == network
    assert (config.TRAIN_ITERATION, config.TRAIN_BATCHES) == (20000, 10)
    assert (config.TRAIN_LR, config.TRAIN_POWER) == (0.001, 0.9)
    assert (config.TRAIN_MOMENTUM, config.TRAIN_WEIGHT_DECAY, config.TRAIN_BN_MOM) == (0.9, 5e-4, 3e-4)
    assert (config.DATA_RANDOMCROP, config.DATA_RANDOMSCALE, config.DATA_RANDOM_H) == (448, (0.5, 1.5), 10)
    assert config.TEST_MULTISCALE == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert config.TEST_FLIP


VALUES = {str: 'text', int: 9, float: 0.25, tuple: (0.25, 0.75), bool: False}  # of a flag, by the type of its field
CHOICES = {'MODEL_BACKBONE': 'resnet50', 'MODEL_STRIDE': 16}  # of the fields that take few values


@pytest.mark.parametrize('field', dataclasses.fields(configs.Config), ids=lambda field: field.name)
def test_every_field_is_a_flag(field):
    value = CHOICES.get(field.name, VALUES[field.type])
    for name in field.metadata['scripts']:
        argv = [f'--{field.name}', *map(str, value if field.type is tuple else [value])]
        args = script(f'segmentation/experiment/{name}').get_args_parser().parse_args(argv)
        assert getattr(configs.effective(args), field.name) == value


def test_scales_in_the_wrong_order_are_refused():
    args = script(TRAIN).get_args_parser().parse_args(['--DATA_RANDOMSCALE', '1.5', '0.5'])
    with pytest.raises(UserError, match='--DATA_RANDOMSCALE'):
        configs.effective(args)


# ---------------------------------------------------------------- pre-flight check

def check_masks(data, mask_dir):
    """The pre-flight summary of a folder of pseudo masks."""
    devkit = data / 'VOC2012'
    return preflight.check(IDS, devkit_photos(devkit), mask_dir, devkit / 'SegmentationClass', VOC, workers=0)


@pytest.fixture
def masks(data, tmp_path):
    """A copy of the pseudo masks, to be spoiled."""
    for name in IDS:
        (tmp_path / f'{name}.png').write_bytes((data / f'masks/{name}.png').read_bytes())
    return tmp_path


def test_preflight_counts_labels_and_scores_the_masks(data):
    summary = check_masks(data, data / 'masks')
    assert summary.masks == summary.scored == len(IDS)
    assert summary.empty == 0
    assert summary.ignored == pytest.approx(1 / SIZE[0])
    labelled = (SIZE[0] - 1) * SIZE[1]
    assert summary.histogram[1:7] == pytest.approx([12 * 30 / labelled / 6] * 6)
    assert summary.histogram.sum() == pytest.approx(1)
    hits, lost = 12 * 30, 10 * 30  # pixels of an object that its pseudo mask has and lacks
    background = 6 * labelled - 6 * (hits + lost)
    expected = (background / (background + 6 * lost) + 6 * hits / (hits + lost)) / VOC.num_classes
    assert metrics.mean_iou(summary.counts) == pytest.approx(100 * expected)
    assert 'diningtable 0.00' in summary.text(VOC.names)


def test_preflight_warns_of_ground_truth_in_place_of_pseudo_masks(data):
    warning = 'warning: these are the ground truth'
    assert warning not in check_masks(data, data / 'masks').text(VOC.names)
    assert warning in check_masks(data, data / 'VOC2012/SegmentationClass').text(VOC.names)


def in_rgb(path):
    """A spoiler: rewrite a mask in colours."""
    Image.open(path).convert('RGB').save(path)


def with_labels(change):
    """A spoiler: rewrite a mask as change(mask)."""
    def spoil(path):
        save_mask(path, change(read_mask(path).copy()), VOC.palette)
    return spoil


@pytest.mark.parametrize('spoil, message', [
    (in_rgb, 'image_3.png: mask has mode RGB'),
    (with_labels(lambda m: m[:-1]), 'image_3.png: is 39x56 .* its image 40x56'),
    (with_labels(lambda m: np.where(m == 4, VOC.num_classes, m)), f'image_3.png: holds the label {VOC.num_classes}'),
    (lambda path: path.unlink(), '1 of 6 pseudo masks are missing: image_3;'),
    (lambda path: path.write_bytes(path.read_bytes()[:60]), 'image_3.png: image cannot be read'),
])
def test_preflight_names_the_bad_mask(data, masks, spoil, message):
    spoil(masks / 'image_3.png')
    with pytest.raises(UserError, match=message):
        check_masks(data, masks)


@pytest.mark.parametrize('change, message', [
    (lambda m: np.where(np.arange(m.size).reshape(m.shape) == 900, m, 0), 'of the labelled pixels are background'),
    (lambda m: m * (m <= 2), '4 of 6 masks show no object'),
    (lambda m: np.where(np.arange(m.size).reshape(m.shape) == 900, m, IGNORE), 'of the pixels are ignored'),
])
def test_preflight_refuses_masks_not_worth_training_on(data, masks, change, message):
    for name in IDS:
        with_labels(change)(masks / f'{name}.png')
    with pytest.raises(UserError, match=message):
        check_masks(data, masks)


# ---------------------------------------------------------------- training

def losses_of(session):
    """The weighted sums in a session's loss log."""
    return [row['loss'] for row in read_loss_log(f'{session}.losses.jsonl')]


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """The session of an uninterrupted run of 40 steps."""
    session = tmp_path_factory.mktemp('trained') / 'run'
    run_main(TRAIN, *train_argv(data, session, TRAIN_ITERATION=40))
    return session


def test_training_lowers_the_loss(trained):
    losses = losses_of(trained)
    assert len(losses) == 40
    assert losses[-1] < losses[0]


def test_the_learning_rate_falls_as_if_there_were_one_step_more(trained):
    state = torch.load(trained.with_suffix('.ckpt'), weights_only=True)
    assert state['step'] == 40
    pretrained, new = (group['lr'] for group in state['optimizer']['param_groups'] if group['weight_decay'])
    assert (pretrained, new) == pytest.approx((0.001 * (1 / 41) ** 0.9, 0.01 * (1 / 41) ** 0.9))


def test_training_leaves_affines_and_moves_statistics_and_saves_its_config(data, tmp_path):
    run_main(TRAIN, *train_argv(data, tmp_path / 'run', TRAIN_ITERATION=2, TRAIN_LR=0.02, picture_every=1))
    before = torch.load(data / 'backbone.pth', weights_only=True)
    after = torch.load(tmp_path / 'run.pth', weights_only=True)
    for key, value in before.items():
        same = torch.equal(after[f'backbone.{key}'], value)
        norm = 'bn' in key.split('.')[-2]
        assert same == (norm and key.endswith(('.weight', '.bias'))), key
    settings = json.loads((tmp_path / 'run.json').read_text())['settings']
    assert settings['TRAIN_LR'] == 0.02
    assert settings['TRAIN_POWER'] == 0.9
    assert settings['DATA_PSEUDO_GT'] == str(data / 'masks')
    with Image.open(tmp_path / 'run.predictions.png') as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize('flags, message', [
    ({'pseudo_gt': ''}, '--pseudo_gt: no folder'),
    ({'pseudo_gt': 'nowhere'}, '6 of 6 pseudo masks are missing'),
    ({'TRAIN_BATCHES': 7}, '--TRAIN_BATCHES: 7 is more than the 6 images'),
    ({'MODEL_NAME': 'deeplabv2', 'TRAIN_BATCHES': 1}, 'deeplabv2 cannot train on 1 image'),
    ({'MODEL_NAME': 'deeplabv2'}, 'there is no deeplabv2_resnet38'),
    ({'experiment': 'EPS_deeplabv1_resnet101'}, 'holds a ResNet-38 backbone.* needs a resnet101'),
    ({'weights': 'nowhere.pth'}, 'nowhere.pth: weights not found'),
    ({'train_list': 'nowhere.txt'}, 'nowhere.txt: list not found'),
    ({'voc12_root': 'nowhere'}, 'nowhere.*file not found'),
])
def test_training_refuses_what_cannot_work(capsys, data, tmp_path, flags, message):
    assert re.search(message, assert_refused(capsys, TRAIN, *train_argv(data, tmp_path / 'run', **flags)))
    assert not list(tmp_path.iterdir())


def test_resuming_another_experiment_is_refused(capsys, data, tmp_path):
    run_main(TRAIN, *train_argv(data, tmp_path / 'run', TRAIN_ITERATION=2))
    error = assert_refused(capsys, TRAIN, *train_argv(data, tmp_path / 'run', TRAIN_ITERATION=3, resume=True))
    assert re.search('other settings .*TRAIN_ITERATION 2 -> 3', error)


# ---------------------------------------------------------------- test

def test_one_pass_gives_single_and_multi_scale():
    config = configs.Config(TEST_MULTISCALE=(0.5, 1.5))
    image = np.random.default_rng(0).random((24, 36, 3), np.float32)
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, VOC.num_classes, 3, padding=1).eval()
    calls = []

    def net(x):
        calls.append(tuple(x.shape))
        return conv(x)
    scaled = [torch.from_numpy(image).permute(2, 0, 1)] + [torch.rand(3, 12, 18), torch.rand(3, 36, 54)]
    single, multi = inference.logits(net, scaled, (24, 36), config, torch.device('cpu'), 'off')
    assert calls == [(1, 3, 24, 36), (2, 3, 12, 18), (2, 3, 36, 54)]  # scale 1 for the single-scale result only
    with torch.no_grad():
        torch.testing.assert_close(single, conv(scaled[0][None])[0])
        each = [F.interpolate(y, (24, 36), mode='bilinear', align_corners=True)[0]
                for x in scaled[1:] for y in (conv(x[None]), conv(x[None].flip(3)).flip(3))]
    torch.testing.assert_close(multi, torch.stack(each).mean(0))


def test_scales_are_made_after_normalising(data):
    item = ScaledImages(IDS, devkit_photos(data / 'VOC2012'), [1.0, 0.5, 1.75])[2]
    assert [tuple(x.shape) for x in item['scaled']] == [(3, 40, 56), (3, 20, 28), (3, 70, 98)]
    np.testing.assert_array_equal(item['scaled'][0].permute(1, 2, 0), normalise(item['pixels']))


def test_the_crf_without_hopeless_classes_is_the_full_crf():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((VOC.num_classes, 30, 40)).astype(np.float32)
    scores[5:] -= 16
    probabilities = torch.from_numpy(scores).softmax(0).numpy()
    image = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    assert (probabilities.max((1, 2)) <= crf.CLIP).sum() > 10
    full = crf.refine_probabilities(image, probabilities, crf.DEEPLAB).argmax(0)
    np.testing.assert_array_equal(refine_segmentation(image, probabilities, crf.DEEPLAB.iterations), full)


def test_four_numbers_are_printed_and_written(data, tmp_path, capsys):
    out = tmp_path / 'out'
    run_main(TEST, *infer_argv(data, out, num_workers=1, out_logits=tmp_path / 'logits'))
    said = capsys.readouterr().out
    scores = json.loads((out / 'scores.json').read_text())
    assert scores['images'] == len(IDS)
    for variant in ('single', 'single_crf', 'multi', 'multi_crf'):
        counts = sum(metrics.confusion(read_mask(data / f'VOC2012/SegmentationClass/{name}.png'),
                                       read_mask(out / variant / f'{name}.png'), VOC.num_classes) for name in IDS)
        assert scores['miou'][variant] == pytest.approx(metrics.mean_iou(counts), abs=1e-6)
        assert f'{scores["miou"][variant]:12.2f}' in said
    assert len(set(scores['miou'].values())) == len(scores['miou'])  # no two folders are taken for each other
    logits = np.load(tmp_path / 'logits' / f'{IDS[0]}.npy')
    assert logits.dtype == np.float16
    assert logits.shape == (VOC.num_classes, *SIZE)
    assert (logits.argmax(0) == read_mask(out / f'multi/{IDS[0]}.png')).mean() > 0.99  # ties of float16 aside


def test_images_that_are_done_are_skipped_and_scored(data, tmp_path, capsys):
    run_main(TEST, *infer_argv(data, tmp_path))
    scores = json.loads((tmp_path / 'scores.json').read_text())
    kept = (tmp_path / 'multi' / f'{IDS[0]}.png').stat().st_mtime_ns
    (tmp_path / 'single_crf' / f'{IDS[1]}.png').unlink()
    capsys.readouterr()
    run_main(TEST, *infer_argv(data, tmp_path))
    assert '1 of 6 images to do' in capsys.readouterr().out
    assert json.loads((tmp_path / 'scores.json').read_text()) == scores
    assert (tmp_path / 'multi' / f'{IDS[0]}.png').stat().st_mtime_ns == kept


def test_predictions_of_two_runs_are_not_mixed(capsys, data, tmp_path):
    run_main(TEST, *infer_argv(data, tmp_path))
    before = tree_bytes(tmp_path)
    error = assert_refused(capsys, TEST, *infer_argv(data, tmp_path, crf_iters=2))
    assert 'holds 6 files made with another crf_iters; add --overwrite' in error
    assert tree_bytes(tmp_path) == before
    run_main(TEST, *infer_argv(data, tmp_path, crf_iters=2, overwrite=True))
    after = tree_bytes(tmp_path, '.png')
    changed = {path.parent.name for path in after if after[path] != before[path]}
    assert changed == {'single_crf', 'multi_crf'}


@pytest.mark.parametrize('flags, message', [
    ({'experiment': 'EPS_deeplabv2_resnet101'}, 'deeplab.pth: holds deeplabv1_resnet38, .* needs deeplabv2_resnet101'),
    ({'weights': 'nowhere.pth'}, 'weights not found'),
    ({'gt_dir': 'nowhere'}, 'nowhere.*6 of 6 are missing.*--split test'),
    ({'infer_list': 'nowhere.txt'}, 'list not found'),
])
def test_testing_refuses_what_cannot_work(capsys, data, tmp_path, flags, message):
    assert re.search(message, assert_refused(capsys, TEST, *infer_argv(data, tmp_path / 'out', **flags)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, flag', [('train.py', '--train_list'), ('test.py', '--infer_list')])
def test_scripts_run_from_their_folder_and_end_with_one_line(name, flag):
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, name, flag, 'nowhere.txt'], cwd=REPO / 'segmentation/experiment',
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: nowhere.txt: ')
    assert done.stderr.count('\n') == 1


# ---------------------------------------------------------------- the server's archive

@pytest.fixture(scope='module')
def archive(data, tmp_path_factory):
    """The archive that test.py writes for a split without ground truth."""
    out = tmp_path_factory.mktemp('server')
    run_main(TEST, *infer_argv(data, out, split='test', gt_dir='nowhere'))
    return out / 'comp6_test_cls.tar.gz'


def test_our_archive_is_accepted(data, archive, capsys):
    run_main('segmentation/server_archive', '--check', archive, '--list', data / 'list.txt',
             '--voc12_root', data / 'VOC2012')
    assert '6 results, all well formed' in capsys.readouterr().out
    with tarfile.open(archive) as file:
        assert sorted(file.getnames()) == [f'results/VOC2012/Segmentation/comp6_test_cls/{name}.png' for name in IDS]


def test_the_same_predictions_give_the_same_archive(archive):
    server_archive.write(archive.with_name('again.tar.gz'), IDS, archive.parent / server_archive.FOLDER)
    assert archive.with_name('again.tar.gz').read_bytes() == archive.read_bytes()


def png(labels, mode='P', palette=VOC.palette):
    """A PNG of a label map, as bytes."""
    image = Image.fromarray(labels)
    if mode == 'P':
        image.putpalette(palette)
    data = io.BytesIO()
    (image if mode == 'P' else image.convert(mode)).save(data, 'PNG')
    return data.getvalue()


GOOD = np.zeros(SIZE, np.uint8)
SPOILED = {
    'RGB': (png(GOOD, 'RGB'), 'of mode RGB, not a palette PNG'),
    'grey': (png(GOOD, 'L'), 'of mode L'),
    'size': (png(GOOD[:, 1:]), 'is 40x55 .* its image 40x56'),
    'label': (png(GOOD + np.uint8(IGNORE)), 'holds the label 255'),
    'palette': (png(GOOD, palette=[0, 1, 2] * 256), 'another palette'),
    'no image': (b'hello', 'cannot be read'),
    'missing': (None, 'lacks 1 of 6 results, image_2'),
}


def repacked(archive, path, name, content, extra=None):
    """Write a copy of an archive with one entry replaced, or dropped where content is None, and an entry more."""
    with tarfile.open(archive) as source, tarfile.open(path, 'w:gz') as target:
        entries = {entry.name: source.extractfile(entry).read() for entry in source}
        entries[f'{server_archive.FOLDER}/{name}.png'] = content
        for key, value in {**entries, **(extra or {})}.items():
            if value is not None:
                entry = tarfile.TarInfo(key)
                entry.size = len(value)
                target.addfile(entry, io.BytesIO(value))
    return path


@pytest.mark.parametrize('kind', SPOILED)
def test_spoiled_results_are_rejected(data, archive, tmp_path, kind):
    content, message = SPOILED[kind]
    bad = repacked(archive, tmp_path / 'bad.tar.gz', IDS[2], content)
    with pytest.raises(UserError, match=message):
        server_archive.check(bad, IDS, devkit_photos(data / 'VOC2012'), VOC)


def test_spoiled_archives_are_rejected(data, archive, tmp_path):
    images = devkit_photos(data / 'VOC2012')
    stranger = repacked(archive, tmp_path / 'stranger.tar.gz', IDS[2], png(GOOD), {'../passwd': b'x'})
    short, other = tmp_path / 'short.tar.gz', tmp_path / 'other.tar.gz'
    short.write_bytes(archive.read_bytes()[:-200])
    other.write_bytes(gzip.compress(b'hello'))
    for path, message in ((stranger, r'holds \.\./passwd'), (short, 'not a whole'), (other, 'not a whole'),
                          (tmp_path / 'none.tar.gz', 'not found')):
        with pytest.raises(UserError, match=message):
            server_archive.check(path, IDS, images, VOC)

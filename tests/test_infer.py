"""contrast_infer.py: the published seeds of a real photo, starting again, and what users get wrong."""
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GOLDEN, assert_refused, golden, run_main, run_script, tree_bytes
from PIL import Image

from data.cams import read_cams
from data.images import image_size
from data.labels import read_labels
from data.lists import read_list
from data.masks import read_mask
from engine.files import read_npy
from network import resnet38_aff
from voc12.classes import VOC

PHOTO = '2011_000002'  # the smaller of the two in golden/voc
infer = functools.partial(run_main, 'contrast_infer')


def tiny_arguments(toy, out, *flags):
    """The arguments of a contrast_infer.py run at width 1/16 whose folders are in `out`."""
    return ['--weights', toy.net, '--infer_list', toy.train, '--voc12_root', toy.root, '--cls_labels', toy.labels,
            '--out_cam', out / 'cam', '--out_cam_pred', out / 'pred', '--out_crf', out / 'crf', '--scales', 0.5, 1,
            '--crf_iters', 2, '--num_workers', 0, '--device', 'cpu', *flags]


@pytest.fixture
def tiny(toy):
    """tiny_arguments on the toy set: a function from an output folder and more flags."""
    return functools.partial(tiny_arguments, toy)


# ---------------------------------------------------------------- the real photo

@pytest.fixture(scope='module')
def photo(published_weights, tmp_path_factory):
    """The folder of what the network at full width makes of the photo: cam, pred, crf."""
    out = tmp_path_factory.mktemp('photo')
    voc = GOLDEN / 'voc'
    (out / 'list.txt').write_text(f'/JPEGImages/{PHOTO}.jpg /SegmentationClassAug/{PHOTO}.png\n')
    infer('--weights', published_weights, '--infer_list', out / 'list.txt', '--num_workers', 0, '--device', 'cpu',
          '--voc12_root', voc / 'VOC2012', '--cls_labels', voc / 'cls_labels.npy',
          '--out_cam', out / 'cam', '--out_cam_pred', out / 'pred', '--out_crf', out / 'crf')
    return out


@pytest.mark.wide
def test_cams_of_the_photo_are_the_published_ones(photo):
    chain = golden('chain.npz')
    present, cams = read_cams(photo / 'cam' / f'{PHOTO}.npy', VOC.num_foreground)
    assert present.tolist() == chain[f'cam_keys_{PHOTO}'].tolist()
    assert cams.dtype == np.float32 and cams.shape == chain[f'cam_{PHOTO}'].shape
    assert np.abs(cams - chain[f'cam_{PHOTO}']).max() <= 1e-4  # they are stretched to 0..1


@pytest.mark.wide
@pytest.mark.parametrize('kind', ['pred', 'crf'])
def test_masks_of_the_photo_are_the_published_ones(photo, kind):
    mask = Image.open(photo / kind / f'{PHOTO}.png')
    assert mask.mode == 'P' and mask.getpalette()[:9] == VOC.palette[:9]
    assert (np.asarray(mask) == golden('chain.npz')[f'{kind}_{PHOTO}']).mean() >= 0.999


@pytest.mark.wide
def test_seeds_of_the_photo_can_be_scored(photo, tmp_path):
    def score(*flags):
        run_main('eval', '--list', photo / 'list.txt', '--gt_dir', GOLDEN / 'voc' / 'VOC2012' / 'SegmentationClass',
                 '--comment', 'photo', '--logfile', tmp_path / 'log.txt', '--num_workers', 0, *flags)
        return json.loads((tmp_path / 'log.txt.json').read_text())
    npy = score('--predict_dir', photo / 'cam', '--type', 'npy', '--curve')
    png = score('--predict_dir', photo / 'pred', '--type', 'png')
    # The seeds are the argmax of the CAMs under the default background score, and so is the fixed threshold of eval.py.
    assert npy['fixed']['miou'] == pytest.approx(png['fixed']['miou']) and 0 < png['fixed']['miou'] < 100
    assert npy['best']['miou'] >= npy['fixed']['miou'] and npy['images'] == 1


# ---------------------------------------------------------------- outputs and restarts

def test_outputs_agree_and_hold_present_classes_only(tiny, toy, tmp_path):
    infer(*tiny(tmp_path, '--out_cam_pred_alpha', 0.4))
    labels = read_labels(toy.labels, VOC.num_foreground)
    ids = read_list(toy.train)
    assert len(tree_bytes(tmp_path)) == 3 * (len(ids) + 1)  # each folder's run.json
    for name in ids:
        present, cams = read_cams(tmp_path / 'cam' / f'{name}.npy', VOC.num_foreground)
        height, width = image_size(toy.root / 'JPEGImages' / f'{name}.jpg')
        assert present.tolist() == np.flatnonzero(labels[name]).tolist() and cams.shape[1:] == (height, width)
        scores = np.concatenate([np.full((1, height, width), 0.4, np.float32), cams])
        expected = np.append(0, present + 1)[scores.argmax(0)]
        assert (read_mask(tmp_path / 'pred' / f'{name}.png') == expected).all()
        assert set(np.unique(read_mask(tmp_path / 'crf' / f'{name}.png'))) <= {0, *(present + 1)}


def test_cams_are_read_by_plain_numpy_as_published_ones_are(tiny, toy, tmp_path):
    infer(*tiny(tmp_path))
    name = read_list(toy.train)[0]
    cams = np.load(tmp_path / 'cam' / f'{name}.npy', allow_pickle=True).item()  # ours, as others' scripts read it
    assert isinstance(cams, dict) and all(type(key) is int and cam.dtype == np.float32 for key, cam in cams.items())


def test_what_is_done_is_skipped_unless_told_otherwise(tiny, tmp_path, capsys):
    infer(*tiny(tmp_path))
    whole = tree_bytes(tmp_path)
    spoiled = sorted((tmp_path / 'pred').iterdir())[0]
    spoiled.write_bytes(b'kept')
    sorted((tmp_path / 'cam').iterdir())[1].unlink()
    capsys.readouterr()
    infer(*tiny(tmp_path))
    assert '12 images, 11 done already' in capsys.readouterr().out and spoiled.read_bytes() == b'kept'
    infer(*tiny(tmp_path, '--overwrite'))
    assert tree_bytes(tmp_path) == whole


def test_processes_beside_the_main_one_change_nothing(tiny, tmp_path):
    infer(*tiny(tmp_path / 'alone'))
    infer(*tiny(tmp_path / 'helped', '--num_workers', 1))
    assert tree_bytes(tmp_path / 'alone') == tree_bytes(tmp_path / 'helped')


# ---------------------------------------------------------------- what users get wrong

@pytest.fixture
def devkit(toy, tmp_path):
    """A copy of the toy set's photos, list and labels, to be damaged."""
    root = tmp_path / 'devkit'
    shutil.copytree(toy.root / 'JPEGImages', root / 'JPEGImages')
    shutil.copy(toy.train, root / 'list.txt')
    shutil.copy(toy.labels, root / 'labels.npy')
    return root


def second(devkit):
    """(id, path) of the second photo of the list."""
    name = read_list(devkit / 'list.txt')[1]
    return name, devkit / 'JPEGImages' / f'{name}.jpg'


def missing_image(devkit):
    second(devkit)[1].unlink()
    return str(second(devkit)[1])


def unknown_id(devkit):
    with open(devkit / 'list.txt', 'a') as file:
        file.write('2099_000001\n')
    return 'no label for 2099_000001'


def id_without_label(devkit):
    labels = read_npy(devkit / 'labels.npy')
    del labels[second(devkit)[0]]
    np.save(devkit / 'labels.npy', labels)
    return f'no label for {second(devkit)[0]}'


def empty_list(devkit):
    (devkit / 'list.txt').write_text('\n \n')
    return 'list.txt: list is empty'


def no_list(devkit):
    (devkit / 'list.txt').unlink()
    return 'list.txt: list not found'


def no_labels(devkit):
    (devkit / 'labels.npy').write_bytes(b'\x93NUMPY\x01')
    return 'labels.npy: not a .npy file'


def no_devkit(devkit):
    shutil.rmtree(devkit / 'JPEGImages')
    return '12 of 12 are missing'


def another_mode(mode):
    def damage(devkit):
        path = second(devkit)[1]
        Image.open(path).convert(mode).save(path, 'PNG' if mode == 'P' else 'JPEG')
        return f'{path}: image mode is {mode}, not RGB'
    damage.__name__ = f'image_of_mode_{mode}'
    return damage


def truncated(devkit):
    path = second(devkit)[1]
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    return f'{path}: image cannot be read'


def no_image(devkit):
    second(devkit)[1].write_text('<html>404 not found</html>')
    return f'{second(devkit)[1]}: image cannot be read'


def too_small(devkit):
    Image.new('RGB', (20, 7)).save(second(devkit)[1])
    return 'image is 20x7 pixels, under 8'


BEFORE_WORK = [missing_image, unknown_id, id_without_label, empty_list, no_list, no_labels, no_devkit]
AT_THE_IMAGE = [another_mode('L'), another_mode('CMYK'), another_mode('P'), truncated, no_image, too_small]


def inference_of(devkit, tiny, out, *flags):
    """The arguments of contrast_infer.py on a damaged copy."""
    return tiny(out, '--infer_list', devkit / 'list.txt', '--voc12_root', devkit,
                '--cls_labels', devkit / 'labels.npy', *flags)


def training_of(devkit, toy, out, *flags):
    """The arguments of contrast_train.py on a damaged copy, session <out>/run."""
    return ['--weights', toy.backbone, '--train_list', devkit / 'list.txt', '--voc12_root', devkit,
            '--cls_labels', devkit / 'labels.npy', '--val_list', '', '--session_name', out / 'run',
            '--tblog_dir', out / 'tensorboard', '--crop_size', 32, '--resize_long', 32, 40, '--view2_size', 24,
            '--max_epoches', 1, '--num_workers', 0, '--device', 'cpu', *flags]


@pytest.mark.parametrize('damage', BEFORE_WORK + AT_THE_IMAGE)
def test_inference_on_damaged_data_is_refused(damage, devkit, tiny, tmp_path, capsys):
    expected = damage(devkit)
    assert expected in assert_refused(capsys, 'contrast_infer', *inference_of(devkit, tiny, tmp_path / 'out'))
    written = tree_bytes(tmp_path / 'out')
    if damage in BEFORE_WORK:
        assert not written
    else:  # the first photo is done, the second is not begun
        first = read_list(devkit / 'list.txt')[0]
        notes = {f'{kind}/run.json' for kind in ('cam', 'pred', 'crf')}
        assert {str(path) for path in written} == notes | {f'cam/{first}.npy', f'pred/{first}.png', f'crf/{first}.png'}


@pytest.mark.parametrize('damage', BEFORE_WORK + AT_THE_IMAGE)
def test_training_on_damaged_data_is_refused(damage, devkit, toy, tmp_path, capsys):
    expected = damage(devkit)
    arguments = training_of(devkit, toy, tmp_path / 'out', '--batch_size', 2)
    assert expected in assert_refused(capsys, 'contrast_train', *arguments)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'P'])
def test_other_colour_modes_can_be_converted(mode, devkit, tiny, tmp_path):
    another_mode(mode)(devkit)
    infer(*inference_of(devkit, tiny, tmp_path / 'out', '--convert_rgb'))
    assert len(tree_bytes(tmp_path / 'out', '.npy')) == 12


def test_errors_in_worker_processes_reach_the_user(devkit, tiny, tmp_path, capsys):
    expected = truncated(devkit)
    arguments = inference_of(devkit, tiny, tmp_path / 'out', '--num_workers', 1)
    assert expected in assert_refused(capsys, 'contrast_infer', *arguments)
    assert not list((tmp_path / 'out').rglob('.*'))


def test_the_real_command_ends_with_one_line_and_no_traceback_from_a_worker_either(devkit, tiny, tmp_path):
    expected = truncated(devkit)
    run = run_script('contrast_infer', *inference_of(devkit, tiny, tmp_path / 'out', '--num_workers', 1))
    assert run.returncode == 2
    assert [line for line in run.stderr.splitlines() if 'error' in line.lower()] == [run.stderr.splitlines()[-1]]
    assert run.stderr.splitlines()[-1].startswith(f'error: {expected}') and 'Traceback' not in run.stderr


def foreign_weights(kind, path, toy):
    """Write weights that network.resnet38_contrast cannot infer with; returns what the error must say."""
    if kind == 'another network':
        torch.save(resnet38_aff.Net(1 / 16).state_dict(), path)
        return 'looks like an AffinityNet of width 0.0625'
    if kind == 'backbone only':
        shutil.copy(toy.backbone, path)
        return 'looks like a ResNet-38 backbone'
    state = torch.load(toy.net, weights_only=True)
    if kind == 'other classes':
        torch.save(state | {'fc8.weight': state['fc8.weight'][:-1]}, path)
        return 'fc8.weight has shape'
    if kind == 'not finite':
        torch.save(state | {'fc8.weight': state['fc8.weight'] * float('nan')}, path)
        return 'not finite'
    if kind == 'no weights':
        path.write_bytes(b'hello')
    return {'no weights': 'not a file of PyTorch weights', 'absent': 'weights not found'}[kind]


@pytest.mark.parametrize('kind', ['another network', 'backbone only', 'other classes', 'not finite', 'no weights',
                                  'absent'])
def test_weights_that_do_not_fit_are_refused(kind, toy, tiny, tmp_path, capsys):
    path = tmp_path / 'w.pth'
    expected = foreign_weights(kind, path, toy)
    message = assert_refused(capsys, 'contrast_infer', *tiny(tmp_path / 'out', '--weights', path))
    assert expected in message and str(path) in message
    assert not tree_bytes(tmp_path / 'out')


def test_training_from_another_network_is_refused(devkit, toy, tmp_path, capsys):
    torch.save({'layer1.0.conv1.weight': torch.zeros(3)}, tmp_path / 'w.pth')
    arguments = training_of(devkit, toy, tmp_path / 'out', '--weights', tmp_path / 'w.pth')
    assert 'does not fit network.resnet38_contrast' in assert_refused(capsys, 'contrast_train', *arguments)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('device, expected', [
    ('cuda', '--device: no CUDA device'), ('cuda:1', '--device: no CUDA device'),
    ('gpu', "--device: 'gpu' is unknown")])
def test_a_device_that_is_not_there_is_refused(device, expected, devkit, toy, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    out = tmp_path / 'out'
    assert expected in assert_refused(capsys, 'contrast_infer', *tiny(out, '--device', device))
    assert expected in assert_refused(capsys, 'contrast_train', *training_of(devkit, toy, out, '--device', device))
    assert not out.exists()


def test_output_that_cannot_be_written_is_refused(devkit, toy, tiny, tmp_path, capsys):
    blocked = tmp_path / 'file'
    blocked.write_text('not a folder')
    out = tmp_path / 'out'
    infers, trains = (functools.partial(assert_refused, capsys, name) for name in ('contrast_infer', 'contrast_train'))
    assert '--out_cam: folder' in infers(*tiny(blocked))
    assert '--out_crf: folder' in infers(*tiny(out, '--out_crf', blocked / 'crf'))
    assert '--session_name: folder' in trains(*training_of(devkit, toy, blocked))
    assert '--tblog_dir: folder' in trains(*training_of(devkit, toy, out, '--tblog_dir', blocked))
    assert blocked.read_text() == 'not a folder' and not tree_bytes(out / 'cam')


def test_a_disk_that_fills_up_leaves_nothing_half_written(tiny, tmp_path, capsys, monkeypatch):
    def full(path, value):
        Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'save', full)
    assert 'No space left on device' in assert_refused(capsys, 'contrast_infer', *tiny(tmp_path / 'out'))
    assert {path.name for path in tree_bytes(tmp_path / 'out')} == {'run.json'}


def test_contradictory_outputs_are_refused(tiny, tmp_path, capsys):
    arguments = tiny(tmp_path, '--out_crf', tmp_path / 'pred')
    assert 'pred: was given for two sorts of .png' in assert_refused(capsys, 'contrast_infer', *arguments)
    arguments = tiny(tmp_path)
    without = arguments[:arguments.index('--out_cam')] + arguments[arguments.index('--scales'):]
    assert 'no output folder' in assert_refused(capsys, 'contrast_infer', *without)

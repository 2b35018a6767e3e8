"""eval.py and tool/evaluation.py: the golden numbers from files, what is written, and every mistake a user can make."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as script
from data.masks import save_mask
from engine import cli, files
from engine.evaluation import evaluate
from reference import curve as published
from tool.metrics import CURVE
from voc12.classes import VOC

GOLDEN = np.load(Path(__file__).parent / 'golden' / 'eval.npz')
IDS = [str(i) for i in GOLDEN['names']]


@pytest.fixture
def data(tmp_path):
    """The golden predictions and ground truth as files: npy/, png/, gt/, list.txt."""
    for i in IDS:
        for folder, name in (('gt', 'gt'), ('png', 'pred')):
            files.out_dir(tmp_path / folder, '')
            save_mask(tmp_path / folder / f'{i}.png', GOLDEN[f'{name}_{i}'], VOC.palette)
        files.out_dir(tmp_path / 'npy', '')
        files.save_npy(tmp_path / 'npy' / f'{i}.npy', dict(zip(GOLDEN[f'cam_keys_{i}'].tolist(), GOLDEN[f'cam_{i}'])))
    (tmp_path / 'list.txt').write_text('\n'.join(IDS) + '\n')
    return tmp_path


def command(data, type='npy', **flags):
    """The arguments of eval.py on the golden data; flags replace or add (None removes)."""
    flags = {'list': data / 'list.txt', 'predict_dir': data / type, 'gt_dir': data / 'gt', 'comment': 'test',
             'type': type, 'logfile': data / 'log.txt', 'num_workers': 0, **flags}
    return [text for name, value in flags.items() if value is not None for text in (f'--{name}', str(value))]


def run(data, **flags):
    cli.run(script.main, script.get_args_parser(), command(data, **flags))


def fails(capsys, data, *words, **flags):
    """Run eval.py and check that it ends with status 2, one error line that has all the words, and no output."""
    with pytest.raises(SystemExit) as exit_info:
        run(data, **flags)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert exit_info.value.code == 2 and len(error) == 1 and all(str(word) in error[0] for word in words), error
    assert not list(data.glob('log.txt*'))


def test_golden_curve(data):
    run(data, curve='True')
    summary = json.loads((data / 'log.txt.json').read_text())
    np.testing.assert_allclose(list(summary['curve'].values()), GOLDEN['curve'], atol=1e-6)
    assert summary['best']['threshold'] == 0.49 and summary['fixed']['threshold'] == 0.26
    assert summary['fixed']['miou'] == pytest.approx(GOLDEN['curve'][26], abs=1e-6)
    with Image.open(data / 'log.txt.png') as picture:
        assert min(picture.size) > 200


def test_golden_masks_and_log(data, capsys):
    run(data, type='png')
    summary = json.loads((data / 'log.txt.json').read_text())
    assert summary['fixed']['miou'] == pytest.approx(float(GOLDEN['miou']), abs=1e-6)
    np.testing.assert_allclose(list(summary['fixed']['class_iou'].values()), GOLDEN['class_iou'], atol=1e-6)
    assert summary['images'] == len(IDS) and summary['fixed']['threshold'] is None and summary['best'] is None
    assert 'mIoU               33.18' in capsys.readouterr().out
    run(data, type='npy', t=0.35)
    log = (data / 'log.txt').read_text()
    assert log.count('\ttest\n') == 2 and log.count('=' * 37 + '\n') == 2
    assert log.count('mIoU:33.181  ') == 2  # the golden masks are the golden CAMs at 0.35


def test_report_says_what_a_number_is(data, capsys):
    run(data, curve='True', t=0.3)
    out = capsys.readouterr().out
    assert f'{len(IDS)} images of {data / "list.txt"} (split: unknown)' in out
    assert 'fixed: background score 0.3, chosen without' in out
    assert 'best on this ground truth: background score 0.49' in out


def test_a_threshold_between_those_of_the_curve(data):
    run(data, curve='True', t=0.355)
    summary = json.loads((data / 'log.txt.json').read_text())
    assert len(summary['curve']) == len(CURVE) and summary['fixed']['threshold'] == 0.355
    assert GOLDEN['curve'][35] < summary['fixed']['miou'] < GOLDEN['curve'][36]


def test_processes_agree_with_one(data):
    one, two = (evaluate(IDS, data / 'npy', data / 'gt', VOC, workers=workers) for workers in (0, 2))
    np.testing.assert_array_equal(one.counts, two.counts)


def test_published_command_from_another_folder(data):
    """As the README writes it, in a process of its own, with the list in the published form."""
    (data / 'list.txt').write_text(''.join(f'/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n' for i in IDS))
    flags = '--list list.txt --predict_dir npy --gt_dir gt --comment test --type npy --curve True'
    done = subprocess.run([sys.executable, files.REPO / 'eval.py', *flags.split()], cwd=data,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (data / 'evallog.txt').is_file() and (data / 'evallog.txt.json').is_file()


def test_published_curve_matches_golden(data):
    np.testing.assert_allclose(published.curve(IDS, data / 'npy', data / 'gt'), GOLDEN['curve'], atol=1e-6)


def write_splits(folder, **splits):
    for name, ids in splits.items():
        (folder / f'{name}.txt').write_text('\n'.join(ids) + '\n')


def test_split_is_named(data):
    write_splits(data, train=IDS[:2], train_aug=IDS[:4], val=IDS[4:])
    assert script.split_of(IDS[1:2], data / 'list.txt') == 'train'
    assert script.split_of(IDS[1:4], data / 'list.txt') == 'train_aug'
    assert script.split_of(IDS[4:], data / 'list.txt') == 'val'
    assert script.split_of(IDS + ['another'], data / 'list.txt') == 'unknown'


# ---------------------------------------------------------------- mistakes

def test_mixture_of_splits(data, capsys):
    write_splits(data, train=IDS[:2], train_aug=IDS[:4], val=IDS[4:])
    fails(capsys, data, 'list.txt', 'mixes images of val')


def test_curve_of_masks(data, capsys):
    fails(capsys, data, '--curve', 'a mask has no scores', type='png', curve='True')
    fails(capsys, data, '--t', 'a mask has no scores', type='png', t=0.3)


def test_missing_files(data, capsys):
    (data / 'npy' / f'{IDS[3]}.npy').unlink()
    fails(capsys, data, IDS[3], 'file not found (1 of 6', '--predict_dir')
    (data / 'gt' / f'{IDS[2]}.png').unlink()
    fails(capsys, data, IDS[2], '--gt_dir', type='png')
    fails(capsys, data, '--predict_dir', predict_dir=data / 'nowhere')


def test_empty_or_missing_list(data, capsys):
    (data / 'list.txt').write_text('\n')
    fails(capsys, data, 'list.txt', 'empty')
    fails(capsys, data, 'nowhere.txt', 'not found', list=data / 'nowhere.txt')


@pytest.mark.parametrize('type', ['npy', 'png'])
def test_another_shape_than_the_ground_truth(data, capsys, type):
    i = IDS[1]
    if type == 'npy':
        files.save_npy(data / 'npy' / f'{i}.npy', {0: GOLDEN[f'cam_{i}'][0][:, :-1]})
    else:
        save_mask(data / 'png' / f'{i}.png', GOLDEN[f'pred_{i}'][:, :-1], VOC.palette)
    fails(capsys, data, f'{i}.{type}', '59x51', '59x52', type=type)


@pytest.mark.parametrize('folder', ['png', 'gt'])
def test_label_out_of_range(data, capsys, folder):
    mask = GOLDEN[f'pred_{IDS[0]}'].copy()
    mask[0, 0] = VOC.num_classes
    save_mask(data / folder / f'{IDS[0]}.png', mask, VOC.palette)
    fails(capsys, data, f'{folder}/{IDS[0]}.png', f'label {VOC.num_classes}', type='png')


def test_coloured_mask(data, capsys):
    Image.open(data / 'png' / f'{IDS[0]}.png').convert('RGB').save(data / 'png' / f'{IDS[0]}.png')
    fails(capsys, data, IDS[0], 'mode RGB', type='png')


@pytest.mark.parametrize('value, words', [
    (np.zeros((21, 55, 59), np.float32), 'not a dict'), ({}, 'no class'), ({20: np.zeros((55, 59))}, 'do not fit'),
    ({0: np.zeros((55, 59)), 1: np.zeros((5, 5))}, 'no CAMs of one shape'),
    ({0: np.full((55, 59), np.nan)}, 'not finite')])
def test_npy_that_holds_no_cams(data, capsys, value, words):
    files.save_npy(data / 'npy' / f'{IDS[0]}.npy', value)
    fails(capsys, data, f'{IDS[0]}.npy', words)


def test_a_workers_error_is_one_line_too(data, capsys):
    files.save_npy(data / 'npy' / f'{IDS[0]}.npy', {})
    fails(capsys, data, f'{IDS[0]}.npy', 'no class', num_workers=2)


def test_logfile_that_cannot_be_written(data, capsys):
    (data / 'file').touch()
    fails(capsys, data, '--logfile', logfile=data / 'file' / 'log.txt')
    fails(capsys, data, data / 'gt', 'log cannot be written', logfile=data / 'gt')


def test_threshold_out_of_range(data, capsys):
    fails(capsys, data, '--t', t=1.5)

"""eval.py, engine/evaluation.py: the golden numbers from files, what is written, and every mistake a user can make."""
import functools
import json

import numpy as np
import pytest
from helpers import assert_refused, golden, run_main, run_script, script
from PIL import Image

from data.cams import save_cams
from data.description import read_dataset
from data.masks import save_mask
from engine import files
from engine.evaluation import evaluate_cams, evaluate_masks
from reference import curve as published
from tool.metrics import CURVE, IGNORE
from voc12.classes import VOC

GOLDEN = golden('eval.npz')
IDS = [str(i) for i in GOLDEN['names']]


@pytest.fixture
def data(tmp_path):
    """The golden predictions and ground truth as files: npy/, png/, gt/, list.txt."""
    for folder in ('npy', 'png', 'gt'):
        (tmp_path / folder).mkdir()
    for i in IDS:
        save_mask(tmp_path / 'gt' / f'{i}.png', GOLDEN[f'gt_{i}'], VOC.palette)
        save_mask(tmp_path / 'png' / f'{i}.png', GOLDEN[f'pred_{i}'], VOC.palette)
        save_cams(tmp_path / 'npy' / f'{i}.npy', GOLDEN[f'cam_keys_{i}'], GOLDEN[f'cam_{i}'])
    (tmp_path / 'list.txt').write_text('\n'.join(IDS) + '\n')
    return tmp_path


def argv(data, type='npy', **flags):
    """The command line of eval.py on the golden data, whose log is log.txt; `flags` replace or add."""
    flags = {'list': data / 'list.txt', 'predict_dir': data / type, 'gt_dir': data / 'gt', 'comment': 'test',
             'type': type, 'logfile': data / 'log.txt', 'num_workers': 0, **flags}
    return [text for name, value in flags.items() for text in (f'--{name}', value)]


def evaluate(data, **flags):
    """Run eval.py; what it wrote to log.txt.json."""
    run_main('eval', *argv(data, **flags))
    return json.loads((data / 'log.txt.json').read_text())


def assert_eval_refuses(capsys, data, *words, **flags):
    """Run eval.py; its one error line must hold all the words, and no log may be written."""
    error = assert_refused(capsys, 'eval', *argv(data, **flags))
    for word in words:
        assert str(word) in error
    assert not list(data.glob('log.txt*'))


def test_the_curve_is_the_golden_one(data):
    summary = evaluate(data, curve='True')
    np.testing.assert_allclose(list(summary['curve'].values()), GOLDEN['curve'], atol=1e-6)
    assert summary['best']['threshold'] == 0.49
    assert summary['fixed']['threshold'] == 0.26
    assert summary['fixed']['miou'] == pytest.approx(GOLDEN['curve'][26], abs=1e-6)
    with Image.open(data / 'log.txt.png') as picture:
        assert min(picture.size) > 200


def test_scores_of_masks_and_the_log_are_the_golden_ones(data, capsys):
    summary = evaluate(data, type='png')
    assert summary['fixed']['miou'] == pytest.approx(float(GOLDEN['miou']), abs=1e-6)
    np.testing.assert_allclose(list(summary['fixed']['class_iou'].values()), GOLDEN['class_iou'], atol=1e-6)
    assert summary['images'] == len(IDS)
    assert summary['fixed']['threshold'] is None
    assert summary['best'] is None
    assert 'mIoU               33.18' in capsys.readouterr().out
    evaluate(data, type='npy', t=0.35)
    log = (data / 'log.txt').read_text()
    assert log.count('\ttest\n') == log.count('=' * 37 + '\n') == 2
    assert log.count('mIoU:33.181  ') == 2  # the golden masks are the golden CAMs at 0.35


def test_the_report_says_what_a_number_is(data, capsys):
    evaluate(data, curve='True', t=0.3)
    said = capsys.readouterr().out
    assert f'{len(IDS)} images of {data / "list.txt"} (split: unknown)' in said
    assert 'fixed: background score 0.3, chosen without' in said
    assert 'best on this ground truth: background score 0.49' in said


def test_a_threshold_may_lie_between_those_of_the_curve(data):
    summary = evaluate(data, curve='True', t=0.355)
    assert len(summary['curve']) == len(CURVE)
    assert summary['fixed']['threshold'] == 0.355
    assert GOLDEN['curve'][35] < summary['fixed']['miou'] < GOLDEN['curve'][36]


def test_pixels_without_a_predicted_label_are_misses_and_their_fraction_is_said(data, capsys):
    labelled = sum((GOLDEN[f'gt_{i}'] != IGNORE).sum() for i in IDS)
    gt, mask = GOLDEN[f'gt_{IDS[0]}'], GOLDEN[f'pred_{IDS[0]}'].copy()
    mask[:10] = IGNORE
    save_mask(data / 'png' / f'{IDS[0]}.png', mask, VOC.palette)
    fraction = (gt[:10] != IGNORE).sum() / labelled
    summary = evaluate(data, type='png')
    assert summary['unlabelled_fraction'] == pytest.approx(fraction)
    assert summary['fixed']['miou'] < float(GOLDEN['miou'])
    assert f'{100 * fraction:.2f}% of the pixels have no predicted label' in capsys.readouterr().out


@pytest.mark.parametrize('score, folder', [(evaluate_cams, 'npy'), (evaluate_masks, 'png')])
def test_processes_agree_with_one(data, score, folder):
    one, two = (score(IDS, data / folder, data / 'gt', VOC, num_workers=workers) for workers in (0, 2))
    np.testing.assert_array_equal(one.counts, two.counts)
    assert one.counts[0].sum() == sum((GOLDEN[f'gt_{i}'] != IGNORE).sum() for i in IDS)


def test_the_published_command_runs_from_another_folder(data):
    """As the README writes it, in a process of its own, with the list in the published form."""
    (data / 'list.txt').write_text(''.join(f'/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n' for i in IDS))
    flags = '--list list.txt --predict_dir npy --gt_dir gt --comment test --type npy --curve True'
    done = run_script('eval', *flags.split(), cwd=data)
    assert done.returncode == 0, done.stderr
    assert (data / 'evallog.txt').is_file()
    summary = json.loads((data / 'evallog.txt.json').read_text())
    np.testing.assert_allclose(list(summary['curve'].values()), GOLDEN['curve'], atol=1e-6)


def test_the_published_curve_in_plain_loops_is_the_golden_one(data):
    np.testing.assert_allclose(published.curve(IDS, data / 'npy', data / 'gt'), GOLDEN['curve'], atol=1e-6)


def write_splits(folder, **splits):
    """Write the lists of a data set beside the list that is scored."""
    for name, ids in splits.items():
        (folder / f'{name}.txt').write_text('\n'.join(ids) + '\n')


def test_the_split_of_a_list_is_named(data):
    write_splits(data, train=IDS[:2], train_aug=IDS[:4], val=IDS[4:])
    split_of = functools.partial(script('eval').split_of, data=read_dataset('voc12'))
    assert split_of(IDS[1:2], data / 'list.txt') == 'train'
    assert split_of(IDS[1:4], data / 'list.txt') == 'train_aug'
    assert split_of(IDS[4:], data / 'list.txt') == 'val'
    assert split_of(IDS + ['another'], data / 'list.txt') == 'unknown'


# ---------------------------------------------------------------- mistakes

def test_a_mixture_of_splits_is_refused(data, capsys):
    write_splits(data, train=IDS[:2], train_aug=IDS[:4], val=IDS[4:])
    assert_eval_refuses(capsys, data, 'list.txt', 'mixes images of val')


def test_masks_have_neither_curve_nor_threshold(data, capsys):
    assert_eval_refuses(capsys, data, '--curve', 'a mask has no scores', type='png', curve='True')
    assert_eval_refuses(capsys, data, '--t', 'a mask has no scores', type='png', t=0.3)


def test_missing_files_are_named_with_their_flag(data, capsys):
    (data / 'npy' / f'{IDS[3]}.npy').unlink()
    assert_eval_refuses(capsys, data, IDS[3], 'file not found (1 of 6', '--predict_dir')
    (data / 'gt' / f'{IDS[2]}.png').unlink()
    assert_eval_refuses(capsys, data, IDS[2], '--gt_dir', type='png')
    assert_eval_refuses(capsys, data, '--predict_dir', predict_dir=data / 'nowhere')


def test_empty_and_missing_lists_are_refused(data, capsys):
    (data / 'list.txt').write_text('\n')
    assert_eval_refuses(capsys, data, 'list.txt', 'empty')
    assert_eval_refuses(capsys, data, 'nowhere.txt', 'not found', list=data / 'nowhere.txt')


@pytest.mark.parametrize('type', ['npy', 'png'])
def test_another_shape_than_the_ground_truths_is_refused(data, capsys, type):
    i = IDS[1]
    if type == 'npy':
        save_cams(data / 'npy' / f'{i}.npy', np.array([0]), GOLDEN[f'cam_{i}'][:1, :, :-1])
    else:
        save_mask(data / 'png' / f'{i}.png', GOLDEN[f'pred_{i}'][:, :-1], VOC.palette)
    assert_eval_refuses(capsys, data, f'{i}.{type}', '59x51', '59x52', type=type)


@pytest.mark.parametrize('folder', ['png', 'gt'])
def test_a_label_out_of_range_is_refused(data, capsys, folder):
    mask = GOLDEN[f'pred_{IDS[0]}'].copy()
    mask[0, 0] = VOC.num_classes
    save_mask(data / folder / f'{IDS[0]}.png', mask, VOC.palette)
    assert_eval_refuses(capsys, data, f'{folder}/{IDS[0]}.png', f'label {VOC.num_classes}', type='png')


def test_a_coloured_mask_is_refused(data, capsys):
    Image.open(data / 'png' / f'{IDS[0]}.png').convert('RGB').save(data / 'png' / f'{IDS[0]}.png')
    assert_eval_refuses(capsys, data, IDS[0], 'mode RGB', type='png')


@pytest.mark.parametrize('value, words', [
    (np.zeros((21, 55, 59), np.float32), 'not a dict'), ({20: np.zeros((55, 59))}, 'do not fit'),
    ({0: np.zeros((55, 59)), 1: np.zeros((5, 5))}, 'no CAMs of one shape'),
    ({0: np.full((55, 59), np.nan)}, 'not finite')])
def test_files_that_hold_no_cams_are_refused(data, capsys, value, words):
    files.save_npy(data / 'npy' / f'{IDS[0]}.npy', value)
    assert_eval_refuses(capsys, data, f'{IDS[0]}.npy', words)


def test_the_error_of_a_worker_process_is_one_line_too(data, capsys):
    files.save_npy(data / 'npy' / f'{IDS[0]}.npy', {20: np.zeros((55, 59))})
    assert_eval_refuses(capsys, data, f'{IDS[0]}.npy', 'do not fit', num_workers=2)


def test_a_log_that_cannot_be_written_is_refused(data, capsys):
    (data / 'file').touch()
    assert_eval_refuses(capsys, data, '--logfile', logfile=data / 'file' / 'log.txt')
    assert_eval_refuses(capsys, data, data / 'gt', 'log cannot be written', logfile=data / 'gt')


def test_a_threshold_out_of_range_is_refused(data, capsys):
    assert_eval_refuses(capsys, data, '--t', t=1.5)

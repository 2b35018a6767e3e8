"""Masks of optimisers, annotation tools and small data sets: palettes, few bits, 0/255, few classes, background."""
import json
import shutil
import zlib

import numpy as np
import pytest
from helpers import assert_refused, run_main
from PIL import Image

from data.lists import read_list
from data.masks import read_mask, save_mask
from engine.errors import UserError
from tool import metrics
from voc12.classes import VOC

PALETTE = np.array(VOC.palette, np.uint8).reshape(-1, 3)
LABELS = np.zeros((40, 50), np.uint8)
LABELS[5:30, 5:45], LABELS[20:38, 3:20], LABELS[39] = 8, 12, metrics.IGNORE


def save_indices(path, indices, palette, **options):
    """Write palette indices with any palette (n, 3). Returns the path."""
    image = Image.fromarray(indices)
    image.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
    image.save(path, **options)
    return path


def sorted_palette(path, labels):
    """Write labels as a PNG optimiser does: the picture as it was, its palette sorted by how often a colour occurs."""
    values, counts = np.unique(labels, return_counts=True)
    order = values[np.argsort(-counts)]
    table = np.zeros(256, np.uint8)
    table[order] = np.arange(len(order))
    return save_indices(path, table[labels], PALETTE[order])


# ---------------------------------------------------------------- reading

def test_a_sorted_palette_is_translated_by_its_colours(tmp_path):
    path = sorted_palette(tmp_path / 'x.png', LABELS)
    assert not np.array_equal(np.asarray(Image.open(path)), LABELS)
    np.testing.assert_array_equal(read_mask(path), LABELS)


def test_a_mask_that_was_quantised_again_is_translated(tmp_path):
    save_mask(tmp_path / 'x.png', LABELS, VOC.palette)
    Image.open(tmp_path / 'x.png').convert('RGB').quantize(8).save(tmp_path / 'y.png')
    np.testing.assert_array_equal(read_mask(tmp_path / 'y.png'), LABELS)


def test_grey_ramps_and_palettes_cut_short_are_read_as_they_are(tmp_path):
    ramp = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    few = LABELS * (LABELS < 20)
    for palette, labels in ((ramp, LABELS), (PALETTE[:21], few), (PALETTE[::-1][::-1], LABELS)):
        np.testing.assert_array_equal(read_mask(save_indices(tmp_path / 'x.png', labels, palette)), labels)
    unused = PALETTE.copy()
    unused[30] = 1, 2, 3  # an index that does not occur may have any colour
    np.testing.assert_array_equal(read_mask(save_indices(tmp_path / 'x.png', LABELS, unused)), LABELS)


def test_a_palette_of_other_colours_is_refused(tmp_path):
    path = save_indices(tmp_path / 'x.png', LABELS * (LABELS < 20), PALETTE[::1] // 2 + 20)
    with pytest.raises(UserError, match=r'x.png: its palette shows index 0 in the colour \(20, 20, 20\), .*8-bit grey'):
        read_mask(path)


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_masks_of_few_bits_are_read_raw(tmp_path, bits):
    labels = np.arange(60, dtype=np.uint8).reshape(6, 10) % 2 ** bits
    np.testing.assert_array_equal(read_mask(save_indices(tmp_path / 'p.png', labels, PALETTE, bits=bits)), labels)
    if bits == 1:
        Image.fromarray(labels.astype(bool)).save(tmp_path / 'g.png')
    else:
        grey_png(tmp_path / 'g.png', labels, bits)
    np.testing.assert_array_equal(read_mask(tmp_path / 'g.png'), labels)


def grey_png(path, labels, bits):
    """Write a grey PNG of 2 or 4 bits, which Pillow does not: the file of a palette, its colour type changed."""
    save_indices(path, labels, PALETTE[:2 ** bits], bits=bits)
    data = bytearray(path.read_bytes())
    assert data[24:26] == bytes([bits, 3])
    data[25] = 0
    data[29:33] = crc(data[12:29])
    start = data.index(b'PLTE') - 4
    del data[start:start + 12 + int.from_bytes(data[start:start + 4], 'big')]
    path.write_bytes(data)
    assert Image.open(path).mode == 'L'


def crc(data):
    """The check of a PNG chunk."""
    return zlib.crc32(bytes(data)).to_bytes(4, 'big')


# ---------------------------------------------------------------- scoring

@pytest.fixture
def scored(tmp_path):
    """Three images: truth/ and pred/ (perfect, but for the ignored row), list.txt."""
    for folder, labels in (('truth', LABELS), ('pred', LABELS * (LABELS != metrics.IGNORE))):
        (tmp_path / folder).mkdir()
        for k in range(3):
            save_mask(tmp_path / folder / f'x{k}.png', labels, VOC.palette)
    (tmp_path / 'list.txt').write_text('x0\nx1\nx2\n')
    return tmp_path


def argv(scored):
    return ('--list', scored / 'list.txt', '--predict_dir', scored / 'pred', '--gt_dir', scored / 'truth', '--comment',
            'x', '--num_workers', 0, '--logfile', scored / 'log.txt')


def score(scored):
    """What eval.py writes to its JSON."""
    run_main('eval', *argv(scored))
    return json.loads((scored / 'log.txt.json').read_text())


def test_a_sorted_palette_scores_as_the_mask_it_was(scored):
    sorted_palette(scored / 'pred' / 'x1.png', LABELS * (LABELS != metrics.IGNORE))
    assert score(scored)['fixed']['class_iou']['cat'] == pytest.approx(100)


def test_classes_that_do_not_occur_are_said(scored, capsys):
    fixed = score(scored)['fixed']
    assert fixed['miou'] == pytest.approx(300 / 21)  # as published
    assert fixed['miou_occurring'] == pytest.approx(100)
    assert len(fixed['absent']) == 18 and not {'background', 'cat', 'dog'} & set(fixed['absent'])
    assert fixed['class_iou']['cow'] == 0
    said = capsys.readouterr().out
    assert 'cow                    –' in said
    assert 'cat               100.00' in said
    assert '18 of 21 classes do not occur, neither in the ground truth nor in the predictions' in said
    assert 'mean over the 3 others: 100.00' in said


def test_a_class_that_is_only_predicted_occurs(scored):
    save_mask(scored / 'pred' / 'x0.png', np.full_like(LABELS, 20), VOC.palette)
    fixed = score(scored)['fixed']
    assert 'tvmonitor' not in fixed['absent']
    assert fixed['miou_occurring'] == pytest.approx(fixed['miou'] * 21 / 4)


def test_where_all_classes_occur_nothing_is_said(scored, capsys):
    labels = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50) % 21
    for folder in ('truth', 'pred'):
        save_mask(scored / folder / 'x0.png', labels, VOC.palette)
    fixed = score(scored)['fixed']
    assert fixed['absent'] == [] and fixed['miou'] == fixed['miou_occurring'] == pytest.approx(100)
    assert '–' not in capsys.readouterr().out


def test_binary_predictions_are_scored_with_a_warning_and_ignored_pixels_are_counted(scored, capsys):
    assert score(scored)['fixed']['miou'] > 0
    assert 'warning' not in capsys.readouterr().out
    for k in range(3):
        Image.fromarray((LABELS > 0).astype(np.uint8) * 255).save(scored / 'pred' / f'x{k}.png')
    truth = LABELS.copy()
    truth[:10] = metrics.IGNORE
    save_mask(scored / 'truth' / 'x0.png', truth, VOC.palette)
    summary = score(scored)
    said = capsys.readouterr().out
    assert f'warning: {scored / "pred"} holds the labels 0 and 255 alone: binary masks' in said
    assert summary['ignored_fraction'] == pytest.approx((11 + 1 + 1) / (3 * 40))  # rows
    assert f'{100 * summary["ignored_fraction"]:.2f}% of the pixels are left out of the score' in said


def test_binary_ground_truth_is_recognised(scored, capsys):
    for k in range(3):
        Image.fromarray((LABELS > 0).astype(np.uint8) * 255).save(scored / 'truth' / f'x{k}.png')
    error = assert_refused(capsys, 'eval', *argv(scored))
    assert 'truth: holds the labels 0 and 255 alone: binary masks' in error
    assert not list(scored.glob('log.txt*'))


def test_one_mask_with_objects_is_enough_and_none_at_all_is_no_binary_set(scored):
    for k in range(2):
        Image.fromarray((LABELS > 0).astype(np.uint8) * 255).save(scored / 'truth' / f'x{k}.png')
    assert score(scored)['images'] == 3
    for k in range(3):
        save_mask(scored / 'truth' / f'x{k}.png', LABELS * 0, VOC.palette)
    assert score(scored)['fixed']['class_iou']['background'] < 100


# ---------------------------------------------------------------- training on them

@pytest.fixture
def pseudo(toy, tmp_path):
    """Copies of the toy set's ground truth, to serve as pseudo masks."""
    shutil.copytree(toy.root / 'SegmentationClass', tmp_path / 'masks')
    return tmp_path / 'masks'


def train(toy, pseudo):
    return ('--pseudo_gt', pseudo, '--session_name', pseudo.parent / 'run', '--voc12_root', toy.root, '--train_list',
            toy.train, '--weights', toy.backbone, '--DATA_RANDOMCROP', 48, '--TRAIN_BATCHES', 2, '--TRAIN_ITERATION', 1,
            '--num_workers', 0, '--tblog_dir', pseudo.parent / 'log', '--device', 'cpu')


def change_all(toy, pseudo, change):
    for name in read_list(toy.train):
        save_mask(pseudo / f'{name}.png', change(read_mask(pseudo / f'{name}.png').copy()), VOC.palette)


def small_object(mask):
    mask[:] = 0
    mask[10:20, 10:26] = 4
    return mask


def test_mostly_background_masks_can_be_trained_on_if_one_says_so(toy, pseudo, capsys):
    change_all(toy, pseudo, small_object)
    error = assert_refused(capsys, 'segmentation/experiment/train', *train(toy, pseudo))
    assert 'of the labelled pixels are background' in error
    assert error.endswith('if the masks are right, add --allow_unusual_masks')
    run_main('segmentation/experiment/train', *train(toy, pseudo), '--allow_unusual_masks')
    assert (pseudo.parent / 'run.pth').is_file()


def test_binary_pseudo_masks_are_refused_whatever_one_says(toy, pseudo, capsys):
    change_all(toy, pseudo, lambda mask: np.where(mask > 0, metrics.IGNORE, 0))
    error = assert_refused(capsys, 'segmentation/experiment/train', *train(toy, pseudo), '--allow_unusual_masks')
    assert 'masks: holds the labels 0 and 255 alone: binary masks' in error


def test_the_check_of_the_masks_says_which_classes_do_not_occur(toy, pseudo, capsys):
    run_main('segmentation/experiment/train', *train(toy, pseudo))
    said = capsys.readouterr().out
    assert 'against the ground truth' in said
    assert 'classes do not occur, neither in the ground truth nor in the predictions, and count as 0' in said

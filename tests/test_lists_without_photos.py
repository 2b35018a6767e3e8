"""Entries of lists that have no photo are left out and counted; a long list with a duplicate is refused at once."""
import time

import pytest
from helpers import assert_refused, run_main
from test_prepare import EXTRA, SPLITS, argv, devkit, out  # noqa: F401, two of them are fixtures

from data.lists import read_list
from engine.errors import UserError


@pytest.fixture
def previews(devkit):  # noqa: F811
    """A devkit whose SegmentationClassAug holds more PNGs than masks, as people leave them there."""
    folder = devkit / 'SegmentationClassAug'
    for name in ('2007_000032_color', 'copy (1)', 'größe'):
        (folder / f'{name}.png').write_bytes((folder / '2007_000032.png').read_bytes())
    return devkit


def test_names_without_a_photo_are_left_out_and_counted(previews, out, capsys):  # noqa: F811
    run_main('voc12/prepare', *argv(previews, out))
    said = capsys.readouterr()
    assert read_list(out / 'train_aug.txt') == sorted([*SPLITS['train'], EXTRA])
    assert ('warning: train_aug: JPEGImages lacks 3 of 6 files, 2007_000032_color.jpg the first; train_aug.txt leaves '
            'these ids out') in said.err
    assert said.err.count('warning') == 1
    assert 'train_aug.txt: 3 ids' in said.out


def test_photos_that_are_missing_are_left_out_of_every_list(devkit, out, capsys):  # noqa: F811
    first, second = SPLITS['train']
    (devkit / 'JPEGImages' / f'{first}.jpg').unlink()
    run_main('voc12/prepare', *argv(devkit, out))
    assert read_list(out / 'train.txt') == [second]
    assert read_list(out / 'train_aug.txt') == sorted([second, EXTRA])
    said = capsys.readouterr().err
    assert f'train: JPEGImages lacks 1 of 2 files, {first}.jpg the first; train.txt leaves these ids out' in said


def test_lists_may_be_made_before_the_photos_are_there(devkit, out, capsys):  # noqa: F811
    (devkit / 'JPEGImages').rename(devkit / 'elsewhere')
    run_main('voc12/prepare', *argv(devkit, out))
    assert read_list(out / 'train.txt') == SPLITS['train']
    assert 'train: JPEGImages lacks 2 of 2 files' in capsys.readouterr().err


def test_a_long_list_with_a_duplicate_is_refused_at_once(tmp_path, capsys):
    ids = [f'COCO_train2014_{i:012d}' for i in range(82783)]
    (tmp_path / 'list.txt').write_text('\n'.join([*ids, ids[-1]]))
    start = time.monotonic()
    with pytest.raises(UserError, match=f'names {ids[-1]} twice'):
        read_list(tmp_path / 'list.txt')
    assert time.monotonic() - start < 5
    error = assert_refused(capsys, 'eval', '--list', tmp_path / 'list.txt', '--predict_dir', tmp_path, '--comment', 'x')
    assert f'names {ids[-1]} twice; name each image once' in error


@pytest.mark.parametrize('ids, twice', [('a b a', 'a'), ('a b b a a', 'a'), ('a a', 'a'), ('b a c c', 'c')])
def test_an_id_named_more_than_once_is_named(tmp_path, ids, twice):
    (tmp_path / 'list.txt').write_text('\n'.join(ids.split()))
    with pytest.raises(UserError, match=f'names {twice} twice'):
        read_list(tmp_path / 'list.txt')

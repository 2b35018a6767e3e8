"""A long list with a duplicate is refused at once."""
import time

import pytest
from helpers import assert_refused

from data.lists import read_list
from engine.errors import UserError


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


@pytest.mark.parametrize('path, advice', [
    ('voc12/absent.txt', 'list not found; run python voc12/prepare.py, which writes it'),
    ('coco14/absent.txt', 'list not found; run python coco14/prepare.py, which writes it'),
    ('elsewhere/absent.txt', 'list not found; correct --train_list')])
def test_a_list_that_is_missing_says_what_writes_it(path, advice):
    with pytest.raises(UserError, match=advice):
        read_list(path, '--train_list')

"""Long lists: a duplicate is refused at once, and memory and start do not grow with what need not."""
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import assert_refused

from data.images import devkit_photos
from data.lists import read_list
from data.photos import Photos
from engine import parallel
from engine.datasets import check_photos
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


def test_of_a_long_list_few_calls_wait_at_a_time(monkeypatch):
    class Pool(ThreadPoolExecutor):
        given = 0

        def submit(self, *args):
            Pool.given += 1
            return super().submit(*args)
    monkeypatch.setattr(parallel, 'executor', Pool)
    waiting = []
    for taken, result in enumerate(parallel.each_image(str, range(1000), 2, 'images'), 1):
        assert result == str(taken - 1)
        waiting.append(Pool.given - taken)
    assert len(waiting) == 1000
    assert max(waiting) < 2 * parallel.AHEAD


def test_results_that_are_not_kept_do_not_add_up():
    tracemalloc.start()
    for _ in parallel.each_image(bytes, [2 ** 20] * 40, 0, 'images'):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2 ** 20


@pytest.mark.parametrize('rank, refused', [(0, False), (1, True)])
def test_each_of_several_processes_looks_at_its_share_of_the_photos(toy, tmp_path, monkeypatch, rank, refused):
    (tmp_path / 'JPEGImages').mkdir()
    ids = read_list(toy.train)[:3]
    for name, path in devkit_photos(toy.root).need(ids).items():
        (tmp_path / 'JPEGImages' / f'{name}.jpg').write_bytes(path.read_bytes()[:40 if name == ids[1] else None])
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', str(rank))
    dataset = Photos(ids, devkit_photos(tmp_path))
    if not refused:
        check_photos(dataset, 'photos')
        return
    with pytest.raises(UserError, match=f'{ids[1]}.*1 of the 3 photos are unfit'):
        check_photos(dataset, 'photos')

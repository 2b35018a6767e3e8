"""engine/files.py, safe_pickle.py, cli.py, the readers of data/: safe reading, whole files, flags, one-line errors."""
import argparse
import collections
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import tree_bytes
from PIL import Image

from data.cams import read_cams, save_cams
from data.images import image_size, read_image
from data.labels import labels_of, read_labels, save_labels
from data.lists import read_list, save_list
from data.masks import read_mask, save_mask
from data.probabilities import read_probabilities, save_probabilities
from engine import cli, files, safe_pickle
from engine.device import select_device
from engine.errors import UserError
from voc12.classes import VOC

NUM_FOREGROUND = VOC.num_foreground


# ---------------------------------------------------------------- pickled arrays

def npy_of(path, payload):
    """A .npy file with an object header and a given pickle."""
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': ()})
        file.write(payload)
    return path


class Command:
    """Its pickle makes a folder when it is read by pickle.load."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_does_not_run(tmp_path):
    path = tmp_path / 'x.npy'
    np.save(path, {0: Command(tmp_path / 'made')})
    with pytest.raises(UserError, match=r'names (posix|nt)\.mkdir'):
        files.read_npy(path)
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize('module, name', [
    ('builtins', 'eval'), ('builtins', 'getattr'), ('builtins', 'bytes'), ('numpy', 'load'), ('numpy', 'core'),
    ('numpy.core.multiarray', 'fromfile'), ('numpy._core.multiarray', '_reconstruct.__globals__'),
    ('os', 'system'), ('engine.files', 'save_text')])
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, module, name):
    payload = b'\x80\x04V' + module.encode() + b'\nV' + name.encode() + b'\n\x93.'
    with pytest.raises(UserError, match='neither an array nor a plain container'):
        files.read_npy(npy_of(tmp_path / 'x.npy', payload))


PLAIN = {0: np.arange(6, dtype=np.float32).reshape(2, 3), 'id': np.float64(2.5), 3: [1, (2, 'x', None, True)],
         'fortran': np.asfortranarray(np.arange(6).reshape(2, 3)), 'bytes': np.frombuffer(b'abc', 'S1'),
         'text': np.array(['ä', 'bc']), 'half': np.float16([1, 2]), 'big': np.array([1, 2], '>i4'),
         'empty': np.zeros((0, 4)), 'bool': np.array([True, False]),
         'objects': np.array([None, {'deep': np.ones(2)}], object)}


def same(first, second):
    """Equal values of equal types, all the way down."""
    if isinstance(first, np.ndarray) and first.dtype != object:
        return first.dtype == second.dtype and np.array_equal(first, second) and type(first) is type(second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple, np.ndarray)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_back_with_their_types(tmp_path, protocol):
    value = files.read_npy(npy_of(tmp_path / 'x.npy', pickle.dumps(np.array(PLAIN, object), protocol)))
    assert same(value, PLAIN)


def test_pickles_of_numpy_1_and_2_are_read(tmp_path):
    payload = pickle.dumps(np.array({0: np.ones(3, np.float32)}, object), 2)
    assert b'numpy._core' in payload or b'numpy.core' in payload
    for core in (b'numpy.core', b'numpy._core'):
        other = payload.replace(b'numpy._core', b'numpy.core').replace(b'numpy.core', core)
        np.testing.assert_array_equal(files.read_npy(npy_of(tmp_path / 'x.npy', other))[0], np.ones(3))


def array_pickle(shape=(2,), code='f4', state=(3, '<', None, None, None, -1, -1, 0), data=b'\0' * 8):
    """The pickle of an array whose parts are given, sound or not."""
    class Dtype:
        def __reduce__(self):
            return np.dtype, (code, False, True), state

    class Array:
        def __reduce__(self):
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b'b'), (1, shape, Dtype(), False, data)
    return pickle.dumps(Array())


@pytest.mark.parametrize('fields', [
    {'shape': (3,)}, {'shape': (10 ** 12,)}, {'shape': (-2,)}, {'shape': (2.0,)}, {'shape': (1,) * 40 + (2,)},
    {'shape': None}, {'code': 'f8'}, {'code': 'O8'}, {'code': 'O8', 'data': []}, {'code': 'V4'}, {'code': 'f4,f4'},
    {'code': 'U999999999'}, {'code': 'i3'},
    {'code': 'U1', 'data': b'\xff' * 8}, {'state': (3, '!', None, None, None, -1, -1, 0)}, {'state': ()},
    {'state': (3, '<', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 8, 63)},
    {'state': (3, '<', (np.dtype('O'), (2,)), None, None, 16, 1, 63)},
    {'data': None}, {'data': 10 ** 12}, {'data': [0] * 8}, {'shape': ('ab', 2)}, {'shape': [2]}])
def test_arrays_of_unsound_parts_are_refused(tmp_path, fields):
    sound = files.read_npy(npy_of(tmp_path / 'x.npy', pickle.dumps(np.array({}, object))))
    assert sound == {}
    with pytest.raises(UserError, match='not a .npy file this project reads'):
        files.read_npy(npy_of(tmp_path / 'x.npy', array_pickle(**fields)))


def test_the_unsound_parts_are_what_is_refused(tmp_path):
    with open(npy_of(tmp_path / 'x.npy', array_pickle()), 'rb') as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        np.testing.assert_array_equal(safe_pickle.load(file), np.zeros(2, np.float32))


def test_sizes_beyond_the_file_take_no_memory(tmp_path):
    """A memo number, a length and a shape of billions, in files of a few bytes."""
    payloads = [b'\x80\x04]r\x00\x00\x00\x01.', b'\x80\x05\x96' + (2 ** 38).to_bytes(8, 'little') + b'x.',
                b'\x80\x04\x95' + (2 ** 38).to_bytes(8, 'little') + b'].',
                b'\x80\x04\x8e' + (2 ** 38).to_bytes(8, 'little') + b'x.']
    paths = [npy_of(tmp_path / f'{n}.npy', payload) for n, payload in enumerate(payloads)]
    np.save(tmp_path / 'shape.npy', np.zeros(3))
    paths.append(tmp_path / 'shape.npy')
    paths[-1].write_bytes(paths[-1].read_bytes().replace(b'(3,), }' + b' ' * 10, b'(34359738368,), }'))
    for path in paths:
        tracemalloc.start()
        with pytest.raises(UserError, match='not a .npy file this project reads'):
            files.read_npy(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6, path


def test_shared_containers_are_read_and_endless_ones_refused(tmp_path):
    value = []
    for _ in range(4):
        value = [value, value]
    assert isinstance(files.read_npy(npy_of(tmp_path / 'x.npy', pickle.dumps(np.array({0: value}, object)))), dict)
    value.append(value)
    with pytest.raises(UserError):
        files.read_npy(npy_of(tmp_path / 'x.npy', pickle.dumps(np.array({0: value}, object))))


def test_damaged_files_are_users_errors(tmp_path):
    """Bytes changed and cut at random: a UserError or a value, nothing else. NumPy's own unpickling crashes on some."""
    np.save(tmp_path / 'cams.npy', {0: np.ones((4, 5), np.float32), 3: np.zeros((4, 5), np.float32)})
    np.save(tmp_path / 'labels.npy', {np.str_('aaa'): np.ones(NUM_FOREGROUND), 'b': np.zeros(NUM_FOREGROUND)})
    np.save(tmp_path / 'plain.npy', np.ones((4, 5), np.float32))
    originals = [path.read_bytes() for path in tmp_path.iterdir()]
    rng = np.random.default_rng(0)
    outcomes = collections.Counter()
    for _ in range(600):
        data = bytearray(originals[rng.integers(3)])
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] = rng.integers(256)
        (tmp_path / 'x.npy').write_bytes(data[:rng.integers(len(data))] if rng.random() < .3 else data)
        for read in (read_cams, read_labels):
            try:
                read(tmp_path / 'x.npy', NUM_FOREGROUND)
                outcomes['read'] += 1
            except UserError:
                outcomes['refused'] += 1
    assert outcomes['refused'] > 400
    assert outcomes['read'] > 20


def test_missing_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(UserError, match='file not found'):
        files.read_npy(tmp_path / 'x.npy')
    (tmp_path / 'x.npy').write_text('hello')
    with pytest.raises(UserError, match='not a .npy file'):
        files.read_npy(tmp_path / 'x.npy')
    with pytest.raises(UserError, match='cannot be read'):
        files.read_npy(tmp_path)


def test_cams_come_in_class_order(tmp_path):
    files.save_npy(tmp_path / 'x.npy', {14: np.full((2, 3), .5), 1: np.ones((2, 3), np.float16)})
    present, cams = read_cams(tmp_path / 'x.npy', NUM_FOREGROUND)
    assert present.tolist() == [1, 14]
    assert cams.dtype == np.float32
    assert cams[:, 0, 0].tolist() == [1, .5]


def test_cams_that_are_written_are_read_again(tmp_path):
    present, cams = np.array([3, 17]), np.random.default_rng(0).random((2, 4, 5), np.float32)
    save_cams(tmp_path / 'x.npy', present, cams)
    assert list(files.read_npy(tmp_path / 'x.npy')) == [3, 17]
    for written, read in zip((present, cams), read_cams(tmp_path / 'x.npy', NUM_FOREGROUND, (4, 5))):
        np.testing.assert_array_equal(read, written)


def test_probabilities_are_written_in_half_precision_without_its_slow_numbers(tmp_path):
    probabilities = np.array([[[1, .25]], [[1e-6, .75]]], np.float32)  # 1e-6 would be denormal
    save_probabilities(tmp_path / 'x.npy', [0, 8], probabilities)
    labels, scores = read_probabilities(tmp_path / 'x.npy', VOC.num_classes, (1, 2))
    assert labels.tolist() == [0, 8]
    assert scores.dtype == np.float16
    assert scores.tolist() == [[[1, .25]], [[0, .75]]]
    assert probabilities[1, 0, 0] == np.float32(1e-6)  # what was handed over is left as it was


# ---------------------------------------------------------------- writing

def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / 'x.txt'
    files.save_text(path, 'old')
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text('half')
        assert temporary.suffix == '.txt'
        assert path.read_text() == 'old'
        raise RuntimeError
    assert tree_bytes(tmp_path) == {Path('x.txt'): b'old'}
    files.save_text(path, 'new')
    assert tree_bytes(tmp_path) == {Path('x.txt'): b'new'}


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    code = ('import resource, signal, numpy as np; from engine import files; '
            'signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
            'resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); files.save_npy("x.npy", np.zeros(10000))')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert 'UserError' in last
    assert 'x.npy: cannot be written' in last
    assert os.listdir(tmp_path) == []


def test_folders_that_cannot_be_written_are_named(tmp_path):
    assert files.out_dir(tmp_path / 'a' / 'b', '--out').is_dir()
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match='--out: folder .* cannot be written'):
            files.out_dir(path, '--out')
    with pytest.raises(UserError, match='cannot be written'):
        files.save_text(tmp_path / 'nowhere' / 'x.txt', '')


def test_masks_keep_labels_and_palette(tmp_path):
    labels = np.array([[0, 20, 255]], np.uint8)
    save_mask(tmp_path / 'x.png', labels, VOC.palette)
    np.testing.assert_array_equal(read_mask(tmp_path / 'x.png'), labels)
    with Image.open(tmp_path / 'x.png') as image:
        assert image.mode == 'P'
        assert image.convert('RGB').getpixel((1, 0)) == (0, 64, 128)


# ---------------------------------------------------------------- pictures

def picture(path, mode='RGB', size=(20, 10)):
    """Write an image of one colour, in any colour mode. Returns its path."""
    Image.new(mode, size, 3 if mode in 'LP' else None).save(path)
    return path


@pytest.mark.parametrize('mode, suffix', [('L', 'jpg'), ('CMYK', 'jpg'), ('P', 'png'), ('RGBA', 'png'),
                                          ('I;16', 'png')])
def test_other_colour_modes_are_refused_or_converted(tmp_path, mode, suffix):
    path = picture(tmp_path / f'x.{suffix}', mode)
    with pytest.raises(UserError, match=f'x.{suffix}: image mode is .*, not RGB; .*--convert_rgb'):
        read_image(path)
    assert read_image(path, convert=True).shape == (10, 20, 3)


def test_images_that_cannot_be_used_are_named(tmp_path):
    assert read_image(picture(tmp_path / 'x.jpg')).dtype == np.uint8
    assert image_size(tmp_path / 'x.jpg') == (10, 20)
    with pytest.raises(UserError, match='image is 20x7 pixels'):
        read_image(picture(tmp_path / 'small.jpg', size=(20, 7)))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))
    noise.save(tmp_path / 'whole.jpg')
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'whole.jpg').read_bytes()[:2000])
    with pytest.raises(UserError, match='cut.jpg: image cannot be read'):
        read_image(tmp_path / 'cut.jpg')
    (tmp_path / 'text.jpg').write_text('hello')
    with pytest.raises(UserError, match='text.jpg: image cannot be read'):
        read_image(tmp_path / 'text.jpg')
    with pytest.raises(UserError, match='nowhere.jpg: image not found'):
        read_image(tmp_path / 'nowhere.jpg')


@pytest.mark.parametrize('mode', ['RGB', 'I;16', 'LA'])
def test_masks_of_other_modes_are_refused(tmp_path, mode):
    with pytest.raises(UserError, match='mask has mode'):
        read_mask(picture(tmp_path / 'x.png', mode))


# ---------------------------------------------------------------- lists and labels

@pytest.mark.parametrize('text', [
    '2007_000032\n2007_000039\n', '2007_000032\r\n\r\n  2007_000039  ', '\ufeff2007_000032\n2007_000039',
    '/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n/JPEGImages/2007_000039.jpg\n',
    '/JPEGImages/2007_000032.JPG\n/2007_000039.png\n'])
def test_lists_are_read_in_both_forms(tmp_path, text):
    (tmp_path / 'x.txt').write_text(text, encoding='utf-8')
    assert read_list(tmp_path / 'x.txt') == ['2007_000032', '2007_000039']


def test_ids_are_any_names(tmp_path):
    (tmp_path / 'x.txt').write_text('a.b\n/JPEGImages/COCO_train_0001.jpg\nx\n')
    assert read_list(tmp_path / 'x.txt') == ['a.b', 'COCO_train_0001', 'x']


def test_lists_that_are_written_are_read_again(tmp_path):
    save_list(tmp_path / 'x.txt', ['a.b', 'c'], with_mask=['c'])
    assert (tmp_path / 'x.txt').read_text() == 'a.b\n/JPEGImages/c.jpg /SegmentationClassAug/c.png\n'
    assert read_list(tmp_path / 'x.txt') == ['a.b', 'c']


@pytest.mark.parametrize('data, words', [(b'', 'empty'), (b'\n \n', 'empty'), (b'a\nb\na\n', 'names a twice'),
                                         (b'\xff\xfe\xfa', 'cannot be read')])
def test_lists_that_are_wrong_are_refused(tmp_path, data, words):
    (tmp_path / 'x.txt').write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_list(tmp_path / 'x.txt')


def test_labels_come_in_the_order_of_the_ids(tmp_path):
    label = np.eye(NUM_FOREGROUND, dtype=np.float32)[3]
    save_labels(tmp_path / 'x.npy', {'a': label, 'b': 1 - label.astype(np.int64)})
    labels = read_labels(tmp_path / 'x.npy', NUM_FOREGROUND)
    np.testing.assert_array_equal(labels_of(['b', 'a'], labels, 'x.npy'), [1 - label, label])
    with pytest.raises(UserError, match='no label for c \\(1 of 2'):
        labels_of(['a', 'c'], labels, 'x.npy')


@pytest.mark.parametrize('value, words', [
    ({'a': np.ones(3)}, 'not 20 values'), ({'a': np.full(20, .5)}, 'not 20 values'),
    ({'a': 'text'}, 'no array of numbers'), ({'a': {1: 2}}, 'no array of numbers'),
    ({}, 'not a dict'), (np.ones(20), 'not a dict')])
def test_labels_that_are_wrong_are_refused(tmp_path, value, words):
    files.save_npy(tmp_path / 'x.npy', value)
    with pytest.raises(UserError, match=words):
        read_labels(tmp_path / 'x.npy', NUM_FOREGROUND)


# ---------------------------------------------------------------- the command line

@pytest.mark.parametrize('argv, value', [
    ([], False), (['--curve'], True), (['--curve', 'True'], True), (['--curve', 'false'], False),
    (['--curve', '--other', '1'], True)])
def test_switches_stand_alone_or_take_a_value(argv, value):
    parser = cli.ArgumentParser()
    cli.add_switch(parser, '--curve', 'a switch')
    parser.add_argument('--other')
    assert parser.parse_args(argv).curve is value


@pytest.mark.parametrize('argv', [['--curve', 'maybe'], ['--unknown'], ['--num_workers', '-1'], ['--num_workers', 'x'],
                                  ['--num']])
def test_wrong_flags_are_one_line(capsys, argv):
    parser = cli.ArgumentParser()
    cli.add_switch(parser, '--curve', 'a switch')
    cli.add_worker_flag(parser)
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(argv)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith('error: command line: ')
    assert error.count('\n') == 1


@pytest.mark.parametrize('kind, good, bad', [(cli.positive, ['1', '20'], ['0', '-1', 'x', '1.5']),
                                             (cli.non_negative, ['0', '3'], ['-1', '']),
                                             (cli.unit_interval, ['0', '1', '0.26'], ['-0.1', '1.1', 'nan', 'x'])])
def test_numbers_out_of_bounds_are_refused(kind, good, bad):
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises((ValueError, argparse.ArgumentTypeError)):
            kind(text)


def test_run_tells_mistakes_from_bugs(capsys):
    def mistake(args):
        raise UserError('--flag', 'is\nwrong', 'do this')

    def bug(args):
        raise KeyError('bug')
    with pytest.raises(SystemExit) as exit_info:
        cli.run(mistake, cli.ArgumentParser(), [])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == 'error: --flag: is wrong; do this\n'
    with pytest.raises(KeyError):
        cli.run(bug, cli.ArgumentParser(), [])


def test_user_errors_survive_between_processes():
    error = pickle.loads(pickle.dumps(UserError('a', 'b', 'c')))
    assert (error.what, error.wrong, error.do) == ('a', 'b', 'c')
    assert str(error) == 'a: b; c'


def test_repository_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.repo_path('voc12/val.txt') == files.REPO / 'voc12' / 'val.txt'
    assert files.repo_path('voc12/trainaug.txt') == files.REPO / 'voc12' / 'train_aug.txt'
    assert files.repo_path('lists/val.txt').parts == ('lists', 'val.txt')
    (tmp_path / 'voc12').mkdir()
    (tmp_path / 'voc12' / 'val.txt').touch()
    assert not files.repo_path('voc12/val.txt').is_absolute()  # the user's own comes first


@pytest.mark.parametrize('name', ['cuda', 'cuda:0'])  # with and without a number; no GPU is used
def test_cuda_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(UserError, match='--device: no CUDA device'):
        select_device(name)
    assert select_device('auto').type == select_device('cpu').type == 'cpu'


@pytest.mark.parametrize('name', ['gpu', 'cpu:0', 'cuda:x', ''])
def test_unknown_devices_are_refused(name):
    with pytest.raises(UserError, match='--device'):
        select_device(name)

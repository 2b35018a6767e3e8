"""Files from elsewhere: any bytes give a value or the one line; no code runs, no memory is taken that is not theirs.

Bytes are drawn, sound files are damaged, and files are put together of the pieces of their formats, which come further.
"""
import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import coco
from data.cams import read_cams
from data.description import read_dataset
from data.images import image_size, read_image
from data.labels import labels_of, read_csv, read_labels
from data.lists import read_list
from data.masks import read_mask
from data.photo_check import check_photo
from data.probabilities import read_probabilities
from data.saliency import read_saliency
from engine import files, outputs, runinfo
from engine.errors import UserError
from engine.loss_log import read_loss_log
from network.weights import read_weights
from voc12.classes import VOC
from voc12.prepare import read_names

SLACK = 2 ** 22  # bytes that a reader may take for itself, however small the file
EXAMPLES = int(os.environ.get('EXAMPLES', 40))
drawn = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                        HealthCheck.data_too_large])


def outcome(read, path, content):
    """The value that a reader finds in a file of this content, or None: it then raised a UserError of one line."""
    Path(path).write_bytes(content)
    try:
        return read(path)
    except UserError as error:
        line = str(error)
        assert '\n' not in line and '; ' in line and ': ' in line, line
        return None


def bounded(read, path, content, times=4):
    """As outcome; the reader takes at most `times` the file's bytes beside it (of memory that Python can trace)."""
    tracemalloc.start()
    try:
        value = outcome(read, path, content)
        assert tracemalloc.get_traced_memory()[1] <= (1 + times) * len(content) + SLACK
    finally:
        tracemalloc.stop()
    return value


@st.composite
def damaged(draw, *originals):
    """The bytes of one of `originals` with bytes replaced, put in, taken out, and perhaps the end cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        data[at:at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[:draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def pieces(*parts, most=25):
    """Texts, or bytes, put together of parts."""
    return st.lists(st.sampled_from(parts), max_size=most).map(type(parts[0])().join)


# ---------------------------------------------------------------- lists

TEXTS = st.text(st.characters(codec='utf-8'), max_size=40) | pieces(
    '/', '..', '.', '\\', '/JPEGImages/', '.jpg', '.png', ' ', '\t', '\n', '\r', '\0', 'a', '2007_000032', '\u2028',
    'é',
    '/SegmentationClassAug/', '\ufeff', '~', '%2e%2e', ':')


@drawn
@given(TEXTS.map(str.encode) | st.binary(max_size=60))
@example(b'/\n')
@example(b'/JPEGImages/.jpg')
@example(b'/a/..')
@example(b'a\0b')
@example(b'/JPEGImages/..\\x.jpg')
@example(b'2' * 5000)
def test_the_ids_of_a_list_are_names_of_files_in_their_folder(tmp_path, content):
    ids = bounded(read_list, tmp_path / 'list.txt', content) or ()
    assert len(set(ids)) == len(ids)
    for name in ids:
        assert name.strip()
        assert not set(name) & set('/\\\0\n')
        inside = os.path.normpath(tmp_path / 'out' / f'{name}.png')
        assert Path(inside).parent == tmp_path / 'out' and not name.startswith('.')
        outcome(lambda path, ids=[name]: labels_of(ids, {'1': np.ones(1)}, path), tmp_path / 'labels', b'')


# ---------------------------------------------------------------- annotations, descriptions, tables, JSON

XML = pieces('<annotation>', '</annotation>', '<object>', '</object>', '<name>', '</name>', 'dog', 'dgo', '<a b="c">',
             '</a>', '<!-- x -->', '<![CDATA[dog]]>', '&amp;', '&x;', '&#0;', '<!DOCTYPE a [<!ENTITY x "y">]>',
             '<?x y?>',
             '<?xml version="1.0" encoding="utf-16"?>', '<?xml version="1.0" encoding="x"?>', '\n', '\0', 'é')


@drawn
@given(XML.map(str.encode) | st.binary(max_size=80))
@example(b'<a>' * 20000)
@example(b'<annotation>' + b'<object><name>dog</name></object>' * 2000 + b'</annotation>')
@example(b'<annotation>' + b'<x/>' * 20000 + b'</annotation>')
@example('<?xml version="1.0" encoding="utf-16"?><annotation/>'.encode('utf-16'))
@example(b'<?xml version="1.0" encoding="utf-7"?><annotation/>')
def test_any_annotation_gives_names_or_the_line(tmp_path, content):
    names = bounded(read_names, tmp_path / 'x.xml', content)
    assert names is None or all(isinstance(name, str) for name in names)


YAML = pieces('classes: ', 'images: ', 'lists: ', 'labels: ', 'palette: ', 'mask_values: ', 'name: ', 'root: ',
              'ignore: ', '[cup, fork]', '{train: list.txt}', '{cup: 1, fork: 2}', 'photos', '..', '../x', '/etc', '\n',
              '&a ', '*a', '!!python/object/apply:os.system [id]', '!!binary aGk=', '<<: ', '- ', '? ', ': ', '|', '"',
              "'", '{', '}', '[', ']', ',', '#', '%YAML 9.9\n', '---\n', '\t', '\0', '\ufeff', '1e999',
              '{cup: [1, 2, 3]}')
GOOD_YAML = b'classes: [cup, fork]\nimages: photos\nlists: {train: list.txt}\nlabels: l.csv\n'


@drawn
@given(YAML.map(str.encode) | st.binary(max_size=80) | damaged(GOOD_YAML) | YAML.map(lambda t: GOOD_YAML + t.encode()))
@example(b'[' * 5000)
@example(b'{' + b','.join(b'a%d' % k for k in range(5000)) + b'}')
@example(GOOD_YAML.replace(b'cup', b','.join(b'a%d' % k for k in range(5000))))
@example(b' ' * 100_000)
@example(b'a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n')
def test_any_description_gives_a_data_set_or_the_line(tmp_path, content):
    (tmp_path / 'list.txt').write_text('a')
    data = outcome(lambda path: read_dataset(str(path)), tmp_path / 'dataset.yaml', content)
    if data is not None:
        assert 0 < data.classes.num_foreground < 255 and len(data.classes.palette) == 768
        for path in (data.labels, *data.lists.values(), *map(str, data.photos().folders)):
            assert '..' not in Path(path).parts


@drawn
@given(pieces('id', ',', 'dog', 'cat', 'dgo', '\n', '\r', '"', ' ', 'a', 'b', '\0', 'é', ';', '1').map(str.encode)
       | st.binary(max_size=60) | damaged(b'id,class\na,dog,cat\nb\nc,person\n'))
@example(b'"' + b'a' * 200_000)
@example(b'a,dog\n' * 2)
def test_any_table_of_labels_is_read_or_gets_the_line(tmp_path, content):
    labels = bounded(lambda path: read_csv(path, VOC), tmp_path / 'labels.csv', content)
    assert labels is None or all(label.shape == (20,) for label in labels.values())


JSON = pieces('{', '}', '[', ']', ':', ',', '"', '".png"', '"kind"', '"settings"', '"baseline"', '"seam"', '"classes"',
              '"step"', '1', '-', '1e999', 'NaN', 'null', 'true', '\\u', '\\ud800', '\n', '\0', 'é')


@drawn
@given(JSON.map(str.encode) | st.binary(max_size=60)
       | damaged(b'{".png": {"kind": "CAMs"}, "settings": {"baseline": "seam"}}', b'{"step": 1, "loss": 2.5}\n'))
@example(b'[' * 200_000)
@example(b'1' * 5000)
@example(b'{".png": {"kind": 1}}')
def test_any_json_is_read_or_gets_the_line(tmp_path, content):
    known = outcome(outputs.read, tmp_path / 'run.json', content)
    assert known is None or all('kind' in made for made in known.values())
    (tmp_path / 'session.json').write_bytes(content)
    assert isinstance(runinfo.stored_settings(tmp_path / 'session'), dict)
    outcome(read_loss_log, tmp_path / 'x.losses.jsonl', content)


ODD = st.sampled_from([0, 1, 5, -1, 1.5, 7, 8, 56, 2 ** 16, 10 ** 30, float('inf'), None, True, '8252N10N1O1O6', 'ooo'])
SEGMENTATIONS = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=8) | st.fixed_dictionaries({'size': inner, 'counts': inner})
    | st.fixed_dictionaries({'size': st.just([7, 8]), 'counts': inner}), max_leaves=12)
ANNOTATIONS = st.fixed_dictionaries({
    'image_id': st.sampled_from([1, 2, None, 'x', []]), 'category_id': st.integers(1, 2), 'segmentation': SEGMENTATIONS,
    'iscrowd': st.integers(0, 1)})
IMAGES = st.fixed_dictionaries({
    'id': st.sampled_from([1, 2, 'x', []]), 'height': st.sampled_from([7, 0, -1, 1.5, 2 ** 15]),
    'width': st.sampled_from([8, 2 ** 15, '8']),
    'file_name': st.sampled_from(['a.jpg', '../b.jpg', '..', '/etc/x', 'a\\b.png', '', 3, 'a\0'])})
COCO = st.fixed_dictionaries({'images': st.lists(IMAGES, max_size=2), 'annotations': st.lists(ANNOTATIONS, max_size=2),
                              'categories': st.just([{'id': 1, 'name': 'cup'}, {'id': 2, 'name': 'fork'}])})


@drawn
@given(JSON.map(str.encode) | COCO.map(json.dumps).map(str.encode))
@example(b'[' * 200_000)
def test_any_instances_json_gives_masks_in_their_folder_or_the_line(tmp_path, content):
    instances = outcome(coco.read_instances, tmp_path / 'instances.json', content)
    for name, (height, width, annotations) in instances.images.items() if instances else ():
        assert Path(os.path.normpath(tmp_path / 'masks' / f'{name}.png')).parent == tmp_path / 'masks'
        assert name and not name.startswith('.') and not set(name) & set('/\\\0')
        if height * width < 100:
            outcome(lambda path, item=(annotations, (height, width)): coco.draw(*item, path), tmp_path / 'x', b'')


@pytest.mark.parametrize('corners', [10, 300, 2000])
def test_an_outline_of_any_length_takes_little_memory(tmp_path, corners):
    polygon = [0, 0, 2 ** 16, 2 ** 16] * corners
    assert bounded(lambda path: coco.region_of([polygon], (7, 8), path), tmp_path / 'x', bytes(2 ** 22)) is None
    whole = [0, 0, 640, 0, 640, 480, 0, 480]
    assert coco.region_of([whole], (480, 640), 'x').all()


# ---------------------------------------------------------------- .npy

def npy(value):
    """The bytes of a value as np.save writes it."""
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def npy_of_pickle(payload):
    """The bytes of a .npy file with an object header and a pickle."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    return file.getvalue() + payload


def headed(header):
    """The bytes of a .npy file with a header, a text, sound or not."""
    text = header.encode('latin1') + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + b'\0' * 64


OPCODES = pieces(
    b'\x80\x04', b'(', b')', b']', b'}', b'\x8f', b'.', b'0', b'1', b'2', b'N', b'\x88', b'\x89', b'K\x03', b'\x85',
    b'\x86', b'\x87', b't', b'a', b'e', b's', b'u', b'd', b'l', b'\x90', b'\x91', b'R', b'b', b'\x81', b'\x92', b'\x94',
    b'q\0', b'q\1', b'h\0', b'h\1', b'r\xff\xff\xff\x7f', b'p99\n', b'g0\n', b'J\xff\xff\xff\xff', b'C\x04\0\0\0\0',
    b'X\x03\0\0\0abc', b'\x8c\x02f4', b'\x8c\x01<', b'\x8e\x04\0\0\0\0\0\0\0abcd', b'\x95\xff\0\0\0\0\0\0\0', b'Q',
    b'G\x7f\xf0\0\0\0\0\0\0', b'cnumpy\ndtype\n', b'cnumpy\nndarray\n', b'cnumpy._core.multiarray\n_reconstruct\n',
    b'cnumpy._core.multiarray\nscalar\n', b'cnumpy._core.numeric\n_frombuffer\n', b'ccollections\nOrderedDict\n',
    b'ctorch._utils\n_rebuild_tensor_v2\n', b'ctorch.storage\n_load_from_bytes\n', b'cos\nsystem\n', b'Pid\n',
    b'cbuiltins\neval\n', b'cbuiltins\nbytearray\n', b'c_codecs\nencode\n', b'ibuiltins\neval\n', b'\x82\1')
PICKLES = OPCODES | OPCODES.map(lambda code: b'\x80\x04' + code + b'.')
HEADERS = pieces("{'descr': ", "'<f4'", "'|O'", "'V0'", "'U0'", "'M8[D]'", ', ', "'fortran_order': ", 'False', 'True',
                 "'shape': ", '(', ')', '3', '-1', '10**9', '99999999999', '}', '[', "('a', '<f4')", 'L')
DTYPES = st.sampled_from(["'<f4'", "'V0'", "'U0'", "'S0'", "[('a', '<f4')]", "'<M8[D]'", "('<f4', (1000000,))"])
SHAPES = st.sampled_from(['(2, 3)', '(-2,)', '(2, -3)', '()', '(99999999999,)', '(0, 99999999999)', '(True,)', '(2.0,)',
                          '[2]', '(99999999999999999999,)', f'({"1, " * 70})'])
SOUND_HEADERS = st.builds("{{'descr': {}, 'fortran_order': False, 'shape': {}, }}".format, DTYPES, SHAPES)

MAPS = st.sampled_from([
    np.ones((2, 3), np.float32), np.full((2, 3), np.nan), np.zeros((0, 3)), np.ones(3), np.ones((1,) * 30),
    np.array([1, 2]), np.array([[1, 2j]]), np.array(['a']), np.array([None, {}], object), np.ones((2, 3), np.float16),
    np.array([[1e300]]), np.array(7), np.array([[True]]), np.array(['2020-01-01'], 'M8[D]')])
NUMBERS = st.integers(-3, 22) | st.sampled_from([10 ** 30, float('inf'), float('nan'), None, True, 'dog', '3', b'x',
                                                 1.5, 2j])
LEAVES = MAPS | NUMBERS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=6)
KEYS = NUMBERS | st.sampled_from(['keys', 'high_res', 'cam', '2007_000032', (1, 2), np.int64(3), np.float32(2),
                                  np.str_('x')])
DICTS = st.dictionaries(KEYS, VALUES, max_size=4) | st.fixed_dictionaries({'keys': VALUES, 'high_res': VALUES})
NPY_READERS = (lambda path: read_cams(path, 20), lambda path: read_cams(path, 20, (2, 3)),
               lambda path: read_probabilities(path, 21), lambda path: read_labels(path, 20), files.read_npy)


def object_array(value):
    """An array of one object."""
    array = np.empty((), object)
    array[()] = value
    return array


@drawn
@given(st.binary(max_size=80) | PICKLES.map(npy_of_pickle) | (HEADERS | SOUND_HEADERS).map(headed)
       | damaged(npy({0: np.ones((2, 3), np.float32)}), npy(np.ones((2, 3))), npy({'a': np.ones(20)})))
def test_any_npy_gives_a_value_or_the_line(tmp_path, content):
    for read in NPY_READERS:
        bounded(read, tmp_path / 'x.npy', content)


@drawn
@given(DICTS | VALUES | st.dictionaries(st.integers(0, 3), MAPS, max_size=3))
@example({float('inf'): np.ones((2, 3))})
@example({10 ** 30: np.ones((2, 3))})
@example({'keys': [[1], [1, 2]], 'high_res': [1]})
def test_any_plain_value_in_an_npy_is_read_or_gets_the_line(tmp_path, value):
    for read in NPY_READERS:
        outcome(read, tmp_path / 'x.npy', npy(object_array(value)))


def test_lists_that_unfold_without_end_are_refused(tmp_path):
    """A list of two of the same list of two …: 30 levels are 2^30 numbers in a file of 300 bytes."""
    for levels in (12, 30, 60):
        value = 1
        for _ in range(levels):
            value = [value, value]
        for content in ({0: value}, {'keys': value, 'high_res': value}, value):
            for read in NPY_READERS:
                assert bounded(read, tmp_path / 'x.npy', npy(object_array(content))) is None
    label = np.ones(20, np.float32)
    shared = dict.fromkeys(map(str, range(500)), label)
    assert len(bounded(lambda path: read_labels(path, 20), tmp_path / 'x.npy', npy(object_array(shared)), 50)) == 500


# ---------------------------------------------------------------- weights

def mxnet(*shapes, kind=0, data=b'', count=None, names=()):
    """The bytes of an MXNet parameter file, sound or not."""
    out = struct.pack('<QQQ', 0x112, 0, len(shapes) if count is None else count)
    for shape in shapes:
        out += struct.pack(f'<IiI{len(shape)}q', 0xF993FAC9, 0, len(shape), *shape)
        out += struct.pack('<iii', 1, 0, kind) + data
    return out + struct.pack('<Q', len(names)) + b''.join(struct.pack('<Q', len(name)) + name for name in names)


def sound(state, size):
    """Whether tensors are plain numbers, no more than four bytes for each of the file's."""
    return all(type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.device.type == 'cpu'
               for tensor in state.values()) and sum(
               tensor.numel() * tensor.element_size() for tensor in state.values()) <= 4 * size


SIDES = st.lists(st.sampled_from([0, 1, 2, 3, -1, 2 ** 31, 2 ** 62, 2 ** 63 - 1]), max_size=4)
SOUND_PARAMS = mxnet((2, 3), data=b'\0' * 24, names=(b'arg:conv1a_weight',))
PARAMS = st.builds(lambda shape, **options: mxnet(shape, **options), SIDES, kind=st.integers(-1, 8),
                   data=st.binary(max_size=16), count=st.sampled_from([None, 0, 2, 2 ** 63]),
                   names=st.lists(st.binary(max_size=9), max_size=3))


@drawn
@given(st.binary(max_size=80) | damaged(SOUND_PARAMS) | PARAMS)
@example(mxnet((10000,), kind=3, data=b'\1' * 10000, names=(b'arg:conv1a_weight',)))
def test_any_params_file_gives_tensors_or_the_line(tmp_path, content):
    state = bounded(read_weights, tmp_path / 'x.params', content)
    assert state is None or sound(state, len(content))


def saved(value, **options):
    """The bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def with_pickle(payload, original, **options):
    """A .pth file with another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as old, zipfile.ZipFile(file, 'w', **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, payload if entry.filename.endswith('data.pkl') else old.read(entry))
    return file.getvalue()


STATE = {'conv1a.weight': torch.ones(2, 3), 'bn7.bias': torch.zeros(2, dtype=torch.float16), 'n': torch.tensor(3)}
PTH, OLD_PTH = saved(STATE), saved(STATE, _use_new_zipfile_serialization=False)


@drawn
@given(st.binary(max_size=80) | damaged(PTH, OLD_PTH) | PICKLES.map(lambda code: with_pickle(code, PTH)))
@example(OLD_PTH.replace(b'X\x10\0\0\0protocol_version', b'X\x10\0\0\x7fprotocol_version'))
def test_any_pth_gives_tensors_or_the_line(tmp_path, content):
    state = bounded(read_weights, tmp_path / 'x.pth', content)
    assert state is None or sound(state, len(content))


@pytest.mark.parametrize('value', [
    {'x': torch.ones(1, dtype=torch.float16).expand(20000, 20000)}, {'x': torch.ones(1).expand(20000, 20000)},
    {'x': torch.ones(1).expand(10 ** 12)},
    {'x': torch.ones(2, 3).to_sparse()}, {'x': torch.ones(2, 3, device='meta')},
    {'x': torch.sparse_coo_tensor([[0], [0]], [1.], (10 ** 6, 10 ** 6))},
    {'x': torch.quantize_per_tensor(torch.ones(2, 2), .1, 0, torch.quint8)}])
@pytest.mark.parametrize('zipped', [True, False])
def test_tensors_larger_than_their_numbers_are_refused(tmp_path, value, zipped):
    content = saved(value, _use_new_zipfile_serialization=zipped)
    state = bounded(read_weights, tmp_path / 'x.pth', content)
    assert state is None


def test_weights_that_share_their_numbers_are_read_and_a_thousand_copies_refused(tmp_path):
    tied = torch.ones(100, 100)
    assert outcome(read_weights, tmp_path / 'x.pth', saved({'a': tied, 'b': tied})).keys() == {'a', 'b'}
    assert outcome(read_weights, tmp_path / 'x.pth', saved({f'x{k}': tied for k in range(1000)})) is None


def test_a_packed_archive_of_weights_is_refused(tmp_path):
    original = saved({'x': torch.zeros(10 ** 6)})
    payload = zipfile.ZipFile(io.BytesIO(original)).read('archive/data.pkl')
    assert outcome(read_weights, tmp_path / 'x.pth', with_pickle(payload, original)).keys() == {'x'}
    content = with_pickle(payload, original, compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 50_000
    assert outcome(read_weights, tmp_path / 'x.pth', content) is None


# ---------------------------------------------------------------- pictures

def encoded(pixels, kind, **options):
    """The bytes of a picture."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def palette_png():
    """The bytes of a mask as this project writes it."""
    image, file = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), io.BytesIO()
    image.putpalette(VOC.palette)
    image.save(file, 'png')
    return file.getvalue()


def png(chunks):
    """The bytes of a PNG of chunks (type, data), each with its right checksum."""
    parts = [struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
             for kind, data in chunks]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


RGB = np.random.default_rng(0).integers(0, 255, (16, 12, 3), dtype=np.uint8)
TURNED = b'Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0'
PICTURES = (palette_png(), encoded(RGB, 'png'), encoded(RGB, 'jpeg', exif=TURNED), encoded(RGB[..., 0], 'gif'),
            encoded(RGB, 'tiff'), encoded(RGB, 'bmp'), encoded(RGB, 'webp'), encoded(RGB, 'ppm'),
            encoded(RGB[..., 0].astype(np.uint16), 'png'), encoded(RGB, 'tiff', compression='tiff_lzw'))
FIELDS = st.tuples(*map(st.sampled_from, (
    [0, 1, 8, 20, 2 ** 31 - 1, 2 ** 32 - 1], [0, 1, 8, 20, 2 ** 31 - 1], [1, 2, 3, 4, 8, 16], [0, 2, 3, 4, 6, 7],
    [0, 1], [0, 1], [0, 1, 2])))  # width, height, bits, colour type, compression, filter, interlace
PNG_HEADERS = FIELDS.map(lambda fields: (b'IHDR', struct.pack('>IIBBBBB', *fields)))
KINDS = st.sampled_from([b'PLTE', b'tRNS', b'eXIf', b'gAMA', b'iCCP', b'tEXt', b'zTXt', b'iTXt', b'pHYs', b'acTL',
                         b'fcTL', b'fdAT', b'sRGB', b'cHRM', b'IEND', b'IHDR', b'abCD', b'CgBI'])
PIXELS = (st.binary(max_size=700) | st.just(bytes(700))).map(lambda data: (b'IDAT', zlib.compress(data)))
CHUNKS = st.lists(st.tuples(KINDS, st.binary(max_size=30)) | PIXELS | st.just((b'IEND', b'')), max_size=7)
PICTURE_READERS = (read_mask, lambda path: read_image(path), lambda path: read_image(path, True), image_size,
                   lambda path: read_saliency(path, (8, 8)), lambda path: check_photo(path, True))


@drawn
@given(st.binary(max_size=80) | damaged(*PICTURES) | st.builds(lambda header, chunks: png([header, *chunks]),
                                                               PNG_HEADERS, CHUNKS))
def test_any_picture_is_read_or_gets_the_line(tmp_path, content):
    for read in PICTURE_READERS:
        outcome(read, tmp_path / 'x.png', content)


def test_a_picture_beyond_the_pixel_limit_is_refused(tmp_path):
    content = png([(b'IHDR', struct.pack('>IIBBBBB', 20000, 20000, 8, 3, 0, 0, 0)), (b'PLTE', bytes(768)),
                   (b'IDAT', zlib.compress(bytes(1000))), (b'IEND', b'')])
    for read in PICTURE_READERS:
        assert bounded(read, tmp_path / 'x.png', content) is None


def test_formats_that_run_programs_are_no_pictures(tmp_path):
    """Pillow opens PostScript by starting Ghostscript."""
    content = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(x) (w) file closefile\n%%EOF\n'
    for read in PICTURE_READERS:
        assert outcome(read, tmp_path / 'x.jpg', content) is None

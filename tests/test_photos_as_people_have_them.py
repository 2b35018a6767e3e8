"""Photos of phones, cameras, scanners and Macs: endings, letters, blanks, orientation, 16 bits, one colour."""
import unicodedata

import numpy as np
import pytest
from helpers import assert_refused, run_main
from PIL import Image

from data.cams import read_cams
from data.images import PhotoFolders, devkit_photos, image_size, read_image
from data.labels import labels_of, read_labels
from data.lists import read_list
from data.masks import save_mask
from data.probabilities import read_probabilities
from engine.errors import UserError
from engine.evaluation import evaluate_masks
from segmentation import preflight
from voc12.classes import VOC

ORIENTATION = 0x0112
COMPOSED = unicodedata.normalize('NFC', 'café 1')
DECOMPOSED = unicodedata.normalize('NFD', 'café 1')
# How a phone stores a photo, by tag: what turns the stored photo into the upright one.
STORED = {1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
          5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
          8: lambda p: np.rot90(p, -1)}


@pytest.fixture
def photo(toy):
    """A photo of the toy set, uint8 (64, 80, 3) or the like."""
    return read_image(next(iter(sorted((toy.root / 'JPEGImages').glob('*.jpg')))))


@pytest.fixture
def folder(tmp_path):
    """An empty JPEGImages."""
    (tmp_path / 'voc' / 'JPEGImages').mkdir(parents=True)
    return tmp_path / 'voc' / 'JPEGImages'


def save(path, pixels, orientation=None, **options):
    """Write an image, with an EXIF orientation if one is given. Returns its path."""
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
        options['exif'] = exif
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)
    return path


def infer(toy, folder, ids, *flags):
    """CAMs of photos in `folder` (…/JPEGImages), each labelled with classes 0 and 14: {id: maps}."""
    root, label = folder.parent, np.zeros(VOC.num_foreground, np.float32)
    label[[0, 14]] = 1
    np.save(root / 'labels.npy', dict.fromkeys(ids, label))
    (root / 'list.txt').write_text('\n'.join(ids) + '\n', encoding='utf-8')
    run_main('contrast_infer', '--weights', toy.net, '--voc12_root', root, '--cls_labels', root / 'labels.npy',
             '--infer_list', root / 'list.txt', '--out_cam', root / 'cam', '--num_workers', 0, '--scales', 1, *flags)
    return {i: read_cams(root / 'cam' / f'{i}.npy', VOC.num_foreground)[1] for i in ids}


# ---------------------------------------------------------------- orientation

@pytest.mark.parametrize('tag', STORED)
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif'])
def test_a_photo_is_read_as_viewers_show_it(tmp_path, tag, suffix):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10, :15], upright[10:, 15:] = (250, 0, 0), (0, 0, 250)
    path = save(tmp_path / f'x.{suffix}', STORED[tag](upright), tag, **({'quality': 100} if suffix == 'jpg' else {}))
    read = read_image(path)
    assert read.shape == upright.shape
    assert image_size(path) == (20, 30)
    assert np.abs(read.astype(int) - upright).mean() < 10


def test_turned_photos_have_the_cams_of_the_upright_one(toy, folder, photo):
    for tag in (1, 3, 6):
        save(folder / f'x{tag}.png', STORED[tag](photo), tag)
    cams = infer(toy, folder, ['x1', 'x3', 'x6'])
    np.testing.assert_array_equal(cams['x3'], cams['x1'])
    np.testing.assert_array_equal(cams['x6'], cams['x1'])


@pytest.mark.parametrize('data', [b'Exif\0\0', b'Exif\0\0II*\0\x08\0\0\0\xff\xff', b'Exif\0\0nonsense', b'\0' * 40])
def test_a_damaged_orientation_counts_as_none(tmp_path, photo, data):
    Image.fromarray(photo).save(tmp_path / 'x.png', exif=data)
    np.testing.assert_array_equal(read_image(tmp_path / 'x.png'), photo)
    assert image_size(tmp_path / 'x.png') == photo.shape[:2]


# ---------------------------------------------------------------- depth

@pytest.mark.parametrize('order', ['<u2', '>u2'])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, photo, order):
    grey = photo[..., 0]
    image = Image.fromarray((grey.astype(np.uint16) * 257).astype(order))
    image.save(tmp_path / 'x.tif')
    np.testing.assert_array_equal(read_image(tmp_path / 'x.tif', convert=True), np.repeat(grey[..., None], 3, 2))
    values = np.array([[0, 128, 129, 257, 65535, 65406]], np.uint16).repeat(8, 0).repeat(2, 1)
    Image.fromarray(values).save(tmp_path / 'x.png')
    assert read_image(tmp_path / 'x.png', convert=True)[0, ::2, 0].tolist() == [0, 0, 1, 1, 255, 254]


@pytest.mark.parametrize('kind', [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((10, 20), kind)).save(tmp_path / 'x.tif')
    with pytest.raises(UserError, match='x.tif: image mode is [FI]: values of 32 bits, .*; save it with 8 bits'):
        read_image(tmp_path / 'x.tif', convert=True)


def test_a_sixteen_bit_photo_has_the_cams_of_the_eight_bit_one(toy, folder, photo):
    save(folder / 'bits8.png', photo[..., 0])
    save(folder / 'bits16.png', photo[..., 0].astype(np.uint16) * 257)
    cams = infer(toy, folder, ['bits8', 'bits16'], '--convert_rgb')
    np.testing.assert_array_equal(cams['bits16'], cams['bits8'])


# ---------------------------------------------------------------- one colour

@pytest.mark.parametrize('level', [0, 100, 255])
@pytest.mark.parametrize('noise', [0, 2])
def test_the_cam_of_a_blank_photo_stays_within_0_and_1(toy, folder, level, noise):
    shown = np.full((64, 80, 3), level) + np.random.default_rng(0).integers(-noise, noise + 1, (64, 80, 3))
    save(folder / 'blank.png', shown.clip(0, 255).astype(np.uint8))
    cams = infer(toy, folder, ['blank'])['blank']
    assert 0 <= cams.min() and cams.max() <= 1


# ---------------------------------------------------------------- names

def test_photos_are_found_under_any_ending(toy, folder, photo):
    names = ['IMG_1.JPG', 'IMG_2.jpeg', 'IMG_3.png', 'IMG_4.Jpg', 'IMG_5.JPEG', 'a.b.jpg', 'my photo (2).jpg']
    for name in names:
        save(folder / name, photo)
    (folder.parent / 'list.txt').write_text(''.join(f'/JPEGImages/{name}\n' for name in names))
    ids = read_list(folder.parent / 'list.txt')
    assert ids == ['IMG_1', 'IMG_2', 'IMG_3', 'IMG_4', 'IMG_5', 'a.b', 'my photo (2)']
    assert [path.name for path in PhotoFolders((folder,)).need(ids).values()] == names
    assert set(infer(toy, folder, ids)) == set(ids)


def test_the_published_name_comes_before_others_of_an_id(folder, photo):
    for name in ('x.png', 'x.JPG', 'x.jpg', 'y.png', 'y.JPG'):
        save(folder / name, photo)
    assert [path.name for path in PhotoFolders((folder,)).need(['x', 'y']).values()] == ['x.jpg', 'y.JPG']


@pytest.mark.parametrize('listed, stored', [
    (COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), ('한글', unicodedata.normalize('NFD', '한글'))])
def test_letters_may_be_composed_or_decomposed(toy, folder, photo, listed, stored):
    assert listed != stored
    save(folder / f'{stored}.jpg', photo)
    assert infer(toy, folder, [listed])[listed].shape[1:] == photo.shape[:2]
    labels = read_labels(folder.parent / 'labels.npy', VOC.num_foreground)
    assert labels_of([stored], labels, 'x.npy').sum() == 2


def test_of_two_files_that_look_the_same_the_listed_letters_count(folder, photo):
    for name in (COMPOSED, DECOMPOSED):
        save(folder / f'{name}.jpg', photo)
    assert {i: path.stem for i, path in PhotoFolders((folder,)).need([DECOMPOSED, COMPOSED]).items()} == {
        DECOMPOSED: DECOMPOSED, COMPOSED: COMPOSED}


@pytest.mark.parametrize('file, listed, words', [
    ('IMG_1.JPG', 'IMG_1.JPG', 'IMG_1 is there: a line of a list is an id without .JPG'),
    ('2007_000032.jpg', '2007_000032  1', '2007_000032 is there: a line of a list is one id'),
    ('2007_000032.jpg', '2007000032', '2007_000032 is there'),
    ('x.webp', 'x', 'x.webp is there, which has none of the endings')])
def test_a_missing_photo_is_named_with_what_lies_there(toy, folder, photo, capsys, file, listed, words):
    save(folder / file, photo)
    (folder.parent / 'list.txt').write_text(f'{listed}\n')
    np.save(folder.parent / 'labels.npy', {listed: np.ones(VOC.num_foreground)})
    error = assert_refused(capsys, 'contrast_infer', '--weights', toy.net, '--voc12_root', folder.parent,
                           '--cls_labels', folder.parent / 'labels.npy', '--infer_list', folder.parent / 'list.txt',
                           '--out_cam', folder.parent / 'cam')
    assert 'file not found (1 of 1 are missing; ' in error
    assert words in error


def test_a_line_of_a_list_is_the_whole_id_or_a_path_that_begins_with_a_slash(tmp_path):
    path = tmp_path / 'x.txt'
    path.write_text('my photo\nx.png\n/JPEGImages/an other.jpg /SegmentationClassAug/an other.png\n/a/b/c.JPEG\n')
    assert read_list(path) == ['my photo', 'x.png', 'an other', 'c']
    for line in ('JPEGImages/x.jpg', 'JPEGImages\\x.jpg'):
        path.write_text(line)
        with pytest.raises(UserError, match='neither an id nor a path that begins with /'):
            read_list(path)


def test_the_steps_that_follow_find_and_turn_the_same_photos(toy, folder, photo):
    """A turned photo with a blank in its name and another ending: Step 2's CRF and Step 3's check of the masks."""
    ids, size = ['my photo', COMPOSED], photo.shape[:2]
    save(folder / 'my photo.JPG', STORED[6](photo), 6)
    save(folder / f'{DECOMPOSED}.png', STORED[8](photo), 8)
    infer(toy, folder, ids)
    root, truth = folder.parent, folder.parent / 'SegmentationClass'
    run_main('aff_prepare', '--voc12_root', root, '--cam_dir', root / 'cam', '--infer_list', root / 'list.txt',
             '--out_crf', root / 'aff', '--num_workers', 0, '--crf_iters', 1)
    truth.mkdir()
    mask = np.zeros(size, np.uint8)
    mask[:20] = 8
    save_mask(truth / 'my photo.png', mask, VOC.palette)
    save_mask(truth / f'{DECOMPOSED}.png', mask, VOC.palette)
    summary = preflight.check(ids, devkit_photos(root), truth, truth, VOC, workers=0)
    assert (summary.masks, summary.scored, summary.empty) == (2, 2, 0)
    assert evaluate_masks(ids, truth, truth, VOC).class_iou[0, 8] == pytest.approx(100)
    assert set(read_probabilities(root / 'aff' / '4.00' / 'my photo.npy', VOC.num_classes, size)[0]) == {0, 1, 15}

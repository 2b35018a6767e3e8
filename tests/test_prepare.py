"""voc12/prepare.py: the lists and labels from a devkit made here, what it says is missing, and hostile annotations."""
import numpy as np
import pytest
from helpers import assert_refused, run_main, tree_bytes
from PIL import Image

from data.description import read_dataset
from data.labels import image_labels, read_labels
from data.lists import read_list
from data.masks import save_mask
from voc12 import prepare as prepare_script
from voc12.classes import VOC

SPLITS = {'train': ['2007_000032', '2007_000039'], 'val': ['2007_000033'], 'test': ['2008_000006']}
EXTRA = '2008_000008'  # in SegmentationClassAug alone
OBJECTS = {'2007_000032': ['aeroplane', 'aeroplane', 'person'], '2007_000039': ['tvmonitor'], '2007_000033': ['cat'],
           EXTRA: ['horse', 'person']}


def annotation(names):
    """Annotation XML with an object per name; the first is difficult, the person has a part called 'head'."""
    parts = '<part><name>head</name></part>'
    objects = ''.join(f'<object><name>{name}</name><difficult>{int(n == 0)}</difficult>'
                      f'{parts if name == "person" else ""}</object>' for n, name in enumerate(names))
    return f'<annotation><filename>x.jpg</filename>{objects}</annotation>'


@pytest.fixture
def devkit(tmp_path):
    """A devkit of five images, 12x10 pixels; saliency maps beside it."""
    root = tmp_path / 'VOC2012'
    for folder in ('JPEGImages', 'Annotations', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation',
                   'SAL'):
        (root / folder).mkdir(parents=True)
    for name, ids in SPLITS.items():
        (root / 'ImageSets' / 'Segmentation' / f'{name}.txt').write_text(''.join(f'{i}\n' for i in ids))
    for i in [*OBJECTS, *SPLITS['test']]:
        Image.new('RGB', (12, 10)).save(root / 'JPEGImages' / f'{i}.jpg')
    for i, names in OBJECTS.items():
        (root / 'Annotations' / f'{i}.xml').write_text(annotation(names))
        save_mask(root / 'SegmentationClassAug' / f'{i}.png', np.zeros((10, 12)), VOC.palette)
        if i != EXTRA:
            save_mask(root / 'SegmentationClass' / f'{i}.png', np.zeros((10, 12)), VOC.palette)
        Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(root / 'SAL' / f'{i}.png')
    return root


@pytest.fixture
def out(tmp_path):
    """The folder of the lists and labels, not made yet."""
    return tmp_path / 'out'


def argv(devkit, out):
    """The command line of prepare.py."""
    return '--voc12_root', devkit, '--out', out, '--num_workers', 0


def prepare(devkit, out, *flags):
    """Run prepare.py on a devkit."""
    run_main('voc12/prepare', *argv(devkit, out), *flags)


def assert_prepare_refuses(capsys, devkit, out, *words, flags=()):
    """Run prepare.py; its one error line must hold all the words."""
    error = assert_refused(capsys, 'voc12/prepare', *argv(devkit, out), *flags)
    for word in words:
        assert word in error


def test_lists_are_the_devkits_and_train_aug_adds_the_sbd_masks(devkit, out, capsys):
    prepare(devkit, out)
    for name in ('train.txt', 'val.txt', 'train_aug.txt', 'test.txt', 'cls_labels.npy'):
        assert (out / name).is_file()
    assert not list(out.glob('.*'))
    assert read_list(out / 'train_aug.txt') == sorted([*SPLITS['train'], EXTRA])
    for name, ids in SPLITS.items():
        assert read_list(out / f'{name}.txt') == ids
    first = (out / 'train.txt').read_text().splitlines()[0]
    assert first == '/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png'
    said = capsys.readouterr()
    assert 'train.txt: 2 ids (VOC 2012 has 1464)' in said.out
    assert 'train_aug.txt: 3 ids (VOC 2012 has 10582)' in said.out
    assert 'warning' not in said.err


def test_full_counts_are_not_remarked_on(devkit, out, capsys, monkeypatch):
    monkeypatch.setattr(prepare_script, 'VOC_COUNTS', {'train': 2, 'val': 1, 'train_aug': 3, 'test': 1})
    prepare_script.main(prepare_script.get_args_parser().parse_args([str(text) for text in argv(devkit, out)]))
    said = capsys.readouterr().out
    assert 'train_aug.txt: 3 ids\n' in said
    assert 'VOC 2012 has' not in said


def test_labels_count_every_object_and_no_part(devkit, out):
    prepare(devkit, out)
    labels = read_labels(out / 'cls_labels.npy', VOC.num_foreground)
    assert set(labels) == set(OBJECTS)  # the test image has no annotation
    for i, names in OBJECTS.items():
        assert labels[i].dtype == np.float32
        assert {VOC.foreground[k] for k in np.flatnonzero(labels[i])} == set(names)


def test_without_sbd_masks_train_aug_is_the_devkits_list_or_train(devkit, out, capsys):
    (devkit / 'SegmentationClassAug').rename(devkit / 'elsewhere')
    prepare(devkit, out)
    assert 'no SegmentationClassAug' in capsys.readouterr().err
    assert (out / 'train_aug.txt').read_text() == ''.join(f'{i}\n' for i in SPLITS['train'])  # ids only
    (devkit / 'ImageSets' / 'Segmentation' / 'trainaug.txt').write_text('\n'.join([*SPLITS['train'], EXTRA]))
    prepare(devkit, out)
    assert read_list(out / 'train_aug.txt') == [*SPLITS['train'], EXTRA]


def test_what_is_missing_is_said(devkit, out, capsys):
    (devkit / 'JPEGImages' / '2007_000033.jpg').unlink()
    (devkit / 'Annotations' / f'{EXTRA}.xml').unlink()
    (devkit / 'ImageSets' / 'Segmentation' / 'test.txt').unlink()
    prepare(devkit, out)
    said = capsys.readouterr().err
    assert 'val: JPEGImages lacks 1 of 1 files, 2007_000033.jpg the first' in said
    assert f'train_aug: Annotations lacks 1 of 3 files, {EXTRA}.xml the first' in said
    assert 'no test.txt written' in said
    assert not (out / 'test.txt').exists()
    assert EXTRA not in read_labels(out / 'cls_labels.npy', VOC.num_foreground)


def test_a_second_run_writes_the_same_bytes(devkit, out):
    prepare(devkit, out)
    first = tree_bytes(out)
    prepare(devkit, out)
    assert tree_bytes(out) == first


# ---------------------------------------------------------------- ids without a photo

@pytest.fixture
def previews(devkit):
    """A devkit whose SegmentationClassAug holds more PNGs than masks, as people leave them there."""
    folder = devkit / 'SegmentationClassAug'
    for name in ('2007_000032_color', 'copy (1)', 'größe'):
        (folder / f'{name}.png').write_bytes((folder / '2007_000032.png').read_bytes())
    return devkit


def test_names_without_a_photo_are_left_out_and_counted(previews, out, capsys):
    prepare(previews, out)
    said = capsys.readouterr()
    assert read_list(out / 'train_aug.txt') == sorted([*SPLITS['train'], EXTRA])
    assert ('warning: train_aug: JPEGImages lacks 3 of 6 files, 2007_000032_color.jpg the first; train_aug.txt leaves '
            'these ids out') in said.err
    assert said.err.count('warning') == 1
    assert 'train_aug.txt: 3 ids' in said.out


def test_photos_that_are_missing_are_left_out_of_every_list(devkit, out, capsys):
    first, second = SPLITS['train']
    (devkit / 'JPEGImages' / f'{first}.jpg').unlink()
    prepare(devkit, out)
    assert read_list(out / 'train.txt') == [second]
    assert read_list(out / 'train_aug.txt') == sorted([second, EXTRA])
    said = capsys.readouterr().err
    assert f'train: JPEGImages lacks 1 of 2 files, {first}.jpg the first; train.txt leaves these ids out' in said


def test_lists_may_be_made_before_the_photos_are_there(devkit, out, capsys):
    (devkit / 'JPEGImages').rename(devkit / 'elsewhere')
    prepare(devkit, out)
    assert read_list(out / 'train.txt') == SPLITS['train']
    assert 'train: JPEGImages lacks 2 of 2 files' in capsys.readouterr().err


# ---------------------------------------------------------------- mistakes

def test_what_is_no_devkit_is_refused(devkit, out, capsys):
    assert_prepare_refuses(capsys, devkit / 'JPEGImages', out, '--voc12_root', 'no VOC devkit')
    (devkit / 'ImageSets' / 'Segmentation' / 'val.txt').unlink()
    assert_prepare_refuses(capsys, devkit, out, 'val.txt', 'not found')


def test_lists_that_share_images_are_refused(devkit, out, capsys):
    (devkit / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('2007_000032\n')
    assert_prepare_refuses(capsys, devkit, out, 'val.txt', 'shares 1 ids', '2007_000032')


BOMB = ('<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
        '<annotation><object><name>cat&b;</name></object></annotation>')
READER = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/hostname">]><annotation>&f;</annotation>'


@pytest.mark.parametrize('text, words', [
    (BOMB, 'DOCTYPE'), (READER, 'DOCTYPE'), (BOMB.encode('utf-16'), 'DOCTYPE'), (annotation(['unicorn']), "'unicorn'"),
    (annotation(['cat'])[:-5], 'cannot be read'), ('', 'cannot be read'),
    (b'<?xml version="1.0" encoding="rot13"?><a/>', 'cannot be read')])
def test_hostile_and_damaged_annotations_are_refused(devkit, out, capsys, text, words):
    (devkit / 'Annotations' / '2007_000039.xml').write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_prepare_refuses(capsys, devkit, out, '2007_000039.xml', words)
    assert not list(out.iterdir())  # nothing half written


def test_a_devkit_without_annotations_is_refused(devkit, out, capsys):
    (devkit / 'Annotations').rename(devkit / 'elsewhere')
    assert_prepare_refuses(capsys, devkit, out, 'Annotations', 'no annotation of any listed image')


def test_saliency_maps_that_fit_are_counted(devkit, out, capsys):
    prepare(devkit, out, '--saliency_dir', devkit / 'SAL')
    assert '3 saliency maps, all fit' in capsys.readouterr().out


@pytest.mark.parametrize('picture, words', [
    (Image.new('L', (10, 12), 200), 'is 10x12 pixels, its image 12x10'),
    (Image.new('RGB', (12, 10), (200, 0, 0)), 'mode RGB'),
    (Image.new('L', (12, 10), 1), 'values 0..1'), (None, 'file not found')])
def test_saliency_maps_that_do_not_fit_are_refused(devkit, out, capsys, picture, words):
    path = devkit / 'SAL' / '2007_000039.png'
    path.unlink() if picture is None else picture.save(path)
    assert_prepare_refuses(capsys, devkit, out, '2007_000039.png', words, flags=('--saliency_dir', devkit / 'SAL'))


# ---------------------------------------------------------------- classes of one's own

def test_classes_of_ones_own_make_a_description(devkit, tmp_path):
    (devkit / 'Annotations' / '2007_000032.xml').write_text(annotation(['cup', 'no']))
    for i in ('2007_000039', '2007_000033', EXTRA):
        (devkit / 'Annotations' / f'{i}.xml').write_text(annotation(['no']))
    run_main('voc12/prepare', '--voc12_root', devkit, '--out', tmp_path / 'mine', '--classes', 'cup', 'no')
    data = read_dataset(str(tmp_path / 'mine' / 'dataset.yaml'))
    assert data.classes.foreground == ('cup', 'no') and data.classes.name == 'VOC2012'
    ids = read_list(data.list('train_aug'))
    assert image_labels(ids, data.labels, data.classes).tolist() == [
        [1, 1] if i == '2007_000032' else [0, 1] for i in ids]
    assert data.truth() == str(devkit / 'SegmentationClass') and list(data.photos().need(ids))[0] == ids[0]


def test_other_classes_are_refused_without_the_flag_and_in_the_folder_of_vocs_lists(devkit, tmp_path, capsys):
    (devkit / 'Annotations' / '2007_000032.xml').write_text(annotation(['cup']))
    said = assert_refused(capsys, 'voc12/prepare', '--voc12_root', devkit, '--out', tmp_path / 'mine')
    assert "names the class 'cup', which PASCAL VOC 2012 lacks" in said and '--classes' in said
    said = assert_refused(capsys, 'voc12/prepare', '--voc12_root', devkit, '--classes', 'cup')
    assert '--out: is the folder of the lists of VOC' in said
# ---------------------------------------------------------------- --only

def test_lists_can_be_limited_to_the_ids_of_others(devkit, out, tmp_path):
    (tmp_path / 'only').mkdir()
    (tmp_path / 'only/train.txt').write_text('2007_000039\n')
    (tmp_path / 'only/train_aug.txt').write_text(f'{EXTRA}\n2007_000039\n')
    prepare(devkit, out, '--only', tmp_path / 'only')
    assert read_list(out / 'train.txt') == ['2007_000039']
    assert read_list(out / 'train_aug.txt') == [EXTRA, '2007_000039']  # in the order of the others
    assert not (out / 'val.txt').exists()
    assert set(read_labels(out / 'cls_labels.npy', VOC.num_foreground)) == {EXTRA, '2007_000039'}


def test_ids_that_the_devkit_lacks_and_a_folder_without_lists_are_refused(devkit, out, tmp_path, capsys):
    (tmp_path / 'only').mkdir()
    assert_prepare_refuses(capsys, devkit, out, '--only', 'has no list', flags=('--only', tmp_path / 'only'))
    (tmp_path / 'only/train.txt').write_text('2007_000039\nother\n')
    assert_prepare_refuses(capsys, devkit, out, 'names 1 ids that the devkit lacks, other the first',
                           flags=('--only', tmp_path / 'only'))

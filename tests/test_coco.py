"""data/coco.py and coco14/prepare.py: polygons and run lengths as COCO's own tools draw them, lists, labels, a data set
of one's own, 1,000 images without any class, and the line that each malformed annotation gets."""
import json

import numpy as np
import pytest
from helpers import assert_refused, run_main
from PIL import Image

from data import coco
from data.description import read_dataset
from data.labels import image_labels, read_labels
from data.lists import read_list
from data.masks import read_label_mask
from engine.errors import UserError

# Measured on pycocotools 2.0: the pixels of polygons in an image of 7x8, and the same as compressed run lengths.
DRAWN = {
    'rectangle': ([1, 1, 4, 1, 4, 3, 1, 3], '825000k0', '''
        ........ .###.... .###.... ........ ........ ........ ........'''),
    'triangle': ([0.4, 0.6, 7.3, 2.2, 3.1, 6.8], '8252N10N1O1O6', '''
        ........ .###.... .######. ..####.. ..###... ...#.... ........'''),
    'beyond the image': ([-2.5, -1, 12, 3.3, 5, 9.9], '0342O0O1O0001O00', '''
        ##...... ######.. ######## .####### .####### ..###### ...#####'''),
    'star': ([4, 0, 6, 7, 0, 2.5, 8, 2.5, 2, 7], ':160K11O0010O020M12O7', '''
        ........ ........ ...##... .##..##. ........ ..####.. ..#..#..'''),
}


def drawing(text):
    return np.array([[character == '#' for character in row] for row in text.split()])


@pytest.mark.parametrize('name', DRAWN)
def test_polygons_and_run_lengths_are_the_pixels_of_pycocotools(name):
    polygon, packed, picture = DRAWN[name]
    np.testing.assert_array_equal(coco.region_of([polygon], (7, 8), 'x'), drawing(picture))
    np.testing.assert_array_equal(coco.region_of({'size': [7, 8], 'counts': packed}, (7, 8), 'x'), drawing(picture))


def test_run_lengths_go_down_the_columns():
    region = coco.region_of({'size': [3, 2], 'counts': [2, 3, 1]}, (3, 2), 'x')
    assert region.tolist() == [[False, True], [False, True], [True, False]]
    assert not coco.region_of({'size': [3, 2], 'counts': [6]}, (3, 2), 'x').any()


def test_parts_of_an_object_are_united_and_an_object_without_outline_is_no_pixel():
    two = coco.region_of([DRAWN['rectangle'][0], DRAWN['star'][0]], (7, 8), 'x')
    np.testing.assert_array_equal(two, drawing(DRAWN['rectangle'][2]) | drawing(DRAWN['star'][2]))
    assert not coco.region_of([], (7, 8), 'x').any() and not coco.region_of(None, (7, 8), 'x').any()


@pytest.mark.parametrize('segmentation, words', [
    ({'size': [8, 7], 'counts': [56]}, 'run lengths of [8, 7] (height, width) in an image of [7, 8]'),
    ({'size': [7, 8], 'counts': [50]}, 'run lengths that do not add up to the 56 pixels of the image'),
    ({'size': [7, 8], 'counts': [-4, 60]}, 'do not add up'),
    ({'size': [7, 8], 'counts': ['56']}, 'do not add up'),
    ({'size': [7, 8], 'counts': '825000k'}, 'break off'),
    ({'size': [7, 8], 'counts': '8 5000k0'}, 'a foreign character'),
    ({'size': [7, 8], 'counts': 'o' * 100}, 'a foreign character'),
    ({'size': [7, 8]}, "'counts'"),
    ([[1, 1, 4, 1]], 'a polygon of 2 points'),
    ([[1, 1, 4, 1, 3]], 'a polygon of 2.5 points'),
    ([[1, 1, 4, 1, 3, 'x']], 'could not convert'),
    ([[1, 1, 4, 1, 3, float('nan')]], 'points far outside'),
    ([[1, 1, 4, 1, 3, 1e12]], 'points far outside'),
    ([1, 1, 4, 1, 3, 3], 'no polygon'),
    ([[0, 0, 60000, 0] * 100], 'an endless outline'),
    ('polygon', 'malformed'),
])
def test_a_malformed_segmentation_gets_its_line(segmentation, words):
    with pytest.raises(UserError) as error:
        coco.region_of(segmentation, (7, 8), 'x.json: image a, annotation 5')
    assert str(error.value).startswith('x.json: image a, annotation 5: its segmentation is malformed (')
    assert words in str(error.value)


def test_small_objects_lie_on_large_ones_and_both_on_crowds():
    def box(x, y, x2, y2, **keys):
        return {'segmentation': [[x, y, x2, y, x2, y2, x, y2]], **keys}
    crowd = {'segmentation': {'size': [4, 6], 'counts': [0, 24]}, 'iscrowd': 1, 'label': 3}
    mask = coco.draw([box(1, 1, 3, 3, label=1), box(1, 1, 5, 4, label=2), crowd], (4, 6), 'x')
    assert mask.tolist() == [[255] * 6, [255, 1, 1, 2, 2, 255], [255, 1, 1, 2, 2, 255], [255, 2, 2, 2, 2, 255]]


# ---------------------------------------------------------------- the script

CATEGORIES = [{'id': 9, 'name': 'fork'}, {'id': 2, 'name': 'cup'}]  # labels go by ascending id


def instances(first, count, annotations=(), **keys):
    """An instances JSON of `count` images of 12x16 pixels."""
    images = [{'id': first + k, 'file_name': f'folder/img_{first + k}.png', 'height': 12, 'width': 16}
              for k in range(count)]
    return {'images': images, 'annotations': list(annotations), 'categories': CATEGORIES} | keys


def annotation(image, category, **keys):
    return {'id': 100 + image, 'image_id': image, 'category_id': category,
            'segmentation': [[2, 2, 10, 2, 10, 8, 2, 8]]} | keys


@pytest.fixture
def export(tmp_path):
    """An annotation tool's export: 1,003 images in train, two of them with a class; 2 in val."""
    root = tmp_path / 'export'
    (root / 'annotations').mkdir(parents=True)
    crowd = annotation(2, 9, iscrowd=1, segmentation={'size': [12, 16], 'counts': [12, 24, 156]})
    save(root, 'train', instances(1, 1003, [annotation(1, 2), crowd]))
    save(root, 'val', instances(2001, 2, [annotation(2001, 9, segmentation=[])]))
    return root


def save(root, split, content):
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def prepare(root, out, *flags):
    run_main('coco14/prepare', '--coco_root', root, '--train', 'train', '--val', 'val', '--out', out, '--num_workers',
             0, *flags)


def test_an_export_becomes_a_data_set_images_without_a_class_included(export, tmp_path, capsys):
    prepare(export, tmp_path / 'mine')
    assert 'train.txt: 1003 ids, 1001 of them without any class' in capsys.readouterr().out
    data = read_dataset(str(tmp_path / 'mine' / 'dataset.yaml'))
    assert data.classes.foreground == ('cup', 'fork') and data.classes.name == 'mine'
    assert data.photos().folders == (export / 'train', export / 'val')
    assert len(read_list(data.list('train'))) == 1003 and read_list(data.list('val')) == ['img_2001', 'img_2002']
    labels = image_labels(['img_1', 'img_2', 'img_3', 'img_2001'], data.labels, data.classes)
    assert labels.tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    masks = [read_label_mask(f'{data.truth()}/img_{k}.png', data.classes) for k in (1, 2, 3, 2001)]
    expected = np.zeros((12, 16), np.uint8)
    expected[2:8, 2:10] = 1
    np.testing.assert_array_equal(masks[0], expected)
    assert (masks[1][:, 1:3] == 255).all() and masks[1].sum() == 255 * 24
    assert not masks[2].any() and not masks[3].any()
    with Image.open(f'{data.truth()}/img_1.png') as image:
        assert image.mode == 'P' and image.getpalette()[3:6] == [128, 0, 0]


def test_masks_may_lie_elsewhere_and_val_may_be_missing(export, tmp_path):
    prepare(export, tmp_path / 'mine', '--out_masks', tmp_path / 'masks', '--val', '')
    data = read_dataset(str(tmp_path / 'mine' / 'dataset.yaml'))
    assert data.truth() == str(tmp_path / 'masks') and 'val' not in data.lists
    assert len(list((tmp_path / 'masks').iterdir())) == 1003
    assert len(read_labels(data.labels, 2)) == 1003


@pytest.mark.parametrize('content, words', [
    ([], 'is no instances JSON of COCO'),
    ({'images': []}, 'is no instances JSON of COCO'),
    (instances(1, 1, [annotation(1, 4)]), 'annotation 101 is of an image or a category that it lacks'),
    (instances(1, 1, [annotation(7, 2)]), 'annotation 107 is of an image or a category that it lacks'),
    (instances(1, 1, ['x']), 'annotation x is of an image'),
    (instances(1, 1, [annotation(1, [2])]), 'annotation 101 is of an image'),
    (instances(1, 1, images=[{'id': 1, 'file_name': 'a.jpg', 'height': 30000, 'width': 30000}]), 'has the size 30000'),
    (instances(1, 1, images=[{'id': 1, 'file_name': 'a.jpg', 'height': 4, 'width': 4},
                             {'id': 2, 'file_name': 'b/a.png', 'height': 4, 'width': 4}]), 'names an image'),
    (instances(1, 1, images=[{'id': 1, 'file_name': 'a.jpg', 'height': 0, 'width': 4}]), 'has the size 0 x 4'),
    (instances(1, 1, images=[{'id': 1, 'file_name': 'a.jpg', 'height': 4, 'width': 1e9}]), 'has the size 4 x 1000000'),
    (instances(1, 1, categories=[{'id': 1, 'name': 'a'}]), 'has other categories than'),
    (instances(1, 1), 'shares 1 images with'),
])
def test_a_malformed_file_gets_its_line(export, tmp_path, capsys, content, words):
    save(export, 'val', content)
    said = assert_refused(capsys, 'coco14/prepare', '--coco_root', export, '--train', 'train', '--val', 'val', '--out',
                          tmp_path / 'out', '--num_workers', 0)
    assert words in said and 'instances_val.json' in said


def test_the_folder_of_the_built_in_lists_takes_no_other_classes(export, capsys):
    said = assert_refused(capsys, 'coco14/prepare', '--coco_root', export, '--train', 'train', '--val', 'val')
    assert 'is for the 80 classes of COCO, the JSON has 2 others' in said
    assert not list((export / 'SegmentationClass').iterdir())


def test_a_missing_json_and_an_empty_one_get_their_line(export, tmp_path, capsys):
    argv = ('coco14/prepare', '--coco_root', export, '--train', 'train', '--val', 'none', '--out', tmp_path / 'out')
    assert 'annotations not found' in assert_refused(capsys, *argv)
    (export / 'annotations' / 'instances_none.json').write_bytes(b'\xff\xfe\x00')
    assert 'is no instances JSON' in assert_refused(capsys, *argv)

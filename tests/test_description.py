"""dataset.yaml: what a description gives, and the one line that each malformed one gets."""
import json
import re

import pytest

from data import description
from data.classes import colour_map
from data.description import read_dataset
from data.labels import image_labels
from data.lists import read_list
from engine import runinfo
from engine.errors import UserError
from engine.files import REPO
from voc12.classes import VOC

GOOD = {'classes': '[cup, fork, "no"]', 'images': 'photos', 'lists': '{train: train.txt, val: val.txt}',
        'labels': 'labels.csv'}


def write(folder, text=None, **changes):
    """A description with its lists in a folder: GOOD with changes (None leaves a key out), or the text."""
    for name in ('train', 'val'):
        (folder / f'{name}.txt').write_text('a\n')
    lines = [f'{key}: {value}' for key, value in (GOOD | changes).items() if value is not None]
    path = folder / 'dataset.yaml'
    path.write_text('\n'.join(lines) if text is None else text, encoding='utf-8')
    return str(path)


def refusal(path):
    """The one line that a description gets."""
    with pytest.raises(UserError) as error:
        read_dataset(path)
    assert str(error.value).startswith(f'{path}: ') and '; ' in str(error.value) and '\n' not in str(error.value)
    return str(error.value)


def test_a_description_gives_classes_and_paths_that_count_from_its_folder(tmp_path):
    data = read_dataset(write(tmp_path, ground_truth='masks', extensions='[PNG, .jpg]'))
    assert data.classes.foreground == ('cup', 'fork', 'no') and data.classes.num_classes == 4
    assert data.classes.name == tmp_path.name
    assert data.photos().folders == (tmp_path / 'photos',) and data.photos().suffixes == ('.png', '.jpg')
    assert data.photos('elsewhere').folders[0].parts == ('elsewhere', 'photos')
    assert data.list('val') == str(tmp_path / 'val.txt') and data.labels == str(tmp_path / 'labels.csv')
    assert data.list('train_aug') == data.list('train') == str(tmp_path / 'train.txt')
    assert data.truth() == str(tmp_path / 'masks')
    assert read_dataset(write(tmp_path)).truth() == ''


def test_root_moves_images_and_ground_truth_but_neither_lists_nor_labels(tmp_path):
    data = read_dataset(write(tmp_path, root=tmp_path / 'big_disk', images='[train, val]', ground_truth='masks'))
    assert data.photos().folders == (tmp_path / 'big_disk/train', tmp_path / 'big_disk/val')
    assert data.truth() == str(tmp_path / 'big_disk/masks')
    assert data.labels == str(tmp_path / 'labels.csv')


def test_absolute_paths_stand_as_they_are(tmp_path):
    data = read_dataset(write(tmp_path, images='/big/photos', ground_truth='/big/masks', labels='/big/l.npy'))
    assert (str(data.photos().folders[0]), data.truth(), data.labels) == ('/big/photos', '/big/masks', '/big/l.npy')


def test_a_description_that_is_written_reads_the_same(tmp_path):
    first = read_dataset(write(tmp_path, name='"Dinge: ä"', images='[a, b]', ground_truth='masks'))
    description.save_description(
        tmp_path / 'again.yaml', name='Dinge: ä', classes=['cup', 'fork', 'no'], images=['a', 'b'],
        lists={'train': 'train.txt', 'val': 'val.txt'}, labels='labels.csv', ground_truth='masks')
    again = read_dataset(str(tmp_path / 'again.yaml'))
    assert (again.classes, again.images, again.lists, again.truth()) == (
        first.classes, first.images, first.lists, first.truth())


def test_colours_replace_those_of_voc_for_the_classes_named(tmp_path):
    palette = read_dataset(write(tmp_path, palette='{cup: "#ff8001", background: [1, 2, 3]}')).classes.palette
    assert palette[:6] == [1, 2, 3, 255, 128, 1]
    assert palette[6:] == colour_map()[6:]
    assert VOC.palette == colour_map()


def test_values_of_masks_become_labels(tmp_path):
    classes = read_dataset(write(tmp_path, mask_values='{cup: 10, fork: 20, "no": 30}', ignore=99)).classes
    assert {value: label for value, label in enumerate(classes.stored) if label >= 0} == {
        0: 0, 10: 1, 20: 2, 30: 3, 99: 255}
    ignored = read_dataset(write(tmp_path, ignore=77)).classes.stored
    assert [ignored[value] for value in (0, 1, 2, 3, 77, 4, 255)] == [0, 1, 2, 3, 255, -1, -1]
    assert read_dataset(write(tmp_path)).classes.stored == ()


def test_the_built_in_data_sets_are_descriptions_too():
    data = read_dataset('voc12')
    assert data.classes == VOC and VOC.num_foreground == 20 and VOC.foreground[19] == 'tvmonitor'
    assert (data.root, data.list('train_aug'), data.truth()) == (
        'VOC2012', 'voc12/train_aug.txt', 'VOC2012/SegmentationClass')
    coco = read_dataset('coco14')
    assert coco.classes.num_foreground == 80 and coco.classes.foreground[79] == 'toothbrush'
    assert [str(folder) for folder in coco.photos().folders] == ['COCO2014/train2014', 'COCO2014/val2014']
    assert coco.list('train_aug') == 'coco14/train.txt'


@pytest.mark.parametrize('changes, words', [
    ({'classes': None}, 'has no classes'),
    ({'labels': None}, 'has no labels'),
    ({'colour': 'red'}, "has the unknown key 'colour'"),
    ({'classes': '[cup, fork, cup]'}, 'lists the class cup twice'),
    ({'classes': '[background, cup]'}, 'lists background as a class'),
    ({'classes': '[]'}, 'classes is empty'),
    ({'classes': '[[cup]]'}, "classes is ['cup'], no text"),
    ({'classes': '["cup\\tfork"]'}, "the class 'cup\\tfork' is no plain name"),
    ({'classes': str([f'c{k}' for k in range(255)])}, 'has 255 classes'),
    ({'images': '../photos'}, "images: the path '../photos' leads out of its folder"),
    ({'ground_truth': 'a/../../b'}, "ground_truth: the path 'a/../../b' leads out of its folder"),
    ({'root': 'a/../..'}, "root: the path 'a/../..' leads out of its folder"),
    ({'lists': '{train: ../train.txt}'}, "list train: the path '../train.txt' leads out of its folder"),
    ({'lists': '{train: missing.txt}'}, 'its list train is missing'),
    ({'lists': '{val: val.txt}'}, 'names the lists val'),
    ({'lists': '{train: train.txt, trial: train.txt}'}, 'names the lists train, trial'),
    ({'lists': 'train.txt'}, 'lists is no mapping'),
    ({'extensions': '[.gif]'}, 'extensions names .gif'),
    ({'ignore': '256'}, "ignore is '256'"),
    ({'ignore': '0'}, 'background has the value 0 of another class or of ignore'),
    ({'mask_values': '{cup: 1, fork: 2}'}, 'mask_values and classes differ in no'),
    ({'mask_values': '{cup: 1, fork: 1, "no": 3}'}, 'fork has the value 1 of another class'),
    ({'mask_values': '{cup: 1, fork: x, "no": 3}'}, "mask_values: fork is 'x'"),
    ({'palette': '{plate: [1, 2, 3]}'}, 'palette names the class plate'),
    ({'palette': '{cup: red}'}, "the colour of cup is 'red'"),
    ({'palette': '{cup: [1, 2, 256]}'}, "the colour of cup is '256'"),
    ({'palette': '{cup: [0, 128, 0]}'}, 'gives the labels 1 and 2 one colour, (0, 128, 0)'),
])
def test_what_a_description_says_wrongly_gets_its_line(tmp_path, changes, words):
    assert words in refusal(write(tmp_path, **changes))


@pytest.mark.parametrize('text, words', [
    ('', 'is no mapping'),
    ('- a\n- b\n', 'is no mapping'),
    ('classes: [a\nimages: b', 'line 2: '),
    ('a: &x [1]\nb: *x', 'has an alias (*x)'),
    ('images: a\nimages: b', 'has the key images twice'),
    ('lists: {val: a, val: b}', 'has the key val twice'),
    ('[' * 5000, 'cannot be read'),
    ('name: \u0000', 'cannot be read'),
    ('# ' + 'x' * description.LARGEST, f'is larger than {description.LARGEST} bytes'),
])
def test_what_is_no_description_gets_its_line(tmp_path, text, words):
    assert words in refusal(write(tmp_path, text))


def test_files_that_are_no_text_or_are_missing_get_their_line(tmp_path):
    path = tmp_path / 'dataset.yaml'
    assert 'description not found' in refusal(str(path))
    path.write_bytes(b'name: \xff\xfe')
    assert 'cannot be read' in refusal(str(path))
    assert 'cannot be read' in refusal(str(tmp_path))


def test_no_tag_makes_an_object(tmp_path):
    made = tmp_path / 'made'
    path = write(tmp_path, name=f'!!python/object/apply:os.mkdir ["{made}"]')
    assert "name is ['" in refusal(path)
    assert not made.exists()


def test_weights_of_other_classes_are_refused_where_their_json_says_so(tmp_path):
    weights = tmp_path / 'run.v2.pth'
    runinfo.check_classes(weights, VOC)
    settings = {'classes': list(VOC.foreground), 'baseline': 'eps'}
    (tmp_path / 'run.v2.json').write_text(json.dumps({'settings': settings}))
    runinfo.check_classes(weights, VOC)
    assert runinfo.settings_of(weights)['baseline'] == 'eps'
    other = read_dataset(write(tmp_path)).classes
    with pytest.raises(UserError, match=r'trained on 20 classes \(aeroplane, bicycle, bird, …\), not on those of '
                                        r'.*: 3 classes \(cup, fork, no\); choose the --dataset'):
        runinfo.check_classes(weights, other)


def test_the_example_of_the_documentation_is_a_data_set(tmp_path):
    text = (REPO / 'docs' / 'OWN_DATA.md').read_text(encoding='utf-8')
    csv = re.search(r'\n(    id,class,class\n(?:    \S+\n)+)', text)[1]
    yaml = re.search(r'```yaml\n(.*?)```', text, re.S)[1]
    (tmp_path / 'labels.csv').write_text(csv.replace('    ', ''))
    (tmp_path / 'train.txt').write_text('cup_01\ncup_02\nempty_table\n')
    (tmp_path / 'dataset.yaml').write_text(yaml)
    data = read_dataset(str(tmp_path / 'dataset.yaml'))
    labels = image_labels(read_list(data.list('train_aug')), data.labels, data.classes)
    assert data.classes.name == 'Things on a table' and data.classes.num_classes == 6
    assert labels.tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0] * 5]


def test_every_key_of_a_description_is_documented():
    text = (REPO / 'docs' / 'OWN_DATA.md').read_text(encoding='utf-8')
    assert re.findall(r'^\| `(\w+)` \|', text, re.M)[:len(description.KEYS)] == list(description.KEYS)

"""The toy VOC: reproducible, in VOC layout, and its files agree with each other."""
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main, tree_bytes
from PIL import Image

from data.lists import read_list
from data.masks import read_mask
from engine.errors import UserError
from network.resnet38d import ResNet38
from tool.metrics import IGNORE
from toy import make, pretraining
from toy.centred_box import centred_box
from toy.glyphs import DISTRACTORS, GLYPHS, THINGS, glyph
from voc12.classes import VOC

TRAIN, VAL = 2 * VOC.num_foreground, 10


@pytest.fixture(scope='module')
def voc(tmp_path_factory):
    """A small toy set."""
    out = tmp_path_factory.mktemp('toy') / 'set'
    make.make_dataset(out, TRAIN, VAL, seed=3)
    return out


def ids(voc, name):
    """The ids of a list in ImageSets/."""
    return (voc / 'ImageSets' / f'{name}.txt').read_text().split()


def boxes_of(voc, name):
    """[(class, xmin, ymin, xmax, ymax)] of an annotation, read as a user of VOC reads it."""
    root = ElementTree.parse(voc / 'Annotations' / f'{name}.xml').getroot()
    sides = ('xmin', 'ymin', 'xmax', 'ymax')
    return [(thing.findtext('name'), *(int(thing.findtext(f'bndbox/{side}')) for side in sides))
            for thing in root.iter('object')]


def mask_of(voc, name):
    """The ground truth of an image, uint8 (H, W)."""
    return read_mask(voc / 'SegmentationClass' / f'{name}.png')


def test_the_same_seed_gives_the_same_bytes_also_in_parallel(voc, tmp_path):
    make.make_dataset(tmp_path / 'again', TRAIN, VAL, seed=3, workers=2)
    assert tree_bytes(tmp_path / 'again') == tree_bytes(voc)


def test_another_seed_gives_other_images():
    for number in range(3):
        assert not np.array_equal(make.numbered_scene(3, number)[0], make.numbered_scene(4, number)[0])


def test_an_interrupted_set_is_completed(tmp_path):
    make.make_dataset(tmp_path, 4, 2, seed=3)
    whole = tree_bytes(tmp_path)
    kept = tmp_path / 'JPEGImages' / '2012_000001.jpg'
    written = kept.stat().st_mtime_ns
    (tmp_path / 'SALImages' / '2012_000002.png').unlink()
    (tmp_path / 'ImageSets' / 'Segmentation' / 'val.txt').unlink()
    make.make_dataset(tmp_path, 4, 2, seed=3)
    assert tree_bytes(tmp_path) == whole
    assert kept.stat().st_mtime_ns == written


def test_sets_of_other_settings_are_not_mixed(tmp_path):
    make.make_dataset(tmp_path, 2, 1, seed=3)
    before = tree_bytes(tmp_path)
    with pytest.raises(UserError, match='other settings'):
        make.make_dataset(tmp_path, 2, 1, seed=4)
    assert tree_bytes(tmp_path) == before


def test_the_layout_is_that_of_a_devkit(voc):
    train, val = ids(voc, 'Segmentation/train'), ids(voc, 'Segmentation/val')
    assert (len(train), len(val)) == (TRAIN, VAL)
    assert not set(train) & set(val)
    assert ids(voc, 'Segmentation/trainaug') == train
    assert ids(voc, 'Main/trainval') == train + val
    for folder, suffix in (('JPEGImages', 'jpg'), ('Annotations', 'xml'), ('SegmentationClass', 'png'),
                           ('SegmentationClassAug', 'png'), ('SALImages', 'png')):
        assert {path.name for path in (voc / folder).iterdir()} == {f'{name}.{suffix}' for name in train + val}
    assert 'CC-BY 4.0' in (voc / 'LICENSE.txt').read_text()
    assert json.loads((voc / 'toy.json').read_text())['seed'] == 3


def test_masks_are_voc_masks(voc):
    for name in ids(voc, 'Main/trainval'):
        image = Image.open(voc / 'JPEGImages' / f'{name}.jpg')
        mask = Image.open(voc / 'SegmentationClass' / f'{name}.png')
        assert (image.mode, mask.mode) == ('RGB', 'P')
        assert mask.size == image.size
        assert mask.getpalette()[:3 * VOC.num_classes] == VOC.palette[:3 * VOC.num_classes]
        assert set(np.unique(mask)) <= {*range(VOC.num_classes), IGNORE}
        aug = voc / 'SegmentationClassAug' / f'{name}.png'
        assert aug.read_bytes() == (voc / 'SegmentationClass' / f'{name}.png').read_bytes()


def test_every_object_is_surrounded_by_ignored_pixels(voc):
    """No pixel of one label touches a pixel of another: 255 lies between, objects and background alike."""
    for name in ids(voc, 'Main/trainval'):
        mask = mask_of(voc, name)
        for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            assert not ((a != b) & (a != IGNORE) & (b != IGNORE)).any(), name
        assert 0 < (mask == IGNORE).mean() < .35


def test_boxes_and_masks_tell_of_the_same_objects(voc):
    for name in ids(voc, 'Main/trainval'):
        mask = mask_of(voc, name)
        boxes = boxes_of(voc, name)
        shown = {VOC.foreground[label - 1] for label in np.unique(mask) if label not in (0, IGNORE)}
        assert shown == {box[0] for box in boxes}
        covered = np.zeros_like(mask, bool)
        for label, xmin, ymin, xmax, ymax in boxes:
            assert 1 <= xmin < xmax <= mask.shape[1] and 1 <= ymin < ymax <= mask.shape[0]
            inside = mask[ymin - 1:ymax, xmin - 1:xmax] == VOC.foreground.index(label) + 1
            assert inside.sum() >= make.MIN_INTERIOR
            covered[ymin - 1:ymax, xmin - 1:xmax] = True
        assert covered[(mask > 0) & (mask != IGNORE)].all()


def test_every_class_occurs_in_its_turn(voc):
    for number, name in enumerate(ids(voc, 'Segmentation/train')):
        assert VOC.foreground[number % VOC.num_foreground] in {box[0] for box in boxes_of(voc, name)}


def test_saliency_tells_of_objects_but_not_perfectly(voc):
    hit, missed = [], []
    for name in ids(voc, 'Main/trainval'):
        saliency = Image.open(voc / 'SALImages' / f'{name}.png')
        mask = mask_of(voc, name)
        assert saliency.mode == 'L'
        assert saliency.size == mask.shape[::-1]
        salient = np.array(saliency) > 127
        hit.append(salient[(mask > 0) & (mask != IGNORE)].mean())
        missed.append(salient[mask == 0].mean())
    assert .6 < np.mean(hit) < .97
    assert .002 < np.mean(missed) < .1


def test_an_object_hidden_but_for_a_sliver_is_ignored():
    canvas = make.Canvas(np.zeros((40, 40, 3), np.float32))
    square = np.full((20, 20, 4), 255, np.float32)
    canvas.paste(square, (20, 20), 5)
    canvas.paste(square, (22, 20), 7)
    mask, boxes = make.annotate(canvas)
    assert boxes == [(VOC.foreground[6], 13, 11, 32, 30)]
    assert set(np.unique(mask)) == {0, 7, IGNORE}
    assert (mask[10:30, 10:12] == IGNORE).all()


def test_pasting_is_clipped_at_the_edges():
    canvas = make.Canvas(np.zeros((10, 10, 3), np.float32))
    thing = np.full((6, 6, 4), 255, np.float32)
    canvas.paste(thing, (0, 0), 1)
    canvas.paste(thing, (30, 30), 2)
    assert canvas.labels == [0, 1]
    assert (canvas.layer > 0).sum() == 9
    assert (canvas.image[:3, :3] == 255).all()


def test_settings_are_used():
    rng = np.random.default_rng(0)
    small, alone = make.Settings(size=(96, 64)), make.Settings(max_objects=1, max_distractors=0)
    assert {tuple(sorted(make.make_scene(rng, 'cat', small)[1].shape)) for _ in range(6)} == {(64, 96)}
    for _ in range(10):
        *_, boxes = make.make_scene(rng, 'dog', alone)
        assert [box[0] for box in boxes] == ['dog']


def test_every_class_has_glyphs_and_no_distractor_shows_one():
    assert tuple(GLYPHS) == VOC.foreground
    assert not set(DISTRACTORS) & set(''.join(GLYPHS.values()))
    assert len(set(THINGS)) == len(THINGS)
    for character in set(DISTRACTORS) | set(''.join(GLYPHS.values())):
        assert glyph(character).shape[2] == 4


def test_close_views_for_pretraining_differ_from_draw_to_draw():
    rng = np.random.default_rng(0)
    crop = make.make_crop(rng, 'diningtable', 48)
    assert (crop.shape, crop.dtype) == ((48, 48, 3), np.uint8)
    assert not np.array_equal(crop, make.make_crop(rng, 'diningtable', 48))


@pytest.mark.parametrize('side, filled', [(48, {True}), (96, {True, False}), (160, {False})])
def test_a_pretraining_view_of_a_scene_is_cut_or_padded_with_zeros(side, filled):
    """A grey scene of 80x96, scaled by 0.6 to 1.6: one colour, and zeros outside it where the view is larger."""
    rng = np.random.default_rng(0)
    views = [pretraining.augment_scene(rng, np.full((80, 96, 3), 128, np.uint8), side) for _ in range(20)]
    for view in views:
        assert (view.shape, view.dtype) == ((side, side, 3), np.float32)
        assert np.isfinite(view).all()
        assert len(np.unique(view[(view != 0).any(2)], axis=0)) == 1
    assert {bool((view != 0).all()) for view in views} == filled


def test_a_pretraining_view_of_a_thing_keeps_its_side():
    image = np.full((pretraining.CROP_SIDE, pretraining.CROP_SIDE, 3), 128, np.uint8)
    view = pretraining.augment_crop(np.random.default_rng(0), image)
    assert view.shape == image.shape
    assert len(np.unique(view.reshape(-1, 3), axis=0)) == 1  # shifted, its edges repeated: no other colour comes in


def test_pretraining_makes_a_backbone_that_loads(tmp_path):
    out = tmp_path / 'backbone.pth'
    run_main('toy/pretrain', '--crops', 64, '--crop_steps', 1, '--scenes', 20, '--scene_steps', 1, '--num_workers', 0,
             '--check_images', 2, '--out', out)
    state = torch.load(out, weights_only=True)
    for key, value in state.items():
        assert value.dtype == torch.float16 or not value.is_floating_point(), key
    ResNet38(width=1 / 8).load_state_dict(state)


def test_the_centred_box_has_half_the_area_and_a_class_of_the_label(toy, tmp_path):
    run_main('toy/centred_box', '--list', toy.train, '--voc12_root', toy.root, '--cls_labels', toy.labels,
             '--out', tmp_path)
    for name in read_list(toy.train):
        mask = read_mask(tmp_path / f'{name}.png')
        first = min(VOC.names.index(box[0]) for box in boxes_of(toy.root, name))
        np.testing.assert_array_equal(mask, centred_box(mask_of(toy.root, name).shape, first))
        assert (mask > 0).mean() == pytest.approx(.5, abs=.02)
        np.testing.assert_array_equal(mask, mask[::-1, ::-1])


@pytest.mark.parametrize('flags, complaint', [
    (['--size', '20x20'], 'WIDTHxHEIGHT'), (['--train', '0'], 'at least 1'), (['--object_size', '.8', '.4'], 'MIN MAX'),
    (['--out', __file__], 'cannot be written')])
def test_mistakes_are_refused_before_anything_is_made(capsys, tmp_path, flags, complaint):
    assert complaint in assert_refused(capsys, 'toy/make', '--out', tmp_path / 'set', *flags)
    assert not (tmp_path / 'set').exists()

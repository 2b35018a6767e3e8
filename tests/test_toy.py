"""The toy VOC: reproducible, in VOC layout, and its files agree with each other."""
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from engine.errors import UserError
from network.resnet38d import ResNet38
from tool.metrics import IGNORE
from toy import make, pretrain
from toy.glyphs import DISTRACTORS, GLYPHS, THINGS, glyph
from voc12.classes import VOC

TRAIN, VAL = 2 * VOC.num_foreground, 10


@pytest.fixture(scope='module')
def voc(tmp_path_factory):
    """A small toy set."""
    out = tmp_path_factory.mktemp('toy') / 'set'
    make.make_dataset(out, TRAIN, VAL, seed=3)
    return out


def contents(folder):
    """Bytes of every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def ids(voc, name):
    return (voc / 'ImageSets' / f'{name}.txt').read_text().split()


def boxes_of(voc, name):
    """[(class, xmin, ymin, xmax, ymax)] of an annotation, read as a user of VOC reads it."""
    root = ElementTree.parse(voc / 'Annotations' / f'{name}.xml').getroot()
    return [(thing.findtext('name'), *(int(thing.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax')))
            for thing in root.iter('object')]


def test_same_seed_same_bytes_also_in_parallel(voc, tmp_path):
    make.make_dataset(tmp_path / 'again', TRAIN, VAL, seed=3, workers=2)
    assert contents(tmp_path / 'again') == contents(voc)


def test_another_seed_gives_other_images(voc):
    for number in range(3):
        assert not np.array_equal(make.numbered_scene(3, number)[0], make.numbered_scene(4, number)[0])


def test_an_interrupted_set_is_completed(voc, tmp_path):
    make.make_dataset(tmp_path / 'set', 4, 2, seed=3)
    whole = contents(tmp_path / 'set')
    kept = tmp_path / 'set' / 'JPEGImages' / '2012_000001.jpg'
    written = kept.stat().st_mtime_ns
    (tmp_path / 'set' / 'SALImages' / '2012_000002.png').unlink()
    (tmp_path / 'set' / 'ImageSets' / 'Segmentation' / 'val.txt').unlink()
    make.make_dataset(tmp_path / 'set', 4, 2, seed=3)
    assert contents(tmp_path / 'set') == whole
    assert kept.stat().st_mtime_ns == written


def test_sets_of_other_settings_are_not_mixed(tmp_path):
    make.make_dataset(tmp_path, 2, 1, seed=3)
    before = contents(tmp_path)
    with pytest.raises(UserError, match='other settings'):
        make.make_dataset(tmp_path, 2, 1, seed=4)
    assert contents(tmp_path) == before


def test_layout(voc):
    train, val = ids(voc, 'Segmentation/train'), ids(voc, 'Segmentation/val')
    assert (len(train), len(val)) == (TRAIN, VAL) and not set(train) & set(val)
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
        assert image.mode == 'RGB' and mask.mode == 'P' and mask.size == image.size
        assert mask.getpalette()[:3 * VOC.num_classes] == VOC.palette[:3 * VOC.num_classes]
        assert set(np.unique(mask)) <= {*range(VOC.num_classes), IGNORE}
        aug = voc / 'SegmentationClassAug' / f'{name}.png'
        assert aug.read_bytes() == (voc / 'SegmentationClass' / f'{name}.png').read_bytes()


def test_every_object_is_surrounded_by_ignored_pixels(voc):
    """No pixel of one label touches a pixel of another: 255 lies between, objects and background alike."""
    for name in ids(voc, 'Main/trainval'):
        mask = np.array(Image.open(voc / 'SegmentationClass' / f'{name}.png')).astype(int)
        for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            assert not ((a != b) & (a != IGNORE) & (b != IGNORE)).any(), name
        assert 0 < (mask == IGNORE).mean() < .35


def test_boxes_and_masks_tell_of_the_same_objects(voc):
    for name in ids(voc, 'Main/trainval'):
        mask = np.array(Image.open(voc / 'SegmentationClass' / f'{name}.png'))
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
        mask = np.array(Image.open(voc / 'SegmentationClass' / f'{name}.png'))
        assert saliency.mode == 'L' and saliency.size == mask.shape[::-1]
        saliency = np.array(saliency) > 127
        hit.append(saliency[(mask > 0) & (mask != IGNORE)].mean())
        missed.append(saliency[mask == 0].mean())
    assert .6 < np.mean(hit) < .97 and .002 < np.mean(missed) < .1


def test_an_object_hidden_but_for_a_sliver_is_ignored():
    canvas = make.Canvas(np.zeros((40, 40, 3), np.float32))
    square = np.full((20, 20, 4), 255, np.float32)
    canvas.paste(square, (20, 20), 5)
    canvas.paste(square, (22, 20), 7)
    mask, boxes = make.annotate(canvas)
    assert boxes == [(VOC.foreground[6], 13, 11, 32, 30)]
    assert set(np.unique(mask)) == {0, 7, IGNORE} and (mask[10:30, 10:12] == IGNORE).all()


def test_pasting_is_clipped_at_the_edges():
    canvas = make.Canvas(np.zeros((10, 10, 3), np.float32))
    thing = np.full((6, 6, 4), 255, np.float32)
    canvas.paste(thing, (0, 0), 1)
    canvas.paste(thing, (30, 30), 2)
    assert canvas.labels == [0, 1] and (canvas.layer > 0).sum() == 9 and (canvas.image[:3, :3] == 255).all()


def test_settings_are_used():
    rng = np.random.default_rng(0)
    assert {tuple(sorted(make.make_scene(rng, 'cat', make.Settings(size=(96, 64)))[1].shape)) for _ in range(6)} == {(64, 96)}
    alone = make.Settings(max_objects=1, max_distractors=0)
    assert all(len(make.make_scene(rng, 'dog', alone)[3]) == 1 for _ in range(10))


def test_glyph_tables():
    assert tuple(GLYPHS) == VOC.foreground
    assert not set(DISTRACTORS) & set(''.join(GLYPHS.values()))
    assert len(set(THINGS)) == len(THINGS)
    for character in set(DISTRACTORS) | set(''.join(GLYPHS.values())):
        assert glyph(character).shape[2] == 4


def test_close_views_for_pretraining():
    rng = np.random.default_rng(0)
    crop = make.make_crop(rng, 'diningtable', 48)
    assert crop.shape == (48, 48, 3) and crop.dtype == np.uint8
    assert not np.array_equal(crop, make.make_crop(rng, 'diningtable', 48))


def test_pretraining_views():
    rng = np.random.default_rng(0)
    image = np.full((80, 96, 3), 128, np.uint8)
    for side in (48, 96, 160):
        view = pretrain.augment_scene(rng, image, side)
        assert view.shape == (side, side, 3) and view.dtype == np.float32 and np.isfinite(view).all() and (view != 0).any()
    assert pretrain.augment_crop(rng, image[:pretrain.CROP_SIDE, :pretrain.CROP_SIDE]).shape[2] == 3


def test_pretraining_makes_a_backbone_that_loads(tmp_path):
    out = tmp_path / 'backbone.pth'
    words = '--crops 64 --crop_steps 1 --scenes 20 --scene_steps 1 --num_workers 0 --check_images 2 --out'.split()
    pretrain.main(pretrain.get_args_parser().parse_args([*words, str(out)]))
    state = torch.load(out, weights_only=True)
    assert all(value.dtype == torch.float16 for value in state.values() if value.is_floating_point())
    ResNet38(width=1 / 8).load_state_dict(state)


@pytest.mark.parametrize('flags, complaint', [
    (['--size', '20x20'], 'WIDTHxHEIGHT'), (['--train', '0'], 'at least 1'), (['--object_size', '.8', '.4'], 'MIN MAX'),
    (['--out', __file__], 'cannot be written')])
def test_mistakes_are_one_line(tmp_path, flags, complaint):
    script = Path(make.__file__)
    done = subprocess.run([sys.executable, script, '--out', tmp_path / 'set', *flags], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / 'set').exists()

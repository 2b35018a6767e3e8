"""Images without any class through all steps, and saliency maps that are zero everywhere."""
import json
import shutil

import numpy as np
import pytest
from helpers import run_main, run_script
from PIL import Image

from data.cams import read_cams
from data.classification import SalientImages
from data.images import devkit_photos, image_size
from data.lists import read_list
from data.masks import read_mask
from data.probabilities import read_probabilities
from data.transforms import classification_train
from engine.files import read_npy
from tool import seeds
from voc12.classes import VOC

TINY = '--num_workers', 0, '--device', 'cpu'


@pytest.fixture
def negatives(toy, tmp_path):
    """(ids of the training list, the two of them that have no class, their labels' file)."""
    labels, ids = read_npy(toy.labels), read_list(toy.train)
    for name in ids[:2]:
        labels[name] = labels[name] * 0
    np.save(tmp_path / 'labels.npy', labels)
    return ids, ids[:2], tmp_path / 'labels.npy'


def infer(toy, labels, out, *flags):
    run_main('contrast_infer', '--weights', toy.net, '--voc12_root', toy.root, '--cls_labels', labels, '--infer_list',
             toy.train, '--out_cam', out / 'cam', '--out_cam_pred', out / 'pred', '--out_crf', out / 'crf',
             '--scales', 1, *TINY, *flags)


def is_background(path):
    return not read_mask(path).any()


def test_training_and_inference_take_them(toy, negatives, tmp_path, capsys):
    ids, empty, labels = negatives
    run_main('contrast_train', '--weights', toy.backbone, '--voc12_root', toy.root, '--cls_labels', labels,
             '--train_list', toy.train, '--val_list', '', '--session_name', tmp_path / 'run', '--batch_size', 4,
             '--max_epoches', 1, '--crop_size', 64, '--resize_long', 64, 96, '--view2_size', 32, '--tblog_dir',
             tmp_path / 'log', '--picture_every', 1, *TINY)
    infer(toy, labels, tmp_path)
    assert '2 images have no class: their CAM files are empty, their masks all background' in capsys.readouterr().out
    for name in ids:
        assert (read_npy(tmp_path / 'cam' / f'{name}.npy') == {}) == (name in empty)
        assert read_mask(tmp_path / 'crf' / f'{name}.png').shape == image_size(toy.root / 'JPEGImages' / f'{name}.jpg')
        if name in empty:
            assert is_background(tmp_path / 'pred' / f'{name}.png') and is_background(tmp_path / 'crf' / f'{name}.png')


def test_a_batch_of_nothing_else_is_learned_from(toy, negatives, tmp_path):
    ids, _, labels = negatives
    np.save(labels, {name: np.zeros(VOC.num_foreground, np.float32) for name in ids})
    run_main('contrast_train', '--weights', toy.backbone, '--voc12_root', toy.root, '--cls_labels', labels,
             '--train_list', toy.train, '--val_list', '', '--session_name', tmp_path / 'run', '--batch_size', 4,
             '--max_epoches', 1, '--crop_size', 64, '--resize_long', 64, 96, '--view2_size', 32, '--tblog_dir',
             tmp_path / 'log', *TINY)
    rows = [json.loads(line) for line in (tmp_path / 'run.losses.jsonl').read_text().splitlines()]
    assert all(np.isfinite(row['loss']) for row in rows)


def test_the_crf_of_scores_takes_them_too(toy, negatives, tmp_path):
    _, empty, labels = negatives
    infer(toy, labels, tmp_path, '--baseline', 'eps', '--network', 'network.resnet38_contrast')
    assert all(is_background(tmp_path / 'crf' / f'{name}.png') for name in empty)


def test_scores_count_them_as_background_at_every_threshold(toy, negatives, tmp_path):
    ids, empty, labels = negatives
    infer(toy, labels, tmp_path)
    (tmp_path / 'list.txt').write_text(f'{empty[0]}\n{ids[2]}\n')
    flags = ('--list', tmp_path / 'list.txt', '--gt_dir', toy.root / 'SegmentationClass', '--comment', 'x',
             '--num_workers', 0, '--logfile', tmp_path / 'log.txt')
    scores = []
    for kind, folder in (('npy', 'cam'), ('png', 'pred')):
        run_main('eval', *flags, '--type', kind, '--predict_dir', tmp_path / folder)
        scores.append(json.loads((tmp_path / 'log.txt.json').read_text())['fixed']['class_iou'])
    assert scores[0] == pytest.approx(scores[1])


def test_step_2_takes_them(toy, negatives, tmp_path):
    ids, empty, labels = negatives
    infer(toy, labels, tmp_path)
    where = '--voc12_root', toy.root, '--cam_dir', tmp_path / 'cam', '--infer_list', toy.train
    run_main('aff_prepare', *where, '--out_crf', tmp_path / 'aff', '--num_workers', 0, '--crf_iters', 1)
    for alpha in ('4.00', '24.00'):
        got, scores = read_probabilities(tmp_path / 'aff' / alpha / f'{empty[0]}.npy', VOC.num_classes, (64, 80))
        assert got.tolist() == [0] and scores.argmax(0).max() == 0
    run_main('aff_train', '--weights', toy.backbone, '--voc12_root', toy.root, '--train_list', toy.train,
             '--val_list', '', '--la_crf_dir', tmp_path / 'aff' / '4.00', '--ha_crf_dir', tmp_path / 'aff' / '24.00',
             '--crop_size', 64, '--session_name', tmp_path / 'aff_run', '--batch_size', 4, '--max_epoches', 1,
             '--tblog_dir', tmp_path / 'log', *TINY)
    for flags in ((), ('--crf',), ('--bg', 'alpha')):
        run_main('aff_infer', '--weights', tmp_path / 'aff_run.pth', *where, '--out_rw', tmp_path / 'rw',
                 '--out_rw_npy', tmp_path / 'rw_npy', '--overwrite', *TINY, *flags)
        assert all(is_background(tmp_path / 'rw' / f'{name}.png') for name in empty)
        assert len(read_cams(tmp_path / 'rw_npy' / f'{empty[0]}.npy', VOC.num_foreground)[0]) == 0


def test_step_3_takes_their_masks(toy, negatives, tmp_path, capsys):
    _, empty, labels = negatives
    masks = shutil.copytree(toy.root / 'SegmentationClass', tmp_path / 'masks')
    for name in empty:
        Image.fromarray(read_mask(masks / f'{name}.png') * 0).save(masks / f'{name}.png')
    run_main('segmentation/experiment/train', '--pseudo_gt', masks, '--session_name', tmp_path / 'seg', '--voc12_root',
             toy.root, '--train_list', toy.train, '--weights', toy.backbone, '--DATA_RANDOMCROP', 48, '--TRAIN_BATCHES',
             2, '--TRAIN_ITERATION', 1, '--tblog_dir', tmp_path / 'log', *TINY)
    assert '2 masks without any object' in capsys.readouterr().out


def test_without_any_class_the_background_has_the_whole_image():
    nothing = np.zeros((0, 3, 4), np.float32)
    assert seeds.alpha_background(nothing, 4.).tolist() == np.ones((3, 4)).tolist()
    assert seeds.with_background(nothing, 0.26).shape == (1, 3, 4)
    assert seeds.label_map(np.zeros(0, int), nothing, 0.26).tolist() == np.zeros((3, 4)).tolist()


# ---------------------------------------------------------------- black saliency maps

@pytest.fixture
def black(toy, tmp_path):
    """A copy of the saliency maps, that of the first training image zero everywhere; its id."""
    folder, name = shutil.copytree(toy.saliency, tmp_path / 'saliency'), read_list(toy.train)[0]
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(folder / f'{name}.png')
    return folder, name


def test_a_black_saliency_map_is_used_with_a_warning_once(toy, black, capsys):
    folder, name = black
    data = SalientImages([name], devkit_photos(toy.root), toy.labels, VOC, classification_train(64, 64, 96), folder)
    for _ in range(3):
        assert not data[0]['saliency'].any()
    assert capsys.readouterr().err == f'warning: {folder / name}.png: saliency map is zero everywhere\n'


def test_preparing_warns_of_black_saliency_maps(toy, black, tmp_path):
    folder, name = black
    run = run_script('voc12/prepare', '--voc12_root', toy.root, '--out', tmp_path / 'lists', '--saliency_dir', folder,
                     '--num_workers', 0)
    assert run.returncode == 0, run.stderr
    assert f'warning: 1 saliency maps are zero everywhere, {name}.png the first' in run.stderr

"""Data sets of one's own through the whole chain: the commands (quick), and the chains themselves (long): five made-up
classes without ground truth, and a small COCO export."""
import json

import numpy as np
import pytest
import torch
from helpers import planned, run_main, run_script
from PIL import Image

from data.description import read_dataset
from data.masks import read_values
from engine import runinfo
from engine.files import REPO
from network.resnet38d import ResNet38
from report import chain
from tool.recipes import RECIPES

THINGS = {'disc': (220, 60, 40), 'bar': (40, 90, 220), 'ring': (240, 200, 40), 'cross': (60, 180, 90),
          'dot': (190, 60, 200)}
SIZE = (64, 80)  # H, W

# What brings each step down to seconds: `--add "STEP ARGUMENTS"` of reproduce.py.
SMALL = {
    'contrast_train': '--crop_size 64 --resize_long 64 96 --view2_size 32 --batch_size 4 --max_epoches 1 '
                      '--picture_every 0',
    'contrast_infer': '--scales 1', 'contrast_infer_val': '--scales 1',
    'aff_train': '--crop_size 64 --batch_size 4 --max_epoches 1 --picture_every 0',
    'segmentation_train': '--DATA_RANDOMCROP 48 --TRAIN_BATCHES 2 --TRAIN_ITERATION 2 --picture_every 0 '
                          '--allow_unusual_masks',
    'segmentation_test': '--TEST_MULTISCALE 1'}


def draw(rng, names):
    """A noisy picture with a shape for each class name, uint8 (H, W, 3), and its label mask."""
    image, mask = rng.integers(90, 140, (*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    y, x = np.mgrid[:SIZE[0], :SIZE[1]]
    for k, name in enumerate(names):
        cy, cx = 32 + rng.integers(-8, 8), 22 + 36 * k + rng.integers(-6, 6)
        far = np.hypot(y - cy, x - cx)
        shape = {'disc': far < 14, 'bar': (abs(y - cy) < 5) & (abs(x - cx) < 16), 'ring': (far < 15) & (far > 8),
                 'cross': (far < 16) & ((abs(y - cy) < 4) | (abs(x - cx) < 4)), 'dot': far < 6}[name]
        image[shape], mask[shape] = THINGS[name], 1 + list(THINGS).index(name)
    return image, mask


@pytest.fixture
def five(tmp_path):
    """PNG photos, one of them without any class, labels as CSV, no ground truth, no validation: what people have."""
    folder, rng, lines = tmp_path / 'five', np.random.default_rng(0), []
    (folder / 'photos').mkdir(parents=True)
    for k in range(11):
        names = rng.choice(list(THINGS), rng.integers(1, 3), replace=False).tolist() if k else []
        Image.fromarray(draw(rng, names)[0]).save(folder / 'photos' / f'photo {k}.png')
        lines.append(','.join([f'photo {k}', *names]))
    (folder / 'labels.csv').write_text('\n'.join(lines) + '\n')
    (folder / 'train.txt').write_text(''.join(f'photo {k}\n' for k in range(11)))
    (folder / 'dataset.yaml').write_text(
        f'name: Five shapes\nclasses: {list(THINGS)}\nimages: photos\nextensions: [.png]\nlists: {{train: train.txt}}\n'
        'labels: labels.csv\npalette: {disc: "#dc3c28"}\n')
    return folder


@pytest.fixture
def backbone(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(ResNet38(1 / 16).state_dict(), tmp_path / 'backbone.pth')
    return tmp_path / 'backbone.pth'


def reproduce(description, backbone, out, cwd, small=SMALL):
    """Run reproduce.py on a description, small; what it printed."""
    adds = [text for step, argv in small.items() for text in ('--add', f'{step} {argv}')]
    done = run_script('reproduce', '--dataset', description, '--weights', backbone, '--out', out, '--device', 'cpu',
                      '--num_workers', 0, *adds, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---------------------------------------------------------------- the commands

CHAIN = 'reproduce', '--weights', 'w.pth'


def test_without_ground_truth_and_val_the_chain_has_the_steps_that_remain(five, capsys):
    found = planned(capsys, *CHAIN, '--dataset', five / 'dataset.yaml')
    assert list(found) == ['contrast_train', 'contrast_infer', 'aff_prepare', 'aff_train', 'aff_infer',
                           'segmentation_train', 'segmentation_test']
    for name, argv in found.items():
        assert argv[argv.index('--dataset') + 1] == str(five / 'dataset.yaml'), name
        assert not {'--voc12_root', '--cls_labels', '--train_list', '--gt_dir'} & set(argv), name
    lists = [argv[argv.index('--infer_list') + 1] for argv in found.values() if '--infer_list' in argv]
    assert lists == [str(five / 'train.txt')] * 4


def test_coco_has_its_preset_and_its_lists(capsys):
    found = planned(capsys, *CHAIN, '--dataset', 'coco14', '--voc12_root', '/data/COCO2014')
    assert 'prepare' not in found and 'eval_seeds_val' in found
    assert ' '.join(found['contrast_train'][-4:]) == '--batch_size 16 --crop_size 321'
    assert '--TRAIN_ITERATION 100000 --TRAIN_LR 0.0002' in ' '.join(found['segmentation_train'])
    assert '--list coco14/val.txt' in ' '.join(found['eval_seeds_val'])
    assert '--gt_dir /data/COCO2014/SegmentationClass' in ' '.join(found['eval_seeds_val'])
    assert all('--dataset coco14' in ' '.join(argv) for argv in found.values())
    assert all(('--convert_rgb' in argv) == (argv[0] != 'eval.py') for argv in found.values())
    eps = planned(capsys, *CHAIN, '--dataset', 'coco14', '--baseline', 'eps', '--saliency_dir', 'S',
                  '--deeplab_weights', 'r')
    assert '--max_epoches 50' in ' '.join(eps['contrast_train'])
    more = planned(capsys, *CHAIN, '--dataset', 'coco14', '--add', 'contrast_train --batch_size 8')
    assert more['contrast_train'][-2:] == ['--batch_size', '8']  # after the preset's, so that it counts


def test_figures_published_on_voc_stand_beside_no_other_data_set():
    paths = chain.Paths(weights='w', out='runs/x', voc12_root='', data=read_dataset('coco14'))
    assert {row['published'] for row in chain.rows(RECIPES['seam'], paths)} == {None}


# ---------------------------------------------------------------- the chains

@pytest.mark.long
def test_five_classes_of_png_photos_without_ground_truth_go_through_to_report_and_prediction(five, backbone, tmp_path):
    run_main('doctor', '--dataset', five / 'dataset.yaml', '--weights', backbone, '--num_workers', 0, '--out', five)
    out = tmp_path / 'run'
    small = {step: argv for step, argv in SMALL.items() if not step.endswith('_val')}
    said = reproduce('five/dataset.yaml', backbone, out, tmp_path, small)  # from the user's folder
    assert 'no ground truth, so nothing is scored' in said
    assert '1 images have no class' in said
    masks = sorted((out / 'segmentation_val' / 'multi_crf').glob('*.png'))
    assert [path.stem for path in masks] == sorted(f'photo {k}' for k in range(11))
    with Image.open(out / 'rw_crf' / 'photo 1.png') as image:
        assert image.size == SIZE[::-1] and image.getpalette()[3:6] == [220, 60, 40]
        assert np.asarray(image).max() <= 5
    stored = runinfo.settings_of(out / 'contrast.pth')
    assert stored['classes'] == list(THINGS) and stored['baseline'] == 'seam'
    assert torch.load(out / 'contrast.pth', weights_only=True)['fc8.weight'].shape[0] == 6
    page = (out / 'report.html').read_text(encoding='utf-8')
    assert 'Five shapes' in page and 'without ground truth' in page and '>cross</li>' in page
    assert 'rgb(220 60 40)' in page and page.count('<article') == 11
    done = run_script('predict', five / 'photos', '--weights', out / 'segmentation.pth', '--dataset',
                      five / 'dataset.yaml', '--out', tmp_path / 'masks', '--device', 'cpu', '--num_workers', 0)
    assert done.returncode == 0, done.stderr
    for k in range(11):  # one scale, no CRF: what the test of Step 3 calls single
        predicted, tested = tmp_path / f'masks/photo {k}.png', out / f'segmentation_val/single/photo {k}.png'
        np.testing.assert_array_equal(read_values(predicted)[0], read_values(tested)[0])
    again = reproduce('five/dataset.yaml', backbone, out, tmp_path, small)
    assert again.count('done already') == 7


@pytest.mark.long
def test_a_small_coco_export_goes_through_the_three_steps(backbone, tmp_path):
    root, rng, names = tmp_path / 'export', np.random.default_rng(1), list(THINGS)
    (root / 'annotations').mkdir(parents=True)
    for split, first, count in (('train', 1, 9), ('val', 101, 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for k in range(first, first + count):
            shown = [names[k % 5]] if k > 1 else []
            picture, mask = draw(rng, shown)
            Image.fromarray(picture).save(root / split / f'{k:06}.jpg', quality=95)
            images.append({'id': k, 'file_name': f'{k:06}.jpg', 'height': SIZE[0], 'width': SIZE[1]})
            for name in shown:
                inside = np.flatnonzero(np.diff(np.r_[0, (mask > 0).T.ravel(), 0]))
                runs = np.diff(np.r_[0, inside, mask.size]).tolist()
                annotations.append({'id': k, 'image_id': k, 'category_id': names.index(name) + 1,
                                    'iscrowd': int(k == 3), 'segmentation': {'size': list(SIZE), 'counts': runs}})
        categories = [{'id': k, 'name': name} for k, name in enumerate(names, 1)]
        (root / 'annotations' / f'instances_{split}.json').write_text(
            json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))
    run_main('coco14/prepare', '--coco_root', root, '--train', 'train', '--val', 'val', '--out', tmp_path / 'mine',
             '--num_workers', 0)
    out = tmp_path / 'run'
    said = reproduce(tmp_path / 'mine' / 'dataset.yaml', backbone, out, cwd=REPO)
    assert 'DeepLab, multi-scale + CRF' in said and 'Pseudo masks: random walk + CRF' in said
    scores = json.loads((out / 'segmentation_val' / 'scores.json').read_text())
    assert scores['images'] == 3 and list(scores['class_iou']['multi']) == ['background', *names]
    seeds = json.loads((out / 'scores' / 'eval_seeds.txt.json').read_text())
    assert seeds['images'] == 9 and seeds['split'] == 'train' and seeds['ignored_fraction'] > 0  # the crowd
    assert 'mine' in (out / 'report.html').read_text(encoding='utf-8')

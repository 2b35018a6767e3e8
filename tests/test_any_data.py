"""A data set of one's own through the steps: the toy set as a description gives what --dataset voc12 gives, byte for
byte; other classes, colours, labels and values of masks; what is refused."""
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main, tree_bytes
from PIL import Image

from data.classes import ClassSet
from data.description import read_dataset
from data.labels import image_labels
from data.lists import read_list
from data.masks import read_label_mask, read_mask, read_truth, save_mask
from engine.errors import UserError
from engine.evaluation import evaluate_masks
from network.resnet38_contrast import Net
from voc12.classes import VOC

INFERENCE = '--device', 'cpu', '--num_workers', 0
TRAINING = ('--val_list', '', '--batch_size', 4, '--max_epoches', 1, '--tblog_dir', '', '--picture_every', 0,
            *INFERENCE)
THINGS = ClassSet('things', ('cup', 'fork', 'no'))


def steps(toy, out, where, train=(), infer=(), labels=(), val=()):
    """Run the three steps on the toy set and score them. where: flags of the data set. train, infer, labels, val: those
    of the lists and labels, where the data set does not say them."""
    contrast, aff, seg = (out / name for name in ('contrast', 'aff', 'seg'))
    run_main('contrast_train', '--weights', toy.backbone, *where, *train, *labels, '--session_name', contrast,
             '--crop_size', 64, '--resize_long', 64, 96, '--view2_size', 32, *TRAINING)
    run_main('contrast_infer', '--weights', contrast.with_suffix('.pth'), *where, *infer, *labels, '--scales', 1,
             '--out_cam', out / 'cam', '--out_crf', out / 'crf', *INFERENCE)
    run_main('aff_prepare', *where, *infer, '--cam_dir', out / 'cam', '--out_crf', out / 'aff_crf', *INFERENCE)
    run_main('aff_train', '--weights', toy.backbone, *where, *train, '--session_name', aff, '--crop_size', 64,
             '--la_crf_dir', out / 'aff_crf/4.00', '--ha_crf_dir', out / 'aff_crf/24.00', *TRAINING)
    run_main('aff_infer', '--weights', aff.with_suffix('.pth'), *where, *infer, '--cam_dir', out / 'cam', '--out_rw',
             out / 'rw', *INFERENCE)
    run_main('segmentation/experiment/train', '--pseudo_gt', out / 'rw', *where, *train, '--session_name', seg,
             '--weights', toy.backbone, '--DATA_RANDOMCROP', 48, '--TRAIN_BATCHES', 2, '--TRAIN_ITERATION', 1,
             '--tblog_dir', '', '--picture_every', 0, '--allow_unusual_masks', *INFERENCE)
    run_main('segmentation/experiment/test', '--weights', seg.with_suffix('.pth'), *where, *val, '--out_dir',
             out / 'seg_test', '--TEST_MULTISCALE', 1, *INFERENCE)


@pytest.fixture(scope='module')
def described(toy, tmp_path_factory):
    """The toy set as a dataset.yaml with lists and labels beside it."""
    folder = tmp_path_factory.mktemp('described')
    for path in (toy.train, toy.val, toy.labels):
        shutil.copy(path, folder)
    (folder / 'dataset.yaml').write_text(f"""
name: PASCAL VOC 2012
classes: {list(VOC.foreground)}
root: {toy.root}
images: JPEGImages
lists: {{train: train.txt, val: val.txt}}
labels: cls_labels.npy
ground_truth: SegmentationClass
""")
    return folder / 'dataset.yaml'


@pytest.fixture(scope='module')
def runs(toy, described, tmp_path_factory):
    """The folders of two runs of all steps: by the flags of voc12, and by the description alone."""
    first, second = tmp_path_factory.mktemp('voc12'), tmp_path_factory.mktemp('yaml')
    infer = '--infer_list', toy.train
    steps(toy, first, ('--voc12_root', toy.root), ('--train_list', toy.train), infer, ('--cls_labels', toy.labels),
          ('--infer_list', toy.val))
    steps(toy, second, ('--dataset', described))
    return first, second


def test_the_toy_set_as_a_description_gives_the_same_bytes_as_voc12(runs):
    first, second = ({path: content for path, content in tree_bytes(folder).items()
                      if path.suffix in ('.pth', '.npy', '.png', '.jsonl')} for folder in runs)
    assert sum(path.suffix == '.pth' for path in first) == 3
    assert sum(path.suffix in ('.npy', '.png') for path in first) == 12 * 5 + 4 * 4 + 3  # and a picture each
    assert first.keys() == second.keys()
    assert [path for path in first if first[path] != second[path]] == []


def test_the_scores_are_the_same_too(toy, described, runs, tmp_path):
    common = '--type', 'npy', '--curve', '--comment', 'x', '--num_workers', 0
    found = []
    for run, flags in zip(runs, (('--list', toy.train, '--gt_dir', toy.root / 'SegmentationClass'),
                                 ('--dataset', described))):
        run_main('eval', '--predict_dir', run / 'cam', *flags, *common, '--logfile', tmp_path / 'log')
        found.append(json.loads((tmp_path / 'log.json').read_text()))
    for key in ('split', 'images', 'curve', 'best', 'fixed', 'ignored_fraction', 'unlabelled_fraction'):
        assert found[0][key] == found[1][key], key
    tests = [json.loads((run / 'seg_test' / 'scores.json').read_text()) for run in runs]
    assert tests[0]['miou'] == tests[1]['miou'] and tests[0]['class_iou'] == tests[1]['class_iou']


# ---------------------------------------------------------------- what a session says

def test_inference_takes_baseline_and_network_from_the_json_beside_the_weights(toy, tmp_path, capsys):
    torch.save(torch.load(toy.net, weights_only=True), tmp_path / 'run.pth')
    settings = {'baseline': 'cam', 'network': 'network.resnet38_contrast', 'classes': list(VOC.foreground)}
    (tmp_path / 'run.json').write_text(json.dumps({'settings': settings}))
    argv = ('--weights', tmp_path / 'run.pth', '--voc12_root', toy.root, '--infer_list', toy.train, '--cls_labels',
            toy.labels, '--scales', 1, *INFERENCE)
    run_main('contrast_infer', *argv, '--out_cam', tmp_path / 'cam')
    assert json.loads((tmp_path / 'cam/run.json').read_text())['.npy']['baseline'] == 'cam'
    run_main('contrast_infer', *argv, '--out_cam', tmp_path / 'seam', '--baseline', 'seam')
    assert json.loads((tmp_path / 'seam/run.json').read_text())['.npy']['baseline'] == 'seam'


def test_inference_with_other_classes_is_refused_in_one_line(toy, described, runs, tmp_path, capsys):
    weights = runs[1] / 'contrast.pth'
    other = tmp_path / 'dataset.yaml'
    shutil.copytree(described.parent, tmp_path, dirs_exist_ok=True)
    other.write_text(described.read_text().replace('aeroplane', 'kite'))
    argv = '--dataset', other, '--weights'
    said = assert_refused(capsys, 'contrast_infer', *argv, weights, '--out_cam', tmp_path / 'cam')
    assert 'was trained on 20 classes (aeroplane, bicycle, bird, …), not on those of PASCAL VOC 2012: 20 ' in said
    assert 'was trained on 20 classes' in assert_refused(
        capsys, 'aff_infer', *argv, runs[1] / 'aff.pth', '--cam_dir', runs[1] / 'cam', '--out_rw', tmp_path / 'rw')
    assert 'was trained on 20 classes' in assert_refused(
        capsys, 'segmentation/experiment/test', *argv, runs[1] / 'seg.pth')
    # Without the JSON the number of channels must do.
    shutil.copy(runs[1] / 'contrast.pth', tmp_path / 'alone.pth')
    text = described.read_text().replace("'aeroplane', ", '')
    other.write_text(text.replace('labels: cls_labels.npy', 'labels: l.csv'))
    (tmp_path / 'l.csv').write_text(''.join(f'{name},cat\n' for name in read_list(toy.train)))
    said = assert_refused(capsys, 'contrast_infer', *argv, tmp_path / 'alone.pth', '--out_cam', tmp_path / 'cam')
    assert 'has shape' in said and 'the network needs' in said


def test_a_resumed_run_keeps_its_classes(toy, described, runs, tmp_path, capsys):
    folder = shutil.copytree(described.parent, tmp_path / 'other')
    (folder / 'dataset.yaml').write_text(described.read_text().replace('aeroplane', 'kite'))
    argv = ('--weights', toy.backbone, '--session_name', runs[1] / 'contrast', *TRAINING, '--crop_size', 64,
            '--resize_long', 64, 96, '--view2_size', 32, '--resume')
    assert 'classes' in assert_refused(capsys, 'contrast_train', '--dataset', folder / 'dataset.yaml', *argv)
    run_main('contrast_train', '--dataset', described, *argv)


# ---------------------------------------------------------------- labels

def labels(tmp_path, text):
    path = tmp_path / 'labels.csv'
    path.write_text(text, encoding='utf-8')
    return path


def test_labels_are_read_from_lines_of_an_id_and_its_classes(tmp_path):
    path = labels(tmp_path, '\ufeffid,class,class\nphoto 1,cup, fork,,\nb,no\n\nc\n,,\n"d,e",fork,fork\n')
    found = image_labels(['c', 'b', 'photo 1', 'd,e'], path, THINGS)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize('text, words', [
    ('a,cup\nb,spoon\n', "labels.csv line 2: names the class 'spoon', which things lacks"),
    ('a,cup\nb,fork\na,fork\n', 'labels.csv line 3: names a a second time'),
    ('a,cup\n,fork\n', 'labels.csv line 2: has no id'),
    ('', 'labels.csv: holds no label'),
    ('id,class\n', 'labels.csv: holds no label'),
    ('a,"cup\n', 'labels.csv: labels cannot be read'),
    ('b,cup\n', 'labels.csv: no label for a (1 of 1 ids lack one)'),
    ('a.png,cup\n', 'no label for a (1 of 1 ids lack one; a.png has one); write ids without their ending'),
])
def test_malformed_labels_get_their_line(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        image_labels(['a'], labels(tmp_path, text), THINGS)
    assert words in str(error.value)


def test_labels_that_are_missing_or_no_text_get_their_line(tmp_path):
    with pytest.raises(UserError, match='labels not found'):
        image_labels(['a'], tmp_path / 'none.csv', THINGS)
    (tmp_path / 'x.csv').write_bytes(b'a,\xff\n')
    with pytest.raises(UserError, match='in UTF-8'):
        image_labels(['a'], tmp_path / 'x.csv', THINGS)


def test_labels_are_read_from_a_folder_of_masks(tmp_path):
    for name, row in (('a', [0, 1, 3, 255]), ('b', [0, 0, 255, 255])):
        save_mask(tmp_path / f'{name}.png', [row], THINGS.palette)
    assert image_labels(['b', 'a'], tmp_path, THINGS).tolist() == [[0, 0, 0], [1, 0, 1]]
    with pytest.raises(UserError, match='file not found'):
        image_labels(['c'], tmp_path, THINGS)
    save_mask(tmp_path / 'a.png', [[4]], THINGS.palette)
    with pytest.raises(UserError, match='holds the label 4, which is neither below 4'):
        image_labels(['a'], tmp_path, THINGS)


# ---------------------------------------------------------------- values and colours of masks

def with_values(tmp_path, **keys):
    """The ClassSet of a description with these keys."""
    (tmp_path / 'train.txt').write_text('a\n')
    lines = {'classes': '[cup, fork, "no"]', 'images': 'x', 'lists': '{train: train.txt}', 'labels': 'l.csv'} | keys
    (tmp_path / 'dataset.yaml').write_text('\n'.join(f'{key}: {value}' for key, value in lines.items()))
    return read_dataset(tmp_path / 'dataset.yaml').classes


def test_ground_truth_is_read_by_its_own_values_and_predictions_by_labels(tmp_path):
    classes = with_values(tmp_path, mask_values='{cup: 255, fork: 20, "no": 30}', ignore=9)
    truth, predicted = tmp_path / 'gt', tmp_path / 'masks'
    truth.mkdir(), predicted.mkdir()
    Image.fromarray(np.array([[0, 255, 20, 9]], np.uint8)).save(truth / 'a.png')
    assert read_truth(truth / 'a.png', classes).tolist() == [[0, 1, 2, 255]]
    save_mask(predicted / 'a.png', [[0, 1, 3, 3]], classes.palette)
    result = evaluate_masks(['a'], predicted, truth, classes)
    assert result.counts[0].diagonal().tolist() == [1, 1, 0, 0]
    assert result.ignored == 0.25
    Image.fromarray(np.array([[0, 31]], np.uint8)).save(truth / 'a.png')
    with pytest.raises(UserError, match='holds the value 31, which is that of no class of'):
        read_truth(truth / 'a.png', classes)


def test_masks_have_the_colours_of_the_description_and_are_read_by_them(tmp_path):
    classes = with_values(tmp_path, palette='{cup: [255, 0, 0], "no": "#0000ff"}')
    save_mask(tmp_path / 'a.png', [[0, 1, 2, 3]], classes.palette)
    with Image.open(tmp_path / 'a.png') as image:
        assert np.asarray(image.convert('RGB')).tolist() == [[[0, 0, 0], [255, 0, 0], [0, 128, 0], [0, 0, 255]]]
    assert read_label_mask(tmp_path / 'a.png', classes).tolist() == [[0, 1, 2, 3]]
    sorted_palette = Image.fromarray(np.array([[1, 0]], np.uint8))
    sorted_palette.putpalette([0, 0, 255, 255, 0, 0])  # an annotation tool's own order
    sorted_palette.save(tmp_path / 'b.png')
    assert read_mask(tmp_path / 'b.png', classes.colours).tolist() == [[1, 3]]
    with pytest.raises(UserError, match='no label of the colour map'):
        read_mask(tmp_path / 'b.png')


def test_a_network_gets_as_many_channels_as_the_data_set_has_classes(tmp_path):
    assert Net(with_values(tmp_path).num_classes, 1 / 16).fc8.out_channels == THINGS.num_foreground + 1 == 4

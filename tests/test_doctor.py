"""doctor.py: what it finds in an installation, a data set and weights, each with what to do, and its exit status."""
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import run_main
from PIL import Image

from data.lists import read_list
from data.masks import read_mask, save_mask
from engine import runinfo
from network.resnet38d import ResNet38
from voc12.classes import VOC


@pytest.fixture
def data(toy, tmp_path):
    """A copy of the toy set with a dataset.yaml, to damage."""
    folder = tmp_path / 'toy'
    shutil.copytree(toy.root, folder, ignore=lambda *_: ['SALImages', 'Annotations', 'net.pth'])
    (folder / 'dataset.yaml').write_text(
        f'classes: {list(VOC.foreground)}\nimages: JPEGImages\nground_truth: SegmentationClass\n'
        'lists: {train: lists/train.txt, val: lists/val.txt}\nlabels: lists/cls_labels.npy\n')
    return folder


def diagnosis(capsys, data, *flags, status=0):
    """What the doctor prints; each finding says what to do."""
    argv = ('doctor', '--dataset', data / 'dataset.yaml', '--num_workers', 0, '--out', data, '--device', 'cpu', *flags)
    if status:
        with pytest.raises(SystemExit) as end:
            run_main(*argv)
        assert end.value.code == status
    else:
        run_main(*argv)
    said = capsys.readouterr().out
    findings = [line for line in said.splitlines() if re.match('  (note|FAILED) ', line)]
    assert all('; ' in line for line in findings), findings
    failed = sum(line.startswith('  FAILED') for line in findings)
    assert said.rstrip().endswith(f'checks that failed: {failed}') and bool(failed) == bool(status), said
    return said


def test_nothing_is_wrong_with_the_toy_set(data, capsys):
    weights = data / 'backbone.pth'
    digest = runinfo.digest(weights)
    named = shutil.copy(weights, data / f'backbone-{digest[:8]}.pth')
    said = diagnosis(capsys, data, '--weights', weights, named)
    for words in ('torch 2', '--crf_engine torch', 'device cpu: CPU', 'list train: 12 ids', 'list val: 4 ids',
                  '16 photos open, sides 64 to 80 pixels, 16 RGB', 'labels of train: ', '12 masks of train, ',
                  '4 masks of val, ', f'SHA-256 {digest[:16]}', 'a ResNet-38 backbone of width 0.0625',
                  'fits Step 1, training (seam, cam), Step 2, training, Step 3, training SEAM_deeplabv1_resnet38',
                  'GiB are free', 'Step 3, multi-scale test on val'):
        assert words in said, words


def test_photos_are_opened_and_compared(data, capsys):
    train, val = read_list(data / 'lists/train.txt'), read_list(data / 'lists/val.txt')
    photos = {i: data / 'JPEGImages' / f'{i}.jpg' for i in (*train, *val)}
    photos[train[0]].write_bytes(photos[train[0]].read_bytes()[:400])
    Image.new('L', (80, 64)).save(photos[train[1]])
    photos[train[2]].unlink()
    shutil.copy(photos[train[3]], photos[val[0]])
    Image.new('RGB', (80, 64)).save(photos[train[4]])
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(photos[train[5]]) as image:
        image.save(photos[train[5]], exif=exif)
    said = diagnosis(capsys, data, status=1)
    assert re.search(rf'FAILED  .*{train[0]}.jpg: image cannot be read', said)
    assert re.search(rf'FAILED  .*{train[1]}.jpg: image mode is L', said)
    assert f'FAILED  1 of 16 photos are missing, {train[2]} the first' in said
    assert f'1 photos of val are in train under another id ({val[0]} is {train[3]})' in said
    assert f'note    1 photos are of one colour, {train[4]}' in said
    assert f'note    1 photos are turned by their EXIF orientation, {train[5]}' in said


def test_lists_and_labels_are_looked_at(data, capsys):
    train, val = read_list(data / 'lists/train.txt'), read_list(data / 'lists/val.txt')
    (data / 'lists/train.txt').write_text('\n'.join([*train, val[0]]))
    labels = ''.join(f'{i},cat\n' for i in [*train[1:], *val]) + train[0]
    (data / 'labels.csv').write_text(labels)
    said = diagnosis(capsys, data, '--cls_labels', data / 'labels.csv', status=1)
    assert f'FAILED  1 ids are in train and in val ({val[0]})' in said
    assert 'note    1 images of train have no class' in said
    assert 'note    19 classes are in no image of train, aeroplane the first' in said
    (data / 'labels.csv').write_text(labels.replace('cat', 'kat'))
    said = diagnosis(capsys, data, '--cls_labels', data / 'labels.csv', status=1)
    assert "labels.csv line 1: names the class 'kat'" in said


def test_masks_are_looked_at(data, capsys):
    val, folder = read_list(data / 'lists/val.txt'), data / 'SegmentationClass'
    (folder / f'{val[0]}.png').unlink()
    mask = read_mask(folder / f'{val[1]}.png').copy()
    mask[0, 0] = 77
    save_mask(folder / f'{val[1]}.png', mask, VOC.palette)
    save_mask(folder / f'{val[2]}.png', np.zeros((9, 9)), VOC.palette)
    said = diagnosis(capsys, data, status=1)
    assert 'FAILED  1 of 4 images of val have no ground truth' in said
    assert re.search(rf'FAILED  .*{val[1]}.png: holds the label 77', said)
    assert re.search(rf'FAILED  .*{val[2]}.png: is 9x9 \(height x width\), its image 64x80', said)
    for i in val:
        save_mask(folder / f'{i}.png', np.full((64, 80), 255), VOC.palette)
    assert 'FAILED  ' in diagnosis(capsys, data, status=1)
    text = (data / 'dataset.yaml').read_text()
    (data / 'dataset.yaml').write_text(text.replace('ground_truth: SegmentationClass\n', ''))
    assert 'note    no ground truth; nothing will be scored' in diagnosis(capsys, data)


def test_weights_are_looked_at(data, capsys):
    torch.save({'x.weight': torch.zeros(2, 2)}, data / 'stranger.pth')
    torch.save(ResNet38(1 / 16).state_dict(), data / 'backbone-01234567.pth')
    (data / 'page.pth').write_text('<html>')
    said = diagnosis(capsys, data, '--weights', data / 'stranger.pth', data / 'backbone-01234567.pth',
                     data / 'page.pth', status=1)
    assert 'FAILED  it fits no step (Step 1, training' in said
    assert 'FAILED  its name says SHA-256 01234567, its content has ' in said
    assert 'page.pth: is a web page' in said

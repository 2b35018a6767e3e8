"""Puts the repository root on the path of the tests and of the scripts they start; data and weights that they share."""
import os
import sys
from pathlib import Path
from types import SimpleNamespace

# Before torch, NumPy and our own modules are imported. Tensors are tiny here: threads would wait more than work.
REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(REPO), os.environ.get('PYTHONPATH')]))
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from helpers import run_main

from golden.fill import fill_state_dict
from network.resnet38_contrast import Net
from network.resnet38d import ResNet38
from toy import make as generator
from voc12.classes import VOC

TINY = 1 / 16  # width of the networks that are trained and run here


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    """A tiny toy set with its lists and labels, and random weights of width 1/16. Copy what you mean to damage.

    root: the devkit; saliency: its folder of saliency maps. train, val: lists of 12 and 4 ids; labels: cls_labels.npy.
    backbone: weights to train from; net: weights of a whole network.resnet38_contrast to infer with.
    """
    root = tmp_path_factory.mktemp('toy_voc')
    lists = root / 'lists'
    generator.make_dataset(root, train=12, val=4, seed=7, settings=generator.Settings(size=(80, 64)))
    run_main('voc12/prepare', '--voc12_root', root, '--out', lists)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(ResNet38(TINY).state_dict(), root / 'backbone.pth')
        torch.save(Net(VOC.num_classes, TINY).state_dict(), root / 'net.pth')
    return SimpleNamespace(root=root, saliency=root / 'SALImages', train=lists / 'train.txt', val=lists / 'val.txt',
                           labels=lists / 'cls_labels.npy', backbone=root / 'backbone.pth', net=root / 'net.pth')


@pytest.fixture(scope='session')
def published_weights(tmp_path_factory):
    """A .pth of network.resnet38_contrast at full width, filled by golden/fill.py. 420 MB, removed afterwards."""
    path = tmp_path_factory.mktemp('published') / 'filled.pth'
    with torch.device('meta'):  # shapes only: the values come from the keys
        net = Net(VOC.num_classes)
    torch.save(fill_state_dict(net.state_dict()), path)
    yield path
    path.unlink()

"""CONTRIBUTING.md: its example of a --network module works as it stands."""
import importlib
import re
import sys

import pytest
import torch
from helpers import assert_refused, run_main

from data.cams import read_cams
from data.lists import read_list
from engine.files import REPO
from engine.loss_log import read_loss_log
from voc12.classes import VOC


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example, importable as my_module; the path of weights of its backbone."""
    text = (REPO / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    code, = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert 20 <= len(code.splitlines()) <= 40
    (tmp_path / 'my_module.py').write_text(code, encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'my_module', raising=False)
    torch.manual_seed(0)
    torch.save(importlib.import_module('my_module').Backbone().state_dict(), tmp_path / 'backbone.pth')
    return tmp_path / 'backbone.pth'


def flags(toy):
    return ('--network', 'my_module', '--voc12_root', toy.root, '--cls_labels', toy.labels, '--num_workers', 0,
            '--device', 'cpu')


def test_the_example_network_trains_and_infers(example, toy, tmp_path):
    run_main('contrast_train', *flags(toy), '--weights', example, '--train_list', toy.train, '--val_list',
             toy.val, '--session_name', tmp_path / 'run', '--tblog_dir', tmp_path / 'tb', '--crop_size', 48,
             '--resize_long', 40, 64, '--view2_size', 32, '--batch_size', 4, '--max_epoches', 1)
    rows = read_loss_log(tmp_path / 'run.losses.jsonl')
    assert [row['step'] for row in rows] == [0, 1, 2]
    for term in ('cls', 'rvmin', 'er', 'ecr', 'cross_prototype', 'cross_cam', 'intra'):
        assert rows[0][term] > 0
    run_main('contrast_infer', *flags(toy), '--weights', tmp_path / 'run.pth', '--infer_list', toy.val,
             '--scales', 1, '--out_cam', tmp_path / 'cam')
    for name in read_list(toy.val):
        _, cams = read_cams(tmp_path / 'cam' / f'{name}.npy', VOC.num_foreground)
        assert 0.9 < cams.max() <= 1


def test_a_module_without_net_is_refused(example, toy, tmp_path, capsys):
    (tmp_path / 'empty_module.py').write_text('')
    line = assert_refused(capsys, 'contrast_infer', '--network', 'empty_module', '--weights', example, '--infer_list',
                          toy.val, '--voc12_root', toy.root, '--cls_labels', toy.labels, '--out_cam', tmp_path / 'cam')
    assert "'empty_module' is no module with a class Net" in line

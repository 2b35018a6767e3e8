"""Several processes and micro-batches compute what one process computes: terms, gradients, steps; how they end."""
import os
import signal

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main, torchrun, wait_for_steps

from data.images import image_size
from data.lists import read_list
from data.probabilities import save_probabilities
from engine import checkpoint
from engine.errors import UserError
from engine.loss_log import read_loss_log
from engine.parts import Parts, rows_of
from segmentation import model
from segmentation.losses import labelled_pixels, segmentation_loss
from tool.part import Part

WAYS = [(1, 2), (2, 1), (2, 2)]  # processes, micro-batches of each
BASELINES = 'seam', 'eps', 'eps_plain'


@pytest.fixture(scope='module')
def affinity_folders(toy, tmp_path_factory):
    """Two folders of class probabilities for the toy set, as aff_prepare.py makes them."""
    root, rng = tmp_path_factory.mktemp('crf'), np.random.default_rng(0)
    for name in read_list(toy.train):
        height, width = image_size(toy.root / 'JPEGImages' / f'{name}.jpg')
        coarse = rng.random((3, height // 16 + 1, width // 16 + 1), np.float32)
        scores = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
        for folder, background in (('low', 3), ('high', 1)):
            (root / folder).mkdir(exist_ok=True)
            weighted = scores * np.array([background, 1, 1], np.float32)[:, None, None]
            save_probabilities(root / folder / f'{name}.npy', (0, 4, 7), weighted / weighted.sum(0))
    return root


def arguments(toy, affinity_folders, kind, folder, *flags):
    """The script and arguments of a run on batches of eight, a step an epoch, with dropout and sampling."""
    common = ['--weights', toy.backbone, '--voc12_root', toy.root, '--train_list', toy.train, '--val_list', '',
              '--session_name', folder / 'run', '--tblog_dir', '', '--batch_size', 8, '--num_workers', 0, '--device',
              'cpu', '--save_every', 0, '--log_every', 1, '--picture_every', 0, '--wt_dec', 0, '--momentum', 0, *flags]
    if kind == 'affinity':
        return 'aff_train', [*common, '--crop_size', 64, '--la_crf_dir', affinity_folders / 'low', '--ha_crf_dir',
                             affinity_folders / 'high']
    saliency = [] if kind == 'seam' else ['--saliency_dir', toy.saliency]
    second = [] if kind == 'eps_plain' else ['--view2_size', 32]
    return 'contrast_train', [*common, '--cls_labels', toy.labels, '--crop_size', 48, '--resize_long', 40, 64,
                              '--baseline', kind, *saliency, *second]


def train(name, argv, way):
    """Run a script in (processes, micro-batches)."""
    argv = [*argv, '--accumulate', way[1]]
    if way[0] == 1:
        run_main(name, *argv)
    else:
        said = (run := torchrun(name, argv, way[0])).communicate(timeout=300)
        assert run.returncode == 0, said


def results(folder):
    """The loss log and the weights of a run."""
    return read_loss_log(folder / 'run.losses.jsonl'), torch.load(folder / 'run.pth', weights_only=True)


@pytest.fixture(scope='module')
def one_process(toy, affinity_folders, tmp_path_factory):
    """Function from a kind and flags to the results of one process; made once."""
    made = {}

    def of(kind, *flags):
        if (kind, flags) not in made:
            folder = tmp_path_factory.mktemp(kind)
            train(*arguments(toy, affinity_folders, kind, folder, *flags), (1, 1))
            made[kind, flags] = results(folder)
        return made[kind, flags]
    return of


STEEP = '--max_epoches', 1, '--lr', 1000  # one step: the weights afterwards are the gradients, but for rounding


def cases():
    """(kind, way), those with several processes marked as long."""
    for kind in (*BASELINES, 'affinity'):
        for way in WAYS:
            marks = [] if way[0] == 1 else pytest.mark.long
            yield pytest.param(kind, way, marks=marks, id=f'{kind}-{way[0]}x{way[1]}')


@pytest.mark.parametrize('kind, way', list(cases()))
def test_terms_and_gradients_are_those_of_one_process(toy, affinity_folders, one_process, tmp_path, kind, way):
    train(*arguments(toy, affinity_folders, kind, tmp_path, *STEEP), way)
    (expected, weights), (rows, found) = one_process(kind, *STEEP), results(tmp_path)
    assert len(rows) == len(expected) == 1
    assert rows[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-7)
    assert weights.keys() == found.keys()
    start, moved = torch.load(toy.backbone, weights_only=True), 0
    for name, weight in weights.items():
        scale = weight.abs().max().item()
        moved += name not in start or (weight - start[name]).abs().max().item() > 0.1 * scale
        assert (weight - found[name]).abs().max().item() <= 1e-5 * scale, name
    assert moved > 5


@pytest.mark.long
@pytest.mark.parametrize('kind', ['seam', 'affinity'])
def test_four_steps_are_those_of_one_process(toy, affinity_folders, one_process, tmp_path, kind):
    flags = '--max_epoches', 4, '--lr', 0.01
    train(*arguments(toy, affinity_folders, kind, tmp_path, *flags), (2, 2))
    (expected, _), (rows, _) = one_process(kind, *flags), results(tmp_path)
    for row, one in zip(rows, expected, strict=True):
        assert row == pytest.approx(one, rel=1e-5, abs=1e-7)


@pytest.mark.long
def test_sigterm_stops_all_at_the_same_step_and_another_number_of_processes_goes_on(toy, one_process, tmp_path):
    flags = '--max_epoches', 30, '--lr', 0.01
    name, argv = arguments(toy, None, 'seam', tmp_path, *flags)
    run = torchrun(name, argv)
    wait_for_steps(run, tmp_path / 'run.losses.jsonl', 2)
    os.kill(run.pid, signal.SIGTERM)  # the launcher, which passes it on
    _, said = run.communicate(timeout=120)
    step = checkpoint.read_checkpoint(tmp_path / 'run.ckpt')['step']
    assert said.count(f'SIGTERM: saved {tmp_path / "run.ckpt"} at step {step} of 30') == 1
    assert len(read_loss_log(tmp_path / 'run.losses.jsonl')) == step < 30
    run_main(name, *argv, '--resume')
    (expected, _), (rows, _) = one_process('seam', *flags), results(tmp_path)
    assert [row['step'] for row in rows] == list(range(30))
    assert rows[step] == pytest.approx(expected[step], rel=1e-3)


@pytest.mark.long
def test_an_error_of_all_processes_is_one_line(toy, tmp_path):
    name, argv = arguments(toy, None, 'seam', tmp_path, '--weights', tmp_path / 'none.pth')
    run = torchrun(name, argv)
    said = run.communicate(timeout=120)[1]
    assert run.returncode != 0 and said.count('error: ') == 1 and 'none.pth: weights not found' in said


def test_a_batch_that_does_not_divide_is_refused(toy, tmp_path, capsys):
    name, argv = arguments(toy, None, 'seam', tmp_path, '--accumulate', 3)
    assert assert_refused(capsys, name, *argv) == (
        'error: total batch: 8 images cannot be dealt evenly to 1 processes with 3 micro-batches each; choose a '
        'multiple of 3')


def test_a_part_of_a_batch_has_its_rows_of_every_entry():
    net, rows = torch.nn.Dropout(), torch.arange(8)
    batch = {'name': list('abcdefgh'), 'pair': Part(rows, rows * 2)}  # a named tuple of tensors
    assert rows_of(batch, Part(1, 4))['name'] == ['c', 'd']
    assert rows_of(batch, Part(1, 4))['pair'].count.tolist() == [4, 6]
    with pytest.raises(UserError):
        Parts(net, 8, 3, torch.device('cpu'))


def test_deeplab_in_several_processes_needs_gpus_and_has_their_batch_statistics(monkeypatch, capsys):
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3).requires_grad_(False))
    assert model.over_processes(net, torch.device('cpu')) is net
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(UserError, match='2 processes on CPUs, where DeepLab needs batch statistics'):
        model.over_processes(net, torch.device('cpu'))
    names = list(net.state_dict())
    synchronised = model.over_processes(net, torch.device('cuda'))
    assert isinstance(synchronised[0], torch.nn.SyncBatchNorm) and list(synchronised.state_dict()) == names
    assert not any(parameter.requires_grad for parameter in synchronised.parameters())
    assert 'SyncBatchNorm' in capsys.readouterr().out


def test_the_mean_of_deeplabs_loss_over_parts_is_that_of_the_batch():
    torch.manual_seed(0)
    logits, mask = torch.randn(4, 3, 5, 6), torch.randint(0, 3, (4, 5, 6))
    mask[0, :4] = 255
    count = labelled_pixels(mask)
    parts = [segmentation_loss(logits[k:k + 2], mask[k:k + 2], count, 2) for k in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, segmentation_loss(logits, mask))

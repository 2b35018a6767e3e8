"""contrast_train.py and tool/training.py: schedule, logs, resuming after kill -9 and SIGTERM, what is refused."""
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import contrast_train
from engine import cli, files
from engine.checkpoint import read_checkpoint
from engine.loss_log import read_loss_log
from engine.training import Run
from network.resnet38_contrast import Net
from tool import contrast

STEPS = 24  # 12 images, batch 2, 4 epochs
# The published weight of each term.
WEIGHTS = {'cls': 1., 'rvmin': 1., 'er': 1., 'ecr': 1., 'cross_prototype': 0.1, 'cross_cam': 0.1, 'intra': 0.1}


def arguments_of(toy, folder, name, *flags):
    """The arguments of a tiny contrast_train.py run whose session is <folder>/<name>."""
    return ['--weights', str(toy.backbone), '--voc12_root', str(toy.root), '--cls_labels', str(toy.labels),
            '--train_list', str(toy.train), '--val_list', '', '--session_name', str(folder / name),
            '--tblog_dir', str(folder / 'tensorboard'), '--crop_size', '48', '--resize_long', '40', '64',
            '--view2_size', '32', '--batch_size', '2', '--max_epoches', '4', '--lr', '0.05', '--num_workers', '0',
            '--device', 'cpu', '--save_every', '5', '--log_every', '1', '--picture_every', '0', *flags]


@pytest.fixture
def command(toy, tmp_path):
    """Function from a session's name and more flags to the arguments of a run in tmp_path."""
    return functools.partial(arguments_of, toy, tmp_path)


def train(arguments):
    contrast_train.main(contrast_train.get_args_parser().parse_args(arguments))


def losses(path):
    """The rows of <session>.losses.jsonl."""
    return [json.loads(line) for line in path.with_name(path.name + '.losses.jsonl').read_text().splitlines()]


def refusal(arguments, capsys):
    """The line on stderr of a run that ends as a user's mistake should: status 2, one error, no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(contrast_train.main, contrast_train.get_args_parser(), arguments)
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------- interrupted runs

@pytest.fixture(scope='module')
def uninterrupted(toy, tmp_path_factory):
    """The loss log of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    train(arguments_of(toy, folder, 'run'))
    return (folder / 'run.losses.jsonl').read_bytes()


def start(arguments):
    return subprocess.Popen([sys.executable, str(files.REPO / 'contrast_train.py'), *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_steps(process, log, steps, patience=600):
    """Return once the log of a running process holds so many steps."""
    end = time.monotonic() + patience
    while not (log.exists() and log.read_bytes().count(b'\n') >= steps):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize('workers', ['0', '1'])
def test_killed_and_resumed_is_never_interrupted_to_the_last_digit(command, tmp_path, uninterrupted, workers):
    arguments = command('run', '--num_workers', workers)
    log = tmp_path / 'run.losses.jsonl'
    steps, delay = random.randrange(1, STEPS - 8), random.uniform(0, 0.2)  # any moment will do
    process = start(arguments)
    wait_for_steps(process, log, steps)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / 'run.pth').exists()
    train([*arguments, '--resume'])
    assert log.read_bytes() == uninterrupted, f'killed {delay:.3f} s after step {steps}'
    assert (tmp_path / 'run.pth').exists()
    assert not list(tmp_path.glob('.*'))


def test_sigterm_saves_says_so_and_can_be_resumed(command, tmp_path, uninterrupted):
    arguments = command('run', '--save_every', '0', '--num_workers', '1')
    process = start(arguments)
    wait_for_steps(process, tmp_path / 'run.losses.jsonl', 2)
    os.killpg(process.pid, signal.SIGTERM)  # as a cluster ends a job: the loading process gets it too
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    step = read_checkpoint(tmp_path / 'run.ckpt')['step']
    assert f'SIGTERM: saved {tmp_path / "run.ckpt"} at step {step} of {STEPS}; continue with --resume' in stderr
    assert len(losses(tmp_path / 'run')) == step and not (tmp_path / 'run.pth').exists()
    train([*arguments, '--resume'])
    assert (tmp_path / 'run.losses.jsonl').read_bytes() == uninterrupted


def test_another_seed_is_another_run(command, tmp_path, uninterrupted):
    train(command('run', '--seed', '1', '--max_epoches', '1'))
    assert losses(tmp_path / 'run')[0]['cls'] != json.loads(uninterrupted.splitlines()[0])['cls']


def test_resuming_a_finished_run_changes_nothing(command, tmp_path, capsys):
    train(command('run', '--max_epoches', '1'))
    before = (tmp_path / 'run.losses.jsonl').read_bytes(), (tmp_path / 'run.pth').read_bytes()
    train(command('run', '--max_epoches', '1', '--resume'))
    assert (tmp_path / 'run.losses.jsonl').read_bytes() == before[0]
    assert 'at step 6 of 6' in capsys.readouterr().out


def test_resuming_without_a_checkpoint_starts_and_says_so(command, tmp_path, capsys):
    train(command('run', '--max_epoches', '1', '--resume'))
    assert f'nothing to resume: {tmp_path / "run.ckpt"}' in capsys.readouterr().out
    assert len(losses(tmp_path / 'run')) == 6


def test_what_a_second_start_may_do(command, tmp_path, capsys):
    one_epoch = '--max_epoches', '1'
    train(command('run', *one_epoch))
    files = {path: path.read_bytes() for path in tmp_path.glob('run*')}
    assert 'add --resume to continue it, --overwrite' in refusal(command('run', *one_epoch), capsys)
    message = refusal(command('run', *one_epoch, '--resume', '--lr', '0.04', '--w_er', '2'), capsys)
    assert 'lr 0.05 -> 0.04' in message and 'w_er 1.0 -> 2.0' in message
    assert {path: path.read_bytes() for path in tmp_path.glob('run*')} == files
    train(command('run', *one_epoch, '--overwrite'))
    assert (tmp_path / 'run.losses.jsonl').read_bytes() == files[tmp_path / 'run.losses.jsonl']
    assert (tmp_path / 'run.pth').read_bytes() == files[tmp_path / 'run.pth']


def test_a_damaged_checkpoint_is_refused(command, tmp_path, capsys):
    (tmp_path / 'run.ckpt').write_bytes(b'PK\x03\x04 cut short')
    assert 'run.ckpt: cannot be read' in refusal(command('run', '--resume'), capsys)
    torch.save({'model': {}}, tmp_path / 'run.ckpt')
    assert 'run.ckpt: is not a training checkpoint' in refusal(command('run', '--resume'), capsys)


# ---------------------------------------------------------------- one run, its files

def test_what_a_run_leaves(command, toy, tmp_path, capsys):
    train(command('run', '--max_epoches', '1', '--picture_every', '4', '--val_list', str(toy.val), '--seed', '3'))
    names = {'run.pth', 'run.ckpt', 'run.json', 'run.losses.jsonl', 'run.maps.png', 'tensorboard'}
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = losses(tmp_path / 'run')
    assert [row['step'] for row in rows] == list(range(6))
    for row in rows:
        total = sum(weight * row[name] for name, weight in WEIGHTS.items())
        assert row.keys() == {'step', 'loss', *WEIGHTS} and row['loss'] == pytest.approx(total, rel=1e-5)

    info = json.loads((tmp_path / 'run.json').read_text())
    assert info['settings']['lr'] == 0.05 and info['settings']['momentum'] == 5e-4
    assert (info['seed'], info['total_batch'], info['max_step'], info['steps_per_epoch']) == (3, 2, 6, 6)
    assert info['packages']['torch'] == metadata.version('torch') and info['device'].startswith('CPU')
    out = capsys.readouterr().out
    assert 'total_batch 2, seed 3' in out and info['git_commit'] and info['git_commit'] in out
    assert 'warning: total batch 2 < 8' in out and 'val/mAP' in out

    state = torch.load(tmp_path / 'run.pth', weights_only=True)
    Net(width=1 / 16).load_state_dict(state)  # strict: plain, complete, nothing else

    events = EventAccumulator(str(tmp_path / 'tensorboard' / 'run')).Reload()
    training_tags = {f'train/{name}' for name in ('loss', 'lr', *WEIGHTS)}
    assert set(events.Tags()['scalars']) == training_tags | {'val/cls', 'val/mAP'}
    assert [scalar.value for scalar in events.Scalars('train/cls')] == pytest.approx([row['cls'] for row in rows])
    assert [picture.step for picture in events.Images('maps')] == [4, 6]
    assert events.Tags()['tensors'] == ['run/text_summary']


def test_no_warning_for_a_batch_of_eight(command, capsys):
    train(command('run', '--max_epoches', '1', '--batch_size', '8'))
    train(command('seam', '--max_epoches', '1', *(f'--w_{name}=0' for name in contrast.TERMS)))
    assert 'warning: total batch' not in capsys.readouterr().out


@pytest.mark.parametrize('off', [contrast.TERMS, ('ecr', 'intra'), tuple(name for name in WEIGHTS if name != 'cls')])
def test_a_weight_of_zero_switches_the_term_off(command, tmp_path, off):
    train(command('run', '--max_epoches', '1', *(f'--w_{name}=0' for name in off)))
    assert all(row.keys() == {'step', 'loss', *WEIGHTS} - set(off) for row in losses(tmp_path / 'run'))


def test_nothing_left_to_train_is_refused(command, capsys):
    assert 'all weights are 0' in refusal(command('run', *(f'--w_{name}=0' for name in WEIGHTS)), capsys)


def test_bf16_stays_close_to_float32(command, tmp_path):
    # Without the intra-view term, whose sampling may choose other pixels after a rounding.
    for amp in ('off', 'bf16'):
        train(command(amp, '--amp', amp, '--max_epoches', '1', '--lr', '0.01', '--w_intra', '0'))
    exact, rounded = losses(tmp_path / 'off'), losses(tmp_path / 'bf16')
    assert exact != rounded
    assert rounded[0] == pytest.approx(exact[0], rel=0.03, abs=1e-3)
    assert [row['loss'] for row in rounded] == pytest.approx([row['loss'] for row in exact], rel=0.03)


def test_fp16_needs_a_gpu(command, capsys):
    assert 'needs a CUDA device' in refusal(command('run', '--amp', 'fp16'), capsys)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_terms(command, tmp_path, capsys):
    message = refusal(command('run', '--lr', '1e30'), capsys)
    assert 'not finite at step' in message and 'cls = ' in message and 'lower the learning rate' in message
    assert not (tmp_path / 'run.pth').exists() and not list(tmp_path.glob('.*'))
    assert all(abs(row['loss']) < float('inf') for row in losses(tmp_path / 'run'))


# ---------------------------------------------------------------- the loop itself

def make_run(folder, resume=False):
    """A Run of a net with one layer: learning rates 0.1 and 0.2, two epochs of four steps."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{'params': net.weight, 'lr': 0.1}, {'params': net.bias, 'lr': 0.2}], momentum=0.9)
    flags = SimpleNamespace(resume=resume, overwrite=False, log_every=1, save_every=3)
    return Run(folder / 'run', net, optimizer, device=torch.device('cpu'), amp='off', seed=0, batch_size=2,
               steps_per_epoch=4, max_step=8, settings={}, flags=flags, tblog_dir=folder / 'log', workers=0)


def test_poly_schedule(tmp_path):
    run = make_run(tmp_path)
    for batch in run.batches(torch.randn(9, 2)):
        factor = (1 - run.step / 8) ** 0.9
        assert [group['lr'] for group in run.optimizer.param_groups] == pytest.approx([0.1 * factor, 0.2 * factor])
        assert (run.epoch, len(batch)) == (run.step // 4, 2)
        run.update({'a': run.net(batch).square().mean()}, {'a': 1.})
    assert run.step == 8 and run.optimizer.param_groups[0]['lr'] == 0.
    run.finish()


def test_weighted_sum_is_what_is_minimised(tmp_path):
    run = make_run(tmp_path)
    start = run.net.weight.detach().clone()
    for batch in run.batches(torch.ones(8, 2)):
        run.update({'up': run.net.weight.sum(), 'down': -run.net.weight.sum()}, {'up': 3., 'down': 1., 'absent': 5.})
        break
    torch.testing.assert_close(run.net.weight.detach(), start - 0.1 * (3. - 1.))
    row, = read_loss_log(tmp_path / 'run.losses.jsonl')
    assert row['loss'] == pytest.approx(3 * row['up'] + row['down'])


def test_a_checkpoint_is_written_every_so_often_and_after_each_epoch(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    saved = []
    monkeypatch.setattr(run, 'save', lambda: saved.append(run.step))
    for batch in run.batches(torch.randn(8, 2)):
        run.update({'a': run.net(batch).square().mean()}, {'a': 1.})
    assert saved == [3, 4, 6, 8]


@pytest.mark.parametrize('sent', [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_signals_are_noted_and_handed_back_after_training(tmp_path, sent):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run = make_run(tmp_path)
    with pytest.raises(SystemExit) as end:
        for batch in run.batches(torch.randn(8, 2)):
            run.update({'a': run.net(batch).square().mean()}, {'a': 1.})
            for number in sent:
                os.kill(os.getpid(), number)
    assert end.value.code == 128 + sent[0] and run.step == 1 and (tmp_path / 'run.ckpt').exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_steps_logged_after_the_checkpoint_are_dropped_on_resuming(tmp_path):
    run, log = make_run(tmp_path), tmp_path / 'run.losses.jsonl'
    for batch in run.batches(torch.randn(8, 2)):
        run.update({'a': run.net(batch).square().mean()}, {'a': 1.})
        if run.step == 4:
            break  # as a kill would, after the checkpoint of step 3
    rows = read_loss_log(log)
    assert [row['step'] for row in rows] == [0, 1, 2, 3]
    with open(log, 'a') as file:
        file.write('{"step": 4, "lo')  # cut short
    assert make_run(tmp_path, resume=True).step == 3
    assert read_loss_log(log) == rows[:3]

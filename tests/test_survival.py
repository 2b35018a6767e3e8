"""kill -9 at any moment: the same command, of a training with --resume, makes the files of a run that nobody stopped,
byte for byte, and leaves nothing temporary."""
import functools
import os
import random
import signal
import socket
import time
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from helpers import (
    Forked,
    assert_nothing_left,
    children,
    run_main,
    start,
    torchrun,
    tree_bytes,
    wait_for_steps,
    wait_until,
)
from test_infer import tiny_arguments
from test_segmentation import TRAIN, make_data
from test_segmentation import train_argv as deeplab_argv
from test_step2 import infer_argv, make_chain, prepare_argv, train_argv
from test_training import arguments_of

from engine import ranks
from engine.checkpoint import read_checkpoint
from engine.loss_log import read_loss_log
from engine.training import Run

AFFINITY, CONTRAST, PREPARE, SEEDS, WALK = 'aff_train', 'contrast_train', 'aff_prepare', 'contrast_infer', 'aff_infer'
LAST = {SEEDS: 'crf/*.png', PREPARE: '24.00/*.npy', WALK: 'rw/*.png'}  # what inference writes last of an image


class InStartUp(NamedTuple):
    """A moment while the script starts."""


class After(NamedTuple):
    """A moment soon after so many steps of a training, or images."""
    count: int


class Writing(NamedTuple):
    """The moment when half of the count-th file of this suffix is written."""
    suffix: str
    count: int = 1


MOMENTS = {
    CONTRAST: [InStartUp(), Writing('.ckpt'), After(7), Writing('.ckpt', 2), Writing('.maps.png'), Writing('.pth')],
    AFFINITY: [Writing('.json'), After(5), Writing('.affinity.png')],
    TRAIN: [InStartUp(), After(4), Writing('.ckpt', 2)],
    SEEDS: [Writing('run.json', 2), After(3), Writing('.npy', 2)],
    PREPARE: [After(2), Writing('.npy', 5)],
    WALK: [After(2), Writing('.png', 2)]}


@pytest.fixture(scope='module')
def inputs(toy, tmp_path_factory):
    """What the scripts read: the toy set, Step 2's chain, Step 3's data."""
    return SimpleNamespace(toy=toy, chain=make_chain(toy, tmp_path_factory.mktemp('chain')),
                           deeplab=make_data(tmp_path_factory.mktemp('deeplab')))


def argv(inputs, name, folder, *flags):
    """The arguments of a script that fills `folder`."""
    toy, chain, session = inputs.toy, inputs.chain, folder / 'run'
    return [*{
        CONTRAST: arguments_of(toy, folder, '--max_epoches', 3, '--save_every', 4),
        AFFINITY: [*train_argv(toy, chain, session), '--max_epoches', 4, '--save_every', 2, '--log_every', 1],
        TRAIN: deeplab_argv(inputs.deeplab, session, TRAIN_ITERATION=16),
        SEEDS: tiny_arguments(toy, folder),
        PREPARE: [*prepare_argv(toy, chain), '--out_crf', folder],
        WALK: [*infer_argv(toy, chain), '--crf', '--out_rw', folder / 'rw', '--out_rw_npy', folder / 'npy'],
    }[name], *(() if name in LAST else ('--tblog_dir', '')), *flags]


def results(name, folder):
    """{path: bytes} of all files; b'' for those of a training that hold the flags of the last command."""
    return {path: b'' if name not in LAST and path.suffix in ('.ckpt', '.json') else content
            for path, content in tree_bytes(folder).items()}


def finished(name, folder):
    """{path: when it was written} of the files that an inference step writes last of an image."""
    return {path: path.stat().st_mtime_ns for path in folder.glob(LAST[name]) if not path.name.startswith('.')}


def wait_for(process, name, folder, moment, chance):
    """Return at a moment, InStartUp or After, of a running process. chance: the random.Random that it is drawn by."""
    if isinstance(moment, InStartUp):
        time.sleep(chance.uniform(0, 2))
        return
    if name in LAST:
        wait_until(process, lambda: len(finished(name, folder)) >= moment.count)
    else:
        wait_for_steps(process, folder / 'run.losses.jsonl', moment.count)
    time.sleep(chance.uniform(0, 0.05))  # a step takes as long


# ---------------------------------------------------------------- one process

def die_half_written(suffix, count):
    """From now on: where the count-th file of a suffix is half written, this process is killed."""
    rename, left = os.replace, count

    def replace(temporary, path):
        nonlocal left
        left -= str(path).endswith(suffix)
        if not left:
            os.truncate(temporary, os.path.getsize(temporary) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(temporary, path)
    os.replace = replace


def run_killed(name, arguments, folder, moment, chance):
    """Run a script and kill it at a moment. Other arguments as in wait_for."""
    said, workers = folder.with_name('said'), []
    if isinstance(moment, Writing):
        process = Forked(name, arguments, said, functools.partial(die_half_written, *moment))
    else:  # beside a worker process, which loads images or runs CRFs
        begin = start if isinstance(moment, InStartUp) else functools.partial(Forked, said=said)
        process = begin(name, [*arguments, '--num_workers', 1])
        wait_for(process, name, folder, moment, chance)
        workers = children(process.pid) if name in LAST else []
        process.kill()
    said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    assert_nothing_left(workers)


@pytest.mark.long
@pytest.mark.parametrize('name', MOMENTS)
def test_killed_again_and_again_it_makes_what_an_uninterrupted_run_makes(inputs, tmp_path, name):
    run_main(name, *argv(inputs, name, tmp_path / 'whole'))
    whole, folder, chance = results(name, tmp_path / 'whole'), tmp_path / 'killed', random.Random(name)
    arguments = argv(inputs, name, folder, *(() if name in LAST else ('--resume',)))
    for moment in MOMENTS[name]:
        run_killed(name, arguments, folder, moment, chance)
        assert not whole.keys() <= results(name, folder).keys(), moment
    before = finished(name, folder) if name in LAST else {}
    run_main(name, *arguments)
    assert results(name, folder) == whole
    assert before.items() <= (finished(name, folder) if name in LAST else {}).items()  # what is done is left alone


# ---------------------------------------------------------------- two processes

def start_two(name, arguments, said, prepare=None):
    """Start a script in two processes, without a launcher. said: the files <said>.0 and .1. prepare: as in Forked."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    common = {'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': port}
    return [Forked(name, arguments, said.with_suffix(f'.{rank}'), prepare, RANK=rank, LOCAL_RANK=rank, **common)
            for rank in '01']


def run_in_two(name, arguments, said):
    """Run a script in two processes to its end."""
    for process in start_two(name, arguments, said):
        words = process.communicate(timeout=300)
        assert process.returncode == 0, words


def ranks_of(launcher):
    """{rank: process id} of the processes that torchrun started."""
    found = {}
    for pid in children(launcher.pid):
        with open(f'/proc/{pid}/environ') as file:
            variables = dict(text.partition('=')[::2] for text in file.read().split('\0'))
        if 'RANK' in variables:
            found[int(variables['RANK'])] = pid
    return found


def kill_both(name, arguments, folder, moment, chance):
    """Run a script in two processes and kill both at a moment."""
    processes = start_two(name, arguments, folder.with_name('said'))
    wait_for(processes[0], name, folder, moment, chance)
    for process in processes:
        process.kill()
    for process in processes:
        said = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, said


def kill_one(rank, name, arguments, folder, moment, chance):
    """Run a script by torchrun and kill one process at a moment: torchrun ends the other, without a traceback."""
    launcher = torchrun(name, arguments)
    wait_for(launcher, name, folder, moment, chance)
    ranks = ranks_of(launcher)
    os.kill(ranks[rank], signal.SIGKILL)
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 1 and f'{name}.py", line' not in said, said
    assert_nothing_left(ranks.values())


@pytest.mark.long
@pytest.mark.parametrize('name, rank', [(CONTRAST, 1), (AFFINITY, 0)])
def test_one_of_two_processes_killed_and_then_both_make_what_uninterrupted_ones_make(inputs, tmp_path, name, rank):
    flags, said, chance = ('--resume', '--save_every', 3), tmp_path / 'said', random.Random(name)
    whole, folder = tmp_path / 'whole', tmp_path / 'killed'
    run_in_two(name, argv(inputs, name, whole, *flags), said)
    arguments = argv(inputs, name, folder, *flags)
    for kill, steps in ((functools.partial(kill_one, rank), 4), (kill_both, 8)):
        kill(name, arguments, folder, After(steps), chance)
        assert not (folder / 'run.pth').exists()
    run_in_two(name, arguments, said)
    assert results(name, folder) == results(name, whole)


# ---------------------------------------------------------------- a loss that is not finite on one of two processes

def spoil_a_loss(value):
    """From now on: in the second of two processes one term of step 5 has this value. No process waits with its word."""
    update = Run.update

    def with_spoilt_term(run, terms, weights):
        if run.step == 5 and ranks.rank() == 1:
            terms = terms | {'er': terms['er'] * value}
        update(run, terms, weights)
    Run.update, ranks.PATIENCE = with_spoilt_term, 0


@pytest.mark.long
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_not_finite_in_one_process_stops_both_at_its_step(inputs, tmp_path, value):
    """The words of the second are not heard under a launcher, which ends it as soon as the first has ended."""
    flags = '--save_every', 2, '--log_every', 4
    processes = start_two(CONTRAST, argv(inputs, CONTRAST, tmp_path, *flags), tmp_path / 'said',
                          functools.partial(spoil_a_loss, value))
    for process in processes:
        said = process.communicate(timeout=300)
        assert process.returncode == 2, said
        assert [line for line in said.splitlines() if line.startswith('error: ')] == [
            f'error: loss: not finite at step 5: er = {value}; lower the learning rate, and add --resume to go on from '
            f'step 4, whose numbers were finite ({tmp_path}/run.ckpt); where that fails too, --overwrite to start anew']
    state = read_checkpoint(tmp_path / 'run.ckpt')
    assert state['step'] == 4 and all(value.isfinite().all() for value in state['model'].values())
    assert [row['step'] for row in read_loss_log(tmp_path / 'run.losses.jsonl')] == [0, 1, 2, 3, 4]
    run_main(CONTRAST, *argv(inputs, CONTRAST, tmp_path, *flags, '--resume', '--lr', 0.01))
    assert (tmp_path / 'run.pth').exists()

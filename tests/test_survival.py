"""kill -9 at any moment: the same command, of a training with --resume, makes the files of a run that nobody stopped,
byte for byte, and leaves nothing temporary."""
import os
import random
import signal
import time
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from helpers import (
    assert_nothing_left, children, run_main, start, torchrun, tree_bytes, wait_for_steps, wait_until)
from test_infer import tiny_arguments
from test_segmentation import TRAIN, make_data
from test_segmentation import train_argv as deeplab_argv
from test_step2 import infer_argv, make_chain, prepare_argv, train_argv
from test_training import arguments_of

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
        CONTRAST: arguments_of(toy, folder, '--max_epoches', 3),
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

# Runs a script until the count-th file of a suffix is half written, and kills it there.
HALF_WRITTEN = """
import os, runpy, signal, sys
suffix, left, rename = sys.argv[1], int(sys.argv[2]), os.replace
def replace(temporary, path):
    global left
    left -= str(path).endswith(suffix)
    if not left:
        os.truncate(temporary, os.path.getsize(temporary) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    rename(temporary, path)
os.replace = replace
del sys.argv[:3]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run_killed(name, arguments, folder, moment, chance):
    """Run a script and kill it at a moment. Other arguments as in wait_for."""
    if isinstance(moment, Writing):
        process = start(name, arguments, before=('-c', HALF_WRITTEN, *moment))
    else:  # beside a worker process, which loads images or runs CRFs
        process = start(name, [*arguments, '--num_workers', 1])
        wait_for(process, name, folder, moment, chance)
        process.kill()
    said = process.communicate(timeout=120)  # a worker process, which holds the same pipes, ends with it
    assert process.returncode == -signal.SIGKILL, said


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

def ranks_of(launcher):
    """{rank: process id} of the processes that torchrun started."""
    found = {}
    for pid in children(launcher.pid):
        with open(f'/proc/{pid}/environ') as file:
            variables = dict(text.partition('=')[::2] for text in file.read().split('\0'))
        found[variables.get('RANK')] = pid
    return {int(rank): pid for rank, pid in found.items() if rank}


@pytest.mark.long
@pytest.mark.parametrize('name, victim', [(CONTRAST, 1), (AFFINITY, 0)])
def test_one_of_two_processes_killed_and_then_both_make_what_uninterrupted_ones_make(inputs, tmp_path, name, victim):
    run = torchrun(name, argv(inputs, name, tmp_path / 'whole'))
    said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    folder, chance = tmp_path / 'killed', random.Random(name)
    arguments = argv(inputs, name, folder, '--resume')
    for moment, victims in ((After(3), [victim]), (After(7), [0, 1])):
        run = torchrun(name, arguments)
        wait_for(run, name, folder, moment, chance)
        ranks = ranks_of(run)
        if len(victims) > 1:
            run.kill()
        for rank in victims:
            os.kill(ranks[rank], signal.SIGKILL)
        said = run.communicate(timeout=120)
        assert run.returncode == (1 if len(victims) == 1 else -signal.SIGKILL), said
        assert_nothing_left(ranks.values())
        assert not (folder / 'run.pth').exists()
    run = torchrun(name, arguments)
    said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert results(name, folder) == results(name, tmp_path / 'whole')

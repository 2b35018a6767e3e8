"""What surrounds every script's main: any terminal, any notebook, and an end that leaves no process. No torch here."""
import ctypes
import multiprocessing
import os
import re
import select
import signal
import sys
import traceback

from engine.errors import UserError

PATIENCE = 5  # seconds until a killed worker must be gone
IN_CHAIN = 'WSEG_IN_CHAIN'  # variable that a chain of steps sets for each
STARTED_BY = {IN_CHAIN, 'TORCHELASTIC_RUN_ID'}  # the latter is torchrun's
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


# ---------------------------------------------------------------- before main

def prepare():
    """Make this process independent of its terminal and of the notebook that started it.

    A character that the terminal's encoding lacks is printed as an escape. Figures go to files only, so MPLBACKEND,
    which Jupyter and Colab set to a module that need not be installed here, becomes Agg before matplotlib is imported.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    os.environ['MPLBACKEND'] = 'Agg'
    end_with_parent()


def end_with_parent():
    """Let a SIGTERM come when torchrun or a chain of steps, which started this process, is ended by kill -9.

    They cannot pass that on. This process would go on unseen, and write the files that the next start writes too. A
    training saves its checkpoint first. Linux only.
    """
    if sys.platform == 'linux' and STARTED_BY & os.environ.keys():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# ---------------------------------------------------------------- after main

def reader_is_gone():
    """Whether standard output or error is a pipe whose reader has ended, as after `| head`."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # errors are reported whatever is asked for
    return any(events & select.POLLERR for _, events in poll.poll(0))


def discard_output():
    """Send what is still printed nowhere: the interpreter flushes both streams when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)


def end_workers():
    """End the worker processes that are left, after an exception.

    They ignore SIGTERM (engine/loading.py), with which Python would end them, and wait for them, for ever.
    """
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(PATIENCE)


# ---------------------------------------------------------------- want of resources

# (pattern of an exception's type and text, what is short, what is wrong, what to do): the first that matches counts.
WANTS = [(re.compile(pattern, re.DOTALL), *words) for pattern, *words in (
    (r'shared memory\(shm\)|out of shared memory|unable to \w+.*[</]torch_\d|space left.*multiprocessing.synchronize',
     'shared memory', '/dev/shm has no room for the batches of the worker processes',
     'raise it (Docker: --shm-size 8g), or use fewer --num_workers; 0 needs none'),
    # The last is how a batch fails to come that a killed worker had announced already.
    (r'^BrokenProcessPool|DataLoader worker \(pid.*(killed by signal|exited unexpectedly)|Pin memory thread exited'
     r'|^(Connection\w*|EOF|FileNotFound)Error.*multiprocessing.(connection|reduction|resource_sharer)',
     'worker process', 'was ended from outside, most likely because memory ran out',
     'use fewer --num_workers; the same command goes on where it stopped (a training with --resume)'),
    (r'gloo/transport/', 'another process', 'of this run has ended',
     'see what it said; the same command goes on where it stopped (a training with --resume)'),
    (r'^OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|ALLOC_FAILED', 'GPU memory', 'is used up',
     'add --amp bf16; in training, a smaller --batch_size or --crop_size needs less too, and changes the result'),
    (r'Too many open files|received 0 items of ancdata', 'open files', 'are too many for the limit of this shell',
     'raise it (ulimit -n 8192), or use fewer --num_workers'),
    (r'No space left on device|Disk quota exceeded|File too large|inline_container.cc', 'disk', 'is full',
     'free space, or choose another folder'),
    (r"^_?\w*MemoryError|Caught \w*MemoryError|an't allocate memory|annot allocate memory|Insufficient memory",
     'memory', 'is used up', 'use fewer --num_workers, or end other programs'),
)]


def want_of_resources(error):
    """The UserError that says which resource ran out and what to do; None where the exception is another's."""
    # Where it was raised tells a semaphore that finds no room in /dev/shm from a file that finds none on the disk.
    where = [frame.filename for frame in traceback.extract_tb(error.__traceback__)[-2:]]
    text = f'{type(error).__name__}: {error} {where}'
    for pattern, what, wrong, do in WANTS:
        if pattern.search(text):
            return UserError(getattr(error, 'filename', None) or what, wrong, do)
    return None


def drop(error):
    """Free what an exception keeps alive, without a word about what cannot be taken apart: a half-made loader."""
    before, sys.unraisablehook = sys.unraisablehook, lambda *_: None
    traceback.clear_frames(error.__traceback__)
    sys.unraisablehook = before

"""Which of how many processes this is, as a launcher such as torchrun or --shard tells it. No torch here."""
import contextlib
import os
import time
from dataclasses import dataclass

from engine.errors import UserError

PATIENCE = 15  # seconds that a process leaves the word to the first one


def rank():
    """Index of this process, 0-based."""
    return _number('RANK', 0)


def world_size():
    """Number of processes that work together, on all machines."""
    return _number('WORLD_SIZE', 1)


def local_rank():
    """Index of this process on its machine: that of its GPU."""
    return _number('LOCAL_RANK', 0)


def local_world_size():
    """Number of processes on this machine."""
    return _number('LOCAL_WORLD_SIZE', 1)


def is_main():
    """Whether this process writes logs, pictures and checkpoints."""
    return rank() == 0


def _number(name, default):
    text = os.environ.get(name, '')
    return int(text) if text.isdigit() and world_is_real() else default


def world_is_real():
    """Whether a launcher started this process beside others: WORLD_SIZE is above 1."""
    number = os.environ.get('WORLD_SIZE', '')
    return number.isdigit() and int(number) > 1


@dataclass(frozen=True)
class Shard:
    """A process's share of a list of images: every `number`-th from the `index`-th on, 0-based.

    As text it begins the lines of the process: '' where it is the whole list.
    """
    index: int = 0
    number: int = 1

    def of(self, ids):
        """The share of a list."""
        return ids[self.index::self.number]

    def __str__(self):
        return f'shard {self.index}/{self.number}: ' if self.number > 1 else ''


def own_shard(given):
    """The Shard of this process. given: that of --shard, or None: the launcher's rank then tells it.

    UserError: --shard under a launcher.
    """
    if given is None:
        return Shard(rank(), world_size())
    if world_is_real():
        raise UserError('--shard', f'is given to {world_size()} processes of torchrun, which share the list anyway',
                        'leave it out, or start the script with python')
    return given


def refuse_several_processes():
    """UserError where a launcher started this process beside others, and the script's work is that of one."""
    if world_is_real():
        raise UserError('torchrun', f'started {world_size()} processes, and this script is one process',
                        'start it with python (if no launcher set WORLD_SIZE, unset it)')


@contextlib.contextmanager
def one_voice():
    """Only the first process prints: what the others would say is the same."""
    if is_main():
        yield
        return
    with open(os.devnull, 'w', encoding='utf-8') as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def let_the_first_speak():
    """Wait before an error line. An error of all processes is then told by the first alone: the launcher ends the
    others as soon as one has ended. One of this process alone is told after PATIENCE seconds.
    """
    if not is_main():
        time.sleep(PATIENCE)

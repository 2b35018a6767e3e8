"""The one place that knows which of how many processes this is. One process today."""
import os

from engine.errors import UserError


def rank():
    """Index of this process, 0-based."""
    return 0


def world_size():
    """Number of processes that train together."""
    return 1


def is_main():
    """Whether this process writes logs, pictures and checkpoints."""
    return rank() == 0


def refuse_several_processes():
    """UserError where a launcher such as torchrun started this process beside others: all would write one run's files.
    """
    number = os.environ.get('WORLD_SIZE', '')
    if number.isdigit() and int(number) > 1:
        raise UserError('torchrun', f'started {number} processes, and a run is one process on one device',
                        'start it with python (if no launcher set WORLD_SIZE, unset it)')

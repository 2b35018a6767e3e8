"""The one place that knows which of how many processes this is. One process today."""


def rank():
    """Index of this process, 0-based."""
    return 0


def world_size():
    """Number of processes that train together."""
    return 1


def is_main():
    """Whether this process writes logs, pictures and checkpoints."""
    return rank() == 0

"""The parts in which a total batch is worked on: an equal share for each process, in --accumulate micro-batches."""
from engine.device import random_state, set_random_state
from engine.errors import UserError
from engine.ranks import rank, world_size
from network.dropout import set_part
from tool.part import Part


class Parts:
    """This process's parts of every batch of a run, one after the other.

    batch_size: of the total batch. micro: micro-batches of each process. UserError where the batch does not divide.
    Random numbers: every part starts from the generators' state that the step starts from, and leaves them as the total
    batch in one piece would; `end_with` states that where a part draws less.
    """

    def __init__(self, net, batch_size, micro, device):
        self.net, self.micro, self.device = net, micro, device
        self.count = world_size() * micro
        if batch_size % self.count:
            raise UserError('total batch', f'{batch_size} images cannot be dealt evenly to {world_size()} processes '
                            f'with {micro} micro-batches each', f'choose a multiple of {self.count}')
        self.index, self.end = 0, None
        set_part(net, self.part)

    @property
    def part(self):
        """The Part of the total batch in hand."""
        return Part(rank() * self.micro + self.index, self.count)

    def of(self, batch):
        """Yield the parts of this process's share of a batch: dicts of the rows of its entries."""
        self.index, start = 0, random_state(self.device)
        for index in range(self.micro):
            if index:
                set_random_state(start, self.device)
            self.index = index
            set_part(self.net, self.part)
            yield batch if self.micro == 1 else rows_of(batch, Part(index, self.micro))

    def end_with(self, state):
        """The generators' state after the step in hand, where its parts do not lead to it."""
        self.end = state

    def finish_step(self):
        """Leave the generators as the total batch in one piece would."""
        if self.end is not None:
            set_random_state(self.end, self.device)
        self.end = None

    @property
    def is_first(self):
        return self.index == 0

    @property
    def is_last(self):
        return self.index == self.micro - 1


def rows_of(value, part):
    """A part of a batch: of a dict or a tuple, named or not, of all its entries."""
    if isinstance(value, dict):
        return {key: rows_of(entry, part) for key, entry in value.items()}
    if hasattr(value, '_fields'):
        return type(value)(*(rows_of(entry, part) for entry in value))
    if isinstance(value, tuple):
        return tuple(rows_of(entry, part) for entry in value)
    return part.of(value)

"""Parts of a total batch: what processes, or the micro-batches of one process, work on. METHOD 3.7."""
from typing import NamedTuple


class Part(NamedTuple):
    """Part `index` (0-based) of `count` equal parts of a total batch, in its order."""
    index: int
    count: int

    def of(self, rows):
        """This part of a tensor, or another sequence, with one entry or more for each image of the total batch."""
        length = len(rows) // self.count
        return rows[self.index * length:(self.index + 1) * length]


WHOLE = Part(0, 1)

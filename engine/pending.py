"""Loss values that wait on the device until they are read, many steps at a time: a reading waits for the device."""
import torch

from engine import distributed


class PendingLosses:
    """The losses of the steps since the last reading, as 0-dim tensors."""

    def __init__(self):
        self.steps = []

    def add(self, step, total, terms, parts=1):
        """Note the weighted sum and the named terms {name: tensor} of a step, or of one of its `parts` equal parts."""
        values = {name: value.detach() / parts for name, value in {'loss': total, **terms}.items()}
        if self.steps and self.steps[-1][0] == step:
            values = {name: self.steps[-1][1][name] + value for name, value in values.items()}
            self.steps.pop()
        self.steps.append((step, values))

    def fetch(self):
        """Take all out, in one transfer: [(step, {'loss' or term: number})], the means over all processes."""
        if not self.steps:
            return []
        names = list(self.steps[-1][1])
        table = torch.stack([torch.stack([values[name].float() for name in names]) for _, values in self.steps])
        table = distributed.mean(table).double().tolist()
        rows = [(step, dict(zip(names, row))) for (step, _), row in zip(self.steps, table)]
        self.steps = []
        return rows

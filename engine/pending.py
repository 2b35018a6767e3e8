"""Loss values that wait on the device until they are read, many steps at a time: a reading waits for the device."""
import torch


class PendingLosses:
    """The losses of the steps since the last reading, as 0-dim tensors."""

    def __init__(self):
        self.steps = []

    def add(self, step, total, terms):
        """Note the weighted sum and the named terms {name: tensor} of a step."""
        self.steps.append((step, {'loss': total.detach(), **{k: v.detach() for k, v in terms.items()}}))

    def fetch(self):
        """Take all out, in one transfer: [(step, {'loss' or term: number})]."""
        if not self.steps:
            return []
        names = list(self.steps[-1][1])
        table = torch.stack([torch.stack([values[name].float() for name in names]) for _, values in self.steps])
        rows = [(step, dict(zip(names, row))) for (step, _), row in zip(self.steps, table.double().tolist())]
        self.steps = []
        return rows

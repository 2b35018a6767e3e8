"""Dropout that a part of a batch draws as the whole batch would: torch's otherwise."""
from torch import nn

from tool.part import WHOLE


class OfPart:
    """Mix-in for a dropout. part: the tool.part.Part of the total batch that the next inputs are.

    Random numbers are drawn for the total batch, and the part takes its own: processes with generators of one state
    drop together what one process drops. Whatever the number of parts, the generator moves on as for one.
    """

    part = WHOLE

    def forward(self, x):
        if self.part == WHOLE or not self.training:
            return super().forward(x)
        kept = self.part.of(super().forward(x.new_ones(len(x) * self.part.count, *self.drawn_for(x))))
        return x * kept


class Dropout2d(OfPart, nn.Dropout2d):
    """Drops whole channels of an image."""

    def drawn_for(self, x):
        return x.shape[1], 1, 1


class Dropout(OfPart, nn.Dropout):
    """Drops single values."""

    def drawn_for(self, x):
        return x.shape[1:]


def set_part(net, part):
    """Tell every dropout of a network which Part of the total batch comes next."""
    for module in net.modules():
        if isinstance(module, OfPart):
            module.part = part

"""SIGTERM and Ctrl-C while training: noted, and answered after the step, so that nothing is lost."""
import contextlib
import signal

from engine import distributed
from engine.ranks import world_size


class StopSignal:
    """The signal that asked the run to stop, `number`; None while there is none."""

    def __init__(self):
        self.number = None

    @property
    def name(self):
        """The signal's name, as 'SIGTERM'."""
        return signal.Signals(self.number).name

    @contextlib.contextmanager
    def noted(self):
        """Note signals inside; afterwards they do what they did before."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, reading, device):
        """The signal that all processes answer now, or None. Every process asks after every step.

        One process answers at once. Several agree where losses are read (`reading`), so that they stop at the same
        step: a launcher's signal may reach one of them a step before another.
        """
        if world_size() > 1:
            if not reading:
                return None
            self.number = distributed.any_of(self.number, device)
        return self.number

    def _note(self, number, _):
        # `timeout` signals process and group, so SIGTERM can arrive twice; only a second Ctrl-C means "stop now".
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

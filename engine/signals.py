"""SIGTERM and Ctrl-C while training: noted, and answered after the step, so that nothing is lost."""
import contextlib
import signal


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

    def _note(self, number, _):
        # `timeout` signals process and group, so SIGTERM can arrive twice; only a second Ctrl-C means "stop now".
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

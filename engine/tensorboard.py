"""TensorBoard, which a run can do without: what goes wrong with it is a warning."""
import contextlib
import sys

try:
    from torch.utils.tensorboard import SummaryWriter
except Exception as error:  # its packages raise many types: with protobuf of another version a TypeError
    SummaryWriter, IMPORT_ERROR = None, error


class TensorBoard:
    """The part of SummaryWriter that a run uses. Without a folder, or after a failure, its calls do nothing.

    folder: of the event files, or None. step: events of later steps that are in it are dropped; they are made again.
    """

    def __init__(self, folder, step):
        self.writer = None
        if folder is not None:
            with self._failure_as_warning():
                if SummaryWriter is None:
                    raise IMPORT_ERROR
                self.writer = SummaryWriter(folder, purge_step=step)

    def add_scalar(self, name, value, step):
        self._call('add_scalar', name, value, step)

    def add_text(self, name, text, step):
        self._call('add_text', name, text, step)

    def add_figure(self, name, figure, step):
        self._call('add_figure', name, figure, step)

    def close(self):
        self._call('close')

    def _call(self, method, *args):
        with self._failure_as_warning():
            if self.writer is not None:
                getattr(self.writer, method)(*args)

    @contextlib.contextmanager
    def _failure_as_warning(self):
        try:
            yield
        except Exception as error:
            self.writer = None
            print(f'warning: TensorBoard does not work ({type(error).__name__}: {error}), the run goes on without it; '
                  "pip install -U tensorboard, or --tblog_dir '' to do without", file=sys.stderr)

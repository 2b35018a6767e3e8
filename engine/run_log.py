"""What a training run writes about itself: <session>.json, the loss log, pictures, and TensorBoard's copy of them."""
import json
import sys
from pathlib import Path

from engine import files, runinfo
from engine.loss_log import LossLog
from engine.pending import PendingLosses
from engine.ranks import is_main
from engine.tensorboard import TensorBoard


class RunLog:
    """The logs of a run that goes on from `step`. Of several processes the first alone writes.

    path: function from a suffix to the file <session><suffix>. info: runinfo.describe of the run, written at once.
    tblog: TensorBoard's folder, or a false value for none.
    """

    def __init__(self, path, step, info, tblog):
        self.path, self.bar = path, None
        if is_main():
            files.save_json(path('.json'), info)
        self.writer = TensorBoard(tblog or None, step)
        self.writer.add_text('run', '```\n' + json.dumps(info, indent=2, default=str) + '\n```', step)
        print(runinfo.line(info))
        self.losses = LossLog(path('.losses.jsonl') if is_main() else None, step, self.writer)
        self.pending = PendingLosses()

    def read_losses(self, step, rate, advice):
        """Log the losses of the last steps. rate: learning rate of now. UserError, with `advice`: one is not finite."""
        rows = self.pending.fetch()
        self.losses.write(rows, advice)
        if rows:
            self.writer.add_scalar('train/lr', rate, step)
            self.bar.set_postfix({name: f'{value:.3g}' for name, value in rows[-1][1].items()}, refresh=False)

    def scalars(self, values, step, max_step):
        """Log {name: number}, to TensorBoard and as a line of text."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.bar.write(f'step {step} of {max_step}: '
                       + ', '.join(f'{name} {value:.4g}' for name, value in values.items()), file=sys.stdout)

    def figure(self, name, figure, step):
        """Put a matplotlib figure into TensorBoard and into <session>.<name>.png."""
        with files.atomic(self.path(f'.{name}.png')) as temporary:
            figure.savefig(temporary, dpi=100, bbox_inches='tight')
        self.writer.add_figure(name, figure, step)  # closes it

    def warn(self, text):
        """A warning line that leaves the progress bar whole."""
        self.bar.write(f'warning: {text}', file=sys.stderr)

    def close(self):
        self.writer.close()


def tensorboard_folder(tblog_dir, session):
    """TensorBoard's folder of a session, made; '' where the flag --tblog_dir is empty, or another process writes."""
    return is_main() and tblog_dir and files.out_dir(Path(tblog_dir) / session.name, '--tblog_dir')

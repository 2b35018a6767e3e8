"""The loss log `<session>.losses.jsonl`, a line per step {'step', 'loss', <term>: value}, and its TensorBoard copy.

No torch here: the report reads these logs.
"""
import contextlib
import json
import os
from pathlib import Path

from engine.errors import UserError
from engine.files import save_text, writing


def read_loss_log(path):
    """The rows of a loss log, a list of what loss_rows yields."""
    return list(loss_rows(path))


def loss_rows(path):
    """Yield the rows of a loss log: {'step': int, 'loss': float, <term>: float, …}; nothing where there is no file.

    A last line cut short by a kill is dropped: its step is made again.
    """
    if not Path(path).exists():
        return
    with open(path, encoding='utf-8', errors='replace') as log:
        for text in log:
            row = None
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(text)
            if isinstance(row, dict) and 'step' in row:
                yield row


class LossLog:
    """Writes the loss log and its TensorBoard copy.

    path: the log; steps from `step` on are dropped from it, for they are made again. None: values are checked, and
    nothing is written. writer: TensorBoard's.
    """

    def __init__(self, path, step, writer):
        self.path, self.writer = path or os.devnull, writer
        if path:
            save_text(path, ''.join(json.dumps(row) + '\n' for row in loss_rows(path) if row['step'] < step))

    def write(self, rows, advice):
        """Append rows [(step, {'loss' or term: value})].

        UserError, with `advice`, where a value is not finite; rows before it are logged. UserError as in files.writing.
        """
        with writing(self.path), open(self.path, 'a', encoding='utf-8') as log:
            for step, values in rows:
                check_finite(step, values, advice)
                log.write(json.dumps({'step': step, **values}) + '\n')
                for name, value in values.items():
                    self.writer.add_scalar(f'train/{name}', value, step)


def check_finite(step, values, advice):
    """UserError naming the terms of a step that are not finite."""
    bad = {name: value for name, value in values.items() if value != value or abs(value) == float('inf')}
    if bad:
        terms = ', '.join(f'{name} = {value}' for name, value in bad.items() if name != 'loss') or 'their sum'
        raise UserError('loss', f'not finite at step {step}: {terms}', advice)

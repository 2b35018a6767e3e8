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
    """The rows of a loss log: [{'step': int, 'loss': float, <term>: float, …}]. [] where there is none.

    A last line cut short by a kill is dropped: its step is made again.
    """
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for text in Path(path).read_text(encoding='utf-8', errors='replace').splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(text))
    return [row for row in rows if isinstance(row, dict) and 'step' in row]


class LossLog:
    """Writes the loss log and its TensorBoard copy.

    path: the log; steps from `step` on are dropped from it, for they are made again. None: values are checked, and
    nothing is written. writer: TensorBoard's.
    """

    def __init__(self, path, step, writer):
        self.path, self.writer = path or os.devnull, writer
        if path:
            save_text(path, ''.join(json.dumps(row) + '\n' for row in read_loss_log(path) if row['step'] < step))

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

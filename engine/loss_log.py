"""The loss log `<session>.losses.jsonl`, a line per step {'step', 'loss', <term>: value}, and its TensorBoard copy."""
import contextlib
import json
from pathlib import Path

import torch

from engine.errors import UserError
from engine.files import save_text


def read_loss_log(path):
    """The rows of a loss log: [{'step': int, 'loss': float, <term>: float, …}]. [] where there is none.

    A last line cut short by a kill is dropped: its step is made again.
    """
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for text in Path(path).read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(text))
    return rows


class LossLog:
    """Collects loss values on the device and writes them, many steps at a time: a reading waits for the device.

    path: the log; steps from `step` on are dropped from it, for they are made again. writer: TensorBoard's.
    """

    def __init__(self, path, step, writer):
        self.path, self.writer, self.pending = path, writer, []
        save_text(path, ''.join(json.dumps(row) + '\n' for row in read_loss_log(path) if row['step'] < step))

    def add(self, step, total, terms):
        """Note the weighted sum and the named terms of a step: 0-dim tensors, not read yet."""
        self.pending.append((step, {'loss': total.detach(), **{k: v.detach() for k, v in terms.items()}}))

    def flush(self, advice):
        """Fetch the pending values in one transfer and log them. Returns the last row, {} where nothing was pending.

        UserError, with `advice`, where a value is not finite; rows before it are logged.
        """
        if not self.pending:
            return {}
        names = list(self.pending[-1][1])
        table = torch.stack([torch.stack([values[name].float() for name in names]) for _, values in self.pending])
        rows = [(step, dict(zip(names, row))) for (step, _), row in zip(self.pending, table.double().tolist())]
        self.pending = []
        with open(self.path, 'a', encoding='utf-8') as log:
            for step, values in rows:
                check_finite(step, values, advice)
                log.write(json.dumps({'step': step, **values}) + '\n')
                for name, value in values.items():
                    self.writer.add_scalar(f'train/{name}', value, step)
        return rows[-1][1]


def check_finite(step, values, advice):
    """UserError naming the terms of a step that are not finite."""
    bad = {name: value for name, value in values.items() if value != value or abs(value) == float('inf')}
    if bad:
        terms = ', '.join(f'{name} = {value}' for name, value in bad.items() if name != 'loss') or 'their sum'
        raise UserError('loss', f'not finite at step {step}: {terms}', advice)

"""The checkpoint `<session>.ckpt`: all that a resumed run needs, and whether the run may be resumed with its settings.

A dict for torch.load(weights_only=True): 'format', 'model', 'optimizer', 'scheduler', 'scaler' (state dicts), 'step',
'epoch', 'random' (states of the generators), 'settings' (JSON of the run's arguments).
"""
import json

import torch

from engine.errors import UserError
from engine.files import atomic

FORMAT = 2  # checkpoints without it were made before 'settings' named the baseline as it is now

# Settings that a resumed run may change: they do not touch what is computed, but for rounding (threads, device).
UNCHECKED = {'resume', 'overwrite', 'num_workers', 'threads', 'device', 'tblog_dir', 'save_every', 'log_every',
             'picture_every', 'session_name', 'weights', 'voc12_root', 'cls_labels', 'saliency_dir',
             'allow_unusual_masks'}


def save_checkpoint(path, state, settings):
    """Write a checkpoint. state: all entries but 'format' and 'settings'. settings: the run's arguments."""
    with atomic(path) as temporary:
        torch.save({'format': FORMAT, **state, 'settings': json.dumps(settings, default=str)}, temporary)


def read_checkpoint(path):
    """The dict in a .ckpt file, 'settings' as a dict. UserError: damaged, no checkpoint, or of an older format."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load raises many exception types on files it did not write
        raise UserError(path, f'cannot be read ({str(error).splitlines()[0]})', 'delete it to start anew') from error
    if not isinstance(state, dict) or not {'model', 'optimizer', 'step', 'settings'} <= set(state):
        raise UserError(path, 'is not a training checkpoint', 'give the <session>.ckpt of a training run')
    if state.get('format') != FORMAT:
        raise UserError(path, 'was made by an older version of this code', 'finish the run with that version, or add '
                                                                           '--overwrite to start anew')
    return state | {'settings': json.loads(state['settings'])}


def check_settings(path, then, now, before):
    """UserError naming what differs between the settings of a checkpoint and those of the run that resumes it.

    then, now: dicts of settings; those in UNCHECKED may differ. before: {setting: the value that code without it had}:
    a setting that the checkpoint lacks counts as that, so that a new flag never ends an old run.
    """
    now = json.loads(json.dumps(now, default=str))
    before = json.loads(json.dumps(before, default=str))
    then = {key: then[key] if key in then else before.get(key) for key in {*then, *now}}
    changed = [f'{key} {then[key]} -> {now.get(key)}' for key in sorted(then)
               if key not in UNCHECKED and then[key] != now.get(key)]
    if changed:
        raise UserError(path, f'was made with other settings ({", ".join(changed)})',
                        'resume with those, or start a session of another name')

"""The checkpoint `<session>.ckpt`: all that a resumed run needs, and whether the run may be resumed with its settings.

A dict for torch.load(weights_only=True): 'format', 'model', 'optimizer', 'scheduler', 'scaler' (state dicts), 'step',
'epoch', 'random' (states of the generators), 'settings' (JSON of the run's arguments).
"""
import errno
import json
import os

import torch

from engine.errors import UserError
from engine.files import atomic

FORMAT = 2  # checkpoints without it were made before 'settings' named the baseline as it is now

# Settings that a resumed run may change: they do not touch what is computed, but for rounding (threads, device). Of
# lists, labels and pseudo masks the content is compared (`inputs` of engine.training.Run), so that files may move.
UNCHECKED = {'resume', 'overwrite', 'num_workers', 'threads', 'device', 'tblog_dir', 'save_every', 'log_every',
             'picture_every', 'session_name', 'weights', 'dataset', 'voc12_root', 'cls_labels', 'saliency_dir',
             'convert_rgb', 'train_list', 'val_list', 'la_crf_dir', 'ha_crf_dir', 'DATA_PSEUDO_GT',
             'MODEL_BACKBONE_PRETRAIN', 'allow_unusual_masks'}

# Settings that a resumed run may change, and then says so: what to change where a loss is not finite.
ADVISED = {'lr', 'TRAIN_LR', 'amp'}


def save_checkpoint(path, state, settings):
    """Write a checkpoint. state: all entries but 'format' and 'settings'. settings: the run's arguments."""
    save_tensors(path, {'format': FORMAT, **state, 'settings': json.dumps(settings, default=str)})


def save_tensors(path, value):
    """torch.save, atomically. UserError where it fails, for example because the disk is full."""
    with atomic(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as error:
            if 'inline_container' not in str(error):  # the file that PyTorch's writer is in
                raise
            # It hides the reason; a full disk is by far the most frequent.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


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
    """What of ADVISED differs between the settings of a checkpoint and those of the run that resumes it, in words.

    then, now: dicts of settings; those in UNCHECKED may differ. before: {setting: the value that code without it had}:
    a setting that the checkpoint lacks counts as that, so that a new flag never ends an old run.
    UserError naming all that differs, where it is more than that.
    """
    now = json.loads(json.dumps(now, default=str))
    before = json.loads(json.dumps(before, default=str))
    then = {key: then[key] if key in then else before.get(key) for key in {*then, *now}}
    changed = {key: f'{key} {then[key]} -> {now.get(key)}' for key in sorted(then)
               if key not in UNCHECKED and then[key] != now.get(key)}
    words = ', '.join(changed.values())
    if not ADVISED.issuperset(changed):
        raise UserError(path, f'was made with other settings ({words})',
                        'resume with those, or start a session of another name')
    return words

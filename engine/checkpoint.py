"""The checkpoint `<session>.ckpt`: all that a resumed run needs, and whether the run may be resumed with its settings.

A dict for torch.load(weights_only=True): 'format', 'model', 'optimizer', 'scheduler', 'scaler' (state dicts), 'step',
'epoch', 'random' (states of the generators), 'settings' (JSON of the run's arguments).
"""
import json

import torch

from engine.device import random_state
from engine.errors import UserError
from engine.files import atomic
from engine.ranks import is_main

FORMAT = 2  # checkpoints without it were made before 'settings' named the baseline as it is now

# Settings that a resumed run may change: they do not touch what is computed, but for rounding (threads, device). Of
# lists, labels and pseudo masks the content is compared (`inputs` of engine.training.Run), so that files may move.
UNCHECKED = {'resume', 'overwrite', 'num_workers', 'threads', 'device', 'tblog_dir', 'save_every', 'log_every',
             'picture_every', 'session_name', 'weights', 'dataset', 'voc12_root', 'cls_labels', 'saliency_dir',
             'convert_rgb', 'train_list', 'val_list', 'la_crf_dir', 'ha_crf_dir', 'DATA_PSEUDO_GT',
             'MODEL_BACKBONE_PRETRAIN', 'allow_unusual_masks', 'accumulate'}

# Settings that a resumed run may change, and then says so: what to change where a loss is not finite.
ADVISED = {'lr', 'TRAIN_LR', 'amp'}


class RunCheckpoint:
    """The checkpoint of one run: what it starts from, and what is written as it goes on.

    held: {'model', 'optimizer', 'scheduler', 'scaler': the object whose state dict is kept}. settings: dict, all that
    the run was told. saved: the step that the file holds; random: the generators' states of the run that is resumed;
    None until there are any.
    """

    def __init__(self, path, held, settings, device):
        self.path, self.held, self.settings, self.device = path, held, settings, device
        self.saved = self.random = None

    def open(self, resume, overwrite, before, max_step):
        """The step to start from, 0 or that of the checkpoint, whose state is loaded. before: as in check_settings.

        UserError: there is a checkpoint, and neither flag; it was made with other settings, or cannot be read.
        """
        if not self.path.exists():
            if resume:
                print(f'nothing to resume: {self.path} does not exist; starting from step 0')
            return 0
        if resume:
            return self._load(before, max_step)
        if not overwrite:
            raise UserError(self.path, 'this session has a checkpoint already', 'add --resume to continue it, '
                            '--overwrite to start anew, or choose another --session_name')
        if is_main():
            self.path.unlink()
        return 0

    def _load(self, before, max_step):
        state = read_checkpoint(self.path)
        changed = check_settings(self.path, state['settings'], self.settings, before)
        check_network(self.path, state['model'], self.held['model'].state_dict())
        rates = [group['initial_lr'] for group in self.held['optimizer'].param_groups]
        for name in ('model', 'optimizer', 'scheduler'):
            self.held[name].load_state_dict(state[name])
        if changed:  # go on with the learning rates of now
            set_rates(self.held['optimizer'], self.held['scheduler'], rates)
        if state['scaler'] and self.held['scaler'].is_enabled():
            self.held['scaler'].load_state_dict(state['scaler'])
        self.saved, self.random = state['step'], state['random']
        print(f'resumed {self.path} at step {self.saved} of {max_step}'
              + (f', with other settings from here on: {changed}' if changed else ''))
        return self.saved

    def save(self, step, epoch):
        """Write the state of now."""
        self.saved = step
        if is_main():
            state = {name: held.state_dict() for name, held in self.held.items()}
            state |= {'step': step, 'epoch': epoch, 'random': random_state(self.device)}
            save_checkpoint(self.path, state, self.settings)


def set_rates(optimizer, scheduler, rates):
    """Set the learning rates that a schedule begins with, per parameter group, and those of the current step."""
    scheduler.base_lrs = rates
    for group, rate, factor in zip(optimizer.param_groups, rates, scheduler.lr_lambdas):
        group['initial_lr'], group['lr'] = rate, rate * factor(scheduler.last_epoch)


def save_checkpoint(path, state, settings):
    """Write a checkpoint. state: all entries but 'format' and 'settings'. settings: the run's arguments."""
    save_tensors(path, {'format': FORMAT, **state, 'settings': json.dumps(settings, default=str)})


def save_tensors(path, value):
    """torch.save, atomically. UserError where it fails, for example because the disk is full.

    The same tensors make the same bytes. Given a path, torch.save would put the file's name into the file: here the
    temporary one, with the names of the machine and the process.
    """
    with atomic(path) as temporary, open(temporary, 'wb') as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # of its writer, which hides the error of the file
            if not isinstance(error.__context__, OSError):
                raise
            raise error.__context__ from error


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


def check_network(path, then, now):
    """UserError where the state dicts of a checkpoint's network and of the run that resumes it differ in form."""
    shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in (then, now)]
    differing = sorted({key for key, _ in shapes[0].items() ^ shapes[1].items()})
    if differing:
        raise UserError(path, f'was made with another network than the code now makes ({len(differing)} tensors '
                              f'differ, such as {differing[0]})',
                        'resume with that code, or add --overwrite to start anew')


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

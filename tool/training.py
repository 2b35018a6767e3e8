"""What the three training scripts share: parameter groups, the poly schedule, and a run that logs, saves and resumes.

A script's loop reads

    run = Run(...)
    for batch in run.batches(dataset):
        terms = ...                       # dict of named 0-dim tensors
        run.update(terms, weights)        # weighted sum, backward, optimiser step, log
    run.finish()
"""
import contextlib
import json
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from tool import distributed, files, loading, runinfo
from tool.cli import UserError
from tool.parallel import progress


PLURAL = {'weight': 'weights', 'bias': 'biases'}


def parameter_groups(net, lr, weight_decay):
    """The published groups of trained convolutions: weights ×1, biases ×2 without decay, new layers ten times both.

    net.from_scratch names the child modules that are new. BatchNorm's affine parameters are never optimised: Steps 1
    and 2 freeze them, Step 3 leaves them as loaded (SPEC sections 1 and 7). Prints the size of each group.
    """
    groups = {(new, kind): [] for new in (False, True) for kind in PLURAL}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            for kind, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    groups[name.split('.')[0] in net.from_scratch, kind].append(parameter)
    print('parameters: ' + ', '.join(f'{sum(p.numel() for p in group):,} in {"new" if new else "pretrained"} {PLURAL[kind]}'
                                     for (new, kind), group in groups.items() if group))
    return [{'params': group, 'lr': lr * (10 if new else 1) * (2 if kind == 'bias' else 1),
             'weight_decay': 0. if kind == 'bias' else weight_decay}
            for (new, kind), group in groups.items() if group]


class Run:
    """One training run: steps counted from 0 to max_step, everything needed to continue written to <session>.ckpt.

    net, optimizer: already on `device`. The learning rates follow lr·(1 − step/max_step)^power.
    steps_per_epoch: len(dataset) // batch_size. settings: the run's arguments (dict), which a resumed run must share.
    Settings named in UNCHECKED may change on resuming. flags: an argparse namespace with the run flags above.
    """

    def __init__(self, session, net, optimizer, *, device, amp, seed, batch_size, steps_per_epoch, max_step, settings,
                 flags, tblog_dir, workers, power=0.9):
        self.session, self.net, self.optimizer, self.device = Path(session), net, optimizer, device
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.steps_per_epoch, self.max_step = steps_per_epoch, max_step
        self.settings = {key: value for key, value in settings.items() if key not in UNCHECKED}
        self.flags = flags
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: max(0., 1 - step / max_step) ** power)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == 'fp16')
        self.step, self.stop_signal, self.pending, self.bar = 0, None, [], None
        files.out_dir(self.session.parent, '--session_name')
        self._torch_state = None
        self._start_or_resume()
        self.writer = self._open_logs(settings, tblog_dir)

    # ------------------------------------------------------------ the loop

    @property
    def epoch(self):
        """Index of the epoch that the current step belongs to, 0-based."""
        return self.step // self.steps_per_epoch

    @property
    def epoch_ended(self):
        """Whether the step just made was the last of its epoch (read it after update)."""
        return self.step % self.steps_per_epoch == 0

    def due(self, every):
        """Whether something done every `every` steps (0: never) is due after the current step."""
        return every > 0 and self.step % every == 0

    def batches(self, dataset):
        """Yield the remaining batches of the run. Between batches: saving, SIGTERM and Ctrl-C, the progress bar."""
        batches = loading.training_batches(dataset, self.batch_size, self.seed, self.step, self.max_step,
                                           self.workers, self.device)
        self.net.train()
        with self._signals(), progress(total=self.max_step * self.batch_size, initial=self.step * self.batch_size,
                                       desc='training') as self.bar:
            self._restore_random_state()
            for batch in batches:
                yield batch
                if self.epoch_ended or self.due(self.flags.save_every) or self.stop_signal:
                    self.save()
                if self.stop_signal:
                    self._stop()

    def update(self, terms, weights):
        """Make one optimiser step on sum(weights[name]·terms[name]); terms of weight 0 may be absent.

        terms: {name: 0-dim tensor}. Nothing is read back from the device here: the values wait on it until
        the next reading, every --log_every steps, where they are also checked to be finite.
        """
        total = sum(weights[name] * term for name, term in terms.items())
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.pending.append((self.step, {'loss': total.detach(), **{k: v.detach() for k, v in terms.items()}}))
        self.step += 1
        self.bar.update(self.batch_size)
        if self.due(self.flags.log_every) or self.epoch_ended:
            self.read_losses()

    def read_losses(self):
        """Fetch the pending loss values in one transfer; log them; stop the run if one is not finite (UserError)."""
        if not self.pending:
            return
        names = list(self.pending[-1][1])
        table = torch.stack([torch.stack([values[name].float() for name in names]) for _, values in self.pending])
        rows = [(step, dict(zip(names, row))) for (step, _), row in zip(self.pending, table.double().tolist())]
        self.pending = []
        with open(self._path('.losses.jsonl'), 'a', encoding='utf-8') as log:
            for step, values in rows:
                bad = {name: value for name, value in values.items() if value != value or abs(value) == float('inf')}
                if bad:
                    listing = ', '.join(f'{name} = {value}' for name, value in bad.items() if name != 'loss') or 'their sum'
                    raise UserError('loss', f'not finite at step {step}: {listing}',
                                    f'lower the learning rate or use --amp off; {self._path(".ckpt")} holds the last sound state')
                log.write(json.dumps({'step': step, **values}) + '\n')
                for name, value in values.items():
                    self.writer.add_scalar(f'train/{name}', value, step)
        self.writer.add_scalar('train/lr', self.scheduler.get_last_lr()[0], self.step)
        self.bar.set_postfix({name: f'{value:.3g}' for name, value in rows[-1][1].items()}, refresh=False)

    def log_scalars(self, scalars):
        """Log {name: number} at the current step, to TensorBoard and as a line of text."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, self.step)
        self.bar.write(f'step {self.step} of {self.max_step}: '
                       + ', '.join(f'{name} {value:.4g}' for name, value in scalars.items()), file=sys.stdout)

    def log_figure(self, name, figure):
        """Put a matplotlib figure into TensorBoard and beside the checkpoint, as <session>.<name>.png."""
        with files.atomic(self._path(f'.{name}.png')) as temporary:
            figure.savefig(temporary, dpi=100, bbox_inches='tight')
        self.writer.add_figure(name, figure, self.step)  # closes it

    def finish(self):
        """Write <session>.pth, the plain state dict that inference reads, and close the logs."""
        if not self.epoch_ended:
            self.save()
        self.save_weights(self.net.state_dict())
        self.writer.close()
        print(f'wrote {self._path(".pth")} after {self.step} steps'
              + (f'; peak GPU memory {torch.cuda.max_memory_allocated(self.device) / 2 ** 30:.2f} GiB'
                 if self.device.type == 'cuda' else ''))

    def save_weights(self, state):
        """Write a state dict to <session>.pth, on the CPU and atomically."""
        if distributed.is_main():
            with files.atomic(self._path('.pth')) as temporary:
                torch.save({key: value.cpu() for key, value in state.items()}, temporary)

    # ------------------------------------------------------------ checkpoints

    def save(self):
        """Write <session>.ckpt, once the losses so far are known to be finite."""
        self.read_losses()
        if not distributed.is_main():
            return
        random = {'cpu': torch.get_rng_state()}
        if self.device.type == 'cuda':
            random['cuda'] = torch.cuda.get_rng_state(self.device)
        with files.atomic(self._path('.ckpt')) as temporary:
            torch.save({'model': self.net.state_dict(), 'optimizer': self.optimizer.state_dict(),
                        'scheduler': self.scheduler.state_dict(), 'scaler': self.scaler.state_dict(),
                        'step': self.step, 'epoch': self.epoch, 'random': random,
                        'settings': json.dumps(self.settings, default=str)}, temporary)

    def _start_or_resume(self):
        path = self._path('.ckpt')
        if not path.exists():
            if self.flags.resume:
                print(f'nothing to resume: {path} does not exist; starting from step 0')
        elif self.flags.resume:
            self._load(path)
        elif not self.flags.overwrite:
            raise UserError(path, 'this session has a checkpoint already',
                            'add --resume to continue it, --overwrite to start anew, or choose another --session_name')
        else:
            path.unlink()
        self._trim_loss_log()

    def _load(self, path):
        state = read_checkpoint(path)
        then, now = json.loads(state['settings']), json.loads(json.dumps(self.settings, default=str))
        changed = [f'{key} {then.get(key)} -> {now.get(key)}' for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
        if changed:
            raise UserError(path, f'was made with other settings ({", ".join(changed)})',
                            'resume with those, or start a session of another name')
        self.net.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.scheduler.load_state_dict(state['scheduler'])
        self.scaler.load_state_dict(state['scaler'])
        self.step, self._torch_state = state['step'], state['random']
        print(f'resumed {path} at step {self.step} of {self.max_step}')

    def _restore_random_state(self):
        """Dropout and pixel sampling draw from torch's global generator: seed it, or put it back where it was."""
        if self._torch_state is None:
            torch.manual_seed(self.seed)
            return
        torch.set_rng_state(self._torch_state['cpu'])
        if self.device.type == 'cuda' and 'cuda' in self._torch_state:
            torch.cuda.set_rng_state(self._torch_state['cuda'], self.device)

    def _trim_loss_log(self):
        """Drop logged steps that come after the checkpoint: they will be made again."""
        path = self._path('.losses.jsonl')
        files.save_text(path, ''.join(json.dumps(row) + '\n' for row in read_loss_log(path) if row['step'] < self.step))

    # ------------------------------------------------------------ plumbing

    def _path(self, suffix):
        return self.session.with_name(self.session.name + suffix)

    def _open_logs(self, settings, tblog_dir):
        from torch.utils.tensorboard import SummaryWriter
        info = runinfo.describe(settings, self.device, total_batch=self.batch_size, seed=self.seed,
                                steps_per_epoch=self.steps_per_epoch, max_step=self.max_step)
        files.save_json(self._path('.json'), info)
        writer = SummaryWriter(files.out_dir(Path(tblog_dir) / self.session.name, '--tblog_dir'), purge_step=self.step)
        writer.add_text('run', '```\n' + json.dumps(info, indent=2, default=str) + '\n```', self.step)
        print(runinfo.line(info))
        return writer

    @contextlib.contextmanager
    def _signals(self):
        """Note SIGTERM and Ctrl-C while training, to save and leave after the step in hand; a second Ctrl-C at once."""
        def note(number, _):
            # A SIGTERM may come twice (`timeout` sends it to the process and to its group): that is no impatience.
            if number == self.stop_signal == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_signal = self.stop_signal or number
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self):
        self.writer.close()
        print(f'\n{signal.Signals(self.stop_signal).name}: saved {self._path(".ckpt")} at step {self.step} of '
              f'{self.max_step}; continue with --resume', file=sys.stderr)
        sys.exit(128 + self.stop_signal)


# Settings that a resumed run may change: they do not touch what is computed.
UNCHECKED = {'resume', 'overwrite', 'num_workers', 'device', 'tblog_dir', 'save_every', 'log_every', 'picture_every',
             'session_name', 'weights', 'voc12_root', 'cls_labels', 'saliency_dir'}


def read_checkpoint(path):
    """The dict in a .ckpt file. UserError where it is damaged or no checkpoint of this project."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise UserError(path, f'cannot be read ({str(error).splitlines()[0]})', 'delete it to start anew') from error
    if not isinstance(state, dict) or not {'model', 'optimizer', 'step', 'settings'} <= set(state):
        raise UserError(path, 'is not a training checkpoint', 'give the <session>.ckpt of a training run')
    return state


def read_loss_log(path):
    """The rows of a .losses.jsonl: [{'step': int, 'loss': float, <term>: float, …}]. [] where there is none.

    A last line cut short by a kill is dropped: its step is made again.
    """
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for text in Path(path).read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(text))
    return rows

"""What the three training scripts share: parameter groups, the poly schedule, and a run that logs, saves and resumes.

A script's loop reads

    run = Run(...)
    for batch in run.batches(dataset):
        for part in run.parts.of(batch):      # one, unless --accumulate
            terms = ...                       # dict of named 0-dim tensors
            run.update(terms, weights)        # weighted sum, backward; after the last part optimiser step, log
    run.finish()
"""
import sys
import traceback
from pathlib import Path

import torch
from torch import nn

from engine import checkpoint, distributed, files, loading, process, runinfo
from engine.device import device_name, set_random_state
from engine.errors import UserError
from engine.parallel import progress
from engine.parts import Parts
from engine.ranks import is_main, rank, world_size
from engine.run_log import RunLog, tensorboard_folder
from engine.signals import StopSignal
from tool.part import Part

PLURAL = {'weight': 'weights', 'bias': 'biases'}


def parameter_groups(net, lr, weight_decay):
    """The published groups of trained convolutions: weights ×1, biases ×2 without decay, new layers ten times both.

    net.from_scratch names the child modules that are new. BatchNorm's affine parameters are never optimised: Steps 1
    and 2 freeze them, Step 3 leaves them as loaded (METHOD 3.7, 7.1). Prints the size of each group.
    """
    groups = {(new, kind): [] for new in (False, True) for kind in PLURAL}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            for kind, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    groups[name.split('.')[0] in net.from_scratch, kind].append(parameter)
    sizes = [f'{sum(p.numel() for p in group):,} in {"new" if new else "pretrained"} {PLURAL[kind]}'
             for (new, kind), group in groups.items() if group]
    print(f'parameters: {", ".join(sizes)}')
    return [{'params': group, 'lr': lr * (10 if new else 1) * (2 if kind == 'bias' else 1),
             'weight_decay': 0. if kind == 'bias' else weight_decay}
            for (new, kind), group in groups.items() if group]


def processes():
    """{'processes': their number} for a run's description, {} where it is one."""
    return {'processes': world_size()} if world_size() > 1 else {}


class Run:
    """One training run: steps counted from 0 to max_step, everything needed to continue written to <session>.ckpt.

    It has a checkpoint (checkpoint.RunCheckpoint), a log (RunLog), a stop (StopSignal) and parts (engine.parts.Parts).
    Several processes, started by torchrun, make the steps of one together; the first of them writes.

    net, optimizer: already on `device`. The learning rates follow lr·(1 − step/schedule_steps)^power; schedule_steps
    is max_step unless given.
    args: a script's flags, those of engine.cli.add_run_flags and add_device_flags among them. settings: all that the
    run was told (dict, `args` unless given); a resumed run must share it but for checkpoint.UNCHECKED and ADVISED.
    before: engine.cli.values_before, for settings that an older checkpoint lacks.
    inputs: {name: runinfo.fingerprint of what is learned from}; a resumed run must share it, wherever the files are.
    images, batch_size: of an epoch and of a step, over all processes; accumulate: micro-batches in which a process
    makes its share. max_step: number of steps, or None for `epochs` whole epochs.
    """

    def __init__(self, session, net, optimizer, *, device, args, before, images, batch_size, epochs=None, max_step=None,
                 schedule_steps=None, settings=None, inputs=None, power=0.9, accumulate=1):
        self.session, self.net, self.optimizer, self.device = Path(session), net, optimizer, device
        self.args, self.batch_size, self.bar = args, batch_size, None
        self.parts = Parts(net, batch_size, accumulate, device)
        inputs = inputs or {}
        settings = {**(vars(args) if settings is None else settings), **inputs}
        self.steps_per_epoch = images // batch_size
        self.max_step = self.steps_per_epoch * epochs if max_step is None else max_step
        schedule_steps = schedule_steps or self.max_step
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: max(0., 1 - step / schedule_steps) ** power)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == 'fp16')
        files.out_dir(self.session.parent, '--session_name')
        held = {'model': net, 'optimizer': optimizer, 'scheduler': self.scheduler, 'scaler': self.scaler}
        self.checkpoint = checkpoint.RunCheckpoint(self.path('.ckpt'), held, settings, device)
        self.step = self.checkpoint.open(args.resume, args.overwrite, {**before, **inputs}, self.max_step)
        distributed.start(device)
        distributed.share_weights(net)
        info = runinfo.describe(settings, device_name(device), total_batch=batch_size, seed=args.seed, **processes(),
                                steps_per_epoch=self.steps_per_epoch, max_step=self.max_step)
        self.log = RunLog(self.path, self.step, info, tensorboard_folder(args.tblog_dir, self.session))
        self.stop = StopSignal()

    def path(self, suffix):
        """The file <session><suffix>."""
        return self.session.with_name(self.session.name + suffix)

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

    @property
    def picture_due(self):
        """Whether a picture is due after the current step: every --picture_every steps, and after the last."""
        return is_main() and (self.due(self.args.picture_every) or self.step == self.max_step)

    @property
    def reading_due(self):
        """Whether losses are read after the current step: every --log_every steps, and after an epoch."""
        return self.due(self.args.log_every) or self.epoch_ended

    def batches(self, dataset):
        """Yield the remaining batches, of each this process's share. Between them: signals, the progress bar."""
        batches = loading.training_batches(dataset, self.batch_size, self.args.seed, self.step, self.max_step,
                                           self.args.num_workers, self.device, Part(rank(), world_size()))
        self.net.train()
        with self.stop.noted(), progress(total=self.max_step * self.batch_size, initial=self.step * self.batch_size,
                                         desc='training') as self.bar:
            self.log.bar = self.bar
            self._seed()
            for batch in batches:
                yield batch
                self._save_if_due()
                if self.stop.agreed(self.reading_due, self.device):
                    self._leave()

    def _seed(self):
        """Dropout and pixel sampling draw from torch's global generator: seed it, or restore its saved state."""
        if self.checkpoint.random is None:
            torch.manual_seed(self.args.seed)
        else:
            set_random_state(self.checkpoint.random, self.device)

    def update(self, terms, weights):
        """Make one optimiser step on sum(weights[name]·terms[name]).

        terms: {name: 0-dim tensor}. Where the step has several parts, the sum's mean over them is minimised: the step
        is made after the last. Nothing is read back from the device here: the values wait on it until the next
        reading, every --log_every steps, where they are also checked to be finite.
        """
        total = sum(weights[name] * term for name, term in terms.items())
        if self.parts.is_first:
            self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total / self.parts.micro).backward()
        self.log.pending.add(self.step, total, terms, self.parts.micro)
        if not self.parts.is_last:
            return
        self.parts.finish_step()
        distributed.mean_gradients(self.net.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.step += 1
        self.bar.update(self.batch_size)
        if self.reading_due:
            self.read_losses()

    def read_losses(self):
        """Log the loss values of the last steps; stop the run if a value is not finite (UserError)."""
        self.log.read_losses(self.step, self.scheduler.get_last_lr()[0], self._way_on())

    def _way_on(self):
        """What to do about numbers that are not finite, in words."""
        change = 'lower the learning rate' + ('' if self.args.amp == 'off' else ' or use --amp off')
        if self.checkpoint.saved is None:
            return f'{change}, and start anew: there is no checkpoint yet'
        return (f'{change}, and add --resume to go on from step {self.checkpoint.saved}, whose numbers were finite '
                f'({self.path(".ckpt")}); where that fails too, --overwrite to start anew')

    def validate(self, measure):
        """Log the scalars that measure() returns. A failure is a warning: the training goes on.

        The checkpoint of the step is written first. The random state stays as it was, so that a run which resumes from
        that checkpoint, and does not validate again, draws the same numbers. Of several processes the first measures.
        """
        self._save_if_due()
        if not is_main():
            return
        devices = [self.device] if self.device.type == 'cuda' else []
        try:
            with torch.random.fork_rng(devices):
                self.log.scalars(measure(), self.step, self.max_step)
        except Exception as error:
            known = error if isinstance(error, UserError) else process.want_of_resources(error)
            text = str(known) if known else traceback.format_exc()
            self.log.warn(f'validation after step {self.step} failed, the training goes on: {text}')
        finally:
            self.net.train()

    def log_figure(self, name, figure):
        """Put a matplotlib figure into TensorBoard and into <session>.<name>.png."""
        self.log.figure(name, figure, self.step)

    def _save_if_due(self):
        """Write the checkpoint every --save_every steps and after an epoch. It comes after the step's picture, which a
        run that resumes from it does not draw again."""
        if self.checkpoint.saved != self.step and (self.due(self.args.save_every) or self.epoch_ended):
            self.save()

    def save(self):
        """Write <session>.ckpt, once the losses so far and the weights are known to be finite (UserError)."""
        self.read_losses()
        # A step whose losses were finite can have spoilt the weights: the older checkpoint is then the better one.
        state = self.net.state_dict()
        finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()  # a GPU is waited for once
        spoilt = [name for name, is_finite in zip(state, finite) if not is_finite]
        if spoilt:
            raise UserError('weights', f'not finite after step {self.step - 1}: {spoilt[0]}', self._way_on())
        self.checkpoint.save(self.step, self.epoch)

    def finish(self, layout=dict):
        """Write <session>.pth, the plain state dict that inference reads, and close the logs.

        layout: function that brings the network's state dict into the file's layout.
        """
        if self.checkpoint.saved != self.step:
            self.save()
        if is_main():
            weights = {key: value.cpu() for key, value in layout(self.net.state_dict()).items()}
            checkpoint.save_tensors(self.path('.pth'), weights)
        self.log.close()
        distributed.stop()
        print(f'wrote {self.path(".pth")} after {self.step} steps'
              + (f'; peak GPU memory {torch.cuda.max_memory_allocated(self.device) / 2 ** 30:.2f} GiB'
                 if self.device.type == 'cuda' else ''))

    def _leave(self):
        """End the process after a signal, with a checkpoint of the step just made."""
        if self.checkpoint.saved != self.step:
            self.save()
        self.log.close()
        if is_main():
            print(f'\n{self.stop.name}: saved {self.path(".ckpt")} at step {self.step} of {self.max_step}; continue '
                  'with --resume', file=sys.stderr)
        sys.exit(128 + self.stop.number)

"""Loading images for the networks: seeded per image, resumable at any step, users' errors carried across processes."""
import functools
import signal
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from engine.errors import UserError
from tool.part import WHOLE


class Seeded(Dataset):
    """A data set whose item for key (epoch, index) draws its random numbers from (seed, epoch, index) alone.

    An image then looks the same whichever worker loads it and whatever was loaded before, so a resumed run sees the
    images that an uninterrupted run sees.
    """

    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index = key
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone: torch.manual_seed would seed a GPU's too, and dropout there would draw the same
            # numbers after each image that the main process loads.
            torch.default_generator.manual_seed(int(state[0]))
            return self.dataset[index]


class ErrorAsItem(Dataset):
    """Returns a UserError as the item: raised in a worker process, it would reach the main process without its type."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except UserError as error:
            return error


class ResumableBatchSampler:
    """Batches of (epoch, index) keys from step `first` to step `last`, each epoch in an order of its own.

    share: the tool.part.Part of each batch that this process loads. The remainder of an epoch that does not fill a
    batch is left out, as published.
    """

    def __init__(self, size, batch_size, seed, first, last, share):
        self.size, self.batch_size, self.seed, self.first, self.last = size, batch_size, seed, first, last
        self.share = share

    def __len__(self):
        return self.last - self.first

    def __iter__(self):
        per_epoch = self.size // self.batch_size
        shuffled = None
        for step in range(self.first, self.last):
            epoch, position = divmod(step, per_epoch)
            if shuffled != epoch:
                generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
                order, shuffled = torch.randperm(self.size, generator=generator).tolist(), epoch
            chosen = order[position * self.batch_size:(position + 1) * self.batch_size]
            yield [(epoch, index) for index in self.share.of(chosen)]


def _start_worker(_):
    torch.set_num_threads(1)
    # The main process handles Ctrl-C, and a SIGTERM to all processes of a job: it saves, then ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _collate(complete, items):
    """The batch of items, as complete(batch) makes it, or the UserError among them."""
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else complete(default_collate(items))


def _collate_for(dataset):
    """The collate function of a data set, whose method complete(batch), if it has one, adds what a batch has beside its
    items. What is added there the loader pins with the rest: copies to a GPU then need not wait."""
    return functools.partial(_collate, getattr(dataset, 'complete', _as_it_is))


def _as_it_is(batch):
    return batch


def _collate_single(items):
    return items[0] if get_worker_info() is None else _shared(items[0])


def _shared(item):
    """An item with its tensors moved to shared memory.

    PyTorch would do it later, in a thread, where a want of shared memory ends nothing: all would wait for the item.
    """
    if isinstance(item, dict):
        return {key: _shared(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_shared(value) for value in item]
    return item.share_memory_() if isinstance(item, torch.Tensor) else item


def _raising(loader):
    """The batches of a loader; raises a UserError that comes in place of a batch."""
    for batch in _iterator(loader):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _iterator(loader):
    """iter(loader), without PyTorch's answer to SIGCHLD, the end of a worker.

    It would raise an exception wherever the main thread is, also while that answers another. Without it the loader sees
    within five seconds that a worker is gone.
    """
    if not hasattr(signal, 'SIGCHLD') or threading.current_thread() is not threading.main_thread():
        return iter(loader)  # where PyTorch does not answer either
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return iterator


def _loader(dataset, workers, device, **kwargs):
    # A generator of its own: by default a loader seeds itself from torch's global generator, whose state a resumed run
    # must find unchanged.
    return DataLoader(ErrorAsItem(dataset), num_workers=workers, worker_init_fn=_start_worker,
                      pin_memory=device.type == 'cuda', generator=torch.Generator().manual_seed(0), **kwargs)


def training_batches(dataset, batch_size, seed, first, last, workers, device, share=WHOLE):
    """Batches (collated dicts) of steps first..last−1, of each the Part `share`. Raises the UserError of an image that
    cannot be read."""
    order = ResumableBatchSampler(len(dataset), batch_size, seed, first, last, share)
    return _raising(_loader(Seeded(dataset, seed), workers, device, batch_sampler=order,
                            collate_fn=_collate_for(dataset)))


def validation_batches(dataset, batch_size, workers, device):
    """Batches of a data set in order, the last perhaps smaller."""
    return _raising(_loader(dataset, workers, device, batch_size=batch_size, collate_fn=_collate_for(dataset)))


def single_items(dataset, workers, device):
    """The items of a data set in order, one at a time and not collated (inference on images of different sizes)."""
    return _raising(_loader(dataset, workers, device, batch_size=1, collate_fn=_collate_single))

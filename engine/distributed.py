"""What the processes of one training run tell each other: sums, means, gathered tensors, an agreement to stop.

One process: nothing is sent, and every function returns what it was given. engine/ranks.py knows which process this is.
NCCL between GPUs, gloo between CPUs.
"""
from datetime import timedelta

import torch
from torch import distributed

from engine.ranks import world_size

# While one process validates or writes, the others wait for its next message, at most so long.
LONGEST_WAIT = timedelta(hours=6)


def start(device):
    """Meet the other processes. device: this process's."""
    if world_size() > 1 and not distributed.is_initialized():
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=LONGEST_WAIT)


def stop():
    """Part from the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def share_weights(net):
    """Give every process the weights and statistics that the first one has."""
    if world_size() > 1:
        for tensor in net.state_dict().values():
            distributed.broadcast(tensor, 0)


def gather(rows):
    """The rows (n, …) of all processes, in order of rank: (world_size · n, …). No gradient flows back."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def total(values):
    """The sum of a tensor over all processes."""
    if world_size() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values


def mean(values):
    """The mean of a tensor over all processes."""
    return values if world_size() == 1 else total(values) / world_size()


def mean_gradients(parameters):
    """Replace the gradients by their means over all processes. Which of them there are is the same everywhere."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for handle in [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]:
        handle.wait()
    torch._foreach_div_(gradients, world_size())


def any_of(number, device):
    """The largest of the numbers that the processes give, None counting as 0; None where all are 0."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number or 0, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest) or None


def wait_for_all():
    """Return once all processes have called it."""
    if world_size() > 1:
        start(torch.device('cpu'))
        distributed.barrier()

"""The device that a network runs on: choosing it, seeding it, its precision."""
import contextlib

import torch

from engine import runinfo
from engine.errors import UserError


def set_up(args):
    """Prepare PyTorch for a script with engine.cli.add_device_flags: seed it by --seed, check --device and --amp.

    Returns the torch.device. UserError as in select_device and autocast.
    """
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # numbers under 1e-38 count as 0: a CPU takes a hundred times as long for them
    device = select_device(args.device)
    autocast(device, args.amp)
    return device


def select_device(name):
    """The torch.device of a --device flag. UserError where the flag is malformed or CUDA is not available."""
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    kind, _, index = name.partition(':')
    if kind not in ('cpu', 'cuda') or (index and (kind == 'cpu' or not index.isdigit())):
        raise UserError('--device', f'{name!r} is unknown', 'use auto, cpu, cuda or cuda:<index>')
    if kind == 'cuda':
        if not torch.cuda.is_available():
            raise UserError('--device', 'no CUDA device is available to PyTorch here', 'use --device cpu or auto')
        if index and int(index) >= torch.cuda.device_count():
            raise UserError('--device', f'there is no {name}', f'use cuda:0 to cuda:{torch.cuda.device_count() - 1}')
    return torch.device(name)


def autocast(device, amp):
    """The mixed-precision context of an --amp flag: torch.autocast, or nothing when it is 'off'.

    fp16 on a CPU is refused (UserError): PyTorch has no gradient scaling there.
    """
    if amp == 'off':
        return contextlib.nullcontext()
    if amp == 'fp16' and device.type == 'cpu':
        raise UserError('--amp fp16', 'half precision needs a CUDA device', 'use --amp bf16 or off on a CPU')
    return torch.autocast(device.type, torch.bfloat16 if amp == 'bf16' else torch.float16)


def to_device(net, device, amp):
    """Move a network to its device, in channels-last layout under mixed precision on CUDA. Returns it.

    Not channels-last on the CPU: it gains nothing measurable there, and PyTorch's backward pass has crashed on it (few
    channels, bf16).
    """
    last = amp != 'off' and device.type == 'cuda'
    return net.to(device, memory_format=torch.channels_last if last else torch.preserve_format)


def device_name(device):
    """Words for a torch.device: the card's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else runinfo.processor()

"""The device that a network runs on: choosing it, seeding it, its precision and threads."""
import contextlib
import sys
from pathlib import Path

import torch

from engine import machine, ranks, runinfo
from engine.errors import UserError

NVIDIA_DRIVER = Path('/dev/nvidiactl')  # is there where the driver of an NVIDIA card is loaded
CHOSEN = ('amp', 'threads')  # flags whose 'auto' a resumed run takes from <session>.json


def set_up(args, session=None):
    """Prepare PyTorch for a script with engine.cli.add_device_flags. Returns the torch.device.

    Seeds it by --seed, and replaces 'auto' in args.amp, args.threads and args.num_workers by what is chosen.
    session: of a training run; where it is resumed, it goes on with the precision and threads that it began with.
    UserError as in select_device and choose_precision.
    """
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # numbers under 1e-38 count as 0: a CPU takes a hundred times as long for them
    device = select_device(args.device)
    stored = runinfo.stored_settings(session) if session and args.resume else {}
    for name in CHOSEN:
        if getattr(args, name) == 'auto' and stored.get(name):
            setattr(args, name, stored[name])
    args.amp = choose_precision(device, args.amp)
    args.num_workers = machine.choose_workers(args.num_workers, device.type == 'cpu')
    args.threads = machine.choose_threads(args.threads, args.num_workers)
    torch.set_num_threads(args.threads)
    return device


def select_device(name):
    """The torch.device of a --device flag; of several processes each has its own GPU.

    UserError where the flag is malformed or CUDA is not available.
    """
    if name == 'auto':
        if torch.cuda.is_available():
            return select_device('cuda')
        if torch.version.cuda and NVIDIA_DRIVER.exists():
            print(f'warning: this PyTorch, for CUDA {torch.version.cuda}, finds no device, and takes the CPU, although '
                  'an NVIDIA driver is loaded: docs/GPUS.md says which build is for which card and driver',
                  file=sys.stderr)
        return torch.device('cpu')
    kind, _, index = name.partition(':')
    if kind not in ('cpu', 'cuda') or (index and (kind == 'cpu' or not index.isdigit())):
        raise UserError('--device', f'{name!r} is unknown', 'use auto, cpu, cuda or cuda:<index>')
    if kind == 'cuda':
        if not torch.cuda.is_available():
            raise UserError('--device', 'no CUDA device is available to PyTorch here', 'use --device cpu or auto')
        if index and int(index) >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1  # CUDA numbers its devices from 0, so 0 is there where any is
            raise UserError('--device', f'there is no {name}', f'use cuda:0 to cuda:{last}')
        if ranks.world_size() > 1:
            return _device_of_rank(name, index)
    return torch.device(name)


def _device_of_rank(name, index):
    """The CUDA device of this process among several: that of its number on the machine."""
    if index:
        raise UserError('--device', f'{name} would be shared by all processes', 'use cuda or auto: one GPU a process')
    if ranks.local_rank() >= torch.cuda.device_count():
        raise UserError('torchrun', f'started {ranks.local_world_size()} processes on this machine, which has '
                        f'{torch.cuda.device_count()} CUDA devices', 'start one process for each')
    # What names no device, such as pinned memory, would begin a context on the first GPU too, once for each process.
    torch.cuda.set_device(ranks.local_rank())
    return torch.device('cuda', ranks.local_rank())


def choose_precision(device, amp):
    """The precision to compute in, 'off', 'bf16' or 'fp16', for an --amp flag.

    'auto': on CUDA bf16 from compute capability 8.0 and fp16 below; on a CPU bf16 where it is native, else off.
    bf16 that would only be emulated: on a CPU one warning line; on CUDA refused, since fp16 is fast there.
    UserError: that, or fp16 on a CPU, where PyTorch has no gradient scaling.
    """
    native = native_bf16(device)
    if amp == 'auto':
        return 'bf16' if native else 'fp16' if device.type == 'cuda' else 'off'
    if amp == 'fp16' and device.type == 'cpu':
        raise UserError('--amp fp16', 'half precision needs a CUDA device', 'use --amp auto or off on a CPU')
    if amp == 'bf16' and not native:
        if device.type == 'cuda':
            raise UserError('--amp bf16', f'{device_name(device)} only emulates it', 'use --amp fp16 or auto')
        print(EMULATED, file=sys.stderr)
    return amp


EMULATED = ('warning: this processor only emulates bf16, which took 9 times as long as --amp off where it was '
            'measured; --amp auto chooses what the processor has')


def native_bf16(device):
    """Whether the device multiplies bf16 numbers itself: CUDA from capability 8.0, a CPU with AVX512_BF16 or AMX."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # PyTorch has no public question for it. The first of the three also respects oneDNN's ONEDNN_MAX_CPU_ISA.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()
                and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()))


def autocast(device, amp):
    """The mixed-precision context of a chosen precision: torch.autocast, or nothing when it is 'off'."""
    if amp == 'off':
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if amp == 'bf16' else torch.float16)


def to_device(net, device, amp):
    """Move a network to its device, in channels-last layout under mixed precision on CUDA. Returns it.

    Not channels-last on the CPU: it gains nothing measurable there, and PyTorch's backward pass has crashed on it (few
    channels, bf16).
    """
    last = amp != 'off' and device.type == 'cuda'
    return net.to(device, memory_format=torch.channels_last if last else torch.preserve_format)


def arrays(*tensors):
    """NumPy arrays of tensors, for which a GPU is waited for once: each plain copy to the host would wait by itself."""
    copies = [tensor.to('cpu', non_blocking=True) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.device.type == 'cuda'}:
        torch.cuda.current_stream(device).synchronize()
    return [copy.numpy() for copy in copies]


def device_name(device):
    """Words for a torch.device: the card's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else runinfo.processor()


def random_state(device):
    """The states of the generators that a step on `device` draws from: {'cpu': tensor, and 'cuda' there}."""
    state = {'cpu': torch.get_rng_state()}
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state, device):
    """Put the generators where random_state found them, those of CUDA where it knows them."""
    torch.set_rng_state(state['cpu'])
    if device.type == 'cuda' and 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'], device)

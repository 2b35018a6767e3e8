"""What all parts have in common: rows, precisions, speed and peak memory of a call; a failure becomes a row."""
import dataclasses
import gc
import math
import time
from dataclasses import dataclass

import torch

from engine.device import to_device

GIB = 2 ** 30


@dataclass(frozen=True)
class Settings:
    """device: 'cpu', 'cuda' or 'cuda:<index>'. tiny: inputs so small that a CPU runs every part, to try the code."""
    device: str
    tiny: bool

    @property
    def place(self):
        """The torch.device."""
        return torch.device(self.device)

    @property
    def seconds(self):
        """How long a speed is measured, after the first calls."""
        return 0. if self.tiny else 3.


@dataclass(frozen=True)
class Row:
    """A result. part, work: what was measured, and at which size (`size`, in words) and precision (of MODES).

    value, unit: the number, None where there is none. gib: peak of allocated memory, weights included; None on a CPU.
    note: remarks in words, or why there is no number.
    """
    part: str
    work: str
    size: str = ''
    precision: str = ''
    value: float = None
    unit: str = ''
    gib: float = None
    note: str = ''


# ---------------------------------------------------------------- precisions

@dataclass(frozen=True)
class Mode:
    """How a network runs. amp: of the scripts' flag. convolutions, products: TF32 in convolutions (PyTorch's default),
    in matrix products. channels_last: the weights' layout, None as the scripts choose it. tuned: cudnn.benchmark.
    compiled: the network's forward pass by torch.compile. fused: SGD in one kernel."""
    amp: str = 'off'
    convolutions: bool = True
    products: bool = False
    channels_last: bool = None
    tuned: bool = False
    compiled: bool = False
    fused: bool = False


FLOAT32, TF32 = 'float32', 'TF32'  # TF32: in convolutions only, which is --amp off on a card that has it
MODES = {
    FLOAT32: Mode(convolutions=False), TF32: Mode(), 'bf16': Mode('bf16'), 'fp16': Mode('fp16'),
    'TF32 in products too': Mode(products=True),
    'TF32, channels-last': Mode(channels_last=True), 'bf16, not channels-last': Mode('bf16', channels_last=False),
    'TF32, cudnn.benchmark': Mode(tuned=True), 'bf16, cudnn.benchmark': Mode('bf16', tuned=True),
    'TF32, fused SGD': Mode(fused=True), 'bf16, fused SGD': Mode('bf16', fused=True),
    'fp16, fused SGD': Mode('fp16', fused=True),
    'TF32, compiled': Mode(compiled=True), 'bf16, compiled': Mode('bf16', compiled=True)}
PRECISIONS = FLOAT32, TF32, 'bf16', 'fp16'
BEST = TF32, 'bf16'  # the precisions of most runs, measured for every network


def unfit(mode, device):
    """Why a Mode cannot run on a torch.device, in words; '' where it can."""
    if device.type == 'cpu':
        # Channels-last in float32 kills the process there: PyTorch 2.14's backward pass frees memory twice.
        return 'needs a GPU' if mode.amp == 'fp16' or (mode.channels_last and mode.amp == 'off') else ''
    if mode.amp == 'bf16' and not torch.cuda.is_bf16_supported(including_emulation=False):
        return 'this card has no bf16: it would be emulated, slower than float32'
    return ''


def switch_to(mode):
    """Set PyTorch's switches for a Mode. Call it before what is measured, published formulations too."""
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = mode.convolutions, mode.products
    torch.backends.cudnn.benchmark = mode.tuned


def placed(net, mode, device):
    """A network on its device, as the scripts place it or in the layout that the Mode asks for."""
    net = to_device(net, device, mode.amp)
    if mode.channels_last is not None:
        net = net.to(memory_format=torch.channels_last if mode.channels_last else torch.contiguous_format)
    return net


# ---------------------------------------------------------------- measuring

def attempt(row, measure):
    """The Row with what measure() returns put into its fields, or with its failure as a note.

    An error (too little memory, a kernel that does not compile) costs a row, not the part.
    """
    try:
        return dataclasses.replace(row, **measure())
    except Exception as error:
        return dataclasses.replace(row, note=in_words(error))
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def attempt_mode(row, settings, measure):
    """As attempt, in the row's precision: measure(mode) runs under its switches. A Mode that cannot run says why."""
    mode = MODES[row.precision]
    reason = unfit(mode, settings.place)
    if reason:
        return dataclasses.replace(row, note=reason)
    switch_to(mode)
    return attempt(row, lambda: measure(mode))


def in_words(error):
    """An exception in one line."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'[:300]


def speed(call, count, settings, unit='images/s'):
    """Fields of a Row: how many of `count` images a call the device does in a second, and the peak of memory.

    Calls follow one another without waiting, as steps of a training do.
    """
    device = settings.place
    synchronise(device)
    reset_peak(device)
    call()
    call()  # some kernels are tuned or compiled at the second call
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    repeats = min(30, max(2, math.ceil(settings.seconds / (time.perf_counter() - start))))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    seconds = (time.perf_counter() - start) / repeats
    return {'value': count / seconds, 'unit': unit, **peak(device)}


def synchronise(device):
    """Wait until a torch.device has done its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def reset_peak(device):
    """Begin to count the peak of memory anew."""
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device):
    """Fields of a Row: the peak of allocated memory, and in words what PyTorch reserved."""
    if device.type != 'cuda':
        return {}
    reserved = torch.cuda.max_memory_reserved(device) / GIB
    return {'gib': torch.cuda.max_memory_allocated(device) / GIB, 'note': f'{reserved:.2f} GiB reserved'}


def seconds_on_one_core(call, settings):
    """Fields of a Row: CPU seconds of the quickest of three calls after an untimed call, PyTorch on a single thread."""
    torch.set_num_threads(1)
    times = []
    for _ in range(2 if settings.tiny else 4):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return {'value': min(times[1:]), 'unit': 's of one core'}

"""What this machine can do at most, in arithmetic and in memory traffic, and the time a stage needs at these rates."""
import statistics
import time

import torch

from benchmarks.frame import synchronise


def machine(device, threads):
    """{'all cores', 'one core': rates} ('all cores' is the GPU where the device is one)."""
    return {'all cores': rates(device, threads), 'one core': rates('cpu', 1)}


def rates(device, threads):
    """{'flops', 'bytes'}: operations (a multiply-add is two) a second of a large matrix product or 3×3 convolution,
    whichever is quicker (the two come from different libraries), in float32 without TF32; bytes a second read and
    written by copying 256 MiB. device: 'cpu' or 'cuda'.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    side, channels, pixels = (2048, 512, 32) if device == 'cpu' else (8192, 2048, 64)
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    convolution = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
    image = torch.rand(1, channels, pixels, pixels, device=device)
    source = torch.rand(2 ** 26, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = 2 * side ** 3 / seconds(lambda: torch.mm(a, b), device)
        convolved = 2 * 9 * (channels * pixels) ** 2 / seconds(lambda: convolution(image), device)
        copied = 2 * 4 * source.numel() / seconds(lambda: target.copy_(source), device)
    return {'flops': max(product, convolved), 'bytes': copied}


def seconds(call, device, repeats=5):
    call()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def least_seconds(result, rates_of):
    """The least time of a stage's call: its arithmetic or its traffic at full rate, whichever takes longer. None where
    neither is stated. rates_of: of machine().
    """
    at = rates_of['one core' if result['single_core'] else 'all cores']
    least = max(result['flops'] / at['flops'], result['bytes'] / at['bytes'])
    return least or None

"""The highest rates of this machine, in arithmetic and memory traffic, and the least time of a stage at them."""
import statistics
import time

import torch


def machine(threads):
    """{'all cores': rates, 'one core': rates}."""
    return {'all cores': rates(threads), 'one core': rates(1)}


def rates(threads):
    """{'flops', 'bytes'}: operations (a multiply-add is two) a second of a large matrix product or 3×3 convolution,
    whichever is quicker (the two come from different libraries), in float32; bytes a second read and written by
    copying 256 MiB.
    """
    torch.set_num_threads(threads)
    side, channels, pixels = 2048, 512, 32
    a, b = torch.rand(side, side), torch.rand(side, side)
    convolution = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    image = torch.rand(1, channels, pixels, pixels)
    source = torch.rand(2 ** 26)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = 2 * side ** 3 / seconds(lambda: torch.mm(a, b))
        convolved = 2 * 9 * (channels * pixels) ** 2 / seconds(lambda: convolution(image))
        copied = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    return {'flops': max(product, convolved), 'bytes': copied}


def seconds(call, repeats=5):
    """Median wall seconds of a call, after a call that is not timed."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def least_seconds(result, rates_of):
    """The least time of a stage's call: its arithmetic or its traffic at full rate, whichever takes longer.

    result: of frame.run. rates_of: of machine(). None where the stage states neither.
    """
    at = rates_of['one core' if result['single_core'] else 'all cores']
    least = max(result['flops'] / at['flops'], result['bytes'] / at['bytes'])
    return least or None

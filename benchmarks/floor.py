"""What this machine can do at most: the rate of its matrix product and of its memory, and the time a stage needs at these rates."""
import statistics
import time


def machine(device, threads):
    """{'all cores', 'one core': rates} ('all cores' is the GPU where the device is one)."""
    return {'all cores': rates(device, threads), 'one core': rates('cpu', 1)}


def rates(device, threads):
    """{'flops', 'bytes'}: multiply-adds (as two operations) a second of a float32 product of 2048x2048 matrices, and bytes a
    second read and written by copying 256 MiB. device: 'cpu' or 'cuda'. TF32 stays off."""
    import torch
    torch.set_num_threads(threads)
    side = 2048 if device == 'cpu' else 8192
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    source = torch.rand(2 ** 26, device=device)
    target = torch.empty_like(source)
    return {'flops': 2 * side ** 3 / seconds(lambda: torch.mm(a, b), device),
            'bytes': 2 * 4 * source.numel() / seconds(lambda: target.copy_(source), device)}


def seconds(call, device, repeats=5):
    from benchmarks.frame import synchronise
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
    """The least time of a stage's call: its arithmetic or its traffic at full rate, whichever takes longer. None where neither
    is stated. rates_of: of machine()."""
    at = rates_of['one core' if result['single_core'] else 'all cores']
    least = max(result['flops'] / at['flops'], result['bytes'] / at['bytes'])
    return least or None

"""How a stage is measured: our formulation and the published one, on the same inputs, alternately."""
import cProfile
import gc
import multiprocessing
import os
import pstats
import re
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Options:
    """quick: smaller inputs, fewer repetitions. device: 'cpu' or 'cuda', of networks and losses. threads: PyTorch's."""
    quick: bool
    device: str
    threads: int


@dataclass
class Case:
    """A stage made ready: inputs, weights and files exist, only the work is left.

    ours, published: callables without arguments, giving results that `check(ours, published)` compares; it returns
    words for the agreement found and raises AssertionError where it is worse than the golden tolerances. count: images
    a call handles. flops: function that counts a call's arithmetic; bytes: the least memory traffic that a call needs;
    both for the floor. single_core: whether the work runs on one core whatever `threads`. published_share: the part of
    the published work that a call does (1: all). extra: {words: value} for the report; `check` may add to it.
    """
    ours: object
    published: object
    check: object
    count: int = 1
    flops: object = lambda: 0
    bytes: float = 0
    single_core: bool = False
    published_share: float = 1
    extra: dict = field(default_factory=dict)
    in_process: bool = True


@dataclass(frozen=True)
class Stage:
    """A row of the table. setup(options, **sizes) → Case; sizes, quick: its sizes, and those of --quick.

    aim: published over ours, wall time. memory_aim: ours over published, peak memory, at most. aim_text: the aim in
    words where it is another. limit: what stands between it and its aim, in words. on_device: whether --device matters
    to it. timed: False where only memory is measured.
    """
    name: str
    title: str
    setup: object
    sizes: dict = field(default_factory=dict)
    quick: dict = field(default_factory=dict)
    aim: float = None
    memory_aim: float = None
    aim_text: str = ''
    limit: str = ''
    on_device: bool = False
    timed: bool = True

    def prepare(self, options):
        """The stage's Case, in a process with the wanted threads."""
        torch.set_num_threads(options.threads)
        torch.backends.cudnn.allow_tf32 = False  # the stages are float32 on both sides
        torch.manual_seed(0)
        return self.setup(options, **(self.sizes | self.quick if options.quick else self.sizes))


def run(stage, options):
    """Measure a stage. Returns a JSON-ready dict: per side wall and cpu (seconds an image: lists) and memory (bytes);
    the median ratios of the pairs; what Case says of the work.
    """
    result = {'name': stage.name, 'title': stage.title} | in_child(measure, stage, options, 'ours', stage.timed)
    result.setdefault('published', {}).update(in_child(measure, stage, options, 'published', False)['published'])
    if stage.timed:
        for kind in ('wall', 'cpu'):
            pairs = zip(result['ours'][kind], result['published'][kind])
            result[f'{kind}_ratio'] = statistics.median(published / ours for ours, published in pairs)
    return result


def in_child(function, *args):
    """function(*args) in a fresh process, so that neither allocator nor caches carry over from one stage to the next.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def measure(stage, options, first, timing):
    """In a fresh process: the memory of the first call, which is `first`'s; then, if `timing`, both sides' time."""
    case = stage.prepare(options)
    device = options.device if stage.on_device else 'cpu'
    memory, outcome = first_call(getattr(case, first), device)
    result = {first: {'memory': memory}}
    if timing:
        agreement = case.check(outcome, case.published())
        times = alternate(case, device, *((2, 5, 3) if options.quick else (5, 15, 10)))
        result = {'ours': times['ours'] | result['ours'], 'published': times['published'], 'agreement': agreement,
                  'repetitions': len(times['ours']['wall']),
                  'hottest': hottest(case.ours, device) if case.in_process else []}
    if first == 'ours':
        result |= {'flops': case.flops() / case.count, 'bytes': case.bytes / case.count,
                   'single_core': case.single_core, 'extra': case.extra}
    return result


def hottest(call, device, most=4):
    """Where a call spends its own time: [(what, share of the whole)], the largest first.

    PyTorch's operations (on CUDA: its kernels) where they make up most of it, else Python's and libraries' functions.
    """
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else it reports on the terminal that there is no GPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device == 'cuda')
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        call()
        synchronise(device)
        whole = time.perf_counter() - start
    own = 'self_device_time_total' if device == 'cuda' else 'self_cpu_time_total'
    operations = [(event.key, getattr(event, own) / 1e6) for event in profiler.key_averages()]
    if sum(seconds for _, seconds in operations) < 0.6 * whole:
        operations, whole = functions(call)
    largest = sorted(operations, key=lambda pair: -pair[1])[:most]
    return [(name, seconds / whole) for name, seconds in largest]


def functions(call):
    """[(function, its own seconds)] of a call, and the seconds of all."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    stats = pstats.Stats(profiler)
    return [(name_of(*key), row[2]) for key, row in stats.stats.items()], stats.total_tt


def name_of(file, line, function):
    """A profiled function's name as a person writes it: crf._infer, DenseCRF.stepInference."""
    method = re.search(r"method '?([\w.]+)'?(?: of '([\w.]+)' objects)?", function) if file == '~' else None
    if method:
        return '.'.join(part for part in ((method[2] or '').split('.')[-1], method[1]) if part)
    return function if file == '~' else f'{Path(file).stem}.{function}'


def alternate(case, device, least, most, budget):
    """Time ours and the published side in turn, at least `least` times each, at most `most`, more than `least` only
    within `budget` seconds. Returns {side: {'wall', 'cpu': seconds an image, a list}}.
    """
    out = {side: {'wall': [], 'cpu': []} for side in ('ours', 'published')}
    begin = time.perf_counter()
    for repetition in range(most):
        if repetition >= least and time.perf_counter() - begin > budget:
            break
        for side, share in (('ours', 1), ('published', case.published_share)):
            for kind, seconds in zip(('wall', 'cpu'), timed(getattr(case, side), device)):
                out[side][kind].append(seconds / share / case.count)
    return out


def timed(call, device):
    """(wall, CPU) seconds of a call. CPU time: all threads and child processes that have ended."""
    gc.collect()
    synchronise(device)
    wall, cpu = time.perf_counter(), cpu_seconds()
    call()
    synchronise(device)
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds():
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def synchronise(device):
    if device == 'cuda':
        torch.cuda.synchronize()


def first_call(call, device):
    """Bytes by which a call raises the peak (resident memory on the CPU, allocated memory on CUDA), and what it
    returns.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outcome = call()
        return torch.cuda.max_memory_allocated() - before, outcome
    before = reset_peak()
    outcome = call()
    return max(0, peak() - before), outcome


def reset_peak():
    """Make the present resident memory the peak, where the system can (Linux), and return what counts as the start, in
    bytes.
    """
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
    except OSError:
        pass  # then the peak of the preparation stands, and the difference is a lower bound
    return peak()


def peak():
    """The peak resident memory of this process in bytes."""
    try:
        with open('/proc/self/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith('VmHWM:')) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)

"""How a stage is measured: our formulation and the published formulation, on the same inputs, alternately."""
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
    """quick: smaller inputs, fewer repetitions. threads: PyTorch's. device: 'cpu' or 'cuda', of networks and losses."""
    quick: bool
    threads: int
    device: str = 'cpu'


@dataclass
class Case:
    """A stage after its setup: inputs, weights and files exist, only the work is left.

    ours, published: callables without arguments (published may be None, where what it needs is not installed), giving
    results that `check(ours, published)` compares; it returns words for the agreement found and raises AssertionError
    where it is worse than the golden tolerances. count: images a call handles. flops: function that counts a call's
    arithmetic; bytes: the least memory traffic that a call needs; both for the floor. single_core: whether the work
    runs on one core whatever `threads`. published_fraction: the fraction of the published work that a call does.
    extra: {words: value} for the report, to which `check` may add. in_process: False where other processes do the work,
    which a profiler of this process does not see.
    """
    ours: object
    published: object
    check: object
    count: int = 1
    flops: object = lambda: 0
    bytes: float = 0
    single_core: bool = False
    published_fraction: float = 1
    extra: dict = field(default_factory=dict)
    in_process: bool = True


def prepare(stage, options):
    """The Case of a table.Stage, in a process with the wanted threads."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return stage.function(options, **(stage.sizes | stage.quick if options.quick else stage.sizes))


def run(stage, options):
    """Measure a table.Stage. Returns a JSON-ready dict: per side wall and cpu (seconds an image: lists) and memory
    (bytes); the median ratios of the pairs; what Case says of the work.
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
    case = prepare(stage, options)
    memory, outcome = first_call(getattr(case, first))
    result = {first: {'memory': memory}}
    if timing:
        agreement = case.check(outcome, case.published())
        times = alternate(case, *((2, 5, 3) if options.quick else (5, 15, 10)))
        result = {'ours': times['ours'] | result['ours'], 'published': times['published'], 'agreement': agreement,
                  'repetitions': len(times['ours']['wall']),
                  'hottest': hottest(case.ours) if case.in_process else []}
    if first == 'ours':
        result |= {'flops': case.flops() / case.count, 'bytes': case.bytes / case.count,
                   'single_core': case.single_core, 'extra': case.extra}
    return result


def hottest(call, most=4):
    """Where a call spends its own time: [(what, fraction of the whole)], the largest first.

    PyTorch's operations where they make up most of it, else Python's and libraries' functions.
    """
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else it reports on the terminal that there is no GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        call()
        whole = time.perf_counter() - start
    operations = [(event.key, event.self_cpu_time_total / 1e6) for event in profiler.key_averages()]
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
    """A profiled function's name in short: crf._infer, DenseCRF.stepInference."""
    method = re.search(r"method '?([\w.]+)'?(?: of '([\w.]+)' objects)?", function) if file == '~' else None
    if method:
        return '.'.join(part for part in ((method[2] or '').split('.')[-1], method[1]) if part)
    return function if file == '~' else f'{Path(file).stem}.{function}'


def alternate(case, least, most, budget):
    """Time ours and the published side in turn, at least `least` times each, at most `most`, more than `least` only
    within `budget` seconds. Returns {side: {'wall', 'cpu': seconds an image, a list}}.
    """
    out = {side: {'wall': [], 'cpu': []} for side in ('ours', 'published')}
    begin = time.perf_counter()
    for repetition in range(most):
        if repetition >= least and time.perf_counter() - begin > budget:
            break
        for side, fraction in (('ours', 1), ('published', case.published_fraction)):
            for kind, seconds in zip(('wall', 'cpu'), timed(getattr(case, side))):
                out[side][kind].append(seconds / fraction / case.count)
    return out


def timed(call):
    """(wall, CPU) seconds of a call. CPU time: all threads and child processes that have ended."""
    gc.collect()
    wall, cpu = time.perf_counter(), cpu_seconds()
    call()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds():
    """CPU seconds of this process and of its children that have ended."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def first_call(call):
    """Bytes by which a call raises the peak of resident memory, and what it returns."""
    gc.collect()
    before = reset_peak()
    outcome = call()
    return max(0, peak() - before), outcome


def reset_peak():
    """Reset the peak of resident memory to its present value (Linux only). Returns the peak after it, in bytes: growth
    counts from there.
    """
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
    except OSError:
        pass  # without a reset the peak of the setup remains, and the difference is a lower bound
    return peak()


def peak():
    """The peak resident memory of this process in bytes."""
    try:
        with open('/proc/self/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith('VmHWM:')) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)

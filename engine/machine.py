"""The cores of this machine: how many a run may use, how many are idle now. No torch here.

The choices behind `--threads auto` and `--num_workers auto`. On a core that another process uses too, two threads wait
for each other at every layer: they were measured to be up to ten times slower than one thread.
"""
import os
import platform
import time
from pathlib import Path

from engine.ranks import local_world_size

CPU_TIMES = Path('/proc/stat')  # Linux: a line per core, `cpu3 user nice system idle iowait …`, in ticks
CPU_INFO = Path('/proc/cpuinfo')  # Linux
SAMPLE = 0.25  # seconds that the load is watched
ROUNDING = 0.3  # a core that is idle for 70 % of the time counts as idle


def cores():
    """Number of processors this process may use."""
    return len(allowed_cores())


def allowed_cores():
    """The indices of the processors this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor():
    """The model of the processor; the name of its architecture where the system does not tell."""
    try:
        lines = CPU_INFO.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        lines = []
    found = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return found[0] if found else platform.processor() or platform.machine()


def idle_cores():
    """How many of this process's processors nobody uses now, as a fraction of cores: 0..cores().

    Watched for a quarter of a second on Linux. Elsewhere the load of the last minute is taken off the number of cores.
    """
    before = _ticks()
    if before is None:
        return max(0., cores() - os.getloadavg()[0]) if hasattr(os, 'getloadavg') else float(cores())
    time.sleep(SAMPLE)
    after = _ticks()
    idle = 0.
    for core in before.keys() & after.keys():
        all_ticks, idle_ticks = (now - then for now, then in zip(after[core], before[core]))
        idle += idle_ticks / all_ticks if all_ticks else 1.  # a core without a tick slept
    return idle


def _ticks():
    """{core: (ticks since boot, idle ticks among them)} of the allowed processors; None where Linux does not tell."""
    try:
        lines = CPU_TIMES.read_text().splitlines()
    except OSError:
        return None
    found = {}
    for core in allowed_cores():
        values = next((line.split()[1:] for line in lines if line.startswith(f'cpu{core} ')), None)
        if values is not None:
            ticks = [int(value) for value in values]
            found[core] = sum(ticks[:8]), sum(ticks[3:5])  # the 9th and 10th are counted in the first two already
    return found or None


def choose_threads(threads, workers):
    """The number of threads of the main process, at least 1.

    threads: a number, which is taken, or 'auto': as many as cores are idle now, less one for each of `workers` worker
    processes; OMP_NUM_THREADS, where it is set, counts as a number. Processes that a launcher started on this machine
    share its cores.
    """
    if threads == 'auto':
        threads = os.environ.get('OMP_NUM_THREADS', '').split(',')[0]
        if not threads.isdigit() or int(threads) == 0:
            return max(1, int(idle_cores() / local_world_size() + ROUNDING) - workers)
    return int(threads)


def choose_workers(workers, on_cpu):
    """The number of worker processes beside a network. workers: a number, which is taken, or 'auto'.

    auto beside a GPU: a process per core, at most 8, so that the GPU need not wait. On a CPU the network itself is what
    takes the time, so that a core is worth more as its thread: one process for eight cores. Processes that torchrun
    started on this machine share its cores.
    """
    if workers != 'auto':
        return workers
    own = cores() // local_world_size()
    return own // 8 if on_cpu else min(8, own)

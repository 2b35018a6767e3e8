"""Many images over several processes, one thread each, with a progress bar."""
import collections
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import cv2
from tqdm import tqdm

from engine.ranks import is_main

AHEAD = 32  # calls that wait for each process of each_image: a slow one among them keeps no other process idle


def _start_worker():
    """Worker start-up: one thread per process; with a process per core, further threads would compete for the cores."""
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent():
    """End this worker with the main process. When that is killed, an idle worker would wait for work for ever, and a
    busy worker would write the files that the next run is writing too."""
    multiprocessing.parent_process().join()
    os._exit(1)


def executor(workers):
    """A pool of `workers` processes of one thread each. They are spawned, not forked: forking a process that runs
    threads can hang.
    """
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
        # Only affects the workers: BLAS and PyTorch read these when they are loaded. A number that the user gave is for
        # this process; so many threads in every worker would wait for one another.
        os.environ[name] = '1'
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker)


def progress(iterable=None, desc=None, total=None, unit='image', **kwargs):
    """The progress bar of all scripts (to stderr; rate and ETA included). Redrawn rarely where stderr is a file; of
    several processes the first alone draws."""
    interval = 0.3 if sys.stderr.isatty() else 15
    return tqdm(iterable, desc=desc, total=total, unit=unit, dynamic_ncols=True, mininterval=interval,
                maxinterval=interval, disable=not is_main(), **kwargs)


def map_images(function, items, workers, desc):
    """The list of what each_image yields."""
    return list(each_image(function, items, workers, desc))


def each_image(function, items, workers, desc):
    """Yield function(item) of each item, in order, over `workers` processes (0: in this one), under a progress bar.

    function must be importable (top level of a module). The first exception stops the work and is raised here;
    items that were finished keep what they wrote. Only AHEAD calls a process wait: memory does not grow with the list.
    """
    items = list(items)
    if workers == 0 or len(items) < 2:
        with progress(items, desc) as bar:  # closes the bar first, so that an error message starts on its own line
            yield from map(function, bar)
        return
    with executor(min(workers, len(items))) as pool:
        try:
            with progress(_results(pool, function, items, AHEAD * workers), desc, len(items)) as bar:
                yield from bar
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _results(pool, function, items, most):
    """Yield function(item) of each item from a pool, in order; at most `most` calls wait."""
    pending = collections.deque()
    for item in items:
        if len(pending) == most:
            yield pending.popleft().result()
        pending.append(pool.submit(function, item))
    while pending:
        yield pending.popleft().result()


class WorkerPool:
    """Runs functions in `workers` processes behind the loop that submits them; at most 2·workers calls wait.

    Use as a context: leaving it waits for all calls, and raises the first exception that a call raised. With 0 workers
    a call runs at once. done: called here with the result of each call, in order.
    """

    def __init__(self, workers, done=lambda result: None):
        self.workers, self.done, self.pending = workers, done, collections.deque()
        self.pool = executor(workers) if workers else None

    def submit(self, function, *args):
        if self.pool is None:
            self.done(function(*args))
            return
        while len(self.pending) >= 2 * self.workers:
            self.done(self.pending.popleft().result())
        self.pending.append(self.pool.submit(function, *args))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.pool is None:
            return
        try:
            while kind is None and self.pending:
                self.done(self.pending.popleft().result())
        finally:
            self.pool.shutdown(cancel_futures=True)

"""Runs a part in a process of its own: passes rows on, turns a failure into a row, ends the process after its time."""
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

from benchmarks.gpu_parts.measure import Row, in_words
from benchmarks.gpu_parts.report import describe_card


def results(part, settings, seconds):
    """Yield what a part of benchmarks/gpu.py finds: first a dict that describes the card, then Rows.

    A part that fails, dies or is not done after `seconds` ends with a Row that says so.
    """
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(part, settings, sender))
    deadline = time.monotonic() + seconds
    process.start()
    sender.close()
    try:
        while True:
            ready = wait([receiver, process.sentinel], max(0., deadline - time.monotonic()))
            found = receive(receiver) if receiver in ready else None
            if found == 'done':
                return
            if found is None:
                yield Row(part.name, part.name, note=ending(process) if ready else f'stopped after {seconds:.0f} s')
                return
            yield found
    finally:
        end(process)


def receive(receiver):
    """What the child sent; None where the child died."""
    try:
        return receiver.recv()
    except EOFError:
        return None


def ending(process):
    """How a child died, in words."""
    process.join(10)
    return f'died with exit code {process.exitcode}'


def end(process):
    """End a child and the processes that it started."""
    for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
        try:
            kill()
        except ProcessLookupError:
            pass  # the process has ended, or does not lead a group yet
    process.join()


# ---------------------------------------------------------------- in the child

def work(part, settings, sender):
    """Send the card, the part's rows, and 'done'."""
    os.setsid()  # a group of its own, so that the loaders and scripts that the part starts end with the part
    threading.Thread(target=leave_with_parent, daemon=True).start()
    sender.send(describe_card(settings.place))
    try:
        for row in part.function(settings):
            sender.send(row)
    except Exception as error:
        sender.send(Row(part.name, part.name, note=in_words(error)))
    sender.send('done')


def leave_with_parent():
    """End this group when the main process is killed; otherwise the part would keep the GPU busy."""
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)

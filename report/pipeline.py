"""Running the numbered commands one after the other: printed as a person types them, logged, and skipped when done."""
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from engine import files, outputs, process
from engine.errors import UserError
from engine.files import REPO

CHILDREN = set()  # the processes of the steps that run now, in any thread


@dataclass(frozen=True)
class Step:
    """One command of a chain. name: short, unique, a file name. argv: the command after `python`, as typed from the
    repository's root. after: names of the steps whose output it reads (a step is redone when one of them was).
    machine: arguments that change how it runs but not what it computes (device, workers).
    makes: patterns, from the repository's root, of what it writes; removed before it is done anew.
    leaves: further patterns of what is there when it is done, and never removed."""
    name: str
    argv: tuple
    after: tuple = ()
    machine: tuple = ()
    makes: tuple = ()
    leaves: tuple = ()

    @property
    def line(self):
        """The command as a person types it."""
        return shlex.join(['python', *map(str, (*self.argv, *self.machine))])

    def made(self):
        """The paths of `makes` that exist."""
        return [path for pattern in self.makes for path in matches(pattern)]

    def gone(self):
        """Whether something that it wrote does not exist any more, or is an empty folder."""
        return any(not any(map(holds_something, matches(pattern))) for pattern in (*self.makes, *self.leaves))

    def reads(self, other):
        """Whether it reads what another step writes: it says so, or its command names it."""
        named = any(fnmatch(str(text), pattern) or str(text).startswith(f'{pattern}/')
                    for text in self.argv for pattern in map(str, (*other.makes, *other.leaves)))
        return other.name in self.after or named


def matches(pattern):
    """The paths of a pattern, from the repository's root, in order; its last part may hold wildcards."""
    return sorted((REPO / pattern).parent.glob(Path(pattern).name))


def holds_something(path):
    """Whether a path is a file, or a folder with more in it than the note of what made it."""
    return not path.is_dir() or any(entry.name != outputs.NAME for entry in path.iterdir())


def portable(path):
    """A user's path for the steps, which run in the repository's folder: relative to it if it lies inside, else whole.

    A relative path counts from the current folder. '' stays ''.
    """
    if not str(path):
        return ''
    path = Path(os.path.abspath(path))
    return str(path.relative_to(REPO) if path.is_relative_to(REPO) else path)


def run_steps(steps, log_dir, dry_run=False, start=None, quiet=False):
    """Run the steps in order. Returns {name: seconds it took, now or when it was done before}; {} for a dry run.

    A step is done when <log_dir>/<name>.json records its fingerprint: its command and the steps it reads from. Where
    what it made was deleted since, it is done again if a step that is still to be done reads it.
    What it prints goes to the terminal and to <log_dir>/<name>.log. dry_run: print the commands only.
    start: name of a step. Those before it are taken as done; it and those after are done anew, without what they left.
    quiet: print nothing; the log has all, progress bars and messages included (for chains that run side by side).
    UserError: a command failed (its message stands above); what it left came from another command; no step `start`.
    """
    names = [step.name for step in steps]
    if start is not None and start not in names:
        raise UserError('--from', f'there is no step {start}', f'choose one of {", ".join(names)}')
    first = names.index(start) if start else 0
    log_dir = Path(log_dir) if dry_run else files.out_dir(log_dir, 'run folder')
    prints, seconds = fingerprints(steps), {}
    recorded = {step.name for step in steps if is_recorded(step, log_dir, prints)}
    done = set(names[:first]) if start else set(recorded)
    again = [] if dry_run else to_do_again(steps, done, recorded)
    for index, step in enumerate(steps):
        title, command = f'[{index + 1}/{len(steps)}] {step.name}', f'    {step.line}'
        if dry_run:
            print(f'{title}\n{command}')
            continue
        note = ': again, for what it made was deleted' if step in again else ': done already' * (step.name in done)
        if not quiet:
            print(f'{title}{note}\n{command}', flush=True)
        if step in again:
            record_run(step, log_dir, prints[step.name], quiet)
        elif step.name not in done:
            anew = start is not None or any(step.reads(other) for other in again)
            before = read_record(log_dir, step.name)
            clear(step, before, prints[step.name], anew)
            goes_on = before['fingerprint'] == prints[step.name] and not anew
            record_run(step, log_dir, prints[step.name], quiet, before['stopped_after'] if goes_on else 0.)
        seconds[step.name] = read_record(log_dir, step.name)['seconds'] or 0.
    return seconds


def to_do_again(steps, done, recorded):
    """The steps that were done, but whose output is gone and is read by a step that is to be done (or done again).

    done, recorded: names of the steps that count as done, and of those that this chain did.
    """
    again = []
    for index in reversed(range(len(steps))):
        step = steps[index]
        if step.name in done & recorded and step.gone():
            if any(later.reads(step) for later in steps[index + 1:] if later.name not in done or later in again):
                again.append(step)
    return again


def fingerprints(steps):
    """{name: fingerprint} of the steps of a chain."""
    prints = {}
    for step in steps:
        prints[step.name] = fingerprint(step, prints)
    return prints


def is_recorded(step, log_dir, prints):
    """Whether the step, as it is now, was done to its end. prints: its fingerprint under its name."""
    record = read_record(log_dir, step.name)
    return record['fingerprint'] == prints[step.name] and record['seconds'] is not None


def fingerprint(step, earlier):
    """A digest of the step's arguments and of the fingerprints (dict name → digest) of the steps it reads from."""
    text = '\n'.join([shlex.join(map(str, step.argv)), *(earlier.get(name, '') for name in step.after)])
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(log_dir, name):
    """{'fingerprint', 'command', 'seconds', 'stopped_after'} of the last time a step was begun.

    seconds: that it took, None where it did not end. stopped_after: those of attempts that were stopped or failed (of
    one that was killed nothing is known). Fingerprint and command are None where it never was begun.
    """
    record = {'fingerprint': None, 'command': None, 'seconds': None, 'stopped_after': 0.}
    try:
        return record | json.loads((Path(log_dir) / f'{name}.json').read_text(encoding='utf-8'))
    except FileNotFoundError:
        return record


def clear(step, before, now, anew):
    """Make sure that the step does not go on with files that another command left: scripts skip files that exist.

    before: its record; now: its fingerprint. anew: remove what it left. UserError: another command left it, not anew.
    """
    if anew:
        for path in step.made():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif before['fingerprint'] != now and step.made():
        raise UserError(step.made()[0], f'was left by another command than {step.name} now is, or by other input',
                        f'add --from {step.name} to do the chain anew from there, or choose another folder')


def record_run(step, log_dir, digest, quiet, spent=0.):
    """Run the step; keep a record that it was begun (its fingerprint: `digest`) and, in the end, how long it took.

    spent: seconds of the attempts before, which were stopped and which this one goes on from.
    """
    path = log_dir / f'{step.name}.json'
    record = {'fingerprint': digest, 'command': step.line}
    files.save_json(path, record | {'seconds': None, 'stopped_after': spent})
    start = time.monotonic()

    def so_far():
        return round(spent + time.monotonic() - start, 1)
    try:
        run(step, log_dir, quiet)
    except BaseException:
        files.save_json(path, record | {'seconds': None, 'stopped_after': so_far()})
        raise
    files.save_json(path, record | {'seconds': so_far()})


def run(step, log_dir, quiet):
    """Run one step from the repository's root; its output is passed on line by line (unless quiet) and logged."""
    log = log_dir / f'{step.name}.log'
    command = [sys.executable, '-u', *map(str, (*step.argv, *step.machine))]
    messages = subprocess.STDOUT if quiet else None
    encoding = sys.stdout.encoding or 'utf-8'  # the child's too: the same variables decide
    environment = os.environ | {process.IN_CHAIN: '1'}
    with open(log, 'w', encoding='utf-8') as file, \
            subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=messages, text=True,
                             encoding=encoding, errors='backslashreplace') as child, ended_by_sigterm():
        file.write(f'$ {step.line}\n')
        CHILDREN.add(child)
        try:
            for text in child.stdout:
                if not quiet:
                    print('    ' + text, end='', flush=True)
                file.write(text)
            code = child.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the child as well: wait while it saves its checkpoint
            child.wait()
            raise
        except BaseException:  # nobody reads the output any more, or SIGTERM: a training saves its checkpoint
            child.terminate()
            raise
        finally:
            CHILDREN.discard(child)
    if code:
        where = f'see {log}' if quiet else f'see above and {log}'
        raise UserError(step.name, f'ended with exit code {code}', f'{where}; the same command continues from here')


def end_children():
    """End the processes of the steps that other threads run; a training saves its checkpoint first."""
    for child in list(CHILDREN):
        child.terminate()


@contextlib.contextmanager
def ended_by_sigterm():
    """Let SIGTERM raise SystemExit in this block, so that a child process is ended too. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, _):
        sys.exit(128 + number)
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

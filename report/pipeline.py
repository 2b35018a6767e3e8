"""Running the numbered commands one after the other: printed as a person types them, logged, and skipped when done."""
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from engine import files
from engine.errors import UserError
from engine.files import REPO


@dataclass(frozen=True)
class Step:
    """One command of a chain. name: short, unique, a file name. argv: the command after `python`, as typed from the
    repository's root. after: names of the steps whose output it reads (a step is redone when one of them was).
    machine: arguments that change how it runs but not what it computes (device, workers).
    makes: patterns, from the repository's root, of what it writes; removed before it is done anew."""
    name: str
    argv: tuple
    after: tuple = ()
    machine: tuple = ()
    makes: tuple = ()

    @property
    def line(self):
        """The command as a person types it."""
        return shlex.join(['python', *map(str, (*self.argv, *self.machine))])

    def made(self):
        """The paths of `makes` that exist."""
        found = [(REPO / pattern).parent.glob(Path(pattern).name) for pattern in self.makes]
        return [path for paths in found for path in sorted(paths)]


def run_steps(steps, log_dir, dry_run=False, start=None, quiet=False):
    """Run the steps in order. Returns {name: seconds it took, now or when it was done before}; {} for a dry run.

    A step is done when <log_dir>/<name>.json records its fingerprint: its command and the steps it reads from.
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
    prints, seconds = {}, {}
    for index, step in enumerate(steps):
        prints[step.name] = fingerprint(step, prints)
        title, command = f'[{index + 1}/{len(steps)}] {step.name}', f'    {step.line}'
        if dry_run:
            print(f'{title}\n{command}')
            continue
        before = read_record(log_dir, step.name)
        same = before['fingerprint'] == prints[step.name] and before['seconds'] is not None
        done = index < first or start is None and same
        if not quiet:
            print(f'{title}{": done already" if done else ""}\n{command}', flush=True)
        if not done:
            clear(step, before, prints[step.name], anew=start is not None)
            record_run(step, log_dir, prints[step.name], quiet)
        seconds[step.name] = read_record(log_dir, step.name)['seconds'] or 0.
    return seconds


def fingerprint(step, earlier):
    """A digest of the step's arguments and of the fingerprints (dict name → digest) of the steps it reads from."""
    text = '\n'.join([shlex.join(map(str, step.argv)), *(earlier.get(name, '') for name in step.after)])
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(log_dir, name):
    """{'fingerprint', 'command', 'seconds'} of the last time a step was begun; seconds None where it did not end, all
    None where it never was."""
    try:
        return json.loads((Path(log_dir) / f'{name}.json').read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {'fingerprint': None, 'command': None, 'seconds': None}


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


def record_run(step, log_dir, digest, quiet):
    """Run the step; keep a record that it was begun (its fingerprint: `digest`) and, in the end, how long it took."""
    record = {'fingerprint': digest, 'command': step.line, 'seconds': None}
    files.save_json(log_dir / f'{step.name}.json', record)
    start = time.monotonic()
    run(step, log_dir, quiet)
    files.save_json(log_dir / f'{step.name}.json', record | {'seconds': round(time.monotonic() - start, 1)})


def run(step, log_dir, quiet):
    """Run one step from the repository's root; its output is passed on line by line (unless quiet) and logged."""
    log = log_dir / f'{step.name}.log'
    command = [sys.executable, '-u', *map(str, (*step.argv, *step.machine))]
    messages = subprocess.STDOUT if quiet else None
    with open(log, 'w', encoding='utf-8') as file, \
            subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=messages, text=True) as child:
        file.write(f'$ {step.line}\n')
        try:
            for text in child.stdout:
                if not quiet:
                    print('    ' + text, end='', flush=True)
                file.write(text)
            code = child.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the child as well: wait while it saves its checkpoint
            child.wait()
            raise
    if code:
        where = f'see {log}' if quiet else f'see above and {log}'
        raise UserError(step.name, f'ended with exit code {code}', f'{where}; the same command continues from here')

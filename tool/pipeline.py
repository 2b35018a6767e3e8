"""Running the numbered commands one after the other: printed as a person would type them, logged, and skipped when done."""
import hashlib
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tool import files
from tool.cli import REPO, UserError


@dataclass(frozen=True)
class Step:
    """One command of a chain. name: short, unique, a file name. words: the command after `python`, as typed from the
    repository's root. after: names of the steps whose output it reads (a step is redone when one of them was)."""
    name: str
    words: tuple
    after: tuple = ()

    @property
    def line(self):
        """The command as a person types it."""
        return shlex.join(['python', *map(str, self.words)])


def run_steps(steps, log_dir, dry_run=False):
    """Run the steps in order. Returns {name: seconds it took (0.0 where it was done before)}.

    A step is done when <log_dir>/<name>.done holds the fingerprint of its command and of the steps it reads from.
    What it prints goes to the terminal and to <log_dir>/<name>.log. dry_run: print the commands only.
    UserError: a command failed (its own message stands above).
    """
    log_dir = files.out_dir(log_dir, 'run folder') if not dry_run else Path(log_dir)
    prints, seconds = {}, {}
    for number, step in enumerate(steps, 1):
        prints[step.name] = fingerprint(step, prints)
        stamp = log_dir / f'{step.name}.done'
        done = not dry_run and stamp.exists() and stamp.read_text() == prints[step.name]
        print(f'[{number}/{len(steps)}] {step.name}{": done already" if done else ""}\n    {step.line}', flush=True)
        seconds[step.name] = 0.
        if not done and not dry_run:
            start = time.monotonic()
            run(step, log_dir)
            seconds[step.name] = time.monotonic() - start
            files.save_text(stamp, prints[step.name])
    return seconds


def fingerprint(step, earlier):
    """A digest of the step's command and of the fingerprints (dict name → digest) of the steps it reads from."""
    text = '\n'.join([step.line, *(earlier.get(name, '') for name in step.after)])
    return hashlib.sha256(text.encode()).hexdigest()


def run(step, log_dir):
    """Run one step from the repository's root; its output is passed on line by line and kept in the log."""
    log = log_dir / f'{step.name}.log'
    command = [sys.executable, '-u', *map(str, step.words)]
    with open(log, 'w', encoding='utf-8') as file, subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as child:
        file.write(f'$ {step.line}\n')
        for text in child.stdout:
            print('    ' + text, end='', flush=True)
            file.write(text)
        code = child.wait()
    if code:
        raise UserError(step.name, f'ended with exit code {code}', f'see above and {log}; the same command continues from here')

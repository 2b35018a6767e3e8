"""What many tests share: running scripts, processes that are watched, what a refusal looks like, golden files, filled
networks, folder bytes."""
import importlib.util
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import cli
from engine.files import REPO
from golden.fill import fill_state_dict

GOLDEN = Path(__file__).resolve().parent / 'golden'


def golden(name):
    """The arrays of golden/<name>, as numpy.load gives them."""
    return np.load(GOLDEN / name)


def filled(net_class, *args, **options):
    """A network in eval mode with the golden weights, which depend on its state-dict keys alone.

    net_class: called with `args` and `options` on PyTorch's meta device, so that no time goes into random weights.
    """
    with torch.device('meta'):
        net = net_class(*args, **options)
    net = net.to_empty(device='cpu').eval()
    net.load_state_dict(fill_state_dict(net.state_dict()))
    return net


def take_ties_as_published(monkeypatch, module):
    """Let best_pixels of tool.contrast or reference.contrast_loss choose among equal scores as the published code did
    when the golden files were measured: by torch.topk on a CPU. Here the first count (METHOD 9.7)."""
    monkeypatch.setattr(module, 'best_pixels', lambda scores, k: torch.topk(scores, k, dim=-1))


def script(name):
    """The module of a script, for example script('eval') or script('segmentation/experiment/train')."""
    spec = importlib.util.spec_from_file_location(f'script_{name.replace("/", "_")}', REPO / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def parser_of(path):
    """The argument parser of a script, which is loaded but not run."""
    return script(path.removesuffix('.py')).get_args_parser()


def parsed(argv):
    """A command line, the script first, as this understands it; a flag that it lacks ends, and so fails, the test."""
    path, *rest = map(str, argv)
    return parser_of(path).parse_args(rest)


def run_main(name, *argv):
    """Run a script's main in this process with these arguments; its exceptions are raised here."""
    module = script(name)
    module.main(module.get_args_parser().parse_args([str(text) for text in argv]))


def planned(capsys, name, *argv):
    """{step: its command line, the script first} that a script which runs a chain prints with --dry_run."""
    capsys.readouterr()
    run_main(name, *argv, '--dry_run')
    lines = capsys.readouterr().out.splitlines()
    commands = {title.split()[1]: shlex.split(line) for title, line in zip(lines[::2], lines[1::2])}
    assert {python for python, *_ in commands.values()} == {'python'}
    return {step: argv for step, (_, *argv) in commands.items()}


def run_script(name, *argv, **options):
    """Run a script as a user does, in a process of its own: subprocess.CompletedProcess with text output."""
    command = [sys.executable, REPO / f'{name}.py', *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, **options)


# ---------------------------------------------------------------- processes that are watched

def start(name, argv, *, before=(), **options):
    """Start a script, in a process group of its own. before: what stands between the interpreter and the script."""
    command = [sys.executable, *map(str, before), REPO / f'{name}.py', *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            **options)


def torchrun(name, argv, processes=2):
    """Start a script in several processes. The launcher starts each in a group of its own."""
    launcher = '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', processes
    return start(name, argv, before=launcher)


FORKSERVER = multiprocessing.get_context('forkserver')
FORKSERVER.set_forkserver_preload(['helpers', 'engine.datasets', 'engine.training', 'engine.training_pictures',
                                   'engine.validation', 'segmentation.model', 'matplotlib.backends.backend_agg'])


class Forked(FORKSERVER.Process):
    """A script in a process of its own which is forked from one that has loaded the modules: it starts at once.

    said: file for what it prints. prepare: function that is called there first. environment: more variables.
    poll and communicate are those of subprocess.Popen.
    """

    def __init__(self, name, argv, said, prepare=None, **environment):
        super().__init__()
        self.script, self.argv, self.said = name, [str(text) for text in argv], said
        self.prepare, self.environment = prepare, environment
        self.start()

    def run(self):
        with open(self.said, 'ab', 0) as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        os.environ.update(self.environment)
        multiprocessing.set_start_method(None, force=True)  # as a script has it: this process was told 'forkserver'
        if self.prepare:
            self.prepare()
        module = script(self.script)
        cli.run(module.main, module.get_args_parser(), self.argv)

    @property
    def returncode(self):
        return self.exitcode

    def poll(self):
        return self.exitcode

    def communicate(self, timeout=None):
        self.join(timeout)
        return self.said.read_text()


def wait_until(process, reached, patience=600):
    """Return once reached() is true, of a process that runs until then."""
    end = time.monotonic() + patience
    while not reached():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.005)


def wait_for_steps(process, log, steps):
    """Return once the loss log of a running process holds so many steps."""
    wait_until(process, lambda: log.exists() and log.read_bytes().count(b'\n') >= steps)


def children(pid):
    """The process ids of a process's children, their children included; but for Python's resource tracker."""
    found = []
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/children') as file:
            found += [int(text) for text in file.read().split()]
    return [pid for child in found for pid in (child, *children(child)) if not is_tracker(pid)]


def is_tracker(pid):
    """Whether a process is Python's resource tracker."""
    with open(f'/proc/{pid}/cmdline') as file:
        return 'resource_tracker' in file.read()


def assert_nothing_left(pids):
    """None of these processes runs any more, or will in a moment."""
    end = time.monotonic() + 10
    while left := [pid for pid in pids if os.path.exists(f'/proc/{pid}')]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


# ---------------------------------------------------------------- what they say and leave

def assert_refused(capsys, name, *argv):
    """Run a script in this process; it must end as a user's mistake should: exit code 2, one error line, no traceback.

    Returns that line.
    """
    module = script(name)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(module.main, module.get_args_parser(), [str(text) for text in argv])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert end.value.code == 2
    assert len(errors) == 1
    assert errors[0].count('; ') >= 1, 'an error says what to do'
    return errors[0]


def run_flags(folder, *argv):
    """The flags that engine.training.Run reads, as a script would parse `argv`; TensorBoard's files go to <folder>/log.
    """
    parser = cli.ArgumentParser()
    cli.add_run_flags(parser)
    cli.add_device_flags(parser)
    fixed = '--tblog_dir', folder / 'log', '--num_workers', 0, '--device', 'cpu', '--picture_every', 0
    return parser.parse_args([str(text) for text in (*fixed, *argv)])


def tree_bytes(folder, suffix=''):
    """{path below the folder: bytes} of all its files whose names end in `suffix`."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(Path(folder).rglob(f'*{suffix}'))
            if path.is_file()}

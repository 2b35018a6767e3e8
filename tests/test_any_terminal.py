"""Any terminal, any notebook: encodings, `| head`, MPLBACKEND, TensorBoard, comments, relative paths, torchrun."""
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from helpers import assert_nothing_left, assert_refused, children, run_main, run_script, script
from matplotlib.figure import Figure
from test_house import SCRIPTS
from test_training import arguments_of, rows_of

import ablation
from data.cams import save_cams
from data.lists import read_list
from data.masks import read_mask
from engine import cli, process
from engine.files import REPO
from engine.tensorboard import TensorBoard
from report import figures, pipeline
from report.pipeline import Step
from tool.metrics import IGNORE


@pytest.fixture
def command(toy, tmp_path):
    """Function from more flags to the arguments of a training run of one epoch in tmp_path."""
    return functools.partial(arguments_of, toy, tmp_path, '--max_epoches', 1)


@pytest.fixture(scope='module')
def cams(toy, tmp_path_factory):
    """A folder of CAMs for the toy set's training images."""
    folder = tmp_path_factory.mktemp('cams')
    for name in read_list(toy.train):
        mask = read_mask(toy.root / 'SegmentationClass' / f'{name}.png')
        labels = np.setdiff1d(mask, (0, IGNORE)).astype(int)
        save_cams(folder / f'{name}.npy', labels - 1, [np.float32(mask == label) for label in labels])
    return folder


@pytest.fixture
def score(toy, cams, tmp_path):
    """Function from a comment and more flags to the arguments of eval.py on these CAMs."""
    def arguments(comment, *flags):
        return ['--list', toy.train, '--predict_dir', cams, '--gt_dir', toy.root / 'SegmentationClass', '--type', 'npy',
                f'--comment={comment}', '--num_workers', 0, '--logfile', tmp_path / 'log.txt', *flags]
    return arguments


# ---------------------------------------------------------------- encodings

@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1252', 'utf-8'])
def test_output_goes_to_a_terminal_of_any_encoding(score, encoding):
    done = subprocess.run([sys.executable, REPO / 'eval.py', *map(str, score('Größe → 猫'))], capture_output=True,
                          env={**os.environ, 'PYTHONIOENCODING': encoding})
    assert done.returncode == 0, done.stderr
    first = done.stdout.decode(encoding).splitlines()[0]
    expected = 'Größe → 猫'.encode(encoding, 'backslashreplace').decode(encoding)
    assert first.startswith(f'{expected}: 12 images')


def test_a_chain_passes_on_what_its_steps_print_in_any_encoding(tmp_path):
    code = ("import sys; sys.path.insert(0, sys.argv[1])\nfrom engine import process\nfrom report import pipeline\n"
            "process.prepare()\nstep = pipeline.Step('a', ('-c', 'print(\"Gr\\xf6\\xdfe\")'))\n"
            'pipeline.run_steps([step], sys.argv[2])\n')
    for encoding in ('latin-1', 'utf-8', 'ascii'):
        done = subprocess.run([sys.executable, '-c', code, REPO, tmp_path / encoding], capture_output=True,
                              env={**os.environ, 'PYTHONIOENCODING': f'{encoding}:backslashreplace'})
        assert done.returncode == 0, done.stderr
        expected = 'Größe'.encode(encoding, 'backslashreplace').decode(encoding)
        assert f'    {expected}\n' in done.stdout.decode(encoding)
        assert expected in (tmp_path / encoding / 'a.log').read_text(encoding='utf-8')


# ---------------------------------------------------------------- | head

def run_without_reader(argv, **options):
    """Run a command whose output nobody reads any more: (exit status, what it says on stderr)."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, *map(str, argv)], stdout=write, stderr=subprocess.PIPE, text=True, **options)
    os.close(write)
    return done.returncode, done.stderr


def test_a_reader_that_is_gone_is_no_word_worth(score, command):
    assert run_without_reader([REPO / 'eval.py', '--help'])[1] == ''
    status, said = run_without_reader([REPO / 'eval.py', *score('x')])
    assert status == 141
    assert 'Traceback' not in said and 'Error' not in said and 'Exception' not in said
    status, said = run_without_reader([REPO / 'contrast_train.py', *command()])
    assert status == 141 and 'Traceback' not in said and 'Exception' not in said


def test_a_mistake_is_still_said_without_a_reader(tmp_path):
    status, said = run_without_reader([REPO / 'eval.py', '--list', 'nowhere.txt', '--predict_dir', 'x',
                                       '--comment', 'x'])
    assert status == 2 and said.startswith('error: nowhere.txt: list not found')


def test_another_broken_pipe_is_a_bug(capsys, monkeypatch):
    def bug(args):
        raise BrokenPipeError(32, 'Broken pipe')
    monkeypatch.setattr(process, 'reader_is_gone', lambda: False)
    with pytest.raises(BrokenPipeError):
        cli.run(bug, cli.ArgumentParser(), [])


SLEEPER = 'import sys, time\nfor i in range(9999):\n    print(i, flush=True)\n    time.sleep(0.05)\n'
CHAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from engine import cli
from report import pipeline
steps = [pipeline.Step('a', ('-c', sys.argv[3]))]
cli.run(lambda args: pipeline.run_steps(steps, sys.argv[2]), cli.ArgumentParser(), [])
"""


@pytest.mark.long
@pytest.mark.parametrize('end', ['head', 'sigterm'])
def test_a_chain_that_ends_takes_its_step_along(tmp_path, end):
    chain = subprocess.Popen([sys.executable, '-c', CHAIN, REPO, tmp_path / 'log', SLEEPER], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    while b'    3\n' not in chain.stdout.readline():
        assert chain.poll() is None
    step = children(chain.pid)
    assert len(step) == 1
    if end == 'head':
        chain.stdout.close()
    else:
        chain.terminate()
    start = time.monotonic()
    assert chain.wait(30) == {'head': 141, 'sigterm': 128 + signal.SIGTERM}[end]
    assert time.monotonic() - start < 20
    assert_nothing_left(step)
    assert chain.stderr.read() == b''


SILENT = 'import time\nfrom engine import process\nprocess.prepare()\nprint(3, flush=True)\ntime.sleep(600)\n'


@pytest.mark.long
@pytest.mark.parametrize('starter', ['chain', 'torchrun'])
def test_what_a_chain_or_torchrun_started_ends_when_that_is_killed(tmp_path, starter):
    """It would write on, beside what the next start of the chain or of torchrun begins."""
    (tmp_path / 'silent.py').write_text(SILENT)
    command = {'chain': ['-c', CHAIN, REPO, tmp_path / 'log', SILENT],
               'torchrun': ['-m', 'torch.distributed.run', '--standalone', tmp_path / 'silent.py']}[starter]
    run = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while run.stdout.readline().strip() != b'3':
        assert run.poll() is None
    started = children(run.pid)
    assert started
    run.kill()
    run.communicate()
    assert_nothing_left(started)


# ---------------------------------------------------------------- notebooks

def test_the_backend_of_a_notebook_is_ignored(score, command, tmp_path):
    """Jupyter and Colab set it for every command of a notebook; matplotlib refuses a module that is not installed."""
    environment = {**os.environ, 'MPLBACKEND': 'module://some_notebook.backend_inline'}
    done = run_script('contrast_train', *command(), env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run.maps.png').stat().st_size > 1000
    done = run_script('eval', *score('x', '--curve'), env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'log.txt.png').stat().st_size > 1000


# ---------------------------------------------------------------- TensorBoard

BROKEN = {'of another protobuf': "raise TypeError('Descriptors cannot be created directly.')",
          'not installed': "raise ModuleNotFoundError('No module named tensorboard')",
          'of another age': "raise AttributeError('module distutils has no attribute version')"}


@pytest.mark.parametrize('kind', [kind if kind == 'not installed' else pytest.param(kind, marks=pytest.mark.long)
                                  for kind in BROKEN])
def test_a_broken_tensorboard_is_a_warning(command, tmp_path, kind):
    (tmp_path / 'broken' / 'tensorboard').mkdir(parents=True)
    (tmp_path / 'broken' / 'tensorboard' / '__init__.py').write_text(BROKEN[kind])
    paths = os.pathsep.join([str(tmp_path / 'broken'), os.environ['PYTHONPATH']])
    done = run_script('contrast_train', *command(), env={**os.environ, 'PYTHONPATH': paths})
    assert done.returncode == 0, done.stderr
    warning, = [line for line in done.stderr.splitlines() if line.startswith('warning: TensorBoard')]
    assert BROKEN[kind].split("'")[1] in warning and "--tblog_dir '' to do without" in warning
    assert 'Traceback' not in done.stderr
    assert len(rows_of(tmp_path)) == 6 and (tmp_path / 'run.pth').exists() and (tmp_path / 'run.maps.png').exists()


def test_no_tensorboard_folder_means_none(command, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    run_main('contrast_train', *command('--tblog_dir', ''))
    assert not list((tmp_path / 'here').iterdir())  # nothing in the current folder
    assert not list(tmp_path.rglob('events.*')) and (tmp_path / 'run.pth').exists()


def test_tensorboard_that_fails_later_is_one_warning(tmp_path, capsys):
    board = TensorBoard(tmp_path, 0)
    board.add_scalar('a', 1., 0)
    board.writer.add_scalar = lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device'))
    for step in range(3):
        board.add_scalar('a', 1., step)
    board.close()
    assert capsys.readouterr().err.count('warning: TensorBoard does not work') == 1


# ---------------------------------------------------------------- comments

COMMENTS = ['w_cross=$0.1_$ run', r'\frac{$}', '$$', 'a "quoted" \'one\'', 'two\nlines\tof it', '_begins so',
            '{x} %s %d', '<b>&amp;</b>', 'x' * 300, 'C:\\new\\table', '']


@pytest.mark.parametrize('comment', COMMENTS, ids=range(len(COMMENTS)))
def test_any_comment_gives_a_log_a_json_and_a_plot(score, tmp_path, comment):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run_main('eval', *score(comment, '--curve'))
    assert json.loads((tmp_path / 'log.txt.json').read_text())['comment'] == comment
    assert (tmp_path / 'log.txt.png').stat().st_size > 1000
    lines = (tmp_path / 'log.txt').read_text().splitlines()
    assert len(lines) == 3 and lines[0].split('\t', 1)[1] == ' '.join(comment.split())


def test_the_plot_shows_the_comment_as_it_is(score, tmp_path):
    run_main('eval', *score('x', '--curve'))
    summary = json.loads((tmp_path / 'log.txt.json').read_text())
    figure = Figure()
    figures.draw_threshold_curves(figure, [('w=$0.1_$ run', summary)])
    texts = figure.legends[0].get_texts()
    assert [text.get_text().split(':')[0] for text in texts] == ['w=$0.1_$ run'] * 2
    assert not any(text.get_parse_math() for text in texts)


# ---------------------------------------------------------------- relative paths

def dry_run(name, *argv, cwd):
    """The first path after --out that a chain prints, called from a folder."""
    done = run_script(name, *argv, '--dry_run', cwd=cwd)
    assert done.returncode == 0, done.stderr
    line = next(shlex.split(line) for line in done.stdout.splitlines() if ' --out ' in line)
    return line[line.index('--out') + 1]


def test_relative_paths_of_the_chains_mean_the_current_folder(tmp_path):
    assert dry_run('demo', '--out', 'mine', cwd=tmp_path) == f'{tmp_path}/mine/VOC2012'
    assert dry_run('demo', cwd=tmp_path) == 'runs/demo/VOC2012'  # the default lies in the repository
    assert dry_run('demo', '--out', '../runs/x', cwd=REPO / 'tests') == 'runs/x/VOC2012'
    assert dry_run('reproduce', '--weights', 'w', '--lists', 'l', cwd=tmp_path) == f'{tmp_path}/l'
    assert not list(tmp_path.iterdir())


def test_portable_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pipeline.portable('') == ''
    assert pipeline.portable('a/../b') == f'{tmp_path}/b'
    assert pipeline.portable(REPO / 'runs' / 'x') == 'runs/x'
    monkeypatch.chdir(REPO)
    assert pipeline.portable('runs/x') == 'runs/x'


def test_ablation_writes_where_it_is_told(tmp_path, monkeypatch):
    """Its steps run in the repository, its table is read here: both must mean the same folder."""
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, 'run_steps', lambda steps, log, **_: seen.append((steps, log)))
    monkeypatch.setattr(ablation, 'run_row', lambda args, row, seed: (60., 0.4, 59., 0.4))
    ablation.main(ablation.get_args_parser().parse_args(['--out', 'mine', '--seeds', '1', '--rows', 'SEAM']))
    (steps, log), = seen
    assert str(log) == f'{tmp_path}/mine/logs'
    assert str(steps[0].argv[2]) == f'{tmp_path}/mine/VOC2012'
    assert (tmp_path / 'mine' / 'table.md').exists()


# ---------------------------------------------------------------- torchrun

@pytest.mark.parametrize('name', [name.removesuffix('.py') for name in SCRIPTS])
def test_several_processes_are_refused(name, monkeypatch, capsys):
    parser = script(name).get_args_parser()
    required = [text for action in parser._actions if action.required for text in (*action.option_strings[:1], 'x')]
    if parser.several_processes:
        return  # tests/test_parts.py, tests/test_shards.py
    monkeypatch.setenv('WORLD_SIZE', '2')
    message = assert_refused(capsys, name, *required)
    assert message == ('error: torchrun: started 2 processes, and this script is one process; start it with python (if '
                       'no launcher set WORLD_SIZE, unset it)')


@pytest.mark.parametrize('size', ['1', '', 'x'])
def test_one_process_is_not(size, monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', size)
    assert 'list not found' in assert_refused(capsys, 'eval', '--list', 'nowhere.txt', '--predict_dir', 'x',
                                              '--comment', 'x')


def test_a_step_may_hold_quotes(tmp_path):
    step = Step('a', ('-c', 'print("it\'s $HOME")'))
    pipeline.run_steps([step], tmp_path, quiet=True)
    assert "it's $HOME" in (tmp_path / 'a.log').read_text()

"""A want of resources is one line with its remedy; whatever happens, a script ends soon and leaves no process."""
import functools
import multiprocessing.connection
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from helpers import (
    assert_nothing_left,
    assert_refused,
    children,
    run_main,
    run_script,
    start,
    tree_bytes,
    wait_for_steps,
    wait_until,
)
from test_training import arguments_of, rows_of

from data.cams import save_cams
from data.images import image_size
from data.lists import read_list
from engine import checkpoint, cli, files, loading, process
from engine.errors import UserError
from engine.files import REPO
from engine.pending import PendingLosses

SOON = 60  # seconds that an end may take on a busy machine


@pytest.fixture
def command(toy, tmp_path):
    """Function from more flags to the arguments of a training run in tmp_path."""
    return functools.partial(arguments_of, toy, tmp_path)


def last_line(text):
    """The last line that a terminal shows."""
    return text.replace('\r', '\n').strip().splitlines()[-1]


# ---------------------------------------------------------------- which exception is which want

@pytest.mark.parametrize('error, what, remedy', [
    (RuntimeError('DataLoader worker (pid 12) is killed by signal: Killed. '), 'worker process', 'fewer --num_workers'),
    (RuntimeError('DataLoader worker (pid(s) 12, 13) exited unexpectedly'), 'worker process', 'fewer --num_workers'),
    (BrokenProcessPool('A process in the process pool was terminated abruptly'), 'worker process', 'goes on where'),
    (RuntimeError('DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader\'s '
                  'workers are out of shared memory. Please try to raise your shared memory limit.'), 'shared memory',
     'Docker'),
    (RuntimeError('unable to write to file </torch_12_34_0>: No space left on device (28)'), 'shared memory', 'Docker'),
    (RuntimeError('Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\nRuntimeError: unable to '
                  'allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)'), 'shared memory',
     '0 needs none'),
    (RuntimeError('[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:33671: Connection '
                  'reset by peer. This is typically caused by a remote worker hanging'), 'another process', 'goes on'),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'), 'GPU memory', '--amp bf16'),
    (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate'), 'GPU memory', '--batch_size'),
    (RuntimeError('CUDA error: out of memory'), 'GPU memory', '--amp bf16'),
    (OSError(24, 'Too many open files', 'a.jpg'), 'a.jpg', 'ulimit -n'),
    (OSError(28, 'No space left on device', 'run.losses.jsonl'), 'run.losses.jsonl', 'free space'),
    (OSError(122, 'Disk quota exceeded'), 'disk', 'free space'),
    (MemoryError(), 'memory', 'fewer --num_workers'),
    (np._core._exceptions._ArrayMemoryError((9, 9), np.dtype('f4')), 'memory', 'fewer --num_workers'),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"), 'memory', 'end')])
def test_a_want_of_resources_is_known(error, what, remedy):
    known = process.want_of_resources(error)
    assert known.what == what and remedy in known.do
    assert '\n' not in str(known)


def test_a_semaphore_without_room_is_a_want_of_shared_memory(monkeypatch):
    """Semaphores lie in /dev/shm too; their error names no file."""
    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('multiprocessing.synchronize._multiprocessing.SemLock', full)
    with pytest.raises(OSError) as found:
        multiprocessing.get_context('spawn').Lock()
    assert process.want_of_resources(found.value).what == 'shared memory'


@pytest.mark.parametrize('ends', [True, False], ids=['in the midst of the answer', 'before'])
def test_a_batch_of_a_worker_that_is_gone_is_the_end_of_that_worker(tmp_path, ends):
    """PyTorch fetches a batch that was announced by a connection to the worker that holds it."""
    address = str(tmp_path / 'worker')
    fetch = functools.partial(multiprocessing.connection.Client, address)
    if ends:
        with multiprocessing.connection.Listener(address) as worker:
            fetch = fetch().recv
            worker.accept().close()
    with pytest.raises((OSError, EOFError)) as found:
        fetch()
    assert process.want_of_resources(found.value).what == 'worker process'


def test_the_end_of_a_loading_worker_interrupts_nothing():
    """PyTorch's answer to SIGCHLD would raise an exception wherever the main thread is."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = loading.validation_batches([1, 2], 1, 1, torch.device('cpu'))
    assert next(batches) == 1
    assert signal.getsignal(signal.SIGCHLD) == before
    batches.close()


@pytest.mark.parametrize('error', [
    KeyError('memory'), RuntimeError('mat1 and mat2 shapes cannot be multiplied'), OSError(13, 'Permission denied'),
    RuntimeError('Caught KeyError in DataLoader worker process 0.\nOriginal Traceback\nKeyError: 3'),
    ValueError('shared memory'), BrokenPipeError(32, 'Broken pipe')])
def test_a_bug_is_none(error):
    assert process.want_of_resources(error) is None


def test_cli_run_ends_with_the_line_and_lets_bugs_through(capsys):
    def out_of_memory(args):
        raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.raises(SystemExit) as end:
        cli.run(out_of_memory, cli.ArgumentParser(), [])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith('error: GPU memory: is used up; add --amp bf16')


# ---------------------------------------------------------------- full shared memory

def small_files():
    """In a child process: no file beyond 300 kB. It stands for a small /dev/shm: what fails, and how, is the same."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_training_with_a_full_shared_memory_ends_with_one_line(command):
    done = run_script('contrast_train', *command('--num_workers', 1, '--crop_size', 448), preexec_fn=small_files,
                      timeout=SOON + 60)
    assert done.returncode == 2
    assert last_line(done.stderr).startswith('error: shared memory: /dev/shm has no room for the batches')
    assert 'Traceback' not in done.stderr


def test_inference_with_a_full_shared_memory_ends_with_one_line(toy, tmp_path):
    """Its batches are not collated: PyTorch would move them to shared memory in a thread that can tell nobody."""
    done = run_script('contrast_infer', '--weights', toy.net, '--infer_list', toy.train, '--voc12_root', toy.root,
                      '--cls_labels', toy.labels, '--out_cam', tmp_path / 'cam', '--scales', 4, '--num_workers', 1,
                      '--device', 'cpu', preexec_fn=small_files, timeout=SOON + 60)
    assert done.returncode == 2
    assert last_line(done.stderr).startswith('error: shared memory: /dev/shm has no room for the batches')


NO_SEMAPHORE = """
import multiprocessing.synchronize as synchronize, runpy, sys
class Full:
    def SemLock(self, *args):
        raise OSError(28, 'No space left on device')
real, synchronize._multiprocessing = synchronize._multiprocessing, Full()
Full.__getattr__ = lambda self, name: getattr(real, name)
sys.argv = {argv!r}
runpy.run_path({script!r}, run_name='__main__')
"""


def test_a_shared_memory_without_room_for_a_semaphore_is_one_line(command):
    """PyTorch's loader, half made, cannot be taken apart: nothing is said about that."""
    path = str(REPO / 'contrast_train.py')
    code = NO_SEMAPHORE.format(argv=[path, *map(str, command('--num_workers', 1))], script=path)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=SOON + 60)
    assert done.returncode == 2
    assert last_line(done.stderr).startswith('error: shared memory: /dev/shm has no room')
    assert 'Exception' not in done.stderr


# ---------------------------------------------------------------- bugs and ends of workers

FAILING_WORKER = """
import runpy, sys
sys.path.insert(0, {repo!r})
from data.photos import Photos
def getitem(self, index):
    raise KeyError('a bug in a worker')
Photos.__getitem__ = getitem
sys.argv = {argv!r}
runpy.run_path({script!r}, run_name='__main__')
"""


@pytest.mark.parametrize('name', ['contrast_train', 'contrast_infer'])
def test_a_bug_in_a_loading_worker_shows_its_traceback_and_ends(toy, command, tmp_path, name):
    inference = ['--weights', toy.net, '--infer_list', toy.train, '--voc12_root', toy.root, '--cls_labels', toy.labels,
                 '--out_cam', tmp_path / 'cam', '--num_workers', 2, '--device', 'cpu']
    argv = command('--num_workers', 2) if name == 'contrast_train' else inference
    path = str(REPO / f'{name}.py')
    code = FAILING_WORKER.format(repo=str(REPO), argv=[path, *map(str, argv)], script=path)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=SOON + 60)
    assert done.returncode == 1
    assert 'Traceback' in done.stderr and "KeyError: 'a bug in a worker'" in done.stderr
    assert 'getitem' in done.stderr  # where in the worker it happened


def sleep_for_ever():
    """What a worker that ignores SIGTERM does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def test_workers_that_ignore_sigterm_are_ended(capsys):
    worker = multiprocessing.get_context('fork').Process(target=sleep_for_ever, daemon=True)

    def main(args):
        worker.start()
        raise UserError('--flag', 'is wrong', 'mend it')
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(SystemExit):
        cli.run(main, cli.ArgumentParser(), [])
    assert worker.exitcode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.long
def test_a_killed_loading_worker_is_one_line_and_the_run_resumes(command, tmp_path):
    argv = command('--num_workers', 1, '--max_epoches', 40, '--save_every', 2)
    run = start('contrast_train', argv)
    wait_for_steps(run, tmp_path / 'run.losses.jsonl', 3)
    workers = children(run.pid)
    os.kill(workers[0], signal.SIGKILL)
    _, said = run.communicate(timeout=SOON)
    assert run.returncode == 2, said
    assert last_line(said).startswith('error: worker process: was ended from outside, most likely because memory ran '
                                      'out; use fewer --num_workers; the same command goes on')
    assert_nothing_left(workers)
    step = checkpoint.read_checkpoint(tmp_path / 'run.ckpt')['step']
    assert 2 <= step <= len(rows_of(tmp_path)) + 1
    again = start('contrast_train', command('--num_workers', 0, '--max_epoches', 40, '--save_every', 2, '--resume'))
    assert f'at step {step} of 240' in next(line for line in again.stdout if 'resumed' in line)
    again.kill()
    again.communicate()


@pytest.fixture
def cams(toy, tmp_path):
    """A folder of CAMs for the toy set."""
    rng = np.random.default_rng(0)
    (tmp_path / 'cam').mkdir()
    for name in read_list(toy.train):
        size = image_size(toy.root / 'JPEGImages' / f'{name}.jpg')
        save_cams(tmp_path / 'cam' / f'{name}.npy', np.array([3, 5]), rng.random((2, *size), np.float32))
    return tmp_path / 'cam'


@pytest.mark.long
def test_a_killed_crf_worker_is_one_line_and_the_same_command_goes_on(toy, cams, tmp_path):
    argv = ['--voc12_root', toy.root, '--infer_list', toy.train, '--cam_dir', cams, '--crf_iters', 1000,
            '--out_crf', tmp_path / 'crf', '--num_workers', 2]
    run = start('aff_prepare', argv)
    wait_until(run, lambda: list(tmp_path.glob('crf/24.00/[!.]*.npy')))
    workers = children(run.pid)
    os.kill(workers[0], signal.SIGKILL)
    _, said = run.communicate(timeout=SOON)
    assert run.returncode == 2
    assert last_line(said).startswith('error: worker process: was ended from outside')
    assert_nothing_left(workers)
    done = len(list(tmp_path.glob('crf/24.00/[!.]*.npy')))
    assert 0 < done < 12
    run_main('aff_prepare', *argv)
    assert len(tree_bytes(tmp_path / 'crf', '.npy')) == 24
    assert not list((tmp_path / 'crf').rglob('.*'))  # nor a temporary file of the killed worker


# ---------------------------------------------------------------- a full disk

@pytest.mark.parametrize('suffix', ['.ckpt', '.pth'])
def test_a_full_disk_at_the_checkpoint_is_one_line_and_the_older_one_stays_whole(command, tmp_path, capsys, suffix,
                                                                                 monkeypatch):
    limit = {'.ckpt': 12, '.pth': 24}[suffix]  # the step from which the disk is full
    save, limits = checkpoint.save_tensors, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_a_full_disk(path, value):
        full = path.suffix == suffix and (suffix == '.pth' or value['step'] >= limit)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if full else limits[0], limits[1]))
        try:
            save(path, value)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(checkpoint, 'save_tensors', save_on_a_full_disk)
    message = assert_refused(capsys, 'contrast_train', *command())
    assert message == (f'error: {tmp_path}/run{suffix}: cannot be written (File too large); free space or choose '
                       'another folder')  # the limit's word for a full disk
    assert checkpoint.read_checkpoint(tmp_path / 'run.ckpt')['step'] == (10 if suffix == '.ckpt' else 24)
    assert not list(tmp_path.glob('.*'))
    monkeypatch.setattr(checkpoint, 'save_tensors', save)
    run_main('contrast_train', *command('--resume'))
    assert len(rows_of(tmp_path)) == 24 and (tmp_path / 'run.pth').exists()


def test_a_full_disk_at_the_loss_log_is_one_line(command, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('engine.loss_log.check_finite', full)  # while the log is open
    message = assert_refused(capsys, 'contrast_train', *command())
    assert message == (f'error: {tmp_path}/run.losses.jsonl: cannot be written (No space left on device); free space '
                       'or choose another folder')


def test_a_folder_that_vanishes_in_training_is_one_line(command, tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'session'
    read = PendingLosses.fetch

    def vanish(losses):
        shutil.rmtree(folder, ignore_errors=True)
        return read(losses)
    monkeypatch.setattr(PendingLosses, 'fetch', vanish)
    message = assert_refused(capsys, 'contrast_train', *command('--session_name', folder / 'run'))
    assert message == (f'error: {folder}/run.losses.jsonl: cannot be written (No such file or directory); free space '
                       'or choose another folder')


# ---------------------------------------------------------------- two processes on one folder

def test_processes_that_make_a_folder_together_do_not_disturb_each_other(tmp_path):
    code = ('import sys\nfrom engine import files\nfor _ in range(3000):\n'
            '    files.out_dir(sys.argv[1], "--out")\n    files.save_json(sys.argv[1] + "/run.json", {"a": 1})\n')
    runs = [subprocess.Popen([sys.executable, '-c', code, tmp_path / 'cam'], cwd=REPO, stderr=subprocess.PIPE)
            for _ in range(2)]
    for run in runs:
        assert run.communicate()[1] == b'' and run.returncode == 0
    assert files.read_json(tmp_path / 'cam' / 'run.json', '') == {'a': 1}
    assert len(list((tmp_path / 'cam').iterdir())) == 1


def test_a_file_that_two_processes_write_is_whole(tmp_path, monkeypatch):
    with files.atomic(tmp_path / 'x.npy') as mine:
        mine.write_bytes(b'mine')
        with monkeypatch.context() as patch:
            patch.setattr(os, 'getpid', lambda: 1)
            with files.atomic(tmp_path / 'x.npy') as theirs:
                theirs.write_bytes(b'theirs')
        assert (tmp_path / 'x.npy').read_bytes() == b'theirs'
    assert (tmp_path / 'x.npy').read_bytes() == b'mine'


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    other = tmp_path / '.a.elsewhere-17.tmp.npy'
    kept = [tmp_path / f'.a.{files.HOST}-{os.getpid()}.tmp.npy', other, tmp_path / '.notes.tmp', tmp_path / 'a.npy',
            tmp_path / f'.b.{files.HOST}-1.tmp.png']  # process 1 always runs
    left = [tmp_path / f'.a.b.{files.HOST}-{gone.pid}.tmp.npy', tmp_path / f'.run.{files.HOST}-{gone.pid}.tmp']
    for path in (*kept, *left):
        path.write_bytes(b'x')
    files.out_dir(tmp_path, '--out')
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    os.utime(other, (0, 0))  # long ago, on another machine
    files.out_dir(tmp_path, '--out')
    assert not other.exists()


def test_end_workers_outside_the_main_thread(tmp_path):
    worker = multiprocessing.get_context('fork').Process(target=sleep_for_ever, daemon=True)
    worker.start()
    thread = threading.Thread(target=process.end_workers)
    thread.start()
    thread.join(SOON)
    assert worker.exitcode == -signal.SIGKILL

"""Threads, worker processes and precision: what `auto` chooses, and that a resumed run goes on with what was chosen."""
import json
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_refused

from engine import cli, device, machine
from engine.errors import UserError

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


@pytest.fixture
def four_cores(monkeypatch):
    """A machine of four cores whose load the test chooses: a function of each core's busy fraction."""
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(machine, 'allowed_cores', lambda: [0, 1, 2, 3])
    monkeypatch.setattr(machine.time, 'sleep', lambda seconds: None)

    def load(*busy):
        states = iter([{core: (1000, 500) for core in range(4)},
                       {core: (1100, 500 + round(100 * (1 - fraction))) for core, fraction in enumerate(busy)}])
        monkeypatch.setattr(machine, '_ticks', lambda: next(states))
    return load


@pytest.mark.parametrize('busy, workers, threads', [
    ((0, 0, 0, 0), 0, 4), ((0.05, 0.02, 0, 0.1), 0, 4), ((1, 0, 0, 0), 0, 3), ((1, 1, 1, 1), 0, 1),
    ((0, 0, 0, 0), 2, 2), ((1, 1, 0, 0), 2, 1), ((0.5, 0.5, 0.5, 0.5), 0, 2)])
def test_auto_takes_a_thread_for_each_idle_core_that_no_worker_will_use(four_cores, busy, workers, threads):
    four_cores(*busy)
    assert machine.choose_threads('auto', workers) == threads


def test_a_number_of_threads_is_taken_as_it_is_and_the_environments_counts_for_auto(four_cores, monkeypatch):
    four_cores(1, 1, 1, 1)
    assert machine.choose_threads(7, workers=2) == 7
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert machine.choose_threads('auto', workers=2) == 3


def test_processes_of_one_machine_share_its_cores(four_cores, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    four_cores(0, 0, 0, 0)
    assert machine.choose_threads('auto', workers=0) == 2
    monkeypatch.setattr(machine, 'cores', lambda: 4)
    parser = cli.ArgumentParser()
    cli.add_worker_flag(parser)
    assert parser.parse_args([]).num_workers == machine.choose_workers('auto', on_cpu=False) == 2


def test_the_ticks_of_linux_are_read_for_the_allowed_cores_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, 'allowed_cores', lambda: [1])
    monkeypatch.setattr(machine, 'CPU_TIMES', tmp_path / 'stat')
    (tmp_path / 'stat').write_text('cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 9 9 9 9 9 9 9 9 9 9\n'
                                   'cpu1 1 2 3 40 5 6 7 8 900 900\nintr 4\n')
    assert machine._ticks() == {1: (72, 45)}


def test_without_linux_the_load_of_the_last_minute_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, 'allowed_cores', lambda: [0, 1, 2, 3])
    monkeypatch.setattr(machine, 'CPU_TIMES', tmp_path / 'nothing')
    monkeypatch.setattr(machine.os, 'getloadavg', lambda: (1.5, 9., 9.), raising=False)
    assert machine.idle_cores() == 2.5


@pytest.mark.parametrize('cores, on_cpu, workers', [(2, True, 0), (16, True, 2), (2, False, 2), (64, False, 8)])
def test_auto_workers_leave_the_cores_to_a_network_that_runs_on_them(monkeypatch, cores, on_cpu, workers):
    monkeypatch.setattr(machine, 'allowed_cores', lambda: range(cores))
    assert machine.choose_workers('auto', on_cpu) == workers
    assert machine.choose_workers(5, on_cpu) == 5


# ---------------------------------------------------------------- precision

@pytest.fixture
def card(monkeypatch):
    """A CUDA card of a compute capability, as far as these questions go."""
    def of(*capability):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda where: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda where: 'A card')
    return of


@pytest.fixture
def processor(monkeypatch):
    """A processor that has bf16, or has not."""
    def of(native):
        monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: True)
        monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: native)
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: False)
    return of


def test_auto_precision_on_cuda_is_bf16_from_capability_8_and_fp16_below(card):
    for capability, expected in (((7, 0), 'fp16'), ((7, 5), 'fp16'), ((8, 0), 'bf16'), ((9, 0), 'bf16')):
        card(*capability)
        assert device.choose_precision(CUDA, 'auto') == expected


def test_auto_precision_on_a_cpu_is_bf16_only_where_the_processor_has_it(processor):
    for native, expected in ((True, 'bf16'), (False, 'off')):
        processor(native)
        assert device.choose_precision(CPU, 'auto') == expected


def test_emulated_bf16_is_refused_on_cuda_and_warned_of_on_a_cpu(card, processor, capsys):
    card(7, 5)
    with pytest.raises(UserError, match='A card only emulates it; use --amp fp16'):
        device.choose_precision(CUDA, 'bf16')
    processor(native=False)
    assert device.choose_precision(CPU, 'bf16') == 'bf16'
    assert capsys.readouterr().err.count('\n') == 1
    processor(native=True)
    assert device.choose_precision(CPU, 'bf16') == 'bf16'
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('amp', ['off', 'fp16', 'bf16'])
def test_a_precision_that_the_card_has_is_taken_as_it_is(card, amp):
    card(8, 6)
    assert device.choose_precision(CUDA, amp) == amp


def test_half_precision_on_a_cpu_is_refused():
    with pytest.raises(UserError, match='needs a CUDA device'):
        device.choose_precision(CPU, 'fp16')


# ---------------------------------------------------------------- what a resumed run takes

def flags(**changed):
    return SimpleNamespace(**{'seed': 0, 'device': 'cpu', 'amp': 'auto', 'threads': 'auto', 'num_workers': 'auto',
                              'resume': True} | changed)


@pytest.fixture
def session(tmp_path, processor, monkeypatch):
    """A session that was begun with bf16 and one thread, on a machine that would now choose otherwise."""
    processor(native=False)
    monkeypatch.setattr(machine, 'choose_threads', lambda threads, workers: 2 if threads == 'auto' else threads)
    monkeypatch.setattr(torch, 'set_num_threads', lambda threads: None)
    (tmp_path / 'run.json').write_text(json.dumps({'settings': {'amp': 'bf16', 'threads': 1}}))
    return tmp_path / 'run'


def test_a_resumed_run_goes_on_with_the_precision_and_threads_it_began_with(session):
    args = flags()
    device.set_up(args, session)
    assert (args.amp, args.threads, args.num_workers) == ('bf16', 1, machine.choose_workers('auto', True))


@pytest.mark.parametrize('changed', [{'resume': False}, {'amp': 'off', 'threads': 2}])
def test_a_new_run_and_explicit_flags_do_not_take_what_is_stored(session, changed):
    args = flags(**changed)
    device.set_up(args, session)
    assert (args.amp, args.threads) == ('off', 2)


def test_a_description_that_cannot_be_read_counts_as_none(session):
    session.with_suffix('.json').write_text('{')
    args = flags()
    device.set_up(args, session)
    assert (args.amp, args.threads) == ('off', 2)


@pytest.mark.parametrize('flag, value', [('--threads', 0), ('--threads', 'many'), ('--num_workers', -1),
                                         ('--amp', 'half')])
def test_values_that_mean_nothing_are_refused(capsys, flag, value):
    assert flag in assert_refused(capsys, 'contrast_train', '--weights', 'w', '--session_name', 's', flag, value)

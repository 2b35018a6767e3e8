"""benchmarks/: the published formulation agrees with the golden files and with the project's own arithmetic; the frame;
every part of benchmarks/gpu.py, on a CPU.

The published CRF, walk, pair labels and curve meet their golden files in test_crf, test_random_walk, test_affinity,
test_eval.
"""
import importlib
import inspect
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import filled, golden, run_script, take_ties_as_published
from PIL import Image
from torchvision.transforms import v2

from benchmarks import bench, floor, frame, gpu, growth, inputs, report
from benchmarks.gpu_parts import child, measure, networks, toy, voc
from benchmarks.gpu_parts import golden as golden_part
from benchmarks.gpu_parts import report as gpu_report
from benchmarks.gpu_parts.measure import Mode, Row, Settings
from benchmarks.stages import step3
from benchmarks.table import STAGES
from data import transforms
from engine.files import REPO
from network.resnet38_contrast import Net
from reference import contrast_loss
from reference import networks as published_networks
from voc12.classes import VOC

# ---------------------------------------------------------------- the published formulation


@pytest.fixture(scope='module')
def losses_golden():
    return {name: torch.from_numpy(np.asarray(value)) for name, value in golden('contrast_losses.npz').items()}


def published_views(maps):
    """The published inputs from maps {'cam1', 'cam_rv1', 'f_proj1', …} at stride 8: view 1 enlarged to 448, view 2 to
    128.
    """
    enlarge = contrast_loss.enlarge
    return [(enlarge(maps[f'cam{v}'], (side, side)), enlarge(maps[f'cam_rv{v}'], (side, side)), maps[f'f_proj{v}'],
             maps[f'cam_rv{v}']) for v, side in ((1, 448), (2, 128))]


def test_published_losses_and_gradients_are_the_golden_ones(losses_golden, monkeypatch):
    take_ties_as_published(monkeypatch, contrast_loss)
    names = [f'{kind}{view}' for view in '12' for kind in ('cam', 'cam_rv', 'f_proj')]
    maps = {name: losses_golden[name].float().requires_grad_() for name in names}
    out = contrast_loss.losses(*published_views(maps), losses_golden['label'])
    names = {'loss_cls1': 'cls1', 'loss_cls2': 'cls2', 'loss_rvmin1': 'rvmin1', 'loss_rvmin2': 'rvmin2',
             'loss_er': 'er', 'loss_ecr': 'ecr', 'loss_cross_nce': 'cross_prototype', 'loss_cross_nce2': 'cross_cam'}
    for theirs, ours in names.items():
        tolerance = 1e-3 if 'cross' in ours else 1e-4
        assert out[ours].item() == pytest.approx(losses_golden[theirs].item(), rel=tolerance), ours
    without_intra = sum(out[name] for name in ('er', 'ecr', 'cross_prototype', 'cross_cam')) + sum(
        out[name + view] for name in ('cls', 'rvmin') for view in '12') / 2
    without_intra.backward()
    for name, leaf in maps.items():
        gradient = leaf.grad[:, :, ::4, ::4] if name.endswith('1') else leaf.grad
        expected = losses_golden[f'grad_{name}']
        assert (gradient - expected).norm() / expected.norm() < 1e-3, name


def test_published_intra_term_has_the_golden_mean_and_spread(losses_golden, monkeypatch):
    take_ties_as_published(monkeypatch, contrast_loss)
    views = [(losses_golden[f'f_proj{v}'].float(), losses_golden[f'cam_rv{v}']) for v in '12']
    with_bg = torch.nn.functional.pad(losses_golden['label'], (1, 0), value=1.)[:, :, None, None]
    random.seed(0)
    draws = [contrast_loss.contrast_losses(*views, with_bg)['intra'].item() for _ in range(20)]
    error = losses_golden['intra_std'].item() / np.sqrt(len(draws))
    assert abs(np.mean(draws) - losses_golden['intra_mean'].item()) < 4 * error
    assert np.std(draws) == pytest.approx(losses_golden['intra_std'].item(), rel=0.6)


@pytest.mark.wide
def test_published_network_gives_the_golden_maps():
    case = golden('resnet38_contrast_64x96.npz')
    with torch.inference_mode():
        cam, revised, features, small = published_networks.contrast_forward(
            filled(Net, VOC.num_classes), torch.from_numpy(case['x']))
    outputs = {'cam': cam[:, :, ::4, ::4], 'cam_rv': revised[:, :, ::4, ::4], 'f_proj': features, 'cam_rv_down': small}
    for name, output in outputs.items():
        assert inputs.close(output, case[name], 1e-4)


# ---------------------------------------------------------------- the stages

OPTIONS = frame.Options(quick=True, threads=1)
TINY = {
    'contrast_loss': {'batch': 2, 'side': 16}, 'training_step': {'width': 1 / 16, 'crop': 64, 'batch': 2},
    'data_loading': {'images': 1}, 'cam_inference': {'width': 1 / 16, 'size': (40, 52)},
    'cam_inference_large': {'width': 1 / 16, 'size': (40, 52)}, 'pcm': {'size': (40, 52), 'channels': 8},
    'crf': {'size': (40, 52)},
    'aff_prepare': {'size': (40, 52)}, 'affinity_labels': {'repeats': 1}, 'random_walk': {'size': (120, 160)},
    'random_walk_memory': {'size': (120, 160)}, 'curve': {'images': 2, 'size': (40, 52)},
    'deeplab': {'name': 'deeplabv1_resnet38', 'size': (40, 52), 'width': 1 / 16}, 'start_up': {},
}


@pytest.mark.parametrize('name', STAGES)
def test_both_sides_of_a_stage_give_the_same(name):
    if STAGES[name].needs:
        pytest.importorskip(STAGES[name].needs)
    case = STAGES[name].function(OPTIONS, **TINY[name])
    ours, published = case.ours(), case.published()
    if STAGES[name].timed:
        assert case.check(ours, published)


@pytest.mark.parametrize('name', STAGES)
def test_the_table_asks_for_sizes_that_a_stage_has(name):
    stage = STAGES[name]
    inspect.signature(stage.function).bind(OPTIONS, **stage.sizes | stage.quick)


def test_profile_names_what_takes_the_time():
    x = torch.rand(800, 800)  # so much work that the profiler's own is nothing beside it
    name, fraction = frame.hottest(lambda: [x @ x for _ in range(20)])[0]
    assert name == 'aten::mm' and 0.5 < fraction <= 1
    rows = list(range(300_000))
    name, fraction = frame.hottest(lambda: [sorted(rows, key=lambda n: -n) for _ in range(3)])[0]
    assert name in ('builtins.sorted', 'test_benchmarks.<lambda>') and fraction > 0.3


@pytest.mark.parametrize('key, name', [
    (('~', 0, "<method 'stepInference' of 'pydensecrf.densecrf.DenseCRF' objects>"), 'DenseCRF.stepInference'),
    (('~', 0, '<built-in method builtins.sorted>'), 'builtins.sorted'), (('tool/crf.py', 3, '_infer'), 'crf._infer')])
def test_profiled_functions_have_the_names_that_people_write(key, name):
    assert frame.name_of(*key) == name


def test_pairs_alternate_and_are_counted_per_image():
    calls = []
    ours, published = (lambda: calls.append('ours')), (lambda: calls.append('published'))
    case = frame.Case(ours, published, None, count=2, published_fraction=0.5)
    times = frame.alternate(case, least=3, most=10, budget=0)
    assert calls == ['ours', 'published'] * 3
    assert len(times['ours']['wall']) == len(times['published']['cpu']) == 3


def test_memory_of_a_call_is_what_it_adds():
    code = ('import numpy as np; from benchmarks import frame; kept = np.ones(2 ** 22); '
            'print(*frame.first_call(lambda: np.ones(2 ** 23).sum() + kept[0]))')
    # In a process of its own, as the stages are: a kernel that takes idle pages back shrinks a large one meanwhile.
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    size, result = map(float, done.stdout.split())
    assert result == 2 ** 23 + 1
    assert 2 ** 26 * 0.75 <= size < 2 ** 26 * 1.25


# ---------------------------------------------------------------- growth and floor

def test_growth_asks_for_sizes_that_the_stages_have():
    for curve in growth.CURVES:
        for _, sizes in curve.points + curve.ours_only:
            inspect.signature(curve.setup).bind(OPTIONS, **sizes)


def test_growth_is_measured_for_more_classes(monkeypatch):
    few = growth.Curve('eval', 'classes', step3.curve, growth.classes(images=1, size=(16, 24)))
    monkeypatch.setattr(growth, 'CURVES', (few,))
    curve = growth.measure_curve(0, OPTIONS)
    assert [place for place, _ in curve['published']] == [21, 41]
    for side in ('ours', 'published'):
        assert np.isfinite(curve['exponents'][side])


def test_growth_of_a_power_law_is_its_exponent():
    assert growth.exponent([(n, 3 * n ** 1.5) for n in (10, 20, 80)]) == pytest.approx(1.5)


def test_growth_with_workers_refines_the_images_that_it_writes(tmp_path):
    image = growth.write_image(tmp_path, 0, (40, 52))
    growth.refine(image)
    for alpha in (4, 24):
        assert (tmp_path / f'{alpha}' / '0.npy').stat().st_size


def test_floor_takes_the_slower_of_arithmetic_and_traffic():
    machine = {'one core': {'flops': 10., 'bytes': 100.}, 'all cores': {'flops': 20., 'bytes': 100.}}
    assert floor.least_seconds({'flops': 40, 'bytes': 100, 'single_core': False}, machine) == 2
    assert floor.least_seconds({'flops': 40, 'bytes': 1000, 'single_core': True}, machine) == 10
    assert floor.least_seconds({'flops': 0, 'bytes': 0, 'single_core': True}, machine) is None


# ---------------------------------------------------------------- the report and the command

def test_report_names_missed_aims_and_the_busy_machine(tmp_path):
    sides = {'wall': [1., 2., 3.], 'cpu': [1., 2., 3.], 'memory': 2 ** 20}
    result = {'flops': 1e9, 'bytes': 8, 'single_core': True, 'extra': {}, 'agreement': 'labels equal', 'ours': sides,
              'published': sides, 'wall_ratio': 2., 'hottest': [('crf._infer', 0.5)], 'cpu_ratio': 2., 'repetitions': 3}
    results = [result | {'name': name, 'title': stage.title} for name, stage in STAGES.items()]
    info = report.describe(bench.get_args_parser().parse_args(['--out', str(tmp_path)]))
    rate = {'flops': 1e9, 'bytes': 1e9}
    info |= {'rates': {'one core': rate, 'all cores': rate}, 'load_before': 5.}
    curve = growth.with_exponents({'title': 'CRF', 'axis': 'pixels', 'ours': [(1, 1.), (2, 4.)], 'published': []})
    report.write(tmp_path, info, STAGES, results, [curve])
    text = (tmp_path / 'RESULTS.md').read_text()
    assert '30x: MISSED' in text and '1.3x: met' in text and 'busy machine' in text and 'Not measured: CUDA' in text
    assert '| Step 2, training | 84,656 |' in text and '`crf._infer` 50%' in text
    assert (tmp_path / 'results.png').stat().st_size and (tmp_path / 'growth.png').stat().st_size


def test_the_command_measures_a_stage_and_writes_both_files(tmp_path):
    done = run_script('benchmarks/bench', '--quick', '--stages', 'affinity_labels', '--threads', 1, '--out', tmp_path,
                      cwd=REPO, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['stages'][0]['wall_ratio'] > 1
    assert 'affinity labels' in (tmp_path / 'RESULTS.md').read_text()


def test_a_stage_whose_published_side_is_not_installed_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'pydensecrf.densecrf', None)
    monkeypatch.setattr(frame, 'in_child', lambda *_: {'one core': {'flops': 1, 'bytes': 1},
                                                       'all cores': {'flops': 1, 'bytes': 1}})
    argv = ['--quick', '--stages', 'crf', 'aff_prepare', '--out', str(tmp_path)]
    bench.main(bench.get_args_parser().parse_args(argv))
    said = capsys.readouterr().out
    for name in ('crf', 'aff_prepare'):
        assert f'{name}: left out, pydensecrf.densecrf is not installed (pip install -r requirements-pyd' in said
    assert json.loads((tmp_path / 'results.json').read_text())['stages'] == []


@pytest.mark.parametrize('argv, folder', [([], 'benchmarks'), (['--quick'], 'runs/bench'),
                                          (['--stages', 'crf'], 'runs/bench')])
def test_only_a_whole_run_replaces_the_whole_report(argv, folder):
    assert bench.default_folder(bench.get_args_parser().parse_args(argv)) == REPO / folder


# ---------------------------------------------------------------- benchmarks/gpu.py: its parts

TRIAL = Settings('cpu', tiny=True)


@pytest.fixture
def switches():
    """Puts PyTorch's switches back, which the parts set."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, products.allow_tf32
    yield
    cudnn.allow_tf32, cudnn.benchmark, products.allow_tf32 = before


def assert_all_measured(rows):
    """Each of the rows has a number, or says that a CPU has no such precision or layout."""
    assert rows
    for row in rows:
        assert row.note == 'needs a GPU' or (row.value > 0 and row.unit), row
    assert any(row.value for row in rows)


@pytest.mark.parametrize('name', [name for name in gpu.PARTS if name != 'toy'])
def test_each_part_of_the_gpu_benchmark_runs_on_a_cpu_in_tiny(name, switches):
    assert_all_measured(list(gpu.PARTS[name].function(TRIAL)))


@pytest.mark.long
def test_the_toy_chain_runs_to_its_end_in_tiny():
    rows = list(toy.rows(TRIAL))
    assert_all_measured(rows)
    assert rows[-1].work == 'segmentation_test' and 'multi_crf' in rows[-1].note


def test_a_step_of_the_toy_chain_that_fails_is_the_last_row_and_says_why(monkeypatch):
    monkeypatch.setattr(toy, 'TRIAL', toy.dataclasses.replace(toy.TRIAL, images={'train': -1, 'val': 2}))
    row, = toy.rows(TRIAL)
    assert row.work == 'toy' and row.value is None and '--train' in row.note


def test_first_parts_are_those_worth_most_and_take_four_minutes_at_most():
    first = list(gpu.PARTS.values())[:3]
    assert [part.name for part in first] == ['golden', 'step', 'cams']
    assert sum(part.minutes for part in first) <= 4


@pytest.mark.parametrize('file, differences', golden_part.LOSSES)
def test_losses_are_within_the_golden_tolerances(file, differences):
    torch.manual_seed(0)
    for name, (value, tolerance) in differences(torch.device('cpu')).items():
        assert value <= tolerance, name


@pytest.fixture(scope='module')
def filler():
    """Shared, for most networks have most of their weights in common."""
    return golden_part.Filler()


@pytest.mark.wide
@pytest.mark.parametrize('case', [case for case in golden_part.NETWORKS if 'resnet101' not in case.file],
                         ids=lambda case: case.file)
def test_networks_are_within_the_golden_tolerances(case, filler, switches):
    found = golden_part.network_differences(case, filler.network(case, 1.), TRIAL, Mode())
    assert found
    for name, (value, tolerance) in found.items():
        assert value <= tolerance, name


def test_a_key_of_another_shape_gets_golden_weights_of_its_own():
    filler = golden_part.Filler()
    small, large = (filler.fill({'f9.weight': torch.empty(size, 3, 1, 1)})['f9.weight'] for size in (2, 4))
    assert small.shape == (2, 3, 1, 1) and large.shape == (4, 3, 1, 1)


def test_a_golden_row_names_its_worst_output_and_the_verdict():
    found = {'cam': (1e-5, 1e-4), 'feat': (5e-5, 1e-5)}
    assert golden_part.worst(found, verdict=True) == {
        'value': 5e-5, 'unit': 'of the largest', 'note': 'feat, allowed 1e-05: MISSED'}
    assert golden_part.worst({'cam': (1e-5, 1e-4)}, verdict=True)['note'] == 'cam, allowed 0.0001: met'
    assert golden_part.worst(found, verdict=False)['note'] == 'feat'
    assert golden_part.worst({'cam': (float('nan'), 1e-4)}, verdict=True) == {'note': 'not finite: cam'}


def test_weights_take_the_layout_that_a_mode_asks_for(switches):
    for last in (True, False):
        net = networks.contrast_net(TRIAL, Mode('bf16', channels_last=last), 1 / 16)
        assert net.b3.conv_branch2a.weight.is_contiguous(memory_format=torch.channels_last) == last
        assert measure.speed(networks.work.photo_cams(net, TRIAL.place, 'bf16', (40, 52)), 1, TRIAL)['value'] > 0


def test_a_row_that_fails_says_so_and_costs_no_other():
    def fails():
        raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 2 GiB')

    row = measure.attempt(Row('step', 'contrast_train', precision='bf16'), fails)
    assert row == Row('step', 'contrast_train', precision='bf16', note='OutOfMemoryError: CUDA out of memory.')


# ---------------------------------------------------------------- benchmarks/gpu.py: its frame

PARTS_FOR_TESTS = '''
import os, subprocess, sys, time
from benchmarks.gpu_parts.measure import Row

def works(settings):
    yield Row('works', 'first', value=1., unit='s')
    yield Row('works', 'second', value=2., unit='s')

def fails(settings):
    yield Row('fails', 'first', value=1., unit='s')
    raise ValueError('no such kernel')

def dies(settings):
    yield Row('dies', 'first', value=1., unit='s')
    os._exit(7)

def hangs(settings):
    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    yield Row('hangs', 'first', note=str(helper.pid))
    time.sleep(600)
'''


class FakePart:
    """A part of the module parts_for_tests, which a child process can import."""

    def __init__(self, name):
        self.name = name

    @property
    def function(self):
        return getattr(importlib.import_module('parts_for_tests'), self.name)


@pytest.fixture
def results_of(tmp_path, monkeypatch):
    """Function from a name in PARTS_FOR_TESTS and seconds to the rows that came out, without the card."""
    (tmp_path / 'parts_for_tests.py').write_text(PARTS_FOR_TESTS)
    monkeypatch.syspath_prepend(tmp_path)

    def results_of(name, seconds):
        card, *rows = child.results(FakePart(name), TRIAL, seconds)
        assert card['card'].startswith('CPU')
        return rows
    return results_of


@pytest.mark.parametrize('name, last', [
    ('works', Row('works', 'second', value=2., unit='s')),
    ('fails', Row('fails', 'fails', note='ValueError: no such kernel')),
    ('dies', Row('dies', 'dies', note='died with exit code 7'))])
def test_rows_come_out_of_a_part_that_ends_well_or_badly(results_of, name, last):
    assert results_of(name, 120) == [Row(name, 'first', value=1., unit='s'), last]


def alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.long
def test_a_part_that_hangs_is_stopped_with_the_processes_it_started(results_of):
    first, last = results_of('hangs', 15)
    assert last == Row('hangs', 'hangs', note='stopped after 15 s')
    deadline = time.monotonic() + 10
    while alive(int(first.note)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(int(first.note))


def test_the_gpu_command_writes_each_row_into_both_files(tmp_path):
    done = run_script('benchmarks/gpu', '--device', 'cpu', '--tiny', '--only', 'walk', 'rates', '--out', tmp_path,
                      cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert [row['part'] for row in found['rows']] == ['walk'] + ['rates'] * 5 + ['voc'] * 2
    assert found['info']['git_commit'] and found['info']['card']
    text = (tmp_path / 'GPU.md').read_text()
    assert '| walk | random walk |' in text and '| rates | copy |' in text and 'A trial of the code' in text
    assert 'not measured: CRF after the walk' in text


def test_parts_that_no_time_is_left_for_are_named(tmp_path, capsys):
    gpu.main(gpu.get_args_parser().parse_args(
        ['--device', 'cpu', '--tiny', '--minutes', '1e-9', '--only', 'step', 'cams', '--out', str(tmp_path)]))
    rows = json.loads((tmp_path / 'gpu.json').read_text())['rows']
    for row, part in zip(rows, ('step', 'cams')):
        assert row['part'] == part and row['note'] == 'left out: the 1e-09 minutes are over'


def test_the_gpu_report_names_card_driver_and_cudnn():
    args = gpu.get_args_parser().parse_args([])
    info = gpu_report.describe(args) | {
        'card': 'NVIDIA X', 'memory_gib': 79.2, 'capability': '9.0', 'driver': '580.1', 'cudnn': 92400, 'cuda': '13.0'}
    rows = [Row('step', 'contrast_train', 'batch 8', 'bf16', 56.4, 'images/s', 5.321, 'a | b'),
            Row('golden', 'eps', '', 'float32', 2.34e-6, 'of the largest'), Row('toy', 'toy', note='failed')]
    text = gpu_report.markdown(info, rows)
    assert 'NVIDIA X (79.2 GiB, compute capability 9.0), driver 580.1, CUDA 13.0, cuDNN 92400' in text
    assert '| step | contrast_train | batch 8 | bf16 | 56.4 images/s | 5.32 | a / b |' in text
    assert '| golden | eps |  | float32 | 2.3e-06 of the largest |  |  |' in text and 'A trial' not in text


def test_the_time_of_the_voc_chain_adds_up_what_was_measured():
    rates = {'step': ('contrast_train',), 'cams': ('contrast_infer',), 'affinity': ('aff_train', 'aff_infer')}
    rows = [Row(part, work, 'batch 8', 'bf16', 100., 'images/s') for part, works in rates.items() for work in works]
    rows += [Row('deeplab', work, 'deeplabv1_resnet38, batch 10', 'bf16', 100., 'images/s')
             for work in ('segmentation_train', 'segmentation_test')]
    rows += [Row('layouts', 'contrast_train', 'batch 8', 'bf16', 1e9, 'images/s')]  # no setting of the scripts
    cores = {work for step in voc.CHAIN for work in step.cores}
    rows += [Row('crf', work, 'a photo', value=0.02, unit='s of one core') for work in cores]
    missing, *found = voc.rows(rows, cores=4)
    assert missing.precision == 'TF32' and missing.value is None and 'contrast_train' in missing.note
    hours = {row.work: row.value for row in found}
    assert hours['contrast_train'] == pytest.approx(84656 / 100 / 3600)  # the network's, which is longer
    assert hours['aff_prepare'] == pytest.approx(10582 * 0.02 / 4 / 3600)  # of cores alone
    assert hours['the whole chain'] == pytest.approx(sum(hours[step.name] for step in voc.CHAIN))


# ---------------------------------------------------------------- transforms against torchvision's

@pytest.mark.parametrize('factor', [-0.1, -0.05, 0., 0.03, 0.1])
def test_hue_is_shifted_as_by_torchvision(factor):
    image = Image.fromarray(inputs.photo(150, 200))
    ours = np.asarray(transforms.shift_hue(image, factor)).astype(int)
    theirs = np.asarray(v2.functional.adjust_hue(image, factor)).astype(int)
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.5 and np.quantile(difference, 0.99) <= 4


def test_colour_jitter_draws_and_applies_what_torchvision_does():
    image = Image.fromarray(inputs.photo(150, 200))
    for seed in range(5):
        pictures = []
        for jitter in (transforms.ColorJitter, v2.ColorJitter):
            torch.manual_seed(seed)
            pictures.append(np.asarray(jitter(0.3, 0.3, 0.3, 0.1)(image)).astype(int))
        assert np.abs(pictures[0] - pictures[1]).mean() < 0.7

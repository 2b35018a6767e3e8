"""contrast_train.py and engine/training.py: schedule, logs, resuming after SIGTERM, what is refused."""
import functools
import json
import os
import shutil
import signal
from importlib import metadata

import pytest
import torch
from helpers import assert_refused, run_flags, run_main, script, start, tree_bytes, wait_for_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from engine import checkpoint, cli
from engine.errors import UserError
from engine.loss_log import read_loss_log
from engine.training import Run
from network.resnet38_contrast import Net
from tool import contrast
from tool.recipes import RECIPES
from voc12.classes import VOC

STEPS = 24  # 12 images, batch 2, 4 epochs
TERMS = ('cls', 'rvmin', 'er', 'ecr', *contrast.TERMS)
ONE_EPOCH = '--max_epoches', 1
train = functools.partial(run_main, 'contrast_train')


def arguments_of(toy, folder, *flags):
    """The arguments of a tiny contrast_train.py run whose session is <folder>/run."""
    return ['--weights', toy.backbone, '--voc12_root', toy.root, '--cls_labels', toy.labels,
            '--train_list', toy.train, '--val_list', '', '--session_name', folder / 'run',
            '--tblog_dir', folder / 'tensorboard', '--crop_size', 48, '--resize_long', 40, 64,
            '--view2_size', 32, '--batch_size', 2, '--max_epoches', 4, '--lr', 0.05, '--num_workers', 0,
            '--device', 'cpu', '--save_every', 5, '--log_every', 1, '--picture_every', 0, *flags]


@pytest.fixture
def command(toy, tmp_path):
    """Function from more flags to the arguments of a run in tmp_path."""
    return functools.partial(arguments_of, toy, tmp_path)


def rows_of(folder):
    """The rows of the run's loss log in a folder."""
    return read_loss_log(folder / 'run.losses.jsonl')


def parsed(name, baseline):
    """A training script's parser and arguments, all flags at their defaults or the baseline's (None: it has none)."""
    parser = script(name).get_args_parser()
    required = ['--weights', 'w.pth', '--session_name', 's']
    if baseline is None:
        args = parser.parse_args([*required, '--la_crf_dir', 'low', '--ha_crf_dir', 'high'])
        cli.choose_backbone(args, args.network or 'network.resnet38_aff')
        return parser, args
    saliency = ['--saliency_dir', 'd'] if RECIPES[baseline].saliency else []
    args = parser.parse_args([*required, '--baseline', baseline, *saliency])
    cli.chosen_recipe(args, 'train')
    return parser, args


# ---------------------------------------------------------------- interrupted runs

@pytest.fixture(scope='module')
def uninterrupted(toy, tmp_path_factory):
    """The loss log of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    train(*arguments_of(toy, folder))
    return (folder / 'run.losses.jsonl').read_bytes()


@pytest.mark.long
def test_sigterm_saves_says_so_and_can_be_resumed(command, tmp_path, uninterrupted):
    arguments = command('--save_every', 0, '--num_workers', 1)
    process = start('contrast_train', arguments)
    wait_for_steps(process, tmp_path / 'run.losses.jsonl', 2)
    os.killpg(process.pid, signal.SIGTERM)  # as a cluster ends a job: the loading process gets it too
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    step = checkpoint.read_checkpoint(tmp_path / 'run.ckpt')['step']
    assert f'SIGTERM: saved {tmp_path / "run.ckpt"} at step {step} of {STEPS}; continue with --resume' in stderr
    assert len(rows_of(tmp_path)) == step and not (tmp_path / 'run.pth').exists()
    train(*arguments, '--resume')
    assert (tmp_path / 'run.losses.jsonl').read_bytes() == uninterrupted


def test_another_seed_is_another_run(command, tmp_path, uninterrupted):
    train(*command('--seed', 1, *ONE_EPOCH))
    assert rows_of(tmp_path)[0]['cls'] != json.loads(uninterrupted.splitlines()[0])['cls']


def test_resuming_a_finished_run_changes_nothing(command, tmp_path, capsys):
    train(*command(*ONE_EPOCH))
    before = (tmp_path / 'run.losses.jsonl').read_bytes(), (tmp_path / 'run.pth').read_bytes()
    train(*command(*ONE_EPOCH, '--resume'))
    assert (tmp_path / 'run.losses.jsonl').read_bytes() == before[0]
    assert 'at step 6 of 6' in capsys.readouterr().out


def test_resuming_without_a_checkpoint_starts_and_says_so(command, tmp_path, capsys):
    train(*command(*ONE_EPOCH, '--resume'))
    assert f'nothing to resume: {tmp_path / "run.ckpt"}' in capsys.readouterr().out
    assert len(rows_of(tmp_path)) == 6


def test_a_second_start_resumes_or_overwrites_and_refuses_all_else(command, tmp_path, capsys):
    train(*command(*ONE_EPOCH))
    files = {path: path.read_bytes() for path in tmp_path.glob('run*')}
    refused = functools.partial(assert_refused, capsys, 'contrast_train')
    assert 'add --resume to continue it, --overwrite' in refused(*command(*ONE_EPOCH))
    message = refused(*command(*ONE_EPOCH, '--resume', '--lr', 0.04, '--w_er', 2))
    assert 'lr 0.05 -> 0.04' in message and 'w_er 1.0 -> 2.0' in message
    assert {path: path.read_bytes() for path in tmp_path.glob('run*')} == files
    train(*command(*ONE_EPOCH, '--overwrite'))
    assert (tmp_path / 'run.losses.jsonl').read_bytes() == files[tmp_path / 'run.losses.jsonl']
    assert (tmp_path / 'run.pth').read_bytes() == files[tmp_path / 'run.pth']


def test_a_damaged_checkpoint_is_refused(command, tmp_path, capsys):
    (tmp_path / 'run.ckpt').write_bytes(b'PK\x03\x04 cut short')
    assert 'run.ckpt: cannot be read' in assert_refused(capsys, 'contrast_train', *command('--resume'))
    torch.save({'model': {}}, tmp_path / 'run.ckpt')
    assert 'run.ckpt: is not a training checkpoint' in assert_refused(capsys, 'contrast_train', *command('--resume'))


# ---------------------------------------------------------------- checkpoints of older code

def train_until(step, arguments):
    """Train until the end of a step, in which a SIGTERM comes: the run saves and leaves."""
    update = Run.update

    def update_and_signal(run, terms, weights):
        update(run, terms, weights)
        if run.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, 'update', update_and_signal)
        train(*arguments)


def add_flag(monkeypatch, **options):
    """From now on every script that trains has one flag more, --strength. options: of add_argument."""
    add_run_flags = cli.add_run_flags

    def with_one_more(parser):
        add_run_flags(parser)
        parser.add_argument('--strength', type=float, **options)
    monkeypatch.setattr(cli, 'add_run_flags', with_one_more)


@pytest.fixture(scope='module')
def stopped_run(toy, tmp_path_factory):
    """The folder of a run that a SIGTERM stopped four steps before its end."""
    folder, step = tmp_path_factory.mktemp('stopped'), STEPS - 4
    train_until(step, arguments_of(toy, folder))
    assert checkpoint.read_checkpoint(folder / 'run.ckpt')['step'] == step
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path):
    """tmp_path with a copy of that run."""
    return shutil.copytree(stopped_run, tmp_path, dirs_exist_ok=True)


def test_a_checkpoint_of_a_network_that_was_changed_since_is_refused(command, stopped, capsys):
    state = checkpoint.read_checkpoint(stopped / 'run.ckpt')
    state['model']['fc_other.weight'] = state['model'].pop('fc_proj.weight')
    checkpoint.save_checkpoint(stopped / 'run.ckpt', state, state.pop('settings'))
    assert 'run.ckpt: was made with another network than the code now makes (2 tensors differ, such as ' \
        'fc_other.weight); resume with that code' in assert_refused(capsys, 'contrast_train', *command('--resume'))


@pytest.mark.parametrize('options, flags', [
    ({'default': 0.}, ()), ({'default': 0., 'before': 0.}, ()), ({}, ()),
    ({'default': 0.5, 'before': 0.}, ('--strength', 0))], ids=['neutral', 'neutral, stated', 'none', 'set back'])
def test_a_checkpoint_made_before_a_flag_existed_resumes(command, stopped, monkeypatch, uninterrupted, options, flags):
    add_flag(monkeypatch, **options)
    train(*command('--resume', *flags))
    assert (stopped / 'run.losses.jsonl').read_bytes() == uninterrupted


@pytest.mark.parametrize('options, flags, change', [
    ({'default': 0.5, 'before': 0.}, (), '0.0 -> 0.5'),
    ({'default': 0.}, ('--strength', 0.25), '0.0 -> 0.25'),
    ({}, ('--strength', 0.25), 'None -> 0.25')], ids=['by its default', 'by the user', 'from none'])
def test_a_checkpoint_made_before_a_flag_existed_is_refused_where_it_changes_the_run(
        command, stopped, capsys, monkeypatch, options, flags, change):
    before = tree_bytes(stopped)
    add_flag(monkeypatch, **options)
    message = assert_refused(capsys, 'contrast_train', *command('--resume', *flags))
    assert f'run.ckpt: was made with other settings (strength {change}); resume with those' in message
    assert tree_bytes(stopped) == before


@pytest.mark.parametrize('version', [None, 1])
def test_a_checkpoint_of_an_older_format_is_refused(command, stopped, capsys, version):
    state = torch.load(stopped / 'run.ckpt', weights_only=True)
    state['format'] = version
    torch.save({key: value for key, value in state.items() if value is not None}, stopped / 'run.ckpt')
    message = assert_refused(capsys, 'contrast_train', *command('--resume'))
    assert 'run.ckpt: was made by an older version of this code; finish the run with that version' in message
    train(*command('--overwrite', *ONE_EPOCH))  # the way out that the message names
    assert len(rows_of(stopped)) == 6


GIVEN = {'baseline', 'la_crf_dir', 'ha_crf_dir'}  # flags that `parsed` does not leave at their defaults


@pytest.mark.parametrize('name, baseline', [*(('contrast_train', name) for name in RECIPES), ('aff_train', None)])
def test_every_setting_that_a_checkpoint_lacks_counts_as_its_default(name, baseline):
    parser, args = parsed(name, baseline)
    settings, before = vars(args), cli.values_before(parser, args)
    weights = {name for name in settings if name.startswith('w_')}  # a term that did not exist had no weight
    stated = {field.name for field in cli.recipe_settings('train') if field.metadata['before'] is not None}
    compared = settings.keys() - checkpoint.UNCHECKED - checkpoint.ADVISED
    for missing in compared - GIVEN - weights - stated:
        older = json.loads(json.dumps({key: value for key, value in settings.items() if key != missing}))
        checkpoint.check_settings('run.ckpt', older, settings, before)
        with pytest.raises(UserError, match=rf'other settings \({missing} .* -> another\)'):
            checkpoint.check_settings('run.ckpt', older, settings | {missing: 'another'}, before)


def test_the_value_before_a_flag_is_the_one_stated_else_the_baselines_else_the_default():
    parser, _ = parsed('contrast_train', 'eps')
    parser.add_argument('--stated', default=3, before=2)
    parser.add_argument('--none', default=3, before=None)
    parser.add_argument('--silent', default=3)
    args = parser.parse_args(['--weights', 'w', '--session_name', 's', '--baseline', 'eps', '--stated', '5'])
    before = cli.values_before(parser, args)
    assert (before['stated'], before['none'], before['silent']) == (2, None, 3)
    assert (before['max_epoches'], before['batch_size']) == (15, 8)


@pytest.mark.parametrize('baseline, target', [('eps', 'seam'), ('eps_plain', None), ('seam', None)])
def test_a_checkpoint_of_eps_from_before_the_flag_has_the_ecr_target_of_seam(baseline, target):
    assert cli.values_before(*parsed('contrast_train', baseline))['ecr_target'] == target


def test_a_checkpoint_of_plain_eps_on_two_views_does_not_go_on_with_one():
    parser, args = parsed('contrast_train', 'eps_plain')
    older = json.loads(json.dumps(vars(args) | {'view2_size': 128}))
    with pytest.raises(UserError, match='other settings .view2_size 128 -> None.;'):
        checkpoint.check_settings('run.ckpt', older, vars(args), cli.values_before(parser, args))


def test_a_term_that_a_checkpoint_does_not_know_had_no_weight():
    before = cli.values_before(*parsed('contrast_train', 'eps'))
    assert before['w_saliency'] == 0  # EPS has the term
    assert cli.values_before(*parsed('contrast_train', 'seam'))['w_saliency'] is None  # SEAM has not


def test_settings_that_compute_nothing_may_change_and_one_that_is_gone_may_not():
    settings = dict.fromkeys(checkpoint.UNCHECKED, 'here') | {'lr': 0.1, 'sizes': (1, 2)}
    moved = dict.fromkeys(checkpoint.UNCHECKED, 'there') | {'lr': 0.1, 'sizes': [1, 2]}  # JSON knows no tuples
    checkpoint.check_settings('run.ckpt', moved, settings, {})
    with pytest.raises(UserError, match='gone 7 -> None'):
        checkpoint.check_settings('run.ckpt', moved | {'gone': 7}, settings, {})


# ---------------------------------------------------------------- one run, its files

def test_a_run_leaves_weights_checkpoint_description_logs_and_pictures(command, toy, tmp_path, capsys):
    train(*command(*ONE_EPOCH, '--picture_every', 4, '--val_list', toy.val, '--seed', 3))
    names = {'run.pth', 'run.ckpt', 'run.json', 'run.losses.jsonl', 'run.maps.png', 'tensorboard'}
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = rows_of(tmp_path)
    assert [row['step'] for row in rows] == list(range(6))
    recipe = RECIPES['seam']
    for row in rows:
        assert row['loss'] == pytest.approx(sum(recipe.weights[name] * row[name] for name in recipe.terms), rel=1e-5)

    info = json.loads((tmp_path / 'run.json').read_text())
    assert info['settings']['lr'] == 0.05 and info['settings']['momentum'] == 5e-4
    assert (info['seed'], info['total_batch'], info['max_step'], info['steps_per_epoch']) == (3, 2, 6, 6)
    assert info['packages']['torch'] == metadata.version('torch') and info['device'].startswith('CPU')
    out = capsys.readouterr().out
    assert 'total_batch 2, seed 3' in out and info['git_commit'] and info['git_commit'] in out
    assert 'warning: total batch 2 < 8' in out and 'val/mAP' in out

    state = torch.load(tmp_path / 'run.pth', weights_only=True)
    Net(VOC.num_classes, 1 / 16).load_state_dict(state)  # strict: plain, complete, nothing else

    events = EventAccumulator(str(tmp_path / 'tensorboard' / 'run')).Reload()
    for name in ('train/loss', 'train/lr', 'val/cls', 'val/mAP', *(f'train/{name}' for name in TERMS)):
        assert name in events.Tags()['scalars']
    assert [scalar.value for scalar in events.Scalars('train/cls')] == pytest.approx([row['cls'] for row in rows])
    assert [picture.step for picture in events.Images('maps')] == [4, 6]
    assert events.Tags()['tensors'] == ['run/text_summary']


def test_the_checkpoint_holds_all_settings_and_its_format(command, tmp_path):
    train(*command(*ONE_EPOCH))
    state = checkpoint.read_checkpoint(tmp_path / 'run.ckpt')
    assert (state['format'], state['step'], state['epoch']) == (2, 6, 1)
    expected = {'baseline': 'seam', 'network': 'network.resnet38_contrast', 'lr': 0.05, 'batch_size': 2, 'w_er': 1.,
                'w_intra': 0.1, 'bg_threshold': 0.2, 'num_workers': 0, 'resize_long': [40, 64]}
    for name, value in expected.items():
        assert state['settings'][name] == value, name
    for name in ('model', 'optimizer', 'scheduler', 'scaler', 'random'):
        assert state[name] is not None, name


def test_the_same_weights_are_the_same_file_whoever_writes_it(tmp_path, monkeypatch):
    path, weights = tmp_path / 'run.pth', {'weight': torch.arange(3.)}
    checkpoint.save_tensors(path, weights)
    written = path.read_bytes()
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    checkpoint.save_tensors(path, weights)
    assert path.read_bytes() == written
    assert torch.load(path, weights_only=True)['weight'].tolist() == [0, 1, 2]


def test_no_warning_for_a_batch_of_eight_or_without_contrast(command, tmp_path, capsys):
    train(*command(*ONE_EPOCH, '--batch_size', 8))
    train(*command(*ONE_EPOCH, '--session_name', tmp_path / 'seam', *(f'--w_{name}=0' for name in contrast.TERMS)))
    assert 'warning: total batch' not in capsys.readouterr().out


@pytest.mark.parametrize('off', [contrast.TERMS, ('ecr', 'intra'), TERMS[1:]])
def test_a_weight_of_zero_switches_the_term_off(command, tmp_path, off):
    train(*command(*ONE_EPOCH, *(f'--w_{name}=0' for name in off)))
    for row in rows_of(tmp_path):
        assert not row.keys() & set(off) and row.keys() >= set(TERMS) - set(off)


def test_nothing_left_to_train_is_refused(command, capsys):
    message = assert_refused(capsys, 'contrast_train', *command(*(f'--w_{name}=0' for name in TERMS)))
    assert 'all weights are 0' in message


def test_bf16_stays_close_to_float32(command, tmp_path):
    # Without the intra-view term, whose sampling may choose other pixels after a rounding.
    rows = []
    for amp in ('off', 'bf16'):
        train(*command(*ONE_EPOCH, '--session_name', tmp_path / amp, '--amp', amp, '--lr', 0.01, '--w_intra', 0))
        rows.append(read_loss_log(tmp_path / f'{amp}.losses.jsonl'))
    exact, rounded = rows
    assert exact != rounded
    assert rounded[0] == pytest.approx(exact[0], rel=0.03, abs=1e-3)
    assert [row['loss'] for row in rounded] == pytest.approx([row['loss'] for row in exact], rel=0.03)


def test_fp16_needs_a_gpu(command, capsys):
    assert 'needs a CUDA device' in assert_refused(capsys, 'contrast_train', *command('--amp', 'fp16'))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_terms(command, tmp_path, capsys):
    message = assert_refused(capsys, 'contrast_train', *command('--lr', 1e9))
    assert 'not finite at step' in message and 'cls = ' in message and 'lower the learning rate' in message
    assert not (tmp_path / 'run.pth').exists() and not list(tmp_path.glob('.*'))
    assert all(abs(row['loss']) < float('inf') for row in rows_of(tmp_path))


# ---------------------------------------------------------------- the loop itself

IMAGES = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))  # four batches of two; one is left out


def make_run(folder, *flags, **options):
    """A Run of a net with one layer: learning rates 0.1 and 0.2, two epochs of four steps. options: of Run."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{'params': net.weight, 'lr': 0.1}, {'params': net.bias, 'lr': 0.2}], momentum=0.9)
    args = run_flags(folder, '--log_every', 1, '--save_every', 3, *flags)
    return Run(folder / 'run', net, optimizer, device=torch.device('cpu'), args=args, before={}, images=len(IMAGES),
               batch_size=2, epochs=2, **options)


def step_of(run, batch):
    """One step that lowers the mean square of the net's output."""
    run.update({'a': run.net(batch).square().mean()}, {'a': 1.})


def test_the_schedule_is_polynomial(tmp_path):
    run = make_run(tmp_path)
    for batch in run.batches(IMAGES):
        factor = (1 - run.step / 8) ** 0.9
        assert [group['lr'] for group in run.optimizer.param_groups] == pytest.approx([0.1 * factor, 0.2 * factor])
        assert (run.epoch, len(batch)) == (run.step // 4, 2)
        step_of(run, batch)
    assert run.step == 8 and run.optimizer.param_groups[0]['lr'] == 0.
    run.finish()


def test_a_schedule_longer_than_the_run_ends_above_zero(tmp_path):
    run = make_run(tmp_path, schedule_steps=9)
    for batch in run.batches(IMAGES):
        assert run.optimizer.param_groups[0]['lr'] == pytest.approx(0.1 * (1 - run.step / 9) ** 0.9)
        step_of(run, batch)
    assert run.step == 8
    run.finish()


def test_the_weighted_sum_is_what_is_minimised(tmp_path):
    run = make_run(tmp_path)
    start = run.net.weight.detach().clone()
    for batch in run.batches(IMAGES):
        run.update({'up': run.net.weight.sum(), 'down': -run.net.weight.sum()}, {'up': 3., 'down': 1., 'absent': 5.})
        break
    torch.testing.assert_close(run.net.weight.detach(), start - 0.1 * (3. - 1.))
    row, = rows_of(tmp_path)
    assert row['loss'] == pytest.approx(3 * row['up'] + row['down'])


def test_a_checkpoint_is_written_every_so_often_and_after_each_epoch(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    saved = []
    monkeypatch.setattr(run, 'save', lambda: saved.append(run.step))
    for batch in run.batches(IMAGES):
        step_of(run, batch)
    assert saved == [3, 4, 6, 8]


@pytest.mark.parametrize('sent', [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_signals_are_noted_and_handed_back_after_training(tmp_path, sent):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run = make_run(tmp_path)
    with pytest.raises(SystemExit) as end:
        for batch in run.batches(IMAGES):
            step_of(run, batch)
            for number in sent:
                os.kill(os.getpid(), number)
    assert end.value.code == 128 + sent[0] and run.step == 1 and (tmp_path / 'run.ckpt').exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_steps_logged_after_the_checkpoint_are_dropped_on_resuming(tmp_path):
    run = make_run(tmp_path)
    for batch in run.batches(IMAGES):
        step_of(run, batch)
        if run.step == 5:
            break  # as a kill would, after the checkpoint of step 4, the end of an epoch
    rows = rows_of(tmp_path)
    assert [row['step'] for row in rows] == [0, 1, 2, 3, 4]
    with open(tmp_path / 'run.losses.jsonl', 'a') as file:
        file.write('{"step": 5, "lo')  # cut short
    assert make_run(tmp_path, '--resume').step == 4
    assert rows_of(tmp_path) == rows[:4]

"""reproduce.py, demo.py, ablation.py: commands that exist; done steps are skipped; one that fails stops the chain."""
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import assert_refused, parsed, planned, run_script

import ablation
import demo
from engine import cli
from engine.errors import UserError
from engine.files import REPO
from report import chain, pipeline
from report.pipeline import Step
from report.presets import PRESETS, TOY
from tool.recipes import RECIPES

PUBLISHED = chain.Paths(weights='w.params', out='runs/x', saliency_dir='SALImages', deeplab_weights='r101.pth')
OWN_LISTS = chain.Paths(weights='w.pth', out='runs/x', voc12_root='toy', lists='toy/lists', saliency_dir='SALImages')
TRAININGS = ('contrast_train', 'aff_train', 'segmentation_train')
each_recipe = pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)


def steps_of(recipe, paths, *args, **options):
    """{name: step} of the chain."""
    return {step.name: step for step in chain.chain(recipe, paths, *args, **options)}


def value_of(argv, flag):
    """The value of a flag on a command line."""
    return argv[argv.index(flag) + 1]


# ---------------------------------------------------------------- the chain

@each_recipe
@pytest.mark.parametrize('paths', [PUBLISHED, OWN_LISTS], ids=['published', 'own lists'])
@pytest.mark.parametrize('preset', [None, *PRESETS.values()], ids=['no preset', *PRESETS])
def test_every_command_is_one_that_its_script_takes(recipe, paths, preset):
    extra = preset.extra(recipe) if preset else None
    for step in chain.chain(recipe, paths, extra, ('--amp', 'bf16', '--seed', '1'), chain.Machine('cpu', 1, 2)):
        args = parsed(step.argv + step.machine)
        assert args.num_workers == 2
        assert getattr(args, 'amp', 'bf16') == 'bf16'
        assert getattr(args, 'device', 'cpu') == 'cpu'
        assert getattr(args, 'threads', 1) == 1
        if hasattr(args, 'baseline'):
            kind = step.argv[0].removeprefix('contrast_').removesuffix('.py')
            assert cli.chosen_recipe(args, kind).name == recipe.name  # raises where it has no use for a flag


@each_recipe
@pytest.mark.parametrize('masks_crf', [True, False])
def test_what_a_step_reads_was_written_by_a_step_it_names(recipe, masks_crf):
    """Every path under the run's folder that a command reads is an output of one of the steps in its `after`."""
    steps = steps_of(recipe, replace(PUBLISHED, masks_crf=masks_crf))
    for step in steps.values():
        own = [pattern.removesuffix('.*') for pattern in step.makes]
        made = [pattern.removesuffix('.*') for name in step.after for pattern in steps[name].makes]
        readable = [f'{path}{tail}' for path in made for tail in ('', '.pth', '/4.00', '/24.00')]
        for flag, text in zip(step.argv, step.argv[1:]):
            if str(text).startswith('runs/x/') and flag not in ('--tblog_dir', '--logfile') and text not in own:
                assert text in readable, (step.name, text)


@pytest.mark.parametrize('baseline, masks_crf, masks', [
    ('seam', True, 'runs/x/rw_crf'), ('seam', False, 'runs/x/rw'), ('cam', True, 'runs/x/rw_crf'),
    ('eps', True, 'runs/x/crf'), ('eps', False, 'runs/x/crf'), ('eps_plain', True, 'runs/x/crf')])
def test_deeplab_learns_from_the_pseudo_masks_of_train_aug(baseline, masks_crf, masks):
    paths = replace(PUBLISHED, masks_crf=masks_crf)
    steps = steps_of(RECIPES[baseline], paths)
    assert paths.masks(RECIPES[baseline]) == masks
    assert value_of(steps['segmentation_train'].argv, '--pseudo_gt') == masks
    writers = [step for step in steps.values() if masks in step.makes]
    assert [value_of(step.argv, '--infer_list') for step in writers] == ['voc12/train_aug.txt']


def test_training_continues_and_lists_follow():
    lines = {name: step.line for name, step in steps_of(RECIPES['seam'], OWN_LISTS).items()}
    for name in TRAININGS:
        assert '--train_list toy/lists/train_aug.txt' in lines[name]
        assert lines[name].endswith('--resume')
    assert 'voc12/' not in ' '.join(lines.values()).replace('voc12/prepare.py', '')
    for step in chain.chain(RECIPES['seam'], PUBLISHED):
        assert '--train_list' not in step.argv
        assert '--cls_labels' not in step.argv


def test_extra_arguments_go_to_their_step():
    steps = steps_of(RECIPES['seam'], PUBLISHED, {'aff_train': ['--crop_size', 96]})
    assert steps['aff_train'].argv[-2:] == ('--crop_size', '96')
    assert [name for name, step in steps.items() if '--crop_size' in step.argv] == ['aff_train']
    with pytest.raises(UserError, match='no step'):
        chain.chain(RECIPES['eps'], PUBLISHED, {'aff_train': ['--crop_size', 96]})


@pytest.mark.parametrize('baseline, published', [('seam', 61.5), ('eps', 70.5)])
def test_rows_name_what_the_steps_leave(baseline, published):
    rows = chain.rows(RECIPES[baseline], PUBLISHED)
    steps = chain.chain(RECIPES[baseline], PUBLISHED)
    left = {f'{value_of(step.argv, "--logfile")}.json' for step in steps if '--logfile' in step.argv}
    assert {row['scores'] for row in rows} == left | {PUBLISHED.scores('segmentation_test')}
    assert [row['published'] for row in rows if row['published']] == [published]
    assert [row['oracle'] for row in rows].count(True) == 1
    assert rows[0]['oracle']
    assert rows[0]['entry'] == 'best'


# ---------------------------------------------------------------- the README

def readme_commands(path='README.md'):
    """The commands of a text as lists of arguments: `python …`, indented, comments left out."""
    text = (REPO / path).read_text(encoding='utf-8').replace('\\\n', ' ')
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith('    python ')]


@pytest.mark.parametrize('text, scripts', [('README.md', 9), ('docs/OWN_DATA.md', 6)])
def test_commands_in_texts_are_ones_that_their_scripts_take(text, scripts):
    commands = readme_commands(text)
    assert len({path for path, *_ in commands}) >= scripts
    for path, *rest in commands:
        parsed([path if (REPO / path).exists() else f'segmentation/experiment/{path}', *rest])


@pytest.mark.parametrize('baseline', ['seam', 'eps'])
def test_the_chain_runs_the_commands_of_the_readme(baseline):
    """Every README command on the run's folder is a line of the chain, which may add flags to it."""
    paths = chain.Paths(weights='ilsvrc-cls_rna-a1_cls1000_ep-0001.params', out=f'runs/{baseline}',
                        saliency_dir='SALImages')
    lines = [set(step.argv) for step in chain.chain(RECIPES[baseline], paths)]
    shared = [argv for argv in readme_commands()
              if (REPO / argv[0]).exists() and any(f'runs/{baseline}/' in text for text in argv)]
    assert shared
    for argv in shared:
        free = {'--batch_size', '8'}  # the default, spelt out in the README because it matters
        if '--comment' in argv:
            free |= {'--comment', value_of(argv, '--comment')}
        assert any(set(argv) - free <= line for line in lines), shlex.join(argv)


# ---------------------------------------------------------------- demo.py

@pytest.mark.parametrize('baseline', TOY.background)
def test_every_command_of_the_demo_is_one_that_its_script_takes(baseline):
    recipe = RECIPES[baseline]
    steps = demo.toy_steps(recipe, demo.toy_paths('runs/x', recipe), ('--seed', '3'), chain.Machine(threads='auto'))
    for step in steps:
        args = parsed(step.argv)
        if step.argv[0] in chain.NETWORK_SCRIPTS:
            assert (args.seed, args.amp) == (3, 'off')  # float32, the same on every machine
    args = {step.name: parsed(step.argv) for step in steps}
    cli.chosen_recipe(args['contrast_train'], 'train')  # raises where the baseline has no use for a flag
    cli.chosen_recipe(args['contrast_infer'], 'infer')
    assert args['toy'].train == TOY.images['train']
    for name in ('contrast_infer', 'contrast_infer_val'):
        assert args[name].out_cam_pred_alpha == args['eval_seeds'].t == TOY.background[recipe.name]


def test_the_rows_of_the_demo_name_what_its_steps_leave_and_no_published_figure():
    paths = demo.toy_paths('runs/x', RECIPES['seam'])
    steps = demo.toy_steps(RECIPES['seam'], paths)
    rows = demo.describe(RECIPES['seam'], paths, steps)['rows']
    left = {f'{value_of(step.argv, "--logfile")}.json' for step in steps if '--logfile' in step.argv}
    assert {row['scores'] for row in rows} == left | {'runs/x/segmentation_val/scores.json'}
    assert {row['published'] for row in rows} == {None}


def test_the_demos_dry_run_prints_the_commands_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the demo goes to the repository's folder: the test goes back
    first, *_ = planned(capsys, 'demo', '--out', tmp_path / 'run').values()
    assert first[:3] == ['toy/make.py', '--out', f'{tmp_path}/run/VOC2012']
    assert not (tmp_path / 'run').exists()


# ---------------------------------------------------------------- ablation.py

SEAM = {'cls', 'rvmin', 'er', 'ecr'}
CONTRAST = {'cross_prototype', 'cross_cam', 'intra'}
ROW_TERMS = {
    'plain CAM': {'cls'}, 'SEAM': SEAM, '+ cross-prototype': SEAM | {'cross_prototype'},
    '+ cross-CAM': SEAM | {'cross_prototype', 'cross_cam'}, '+ intra-view (full PPC)': SEAM | CONTRAST,
    'full PPC, momentum 5e-4 (published)': SEAM | CONTRAST, 'EPS': {'cls', 'saliency'},
    'EPS + PPC': SEAM | CONTRAST | {'saliency', 'saliency_rv'}}


ABLATION = ablation.get_args_parser().parse_args(['--out', 'out', '--voc12_root', 'VOC2012'])
ABLATION.weights = 'toy/backbone.pth'


@pytest.mark.parametrize('preset, row', [(name, row) for name, preset in PRESETS.items() for row in ablation.ROWS
                                         if ablation.ROWS[row].baseline in preset.background])
def test_every_row_is_three_commands_that_go_together(preset, row):
    args = SimpleNamespace(**vars(ABLATION) | {'preset': preset})
    train, infer, score = (parsed(step.argv) for step in ablation.row_steps(args, row, 1))
    cli.chosen_recipe(train, 'train')  # fills in what the baseline decides; raises where a flag does not belong to it
    cli.chosen_recipe(infer, 'infer')
    assert train.baseline == infer.baseline == ablation.ROWS[row].recipe.name
    assert train.network == infer.network
    assert train.seed == 1
    assert infer.out_cam_pred_alpha == score.t


@pytest.mark.parametrize('row', ROW_TERMS)
def test_a_row_trains_with_its_terms(row):
    train = parsed(ablation.row_steps(ABLATION, row, 0)[0].argv)
    recipe = cli.chosen_recipe(train, 'train')
    for name in set().union(*ROW_TERMS.values()):
        assert bool(recipe.weights.get(name)) == (name in ROW_TERMS[row]), name
    assert train.momentum == (5e-4 if 'published' in row else 0.9)


def test_the_table_has_medians_and_the_range():
    scores = {('SEAM', seed): (miou, 0.41, miou - 1, 0.40) for seed, miou in enumerate((60., 62., 50.))}
    text = ablation.table(scores, ['SEAM'], 3)
    assert text.splitlines()[2] == '| SEAM | 60.0 | 50.0 to 62.0 | 0.41 | 59.0 | 0.40 |'


# ---------------------------------------------------------------- reproduce.py

def test_a_dry_run_prints_the_commands_a_person_types(tmp_path, capsys):
    typed = planned(capsys, 'reproduce', '--weights', 'w.params', '--voc12_root', 'VOC2012', '--out', tmp_path / 'run')
    for path, *_ in typed.values():
        assert (REPO / path).is_file()
    assert list(dict.fromkeys(path for path, *_ in typed.values())) == [
        'voc12/prepare.py', 'contrast_train.py', 'contrast_infer.py', 'eval.py', 'aff_prepare.py', 'aff_train.py',
        'aff_infer.py', 'segmentation/experiment/train.py', 'segmentation/experiment/test.py']
    assert not (tmp_path / 'run').exists()


def test_a_dry_run_of_eps_has_no_second_step(capsys):
    commands = planned(capsys, 'reproduce', '--weights', 'w', '--baseline', 'eps', '--saliency_dir', 'S',
                       '--deeplab_weights', 'r')
    text = '\n'.join(map(shlex.join, commands.values()))
    assert 'aff_' not in text
    assert '--baseline eps' in text
    assert 'EPS_deeplabv2_resnet101' in text


def test_added_arguments_go_to_one_step_and_shared_flags_to_all(capsys):
    commands = planned(capsys, 'reproduce', '--weights', 'w', '--add', 'aff_infer --beta 4 --logt 3', '--amp', 'bf16',
                       '--seed', 2)
    walks = [shlex.join(argv) for argv in commands.values() if argv[0] == 'aff_infer.py']
    assert ['--beta 4 --logt 3' in line for line in walks] == [True, False]
    assert ['--amp bf16 --seed 2' in line for line in walks] == [True] * 2


@pytest.fixture
def devkit(tmp_path):
    """What reproduce.py takes for a devkit, without any image."""
    (tmp_path / 'VOC2012' / 'JPEGImages').mkdir(parents=True)
    return tmp_path / 'VOC2012'


@pytest.mark.parametrize('argv, message', [
    (['--voc12_root', 'nowhere', '--weights', __file__], 'error: --voc12_root: nowhere has no JPEGImages'),
    (['--weights', 'nowhere.params'], 'error: --weights: nowhere.params does not exist'),
    (['--weights', __file__, '--baseline', 'eps'], 'error: --deeplab_weights: is needed for --baseline eps'),
    (['--weights', __file__, '--saliency_dir', '.'], 'error: --saliency_dir: --baseline seam uses no saliency maps'),
    (['--weights', __file__, '--add', 'nothing --x'], 'error: nothing: is no step of the chain'),
    (['--weights', __file__, '--from', 'nothing'], 'error: --from: there is no step nothing'),
])
def test_mistakes_are_refused_before_anything_is_done(capsys, tmp_path, devkit, argv, message):
    error = assert_refused(capsys, 'reproduce', '--voc12_root', devkit, *argv, '--out', tmp_path / 'run')
    assert error.startswith(message)
    assert not (tmp_path / 'run').exists()


def test_a_mistake_gives_one_line_and_nothing_else(tmp_path, devkit):
    done = run_script('reproduce', '--voc12_root', devkit, '--weights', __file__, '--from', 'nothing',
                      '--out', tmp_path / 'run')
    assert done.returncode == 2
    assert done.stderr.startswith('error: --from: there is no step nothing')
    assert done.stderr.count('\n') == 1
    assert done.stdout == ''


@pytest.mark.long
def test_a_step_that_fails_stops_the_chain(tmp_path, devkit):
    """The first step finds no devkit: its own line, then the runner's; no later step is begun, no page is made."""
    run = tmp_path / 'run'
    done = run_script('reproduce', '--voc12_root', devkit, '--weights', __file__, '--lists', tmp_path / 'lists',
                      '--out', run)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith('error: --voc12_root')
    assert second.startswith('error: prepare: ended with exit code 2; see above')
    assert '[2/' not in done.stdout
    assert not (run / 'report.html').exists()


# ---------------------------------------------------------------- the runner

def note(path, text, name='a', **options):
    """A step that appends a line to a file."""
    return Step(name, ('-c', f'open({str(path)!r}, "a").write({text!r} + "\\n")'), makes=(str(path),), **options)


def two_steps(folder, text='x'):
    """Two steps, `a` and `b`; the second reads from the first."""
    return [note(folder / 'a', text), note(folder / 'b', 'y', 'b', after=('a',))]


def test_done_steps_are_skipped(tmp_path, capsys):
    first = pipeline.run_steps(two_steps(tmp_path), tmp_path / 'log')
    assert list(first) == ['a', 'b']
    assert pipeline.run_steps(two_steps(tmp_path), tmp_path / 'log') == first
    assert (tmp_path / 'a').read_text() == 'x\n'
    assert (tmp_path / 'b').read_text() == 'y\n'
    assert capsys.readouterr().out.count('done already') == 2


def test_output_of_another_command_is_not_taken_for_this_ones(tmp_path):
    """Scripts skip files that exist: a command that changed, or one upstream, must not go on with the old ones."""
    pipeline.run_steps(two_steps(tmp_path, 'x'), tmp_path / 'log')
    with pytest.raises(UserError, match='another command than a now is.*--from a'):
        pipeline.run_steps(two_steps(tmp_path, 'z'), tmp_path / 'log')
    assert (tmp_path / 'a').read_text() == 'x\n'
    pipeline.run_steps(two_steps(tmp_path, 'z'), tmp_path / 'log', start='a')
    assert (tmp_path / 'a').read_text() == 'z\n'
    assert (tmp_path / 'b').read_text() == 'y\n'
    (tmp_path / 'b').unlink()
    pipeline.run_steps(two_steps(tmp_path, 'new')[1:], tmp_path / 'other')  # nothing was left: a command may change
    assert (tmp_path / 'b').read_text() == 'y\n'


def test_from_takes_earlier_steps_as_done(tmp_path):
    pipeline.run_steps(two_steps(tmp_path), tmp_path / 'log', start='b')
    assert not (tmp_path / 'a').exists()
    assert (tmp_path / 'b').exists()


def test_workers_and_device_do_not_undo_a_step(tmp_path):
    step = note(tmp_path / 'a', 'x')
    pipeline.run_steps([step], tmp_path / 'log')
    pipeline.run_steps([replace(step, machine=('--num_workers', '3'))], tmp_path / 'log')
    assert (tmp_path / 'a').read_text() == 'x\n'


def test_a_failed_step_is_begun_again(tmp_path):
    flag = tmp_path / 'flag'
    step = Step('a', ('-c', f'import pathlib; print("said"); pathlib.Path({str(flag)!r}).read_text()'))
    with pytest.raises(UserError, match='a: ended with exit code 1'):
        pipeline.run_steps([step], tmp_path / 'log')
    assert 'said' in (tmp_path / 'log' / 'a.log').read_text()
    assert pipeline.read_record(tmp_path / 'log', 'a')['seconds'] is None
    flag.write_text('')
    pipeline.run_steps([step], tmp_path / 'log')
    assert pipeline.read_record(tmp_path / 'log', 'a')['seconds'] is not None


def test_the_time_of_a_stopped_attempt_counts(tmp_path, monkeypatch):
    clock = iter((0, 40, 100, 130, 200, 207))
    monkeypatch.setattr(pipeline, 'time', SimpleNamespace(monotonic=lambda: next(clock)))
    flag = tmp_path / 'flag'
    step = Step('a', ('-c', f'import pathlib; pathlib.Path({str(flag)!r}).read_text()'))
    with pytest.raises(UserError):
        pipeline.run_steps([step], tmp_path / 'log')
    assert pipeline.read_record(tmp_path / 'log', 'a')['stopped_after'] == 40
    flag.write_text('')
    assert pipeline.run_steps([step], tmp_path / 'log') == {'a': 70.}
    assert pipeline.run_steps([step], tmp_path / 'log', start='a') == {'a': 7.}  # done anew, not gone on with


def test_quiet_keeps_messages_in_the_log(tmp_path, capfd):
    step = Step('a', ('-c', 'import sys; print("one"); print("two", file=sys.stderr)'))
    pipeline.run_steps([step], tmp_path, quiet=True)
    assert capfd.readouterr() == ('', '')
    assert {'one', 'two'} < set((tmp_path / 'a.log').read_text().splitlines())

"""reproduce.py: the commands it prints are commands that exist; done steps are skipped; a failing one stops it with one line."""
import importlib.util
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import ablation
import contrast_train
from engine.errors import UserError
from engine.files import REPO
from report import chain, pipeline
from report.pipeline import Step
from tool import recipes

PATHS = chain.Paths(weights='w.params', out='runs/x', saliency_dir='SALImages', deeplab_weights='r101.pth')
TOY = chain.Paths(weights='w.pth', out='runs/x', voc12_root='toy', lists='toy/lists')


def reproduce(*words):
    return subprocess.run([sys.executable, str(REPO / 'reproduce.py'), *map(str, words)], capture_output=True, text=True)


@cache
def parser_of(script):
    """The argument parser of a script, which is loaded but not run."""
    spec = importlib.util.spec_from_file_location(script.replace('/', '_').removesuffix('.py'), REPO / script)
    module, path = importlib.util.module_from_spec(spec), sys.path[:]
    spec.loader.exec_module(module)
    sys.path[:] = path  # scripts in folders put the repository first
    return module.get_args_parser()


# ---------------------------------------------------------------- the chain

@pytest.mark.parametrize('baseline', chain.BASELINES)
@pytest.mark.parametrize('paths', [PATHS, TOY])
def test_every_command_is_one_that_its_script_takes(baseline, paths):
    for step in chain.chain(baseline, paths, shared=('--amp', 'bf16', '--seed', '1'), workers=2, device='cpu'):
        script, *words = map(str, step.words + step.machine)
        args = parser_of(script).parse_args(words)  # exits, and so fails, on a flag that the script lacks
        assert args.num_workers == 2
        assert getattr(args, 'amp', 'bf16') == 'bf16' and getattr(args, 'device', 'cpu') == 'cpu'


@pytest.mark.parametrize('masks_crf, seam_masks', [(True, 'runs/x/rw_crf'), (False, 'runs/x/rw')])
def test_what_a_step_reads_was_written_by_a_step_it_names(masks_crf, seam_masks):
    """Every path under the run's folder that a command reads is an output of one of the steps in its `after`."""
    paths = chain.Paths(weights='w.params', out='runs/x', masks_crf=masks_crf)
    for baseline, masks in (('seam', seam_masks), ('eps', 'runs/x/crf')):
        steps = {step.name: step for step in chain.chain(baseline, paths)}
        for step in steps.values():
            own = [pattern.removesuffix('.*') for pattern in step.makes]
            made = [pattern.removesuffix('.*') for name in step.after for pattern in steps[name].makes]
            for flag, word in zip(step.words, step.words[1:]):
                if str(word).startswith('runs/x/') and flag not in ('--tblog_dir', '--logfile') and word not in own:
                    assert any(word == path or word in (f'{path}.pth', f'{path}/4.00', f'{path}/24.00') for path in made), (step.name, word)
        train = steps['segmentation_train'].words
        assert train[train.index('--pseudo_gt') + 1] == masks == paths.masks(baseline)
        lists = {step.words[i + 1]: step.words[step.words.index('--infer_list') + 1] for step in steps.values()
                 for i, word in enumerate(step.words) if word in ('--out_rw', '--out_crf') and '--infer_list' in step.words}
        assert lists[masks] == 'voc12/train_aug.txt'  # what DeepLab is trained on


def test_training_continues_and_lists_follow():
    steps = {step.name: step.line for step in chain.chain('seam', TOY)}
    for name in ('contrast_train', 'aff_train', 'segmentation_train'):
        assert '--train_list toy/lists/train_aug.txt' in steps[name] and steps[name].endswith('--resume')
    assert 'voc12/' not in ' '.join(steps.values()).replace('voc12/prepare.py', '')
    assert not any('train_list' in step.line or 'cls_labels' in step.line for step in chain.chain('seam', PATHS))


def test_extra_words_go_to_their_step():
    steps = {step.name: step for step in chain.chain('seam', PATHS, {'aff_train': ['--crop_size', 96]})}
    assert steps['aff_train'].words[-2:] == ('--crop_size', '96')
    assert not any('--crop_size' in step.words for name, step in steps.items() if name != 'aff_train')
    with pytest.raises(UserError, match='no step'):
        chain.chain('eps', PATHS, {'aff_train': ['--crop_size', 96]})


@pytest.mark.parametrize('baseline, published', [('seam', 61.5), ('eps', 70.5)])
def test_rows_name_what_the_steps_leave(baseline, published):
    steps = {step.name: step for step in chain.chain(baseline, PATHS)}
    logs = {f'{word}.json' for step in steps.values() for flag, word in zip(step.words, step.words[1:]) if flag == '--logfile'}
    rows = chain.rows(baseline, PATHS)
    assert {row['scores'] for row in rows} == logs - {PATHS.scores('eval_seeds_val')} | {PATHS.scores('segmentation_test')} \
        | {PATHS.scores('eval_seeds_val')}
    assert [row['published'] for row in rows if row['published']] == [published]
    assert [row['oracle'] for row in rows].count(True) == 1 and rows[0]['oracle'] and rows[0]['entry'] == 'best'


def readme_commands():
    """The word lists of the README's commands: `python …`, indented, comments left out."""
    text = (REPO / 'README.md').read_text(encoding='utf-8').replace('\\\n', ' ')
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith('    python ')]


def test_readme_commands_are_ones_that_their_scripts_take():
    commands = readme_commands()
    assert len({words[0] for words in commands}) > 8
    for script, *words in commands:
        path = script if (REPO / script).exists() else f'segmentation/experiment/{script}'
        parser_of(path).parse_args(words)


@pytest.mark.parametrize('baseline', chain.BASELINES)
def test_chain_runs_the_commands_of_the_readme(baseline):
    """Every README command on the run's folder is a line of the chain, which may add flags to it."""
    paths = chain.Paths(weights='ilsvrc-cls_rna-a1_cls1000_ep-0001.params', out=f'runs/{baseline}', saliency_dir='SALImages')
    lines = [set(step.words) for step in chain.chain(baseline, paths)]
    shared = [words for words in readme_commands() if (REPO / words[0]).exists() and any(f'runs/{baseline}/' in word for word in words)]
    assert shared
    for words in shared:
        free = {'--batch_size', '8'}  # the default, spelt out in the README because it matters
        if '--comment' in words:
            free |= {'--comment', words[words.index('--comment') + 1]}
        assert any(set(words) - free <= line for line in lines), shlex.join(words)


# ---------------------------------------------------------------- ablation.py

@pytest.mark.parametrize('row', ablation.ROWS)
def test_every_row_is_three_commands_that_go_together(row):
    steps = ablation.row_steps(Path('out'), row, 1)
    parsed = []
    for step in steps:
        script, *words = map(str, step.words)
        parsed.append(parser_of(script).parse_args(words))
    train, infer, score = parsed
    recipes.check(train, contrast_train.DEFAULTS)  # raises where a flag does not belong to the baseline
    assert (train.baseline, train.network) == (infer.baseline, infer.network) and train.seed == 1
    assert infer.out_cam_pred_alpha == score.t
    on = {name for name in contrast_train.TERMS if getattr(train, f'w_{name}')}
    terms = {'plain CAM': {'cls'}, 'SEAM': {'cls', 'rvmin', 'er', 'ecr'}, 'EPS': {'cls', 'saliency'},
             'EPS + PPC': set(contrast_train.TERMS)}
    assert on == terms.get(row, on)


def test_ablation_table_has_medians_and_the_range():
    scores = {('SEAM', seed): (miou, 0.41, miou - 1, 0.40) for seed, miou in enumerate((60., 62., 50.))}
    text = ablation.table(scores, ['SEAM'], 3)
    assert text.splitlines()[2] == '| SEAM | 60.0 | 50.0 to 62.0 | 0.41 | 59.0 | 0.40 |'


# ---------------------------------------------------------------- reproduce.py

def test_dry_run_prints_the_commands_a_person_types(tmp_path):
    result = reproduce('--weights', 'w.params', '--voc12_root', 'VOC2012', '--out', tmp_path / 'run', '--dry_run')
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines() if line.startswith('    ')]
    assert all(line.startswith('python ') and (REPO / shlex.split(line)[1]).is_file() for line in lines)
    scripts = [shlex.split(line)[1] for line in lines]
    order = ['voc12/prepare.py', 'contrast_train.py', 'contrast_infer.py', 'eval.py', 'aff_prepare.py', 'aff_train.py', 'aff_infer.py',
             'segmentation/experiment/train.py', 'segmentation/experiment/test.py']
    assert list(dict.fromkeys(scripts)) == order
    assert not (tmp_path / 'run').exists()


def test_dry_run_of_eps_has_no_second_step(tmp_path):
    result = reproduce('--weights', 'w', '--baseline', 'eps', '--saliency_dir', 'S', '--deeplab_weights', 'r', '--dry_run')
    assert 'aff_' not in result.stdout and '--baseline eps' in result.stdout and 'EPS_deeplabv2_resnet101' in result.stdout


def test_added_words_and_shared_flags():
    result = reproduce('--weights', 'w', '--dry_run', '--add', 'aff_infer --beta 4 --logt 3', '--amp', 'bf16', '--seed', 2)
    walks = [line for line in result.stdout.splitlines() if 'aff_infer.py' in line]
    assert [('--beta 4 --logt 3' in line, '--amp bf16 --seed 2' in line) for line in walks] == [(True, True)] + [(False, True)] * 3


def folder(path):
    (path / 'JPEGImages').mkdir(parents=True)
    return path


@pytest.mark.parametrize('words, message', [
    (['--voc12_root', 'nowhere', '--weights', __file__], 'error: --voc12_root: nowhere is no VOC devkit'),
    (['--weights', 'nowhere.params'], 'error: --weights: nowhere.params does not exist'),
    (['--weights', __file__, '--baseline', 'eps'], 'error: --deeplab_weights: is needed for --baseline eps'),
    (['--weights', __file__, '--saliency_dir', '.'], 'error: --saliency_dir: SEAM uses no saliency maps'),
    (['--weights', __file__, '--add', 'nothing --x'], 'error: nothing: is no step of the chain'),
    (['--weights', __file__, '--from', 'nothing'], 'error: --from: there is no step nothing'),
])
def test_mistakes_give_one_line(tmp_path, words, message):
    root = [] if '--voc12_root' in words else ['--voc12_root', folder(tmp_path / 'VOC2012')]
    result = reproduce(*root, *words, '--out', tmp_path / 'run')
    assert result.returncode == 2 and result.stderr.startswith(message) and result.stderr.count('\n') == 1
    assert result.stdout == ''


def test_a_step_that_fails_stops_the_chain(tmp_path):
    """The first step finds no devkit: its own line, then the runner's; no later step is begun, no page is made."""
    root, run = folder(tmp_path / 'VOC2012'), tmp_path / 'run'
    result = reproduce('--voc12_root', root, '--weights', __file__, '--lists', tmp_path / 'lists', '--out', run)
    assert result.returncode == 2
    first, second = result.stderr.splitlines()
    assert first.startswith('error: --voc12_root') and second.startswith('error: prepare: ended with exit code 2; see above')
    assert '[2/' not in result.stdout and not (run / 'report.html').exists()


# ---------------------------------------------------------------- the runner

def note(path, text, name='a', **kwargs):
    """A step that appends a line to a file."""
    return Step(name, ('-c', f'open({str(path)!r}, "a").write({text!r} + "\\n")'), makes=(str(path),), **kwargs)


def test_done_steps_are_skipped(tmp_path, capsys):
    steps = [note(tmp_path / 'a', 'x'), note(tmp_path / 'b', 'y', 'b', after=('a',))]
    first = pipeline.run_steps(steps, tmp_path / 'log')
    assert pipeline.run_steps(steps, tmp_path / 'log') == first and set(first) == {'a', 'b'}
    assert (tmp_path / 'a').read_text() == 'x\n' and (tmp_path / 'b').read_text() == 'y\n'
    assert capsys.readouterr().out.count('done already') == 2


def test_output_of_another_command_is_not_taken_for_this_ones(tmp_path):
    """Scripts skip files that exist: a changed command, or a changed command upstream, must not go on with the old ones."""
    def steps(word):
        return [note(tmp_path / 'a', word), note(tmp_path / 'b', 'y', 'b', after=('a',))]
    pipeline.run_steps(steps('x'), tmp_path / 'log')
    with pytest.raises(UserError, match='another command than a now is.*--from a'):
        pipeline.run_steps(steps('z'), tmp_path / 'log')
    assert (tmp_path / 'a').read_text() == 'x\n'
    pipeline.run_steps(steps('z'), tmp_path / 'log', start='a')
    assert (tmp_path / 'a').read_text() == 'z\n' and (tmp_path / 'b').read_text() == 'y\n'
    (tmp_path / 'b').unlink()
    pipeline.run_steps(steps('new')[1:], tmp_path / 'other')  # nothing was left: a command may change
    assert (tmp_path / 'b').read_text() == 'y\n'


def test_from_takes_earlier_steps_as_done(tmp_path):
    steps = [note(tmp_path / 'a', 'x'), note(tmp_path / 'b', 'y', 'b', after=('a',))]
    pipeline.run_steps(steps, tmp_path / 'log', start='b')
    assert not (tmp_path / 'a').exists() and (tmp_path / 'b').exists()


def test_workers_and_device_do_not_undo_a_step(tmp_path):
    step = note(tmp_path / 'a', 'x')
    pipeline.run_steps([step], tmp_path / 'log')
    pipeline.run_steps([Step(step.name, step.words, machine=('--num_workers', '3'), makes=step.makes)], tmp_path / 'log')
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


def test_quiet_keeps_messages_in_the_log(tmp_path, capfd):
    pipeline.run_steps([Step('a', ('-c', 'import sys; print("one"); print("two", file=sys.stderr)'))], tmp_path, quiet=True)
    assert capfd.readouterr() == ('', '')
    assert {'one', 'two'} < set(Path(tmp_path / 'a.log').read_text().splitlines())

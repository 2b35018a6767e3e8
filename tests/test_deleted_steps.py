"""A step of a chain whose output was deleted is done again where a later step still needs it."""
import shutil

import pytest
from helpers import run_main
from test_reproduce import note, two_steps

import demo
from engine.files import REPO
from report import chain, pipeline
from report.pipeline import Step
from tool.recipes import RECIPES


def lines_of(path):
    """How often a step wrote its file."""
    return len(path.read_text().splitlines())


@pytest.fixture
def done(tmp_path):
    """Two steps that are done: a, and b, which reads from a."""
    steps = two_steps(tmp_path)
    pipeline.run_steps(steps, tmp_path / 'log')
    return steps


def test_a_deleted_step_that_nobody_needs_stays_done(done, tmp_path, capsys):
    """Tens of GB of CAMs may be deleted once the masks are made."""
    (tmp_path / 'a').unlink()
    capsys.readouterr()
    pipeline.run_steps(done, tmp_path / 'log')
    assert capsys.readouterr().out.count('done already') == 2
    assert not (tmp_path / 'a').exists()


def test_a_deleted_step_is_done_again_where_a_later_one_is_done_anew(done, tmp_path, capsys):
    (tmp_path / 'a').unlink()
    capsys.readouterr()
    pipeline.run_steps(done, tmp_path / 'log', start='b')
    assert '[1/2] a: again, for what it made was deleted' in capsys.readouterr().out
    assert lines_of(tmp_path / 'a') == lines_of(tmp_path / 'b') == 1


def test_a_deleted_step_is_done_again_where_a_later_one_did_not_end(done, tmp_path):
    record = pipeline.read_record(tmp_path / 'log', 'b')
    pipeline.files.save_json(tmp_path / 'log' / 'b.json', record | {'seconds': None})
    (tmp_path / 'a').unlink()
    pipeline.run_steps(done, tmp_path / 'log')
    assert lines_of(tmp_path / 'a') == 1
    assert lines_of(tmp_path / 'b') == 1  # what the stopped run left came from the a that is gone


def test_deletions_reach_back_over_several_steps(tmp_path):
    steps = [note(tmp_path / name, name, name, after=after)
             for name, after in (('a', ()), ('b', ('a',)), ('c', ('b',)), ('d', ()))]
    pipeline.run_steps(steps, tmp_path / 'log')
    for name in 'abd':
        (tmp_path / name).unlink()
    pipeline.run_steps(steps, tmp_path / 'log', start='c')
    assert {name for name in 'abcd' if (tmp_path / name).exists()} == set('abcd')  # d comes after c: done anew
    (tmp_path / 'a').unlink()
    pipeline.run_steps(steps, tmp_path / 'log', start='c')
    assert not (tmp_path / 'a').exists()  # b is there, so nobody reads a


def test_an_emptied_folder_is_gone_and_one_with_a_note_only_is_too(tmp_path):
    step = Step('a', (), makes=(str(tmp_path / 'cam'),))
    assert step.gone()
    (tmp_path / 'cam').mkdir()
    assert step.gone()
    (tmp_path / 'cam' / 'run.json').write_text('{}')
    assert step.gone()
    (tmp_path / 'cam' / 'x.npy').write_text('')
    assert not step.gone()


def test_weights_are_what_a_training_leaves(tmp_path):
    """The description and the log of a run, without its weights, are of no use to the next step."""
    step = Step('a', (), makes=(f'{tmp_path}/net.*',), leaves=(f'{tmp_path}/net.pth',))
    (tmp_path / 'net.json').write_text('{}')
    assert step.gone()
    (tmp_path / 'net.pth').write_text('')
    assert not step.gone()


def test_what_a_command_names_it_reads():
    first = Step('a', (), makes=('runs/x/VOC2012', 'runs/x/net.*'))
    for argv, expected in ((('--voc12_root', 'runs/x/VOC2012'), True), (('--gt', 'runs/x/VOC2012/Masks'), True),
                           (('--weights', 'runs/x/net.pth'), True), (('--out', 'runs/x/VOC2012_val'), False),
                           (('--n', 3), False)):
        assert Step('b', argv).reads(first) == expected, argv
    assert Step('b', (), after=('a',)).reads(first)


def test_every_training_and_folder_of_the_chain_can_be_missed():
    paths = demo.toy_paths('runs/x', RECIPES['seam'])
    steps = {step.name: step for step in demo.toy_steps(RECIPES['seam'], paths)}
    assert all(steps[name].gone() for name in ('toy', 'prepare', 'contrast_train', 'contrast_infer', 'aff_prepare',
                                               'aff_train', 'aff_infer', 'segmentation_train'))
    for name in ('prepare', 'contrast_infer', 'box', 'aff_infer_val', 'segmentation_test'):
        assert steps[name].reads(steps['toy']), name  # photos or masks of the drawn set
    assert steps['aff_infer'].reads(steps['contrast_infer'])
    assert not steps['aff_train'].reads(steps['contrast_infer'])
    for name in ('contrast_train', 'eval_seeds', 'aff_infer', 'segmentation_train'):
        assert steps[name].reads(steps['prepare']), name  # lists


def test_the_lists_of_the_user_are_never_removed():
    for paths in (chain.Paths(weights='w', out='runs/x'), chain.Paths(weights='w', out='runs/x', lists='mine')):
        prepare = chain.chain(RECIPES['seam'], paths)[0]
        assert prepare.name == 'prepare' and prepare.makes == () and f'{paths.lists}/train.txt' in prepare.leaves


@pytest.mark.long
def test_a_drawn_set_that_was_deleted_is_drawn_again(tmp_path, capsys):
    work = tmp_path
    steps = [Step('draw', ('toy/make.py', '--out', f'{work}/set', '--train', '2', '--val', '1', '--num_workers', '0'),
                  makes=(f'{work}/set',)),
             Step('lists', ('voc12/prepare.py', '--voc12_root', f'{work}/set', '--out', f'{work}/lists',
                            '--num_workers', '0'), ('draw',), makes=(f'{work}/lists',))]
    pipeline.run_steps(steps, work / 'log')
    before = (work / 'set' / 'ImageSets' / 'Segmentation' / 'train.txt').read_bytes()
    shutil.rmtree(work / 'set')
    capsys.readouterr()
    pipeline.run_steps(steps, work / 'log')  # both are done, and nobody needs the set
    assert capsys.readouterr().out.count('done already') == 2
    pipeline.run_steps(steps, work / 'log', start='lists')
    assert (work / 'set' / 'ImageSets' / 'Segmentation' / 'train.txt').read_bytes() == before
    assert (work / 'lists' / 'train.txt').exists()


def test_a_dry_run_looks_at_nothing(tmp_path, capsys):
    run_main('reproduce', '--weights', 'w', '--out', tmp_path / 'x', '--dry_run')
    assert 'again' not in capsys.readouterr().out
    assert (REPO / 'demo.py').exists() and not (tmp_path / 'x').exists()

"""What made this output? run.json: files count as done only for the same weights and the flags that decide."""
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main, tree_bytes

from data.cams import read_cams, save_cams
from data.lists import read_list
from data.probabilities import read_probabilities
from engine import outputs
from engine.errors import UserError
from engine.files import read_npy
from network.resnet38_aff import Net as AffinityNet
from network.resnet38_contrast import Net
from voc12.classes import VOC


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    """A folder with weights of two networks of Step 1, first.pth and second.pth, and of Step 2: aff.pth, aff2.pth."""
    folder = tmp_path_factory.mktemp('weights')
    for seed, names in enumerate((('first', 'aff'), ('second', 'aff2'))):
        torch.manual_seed(seed)
        torch.save(Net(VOC.num_classes, 1 / 16).state_dict(), folder / f'{names[0]}.pth')
        torch.save(AffinityNet(1 / 16).state_dict(), folder / f'{names[1]}.pth')
    return folder


@pytest.fixture
def seeds(toy, trained, tmp_path):
    """Function from flags to the arguments of contrast_infer.py into tmp_path/cam, pred, crf."""
    def arguments(*flags, weights='first', names=toy.train):
        return ['--weights', trained / f'{weights}.pth', '--infer_list', names, '--voc12_root', toy.root,
                '--cls_labels', toy.labels, '--out_cam', tmp_path / 'cam', '--out_cam_pred', tmp_path / 'pred',
                '--scales', 1, '--num_workers', 0, '--device', 'cpu', *flags]
    return arguments


@pytest.fixture(scope='module')
def cams(toy, trained, tmp_path_factory):
    """A folder of CAMs that contrast_infer.py made. Not to be changed."""
    folder = tmp_path_factory.mktemp('cams') / 'cam'
    run_main('contrast_infer', '--weights', trained / 'first.pth', '--infer_list', toy.train, '--voc12_root', toy.root,
             '--cls_labels', toy.labels, '--out_cam', folder, '--scales', 1, '--num_workers', 0, '--device', 'cpu')
    return folder


def walk_argv(toy, trained, cams, out, *flags, weights='aff'):
    """The arguments of aff_infer.py into a folder."""
    return ['--weights', trained / f'{weights}.pth', '--voc12_root', toy.root, '--infer_list', toy.train,
            '--cam_dir', cams, '--out_rw', out, '--num_workers', 0, '--device', 'cpu', *flags]


# ---------------------------------------------------------------- contrast_infer.py

@pytest.mark.parametrize('options, changed', [
    ({'weights': 'second'}, 'weights_sha256'), ({'flags': ('--scales', 1, 0.5)}, 'scales'),
    ({'flags': ('--map', 'plain')}, 'map'), ({'flags': ('--amp', 'bf16')}, 'amp')])
def test_cams_of_other_weights_or_flags_are_not_taken_for_these(seeds, tmp_path, capsys, options, changed):
    run_main('contrast_infer', *seeds())
    before = tree_bytes(tmp_path)
    argv = seeds(*options.pop('flags', ()), **options)
    error = assert_refused(capsys, 'contrast_infer', *argv)
    assert f'cam: holds 12 files made with another {changed}; add --overwrite to make them anew, or choose' in error
    assert tree_bytes(tmp_path) == before
    run_main('contrast_infer', *argv, '--overwrite')  # the way out that the line names
    after = tree_bytes(tmp_path)
    assert after.keys() == before.keys()
    assert any(after[path] != before[path] for path in after if path.suffix == '.npy')
    capsys.readouterr()
    run_main('contrast_infer', *argv)
    assert '12 images, 12 done already' in capsys.readouterr().out


def test_a_flag_counts_for_the_files_that_it_decides(seeds, tmp_path, capsys):
    run_main('contrast_infer', *seeds())
    error = assert_refused(capsys, 'contrast_infer', *seeds('--out_cam_pred_alpha', 0.4))
    assert 'pred: holds 12 files made with another out_cam_pred_alpha' in error  # the CAMs do not depend on it
    run_main('contrast_infer', *seeds('--out_cam_pred_alpha', 0.4, '--out_cam_pred', tmp_path / 'other'))
    assert '12 done' not in capsys.readouterr().out  # the seeds are new
    assert len(tree_bytes(tmp_path / 'other', '.png')) == 12


def test_what_decides_nothing_may_change(seeds, toy, trained, tmp_path, capsys):
    run_main('contrast_infer', *seeds())
    sorted((tmp_path / 'cam').glob('*.npy'))[3].unlink()
    before = (tmp_path / 'cam' / 'run.json').read_bytes()
    moved = shutil.copy(trained / 'first.pth', tmp_path / 'moved.pth')
    labels = shutil.copy(toy.labels, tmp_path / 'labels.npy')
    capsys.readouterr()
    run_main('contrast_infer', *seeds('--weights', moved, '--cls_labels', labels, '--num_workers', 1, '--convert_rgb',
                                      '--seed', 3))
    assert '12 images, 11 done already' in capsys.readouterr().out
    assert (tmp_path / 'cam' / 'run.json').read_bytes() == before


def test_another_list_may_fill_the_same_folder(seeds, toy, tmp_path):
    run_main('contrast_infer', *seeds())
    run_main('contrast_infer', *seeds(names=toy.val))
    assert len(tree_bytes(tmp_path / 'cam', '.npy')) == 16


def test_overwriting_a_part_leaves_no_mixture(seeds, toy, tmp_path, capsys):
    run_main('contrast_infer', *seeds())
    run_main('contrast_infer', *seeds(names=toy.val))
    before = tree_bytes(tmp_path)
    error = assert_refused(capsys, 'contrast_infer', *seeds('--overwrite', weights='second'))
    assert 'cam: holds 4 files of images that are not in the list, made with another weights_sha256; remove' in error
    assert tree_bytes(tmp_path) == before
    run_main('contrast_infer', *seeds('--overwrite'))  # by the same weights they may stay
    assert tree_bytes(tmp_path) == before


def test_files_that_nothing_is_known_of_count_as_made_otherwise(seeds, tmp_path, capsys):
    run_main('contrast_infer', *seeds())
    whole = tree_bytes(tmp_path)
    (tmp_path / 'cam' / 'run.json').unlink()
    error = assert_refused(capsys, 'contrast_infer', *seeds())
    assert 'cam: holds 12 files of which no run.json says what made them; add --overwrite' in error
    run_main('contrast_infer', *seeds('--overwrite'))
    assert tree_bytes(tmp_path) == whole


def test_a_run_json_of_something_else_is_kept(seeds, tmp_path, capsys):
    (tmp_path / 'cam').mkdir()
    (tmp_path / 'cam' / 'run.json').write_text('{"settings": {"lr": 0.1}}')  # of a training session named cam/run
    assert 'does not say what made the files beside it' in assert_refused(capsys, 'contrast_infer', *seeds())
    (tmp_path / 'cam' / 'run.json').write_text('{"cut sho')
    assert 'cam/run.json: is no JSON' in assert_refused(capsys, 'contrast_infer', *seeds())
    assert not list(tmp_path.rglob('*.npy'))


def test_weights_that_do_not_load_cost_no_file(seeds, tmp_path, capsys):
    run_main('contrast_infer', *seeds())
    (tmp_path / 'broken.pth').write_bytes(b'hello')
    before = tree_bytes(tmp_path)
    assert_refused(capsys, 'contrast_infer', *seeds('--weights', tmp_path / 'broken.pth', '--overwrite'))
    assert tree_bytes(tmp_path) == before


def test_cams_and_masks_in_one_folder_are_kept_apart(seeds, tmp_path, capsys):
    run_main('contrast_infer', *seeds('--out_cam_pred', tmp_path / 'cam'))
    note = json.loads((tmp_path / 'cam' / 'run.json').read_text())
    assert {suffix: made['kind'] for suffix, made in note.items()} == {'.npy': 'CAMs', '.png': 'seeds'}


# ---------------------------------------------------------------- Step 2

def test_masks_of_another_walk_are_not_taken_for_these(toy, trained, cams, tmp_path, capsys):
    run_main('aff_infer', *walk_argv(toy, trained, cams, tmp_path, '--bg', 0.1))
    before = tree_bytes(tmp_path)
    for flags, changed in ((('--bg', 0.9), 'bg'), (('--bg', 0.1, '--beta', 2), 'beta'),
                           (('--bg', 'alpha'), 'bg, alpha'),
                           (('--bg', 0.1, '--crf'), 'crf, crf_setting, crf_engine'),
                           (('--bg', 0.1, '--logt', 1), 'logt')):
        error = assert_refused(capsys, 'aff_infer', *walk_argv(toy, trained, cams, tmp_path, *flags))
        assert f'holds 12 files made with another {changed}; add --overwrite' in error
    error = assert_refused(capsys, 'aff_infer', *walk_argv(toy, trained, cams, tmp_path, '--bg', 0.1, weights='aff2'))
    assert 'made with another weights_sha256' in error
    assert tree_bytes(tmp_path) == before
    run_main('aff_infer', *walk_argv(toy, trained, cams, tmp_path, '--bg', 0.9, '--overwrite'))
    assert tree_bytes(tmp_path, '.png') != before


def test_what_other_cams_gave_is_not_taken_for_these(toy, trained, cams, seeds, tmp_path, capsys):
    run_main('contrast_infer', *seeds(weights='second'))
    prepare = ['--voc12_root', toy.root, '--infer_list', toy.train, '--crf_iters', 1, '--num_workers', 0,
               '--out_crf', tmp_path / 'aff']
    run_main('aff_prepare', *prepare, '--cam_dir', cams)
    run_main('aff_infer', *walk_argv(toy, trained, cams, tmp_path / 'rw'))
    error = assert_refused(capsys, 'aff_prepare', *prepare, '--cam_dir', tmp_path / 'cam')
    assert 'aff/4.00: holds 12 files made with another cams_sha256; add --overwrite' in error
    error = assert_refused(capsys, 'aff_infer', *walk_argv(toy, trained, tmp_path / 'cam', tmp_path / 'rw'))
    assert 'rw: holds 12 files made with another cams_sha256' in error
    error = assert_refused(capsys, 'aff_prepare', *prepare, '--cam_dir', cams, '--crf_iters', 2)
    assert 'made with another crf_iters' in error
    capsys.readouterr()
    copy = shutil.copytree(cams, tmp_path / 'copy')  # the same CAMs, elsewhere
    run_main('aff_prepare', *prepare, '--cam_dir', copy, '--alpha', 4, 8)
    assert '0 done already, alpha 4.00 8.00' in capsys.readouterr().out  # 8.00 is new, 4.00 stays as it is
    run_main('aff_prepare', *prepare, '--cam_dir', copy)
    assert '12 done already' in capsys.readouterr().out


def test_foreign_cams_are_known_by_their_content(cams, tmp_path):
    folder = shutil.copytree(cams, tmp_path / 'cam')
    (folder / 'run.json').unlink()
    before = outputs.origin(folder, '.npy')
    assert before == outputs.origin(shutil.copytree(folder, tmp_path / 'copy'), '.npy') != outputs.origin(cams, '.npy')
    name = sorted(folder.glob('*.npy'))[0]
    np.save(name, {0: np.zeros((4, 4), np.float32)})
    assert outputs.origin(folder, '.npy') != before


# ---------------------------------------------------------------- another kind of file

@pytest.fixture
def refined(toy, cams, tmp_path):
    """The folder of class probabilities that aff_prepare.py makes of the CAMs."""
    run_main('aff_prepare', '--voc12_root', toy.root, '--infer_list', toy.train, '--cam_dir', cams, '--crf_iters', 1,
             '--out_crf', tmp_path / 'crf', '--num_workers', 0, '--alpha', 4)
    return tmp_path / 'crf' / '4.00'


def test_probabilities_given_as_cams_are_told(toy, trained, refined, tmp_path, capsys):
    error = assert_refused(capsys, 'aff_infer', *walk_argv(toy, trained, refined, tmp_path / 'rw'))
    assert 'holds class probabilities, with the background as 0' in error and "contrast_infer.py's --out_cam" in error
    error = assert_refused(capsys, 'aff_prepare', '--voc12_root', toy.root, '--infer_list', toy.train,
                           '--cam_dir', refined, '--out_crf', tmp_path / 'twice', '--num_workers', 0)
    assert 'holds class probabilities' in error
    error = assert_refused(capsys, 'eval', '--list', toy.train, '--predict_dir', refined, '--type', 'npy',
                           '--gt_dir', toy.root / 'SegmentationClass', '--comment', 'x', '--num_workers', 0,
                           '--logfile', tmp_path / 'log.txt')
    assert 'holds class probabilities' in error


def test_cams_given_as_probabilities_are_told(tmp_path):
    rng = np.random.default_rng(0)
    for keys in ([0], [0, 4], [0, 4, 7]):  # with the aeroplane, whose key is the background's among probabilities
        maps = rng.random((len(keys), 30, 40), np.float32)
        save_cams(tmp_path / 'x.npy', np.array(keys), (maps - maps.min()) / np.ptp(maps))
        with pytest.raises(UserError, match='holds scores that do not add up to 1, such as CAMs.*aff_prepare.py'):
            read_probabilities(tmp_path / 'x.npy', VOC.num_classes)
        assert read_cams(tmp_path / 'x.npy', VOC.num_foreground)[0].tolist() == keys


def test_probabilities_of_the_published_kind_are_read(tmp_path):
    scores = np.random.default_rng(0).random((VOC.num_classes, 20, 30), np.float32)
    np.save(tmp_path / 'x.npy', scores / scores.sum(0))
    assert read_probabilities(tmp_path / 'x.npy', VOC.num_classes)[0].tolist() == list(range(VOC.num_classes))


def test_every_files_folder_has_its_note(toy, refined, cams):
    assert len(read_list(toy.train)) == len(tree_bytes(refined, '.npy')) == 12
    assert json.loads((refined / 'run.json').read_text())['.npy']['alpha'] == 4
    assert all(isinstance(read_npy(path), dict) for path in cams.glob('*.npy'))

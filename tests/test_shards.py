"""Several jobs fill the same folders: shards of a list equal one process, and leave each other's files alone."""
import errno
import fcntl
import json
import os
import shlex
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from helpers import assert_refused, run_main, script, torchrun, tree_bytes

from data.lists import read_list, save_list
from engine import outputs, ranks
from engine.device import select_device
from engine.files import REPO
from engine.ranks import Shard
from network import deeplab, resnet38_aff
from network.resnet38_contrast import Net
from voc12.classes import VOC

SEEDS, PREPARE, WALK, PHOTOS = 'contrast_infer', 'aff_prepare', 'aff_infer', 'predict'
TEST = 'segmentation/experiment/test'
SCRIPTS = SEEDS, PREPARE, WALK, PHOTOS, TEST
IMAGES = 5  # of the list: shard 0/2 has three of them


@pytest.fixture(scope='module')
def inputs(toy, tmp_path_factory):
    """What the scripts read: ids and their list, weights of each network, folders of photos and of CAMs."""
    root = tmp_path_factory.mktemp('inputs')
    ids = read_list(toy.train)[:IMAGES]
    save_list(root / 'list.txt', ids)
    (root / 'photos').mkdir()
    for name in ids:
        shutil.copy(toy.root / 'JPEGImages' / f'{name}.jpg', root / 'photos')
    torch.manual_seed(1)
    for name, net in (('aff', resnet38_aff.Net(TINY)), ('second', Net(VOC.num_classes, TINY)),
                      ('deeplab', deeplab.build('deeplabv1_resnet38', VOC.num_classes, TINY))):
        torch.save(net.state_dict(), root / f'{name}.pth')
    found = SimpleNamespace(toy=toy, root=root, ids=ids)
    run_main(SEEDS, *argv(found, SEEDS, root))
    return found


def argv(inputs, name, out, *flags):
    """The arguments of a script that fills folders in `out`."""
    root, device = inputs.root, ('--num_workers', 0, '--device', 'cpu', *flags)
    if name == PHOTOS:
        return [root / 'photos', '--weights', root / 'deeplab.pth', '--out', out, *device]
    images = ['--infer_list', root / 'list.txt', '--voc12_root', inputs.toy.root, *device]
    return images + {
        SEEDS: ['--weights', inputs.toy.net, '--cls_labels', inputs.toy.labels, '--scales', 1, '--out_cam', out / 'cam',
                '--out_cam_pred', out / 'pred'],
        PREPARE: ['--cam_dir', root / 'cam', '--out_crf', out, '--crf_iters', 1],
        WALK: ['--weights', root / 'aff.pth', '--cam_dir', root / 'cam', '--out_rw', out / 'rw', '--out_rw_npy',
               out / 'npy'],
        TEST: ['--weights', root / 'deeplab.pth', '--out_dir', out, '--TEST_MULTISCALE', 1, '--crf_iters', 1],
    }[name]


def run(inputs, name, out, *flags):
    """Run a script into `out`; flags come last."""
    run_main(name, *argv(inputs, name, out), *flags)


@pytest.fixture(scope='module')
def one_process(inputs, tmp_path_factory):
    """Function from a script and flags to the files that one process makes; made once."""
    made = {}

    def of(name, *flags):
        if (name, flags) not in made:
            out = tmp_path_factory.mktemp('one')
            run(inputs, name, out, *flags)
            made[name, flags] = tree_bytes(out)
        return made[name, flags]
    return of


def written(folder):
    """{path: when it was written} of the results in a folder: not of the notes."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file() and path.suffix != '.json'}


def of_image(tree, name):
    """The files of one image."""
    return {path for path in tree if path.stem == name}


# ---------------------------------------------------------------- what shards make

@pytest.mark.parametrize('name', SCRIPTS)
def test_two_shards_make_what_one_process_makes_and_nothing_twice(inputs, one_process, name, tmp_path, capsys):
    whole = one_process(name)
    run(inputs, name, tmp_path, '--shard', '0/2')
    first = written(tmp_path)
    assert {path.stem for path in first} == set(inputs.ids[::2])
    capsys.readouterr()
    run(inputs, name, tmp_path, '--shard', '1/2')  # skips nothing, though three of five are done
    said = capsys.readouterr().out
    assert ('shard 1/2: 2 of 2 images to do' if name == TEST else 'shard 1/2:') in said
    assert name == TEST or '0 done already' in said and ' 2 ' in said
    assert tree_bytes(tmp_path) == whole
    assert {path: when for path, when in written(tmp_path).items() if path in first} == first


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_shard_that_was_stopped_goes_on_with_its_own_images(inputs, one_process, name, tmp_path):
    whole = one_process(name)
    run(inputs, name, tmp_path, '--shard', '0/2')
    lost = of_image(written(tmp_path), inputs.ids[2])
    assert lost
    for path in lost:
        path.unlink()
    run(inputs, name, tmp_path, '--shard', '1/2')
    assert not lost & written(tmp_path).keys()
    assert tree_bytes(tmp_path).keys() < whole.keys()
    before = written(tmp_path)
    run(inputs, name, tmp_path, '--shard', '0/2')
    assert written(tmp_path).keys() - before.keys() == lost
    assert tree_bytes(tmp_path) == whole


def test_more_shards_than_images_leave_some_without_work(inputs, one_process, tmp_path, capsys):
    for index in range(IMAGES + 2):
        run(inputs, PREPARE, tmp_path, '--shard', f'{index}/{IMAGES + 2}')
    assert f'shard {IMAGES + 1}/{IMAGES + 2}: {inputs.root}/list.txt: 0 images' in capsys.readouterr().out
    assert tree_bytes(tmp_path) == one_process(PREPARE)


def test_deeplab_is_scored_when_all_images_are_there(inputs, tmp_path, capsys):
    run(inputs, TEST, tmp_path, '--shard', '1/2')
    said = capsys.readouterr().out
    assert f'shard 1/2: 3 of {IMAGES} images are left to other shards; once they are done, run the command' in said
    assert 'mIoU' not in said and not (tmp_path / 'scores.json').exists()
    run(inputs, TEST, tmp_path)
    said = capsys.readouterr().out
    assert f'3 of {IMAGES} images to do' in said and f'mIoU in % on {IMAGES} images' in said


# ---------------------------------------------------------------- --overwrite

def test_shards_overwrite_what_other_weights_made(inputs, one_process, tmp_path):
    second = '--weights', inputs.root / 'second.pth', '--overwrite'
    expected = one_process(SEEDS, *second)
    run(inputs, SEEDS, tmp_path)
    run(inputs, SEEDS, tmp_path, *second, '--shard', '0/2')
    first = written(tmp_path)
    assert {path.stem for path in first} == set(inputs.ids[::2])  # none is left that run.json does not speak of
    run(inputs, SEEDS, tmp_path, *second, '--shard', '1/2')
    assert tree_bytes(tmp_path) == expected != one_process(SEEDS)
    assert {path: when for path, when in written(tmp_path).items() if path in first} == first


def test_a_shard_overwrites_its_own_images_alone(inputs, one_process, tmp_path):
    run(inputs, SEEDS, tmp_path)
    before = written(tmp_path)
    run(inputs, SEEDS, tmp_path, '--overwrite', '--shard', '1/2')
    assert {path.stem for path, when in written(tmp_path).items() if when != before[path]} == set(inputs.ids[1::2])
    assert tree_bytes(tmp_path) == one_process(SEEDS)


@pytest.fixture
def stale(tmp_path):
    """A folder of files a.png, b.png that other weights made, and its output as it would be now."""
    old, now = (outputs.Output(tmp_path, '.png', {'kind': 'masks', 'weights_sha256': text}) for text in ('old', 'now'))
    outputs.begin([old], ['a', 'b'], overwrite=False)
    for name in 'ab':
        (tmp_path / f'{name}.png').write_text('old')
    return now


def test_shards_that_start_at_once_wait_for_each_other(stale):
    with outputs.alone(stale.folder) as is_alone:
        assert is_alone
        second = threading.Thread(target=outputs.begin, args=([stale], ['a', 'b'], True, Shard(1, 2)))
        second.start()
        second.join(0.3)
        assert second.is_alive() and stale.names() == {'a', 'b'}
        # What the first shard does meanwhile.
        outputs.remove([stale], ['a', 'b'])
        stale.run_file.write_text(json.dumps({'.png': stale.now}))
        (stale.folder / 'a.png').write_text('now')
    second.join()
    assert stale.names() == {'a'}


def test_without_locks_a_shard_leaves_the_files_of_others(stale, monkeypatch):
    def flock(*_):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    monkeypatch.setattr(fcntl, 'flock', flock)
    with pytest.raises(outputs.UserError, match='holds 1 files of images that are not in the list or shard, made with '
                                                'another weights_sha256; remove them'):
        outputs.begin([stale], ['a', 'b'], True, Shard(0, 2))
    assert stale.names() == {'a', 'b'}
    assert outputs.begin([stale], ['a', 'b'], True) == ['a', 'b']
    assert not stale.names()


def test_a_shard_never_takes_the_result_of_another_photo_for_done(inputs, tmp_path, capsys):
    photos, out = shutil.copytree(inputs.root / 'photos', tmp_path / 'photos'), tmp_path / 'out'
    common = argv(inputs, PHOTOS, out)[1:]
    run_main(PHOTOS, photos, *common)
    shutil.copy(photos / f'{inputs.ids[0]}.jpg', photos / f'{inputs.ids[1]}.jpg')
    error = assert_refused(capsys, PHOTOS, photos, *common, '--shard', '0/2')
    assert f'{inputs.ids[1]}.png: is of another photo than' in error
    run_main(PHOTOS, photos, *common, '--shard', '0/2', '--overwrite')
    assert {path.stem for path in out.glob('*.png')} == {*inputs.ids} - {inputs.ids[1]}
    run_main(PHOTOS, photos, *common, '--shard', '1/2')
    run_main(PHOTOS, photos, *argv(inputs, PHOTOS, tmp_path / 'one')[1:])
    assert tree_bytes(out) == tree_bytes(tmp_path / 'one')


# ---------------------------------------------------------------- which shard

def test_the_docs_have_an_array_and_a_torchrun_line_for_each_script():
    lines = (REPO / 'docs' / 'GPUS.md').read_text(encoding='utf-8').replace('\\\n', ' ').splitlines()
    jobs = [shlex.split(shlex.split(line)[-1].replace('$SLURM_ARRAY_TASK_ID', '3'))[1:] for line in lines
            if line.startswith('    sbatch --array=0-7')]
    processes = [shlex.split(line)[3:] for line in lines if line.startswith('    torchrun') and 'train' not in
                 line.split()[3]]
    assert [name for name, *_ in jobs] == [f'{name}.py' for name in (SEEDS, PREPARE, WALK, TEST, PHOTOS)]
    assert [[*words, '--shard', '3/8'] for words in processes] == jobs
    for name, *flags in jobs:
        assert script(name.removesuffix('.py')).get_args_parser().parse_args(flags).shard == Shard(3, 8)


@pytest.mark.parametrize('text', ['2/2', '0/0', '1', '/2', '1/', 'a/b', '1/2/3', '0.5/2', ' ', '1/10000000000'])
def test_a_shard_that_is_none_gets_its_line(inputs, tmp_path, capsys, text):
    error = assert_refused(capsys, PREPARE, *argv(inputs, PREPARE, tmp_path, '--shard', text))
    assert f'argument --shard: {text!r} is no I/N with 0 <= I < N (of four jobs 0/4 to 3/4)' in error


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_shard_beside_torchrun_gets_its_line(inputs, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert assert_refused(capsys, name, *argv(inputs, name, tmp_path, '--shard', '0/2')) == (
        'error: --shard: is given to 2 processes of torchrun, which share the list anyway; leave it out, or start the '
        'script with python')


def test_the_rank_that_a_launcher_gives_is_the_shard(inputs, tmp_path, capsys, monkeypatch):
    assert ranks.own_shard(None) == Shard() and not str(Shard())
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    run(inputs, PREPARE, tmp_path)
    assert {path.stem for path in written(tmp_path)} == set(inputs.ids[1::2])
    assert 'shard 1/2: ' in capsys.readouterr().out  # each process speaks of its own images


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    current = []
    for name, value in (('is_available', lambda: True), ('device_count', lambda: 2), ('set_device', current.append)):
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE'):
        monkeypatch.setenv(name, '2')
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert select_device('auto') == torch.device('cuda', 1)
    assert current == [1]  # pinned memory is of the current device


@pytest.mark.long
@pytest.mark.parametrize('name', SCRIPTS)
def test_torchrun_makes_what_one_process_makes(inputs, one_process, name, tmp_path):
    process = torchrun(name, argv(inputs, name, tmp_path))
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert said.count('shard 0/2: ') == said.count('shard 1/2: ') == 1
    assert said.count('mIoU in %') == (name == TEST)
    assert tree_bytes(tmp_path) == one_process(name)


@pytest.mark.long
def test_processes_that_start_at_once_overwrite_what_other_weights_made(inputs, one_process, tmp_path):
    run(inputs, SEEDS, tmp_path)
    second = '--weights', inputs.root / 'second.pth', '--overwrite'
    process = torchrun(SEEDS, [*argv(inputs, SEEDS, tmp_path), *second])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert tree_bytes(tmp_path) == one_process(SEEDS, *second)


@pytest.mark.long
def test_a_photo_that_cannot_be_read_stops_no_process(inputs, one_process, tmp_path):
    photos = shutil.copytree(inputs.root / 'photos', tmp_path / 'photos')
    (photos / '0.jpg').write_bytes(b'no photo')
    process = torchrun(PHOTOS, [photos, *argv(inputs, PHOTOS, tmp_path / 'out')[1:]])
    _, errors = process.communicate(timeout=300)
    assert process.returncode and errors.count('error: photos: 1 of 3 could not be read') == 1
    assert tree_bytes(tmp_path / 'out', '.png') == {path: data for path, data in one_process(PHOTOS).items()
                                                    if path.suffix == '.png'}

"""Step 2's scripts from end to end: golden chain, bytes after a kill, mistakes of users, a full disk."""
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import aff_infer
import aff_prepare
import aff_train
from data.affinity import AffinityCrops, crop_maps, crop_place
from data.lists import read_list
from data.masks import read_mask
from data.probabilities import check_alphas, read_probabilities
from data.transforms import denormalise
from engine.errors import UserError
from engine.files import REPO, read_npy
from golden.fill import fill_state_dict
from network.resnet38_aff import Net
from tool import crf
from tool.metrics import IGNORE
from voc12.classes import VOC

GOLDEN = Path(__file__).parent / 'golden'
PHOTOS = ('2011_000001', '2011_000002')
TINY = 1 / 16


def run(script, *flags):
    """Run a script in this process: --flag value pairs, as strings."""
    script.main(script.get_args_parser().parse_args([str(flag) for flag in flags]))


# Runs a script until it means to rename its n-th finished file into place, and kills it there.
KILLED = """
import os, runpy, signal, sys
left, rename = int(sys.argv[1]), os.replace
def replace(*paths):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
os.replace = replace
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run_killed(script, finished, *flags):
    """Run a script as a process of its own, which dies by SIGKILL after writing `finished` files."""
    command = [sys.executable, '-c', KILLED, str(finished), REPO / script, *map(str, flags)]
    process = subprocess.run(command, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()


def contents(folder, suffix='.npy'):
    """{relative path: bytes} of the finished files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob(f'*{suffix}'))
            if not path.name.startswith('.')}



# ---------------------------------------------------------------- golden chain

@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """The golden photos: root, list and CAMs as contrast_infer.py writes them."""
    folder = tmp_path_factory.mktemp('photo')
    chain = np.load(GOLDEN / 'chain.npz')
    for i in PHOTOS:
        np.save(folder / f'{i}.npy', {int(k): cam for k, cam in zip(chain[f'cam_keys_{i}'], chain[f'cam_{i}'])})
    (folder / 'list.txt').write_text('\n'.join(PHOTOS))
    return folder, chain


def test_golden_aff_prepare(photo, tmp_path):
    folder, chain = photo
    run(aff_prepare, '--infer_list', folder / 'list.txt', '--voc12_root', GOLDEN / 'voc' / 'VOC2012',
        '--cam_dir', folder, '--out_crf', tmp_path, '--num_workers', 0)
    for i in PHOTOS:
        published_bytes = chain[f'image_{i}'].size // 3 * VOC.num_classes * 4
        for alpha in ('4.00', '24.00'):
            path = tmp_path / alpha / f'{i}.npy'
            labels, scores = read_probabilities(path, chain[f'image_{i}'].shape[:2])
            assert labels.tolist() == [0, *(chain[f'cam_keys_{i}'] + 1)] and scores.dtype == np.float16
            assert (crf.label_map(scores, labels) == chain[f'affcrf{alpha}_argmax_{i}']).mean() >= 0.999
            # Half precision: 2^-12 near 1.
            np.testing.assert_allclose(scores[:, ::5, ::5], chain[f'affcrf{alpha}_{i}'][labels], atol=3e-4)
            assert path.stat().st_size <= published_bytes / 8


def test_golden_aff_infer(photo, tmp_path):
    """The published network at full width. The walked CAMs, with the background put in afterwards, give the same mask."""
    folder, chain = photo
    with torch.device('meta'):
        net = Net()
    weights = tmp_path / 'filled.pth'
    torch.save(fill_state_dict(net.state_dict()), weights)
    run(aff_infer, '--weights', weights, '--infer_list', folder / 'list.txt', '--voc12_root', GOLDEN / 'voc' / 'VOC2012',
        '--cam_dir', folder, '--out_rw', tmp_path / 'rw', '--out_rw_npy', tmp_path / 'npy', '--num_workers', 0,
        '--device', 'cpu')
    weights.unlink()
    for i in PHOTOS:
        mask = read_mask(tmp_path / 'rw' / f'{i}.png')
        assert (mask == chain[f'rw_{i}']).mean() >= 0.999
        with Image.open(tmp_path / 'rw' / f'{i}.png') as image:
            assert image.getpalette() == VOC.palette
        walked = read_npy(tmp_path / 'npy' / f'{i}.npy')
        scores = np.stack([np.full(mask.shape, 0.27, np.float32), *walked.values()])
        assert (crf.label_map(scores, [0, *(k + 1 for k in walked)]) == mask).mean() >= 0.999


# ---------------------------------------------------------------- toy chain

@pytest.fixture(scope='module')
def chain(toy, tmp_path_factory):
    """The toy set with blurred ground truth for CAMs, their CRFs, and random weights of AffinityNet. Not to be changed.

    Returns the folder: cam/, crf/4.00, crf/24.00, aff.pth.
    """
    folder = tmp_path_factory.mktemp('step2')
    (folder / 'cam').mkdir()
    for i in read_list(toy.train):
        mask = read_mask(toy.root / 'SegmentationClass' / f'{i}.png')
        blurred = {int(c) - 1: cv2.GaussianBlur((mask == c).astype(np.float32), (0, 0), 7)
                   for c in set(mask.flat) - {0, IGNORE}}
        np.save(folder / 'cam' / f'{i}.npy', {k: cam / cam.max() for k, cam in blurred.items()})
    torch.manual_seed(0)
    torch.save(Net(TINY).state_dict(), folder / 'aff.pth')
    run(aff_prepare, *prepare_flags(toy, folder), '--out_crf', folder / 'crf')
    return folder


def prepare_flags(toy, folder):
    return ['--infer_list', toy.train, '--voc12_root', toy.root, '--cam_dir', folder / 'cam', '--num_workers', 0]


def infer_flags(toy, folder):
    return [*prepare_flags(toy, folder), '--weights', folder / 'aff.pth', '--device', 'cpu']


def train_flags(toy, folder):
    return ['--weights', toy.backbone, '--voc12_root', toy.root, '--train_list', toy.train, '--val_list', '',
            '--la_crf_dir', folder / 'crf' / '4.00', '--ha_crf_dir', folder / 'crf' / '24.00', '--crop_size', 64,
            '--batch_size', 4, '--max_epoches', 2, '--num_workers', 0, '--device', 'cpu']


def test_two_alphas_give_different_files_and_the_low_one_more_background(toy, chain):
    low, high = contents(chain / 'crf' / '4.00'), contents(chain / 'crf' / '24.00')
    assert low.keys() == high.keys() == {f'{i}.npy' for i in read_list(toy.train)}
    assert sum(low[name] != high[name] for name in low) >= len(low) / 2
    background = [np.mean([(scores.argmax(0) == 0).mean() for _, scores in map(read_probabilities, folder.iterdir())])
                  for folder in (chain / 'crf' / '4.00', chain / 'crf' / '24.00')]
    assert background[0] > background[1]


def test_one_alpha_and_fewer_iterations(toy, chain, tmp_path):
    run(aff_prepare, *prepare_flags(toy, chain), '--out_crf', tmp_path, '--alpha', 24, '--crf_iters', 2)
    assert [path.name for path in tmp_path.iterdir()] == ['24.00']
    assert contents(tmp_path / '24.00') != contents(chain / 'crf' / '24.00')


def test_processes_write_the_same_bytes_and_done_images_are_skipped(toy, chain, tmp_path):
    run(aff_prepare, *prepare_flags(toy, chain), '--out_crf', tmp_path, '--num_workers', 2)
    assert contents(tmp_path) == contents(chain / 'crf')
    names = sorted(path.name for path in (tmp_path / '4.00').iterdir())
    (tmp_path / '4.00' / names[0]).write_bytes(b'mine')
    (tmp_path / '24.00' / names[1]).unlink()
    run(aff_prepare, *prepare_flags(toy, chain), '--out_crf', tmp_path)
    assert (tmp_path / '4.00' / names[0]).read_bytes() == b'mine'
    run(aff_prepare, *prepare_flags(toy, chain), '--out_crf', tmp_path, '--overwrite')
    assert contents(tmp_path) == contents(chain / 'crf')


def test_aff_prepare_killed_and_restarted(toy, chain, tmp_path):
    flags = [*prepare_flags(toy, chain), '--out_crf', tmp_path]
    run_killed('aff_prepare.py', 5, *flags)  # between the two alphas of the third image
    assert len(contents(tmp_path)) == 5
    run(aff_prepare, *flags)
    assert contents(tmp_path) == contents(chain / 'crf')


def test_aff_infer_killed_and_restarted(toy, chain, tmp_path):
    run(aff_infer, *infer_flags(toy, chain), '--out_rw', tmp_path / 'whole', '--out_rw_npy', tmp_path / 'whole')
    flags = [*infer_flags(toy, chain), '--out_rw', tmp_path / 'rw', '--out_rw_npy', tmp_path / 'rw']
    run_killed('aff_infer.py', 5, *flags)
    assert len(contents(tmp_path / 'rw', '')) == 5
    run(aff_infer, *flags, '--num_workers', 1)
    assert contents(tmp_path / 'rw', '') == contents(tmp_path / 'whole', '')


def test_every_flag_of_aff_infer_changes_the_masks(toy, chain, tmp_path):
    def masks(name, *flags):
        run(aff_infer, *infer_flags(toy, chain), '--out_rw', tmp_path / name, *flags)
        return contents(tmp_path / name, '.png')
    base = masks('base')
    # The defaults by name; alpha only counts with --bg alpha.
    assert masks('same', '--bg', 0.27, '--beta', 8, '--logt', 6, '--alpha', 3) == base
    alpha = masks('alpha', '--bg', 'alpha', '--alpha', 3)
    refined = masks('crf', '--crf')
    different = [alpha, refined, masks('bg', '--bg', 0.4), masks('beta', '--beta', 1), masks('logt', '--logt', 0),
                 masks('alpha6', '--bg', 'alpha'), masks('iters', '--crf', '--crf_iters', 1)]
    assert all(other != base for other in different)
    assert different[5] != alpha and different[6] != refined


def test_without_steps_the_walk_leaves_the_pooled_cams(toy, chain, tmp_path):
    """logt 0 and an enormous beta: every cell stays where it is."""
    run(aff_infer, *infer_flags(toy, chain), '--out_rw', tmp_path, '--out_rw_npy', tmp_path, '--logt', 0, '--beta', 1e6)
    for i in read_list(toy.train):
        cams = read_npy(chain / 'cam' / f'{i}.npy')
        for k, walked in read_npy(tmp_path / f'{i}.npy').items():
            assert np.abs(walked - cams[k]).max() < 0.3 and abs(walked.mean() - cams[k].mean()) < 1e-3


def test_walked_cams_of_an_odd_size_are_not_diluted_at_the_border(tmp_path):
    """Cells that reach beyond the image: a constant CAM stays constant, and the mask is that of the walked CAMs."""
    rng = np.random.default_rng(0)
    image, affinity = np.zeros((45, 51, 3), np.uint8), rng.random((4, 25), np.float32)
    np.save(tmp_path / 'cam.npy', {3: np.full((45, 51), 0.9, np.float32), 7: rng.random((45, 51), np.float32)})
    settings = {'bg': 0.5, 'alpha': 6, 'beta': 8, 'logt': 6, 'crf': False, 'crf_iters': 10}
    aff_infer.refine({'rw': tmp_path / 'rw.png', 'npy': tmp_path / 'rw.npy'}, tmp_path / 'cam.npy', image, affinity, settings)
    walked = read_npy(tmp_path / 'rw.npy')
    np.testing.assert_allclose(walked[3], 0.9, rtol=1e-5)
    scores = np.stack([np.full((45, 51), 0.5), walked[3], walked[7]])
    np.testing.assert_array_equal(read_mask(tmp_path / 'rw.png'), crf.label_map(scores, [0, 4, 8]))


# ---------------------------------------------------------------- training

def test_training_lowers_the_loss_and_resumes_to_the_same_bytes(toy, chain, tmp_path):
    (tmp_path / 'a').mkdir()
    flags = [*train_flags(toy, chain), '--tblog_dir', tmp_path / 'tb', '--save_every', 2, '--max_epoches', 4]
    run(aff_train, *flags, '--session_name', tmp_path / 'a' / 'aff')
    rows = [json.loads(line) for line in (tmp_path / 'a' / 'aff.losses.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == list(range(12))
    bg, fg, neg = (rows[0][f'loss_{kind}'] for kind in ('bg', 'fg', 'neg'))
    assert rows[0]['loss'] == pytest.approx(bg / 4 + fg / 4 + neg / 2, rel=1e-5)
    assert np.mean([row['loss'] for row in rows[-4:]]) < np.mean([row['loss'] for row in rows[:4]])
    assert (tmp_path / 'a' / 'aff.affinity.png').stat().st_size > 1000

    session = tmp_path / 'b' / 'aff'
    run_killed('aff_train.py', 4, *flags, '--session_name', session)  # the loss log, the description, two checkpoints
    assert session.with_suffix('.ckpt').exists() and not session.with_suffix('.pth').exists()
    run(aff_train, *flags, '--session_name', session, '--resume')
    first, second = (torch.load(path.with_suffix('.pth')) for path in (tmp_path / 'a' / 'aff', session))
    assert all(torch.equal(first[key], second[key]) for key in first) and first.keys() == second.keys()


def test_validation_uses_the_images_that_have_labels(toy, chain, tmp_path, capsys):
    both = tmp_path / 'both.txt'
    both.write_text(toy.val.read_text() + '\n' + toy.train.read_text())
    run(aff_train, *train_flags(toy, chain), '--val_list', both, '--tblog_dir', tmp_path / 'tb', '--max_epoches', 1,
        '--session_name', tmp_path / 'aff')
    out = capsys.readouterr().out
    assert 'validation: 12 of the 16 images' in out and 'val/loss_neg' in out


def test_crops_of_dict_and_array_files_agree(toy, chain, tmp_path):
    ids = read_list(toy.train)
    for alpha in ('4.00', '24.00'):
        (tmp_path / alpha).mkdir()
        for i in ids:
            labels, scores = read_probabilities(chain / 'crf' / alpha / f'{i}.npy')
            full = np.zeros((VOC.num_classes, *scores.shape[1:]), np.float32)
            full[labels] = scores
            np.save(tmp_path / alpha / f'{i}.npy', full)
    dicts, arrays = (AffinityCrops(ids, toy.root, folder / '4.00', folder / '24.00', 96, True)
                     for folder in (chain / 'crf', tmp_path))
    for index in range(len(ids)):
        torch.manual_seed(index)
        a = dicts[index]
        torch.manual_seed(index)
        b = arrays[index]
        assert torch.equal(a['image'], b['image']) and torch.equal(a['label'], b['label'])
        assert a['image'].shape == (3, 96, 96) and a['label'].shape == (12, 12)
        # The crop is larger than the image: what is outside has no label, and black pixels before normalising.
        black = torch.from_numpy(denormalise(a['image'])).view(12, 8, 12, 8, 3).amax((1, 3, 4)) == 0
        assert (a['label'][black] == IGNORE).all() and black.any() and not black.all()


def test_image_and_labels_are_cropped_alike():
    torch.manual_seed(0)
    maps = np.arange(20 * 90, dtype=np.float32).reshape(1, 20, 90) + 1
    for _ in range(20):
        places = [crop_place(side, 40, True) for side in maps.shape[1:]]
        plain, mirrored = (crop_maps(maps, places, 40, mirror)[0] for mirror in (False, True))
        np.testing.assert_array_equal(mirrored, plain[:, ::-1])
        inside = plain[plain.any(1)]
        assert inside.shape == (20, 40)
        assert (np.diff(inside, axis=0) == 90).all() and (np.diff(inside, axis=1) == 1).all()


# ---------------------------------------------------------------- mistakes

def copy_cams(chain, folder):
    shutil.copytree(chain / 'cam', folder / 'cam')
    return folder / 'cam'


def damage_missing(path):
    path.unlink()


def damage_size(path):
    np.save(path, {0: np.ones((5, 6), np.float32)})


def damage_empty(path):
    np.save(path, {})


@pytest.mark.parametrize('damage, message', [(damage_missing, 'not found'), (damage_size, 'CAMs are 6x5'),
                                             (damage_empty, 'no class')])
@pytest.mark.parametrize('script, out', [(aff_prepare, '--out_crf'), (aff_infer, '--out_rw')])
def test_bad_cams_are_named(toy, chain, tmp_path, script, out, damage, message):
    cams = copy_cams(chain, tmp_path)
    name = read_list(toy.train)[5]
    damage(cams / f'{name}.npy')
    flags = prepare_flags(toy, chain) if script is aff_prepare else infer_flags(toy, chain)
    with pytest.raises(UserError, match=message) as error:
        run(script, *flags, '--cam_dir', cams, out, tmp_path / 'out')
    assert name in str(error.value)


def test_low_and_high_alpha_are_told_apart(toy, chain, tmp_path):
    ids, low, high = read_list(toy.train), chain / 'crf' / '4.00', chain / 'crf' / '24.00'
    check_alphas(ids, low, high)
    with pytest.raises(UserError, match='--la_crf_dir: has less background'):
        check_alphas(ids, high, low)
    with pytest.raises(UserError, match='is the folder of --la_crf_dir'):
        check_alphas(ids, low, low / '..' / low.name)
    shutil.copytree(low, tmp_path / 'copy')
    with pytest.raises(UserError, match='has the labels of --la_crf_dir'):
        check_alphas(ids, low, tmp_path / 'copy')
    shutil.copytree(high, tmp_path / 'fewer')
    (tmp_path / 'fewer' / f'{ids[3]}.npy').unlink()
    with pytest.raises(UserError, match=f'{ids[3]}.npy.*1 of 12 are missing.*--ha_crf_dir'):
        check_alphas(ids, low, tmp_path / 'fewer')


@pytest.mark.parametrize('value', [{}, {1: np.ones((4, 4))}, {0: np.ones((4, 4)), VOC.num_classes: np.ones((4, 4))},
                                   {0: np.ones((4, 4)), 2: np.ones((4, 5))}, {0: np.ones((4, 4), int)},
                                   np.ones((VOC.num_foreground, 4, 4)), np.ones((4, 4))])
def test_files_that_hold_no_probabilities(tmp_path, value):
    np.save(tmp_path / 'x.npy', value)
    with pytest.raises(UserError, match='x.npy.*aff_prepare.py'):
        read_probabilities(tmp_path / 'x.npy')


@pytest.mark.parametrize('flags, message', [(['--crop_size', 60], '--crop_size: 60'),
                                            (['--crop_size', 32], '--crop_size: 32'),
                                            (['--batch_size', 13], '--batch_size: 13')])
def test_training_flags_that_cannot_work(toy, chain, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(aff_train, *train_flags(toy, chain), '--session_name', tmp_path / 'aff', *flags)


def test_one_alpha_twice(toy, chain, tmp_path):
    with pytest.raises(UserError, match='4.00 twice'):
        run(aff_prepare, *prepare_flags(toy, chain), '--out_crf', tmp_path, '--alpha', 4, 4.001)


@pytest.mark.parametrize('workers', [0, 2])
def test_full_disk_is_one_error_line_and_finished_files_stay(toy, chain, tmp_path, workers):
    """A limit on file size stands for the full disk: images of one class fit, those of more do not."""
    whole = contents(chain / 'crf')
    sizes = sorted(map(len, whole.values()))
    limit = (sizes[0] + sizes[-1]) // 2
    assert sizes[0] < limit < sizes[-1]
    flags = map(str, [*prepare_flags(toy, chain), '--out_crf', tmp_path, '--num_workers', workers])
    process = subprocess.run([sys.executable, REPO / 'aff_prepare.py', *flags], capture_output=True, text=True,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    err = process.stderr
    last = err.replace('\r', '\n').strip().splitlines()[-1]
    assert process.returncode == 2 and 'Traceback' not in err
    assert last.startswith('error: ') and 'cannot be written' in last
    done = contents(tmp_path)
    assert all(whole[name] == data for name, data in done.items()) and len(done) < len(whole)
    assert not list(tmp_path.rglob('.*.tmp*'))
    run(aff_prepare, *prepare_flags(toy, chain), '--out_crf', tmp_path)
    assert contents(tmp_path) == whole

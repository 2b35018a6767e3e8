"""Step 2's scripts from end to end: golden chain, mistakes of users, a full disk."""
import json
import resource
import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers import GOLDEN, assert_refused, filled, golden, run_main, run_script, tree_bytes
from PIL import Image

from data.affinity import AffinityCrops
from data.cams import save_cams
from data.crop import CropWindow, centre
from data.images import devkit_photos
from data.lists import read_list
from data.masks import read_mask
from data.probabilities import check_alphas, read_probabilities, save_probabilities
from data.transforms import denormalise, random_offset
from engine.crf_workers import WalkSettings, write_pseudo_mask
from engine.errors import UserError
from engine.files import read_npy, save_npy
from network.resnet38_aff import Net
from tool import crf
from tool.metrics import IGNORE
from voc12.classes import VOC

PHOTOS = ('2011_000001', '2011_000002')
DEVKIT = GOLDEN / 'voc' / 'VOC2012'
TINY = 1 / 16

# ---------------------------------------------------------------- golden chain

@pytest.fixture(scope='module')
def photo_argv(tmp_path_factory):
    """Arguments that both inference scripts share, on the golden photos: their list and CAMs as Step 1 writes them."""
    folder, published = tmp_path_factory.mktemp('photo'), golden('chain.npz')
    for i in PHOTOS:
        save_cams(folder / f'{i}.npy', published[f'cam_keys_{i}'], published[f'cam_{i}'])
    (folder / 'list.txt').write_text('\n'.join(PHOTOS))
    return ('--infer_list', folder / 'list.txt', '--voc12_root', DEVKIT, '--cam_dir', folder, '--num_workers', 0)


def test_aff_prepare_writes_the_golden_probabilities(photo_argv, tmp_path):
    published = golden('chain.npz')
    run_main('aff_prepare', *photo_argv, '--out_crf', tmp_path)
    for i in PHOTOS:
        size = published[f'image_{i}'].shape[:2]
        published_bytes = size[0] * size[1] * VOC.num_classes * 4
        for alpha in ('4.00', '24.00'):
            path = tmp_path / alpha / f'{i}.npy'
            labels, scores = read_probabilities(path, VOC.num_classes, size)
            assert labels.tolist() == [0, *(published[f'cam_keys_{i}'] + 1)]
            assert scores.dtype == np.float16
            assert (crf.label_map(scores, labels) == published[f'affcrf{alpha}_argmax_{i}']).mean() >= 0.999
            # Half precision: 2^-12 near 1.
            np.testing.assert_allclose(scores[:, ::5, ::5], published[f'affcrf{alpha}_{i}'][labels], atol=3e-4)
            assert path.stat().st_size <= published_bytes / 8


@pytest.mark.wide
def test_aff_infer_makes_the_golden_masks(photo_argv, tmp_path):
    """The published network at full width. The walked CAMs, the background put in afterwards, give the same mask."""
    published, weights = golden('chain.npz'), tmp_path / 'filled.pth'
    torch.save(filled(Net).state_dict(), weights)
    run_main('aff_infer', *photo_argv, '--weights', weights, '--out_rw', tmp_path / 'rw',
             '--out_rw_npy', tmp_path / 'npy', '--device', 'cpu')
    weights.unlink()
    for i in PHOTOS:
        mask = read_mask(tmp_path / 'rw' / f'{i}.png')
        assert (mask == published[f'rw_{i}']).mean() >= 0.999
        with Image.open(tmp_path / 'rw' / f'{i}.png') as image:
            assert image.getpalette() == VOC.palette
        walked = read_npy(tmp_path / 'npy' / f'{i}.npy')
        scores = np.stack([np.full(mask.shape, 0.27, np.float32), *walked.values()])
        assert (crf.label_map(scores, [0, *(k + 1 for k in walked)]) == mask).mean() >= 0.999


# ---------------------------------------------------------------- toy chain

def make_chain(toy, folder):
    """Blurred ground truth of the toy set for CAMs, their CRFs, and random weights of AffinityNet.

    Fills and returns the folder: cam/, crf/4.00, crf/24.00, aff.pth.
    """
    (folder / 'cam').mkdir()
    for i in read_list(toy.train):
        mask = read_mask(toy.root / 'SegmentationClass' / f'{i}.png')
        labels = np.setdiff1d(mask, (0, IGNORE)).astype(int)
        cams = [cv2.GaussianBlur((mask == label).astype(np.float32), (0, 0), 7) for label in labels]
        save_cams(folder / 'cam' / f'{i}.npy', labels - 1, [cam / cam.max() for cam in cams])
    torch.manual_seed(0)
    torch.save(Net(TINY).state_dict(), folder / 'aff.pth')
    run_main('aff_prepare', *prepare_argv(toy, folder), '--out_crf', folder / 'crf')
    return folder


@pytest.fixture(scope='module')
def chain(toy, tmp_path_factory):
    """The folder of make_chain. Not to be changed."""
    return make_chain(toy, tmp_path_factory.mktemp('step2'))


def prepare_argv(toy, folder):
    """Arguments of aff_prepare.py on the toy chain, but for the output."""
    return ['--infer_list', toy.train, '--voc12_root', toy.root, '--cam_dir', folder / 'cam', '--num_workers', 0]


def infer_argv(toy, folder):
    """Arguments of aff_infer.py on the toy chain, but for the output."""
    return [*prepare_argv(toy, folder), '--weights', folder / 'aff.pth', '--device', 'cpu']


def train_argv(toy, folder, session):
    """Arguments of aff_train.py on the toy chain: six steps."""
    return ['--weights', toy.backbone, '--voc12_root', toy.root, '--train_list', toy.train, '--val_list', '',
            '--la_crf_dir', folder / 'crf' / '4.00', '--ha_crf_dir', folder / 'crf' / '24.00', '--crop_size', 64,
            '--batch_size', 4, '--max_epoches', 2, '--num_workers', 0, '--device', 'cpu',
            '--tblog_dir', session.with_name('tblog'), '--session_name', session]


def background_of(folder):
    """The mean fraction of background in a folder of probabilities."""
    maps = [read_probabilities(path, VOC.num_classes)[1].argmax(0) for path in folder.glob('*.npy')]
    return np.mean([(labels == 0).mean() for labels in maps])


def test_two_alphas_give_different_files_and_the_low_one_more_background(toy, chain):
    low, high = (tree_bytes(chain / 'crf' / name, '.npy') for name in ('4.00', '24.00'))
    assert low.keys() == high.keys()
    assert [path.name for path in low] == sorted(f'{i}.npy' for i in read_list(toy.train))
    assert sum(low[name] != high[name] for name in low) >= len(low) / 2
    assert background_of(chain / 'crf' / '4.00') > background_of(chain / 'crf' / '24.00')


def test_aff_prepare_takes_one_alpha_and_fewer_iterations(toy, chain, tmp_path):
    run_main('aff_prepare', *prepare_argv(toy, chain), '--out_crf', tmp_path, '--alpha', 24, '--crf_iters', 2)
    assert [path.name for path in tmp_path.iterdir()] == ['24.00']
    ours, default = tree_bytes(tmp_path / '24.00'), tree_bytes(chain / 'crf' / '24.00')
    assert ours.keys() == default.keys()
    assert ours != default


def test_processes_write_the_same_bytes_and_done_images_are_skipped(toy, chain, tmp_path):
    argv = [*prepare_argv(toy, chain), '--out_crf', tmp_path]
    run_main('aff_prepare', *argv, '--num_workers', 2)
    assert tree_bytes(tmp_path) == tree_bytes(chain / 'crf')
    first, second = sorted(path.name for path in (tmp_path / '4.00').iterdir())[:2]
    (tmp_path / '4.00' / first).write_bytes(b'mine')
    (tmp_path / '24.00' / second).unlink()
    run_main('aff_prepare', *argv)
    assert (tmp_path / '4.00' / first).read_bytes() == b'mine'
    assert (tmp_path / '24.00' / second).exists()
    run_main('aff_prepare', *argv, '--overwrite')
    assert tree_bytes(tmp_path) == tree_bytes(chain / 'crf')


def test_every_flag_of_aff_infer_changes_the_masks(toy, chain, tmp_path):
    def masks(name, *flags):
        run_main('aff_infer', *infer_argv(toy, chain), '--out_rw', tmp_path / name, *flags)
        return tree_bytes(tmp_path / name, '.png')
    base = masks('base')
    assert len(base) == len(read_list(toy.train))
    # The defaults by name; alpha only counts with --bg alpha.
    assert masks('same', '--bg', 0.27, '--beta', 8, '--logt', 6, '--alpha', 3) == base
    for name, flags in {'bg': ('--bg', 0.4), 'beta': ('--beta', 1), 'logt': ('--logt', 0)}.items():
        assert masks(name, *flags) != base, name
    alpha, refined = masks('alpha', '--bg', 'alpha'), masks('crf', '--crf')
    assert base not in (alpha, refined)
    assert masks('alpha 3', '--bg', 'alpha', '--alpha', 3) not in (base, alpha)
    assert masks('crf_iters', '--crf', '--crf_iters', 1) not in (base, refined)
    assert masks('deeplab', '--crf', '--crf_setting', 'deeplab', '--crf_iters', 10) == refined
    published = masks('published', '--crf', '--crf_setting', 'published')
    assert published not in (base, refined)
    assert masks('published 1', '--crf', '--crf_setting', 'published', '--crf_iters', 1) == published


def test_one_walk_gives_the_masks_before_and_after_the_crf(capsys, toy, chain, tmp_path):
    argv = infer_argv(toy, chain)
    run_main('aff_infer', *argv, '--out_rw', tmp_path / 'rw', '--out_rw_crf', tmp_path / 'rw_crf')
    run_main('aff_infer', *argv, '--out_rw', tmp_path / 'alone')
    run_main('aff_infer', *argv, '--out_rw', tmp_path / 'refined', '--crf')
    assert tree_bytes(tmp_path / 'rw') == tree_bytes(tmp_path / 'alone')  # run.json too
    assert tree_bytes(tmp_path / 'rw_crf') == tree_bytes(tmp_path / 'refined')
    same = assert_refused(capsys, 'aff_infer', *argv, '--out_rw', tmp_path / 'x', '--out_rw_crf', tmp_path / 'x')
    assert f'{tmp_path / "x"}: was given for two sorts of .png files' in same
    twice = assert_refused(capsys, 'aff_infer', *argv, '--out_rw', tmp_path / 'x', '--out_rw_crf', tmp_path / 'y',
                           '--crf')
    assert 'leave out --crf or --out_rw_crf' in twice


def test_without_steps_the_walk_leaves_the_pooled_cams(toy, chain, tmp_path):
    """logt 0 and an enormous beta: every cell stays where it is."""
    run_main('aff_infer', *infer_argv(toy, chain), '--out_rw', tmp_path, '--out_rw_npy', tmp_path, '--logt', 0,
             '--beta', 1e6)
    for i in read_list(toy.train):
        cams, walked = read_npy(chain / 'cam' / f'{i}.npy'), read_npy(tmp_path / f'{i}.npy')
        assert walked.keys() == cams.keys()
        for k in cams:
            assert np.abs(walked[k] - cams[k]).max() < 0.3
            assert walked[k].mean() == pytest.approx(cams[k].mean(), abs=1e-3)


def test_walked_cams_of_an_odd_size_are_not_diluted_at_the_border(tmp_path):
    """Cells that reach beyond the image: a constant CAM stays constant, and the mask is that of the walked CAMs."""
    rng = np.random.default_rng(0)
    image, affinity = np.zeros((45, 51, 3), np.uint8), rng.random((4, 25), np.float32)
    cams = [np.full((45, 51), 0.9, np.float32), rng.random((45, 51), np.float32)]
    save_cams(tmp_path / 'cam.npy', np.array([3, 7]), cams)
    settings = WalkSettings(bg=0.5, alpha=6, beta=8, logt=6, crf='deeplab', crf_iters=None, classes=VOC)
    paths = {'rw': tmp_path / 'rw.png', 'npy': tmp_path / 'rw.npy'}
    write_pseudo_mask(paths, tmp_path / 'cam.npy', image, affinity, settings)
    walked = read_npy(tmp_path / 'rw.npy')
    np.testing.assert_allclose(walked[3], 0.9, rtol=1e-5)
    scores = np.stack([np.full((45, 51), 0.5), walked[3], walked[7]])
    np.testing.assert_array_equal(read_mask(tmp_path / 'rw.png'), crf.label_map(scores, [0, 4, 8]))


# ---------------------------------------------------------------- training

LONGER = '--save_every', 2, '--max_epoches', 4


@pytest.fixture(scope='module')
def trained(toy, chain, tmp_path_factory):
    """The session of an uninterrupted training of twelve steps."""
    session = tmp_path_factory.mktemp('trained') / 'aff'
    run_main('aff_train', *train_argv(toy, chain, session), *LONGER)
    return session


def test_training_lowers_the_loss_and_logs_its_terms(trained):
    rows = [json.loads(line) for line in trained.with_suffix('.losses.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == list(range(12))
    bg, fg, neg = (rows[0][f'loss_{kind}'] for kind in ('bg', 'fg', 'neg'))
    assert rows[0]['loss'] == pytest.approx(bg / 4 + fg / 4 + neg / 2, rel=1e-5)
    assert np.mean([row['loss'] for row in rows[-4:]]) < np.mean([row['loss'] for row in rows[:4]])
    assert trained.with_suffix('.affinity.png').stat().st_size > 1000


def test_validation_uses_the_images_that_have_labels(toy, chain, tmp_path, capsys):
    both = tmp_path / 'both.txt'
    both.write_text(toy.val.read_text() + '\n' + toy.train.read_text())
    run_main('aff_train', *train_argv(toy, chain, tmp_path / 'aff'), '--val_list', both, '--max_epoches', 1)
    said = capsys.readouterr().out
    assert 'validation: 12 of the 16 images' in said
    for kind in ('bg', 'fg', 'neg'):
        assert f'val/loss_{kind}' in said


def test_both_crf_engines_make_the_same_labels(toy, chain, tmp_path):
    pytest.importorskip('pydensecrf.densecrf')
    run_main('aff_prepare', *prepare_argv(toy, chain), '--out_crf', tmp_path, '--crf_engine', 'pydensecrf')
    for alpha in ('4.00', '24.00'):
        for i in read_list(toy.train):
            (labels, ours), (same, theirs) = (read_probabilities(folder / alpha / f'{i}.npy', VOC.num_classes)
                                              for folder in (chain / 'crf', tmp_path))
            np.testing.assert_array_equal(labels, same)
            # 1e-4, and a step of float16 just below 1, 2^-11: the two may round to either side.
            np.testing.assert_allclose(ours, theirs, atol=6e-4)


def test_crops_of_dict_and_array_files_agree(toy, chain, tmp_path):
    ids = read_list(toy.train)
    for alpha in ('4.00', '24.00'):
        (tmp_path / alpha).mkdir()
        for i in ids:
            labels, scores = read_probabilities(chain / 'crf' / alpha / f'{i}.npy', VOC.num_classes)
            full = np.zeros((VOC.num_classes, *scores.shape[1:]), np.float32)
            full[labels] = scores
            save_npy(tmp_path / alpha / f'{i}.npy', full)
    photos = devkit_photos(toy.root)
    dicts, arrays = (AffinityCrops(ids, photos, folder / '4.00', folder / '24.00', VOC.num_classes, 96, train=True)
                     for folder in (chain / 'crf', tmp_path))
    for index in range(len(ids)):
        torch.manual_seed(index)
        a = dicts[index]
        torch.manual_seed(index)
        b = arrays[index]
        assert torch.equal(a['image'], b['image'])
        assert torch.equal(a['label'], b['label'])
        assert a['image'].shape == (3, 96, 96)
        assert a['label'].shape == (12, 12)
        # The crop is larger than the image: what is outside has no label, and black pixels before normalising.
        black = torch.from_numpy(denormalise(a['image'])).view(12, 8, 12, 8, 3).amax((1, 3, 4)) == 0
        assert (a['label'][black] == IGNORE).all()
        assert black.any() and not black.all()


STRIPES = [3] * 4 + [0] * 2 + [8] * 4  # labels of a row of cells


@pytest.fixture
def striped(tmp_path):
    """An image of 48x80 pixels, red, grey and blue from left to right, and its CRF labels, STRIPES in every row.

    Returns arguments of AffinityCrops, for crops of 80x80.
    """
    (tmp_path / 'JPEGImages').mkdir()
    image = np.full((48, 80, 3), 128, np.uint8)
    image[:, :32], image[:, 48:] = (200, 30, 30), (30, 30, 200)
    Image.fromarray(image).save(tmp_path / 'JPEGImages' / 'x.jpg', quality=95)
    stripe = np.repeat(STRIPES, 8)
    probabilities = np.stack([np.broadcast_to(stripe == label, (48, 80)) for label in (0, 3, 8)])
    save_probabilities(tmp_path / 'x.npy', [0, 3, 8], probabilities.astype(np.float32))
    return ['x'], devkit_photos(tmp_path), tmp_path, tmp_path, VOC.num_classes, 80


def test_a_validation_crop_is_the_centre_of_the_image_as_it_is(striped):
    item = AffinityCrops(*striped, train=False)[0]
    expected = np.full((10, 10), IGNORE)
    expected[2:8] = STRIPES
    np.testing.assert_array_equal(item['label'], expected)
    pixels = denormalise(item['image'])
    np.testing.assert_allclose(pixels[40, (4, 40, 76)], [(200, 30, 30), (128, 128, 128), (30, 30, 200)], atol=8)


def test_a_training_crop_flips_and_moves_image_and_labels_together(striped):
    dataset = AffinityCrops(*striped, train=True)
    flips, tops = set(), set()
    for seed in range(20):
        torch.manual_seed(seed)
        item = dataset[0]
        label = item['label'].numpy()
        red, _, blue = denormalise(item['image']).reshape(10, 8, 10, 8, 3).mean((1, 3)).transpose(2, 0, 1)
        labelled = np.flatnonzero((label != IGNORE).all(1))
        flip = label[labelled[0], 0] == 8
        for row in labelled:
            assert label[row].tolist() == (STRIPES[::-1] if flip else STRIPES)
        assert (red > blue)[label == 3].all()
        assert (red < blue)[label == 8].all()
        flips.add(bool(flip))
        tops.add(int(labelled[0]))
    assert flips == {True, False}
    assert len(tops) > 2


def test_a_crop_is_cut_where_the_image_is_larger_and_padded_where_it_is_smaller():
    torch.manual_seed(0)
    maps = np.arange(20 * 90, dtype=np.float32).reshape(1, 20, 90)
    for _ in range(20):
        window = CropWindow(40, 20, 90, random_offset)
        crop, = window.paste(window.cut(maps), fill=-1)
        assert crop.shape == (40, 40)
        inside = crop[crop[:, 0] >= 0]
        assert inside.shape == (20, 40)
        assert (np.diff(inside, axis=0) == 90).all()
        assert (np.diff(inside, axis=1) == 1).all()
        assert (crop == -1).sum() == 20 * 40


def test_the_centre_crop_has_as_much_on_either_side():
    maps = np.arange(20 * 90).reshape(1, 20, 90)
    window = CropWindow(40, 20, 90, centre)
    crop, = window.paste(window.cut(maps), fill=-1)
    np.testing.assert_array_equal(crop[10:30], maps[0, :, 25:65])
    assert (crop[:10] == -1).all()
    assert (crop[30:] == -1).all()


# ---------------------------------------------------------------- mistakes

def remove(path):
    path.unlink()


def resize(path):
    save_npy(path, {0: np.ones((5, 6), np.float32)})


def out_of_range(path):
    save_npy(path, {20: np.zeros((64, 80))})


@pytest.mark.parametrize('spoil, message', [
    (remove, 'not found'), (resize, 'CAMs are 6x5'), (out_of_range, 'do not fit')])
@pytest.mark.parametrize('script, argv, out', [('aff_prepare', prepare_argv, '--out_crf'),
                                               ('aff_infer', infer_argv, '--out_rw')])
def test_bad_cams_are_named(capsys, toy, chain, tmp_path, script, argv, out, spoil, message):
    cams, name = shutil.copytree(chain / 'cam', tmp_path / 'cam'), read_list(toy.train)[5]
    spoil(cams / f'{name}.npy')
    error = assert_refused(capsys, script, *argv(toy, chain), '--cam_dir', cams, out, tmp_path / 'out')
    assert f'{name}.npy' in error
    assert message in error


def test_low_and_high_alpha_are_told_apart(toy, chain, tmp_path):
    ids, low, high = read_list(toy.train), chain / 'crf' / '4.00', chain / 'crf' / '24.00'
    copy, fewer = (shutil.copytree(folder, tmp_path / name) for folder, name in ((low, 'copy'), (high, 'fewer')))
    (fewer / f'{ids[3]}.npy').unlink()
    check_alphas(ids, low, high, VOC.num_classes)
    for folders, message in {
        (high, low): '--la_crf_dir: has less background',
        (low, low / '..' / low.name): 'is the folder of --la_crf_dir',
        (low, copy): 'has the labels of --la_crf_dir',
        (low, fewer): f'{ids[3]}.npy.*1 of 12 are missing.*--ha_crf_dir',
    }.items():
        with pytest.raises(UserError, match=message):
            check_alphas(ids, *folders, VOC.num_classes)


@pytest.mark.parametrize('value', [{}, {1: np.ones((4, 4))}, {0: np.ones((4, 4)), VOC.num_classes: np.ones((4, 4))},
                                   {0: np.ones((4, 4)), 2: np.ones((4, 5))}, {0: np.ones((4, 4), int)},
                                   np.ones((VOC.num_foreground, 4, 4)), np.ones((4, 4))])
def test_files_that_hold_no_probabilities_are_refused(tmp_path, value):
    save_npy(tmp_path / 'x.npy', value)
    with pytest.raises(UserError, match='x.npy.*aff_prepare.py'):
        read_probabilities(tmp_path / 'x.npy', VOC.num_classes)


@pytest.mark.parametrize('flags, message', [(['--crop_size', 60], '--crop_size: 60'),
                                            (['--crop_size', 32], '--crop_size: 32'),
                                            (['--batch_size', 13], '--batch_size: 13')])
def test_training_flags_that_cannot_work_are_refused(capsys, toy, chain, tmp_path, flags, message):
    assert message in assert_refused(capsys, 'aff_train', *train_argv(toy, chain, tmp_path / 'aff'), *flags)
    assert not list(tmp_path.iterdir())


def test_one_alpha_twice_is_refused(capsys, toy, chain, tmp_path):
    argv = [*prepare_argv(toy, chain), '--out_crf', tmp_path, '--alpha', 4, 4.001]
    assert '4.00 twice' in assert_refused(capsys, 'aff_prepare', *argv)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_full_disk_is_one_error_line_and_finished_files_stay(toy, chain, tmp_path, workers):
    """A limit on file size stands for the full disk: images of one class fit, those of more do not."""
    whole = tree_bytes(chain / 'crf')
    sizes = sorted(map(len, whole.values()))
    limit = (sizes[0] + sizes[-1]) // 2
    assert sizes[0] < limit < sizes[-1]
    argv = [*prepare_argv(toy, chain), '--out_crf', tmp_path, '--num_workers', workers]
    done = run_script('aff_prepare', *argv,
                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    last = done.stderr.replace('\r', '\n').strip().splitlines()[-1]
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    assert last.startswith('error: ')
    assert 'cannot be written' in last
    kept = tree_bytes(tmp_path)  # no temporary file is among them
    assert kept.items() < whole.items()
    run_main('aff_prepare', *argv)
    assert tree_bytes(tmp_path) == whole

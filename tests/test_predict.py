"""predict.py and `import predict`: one photo or a folder of them in, masks and pictures out."""
import functools
import json
import re
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main, tree_bytes
from PIL import Image

import predict
from data.cams import read_cams
from data.images import read_image
from data.masks import read_mask
from engine import pictures
from engine.errors import UserError
from engine.files import REPO
from network import deeplab, resnet38_aff, resnet38_eps
from segmentation import prediction
from voc12.classes import VOC

ORIENTATION = 0x0112
TINY = 1 / 16
run = functools.partial(run_main, 'predict')


@pytest.fixture(scope='module')
def weights(toy, tmp_path_factory):
    """Weights of width 1/16: deeplab, cams (SEAM + PPC), plain (plain EPS), affinity."""
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    nets = {'deeplab': deeplab.build('deeplabv1_resnet38', VOC.num_classes, TINY), 'affinity': resnet38_aff.Net(TINY),
            'plain': resnet38_eps.Net(VOC.num_classes, TINY)}
    for name, net in nets.items():
        torch.save(net.state_dict(), folder / f'{name}.pth')
    shutil.copy(toy.net, folder / 'cams.pth')
    return SimpleNamespace(**{name: folder / f'{name}.pth' for name in ('deeplab', 'affinity', 'plain', 'cams')})


@pytest.fixture
def photo(toy):
    """The path of a photo of the toy set."""
    return sorted((toy.root / 'JPEGImages').glob('*.jpg'))[0]


@pytest.fixture
def folder(photo, tmp_path):
    """A folder of photos as people have them: upright, turned, grey, 16-bit, tiny; a text file; a hidden file."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    pixels = read_image(photo)
    Image.fromarray(pixels).save(folder / 'upright.png')
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(folder / 'turned.png', exif=exif)
    Image.fromarray(pixels[..., 1]).save(folder / 'grey.JPG', 'jpeg')
    Image.fromarray(pixels[..., 1].astype(np.uint16) * 257).save(folder / 'sixteen.tif')
    Image.fromarray(pixels[:9, :40]).save(folder / 'tiny.webp')
    (folder / 'notes.txt').write_text('sunny')
    (folder / '._grey.jpg').write_bytes(b'what some systems leave')
    return folder


def flags(weights, out, *more):
    return '--weights', weights, '--out', out, '--num_workers', 0, '--device', 'cpu', *more


# ---------------------------------------------------------------- photos as people have them

def test_a_folder_of_all_sorts_of_photos(weights, folder, tmp_path, capsys):
    run(folder, *flags(weights.deeplab, tmp_path / 'out'))
    said = capsys.readouterr().out
    assert '1 files do not end as photos do and are left out (notes.txt the first)' in said
    masks = {path.stem: read_mask(path) for path in (tmp_path / 'out').glob('*.png')}
    assert sorted(masks) == ['grey', 'sixteen', 'tiny', 'turned', 'upright']
    np.testing.assert_array_equal(masks['turned'], masks['upright'])
    for name, file in (('upright', 'upright.png'), ('grey', 'grey.JPG'), ('tiny', 'tiny.webp')):
        assert masks[name].shape == read_image(folder / file, convert=True).shape[:2]
        assert re.search(rf'{file}: \w+ \d+ %', said)
    assert sorted(path.name for path in (tmp_path / 'out' / 'overlay').iterdir()) == [f'{name}.jpg' for name in
                                                                                      sorted(masks)]


def test_the_mask_is_deeplabs_and_has_the_palette(weights, photo, tmp_path):
    run(photo, *flags(weights.deeplab, tmp_path / 'out'))
    net = deeplab.build('deeplabv1_resnet38', VOC.num_classes, TINY).eval()
    net.load_state_dict(torch.load(weights.deeplab, weights_only=True))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    image = torch.from_numpy((read_image(photo) / np.float32(255) - mean) / std).permute(2, 0, 1)
    with torch.inference_mode():
        expected = net(image[None])[0].argmax(0).numpy()
    path = tmp_path / 'out' / f'{photo.stem}.png'
    assert (read_mask(path) == expected).mean() > 0.999
    assert Image.open(path).mode == 'P' and Image.open(path).getpalette()[:768] == VOC.palette


def test_a_photo_that_cannot_be_read_gets_a_line_and_the_others_go_on(weights, folder, tmp_path, capsys):
    (folder / 'page.jpg').write_text('<html>404 not found</html>')
    upright = (folder / 'upright.png').read_bytes()
    (folder / 'cut.png').write_bytes(upright[:len(upright) // 2])
    with pytest.raises(UserError, match=r'photos: 2 of 7 could not be read'):
        run(folder, *flags(weights.deeplab, tmp_path / 'out'))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith('warning: ')]
    assert len(warnings) == 2 and 'cut.png: image cannot be read' in warnings[0]
    assert 'page.jpg: image cannot be read' in warnings[1]
    assert len(tree_bytes(tmp_path / 'out', '.png')) == 5
    line = assert_refused(capsys, 'predict', folder / 'notes.txt', *flags(weights.deeplab, tmp_path / 'other'))
    assert line.startswith('error: photos: 1 of 1 could not be read')


def test_a_huge_photo_is_bounded_and_its_mask_has_its_size(weights, photo, tmp_path):
    small = read_image(photo)
    huge = np.asarray(Image.fromarray(small).resize((4000, 3000), Image.Resampling.BICUBIC))
    predictor = predict.load(weights.deeplab, device='cpu', max_side=80)
    tracemalloc.start()
    mask, scores, _ = predictor(huge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.shape == (3000, 4000) and scores.shape == (21, 60, 80)
    assert peak < 20 * mask.size  # bytes a pixel; all 21 classes at once would take 84
    by_nearest = np.asarray(Image.fromarray(scores.argmax(0).astype(np.uint8)).resize((4000, 3000), 0))
    assert (mask == by_nearest).mean() > 0.9


@pytest.mark.parametrize('size, seen', [((500, 375), (500, 375)), ((1280, 960), (640, 480)), ((9000, 9), (640, 8))])
def test_what_the_network_sees_of_a_photo(size, seen):
    shrunk = prediction.shrunk(np.zeros((*size[::-1], 3), np.uint8), 640)
    assert shrunk.shape == (*seen[::-1], 3)


def test_enlarged_labels_are_the_argmax_of_enlarged_scores():
    scores = np.random.default_rng(0).random((3, 6, 8)).astype(np.float32)
    labels = np.array([0, 4, 9])
    large = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], (33, 50), mode='bilinear')[0].numpy()
    np.testing.assert_array_equal(prediction.label_map(scores, labels, (33, 50)), labels[large.argmax(0)])
    np.testing.assert_array_equal(prediction.label_map(scores, labels, (6, 8)), labels[scores.argmax(0)])


# ---------------------------------------------------------------- weights of Step 1

def test_cams_of_named_classes_are_those_of_contrast_infer(weights, toy, photo, tmp_path):
    label = np.zeros(VOC.num_foreground, np.float32)
    label[[11, 14]] = 1
    np.save(tmp_path / 'labels.npy', {photo.stem: label})
    (tmp_path / 'list.txt').write_text(photo.stem)
    run_main('contrast_infer', '--weights', weights.cams, '--infer_list', tmp_path / 'list.txt', '--voc12_root',
             toy.root, '--cls_labels', tmp_path / 'labels.npy', '--out_cam', tmp_path / 'cam', '--out_cam_pred',
             tmp_path / 'pred', '--out_crf', tmp_path / 'crf', '--scales', 1, 1.5, '--num_workers', 0,
             '--device', 'cpu')
    options = {'classes': ('person', 'dog'), 'scales': (1., 1.5), 'device': 'cpu'}
    mask, scores, found = predict.load(weights.cams, **options)(photo)
    present, cams = read_cams(tmp_path / 'cam' / f'{photo.stem}.npy', VOC.num_foreground)
    np.testing.assert_array_equal(scores[present + 1], cams)
    assert (scores[0] == np.float32(0.26)).all()
    np.testing.assert_array_equal(mask, read_mask(tmp_path / 'pred' / f'{photo.stem}.png'))
    assert set(found) == {'dog', 'person'} and all(0 < score < 1 for score in found.values())
    refined = predict.load(weights.cams, crf=True, **options)(photo)
    np.testing.assert_array_equal(refined.mask, read_mask(tmp_path / 'crf' / f'{photo.stem}.png'))


def test_cams_are_drawn_of_the_classes_that_the_network_believes_in(weights, photo, tmp_path, capsys):
    scores = predict.load(weights.cams, device='cpu', classes=VOC.foreground)(photo).found
    believed = sorted(scores, key=scores.get, reverse=True)[:2]
    threshold = (scores[believed[1]] + sorted(scores.values())[-3]) / 2
    run(photo, *flags(weights.cams, tmp_path / 'out', '--class_score', threshold))
    out = capsys.readouterr().out
    assert f'{photo}: ' + ', '.join(f'{name} {scores[name]:.2f}' for name in believed) in out
    assert set(np.unique(read_mask(tmp_path / 'out' / f'{photo.stem}.png'))) <= {0, *map(VOC.names.index, believed)}
    picture = np.asarray(Image.open(tmp_path / 'out' / 'overlay' / f'{photo.stem}.jpg'))
    assert picture.shape[1] == 3 * (480 + 8)  # the mask, and a CAM for each of the two
    run(photo, *flags(weights.cams, tmp_path / 'none', '--class_score', 1))
    highest = f'{believed[0]} {scores[believed[0]]:.2f}'
    assert f'no class scores 1 or more (highest: {highest})' in capsys.readouterr().out
    assert not read_mask(tmp_path / 'none' / f'{photo.stem}.png').any()


def test_baseline_and_network_are_read_beside_the_weights(weights, photo, tmp_path, capsys):
    copy = shutil.copy(weights.cams, tmp_path / 'run.pth')
    names = {'classes': ('dog',), 'device': 'cpu'}
    (tmp_path / 'run.json').write_text(json.dumps({'settings': {'baseline': 'cam', 'network': 'antigravity'}}))
    plain = predict.load(copy, **names)
    assert '--baseline cam, --network network.resnet38_contrast' in capsys.readouterr().out
    given = predict.load(weights.cams, map='plain', **names)
    np.testing.assert_array_equal(plain(photo).scores, given(photo).scores)
    assert predict.load(copy, baseline='seam', **names).args.map == 'revised'  # the command line beats the file
    assert predict.load(weights.plain, **names).args.baseline == 'eps_plain'  # no file, and no PCM in the weights


# ---------------------------------------------------------------- classes

def test_classes_of_ones_own_are_read_beside_the_weights(photo, tmp_path, capsys):
    names = ['cup', 'fork', 'knife']
    torch.manual_seed(1)
    torch.save(deeplab.build('deeplabv1_resnet38', 4, TINY).state_dict(), tmp_path / 'mine.pth')
    (tmp_path / 'mine.json').write_text(json.dumps({'settings': {'classes': names}}))
    predicted = predict.load(tmp_path / 'mine.pth', device='cpu')(photo)
    assert predicted.scores.shape[0] == 4 and set(predicted.found) <= set(names)
    (tmp_path / 'train.txt').write_text('a')
    described = tmp_path / 'dataset.yaml'
    described.write_text('classes: [cup, fork, knife]\nimages: .\nlists: {train: train.txt}\nlabels: l.csv\n'
                         'palette: {cup: [1, 2, 3]}\n')
    run(photo, *flags(tmp_path / 'mine.pth', tmp_path / 'out', '--dataset', described))
    assert Image.open(tmp_path / 'out' / f'{photo.stem}.png').getpalette()[3:6] == [1, 2, 3]
    line = assert_refused(capsys, 'predict', photo, *flags(tmp_path / 'mine.pth', tmp_path / 'x', '--dataset', 'voc12'))
    assert 'was trained on 3 classes (cup, fork, knife), not on those of PASCAL VOC 2012' in line
    (tmp_path / 'mine.json').write_text(json.dumps({'settings': {'classes': ['cup', 'fo\nrk', 'knife']}}))
    line = assert_refused(capsys, 'predict', photo, *flags(tmp_path / 'mine.pth', tmp_path / 'x'))
    assert "its <session>.json: the class 'fo\\nrk' is no plain name" in line


# ---------------------------------------------------------------- thousands of photos

def test_what_is_done_is_skipped_and_other_flags_are_refused(weights, folder, tmp_path, capsys):
    argv = [folder, *flags(weights.deeplab, tmp_path / 'out')]
    run(*argv)
    whole = tree_bytes(tmp_path / 'out')
    (tmp_path / 'out' / 'grey.png').unlink()
    (tmp_path / 'out' / 'turned.png').write_bytes(b'kept')
    capsys.readouterr()
    run(*argv)
    assert '5 photos, 4 done already' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'turned.png').read_bytes() == b'kept'
    assert 'made with another max_side' in assert_refused(capsys, 'predict', *argv, '--max_side', 48)
    run(*argv, '--overwrite')
    assert tree_bytes(tmp_path / 'out') == whole
    run(*argv[:1], *flags(weights.deeplab, tmp_path / 'two', '--num_workers', 1))
    assert tree_bytes(tmp_path / 'two', '.png') == tree_bytes(tmp_path / 'out', '.png')


def test_photos_of_one_name_are_not_taken_for_each_other(weights, folder, photo, tmp_path, capsys):
    other = tmp_path / 'other'
    other.mkdir()
    shutil.copy(photo, other / 'grey.jpg')
    argv = flags(weights.deeplab, tmp_path / 'out')
    line = assert_refused(capsys, 'predict', folder, other, *argv)
    assert f'{other}/grey.jpg: has the name of {folder}/grey.JPG, and their masks would be one file; rename' in line
    run(folder, folder / 'grey.JPG', *argv)  # a photo named twice is one photo
    line = assert_refused(capsys, 'predict', other, *argv)
    assert f'out/grey.png: is of another photo than {other}/grey.jpg' in line
    run(other, *argv, '--overwrite')


def test_results_never_replace_photos(weights, folder, capsys):
    before = tree_bytes(folder)
    for out in (folder, folder / '..' / 'photos'):
        line = assert_refused(capsys, 'predict', folder, *flags(weights.deeplab, out, '--overwrite'))
        assert 'which a result could replace; choose another folder' in line
    assert tree_bytes(folder) == before


# ---------------------------------------------------------------- what users get wrong

def test_mistakes_get_their_line(weights, photo, tmp_path, capsys):
    def refused(*argv, of=weights.cams):
        return assert_refused(capsys, 'predict', *argv, *flags(of, tmp_path / 'out'))
    (tmp_path / 'empty').mkdir()
    assert 'nowhere.jpg: photo not found' in refused(tmp_path / 'nowhere.jpg')
    assert 'empty: is a folder without photos (.jpg, .jpeg' in refused(tmp_path / 'empty')
    assert "--classes: 'dgo' is no class of PASCAL VOC 2012; choose from aero" in refused(photo, '--classes', 'cat,dgo')
    assert '--crf_alpha: --baseline seam does not use it' in refused(photo, '--crf_alpha', 4)
    assert 'holds an AffinityNet of width 0.0625, which makes no mask' in refused(photo, of=weights.affinity)
    for flag in ('--classes=dog', '--class_score=0.3', '--map=plain', '--baseline=eps', '--background_score=0.1'):
        line = refused(photo, flag, of=weights.deeplab)
        assert line.startswith(f'error: {flag.split("=")[0]}: is of networks of Step 1, and ')
    assert not (tmp_path / 'out').exists()


def test_the_function_takes_arrays_and_refuses_what_is_none(weights, photo):
    predictor = predict.load(str(weights.deeplab), device='cpu')
    by_path, by_array = predictor(photo), predictor(read_image(photo))
    np.testing.assert_array_equal(by_path.mask, by_array.mask)
    np.testing.assert_allclose(by_path.scores.sum(0), 1, atol=1e-5)
    share = (by_path.mask == VOC.names.index(next(iter(by_path.found)))).mean()
    assert share == pytest.approx(next(iter(by_path.found.values())))
    with pytest.raises(ValueError, match=r'uint8 \(H, W, 3\), not uint8 \(5, 6\)'):
        predictor(np.zeros((5, 6), np.uint8))
    with pytest.raises(TypeError, match="unknown flag 'csrf'"):
        predict.load(weights.deeplab, csrf=True)
    with pytest.raises(UserError, match='weights not found'):
        predict.load('nowhere.pth')


def test_the_crf_and_the_flip_change_deeplabs_mask(weights, photo):
    plain = predict.load(weights.deeplab, device='cpu')(photo)
    flipped = predict.load(weights.deeplab, device='cpu', flip=True)(photo)
    assert 0 < np.abs(plain.scores - flipped.scores).max() < 1
    turned = predict.load(weights.deeplab, device='cpu', flip=True)(read_image(photo)[:, ::-1])
    np.testing.assert_allclose(turned.scores[..., ::-1], flipped.scores, atol=1e-5)
    refined = predict.load(weights.deeplab, device='cpu', crf=True, crf_iters=1)(photo)
    np.testing.assert_array_equal(refined.mask, refined.scores.argmax(0))
    assert (refined.scores != plain.scores).any()


# ---------------------------------------------------------------- the picture

def test_the_picture_tints_objects_and_names_their_colours():
    photo, mask = np.full((480, 640, 3), 200, np.uint8), np.zeros((480, 640), np.uint8)
    mask[100:200, 100:300], mask[300:400, 400:500] = 12, 15
    picture = pictures.masked(photo, mask, VOC.palette)
    dog, person = ([64, 0, 128], [192, 128, 128])
    assert picture[150, 200].tolist() == [132, 100, 164]  # half the photo, half the class's colour
    assert picture[50, 50].tolist() == [200, 200, 200]
    assert picture[100, 200].tolist() == dog and picture[350, 499].tolist() == person  # outlines
    legend = pictures.captioned(picture, [(12, 'dog 7 %'), (15, 'person 3 %')], VOC.palette)[480:]
    assert legend[16, 16].tolist() == dog
    assert (legend.reshape(-1, 3) == person).all(1).sum() == 14 * 14  # its square, less the black frame


def test_a_legend_is_as_wide_and_as_high_as_it_needs():
    narrow = np.zeros((480, 60, 3), np.uint8)
    wide = pictures.captioned(narrow, [(1, 'a class of a long name')], VOC.palette)
    assert wide.shape[1] > 200 and (wide[:480, :60] == 0).all() and (wide[:480, 60:] == 255).all()
    entries = [(k, VOC.names[k]) for k in range(1, 21)]
    many = pictures.captioned(np.zeros((360, 480, 3), np.uint8), entries, VOC.palette)
    assert many.shape[1] == 480 and many.shape[0] > 360 + 5 * 24
    colours = {tuple(colour) for colour in many[360:].reshape(-1, 3).tolist()}
    assert all(tuple(VOC.palette[3 * k:3 * k + 3]) in colours for k in range(1, 21))


# ---------------------------------------------------------------- README

def test_the_readmes_six_lines_run(weights, photo, tmp_path, monkeypatch):
    text = (REPO / 'README.md').read_text(encoding='utf-8')
    code, = re.findall(r'((?:^    .*\n)*^    import predict\n(?:^    .*\n)*)', text, re.MULTILINE)
    lines = [line[4:] for line in code.splitlines()]
    assert len(lines) <= 6
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights.deeplab, 'segmentation.pth')
    shutil.copy(photo, 'photo.jpg')
    names = {}
    exec('\n'.join(lines), names)
    height, width = read_image(photo).shape[:2]
    assert names['mask'].shape == (height, width) and names['mask'].dtype == np.uint8
    assert names['scores'].shape == (21, height, width) and names['scores'].dtype == np.float32

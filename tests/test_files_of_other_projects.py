"""Weights, CAMs and labels of other projects: wrappers, extras, web pages, SEAM, deep stems, IRN's layouts."""
import argparse
import collections
import pathlib
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main
from torchvision.models import resnet101

from data.cams import read_cams
from data.labels import labels_of, read_labels
from engine import files
from engine.errors import UserError
from network import deeplab
from network.resnet101 import stem_of, with_our_stem
from network.weights import read_weights
from voc12.classes import VOC

STATE = {'conv1a.weight': torch.arange(4.).view(2, 2), 'fc8.bias': torch.ones(1)}


def write(path, value, **options):
    torch.save(value, path, **options)
    return path


def assert_is_state(read):
    assert read.keys() == STATE.keys() and all(torch.equal(read[key], STATE[key]) for key in STATE)


def prefixed(prefix):
    return {prefix + key: value for key, value in STATE.items()}


class Options(dict):
    """A dict of a framework's own kind, as Lightning's hyperparameters are."""


class History:
    """Pickles as an array in an object, as MMEngine's history of the losses does."""

    def __init__(self):
        self.values = np.ones(3)


class Command:
    """Its pickle makes a folder when it is read by pickle.load."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.mkdir, (self.path,)


# ---------------------------------------------------------------- weights

@pytest.mark.parametrize('key', ['state_dict', 'model', 'model_state_dict', 'net', 'network', 'weights', 'ema', 7])
def test_the_state_dict_may_lie_under_any_single_key(tmp_path, key):
    others = {'epoch': torch.tensor(3), 'optimizer': {'state': {0: {'m': torch.ones(2, 2)}}, 'param_groups': [{}]},
              'random': {'torch': torch.get_rng_state()}}
    assert_is_state(read_weights(write(tmp_path / 'x.pth', {key: STATE, **others})))


def test_of_several_state_dicts_the_usual_key_counts_and_no_other_is_guessed(tmp_path):
    both = {'ema': prefixed('other.'), 'state_dict': STATE}
    assert_is_state(read_weights(write(tmp_path / 'x.pth', both)))
    with pytest.raises(UserError, match=r'holds several state dicts \(student, teacher\)'):
        read_weights(write(tmp_path / 'x.pth', {'student': STATE, 'teacher': STATE}))


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'model.',
                                    'module.module.', 'model._orig_mod.', '_orig_mod.net.'])
def test_the_words_of_wrappers_are_taken_off(tmp_path, prefix):
    assert_is_state(read_weights(write(tmp_path / 'x.pth', {'state_dict': prefixed(prefix)})))


def test_a_part_of_a_network_may_be_compiled_or_called_model(tmp_path):
    names = {'backbone._orig_mod.conv1a.weight': 'backbone.conv1a.weight', 'model.x.weight': 'model.x.weight'}
    read = read_weights(write(tmp_path / 'x.pth', dict.fromkeys(names, torch.ones(1))))
    assert list(read) == list(names.values())


EXTRAS = {'numbers': {'epoch': 3, 'best': 0.5, 'note': 'x', 'none': None, 'list': [1, 2]},
          'namespace': {'args': argparse.Namespace(lr=0.1, path=pathlib.Path('x'))},
          'numpy': {'best': np.float64(3), 'array': np.arange(3), 'half': [np.float32(1)]},
          'frameworks': {'hyper_parameters': Options(a=1), 'hub': {'x': History()},
                         'default': collections.defaultdict(int, a=1)}}


@pytest.mark.parametrize('extra', EXTRAS)
@pytest.mark.parametrize('beside', [True, False], ids=['beside', 'among'])
def test_extras_are_passed_over(tmp_path, extra, beside):
    value = {'state_dict': STATE, **EXTRAS[extra]} if beside else {**STATE, **EXTRAS[extra]}
    assert_is_state(read_weights(write(tmp_path / 'x.pth', value)))


@pytest.mark.parametrize('extra', ['numbers', 'namespace', 'numpy'])
def test_extras_are_passed_over_in_files_of_the_older_format(tmp_path, extra):
    path = write(tmp_path / 'x.pth', {'net': STATE, **EXTRAS[extra]}, _use_new_zipfile_serialization=False)
    assert_is_state(read_weights(path))


@pytest.mark.parametrize('zipped', [True, False])
def test_no_code_of_a_checkpoint_runs(tmp_path, zipped):
    value = {'state_dict': STATE, 'extra': Command(tmp_path / 'made')}
    path = write(tmp_path / 'x.pth', value, _use_new_zipfile_serialization=zipped)
    try:
        assert_is_state(read_weights(path))
    except UserError:
        pass  # refused is as good as passed over
    assert not (tmp_path / 'made').exists()


def test_a_whole_network_is_named_as_such(tmp_path):
    with pytest.raises(UserError, match='holds a whole network, not its state dict; save its state_dict'):
        read_weights(write(tmp_path / 'x.pth', torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))))


@pytest.mark.parametrize('suffix', ['pth', 'params'])
@pytest.mark.parametrize('text, words', [
    ('<!DOCTYPE html>\n<html><head><title>Google Drive - Virus scan warning', 'is a web page, not weights'),
    ('\n  <html lang="en">', 'is a web page, not weights'),
    ('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n', 'is a pointer of git LFS')])
def test_what_a_download_left_in_place_of_weights_is_named(tmp_path, suffix, text, words):
    (tmp_path / f'x.{suffix}').write_text(text)
    with pytest.raises(UserError, match=words):
        read_weights(tmp_path / f'x.{suffix}')


# ---------------------------------------------------------------- SEAM, wrapped weights: from end to end

def test_seams_own_weights_infer_and_give_the_same_cams(toy, tmp_path):
    net = torch.load(toy.net, weights_only=True)
    del net['fc_proj.weight']
    compiled = {f'module._orig_mod.{key}': value for key, value in net.items()}
    write(tmp_path / 'seam.pth', net)
    write(tmp_path / 'wrapped.pth', {'state_dict': compiled, 'args': argparse.Namespace(lr=1), 'best': np.float64(1)})
    for name, weights in (('own', toy.net), ('seam', tmp_path / 'seam.pth'), ('wrapped', tmp_path / 'wrapped.pth')):
        run_main('contrast_infer', '--weights', weights, '--voc12_root', toy.root, '--cls_labels', toy.labels,
                 '--infer_list', toy.val, '--out_cam', tmp_path / name, '--num_workers', 0, '--scales', 1)
    for path in (tmp_path / 'own').glob('*.npy'):
        for name in ('seam', 'wrapped'):
            for ours, theirs in zip(read_cams(path, 20), read_cams(tmp_path / name / path.name, 20)):
                np.testing.assert_array_equal(ours, theirs)


def test_what_inference_needs_may_not_be_missing(toy, tmp_path, capsys):
    net = torch.load(toy.net, weights_only=True)
    del net['f9.weight']
    error = assert_refused(capsys, 'contrast_infer', '--weights', write(tmp_path / 'x.pth', net), '--voc12_root',
                           toy.root, '--cls_labels', toy.labels, '--infer_list', toy.val, '--out_cam', tmp_path / 'cam')
    assert 'lacks 1 of' in error and 'f9' in error


# ---------------------------------------------------------------- deep stems

@pytest.fixture(scope='module')
def body():
    """ResNet-101's tensors without stem and classifier, on PyTorch's meta device."""
    with torch.device('meta'):
        state = resnet101().state_dict()
    return {key: value for key, value in state.items() if not key.startswith(('conv1.', 'bn1.', 'fc.'))}


def stem(convolutions, norms, widths, prefix=''):
    """The tensors of a deep stem, on the meta device. widths: channels of the three convolutions."""
    found = {}
    for read, write_, convolution, norm in zip((3, *widths), widths, convolutions, norms):
        found[f'{prefix}{convolution}.weight'] = torch.empty(write_, read, 3, 3, device='meta')
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            found[f'{prefix}{norm}.{name}'] = torch.empty(write_, device='meta')
    return found


OURS = ('conv1.0', 'conv1.3', 'conv1.6'), ('conv1.1', 'conv1.4', 'bn1')
LAYOUTS = {'TorchSeg': OURS, 'MMSegmentation': (('stem.0', 'stem.3', 'stem.6'), ('stem.1', 'stem.4', 'stem.7')),
           'semseg': (('conv1', 'conv2', 'conv3'), ('bn1', 'bn2', 'bn3'))}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('widths', [(32, 32, 64), (64, 64, 128)])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_every_deep_stem_finds_its_place(body, layout, widths, prefix):
    if widths[-1] == 128:
        body = body | {key: torch.empty(len(body[key]), 128, 1, 1, device='meta')
                       for key in ('layer1.0.conv1.weight', 'layer1.0.downsample.0.weight')}
    state = {prefix + key: value for key, value in body.items()} | stem(*LAYOUTS[layout], widths, prefix)
    state = with_our_stem(state)
    assert stem_of(state, prefix) == widths
    options = deeplab.options_of('deeplabv2_resnet101', state)
    with torch.device('meta'):
        net = deeplab.build('deeplabv2_resnet101', VOC.num_classes, **options)
    own = {key: value for key, value in net.backbone.state_dict().items() if 'num_batches' not in key}
    assert own.keys() == {key.removeprefix(prefix) for key in state if 'num_batches' not in key}
    assert all(value.shape == state[prefix + key].shape for key, value in own.items())


def test_the_order_in_a_deep_stem_is_kept(body):
    state = body | stem(*LAYOUTS['semseg'], (64, 64, 128))
    renamed = with_our_stem(state)
    for theirs, ours in (('conv1', 'conv1.0'), ('conv2', 'conv1.3'), ('conv3', 'conv1.6'), ('bn1', 'conv1.1'),
                         ('bn3', 'bn1')):
        assert renamed[f'{ours}.weight'] is state[f'{theirs}.weight']


# ---------------------------------------------------------------- CAMs

MAPS = np.random.default_rng(0).random((2, 6, 8), np.float32)


@pytest.mark.parametrize('keys, maps', [
    (np.array([3, 14]), MAPS), (torch.tensor([3, 14]), MAPS), (torch.tensor([3, 14]), torch.from_numpy(MAPS)),
    (torch.arange(15)[3::11], torch.from_numpy(MAPS.copy().transpose(0, 2, 1).copy()).permute(0, 2, 1)),
    (torch.tensor([14, 3], dtype=torch.int32), torch.from_numpy(MAPS[::-1].copy()))],
    ids=['arrays', 'tensor keys', 'tensors', 'strided', 'another order'])
def test_cams_of_irn_are_read(tmp_path, keys, maps):
    np.save(tmp_path / 'x.npy', {'keys': keys, 'cam': torch.ones(2, 2, 2), 'high_res': maps})
    present, cams = read_cams(tmp_path / 'x.npy', VOC.num_foreground, (6, 8))
    assert present.tolist() == [3, 14]
    np.testing.assert_array_equal(cams, MAPS)


@pytest.mark.parametrize('value, words', [
    ({'keys': np.array([1]), 'cam': MAPS[:1]}, r"IRN's layout \(keys, cam\) without 'high_res'"),
    ({'keys': np.array([1]), 'high_res': MAPS}, "its 1 keys do not fit high_res of shape"),
    ({'keys': np.array([1, 1]), 'high_res': MAPS}, 'do not fit'),
    ({'keys': np.array([1, 20]), 'high_res': MAPS}, 'do not fit 20 classes'),
    ({'keys': torch.ones(2).bfloat16(), 'high_res': MAPS}, 'not a .npy file this project reads')])
def test_cams_of_irn_that_do_not_fit_are_refused(tmp_path, value, words):
    np.save(tmp_path / 'x.npy', value)
    with pytest.raises(UserError, match=words):
        read_cams(tmp_path / 'x.npy', VOC.num_foreground)


def test_damaged_tensors_are_users_errors_and_take_no_memory(tmp_path):
    np.save(tmp_path / 'x.npy', {'keys': torch.tensor([3, 14]), 'high_res': torch.from_numpy(MAPS)})
    whole, rng, read = (tmp_path / 'x.npy').read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(100, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        (tmp_path / 'x.npy').write_bytes(data)
        tracemalloc.start()
        try:
            read_cams(tmp_path / 'x.npy', VOC.num_foreground)
            read += 1
        except UserError:
            pass
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()
    assert 20 < read < 380


def test_other_names_of_torch_stay_refused(tmp_path):
    with open(tmp_path / 'x.npy', 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': ()})
        file.write(pickle.dumps(torch.load))
    with pytest.raises(UserError, match='neither an array nor a plain container'):
        files.read_npy(tmp_path / 'x.npy')


# ---------------------------------------------------------------- labels

def labels_file(path, keys):
    """A file with the label of class k for the k-th of the keys."""
    np.save(path, {key: np.eye(VOC.num_foreground, dtype=np.float32)[k] for k, key in enumerate(keys)})
    return read_labels(path, VOC.num_foreground)


def test_labels_may_name_images_by_whole_numbers(tmp_path):
    labels = labels_file(tmp_path / 'x.npy', [2007000032, np.int64(2011003271), 9])
    got = labels_of(['2011_003271', '2007_000032', '000000000009'], labels, 'x.npy')
    assert got.argmax(1).tolist() == [1, 0, 2]


def test_an_id_that_is_there_comes_before_its_number(tmp_path):
    labels = labels_file(tmp_path / 'x.npy', [2007000032, '2007_000032'])
    assert labels_of(['2007_000032'], labels, 'x.npy').argmax(1).tolist() == [1]


def test_a_number_that_fits_two_ids_is_refused(tmp_path):
    labels = labels_file(tmp_path / 'x.npy', [12])
    with pytest.raises(UserError, match='the label of 12 fits 2 ids'):
        labels_of(['1_2', '12'], labels, 'x.npy')
    with pytest.raises(UserError, match='no label for cat'):
        labels_of(['cat'], labels, 'x.npy')

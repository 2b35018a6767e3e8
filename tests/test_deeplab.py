"""The three DeepLabs against the published implementation: keys, features, logits, stems, one training step."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import GOLDEN, filled, golden
from torch import nn

from network import deeplab
from network.layout import to_dense
from network.resnet101 import ResNet101
from tool.metrics import IGNORE
from voc12.classes import VOC


@pytest.mark.parametrize('name', deeplab.NAMES)
def test_keys_and_shapes_are_the_published_ones(name):
    manifest = json.loads((GOLDEN / 'keys' / f'manifest_{name}.json').read_text())
    with torch.device('meta'):  # shapes only
        net = deeplab.build(name, VOC.num_classes)
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == manifest


def stages(backbone, x):
    """The maps that the golden files measure: conv4, conv5, conv6 of ResNet-38, layer1 to layer4 of ResNet-101."""
    first = []
    if isinstance(backbone, ResNet101):  # no head reads its layer1
        backbone.layer1.register_forward_hook(lambda _, inputs, out: first.append(to_dense(out)))
    levels = backbone.features(x)
    return [*first, *levels.values()]


@pytest.mark.wide
@pytest.mark.parametrize('name', deeplab.NAMES)
def test_features_and_logits_are_the_published_ones(name):
    case = golden(f'{name}_97x129.npz')
    net = filled(deeplab.build, name, VOC.num_classes)
    x = torch.from_numpy(case['x'])
    with torch.no_grad():
        logits = net(x)[:, :, ::4, ::4].numpy()
        features = stages(net.backbone, x)
    np.testing.assert_allclose([f.mean().item() for f in features], case['feature_mean'], rtol=1e-4)
    np.testing.assert_allclose([f.abs().mean().item() for f in features], case['feature_abs'], rtol=1e-4)
    assert np.abs(logits - case['logits']).max() < 1e-4 * np.abs(case['logits']).max()


def test_dilations_of_resnet101_are_the_published_ones():
    with torch.device('meta'):
        net = deeplab.build('deeplabv1_resnet101', VOC.num_classes).backbone
    dilations = {name: [block.conv2.dilation[0] for block in getattr(net, name)]
                 for name in ('layer2', 'layer3', 'layer4')}
    assert dilations == {'layer2': [1] * 4, 'layer3': [1] + [2] * 22, 'layer4': [2, 4, 4]}


def test_batchnorm_has_its_momentum_and_convolutions_alone_are_trained():
    momenta = {}
    for name in deeplab.NAMES:
        with torch.device('meta'):
            net = deeplab.build(name, VOC.num_classes, bn_momentum=3e-4)
        norms = [(key, m) for key, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
        momenta[name] = ({m.momentum for key, m in norms if key.startswith('backbone')},
                         {m.momentum for key, m in norms if not key.startswith('backbone')})
        trained = {id(p) for p in net.parameters() if p.requires_grad}
        assert trained == {id(p) for m in net.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()}
        assert all(m.training for m in net.train().modules())  # no statistics are frozen
    assert momenta == {'deeplabv1_resnet38': ({3e-4}, {3e-4}), 'deeplabv1_resnet101': ({0.1}, {3e-4}),
                       'deeplabv2_resnet101': ({0.1}, {3e-4})}


@pytest.mark.wide
def test_weights_of_torchvision_load_in_full():
    state = torchvision.models.resnet101().state_dict()
    del state['fc.weight'], state['fc.bias']  # ImageNet's classifier
    assert deeplab.options_of('deeplabv2_resnet101', state) == {'stem': None}
    net = deeplab.build('deeplabv2_resnet101', VOC.num_classes, stem=None)
    net.backbone.load_state_dict(state)  # strict: every tensor finds its place, none is missing
    assert torch.equal(net.backbone.layer4[2].conv3.weight, state['layer4.2.conv3.weight'])


def test_width_and_stem_come_from_the_weights():
    narrow = deeplab.build('deeplabv1_resnet38', VOC.num_classes, width=1 / 8)
    assert narrow.conv_fov.weight.shape[:2] == (64, 512)
    for state in (narrow.state_dict(), narrow.backbone.state_dict()):
        assert deeplab.options_of('deeplabv1_resnet38', state) == {'width': 1 / 8}
    with torch.device('meta'):
        deep = deeplab.build('deeplabv1_resnet101', VOC.num_classes)
    assert deeplab.options_of('deeplabv1_resnet101', deep.state_dict()) == {'stem': (64, 64, 128)}
    with pytest.raises(KeyError):
        deeplab.options_of('deeplabv1_resnet101', narrow.state_dict())
    with pytest.raises(ValueError):
        deeplab.build('deeplabv2_resnet38', VOC.num_classes)


@pytest.mark.parametrize('name', [pytest.param(name, marks=() if name.endswith('38') else pytest.mark.wide)
                                  for name in deeplab.NAMES])
def test_training_reduces_the_loss_on_a_fixed_batch(name):
    # Affordable on a CPU: ResNet-38 at width 1/8 (its layers and dilations unchanged); the two ResNet-101 have no width
    # factor, and stop as soon as the loss is lower, which must happen within 20 steps.
    torch.manual_seed(0)
    net = deeplab.build(name, VOC.num_classes, **({'width': 1 / 8} if name.endswith('38') else {})).train()
    x = torch.randn(2, 3, 97, 97)
    labels = torch.randint(0, VOC.num_classes, (2, 97, 97))
    labels[:, :10] = IGNORE
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    losses = []
    while len(losses) < 20:
        loss = F.cross_entropy(net(x), labels, ignore_index=IGNORE)
        losses.append(loss.item())
        if losses[-1] < 0.95 * losses[0]:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0], losses

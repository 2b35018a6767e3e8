"""DeepLab v1 and v2 with the published state-dict keys. METHOD 1.6; Chen et al., arXiv 1412.7062 and 1606.00915."""
import torch
import torch.nn.functional as F
from torch import nn

from network import backbones
from network.dropout import Dropout
from network.names import PUBLISHED, RESNETS, STRIDES, TIMM, known
from network.resnet38d import ResNet38
from network.resnet101 import DEEP_STEM, stem_of
from network.width import scaled, width_of
from tool.cam import resize

NAMES = ('deeplabv1_resnet38', 'deeplabv1_resnet101', 'deeplabv2_resnet101')  # the published ones


def is_known(name):
    """Whether `build` knows a name: a published one, or a version and any other backbone, 'deeplabv1_timm:NAME'."""
    version, _, backbone = name.partition('_')
    return name in NAMES or (version in ('deeplabv1', 'deeplabv2') and known(backbone) and backbone != PUBLISHED)


def rate_at(stride, published):
    """The rate of a dilated convolution of a head at a stride that sees as far as the published one at stride 8."""
    return published * STRIDES[0] // stride


class ASPP(nn.Module):
    """Four dilated 3×3 convolutions (rates 6, 12, 18, 24 at stride 8) and the image's mean, each to `channels`, then
    fused."""

    rates = (6, 12, 18, 24)

    def __init__(self, in_channels, channels, stride=STRIDES[0]):
        super().__init__()
        for i, rate in enumerate((rate_at(stride, rate) for rate in self.rates), 1):
            conv = nn.Conv2d(in_channels, channels, 3, padding=rate, dilation=rate, bias=False)
            setattr(self, f'branch{i}', nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        self.branch5_conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.branch5_bn = nn.BatchNorm2d(channels)
        self.conv_cat = nn.Sequential(
            nn.Conv2d((len(self.rates) + 1) * channels, channels, 1, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True), Dropout(0.5))

    def forward(self, x):
        """x (N, in_channels, h, w) → (N, channels, h, w).

        In training N > 1 is needed: the BatchNorm of the mean sees one value an image.
        """
        branches = [getattr(self, f'branch{i}')(x) for i in range(1, len(self.rates) + 1)]
        mean = F.relu(self.branch5_bn(self.branch5_conv(x.mean((2, 3), keepdim=True))))
        return self.conv_cat(torch.cat(branches + [mean.expand(-1, -1, *x.shape[2:])], 1))


class DeepLab(nn.Module):
    """What the versions share: a backbone, `head(features)` → logits at its stride, the way back to the image's size.

    The head reads the backbone's high level. Only convolutions are to be trained: the
    affine parameters of every BatchNorm have requires_grad off, while its statistics are those of the batch and keep
    updating (METHOD 7.1).
    """

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    @property
    def from_scratch(self):
        """Names of the layers for which no weights are pretrained: all but the backbone."""
        return [name for name, _ in self.named_children() if name != 'backbone']

    def prepare(self, bn_momentum):
        """Initialise the head, set the BatchNorm momentum of head and ResNet-38, fix every BatchNorm's affine."""
        head = [m for name in self.from_scratch for m in getattr(self, name).modules()]
        for module in head:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        for module in self.modules() if isinstance(self.backbone, ResNet38) else head:
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        return self

    def forward(self, x):
        """Image x (N, 3, H, W), ImageNet-normalised → logits (N, num_classes, H, W)."""
        return resize(self.head(self.backbone.features(x)['high']), x.shape[2:])


class DeepLabV1(DeepLab):
    """DeepLab-LargeFOV: one 3×3 convolution of dilation 12 at stride 8, then 1×1. width scales the head's channels."""

    def __init__(self, backbone, in_channels, num_classes, width=1.0):
        super().__init__(backbone)
        channels = scaled(512, width)
        rate = rate_at(backbone.stride, 12)
        self.conv_fov = nn.Conv2d(in_channels, channels, 3, padding=rate, dilation=rate, bias=False)
        self.bn_fov = nn.BatchNorm2d(channels)
        self.conv_fov2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn_fov2 = nn.BatchNorm2d(channels)
        self.dropout1 = Dropout(0.5)
        self.cls_conv = nn.Conv2d(channels, num_classes, 1)

    def head(self, x):
        """Features (N, in_channels, h, w) → logits (N, num_classes, h, w)."""
        x = F.relu(self.bn_fov(self.conv_fov(x)))
        x = F.relu(self.bn_fov2(self.conv_fov2(x)))
        return self.cls_conv(self.dropout1(x))


class DeepLabV2(DeepLab):
    """DeepLab with atrous spatial pyramid pooling, the branches concatenated and not, as in the paper, summed."""

    def __init__(self, backbone, in_channels, num_classes):
        super().__init__(backbone)
        self.aspp = ASPP(in_channels, 256, backbone.stride)
        self.dropout1 = Dropout(0.5)
        self.cls_conv = nn.Conv2d(256, num_classes, 1)

    def head(self, x):
        """As DeepLabV1.head."""
        return self.cls_conv(self.dropout1(self.aspp(x)))


def build(name, num_classes, width=1.0, stem=DEEP_STEM, bn_momentum=3e-4, stride=STRIDES[0]):
    """A DeepLab by name (is_known), head kaiming-initialised, backbone at random.

    width: factor on the channels of ResNet-38 and its head. stem: of a ResNet of torchvision, as its class takes it.
    bn_momentum: of the BatchNorm statistics in the head and in ResNet-38; other backbones keep their own, ResNet-101
    PyTorch's 0.1. stride: of the backbone's features, 8 alone for ResNet-38.
    Raises ValueError for another name, for a width or a stride that the backbone has not; UserError as
    backbones.build.
    """
    if not is_known(name):
        raise ValueError(f'unknown network {name!r}: one of {", ".join(NAMES)}')
    version, _, base = name.partition('_')
    if base == PUBLISHED:
        if stride != STRIDES[0]:
            raise ValueError(f'{name} has stride {STRIDES[0]} alone')
        backbone = ResNet38(width)
        return DeepLabV1(backbone, backbone.channels['high'], num_classes, width).prepare(bn_momentum)
    if width != 1:
        raise ValueError(f'{name} has no width factor')
    backbone = backbones.TORCHVISION[base](stem, stride) if base in RESNETS else backbones.build(base, stride)
    version = DeepLabV1 if version == 'deeplabv1' else DeepLabV2
    return version(backbone, backbone.channels['high'], num_classes).prepare(bn_momentum)


def options_of(name, state_dict):
    """What of `build`'s options the weights decide: {'width': …} for ResNet-38, {'stem': …} for torchvision's ResNets.

    state_dict: the backbone's own keys, or those of a whole DeepLab. Raises KeyError where it is neither.
    """
    prefix, base = backbones.prefix_in(state_dict), name.partition('_')[2]
    if base.startswith(TIMM):
        return {}
    if base == PUBLISHED:
        return {'width': width_of(state_dict, prefix + 'conv1a.weight')}
    if not any(key.startswith(prefix + 'layer4.') for key in state_dict):
        raise KeyError(prefix + 'layer4')
    return {'stem': stem_of(state_dict, prefix)}


def name_of(state_dict):
    """The name of the network that a DeepLab's state dict belongs to, with `timm` for every network of timm; None where
    it is no DeepLab's."""
    if 'cls_conv.weight' not in state_dict:
        return None
    version = 'deeplabv2' if 'aspp.branch1.0.weight' in state_dict else 'deeplabv1'
    signs = {'conv1a.weight': 'resnet38', 'layer3.6.conv1.weight': 'resnet101', 'layer4.0.conv1.weight': 'resnet50'}
    return f'{version}_' + next((base for sign, base in signs.items() if f'backbone.{sign}' in state_dict), 'timm')

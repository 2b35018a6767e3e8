"""ResNet-101 and ResNet-50 at stride 8 or 16, with the deep or the plain stem. METHOD 1.6."""
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from network.convention import at_one_stride
from network.layout import to_dense, to_mkldnn

DEEP_STEM = (64, 64, 128)
# Where others keep the parts of a deep stem: MMSegmentation and the repositories of PSPNet (semseg).
OTHER_STEMS = (
    {'stem.0': 'conv1.0', 'stem.1': 'conv1.1', 'stem.3': 'conv1.3', 'stem.4': 'conv1.4', 'stem.6': 'conv1.6',
     'stem.7': 'bn1'},
    {'conv1': 'conv1.0', 'bn1': 'conv1.1', 'conv2': 'conv1.3', 'bn2': 'conv1.4', 'conv3': 'conv1.6', 'bn3': 'bn1'})


class ResNet101(ResNet):
    """torchvision's ResNet-101 without its classifier, layer3 and layer4 dilated by 2 and 4.

    The first block of either layer keeps the dilation of the layer before (1 and 2); no multi-grid.
    stem: the channels of the "deep stem" of three 3×3 convolutions; published: 3→64→64→128. None takes torchvision's
    7×7 convolution, so that its ImageNet weights fit. stride: pixels of the image per cell of every level; at 16,
    layer3 has its own stride and layer4 dilation 2. not_trained: names of the parameters that Steps 1 and 2 leave as
    they are, those at stride 2.
    """

    blocks = 3, 4, 23, 3  # of layer1 to layer4

    def __init__(self, stem=DEEP_STEM, stride=8):
        super().__init__(Bottleneck, list(self.blocks), replace_stride_with_dilation=[False, stride == 8, True])
        del self.avgpool, self.fc
        if stem:
            self._deepen_stem(*stem)
        self.width, self.stride = 1.0, stride  # it has no width factor
        self.channels = {'low': 512, 'middle': 1024, 'high': 2048}  # of the levels that `features` returns
        self.not_trained = [name for name, _ in self.named_parameters() if name.startswith(('conv1.', 'bn1.'))]

    def _deepen_stem(self, first, second, third):
        """Replace the stem, and layer1, whose first block must read `third` channels in place of 64."""
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1, bias=False), nn.BatchNorm2d(second), nn.ReLU(inplace=True),
            nn.Conv2d(second, third, 3, padding=1, bias=False))
        self.bn1 = nn.BatchNorm2d(third)
        self.inplanes, self.dilation = third, 1  # the state in which torchvision's constructor makes layer1
        self.layer1 = self._make_layer(Bottleneck, 64, 3)
        for conv in [m for part in (self.conv1, self.layer1) for m in part.modules() if isinstance(m, nn.Conv2d)]:
            nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')  # as torchvision does the others

    def features(self, x):
        """Image x (N, 3, H, W), ImageNet-normalised → {'low', 'middle', 'high'}: layer2, layer3, layer4, at one stride.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(to_mkldnn(x, self)))))
        low = self.layer2(self.layer1(x))
        middle = self.layer3(low)
        high = self.layer4(middle)
        return at_one_stride([to_dense(x) for x in (low, middle, high)])

    def forward(self, x):
        """As features. Overrides torchvision's forward, whose classifier was removed."""
        return self.features(x)


class ResNet50(ResNet101):
    """The same with the 16 blocks of ResNet-50."""

    blocks = 3, 4, 6, 3


def stem_of(state_dict, prefix=''):
    """The stem of a ResNet-101 state dict, for ResNet101; None where it has no three convolutions.

    prefix: of its keys, for example 'backbone.'.
    """
    convolutions = [state_dict.get(f'{prefix}conv1.{k}.weight') for k in (0, 3, 6)]
    return None if any(weight is None for weight in convolutions) else tuple(len(weight) for weight in convolutions)


def with_our_stem(state_dict):
    """A state dict with the deep stem of a ResNet, bare or as `backbone.`, under our names; any other as it is."""
    for prefix in ('', 'backbone.'):
        for names in OTHER_STEMS:
            layers = {prefix + theirs: prefix + ours for theirs, ours in names.items()}
            if all(f'{layer}.weight' in state_dict for layer in (*layers, f'{prefix}layer4.0.conv1')):
                return {_renamed(key, layers): value for key, value in state_dict.items()}
    return state_dict


def _renamed(key, layers):
    """A tensor's name, its layer replaced as `layers` say."""
    layer, _, name = key.rpartition('.')
    return f'{layers.get(layer, layer)}.{name}'

"""ResNet-101 at stride 8 for DeepLab, with the deep or the plain stem. METHOD 1.6."""
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from network.layout import to_dense, to_mkldnn


class ResNet101(ResNet):
    """torchvision's ResNet-101 without its classifier, layer3 and layer4 dilated by 2 and 4.

    The first block of either layer keeps the dilation of the layer before (1 and 2); no multi-grid.
    plain_stem: True takes torchvision's 7×7 convolution, so that its ImageNet weights fit;
    False the published "deep stem" of three 3×3 convolutions, 3→64→64→128.
    """

    def __init__(self, plain_stem=False):
        super().__init__(Bottleneck, [3, 4, 23, 3], replace_stride_with_dilation=[False, True, True])
        del self.avgpool, self.fc
        if not plain_stem:
            self._deepen_stem()
        self.width, self.stride = 1.0, 8  # it has no width factor
        self.channels = {'low': 512, 'middle': 1024, 'high': 2048}  # of the levels that `features` returns

    def _deepen_stem(self):
        """Replace the stem, and layer1, whose first block must read 128 channels in place of 64."""
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, 3, padding=1, bias=False))
        self.bn1 = nn.BatchNorm2d(128)
        self.inplanes, self.dilation = 128, 1  # the state in which torchvision's constructor makes layer1
        self.layer1 = self._make_layer(Bottleneck, 64, 3)
        for conv in [m for part in (self.conv1, self.layer1) for m in part.modules() if isinstance(m, nn.Conv2d)]:
            nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')  # as torchvision does the others

    def features(self, x):
        """Image x (N, 3, H, W), ImageNet-normalised → {'low', 'middle', 'high'}: layer2, layer3, layer4, stride 8."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(to_mkldnn(x, self)))))
        low = self.layer2(self.layer1(x))
        middle = self.layer3(low)
        high = self.layer4(middle)
        return {'low': to_dense(low), 'middle': to_dense(middle), 'high': to_dense(high)}

    def forward(self, x):
        """As features. Overrides torchvision's forward, whose classifier was removed."""
        return self.features(x)


def has_plain_stem(state_dict):
    """Whether a ResNet-101 state dict (keys with or without a prefix) has the plain 7×7 stem."""
    return any(key.endswith('conv1.weight') and tuple(value.shape[2:]) == (7, 7) for key, value in state_dict.items())

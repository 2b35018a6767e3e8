"""ResNet-38, wide and dilated ("ResNet-38d"): the backbone of Steps 1 and 2 and of one DeepLab. METHOD 1.1."""
import torch.nn.functional as F
from torch import nn

from network.dropout import Dropout2d
from network.fixed_norm import BatchNorm2d, fix_batch_norms
from network.layout import to_dense, to_mkldnn
from network.width import scaled

# The residual blocks in forward order.
BLOCKS = ('b2', 'b2_1', 'b2_2', 'b3', 'b3_1', 'b3_2', 'b4', 'b4_1', 'b4_2', 'b4_3', 'b4_4', 'b4_5', 'b5', 'b5_1',
          'b5_2', 'b6', 'b7')
LEVEL_BEFORE = {'b5': 'low', 'b6': 'middle'}  # the activated input of this block is that level of the features


class ResBlock(nn.Module):
    """Pre-activation block of two 3×3 convolutions.

    The shortcut is the identity, or `conv_branch1` on the *activated* input where the shape changes.
    """

    def __init__(self, in_channels, mid_channels, out_channels, stride=1, first_dilation=None, dilation=1):
        super().__init__()
        first_dilation = first_dilation or dilation
        self.bn_branch2a = BatchNorm2d(in_channels)
        self.conv_branch2a = nn.Conv2d(in_channels, mid_channels, 3, stride, padding=first_dilation,
                                       dilation=first_dilation, bias=False)
        self.bn_branch2b1 = BatchNorm2d(mid_channels)
        self.conv_branch2b1 = nn.Conv2d(mid_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv_branch1 = None
        if in_channels != out_channels or stride != 1:
            self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x):
        """x (N, C, H, W) → the block's output and its activated input, which two blocks give to the heads."""
        activated = F.relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(activated)
        y = self.conv_branch2a(activated)
        y = self.conv_branch2b1(F.relu(self.bn_branch2b1(y)))
        return shortcut + y, activated


class BottleneckBlock(nn.Module):
    """Pre-activation bottleneck (1×1, dilated 3×3, 1×1) with spatial dropout; always a convolved shortcut."""

    def __init__(self, in_channels, out_channels, stride=1, dilation=1, dropout=0.):
        super().__init__()
        quarter, half = max(1, out_channels // 4), max(1, out_channels // 2)
        self.bn_branch2a = BatchNorm2d(in_channels)
        self.conv_branch2a = nn.Conv2d(in_channels, quarter, 1, stride, bias=False)
        self.bn_branch2b1 = BatchNorm2d(quarter)
        self.dropout_2b1 = Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = BatchNorm2d(half)
        self.dropout_2b2 = Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(half, out_channels, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x):
        """As ResBlock.forward."""
        activated = F.relu(self.bn_branch2a(x))
        y = self.conv_branch2a(activated)
        # Dropout before the ReLU gives the same numbers, and of the two maps only the one after both is kept.
        y = self.conv_branch2b1(F.relu(self.dropout_2b1(self.bn_branch2b1(y))))
        y = self.conv_branch2b2(F.relu(self.dropout_2b2(self.bn_branch2b2(y))))
        return self.conv_branch1(activated) + y, activated


class ResNet38(nn.Module):
    """The backbone. `features` gives the maps that heads read; it has no head of its own.

    width: factor on every channel count (1.0: the published network; a checkpoint's width is
    conv1a.weight.shape[0] / 64). Everything is trainable here; Steps 1 and 2 freeze parts (FrozenResNet38).
    channels: those of the levels that `features` returns. stride: pixels of the image per cell of every level.
    """

    def __init__(self, width=1.0):
        super().__init__()
        self.width = width
        c64, c128, c256, c512, c1024, c2048, c4096 = (scaled(64 * 2 ** i, width) for i in range(7))
        self.conv1a = nn.Conv2d(3, c64, 3, padding=1, bias=False)
        self.b2 = ResBlock(c64, c128, c128, stride=2)
        self.b2_1 = ResBlock(c128, c128, c128)
        self.b2_2 = ResBlock(c128, c128, c128)
        self.b3 = ResBlock(c128, c256, c256, stride=2)
        self.b3_1 = ResBlock(c256, c256, c256)
        self.b3_2 = ResBlock(c256, c256, c256)
        self.b4 = ResBlock(c256, c512, c512, stride=2)
        for i in range(1, 6):
            setattr(self, f'b4_{i}', ResBlock(c512, c512, c512))
        self.b5 = ResBlock(c512, c512, c1024, first_dilation=1, dilation=2)
        self.b5_1 = ResBlock(c1024, c512, c1024, dilation=2)
        self.b5_2 = ResBlock(c1024, c512, c1024, dilation=2)
        self.b6 = BottleneckBlock(c1024, c2048, dilation=4, dropout=0.3)
        self.b7 = BottleneckBlock(c2048, c4096, dilation=4, dropout=0.5)
        self.bn7 = BatchNorm2d(c4096)
        self.channels, self.stride = {'low': c512, 'middle': c1024, 'high': c4096}, 8

    def features(self, x):
        """Image x (N, 3, H, W), ImageNet-normalised → {'low', 'middle', 'high'}, sides ceil(H / 8), ceil(W / 8).

        Published names: low and middle are conv4 and conv5, the activated inputs of b5 and b6; high is conv6, the
        activated output of bn7. No head reads conv3.
        """
        features = {}
        x = self.conv1a(to_mkldnn(x, self))
        for name in BLOCKS:
            x, activated = getattr(self, name)(x)
            if name in LEVEL_BEFORE:
                features[LEVEL_BEFORE[name]] = to_dense(activated)
        features['high'] = to_dense(F.relu(self.bn7(x)))
        return features


class FrozenResNet38(ResNet38):
    """The backbone as Steps 1 and 2 train it: BatchNorm fixed everywhere, conv1a and b2* not trained.

    The parts are frozen at construction, so that an optimiser built afterwards sees it (the published network froze
    them on its first train() call, after the parameter groups had been made).
    """

    not_trained = ('conv1a', 'b2', 'b2_1', 'b2_2')

    def freeze(self):
        """Switch gradients off for the fixed parts. Subclasses call it once their own layers exist."""
        for name in self.not_trained:
            getattr(self, name).requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        fix_batch_norms(self, mode)  # running statistics, never those of the batch
        return self

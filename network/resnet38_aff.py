"""AffinityNet: features whose distance says whether two near pixels belong together. METHOD 1.5."""
import torch
import torch.nn.functional as F
from torch import nn

from network.resnet38d import FrozenResNet38
from network.width import scaled
from tool.affinity import affinities


class AffinityHead:
    """Mix-in for a backbone, as network.heads.CAMHeads is. The subclass's constructor calls add_affinity_head."""

    from_scratch = ('f8_3', 'f8_4', 'f8_5', 'f9')  # new layers: ten times the learning rate

    def add_affinity_head(self):
        """Add the layers, in the published order."""
        low, middle, high = (scaled(channels, self.width) for channels in (64, 128, 256))
        self.f8_3 = nn.Conv2d(self.channels['low'], low, 1, bias=False)
        self.f8_4 = nn.Conv2d(self.channels['middle'], middle, 1, bias=False)
        self.f8_5 = nn.Conv2d(self.channels['high'], high, 1, bias=False)
        self.f9 = nn.Conv2d(low + middle + high, low + middle + high, 1, bias=False)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def affinity_features(self, x):
        """Image x (N, 3, H, W) → the features that are compared: (N, 448 at width 1, h, w), at its stride."""
        features = self.features(x)
        levels = [F.elu(self.f8_3(features['low'])), F.elu(self.f8_4(features['middle'])),
                  F.elu(self.f8_5(features['high']))]
        return F.elu(self.f9(torch.cat(levels, 1)))

    def forward(self, x):
        """Image x (N, 3, H, W) → affinities (N, O, P) of O = 34 offsets and P first cells (tool.pairs.pair_views).

        They are float32 under mixed precision too.
        """
        return affinities(self.affinity_features(x).float())


class Net(AffinityHead, FrozenResNet38):
    """`resnet38_aff`, with the published state-dict keys.

    width: factor on the channel counts of the backbone and of the affinity features.
    """

    def __init__(self, width=1.0):
        super().__init__(width)
        self.add_affinity_head()
        self.freeze()

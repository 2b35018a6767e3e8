"""EPS without contrast: ResNet-38 and the CAM head. SPEC sections 1 and 8; EPS: Lee et al., CVPR 2021.

Published EPS has the background in the last channel; here it is channel 0, as everywhere. network.weights converts.
"""
from torch import nn

from network import PUBLISHED_CHANNELS
from network.resnet38d import FrozenResNet38


class Net(FrozenResNet38):
    """`resnet38_eps`, with the published state-dict keys. Channel 0 is the background.

    width: factor on the channel counts of the backbone. num_classes: channels of the CAM, background included.
    """

    from_scratch = ('fc8',)  # new layers: ten times the learning rate

    def __init__(self, width=1.0, num_classes=PUBLISHED_CHANNELS):
        super().__init__(width)
        self.fc8 = nn.Conv2d(self.channels['conv6'], num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        self.freeze()

    def maps(self, x):
        """Image x (N, 3, H, W) → cam (N, C, h, w), raw, at stride 8; None, None: it has no PCM and no projection."""
        return self.fc8(self.features(x)['conv6']), None, None

    def class_logits(self, x):
        """Image-level logits (N, C − 1): the spatial mean of each foreground CAM."""
        return self.maps(x)[0].mean((2, 3))[:, 1:]

    def forward(self, x):
        """The published outputs: image-level logits (N, C) and cam (N, C, h, w), both with the background first."""
        cam, _, _ = self.maps(x)
        return cam.mean((2, 3)), cam

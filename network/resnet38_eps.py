"""EPS without contrast: ResNet-38 and the CAM head. METHOD 1.4; EPS: Lee et al., CVPR 2021.

Published EPS has the background in the last channel; here it is channel 0, as everywhere. network.weights converts.
"""
from network.heads import CAMHeads
from network.resnet38d import FrozenResNet38

HEADS = {'parts': (), 'dropout': 0}  # of network.heads.CAMHeads.add_heads, on every backbone


class Net(CAMHeads, FrozenResNet38):
    """`resnet38_eps`, with the published state-dict keys. Channel 0 is the background.

    num_classes: channels of the CAM, background included. width: factor on the channel counts of the backbone.
    """

    def __init__(self, num_classes, width=1.0):
        super().__init__(width)
        self.add_heads(num_classes, **HEADS)
        self.freeze()

    def forward(self, x):
        """The published outputs: image-level logits (N, C) and cam (N, C, h, w), both with the background first."""
        cam = self.cams(x, revised=False)
        return cam.mean((2, 3)), cam

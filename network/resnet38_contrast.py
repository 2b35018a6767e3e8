"""SEAM with pixel-to-prototype contrast: ResNet-38 with CAM head, projection and PCM. METHOD 1.2, 1.3."""
from network.heads import CAMHeads
from network.resnet38d import FrozenResNet38
from tool.cam import resize

HEADS = {}  # of network.heads.CAMHeads.add_heads, on every backbone


class Net(CAMHeads, FrozenResNet38):
    """`resnet38_contrast`, with the published state-dict keys. Channel 0 is the background.

    num_classes: channels of the CAM, background included. width: factor on the channel counts of the backbone and of
    the PCM's features.
    """

    def __init__(self, num_classes, width=1.0):
        super().__init__(width)
        self.add_heads(num_classes, **HEADS)
        self.freeze()

    def forward(self, x):
        """The published outputs: cam and revised CAM at image size (N, C, H, W), features and revised CAM at stride 8.
        """
        view = self.view(x)
        return resize(view.cam, view.size), resize(view.revised, view.size), view.features, view.revised

"""EPS with pixel-to-prototype contrast: resnet38_contrast without the dropout before its heads. METHOD 1.4."""
from network import resnet38_contrast
from network.resnet38d import FrozenResNet38

HEADS = {'dropout': 0}  # of network.heads.CAMHeads.add_heads, on every backbone


class Net(resnet38_contrast.Net):
    """The network of published EPS + PPC, with the state-dict keys of `resnet38_contrast`. Channel 0 is the background.

    Published: `proj_fc` for `fc_proj`, and background last. network.weights.read_weights converts such a file.
    """

    def __init__(self, num_classes, width=1.0):
        FrozenResNet38.__init__(self, width)
        self.add_heads(num_classes, **HEADS)
        self.freeze()

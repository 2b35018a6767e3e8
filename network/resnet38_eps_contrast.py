"""EPS with pixel-to-prototype contrast: resnet38_contrast without the dropout before its heads. SPEC section 1."""
from torch import nn

from network import resnet38_contrast


class Net(resnet38_contrast.Net):
    """The network of published EPS + PPC, with the state-dict keys of `resnet38_contrast`. Channel 0 is the background.

    Published: `proj_fc` for `fc_proj`, and background last. network.weights.read_weights converts such a file.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dropout7 = nn.Identity()

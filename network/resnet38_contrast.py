"""SEAM with pixel-to-prototype contrast: CAM and projection heads, pixel correlation module (PCM). SPEC section 1."""
import torch
import torch.nn.functional as F
from torch import nn

from network import PUBLISHED_CHANNELS
from network.resnet38d import FrozenResNet38, scaled
from tool.cam import peak_norm, resize, winner_take_all

PROJECTION = 128  # channels of the contrast features, at every width

# Up to this many entries the PCM forms its affinity matrix whole; without gradients larger maps go block by block.
BLOCK_ENTRIES = 2 ** 23


class Net(FrozenResNet38):
    """`resnet38_contrast`, with the published state-dict keys. Channel 0 is the background.

    width: factor on the channel counts of the backbone and of the PCM's features.
    num_classes: channels of the CAM, background included.
    """

    from_scratch = ('fc8', 'fc_proj', 'f8_3', 'f8_4', 'f9')  # new layers: ten times the learning rate

    def __init__(self, width=1.0, num_classes=PUBLISHED_CHANNELS):
        super().__init__(width)
        low, high = scaled(64, width), scaled(128, width)
        self.dropout7 = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(self.channels['conv6'], num_classes, 1, bias=False)
        self.fc_proj = nn.Conv2d(self.channels['conv6'], PROJECTION, 1, bias=False)
        self.f8_3 = nn.Conv2d(self.channels['conv4'], low, 1, bias=False)
        self.f8_4 = nn.Conv2d(self.channels['conv5'], high, 1, bias=False)
        self.f9 = nn.Conv2d(3 + low + high, low + high, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        nn.init.xavier_uniform_(self.fc_proj.weight)
        nn.init.kaiming_normal_(self.f8_3.weight)
        nn.init.kaiming_normal_(self.f8_4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        self.freeze()

    def maps(self, x):
        """Image x (N, 3, H, W) → cam (N, C, h, w), cam_rv (N, C, h, w), f_proj (N, 128, h, w), at stride 8.

        cam: class activation maps, raw. cam_rv: the CAMs revised by the PCM. f_proj: features for the contrast, ≥ 0.
        cam_rv is float32 under mixed precision too.
        """
        taps = self.features(x)
        top = self.dropout7(taps['conv6'])
        cam = self.fc8(top)
        f_proj = F.relu(self.fc_proj(top))
        features = self.pcm_features(x, taps)
        with torch.autocast(x.device.type, enabled=False):
            # No gradient into the CAM: the PCM trains its features, not the maps that it revises.
            spread = winner_take_all(peak_norm(cam.detach().float())[:, 1:])
            cam_rv = revise(spread, features.float())
        return cam, cam_rv, f_proj

    def class_logits(self, x):
        """Image x (N, 3, H, W) → classification logits (N, C − 1): the spatial mean of each foreground CAM."""
        return self.fc8(self.dropout7(self.features(x)['conv6'])).mean((2, 3))[:, 1:]

    def pcm_features(self, x, taps):
        """The features whose correlations the PCM uses: (N, 192 at width 1, h, w)."""
        size = taps['conv4'].shape[2:]
        low = F.relu(self.f8_3(taps['conv4'].detach()))
        high = F.relu(self.f8_4(taps['conv5'].detach()))
        return self.f9(torch.cat([resize(x, size), low, high], 1))

    def forward(self, x):
        """The published outputs: cam and cam_rv at image size (N, C, H, W), f_proj and cam_rv at stride 8."""
        cam, cam_rv, f_proj = self.maps(x)
        return resize(cam, x.shape[2:]), resize(cam_rv, x.shape[2:]), f_proj, cam_rv


def revise(cam, features):
    """Spread CAMs along the positive correlations of the features: cam_rv = cam · A, A's columns summing to one.

    cam (N, C, h, w), features (N, D, h, w) → (N, C, h, w). The column sums come out of the same product, from a row
    of ones below the CAM, so that A is neither normalised nor copied. Where no gradient is wanted and A is
    large, it is made in blocks of columns: memory for h·w × block entries instead of (h·w)².
    """
    n, c, h, w = cam.shape
    f = features.flatten(2)
    f = f / (f.norm(dim=1, keepdim=True) + 1e-5)
    rows = torch.cat([cam.flatten(2), cam.new_ones(n, 1, h * w)], 1)
    block = max(1, BLOCK_ENTRIES // (n * h * w))
    if torch.is_grad_enabled() or block >= h * w:
        return _shares(rows @ torch.relu_(f.transpose(1, 2) @ f)).view(n, c, h, w)
    # One piece of memory for all blocks: allocated anew, they leave holes that a block does not quite fit into.
    memory, result = f.new_empty(n * h * w * block), torch.empty_like(rows[:, :c])
    for columns, target in zip(f.split(block, 2), result.split(block, 2)):
        affinity = memory[:n * h * w * columns.shape[2]].view(n, h * w, -1)
        torch.bmm(f.transpose(1, 2), columns, out=affinity).relu_()
        target.copy_(_shares(rows @ affinity))
    return result.view(n, c, h, w)


def _shares(product):
    """The maps (N, C, P) of a product (N, C + 1, P), divided by its last row, the column sums."""
    return product[:, :-1] / (product[:, -1:] + 1e-5)

"""CAM, projection and pixel correlation module (PCM) as a part that any backbone can carry. METHOD 1.2, 1.3.

A network of Step 1 is a backbone class mixed with CAMHeads. The heads' layers are attributes of the network itself, so
their state-dict keys have no prefix, as published.
"""
import torch
import torch.nn.functional as F
from torch import nn

from network.dropout import Dropout2d
from network.width import scaled
from tool.cam import View, peak_norm, resize, winner_take_all

PCM, PROJECTION = 'pcm', 'projection'  # what a network may have beside the CAM head
PROJECTION_CHANNELS = 128  # of the contrast features, at every width
PCM_CHANNELS = 64, 128  # of the PCM's features from the low and the middle level, at width 1

# Up to this many entries the PCM forms its affinity matrix whole; without gradients larger maps go block by block.
BLOCK_ENTRIES = 2 ** 23


class CAMHeads:
    """Mix-in for a backbone: a class whose `features(x)` gives {'low', 'middle', 'high'}, maps (N, channels, h, w) at
    one stride, with their `channels` and its `width`.

    training_only: the layers that inference leaves out, so that its weights may lack them (SEAM has no projection).
    The subclass's constructor calls add_heads, then freeze where parts of the backbone are fixed.
    """

    training_only = ('fc_proj',)

    def add_heads(self, num_classes, parts=(PCM, PROJECTION), dropout=0.5):
        """Add the layers. num_classes: channels of the CAM, background included. parts: which of PCM and PROJECTION.

        dropout: probability of the spatial dropout before CAM and projection. The order of layers and of random
        draws is the published one.
        """
        self.parts = tuple(parts)  # no set: torch.compile of PyTorch 2.6 cannot read one
        top = self.channels['high']
        low, middle = (scaled(channels, self.width) for channels in PCM_CHANNELS)
        self.dropout7 = Dropout2d(dropout) if dropout else nn.Identity()
        self.fc8 = nn.Conv2d(top, num_classes, 1, bias=False)
        self.from_scratch = ['fc8']  # new layers: ten times the learning rate
        if PROJECTION in parts:
            self.fc_proj = nn.Conv2d(top, PROJECTION_CHANNELS, 1, bias=False)
            self.from_scratch.append('fc_proj')
        if PCM in parts:
            self.f8_3 = nn.Conv2d(self.channels['low'], low, 1, bias=False)
            self.f8_4 = nn.Conv2d(self.channels['middle'], middle, 1, bias=False)
            self.f9 = nn.Conv2d(3 + low + middle, low + middle, 1, bias=False)
            self.from_scratch += ['f8_3', 'f8_4', 'f9']
        self._initialise_heads()

    def _initialise_heads(self):
        nn.init.xavier_uniform_(self.fc8.weight)
        if PROJECTION in self.parts:
            nn.init.xavier_uniform_(self.fc_proj.weight)
        if PCM in self.parts:
            nn.init.kaiming_normal_(self.f8_3.weight)
            nn.init.kaiming_normal_(self.f8_4.weight)
            nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def view(self, x, parts=None):
        """Image x (N, 3, H, W) → tool.cam.View, its maps at the features' stride.

        parts: which of the network's parts to compute; all unless given. Maps are float32 under mixed precision too,
        but for the contrast features.
        """
        parts = [part for part in self.parts if parts is None or part in parts]
        features = self.features(x)
        top = self.dropout7(features['high'])
        cam = self.fc8(top)
        projected = F.relu(self.fc_proj(top)) if PROJECTION in parts else None
        revised = self.revised_cam(x, features, cam) if PCM in parts else None
        return View(cam.float(), revised, projected, tuple(x.shape[2:]))

    def cams(self, x, revised=True):
        """CAMs for inference: image x (N, 3, H, W) → (N, C, h, w), raw.

        revised: as the PCM revises them, which needs one (ValueError); else as the CAM head makes them.
        """
        if revised and PCM not in self.parts:
            raise ValueError('the network has no PCM, which revises CAMs')
        features = self.features(x)
        cam = self.fc8(self.dropout7(features['high']))
        return self.revised_cam(x, features, cam) if revised else cam

    def class_logits(self, x):
        """Image x (N, 3, H, W) → classification logits (N, C − 1): the spatial mean of each foreground CAM."""
        return self.cams(x, revised=False).mean((2, 3))[:, 1:]

    def pcm_features(self, x, features):
        """The features whose correlations the PCM uses: (N, 192 at width 1, h, w)."""
        size = features['low'].shape[2:]
        low = F.relu(self.f8_3(features['low'].detach()))
        middle = F.relu(self.f8_4(features['middle'].detach()))
        return self.f9(torch.cat([resize(x, size), low, middle], 1))

    def revised_cam(self, x, features, cam):
        """The CAM (N, C, h, w) as the PCM revises it, float32. No gradient flows into `cam`: the PCM trains its
        features, not the maps that it revises."""
        pcm_features = self.pcm_features(x, features)
        with torch.autocast(x.device.type, enabled=False):
            spread = winner_take_all(peak_norm(cam.detach().float())[:, 1:])
            return revise(spread, pcm_features.float())


def revise(cam, features):
    """Spread CAMs along the positive correlations of the features: cam · A, A's columns summing to one. METHOD 1.3.

    cam (N, C, h, w), features (N, D, h, w) → (N, C, h, w). The column sums come out of the same product, from a row
    of ones below the CAM, so that A is neither normalised nor copied. Where no gradient is wanted and A is large, it
    is made in blocks of columns: memory for h·w × block entries instead of (h·w)². Plain twin: reference/networks.py.
    """
    n, c, h, w = cam.shape
    f = features.flatten(2)
    f = f / (f.norm(dim=1, keepdim=True) + 1e-5)
    rows = torch.cat([cam.flatten(2), cam.new_ones(n, 1, h * w)], 1)
    block = max(1, BLOCK_ENTRIES // (n * h * w))
    if torch.is_grad_enabled() or block >= h * w:
        return _divide_by_sums(rows @ torch.relu_(f.transpose(1, 2) @ f)).view(n, c, h, w)
    # Reuse one buffer for all blocks; allocating per block fragments memory.
    buffer, result = f.new_empty(n * h * w * block), torch.empty_like(rows[:, :c])
    for columns, target in zip(f.split(block, 2), result.split(block, 2)):
        affinity = buffer[:n * h * w * columns.shape[2]].view(n, h * w, -1)
        torch.bmm(f.transpose(1, 2), columns, out=affinity).relu_()
        target.copy_(_divide_by_sums(rows @ affinity))
    return result.view(n, c, h, w)


def _divide_by_sums(product):
    """The maps (N, C, P) of a product (N, C + 1, P), divided by its last row, the column sums."""
    return product[:, :-1] / (product[:, -1:] + 1e-5)

"""Class activation maps (CAMs): what a network gives to the losses, and how maps are normalised. METHOD 1.2, 3.3, 4.1.

Tensors (N, C, H, W) throughout.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

EPSILON = 1e-5


class View(NamedTuple):
    """What a network makes of one view of a batch: all that the losses see of it.

    cam: class activation maps, raw, float32 (N, C, h, w) at feature size; channel 0 is the background.
    revised: the CAMs as the PCM revises them, float32 (N, C, h, w); None from a network without PCM.
    features: what the contrast compares, (N, D, h, w), ≥ 0; None from a network without projection.
    size: (H, W) of the view's images in pixels.
    """
    cam: torch.Tensor
    revised: torch.Tensor
    features: torch.Tensor
    size: tuple


def resize(maps, size):
    """Bilinear resize with aligned corners, the one that all maps inside the networks and losses use."""
    return F.interpolate(maps, size, mode='bilinear', align_corners=True)


def max_norm(cam):
    """ReLU, then each map stretched from its minimum to its maximum: 0..1. METHOD 3.3.

    One ReLU is enough, since low ≥ 0: relu(relu(x) − low) = relu(x − low). min/max rather than amin/amax, so each
    extreme's gradient goes to one pixel, as published. Plain twin: reference/contrast_loss.py, max_norm.
    """
    pixels = cam.flatten(2)
    low, high = (F.relu(extreme.values)[..., None] for extreme in (pixels.min(2, True), pixels.max(2, True)))
    return F.relu(cam - (low + EPSILON)) * (1 / (high - low + EPSILON))


def score_norm(cam):
    """The stretch that scores pixels in the contrast loss and at inference. METHOD 3.4, 4.1.

    Negative values := 0, values within 1e-5 of the minimum := 0, then (v − min − 1e-5) / (max − min + 1e-5).
    Kept as published: a map without a zero keeps a slightly negative floor (METHOD 9.5).
    """
    cam = F.relu(cam)
    low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
    cam = torch.where(cam < low + EPSILON, 0., cam)
    return (cam - low - EPSILON) / (high - low + EPSILON)


def peak_norm(cam):
    """ReLU and division by each map's maximum: 0..1. The pixel correlation module spreads these maps (METHOD 1.3)."""
    cam = F.relu(cam)
    return F.relu(cam - EPSILON) / (cam.amax((2, 3), keepdim=True) + EPSILON)


def winner_take_all(foreground):
    """Foreground maps (N, K, H, W) → (N, 1 + K, H, W): background = 1 − the strongest; all but the strongest := 0."""
    winner = foreground.amax(1, keepdim=True)
    return torch.cat([1 - winner, torch.where(foreground < winner, 0., foreground)], 1)


def with_flip(image):
    """An image (3, h, w) and its flip: (2, 3, h, w)."""
    return torch.stack([image, image.flip(2)])


def multi_scale(cams_of, scaled, present, size):
    """CAMs of one image, summed over scales and flips and stretched to 0..1. METHOD 4.1.

    cams_of: function from images (2, 3, h, w) to maps (2, C, h', w'). scaled: per scale such a batch, with_flip of the
    image. present (K,): foreground indices from 0 of the present classes; no other channel is enlarged.
    size: (H, W) of the image. Returns (K, H, W). Plain twin: reference/networks.py, multi_scale_cams.
    """
    total = 0.
    for images in scaled:
        maps = resize(cams_of(images)[:, present + 1].float(), images.shape[2:])
        total = add_unflipped(total, maps, size)
    return score_norm(total[None])[0]


def add_unflipped(total, maps, size):
    """total + the maps of an image and of its flip (2, K, h, w), enlarged to `size` (H, W), the flip turned back.

    The sum runs from left to right, total first: another order moves results by a rounding error.
    """
    maps = F.interpolate(maps, size, mode='bilinear', align_corners=False)
    return total + maps[0] + maps[1].flip(2)

"""Class activation maps: how they are normalised, at training and at inference. Tensors (N, C, H, W) throughout."""
import torch
import torch.nn.functional as F

EPSILON = 1e-5


def resize(maps, size):
    """Bilinear resize with aligned corners, the one that all maps inside the networks and losses use."""
    return F.interpolate(maps, size, mode='bilinear', align_corners=True)


def max_norm(cam):
    """ReLU, then each map stretched from its minimum to its maximum: 0..1. SPEC section 3, `maxnorm`.

    Written so that little is kept and passed over again for the gradient: the ReLU that follows the subtraction also
    does the first one's work, and as published the extremes' gradient goes to one pixel each.
    """
    pixels = cam.flatten(2)
    low, high = (F.relu(extreme.values)[..., None] for extreme in (pixels.min(2, True), pixels.max(2, True)))
    return F.relu(cam - (low + EPSILON)) * (1 / (high - low + EPSILON))


def score_norm(cam):
    """The stretch that scores pixels in the contrast loss and at inference (SPEC sections 3 and 4).

    Negative values := 0, values within 1e-5 of the minimum := 0, then (v − min − 1e-5) / (max − min + 1e-5).
    Kept as published: a map without a zero keeps a slightly negative floor (SPEC section 9, item 5).
    """
    cam = F.relu(cam)
    low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
    cam = torch.where(cam < low + EPSILON, 0., cam)
    return (cam - low - EPSILON) / (high - low + EPSILON)


def peak_norm(cam):
    """ReLU and division by each map's maximum: 0..1. What the pixel correlation module spreads (SPEC section 1)."""
    cam = F.relu(cam)
    return F.relu(cam - EPSILON) / (cam.amax((2, 3), keepdim=True) + EPSILON)


def winner_take_all(foreground):
    """Foreground maps (N, K, H, W) → (N, 1 + K, H, W): background = 1 − the strongest; all but the strongest := 0."""
    winner = foreground.amax(1, keepdim=True)
    return torch.cat([1 - winner, torch.where(foreground < winner, 0., foreground)], 1)


def multi_scale(cams_of, scaled, channels, size):
    """CAMs of one image, summed over scales and mirror images and stretched to 0..1. SPEC section 4.

    cams_of: function from images (2, 3, h, w) to maps (2, C, h', w'). scaled: such a pair (image, mirror image) per
    scale.
    channels (K,): those of the present classes; no other is enlarged. size: (H, W) of the image. Returns (K, H, W).
    """
    total = 0.
    for pair in scaled:
        maps = resize(cams_of(pair)[:, channels].float(), pair.shape[2:])
        maps = F.interpolate(maps, size, mode='bilinear', align_corners=False)
        total = total + maps[0] + maps[1].flip(2)
    return score_norm(total[None])[0]

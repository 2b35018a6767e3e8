"""The CAMs of one photo at inference: several scales, each with its flip. METHOD 4.1."""
import functools

import torch

from data.images import is_blank
from engine.device import autocast
from tool.cam import with_flip


def photo_cams(net, recipe, pixels, scaled, present, device, amp):
    """The CAMs of a photo's present classes by a network of Step 1: float32 (K, H, W), 0..1, on `device`.

    recipe: which of the network's maps count, and how scales are summed (tool.recipes.Recipe). pixels: the photo,
    uint8 (H, W, 3). scaled: iterable of the photo at each scale, normalised, (3, h, w). present: int64 (K,) on the CPU,
    foreground classes; without any, the result is empty and the network does nothing.
    """
    size = pixels.shape[:2]
    cams = torch.zeros(0, *size)
    if len(present):
        images = (with_flip(image.to(device, non_blocking=True)) for image in scaled)
        # Indices on the CPU would be copied at every scale, and each copy waits for the GPU.
        on_device = present.to(device, non_blocking=True)
        with autocast(device, amp):
            cams = recipe.multi_scale_cams(functools.partial(net.cams, revised=recipe.map == 'revised'), images,
                                           on_device, size)
    if is_blank(pixels):
        # A nearly constant map stretched to 0..1 falls far below 0 where it is lowest (METHOD 9.5).
        cams = cams.clamp(0, 1)
    return cams

"""Inputs of the stages, the same in every process: a photo, images, CAMs, labels, weights. Comparison of results."""
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.files import REPO
from voc12.classes import VOC

SIZE = 375, 500                     # (H, W) of a usual VOC photo
PRESENT = (1, 2, 1, 1, 3, 2, 1, 1)  # classes of the images of a batch: 1.5 on average, as in VOC
GOLDEN = REPO / 'tests' / 'golden'


@lru_cache
def _photo():
    return np.load(GOLDEN / 'chain.npz')['image_2011_000001']


def photo(height, width):
    """A VOC photo (tests/golden) at any size, with grain as a camera adds it: uint8 (H, W, 3)."""
    image = cv2.resize(_photo(), (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 3, image.shape)
    return (image + grain).clip(0, 255).round().astype(np.uint8)


def smooth(count, height, width, seed=0):
    """Smooth random maps, each 0..1, with a little noise, which keeps values from tying: float32 (count, H, W)."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 7, 9), np.float32) ** 3
    maps = np.stack([cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in coarse])
    maps += 0.02 * rng.random(maps.shape, np.float32)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return ((maps - low) / (high - low)).astype(np.float32)


def cams(height, width, classes=(4, 14)):
    """CAMs of an image with two classes, a third of it background: class array (2,), float32 (2, H, W)."""
    return np.array(classes), smooth(len(classes), height, width) ** 2


def images(count, side):
    """A batch of random normalised images: float32 tensor (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def labels(count, num_foreground=VOC.num_foreground):
    """Image-level labels of a batch: float32 tensor (count, num_foreground)."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(count, num_foreground)
    for row, present in zip(label, (PRESENT * count)[:count]):
        row[torch.randperm(num_foreground, generator=generator)[:present]] = 1
    return label


def network(net_class, **options):
    """A network with random weights, BatchNorm such that maps keep their scale."""
    torch.manual_seed(0)
    net = net_class(**options)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.4, 0.6)
            torch.nn.init.normal_(module.bias, 0.1, 0.1)
    return net


def flops_of(call):
    """Floating-point operations (a multiply-add is two) of the convolutions and matrix products of a call."""
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return counter.get_total_flops()


def close(ours, published, relative=1e-4, what='values'):
    """Words for the largest difference relative to the largest value; AssertionError above `relative`."""
    arrays = (x.detach().cpu() if hasattr(x, 'detach') else x for x in (ours, published))
    ours, published = (np.asarray(x, np.float64) for x in arrays)
    assert ours.shape == published.shape, (ours.shape, published.shape)
    difference = np.abs(ours - published).max() / max(np.abs(published).max(), 1e-12)
    assert difference <= relative, f'{what} differ by {difference:.1e} of the largest'
    return f'{what} to {difference:.0e}'


def alike(ours, published, fraction=0.999, what='labels'):
    """Words for the fraction of equal labels; AssertionError below `fraction`."""
    same = float((np.asarray(ours) == np.asarray(published)).mean())
    assert same >= fraction, f'{what} equal on {100 * same:.2f}% only'
    return f'{what} equal on {100 * same:.2f}%'

"""The grid that AffinityNet works on: cells of pixels, and which of them form pairs. METHOD 1.5, 6.2.

Works on arrays and tensors alike and imports no torch: worker processes that only walk need not load it.
"""
import numpy as np

STRIDE = 8  # pixels of the image per cell of the feature map, as published; a backbone may have another
RADIUS = 5  # two cells form a pair if they are less than RADIUS apart


def cell_means(maps, stride=STRIDE):
    """Mean of every cell of stride×stride pixels: maps (K, H, W) float → float32 (K, ⌈H/stride⌉, ⌈W/stride⌉), 0 beyond
    the image."""
    count, height, width = maps.shape
    padded = np.pad(maps, ((0, 0), (0, -height % stride), (0, -width % stride)))
    cells = padded.reshape(count, padded.shape[1] // stride, stride, padded.shape[2] // stride, stride)
    return cells.mean((2, 4), dtype=np.float32)


def pair_radius(height, width):
    """The pairing radius for a feature map: 5, or what fits into a map with a side under 11."""
    return RADIUS if min(height, width) > 2 * RADIUS else (min(height, width) - 1) // 2


def pair_offsets(radius):
    """The (dy, dx) from a pair's first cell to its second, in published order: 34 for radius 5, each pair once."""
    beside = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy ** 2 + dx ** 2 < radius ** 2]
    return beside + below


def pair_views(maps):
    """The pairs of a feature map, without copying: maps (..., h, w) (tensor or array) → first, seconds.

    first (..., y, x): every cell from which all offsets stay inside. seconds: for each of the O offsets, the other
    cells of these pairs, in the shape of first. O is 0 where the map is too small for pairs (a side under 5).
    """
    height, width = maps.shape[-2:]
    radius = pair_radius(height, width)
    reach = max(radius - 1, 0)
    rows, columns = height - reach, width - 2 * reach
    first = maps[..., :rows, reach:reach + columns]
    return first, [maps[..., dy:dy + rows, reach + dx:reach + dx + columns] for dy, dx in pair_offsets(radius)]

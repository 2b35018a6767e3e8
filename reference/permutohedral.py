"""The permutohedral lattice in plain loops and a dictionary: the oracle of tool/permutohedral.py. METHOD 10.4, 10.5.

Source: Adams, Baek and Davis, Eurographics 2010.
"""
import math

import numpy as np


def gaussian_filter(features, values, weight=1.):
    """weight · N K N values, N = diag(K 1)^−½. features (N, d), values (N, columns) → float64 (N, columns)."""
    corners = [simplex(feature) for feature in np.asarray(features, np.float64)]
    scale = 1 / np.sqrt(splat_blur_slice(corners, np.ones((len(values), 1))) + 1e-20)
    return weight * scale * splat_blur_slice(corners, scale * values)


def simplex(feature):
    """{lattice point, a tuple of d + 1 whole numbers: barycentric weight} of one pixel."""
    d = len(feature)
    scaled = feature * math.sqrt(2 / 3) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
    elevated = np.array([scaled[i:].sum() - (i * scaled[i - 1] if i else 0) for i in range(d + 1)])
    nearest = np.round(elevated / (d + 1)).astype(int)
    residual = elevated - (d + 1) * nearest
    while nearest.sum() > 0:  # rounded up too often: where the residual is smallest, it was the worst
        worst = residual.argmin()
        nearest[worst], residual[worst] = nearest[worst] - 1, residual[worst] + d + 1
    while nearest.sum() < 0:
        worst = residual.argmax()
        nearest[worst], residual[worst] = nearest[worst] + 1, residual[worst] - d - 1
    order, corner, found = residual.argsort(kind='stable'), (d + 1) * nearest, {}
    rising = residual[order] / (d + 1)
    found[tuple(corner.tolist())] = 1 + rising[0] - rising[-1]
    for k in range(d):
        corner = corner + 1
        corner[order[k]] -= d + 1
        found[tuple(corner.tolist())] = rising[k + 1] - rising[k]
    return found


def splat_blur_slice(corners, values):
    """One pass through the lattice. corners: simplex() of each pixel. values (N, columns) → (N, columns)."""
    d = len(next(iter(corners[0]))) - 1
    table = {}
    for found, value in zip(corners, values):
        for point, share in found.items():
            table[point] = table.get(point, 0) + share * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        table = {point: value + sum(table.get(tuple((np.array(point) + sign * step).tolist()), 0)
                                    for sign in (1, -1)) / 2
                 for point, value in table.items()}
    return np.stack([sum(share * table[point] for point, share in found.items()) for found in corners]) / (1 + 2. ** -d)

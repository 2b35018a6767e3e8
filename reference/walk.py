"""The random walk as AffinityNet's authors state it: a dense matrix, squared log2(steps) times. METHOD 6.4.

Plain twin of tool/random_walk.py: affinity_matrix, walk.
"""
import numpy as np
import torch


def dense_matrix(affinity, height, width):
    """The dense symmetric matrix of all cells. affinity (O, P) → float32 tensor (h·w, h·w), ones on the diagonal."""
    radius = 5 if min(height, width) >= 11 else (min(height, width) - 1) // 2
    reach = max(radius - 1, 0)
    offsets = [(0, dx) for dx in range(1, radius)]
    offsets += [(dy, dx) for dy in range(1, radius) for dx in range(-reach, radius) if dx * dx + dy * dy < radius ** 2]
    full = np.reshape(np.arange(height * width), (height, width))
    from_cells = full[:height - reach, reach:width - reach].ravel()
    matrix = torch.eye(height * width)
    for (dy, dx), values in zip(offsets, np.asarray(affinity)):
        to_cells = full[dy:height - reach + dy, reach + dx:width - reach + dx].ravel()
        matrix[from_cells, to_cells] = matrix[to_cells, from_cells] = torch.from_numpy(values)
    return matrix


def dense_walk(scores, affinity, beta, logt):
    """scores (K, h, w) · T^(2^logt), T from affinity (O, P): float32 array (K, h, w)."""
    count, height, width = scores.shape
    matrix = torch.pow(dense_matrix(affinity, height, width), beta)
    transition = matrix / torch.sum(matrix, dim=0, keepdim=True)
    for _ in range(logt):
        transition = torch.matmul(transition, transition)
    return torch.matmul(torch.from_numpy(scores).view(count, -1), transition).view(scores.shape).numpy()

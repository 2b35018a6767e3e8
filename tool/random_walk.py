"""The random walk over AffinityNet's affinities, with a sparse transition matrix. METHOD 6.4. No torch here.

Published: the dense matrix of all cells is squared log2(steps) times, at 2·n³ operations a time and n² memory (plain
twin: reference/walk.py). A cell has at most 69 neighbours (34 pairs each way, and itself), so multiplying the few score
maps by the sparse matrix `steps` times gives the same, in O(pixels · 34) memory. The walk takes tens of milliseconds on
one core, so it runs in the worker processes that write the masks, with and without a GPU alike.
"""
import cv2
import numpy as np
from scipy import sparse

from tool.pairs import STRIDE, pair_views


def affinity_matrix(affinity, height, width):
    """The symmetric matrix A of all cells, ones on its diagonal, zero where cells are not paired.

    affinity: (O, P) of the map's pairs (tool.pairs.pair_views). Returns a float64 CSR array (h·w, h·w).
    """
    cell = np.arange(height * width, dtype=np.int32)
    first, seconds = pair_views(cell.reshape(height, width))
    rows = np.tile(first.ravel(), len(seconds))
    columns = np.concatenate([second.ravel() for second in seconds]) if seconds else rows
    values = np.asarray(affinity, np.float64).ravel()
    entries = np.concatenate([values, values, np.ones(len(cell))])
    positions = np.concatenate([rows, columns, cell]), np.concatenate([columns, rows, cell])
    return sparse.csr_array((entries, positions), shape=(len(cell), len(cell)))


def walk(scores, affinity, beta, steps):
    """scores · T^steps, with T = A^beta (entry by entry), its columns then made to sum to 1.

    scores: (K, h, w). affinity: (O, P) of the map's pairs. Returns float32 (K, h, w).
    Columns that sum to 1 leave a constant map as it is.
    """
    count, height, width = scores.shape
    matrix = affinity_matrix(affinity, height, width)
    matrix.data **= beta
    transposed = sparse.diags_array(1 / matrix.sum(0)) @ matrix  # A is symmetric: these rows are T's columns
    vectors = np.ascontiguousarray(scores.reshape(count, -1).T, np.float64)
    for _ in range(steps):
        vectors = transposed @ vectors
    return vectors.T.reshape(scores.shape).astype(np.float32)


def to_pixels(scores, height, width, stride=STRIDE):
    """Scores of cells (K, h, w) of stride×stride pixels → of the image's pixels (K, height, width): bilinear, corners
    not aligned, cropped."""
    size = scores.shape[2] * stride, scores.shape[1] * stride
    return np.stack([cv2.resize(score, size, interpolation=cv2.INTER_LINEAR)[:height, :width] for score in scores])

"""tool/random_walk.py: the sparse walk is the published dense one; tool/pairs.cell_means."""
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import golden

from reference.walk import dense_matrix, dense_walk
from tool import pairs, random_walk
from voc12.classes import VOC


def random_affinity(height, width, seed=0):
    first, seconds = pairs.pair_views(np.zeros((height, width)))
    return np.random.default_rng(seed).random((len(seconds), first.size), np.float32)


@pytest.fixture(scope='module')
def case():
    """(affinities, CAMs (21, h, w), row sums of the matrix, walked CAMs) as published."""
    published = golden('resnet38_aff_120x160.npz')
    maps = (VOC.num_classes, *(side // 8 for side in published['x'].shape[2:]))
    return (published['aff'][0], published['cam'].reshape(maps), published['dense_row_sum'],
            published['cam_rw'].reshape(maps))


def test_matrix_and_walk_are_the_published_ones(case):
    affinity, cams, row_sums, expected = case
    matrix = random_walk.affinity_matrix(affinity, *cams.shape[1:])
    np.testing.assert_allclose(matrix.sum(1), row_sums, rtol=1e-5)
    walked = random_walk.walk(cams, affinity, beta=8, steps=64)
    np.testing.assert_allclose(walked, expected, rtol=1e-4, atol=1e-5)


def test_the_rendering_in_reference_is_the_published_one(case):
    affinity, cams, row_sums, expected = case
    np.testing.assert_allclose(dense_matrix(affinity, *cams.shape[1:]).sum(1), row_sums, rtol=1e-5)
    np.testing.assert_allclose(dense_walk(cams, affinity, beta=8, logt=6), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(15, 20), (17, 11), (11, 11), (10, 23), (23, 10), (9, 9), (7, 30), (5, 5), (4, 6),
                                  (1, 3)])
@pytest.mark.parametrize('beta, logt', [(8, 6), (1, 3), (2.5, 0)])
def test_the_sparse_walk_is_the_dense_one(size, beta, logt):
    affinity = random_affinity(*size)
    scores = np.random.default_rng(1).random((3, *size), np.float32)
    ours = random_walk.walk(scores, affinity, beta, 2 ** logt)
    np.testing.assert_allclose(ours, dense_walk(scores, affinity, beta, logt), atol=1e-5)


def test_constant_maps_stay_and_affinity_zero_walks_nowhere():
    scores = np.full((1, 13, 14), 0.27, np.float32)
    np.testing.assert_allclose(random_walk.walk(scores, random_affinity(13, 14), 8, 64), scores, rtol=1e-6)
    scores = np.random.default_rng(1).random((2, 13, 14), np.float32)
    np.testing.assert_array_equal(random_walk.walk(scores, 0 * random_affinity(13, 14), 8, 64), scores)


def test_a_large_map_needs_little_memory_and_time():
    """1024×1024 pixels: the dense matrix alone would be 1 GB and one squaring of it minutes."""
    affinity = random_affinity(128, 128)
    assert random_walk.affinity_matrix(affinity, 128, 128).nnz <= 69 * 128 * 128
    start = time.process_time()
    random_walk.walk(np.random.default_rng(0).random((3, 128, 128), np.float32), affinity, 8, 64)
    assert time.process_time() - start < 10


@pytest.mark.parametrize('size', [(16, 24), (17, 23), (8, 8), (121, 141)])
def test_cells_and_pixels_are_torchs_pooling_and_upsampling(size):
    maps = np.random.default_rng(0).random((6, *size), np.float32)
    padded = F.pad(torch.from_numpy(maps)[None], (0, -size[1] % 8, 0, -size[0] % 8))
    cells = pairs.cell_means(maps)
    np.testing.assert_allclose(cells, F.avg_pool2d(padded, 8)[0], atol=1e-6)
    upsampled = F.interpolate(torch.from_numpy(cells)[None], scale_factor=8, mode='bilinear', align_corners=False)[0]
    np.testing.assert_allclose(random_walk.to_pixels(cells, *size), upsampled[:, :size[0], :size[1]], atol=1e-6)

"""tool/permutohedral.py: the lattice of Adams et al., as a dictionary has it, and near the Gaussian it stands for."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.permutohedral import gaussian_filter, simplex
from tool import permutohedral
from tool.permutohedral import GaussianKernel

# The same examples every time: a pixel on the border of two simplices may fall into either, by rounding.
few = settings(deadline=None, max_examples=25, derandomize=True)
seeds, dimensions = st.integers(0, 2 ** 16), st.integers(1, 5)
widths = st.sampled_from([.1, 1., 10.])


def random_features(d, pixels, seed=0, width=3.):
    """float32 (d, N), normally distributed: some pixels share a lattice point and some lie alone."""
    return torch.randn(d, pixels, generator=torch.Generator().manual_seed(seed)) * width


def image_features(height=120, width=160):
    """float32 (5, H · W) of a smooth picture with noise, enough work for PyTorch to use threads."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    return torch.stack([x / 50, y / 50, *(noise + torch.sin(x / 40) * 4)]).flatten(1)


@few
@given(dimensions, seeds, widths)
def test_the_filter_is_that_of_a_dictionary_of_points(d, seed, width):
    features = random_features(d, 40, seed, width)
    values = torch.rand(40, 3, generator=torch.Generator().manual_seed(seed + 1))
    plain = gaussian_filter(features.T.numpy(), values.numpy(), weight=2.5)
    # Barycentric weights are differences of single-precision coordinates, which grow with the width.
    np.testing.assert_allclose(GaussianKernel(features, 2.5)(values), plain, atol=1e-5 * max(1, width))


@few
@given(dimensions, seeds, widths)
def test_a_simplex_holds_its_pixel(d, seed, width):
    features = random_features(d, 30, seed, width)
    nearest, turn, barycentric = permutohedral.simplices(features)
    assert not nearest.sum(0).any()
    assert (turn.sort(0).values == torch.arange(d + 1)[:, None]).all()
    assert barycentric.min() > -1e-4 * width and (barycentric.sum(1) - 1).abs().max() < 1e-4
    corner = torch.arange(d + 1)[:, None, None]
    points = (d + 1) * (nearest - (turn < corner).float()) + corner  # (corners, coordinates, pixels)
    assert not points.sum(1).any()
    back = (points * barycentric.T[:, None]).sum(0)
    np.testing.assert_allclose(back, permutohedral.elevate(features), atol=1e-4 * max(1, width))


@few
@given(dimensions, seeds, widths)
def test_keys_are_equal_where_points_are(d, seed, width):
    features = random_features(d, 30, seed, width)
    keys, _, strides, spans = permutohedral.corner_keys(features)
    plain = [point for feature in features.T.numpy() for point in simplex(feature.astype(np.float64))]
    assert len(set(zip(plain, keys.flatten().tolist()))) == len(set(plain)) == len(keys.unique())
    assert keys.min() >= 0 and keys.max() < strides[0] * spans[0]


@few
@given(seeds)
def test_the_order_of_pixels_does_not_matter(seed):
    features, values = random_features(5, 60, seed), torch.rand(60, 2)
    order = torch.randperm(60)
    shuffled = GaussianKernel(features[:, order])(values[order])
    np.testing.assert_allclose(shuffled, GaussianKernel(features)(values)[order], atol=1e-5)


@few
@given(seeds)
def test_columns_are_filtered_by_themselves_and_linearly(seed):
    kernel = GaussianKernel(random_features(2, 50, seed))
    values = torch.rand(50, 5, generator=torch.Generator().manual_seed(seed))
    out = kernel(values)
    for column in range(5):
        np.testing.assert_allclose(out[:, column:column + 1], kernel(values[:, column:column + 1].clone()), atol=1e-6)
    np.testing.assert_allclose(kernel(2 * values + 1), 2 * out + kernel(torch.ones_like(values)), atol=1e-5)


@pytest.mark.parametrize('d, error', [(2, 0.1), (5, 0.25)])
def test_the_kernel_is_near_the_gaussian(d, error):
    """k̃ against the exact one, in the mean over pairs of pixels: the error is the lattice's, not this code's."""
    features = random_features(d, 400, width=.7)
    near = GaussianKernel(features)(torch.eye(400))
    exact = torch.exp(-torch.cdist(features.T, features.T) ** 2 / 2)
    exact /= (exact.sum(0) * exact.sum(1, keepdim=True)).sqrt()
    assert (near - exact).norm() / exact.norm() < error


def test_one_pixel_and_equal_pixels_give_means():
    np.testing.assert_allclose(GaussianKernel(torch.tensor([[.3], [7.]]))(torch.tensor([[5.]])), [[5]], rtol=1e-5)
    values = torch.rand(1000, 2)
    same = GaussianKernel(torch.full((5, 1000), 3.3))(values)
    np.testing.assert_allclose(same, values.mean(0, keepdim=True).expand(1000, 2), rtol=1e-4)


# ---------------------------------------------------------------- what must not change the result

def filtered(features):
    """Four columns through the kernel of the features."""
    return GaussianKernel(features)(torch.rand(features.shape[1], 4, generator=torch.Generator().manual_seed(1)))


def test_one_and_two_threads_give_the_same_bytes():
    before, out = torch.get_num_threads(), []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        out.append(filtered(image_features()))
    torch.set_num_threads(before)
    assert torch.equal(out[0], out[1]) and torch.equal(out[1], out[2])


@pytest.mark.parametrize('name, value', [('INT32_KEYS', 0), ('BLOCK', 1000)])
def test_how_keys_are_made_leaves_the_bytes(monkeypatch, name, value):
    usual = filtered(image_features())
    monkeypatch.setattr(permutohedral, name, value)
    assert torch.equal(filtered(image_features()), usual)


@pytest.mark.parametrize('longest', [1, 5, 10 ** 6])
def test_where_rows_are_cut_changes_rounding_alone(monkeypatch, longest):
    usual = filtered(image_features())
    monkeypatch.setattr(permutohedral, 'LONGEST', longest)
    np.testing.assert_allclose(filtered(image_features()), usual, atol=2e-5)


@pytest.mark.parametrize('high', [50, 2 ** 30, 2 ** 61])
def test_sorting_by_packed_numbers_is_a_stable_sort(high):
    """At 2^61 no room is left for the entry's number, and torch.sort does it."""
    keys = torch.randint(high - 40, high, (500, 6), generator=torch.Generator().manual_seed(0))
    keys = keys if high > 2 ** 30 else keys.int()
    expected = keys.flatten().sort(stable=True)
    ours, order = permutohedral.sort(keys.clone())
    assert ours.dtype == keys.dtype and order.dtype == torch.int64
    assert torch.equal(ours, expected.values) and torch.equal(order, expected.indices)


def test_features_that_no_key_can_number_are_refused():
    with pytest.raises(ValueError, match='divide them by larger widths'):
        GaussianKernel(torch.tensor([[0., 1e6]] * 5))

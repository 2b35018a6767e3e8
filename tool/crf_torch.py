"""Mean field of the dense CRF in PyTorch, on any device: the engine 'torch' of tool/crf.py. METHOD 10.2, 10.4.

Source: Krähenbühl and Koltun, NIPS 2011. The kernels are tool/permutohedral.py's. All labels of all fields are columns
of one array (pixels, columns), which goes through both kernels in each iteration.
"""
from functools import lru_cache

import torch

from tool.permutohedral import GaussianKernel

SIZES = 4  # position kernels kept, each for a size of image: of photos in turn, half are of one of the last four sizes
LARGEST = 80.  # of an energy: exp(89) is more than float32 holds
# A label's messages are at most its kernels' weights times the sums of the kernels' rows, which are about 1. Below this
# total they stay far below LARGEST, and the exponential needs no maximum of each pixel subtracted, which takes long.
PLAIN_WEIGHTS = 40.


@torch.inference_mode()
def marginals(image, unaries, absent_energy, absent, settings, device='cpu'):
    """Mean field of A label fields over one image.

    image: uint8 array (H, W, 3). unaries: float32 array (A, K, H, W), the unary energies of K labels. absent: number of
    further labels, whose energy is absent_energy at every pixel. settings: tool.crf.Settings. device: the torch device
    that does the work; the result alone is waited for, and sizes of the lattices.
    Returns a float32 array (A, K, H, W); with absent > 0 (A, K + 1, H, W), the marginal of one absent label last.
    """
    fields, labels, height, width = unaries.shape
    device = torch.device(device)
    with torch.autocast(device.type, enabled=False):
        # Both go to the device before it has work, for which a copy from ordinary memory would wait.
        image = torch.tensor(image, device=device)  # copied: PyTorch warns of arrays that are read-only
        prior = torch.from_numpy(unaries).to(device).reshape(fields, labels, -1)
        similar = appearance_kernel(image, settings)
        smooth = position_kernel(height, width, settings.axes, settings.gaussian_sxy, settings.gaussian_compat, device)
        if absent:
            prior = torch.cat([prior, prior.new_full((fields, 1, prior.shape[2]), absent_energy)], 1)
        columns = prior.shape[1]
        prior = (prior.amin(1, keepdim=True) - prior).flatten(0, 1).t().contiguous()
        state = mean_field(prior, [smooth, similar], fields, absent or 1, settings)
        return state.t().reshape(fields, columns, height, width).cpu().numpy()


def mean_field(prior, kernels, fields, times, settings):
    """Marginals after settings.iterations: float32 (N, fields · labels).

    prior: of the same shape, unary energies with the sign changed, at each pixel at most 0, and 0 for a label of each
    field. kernels: tool.permutohedral.GaussianKernel. times: how many labels the last of each field stands for.
    """
    bounded = settings.gaussian_compat + settings.bilateral_compat <= PLAIN_WEIGHTS
    state = normalise(prior.exp(), fields, times)
    for _ in range(settings.iterations):
        first, *others = kernels
        energy = first(state)
        for kernel in others:
            energy += kernel(state)
        energy += prior
        if not bounded:
            groups = energy.view(len(energy), fields, -1)
            groups -= groups.amax(2, keepdim=True)
        state = normalise(energy.clamp_(max=LARGEST).exp_(), fields, times)
    return state


def normalise(values, fields, times):
    """Divide every label, in place, by the sum of its field, in which the last label counts `times`.

    values: float32 (N, fields · labels). The sum goes column by column: for PyTorch rows of a few numbers are slow, and
    a matrix product of that shape takes four times as long.
    """
    groups = values.view(len(values), fields, -1)
    *labels, last = groups.unbind(2)
    total = last * times
    for label in labels:
        total += label
    groups /= total[..., None]
    return values


def appearance_kernel(image, settings):
    """The bilateral kernel of an image, uint8 tensor (H, W, 3)."""
    srgb = torch.full((), settings.bilateral_srgb, dtype=torch.float32, device=image.device)
    place = positions(*image.shape[:2], settings.axes, settings.bilateral_sxy, image.device)
    return GaussianKernel(torch.cat([place, image.view(-1, 3).t() / srgb]), settings.bilateral_compat)


@lru_cache(maxsize=SIZES)
def position_kernel(height, width, axes, sxy, weight, device):
    """The Gaussian kernel of positions alone, the same for all images of a size."""
    return GaussianKernel(positions(height, width, axes, sxy, device), weight)


def positions(height, width, axes, sxy, device):
    """Pixel coordinates over sxy: float32 (2, H · W), in the order of `axes`.

    Divided by a tensor: CUDA would multiply by the reciprocal of a number, which may round to another neighbour. It is
    filled on the device, since a copy of a number would wait for what the device is doing.
    """
    rows, columns = torch.meshgrid(torch.arange(height, dtype=torch.float32, device=device),
                                   torch.arange(width, dtype=torch.float32, device=device), indexing='ij')
    both = torch.stack([columns, rows] if axes == 'xy' else [rows, columns]).flatten(1)
    return both / torch.full((), sxy, dtype=torch.float32, device=device)

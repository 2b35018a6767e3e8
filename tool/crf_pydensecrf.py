"""Mean field of the dense CRF by the authors' code: the engine 'pydensecrf' of tool/crf.py. METHOD 10. No torch here.

Source: Krähenbühl and Koltun, NIPS 2011, through the package pydensecrf2 (requirements-pydensecrf.txt). One core of a
CPU, whatever the machine has.
"""
import math

import numpy as np
from pydensecrf.densecrf import DenseCRF

PADDING_ENERGY = 60.  # energy of padding labels: no probability, yet exp(−60) is not denormal
CHUNK = 2 ** 17  # work per chunk of the normalisation: stays in cache and below BLAS's threading threshold


def marginals(image, unaries, absent_energy, absent, settings, device='cpu'):
    """Mean field of A label fields over one image, as tool.crf_torch.marginals has it: the same arguments and result.

    ValueError: another device than the CPU.

    All A go through the lattices at once, as A groups of labels that are normalised by themselves after every
    iteration: two maps then cost a quarter more than one.
    """
    if str(device) != 'cpu':
        raise ValueError(f"the CRF engine pydensecrf runs on the CPU, not on {device}: use the engine torch there")
    count, labels, height, width = unaries.shape
    carried = labels + (absent > 0)
    group = carried if carried < 3 else 4 * math.ceil(carried / 4)  # the lattices take labels by four: three are slower
    energies = np.full((count, group, height * width), PADDING_ENERGY, np.float32)
    energies[:, :carried] = absent_energy
    energies[:, :labels] = unaries.reshape(count, labels, -1)
    position, appearance = features_of(image, settings)
    field = DenseCRF(height * width, count * group)
    field.addPairwiseEnergy(position, compat=settings.gaussian_compat)
    field.addPairwiseEnergy(appearance, compat=settings.bilateral_compat)
    field.setUnaryEnergy(energies.reshape(count * group, -1))
    state = field.startInference()
    values = np.asarray(state[0]).T.reshape(-1, group)  # a view: every step writes it
    members = np.zeros((group, group), np.float32)
    members[:carried] = absent
    members[:labels] = 1
    # Normalise in chunks: they fit the cache and are too small for BLAS to spawn threads.
    chunks = np.array_split(values, math.ceil(len(values) * group ** 2 / CHUNK))
    for iteration in range(settings.iterations + 1):
        if iteration:
            field.stepInference(*state)
        for chunk in chunks:
            chunk /= chunk @ members  # the product: a group's sum, repeated for each of its labels
    values = values.reshape(height, width, count, group)[..., :carried]
    return np.ascontiguousarray(values.transpose(2, 3, 0, 1))


def features_of(image, settings):
    """The kernels' feature vectors per pixel: position (2, H·W) and position with colour (5, H·W), float32."""
    height, width = image.shape[:2]
    columns = np.tile(np.arange(width, dtype=np.float32), height)
    rows = np.arange(height, dtype=np.float32).repeat(width)
    position = np.stack([columns, rows] if settings.axes == 'xy' else [rows, columns])
    appearance = np.empty((5, height * width), np.float32)
    np.divide(position, np.float32(settings.bilateral_sxy), out=appearance[:2])
    np.divide(image.reshape(-1, 3).T, np.float32(settings.bilateral_srgb), out=appearance[2:])
    return position / np.float32(settings.gaussian_sxy), appearance

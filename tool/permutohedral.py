"""Gaussian filters on the permutohedral lattice, as products of sparse matrices. METHOD 10.4, 10.5.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010; the
constants and the symmetric normalisation are those of Krähenbühl and Koltun, NIPS 2011.

    from tool.permutohedral import GaussianKernel

    kernel = GaussianKernel(features)   # float32 (d, N): each pixel's features, each divided by its standard deviation
    smooth = kernel(values)             # float32 (N, columns) in and out, on the device of the features

Splat (points × pixels), d + 1 blurs (points × points) and slice (pixels × points) are matrices with few entries a row.
F.embedding_bag multiplies by one: each row of its result is a weighted sum of a few rows of a table. It neither adds
atomically nor in an order that depends on the number of threads, so a filter gives the same bytes every time.
"""
import math

import numpy as np
import torch
from torch.nn.functional import embedding_bag, pad

# Entries of a row that are summed at once. On a GPU a row is one thread's work, and a plain sky gathers thousands.
LONGEST = 128
# Numbers of possible points below which keys are int32 and int64: half of what the types hold, since a step to a
# neighbour leaves the range of the keys. Keys in 32 bits sort in half the time.
INT32_KEYS, INT64_KEYS = 2 ** 30, 2 ** 62
BLOCK = 2 ** 16  # pixels whose simplices are found at once: enough work for a call, yet little memory
TINY = 1e-20  # added to a pixel's degree before the square root, as in the authors' code


class GaussianKernel:
    """weight · K̃, a symmetrically normalised Gaussian kernel between pixels: k̃_ij = k_ij / √(d_i d_j), d_i = Σ_j k_ij.

    features: float32 (d, N), each divided by its standard deviation; d and N at least 1. k is the Gaussian as the
    lattice approximates it. Calling the kernel on float32 (N, columns), which must be contiguous, gives the product
    with each column. Columns are cheap: time goes into looking rows up.
    ValueError: features that spread over more lattice points than a 64-bit key can number.
    """

    def __init__(self, features, weight=1.):
        d, pixels = features.shape
        keys, barycentric, strides, spans = corner_keys(features)
        keys, order = sort(keys)
        points, starts, point = distinct(keys, order)
        del keys  # d + 1 entries a pixel, in 64 bits: what is freed here and below decides the peak of memory
        barycentric = barycentric.flatten()
        share = barycentric.index_select(0, order)
        pixel = order.int().div_(d + 1, rounding_mode='floor')
        del order
        ends = torch.arange(pixels + 1, dtype=torch.int32, device=features.device) * (d + 1)
        # The blurs' weights add up to more than 1; the authors divide by 1 + 2^−d, whatever the lattice.
        slices = point, barycentric.mul_(1 / (1 + 2. ** -d)), ends
        self.matrices = [*splat(pixel, share, starts), *blurs(points, strides, spans), slices]
        degree = self(torch.ones(pixels, 1, device=features.device))
        # Both sides of the normalisation go into weights that are there already: of the splat and of the slice.
        scale = degree.add_(TINY).rsqrt_()
        share *= scale.flatten().index_select(0, pixel)
        barycentric.view(pixels, d + 1).mul_(scale * weight)

    def __call__(self, values):
        for columns, weights, starts in self.matrices:
            values = embedding_bag(columns, values, starts, mode='sum', per_sample_weights=weights,
                                   include_last_offset=True)
        return values


def simplices(features):
    """The lattice's simplex round each pixel.

    features: float32 (d, N). Returns nearest float32 (d + 1, N), turn int8 (d + 1, N), barycentric float32 (N, d + 1).

    Corner 0 of the simplex is (d + 1) · nearest, whole numbers that add up to 0. On the way from a corner to the next
    every coordinate grows by 1, but for one that falls by d; turn: the number of corners before the coordinate's fall
    (d less its rank in the paper). barycentric: the weights of the corners; a pixel's add up to 1.
    """
    d = len(features)
    residual = elevate(features)
    nearest = (residual * single(1 / (d + 1))).round_()
    residual.sub_(nearest, alpha=d + 1)
    # The coordinate with the smallest residual falls first. Where `nearest` does not add up to 0, turns start later.
    turn = nearest.sum(0).neg_().to(torch.int8).repeat(d + 1, 1)
    for i in range(d):
        for j in range(i + 1, d + 1):
            less = residual[i] < residual[j]
            turn[j] += less
            turn[i] += less.logical_not_()
    # Turns outside 0..d belong to coordinates that were rounded the wrong way: they move by a cell.
    over = turn.div(d + 1, rounding_mode='floor')
    nearest += over
    turn -= over * (d + 1)
    residual.sub_(over, alpha=d + 1).mul_(single(1 / (d + 1)))
    rising = torch.empty_like(residual).scatter_(0, turn.long(), residual)  # residuals in the order of the turns
    return nearest, turn, torch.cat([rising[:1] + (1 - rising[-1:]), rising.diff(dim=0)]).t().contiguous()


def elevate(features):
    """Pixels in the lattice's hyperplane Σ x = 0: float32 (d, N) → (d + 1, N), in units of 1 / (d + 1) of a cell.

    The same float32 operations in the same order as the authors' code, so that every pixel falls into their simplex.
    """
    d, pixels = features.shape
    elevated, total = features.new_empty(d + 1, pixels), features.new_zeros(pixels)
    for i in range(d, 0, -1):
        feature = features[i - 1] * single(single(math.sqrt(2 / 3) * (d + 1)) / math.sqrt(i * (i + 1)))
        elevated[i] = total - i * feature  # rounded after the product and after the difference: not sub's alpha
        total += feature
    elevated[0] = total
    return elevated


def corner_keys(features):
    """A number for the lattice point at each corner of each pixel's simplex: equal for equal points.

    features: float32 (d, N). Returns keys int32 or int64 (N, d + 1), barycentric float32 (N, d + 1), strides and spans,
    lists of d. A point is known by its d digits, nearest[i] − nearest[0] at the corner; its key has them in mixed
    radix: digit i runs over spans[i] values, which count strides[i] each. Keys are compact: differences to one
    coordinate fit 32 bits where the coordinates themselves would not.
    """
    d, pixels = features.shape
    digits = torch.empty(d, pixels, dtype=torch.int32, device=features.device)
    turns = torch.empty(pixels, dtype=torch.int32, device=features.device)
    barycentric = features.new_empty(pixels, d + 1)
    for block in map(slice, range(0, pixels, BLOCK), range(BLOCK, pixels + BLOCK, BLOCK)):
        nearest, turn, barycentric[block] = simplices(features[:, block])
        digits[:, block] = nearest[1:] - nearest[0]
        turns[block] = sum(each.int() * (d + 1) ** i for i, each in enumerate(turn[1:]))
    low, high = digits.aminmax(dim=1)
    # Room for the corners, which lie up to 1 beside, and for their neighbours, which need not exist.
    low, spans = torch.stack([low - 2, high - low + 5]).tolist()  # together: a GPU is waited for
    strides = [math.prod(spans[i + 1:]) for i in range(d)]
    if math.prod(spans) >= INT64_KEYS:
        raise ValueError(f'features spread over {math.prod(spans):.1e} lattice points: divide them by larger widths')
    dtype = torch.int32 if math.prod(spans) < INT32_KEYS else torch.int64
    key = torch.zeros(pixels, dtype=dtype, device=features.device)
    for digit, least, stride in zip(digits, low, strides):
        key += (digit.to(dtype) - least) * stride
    keys = corner_walks(strides).to(features.device, dtype).index_select(0, turns)
    return keys.add_(key[:, None]), barycentric, strides, spans


def corner_walks(strides):
    """How far a simplex's corners are from corner 0, in keys, for every order of turns: int64 ((d + 1)^d, d + 1).

    A row's number is turn[1:] in radix d + 1, the first digit least. nearest[i] falls by 1 in its turn, and with it
    digit i; when nearest[0] falls, all digits grow. Corner c has had c falls, so those that are not seen in turn[1:]
    were nearest[0]'s.
    """
    d = len(strides)
    corner = torch.arange(d + 1)
    turn = torch.arange((d + 1) ** d)[:, None] // (d + 1) ** corner[:d] % (d + 1)
    fallen = turn[:, None] < corner[:, None]  # (codes, corners, d)
    return corner * sum(strides) - (fallen * (torch.tensor(strides) + sum(strides))).sum(-1)


def sort(keys):
    """All entries in the order of their keys, those of one key in the order of pixels.

    keys: (N, d + 1), which may be overwritten; E = N · (d + 1) entries. Returns keys (E,) and order int64 (E,): which
    entry comes where.
    """
    pixels, corners = keys.shape
    flat, bits = keys.flatten(), keys.numel().bit_length()
    if keys.device.type != 'cpu' or int(flat.max()).bit_length() + bits > 63:
        return flat.sort(stable=True)
    # Key and entry in one number, sorted in place: on a CPU as quick as torch.sort, in a third of the memory.
    packed = keys.to(torch.int64, copy=True).bitwise_left_shift_(bits)
    packed += torch.arange(pixels)[:, None] * corners
    packed += torch.arange(corners)
    packed = packed.flatten().numpy()
    packed.sort()
    np.right_shift(packed, bits, out=flat.numpy(), casting='unsafe')
    packed &= 2 ** bits - 1
    return flat, torch.from_numpy(packed)


def distinct(keys, order):
    """The lattice points among the keys of all entries.

    keys: (E,), ascending. order int64 (E,): see sort. Returns points: the M distinct keys, ascending; starts int64
    (M,): where each point's entries begin; point int32 (E,): the point of each entry, in the order before the sort.
    """
    first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    starts = first.nonzero().flatten()
    ids = first.cumsum(0, dtype=torch.int32).sub_(1)
    return keys.index_select(0, starts), starts, torch.empty_like(ids).scatter_(0, order, ids)


def splat(pixel, share, starts):
    """The splat: one matrix or, where a row has more than LONGEST entries, two, sums of parts and sums of these sums.

    pixel int32, share float32 (E,): the entries of all points, point by point. starts int64 (M,): see distinct.
    A last row is added, without entries and so always 0: it stands for every point that does not exist.
    """
    counts = pad(starts, (0, 1), value=len(pixel)).diff()
    pieces = (counts + (LONGEST - 1)).div_(LONGEST, rounding_mode='floor')
    row = torch.repeat_interleave(pieces)
    if len(row) == len(starts):
        return [(pixel, share, pad(starts, (0, 2), value=len(pixel)).int())]
    ends = pieces.cumsum(0)
    nth = torch.arange(len(row), device=pixel.device) - (ends - pieces).index_select(0, row)
    begin = nth.mul_(LONGEST).add_(starts.index_select(0, row))
    ends = torch.cat([ends.new_zeros(1), ends, ends[-1:]]).int()
    return [(pixel, share, pad(begin, (0, 1), value=len(pixel)).int()),
            (torch.arange(len(row), dtype=torch.int32, device=pixel.device), None, ends)]


def blurs(points, strides, spans):
    """The blur along each of the d + 1 axes: a point, half of the one before it and half of the one after it.

    points: keys (M,), ascending. strides, spans: see corner_keys. Yields the matrices' (columns, weights, starts).
    Sorted by the line along an axis on which they lie, neighbours stand side by side. A blur's rows stay in that order,
    which the next blur's columns know; the last axis has stride 1, and its order is that of the keys again.
    Neighbours that do not exist are row M, which is 0.
    """
    missing, device = len(points), points.device
    place = rows = torch.arange(missing, dtype=torch.int32, device=device)  # place: a point's row in the table
    weights = torch.full((missing, 3), .5, device=device)
    weights[:, 1] = 1
    starts = pad(torch.arange(missing + 1, dtype=torch.int32, device=device) * 3, (0, 1), value=3 * missing)
    for axis, step in enumerate([sum(strides), *strides]):  # along axis 0 nearest[0] falls and all digits grow
        digit = max(axis - 1, 0)
        line = points - points // strides[digit] % spans[digit] * step
        order = line.sort(stable=True).indices
        linked = points.index_select(0, order).diff() == step
        column = place.index_select(0, order)
        columns = torch.full((missing, 3), missing, dtype=torch.int32, device=device)
        columns[:, 1] = column
        columns[1:, 0] = column[:-1].where(linked, missing)
        columns[:-1, 2] = column[1:].where(linked, missing)
        place = torch.empty_like(rows).scatter_(0, order, rows)
        yield columns.flatten(), weights.flatten(), starts


def single(number):
    """A number as float32 has it."""
    return torch.tensor(number, dtype=torch.float32).item()

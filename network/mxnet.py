"""Reading MXNet parameter files (`.params`) of the ImageNet ResNet-38 without MXNet. METHOD 2.1."""
import math
import re
import struct
from pathlib import Path

import numpy as np
import torch

from engine.errors import UserError

MXNET_LIST, MXNET_V1, MXNET_V2 = 0x112, 0xF993FAC8, 0xF993FAC9
MXNET_TYPES = dict(enumerate(('<f4', '<f8', '<f2', 'u1', '<i4', 'i1', '<i8')))
MXNET_MAX_DIMS = 32


class _Bytes:
    """A cursor over the bytes of a file. A damaged length raises ValueError here, before memory is allocated for it."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        """The next `size` bytes. ValueError where the file ends earlier."""
        if size > len(self.data) - self.at:
            raise ValueError(f'it ends at byte {len(self.data)}, inside an entry of {size} bytes')
        self.at += size
        return self.data[self.at - size:self.at]

    def numbers(self, code, count=1):
        """`count` little-endian numbers of a struct code, as a tuple."""
        return struct.unpack(f'<{count}{code}', self.take(count * struct.calcsize(f'<{code}')))


def _read_ndarray(file):
    """One MXNet NDArray at the cursor, as float32. The three layouts differ in the words before the shape:

    legacy: ndim uint32, dims uint32. V1: magic uint32, ndim uint32, dims int64. V2: magic, storage type int32 (0 is
    dense), then as V1. All go on with the device (two int32), the type int32 and the values.
    """
    first, = file.numbers('I')
    if first == MXNET_V2 and file.numbers('i') != (0,):
        raise ValueError('an array in it is sparse')
    if first in (MXNET_V1, MXNET_V2):
        code, (ndim,) = 'q', file.numbers('I')
    else:
        code, ndim = 'I', first
    if not 1 <= ndim <= MXNET_MAX_DIMS:
        raise ValueError(f'an array in it has {ndim} dimensions')
    shape = file.numbers(code, ndim)
    if min(shape) < 0:
        raise ValueError(f'an array in it has shape {shape}')
    file.take(8)  # the device that the array was saved from
    kind, = file.numbers('i')
    if kind not in MXNET_TYPES:
        raise ValueError(f'an array in it has the unknown type {kind}')
    dtype = np.dtype(MXNET_TYPES[kind])
    values = np.frombuffer(file.take(math.prod(shape) * dtype.itemsize), dtype)
    with np.errstate(over='ignore'):  # a float64 beyond float32 becomes inf, which load_weights refuses
        return torch.from_numpy(values.astype(np.float32).reshape(shape))


def read_mxnet(path):
    """Read an MXNet parameter file of the ImageNet ResNet-38: dict of our key → float32 tensor.

    Reads all three layouts that MXNet has written (legacy, V1, V2). The classifier (linear1000) is dropped. A name that
    ResNet-38 lacks stays as it is, so that the load reports the array as left over. UserError: malformed file, with
    what is wrong in it.
    """
    file = _Bytes(memoryview(Path(path).read_bytes()))
    try:
        if file.numbers('Q', 2)[0] != MXNET_LIST:
            raise ValueError('it does not begin as one')
        arrays = [_read_ndarray(file) for _ in range(file.numbers('Q')[0])]
        keys = [mxnet_key(bytes(file.take(file.numbers('Q')[0])).decode()) for _ in range(file.numbers('Q')[0])]
        if len(keys) != len(arrays) or len(set(keys)) != len(keys):
            raise ValueError(f'{len(keys)} names, {len(set(keys))} of them different, for {len(arrays)} arrays')
    except (ValueError, struct.error, OverflowError) as error:
        raise UserError(path, f'not an MXNet parameter file ({error})', 'download it again') from error
    return {key: array for key, array in zip(keys, arrays) if not key.startswith('linear1000')}


def mxnet_key(name):
    """Our key of an MXNet name: `arg:res2b1_branch2a_weight` → `b2_1.conv_branch2a.weight`."""
    name = name.split(':')[-1]
    match = re.fullmatch(r'(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)', name)
    if match:
        kind, stage, index, branch, field = match.groups()
        block = f'b{stage}_{index}' if index else f'b{stage}'
        layer = f'{block}.{"conv" if kind == "res" else "bn"}_{branch}'
    else:
        match = re.fullmatch(r'(conv1a|bn7)_(weight|gamma|beta|moving_mean|moving_var)', name)
        if not match:
            return name
        layer, field = match.groups()
    fields = {'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean', 'moving_var': 'running_var'}
    return f'{layer}.{fields.get(field, field)}'

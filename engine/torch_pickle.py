"""PyTorch tensors inside plain pickles, read as NumPy arrays without torch: engine/safe_pickle.py calls it.

CAM files of IRN and what descends from it hold tensors that pickle itself wrote. Such a tensor is a call of
_rebuild_tensor_v2 on a storage, and its storage the bytes that torch.save wrote, in the older format: a magic number,
the protocol, a dict on the system, the storage's description, the list of storages, then each one's length and numbers.
"""
import io
import math
import pickle
import pickletools

import numpy as np

MAGIC, PROTOCOL = 0x1950a86a20f9469cfc6c, 1001
TYPES = {'Float': 'f4', 'Double': 'f8', 'Half': 'f2', 'Long': 'i8', 'Int': 'i4', 'Short': 'i2', 'Char': 'i1',
         'Byte': 'u1', 'Bool': '?'}


class _Storage:
    """The numbers of a storage: `value` is a flat array."""

    def __init__(self, value):
        self.value = value


class _Unpickler(pickle.Unpickler):
    """Reads the pickles before the numbers: plain values, and the description of one storage."""

    def find_class(self, module, name):
        if module == 'torch' and name.endswith('Storage') and name[:-7] in TYPES:
            return TYPES[name[:-7]]
        raise pickle.UnpicklingError(f'it names {module}.{name}, which is no storage of a tensor')

    def persistent_load(self, description):
        kind, dtype, key, _, count, *_ = description
        if kind != 'storage' or dtype not in TYPES.values() or type(count) is not int:
            raise pickle.UnpicklingError('it holds a tensor of no known kind')
        return np.dtype(dtype), key, count


def check_memo(file, length):
    """Read on to the end of a pickle; refuse a memo index beyond `length`: the unpickler allocates a table up to it."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > length:
            raise pickle.UnpicklingError(f'it stores an object as its number {argument}')


def _load(file, length):
    """The content of the next pickle of a storage's bytes, `length` of them in all."""
    start = file.tell()
    check_memo(file, length)
    file.seek(start)
    return _Unpickler(file).load()


def load_storage(data):
    """Stand-in for torch.storage._load_from_bytes: the _Storage in the bytes of one."""
    file = io.BytesIO(data)
    magic, protocol, _, (dtype, key, count), keys = (_load(file, len(data)) for _ in range(5))
    if (magic, protocol, keys) != (MAGIC, PROTOCOL, [key]):
        raise pickle.UnpicklingError('it holds a tensor of another format than torch.save had')
    numbers = data[file.tell() + 8:]  # after their count, 8 bytes
    if len(numbers) != count * dtype.itemsize:
        raise pickle.UnpicklingError(f'it holds {len(numbers)} bytes for a tensor of {count} {dtype}')
    return _Storage(np.frombuffer(numbers, dtype).copy())


def rebuild_tensor(storage, offset, size, stride, *_):
    """Stand-in for torch._utils._rebuild_tensor_v2: the array of a tensor, a part of its storage."""
    sides = (*size, *stride, offset)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 32 or not all(
            type(side) is int and side >= 0 for side in sides):
        raise pickle.UnpicklingError('it holds a tensor of no possible shape')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    values = storage.value
    if math.prod(size) > values.size or math.prod(size) and last >= values.size:
        raise pickle.UnpicklingError(f'it holds a tensor of shape {tuple(size)} in {values.size} numbers')
    if not math.prod(size):
        return np.zeros(size, values.dtype)
    strides = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], tuple(size), strides).copy()

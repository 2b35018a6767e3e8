"""Reading pickles of NumPy arrays and plain containers without running code, and without NumPy's own unpickling.

NumPy does not check the state that a pickle gives to dtypes and arrays, and a corrupt file can crash the process. Here
the names in array pickles stand for classes and functions that check the state and build the array from its bytes.
"""
import collections
import io
import math
import pickle
import re
import sys

import numpy as np

from engine import torch_pickle

MAX_DIMS = 32
FOLDED = 4  # objects a byte, at most; one that does not recur takes a byte or more


class _Dtype:
    """Stand-in for numpy.dtype: numbers, booleans and strings of a fixed size, or (`O`) objects."""

    def __init__(self, code, align=False, copy=True):
        if not re.fullmatch(r'O8?|[USbiufc]\d{1,4}', code):
            raise pickle.UnpicklingError(f'it holds values of type {code}')
        self.value = np.dtype('O' if code == 'O8' else code)

    def __setstate__(self, state):
        order, fields = state[1], state[2:5]
        if order not in ('<', '>', '|', '=') or any(field is not None for field in fields):
            raise pickle.UnpicklingError('it holds structured values')
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stand-in for numpy.ndarray; `value` is the array once its state has been read."""

    value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _build(data, dtype, shape, 'F' if fortran else 'C')


def _build(data, dtype, shape, order='C'):
    """The array of a _Dtype and shape in `data`: raw bytes or, for objects, a list."""
    if type(shape) is not tuple or len(shape) > MAX_DIMS or any(type(side) is not int or side < 0 for side in shape):
        raise pickle.UnpicklingError('it holds an array of no possible shape')
    if not isinstance(data, (bytes, bytearray, str, list)):
        raise pickle.UnpicklingError(f'it holds a {type(data).__name__} for the values of an array')
    dtype, count = dtype.value, math.prod(shape)
    if dtype.hasobject:
        if type(data) is not list or len(data) != count:
            raise pickle.UnpicklingError('it holds an array of objects without as many objects')
        array = np.empty(count, object)
        for i, item in enumerate(data):
            array[i] = item
        return array.reshape(shape, order=order)
    data = data.encode('latin1') if isinstance(data, str) else data  # str: bytes as written by Python 2
    if len(data) != count * dtype.itemsize:
        raise pickle.UnpicklingError(f'it holds {len(data)} bytes for an array of {count} {dtype}')
    if dtype.kind == 'U' and data and np.frombuffer(data, dtype.str[0] + 'u4').max() > sys.maxunicode:
        raise pickle.UnpicklingError('it holds text that is no text')
    return np.frombuffer(data, dtype).copy().reshape(shape, order=order)


def _reconstruct(kind, shape, code):
    """Stand-in for numpy's _reconstruct: an array whose state comes later in the pickle."""
    return _Array()


def _scalar(dtype, data):
    """Stand-in for numpy's scalar: a value from its bytes."""
    return _build(data, dtype, (1,))[0]


def _encode(text, encoding):
    """Stand-in for _codecs.encode, with which pickle protocols before 3 write bytes."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'it encodes text as {encoding}')
    return text.encode('latin1')


def _no_bytes():
    """Stand-in for bytes(), with which pickle protocols before 3 write b''; bytes(n) of a large n would fill memory."""
    return b''


_KNOWN = {('numpy', 'ndarray'): _Array, ('numpy', 'dtype'): _Dtype, ('_codecs', 'encode'): _encode,
          ('__builtin__', 'bytes'): _no_bytes, ('collections', 'OrderedDict'): collections.OrderedDict}
for _core in ('numpy.core', 'numpy._core'):  # names before NumPy 2 and since
    _KNOWN |= {(f'{_core}.multiarray', '_reconstruct'): _reconstruct, (f'{_core}.multiarray', 'scalar'): _scalar,
               (f'{_core}.numeric', '_frombuffer'): _build}


_KNOWN |= {('torch._utils', '_rebuild_tensor_v2'): torch_pickle.rebuild_tensor,
           ('torch.storage', '_load_from_bytes'): torch_pickle.load_storage}

_PLAIN = (np.ndarray, np.generic, dict, list, tuple, set, str, bytes, int, float, complex, type(None))


class _Unpickler(pickle.Unpickler):
    """Resolves the names in _KNOWN and refuses all others."""

    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f'it names {module}.{name}, which is neither an array nor a plain container')
        return _KNOWN[module, name]


class _Plain:
    """A call gives a value with arrays in place of the stand-ins.

    Objects can recur, so that a list of two of the same list of two … unfolds to more than any memory holds, once it
    becomes an array. More than `most` objects, each counted where it recurs, are refused.
    """

    def __init__(self, most):
        self.most, self.done = most, {}  # done: {id of an object: its result and the number of objects in it}

    def __call__(self, value):
        if id(value) not in self.done:
            self.done[id(value)] = self.convert(value)
        return self.done[id(value)][0]

    def convert(self, value):
        result, parts = value, []
        if isinstance(value, _Array):
            result = value.value
            if isinstance(result, np.ndarray) and result.dtype.hasobject:
                parts = result.ravel().tolist()
                for index in np.ndindex(result.shape):
                    result[index] = self(result[index])
        elif isinstance(value, dict):
            parts = [*value.keys(), *value.values()]
            result = {self(key): self(item) for key, item in value.items()}
        elif isinstance(value, (list, tuple, set)):
            parts = value
            result = type(value)(self(item) for item in value)
        if not isinstance(result, _PLAIN):
            raise pickle.UnpicklingError(f'it holds a {type(result).__name__}')
        count = 1 + sum(self.done[id(part)][1] for part in parts)
        if count > self.most:
            raise pickle.UnpicklingError('it unfolds to more objects than it holds')
        return result, count


def load(file):
    """Unpickle from an open binary file: arrays, NumPy scalars, plain containers, text and numbers; nothing else.

    PyTorch's tensors come back as arrays.

    On a malformed or hostile file: pickle.UnpicklingError or whatever else the damage leads to (ValueError, EOFError,
    TypeError, …): never code run, and never more memory than a small multiple of the file.
    """
    data = file.read()
    torch_pickle.check_memo(io.BytesIO(data), len(data))
    return _Plain(FOLDED * len(data))(_Unpickler(io.BytesIO(data), encoding='latin1').load())

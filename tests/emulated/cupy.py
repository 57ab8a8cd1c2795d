"""The part of CuPy that gradstep and its tests use, on emulated devices (see cuda_runtime.h)."""

import ctypes
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from gradstep import _cuda

STREAM = 0xC0FFEE  # an arbitrary handle that tests recognise
_devices = [0]


class ndarray:
    """An array of device memory. `host` is the same memory, only for tests."""

    def __init__(self, host, base, device):
        self.host, self.base, self.device = host, base, SimpleNamespace(id=device)

    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)

    def swapaxes(self, a, b):
        return ndarray(self.host.swapaxes(a, b), self.base, self.device.id)

    @property
    def __cuda_array_interface__(self):
        about = self.host.__array_interface__
        strides = None if self.host.flags.c_contiguous else self.host.strides
        data = (about["data"][0] if self.size else 0, False)
        return {**about, "data": data, "strides": strides, "version": 3, "stream": 1}

    def __getitem__(self, key):
        return ndarray(self.host[key], self.base, self.device.id)

    def __setitem__(self, key, value):
        self.check_device()
        self.host[key] = value.host if isinstance(value, ndarray) else value

    def copy(self, order="C"):
        self.check_device()
        return asarray(self.host.copy(order=order))

    def check_device(self):
        """CuPy computes only on the current device."""
        assert self.device.id == _devices[-1]


class _Block:
    """A piece of device memory."""

    def __init__(self, size):
        self.data = _cuda.allocate(size, _devices[-1])
        weakref.finalize(self, _cuda.release, self.data)


def empty(shape, dtype=np.float32):
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    block = _Block(max(1, count * dtype.itemsize))
    buffer = (ctypes.c_char * max(1, count * dtype.itemsize)).from_address(block.data)
    return ndarray(np.frombuffer(buffer, dtype, count).reshape(shape), block, _devices[-1])


def zeros(shape, dtype=np.float32):
    made = empty(shape, dtype)
    made.host[...] = 0
    return made


def asarray(values):
    if isinstance(values, ndarray):
        return values
    if hasattr(values, "__cuda_array_interface__"):
        return ndarray(np.asarray(SimpleNamespace(__array_interface__=values.__cuda_array_interface__)), values, 0)
    axes = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
    made = transpose(empty([values.shape[axis] for axis in axes], values.dtype), np.argsort(axes))
    made.host[...] = values
    return made


def transpose(array, axes):
    return ndarray(array.host.transpose(axes), array.base, array.device.id)


def asnumpy(array):
    return array.host.copy(order="C")


@contextmanager
def _device(number):
    assert number >= 0
    _devices.append(number)
    try:
        yield
    finally:
        _devices.pop()


cuda = SimpleNamespace(Device=_device, get_current_stream=lambda: SimpleNamespace(ptr=STREAM))

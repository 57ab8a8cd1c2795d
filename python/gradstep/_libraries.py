"""The libraries whose arrays are stepped: NumPy's and torch's on the processor, CuPy's and torch's on a GPU."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import compress
from types import ModuleType
from typing import Any, Final

import numpy as np

from . import _core
from ._types import Array, Column

BFLOAT16_EXTRA: Final = 'pip install "gradstep[bfloat16]"'


def bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16. Raises ModuleNotFoundError, with what to install, where it is missing."""
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"bfloat16 is the dtype of the package ml_dtypes: {BFLOAT16_EXTRA}") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of that name."""
    return bfloat16() if name == "bfloat16" else np.dtype(name)


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of one of NumPy's dtypes, which takes NumPy microseconds."""
    return str(dtype.name)


LINE, PAGE = 64, 4096
"""Bytes of a cache line, and of the distance at which lines compete for the same sets of an L1 cache."""
OFFSET = 13 * LINE  # whole lines, so that all arrays begin at the same byte of a line
"""Bytes between the offsets within a page of a parameter, its states and its master and average, six arrays at most."""
OFFSET_FROM = 1 << 16
"""Bytes of the smallest array that gets an offset."""
SHARED_BELOW = 1024
"""Elements of the smallest array whose states have an allocation of their own."""
ZEROS_USE_HUGE_PAGES = np.lib.NumpyVersion(np.__version__) >= "2.2.0"
"""Whether `numpy.zeros` asks Linux for huge pages from 4 MB on, as `numpy.empty` does in all versions."""


def offset_zeros(shape: tuple[int, ...], dtype: np.dtype[Any], address: int, place: int) -> Array:
    """NumPy zeros, on huge pages where the system has them, `place` times OFFSET further within a page than an address.

    NumPy's large arrays all have the same offset within a page. On AMD processors, arrays with the same offset whose
    addresses are about a power of two apart evict each other from the L1 cache: on an EPYC (Zen 4) a step of Adam on
    2**24 elements took 1.4 times as long, and a few percent longer at most other sizes. NumPy allocates
    small arrays.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < OFFSET_FROM:
        return np.zeros(shape, dtype)
    memory = (np.zeros if ZEROS_USE_HUGE_PAGES else np.empty)(size + PAGE, np.uint8)
    if not ZEROS_USE_HUGE_PAGES:
        memory.fill(0)
    first = (address // dtype.itemsize * dtype.itemsize + OFFSET * place - memory.ctypes.data) % PAGE
    return memory[first : first + size].view(dtype).reshape(shape)


def plain(array: Any) -> Any:
    """A NumPy array as a plain ndarray, because a subclass may override attributes; anything else unchanged."""
    if type(array) is np.ndarray or not isinstance(array, np.ndarray):
        return array
    return np.ndarray.view(array, np.ndarray)


class Library:
    """NumPy, and the interface of other array libraries. Types have their NumPy names."""

    name = "numpy"
    on_gpu = False

    @property
    def core(self) -> Any:
        """The extension module that steps these arrays."""
        return _core

    @property
    def module(self) -> Any:
        """The library itself."""
        return np

    def own(self, array: Any) -> Array:
        """Converts an array to one of the library's, without a copy."""
        own: Array = plain(array)
        return own

    def dtype(self, array: Array) -> str:
        """The name of an array's type."""
        return dtype_name(array.dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str, beside: Array, place: int = 0) -> Array:
        """Zeros in C order, on the device of another array; `place` sets the offset of large ones within a page."""
        return offset_zeros(shape, numpy_dtype(dtype), beside.ctypes.data, place)

    def strides(self, array: Array) -> tuple[int, ...]:
        """The distances of neighbours along each axis, in one unit."""
        return array.strides

    def zeros_like(self, array: Array, dtype: str, place: int = 0) -> Array:
        """Zeros with the memory order of `array`, without gaps. No page is touched before the threads of a step do.

        (Before NumPy 2.2 the calling thread writes them, because only `numpy.empty` requests huge pages there.)
        """
        if array.ndim <= 1:
            return self.zeros(array.shape, dtype, array, place)
        strides = self.strides(array)
        axes = sorted(range(array.ndim), key=lambda axis: -abs(strides[axis]))
        zeros = self.zeros(tuple(array.shape[axis] for axis in axes), dtype, array, place)
        if axes == sorted(axes):
            return zeros
        return self.transpose(zeros, [axes.index(axis) for axis in range(array.ndim)])

    def transpose(self, array: Array, axes: list[int]) -> Array:
        """A view with these axes."""
        view: Array = self.module.transpose(array, axes)
        return view

    def zeros_like_each(self, arrays: Sequence[Array], dtype: str, places: Iterable[int]) -> list[Column]:
        """For each place, `zeros_like` of each array; small ones share an allocation."""
        is_small = [array.size < SHARED_BELOW for array in arrays]
        small = list(compress(arrays, is_small))
        made: list[Column] = []
        for place in places:
            zeros = _core.Zeros(small, numpy_dtype(dtype))
            if len(small) == len(arrays):
                made.append(zeros)
                continue
            together, each = iter(zeros), zip(arrays, is_small, strict=True)
            made.append([next(together) if fits else self.zeros_like(array, dtype, place) for array, fits in each])
        return made

    def fill(self, array: Array, value: float) -> None:
        """Sets all elements."""
        array[...] = value

    def copy(self, array: Array) -> Array:
        """A copy with the same memory order."""
        copy: Array = self.own(array).copy(order="K")
        return copy

    def assign(self, to: Array, values: Array) -> None:
        """Overwrites an array with the values of another of the library, whose type may differ."""
        np.copyto(to, values)

    def from_numpy(self, to: Array, values: Array) -> None:
        """Overwrites an array with one of NumPy's, of the same type."""
        to[...] = values

    def to_numpy(self, array: Array) -> Array:
        """A copy for NumPy."""
        copy: Array = array.copy()
        return copy

    def stream(self, device: int) -> int:
        """The handle of the library's current stream."""
        raise NotImplementedError


class OnGpu(Library):
    """The common base of libraries of GPU arrays."""

    on_gpu = True

    def zeros_like_each(self, arrays: Sequence[Array], dtype: str, places: Iterable[int]) -> list[Column]:
        return [[self.zeros_like(array, dtype, place) for array in arrays] for place in places]

    @property
    def core(self) -> Any:
        return cuda()

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(self.name)


class CuPy(OnGpu):
    """CuPy, which has NumPy's interface. Arrays of unknown libraries become CuPy views."""

    name = "cupy"

    @property
    def module(self) -> ModuleType:
        try:
            return super().module
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("the states of these GPU arrays need CuPy, which is not installed") from error

    def own(self, array: Any) -> Array:
        shows = hasattr(array, "__cuda_array_interface__")
        own: Array = self.module.asarray(array) if shows else self.module.from_dlpack(array)
        return own

    def zeros(self, shape: tuple[int, ...], dtype: str, beside: Array, place: int = 0) -> Array:  # noqa: ARG002
        with self._device_of(beside):
            zeros: Array = self.module.zeros(shape, numpy_dtype(dtype))
        return zeros

    def fill(self, array: Array, value: float) -> None:
        with self._device_of(array):
            super().fill(array, value)

    def copy(self, array: Array) -> Array:
        with self._device_of(array):
            return super().copy(array)

    def assign(self, to: Array, values: Array) -> None:
        with self._device_of(to):
            to[...] = self.module.asarray(values)

    def from_numpy(self, to: Array, values: Array) -> None:
        self.assign(to, values)

    def to_numpy(self, array: Array) -> Array:
        with self._device_of(array):
            values: Array = self.module.asnumpy(array)
        return values

    def stream(self, device: int) -> int:
        with self.module.cuda.Device(device) if device >= 0 else nullcontext():
            return int(self.module.cuda.get_current_stream().ptr)

    def _device_of(self, array: Any) -> AbstractContextManager[Any]:
        """A context in which CuPy uses an array's device."""
        scope: AbstractContextManager[Any] = self.module.cuda.Device(array.device.id)
        return scope


class Torch(Library):
    """torch, from the first version with DLPack's C interface: tensors on the processor."""

    name = "torch"

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(self.name)

    @property
    def core(self) -> Any:
        _add_types_of_torch()
        return super().core

    def own(self, array: Any) -> Any:
        return array

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def zeros(self, shape: tuple[int, ...], dtype: str, beside: Any, place: int = 0) -> Any:
        items = np.dtype(f"i{_core.dtypes()[dtype]['item_size']}")
        zeros = self.module.from_numpy(offset_zeros(shape, items, beside.data_ptr(), place))
        return zeros.view(getattr(self.module, dtype))

    def strides(self, array: Any) -> tuple[int, ...]:
        return tuple(array.stride())

    def transpose(self, array: Any, axes: list[int]) -> Any:
        return array.permute(axes)

    def zeros_like_each(self, arrays: Sequence[Any], dtype: str, places: Iterable[int]) -> list[Column]:
        return [[self.zeros_like(array, dtype, place) for array in arrays] for place in places]

    def fill(self, array: Any, value: float) -> None:
        array.detach().fill_(value)

    def copy(self, array: Any) -> Any:
        return array.detach().clone()

    def assign(self, to: Any, values: Any) -> None:
        to.detach().copy_(values.detach())

    def from_numpy(self, to: Any, values: Array) -> None:
        to.detach().copy_(self._tensor(values))

    def to_numpy(self, array: Any) -> Array:
        array = array.detach().to("cpu", copy=True)
        values: Array
        if self.dtype(array) == "bfloat16":  # torch cannot convert it to NumPy
            values = array.view(self.module.int16).numpy().view(bfloat16())
        else:
            values = array.numpy()
        return values

    def _tensor(self, values: Array) -> Any:
        values = np.require(values, requirements=["C", "W"])  # torch warns about read-only arrays
        if values.dtype.name != "bfloat16":
            return self.module.from_numpy(values)
        return self.module.from_numpy(values.view(np.int16)).view(self.module.bfloat16)


@cache
def _add_types_of_torch() -> None:
    """Lets the core see torch's tensors. Raises RuntimeError where this torch is too old."""
    torch = importlib.import_module(Torch.name)
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        raise RuntimeError("torch's tensors need torch 2.10 or newer, with DLPack's C interface")
    for cls in (torch.Tensor, torch.nn.Parameter):
        _core.add_tensor_type(cls, torch.Tensor.is_neg, torch._C._increment_version)


class TorchOnGpu(Torch, OnGpu):
    """torch's tensors on a GPU."""

    @property
    def core(self) -> Any:
        _add_types_of_torch()  # raises for an old version
        return cuda()

    def has(self, tensor: Any) -> bool:
        """Whether it is on a GPU."""
        return bool(tensor.is_cuda)

    def zeros(self, shape: tuple[int, ...], dtype: str, beside: Any, place: int = 0) -> Any:  # noqa: ARG002
        return self.module.zeros(shape, dtype=getattr(self.module, dtype), device=beside.device)

    def zeros_like(self, array: Any, dtype: str, place: int = 0) -> Any:  # noqa: ARG002
        return self.module.zeros_like(array.detach(), dtype=getattr(self.module, dtype))

    def stream(self, device: int) -> int:
        # current_stream() wraps the handle in an object, which takes microseconds.
        raw = getattr(self.module._C, "_cuda_getCurrentRawStream", None)
        if raw is not None and device >= 0 and self.module.cuda.is_initialized():
            return int(raw(device))
        return int(self.module.cuda.current_stream(device if device >= 0 else None).cuda_stream)


NUMPY: Final = Library()
CUPY: Final = CuPy()
TORCH: Final = Torch()
TORCH_ON_GPU: Final = TorchOnGpu()


def cuda() -> Any:
    """The CUDA backend. Raises RuntimeError, with what is missing, where it cannot be used."""
    try:
        return importlib.import_module("gradstep._cuda")
    except ImportError as error:
        raise RuntimeError(f"these arrays are on a GPU, but {cuda_missing(error)}") from error


def cuda_missing(error: ImportError) -> str:
    """Why the CUDA backend could not be imported."""
    if isinstance(error, ModuleNotFoundError):
        return "gradstep was built without its CUDA backend, which GRADSTEP_CUDA=ON builds where nvcc is found"
    return f"gradstep's CUDA backend cannot be loaded: {error}"


def library_of(array: Any) -> Library:
    """The library of an array; NumPy for other objects, which its core refuses."""
    if isinstance(array, np.ndarray):
        return NUMPY
    if TORCH.name in (base.__module__.partition(".")[0] for base in type(array).__mro__):
        return TORCH_ON_GPU if TORCH_ON_GPU.has(array) else TORCH
    return CUPY if hasattr(array, "__cuda_array_interface__") or _is_on_cuda(array) else NUMPY


def _is_on_cuda(array: Any) -> bool:
    """Whether DLPack reports a CUDA device."""
    return hasattr(array, "__dlpack_device__") and int(array.__dlpack_device__()[0]) in (2, 13)


def host_indices(indices: Any, name: str) -> Array:
    """The indices of a row gradient of arrays on a GPU, as packed int64 in host memory.

    Those on the GPU are waited for. Raises TypeError or ValueError where they are no integers of one axis.
    """
    if not isinstance(indices, np.ndarray):
        library = library_of(indices)
        if not library.on_gpu:
            raise TypeError(f"{name} must be an array of integers, not {type(indices).__name__}")
        indices = library.to_numpy(indices)
    if indices.dtype.kind not in "iu" or not indices.dtype.isnative:
        of_mask = "; numpy.flatnonzero(mask) gives the indices of a mask" if indices.dtype.kind == "b" else ""
        raise TypeError(f"{name} must be integers in native byte order, but have dtype {indices.dtype}{of_mask}")
    if indices.ndim != 1:
        raise ValueError(f"{name} must have one axis, but have {indices.ndim}")
    return np.ascontiguousarray(indices, np.int64)


def use_stream(library: Library, stepper: Any, stream: Any = None) -> None:
    """Sets the stream of a stepper's next step, by default the library's current one. Raises TypeError if invalid."""
    stepper.use_stream(stream_handle(library, stream, stepper.device))


def refuse_capture(library: Library, stepper: Any, words: str) -> None:
    """Raises RuntimeError with this message where the stepper's stream is captured in a graph."""
    if library.on_gpu and stepper.is_capturing:
        raise RuntimeError(words)


def stream_handle(library: Library, stream: Any = None, device: int = -1) -> int:
    """The handle of a stream of any library, or of the current one. Raises TypeError for something else."""
    if stream is None:
        return library.stream(device)
    for name in ("ptr", "cuda_stream", "handle"):
        if isinstance(getattr(stream, name, None), int):
            return int(getattr(stream, name))
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    raise TypeError(f"stream must be a CUDA stream or its handle, not {stream!r}")

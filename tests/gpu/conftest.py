"""The libraries whose GPU arrays are tested, CuPy and torch: on a GPU, or on the processor if CUDA is emulated."""

import os
import sys

import numpy as np
import pytest

from gradstep import _libraries, show_config

CUDA = show_config("dicts")["cuda"]
EMULATED = CUDA.get("architectures") == "none"


def pytest_collection_modifyitems(items):
    for item in items:
        if __package__ in item.nodeid.replace("/", "."):
            item.add_marker(pytest.mark.gpu)


class CuPy:
    """Arrays of CuPy."""

    def __init__(self):
        if EMULATED:
            from tests.emulated import cupy

            sys.modules["cupy"] = cupy
        self.module = pytest.importorskip("cupy")
        if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:  # compute-sanitizer needs one allocation per array
            self.module.cuda.set_allocator(None)

    def array(self, values):
        """A copy on the GPU with the strides of a NumPy array."""
        return self.module.asarray(values)

    def numpy(self, array):
        return self.module.asnumpy(array)

    def pointer(self, array):
        return array.__cuda_array_interface__["data"][0]


class Torch:
    """Tensors of torch."""

    def __init__(self):
        self.module = pytest.importorskip("torch")
        self.device = "cpu" if EMULATED else "cuda"

    def array(self, values):
        bfloat16 = values.dtype.name == "bfloat16"
        axes = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
        packed = np.array(values.transpose(axes), order="C")  # a writable copy
        tensor = self.module.from_numpy(packed.view(np.int16) if bfloat16 else packed)
        tensor = tensor.view(self.module.bfloat16) if bfloat16 else tensor
        return tensor.to(self.device, copy=True).permute(np.argsort(axes).tolist())

    def numpy(self, array):
        return _libraries.TORCH.to_numpy(array)

    def pointer(self, array):
        return array.data_ptr()


@pytest.fixture
def _cuda(monkeypatch):
    if not CUDA["available"]:
        pytest.skip(f"no GPU: {CUDA.get('reason', 'CUDA finds no device')}")
    if EMULATED:  # without a GPU, torch's tensors are in the processor's memory
        monkeypatch.setattr(_libraries.TorchOnGpu, "has", lambda _, array: not isinstance(array, np.ndarray))
        monkeypatch.setattr(_libraries.TorchOnGpu, "stream", lambda *_: 0)


@pytest.fixture
def gpu(_cuda):
    """CuPy, for tests of bits: it has all types, bfloat16 through ml_dtypes."""
    return CuPy()


@pytest.fixture(params=[CuPy, Torch], ids=["cupy", "torch"])
def library(request, _cuda):
    """Each library in turn, for tests that concern libraries."""
    return request.param()


@pytest.fixture
def emulated():
    """The emulation, which counts calls and can fail on request."""
    if not EMULATED:
        pytest.skip("a GPU does not say what was done")
    from gradstep import _cuda

    return _cuda

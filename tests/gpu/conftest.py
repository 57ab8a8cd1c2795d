"""The libraries whose GPU arrays are tested: CuPy and torch, on a GPU, or on the processor where CUDA is emulated."""

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
        if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:  # for compute-sanitizer each array is to be by itself
            self.module.cuda.set_allocator(None)

    def array(self, values):
        """A copy on the GPU that lies as NumPy's array does."""
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
        packed = np.array(values.transpose(axes), order="C")  # a copy that may be written
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
    if EMULATED:  # where torch has no GPU, its tensors in the processor's memory stand for others
        monkeypatch.setattr(_libraries.Torch, "has", lambda _, array: not isinstance(array, np.ndarray))
        monkeypatch.setattr(_libraries.Torch, "stream", lambda *_: 0)


@pytest.fixture
def gpu(_cuda):
    """For what is about bits, CuPy's arrays: it has every type but bfloat16 of its own, and that of ml_dtypes."""
    return CuPy()


@pytest.fixture(params=[CuPy, Torch], ids=["cupy", "torch"])
def library(request, _cuda):
    """For what is about libraries, each in turn."""
    return request.param()


@pytest.fixture
def emulated():
    """Of what was done, the emulation knows more than a GPU."""
    if not EMULATED:
        pytest.skip("a GPU does not say what was done")
    from gradstep import _cuda

    return _cuda

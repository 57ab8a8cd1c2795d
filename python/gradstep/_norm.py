"""The norm of all gradients together."""

from __future__ import annotations

from typing import Any

from . import _core
from ._libraries import library_of, stream_handle
from ._rows import Rows
from ._types import Grads


def global_norm(arrays: Grads, *, stream: Any = None) -> float:
    """The Euclidean norm of all elements of some arrays together.

    This is the norm that `clip_norm` limits, with the same bits where the arrays are in the order of params. (A step
    rounds float64 gradients of float32 and 16-bit parameters to float32 first.) Squares are added in float64, in an
    order that depends only on shapes: the bits do not depend on instruction set, number of threads or layout, and are
    the same on a GPU (`docs/numerics.md`). An array that is not in C order takes longer.

    Parameters
    ----------
    arrays : array, or any nesting of lists, tuples, named tuples, dicts and dataclasses of arrays
        float32, float64, float16 or bfloat16, of any shape and strides, NumPy's or all on one GPU. None among them
        stands for an array of zeros. The rows of a `Rows` are summed as a step sums them, in float64 where its values
        are float64, and in float32 otherwise.
    stream : a stream of CUDA, or its handle
        Where arrays on a GPU are read; by default the current stream of their library. The device is waited for.

    Returns
    -------
    float
        0 where there are no elements; infinity where squares overflow float64 (numbers above 1e154).

    Raises
    ------
    TypeError
        For an object that is not an array, or another dtype; for a stream where arrays are not on a GPU.
    ValueError
        For arrays of several devices.
    RuntimeError
        Where CUDA fails, or the stream is captured in a graph.
    """
    tree = _core.Tree(arrays, "arrays")
    first = tree.leaves[0] if tree.leaves else None
    library = library_of(first.values if isinstance(first, Rows) else first)
    if library.on_gpu:
        norm: float = library.core.global_norm(
            library.core.Tree(arrays, "arrays"), lambda device: stream_handle(library, stream, device)
        )
        return norm
    if stream is not None:
        raise TypeError("global_norm: stream is for arrays on a GPU, and these are NumPy's")
    return _core.global_norm(tree)

"""The norm of all gradients together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ._libraries import library_of, stream_handle
from ._structure import Grads, is_array


def global_norm(arrays: Grads, *, stream: Any = None) -> float:
    """The Euclidean norm of all elements of some arrays together.

    It is what the optimizers' `clip_norm` limits, to the bit where the arrays are in the order of params; but for
    float64 gradients of other parameters, which a step rounds to float32 before their norm is taken. Squares
    are added up in float64, in an order that depends on shapes alone: the bits are the same on every instruction set,
    number of threads, layout, and on a GPU (`docs/numerics.md`). An array that is not in C order takes longer.

    Parameters
    ----------
    arrays : array, list, tuple or dict of arrays, or a nest of those
        float32, float64, float16 or bfloat16, of any shape and strides, NumPy's or all on one GPU. None among them
        stands for an array of zeros.
    stream : a stream of CUDA, or its handle
        Where arrays on a GPU are read; by default the current stream of their library. The device is waited for.

    Returns
    -------
    float
        0 where there are no elements; infinity where squares of float64, of numbers from 1e154 on, are beyond it.

    Raises
    ------
    TypeError
        For something that is no array, or another dtype; for a stream where there is no GPU.
    ValueError
        For arrays of several devices.
    RuntimeError
        Where CUDA fails, or the stream is captured in a graph.
    """
    leaves = list(_leaves(arrays, ""))
    names, values = [name for name, _ in leaves], tuple(array for _, array in leaves)
    library = library_of(next((array for array in values if array is not None), None))
    if library.on_gpu:
        norm: float = library.core.global_norm(values, names, lambda device: stream_handle(library, stream, device))
        return norm
    if stream is not None:
        raise TypeError("global_norm: a stream is for arrays on a GPU, and these are NumPy's")
    return float(library.core.global_norm(values, names))


def _leaves(tree: Grads, name: str) -> Iterator[tuple[str, Any]]:
    """The arrays of a nest, each with what follows "arrays" in messages."""
    if is_array(tree) or not isinstance(tree, (list, tuple, Mapping)):
        yield name, tree
        return
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from _leaves(value, f"{name}[{key!r}]")

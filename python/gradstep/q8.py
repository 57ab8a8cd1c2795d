"""The 8-bit code of states: one byte an element, and a float32 scale for each 256 in C order.

int8 has a sign bit; uint8 has one more exponent bit instead. `docs/numerics.md` has the format and its error bound.

>>> import numpy as np
>>> from gradstep import q8
>>> codes, scales = q8.encode(np.float32([-1.0, 0.0, 0.3]))
>>> q8.decode(codes, scales)
array([-1.    ,  0.    ,  0.3125], dtype=float32)
"""

from __future__ import annotations

import numpy as np

from . import _core
from ._types import Array

__all__ = ["decode", "encode"]


def blocks(size: int) -> int:
    """The number of blocks, each with a scale, for a number of codes."""
    return -(-size // _core.BLOCK)


def encode(values: Array, signed: bool = True) -> tuple[Array, Array]:
    """Codes (int8, or uint8 of the magnitudes) in the shape of float32 values, rounded to nearest, and their scales.

    Raises TypeError for values of another dtype.
    """
    values = np.asarray(values)
    if values.dtype != np.float32:
        raise TypeError(f"values must be float32, not {values.dtype}")
    codes = np.empty(values.shape, np.int8 if signed else np.uint8)
    scales = np.empty(blocks(codes.size), np.float32)
    _core.encode(np.require(values, requirements=["C", "A"]).reshape(-1), codes.reshape(-1), scales)
    return codes, scales


def decode(codes: Array, scales: Array) -> Array:
    """The float32 values of codes in C order, as in `opt.state`.

    Raises TypeError for codes that are neither int8 nor uint8, or scales that are not one float32 for each 256 of them.
    """
    codes, scales = np.asarray(codes), np.asarray(scales)
    if codes.dtype not in (np.int8, np.uint8):
        raise TypeError(f"codes must be int8 or uint8, not {codes.dtype}")
    count = blocks(codes.size)
    if scales.dtype != np.float32 or scales.shape != (count,):
        raise TypeError(f"scales must be float32 of the shape ({count},), one for each {_core.BLOCK} codes")
    values = np.empty(codes.shape, np.float32)
    flat = np.require(codes, requirements="C").reshape(-1)
    _core.decode(flat, np.require(scales, requirements=["C", "A"]), values.reshape(-1))
    return values

"""The 8-bit code of states: one byte an element, and a float32 scale for each 256 in C order.

int8 has a sign, uint8 has none and one bit more of exponent; `docs/numerics.md` has the format and its error bound.

>>> import numpy as np
>>> from gradstep import q8
>>> codes, scales = q8.encode(np.float32([-1.0, 0.0, 0.3]))
>>> q8.decode(codes, scales)
array([-1.    ,  0.    ,  0.3125], dtype=float32)
"""

from __future__ import annotations

import numpy as np

from . import _core
from ._structure import Array

__all__ = ["decode", "encode"]


def encode(values: Array, signed: bool = True) -> tuple[Array, Array]:
    """Codes (int8, or uint8 of the magnitudes) in the shape of float32 values, rounded to nearest, and their scales.

    Raises TypeError for values of another dtype.
    """
    codes = np.zeros(np.shape(values), np.int8 if signed else np.uint8)
    scales = np.zeros(-(-codes.size // _core.BLOCK), np.float32)
    _core.encode(np.ravel(values), codes.reshape(-1), scales)
    return codes, scales


def decode(codes: Array, scales: Array) -> Array:
    """The float32 values of codes in C order, as in `opt.state`. Raises TypeError where the two do not go together."""
    values = np.empty(np.shape(codes), np.float32)
    _core.decode(np.ravel(codes), scales, values.reshape(-1))
    return values

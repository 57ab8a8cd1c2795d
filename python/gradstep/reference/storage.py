"""What is stored, and the values of the compute type ``T``: the page's **Storage**.

The codecs take and give arrays of one dimension, of all elements in C order; codes are of the unsigned integers that
they fit into, and ``r`` holds the random bits of every element.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-7 of the counter ``c`` and the key ``k``: of integers, or of uint64 arrays, none above 32 bits."""
    for _ in range(7):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 % 2**32, (product0 >> 32) ^ c3 ^ k1, product0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def random_bits(size: int, stream: int, t: int, tensor: int, seed: int) -> Array:
    """``r`` of elements 0 to ``size``: a word for the place in a group of 64, and one for the group."""

    def draw(n: Array, kind: int) -> tuple[Array, ...]:
        upper = (n >> 32) + (stream << 24) + (kind << 31)
        return philox(n % 2**32, upper, t % 2**32, tensor, seed % 2**32, seed >> 32)

    place = np.concatenate(draw(np.arange(16, dtype=np.uint64), 1))
    group = np.stack(draw(np.arange(-(-size // 256), dtype=np.uint64), 0), axis=1).reshape(-1, 1)
    r: Array = (group ^ place).reshape(-1)[:size].astype(np.uint32)
    return r


def bits(x: Array) -> Array:
    """float32 as integers."""
    return np.asarray(x, np.float32).view(np.uint32)


def from_bits(code: Array) -> Array:
    """Integers as float32."""
    return code.astype(np.uint32).view(np.float32)


def to_bfloat16(x: Array, r: Any) -> Array:
    """The codes of float32: stochastic, or to nearest where ``r`` is None."""
    half = 0x7FFF + ((bits(x) >> 16) & 1)  # of a step: a tie goes to the even one
    up = half if r is None else r >> 16
    return np.where(np.isnan(x), 0x7FC0, (bits(x) + up) >> 16).astype(np.uint16)


def to_float16(x: Array, r: Any) -> Array:
    """The codes of float32: stochastic, or to nearest where ``r`` is None."""
    if r is None:
        return x.astype(np.float16).view(np.uint16)
    a = np.abs(x)
    normal = ((bits(a) + (r >> 19)) >> 13) - (112 << 10)
    subnormal = ((a * 2.0**40).astype(np.uint32) + (r >> 16)) >> 16
    nan, infinity = np.uint32(0x7E00), np.uint32(0x7C00)
    code = np.select([np.isnan(x), a >= 65536, a >= 2.0**-14], [nan, infinity, normal], subnormal)
    signed: Array = (code | ((bits(x) >> 16) & 0x8000)).astype(np.uint16)
    return signed


class Q8(NamedTuple):
    """A format of one byte."""

    exponents: int
    least_scale: float
    not_finite: int  # the magnitude for infinity and NaN, and what it is read as
    read_as: float


Q8_FORMATS = {
    np.dtype(np.int8): Q8(15, 2.0**-111, 128, math.nan),
    np.dtype(np.uint8): Q8(30, 2.0**-96, 248, math.inf),
}


def each(scales: Array, size: int) -> Array:
    """The scale of every element."""
    return np.repeat(scales, 256)[:size]


def to_scales(x: Array, f: Q8) -> Array:
    """The scales of the blocks of float32."""
    finite = np.where(np.isfinite(x), np.abs(x), np.float32(0))
    M = np.pad(finite, (0, -x.size % 256)).reshape(-1, 256).max(axis=1)
    scales: Array = from_bits((bits(M) + 0x0FFFFF) & 0x7F800000).clip(np.float32(f.least_scale), np.float32(2.0**127))
    return scales


def to_q8(x: Array, scales: Array, r: Any, dtype: np.dtype[Any]) -> Array:
    """The codes of float32, as ``dtype``."""
    f, signed = Q8_FORMATS[dtype], dtype == np.int8
    first = bits(each(scales, x.size)).astype(np.int64) - (f.exponents << 23)
    k = (bits(np.abs(x)).astype(np.int64) - first + (r >> 12)) >> 20
    k = np.clip(k, 0 if signed else np.where(x == 0, 0, 1), f.not_finite - 1)
    k = np.where(np.isfinite(x), k, f.not_finite)
    codes: Array = (np.where(np.signbit(x), -k, k) if signed else k).astype(dtype)
    return codes


def from_q8(codes: Array, scales: Array) -> Array:
    """The float32 of codes."""
    f = Q8_FORMATS[codes.dtype]
    k = np.abs(codes.astype(np.int64))
    b = bits(each(scales, k.size)).astype(np.int64) - (f.exponents << 23) + (k << 20)
    finite = np.where(k == 0, np.float32(0), from_bits(b % 2**32))
    return np.copysign(np.where(k == f.not_finite, np.float32(f.read_as), finite), codes.astype(np.float32))


NARROW = {"float16": to_float16, "bfloat16": to_bfloat16}
"""The types, by name, that are computed with in float32 and rounded back."""


def compute_type(x: Array) -> Any:
    """``T`` of a parameter: float64 for float64, float32 for all others."""
    return np.float64 if x.dtype == np.float64 else np.float32


def is_narrow(x: Array) -> bool:
    """Whether it is float16 or bfloat16."""
    return x.dtype.name in NARROW


def bfloat16_for(p: Array) -> Any:
    """The type bfloat16: the parameter's own, or that of ml_dtypes, which only this needs."""
    if p.dtype.name == "bfloat16":
        return p.dtype
    import ml_dtypes

    return ml_dtypes.bfloat16


def widened(x: Array, scales: Array | None = None) -> Array:
    """What is stored, as values of ``T``: ``x`` itself where it is stored so. ``scales`` are those of q8."""
    if scales is not None:
        return from_q8(x.reshape(-1), scales).reshape(x.shape)
    if x.dtype.name == "bfloat16":
        return from_bits(x.reshape(-1).view(np.uint16).astype(np.uint32) << 16).reshape(x.shape)
    return x.astype(compute_type(x), copy=False)


def store(x: Any, into: Array, scales: Array | None = None, r: Any = None) -> None:
    """Write values of ``T``, rounded to what is stored; ``scales`` are those of q8."""
    flat = np.reshape(x, -1)
    if scales is not None and r is not None:
        scales[...] = to_scales(flat, Q8_FORMATS[into.dtype])
        into[...] = to_q8(flat, scales, r, into.dtype).reshape(into.shape)
    elif is_narrow(into):
        into.view(np.uint16)[...] = NARROW[into.dtype.name](flat, r).reshape(into.shape)
    else:
        into[...] = x


def drawn(size: int, stored: Array, stream: int, t: int, tensor: int, seed: int | None) -> Array | None:
    """The random bits of ``size`` elements: for q8 always, for what is narrow with a seed. None: to nearest."""
    if stored.dtype in Q8_FORMATS or (is_narrow(stored) and seed is not None):
        return random_bits(size, stream, t, tensor, seed or 0)
    return None

"""What arrays an optimizer keeps for a parameter, and as what they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from . import _core, q8
from ._structure import Array

FIXED: Final = ("state_dtype", "master", "min_8bit_size")
"""Options that settle what is kept: they cannot change afterwards."""
MASTER: Final = "master"

BFLOAT16_EXTRA: Final = 'pip install "gradstep[bfloat16]"'


def scale_of(state: str) -> str:
    """The name of the scales that belong to a state's codes."""
    return f"{state}_scale"


def names(states: Iterable[str]) -> list[str]:
    """All that may be kept, in the order in which it is shown."""
    states = list(states)
    return [*states, *map(scale_of, states), MASTER]


ROUNDED: Final = (
    "it is for float16 and bfloat16 parameters without a master, and for states of bfloat16 or q8, and there are none"
)


def rounds(param: Array, states: Iterable[Any], master: Array | None) -> bool:
    """Whether a step rounds by chance, where it is asked to, anything of one parameter."""
    return (is_16_bit(param) and master is None) or any(
        isinstance(state, tuple) or (state is not None and is_16_bit(state)) for state in states
    )


def is_16_bit(array: Array) -> bool:
    """Whether it is of float16 or bfloat16; of the types of parameters, no other has two bytes."""
    return array.dtype.itemsize == 2


def bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16. Raises ModuleNotFoundError, saying what to install, where it is missing."""
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"bfloat16 is the dtype of the package ml_dtypes: {BFLOAT16_EXTRA}") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def like(array: Array, dtype: Any) -> Array:
    """Zeros that lie in memory as `array` does, without gaps. No page is touched: the threads of a step do that."""
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    zeros = np.zeros([array.shape[axis] for axis in axes], dtype)
    return zeros if axes == sorted(axes) else np.transpose(zeros, np.argsort(axes))


def make(
    param: Array, rule: Mapping[str, Any], firsts: Mapping[str, float], options: Mapping[str, Any]
) -> dict[str, Array]:
    """The arrays to keep for a parameter, by name. `firsts` are the states that are kept, with their first values."""
    kept = {}
    double = param.dtype.itemsize == 8
    coded = options["state_dtype"] == "q8" and not double and param.size >= options["min_8bit_size"]
    for state, first in firsts.items():
        if coded:
            signed = state not in rule["not_negative"]
            if first:
                kept[state], kept[scale_of(state)] = q8.encode(np.full(param.shape, first, np.float32), signed)
            else:
                kept[state] = np.zeros(param.shape, np.int8 if signed else np.uint8)
                kept[scale_of(state)] = np.zeros(-(-param.size // _core.BLOCK), np.float32)
        else:
            bfloat = options["state_dtype"] == "bfloat16" and not double
            kept[state] = like(param, bfloat16() if bfloat else np.float64 if double else np.float32)
            if first:
                kept[state][...] = first
    if options["master"] and is_16_bit(param):
        kept[MASTER] = like(param, np.float32)
        kept[MASTER][...] = param
    return kept


def for_core(kept: Mapping[str, Array], states: Iterable[str]) -> list[Any]:
    """The states as the core takes them: an array, codes with their scales, or None."""
    return [(kept[s], kept[scale_of(s)]) if scale_of(s) in kept else kept.get(s) for s in states]


def values(kept: Mapping[str, Array], state: str) -> Array:
    """A state as numbers: itself, or a new array of what its codes stand for."""
    if scale_of(state) not in kept:
        return kept[state]
    return q8.decode(kept[state], kept[scale_of(state)])


def check(
    owner: str, options: Mapping[str, Any], params: Mapping[str, Array], states: Iterable[str], too_fine: str | None
) -> None:
    """Raises TypeError or ValueError where a group's options ask for what its parameters or its rule cannot have."""
    chosen, states = options["state_dtype"], list(states)
    if chosen is not None:
        if not states:
            raise ValueError(f"{owner}: state_dtype={chosen!r} is for states, and it keeps none")
        for name, param in params.items():
            if param.dtype.itemsize == 8:
                raise TypeError(f"{owner}: params{name} is {param.dtype}, whose states are too; leave out state_dtype")
    if chosen == "bfloat16":
        bfloat16()
    if chosen == "q8" and too_fine is not None and options[too_fine]:
        raise ValueError(
            f"{owner}: {too_fine}=True subtracts one moment from another, for which q8 is too coarse; use bfloat16"
        )
    halves = any(is_16_bit(param) for param in params.values())
    if options["master"] and not halves:
        raise ValueError(f"{owner}: master=True is for float16 and bfloat16 parameters, and there are none")
    rounded = (halves and not options["master"]) or chosen in ("bfloat16", "q8")
    if options["stochastic_rounding"] is not None and not rounded:
        raise ValueError(f"{owner}: stochastic_rounding has nothing to round: {ROUNDED}")

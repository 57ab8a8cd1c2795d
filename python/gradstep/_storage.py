"""What arrays an optimizer keeps for a parameter, and as what they are stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from . import _core, q8
from ._libraries import library_of
from ._structure import Array

FIXED: Final = ("state_dtype", "master", "min_8bit_size")
"""Options that settle what is kept: they cannot change afterwards."""
MASTER: Final = "master"


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
    """Whether a step rounds stochastically, where it is asked to, anything of one parameter."""
    return (is_narrow(param) and master is None) or any(
        isinstance(state, tuple) or (state is not None and is_narrow(state)) for state in states
    )


DTYPES: Final[dict[str, dict[str, Any]]] = _core.dtypes()
"""What the core's codecs declare of the types of storage, by NumPy's names."""


def about(array: Array) -> dict[str, Any]:
    """What is declared of an array's type, whatever library the array is of: torch says "torch.float16"."""
    return DTYPES[str(array.dtype).rpartition(".")[2]]


def is_narrow(array: Array) -> bool:
    """Whether each item is narrower than what it is computed with in, as float16 and bfloat16 are."""
    return bool(about(array)["kind"] == "narrow")


def is_double(array: Array) -> bool:
    """Whether it is computed with in float64."""
    return bool(about(array)["compute"] == "float64")


def make(
    param: Array, rule: Mapping[str, Any], firsts: Mapping[str, float], options: Mapping[str, Any]
) -> dict[str, Array]:
    """The arrays to keep for a parameter, by name. `firsts` are the states that are kept, with their first values."""
    kept = {}
    library = library_of(param)
    param = library.own(param)
    double = is_double(param)
    shape = tuple(param.shape)
    coded = options["state_dtype"] == "q8" and not double and math.prod(shape) >= options["min_8bit_size"]
    for place, (state, first) in enumerate(firsts.items(), 1):
        if coded:
            signed = state not in rule["non_negative"]
            kept[state] = library.zeros(shape, "int8" if signed else "uint8", param, place)
            kept[scale_of(state)] = library.zeros((q8.blocks(math.prod(shape)),), "float32", param)
            if first:
                codes, scales = q8.encode(np.full(shape, first, np.float32), signed)
                library.from_numpy(kept[state], codes)
                library.from_numpy(kept[scale_of(state)], scales)
        else:
            bfloat = options["state_dtype"] == "bfloat16" and not double
            kept[state] = library.zeros_like(param, "bfloat16" if bfloat else "float64" if double else "float32", place)
            if first:
                library.fill(kept[state], first)
    if options["master"] and is_narrow(param):
        kept[MASTER] = library.zeros_like(param, "float32", len(firsts) + 1)
        library.assign(kept[MASTER], param)
    return kept


def for_core(kept: Mapping[str, Array], states: Iterable[str]) -> list[Any]:
    """The states as the core takes them: an array, codes with their scales, or None."""
    return [(kept[s], kept[scale_of(s)]) if scale_of(s) in kept else kept.get(s) for s in states]


def values(kept: Mapping[str, Array], state: str) -> Array:
    """A state as numbers: itself, or a new array of what its codes stand for."""
    if scale_of(state) not in kept:
        return kept[state]
    library = library_of(kept[state])
    numbers = q8.decode(library.to_numpy(kept[state]), library.to_numpy(kept[scale_of(state)]))
    if not library.on_gpu:
        return numbers
    there = library.zeros(numbers.shape, "float32", kept[state])
    library.from_numpy(there, numbers)
    return there


def check_q8(owner: str, options: Mapping[str, Any], incompatible: Mapping[str, str]) -> None:
    """Raises ValueError where options are on for which states of q8 are too coarse; `incompatible` says why of each."""
    for option, why in incompatible.items():
        if options[option]:
            raise ValueError(f"{owner}: {option}=True {why}, for which q8 is too coarse; use bfloat16")


def unused_options(
    owner: str, options: Mapping[str, Any], params: Mapping[str, Array], states: Mapping[str, float]
) -> dict[str, Exception]:
    """Options that have nothing to act on in a group, each with the error that says so."""
    errors: dict[str, Exception] = {}
    chosen, wide = options["state_dtype"], [name for name, param in params.items() if is_double(param)]
    if chosen is not None and not states:
        errors["state_dtype"] = ValueError(f"{owner}: state_dtype={chosen!r} has no effect: it keeps no state")
    elif chosen is not None and wide:
        words = f"params{wide[0]} is float64, whose states are too; leave out state_dtype"
        errors["state_dtype"] = TypeError(f"{owner}: {words}")
    halves = any(is_narrow(param) for param in params.values())
    if options["master"] and not halves:
        errors["master"] = ValueError(
            f"{owner}: master=True is for float16 and bfloat16 parameters, and there are none"
        )
    rounded = (halves and not options["master"]) or chosen in ("bfloat16", "q8")
    if options["stochastic_rounding"] is not None and not rounded:
        errors["stochastic_rounding"] = ValueError(f"{owner}: stochastic_rounding has nothing to round: {ROUNDED}")
    return errors


def check_scales(codes: Array, scales: Array, name: str) -> None:
    """Raises ValueError where scales are not what a step writes: powers of two, or zero where all codes are."""
    least = np.float32(2.0 ** (-96 if codes.dtype == np.uint8 else -111))
    if np.all((np.frexp(scales)[0] == 0.5) & (scales >= least)):
        return
    of_zeros = [
        not np.any(codes.reshape(-1)[_core.BLOCK * i : _core.BLOCK * (i + 1)]) for i in np.flatnonzero(scales == 0)
    ]
    rest = scales[scales != 0]
    if not all(of_zeros) or not np.all((np.frexp(rest)[0] == 0.5) & (rest >= least)):
        raise ValueError(f"{name} must be powers of two from {least:g} on, or 0 where all codes are")

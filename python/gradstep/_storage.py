"""The arrays that an optimizer keeps for a parameter, and how they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np

from . import _core, q8
from ._libraries import NUMPY, TORCH, TORCH_ON_GPU, Library, library_of
from ._types import Array, Column

MASTER: Final = "master"
AVERAGE: Final = "average"
OPTIONS: Final = ("state_dtype", "master", "min_8bit_size")
"""The options that determine which arrays are kept, and their types."""
STATE_DTYPES: Final = ("float32", "bfloat16", "float16", "q8")


def suffix(path: str) -> str:
    """The name of a parameter as it follows "params" in messages."""
    return path if path.startswith("[") or not path else f".{path}"


def scale_of(state: str) -> str:
    """The name of the scales that belong to a state's codes."""
    return f"{state}_scale"


def names(states: Iterable[str]) -> list[str]:
    """The names of all arrays that may be kept, in the order in which they are shown."""
    states = list(states)
    return [*states, *map(scale_of, states), MASTER, AVERAGE]


ROUNDED: Final = (
    "it is for float16 and bfloat16 parameters without a master, and for states of bfloat16, float16 or q8, and there "
    "are none"
)


def rounds(param: Array, states: Iterable[Any], master: Array | None) -> bool:
    """Whether stochastic rounding has an effect on a parameter or its states."""
    return (is_narrow(param) and master is None) or any(
        isinstance(state, tuple) or (state is not None and is_narrow(state)) for state in states
    )


DTYPES: Final[dict[str, dict[str, Any]]] = _core.dtypes()
"""The properties that the core's codecs declare for storage types, by their NumPy names."""


@cache
def declared(dtype: Any) -> dict[str, Any]:
    """The properties of a library's dtype; torch's names begin with "torch."."""
    return DTYPES[str(dtype).rpartition(".")[2]]


def is_narrow(array: Array) -> bool:
    """Whether its items are narrower than the type of the computation, as float16 and bfloat16 are."""
    return bool(declared(array.dtype)["kind"] == "narrow")


def is_double(array: Array) -> bool:
    """Whether the type of the computation is float64."""
    return bool(declared(array.dtype)["compute"] == "float64")


def library_of_all(params: Sequence[Any], paths: Sequence[str]) -> Library:
    """The library of parameters. Raises TypeError where some are NumPy's and others are torch's on the processor."""
    kinds = list(map(type, params))
    found = {library_of(params[i]): i for i in map(kinds.index, reversed(dict.fromkeys(kinds)))}
    tensors = found.keys() & {TORCH, TORCH_ON_GPU}
    if NUMPY in found and tensors and isinstance(params[found[NUMPY]], np.ndarray):
        array, tensor = (f"params{suffix(paths[found[library]])}" for library in (NUMPY, tensors.pop()))
        raise TypeError(f"{array} is a NumPy array, but {tensor} a torch tensor; parameters must be of one library")
    return library_of(params[0])


Columns: TypeAlias = dict[str, Column]
"""Arrays by name, with an entry for each parameter; None: it has no such array."""


def make(
    params: Sequence[Array], rule: Mapping[str, Any], firsts: Mapping[str, float], options: Mapping[str, Any]
) -> Columns:
    """The arrays to keep for parameters. `firsts` are the states that are kept, with their first values.

    The parameters are of one library.
    """
    library = library_of(params[0]) if params else NUMPY
    params = [param if type(param) is np.ndarray else library.own(param) for param in params]
    kept: Columns = {}
    dtypes = state_dtypes(params, options)
    for dtype in dict.fromkeys(dtypes):
        members = [i for i, of in enumerate(dtypes) if of == dtype]
        if dtype == "q8":
            for i in members:
                put_row(kept, _codes(library, params[i], rule, firsts), i, len(params))
            continue
        made = library.zeros_like_each([params[i] for i in members], dtype, range(1, len(firsts) + 1))
        for (state, first), arrays in zip(firsts.items(), made, strict=True):
            if first:
                arrays = list(arrays)
                for array in arrays:
                    library.fill(array, first)
            put_column(kept, state, arrays, members, len(params))
    for i, param in enumerate(params if options["master"] else ()):
        if is_narrow(param):
            master = library.zeros_like(param, "float32", len(firsts) + 1)
            library.assign(master, param)
            put_row(kept, {MASTER: master}, i, len(params))
    for i, param in enumerate(params if options["ema"] is not None else ()):
        average = library.zeros_like(param, "float64" if is_double(param) else "float32", len(firsts) + 2)
        if not options["ema_correction"]:
            library.assign(average, param)
        put_row(kept, {AVERAGE: average}, i, len(params))
    return kept


def put_column(kept: Columns, name: str, arrays: Column, members: Sequence[int], count: int) -> None:
    """Adds the arrays of a name of some of `count` parameters."""
    if len(members) == count:  # all, in order
        kept[name] = arrays
        return
    column: Any = kept.setdefault(name, [None] * count)  # Zeros are of all parameters
    for i, array in zip(members, arrays, strict=True):
        column[i] = array


def put_row(kept: Columns, own: Mapping[str, Array], i: int, count: int) -> None:
    """Adds the arrays of one of `count` parameters."""
    for name, array in own.items():
        put_column(kept, name, [array], [i], count)


def rows_of(kept: Columns, count: int) -> list[dict[str, Array]]:
    """The arrays of each of `count` parameters, by name."""
    each: list[dict[str, Array]] = [{} for _ in range(count)]
    for name, column in kept.items():
        for own, array in zip(each, column, strict=True):
            if array is not None:
                own[name] = array
    return each


def state_dtypes(params: Sequence[Array], options: Mapping[str, Any]) -> list[str]:
    """How the states of each parameter are stored: "q8", or the name of a dtype."""
    chosen = options["state_dtype"] or "float32"
    of = {
        dtype: "float64" if declared(dtype)["compute"] == "float64" else chosen
        for dtype in {param.dtype for param in params}
    }
    dtypes = [of[param.dtype] for param in params]
    if chosen == "q8":
        small = [math.prod(param.shape) < options["min_8bit_size"] for param in params]
        dtypes = ["float32" if own == "q8" and fits else own for own, fits in zip(dtypes, small, strict=True)]
    return dtypes


def _codes(library: Library, param: Array, rule: Mapping[str, Any], firsts: Mapping[str, float]) -> dict[str, Array]:
    """The states of a parameter as q8 codes with their scales."""
    kept = {}
    shape = tuple(param.shape)
    for place, (state, first) in enumerate(firsts.items(), 1):
        signed = state not in rule["non_negative"]
        kept[state] = library.zeros(shape, "int8" if signed else "uint8", param, place)
        kept[scale_of(state)] = library.zeros((q8.blocks(math.prod(shape)),), "float32", param)
        if first:
            _set_numbers(kept, state, np.full(shape, first, np.float32), library)
    return kept


def for_other(old: Array, new: Array, kept: Mapping[str, Array], name: str) -> dict[str, Array]:
    """The kept arrays for another array in place of a parameter. Raises ValueError for another shape or dtype."""
    library = library_of(new)
    for what, of_new, of_old in (
        ("shape", tuple(getattr(new, "shape", ())), tuple(old.shape)),
        ("dtype", library.dtype(new), library_of(old).dtype(old)),
    ):
        if of_new != of_old:
            raise ValueError(
                f"params{suffix(name)} has {what} {of_new} now, and had {of_old}; use replace() for another shape"
            )
    renewed = dict(kept)
    if MASTER in renewed:
        renewed[MASTER] = library.copy(renewed[MASTER])
        library.assign(renewed[MASTER], new)
    return renewed


def moved_rows(
    old: Array,
    new: Array,
    rows: Any,
    kept: Mapping[str, Array],
    make_new: Callable[[], Columns],
    name: str,
) -> dict[str, Array]:
    """The kept arrays for a parameter whose rows were rows of an older one; -1 for a row with new states.

    An element of a master is taken over where the new parameter's element is its rounding.
    """
    if rows is None:
        return for_other(old, new, kept, name)
    library = library_of(new)
    index = np.asarray(rows)
    index = index if index.size else index.astype(np.intp)
    if old.ndim == 0 or new.ndim == 0:
        raise ValueError(f"{name}: an array without axes has no rows")
    if index.ndim != 1 or index.dtype.kind not in "iu" or index.shape[0] != new.shape[0]:
        raise ValueError(f"{name}: rows must be {new.shape[0]} integers, one for each row of the new array")
    if index.size and (index.min() < -1 or index.max() >= old.shape[0]):
        raise ValueError(f"{name}: rows must be from -1 to {old.shape[0] - 1}")
    if tuple(old.shape[1:]) != tuple(new.shape[1:]) or library.dtype(old) != library.dtype(new):
        raise ValueError(
            f"{name}: the new array must have the dtype of the old one, and its shape except for the first axis"
        )
    made = rows_of(make_new(), 1)[0]
    taken = index >= 0
    for state in made:
        if state == MASTER or state.endswith("_scale"):
            continue
        fresh, before = (_numbers(of, state, library) for of in (made, kept))
        fresh[taken] = before[index[taken]]
        _set_numbers(made, state, fresh, library)
    if MASTER in made:
        fresh, before = library.to_numpy(made[MASTER]), library.to_numpy(kept[MASTER])[index]
        param = library.to_numpy(new)
        with np.errstate(all="ignore"):
            same = taken.reshape(-1, *[1] * (new.ndim - 1)) & (before.astype(param.dtype) == param)
        library.from_numpy(made[MASTER], np.where(same, before, fresh))
    return made


def _numbers(kept: Mapping[str, Array], state: str, library: Library) -> Array:
    """The values of a state, as a new NumPy array."""
    array = library.to_numpy(kept[state])
    return q8.decode(array, library.to_numpy(kept[scale_of(state)])) if scale_of(state) in kept else array


def _set_numbers(kept: Mapping[str, Array], state: str, numbers: Array, library: Library) -> None:
    """Stores values in a state."""
    if scale_of(state) not in kept:
        library.from_numpy(kept[state], numbers.astype(library.to_numpy(kept[state]).dtype, copy=False))
        return
    signed = library.dtype(kept[state]) == "int8"
    codes, scales = q8.encode(numbers, signed)
    library.from_numpy(kept[state], codes)
    library.from_numpy(kept[scale_of(state)], scales)


def values(kept: Mapping[str, Array], state: str) -> Array:
    """The values of a state: the array itself, or a new array of decoded values."""
    if scale_of(state) not in kept:
        return kept[state]
    library = library_of(kept[state])
    numbers = _numbers(kept, state, library)
    if not library.on_gpu:
        return numbers
    there = library.zeros(numbers.shape, "float32", kept[state])
    library.from_numpy(there, numbers)
    return there


def check_q8(owner: str, options: Mapping[str, Any], incompatible: Mapping[str, str]) -> None:
    """Raises ValueError where an option is on for which q8 states are too coarse; `incompatible` has the reasons."""
    for option, why in incompatible.items():
        if options[option]:
            raise ValueError(f"{owner}: {option}=True {why}, for which q8 is too coarse; use bfloat16")


def unused_options(
    owner: str, options: Mapping[str, Any], params: Iterable[tuple[Array, str]], states: Mapping[str, float]
) -> dict[str, Exception]:
    """Options that have nothing to act on in a group, each with the error that says so.

    `params` are the group's parameters with their names. They are read only where an option depends on their dtypes.
    """
    errors: dict[str, Exception] = {}
    chosen = options["state_dtype"]
    dtypes: dict[Any, str] = {}
    if chosen is not None or options["master"] or options["stochastic_rounding"] is not None:
        for param, name in params:
            dtypes.setdefault(param.dtype, name)
    wide = [name for dtype, name in dtypes.items() if declared(dtype)["compute"] == "float64"]
    if chosen is not None and not states:
        errors["state_dtype"] = ValueError(f"{owner}: state_dtype={chosen!r} has no effect: {owner} keeps no state")
    elif chosen is not None and wide:
        words = f"params{suffix(wide[0])} is float64, and so are its states; omit state_dtype"
        errors["state_dtype"] = TypeError(f"{owner}: {words}")
    halves = any(declared(dtype)["kind"] == "narrow" for dtype in dtypes)
    if options["master"] and not halves:
        errors["master"] = ValueError(
            f"{owner}: master=True is for float16 and bfloat16 parameters, and there are none"
        )
    if options["ema_correction"] and options["ema"] is None:
        errors["ema_correction"] = ValueError(f"{owner}: ema_correction=True has no effect without ema")
    rounded = (halves and not options["master"]) or chosen in ("bfloat16", "float16", "q8")
    if options["stochastic_rounding"] is not None and not rounded:
        errors["stochastic_rounding"] = ValueError(f"{owner}: stochastic_rounding has nothing to round: {ROUNDED}")
    return errors


def check_scales(codes: Array, scales: Array, name: str) -> None:
    """Raises ValueError where scales are not as a step writes them: powers of two, or zero where all codes are zero."""
    least = np.float32(2.0 ** (-96 if codes.dtype == np.uint8 else -111))
    if np.all((np.frexp(scales)[0] == 0.5) & (scales >= least)):
        return
    of_zeros = [
        not np.any(codes.reshape(-1)[_core.BLOCK * i : _core.BLOCK * (i + 1)]) for i in np.flatnonzero(scales == 0)
    ]
    rest = scales[scales != 0]
    if not all(of_zeros) or not np.all((np.frexp(rest)[0] == 0.5) & (rest >= least)):
        raise ValueError(f"{name} must be powers of two from {least:g} on, or 0 where all codes are")

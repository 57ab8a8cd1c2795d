"""State dicts: plain data by the names of parameters, which is checked completely before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from . import _core, _storage
from ._libraries import Library, dtype_name, plain
from ._options import COUNT, UP_TO_ONE, Option, Schedule, check_all, load_state, state_of
from ._types import Array

FORMAT: Final = 2
"""The version of the layout of state dicts. Version 1, of gradstep 0.1, goes by position and has no "format"."""
WHAT: Final = "the state dict"
SCHEDULES: Final = "schedules"
"""The name of the options that are schedules, with their states."""
EMA_PRODUCT: Final = "ema_product"
"""The name of the product of the decays of a parameter's average."""


SUM: Final = "accumulator"
"""The name of the gradients that were accumulated for a parameter."""


def accumulated(saved: Any) -> tuple[int, list[str]]:
    """How often a state dict's gradients were accumulated, and the parameters for which it has sums."""
    if not isinstance(saved, Mapping) or "accumulated" not in saved:
        return 0, []
    count = COUNT.check(saved["accumulated"], f"{WHAT}['accumulated']")
    state = saved.get("state")
    if count == 0 or not isinstance(state, Mapping):
        return 0, []
    return count, [name for name, own in state.items() if isinstance(own, Mapping) and SUM in own]


class Differences(NamedTuple):
    """How a state dict differs from an optimizer: names of parameters, with the reasons where they are mismatched."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def refuse(self) -> None:
        """Raises ValueError, which lists all names, unless there are none."""
        lines = [f"{kind}: {', '.join(names)}" for kind, names in self._asdict().items() if names]
        if lines:
            raise ValueError(f"{WHAT} does not fit this optimizer; {'; '.join(lines)}")


class Plan:
    """What a state dict asks an optimizer to take over."""

    def __init__(self, step_count: int, options: dict[str, Any]) -> None:
        self.step_count = step_count
        self.options = options
        self.groups: list[dict[str, Any]] = []
        self.schedules: list[dict[str, Any]] = []
        """The states of schedules by option, for each group."""
        self.schedules_of_step: dict[str, Any] = {}
        self.differences = Differences([], [], [])
        self.arrays: dict[str, dict[str, Array]] = {}
        self.clocks: dict[str, tuple[int, list[float]]] = {}


def plan(
    saved: Any,
    *,
    rule: str,
    scalars: Sequence[str],
    non_negative: Sequence[str],
    ours: Mapping[str, Mapping[str, Any]],
    groups: Sequence[Sequence[str]],
    known: Mapping[str, Option[Any]],
    library: Library,
) -> Plan:
    """What to load. Raises TypeError or ValueError for a state dict that no optimizer of the rule saves.

    `ours` has the state of each tensor, and `groups` the names of each group's tensors.
    """
    _expect(saved, Mapping, WHAT)
    saved = dict(saved)  # everything is read once: a mapping may give another value the next time
    if saved.get("rule", rule) != rule:
        raise ValueError(f"{WHAT} is for the rule {saved['rule']!r}, but this optimizer has the rule {rule!r}")
    if "format" not in saved:
        saved = _from_positions(saved, list(ours), scalars, groups)
    if COUNT.check(saved["format"], f"{WHAT}['format']") != FORMAT:
        raise ValueError(f"{WHAT} has the format {saved['format']}; this version of gradstep reads {FORMAT} and older")
    _expect_entries(saved, {"rule": None, "step_count": None, "options": Mapping, "groups": Sequence, "state": Mapping})
    of_step, states = _split(dict(saved["options"]), saved.get(SCHEDULES, {}), WHAT)
    result = Plan(
        COUNT.check(saved["step_count"], f"{WHAT}['step_count']"),
        check_all(of_step, known, f"{WHAT}['options']", schedules=False),
    )
    result.schedules_of_step = states
    differences = result.differences
    state = dict(saved["state"])
    _expect_names(state, f"{WHAT}['state']")
    differences.missing.extend(name for name in ours if name not in state)
    differences.unexpected.extend(name for name in state if name not in ours)
    fitting: list[tuple[Array, str, str]] = []
    for name, own in ours.items():
        if name not in state:
            continue
        where = f"{WHAT}['state'][{name!r}]"
        _expect(state[name], Mapping, where)
        given = dict(state[name])
        wrong = _compare(given, own, library, where, fitting)
        if wrong:
            differences.mismatched.append(f"{name} ({'; '.join(wrong)})")
            continue
        result.arrays[name] = {key: plain(given[key]) for key, value in own.items() if _is_array(value)}
        result.clocks[name] = (
            COUNT.check(given["step"], f"{where}['step']"),
            [UP_TO_ONE.check(given[scalar], f"{where}[{scalar!r}]") if scalar in own else 1.0 for scalar in scalars],
        )
    own_arrays = [array for own in ours.values() for array in own.values() if isinstance(array, np.ndarray)]
    overlap = _core.first_overlap([array for array, _, _ in fitting], own_arrays)
    if overlap >= 0:
        _, where, key = fitting[overlap]
        raise ValueError(f"{where}[{key!r}] shares memory with the optimizer's own arrays; pass a copy")
    with np.errstate(invalid="ignore"):
        for array, where, key in fitting:
            if key in non_negative and _has_negative(array):
                raise ValueError(f"{where}[{key!r}] has negative values, which no step gives")
    of_names = _options_of_names(saved["groups"], known)
    differences.missing.extend(f"the group of {name}" for name in result.clocks if name not in of_names)
    for number, names in enumerate(groups):
        found = dict(of_names[name] for name in names if name in of_names and name in result.clocks)
        if len({repr(options) for options in found.values()}) > 1:
            differences.mismatched.append(f"group {number} (its parameters had different options)")
            found = {}
        options, states = next(iter(found.values()), ({}, {}))
        result.groups.append({name: value for name, value in options.items() if name not in _storage.OPTIONS})
        result.schedules.append(states)
    return result


def states_of(schedules: Mapping[str, Schedule]) -> dict[str, Any]:
    """The entry of a state dict, or of one of its groups, for options that are schedules; none without them."""
    return {SCHEDULES: {name: state_of(schedule) for name, schedule in schedules.items()}} if schedules else {}


def loaders(own: Mapping[str, Schedule], states: Mapping[str, Any]) -> list[tuple[Schedule, Any]]:
    """Schedules with the states that they are to load. Raises TypeError or ValueError where one refuses its own."""
    pairs = [(own[name], state) for name, state in states.items() if name in own]
    for schedule, state in pairs:
        try:
            load_state(copy.deepcopy(schedule), state)
        except (KeyError, AttributeError) as error:
            raise ValueError(f"{WHAT} has a state that {schedule!r} cannot load: {error!r}") from error
    return pairs


def _split(options: dict[str, Any], schedules: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options without those that were schedules, and the states of these."""
    _expect(schedules, Mapping, f"{where}[{SCHEDULES!r}]")
    states = {name: state for name, state in schedules.items() if options.get(name) is None}
    return {name: value for name, value in options.items() if name not in states}, states


def _compare(
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    library: Library,
    where: str,
    fitting: list[tuple[Array, str, str]],
) -> list[str]:
    """The reasons why the state of a tensor does not fit: keys, dtypes, shapes. Raises where it is not plain arrays.

    Adds the arrays that fit to `fitting`, with `where` and their keys.
    """
    wrong = [f"lacks {key}" for key in own if key not in given]
    wrong += [f"has {key}, which is not kept here" for key in given if key not in own]
    for key, value in own.items():
        if key not in given or not _is_array(value):
            continue
        array = given[key]
        if type(array) is not np.ndarray:
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{where}[{key!r}] must be a NumPy array, not {type(array).__name__}")
            _core.check_array_class(array, f"{where}[{key!r}]")
            array = plain(array)
        dtype, shape = library.dtype(value), tuple(value.shape)
        if dtype_name(array.dtype) != dtype or not array.dtype.isnative:
            wrong.append(f"{key} is {array.dtype}, and here {dtype}")
            continue
        if array.shape != shape:
            wrong.append(f"{key} has shape {array.shape}, and here {shape}")
            continue
        if isinstance(value, np.ndarray) and not value.flags.writeable:
            raise ValueError(f"{where}[{key!r}] cannot be loaded: the optimizer's own array is read-only")
        fitting.append((array, where, key))
        if _storage.scale_of(key) in own and not wrong and _storage.scale_of(key) in given:
            scales = plain(given[_storage.scale_of(key)])
            if getattr(scales, "shape", None) == tuple(own[_storage.scale_of(key)].shape):
                _storage.check_scales(array, scales, f"{where}[{_storage.scale_of(key)!r}]")
    return wrong


def _options_of_names(
    saved: Sequence[Any], known: Mapping[str, Option[Any]]
) -> dict[str, tuple[int, tuple[dict[str, Any], dict[str, Any]]]]:
    """The number of the group that each parameter was in, its options, and the states of its schedules, by name."""
    of_names: dict[str, tuple[int, tuple[dict[str, Any], dict[str, Any]]]] = {}
    for number, group in enumerate(saved):
        where = f"{WHAT}['groups'][{number}]"
        _expect(group, Mapping, where)
        options = dict(group)
        names = options.pop("params", None)
        if not isinstance(names, (list, tuple)):
            raise TypeError(f"{where} must have a list of names as 'params'")
        _expect_names(names, f"{where}['params']")
        options, states = _split(options, options.pop(SCHEDULES, {}), where)
        for option in ("lr", "ema"):  # state dicts without the states of schedules have None for schedules of these
            if options.get(option) is None:
                options.pop(option, None)
        checked = check_all(options, known, where, schedules=False)
        for name in names:
            if name in of_names:
                raise ValueError(f"{WHAT} has {name!r} in two groups, {of_names[name][0]} and {number}")
            of_names[name] = number, (checked, states)
    return of_names


def _from_positions(
    saved: Mapping[str, Any], names: Sequence[str], scalars: Sequence[str], groups: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Converts a state dict of format 1 to format 2. Its tensors get these names, in order."""
    _expect_entries(saved, {"step_count": None, "steps": Sequence, "groups": Sequence, "state": Mapping})
    lists = {
        "step": saved["steps"],
        **{name: saved.get(name, ()) for name in scalars if name != EMA_PRODUCT},
        **saved["state"],
    }
    for key, values in lists.items():
        _expect(values, Sequence, f"{WHAT}[{key!r}]")
        if len(values) != len(names):
            raise ValueError(f"{WHAT} has {len(values)} parameters ({key}), but this optimizer has {len(names)}")
    if len(saved["groups"]) != len(groups):
        raise ValueError(f"{WHAT} has {len(saved['groups'])} groups, but this optimizer has {len(groups)}")
    for number, group in enumerate(saved["groups"]):
        _expect(group, Mapping, f"{WHAT}['groups'][{number}]")
    return {
        "format": FORMAT,
        "rule": saved.get("rule"),
        "step_count": saved["step_count"],
        "options": {"clip_norm": saved.get("clip_norm")},
        "groups": [{**group, "params": of} for group, of in zip(saved["groups"], groups, strict=True)],
        "state": {
            name: {key: values[i] for key, values in lists.items() if values[i] is not None}
            for i, name in enumerate(names)
        },
    }


def _expect_entries(saved: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises ValueError where an entry is missing, TypeError where it has another type. None allows any type."""
    for key, kind in kinds.items():
        if key not in saved:
            raise ValueError(f"{WHAT} lacks {key!r}")
        if kind is not None:
            _expect(saved[key], kind, f"{WHAT}[{key!r}]")


def _expect(value: object, kind: Any, name: str) -> None:
    if not isinstance(value, kind) or isinstance(value, str):
        words = {Mapping: "a dict", Sequence: "a list"}[kind]
        raise TypeError(f"{name} must be {words}, not {type(value).__name__}")


def _has_negative(array: Array) -> bool:
    """Whether a number is below zero; codes without a sign are not, and NaN is not either."""
    return array.dtype.kind != "u" and bool(np.count_nonzero(array < 0))


def _expect_names(names: Iterable[object], where: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{where} must have names of parameters, not {name!r}")


def _is_array(value: object) -> bool:
    return not isinstance(value, (int, float))

"""An optimizer as plain data, and plain data taken over: checked wholly before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _options, _storage
from ._libraries import library_of
from ._structure import is_array

if TYPE_CHECKING:
    from ._optimizer import Optimizer


def contents(opt: Optimizer) -> dict[str, Any]:
    """What a later run needs, with the optimizer's own arrays."""
    clocks = opt._stepper.clocks
    data: dict[str, Any] = {
        "rule": opt.rule,
        "step_count": opt.step_count,
        "clip_norm": opt.clip_norm,
        "steps": [t for t, _ in clocks],
        "groups": [{**group, "lr": None if callable(group["lr"]) else group["lr"]} for group in opt._groups],
        "state": {name: [states.get(name) for states in opt._states] for name in opt.state_names()},
    }
    for place, name in enumerate(opt.scalar_names()):
        data[name] = [scalars[place] for _, scalars in clocks]
    return data


def save(opt: Optimizer) -> dict[str, Any]:
    """The contents, with copies of the arrays for NumPy."""
    data = contents(opt)
    for arrays in data["state"].values():
        arrays[:] = [array if array is None else opt._library.to_numpy(array) for array in arrays]
    return data


def load(opt: Optimizer, saved: Mapping[str, Any]) -> None:
    """Takes over what `save` gave. Raises TypeError or ValueError, with nothing changed, where it does not fit."""
    ours = contents(opt)
    if isinstance(saved, Mapping) and saved.get("rule", opt.rule) != opt.rule:
        raise ValueError(f"the state dict is of the rule {saved['rule']!r}, this optimizer of {opt.rule!r}")
    check_like(saved, ours, "the state dict")
    options = [
        group.checked({k: v for k, v in given.items() if not (k == "lr" and v is None)})
        for group, given in zip(opt._groups, saved["groups"], strict=True)
    ]
    for name, arrays in saved["state"].items():
        for i, scales in enumerate(saved["state"].get(_storage.scale_of(name), [])):
            if scales is not None:
                _storage.check_scales(arrays[i], scales, f"the state dict['state'][{_storage.scale_of(name)!r}][{i}]")
    clip_norm = _options.limit(saved["clip_norm"], "the state dict's clip_norm")
    step_count = _options.whole_number(saved["step_count"], 0, "the state dict's step_count")
    steps = [_options.whole_number(t, 0, f"the state dict's steps[{i}]") for i, t in enumerate(saved["steps"])]
    scalars = [
        [
            _options.number(saved[name][i], _options.UP_TO_ONE, f"the state dict's {name}[{i}]")
            for name in opt.scalar_names()
        ]
        for i in range(len(steps))
    ]

    opt._take_clip_norm(clip_norm)  # first, for it may be refused
    for group, values in zip(opt._groups, options, strict=True):
        group.apply({k: v for k, v in values.items() if k not in _storage.FIXED})  # the arrays fit, so these do
    for name, arrays in ours["state"].items():
        for array, value in zip(arrays, saved["state"][name], strict=True):
            if array is not None:
                opt._library.from_numpy(array, value)
    opt._stepper.set_times(step_count, list(zip(steps, scalars, strict=True)))


def check_like(given: Any, ours: Any, name: str) -> None:
    """Raises where `given` has not the keys, lengths, shapes and dtypes of `ours`. Nothing is cast or broadcast."""
    if isinstance(ours, dict):
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} must be a dict, not {type(given).__name__}")
        for key in [*ours, *given]:
            if (key in ours) != (key in given):
                raise ValueError(f"{name} {'lacks' if key in ours else 'has an unknown'} {key!r}")
            check_like(given[key], ours[key], f"{name}[{key!r}]")
    elif isinstance(ours, list):
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"{name} must be a list, not {type(given).__name__}")
        if len(given) != len(ours):
            raise ValueError(f"{name} has {len(given)} entries, but this optimizer needs {len(ours)}")
        for i, (theirs, mine) in enumerate(zip(given, ours, strict=True)):
            check_like(theirs, mine, f"{name}[{i}]")
    elif is_array(ours):
        dtype, shape = library_of(ours).dtype(ours), tuple(ours.shape)
        if not isinstance(given, np.ndarray) or given.dtype.name != dtype or not given.dtype.isnative:
            raise TypeError(
                f"{name} must be a NumPy array of {dtype}, not {getattr(given, 'dtype', type(given).__name__)}"
            )
        if given.shape != shape:
            raise ValueError(f"{name} has shape {given.shape}, but here it has shape {shape}")
        if isinstance(ours, np.ndarray) and not ours.flags.writeable:
            raise ValueError(f"{name} cannot be taken over: this optimizer's own array is read-only")
    elif isinstance(given, np.ndarray):
        raise ValueError(f"{name} is an array, but this optimizer keeps none there")

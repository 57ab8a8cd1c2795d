"""The bare kernels: one update of one array in place, with the states passed in. Made from the list of rules.

`sgd_(p, g)`, `momentum_(p, g, v)`, `nag_(p, g, v)`, `adagrad_(p, g, a)`, `rmsprop_(p, g, s, m, v)`,
`adadelta_(p, g, a, u)`, `adam_(p, g, m, v, x)` and `nadam_(p, g, m, v)` take the class's states in the order of its
docstring. A state that its options do not keep is omitted or None. A state may be bfloat16, or a pair of q8 codes and
their scales. The options of the class follow by name; `lr` is a number, and `master` the float32 array of which a
16-bit `p` is the rounding.

>>> import numpy as np
>>> from gradstep.functional import adam_
>>> p, g = np.ones(3), np.ones(3)
>>> m, v = np.zeros(3), np.zeros(3)
>>> adam_(p, g, m, v, step=1, lr=1e-3)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from . import _core, _options, _storage
from ._groups import RULES
from ._libraries import library_of, refuse_capture, use_stream
from ._optimizer import Optimizer
from ._step import check_apart, run_step
from ._temporary import is_lost
from .optimizers import ALL


def options_of(cls: type[Optimizer]) -> dict[str, _options.Option[Any]]:
    """The options of a class that its function has, too.

    Fixed options determine which arrays are kept, which here are arguments. A frozen parameter would not be passed, and
    there are no averages.
    """
    return {name: option for name, option in cls.known.items() if not option.fixed and name not in ("frozen", "ema")}


def _make(cls: type[Optimizer]) -> Callable[..., float | None]:
    name = cls.rule + "_"
    states = RULES[cls.rule]["states"]
    known = options_of(cls)
    defaults = {key: option.default for key, option in known.items()}
    scalars: dict[str, float] = dict(RULES[cls.rule]["scalars"])

    def update(p: Any, g: Any, /, *arrays: Any, **given: Any) -> float | None:
        # First, because what follows holds references, too. So does an argument that is evaluated before the count.
        lost = ["p"] if is_lost(sys.getrefcount(p), p) else []
        for place, state in enumerate(states[: len(arrays)]):
            if is_lost(sys.getrefcount(arrays[place]), arrays[place]):
                lost.append(state)
        if "master" in given and is_lost(sys.getrefcount(given["master"]), given["master"]):
            lost.append("master")
        if len(arrays) > len(states):
            raise TypeError(f"{name} takes {len(states)} states ({', '.join(states)}), got {len(arrays)}")
        step = _options.whole(1, 2**62).check(given.pop("step", 1), f"{name}: step")
        carried = [
            _options.UP_TO_ONE.check(given.pop(scalar, first), f"{name}: {scalar}") for scalar, first in scalars.items()
        ]
        master = given.pop("master", None)
        chosen = {**defaults, **_options.check_all(given, known, name, schedules=False)}
        library = library_of(p)
        stepper: _core.Stepper = library.core.Stepper(None, "p", "g")
        options = _options.for_core({**cls.defaults, **chosen}, cls.known, RULES[cls.rule]["options"])
        stepper.add_group(cls.rule, options)
        kept: dict[str, Any] = {} if master is None else {_storage.MASTER: master}
        for state, array in zip(states, arrays, strict=False):
            if isinstance(array, tuple):
                if len(array) != 2:
                    raise TypeError(f"{name}: {state} must be an array, or a pair of codes and their scales")
                kept[state], kept[_storage.scale_of(state)] = array
                _storage.check_q8(name, chosen, cls.q8_incompatible)
            elif array is not None:
                kept[state] = array
        stepper.add_tensors([0], [p], [kept])
        for state in states:
            if _storage.scale_of(state) in kept and not library.on_gpu:  # on a GPU this would wait for the device
                codes, scales = kept[state], kept[_storage.scale_of(state)]
                _storage.check_scales(codes, scales, f"{name}: the scales of {state}")
        if chosen["stochastic_rounding"] is not None and not _storage.rounds(p, arrays, master):
            raise ValueError(f"{name}: stochastic_rounding has nothing to round: {_storage.ROUNDED}")
        check_apart(stepper.possible_overlaps())
        stepper.set_times(step - 1, [(step - 1, [*carried, 1.0])])
        if library.on_gpu:
            use_stream(library, stepper)
        for array in lost:
            raise ValueError(
                f"{name}: {array} is a temporary array, such as the copy that W[rows] makes, and its update would be "
                "lost; step some rows with gradstep.Rows, or assign the copy to a name and write it back"
            )
        words = f"{name}: a step cannot be captured in a graph without an optimizer, which keeps its arrays"
        refuse_capture(library, stepper, words)
        run_step(stepper, [g])
        return stepper.clocks[0][1][0] if scalars else None

    keyword = inspect.Parameter.KEYWORD_ONLY
    positional = inspect.Parameter.POSITIONAL_ONLY
    update.__name__ = update.__qualname__ = name
    update.__doc__ = (
        f"One update of `p` in place by {cls.__name__}, with its options.\n\n"
        "`p`, `g` and the states are arrays of one shape. `p` and the states are either all float64 or none of them;\n"
        "`g` is of any float type. The module's documentation describes other types of states.\n"
        "`step` is the number of this step, from 1.\n"
        + "".join(
            f"`{scalar}` is what the previous step returned, {first:g} at the first; returns the next value.\n"
            for scalar, first in scalars.items()
        )
        + "Raises TypeError and ValueError as the class does, with nothing written. ValueError also where `p` or a\n"
        "state is a temporary array, which nothing but the call holds, as far as Python's reference counts tell."
    )
    parameters = [
        inspect.Parameter("p", positional),
        inspect.Parameter("g", positional),
        *[inspect.Parameter(state, positional, default=None) for state in states],
        *[inspect.Parameter(key, keyword, default=default) for key, default in {"step": 1, **scalars}.items()],
        *[inspect.Parameter(key, keyword, default=default) for key, default in defaults.items()],
        inspect.Parameter("master", keyword, default=None),
    ]
    update.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return update


_FUNCTIONS = {cls.rule + "_": _make(cls) for cls in ALL}
__all__ = sorted(_FUNCTIONS)


def __getattr__(name: str) -> Callable[..., float | None]:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _FUNCTIONS[name]


def __dir__() -> list[str]:
    return __all__

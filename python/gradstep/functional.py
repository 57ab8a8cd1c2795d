"""The bare kernels: one update of one array in place, states passed in. Made from the list of rules.

`sgd_(p, g)`, `momentum_(p, g, v)`, `nag_(p, g, v)`, `adagrad_(p, g, a)`, `rmsprop_(p, g, s, m, v)`,
`adadelta_(p, g, a, u)`, `adam_(p, g, m, v, x)` and `nadam_(p, g, m, v)` take the class's states in the order of its
docstring; one that its options do not keep is left out or None. A state may be bfloat16, or the pair of its q8 codes
and their scales. The options of the class follow by name; `lr` is a number, and `master` the float32 array of which a
16-bit `p` is the rounding.

>>> import numpy as np
>>> from gradstep.functional import adam_
>>> p, g = np.ones(3), np.ones(3)
>>> m, v = np.zeros(3), np.zeros(3)
>>> adam_(p, g, m, v, step=1, lr=1e-3)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from . import _core, _options, _storage
from ._libraries import library_of, refuse_capture, use_stream
from ._optimizer import RULES, Optimizer
from ._step import check_apart, run_step
from .optimizers import ALL


def _make(cls: type[Optimizer]) -> Callable[..., float | None]:
    name = cls.rule + "_"
    states = RULES[cls.rule]["states"]
    settled = {*cls.initial_state.values(), *_storage.FIXED}  # here the arrays that are passed in tell
    defaults = {key: value for key, value in cls.defaults.items() if key not in settled}
    scalars: dict[str, float] = dict(RULES[cls.rule]["scalars"])

    def update(p: Any, g: Any, /, *arrays: Any, **given: Any) -> float | None:
        if len(arrays) > len(states):
            raise TypeError(f"{name} takes {len(states)} states ({', '.join(states)}), got {len(arrays)}")
        step = _options.whole_number(given.pop("step", 1), 1, f"{name}: step")
        carried = [
            _options.number(given.pop(scalar, first), _options.UP_TO_ONE, f"{name}: {scalar}")
            for scalar, first in scalars.items()
        ]
        master = given.pop("master", None)
        chosen = {**defaults, **_options.check_all(given, defaults, name)}
        if callable(chosen["lr"]):
            raise TypeError(f"{name}: lr must be a number, got {chosen['lr']!r}")
        library = library_of(p)
        stepper: _core.Stepper = library.core.Stepper(cls.rule, "p", "g")
        stepper.add_group(_options.for_core(chosen, RULES[cls.rule]["options"]))
        stepper.add_tensor(0, "", p, [*arrays, *[None] * (len(states) - len(arrays))], master)
        coded = {state: array for state, array in zip(states, arrays, strict=False) if isinstance(array, tuple)}
        if coded:
            _storage.check_q8(name, chosen, cls.q8_incompatible)
        for state, (codes, scales) in coded.items():
            if not library.on_gpu:  # from where it would have to wait for them
                _storage.check_scales(codes, scales, f"{name}: the scales of {state}")
        if chosen["stochastic_rounding"] is not None and not _storage.rounds(p, arrays, master):
            raise ValueError(f"{name}: stochastic_rounding has nothing to round: {_storage.ROUNDED}")
        check_apart(stepper.possible_overlaps())
        stepper.set_times(step - 1, [(step - 1, carried)])
        if library.on_gpu:
            use_stream(library, stepper)
        refuse_capture(library, stepper, f"{name}: a captured step needs an optimizer, which keeps what replays read")
        run_step(stepper, [g])
        return stepper.clocks[0][1][0] if scalars else None

    keyword = inspect.Parameter.KEYWORD_ONLY
    positional = inspect.Parameter.POSITIONAL_ONLY
    update.__name__ = update.__qualname__ = name
    update.__doc__ = (
        f"One update of `p` in place by {cls.__name__}, whose options these are.\n\n"
        "`p`, `g` and the states are arrays of one shape; `p` and the states all of float64 or none, `g` of any float\n"
        "type; see the module for others;\n"
        "`step` is the number of this step, from 1.\n"
        + "".join(
            f"`{scalar}` is what the step before returned, {first:g} at the first; returns the next.\n"
            for scalar, first in scalars.items()
        )
        + "Raises TypeError and ValueError as the class does; nothing is written then."
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

"""The values that options may take. An error names the optimizer and the option."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Rate: TypeAlias = float | Callable[[int], float]


class Domain(NamedTuple):
    """A test of a number and the words for it."""

    holds: Callable[[float], bool]
    words: str


NON_NEGATIVE = Domain(lambda x: x >= 0, "a finite number >= 0")
POSITIVE = Domain(lambda x: x > 0, "a finite number > 0")
UP_TO_ONE = Domain(lambda x: 0 <= x <= 1, "a number from 0 to 1")
BELOW_ONE = Domain(lambda x: 0 <= x < 1, "a number from 0 to below 1")

DOMAINS: dict[str, Domain] = {
    "lr": NON_NEGATIVE,
    "l2": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
    "momentum": UP_TO_ONE,
    "dampening": UP_TO_ONE,
    "rho": UP_TO_ONE,
    "betas": BELOW_ONE,
    "eps": NON_NEGATIVE,
    "eps_root": NON_NEGATIVE,
    "lr_decay": NON_NEGATIVE,
    "initial_accumulator": NON_NEGATIVE,
    "momentum_decay": NON_NEGATIVE,
}
"""Of another option, the default tells: a flag, True or False, or else a number >= 0."""
WHOLE = {"stochastic_rounding": 2**53, "min_8bit_size": 2**62}
"""Options that are integers from 0 on, with the greatest. A seed reaches the core as a float64."""
STATE_DTYPES = ("float32", "bfloat16", "q8")


def number(value: object, domain: Domain, name: str) -> float:
    """`value` as a float, where it is a number of that domain. Raises TypeError or ValueError."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be {domain.words}, got {value!r}")
    try:
        x = float(value)
    except OverflowError:
        x = math.inf
    if not (math.isfinite(x) and domain.holds(x)):
        raise ValueError(f"{name} must be {domain.words}, got {value!r}")
    return x


def whole_number(value: object, least: int, name: str, most: int = 2**62) -> int:
    """`value` as an int from `least` to `most`. Raises TypeError or ValueError."""
    words = f"{name} must be an integer from {least} to {most}, got {value!r}"
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(words)
    if not least <= int(value) <= most:
        raise ValueError(words)
    return int(value)


def limit(value: object, name: str) -> float | None:
    """`value` as a float above 0, or None. Raises TypeError or ValueError."""
    return None if value is None else number(value, POSITIVE, name)


def check(name: str, value: Any, default: Any, owner: str) -> Any:
    """The option's value in its plain type. Raises TypeError or ValueError, naming `owner` and the option."""
    label = f"{owner}: {name}"
    if isinstance(default, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{label} must be True or False, got {value!r}")
        return bool(value)
    domain = DOMAINS.get(name, NON_NEGATIVE)
    if name == "lr" and callable(value):
        return value
    if name in ("momentum_decay", "state_dtype", "stochastic_rounding") and value is None:
        return None
    if name == "state_dtype":
        if not isinstance(value, str):
            raise TypeError(f"{label} must be a name or None, got {value!r}")
        if value not in STATE_DTYPES:
            raise ValueError(f"{label} must be one of {', '.join(STATE_DTYPES)}, got {value!r}")
        return value
    if name in WHOLE:
        return whole_number(value, 0, label, WHOLE[name])
    if name == "betas":
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"{label} must be two numbers, got {value!r}")
        return tuple(number(beta, domain, f"{label}[{i}]") for i, beta in enumerate(value))
    return number(value, domain, label)


def check_all(options: Mapping[str, Any], defaults: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Options in their plain types. Raises TypeError where one is unknown or mistyped, ValueError out of range."""
    for name in options:
        if name not in defaults:
            raise TypeError(f"{owner} has no option {name!r}; it has {', '.join(defaults)}")
    return {name: check(name, value, defaults[name], owner) for name, value in options.items()}


def for_core(options: Mapping[str, Any], names: list[str]) -> dict[str, float]:
    """Options as the core takes them: those of `names`, all floats, None as NaN."""
    plain = dict(options)
    if "betas" in plain:
        plain["beta1"], plain["beta2"] = plain.pop("betas")
    return {name: math.nan if plain[name] is None else float(plain[name]) for name in names}

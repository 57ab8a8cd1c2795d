"""What 16-bit parameters and narrow states are worth, and how fast values are converted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import gradstep as gs
from gradstep import _core
from gradstep.bench import Arm, Problem, gradstep_arm

from ..harness import Row, Settings, Trial, Turns, numbers, times_of
from ..tables import group, markdown, timed, times, words

TITLE = "Storage types"
ABOUT = """\
A step on other types than float32, beside float32 in the same trial: how many times faster it is, by medians and by the
least times, and how many times fewer its bytes are. What comes to less than its bytes is held up by conversions, which
compete with the arithmetic. q8 always rounds stochastically."""

SIZES = (100_000, 16_000_000, 64_000_000)
PLAIN = "float32"
FLOAT32, FLOAT16, BFLOAT16 = np.dtype("f4"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)
SEED: dict[str, Any] = {"stochastic_rounding": 0}

# What it is called: the type of parameters and gradients, and options.
STATES: dict[str, tuple[np.dtype, dict[str, Any]]] = {
    PLAIN: (FLOAT32, {}),
    "bfloat16 states": (FLOAT32, {"state_dtype": "bfloat16"}),
    "q8 states": (FLOAT32, {"state_dtype": "q8"}),
}
PARAMS: dict[str, tuple[np.dtype, dict[str, Any]]] = {
    PLAIN: (FLOAT32, {}),
    "bfloat16": (BFLOAT16, {}),
    "bfloat16 stochastic": (BFLOAT16, SEED),
    "bfloat16 with master": (BFLOAT16, {"master": True}),
    "float16": (FLOAT16, {}),
}
BOTH: dict[str, tuple[np.dtype, dict[str, Any]]] = {
    "bfloat16 states stochastic": (FLOAT32, {"state_dtype": "bfloat16", **SEED}),
    "bfloat16, bfloat16 states": (BFLOAT16, {"state_dtype": "bfloat16"}),
    "bfloat16, q8 states": (BFLOAT16, {"state_dtype": "q8"}),
    "bfloat16 stochastic, q8 states": (BFLOAT16, {"state_dtype": "q8", **SEED}),
    "bfloat16 with master, q8 states": (BFLOAT16, {"state_dtype": "q8", "master": True}),
}


def problems(cls: type[gs.Optimizer], size: int) -> dict[str, Problem]:
    """Adam in all combinations, a rule without states in those of parameters, any other in those of states."""
    has_states = len(cls(np.zeros(1, np.float32)).state) > 0
    chosen = {**STATES, **PARAMS, **BOTH} if cls is gs.Adam else STATES if has_states else PARAMS
    first, grads = numbers((1, size))
    cases = {}
    for case, (dtype, options) in chosen.items():
        stored = [[array.astype(dtype) for array in arrays] for arrays in (first, grads)]
        cases[case] = Problem(cls, *stored, options)
    return cases


def arms(cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    return {case: [gradstep_arm(one)] for case, one in problems(cls, size).items()}


CONVERSIONS = "conversions"
FEW = 4096
"""Values that stay in the first cache, with what they are stored as."""
CALLS = 300
"""In a sample."""


@dataclass(frozen=True)
class Conversions:
    """How fast values of each type are widened and rounded, in the cache, on one thread, with each instruction set."""

    title: str = CONVERSIONS

    def run(self, settings: Settings) -> list[Row]:
        values = np.random.default_rng(0).standard_normal(FEW).astype(np.float32)
        stored: dict[str, tuple[Any, ...]] = {
            "float16": (values.astype(FLOAT16), None),
            "bfloat16": (values.astype(BFLOAT16), None),
            "int8": gs.q8.encode(values),
            "uint8": gs.q8.encode(values, signed=False),
        }
        rows = []
        for isa in _core.supported_isas():
            _core.use_isa(isa)
            for name, (codes, scales) in stored.items():
                source = np.abs(values) if name == "uint8" else values
                ways: dict[str, Callable[[], None]] = {
                    "widened": partial(_core.decode, codes, scales, np.empty_like(values)),
                    "rounded": partial(_core.encode, source, codes, scales),
                }
                for arm, convert in ways.items():
                    samples = [seconds(convert) for _ in range(settings.repeats)]
                    label = {"case": CONVERSIONS, "arm": arm, "rule": name, "isa": isa, "elements": FEW}
                    rows.append({**label, "calls": CALLS, **times_of(samples)})
        _core.use_isa("")
        return rows


def seconds(call: Callable[[], None]) -> float:
    """The time of one call, of many in a row."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def trials(settings: Settings) -> Iterator[Trial]:
    for size in map(settings.scaled, SIZES):
        for cls in settings.rules:
            if size < max(map(settings.scaled, SIZES)) or cls is gs.Adam:
                yield Turns(f"{cls.__name__}, {size}", partial(arms, cls, size))
    yield Conversions()


def table(rows: Sequence[Row]) -> str:
    headings = ["optimizer", "elements", "stored as", "bytes", "a step", "faster than float32", "by bytes alone"]
    lines = []
    groups = group([row for row in rows if row["case"] != CONVERSIONS], "rule", "elements", "case")
    for (rule, elements, case), found in groups.items():
        ours, plain = found["gradstep"], groups[rule, elements, PLAIN]["gradstep"]
        cells = (f"{ours['bytes']:.3g}", timed(ours), times(plain, ours), f"{plain['bytes'] / ours['bytes']:.2f}")
        lines.append([rule, words(elements), case, *cells])
    converted = group([row for row in rows if row["case"] == CONVERSIONS], "rule", "isa")
    rates = [
        [dtype, isa, *(f"{FEW / found[arm]['median'] / 1e9:.1f}" for arm in ("widened", "rounded"))]
        for (dtype, isa), found in converted.items()
    ]
    about = "In the cache, on one thread, a thousand million elements a second; rounded to nearest:"
    headings_of_rates = ["stored as", "instruction set", "widened", "rounded"]
    return "\n\n".join([markdown(headings, lines), about, markdown(headings_of_rates, rates)])

"""Speed and accuracy of 16-bit parameters and narrow states, and the speed of conversions."""

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
from gradstep.bench import Arm, Problem, WrongAnswer, gradstep_arm

from ..harness import Row, Settings, Trial, Turns, limited_arms, numbers, times_of
from ..peers.peer import Peer
from ..tables import arms as arms_of
from ..tables import group, markdown, timed, times, words

TITLE = "Storage types"
ABOUT = """\
A step on other types than float32, beside float32 in the same trial: how many times faster it is, by medians and by the
least times, and how many times fewer its bytes are. What comes to less than its bytes is held up by conversions, which
compete with the arithmetic. q8 always rounds stochastically."""

SIZES = (100_000, 16_000_000, 64_000_000)
LARGEST_OF_PEERS = 16_000_000
"""Elements; with more, a step of theirs takes seconds."""
PLAIN = "float32"
FLOAT32, FLOAT16, BFLOAT16 = np.dtype("f4"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)
SEED: dict[str, Any] = {"stochastic_rounding": 0}
Q8: dict[str, Any] = {"state_dtype": "q8", "min_8bit_size": 0}

Stored = dict[str, tuple[np.dtype, dict[str, Any]]]
"""What it is called: the type of parameters and gradients, and options."""

STATES: Stored = {
    PLAIN: (FLOAT32, {}),
    "bfloat16 states": (FLOAT32, {"state_dtype": "bfloat16"}),
    "q8 states": (FLOAT32, Q8),
}
PARAMS: Stored = {
    PLAIN: (FLOAT32, {}),
    "bfloat16": (BFLOAT16, {}),
    "bfloat16 stochastic": (BFLOAT16, SEED),
    "bfloat16 with master": (BFLOAT16, {"master": True}),
    "float16": (FLOAT16, {}),
    "float16 with master": (FLOAT16, {"master": True}),
}
BOTH: Stored = {
    "bfloat16 states stochastic": (FLOAT32, {"state_dtype": "bfloat16", **SEED}),
    "bfloat16, bfloat16 states": (BFLOAT16, {"state_dtype": "bfloat16"}),
    "bfloat16, q8 states": (BFLOAT16, Q8),
    "bfloat16 stochastic, q8 states": (BFLOAT16, {**Q8, **SEED}),
    "bfloat16 with master, bfloat16 states": (BFLOAT16, {"state_dtype": "bfloat16", "master": True}),
    "bfloat16 with master, q8 states": (BFLOAT16, {**Q8, "master": True}),
}


def problem_of(cls: type[gs.Optimizer], size: int, dtype: np.dtype, options: dict[str, Any]) -> Problem:
    """A rule on random numbers of this type."""
    first, grads = ([array.astype(dtype, copy=False) for array in arrays] for arrays in numbers((1, size)))
    return Problem(cls, first, grads, options)


def problems(cls: type[gs.Optimizer], size: int) -> dict[str, Problem]:
    """Problems by storage: all combinations for Adam, those of states for other rules with states, else parameters."""
    has_states = len(cls(np.zeros(1, np.float32)).state) > 0
    chosen = {**STATES, **PARAMS, **BOTH} if cls is gs.Adam else STATES if has_states else PARAMS
    return {case: problem_of(cls, size, *stored) for case, stored in chosen.items()}


def arms(cls: type[gs.Optimizer], size: int, peers: Sequence[Peer]) -> dict[str, Sequence[Arm]]:
    cases = {}
    for case, one in problems(cls, size).items():
        theirs = [arm for arm, _ in limited_arms(peers, one)]
        for arm in theirs:
            if one.depends_on_place:
                arm.answer = None  # another 8-bit format gives other parameters; see Deviations
        cases[case] = [gradstep_arm(one), *theirs]
    return cases


DEVIATIONS = "deviations"
STEPS = 100
SPREADS = {"of one scale": 0, "over 2 decades": 2, "over 5 decades": 5}
"""The scales of the elements of a gradient, drawn evenly from so many decades."""


@dataclass(frozen=True)
class Deviations:
    """How far the parameters with narrow states deviate from those with float32 states, on the same gradients."""

    size: int
    title: str = DEVIATIONS

    def run(self, settings: Settings) -> list[Row]:
        return [row for spread in SPREADS for row in self.rows(spread, settings.narrow_peers)]

    def rows(self, spread: str, peers: Sequence[Peer]) -> Iterator[Row]:
        """Rows for one kind of gradients. Raises WrongAnswer if a deviation is as large as the parameters' movement."""
        rng = np.random.default_rng(0)
        scales = 10 ** -rng.uniform(0, SPREADS[spread], self.size)
        grad = np.zeros(self.size, np.float32)  # read by all arms; changes before every step
        arms = {}
        for case, (dtype, options) in {**STATES, **BOTH}.items():
            if dtype == FLOAT32:
                one = Problem(gs.Adam, [np.zeros_like(grad)], [grad], options)
                arms[case] = gradstep_arm(one)
                arms |= {arm.name: arm for arm, _ in limited_arms(peers, one)}
        for _ in range(STEPS):
            grad[...] = rng.standard_normal(self.size) * scales
            for arm in arms.values():
                arm.take(1)
        moved = {name: arm.answer()[0].astype(np.float64) for name, arm in arms.items() if arm.answer}
        right = moved.pop(PLAIN)
        for name, movement in moved.items():
            deviation = float(np.linalg.norm(movement - right) / np.linalg.norm(right))
            if not deviation < 1:
                raise WrongAnswer(f"adam: {name} moved the parameters elsewhere than float32 states")
            label = {"case": DEVIATIONS, "arm": name, "rule": "Adam", "elements": self.size, "spread": spread}
            yield {**label, "steps": STEPS, "deviation": deviation}


CONVERSIONS = "conversions"
FEW = 4096
"""Values that stay in the first cache, with what they are stored as."""
CALLS = 300
"""In a sample."""


@dataclass(frozen=True)
class Conversions:
    """Speed of decoding and encoding per type and instruction set, in the cache, on one thread."""

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
    """The time per call, measured over many calls."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def trials(settings: Settings) -> Iterator[Trial]:
    for size in map(settings.scaled, SIZES):
        for cls in settings.rules:
            if size < max(map(settings.scaled, SIZES)) or cls is gs.Adam:
                peers = settings.narrow_peers if size <= settings.scaled(LARGEST_OF_PEERS) else []
                yield Turns(f"{cls.__name__}, {size}", partial(arms, cls, size, peers))
    for _ in settings.rule("Adam"):
        yield Deviations(settings.scaled(100_000))
    yield Conversions()


def table(rows: Sequence[Row]) -> str:
    headings = ["optimizer", "elements", "stored as", "bytes", "a step", "faster than float32", "by bytes alone"]
    lines = []
    groups = group([row for row in rows if row["case"] not in (CONVERSIONS, DEVIATIONS)], "rule", "elements", "case")
    theirs = []
    for (rule, elements, case), found in groups.items():
        ours, plain = found["gradstep"], groups[rule, elements, PLAIN]["gradstep"]
        cells = (f"{ours['bytes']:.3g}", timed(ours), times(plain, ours), f"{plain['bytes'] / ours['bytes']:.2f}")
        lines.append([rule, words(elements), case, *cells])
        for name in arms_of(found.values()):
            peer = found[name]
            theirs.append([name, words(elements), case, timed(peer), timed(ours), times(peer, ours)])
    return "\n\n".join([markdown(headings, lines), *beside_peers(theirs), *deviations(rows), *conversions(rows)])


def beside_peers(lines: Sequence[Sequence[str]]) -> list[str]:
    """The table of how many times longer the peers take; empty without peers."""
    headings = ["peer", "elements", "gradstep's storage", "a step of the peer", "of gradstep", "times longer"]
    return ["Adam of peers that have 8-bit states:", markdown(headings, lines)] if lines else []


def deviations(rows: Sequence[Row]) -> list[str]:
    """The table of deviations of the parameters; empty if they were not measured."""
    found = {(row["arm"], row["spread"]): row["deviation"] for row in rows if row["case"] == DEVIATIONS}
    if not found:
        return []
    arms = dict.fromkeys(arm for arm, _ in found)
    lines = [[arm, *(f"{found[arm, spread]:.1%}" for spread in SPREADS)] for arm in arms]
    about = (
        f"The deviation of the parameters after {STEPS} steps of Adam from those with float32 states, on the same "
        "gradients: its root mean square, in parts of that of the movement. The gradients are normal numbers, whose "
        "scales within a block of codes are"
    )
    return [about, markdown(["states", *SPREADS], lines)]


def conversions(rows: Sequence[Row]) -> list[str]:
    """The table of the speed of conversions; empty if they were not measured."""
    converted = group([row for row in rows if row["case"] == CONVERSIONS], "rule", "isa")
    rates = [
        [dtype, isa, *(f"{FEW / found[arm]['median'] / 1e9:.1f}" for arm in ("widened", "rounded"))]
        for (dtype, isa), found in converted.items()
    ]
    about = "In the cache, on one thread, a thousand million elements a second; rounded to nearest:"
    headings_of_rates = ["stored as", "instruction set", "widened", "rounded"]
    return [about, markdown(headings_of_rates, rates)]

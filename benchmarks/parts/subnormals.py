"""States that have decayed to subnormal numbers, which are slow on processors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

import gradstep as gs
from gradstep.bench import Arm, Problem, gradstep_arm, reference_arm

from ..harness import Row, Settings, Trial, Turns, numbers
from ..tables import arms as arms_of
from ..tables import group, markdown, percent, timed, words

TITLE = "Subnormal states"
ABOUT = """\
Adam whose gradients have been zero for so long that its moments have decayed to subnormal numbers, where they stay for
ever. Each time stands beside that of the same arm on normal numbers. Flushing: gradstep with `flush_subnormals`."""

SIZES = (100_000, 16_000_000)
NORMAL = "normal numbers"
DECAYED = {
    "first moment subnormal": {"exp_avg": 1e-40, "exp_avg_sq": 1.0},
    "both moments subnormal": {"exp_avg": 1e-40, "exp_avg_sq": 1e-40},
}


def arms_of_case(problem: Problem) -> list[Arm]:
    """gradstep without and with flushing, and NumPy."""
    flushing = gradstep_arm(replace(problem, options={"flush_subnormals": True}))
    flushing.name = "gradstep flushing"
    return [gradstep_arm(problem), flushing, reference_arm(problem)]


def arms(cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    first, grads = numbers((1, size))
    none = [np.zeros_like(grads[0])]
    decayed = {case: Problem(cls, first, none, first_states=states) for case, states in DECAYED.items()}
    return {case: arms_of_case(problem) for case, problem in {NORMAL: Problem(cls, first, grads), **decayed}.items()}


def trials(settings: Settings) -> Iterator[Trial]:
    for size in map(settings.scaled, SIZES):
        for cls in settings.rule("Adam"):
            yield Turns(f"{cls.__name__}, {size}", partial(arms, cls, size))


def table(rows: Sequence[Row]) -> str:
    names = arms_of(rows, beside=())
    groups = group(rows, "elements", "case")
    lines = []
    for (elements, case), found in groups.items():
        normal = groups[elements, NORMAL]
        cells = [f"{timed(found[arm])}, {percent(found[arm], normal[arm])}" for arm in names]
        lines.append([case, words(elements), *cells])
    return markdown(["states", "elements", *names], lines)

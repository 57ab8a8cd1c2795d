"""Strided arrays compared with contiguous ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

import gradstep as gs
from gradstep.bench import Arm, Problem, gradstep_arm

from ..harness import Row, Settings, Trial, Turns, problem
from ..tables import group, markdown, percent, timed, words

TITLE = "Strided arrays"
ABOUT = """\
As many elements, in another layout: the parameter as rows of a matrix that is twice as wide, or a gradient whose memory
is transposed."""

RULES = ("SGD", "Adam")
SIZES = (100_000, 4_000_000)
RUNS = (16, 64, 1000)
CONTIGUOUS = "contiguous"


def rows_arm(contiguous: Problem, run: int) -> Arm:
    """gradstep with a parameter that is the left half of a wide matrix."""
    count = contiguous.elements // run
    first, grad = (arrays[0][: count * run].reshape(count, run) for arrays in (contiguous.first, contiguous.grads))
    rows = Problem(contiguous.cls, [first], [grad])
    param = np.zeros((count, 2 * run), first.dtype)[:, :run]
    param[...] = first
    return gradstep_arm(rows, [param])


def transposed_arm(contiguous: Problem) -> Arm:
    """gradstep with a gradient that is the transpose of a contiguous matrix."""
    side = int(contiguous.elements**0.5)
    first, grad = (arrays[0][: side * side].reshape(side, side) for arrays in (contiguous.first, contiguous.grads))
    return gradstep_arm(Problem(contiguous.cls, [first], [np.asfortranarray(grad)]))


def arms(cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    contiguous = problem(cls, (1, size))
    return {
        CONTIGUOUS: [gradstep_arm(contiguous)],
        **{f"rows of {run}": [rows_arm(contiguous, run)] for run in RUNS if run <= size},
        "transposed gradient": [transposed_arm(contiguous)],
    }


def trials(settings: Settings) -> Iterator[Trial]:
    for size in map(settings.scaled, SIZES):
        for name in RULES:
            for cls in settings.rule(name):
                labels = {"total": size}
                yield Turns(f"{name}, {size}", partial(arms, cls, size), labels)


def table(rows: Sequence[Row]) -> str:
    lines = []
    groups = group(rows, "rule", "total", "case")
    for (rule, total, case), found in groups.items():
        ours, plain = found["gradstep"], groups[rule, total, CONTIGUOUS]["gradstep"]
        lines.append([rule, words(total), case, timed(ours), percent(ours, plain)])
    return markdown(["optimizer", "elements", "layout", "a step", "of contiguous"], lines)

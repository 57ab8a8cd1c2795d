"""The cost of options: one that adds a stream costs its traffic, any other nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradstep as gs
from gradstep.bench import Arm, gradstep_arm

from ..ceiling import ceiling_arms
from ..harness import Row, Settings, Trial, Turns, problem
from ..tables import group, markdown, of_ceiling, percent, timed, words

TITLE = "What options cost"
ABOUT = """\
Each option beside the plain rule, in time and in the bytes that it must move. An option that adds a state pays for its
bytes, `clip_norm` for reading the gradient twice, the others should cost nothing."""

SIZES = (100_000, 16_000_000)
PLAIN = "plain"
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Adam": [
        {"l2": 0.01},
        {"weight_decay": 0.01},
        {"maximize": True},
        {"eps_root": 1e-8},
        {"flush_subnormals": True},
        {"clip_norm": 1.0},
        {"amsgrad": True},
    ],
    "RMSProp": [{"centered": True}, {"momentum": 0.9}, {"centered": True, "momentum": 0.9}],
}


def arms(cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    cases = {}
    for options in ({}, *OPTIONS[cls.__name__]):
        one = problem(cls, (1, size), **options)
        if "clip_norm" in options:
            one = replace(one, compared=size)  # the norm depends on all elements
        cases[", ".join(options) or PLAIN] = [gradstep_arm(one), *ceiling_arms(one)]
    return cases


def trials(settings: Settings) -> Iterator[Trial]:
    for size in map(settings.scaled, SIZES):
        for name in OPTIONS:
            for cls in settings.rule(name):
                yield Turns(f"{name}, {size}", partial(arms, cls, size))


def table(rows: Sequence[Row]) -> str:
    headings = [
        "optimizer",
        "elements",
        "options",
        "bytes",
        "a step",
        "of the ceiling",
        "of plain's bytes",
        "of its time",
    ]
    lines = []
    groups = group(rows, "rule", "elements", "case")
    for (rule, elements, case), found in groups.items():
        ours, plain = found["gradstep"], groups[rule, elements, PLAIN]["gradstep"]
        compared = (of_ceiling(found), f"{ours['bytes'] / plain['bytes']:.0%}", percent(ours, plain))
        lines.append([rule, words(elements), case, f"{ours['bytes']:g}", timed(ours), *compared])
    return markdown(headings, lines)

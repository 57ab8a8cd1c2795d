"""16-bit parameters and narrow states on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import gradstep as gs
from gradstep import optimizers
from gradstep.bench import Arm

from ..gpu import ceiling_arm, gpu, gradstep_arm, on_gpu
from ..harness import Row, Settings, Trial, Turns
from ..tables import comparison
from .storage import problems

TITLE = "Storage types on a GPU"
ABOUT = """\
As above, on other types than float32; the ceiling is a copy of as few bytes."""

SIZE = 32_000_000  # exceeds every cache; results are checked on the processor


def arms(cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    cases = {}
    for case, one in problems(cls, size).items():
        whole = replace(one, oracle=optimizers, compared=size)  # all at once: random bits depend on the index
        cases[case] = [on_gpu(arm, calls=1) for arm in (gradstep_arm(whole), ceiling_arm(whole))]
    return cases


def trials(settings: Settings) -> Iterator[Trial]:
    size = gpu().at_most(settings.scaled(SIZE))
    for cls in settings.rules:
        yield Turns(f"{cls.__name__}, {size}", partial(arms, cls, size))


def table(rows: Sequence[Row]) -> str:
    said = [row | {"stored as": row["case"], "bytes each": f"{row['bytes']:.3g}"} for row in rows]
    return comparison(said, "elements", "stored as", "bytes each")

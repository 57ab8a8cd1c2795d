"""Many small tensors on a GPU, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import gradstep as gs
from gradstep.bench import Arm, shape_words

from ..gpu import dispatched, gpu, gradstep_arm, on_gpu, problem
from ..harness import Row, Settings, Trial, Turns
from ..tables import arms as arms_of
from ..tables import group, markdown, timed

TITLE = "Many small tensors on a GPU"
ABOUT = """\
A step of 1000 tensors of 1000 elements: the GPU's time, back to back and alone with its cache full of something else,
and the processor's time to send it off. Bound: the gradients are handed over once. Peers that send off every tensor's
operations by themselves take tens of milliseconds and are left out."""

SHAPE = (1000, 1000)
ONE_BY_ONE = ("torch single", "CuPy out=")
BACK_TO_BACK, FLUSHED, DISPATCH = "The GPU's time, back to back", "The GPU's time, flushed", "The processor's time"
CASES: dict[str, Callable[[Arm], Arm]] = {
    BACK_TO_BACK: on_gpu,
    FLUSHED: partial(on_gpu, calls=1),
    DISPATCH: dispatched,
}


def arms_of_case(settings: Settings, cls: type[gs.Optimizer], timed_by: Callable[[Arm], Arm]) -> list[Arm]:
    several = problem(cls, (settings.scaled(SHAPE[0]), SHAPE[1]))
    arms = []
    for library in gpu().uploads:
        for bound in (True, False):
            arm = gradstep_arm(several, library, bound=bound)
            arm.name = f"{arm.name}, {library}"
            arms.append(arm)
    arms += [arm for arm in settings.peer_arms(several) if arm.name not in ONE_BY_ONE]
    return [timed_by(arm) for arm in arms]


def arms(settings: Settings, cls: type[gs.Optimizer]) -> dict[str, Sequence[Arm]]:
    return {case: arms_of_case(settings, cls, timed_by) for case, timed_by in CASES.items()}


def trials(settings: Settings) -> Iterator[Trial]:
    for cls in settings.rules:
        yield Turns(f"{cls.__name__}, {shape_words(SHAPE)}", partial(arms, settings, cls))


def table(rows: Sequence[Row]) -> str:
    names = arms_of(rows, beside=())
    sections = []
    for case in CASES:
        by_rule = group([row for row in rows if row["case"] == case], "rule")
        lines = [[rule, *(timed(found.get(name)) for name in names)] for (rule,), found in by_rule.items()]
        sections += [f"### {case}", markdown(["optimizer", *names], lines)]
    return "\n\n".join(sections)

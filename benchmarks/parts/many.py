"""Many small tensors, in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import gradstep as gs
from gradstep.bench import Arm, Problem, Shape, bare, gradstep_arm, shape_words

from ..ceiling import ceiling_arms
from ..harness import Row, Settings, Trial, Turns, problem
from ..tables import arms as arms_of
from ..tables import group, markdown, of_ceiling, times

TITLE = "Many small tensors"
ABOUT = """\
Nanoseconds a tensor, Python's dispatch included; those beyond the time of one tensor of the same total size; and those
where the gradients are bound to the optimizer, handed over once. The ceiling is that of the total size."""

SHAPES: tuple[Shape, ...] = ((100, 1000), (1000, 256), (3500, 1000), (3000, 3500))


def bound_arm(problem: Problem) -> Arm:
    """gradstep, with gradients bound to the optimizer."""
    params = problem.params()
    opt = problem.cls(bare(params), grads=bare(problem.grads))
    return Arm("gradstep bound", opt.step, problem, lambda: params, exact=True)


def arms(settings: Settings, cls: type[gs.Optimizer], shape: Shape) -> dict[str, Sequence[Arm]]:
    several = problem(cls, shape)
    together = gradstep_arm(problem(cls, (1, several.elements)))
    together.name = "one tensor"
    ours = [gradstep_arm(several), bound_arm(several), together, *ceiling_arms(several)]
    return {shape_words(shape): [*ours, *settings.peer_arms(several)]}


def trials(settings: Settings) -> Iterator[Trial]:
    for count, size in SHAPES:
        shape = (count // 50 if settings.quick else count, size)
        for cls in settings.rules:
            yield Turns(f"{cls.__name__}, {shape_words(shape)}", partial(arms, settings, cls, shape))


def table(rows: Sequence[Row]) -> str:
    others = arms_of(rows, beside=("gradstep", "gradstep bound", "one tensor"))
    headings = ["optimizer", "tensors", "ns a tensor", "beyond one", "bound", "of the ceiling", *others]
    lines = []
    for (rule, case), found in group(rows, "rule", "case").items():
        ours = found["gradstep"]
        times_of = [ours["median"], ours["median"] - found["one tensor"]["median"], found["gradstep bound"]["median"]]
        numbers = [f"{seconds / ours['tensors'] * 1e9:.0f}" for seconds in times_of]
        ratios = [times(found.get(arm), ours) for arm in others]
        lines.append([rule, case, *numbers, of_ceiling(found), *ratios])
    return markdown(headings, lines)

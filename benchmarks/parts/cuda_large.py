"""One large tensor on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import gradstep as gs
from gradstep.bench import Arm, Problem

from ..gpu import ceiling_arm, gpu, gradstep_arm, on_gpu, problem
from ..harness import Row, Settings, Trial, Turns
from ..tables import comparison

TITLE = "One large tensor on a GPU"
ABOUT = """\
The GPU's time of one step, its cache full of something else. The ceiling is a copy within its memory that reads and
writes as many bytes. `additions` is a kernel of CuPy's that reads and writes as many arrays as the step, and only
adds."""

SIZE = 100_000_000


def additions_arm(problem: Problem) -> Arm:
    """One pass that only adds, over as many arrays as the step."""
    cupy = gpu().cupy
    written = "pabc"[: 1 + problem.states]
    adds = "; ".join(f"{name} += g" for name in written)
    kernel = cupy.ElementwiseKernel("float32 g", ", ".join(f"float32 {name}" for name in written), adds, "additions")
    arrays = cupy.ones((1 + len(written), problem.elements), cupy.float32)
    return Arm("additions", partial(kernel, *arrays), problem)


def arms(settings: Settings, cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    one = problem(cls, (1, size))
    arms = [gradstep_arm(one), ceiling_arm(one), *settings.peer_arms(one)]
    if gpu().cupy:
        arms.append(additions_arm(one))
    return {"flushed": [on_gpu(arm, calls=1) for arm in arms]}


def trials(settings: Settings) -> Iterator[Trial]:
    size = gpu().at_most(settings.scaled(SIZE))
    for cls in settings.rules:
        yield Turns(f"{cls.__name__}, {size}", partial(arms, settings, cls, size))


def table(rows: Sequence[Row]) -> str:
    return comparison(rows, "elements")

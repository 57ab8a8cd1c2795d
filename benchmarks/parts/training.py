"""All that a training step does after the gradients are known, in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import gradstep as gs
from gradstep.bench import Arm, bare, gradstep_arm

from ..harness import Row, Settings, Trial, Turns, limited_arms, problem
from ..tables import arms as arms_of
from ..tables import group, markdown, timed, times, words

TITLE = "A whole training step"
ABOUT = """\
AdamW, with everything that mixed-precision training adds: gradients are divided by the scale of the loss, checked, and
clipped by their global norm; weights decay, are updated, averaged, and copied to bfloat16. gradstep does it in one
call. torch takes its gradient scaler's function, `clip_grad_norm_`, the fused step, `_foreach_lerp_` and
`_foreach_copy_`; NumPy takes `out=`, in pieces that fit into the cache. The scale is 1 and the norm below its limit,
so that the gradients, which torch changes, stay as they are; the work is the same. The last column is the step of
gradstep without all this."""

SHAPES = ((1, 100_000), (100, 10_000), (1, 16_000_000), (1, 64_000_000))
OPTIONS: dict[str, Any] = {"weight_decay": 0.01, "clip_norm": 1e6, "ema": 0.999}
PLAIN, WHOLE = "plain", "whole"


def whole_arm(one: Any) -> Arm:
    """gradstep's step with everything."""
    params = one.params()
    copies = [np.empty_like(param, ml_dtypes.bfloat16) for param in params]
    scale = gs.LossScale(1.0, interval=2**62)
    opt = one.cls(bare(params), **one.options, on_nonfinite="skip", loss_scale=scale, copy_out=bare(copies))

    def answer() -> list[Any]:
        for param, copy in zip(params, copies, strict=True):
            if not np.array_equal(copy, param.astype(copy.dtype)):
                raise ValueError("a copy is not the rounded parameter")
        return params

    return Arm("gradstep", partial(opt.step, bare(one.grads)), one, answer, exact=True)


def arms(settings: Settings, cls: type[gs.Optimizer], shape: tuple[int, int]) -> dict[str, Sequence[Arm]]:
    one = problem(cls, shape, **OPTIONS)
    peers = [arm for arm, _ in limited_arms(settings.training_peers, one)]
    return {PLAIN: [gradstep_arm(problem(cls, shape))], WHOLE: [whole_arm(one), *peers]}


def trials(settings: Settings) -> Iterator[Trial]:
    for cls in settings.rule("Adam"):
        for count, size in SHAPES:
            shape = (count, settings.scaled(size))
            yield Turns(f"{cls.__name__}, {shape}", partial(arms, settings, cls, shape))


def table(rows: Sequence[Row]) -> str:
    names = arms_of([row for row in rows if row["case"] == WHOLE])
    lines = []
    groups = group(rows, "tensors", "elements", "case")
    for (tensors, elements, case), found in groups.items():
        if case == WHOLE:
            ours, plain = found["gradstep"], groups[tensors, elements, PLAIN]["gradstep"]
            peers = [times(found[name], ours) if name in found else "" for name in names]
            lines.append([words(tensors), words(elements), timed(ours), *peers, times(ours, plain)])
    headings = ["tensors", "elements", "gradstep", *(f"{name} takes" for name in names), "of the plain step"]
    return markdown(headings, lines)

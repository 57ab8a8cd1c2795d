"""The fraction of a training step's time that the update takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np

import gradstep as gs
from gradstep import demo
from gradstep.bench import Arm, Problem, gradstep_arm, reference_arm

from ..harness import Row, Settings, Trial, Turns
from ..tables import arms as arms_of
from ..tables import group, markdown, timed

TITLE = "The share of the whole"
ABOUT = """\
What part of a training step (gradients and update) the update is, in a perceptron whose gradients are written in NumPy.
Every update that is timed comes right after gradients, and these after other such steps, as in training. In brackets:
by the least times."""

RULES = ("SGD", "Adam")
GRADIENTS = "gradients"
WARM_UP = 2  # steps before the one that is timed


class Network(NamedTuple):
    """A perceptron, its batch size, and the threads of its matrix products; None: as many as cores."""

    widths: tuple[int, ...]
    batch: int
    threads: int | None

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}"


NETWORKS = (
    Network((64, *demo.HIDDEN, 10), demo.BATCH, 1),  # two threads are slower on matrices this small
    Network((1024, 1024, 1024, 10), 128, None),
)


def arms(settings: Settings, cls: type[gs.Optimizer], network: Network) -> dict[str, Sequence[Arm]]:
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    params = demo.initial_params(rng, network.widths)
    images = rng.random((network.batch, network.widths[0]), np.float32)
    gradients = partial(demo.gradients, params, images, rng.integers(0, 10, network.batch))
    grads = gradients()
    one = Problem(cls, list(params.values()), [grads[name] for name in params])

    def limit():
        return threadpool_limits(network.threads, "blas") if network.threads else nullcontext()

    @contextmanager
    def in_training(arm: Arm) -> Iterator[None]:
        with limit():
            for _ in range(WARM_UP):
                gradients()
                arm.take(1)
            if arm.name != GRADIENTS:
                gradients()
            yield

    arms = [Arm(GRADIENTS, gradients, one), gradstep_arm(one), reference_arm(one), *settings.peer_arms(one)]
    for arm in arms:
        arm.around, arm.calls = partial(in_training, arm), 1
    return {str(network): arms}


def trials(settings: Settings) -> Iterator[Trial]:
    for network in NETWORKS[: 1 if settings.quick else None]:
        for name in RULES:
            for cls in settings.rule(name):
                yield Turns(f"{name}, {network}", partial(arms, settings, cls, network))


def share(update: Row | None, gradients: Row) -> str:
    """The fraction of an update in a step, by medians, and by minima in brackets."""
    if not update:
        return ""
    by_median, by_least = (update[key] / (gradients[key] + update[key]) for key in ("median", "least"))
    return f"{by_median:.1%} ({by_least:.1%})"


def table(rows: Sequence[Row]) -> str:
    names = arms_of(rows, beside=(GRADIENTS,))
    lines = []
    for (rule, case), found in group(rows, "rule", "case").items():
        whole = found[GRADIENTS]
        lines.append([rule, case, timed(whole), *(share(found.get(arm), whole) for arm in names)])
    return markdown(["optimizer", "perceptron", "the gradients take", *names], lines)

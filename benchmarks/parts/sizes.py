"""One tensor of every size: with warm caches, and with cold ones if it fits into a cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import numpy as np

import gradstep as gs
from gradstep.bench import Arm, Array, gradstep_arm

from ..ceiling import ceiling_arms, passes
from ..harness import Row, Settings, Trial, Turns, problem
from ..machine import last_cache
from ..tables import comparison

TITLE = "One tensor"
ABOUT = """\
Warm: many calls in a row. Cold: before every single call a large buffer is streamed through the caches of all threads;
they sleep then, and the call has to wake them."""

LARGEST_COLD = 4_000_000
"""Elements; above, a tensor and its states are hardly in a cache to begin with."""
LARGEST_BUFFER = 128_000_000
"""Elements; a cache that is larger is shared with other machines."""


@lru_cache(maxsize=1)
def buffer(most: int) -> list[Array]:
    """Two arrays, together twice as large as the largest cache, with at most `most` elements."""
    elements = min(2 * last_cache() // 4 or most, most)
    return [np.ones(elements // 2, np.float32) for _ in range(2)]


@contextmanager
def cold(most: int) -> Iterator[None]:
    """Fills the caches of all threads with other data."""
    passes(buffer(most), 0, gs.get_num_threads())
    time.sleep(0.001)  # waits until the workers sleep
    yield


def arms(settings: Settings, cls: type[gs.Optimizer], size: int, is_cold: bool) -> dict[str, Sequence[Arm]]:
    one = problem(cls, (1, size))
    arms = [gradstep_arm(one), *ceiling_arms(one), *settings.peer_arms(one)]
    if is_cold:
        for arm in arms:
            arm.around, arm.calls = partial(cold, settings.scaled(LARGEST_BUFFER)), 1
    return {"cold" if is_cold else "warm": arms}


def trials(settings: Settings) -> Iterator[Trial]:
    for size in settings.sizes:
        for cls in settings.rules:
            yield Turns(f"{cls.__name__}, {size}, warm", partial(arms, settings, cls, size, False))
            if size <= LARGEST_COLD:
                yield Turns(f"{cls.__name__}, {size}, cold", partial(arms, settings, cls, size, True))


def table(rows: Sequence[Row]) -> str:
    sections = []
    for case in ("warm", "cold"):
        found = [row for row in rows if row["case"] == case]
        if found:
            sections += [f"### {case.capitalize()}", comparison(found, "elements")]
    return "\n\n".join(sections)

"""The small interface behind which every peer stands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from gradstep.bench import Arm, Problem

Limit = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Peer:
    """One form of a library."""

    name: str  # of its arms
    library: str
    make: Callable[[str, Problem], Arm | None]  # an arm of that name, or None where it has no such rule
    limit: Limit | None = None  # within it, steps use so many threads; None: it cannot be told


def limiter(get: Callable[[], Any], set: Callable[[Any], object]) -> Limit:
    """The context in which a setting, such as a number of threads, has a value, from what gets and sets it."""

    @contextmanager
    def limit(value):
        before = get()
        set(value)
        try:
            yield
        finally:
            set(before)

    return limit

"""The small interface behind which every peer stands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from gradstep.bench import Arm, Problem

Limit = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Peer:
    """One form of a library."""

    name: str  # of its arms
    library: str
    make: Callable[[str, Problem], Arm | None]  # an arm of that name, or None where it has no such rule
    limit: Limit | None = None  # within it, steps use so many threads; None: it cannot be told


def limiter(get: Callable[[], int], set: Callable[[int], object]) -> Limit:
    """The context in which a library uses so many threads, from the functions that ask and set their number."""

    @contextmanager
    def limit(count):
        before = get()
        set(count)
        try:
            yield
        finally:
            set(before)

    return limit

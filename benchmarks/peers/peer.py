"""The interface of peers."""

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

    name: str  # the name of its arms
    library: str
    make: Callable[[str, Problem], Arm | None]  # makes an arm of that name; None if it lacks the rule
    limit: Limit | None = None  # context that limits the threads; None: not supported


def limiter(get: Callable[[], Any], set: Callable[[Any], object]) -> Limit:
    """A context that sets a setting, such as the number of threads, from its getter and setter."""

    @contextmanager
    def limit(value):
        before = get()
        set(value)
        try:
            yield
        finally:
            set(before)

    return limit

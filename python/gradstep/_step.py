"""A step of the core, with NumPy's exact test of overlap where the core cannot rule it out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from . import _core


def run_step(stepper: _core.Stepper, grads: Any) -> None:
    """Takes a step, without `grads` with those bound, or raises TypeError or ValueError with nothing written."""
    held_back = stepper.step(grads)
    if held_back is not None:
        prepared, possible_overlaps = held_back
        check_apart(possible_overlaps)
        stepper.run(prepared)


def check_apart(possible_overlaps: Iterable[tuple[Any, Any, str]]) -> None:
    """Raises ValueError, in the words given, where two arrays share memory or NumPy cannot tell soon."""
    for a, b, words in possible_overlaps:
        try:
            # As plain arrays: a subclass might answer for itself. NumPy's stubs know but two values of max_work.
            a, b = np.ndarray.view(a, np.ndarray), np.ndarray.view(b, np.ndarray)
            shared = np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
        except RuntimeError:  # np.exceptions.TooHardError
            shared = True
        if shared:
            raise ValueError(words)

"""A step of the core, with its lock, the values of schedules, and NumPy's exact test of overlap."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import numpy as np

from . import _core
from ._core import StepResult
from ._libraries import Library, use_stream
from ._options import Option, Schedule, has_state


def run_step(stepper: _core.Stepper, grads: Any) -> None:
    """Takes a step, with `...` for bound gradients, or raises TypeError or ValueError with nothing written."""
    finish_step(stepper, stepper.step(grads))


def finish_step(stepper: _core.Stepper, result: Any, grad_scale: float = 1.0, stats: bool = False) -> Any:
    """The result of a step, None on a GPU. A step that the core holds back is taken after the exact test of overlap."""
    if type(result) is not tuple:
        return result
    prepared, possible_overlaps = result
    check_apart(possible_overlaps)
    return stepper.run(prepared, grad_scale, stats)


def check_apart(possible_overlaps: Iterable[tuple[Any, Any, str]]) -> None:
    """Raises ValueError with the given message where two arrays share memory, or where the test would take too long."""
    for a, b, words in possible_overlaps:
        try:
            # Plain arrays, because a subclass may override the test. NumPy's stubs allow only two values of max_work.
            a, b = np.ndarray.view(a, np.ndarray), np.ndarray.view(b, np.ndarray)
            shared = np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
        except RuntimeError:  # np.exceptions.TooHardError
            shared = True
        if shared:
            raise ValueError(words)


class PendingResult(StepResult):
    """The result of a step on a GPU, which is waited for when it is asked for."""

    __slots__ = ("_engine", "_number", "_result")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.taken += 1
        self._number = engine.taken
        self._result: StepResult | None = None

    def _read(self, attribute: str) -> Any:
        with self._engine.lock:
            if self._result is None:
                if self._number != self._engine.taken:
                    raise RuntimeError("the result of a step on a GPU must be read before the next step is taken")
                self._result = self._engine.stepper.result
            return getattr(self._result, attribute)


for _name in [name for name, attribute in vars(StepResult).items() if inspect.isgetsetdescriptor(attribute)]:
    setattr(PendingResult, _name, property(partial(PendingResult._read, attribute=_name)))


LOCKED: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
"""The objects that have a lock, under which steps are taken."""


class Engine:
    """The stepper of an optimizer, which its groups share, and the lock that serializes steps and changes."""

    __slots__ = (
        "__weakref__",
        "_asking",
        "is_scheduled",
        "library",
        "lock",
        "name",
        "prepares",
        "quick_step",
        "scheduled",
        "stepper",
        "taken",
        "tree",
        "values",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        """The name of the optimizer, for messages."""
        self.library: Library
        self.tree: _core.Tree
        self.stepper: _core.Stepper
        self.lock = _core.Gate()
        self.quick_step = self.lock.step
        """Takes a step in one call, or returns None where `prepares` is true or something else is to be done."""
        self.taken = 0
        """The number of steps on a GPU whose results may be asked for."""
        self.is_scheduled = False
        """Whether an option is a schedule, or was one at the last step."""
        self.scheduled: list[tuple[int, str]] = []
        """The groups and options whose value in the core is that of a schedule; -1 for the whole step."""
        self.prepares = False
        """Whether each step needs preparation in Python: a stream, the values of schedules, a loss scale."""
        self.values: list[tuple[Schedule, str, int, Any]] = []  # schedules, options, the step, what they returned
        self._asking: list[Schedule] = []
        LOCKED.add(self)

    def begin(self, library: Library, tree: _core.Tree, stepper: _core.Stepper, prepares: bool) -> None:
        """Steps with another stepper from now on."""
        self.library, self.tree, self.stepper = library, tree, stepper
        if prepares or library.on_gpu:
            self.prepares = True
        self.lock.open(None if self.prepares else stepper)

    @property
    def is_busy(self) -> bool:
        """Whether the caller is code that a step or a schedule has called."""
        return bool(self._asking) or self.stepper.is_stepping

    def expect_schedule(self) -> None:
        """An option is a schedule from now on."""
        self.is_scheduled = True
        self.prepare_steps()

    def prepare_steps(self) -> None:
        """Steps need preparation from now on."""
        self.prepares = True
        self.lock.open(None)

    def use(self, stream: Any = None, stepper: Any = None) -> None:
        """Selects the stream of the next step on a GPU. Raises TypeError where arrays are not on a GPU."""
        if self.library.on_gpu:
            use_stream(self.library, self.stepper if stepper is None else stepper, stream)
        elif stream is not None:
            raise TypeError(f"{self.name}: stream is for arrays on a GPU, and these are NumPy's")

    def wait(self) -> None:
        """Waits for a GPU: the library's stream initializes and copies states, and steps may use another stream."""
        if self.library.on_gpu:
            self.stepper.wait()  # type: ignore[attr-defined]

    def read(self, value: Any, option: Option[Any]) -> Any:
        """An option's value at the next step, for callers that may not hold the lock."""
        if not callable(value):
            return value
        with self.lock:
            return self.value_at(value, option)

    def value_at(self, value: Any, option: Option[Any]) -> Any:
        """An option's value at the next step.

        A schedule without a state is called once a step, also if groups share it.
        """
        if not callable(value):
            return value
        step = self.stepper.step_count
        for schedule, of, asked_at, returned in self.values:
            if schedule is value and of == option.name and asked_at == step:
                return returned
        if any(schedule is value for schedule in self._asking):
            words = f"the schedule of {option.name} reads {option.name}, whose value it determines"
            raise RuntimeError(f"{self.name}: {words}")
        self._asking.append(value)
        try:
            returned = option.domain.check(value(step), f"{self.name}: {option.name}({step})")
        finally:
            self._asking.pop()
        self.values = [asked for asked in self.values if asked[2] == step]
        if not has_state(value):
            self.values.append((value, option.name, step, returned))
        return returned


def _renew_locks() -> None:
    """Renews locks in the child of a fork: threads that held them do not exist there."""
    for owner in list(LOCKED):
        owner.lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

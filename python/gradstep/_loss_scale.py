"""Dynamic loss scaling, for gradients in float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._options import POSITIVE, Domain, real, whole

GROWTH = real("a finite number >= 1", lambda x: x >= 1)
BACKOFF = real("a number above 0 and below 1", lambda x: 0 < x < 1)
INTERVAL = whole(1, 2**62)
GOOD_STEPS = whole(0, 2**62)


class LossScale:
    """A factor for the loss that keeps small float16 gradients from becoming zero, and adapts to their range.

    Multiply the loss, or its gradient, by `value`; a step of an optimizer with `loss_scale` divides by it. Gradients
    that are not finite show that the scale is too large: the step is skipped, and `value` is multiplied by `backoff`.
    After `interval` steps in a row that were applied, it is multiplied by `growth`, unless it would not be finite.

    Micikevicius et al., "Mixed Precision Training", arXiv:1710.03740, 2018. The defaults are those of torch's
    `GradScaler`.

    Parameters
    ----------
    value : a finite number > 0, default 65536.0
    growth : a finite number >= 1, default 2.0
    backoff : a number above 0 and below 1, default 0.5
    interval : a positive integer, default 2000

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, or out of range.
    """

    __slots__ = ("_last", "_value", "backoff", "good_steps", "growth", "interval")

    def __init__(
        self, value: float = 2.0**16, *, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000
    ) -> None:
        self._set({"value": value, "growth": growth, "backoff": backoff, "interval": interval, "good_steps": 0})

    def _set(self, given: Mapping[str, Any]) -> None:
        self._value: float = POSITIVE.check(given["value"], "LossScale: value")
        self.growth: float = GROWTH.check(given["growth"], "LossScale: growth")
        """The factor after `interval` steps that were applied."""
        self.backoff: float = BACKOFF.check(given["backoff"], "LossScale: backoff")
        """The factor after a step that was skipped."""
        self.interval: int = INTERVAL.check(given["interval"], "LossScale: interval")
        """The number of steps in a row that must be applied before the scale grows."""
        self.good_steps: int = GOOD_STEPS.check(given["good_steps"], "LossScale: good_steps")
        """The number of steps that have been applied in a row."""
        self._last: Any = None

    @property
    def value(self) -> float:
        """The factor of the loss for the next step. Waits for the last step on a GPU."""
        last, self._last = self._last, None
        if last is not None:
            self._count(last.applied)
        return self._value

    def _count(self, applied: bool) -> None:
        if not applied:
            self._value *= self.backoff
            self.good_steps = 0
            if self._value == 0:
                raise FloatingPointError("the loss scale became zero: gradients are not finite at any scale")
            return
        self.good_steps += 1
        if self.good_steps >= self.interval:
            self.good_steps = 0
            grown = self._value * self.growth
            self._value = grown if grown <= 2.0**1023 else self._value

    def update(self, result: Any) -> None:
        """Takes the `StepResult` of a step with this scale into account. Optimizers with `loss_scale` call it."""
        _ = self.value
        self._last = result

    def state_dict(self) -> dict[str, Any]:
        """Its value, settings and count, as plain data."""
        value = self.value
        settings = {name: getattr(self, name) for name in ("growth", "backoff", "interval", "good_steps")}
        return {"value": value, **settings}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned. Raises TypeError or ValueError, with nothing changed."""
        fresh = of_state(saved)
        self._set(fresh.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, saved: Mapping[str, Any]) -> None:
        self._set(saved)

    def __repr__(self) -> str:
        return (
            f"LossScale({self.value!r}, growth={self.growth!r}, backoff={self.backoff!r}, interval={self.interval!r})"
        )


def of_state(saved: Mapping[str, Any]) -> LossScale:
    """A loss scale in the state that `LossScale.state_dict` returned."""
    if set(saved) != {"value", "growth", "backoff", "interval", "good_steps"}:
        raise ValueError(f"the state of a LossScale has value, growth, backoff, interval, good_steps, not {set(saved)}")
    scale = LossScale()
    scale._set(saved)
    return scale


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, LossScale):
        return value
    if isinstance(value, Mapping):
        return of_state(value)
    raise TypeError


LOSS_SCALE = Domain("a LossScale, or None", _plain)

"""Schedules: the value of an option at each step, by the names of torch and optax.

>>> import gradstep as gs
>>> schedule = gs.schedules.cosine(1e-3, 1000, warmup=100)
>>> schedule(0), schedule(100), schedule(1000)
(0.0, 0.001, 0.0)

Each function takes the value, then lengths in steps, and returns a `Schedule`: a callable of the number of steps taken,
0 at the first step. An optimizer takes it as `lr`, or as any other option that is a number. Values are computed in
float64, and stay at the final one after the last step of a schedule. `plateau` is an object with a state instead: it
reacts to the loss.

`lr` and the other values are finite numbers >= 0, and lengths are integers >= 1. `warmup` is the number of steps, 0 or
more, in which the value first rises linearly from `start` to `lr`; it is included in `steps`. All functions raise
TypeError or ValueError for an argument of the wrong type, or out of range, with its name.
"""

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec, SupportsFloat, SupportsIndex, TypeAlias

from ._options import BELOW_ONE, COUNT, FLAG, NON_NEGATIVE, POSITIVE, UP_TO_ONE, Domain, one_of, scalar, whole

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "multi_step",
    "noam",
    "one_cycle",
    "one_cycle_momentum",
    "piecewise",
    "plateau",
    "polynomial",
    "step",
    "warm_restarts",
]

P = ParamSpec("P")
Value: TypeAlias = float | Callable[[int], SupportsFloat]
"""A number, or a schedule."""


@dataclass(frozen=True, repr=False)
class Schedule:
    """A schedule that a function of this module made: a callable of the number of steps taken, an integer >= 0.

    Schedules with equal arguments are equal. They can be pickled. After `from gradstep.schedules import *`, the `repr`
    of a schedule evaluates to an equal one.
    """

    name: str
    """The name of the function that made it."""
    arguments: tuple[Any, ...]
    """The arguments of that function, in order."""

    def __call__(self, step: SupportsIndex, /) -> float:
        """The value after `step` steps."""
        return float(_FORMULAS[self.name](COUNT.check(step, f"{self.name}: step"), *self.arguments))

    def __repr__(self) -> str:
        return _call(globals()[self.name], self.arguments)


def _call(function: Callable[..., object], arguments: Sequence[object]) -> str:
    """A call of a function, without arguments that equal their defaults."""
    named = zip(inspect.signature(function).parameters.values(), arguments, strict=True)
    return f"{function.__name__}({', '.join(f'{p.name}={value!r}' for p, value in named if value != p.default)})"


def _items(domain: Domain) -> Callable[[Any], tuple[Any, ...]]:
    def plain(value: Any) -> tuple[Any, ...]:
        value = value.tolist() if getattr(value, "ndim", None) == 1 else value
        if not isinstance(value, (tuple, list, range)):
            raise TypeError
        return tuple(domain.plain(scalar(x)) for x in value)

    return plain


def _ascending(value: Any) -> tuple[int, ...]:
    steps = _items(COUNT)(value)
    if list(steps) != sorted(steps):
        raise ValueError
    return steps


def _stateless(value: Any) -> Any:
    """A number or a schedule. A checkpoint would not contain the state of a schedule within another."""
    if hasattr(value, "state_dict"):
        raise TypeError
    return value if callable(value) else NON_NEGATIVE.plain(value)


_LENGTH = whole(1, 2**62)
_STEPS = Domain("integers >= 0 in ascending order", _ascending)
_VALUES = Domain("a list of finite numbers >= 0 or schedules without a state", _items(Domain("", _stateless)))
_DOMAINS: Mapping[str, Domain] = {
    **dict.fromkeys(["lr", "final", "start", "low", "high"], NON_NEGATIVE),
    **dict.fromkeys(["factor", "power", "div_factor", "final_div_factor"], POSITIVE),
    **dict.fromkeys(["steps", "every", "multiplier", "size"], _LENGTH),
    **dict.fromkeys(["milestones", "boundaries"], _STEPS),
    **dict.fromkeys(["values", "schedules"], _VALUES),
    "warmup": COUNT,
    "pct_start": UP_TO_ONE,
    "anneal_strategy": one_of("cos", "linear"),
    "three_phase": FLAG,
}
"""The values that an argument may have, by its name, which means the same in all schedules."""

_FORMULAS: dict[str, Callable[..., float]] = {}


def _schedule(formula: Callable[Concatenate[int, P], float]) -> Callable[P, Schedule]:
    """A function that makes the schedule of a formula, whose first argument is the step and whose others it takes."""
    name = formula.__name__
    _, *parameters = inspect.signature(formula).parameters.values()
    signature = inspect.Signature(parameters, return_annotation=Schedule)

    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        bound.apply_defaults()
        given = {key: _DOMAINS[key].check(value, f"{name}: {key}") for key, value in bound.arguments.items()}
        if "boundaries" in given:
            items = next(key for key in ("values", "schedules") if key in given)
            count, right = len(given["boundaries"]), len(given[items]) - 1
            if count != right:
                raise ValueError(f"{name}: boundaries must have one entry less than {items}, {right}, got {count}")
        if "steps" in given and given.get("warmup", 0) >= given["steps"]:
            raise ValueError(f"{name}: warmup must be less than steps, {given['steps']}, got {given['warmup']}")
        return Schedule(name, tuple(given.values()))

    _FORMULAS[name] = formula
    make.__name__, make.__qualname__, make.__doc__, make.__module__ = name, name, formula.__doc__, formula.__module__
    make.__signature__ = signature  # type: ignore[attr-defined]
    return make


def _between(a: float, b: float, x: float) -> float:
    """From `a` at x = 0 to `b` at x = 1, both exactly."""
    return a * (1 - x) + b * x


def _cosine(x: float) -> float:
    """Half a wave, from 1 at x = 0 to 0 at x = 1."""
    return (1 + math.cos(math.pi * x)) / 2


def _progress(t: int, steps: int, warmup: int) -> float:
    """The share of the steps after warm-up that have been taken, at most 1."""
    return (min(t, steps) - warmup) / (steps - warmup)


def _decayed(lr: float, factor: float, count: int) -> float:
    """`lr`, multiplied by `factor` as often as `count` says; infinity where that is too large for a float."""
    try:
        return lr * factor**count
    except OverflowError:
        return math.inf if lr else 0.0


def _at(value: Value, t: int) -> float:
    return float(value(t) if callable(value) else value)


@_schedule
def constant(_t: int, lr: float) -> float:
    """`lr` at every step.

    optax: `constant_schedule(lr)`. torch's `ConstantLR(factor=f, total_iters=n)` is `piecewise([f * lr, lr], [n])`.
    """
    return lr


@_schedule
def step(t: int, lr: float, every: int, factor: float = 0.1) -> float:
    """`lr`, multiplied by `factor` after `every` steps and again after each `every` steps more.

    torch: `StepLR(step_size=every, gamma=factor)`.
    optax: `exponential_decay(lr, every, factor, staircase=True)`.
    """
    return _decayed(lr, factor, t // every)


@_schedule
def multi_step(t: int, lr: float, milestones: Sequence[int], factor: float = 0.1) -> float:
    """`lr`, multiplied by `factor` at each of the steps `milestones`, which are in ascending order.

    torch: `MultiStepLR(milestones, gamma=factor)`, which ignores a milestone of 0.
    optax: `piecewise_constant_schedule(lr, {milestone: factor, ...})`.
    """
    return _decayed(lr, factor, bisect_right(milestones, t))


@_schedule
def exponential(t: int, lr: float, factor: float) -> float:
    """`lr`, multiplied by `factor` after every step.

    torch: `ExponentialLR(gamma=factor)`.
    optax: `exponential_decay(lr, n, rate)` is `exponential(lr, rate ** (1 / n))`.
    """
    return _decayed(lr, factor, t)


@_schedule
def polynomial(
    t: int, lr: float, steps: int, final: float = 0.0, power: float = 1.0, warmup: int = 0, start: float = 0.0
) -> float:
    """From `lr` to `final` by a power, a finite number > 0, of the steps that are left: 1 is a line, 2 a parabola.

    torch: `PolynomialLR(total_iters=steps, power=power)`, with final = 0 and no warm-up.
    optax: `polynomial_schedule(lr, final, power, transition_steps=steps)`, without warm-up. Its `transition_begin` is
    a `join` with `constant`.
    """
    if t < warmup:
        return _between(start, lr, t / warmup)
    return _between(final, lr, (1 - _progress(t, steps, warmup)) ** power)


@_schedule
def linear(t: int, lr: float, steps: int, final: float = 0.0, warmup: int = 0, start: float = 0.0) -> float:
    """From `lr` to `final` in a line. `final` may be the larger one.

    torch: `LinearLR(start_factor=1, end_factor=final / lr, total_iters=steps)`, without warm-up.
    optax: `linear_schedule(lr, final, steps)`, without warm-up.
    """
    if t < warmup:
        return _between(start, lr, t / warmup)
    return _between(lr, final, _progress(t, steps, warmup))


@_schedule
def cosine(t: int, lr: float, steps: int, final: float = 0.0, warmup: int = 0, start: float = 0.0) -> float:
    """From `lr` to `final` by half a wave of the cosine. `final` may be the larger one.

    torch: `CosineAnnealingLR(T_max=steps, eta_min=final)`, without warm-up, up to `steps`. After that torch's rises
    again, and this one stays at `final`; a `join` with `cosine(final, steps, final=lr)` rises. With warm-up,
    `SequentialLR` of `LinearLR(start_factor=start / lr, total_iters=warmup)` and
    `CosineAnnealingLR(T_max=steps - warmup, eta_min=final)`, with the milestone `warmup`.
    optax: `warmup_cosine_decay_schedule(start, lr, warmup, decay_steps=steps, end_value=final)`, and
    `cosine_decay_schedule(lr, steps, alpha=final / lr)` without warm-up.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983, 2017.
    """
    if t < warmup:
        return _between(start, lr, t / warmup)
    return _between(final, lr, _cosine(_progress(t, steps, warmup)))


@_schedule
def warm_restarts(t: int, lr: float, steps: int, multiplier: int = 1, final: float = 0.0) -> float:
    """`cosine` that starts again at `lr` after `steps` steps; each cycle is `multiplier` times as long as the last one.

    It has no end, and no step has the value `final`: at the end of a cycle the next one begins.

    torch: `CosineAnnealingWarmRestarts(T_0=steps, T_mult=multiplier, eta_min=final)`.
    optax: `sgdr_schedule` with a dict for each cycle, as `warmup_cosine_decay_schedule` takes them, without warm-up.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983, 2017.
    """
    if multiplier == 1:
        t %= steps
    while t >= steps:
        t, steps = t - steps, steps * multiplier
    return _between(final, lr, _cosine(t / steps))


def _cycle(t: int, steps: int, pct_start: float, anneal_strategy: str, values: Sequence[float]) -> float:
    """Through three values, or through four with a third phase; each phase ends one step earlier than its share."""
    peak = pct_start * steps - 1
    ends = [0, peak, 2 * peak, steps - 1] if len(values) == 4 else [0, peak, steps - 1]
    t = min(t, steps - 1)
    phase = next(i for i in range(1, len(ends)) if t <= ends[i])
    begin, end = ends[phase - 1], ends[phase]
    x = (t - begin) / (end - begin) if begin != end else 1.0
    return _between(values[phase], values[phase - 1], 1 - x if anneal_strategy == "linear" else _cosine(x))


@_schedule
def one_cycle(
    t: int,
    lr: float,
    steps: int,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> float:
    """From `lr / div_factor` up to `lr` in the share `pct_start` of the steps, and down to less than at the beginning.

    The value at the end is the one at the beginning, divided by `final_div_factor`. With `three_phase` the value falls
    to that at the beginning in as many steps as it rose, and to the end in the rest. `anneal_strategy` is "cos" or
    "linear". `one_cycle_momentum` is the momentum for it.

    torch: `OneCycleLR(max_lr=lr, total_steps=steps, ...)` with the same arguments. torch raises an error after the last
    step, and divides by zero where `pct_start * steps` is 1.
    optax: its phases have other ends. `cosine_onecycle_schedule(n, lr, pct)` is
    `one_cycle(lr, n + 1, pct_start=(int(pct * n) + 1) / (n + 1))`, and `linear_onecycle_schedule` is a `join` of three
    `linear`.

    Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    arXiv:1708.07120, 2018.
    """
    first = lr / div_factor
    last = first / final_div_factor
    return _cycle(t, steps, pct_start, anneal_strategy, [first, lr, first, last] if three_phase else [first, lr, last])


@_schedule
def one_cycle_momentum(
    t: int,
    low: float,
    high: float,
    steps: int,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    three_phase: bool = False,
) -> float:
    """From `high` down to `low` while `one_cycle` rises, and up to `high` again: the momentum for that schedule.

    torch: the momentum of `OneCycleLR(base_momentum=low, max_momentum=high, total_steps=steps, ...)`, whose defaults
    are 0.85 and 0.95.
    """
    return _cycle(t, steps, pct_start, anneal_strategy, [high, low, high, high] if three_phase else [high, low, high])


@_schedule
def inverse_sqrt(t: int, lr: float, warmup: int) -> float:
    """From 0 to `lr` in a line, and then proportional to one over the square root of the step.

    The value is `lr * sqrt(warmup / step)` after warm-up; without warm-up, `lr / sqrt(1 + step)`. torch and optax have
    no such schedule; it is fairseq's `inverse_sqrt`, and `get_inverse_sqrt_schedule` of transformers, whose
    `timescale` without warm-up is 1 here. `noam` has the same form.
    """
    if t < warmup:
        return lr * t / warmup
    scale = max(warmup, 1)
    return lr * math.sqrt(scale / (t + scale - warmup))


@_schedule
def piecewise(t: int, values: Sequence[Value], boundaries: Sequence[int]) -> float:
    """The first of `values` before the first of the steps `boundaries`, the second from there on, and so on.

    `values` are numbers or schedules, one more than `boundaries`; schedules are called with the step itself. The
    boundaries are in ascending order.

    optax: `piecewise_constant_schedule(values[0], {boundary: values[1] / values[0], ...})`.
    torch: `ConstantLR`, for two values. Keras' `PiecewiseConstantDecay` changes one step later.
    """
    return _at(values[bisect_right(boundaries, t)], t)


@_schedule
def join(t: int, schedules: Sequence[Value], boundaries: Sequence[int]) -> float:
    """The first of `schedules` before the first of the steps `boundaries`, the second from there on, and so on.

    Each is called with the number of steps since its own beginning, and may be a number. There is one more than
    `boundaries`, which are in ascending order.

    torch: `SequentialLR(schedulers, milestones=boundaries)`. optax: `join_schedules(schedules, boundaries)`.
    """
    part = bisect_right(boundaries, t)
    return _at(schedules[part], t - (boundaries[part - 1] if part else 0))


@_schedule
def noam(t: int, size: int, warmup: int, factor: float = 1.0) -> float:
    """The transformer's: `factor * size**-0.5 * min(n**-0.5, n * warmup**-1.5)` with n = 1 at the first step.

    `size` is the width of the model. A warmup of 0 is the same as 1. torch and optax have no such schedule.

    Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, 2017, equation 3.
    """
    n = t + 1
    return factor * math.pow(size, -0.5) * min(math.pow(n, -0.5), n * math.pow(max(warmup, 1), -1.5))


class plateau:
    """A value that is multiplied by `factor` when the loss has stopped improving.

    Call `update(loss)` after each epoch, or whenever the loss has been measured. Once there has been no improvement in
    more than `patience` updates in a row, the value is multiplied by `factor`, and not below `min_lr`. Calling it with
    any step gives the present value.

    torch: `ReduceLROnPlateau`, with the same arguments. A loss that is NaN is no improvement.

    Parameters
    ----------
    lr : a finite number >= 0
        The value at the beginning.
    factor : a number from 0 to below 1, default 0.1
    patience : an integer >= 0, default 10
        The number of updates without improvement that are tolerated.
    mode : "min" or "max", default "min"
        Whether smaller or larger is better.
    threshold : a finite number >= 0, default 1e-4
        How much better than the best one a loss must be to be an improvement.
    threshold_mode : "rel" or "abs", default "rel"
        Whether `threshold` is relative to the best loss.
    cooldown : an integer >= 0, default 0
        The number of updates after a reduction that do not count towards the next one.
    min_lr : a finite number >= 0, default 0.0
    eps : a finite number >= 0, default 1e-8
        A reduction by no more than this is not made.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, or out of range.
    """

    value: float
    """The present value."""
    best: float
    """The best loss so far; infinite before the first one."""
    bad_updates: int
    """The number of updates without improvement since the last improvement or reduction."""
    cooldown_left: int
    """The number of updates left that do not count."""

    def __init__(
        self,
        lr: float,
        factor: float = 0.1,
        patience: int = 10,
        *,
        mode: Literal["min", "max"] = "min",
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.lr: float = NON_NEGATIVE.check(lr, "plateau: lr")
        self.factor: float = BELOW_ONE.check(factor, "plateau: factor")
        self.patience: int = COUNT.check(patience, "plateau: patience")
        self.mode: str = one_of("min", "max").check(mode, "plateau: mode")
        self.threshold: float = NON_NEGATIVE.check(threshold, "plateau: threshold")
        self.threshold_mode: str = one_of("rel", "abs").check(threshold_mode, "plateau: threshold_mode")
        self.cooldown: int = COUNT.check(cooldown, "plateau: cooldown")
        self.min_lr: float = NON_NEGATIVE.check(min_lr, "plateau: min_lr")
        self.eps: float = NON_NEGATIVE.check(eps, "plateau: eps")
        best = math.inf if mode == "min" else -math.inf
        self.load_state_dict({"value": self.lr, "best": best, "bad_updates": 0, "cooldown_left": 0})

    def __call__(self, _step: SupportsIndex, /) -> float:
        """The present value, at any step."""
        return self.value

    def update(self, loss: SupportsFloat) -> None:
        """Takes a loss into account."""
        loss = float(loss)
        if self._is_improvement(loss):
            self.best, self.bad_updates = loss, 0
        else:
            self.bad_updates += 1
        if self.cooldown_left:
            self.cooldown_left -= 1
            self.bad_updates = 0
        if self.bad_updates > self.patience:
            reduced = max(self.value * self.factor, self.min_lr)
            if self.value - reduced > self.eps:
                self.value = reduced
            self.cooldown_left, self.bad_updates = self.cooldown, 0

    def _is_improvement(self, loss: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            needed = self.best * (1 + sign * self.threshold)
        else:
            needed = self.best + sign * self.threshold
        return loss > needed if self.mode == "max" else loss < needed

    def state_dict(self) -> dict[str, Any]:
        """The present value, the best loss and the two counts, as plain data; not the arguments."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned. Raises TypeError or ValueError, with nothing changed."""
        if set(state) != set(_STATE):
            raise ValueError(f"the state of a plateau has {', '.join(_STATE)}, not {', '.join(map(str, state))}")
        checked = {name: domain.check(state[name], f"plateau: {name}") for name, domain in _STATE.items()}
        vars(self).update(checked)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same arguments and the same state."""
        return vars(self) == vars(other) if isinstance(other, plateau) else NotImplemented

    def __repr__(self) -> str:
        """The call that makes it, without its state."""
        return _call(plateau, [getattr(self, name) for name in inspect.signature(plateau).parameters])


def _loss(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value)


_STATE: Mapping[str, Domain] = {
    "value": NON_NEGATIVE,
    "best": Domain("a number", _loss),
    "bad_updates": COUNT,
    "cooldown_left": COUNT,
}
"""What a plateau's state consists of."""

"""Runs of optimizers on test functions and in training functions, for the pictures of `gradstep.plot`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ._functions import ANY_SIZE, FUNCTIONS, Function
from ._minimize import METHODS
from ._optimizer import Optimizer
from ._options import POSITIVE, did_you_mean, whole
from .optimizers import ALL

T = TypeVar("T")
Array: TypeAlias = npt.NDArray[np.float64]
Make: TypeAlias = Callable[..., Optimizer]
Entry: TypeAlias = str | Make
Optimizers: TypeAlias = Entry | Sequence[Entry] | Mapping[str, Entry]
Objective: TypeAlias = Callable[[Array], tuple[Any, Any]]
Train: TypeAlias = Callable[[Any, int], Iterable[Any]]

STEPS = 500
RATES = tuple(float(f"{digit}e{power}") for power in range(-4, 3) for digit in (1, 2, 5))
"""The learning rates that are tried where none is given."""

LENGTH = whole(1, 2**31)
SEEDS = whole(1, 2**20)


class Runs(NamedTuple):
    """The runs of an optimizer from one or more starts."""

    name: str
    lr: float | None
    """The learning rate that was chosen here; None where the optimizer came with its own."""
    points: Array
    """Of shape (runs, steps + 1, n); NaN after a step to a point that is not finite."""
    values: Array
    """Of shape (runs, steps + 1)."""

    @property
    def label(self) -> str:
        """The name, and the rate if it was chosen here."""
        return self.name if self.lr is None else f"{self.name} lr={self.lr:g}"

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.values[0]) - 1

    @property
    def score(self) -> float:
        """The median of the last values, where a run that rises above its start counts as infinity."""
        falls = (self.values <= self.values[:, :1]).all(axis=1)
        return float(np.quantile(np.where(falls, self.values[:, -1], np.inf), 0.5, method="nearest"))


def diverged(values: Array) -> bool:
    """Whether a run ended above its start, or not finite."""
    return not bool(np.isfinite(values[-1]) and values[-1] <= values[0])


# ---- arguments ------------------------------------------------------------------------------------------------------


def shown(options: Mapping[str, Any]) -> str:
    """Options in one line: ``lr=0.05 momentum=0.9``."""
    return " ".join(f"{name}={f'{x:g}' if isinstance(x, float) else x}" for name, x in options.items())


def function_named(name: str) -> Function:
    """The test function of this name, in upper or lower case. Raises ValueError."""
    return entry_named(name, FUNCTIONS, "function")


def optimizer_named(name: str) -> type[Optimizer]:
    """The optimizer of this name, in upper or lower case. Raises ValueError."""
    return entry_named(name, METHODS, "optimizer")


def entry_named(name: str, table: Mapping[str, T], kind: str) -> T:
    """The entry of a table whose names are in lower case. Raises ValueError."""
    if name.lower() not in table:
        raise ValueError(f"no {kind} {name!r}; there are {', '.join(table)}{did_you_mean(name.lower(), table)}")
    return table[name.lower()]


def named(optimizers: Optimizers | None) -> dict[str, Make]:
    """Optimizers by name, all eight for None. Raises TypeError or ValueError."""
    if optimizers is None:
        optimizers = ALL
    if isinstance(optimizers, str) or not isinstance(optimizers, Iterable):
        optimizers = [optimizers]
    entries = optimizers.values() if isinstance(optimizers, Mapping) else optimizers
    makes = [optimizer_named(entry) if isinstance(entry, str) else entry for entry in entries]
    for make in makes:
        if not callable(make):
            what = "names, classes, or functions of the parameters such as partial(gs.Adam, lr=0.1)"
            raise TypeError(f"optimizers must be {what}, got {make!r}")
    names = list(optimizers) if isinstance(optimizers, Mapping) else [name_of(make) for make in makes]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"optimizers must have different names, the keys of a dict for example, got {names}")
    return dict(zip(names, makes, strict=True))


def name_of(make: Make) -> str:
    """The name of a class, with the options of a partial."""
    if isinstance(make, partial):
        return f"{name_of(make.func)} {shown(make.keywords)}"
    return str(getattr(make, "__name__", make))


def finite(value: Any, name: str, words: str, holds: Callable[[Array], Any]) -> Array:
    """An array of finite numbers for which `holds` is true. Raises ValueError."""
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not (np.isfinite(array).all() and holds(array)):
        raise ValueError(f"{name} must be {words}, got {value!r}")
    return array


def problem(fun: str | Function | Objective, start: Any) -> Function:
    """A function with its start, or with several in rows. Raises TypeError or ValueError."""
    if isinstance(fun, str):
        fun = function_named(fun)
    of_two = isinstance(fun, Function) and fun.name not in ANY_SIZE
    if not isinstance(fun, Function):
        fun = wrapped(fun)
        if start is None:
            raise ValueError("start must be given with a function of your own")
    if start is None:
        return fun
    words = "a point, or points in rows, of finite numbers"
    start = finite(start, "start", words, lambda x: x.ndim in (1, 2) and x.size > 0)
    if of_two and start.shape[-1] != 2:
        raise ValueError(f"start must be a point of two numbers, or rows of these, with {fun.name}, got {start!r}")
    return replace(fun, start=start)


def plane_problem(fun: str | Function | Objective, start: Any, bounds: Any, minima: Any) -> Function:
    """A function of two variables. Raises TypeError or ValueError."""
    own = not isinstance(fun, (str, Function))
    fun = problem(fun, start)
    if fun.start.shape != (2,):
        raise ValueError(f"start must be a point of two numbers, got {start!r}")
    if bounds is not None:
        words = "two pairs of finite numbers, each with the lower first"
        low, high = finite(bounds, "bounds", words, lambda x: x.shape == (2, 2) and (x[:, 0] < x[:, 1]).all()).tolist()
        fun = replace(fun, bounds=(tuple(low), tuple(high)))
    elif own:
        raise ValueError("bounds must be given with a function of your own")
    if minima is not None:
        array = finite(minima, "minima", "points of two finite numbers", lambda x: x.ndim < 3 and x.shape[-1:] == (2,))
        fun = replace(fun, minima=np.atleast_2d(array))
    return fun


def wrapped(fun: Objective) -> Function:
    """A function that returns value and gradient, as a Function without start, minima and bounds. Raises TypeError."""
    if not callable(fun):
        raise TypeError(f"fun must be a name or a function, got {fun!r}")

    def both(x: Array) -> tuple[float, Array]:
        found: Any = fun(x.copy())  # which it may keep, change or return
        if not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(f"fun must return its value and its gradient, got {found!r}")
        gradient = np.asarray(found[1], np.float64)
        if gradient.shape != x.shape:
            raise ValueError(f"fun must return a gradient of shape {x.shape}, got {gradient.shape}")
        return float(found[0]), gradient

    return Function(
        name=getattr(fun, "__name__", "").replace("<lambda>", ""),
        value=lambda x: np.apply_along_axis(lambda point: both(point)[0], 0, x),
        gradient=lambda x: both(x)[1],
        start=np.zeros(0),
        minima=np.zeros((0, 2)),
        bounds=((0, 1), (0, 1)),
    )


# ---- runs -----------------------------------------------------------------------------------------------------------


def descend(fun: Function, name: str, make: Make, steps: int, lr: float | None = None) -> Runs:
    """The runs of an optimizer, one from each start; a run ends early where a point is not finite."""
    starts = np.atleast_2d(fun.start)
    points = np.full((len(starts), steps + 1, starts.shape[1]), np.nan)
    values = np.full(points.shape[:2], np.nan)
    for start, path, heights in zip(starts, points, values, strict=True):
        x = start.copy()
        opt = make(x) if lr is None else partial(make, lr=lr)(x)
        if not isinstance(opt, Optimizer):
            raise TypeError(f"optimizers must return an Optimizer, not {type(opt).__name__}")
        ahead: Any = getattr(opt, "lookahead", None) or nullcontext
        with np.errstate(all="ignore"):
            for step in range(steps + 1):
                path[step] = x
                with ahead():
                    gradient = fun.gradient(x)
                opt.step(gradient)
                if not np.isfinite(x).all():
                    break
            heights[: step + 1] = fun.value(path[: step + 1].T)
    return Runs(name, lr, points, values)


def run_all(fun: Function, optimizers: Optimizers | None, steps: int, lr: float | None) -> list[Runs]:
    """The runs of each optimizer; a class without a rate gets the best of RATES. Raises TypeError or ValueError."""
    steps = LENGTH.check(steps, "steps")
    rates = RATES if lr is None else (POSITIVE.check(lr, "lr"),)
    return [
        min((descend(fun, name, make, steps, rate) for rate in rates), key=lambda runs: runs.score)
        if isinstance(make, type)
        else descend(fun, name, make, steps)
        for name, make in named(optimizers).items()
    ]


def train_all(
    train: Train, optimizers: Optimizers | None, steps: int | None, seeds: int | Iterable[int] | None, lr: float | None
) -> dict[str, Array]:
    """The losses of a training function by label, each of shape (seeds, steps). Raises TypeError or ValueError."""
    if not callable(train):
        raise TypeError(f"fun must be a name or a function, got {train!r}")
    steps = None if steps is None else LENGTH.check(steps, "steps")
    options = {} if lr is None else {"lr": POSITIVE.check(lr, "lr")}
    seeds = list(seeds) if isinstance(seeds, Iterable) else range(SEEDS.check(1 if seeds is None else seeds, "seeds"))
    if not seeds:
        raise ValueError("seeds must not be empty")
    curves = {}
    for name, make in named(optimizers).items():
        if options and isinstance(make, type):
            name, make = f"{name} {shown(options)}", partial(make, **options)
        losses = [[float(loss) for loss in islice(train(make, seed), steps)] for seed in seeds]
        lengths = sorted({len(each) for each in losses})
        if len(lengths) > 1 or lengths[0] == 0:
            raise ValueError(f"fun must return as many losses with each seed, got {lengths} with {name}")
        curves[name] = np.array(losses)
    return curves


def table(fun: Function, runs: Sequence[Runs]) -> Iterator[str]:
    """A line for each optimizer: its rate, the value after its first run, and the distance to the nearest minimum."""
    yield f"{'optimizer':10} {'lr':>7} {'final value':>12} {'distance to the nearest minimum':>32}"
    for run in runs:
        distance = np.linalg.norm(fun.minima - run.points[0, -1], axis=1).min()
        note = "  diverged" if diverged(run.values[0]) else ""
        yield f"{run.name:10} {run.lr:>7g} {run.values[0, -1]:>12.4g} {distance:>32.4g}{note}"

"""`minimize`: the optimizers as minimizers of a function, with the arguments and the result of SciPy's `minimize`."""

from __future__ import annotations

import inspect
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from . import optimizers
from ._objective import Bounds, Loss, Point, check_jac, read_start
from ._optimizer import Optimizer
from ._options import COUNT, NON_NEGATIVE, POSITIVE, Domain, did_you_mean, one_of, optional, whole

if TYPE_CHECKING:
    from .schedules import Schedule

METHODS: Final = {cls.__name__.lower(): cls for cls in optimizers.ALL}
"""The optimizers by the names of methods."""
RATES: Final = {
    "SGD": 1e-3,
    "Momentum": 1e-3,
    "NAG": 5e-4,
    "AdaGrad": 0.5,
    "RMSProp": 0.01,
    "AdaDelta": 1.0,
    "Adam": 0.1,
    "Nadam": 0.1,
}
"""The default learning rates, without batches: of those tried, the one that found most minima (docs/minimize.md)."""
DECAYED: Final = ("RMSProp", "AdaDelta", "Nadam")
"""Optimizers whose default rate falls to 0 along a cosine, because with a constant rate they oscillate."""
LIMITS: Final[dict[str, tuple[Any, Domain]]] = {
    "maxiter": (10_000, optional(COUNT)),
    "gtol": (1e-5, optional(NON_NEGATIVE)),
    "xtol": (None, optional(NON_NEGATIVE)),
    "ftol": (None, optional(NON_NEGATIVE)),
    "ftol_rel": (None, optional(NON_NEGATIVE)),
    "patience": (100, whole(1, 2**62)),
    "time_limit": (None, optional(POSITIVE)),
    "select": ("best", one_of("best", "last")),
}
"""The options of `minimize` itself: their defaults without batches, and their domains."""
BATCHED: Final = {"maxiter": None, "gtol": None, "select": "last"}
"""Their other defaults with batches."""
UNSUPPORTED: Final = {
    "loss_scale": "the loss is not scaled",
    "lookahead": "the loss is taken at the parameters; the default form of NAG is the same method",
}
"""Options of the optimizers that `minimize` refuses, with the reasons."""
ARRAYS: Final = ("params", "grads", "copy_out")
"""Arguments of the optimizers that are not options."""
MANY: Final = 1000
"""The number of unknowns above which finite differences get a warning."""


class OptimizeResult(dict[str, Any]):
    """The result of `minimize`: a dict whose entries are attributes, with the fields of SciPy's `OptimizeResult`.

    `x`, the point, `fun`, the loss there, and `jac`, the gradient there; `nit`, the number of steps, `nfev` and `njev`,
    the numbers of evaluations of the function and of its gradient; `success`, `status` and `message`, why it stopped.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"OptimizeResult has no field {name!r}") from None

    __setattr__ = dict.__setitem__
    __delattr__ = dict.__delitem__

    def __dir__(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        if not self:
            return "OptimizeResult()"
        width = max(map(len, self)) + 1
        with np.printoptions(
            linewidth=76 - width,
            edgeitems=2,
            threshold=12,
            formatter={"float_kind": lambda v: np.format_float_scientific(v, precision=3, pad_left=2, unique=False)},
        ):
            lines = {name: str(value).replace("\n", "\n" + " " * (width + 2)) for name, value in self.items()}
        return "\n".join(f"{name:>{width}}: {text}" for name, text in lines.items())


class Rule(NamedTuple):
    """A reason to stop: the options that set its limit, the fields of the result, and the condition."""

    options: tuple[str, ...]
    status: int
    success: bool
    message: str
    holds: Callable[[Run], bool]


RULES: Final = (
    Rule(("gtol",), 0, True, "The norm of the gradient is at most gtol.", lambda run: run.gradient_norm <= run.gtol),
    Rule(("xtol",), 4, True, "The norm of the step is at most xtol.", lambda run: run.step_norm <= (run.xtol or 0)),
    Rule(
        ("ftol", "ftol_rel"),
        5,
        True,
        "The loss has not improved by more than ftol.",
        lambda run: run.stale >= run.patience,
    ),
    Rule(("maxiter",), 1, False, "The limit of iterations was reached.", lambda run: run.nit == run.maxiter),
    Rule(("time_limit",), 6, False, "The time limit was reached.", lambda run: time.perf_counter() >= run.deadline),
)
"""The conditions that are checked before each step, in this order, where one of their options is not None."""
# These are found elsewhere. The numbers of 1, 3 and 99 are those of SciPy's BFGS and `minimize`.
EPOCHS: Final = Rule((), 7, True, "All epochs were run.", lambda _: False)
NOT_FINITE: Final = Rule((), 3, False, "The loss or its gradient is not finite.", lambda _: False)
CALLBACK: Final = Rule((), 99, False, "`callback` raised `StopIteration`.", lambda _: False)


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    method: str | type[Optimizer] | Callable[..., Optimizer] = "adam",
    jac: bool | str | Callable[..., Any] | None = None,
    *,
    bounds: Any = None,
    callback: Callable[..., Any] | None = None,
    options: Mapping[str, Any] | None = None,
    batches: Iterable[Any] | None = None,
    epochs: int = 1,
    progress: bool = False,
) -> OptimizeResult:
    """Minimize a function with one of the optimizers.

    Parameters
    ----------
    fun : callable
        `fun(x, *args)` returns the loss, a number or an array with one element; with batches, `fun(x, batch, *args)`.
        With jac=True it returns the pair (loss, gradient). `x` is a copy each time, in the nesting of x0.
    x0 : nest of arrays, or numbers
        The start, which is copied and not changed: an array or any nesting of lists, tuples, named tuples, dicts and
        dataclasses of NumPy arrays, of float64, float32, float16 or bfloat16; integers become float64. A number, or a
        list or tuple of numbers, becomes an array of float64 without axes or with one.
    args : tuple, default ()
        Further arguments of `fun` and `jac`.
    method : str, subclass of Optimizer, or callable, default "adam"
        The name of one of the eight optimizers in any case, or its class; or a class derived from them, or a callable
        that gets the parameters and options and returns an optimizer, such as `functools.partial(gs.Adam, lr=0.1)`.
        These have their own defaults.
    jac : True, callable, "2-point", "3-point" or None
        The gradient: returned by `fun` too (True), by `jac(x, *args)`, in the nesting of x0, or by finite differences
        with the steps of SciPy's (None: "2-point"). These take one (or two) evaluations of `fun` for each unknown.
    bounds : optional
        Steps are followed by a projection onto the bounds, as is x0. For an array with one axis of length n, a sequence
        of n pairs (low, high). Else, or for all elements alike, one pair (low, high), of numbers or of arrays that can
        be broadcast; or an object with `lb` and `ub`, such as `scipy.optimize.Bounds`; or a nest with one of these for
        each array. None stands for no bound.
    callback : callable, optional
        Called after each step, as SciPy does: `callback(intermediate_result=...)` where that is its only parameter,
        with an `OptimizeResult` that has `x`, `fun` and `nit`, and else `callback(x)`. `x` is a copy. StopIteration
        stops. With batches, `fun` is the loss of the next batch, so that there is no call after the last step.
    options : dict, optional
        The options of the optimizer, and those of `minimize`:

        `maxiter`, default 10000 : the maximum of steps. None: no limit.
        `gtol`, default 1e-5 : stop where the Euclidean norm of the gradient g is at most this; with bounds, that of the
        projected gradient, P(x - g) - x, where P is the projection.
        `xtol`, default None : stop where the Euclidean norm of a step is at most this.
        `ftol`, `ftol_rel`, default None : stop where `patience` losses in a row (default 100) were not better than the
        best by more than `ftol + ftol_rel * abs(best)`.
        `time_limit`, default None : seconds, which are checked before each step.
        `select`, default "best" : whether the result is the point with the "best" loss, the latest of equal ones,
        or the "last" point.

        The default of `lr` is another than that of the class: SGD and Momentum 1e-3, NAG 5e-4, AdaGrad 0.5, Adam 0.1;
        RMSProp 0.01, AdaDelta 1 and Nadam 0.1, which fall to 0 along a cosine until `maxiter`. `maximize` is an option
        of the optimizer, which "best" and `ftol` follow. `weight_decay` and `l2` do not add to the loss.
    batches : iterable, optional
        Take one step for each batch. Then `maxiter` and `gtol` are None, `select` is "last" and `lr` is that of the
        class by default; `ftol` compares the means of the losses over epochs, and `patience` counts epochs. `fun` of
        the result is the mean of the losses over the last whole epoch, if there is one, and `jac` the gradient of the
        last batch.
    epochs : int, default 1
        How often to go through the batches.
    progress : bool, default False
        Whether to show a progress bar. It needs `gradstep[minimize]`.

    Returns
    -------
    OptimizeResult
        `x` and `jac` in the nesting of x0, `fun`, `nit`, `nfev`, `njev`, `success`, `status`, `message`. status: 0
        `gtol`, 1 `maxiter`, 3 a loss or gradient that is not finite, 4 `xtol`, 5 `ftol`, 6 `time_limit`, 7 all epochs
        were run, 99 `callback`. With status 3 the point is the best, or last, with a finite loss and gradient.

    Raises
    ------
    TypeError
        For an argument of the wrong type, an unknown option, a loss that is not a number, or a gradient in another
        nesting.
    ValueError
        For an unknown method, an option out of range, bounds that contradict, a gradient of another shape, or an
        iterator as batches of several epochs.
    ModuleNotFoundError
        For progress without the package rich.

    Warns
    -----
    RuntimeWarning
        For finite differences of more than 1000 unknowns.

    Examples
    --------
    >>> import gradstep as gs
    >>> result = gs.minimize(lambda x: (x[0] - 1) ** 2 + 10 * (x[1] + 2) ** 2, [0.0, 0.0])
    >>> [round(float(v), 4) for v in result.x]
    [1.0, -2.0]
    """
    factory = _find_method(method)
    own, given = split_options(factory, {} if options is None else options)
    limits: dict[str, Any] = {name: default for name, (default, _) in LIMITS.items()}
    if batches is None:
        limits |= own
        if factory in optimizers.ALL and "lr" not in given:
            given["lr"] = _default_rate(factory, limits["maxiter"])
    else:
        limits |= BATCHED | own
    _check_batches(batches, epochs, limits["select"])

    tree, arrays = read_start(x0)
    x = Point(tree, arrays)
    limiting = None if bounds is None else Bounds(bounds, x)
    loss = Loss(_check_callable(fun, "fun"), check_jac(jac), args, x, limiting)
    optimizer = factory(x.nest, **given)
    _check_optimizer(optimizer, x)
    run = Run(loss, optimizer, limiting, limits, batches, epochs)
    if isinstance(loss.jac, str) and sum(vector.size for vector in x.vectors) > MANY:
        words = f"finite differences of more than {MANY} unknowns take as many evaluations each step; pass jac"
        warnings.warn(words, RuntimeWarning, stacklevel=2)
    with _progress(run, progress) as advance:
        rule = run.iterate(_wrap_callback(callback), advance)
    return run.result(rule)


# Arguments.


def _find_method(method: Any) -> type[Optimizer] | Callable[..., Optimizer]:
    """The class that a method names, or the class or callable that it is."""
    if isinstance(method, str):
        if method.lower() not in METHODS:
            hint = did_you_mean(method.lower(), METHODS) or f"; methods are {', '.join(METHODS)}"
            raise ValueError(f"unknown method {method!r}{hint}")
        return METHODS[method.lower()]
    if not callable(method) or (isinstance(method, type) and not (issubclass(method, Optimizer) and method.known)):
        raise TypeError(f"method must be the name or the class of an optimizer, or return one, got {method!r}")
    result: Callable[..., Optimizer] = method
    return result


def split_options(factory: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `minimize`, checked, and those of the optimizer, whose names are checked for a class."""
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict, got {options!r}")
    limits = {name: LIMITS[name][1].check(value, name) for name, value in options.items() if name in LIMITS}
    given = {name: value for name, value in options.items() if name not in LIMITS}
    if isinstance(factory, type):
        parameters = inspect.signature(factory).parameters.values()
        names = [*LIMITS, *(p.name for p in parameters if p.name not in ARRAYS)]
        unknown = [name for name in given if name not in names]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            hint = did_you_mean(unknown[0], names) or f"; options are {', '.join(names)}"
            raise TypeError(f"minimize with {factory.__name__} has no option {unknown[0]!r}{hint}")
    return limits, given


def _default_rate(cls: Any, maxiter: int | None) -> float | Schedule:
    from .schedules import cosine

    rate = RATES[cls.__name__]
    return cosine(rate, maxiter) if maxiter and cls.__name__ in DECAYED else rate


def _check_optimizer(optimizer: Any, x: Point) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"method must return an Optimizer, not {type(optimizer).__name__}")
    if optimizer.params is not x.nest:
        raise ValueError("method must return an optimizer of the parameters that it gets")
    for name, reason in UNSUPPORTED.items():
        if getattr(optimizer, name, None):
            raise ValueError(f"minimize does not support {name}: {reason}")


def _check_callable(value: Any, name: str) -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")
    return value


def _check_batches(batches: Any, epochs: Any, select: str) -> None:
    whole(1, 2**62).check(epochs, "epochs")
    if batches is None:
        if epochs != 1:
            raise ValueError("epochs is for batches, and there are none")
        return
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be iterable, got {batches!r}")
    if epochs > 1 and iter(batches) is batches:
        raise ValueError(
            "batches is an iterator, which ends after one epoch; pass a list, or what can be iterated anew"
        )
    if select == "best":
        raise ValueError("select='best' compares losses, and those of different batches cannot be compared")


def _wrap_callback(callback: Any) -> Callable[[OptimizeResult], object] | None:
    """The callback as a function of an intermediate result, by SciPy's convention."""
    if callback is None:
        return None
    try:
        parameters = list(inspect.signature(_check_callable(callback, "callback")).parameters)
    except ValueError:  # a builtin without a signature
        parameters = []
    if parameters == ["intermediate_result"]:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


@contextmanager
def _progress(run: Run, shown: bool) -> Iterator[Callable[[], object] | None]:
    """A function that updates a progress bar; None where none is shown."""
    if not shown:
        yield None
        return
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ModuleNotFoundError as error:
        words = 'progress=True needs the package rich: pip install "gradstep[minimize]"'
        raise ModuleNotFoundError(words, name=error.name) from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns) as bar:
        task = bar.add_task(type(run.optimizer).__name__, total=run.maxiter, loss="")
        yield lambda: bar.update(task, completed=run.nit, loss=f"loss {run.loss:.6g}")


# The iteration.


class Run:
    """The state of a minimization, on which the rules decide."""

    def __init__(
        self,
        loss: Loss,
        optimizer: Optimizer,
        bounds: Bounds | None,
        limits: Mapping[str, Any],
        batches: Iterable[Any] | None,
        epochs: int,
    ) -> None:
        self.evaluate, self.optimizer, self.bounds, self.batches, self.epochs = loss, optimizer, bounds, batches, epochs
        self.x, self.gradient = loss.x, loss.gradient
        self.sign = -1.0 if optimizer.maximize else 1.0
        self.gtol: float = limits["gtol"]
        self.xtol: float | None = limits["xtol"]
        self.ftol: float = limits["ftol"] or 0.0
        self.ftol_rel: float = limits["ftol_rel"] or 0.0
        self.patience: int = limits["patience"]
        self.maxiter: int | None = limits["maxiter"]
        self.deadline: float = time.perf_counter() + (limits["time_limit"] or 0.0)
        self.keeps_last: bool = limits["select"] == "last"
        self.rules = [rule for rule in RULES if any(limits[name] is not None for name in rule.options)]

        self.nit: int = 0
        self.loss: float = math.inf
        self.gradient_norm: float = math.inf
        self.step_norm: float = math.inf
        self.mark = math.inf
        """The best loss, times `sign`, that was better than the one before by more than the tolerance."""
        self.stale: int = 0
        """How many losses in a row were not better than `mark` by more than the tolerance."""
        self.epoch_loss: float | None = None
        self.kept_loss = math.nan
        self.kept_x, self.kept_gradient = loss.x.like(), loss.x.like()
        self.before = loss.x.like() if self.xtol is not None else None

    def iterate(
        self, callback: Callable[[OptimizeResult], object] | None, advance: Callable[[], object] | None
    ) -> Rule:
        """Takes steps until a rule says to stop, and returns that rule."""
        for batch in self._batches():
            self.loss = loss = self.evaluate(batch)
            self.gradient_norm = norm = self._gradient_norm()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                if not self.nit:
                    self._keep()
                return NOT_FINITE
            if self.batches is None:
                self._watch(loss)
            if self.keeps_last or not self.nit or self.sign * loss <= self.sign * self.kept_loss:
                self._keep()
            if advance is not None:
                advance()
            if callback is not None and self.nit:
                try:
                    callback(OptimizeResult(x=self.x.copy(), fun=loss, nit=self.nit))
                except StopIteration:
                    return CALLBACK
            for rule in self.rules:
                if rule.holds(self):
                    return rule
            self._step()
        if not math.isfinite(self.x.norm()):
            return NOT_FINITE
        self.kept_x.assign(self.x)
        return EPOCHS

    def _batches(self) -> Iterator[tuple[Any, ...]]:
        """What `fun` gets besides the point: nothing, without end, or one batch after the other."""
        if self.batches is None:
            yield from itertools.repeat(())
            return
        for _ in range(self.epochs):
            total, count = 0.0, 0
            for batch in self.batches:
                yield (batch,)
                total, count = total + self.loss, count + 1
            if not count:
                raise ValueError("batches is empty")
            self.epoch_loss = total / count
            self._watch(self.epoch_loss)

    def _watch(self, loss: float) -> None:
        """Counts the losses that are no progress."""
        score = self.sign * loss
        tolerance = self.ftol + self.ftol_rel * abs(self.mark) if self.mark < math.inf else 0.0
        if score < self.mark - tolerance:
            self.mark, self.stale = score, 0
        else:
            self.stale += 1

    def _keep(self) -> None:
        self.kept_loss = self.loss
        self.kept_x.assign(self.x)
        self.kept_gradient.assign(self.gradient)

    def _gradient_norm(self) -> float:
        norm = self.gradient.norm()
        if self.bounds is None or not math.isfinite(norm):
            return norm
        return self.bounds.projected_norm(self.x, self.gradient, self.sign)

    def _step(self) -> None:
        before = self.before
        if before is not None:
            before.assign(self.x)
        self.optimizer.step(self.gradient.nest)
        if self.bounds is not None:
            self.bounds.project(self.x)
        if before is not None:
            for vector, values in zip(before.vectors, self.x.vectors, strict=True):
                vector -= values
            self.step_norm = before.norm()
        self.nit += 1

    def result(self, rule: Rule) -> OptimizeResult:
        """The fields of the result, in the order in which SciPy shows them."""
        return OptimizeResult(
            message=rule.message,
            success=rule.success,
            status=rule.status,
            fun=self.kept_loss if self.epoch_loss is None else self.epoch_loss,
            x=self.kept_x.nest,
            nit=self.nit,
            jac=self.kept_gradient.nest,
            nfev=self.evaluate.nfev,
            njev=self.evaluate.njev,
        )

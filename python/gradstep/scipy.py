"""The optimizers as methods of `scipy.optimize.minimize`: `method=gs.scipy.adam(lr=0.01)`, and so on for all eight.

The names are those of the classes in lower case. Each takes the options of its class as keywords, and those of
`gradstep.minimize` (`maxiter`, `gtol`, `select`, ...); the `options` of SciPy's `minimize` override them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._minimize import METHODS, minimize, split_options
from ._options import did_you_mean

if TYPE_CHECKING:
    from ._optimizer import Optimizer

__all__ = ["Method", *METHODS]


class Method:
    """A method for `scipy.optimize.minimize`, which calls it by its convention for custom methods.

    `jac` is True, callable or None (finite differences of two points), `bounds` are projected, `tol` is `gtol`, and the
    callback has either signature. The option `disp` of SciPy's `minimize` prints why it stopped. The result is SciPy's
    `OptimizeResult`, with the fields of `gradstep.minimize`.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        For constraints, `hess` or `hessp`, which the optimizers do not use.
    """

    def __init__(self, optimizer: type[Optimizer], **options: Any) -> None:
        split_options(optimizer, options)
        self.optimizer = optimizer
        self.options = options

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"gradstep.scipy.{self.optimizer.__name__.lower()}({options})"

    def __call__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...] = (),
        *,
        jac: Any = None,
        bounds: Any = None,
        callback: Callable[..., Any] | None = None,
        tol: float | None = None,
        hess: Any = None,
        hessp: Any = None,
        constraints: Any = (),
        disp: bool = False,
        **options: Any,
    ) -> Any:
        from scipy.optimize import OptimizeResult

        name = self.optimizer.__name__
        for argument, value in {"hess": hess, "hessp": hessp}.items():
            if value is not None:
                raise ValueError(f"{name} does not use second derivatives; omit {argument}")
        if not isinstance(constraints, (list, tuple)) or constraints:
            raise ValueError(f"{name} does not support constraints, only bounds")
        tolerance = {} if tol is None else {"gtol": tol}
        options = {**self.options, **tolerance, **options}
        result = minimize(fun, x0, args, self.optimizer, jac, bounds=bounds, callback=callback, options=options)
        if disp:
            print(f"{result.message} fun: {result.fun:g}, nit: {result.nit}, nfev: {result.nfev}, njev: {result.njev}")
        return OptimizeResult(result)


def _factory(name: str) -> Callable[..., Method]:
    cls = METHODS[name]

    def make(**options: Any) -> Method:
        return Method(cls, **options)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"{cls.__name__} as a `Method`, with options of the class and of `gradstep.minimize`."
    return make


globals().update({name: _factory(name) for name in METHODS})


def __getattr__(name: str) -> Callable[..., Method]:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{did_you_mean(name, METHODS)}")

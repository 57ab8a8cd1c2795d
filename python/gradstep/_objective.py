"""What is minimized: a function of a nest of arrays, its gradient, and the bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Final

import numpy as np

from . import _core
from ._types import Array, is_groups

DIFFERENCES: Final = {"2-point": 1 / 2, "3-point": 1 / 3}
"""The formulas of finite differences, with the power of the machine epsilon that is the relative step."""


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def read_start(x0: Any) -> tuple[_core.Tree, list[Array]]:
    """The nesting of x0, and its arrays, integers as float64."""
    if is_number(x0) or (isinstance(x0, (list, tuple)) and x0 and all(map(is_number, x0))):
        x0 = np.array(x0, np.float64)
    if is_groups(x0):
        raise TypeError('x0 must not be groups; set options by name: options={"options": {...}}')
    tree = _core.Tree(x0, "x0")
    arrays = []
    for array, path in zip(tree.leaves, tree.paths, strict=True):
        name = f"x0[{path!r}]" if path else "x0"
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
        _core.check_array_class(array, name)
        if array.dtype.kind in "iu":
            array = array.astype(np.float64)
        if array.dtype.name not in _core.dtypes() or array.dtype.itemsize == 1:
            raise TypeError(f"{name} must be float64, float32, float16, bfloat16 or an integer, not {array.dtype}")
        arrays.append(array.astype(array.dtype.newbyteorder("="), copy=False))
    if not sum(array.size for array in arrays):
        raise ValueError("x0 has no elements")
    return tree, arrays


def check_jac(jac: Any) -> Any:
    """True, a callable, or the formula of finite differences."""
    if jac is None or jac is False:
        return "2-point"
    if jac is True or callable(jac) or (isinstance(jac, str) and jac in DIFFERENCES):
        return jac
    raise ValueError(f"jac must be True, callable, None, {' or '.join(map(repr, DIFFERENCES))}, got {jac!r}")


class Point:
    """Arrays in a nest, as views of vectors: one for each dtype."""

    def __init__(self, tree: _core.Tree, values: Sequence[Array]) -> None:
        self.vectors: list[Array] = []
        arrays: dict[int, Array] = {}
        for dtype in dict.fromkeys(array.dtype for array in values):
            numbers = [i for i, array in enumerate(values) if array.dtype == dtype]
            ends = np.cumsum([values[i].size for i in numbers]).tolist()
            vector = np.empty(ends[-1], dtype)
            for i, start, end in zip(numbers, [0, *ends], ends, strict=False):
                arrays[i] = vector[start:end].reshape(values[i].shape)
                arrays[i][...] = values[i]
            self.vectors.append(vector)
        self.tree = tree
        self.arrays = [arrays[i] for i in range(len(values))]
        self.nest = tree.build(self.arrays)
        self._vectors = _core.Tree(self.vectors)

    def like(self) -> Point:
        """Another point with the same values."""
        return Point(self.tree, self.arrays)

    def assign(self, other: Point) -> None:
        """Takes over the values of another point."""
        for vector, values in zip(self.vectors, other.vectors, strict=True):
            vector[...] = values

    def copy(self) -> Any:
        """The nest with copies of the arrays."""
        return self.tree.build([array.copy() for array in self.arrays])

    def norm(self) -> float:
        """The Euclidean norm of all elements."""
        return _core.global_norm(self._vectors)


class Bounds:
    """The lower and upper bounds of a point, and the projection onto them."""

    def __init__(self, given: Any, x: Point) -> None:
        tree = x.tree
        self.low, self.high, self._change = (x.like() for _ in range(3))
        everywhere = hasattr(given, "lb") or _is_pair(given) or tree.paths == [""]
        of_arrays = [given] * len(x.arrays) if everywhere else tree.flatten(given, "bounds")
        for own, path, low, high in zip(of_arrays, tree.paths, self.low.arrays, self.high.arrays, strict=True):
            name = f"bounds[{path!r}]" if path and not everywhere else "bounds"
            for array, values in zip((low, high), _low_high(own, low.shape, name), strict=True):
                try:
                    with np.errstate(over="ignore"):  # a bound too large for the dtype is infinite
                        array[...] = values
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{name} cannot be broadcast to the shape {low.shape}: {error}") from None
            if not np.all(low <= high):
                raise ValueError(f"{name} has a lower bound that is not below or equal to the upper one")
        self.project(x)

    def project(self, x: Point) -> None:
        """Moves each element to the nearest number within its bounds."""
        for vector, low, high in zip(x.vectors, self.low.vectors, self.high.vectors, strict=True):
            np.maximum(vector, low, out=vector)
            np.minimum(vector, high, out=vector)

    def projected_norm(self, x: Point, gradient: Point, sign: float) -> float:
        """The norm of P(x - sign * gradient) - x, where P is the projection."""
        change = self._change
        for vector, point, g in zip(change.vectors, x.vectors, gradient.vectors, strict=True):
            np.subtract(point, sign * g, out=vector)
        self.project(change)
        for vector, point in zip(change.vectors, x.vectors, strict=True):
            vector -= point
        return change.norm()


def _is_pair(given: Any) -> bool:
    """Whether these are bounds for all elements alike: two numbers or None."""
    return isinstance(given, (tuple, list)) and len(given) == 2 and all(v is None or is_number(v) for v in given)


def _low_high(given: Any, shape: tuple[int, ...], name: str) -> tuple[Any, Any]:
    """The lower and upper bounds of one array, None replaced."""
    if given is None:
        return -np.inf, np.inf
    if hasattr(given, "lb") and hasattr(given, "ub"):
        low, high = given.lb, given.ub
    else:
        try:
            given = list(given)
            if shape == (len(given),) and all(np.shape(pair) == (2,) for pair in given):
                low, high = zip(*given, strict=True)  # a pair for each element, as SciPy's
            else:
                low, high = given
        except (TypeError, ValueError):
            words = "a pair (low, high), or such a pair for each element of an array with one axis"
            raise ValueError(f"{name} must be {words}, for the shape {shape}, got {given!r}") from None
    return _without_none(low, -np.inf), _without_none(high, np.inf)


def _without_none(values: Any, instead: float) -> Any:
    if values is None:
        return instead
    return [instead if v is None else v for v in values] if isinstance(values, (tuple, list)) else values


class Loss:
    """The function at a point: a call evaluates the loss and writes the gradient."""

    def __init__(self, fun: Any, jac: Any, args: Any, x: Point, bounds: Bounds | None) -> None:
        self.fun, self.jac, self.x, self.gradient, self.bounds = fun, jac, x, x.like(), bounds
        self.args = args if isinstance(args, tuple) else (args,)
        self.nfev = self.njev = 0
        if isinstance(jac, str) and any(vector.dtype.itemsize < 4 for vector in x.vectors):
            raise TypeError("finite differences need x0 of float64 or float32; pass jac")

    def __call__(self, batch: tuple[Any, ...]) -> float:
        """The loss. `batch` has the batch, or nothing."""
        arguments = (*batch, *self.args)
        self.njev += 1
        if isinstance(self.jac, str):
            loss = self.value(arguments)
            self._differ(loss, arguments)
            return loss
        self.nfev += 1
        value = self.fun(self.x.copy(), *arguments)
        if self.jac is True:
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise TypeError(f"with jac=True, fun must return the pair (loss, gradient), not {value!r}")
            value, gradient = value
        else:
            gradient = self.jac(self.x.copy(), *arguments)
        self._take_gradient(gradient)
        return _number(value)

    def value(self, arguments: tuple[Any, ...]) -> float:
        """The loss alone."""
        self.nfev += 1
        return _number(self.fun(self.x.copy(), *arguments))

    def _take_gradient(self, gradient: Any) -> None:
        for number, given in enumerate(self.x.tree.flatten(gradient, "the gradient")):
            array, values = self.gradient.arrays[number], np.asarray(given)
            if values.shape != array.shape or values.dtype.kind in "cOSU":
                path = self.x.tree.paths[number]
                name = f"the gradient of {path!r}" if path else "the gradient"
                error = TypeError if values.shape == array.shape else ValueError
                raise error(f"{name} must be real, of shape {array.shape}, not {values.dtype} of {values.shape}")
            array[...] = values

    def _differ(self, loss: float, arguments: tuple[Any, ...]) -> None:
        """Writes the gradient by finite differences, with the steps of SciPy's `approx_derivative`."""
        for number, (x, gradient) in enumerate(zip(self.x.vectors, self.gradient.vectors, strict=True)):
            relative = float(np.finfo(x.dtype).eps) ** DIFFERENCES[self.jac]
            for i in range(x.size):
                at = float(x[i])
                low, high = -math.inf, math.inf
                if self.bounds is not None:
                    low, high = float(self.bounds.low.vectors[number][i]), float(self.bounds.high.vectors[number][i])
                step = relative * max(1.0, abs(at))
                gradient[i] = self._slope(x, i, at, step, low, high, loss, arguments)
                x[i] = at

    def _slope(
        self, x: Array, i: int, at: float, step: float, low: float, high: float, loss: float, arguments: Any
    ) -> float:
        """The derivative along one element. The points are within its bounds; 0 where these leave no room."""

        def move(to: float) -> tuple[float, float]:
            """The distance to a point, as it is rounded, and the loss there."""
            x[i] = min(max(to, low), high)
            return float(x[i]) - at, self.value(arguments)

        below, above = at - low, high - at
        if low == high:
            return 0.0
        if self.jac == "2-point":
            step = step if at >= 0 else -step
            if not low <= at + step <= high:
                step = -step if abs(step) <= max(below, above) else (above if above >= below else -below)
            distance, value = move(at + step)
            return (value - loss) / distance
        if step > min(below, above):
            shorter = min(step, max(below, above) / 2)
            if shorter > min(below, above):
                step = shorter if above >= below else -shorter
                (_, first), (distance, second) = move(at + step), move(at + 2 * step)
                return (4 * first - 3 * loss - second) / distance
            step = min(below, above)
        (left, first), (right, second) = move(at - step), move(at + step)
        return (second - first) / (right - left)


def _number(value: Any) -> float:
    """A loss as a float."""
    if type(value) is float:
        return value
    array = np.asarray(value) if not isinstance(value, (tuple, list)) else None
    if array is None or array.size != 1 or array.dtype.kind in "cOSU":
        hint = "; if it returns the gradient too, pass jac=True" if isinstance(value, (tuple, list)) else ""
        raise TypeError(f"fun must return a number, not {value!r}{hint}")
    return float(array.item())

"""The classic test functions of optimization, with exact gradients: one table for tests, pictures and docs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Function:
    """A test function: `value` and `gradient` take x of shape (n,) or, elementwise for contours, of shape (n, ...)."""

    name: str
    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    start: Array
    """Where the literature, or else the tests, start: shape (2,)."""
    minima: Array
    """The global minima, shape (number of minima, 2)."""
    bounds: tuple[tuple[float, float], tuple[float, float]]
    """The ranges of a plot, of x[0] and of x[1]."""


def _rosenbrock(x: Array) -> Array:
    return np.asarray(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2, axis=0))


def _rosenbrock_gradient(x: Array) -> Array:
    rise = x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * x[:-1] * rise - 2 * (1 - x[:-1])
    gradient[1:] += 200 * rise
    return gradient


def _rastrigin(x: Array) -> Array:
    return np.asarray(np.sum(10 + x**2 - 10 * np.cos(2 * np.pi * x), axis=0))


def _rastrigin_gradient(x: Array) -> Array:
    return 2 * x + 20 * np.pi * np.sin(2 * np.pi * x)


def _himmelblau(x: Array) -> Array:
    return np.asarray((x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2)


def _himmelblau_gradient(x: Array) -> Array:
    first, second = x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7
    return np.stack([4 * x[0] * first + 2 * second, 2 * first + 4 * x[1] * second])


_BEALE = ((1.5, 1), (2.25, 2), (2.625, 3))
"""The constants and the powers of Beale's three residuals c - x0 (1 - x1**p)."""


def _beale(x: Array) -> Array:
    return np.asarray(sum((c - x[0] * (1 - x[1] ** p)) ** 2 for c, p in _BEALE))


def _beale_gradient(x: Array) -> Array:
    gradient = np.zeros_like(x)
    for c, p in _BEALE:
        residual = c - x[0] * (1 - x[1] ** p)
        gradient[0] -= 2 * residual * (1 - x[1] ** p)
        gradient[1] += 2 * residual * x[0] * p * x[1] ** (p - 1)
    return gradient


def _booth(x: Array) -> Array:
    return np.asarray((x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2)


def _booth_gradient(x: Array) -> Array:
    first, second = x[0] + 2 * x[1] - 7, 2 * x[0] + x[1] - 5
    return np.stack([2 * first + 4 * second, 4 * first + 2 * second])


def _ackley(x: Array) -> Array:
    radius = np.sqrt(np.mean(x**2, axis=0))
    return np.asarray(20 + np.e - 20 * np.exp(-0.2 * radius) - np.exp(np.mean(np.cos(2 * np.pi * x), axis=0)))


def _ackley_gradient(x: Array) -> Array:
    # The radius has no derivative at the minimum; 0 is taken there.
    radius = np.sqrt(np.mean(x**2, axis=0))
    slope = 4 * np.exp(-0.2 * radius) / np.where(radius > 0, radius, 1)
    waves = 2 * np.pi * np.exp(np.mean(np.cos(2 * np.pi * x), axis=0))
    return np.asarray((slope * x + waves * np.sin(2 * np.pi * x)) / len(x))


def _ravine(x: Array) -> Array:
    return np.asarray(0.5 * x[0] ** 2 + 50 * x[1] ** 2)


def _ravine_gradient(x: Array) -> Array:
    return np.stack([x[0], 100 * x[1]])


def _saddle(x: Array) -> Array:
    return np.asarray(0.5 * x[0] ** 2 - 0.5 * x[1] ** 2 + 0.25 * x[1] ** 4)


def _saddle_gradient(x: Array) -> Array:
    return np.stack([x[0], x[1] ** 3 - x[1]])


_TABLE = (
    # name, value, gradient, start, minima, bounds of a plot
    # Rosenbrock (1960), Computer Journal 3(3).
    ("rosenbrock", _rosenbrock, _rosenbrock_gradient, (-1.2, 1.0), [(1.0, 1.0)], ((-2.0, 2.0), (-1.0, 3.0))),
    # Rastrigin (1974); a local minimum near each point with whole coordinates.
    ("rastrigin", _rastrigin, _rastrigin_gradient, (2.6, -1.7), [(0.0, 0.0)], ((-5.12, 5.12), (-5.12, 5.12))),
    # Himmelblau (1972), Applied Nonlinear Programming; four global minima.
    (
        "himmelblau",
        _himmelblau,
        _himmelblau_gradient,
        (0.0, 0.0),
        [
            (3.0, 2.0),
            (-2.805118086952745, 3.131312518250573),
            (-3.779310253377747, -3.283185991286170),
            (3.584428340330492, -1.848126526964404),
        ],
        ((-5.0, 5.0), (-5.0, 5.0)),
    ),
    # Beale (1958).
    ("beale", _beale, _beale_gradient, (1.0, 1.0), [(3.0, 0.5)], ((-4.5, 4.5), (-4.5, 4.5))),
    ("booth", _booth, _booth_gradient, (-5.0, 5.0), [(1.0, 3.0)], ((-10.0, 10.0), (-10.0, 10.0))),
    # Ackley (1987); a local minimum near each point with whole coordinates.
    ("ackley", _ackley, _ackley_gradient, (2.6, -1.7), [(0.0, 0.0)], ((-5.0, 5.0), (-5.0, 5.0))),
    # A quadratic of condition number 100; any gradient method zigzags over it or creeps along it.
    ("ravine", _ravine, _ravine_gradient, (-8.0, 1.0), [(0.0, 0.0)], ((-10.0, 10.0), (-2.0, 2.0))),
    # A saddle point at 0 between two minima; the start is beside the ridge that leads to it.
    ("saddle", _saddle, _saddle_gradient, (-1.5, 0.001), [(0.0, -1.0), (0.0, 1.0)], ((-2.0, 2.0), (-2.0, 2.0))),
)

FUNCTIONS = {
    name: Function(name, value, gradient, np.array(start), np.array(minima), bounds)
    for name, value, gradient, start, minima, bounds in _TABLE
}
"""The functions by name."""
ANY_SIZE = ("rosenbrock", "rastrigin", "ackley")
"""Those of any number of variables; the others have two."""

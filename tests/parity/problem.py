"""The problem that parity tests use: six float64 parameters, 100 steps, a noisy gradient.

It uses only ``+ - * /`` on float64 and Python integers, whose rounding is defined, so that every machine computes the
same gradients. A trajectory stored on one machine can therefore be checked on another, and only the parameters at a few
steps are stored.
"""

from collections.abc import Callable

import numpy as np

Trajectory = list[list[float]]  # a list of parameters per checkpoint

STEPS = 100
CHECKPOINTS = (1, 2, 10, 100)

# The parameters start and stay far from zero, so that relative errors are meaningful.
CENTRE = np.array([4.0, -6.0, 3.0, 20.0, -9.0, 5.0])
START = np.array([4.5, -6.75, 3.25, 21.5, -8.25, 4.5])
# The small ones give gradients for which an `eps` of 1e-7 matters.
CURVATURE = np.array([1.0, 0.5, 2.0, 1e-4, 0.25, 1e-2])


def _uniform(rows: int, columns: int) -> np.ndarray:
    """Numbers in [-1, 1) from a linear congruential generator in integers."""
    values, x = [], 20240607
    for _ in range(rows * columns):
        x = (1103515245 * x + 12345) % 2**31
        values.append(x / 2**30 - 1.0)
    return np.array(values).reshape(rows, columns)


NOISE = _uniform(STEPS, START.size)


def gradient(p: np.ndarray, step: int) -> np.ndarray:
    """The gradient at `p` after `step` steps: nonlinear, coupled, and noisy enough that no moment is zero."""
    d = p - CENTRE
    square = d * d
    pull = d * (1.0 + square / (1.0 + square)) + 0.125 * np.roll(d, 1) / (1.0 + square)
    return CURVATURE * (pull + 0.5 * NOISE[step])


def scheduled(lr: float, step: int) -> float:
    """A rate that changes at every step, so that velocities with and without the rate differ."""
    return lr * (1 + (3 * step) % 8) / 8


def trajectory(update: Callable[[np.ndarray, int], np.ndarray], maximize: bool = False) -> Trajectory:
    """The parameters at the checkpoints; `update(gradient, step)` runs the step after `step` steps and returns them.

    With `maximize` the optimizer gets the gradient of the negated problem, and so stays near the same optimum.
    """
    p, kept = START, []
    for step in range(STEPS):
        g = gradient(p, step)
        p = np.asarray(update(-g if maximize else g, step), dtype=np.float64)
        if step + 1 in CHECKPOINTS:
            kept.append(p.tolist())
    return kept


def relative_error(ours: Trajectory, theirs: Trajectory) -> float:
    """The largest error of any parameter at any checkpoint, relative to that parameter."""
    a, b = np.array(ours), np.array(theirs)
    return float(np.max(np.abs(a - b) / np.abs(b)))

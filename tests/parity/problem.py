"""The problem on which gradstep and its peers are compared: six float64 parameters, 100 steps, a noisy gradient.

Only ``+ - * /`` on float64 and Python integers are used, each with one defined rounding, so that every machine computes
the same gradients. A trajectory stored on one machine can then be checked on another, and nothing but the parameters
at a few steps need be stored.
"""

from collections.abc import Callable

import numpy as np

Trajectory = list[list[float]]  # a list of parameters a checkpoint

STEPS = 100
CHECKPOINTS = (1, 2, 10, 100)

# The parameters start and stay well away from zero, so that an error relative to each of them has a meaning.
CENTRE = np.array([4.0, -6.0, 3.0, 20.0, -9.0, 5.0])
START = np.array([4.5, -6.75, 3.25, 21.5, -8.25, 4.5])
# The small ones are gradients that an `eps` of 1e-7 is not lost in.
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
    """The gradient at `p` after `step` steps: nonlinear, coupled, and noisy enough to keep every moment off zero."""
    d = p - CENTRE
    square = d * d
    pull = d * (1.0 + square / (1.0 + square)) + 0.125 * np.roll(d, 1) / (1.0 + square)
    return CURVATURE * (pull + 0.5 * NOISE[step])


def scheduled(lr: float, step: int) -> float:
    """A rate that changes at every step, to tell apart the velocities that carry it from those that do not."""
    return lr * (1 + (3 * step) % 8) / 8


def trajectory(update: Callable[[np.ndarray, int], np.ndarray], maximize: bool = False) -> Trajectory:
    """The parameters at the checkpoints; `update(gradient, step)` takes one more after `step` steps and returns them.

    Where the optimizer climbs it is given the gradient of the negated problem, and so stays near the same optimum.
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

"""The scalars of each step, for the peers whose rules are written by hand here.

Rules and options (`o`) are gradstep's, with its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, repeat
from math import sqrt
from typing import Any

Scalars = Iterator[tuple[float, ...]]


def adam(o: Any) -> Scalars:
    (beta1, beta2) = o.betas
    for t in count(1):
        yield beta1, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2**t), o.eps, o.lr / (1 - beta1**t)


def nadam(o: Any) -> Scalars:
    def mu(t: int) -> float:
        return beta1 * (1 - 0.5 * 0.96 ** (t * o.momentum_decay))

    (beta1, beta2), product = o.betas, 1.0
    for t in count(1):
        product *= mu(t)
        of_mean = o.lr * mu(t + 1) / (1 - product * mu(t + 1))
        of_gradient = o.lr * (1 - mu(t)) / (1 - product)
        yield beta1, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2**t), o.eps, of_mean, of_gradient


SCALARS: dict[str, Callable[[Any], Scalars]] = {
    "sgd": lambda o: repeat((o.lr,)),
    "momentum": lambda o: repeat((o.momentum, o.lr)),
    "nag": lambda o: repeat((o.momentum, o.lr)),
    "adagrad": lambda o: repeat((o.eps, o.lr)),
    "rmsprop": lambda o: repeat((o.rho, 1 - o.rho, o.eps, o.lr)),
    "adadelta": lambda o: repeat((o.rho, 1 - o.rho, o.eps, o.lr)),
    "adam": adam,
    "nadam": nadam,
}

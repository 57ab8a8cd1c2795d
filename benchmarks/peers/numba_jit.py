"""Numba: one compiled loop per rule, parallel on large tensors; exact, and with fast-math."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import sqrt
from types import SimpleNamespace

import numba
import numpy as np
from numba import njit, prange

from gradstep.bench import Arm, Problem

from .peer import Peer, limiter
from .scalars import SCALARS

WORTH_SHARING = 1 << 15
"""Elements; below, starting the threads takes longer than the loop."""

# Arguments: the parameter, its gradient, its states, and the scalars of the step.


def sgd(p, g, lr):
    for i in prange(p.size):
        p[i] -= lr * g[i]


def momentum(p, g, v, mu, lr):
    for i in prange(p.size):
        v[i] = mu * v[i] + g[i]
        p[i] -= lr * v[i]


def nag(p, g, v, mu, lr):
    for i in prange(p.size):
        v[i] = mu * v[i] + g[i]
        p[i] -= lr * (g[i] + mu * v[i])


def adagrad(p, g, s, eps, lr):
    for i in prange(p.size):
        s[i] += g[i] * g[i]
        p[i] -= lr * g[i] / (sqrt(s[i]) + eps)


def rmsprop(p, g, s, rho, one_minus_rho, eps, lr):
    for i in prange(p.size):
        s[i] = rho * s[i] + one_minus_rho * g[i] * g[i]
        p[i] -= lr * g[i] / (sqrt(s[i]) + eps)


def adadelta(p, g, s, u, rho, one_minus_rho, eps, lr):
    for i in prange(p.size):
        s[i] = rho * s[i] + one_minus_rho * g[i] * g[i]
        d = sqrt((u[i] + eps) / (s[i] + eps)) * g[i]
        u[i] = rho * u[i] + one_minus_rho * d * d
        p[i] -= lr * d


def adam(p, g, m, v, beta1, one_minus_beta1, beta2, one_minus_beta2, unbias, eps, lr):
    for i in prange(p.size):
        m[i] = beta1 * m[i] + one_minus_beta1 * g[i]
        v[i] = beta2 * v[i] + one_minus_beta2 * g[i] * g[i]
        p[i] -= lr * m[i] / (sqrt(v[i]) * unbias + eps)


def nadam(p, g, m, v, beta1, one_minus_beta1, beta2, one_minus_beta2, unbias, eps, of_mean, of_gradient):
    for i in prange(p.size):
        m[i] = beta1 * m[i] + one_minus_beta1 * g[i]
        v[i] = beta2 * v[i] + one_minus_beta2 * g[i] * g[i]
        p[i] -= (of_mean * m[i] + of_gradient * g[i]) / (sqrt(v[i]) * unbias + eps)


RULES = {rule.__name__: rule for rule in (sgd, momentum, nag, adagrad, rmsprop, adadelta, adam, nadam)}


@cache
def compiled(rule: str, fastmath: bool, parallel: bool) -> Callable[..., None]:
    """The loop of a rule; fast-math uses approximate divisions and roots."""
    return njit(RULES[rule], fastmath=fastmath, parallel=parallel, error_model="numpy")


def make(fastmath: bool, name: str, problem: Problem) -> Arm | None:
    """The arm of Numba."""
    rule = problem.cls.rule
    if rule not in RULES:
        return None
    params = problem.params()
    scalars = SCALARS[rule](SimpleNamespace(**problem.cls.defaults))
    tensors = [
        (
            compiled(rule, fastmath, param.size >= WORTH_SHARING),
            (param.reshape(-1), grad.reshape(-1), *np.zeros((problem.states, param.size), param.dtype)),
        )
        for param, grad in zip(params, problem.grads, strict=True)
    ]

    def step():
        numbers = [np.float32(number) for number in next(scalars)]
        for update, arrays in tensors:
            update(*arrays, *numbers)

    return Arm(name, step, problem, lambda: params)


def set_threads(count: int) -> None:
    """Sets Numba's number of threads, which cannot exceed its initial number."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


LIMIT = limiter(numba.get_num_threads, set_threads)
PEERS = [
    Peer("Numba", "numba", partial(make, False), LIMIT),
    Peer("Numba fast-math", "numba", partial(make, True), LIMIT),
]

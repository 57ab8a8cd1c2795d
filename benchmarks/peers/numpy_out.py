"""NumPy at its best: all operations use `out=`, in pieces that fit into the cache."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import numpy as np

from gradstep._libraries import library_of
from gradstep.bench import Arm, Problem

from .peer import Peer
from .scalars import SCALARS

PIECE = 1 << 15
"""Elements of the largest piece: of Adam's four arrays and two temporaries, 768 KB."""

# Arguments: the parameter, its gradient, its states, two temporaries, and the scalars of the step.


def sgd(p, g, a, _, lr):
    p -= np.multiply(g, lr, out=a)


def momentum(p, g, v, a, _, mu, lr):
    v *= mu
    v += g
    p -= np.multiply(v, lr, out=a)


def nag(p, g, v, a, _, mu, lr):
    v *= mu
    v += g
    np.multiply(v, mu, out=a)
    a += g
    a *= lr
    p -= a


def adagrad(p, g, s, a, _, eps, lr):
    s += np.multiply(g, g, out=a)
    np.sqrt(s, out=a)
    a += eps
    np.divide(g, a, out=a)
    a *= lr
    p -= a


def rmsprop(p, g, s, a, _, rho, one_minus_rho, eps, lr):
    average_of_squares(s, g, a, rho, one_minus_rho)
    np.sqrt(s, out=a)
    a += eps
    np.divide(g, a, out=a)
    a *= lr
    p -= a


def adadelta(p, g, s, u, a, b, rho, one_minus_rho, eps, lr):
    average_of_squares(s, g, a, rho, one_minus_rho)
    np.add(u, eps, out=a)
    a /= np.add(s, eps, out=b)
    np.sqrt(a, out=a)
    a *= g
    average_of_squares(u, a, b, rho, one_minus_rho)
    a *= lr
    p -= a


def adam(p, g, m, v, a, _, beta1, one_minus_beta1, beta2, one_minus_beta2, unbias, eps, lr):
    moments(g, m, v, a, beta1, one_minus_beta1, beta2, one_minus_beta2)
    np.sqrt(v, out=a)
    a *= unbias
    a += eps
    np.divide(m, a, out=a)
    a *= lr
    p -= a


def nadam(p, g, m, v, a, b, beta1, one_minus_beta1, beta2, one_minus_beta2, unbias, eps, of_mean, of_gradient):
    moments(g, m, v, a, beta1, one_minus_beta1, beta2, one_minus_beta2)
    np.multiply(m, of_mean, out=a)
    a += np.multiply(g, of_gradient, out=b)
    np.sqrt(v, out=b)
    b *= unbias
    b += eps
    a /= b
    p -= a


def average_of_squares(s, x, a, rho, one_minus_rho):
    np.multiply(x, x, out=a)
    a *= one_minus_rho
    s *= rho
    s += a


def moments(g, m, v, a, beta1, one_minus_beta1, beta2, one_minus_beta2):
    m *= beta1
    m += np.multiply(g, one_minus_beta1, out=a)
    average_of_squares(v, g, a, beta2, one_minus_beta2)


RULES = {rule.__name__: rule for rule in (sgd, momentum, nag, adagrad, rmsprop, adadelta, adam, nadam)}


def make(name: str, problem: Problem, module: ModuleType = np, most: int = PIECE) -> Arm | None:
    """The arm of NumPy, or of a library with NumPy's functions, in pieces of at most `most` elements."""
    update = RULES.get(problem.cls.rule)
    if update is None:
        return None
    params = [module.asarray(param) for param in problem.params()]
    scalars = SCALARS[problem.cls.rule](SimpleNamespace(**problem.cls.defaults))
    largest = min(most, max(param.size for param in params))
    temporaries = module.empty((2, largest), params[0].dtype)
    pieces = []
    for param, grad in zip(params, map(module.asarray, problem.grads), strict=True):
        arrays = [param.reshape(-1), grad.reshape(-1), *module.zeros((problem.states, param.size), param.dtype)]
        for start in range(0, param.size, most):
            cut = [array[start : start + most] for array in arrays]
            pieces.append((*cut, *temporaries[:, : cut[0].size]))

    def step():
        numbers = next(scalars)
        for piece in pieces:
            update(*piece, *numbers)

    return Arm(name, step, problem, lambda: [library_of(param).to_numpy(param) for param in params])


PEERS = [Peer("NumPy out=", "numpy", make)]

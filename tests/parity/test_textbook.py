"""The algorithms of textbooks and papers, on f(x) = (x - 3)^2 from x = 0."""

from math import sqrt

import numpy as np
import pytest

import gradstep as gs

ITERATIONS = 100


def df(x):
    return 2 * (x - 3)


def minimize(opt, x):
    """The same minimization with gradstep."""
    for _ in range(ITERATIONS):
        opt.step(df(x))
    return x.item()


def gradient_descent():
    x, lr = 0.0, 0.1
    for _ in range(ITERATIONS):
        x = x - lr * df(x)
    return x


def averaged_momentum():
    x, v, lr, beta = 0.0, 0.0, 0.1, 0.9
    for _ in range(ITERATIONS):
        v = beta * v + (1 - beta) * df(x)
        x = x - lr * v
    return x


def rmsprop_eps_inside():
    x, s, lr, beta, eps = 0.0, 0.0, 0.1, 0.9, 1e-8
    for _ in range(ITERATIONS):
        g = df(x)
        s = beta * s + (1 - beta) * g**2
        x = x - lr * g / sqrt(s + eps)
    return x


def adam_eps_inside():
    x, m, v, lr, beta1, beta2, eps = 0.0, 0.0, 0.0, 0.1, 0.9, 0.999, 1e-8
    for t in range(1, ITERATIONS + 1):
        g = df(x)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        x = x - lr * m_hat / sqrt(v_hat + eps)
    return x


@pytest.mark.parametrize(
    ("listing", "optimizer"),
    [
        (gradient_descent, lambda x: gs.SGD(x, lr=0.1)),
        (averaged_momentum, lambda x: gs.Momentum(x, lr=0.1, momentum=0.9, dampening=0.9)),
        (rmsprop_eps_inside, lambda x: gs.RMSProp(x, lr=0.1, rho=0.9, eps=0.0, eps_root=1e-8)),
        (adam_eps_inside, lambda x: gs.Adam(x, lr=0.1, eps=0.0, eps_root=1e-8)),
    ],
)
def test_textbook(listing, optimizer):
    x = np.zeros(1)
    assert minimize(optimizer(x), x) == pytest.approx(listing(), rel=1e-12, abs=0)


# preset("paper"). Papers often do not fix the rate and the momentum; these are given here, with a changing rate if that
# reveals the form of the velocity. What a paper fixes is left to the preset.


def rate(step_count):
    return 0.05 / (1 + step_count / 50)


def heavy_ball():
    """Polyak 1964: the velocity is the displacement."""
    before, x, mu = 0.0, 0.0, 0.9
    for k in range(ITERATIONS):
        before, x = x, x - rate(k) * df(x) + mu * (x - before)
    return x


def nesterov():
    """Nesterov 1983, in the form of Sutskever et al. 2013: the gradient is evaluated at the lookahead point."""
    x, v, mu = 0.0, 0.0, 0.9
    for k in range(ITERATIONS):
        v = mu * v - rate(k) * df(x + mu * v)
        x = x + v
    return x


def adagrad():
    """Duchi, Hazan and Singer 2011: delta is added to the root."""
    x, s, eta, delta = 0.0, 0.0, 0.5, 1e-3
    for _ in range(ITERATIONS):
        g = df(x)
        s = s + g**2
        x = x - eta * g / (delta + sqrt(s))
    return x


def rmsprop():
    """Tieleman and Hinton 2012, whose slide has no eps."""
    x, mean_square, lr = 0.0, 0.0, 0.01
    for _ in range(ITERATIONS):
        g = df(x)
        mean_square = 0.9 * mean_square + 0.1 * g**2
        x = x - lr * g / sqrt(mean_square)
    return x


def adadelta():
    """Zeiler 2012, algorithm 1, with the constants of its experiments."""
    x, a, u, rho, eps = 0.0, 0.0, 0.0, 0.95, 1e-6
    for _ in range(ITERATIONS):
        g = df(x)
        a = rho * a + (1 - rho) * g**2
        d = -sqrt(u + eps) / sqrt(a + eps) * g
        u = rho * u + (1 - rho) * d**2
        x = x + d
    return x


def adam():
    """Kingma and Ba 2015, algorithm 1, with its "good default settings"."""
    x, m, v, alpha, beta1, beta2, eps = 0.0, 0.0, 0.0, 0.001, 0.9, 0.999, 1e-8
    for t in range(1, ITERATIONS + 1):
        g = df(x)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        x = x - alpha * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
    return x


def nadam():
    """Dozat 2016, algorithm 2 with a constant mu, but for a factor nu in n_hat that no implementation has."""
    x, m, n, lr, mu, nu, eps = 0.0, 0.0, 0.0, 0.01, 0.975, 0.999, 1e-8
    for t in range(1, ITERATIONS + 1):
        g = df(x)
        m = mu * m + (1 - mu) * g
        n = nu * n + (1 - nu) * g**2
        m_bar = mu * m / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t)
        x = x - lr * m_bar / (sqrt(n / (1 - nu**t)) + eps)
    return x


@pytest.mark.parametrize(
    ("listing", "optimizer", "given"),
    [
        (gradient_descent, gs.SGD, {"lr": 0.1}),
        (heavy_ball, gs.Momentum, {"lr": rate, "momentum": 0.9}),
        (adagrad, gs.AdaGrad, {"lr": 0.5, "eps": 1e-3}),
        (rmsprop, gs.RMSProp, {"lr": 0.01, "eps": 0.0}),
        (adadelta, gs.AdaDelta, {}),
        (adam, gs.Adam, {}),
        (nadam, gs.Nadam, {"lr": 0.01}),
    ],
)
def test_paper(listing, optimizer, given):
    x = np.zeros(1)
    assert minimize(optimizer.preset("paper", x, **given), x) == pytest.approx(listing(), rel=1e-12, abs=0)


def test_paper_nag():
    x = np.zeros(1)
    opt = gs.NAG.preset("paper", x, lr=rate, momentum=0.9)
    for _ in range(ITERATIONS):
        with opt.lookahead():
            g = df(x)
        opt.step(g)
    assert x.item() == pytest.approx(nesterov(), rel=1e-12, abs=0)

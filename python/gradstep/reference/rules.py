"""The eight rules, to be read beside ``docs/numerics.md``.

Each ``update`` is that page's **Scalars** (Python floats, rounded once by ``T``) and then its **Element** lines, which
NumPy evaluates in ``T``, one rounding an operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from ._optimizer import Optimizer, Options, Slot
from .storage import Array, store


def power(base: float, n: int) -> float:
    """``base`` to the whole power ``n``, by repeated squaring."""
    result = 1.0
    while n > 0:
        if n % 2 == 1:
            result = result * base
        base = base * base
        n = n // 2
    return result


def momentum_schedule(x: float) -> float:
    """``0.96 ** x`` for ``x >= 0``: a whole power, times a Taylor series for the fraction."""
    if x > 1e6:
        return 0.0
    whole = math.floor(x)
    r = (x - whole) * -0.040821994520255166
    series = 1.0
    for i in range(12, 0, -1):
        series = 1.0 + (r * series) / i
    return power(0.96, whole) * series


class SGD(Optimizer):
    """``p -= lr g`` (Robbins and Monro 1951)."""

    options: ClassVar = {"lr": 1e-3}

    def update(self, p: Array, g: Array, o: Options, _: Slot) -> Any:
        T = p.dtype.type
        lr = T(o.lr)

        return p - lr * g


class Momentum(Optimizer):
    """``v = mu v + g; p -= lr v`` (Polyak 1964, "Some methods of speeding up the convergence of iteration methods")."""

    options: ClassVar = {"lr": 1e-3, "momentum": 0.9, "dampening": 0.0, "lr_in_velocity": False}
    keyword_options: ClassVar = {"dampen_first": True}
    codes: ClassVar = {"momentum_buffer": np.int8}

    def states(self, _: Options) -> dict[str, float]:
        return {"momentum_buffer": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, v = p.dtype.type, s.momentum_buffer
        undamped = 1.0 if s.t == 1 and not o.dampen_first else 1.0 - o.dampening
        momentum = T(o.momentum)
        weight = T(o.lr * undamped if o.lr_in_velocity else undamped)
        rate = T(1.0 if o.lr_in_velocity else o.lr)

        v[...] = momentum * v + weight * g
        return p - rate * v


class NAG(Optimizer):
    """``v = mu v + g; p -= lr (g + mu v)`` (Nesterov 1983; this form: Sutskever et al. 2013).

    With ``lookahead`` it is the method as first written, ``v = mu v + g(p - lr mu v); p -= lr v``.
    """

    options: ClassVar = {"lr": 1e-3, "momentum": 0.9, "lr_in_velocity": False, "lookahead": False}
    codes: ClassVar = {"momentum_buffer": np.int8}

    def states(self, _: Options) -> dict[str, float]:
        return {"momentum_buffer": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, v = p.dtype.type, s.momentum_buffer
        momentum = T(o.momentum)
        weight = T(o.lr if o.lr_in_velocity else 1.0)
        rate = T(1.0 if o.lr_in_velocity else o.lr)

        x = weight * g
        v[...] = momentum * v + x
        if o.lookahead:
            return p - rate * v
        return p - rate * (x + momentum * v)

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Within it the parameters (of the groups with ``lookahead``) stand ahead, at ``p - lr momentum v``."""
        groups = [group for group in self._groups if group.options.lookahead]
        kept = [(s.p, s.p.copy()) for group in groups for s in group.slots]
        try:
            with np.errstate(all="ignore"):
                for group in groups:
                    o = group.at(self.step_count)
                    for s in group.slots:
                        wide = self._widened(o, s)
                        shift = wide.p.dtype.type(o.momentum if o.lr_in_velocity else o.lr * o.momentum)
                        store(wide.p - shift * wide.momentum_buffer, s.p)
            yield
        finally:
            for p, bits in kept:
                p[...] = bits


class AdaGrad(Optimizer):
    """``a += g^2; p -= lr g / (sqrt(a) + eps)`` (Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods")."""

    options: ClassVar = {"lr": 1e-2, "lr_decay": 0.0, "initial_accumulator": 0.0, "eps": 1e-10, "eps_root": 0.0}
    codes: ClassVar = {"sum": np.uint8}

    def states(self, o: Options) -> dict[str, float]:
        return {"sum": o.initial_accumulator}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, a = p.dtype.type, s.sum
        rate = T(o.lr / (1.0 + (s.t - 1) * o.lr_decay))
        eps = T(o.eps)
        eps_root = T(o.eps_root)

        a[...] = a + g * g
        return p - rate * (g / (np.sqrt(a + eps_root) + eps))


class RMSProp(Optimizer):
    """``s = rho s + (1 - rho) g^2; p -= lr g / (sqrt(s) + eps)`` (Tieleman and Hinton 2012, lecture 6.5).

    With ``centered``, ``s - m^2`` stands under the root, ``m = rho m + (1 - rho) g`` (Graves 2013).
    """

    options: ClassVar = {"lr": 1e-2, "rho": 0.99, "momentum": 0.0, "centered": False, "eps": 1e-8, "eps_root": 0.0}
    keyword_options: ClassVar = {"lr_in_velocity": False, "initial_scale": 0.0}
    codes: ClassVar = {"square_avg": np.uint8, "grad_avg": np.int8, "momentum_buffer": np.int8}

    def states(self, o: Options) -> dict[str, float]:
        kept = {"square_avg": True, "grad_avg": o.centered, "momentum_buffer": callable(o.momentum) or o.momentum > 0}
        firsts = {"square_avg": o.initial_scale}
        return {name: firsts.get(name, 0.0) for name, keep in kept.items() if keep}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, square = p.dtype.type, s.square_avg
        rho = T(o.rho)
        one_minus_rho = T(1.0 - o.rho)
        eps = T(o.eps)
        eps_root = T(o.eps_root)
        momentum = T(o.momentum)
        weight = T(o.lr if o.momentum > 0 and o.lr_in_velocity else 1.0)
        rate = T(1.0 if o.momentum > 0 and o.lr_in_velocity else o.lr)

        square[...] = rho * square + one_minus_rho * (g * g)
        variance = square
        if o.centered:
            m = s.grad_avg
            m[...] = rho * m + one_minus_rho * g
            variance = square - m * m
            variance = np.where(variance < 0, T(0.0), variance)
        u = g / (np.sqrt(variance + eps_root) + eps)
        if o.momentum > 0:
            v = s.momentum_buffer
            v[...] = momentum * v + weight * u
            return p - rate * v
        return p - rate * u


class AdaDelta(Optimizer):
    """``d = sqrt((u + eps) / (a + eps)) g; p -= lr d``, ``a`` and ``u`` the means of g^2 and d^2 (Zeiler 2012)."""

    options: ClassVar = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}
    codes: ClassVar = {"square_avg": np.uint8, "acc_delta": np.uint8}

    def states(self, _: Options) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, a, u = p.dtype.type, s.square_avg, s.acc_delta
        rho = T(o.rho)
        one_minus_rho = T(1.0 - o.rho)
        eps = T(o.eps)
        rate = T(o.lr)

        a[...] = rho * a + one_minus_rho * (g * g)
        d = np.sqrt((u + eps) / (a + eps)) * g
        u[...] = rho * u + one_minus_rho * (d * d)
        return p - rate * d


class Adam(Optimizer):
    """``p -= lr m / (sqrt(v) + eps)``, ``m`` and ``v`` the unbiased means of g and g^2 (Kingma and Ba 2015).

    With ``amsgrad``, the largest ``v`` so far stands under the root (Reddi, Kale and Kumar 2018).
    """

    options: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "eps_root": 0.0,
        "amsgrad": False,
        "bias_correction": True,
    }
    keyword_options: ClassVar = {"eps_hat": False, "amsgrad_corrected": False}
    codes: ClassVar = {"exp_avg": np.int8, "exp_avg_sq": np.uint8, "max_exp_avg_sq": np.uint8}

    def states(self, o: Options) -> dict[str, float]:
        kept = {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": o.amsgrad}
        return {name: 0.0 for name, keep in kept.items() if keep}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, m, v = p.dtype.type, s.exp_avg, s.exp_avg_sq
        beta1 = T(o.betas[0])
        one_minus_beta1 = T(1.0 - o.betas[0])
        beta2 = T(o.betas[1])
        one_minus_beta2 = T(1.0 - o.betas[1])
        correction1 = 1.0 - power(o.betas[0], s.t) if o.bias_correction else 1.0
        correction2 = 1.0 - power(o.betas[1], s.t) if o.bias_correction else 1.0
        eps = T(o.eps)
        eps_root = T(o.eps_root)
        if o.eps_hat:
            scalars = 1.0, 1.0, (o.lr * math.sqrt(correction2)) / correction1
        elif o.amsgrad_corrected and o.amsgrad:
            scalars = 1.0 / correction2, 1.0, o.lr / correction1
        else:
            scalars = 1.0, 1.0 / correction2, o.lr / correction1
        unbias_before, unbias_after, rate = map(T, scalars)

        m[...] = beta1 * m + one_minus_beta1 * g
        v[...] = beta2 * v + one_minus_beta2 * (g * g)
        second = v
        if o.amsgrad:
            x = s.max_exp_avg_sq
            y = v * unbias_before
            x[...] = np.where(x >= y, x, y)
            second = x
        return p - rate * (m / (np.sqrt(second * unbias_after + eps_root) + eps))


class Nadam(Optimizer):
    """Adam whose mean of g looks one step ahead, as NAG's velocity does (Dozat 2016)."""

    options: ClassVar = {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "eps_root": 0.0, "momentum_decay": 0.004}
    keyword_options: ClassVar = {"float32_product": False}
    codes: ClassVar = {"exp_avg": np.int8, "exp_avg_sq": np.uint8}
    scalars = (("mu_product", 1.0),)

    def states(self, _: Options) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        def mu(i: int) -> float:
            beta: float = o.betas[0]
            return beta if o.momentum_decay is None else beta * (1.0 - 0.5 * momentum_schedule(i * o.momentum_decay))

        T, m, v = p.dtype.type, s.exp_avg, s.exp_avg_sq
        beta1 = T(o.betas[0])
        one_minus_beta1 = T(1.0 - o.betas[0])
        beta2 = T(o.betas[1])
        one_minus_beta2 = T(1.0 - o.betas[1])
        mu_now = mu(s.t)
        mu_next = mu(s.t + 1)
        P = float(np.float32(s.mu_product) * np.float32(mu_now)) if o.float32_product else s.mu_product * mu_now
        s.mu_product = P
        momentum_rate = T((o.lr * mu_next) / (1.0 - P * mu_next))
        gradient_rate = T((o.lr * (1.0 - mu_now)) / (1.0 - P))
        unbias = T(1.0 / (1.0 - power(o.betas[1], s.t)))
        eps = T(o.eps)
        eps_root = T(o.eps_root)

        m[...] = beta1 * m + one_minus_beta1 * g
        v[...] = beta2 * v + one_minus_beta2 * (g * g)
        return p - (momentum_rate * m + gradient_rate * g) / (np.sqrt(v * unbias + eps_root) + eps)

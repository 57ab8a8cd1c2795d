"""The eight optimizers in plain NumPy: the oracle of gradstep's tests, to be read beside ``docs/numerics.md``.

Each ``update`` is that page's **Scalars** (Python floats, rounded once by ``T``) and then its **Element** lines, which
NumPy evaluates in ``T``, one rounding an operation. Nothing is validated here, and nothing is fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Array | Sequence[Array] | dict[str, Array]
Params: TypeAlias = Arrays | Sequence[dict[str, Any]]
Grads: TypeAlias = Any  # the structure of params, with None in place of an array that is to be skipped
Rate: TypeAlias = float | Callable[[int], float]
Options: TypeAlias = SimpleNamespace  # a group's options by name; within a step, lr is a float
Slot: TypeAlias = SimpleNamespace  # a parameter p, its own step number t, and its states by name


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


class Optimizer:
    """What all share: groups, the structure of params, step numbers, and sign, L2 and decay before every rule."""

    scalars: Sequence[tuple[str, float]] = ()  # float64 kept beside a parameter's states, with their first values

    def states(self, _: Options) -> dict[str, float]:
        """The states that a group keeps, with their first values."""
        return {}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        """Advance the states of ``s`` in place and return the new parameter."""
        raise NotImplementedError

    def _begin(self, given: dict[str, Any]) -> None:
        """Set up from the arguments of ``__init__``: params and options by name."""
        self.step_count = 0
        params = given["params"]
        self._grouped = isinstance(params, (list, tuple)) and len(params) > 0 and isinstance(params[0], dict)
        self._groups = [self._group({**given, **spec}) for spec in (params if self._grouped else [{}])]
        self._bound = given["grads"]

    def _group(self, given: dict[str, Any]) -> _Group:
        params = given["params"]
        o = Options(**{name: _plain(value) for name, value in given.items() if name not in ("self", "params", "grads")})
        slots = []
        for p in _leaves(params, params):
            states = {name: np.full(p.shape, first, p.dtype) for name, first in self.states(o).items()}
            slots.append(Slot(p=p, t=0, **dict(self.scalars), **states))
        return _Group(params, o, slots)

    @property
    def lr(self) -> Rate:
        """The learning rate (of the first group), or its schedule; setting it sets every group's."""
        rate: Rate = self._groups[0].options.lr
        return rate

    @lr.setter
    def lr(self, rate: Rate) -> None:
        for group in self._groups:
            group.options.lr = _plain(rate)

    @property
    def state(self) -> dict[str, Any]:
        """The state arrays by name, in the structure of params; None for a group that does not keep one."""
        kept = [self.states(group.options) for group in self._groups]
        shown = {
            name: [group.show(name) if name in names else None for group, names in zip(self._groups, kept, strict=True)]
            for name in dict.fromkeys(name for names in kept for name in names)
        }
        return shown if self._grouped else {name: only for name, [only] in shown.items()}

    def step(self, grads: Grads = ...) -> None:
        """Take one step, in place; ``grads`` has the structure of params, None where a parameter is to be skipped."""
        if (grads is ...) is not (self._bound is not None):
            raise TypeError("step() takes gradients where none were bound, and only there")
        grads = self._bound if grads is ... else grads
        with np.errstate(all="ignore"):
            for group, tree in zip(self._groups, grads if self._grouped else [grads], strict=True):
                o = group.at(self.step_count)
                for s, g in zip(group.slots, _leaves(tree, group.params), strict=True):
                    if g is not None:
                        self._step_one(g, o, s)
        self.step_count += 1

    def _step_one(self, g: Array, o: Options, s: Slot) -> None:
        p, T = s.p, s.p.dtype.type
        sign = T(-1.0 if o.maximize else 1.0)
        l2 = T(o.l2)
        decay = T(1.0 - o.lr * o.weight_decay)

        s.t += 1
        if o.flush_subnormals:
            g = np.where(np.abs(g) < (2.0**-56 if T is np.float32 else 2.0**-500), T(0), g)
        g = sign * g
        if o.l2 != 0:
            g = g + l2 * p
        s.p[...] = self.update(decay * p, g, o, s)
        if o.flush_subnormals:
            for name in self.states(o):
                state = getattr(s, name)
                state[np.abs(state) < np.finfo(T).tiny] = 0


class SGD(Optimizer):
    """``p -= lr g`` (Robbins and Monro 1951)."""

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def update(self, p: Array, g: Array, o: Options, _: Slot) -> Any:
        T = p.dtype.type
        lr = T(o.lr)

        return p - lr * g


class Momentum(Optimizer):
    """``v = mu v + g; p -= lr v`` (Polyak 1964, "Some methods of speeding up the convergence of iteration methods")."""

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        lr_in_velocity: bool = False,
        *,
        dampen_first: bool = True,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

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

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        momentum: float = 0.9,
        lr_in_velocity: bool = False,
        lookahead: bool = False,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

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
                        shift = s.p.dtype.type(o.momentum if o.lr_in_velocity else o.lr * o.momentum)
                        s.p[...] = s.p - shift * s.momentum_buffer
            yield
        finally:
            for p, bits in kept:
                p[...] = bits


class AdaGrad(Optimizer):
    """``a += g^2; p -= lr g / (sqrt(a) + eps)`` (Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods")."""

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        lr_decay: float = 0.0,
        initial_accumulator: float = 0.0,
        eps: float = 1e-10,
        eps_root: float = 0.0,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

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

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        rho: float = 0.99,
        momentum: float = 0.0,
        centered: bool = False,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        *,
        lr_in_velocity: bool = False,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, o: Options) -> dict[str, float]:
        kept = {"square_avg": True, "grad_avg": o.centered, "momentum_buffer": o.momentum > 0}
        return {name: 0.0 for name, keep in kept.items() if keep}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, square = p.dtype.type, s.square_avg
        rho = T(o.rho)
        fresh = T(1.0 - o.rho)
        eps = T(o.eps)
        eps_root = T(o.eps_root)
        momentum = T(o.momentum)
        weight = T(o.lr if o.momentum > 0 and o.lr_in_velocity else 1.0)
        rate = T(1.0 if o.momentum > 0 and o.lr_in_velocity else o.lr)

        square[...] = rho * square + fresh * (g * g)
        variance = square
        if o.centered:
            m = s.grad_avg
            m[...] = rho * m + fresh * g
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

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, _: Options) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, a, u = p.dtype.type, s.square_avg, s.acc_delta
        rho = T(o.rho)
        fresh = T(1.0 - o.rho)
        eps = T(o.eps)
        rate = T(o.lr)

        a[...] = rho * a + fresh * (g * g)
        d = np.sqrt((u + eps) / (a + eps)) * g
        u[...] = rho * u + fresh * (d * d)
        return p - rate * d


class Adam(Optimizer):
    """``p -= lr m / (sqrt(v) + eps)``, ``m`` and ``v`` the unbiased means of g and g^2 (Kingma and Ba 2015).

    With ``amsgrad``, the largest ``v`` so far stands under the root (Reddi, Kale and Kumar 2018).
    """

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_root: float = 0.0,
        amsgrad: bool = False,
        bias_correction: bool = True,
        *,
        eps_hat: bool = False,
        amsgrad_corrected: bool = False,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, o: Options) -> dict[str, float]:
        kept = {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": o.amsgrad}
        return {name: 0.0 for name, keep in kept.items() if keep}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, m, v = p.dtype.type, s.exp_avg, s.exp_avg_sq
        beta1 = T(o.betas[0])
        fresh1 = T(1.0 - o.betas[0])
        beta2 = T(o.betas[1])
        fresh2 = T(1.0 - o.betas[1])
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

        m[...] = beta1 * m + fresh1 * g
        v[...] = beta2 * v + fresh2 * (g * g)
        second = v
        if o.amsgrad:
            x = s.max_exp_avg_sq
            y = v * unbias_before
            x[...] = np.where(x >= y, x, y)
            second = x
        return p - rate * (m / (np.sqrt(second * unbias_after + eps_root) + eps))


class Nadam(Optimizer):
    """Adam whose mean of g looks one step ahead, as NAG's velocity does (Dozat 2016)."""

    scalars = (("mu_product", 1.0),)

    def __init__(
        self,
        params: Params,
        lr: Rate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_root: float = 0.0,
        momentum_decay: float | None = 0.004,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, _: Options) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        def mu(i: int) -> float:
            beta: float = o.betas[0]
            return beta if o.momentum_decay is None else beta * (1.0 - 0.5 * momentum_schedule(i * o.momentum_decay))

        T, m, v = p.dtype.type, s.exp_avg, s.exp_avg_sq
        beta1 = T(o.betas[0])
        fresh1 = T(1.0 - o.betas[0])
        beta2 = T(o.betas[1])
        fresh2 = T(1.0 - o.betas[1])
        mu_now = mu(s.t)
        mu_next = mu(s.t + 1)
        P = s.mu_product = s.mu_product * mu_now
        momentum_rate = T((o.lr * mu_next) / (1.0 - P * mu_next))
        gradient_rate = T((o.lr * (1.0 - mu_now)) / (1.0 - P))
        unbias = T(1.0 / (1.0 - power(o.betas[1], s.t)))
        eps = T(o.eps)
        eps_root = T(o.eps_root)

        m[...] = beta1 * m + fresh1 * g
        v[...] = beta2 * v + fresh2 * (g * g)
        return p - (momentum_rate * m + gradient_rate * g) / (np.sqrt(v * unbias + eps_root) + eps)


RULES: dict[str, type[Any]] = {rule.__name__.lower(): rule for rule in Optimizer.__subclasses__()}


@dataclass
class _Group:
    params: Arrays
    options: Options
    slots: list[Slot]

    def at(self, step_count: int) -> Options:
        """The options at this step: lr is a number, whether or not it follows a schedule."""
        lr = self.options.lr
        return Options(**{**vars(self.options), "lr": float(lr(step_count) if callable(lr) else lr)})

    def show(self, name: str) -> Any:
        """The states of this name, in the structure of the group's params."""
        arrays = [getattr(s, name) for s in self.slots]
        if isinstance(self.params, dict):
            return dict(zip(self.params, arrays, strict=True))
        return arrays if isinstance(self.params, (list, tuple)) else arrays[0]


def _leaves(tree: Any, like: Arrays) -> list[Any]:
    """The entries of ``tree``, in the order of ``like``, which has its structure."""
    if isinstance(like, dict):
        return [tree[name] for name in like]
    return list(tree) if isinstance(like, (list, tuple)) else [tree]


def _plain(value: Any) -> Any:
    """An option as float64: a NumPy float32 would pull the scalars down to its precision. A bool counts as 1 or 0."""
    if value is None or callable(value):
        return value
    return tuple(map(_plain, value)) if np.iterable(value) else float(value)

"""The eight optimizers. Each class is a signature, its formula and paper, and the defaults of other frameworks.

Formulas leave out what all share (`l2`, `weight_decay`, `maximize`); `docs/numerics.md` writes every operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

from . import _core, _storage
from ._libraries import refuse_capture
from ._optimizer import REQUIRED, RULES, Optimizer
from ._options import Rate
from ._step import run_step
from ._structure import Grads, Params

__all__ = ["NAG", "SGD", "AdaDelta", "AdaGrad", "Adam", "Momentum", "Nadam", "RMSProp"]


class SGD(Optimizer):
    """Stochastic gradient descent: p -= lr * g.

    Robbins and Monro, "A Stochastic Approximation Method", 1951.

    State: none.

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "sgd"
    presets: ClassVar = {
        "torch": {"lr": 1e-3},
        "keras": {"lr": 1e-2},
        "optax": {"lr": REQUIRED},
        "paper": {"lr": REQUIRED},
    }

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())


class Momentum(Optimizer):
    """The heavy ball: v = momentum * v + (1 - dampening) * g; p -= lr * v.

    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. `preset("paper")` has the rate in
    the velocity, as Polyak and Sutskever et al. (2013) write it.

    Parameters
    ----------
    momentum : float
        From 0 to 1.
    dampening : float
        From 0 to 1. `dampening=momentum` averages: v = momentum * v + (1 - momentum) * g.
    lr_in_velocity : bool
        The velocity carries the rate: v = momentum * v + lr * (1 - dampening) * g; p -= v. It differs where lr changes.
    dampen_first : bool
        False: the first step is not dampened (v = g), as in torch.

    State: `momentum_buffer` (v), zero at first.

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "momentum"
    presets: ClassVar = {
        "torch": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "dampen_first": False},
        "keras": {"lr": 1e-2, "momentum": 0.0, "lr_in_velocity": True},
        "optax": {"lr": REQUIRED, "momentum": REQUIRED},
        "paper": {"lr": REQUIRED, "momentum": REQUIRED, "lr_in_velocity": True},
    }

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
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())


class NAG(Optimizer):
    """Nesterov's accelerated gradient: v = momentum * v + g; p -= lr * (g + momentum * v).

    Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983; Sutskever,
    Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", 2013, whose form
    `preset("paper")` has.

    Parameters
    ----------
    momentum : float
        From 0 to 1.
    lr_in_velocity : bool
        The velocity carries the rate: v = momentum * v + lr * g; p -= lr * g + momentum * v.
    lookahead : bool
        The method as it was written: the gradient is taken at the point ahead, p - lr * momentum * v, and p -= lr * v.
        Compute the gradient within `with opt.lookahead():`. The default form is the same method in the variable of the
        point ahead.

    State: `momentum_buffer` (v), zero at first.

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "nag"
    presets: ClassVar = {
        "torch": {"lr": 1e-3, "momentum": 0.0},
        "keras": {"lr": 1e-2, "momentum": 0.0, "lr_in_velocity": True},
        "optax": {"lr": REQUIRED, "momentum": REQUIRED},
        "paper": {"lr": REQUIRED, "momentum": REQUIRED, "lr_in_velocity": True, "lookahead": True},
    }

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
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())
        self._is_ahead = False
        # p -= shift * v is a step of SGD along the velocity.
        self._move: _core.Stepper = self._library.core.Stepper("sgd")
        for _ in self._groups:
            self._move.add_group(self._sgd_options(0.0))
        for (number, name), param, states in zip(self._names(), self._params, self._states, strict=True):
            self._move.add_tensor(number, name, param, [], states.get(_storage.MASTER))

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Moves the parameters to the point ahead, and gives back their exact bits on leaving, also on an exception.

        Groups without `lookahead=True` stay where they are. Raises RuntimeError where no group has it, within
        itself, and while a stream of CUDA is captured in a graph.
        """
        with self._lock:
            if not any(group["lookahead"] for group in self._groups):
                raise RuntimeError("lookahead() is for NAG(lookahead=True)")
            if self._is_ahead:
                raise RuntimeError("the parameters are already at the point ahead")
            self._use(None, self._move)
            refuse_capture(self._library, self._move, "lookahead() cannot be captured in a graph: its shift would stay")
            for number, group in enumerate(self._groups):
                shift = group["momentum"] if group["lr_in_velocity"] else self._rate(group) * group["momentum"]
                self._move.set_options(number, self._sgd_options(shift))
            velocities = [
                _storage.values(states, "momentum_buffer") if self._groups[number]["lookahead"] else None
                for (number, _), states in zip(self._names(), self._states, strict=True)
            ]
            moved = [velocity is not None for velocity in velocities]
            copy, assign = self._library.copy, self._library.assign
            kept = [(param, copy(param)) for param, move in zip(self._params, moved, strict=True) if move]
            masters = [
                (states[_storage.MASTER], copy(states[_storage.MASTER]))
                for states, move in zip(self._states, moved, strict=True)
                if move and _storage.MASTER in states
            ]
            self._is_ahead = True
        try:
            try:
                with self._lock:
                    run_step(self._move, velocities)
                    for master, bits in masters:  # of which the parameter is now the rounding, but which stays
                        assign(master, bits)
            except (TypeError, ValueError):
                kept = []  # it was refused: nothing has moved
                raise
            yield
        finally:
            with self._lock, ExitStack() as stack:  # whichever cannot be given back, the others are
                for param, bits in kept:
                    stack.callback(assign, param, bits)
                self._is_ahead = False

    @staticmethod
    def _sgd_options(lr: float) -> dict[str, float]:
        return {**dict.fromkeys(RULES["sgd"]["options"], 0.0), "stochastic_rounding": math.nan, "lr": lr}

    def step(self, grads: Grads = ..., *, stream: Any = None) -> None:
        with self._lock:
            if self._is_ahead:
                raise RuntimeError("step() within lookahead(): leave it first, so that the parameters are back")
            super().step(grads, stream=stream)


class AdaGrad(Optimizer):
    """AdaGrad: a += g**2; p -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(a + eps_root) + eps).

    Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011.

    Parameters
    ----------
    lr_decay : float
        The rate falls as 1 / (1 + (t - 1) * lr_decay); `weight_decay` sees the rate before.
    initial_accumulator : float
        What `sum` starts at.
    eps, eps_root : float
        Added outside and inside the root.

    State: `sum` (a).

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "adagrad"
    presets: ClassVar = {
        "torch": {"lr": 1e-2, "eps": 1e-10},
        "keras": {"lr": 1e-3, "initial_accumulator": 0.1, "eps": 0.0, "eps_root": 1e-7},
        "optax": {"lr": REQUIRED, "initial_accumulator": 0.1, "eps": 0.0, "eps_root": 1e-7},
        "paper": {"lr": REQUIRED, "eps": REQUIRED},
    }
    initial_state: ClassVar = {"sum": "initial_accumulator"}

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
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())


class RMSProp(Optimizer):
    """RMSProp: s = rho * s + (1 - rho) * g**2; p -= lr * g / (sqrt(s + eps_root) + eps).

    Tieleman and Hinton, "Lecture 6.5 - RMSProp", 2012. Centered: Graves, "Generating Sequences With Recurrent Neural
    Networks", 2013. `preset("paper")` has the lecture's rho of 0.9; it names no eps, so the default stays.

    Parameters
    ----------
    rho : float
        From 0 to 1: what the average keeps at each step.
    momentum : float
        From 0 to 1. Above 0: v = momentum * v + g / (sqrt(...) + eps); p -= lr * v.
    centered : bool
        The variance in place of the second moment: m = rho * m + (1 - rho) * g, and s - m**2 under the root (never
        below 0).
    eps, eps_root : float
        Added outside and inside the root.
    lr_in_velocity : bool
        With momentum, the velocity carries the rate, as in Keras and optax. It differs where lr changes.

    States: `square_avg` (s); `grad_avg` (m) where centered; `momentum_buffer` (v) where momentum > 0. All zero at
    first.

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "rmsprop"
    q8_incompatible: ClassVar = {"centered": "subtracts one moment from another"}
    presets: ClassVar = {
        "torch": {"lr": 1e-2, "rho": 0.99, "eps": 1e-8},
        "keras": {"lr": 1e-3, "rho": 0.9, "eps": 0.0, "eps_root": 1e-7, "lr_in_velocity": True},
        "optax": {"lr": REQUIRED, "rho": 0.9, "eps": 0.0, "eps_root": 1e-8, "lr_in_velocity": True},
        "paper": {"lr": REQUIRED, "rho": 0.9},
    }

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
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())


class AdaDelta(Optimizer):
    """AdaDelta: d = sqrt((u + eps) / (a + eps)) * g; p -= lr * d.

    a = rho * a + (1 - rho) * g**2 comes before, u = rho * u + (1 - rho) * d**2 after.

    Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, 2012. `preset("paper")` has its rho of 0.95.

    Parameters
    ----------
    rho : float
        From 0 to 1: what both averages keep at each step.
    eps : float
        Added to both averages under the root.

    States: `square_avg` (a), `acc_delta` (u), zero at first.

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "adadelta"
    presets: ClassVar = {
        "torch": {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
        "keras": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7},
        "optax": {"lr": REQUIRED, "rho": 0.9, "eps": 1e-6},
        "paper": {"lr": 1.0, "rho": 0.95, "eps": 1e-6},
    }

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
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())


class Adam(Optimizer):
    """Adam: m = b1 * m + (1 - b1) * g; v = b2 * v + (1 - b2) * g**2; p -= lr * m_hat / (sqrt(v_hat + eps_root) + eps).

    Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2015. AMSGrad: Reddi, Kale and Kumar,
    "On the Convergence of Adam and Beyond", 2018. With `weight_decay` it is AdamW: Loshchilov and Hutter,
    arXiv:1711.05101, 2019.

    Parameters
    ----------
    betas : (float, float)
        From 0 to below 1: what the two moments keep at each step.
    eps, eps_root : float
        Added outside and inside the root.
    amsgrad : bool
        The largest second moment so far in place of the present one.
    bias_correction : bool
        m_hat = m / (1 - b1**t), v_hat = v / (1 - b2**t); False: the raw moments.
    eps_hat : bool
        eps is added to the root of the raw moment and the rate corrected instead (the paper's second form, and
        Keras's).
    amsgrad_corrected : bool
        AMSGrad takes the maximum of the corrected second moment, as optax does. Without effect under eps_hat.

    States: `exp_avg` (m), `exp_avg_sq` (v); `max_exp_avg_sq` where amsgrad. All zero at first.

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "adam"
    q8_incompatible: ClassVar = {"amsgrad": "keeps the largest value of a moment that wanders"}
    presets: ClassVar = {
        "torch": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
        "keras": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-7, "eps_hat": True},
        "optax": {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad_corrected": True},
        "paper": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    }

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
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())


class Nadam(Optimizer):
    """Nadam: Adam's moments; p -= lr * (c_m * m + c_g * g) / (sqrt(v_hat + eps_root) + eps).

    With mu_t = b1 * (1 - 0.5 * 0.96**(t * momentum_decay)) and P the product of mu_1 .. mu_t,
    c_m = mu_{t+1} / (1 - P * mu_{t+1}) and c_g = (1 - mu_t) / (1 - P).

    Dozat, "Incorporating Nesterov Momentum into Adam", 2016. `preset("paper")` is its Algorithm 2 with the constant
    momentum and the settings of its experiments, but for a factor b2 in v_hat that Adam lacks and no implementation
    has.

    Parameters
    ----------
    betas : (float, float)
        From 0 to below 1: what the two moments keep at each step.
    eps, eps_root : float
        Added outside and inside the root.
    momentum_decay : float or None
        How fast mu_t rises to b1; None: mu_t is b1 throughout.

    States: `exp_avg` (m), `exp_avg_sq` (v), zero at first; and the product P of each tensor.

    `params`, `lr`, `l2`, `weight_decay`, `maximize`, `flush_subnormals`, `state_dtype`, `master`,
    `stochastic_rounding`, `min_8bit_size`, `clip_norm`, `grads` and what is raised: see `Optimizer`.
    """

    rule = "nadam"
    presets: ClassVar = {
        "torch": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 4e-3},
        "keras": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-7, "momentum_decay": 1.0},
        "optax": {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": None},
        "paper": {"lr": REQUIRED, "betas": (0.975, 0.999), "eps": 1e-8, "momentum_decay": None},
    }

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
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())


ALL: tuple[type[Optimizer], ...] = tuple(
    sorted(Optimizer.__subclasses__(), key=lambda cls: list(RULES).index(cls.rule))
)
"""All optimizers, in the order of the core's list of rules."""

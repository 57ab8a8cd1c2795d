"""The eight optimizers. Each class has its formula and paper, its options, and the presets of other frameworks.

Formulas omit what all share (`l2`, `weight_decay`, `maximize`); `docs/numerics.md` writes every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, overload

from . import _core, _storage
from ._arithmetic import sgd_options
from ._groups import RULES
from ._optimizer import REQUIRED, Optimizer
from ._options import (
    BELOW_ONE,
    FLAG,
    NON_NEGATIVE,
    UP_TO_ONE,
    LearningRate,
    Number,
    NumberOrNone,
    Numbers,
    Option,
    optional,
    pair_of,
)
from ._step import run_step

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NAG", "SGD", "AdaDelta", "AdaGrad", "Adam", "Momentum", "Nadam", "RMSProp"]

EPS_DOC = "Added outside the root."
EPS_ROOT_DOC = "Added inside the root."


class SGD(Optimizer):
    """Stochastic gradient descent: p -= lr * g.

    Robbins and Monro, "A Stochastic Approximation Method", 1951.

    State: none.
    """

    __slots__ = ()

    rule = "sgd"
    presets: ClassVar = {
        "torch": {"lr": 1e-3},
        "keras": {"lr": 1e-2},
        "optax": {"lr": REQUIRED},
        "paper": {"lr": REQUIRED},
    }

    lr: LearningRate = LearningRate(default=1e-3)


class Momentum(Optimizer):
    """The heavy ball: v = momentum * v + (1 - dampening) * g; p -= lr * v.

    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. `preset("paper")` has the rate in
    the velocity, as Polyak and Sutskever et al. (2013) write it.

    State: `momentum_buffer` (v), zero at first.
    """

    __slots__ = ()

    rule = "momentum"
    presets: ClassVar = {
        "torch": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "dampen_first": False},
        "keras": {"lr": 1e-2, "momentum": 0.0, "lr_in_velocity": True},
        "optax": {"lr": REQUIRED, "momentum": REQUIRED},
        "paper": {"lr": REQUIRED, "momentum": REQUIRED, "lr_in_velocity": True},
    }

    lr: LearningRate = LearningRate(default=1e-3)
    momentum: Number = Number(default=0.9, domain=UP_TO_ONE, doc="The factor of the velocity at each step.")
    dampening: Number = Number(
        default=0.0, domain=UP_TO_ONE, doc="`dampening=momentum` averages: v = momentum * v + (1 - momentum) * g."
    )
    lr_in_velocity: Option[bool] = Option(
        default=False,
        domain=FLAG,
        doc="Whether the velocity contains the rate: v = momentum * v + lr * (1 - dampening) * g; p -= v. The two "
        "forms differ where lr changes.",
    )
    dampen_first: Option[bool] = Option(
        default=True, kw_only=True, domain=FLAG, doc="False: the first step is not dampened (v = g), as in torch."
    )


class Ahead(int):
    """Whether NAG's `lookahead` is on; calling it gives the context in which the parameters are ahead."""

    opt: NAG
    ndim = 0

    def item(self) -> bool:
        """As a bool, as of NumPy's scalars."""
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))

    def __call__(self) -> AbstractContextManager[None]:
        """Moves the parameters to the point ahead, and restores their exact bits on leaving, also on an exception.

        Groups without `lookahead=True` do not move. Raises RuntimeError where no group has it, within itself, and while
        a CUDA stream is captured in a graph.
        """
        return self.opt._look_ahead()


class Lookahead(Option[bool]):
    """The option `lookahead`, which is also a method."""

    @overload  # type: ignore[override]
    def __get__(self, opt: None, owner: type) -> Self: ...
    @overload
    def __get__(self, opt: Any, owner: type) -> Ahead: ...
    def __get__(self, opt: Any, owner: type) -> Any:
        if opt is None:
            return self
        ahead = Ahead(any(group["lookahead"] for group in opt.groups))
        ahead.opt = opt
        return ahead


class NAG(Optimizer):
    """Nesterov's accelerated gradient: v = momentum * v + g; p -= lr * (g + momentum * v).

    Nesterov, "A method of solving a convex programming problem with convergence rate O(1/k^2)", 1983; Sutskever,
    Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", 2013, whose form
    `preset("paper")` has.

    State: `momentum_buffer` (v), zero at first.
    """

    __slots__ = ("_move",)

    rule = "nag"
    presets: ClassVar = {
        "torch": {"lr": 1e-3, "momentum": 0.0},
        "keras": {"lr": 1e-2, "momentum": 0.0, "lr_in_velocity": True},
        "optax": {"lr": REQUIRED, "momentum": REQUIRED},
        "paper": {"lr": REQUIRED, "momentum": REQUIRED, "lr_in_velocity": True, "lookahead": True},
    }

    lr: LearningRate = LearningRate(default=1e-3)
    momentum: Number = Number(default=0.9, domain=UP_TO_ONE, doc="The factor of the velocity at each step.")
    lr_in_velocity: Option[bool] = Option(
        default=False,
        domain=FLAG,
        doc="Whether the velocity contains the rate: v = momentum * v + lr * g; p -= lr * g + momentum * v.",
    )
    lookahead: Lookahead = Lookahead(
        default=False,
        domain=FLAG,
        doc="The method in its original form: the gradient is taken at the point ahead, p - lr * momentum * v, and p "
        "-= lr * v. Compute the gradient within `with opt.lookahead():`. The default form is the same method "
        "in the variable of the point ahead.",
    )

    def _rebuild(self, *args: Any) -> None:
        super()._rebuild(*args)
        engine = self._engine
        # p -= shift * v is a step of SGD along the velocity.
        self._move: _core.Stepper = engine.library.core.Stepper(engine.tree)
        for _ in self._groups:
            self._move.add_group("sgd", sgd_options(0.0))
        masters = {name: column for name, column in self._columns.items() if name == _storage.MASTER}
        self._move.add_tensors(self._numbers, self._arrays, masters)

    @contextmanager
    def _look_ahead(self) -> Iterator[None]:
        """`with opt.lookahead():`."""
        with ExitStack() as stack:
            with self._engine.lock:  # until the parameters have moved: no other thread passes the checks meanwhile
                if not self.lookahead:
                    raise RuntimeError("lookahead() is for NAG(lookahead=True)")
                if self._away:
                    where = "already at the point ahead" if self._away == "lookahead()" else f"within {self._away}"
                    raise RuntimeError(f"the parameters are {where}")
                moves = [group["lookahead"] and not group["frozen"] for group in self._groups]
                for number, group in enumerate(self._groups):
                    shift = group["momentum"] if group["lr_in_velocity"] else group["lr"] * group["momentum"]
                    self._move.set_options(number, sgd_options(shift))
                velocities = [
                    _storage.values(kept, "momentum_buffer") if moves[number] else None
                    for kept, number in zip(self._kept.values(), self._numbers, strict=True)
                ]
                move = partial(self._step_along, velocities)
                stack.enter_context(self._moved("lookahead()", [by is not None for by in velocities], move))
            yield

    def _step_along(self, velocities: list[Any]) -> None:
        self._engine.use(None, self._move)
        run_step(self._move, self._engine.tree.build(velocities))


class AdaGrad(Optimizer):
    """AdaGrad: a += g**2; p -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(a + eps_root) + eps).

    Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011.

    State: `sum` (a).
    """

    __slots__ = ()

    rule = "adagrad"
    presets: ClassVar = {
        "torch": {"lr": 1e-2, "eps": 1e-10},
        "keras": {"lr": 1e-3, "initial_accumulator": 0.1, "eps": 0.0, "eps_root": 1e-7},
        "optax": {"lr": REQUIRED, "initial_accumulator": 0.1, "eps": 0.0, "eps_root": 1e-7},
        "paper": {"lr": REQUIRED, "eps": REQUIRED},
    }
    initial_state: ClassVar = {"sum": "initial_accumulator"}

    lr: LearningRate = LearningRate(default=1e-2)
    lr_decay: Number = Number(
        default=0.0,
        domain=NON_NEGATIVE,
        doc="The rate falls as 1 / (1 + (t - 1) * lr_decay); `weight_decay` uses the rate before that.",
    )
    initial_accumulator: Number = Number(default=0.0, domain=NON_NEGATIVE, fixed=True, doc="The first value of `sum`.")
    eps: Number = Number(default=1e-10, domain=NON_NEGATIVE, doc=EPS_DOC)
    eps_root: Number = Number(default=0.0, domain=NON_NEGATIVE, doc=EPS_ROOT_DOC)


class RMSProp(Optimizer):
    """RMSProp: s = rho * s + (1 - rho) * g**2; p -= lr * g / (sqrt(s + eps_root) + eps).

    Tieleman and Hinton, "Lecture 6.5 - RMSProp", 2012. Centered: Graves, "Generating Sequences With Recurrent Neural
    Networks", 2013. `preset("paper")` has the lecture's rho of 0.9; it names no eps, so the default stays.

    States: `square_avg` (s); `grad_avg` (m) where centered; `momentum_buffer` (v) where momentum > 0. All zero at
    first, but `square_avg` with `initial_scale`.
    """

    __slots__ = ()

    rule = "rmsprop"
    initial_state: ClassVar = {"square_avg": "initial_scale"}
    q8_incompatible: ClassVar = {"centered": "subtracts one moment from another"}
    presets: ClassVar = {
        "torch": {"lr": 1e-2, "rho": 0.99, "eps": 1e-8},
        "keras": {"lr": 1e-3, "rho": 0.9, "eps": 0.0, "eps_root": 1e-7, "lr_in_velocity": True},
        "optax": {"lr": REQUIRED, "rho": 0.9, "eps": 0.0, "eps_root": 1e-8, "lr_in_velocity": True},
        "paper": {"lr": REQUIRED, "rho": 0.9},
    }

    lr: LearningRate = LearningRate(default=1e-2)
    rho: Number = Number(default=0.99, domain=UP_TO_ONE, doc="The decay factor of the average.")
    momentum: Number = Number(
        default=0.0, domain=UP_TO_ONE, doc="Above 0: v = momentum * v + g / (sqrt(...) + eps); p -= lr * v."
    )
    centered: Option[bool] = Option(
        default=False,
        domain=FLAG,
        doc="Use the variance instead of the second moment: m = rho * m + (1 - rho) * g, and s - m**2 under the root "
        "(never below 0).",
    )
    eps: Number = Number(default=1e-8, domain=NON_NEGATIVE, doc=EPS_DOC)
    eps_root: Number = Number(default=0.0, domain=NON_NEGATIVE, doc=EPS_ROOT_DOC)
    lr_in_velocity: Option[bool] = Option(
        default=False,
        kw_only=True,
        domain=FLAG,
        doc="With momentum, whether the velocity contains the rate, as in Keras and optax. The two forms differ "
        "where lr changes.",
    )
    initial_scale: Number = Number(
        default=0.0,
        kw_only=True,
        fixed=True,
        domain=NON_NEGATIVE,
        doc="What `square_avg` starts at: 1 in TensorFlow 1 and HIPS autograd, optax's `initial_scale`.",
    )


class AdaDelta(Optimizer):
    """AdaDelta: d = sqrt((u + eps) / (a + eps)) * g; p -= lr * d.

    a = rho * a + (1 - rho) * g**2 comes before, u = rho * u + (1 - rho) * d**2 after.

    Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, 2012. `preset("paper")` has its rho of 0.95.

    States: `square_avg` (a), `acc_delta` (u), zero at first.
    """

    __slots__ = ()

    rule = "adadelta"
    presets: ClassVar = {
        "torch": {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
        "keras": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7},
        "optax": {"lr": REQUIRED, "rho": 0.9, "eps": 1e-6},
        "paper": {"lr": 1.0, "rho": 0.95, "eps": 1e-6},
    }

    lr: LearningRate = LearningRate(default=1.0)
    rho: Number = Number(default=0.9, domain=UP_TO_ONE, doc="The decay factor of both averages.")
    eps: Number = Number(default=1e-6, domain=NON_NEGATIVE, doc="Added to both averages under the root.")


class Adam(Optimizer):
    """Adam: m = b1 * m + (1 - b1) * g; v = b2 * v + (1 - b2) * g**2; p -= lr * m_hat / (sqrt(v_hat + eps_root) + eps).

    Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2015. AMSGrad: Reddi, Kale and Kumar,
    "On the Convergence of Adam and Beyond", 2018. With `weight_decay` it is AdamW: Loshchilov and Hutter,
    arXiv:1711.05101, 2019.

    States: `exp_avg` (m), `exp_avg_sq` (v); `max_exp_avg_sq` where amsgrad. All zero at first.
    """

    __slots__ = ()

    rule = "adam"
    q8_incompatible: ClassVar = {"amsgrad": "keeps the maximum of a fluctuating moment"}
    presets: ClassVar = {
        "torch": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
        "keras": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-7, "eps_hat": True},
        "optax": {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad_corrected": True},
        "paper": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    }

    lr: LearningRate = LearningRate(default=1e-3)
    betas: Numbers = Numbers(
        default=(0.9, 0.999),
        parts=("beta1", "beta2"),
        domain=pair_of(BELOW_ONE),
        doc="The decay factors of the two moments.",
    )
    eps: Number = Number(default=1e-8, domain=NON_NEGATIVE, doc=EPS_DOC)
    eps_root: Number = Number(default=0.0, domain=NON_NEGATIVE, doc=EPS_ROOT_DOC)
    amsgrad: Option[bool] = Option(
        default=False, domain=FLAG, doc="Use the maximum of the second moments so far instead of the current one."
    )
    bias_correction: Option[bool] = Option(
        default=True, domain=FLAG, doc="m_hat = m / (1 - b1**t), v_hat = v / (1 - b2**t); False: the raw moments."
    )
    eps_hat: Option[bool] = Option(
        default=False,
        kw_only=True,
        domain=FLAG,
        doc="eps is added to the root of the raw moment and the rate corrected instead (the paper's second form, "
        "and Keras's).",
    )
    amsgrad_corrected: Option[bool] = Option(
        default=False,
        kw_only=True,
        domain=FLAG,
        doc="AMSGrad uses the maximum of the corrected second moment, as optax does. No effect with eps_hat.",
    )


class Nadam(Optimizer):
    """Nadam: Adam's moments; p -= lr * (c_m * m + c_g * g) / (sqrt(v_hat + eps_root) + eps).

    With mu_t = b1 * (1 - 0.5 * 0.96**(t * momentum_decay)) and P the product of mu_1 .. mu_t,
    c_m = mu_{t+1} / (1 - P * mu_{t+1}) and c_g = (1 - mu_t) / (1 - P).

    Dozat, "Incorporating Nesterov Momentum into Adam", 2016. `preset("paper")` is its Algorithm 2 with the constant
    momentum and the settings of its experiments, but for a factor b2 in v_hat that Adam lacks and no implementation
    has.

    States: `exp_avg` (m), `exp_avg_sq` (v), zero at first; and the product P of each tensor.
    """

    __slots__ = ()

    rule = "nadam"
    presets: ClassVar = {
        "torch": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 4e-3, "float32_product": True},
        "keras": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-7, "momentum_decay": 1.0},
        "optax": {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": None},
        "paper": {"lr": REQUIRED, "betas": (0.975, 0.999), "eps": 1e-8, "momentum_decay": None},
    }

    lr: LearningRate = LearningRate(default=2e-3)
    betas: Numbers = Numbers(
        default=(0.9, 0.999),
        parts=("beta1", "beta2"),
        domain=pair_of(BELOW_ONE),
        doc="The decay factors of the two moments.",
    )
    eps: Number = Number(default=1e-8, domain=NON_NEGATIVE, doc=EPS_DOC)
    eps_root: Number = Number(default=0.0, domain=NON_NEGATIVE, doc=EPS_ROOT_DOC)
    momentum_decay: NumberOrNone = NumberOrNone(
        default=0.004, domain=optional(NON_NEGATIVE), doc="How fast mu_t rises to b1; None: mu_t is b1 throughout."
    )
    float32_product: Option[bool] = Option(
        default=False, kw_only=True, domain=FLAG, doc="Whether P is multiplied in float32, as in torch."
    )


ALL: tuple[type[Optimizer], ...] = tuple(
    sorted(Optimizer.__subclasses__(), key=lambda cls: list(RULES).index(cls.rule))
)
"""All optimizers, in the order of the core's list of rules."""

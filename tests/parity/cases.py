"""The table of parity cases: the optimizers of each peer, their counterparts here, and the settings to compare.

Settings use our option names; `Peer.options` maps them to the peer's. Both sides get only the options that a row names,
so that the empty setting compares `preset(framework)` with the peer's defaults. Where a framework has no preset, `ours`
of the row gives the peer's defaults and form.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Options = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """One optimizer of a peer, and its counterpart here."""

    cls: str  # our class
    name: str  # theirs
    options: Mapping[str, Any]  # our option -> their argument (a pair of them for betas); two may share one
    ours: Options = field(default_factory=dict)  # our options beyond the preset that give the peer's form
    theirs: Options = field(default_factory=dict)  # the peer's options that give our form
    tolerance: float = 1e-12  # relative, at every checkpoint
    schedule: bool = True  # whether the peer's rate can change


@dataclass(frozen=True)
class Case:
    """One setting of one peer's optimizer."""

    framework: str
    variant: str  # the row of PEERS
    setting: Options  # by our option names; "schedule" changes `lr` at every step
    number: int  # the index among this variant's cases

    @property
    def id(self) -> str:
        return f"{self.framework}-{self.variant}-{self.number}"

    @property
    def peer(self) -> Peer:
        return PEERS[self.framework][self.variant]

    @property
    def schedule(self) -> bool:
        return self.setting.get("schedule", False)

    @property
    def maximize(self) -> bool:
        return self.setting.get("maximize", False)

    @property
    def ours(self) -> Options:
        """Overrides of `preset(framework)`, or of our defaults where there is no such preset."""
        return self.peer.ours | {name: value for name, value in self.setting.items() if name != "schedule"}

    @property
    def theirs(self) -> Options:
        """Arguments of the peer's constructor."""
        arguments = dict(self.peer.theirs)
        for name, value in self.setting.items():
            if name == "schedule":
                continue
            target = self.peer.options[name]
            arguments |= {target: value} if isinstance(target, str) else dict(zip(target, value, strict=True))
        return arguments


_TORCH = {"lr": "lr", "l2": "weight_decay", "maximize": "maximize"}
_TORCH_DECOUPLED = {"lr": "lr", "weight_decay": "weight_decay", "maximize": "maximize"}
_KERAS = {"lr": "learning_rate", "weight_decay": "weight_decay", "clip_norm": "global_clipnorm"}
# "clip_norm" and "l2" are not arguments of optax' optimizers: peers.py chains transformations before them.
_OPTAX = {"lr": "learning_rate", "clip_norm": "clip_norm", "l2": "l2"}
_OPTAX_ADAM = _OPTAX | {"betas": ("b1", "b2"), "eps": "eps", "eps_root": "eps_root"}
_THINC: dict[str, Any] = {
    "options": {"lr": "learn_rate", "betas": ("beta1", "beta2"), "eps": "eps", "l2": "L2"},
    "ours": {"eps_hat": True},
    # Its clipping is per array, ours is of all arrays together. Its weight decay comes after the update, ours before.
    "theirs": {"grad_clip": 0.0, "L2_is_weight_decay": False, "use_averages": False},
}
# "clip_norm" and "l2" are hooks in Chainer.
_CHAINER = {"lr": "lr", "clip_norm": "clip_norm", "l2": "l2"}

PEERS: dict[str, dict[str, Peer]] = {
    "torch": {
        "SGD": Peer("SGD", "SGD", _TORCH),
        "Momentum": Peer("Momentum", "SGD", _TORCH | {"momentum": "momentum", "dampening": "dampening"}),
        # torch rejects nesterov=True with its default momentum of 0, so every row of this variant sets it.
        "NAG": Peer("NAG", "SGD", _TORCH | {"momentum": "momentum"}, theirs={"nesterov": True}),
        "AdaGrad": Peer(
            "AdaGrad",
            "Adagrad",
            _TORCH | {"lr_decay": "lr_decay", "initial_accumulator": "initial_accumulator_value", "eps": "eps"},
        ),
        "RMSProp": Peer(
            "RMSProp",
            "RMSprop",
            _TORCH | {"rho": "alpha", "momentum": "momentum", "centered": "centered", "eps": "eps"},
        ),
        "AdaDelta": Peer("AdaDelta", "Adadelta", _TORCH | {"rho": "rho", "eps": "eps"}),
        "Adam": Peer("Adam", "Adam", _TORCH | {"betas": "betas", "eps": "eps", "amsgrad": "amsgrad"}),
        # AdamW has weight decay by default; our preset has none.
        "AdamW": Peer(
            "Adam",
            "AdamW",
            _TORCH_DECOUPLED | {"betas": "betas", "eps": "eps", "amsgrad": "amsgrad"},
        ),
        # NAdam stores the product of its momenta in torch's default type, float32.
        "Nadam": Peer(
            "Nadam",
            "NAdam",
            _TORCH | {"betas": "betas", "eps": "eps", "momentum_decay": "momentum_decay"},
        ),
        # With a default type of float64 (set in peers.py).
        "Nadam64": Peer(
            "Nadam",
            "NAdam",
            _TORCH | {"betas": "betas", "eps": "eps", "momentum_decay": "momentum_decay"},
            ours={"float32_product": False},
        ),
        "NadamW64": Peer(
            "Nadam",
            "NAdam",
            _TORCH_DECOUPLED | {"betas": "betas", "eps": "eps", "momentum_decay": "momentum_decay"},
            ours={"float32_product": False},
            theirs={"decoupled_weight_decay": True},
        ),
    },
    "keras": {
        "SGD": Peer("SGD", "SGD", _KERAS),
        "Momentum": Peer("Momentum", "SGD", _KERAS | {"momentum": "momentum"}),
        "NAG": Peer("NAG", "SGD", _KERAS | {"momentum": "momentum"}, theirs={"nesterov": True}),
        "AdaGrad": Peer(
            "AdaGrad",
            "Adagrad",
            _KERAS | {"initial_accumulator": "initial_accumulator_value", "eps_root": "epsilon"},
        ),
        "RMSProp": Peer(
            "RMSProp",
            "RMSprop",
            _KERAS | {"rho": "rho", "momentum": "momentum", "centered": "centered", "eps_root": "epsilon"},
        ),
        "AdaDelta": Peer("AdaDelta", "Adadelta", _KERAS | {"rho": "rho", "eps": "epsilon"}),
        "Adam": Peer(
            "Adam",
            "Adam",
            _KERAS | {"betas": ("beta_1", "beta_2"), "eps": "epsilon", "amsgrad": "amsgrad"},
        ),
        "Nadam": Peer("Nadam", "Nadam", _KERAS | {"betas": ("beta_1", "beta_2"), "eps": "epsilon"}),
    },
    "optax": {
        "SGD": Peer("SGD", "sgd", _OPTAX),
        "Momentum": Peer("Momentum", "sgd", _OPTAX | {"momentum": "momentum"}),
        "NAG": Peer("NAG", "sgd", _OPTAX | {"momentum": "momentum"}, theirs={"nesterov": True}),
        "AdaGrad": Peer(
            "AdaGrad",
            "adagrad",
            _OPTAX | {"initial_accumulator": "initial_accumulator_value", "eps_root": "eps"},
        ),
        "RMSProp": Peer(
            "RMSProp",
            "rmsprop",
            _OPTAX | {"rho": "decay", "momentum": "momentum", "centered": "centered", "eps_root": "eps"},
        ),
        "RMSProp-outside": Peer(
            "RMSProp",
            "rmsprop",
            _OPTAX | {"rho": "decay", "momentum": "momentum", "centered": "centered", "eps": "eps"},
            ours={"eps": 1e-8, "eps_root": 0.0},
            theirs={"eps_in_sqrt": False},
        ),
        "AdaDelta": Peer("AdaDelta", "adadelta", _OPTAX | {"rho": "rho", "eps": "eps"}),
        "Adam": Peer("Adam", "adam", _OPTAX_ADAM),
        "AdamW": Peer("Adam", "adamw", _OPTAX_ADAM | {"weight_decay": "weight_decay"}),
        "AMSGrad": Peer("Adam", "amsgrad", _OPTAX_ADAM, ours={"amsgrad": True}),
        "Nadam": Peer("Nadam", "nadam", _OPTAX_ADAM),
        "NadamW": Peer("Nadam", "nadamw", _OPTAX_ADAM | {"weight_decay": "weight_decay"}),
    },
    "chainer": {
        "SGD": Peer("SGD", "SGD", _CHAINER, ours={"lr": 0.01}),
        "Momentum": Peer(
            "Momentum",
            "MomentumSGD",
            _CHAINER | {"momentum": "momentum"},
            ours={"lr": 0.01, "lr_in_velocity": True},
        ),
        # NesterovAG has no peer: it multiplies the new velocity by momentum**2, where Nesterov's form has the old one.
        "AdaGrad": Peer("AdaGrad", "AdaGrad", _CHAINER | {"eps": "eps"}, ours={"lr": 0.001, "eps": 1e-8}),
        "RMSProp": Peer("RMSProp", "RMSprop", _CHAINER | {"rho": "alpha", "eps": "eps"}),
        "RMSProp-inside": Peer(
            "RMSProp",
            "RMSprop",
            _CHAINER | {"rho": "alpha", "eps_root": "eps"},
            ours={"eps": 0.0, "eps_root": 1e-8},
            theirs={"eps_inside_sqrt": True},
        ),
        "AdaDelta": Peer(
            "AdaDelta",
            "AdaDelta",
            {"rho": "rho", "eps": "eps", "clip_norm": "clip_norm", "l2": "l2"},
            ours={"rho": 0.95},
            schedule=False,
        ),
        "Adam": Peer(
            "Adam",
            "Adam",
            _CHAINER | {"lr": "alpha", "betas": ("beta1", "beta2"), "eps": "eps", "amsgrad": "amsgrad"},
            ours={"eps_hat": True},
        ),
    },
    "autograd": {
        "SGD": Peer("SGD", "sgd", {"lr": "step_size"}, ours={"lr": 0.1}, theirs={"mass": 0.0}, schedule=False),
        "Momentum": Peer(
            "Momentum",
            "sgd",
            {"lr": "step_size", "momentum": "mass", "dampening": "mass"},
            ours={"lr": 0.1, "momentum": 0.9, "dampening": 0.9},
            schedule=False,
        ),
        "RMSProp": Peer(
            "RMSProp",
            "rmsprop",
            {"lr": "step_size", "rho": "gamma", "eps": "eps"},
            ours={"lr": 0.1, "rho": 0.9, "initial_scale": 1.0},
            schedule=False,
        ),
        "Adam": Peer("Adam", "adam", {"lr": "step_size", "betas": ("b1", "b2"), "eps": "eps"}, schedule=False),
    },
    "thinc": {
        # The compiled Adam computes in float32. Measured: 6e-7 with the settings below, 5e-6 with random ones, whose
        # 1 - beta2 has a relative error of up to 3e-4 in float32.
        "Adam": Peer("Adam", "Adam", **_THINC, tolerance=1e-5),
        # Its NumPy form in float64 (see peers.py) matches as closely as the others.
        "Adam64": Peer("Adam", "Adam", **_THINC),
    },
}

# The settings of every variant; the first of each is the peer's defaults, as far as there are any.
SETTINGS: dict[str, dict[str, list[Options]]] = {
    "torch": {
        "SGD": [{}, {"lr": 0.1, "l2": 0.01}, {"lr": 0.1, "maximize": True}, {"lr": 0.2, "schedule": True}],
        "Momentum": [
            {},
            {"lr": 0.05, "momentum": 0.9},
            {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "l2": 0.02},
            {"lr": 0.05, "momentum": 0.9, "maximize": True},
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.9, "schedule": True},
        ],
        "NAG": [
            {"momentum": 0.9},
            {"lr": 0.05, "momentum": 0.8, "l2": 0.02},
            {"lr": 0.05, "momentum": 0.95, "maximize": True},
            {"lr": 0.1, "momentum": 0.9, "schedule": True},
        ],
        "AdaGrad": [
            {},
            {"lr": 0.1, "lr_decay": 0.05, "l2": 0.01},
            {"lr": 0.2, "initial_accumulator": 0.5, "eps": 1e-3},
            {"lr": 0.1, "lr_decay": 0.1, "maximize": True, "schedule": True},
        ],
        "RMSProp": [
            {},
            {"lr": 0.02, "rho": 0.9, "eps": 1e-3, "l2": 0.01},
            {"lr": 0.005, "rho": 0.95, "momentum": 0.8, "centered": True},
            {"lr": 0.02, "centered": True, "maximize": True},
            {"lr": 0.01, "momentum": 0.9, "schedule": True},
        ],
        "AdaDelta": [
            {},
            {"lr": 5.0, "rho": 0.8, "eps": 1e-4, "l2": 0.01},
            {"lr": 2.0, "maximize": True},
            {"lr": 8.0, "schedule": True},
        ],
        "Adam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "l2": 0.01},
            {"lr": 0.02, "betas": (0.9, 0.9), "amsgrad": True, "eps": 1e-2},
            {"lr": 0.02, "maximize": True},
            {"lr": 0.04, "betas": (0.5, 0.99), "schedule": True},
        ],
        "AdamW": [
            {"weight_decay": 0.01},
            {"lr": 0.02, "weight_decay": 0.1, "betas": (0.85, 0.9), "amsgrad": True},
            {"lr": 0.04, "weight_decay": 0.05, "maximize": True, "schedule": True},
        ],
        "Nadam": [{}],
        "Nadam64": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "l2": 0.01},
            {"lr": 0.02, "momentum_decay": 0.3, "maximize": True},
            {"lr": 0.04, "schedule": True},
        ],
        "NadamW64": [{"weight_decay": 0.01}, {"lr": 0.04, "weight_decay": 0.1, "schedule": True}],
    },
    "keras": {
        "SGD": [
            {},
            {"lr": 0.1, "weight_decay": 0.01},
            {"lr": 0.2, "schedule": True},
            {"lr": 0.1, "weight_decay": 0.01, "clip_norm": 1.0},
        ],
        "Momentum": [
            {},
            {"lr": 0.05, "momentum": 0.9},
            {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.02},
            {"lr": 0.1, "momentum": 0.9, "schedule": True},
        ],
        "NAG": [
            {},
            {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02},
            {"lr": 0.1, "momentum": 0.9, "schedule": True},
        ],
        "AdaGrad": [
            {},
            {"lr": 0.2, "initial_accumulator": 0.5, "eps_root": 1e-3, "weight_decay": 0.02},
            {"lr": 0.2, "initial_accumulator": 0.01, "schedule": True},
        ],
        "RMSProp": [
            {},
            {"lr": 0.02, "rho": 0.95, "eps_root": 1e-3, "weight_decay": 0.02},
            {"lr": 0.005, "momentum": 0.8, "centered": True},
            {"lr": 0.02, "centered": True, "rho": 0.8},
            {"lr": 0.01, "momentum": 0.9, "schedule": True},
        ],
        "AdaDelta": [
            {},
            {"lr": 5.0, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.002},
            {"lr": 8.0, "schedule": True},
        ],
        "Adam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
            {"lr": 0.02, "betas": (0.9, 0.9), "amsgrad": True, "eps": 1e-2},
            {"lr": 0.04, "betas": (0.5, 0.99), "schedule": True},
            {"lr": 0.04, "clip_norm": 0.5},
        ],
        "Nadam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
            {"lr": 0.04, "schedule": True},
        ],
    },
    "optax": {
        "SGD": [
            {"lr": 0.01},
            {"lr": 0.1, "l2": 0.01},
            {"lr": 0.2, "schedule": True},
            {"lr": 0.1, "l2": 0.01, "clip_norm": 1.0},
        ],
        "Momentum": [
            {"lr": 0.01, "momentum": 0.9},
            {"lr": 0.05, "momentum": 0.8, "l2": 0.02},
            {"lr": 0.1, "momentum": 0.9, "schedule": True},
        ],
        "NAG": [
            {"lr": 0.01, "momentum": 0.9},
            {"lr": 0.05, "momentum": 0.8, "l2": 0.02},
            {"lr": 0.1, "momentum": 0.9, "schedule": True},
        ],
        "AdaGrad": [
            {"lr": 0.1},
            {"lr": 0.2, "initial_accumulator": 0.5, "eps_root": 1e-3, "l2": 0.02},
            {"lr": 0.2, "initial_accumulator": 0.01, "schedule": True},
        ],
        "RMSProp": [
            {"lr": 0.01},
            {"lr": 0.02, "rho": 0.95, "eps_root": 1e-3, "l2": 0.02},
            {"lr": 0.005, "momentum": 0.8, "centered": True},
            {"lr": 0.02, "centered": True, "rho": 0.8},
            {"lr": 0.01, "momentum": 0.9, "schedule": True},
        ],
        "RMSProp-outside": [{"lr": 0.02}, {"lr": 0.01, "momentum": 0.9, "eps": 1e-4, "schedule": True}],
        "AdaDelta": [
            {"lr": 1.0},
            {"lr": 5.0, "rho": 0.8, "eps": 1e-4, "l2": 0.01},
            {"lr": 8.0, "schedule": True},
        ],
        "Adam": [
            {"lr": 0.01},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "eps_root": 1e-5, "l2": 0.01},
            {"lr": 0.04, "betas": (0.5, 0.99), "schedule": True},
            {"lr": 0.04, "clip_norm": 0.5},
        ],
        "AdamW": [
            {"lr": 0.01, "weight_decay": 1e-4},
            {"lr": 0.04, "weight_decay": 0.1, "betas": (0.85, 0.9), "schedule": True},
        ],
        "AMSGrad": [
            {"lr": 0.01},
            {"lr": 0.02, "betas": (0.9, 0.9), "eps": 1e-2, "eps_root": 1e-5, "l2": 0.01},
            {"lr": 0.04, "schedule": True},
        ],
        "Nadam": [
            {"lr": 0.01},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "eps_root": 1e-5, "l2": 0.01},
            {"lr": 0.04, "schedule": True},
        ],
        "NadamW": [{"lr": 0.01, "weight_decay": 1e-4}, {"lr": 0.04, "weight_decay": 0.1, "schedule": True}],
    },
    "chainer": {
        "SGD": [{}, {"lr": 0.1, "l2": 0.01}, {"lr": 0.2, "schedule": True}, {"lr": 0.1, "l2": 0.01, "clip_norm": 1.0}],
        "Momentum": [{}, {"lr": 0.05, "momentum": 0.8, "l2": 0.02}, {"lr": 0.1, "momentum": 0.9, "schedule": True}],
        "AdaGrad": [{}, {"lr": 0.2, "eps": 1e-3, "l2": 0.02}, {"lr": 0.2, "schedule": True}],
        "RMSProp": [{}, {"lr": 0.02, "rho": 0.9, "eps": 1e-3, "l2": 0.01}, {"lr": 0.01, "schedule": True}],
        "RMSProp-inside": [{}, {"lr": 0.02, "rho": 0.9, "eps_root": 1e-3}, {"lr": 0.01, "schedule": True}],
        "AdaDelta": [{}, {"rho": 0.8, "eps": 1e-4, "l2": 0.01}],
        "Adam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "l2": 0.01},
            {"lr": 0.02, "betas": (0.9, 0.9), "amsgrad": True, "eps": 1e-2},
            {"lr": 0.04, "betas": (0.5, 0.99), "schedule": True},
            {"lr": 0.04, "clip_norm": 0.5},
        ],
    },
    "autograd": {
        "SGD": [{}, {"lr": 0.2}],
        "Momentum": [{}, {"lr": 0.2, "momentum": 0.8, "dampening": 0.8}],
        "RMSProp": [{}, {"lr": 0.02, "rho": 0.95, "eps": 1e-3}],
        "Adam": [{}, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}],
    },
    "thinc": {
        "Adam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "l2": 0.01},
            {"lr": 0.04, "betas": (0.5, 0.99), "schedule": True},
        ],
        "Adam64": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "l2": 0.01},
            {"lr": 0.04, "betas": (0.5, 0.99), "schedule": True},
        ],
    },
}

CASES = [
    Case(framework, variant, setting, number)
    for framework, variants in SETTINGS.items()
    for variant, settings in variants.items()
    for number, setting in enumerate(settings)
]


# Ranges of random settings: "log" for scales, "linear" for the rest. The rates keep every rule from diverging, which
# would magnify the rounding differences between the two sides' orders of operations.
_RATES = {
    "SGD": (0.01, 0.2),
    "Momentum": (0.003, 0.05),
    "NAG": (0.003, 0.05),
    "AdaGrad": (0.01, 0.3),
    "RMSProp": (0.001, 0.01),
    "AdaDelta": (0.5, 5.0),
    "Adam": (0.001, 0.03),
    "Nadam": (0.001, 0.03),
}
_RANGES = {
    "clip_norm": ("log", 0.1, 5.0),
    "l2": ("log", 1e-4, 0.05),
    "weight_decay": ("log", 1e-4, 0.05),
    "momentum": ("linear", 0.3, 0.95),
    "dampening": ("linear", 0.0, 1.0),
    "lr_decay": ("log", 1e-3, 0.5),
    "initial_accumulator": ("log", 1e-3, 2.0),
    "rho": ("linear", 0.7, 0.99),
    "eps": ("log", 1e-9, 1e-2),
    "eps_root": ("log", 1e-9, 1e-2),
    "momentum_decay": ("log", 1e-3, 1.0),
}


def random_cases(framework: str, seed: int, rounds: int) -> list[Case]:
    """Every variant of a framework `rounds` times, each with random settings that depend only on the seed."""
    rng = random.Random(seed)

    def draw(scale: str, low: float, high: float) -> float:
        return low * (high / low) ** rng.random() if scale == "log" else rng.uniform(low, high)

    def setting(peer: Peer) -> Options:
        knobs: Options = {}
        for name in peer.options:
            if name in ("maximize", "centered", "amsgrad"):
                knobs[name] = rng.random() < 0.5
            elif name == "lr":
                knobs[name] = draw("log", *_RATES[peer.cls])
            elif name == "betas":
                knobs[name] = (draw("linear", 0.5, 0.95), draw("linear", 0.9, 0.9999))
            else:
                knobs[name] = draw(*_RANGES[name])
        # The error of a peer's float32 is proportional to the rate: its tolerance holds up to the default rate.
        if peer.tolerance > 1e-12:
            knobs["lr"] = draw("log", 1e-4, 2e-3)
        # Options that share an argument share its value.
        shared: Options = {}
        knobs = {name: shared.setdefault(target, knobs[name]) for name, target in peer.options.items()}
        return knobs | {"schedule": rng.random() < 0.5 and peer.schedule}

    return [
        Case(framework, variant, setting(peer), number)
        for variant, peer in PEERS[framework].items()
        for number in range(rounds)
    ]

"""The same training under gradstep.torch's optimizers and under the for-loop form of torch's."""

import copy
import importlib.util
import sys
import types
import unittest
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import gradstep.torch as gt  # noqa: E402  after torch was found

if importlib.util.find_spec("expecttest") is None:
    # torch.testing._internal imports it for its own test cases; the tables of optimizers do not use it.
    sys.modules["expecttest"] = types.ModuleType("expecttest")
    sys.modules["expecttest"].TestCase = unittest.TestCase  # type: ignore[attr-defined]

from torch.testing._internal.common_optimizers import optim_db  # noqa: E402

NAMES = ["SGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW", "NAdam"]
OURS = {name: getattr(gt, name) for name in NAMES}
THEIRS = {name: getattr(torch.optim, name) for name in NAMES}
INFOS = {info.name: info for info in optim_db if info.name in NAMES}
FUSED = [name for name in NAMES if "fused" in INFOS[name].supported_impls]
CAPTURABLE = [name for name in NAMES if INFOS[name].has_capturable_arg]

SOME_STATE = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}, "Adam": {"amsgrad": True}}
"""Options with which every optimizer keeps all the states that it can have."""

FLOAT64 = {"NAdam": 1e-7}
"""Where 1e-12 is not reached: torch rounds NAdam's product of momenta to float32 before it uses it."""


def tolerance(name: str, dtype) -> float:
    """The largest relative error of trajectories that differ by the order of their operations only."""
    return FLOAT64.get(name, 1e-12) if dtype in (torch.float64, torch.complex128) else 2e-6


def forloop(name: str) -> dict[str, bool]:
    """The flags with which torch's class takes its for-loop form."""
    return {"foreach": False, "fused": False} if name in FUSED else {"foreach": False}


@dataclass(frozen=True)
class Config:
    """A class of optimizers and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    description: str = "default"

    def __str__(self) -> str:
        return f"{self.name}-{self.description}".replace(",", "").replace("/", "").replace(" ", "_")

    def ours(self, params, **more):
        return OURS[self.name](params, **copy.deepcopy(self.options), **more)

    def theirs(self, params, **more):
        return THEIRS[self.name](params, **copy.deepcopy(self.options), **{**forloop(self.name), **more})


def optim_db_configs() -> list[Config]:
    """Every configuration in torch's table of optimizers."""
    return [Config(name, i.kwargs, i.desc) for name in NAMES for i in INFOS[name].optim_inputs_func(device="cpu")]


STATEFUL = [Config(name, SOME_STATE.get(name, {}), "all states") for name in NAMES]
stateful = pytest.mark.parametrize("config", STATEFUL, ids=lambda config: config.name)
every_class = pytest.mark.parametrize("config", [Config(name) for name in NAMES], ids=lambda config: config.name)


def normal(shape, dtype=None, seed=0):
    """Normally distributed values: the same for a seed, rounded to the type."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype is not None and dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype or torch.float64)


def relative_error(ours, theirs) -> float:
    """The largest difference over the largest magnitude of theirs."""
    if theirs.numel() == 0:
        return 0.0
    difference = (ours.detach().to(theirs.dtype) - theirs.detach()).abs().max().item()
    return difference / max(theirs.detach().abs().max().item(), 1e-30)


def strides(tensor) -> list[int]:
    """Those that matter: of more than one element."""
    return [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


def assert_close(ours, theirs, limit: float, what: object = "") -> None:
    """Same type, shape and layout, and values within the relative error."""
    assert (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device), what
    assert ours.layout == theirs.layout, what
    if theirs.is_sparse:
        ours, theirs = ours.to_dense(), theirs.to_dense()
    assert strides(ours) == strides(theirs), what
    error = relative_error(ours, theirs)
    assert error <= limit, f"{what}: {error}"


def assert_same(ours, theirs, what: object = "") -> None:
    """The same bits, type and shape."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), what
    assert torch.equal(torch.nan_to_num(ours), torch.nan_to_num(theirs)), what
    assert torch.equal(ours.isnan(), theirs.isnan()), what


def assert_same_states(ours, theirs) -> None:
    """The state dicts are the same to the bit.

    torch's load_state_dict gives NAdam's product the type of the parameter. Ours may also keep it in float32.
    """
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    for i, state in theirs["state"].items():
        assert ours["state"][i].keys() == state.keys()
        for key, value in state.items():
            loaded = ours["state"][i][key]
            assert_same(loaded.to(value.dtype) if key == "mu_product" else loaded, value, f"{key} of parameter {i}")


def assert_matches(ours, theirs, limit: float) -> None:
    """Two optimizers have the same parameters and states, within the relative error."""
    for i, (p, q) in enumerate(zip(parameters(ours), parameters(theirs), strict=True)):
        assert_close(p, q, limit, f"parameter {i}")
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine["state"].keys() == other["state"].keys()
    for i, state in other["state"].items():
        assert mine["state"][i].keys() == state.keys(), f"states of parameter {i}"
        for key, value in state.items():
            where = f"{key} of parameter {i}"
            if value is None or mine["state"][i][key] is None:
                assert mine["state"][i][key] is value, where
            elif key == "mu_product":  # torch's load_state_dict gives it the type of the parameter
                assert_close(mine["state"][i][key].double(), value.double(), 1e-6, where)
            elif key == "step":
                assert_same(mine["state"][i][key], value, where)
            else:
                assert_close(mine["state"][i][key], value, 4 * limit, where)


def parameters(opt) -> list:
    return [p for group in opt.param_groups for p in group["params"]]


SHAPES = [(5, 7), (33,), (), (2, 3, 4)]


def simple(dtype=None) -> list:
    """Parameters of some shapes."""
    return [normal(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]


class Twins:
    """An optimizer of ours and one of torch's, each with its own copy of the same parameters.

    `make` makes the parameters, and `group` may make groups of them. Iterating yields both optimizers. Gradients are
    functions of the number of the step, not of the parameters.
    """

    def __init__(self, config: Config, make: Callable[[], list] = simple, group: Callable = list):
        self.config = config
        self.ours = config.ours(group(leaves(make())))
        self.theirs = config.theirs(group(leaves(make())))
        self.limit = max(tolerance(config.name, p.dtype) for p in parameters(self.theirs))
        self.steps = 0

    def __iter__(self) -> Iterator:
        return iter((self.ours, self.theirs))

    def grads(self, opt, skip: Callable[[int], bool] = lambda _: False) -> None:
        """Sets the gradients of the current step, None for those to skip."""
        for i, p in enumerate(parameters(opt)):
            p.grad = None if skip(i) else normal(p.shape, p.dtype, 1000 + 50 * self.steps + i).to(p.device)

    def step(self, count: int = 1, skip: Callable[[int], bool] = lambda _: False) -> None:
        for _ in range(count):
            for opt in self:
                self.grads(opt, skip)
                opt.step()
            self.steps += 1

    def check(self) -> None:
        assert_matches(self.ours, self.theirs, self.limit)


def leaves(tensors: Iterable) -> list:
    """The same tensors, as parameters."""
    return [t.detach().requires_grad_() for t in tensors]


def outcome(action: Callable[[], Any]) -> tuple:
    """What an action does: the exception that it raises, or its result."""
    try:
        return "returned", action()
    except Exception as error:
        return "raised", type(error), str(error)


def model(dtype=None, seed: int = 0):
    """A small network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    return net.to(dtype or torch.float64)


def batch(step: int, dtype=None):
    """An input and a target of the network."""
    return normal((10, 6), dtype, 2 * step), normal((10, 3), dtype, 2 * step + 1)


def loss_of(net, step: int):
    x, y = batch(step, next(net.parameters()).dtype)
    return torch.nn.functional.mse_loss(net(x), y)


class TwinModels:
    """The same network trained by an optimizer of ours and by one of torch's."""

    def __init__(self, config: Config, *, dtype=None, wrap: Callable[[Any], Any] = lambda net: net):
        self.nets = [wrap(model(dtype)) for _ in range(2)]
        self.opts = [config.ours(self.nets[0].parameters()), config.theirs(self.nets[1].parameters())]
        self.limit = 10 * tolerance(config.name, dtype or torch.float64)

    def __iter__(self) -> Iterator:
        return iter(zip(self.nets, self.opts, strict=True))

    def train(self, steps: int, start: int = 0) -> None:
        for net, opt in self:
            for step in range(start, start + steps):
                opt.zero_grad()
                loss_of(net, step).backward()
                opt.step()

    def check(self) -> None:
        assert_matches(*self.opts, self.limit)

"""Fifty steps of every configuration in torch's table of optimizers, on tensors of all types and layouts."""

import copy
import warnings

import pytest

from .harness import (
    INFOS,
    NAMES,
    OURS,
    THEIRS,
    Config,
    Twins,
    assert_close,
    assert_same,
    every_class,
    forloop,
    leaves,
    normal,
    optim_db_configs,
    outcome,
    parameters,
    simple,
    stateful,
    torch,
)

STEPS = 50

MORE = [
    *(Config(name, {"lr": torch.tensor(0.002, dtype=torch.float64)}, "lr of no dimensions") for name in NAMES),
    *(Config(name, {"lr": torch.tensor([0.002], dtype=torch.float64)}, "lr of one element") for name in NAMES),
    Config("SGD", {"momentum": 0.9, "dampening": 0.5, "maximize": True}, "dampening maximize"),
    Config("SGD", {"momentum": 0.5, "nesterov": True, "maximize": True}, "nesterov maximize"),
    Config("Adagrad", {"lr_decay": 0.1, "eps": 1e-3, "maximize": True}, "lr_decay eps maximize"),
    Config("RMSprop", {"momentum": 0.9, "alpha": 0.9}, "momentum alone"),
    Config("RMSprop", {"centered": True, "eps": 1e-3}, "centered alone"),
    Config("Adadelta", {"rho": 0.5, "eps": 1e-3, "maximize": True}, "rho eps maximize"),
    Config("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, "decoupled weight decay"),
    Config(
        "Adam",
        {"betas": (torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.95, dtype=torch.float64))},
        "betas of tensors",
    ),
    Config("Adam", {"amsgrad": True, "maximize": True, "eps": 1e-3}, "amsgrad eps maximize"),
    Config("AdamW", {"weight_decay": 0.0, "betas": (0.0, 0.5)}, "no decay"),
    Config("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}, "decoupled maximize"),
    Config("NAdam", {"momentum_decay": 0.0, "betas": (0.5, 0.9), "eps": 1e-3}, "no momentum decay"),
]
configs = pytest.mark.parametrize("config", [*optim_db_configs(), *MORE], ids=str)


def reverse(tensor):
    """The dimensions in reverse order: of a contiguous tensor, one in Fortran order."""
    return tensor.permute(tuple(range(tensor.ndim))[::-1])


PARAMS = {
    "matrix": lambda dtype: normal((5, 7), dtype, 1),
    "vector": lambda dtype: normal((1000,), dtype, 2),
    "scalar": lambda dtype: normal((), dtype, 3),
    "one element": lambda dtype: normal((1, 1), dtype, 4),
    "empty": lambda dtype: normal((0,), dtype, 5),
    "no rows": lambda dtype: normal((3, 0, 2), dtype, 6),
    "transposed": lambda dtype: reverse(normal((9, 6), dtype, 7)),
    "permuted": lambda dtype: normal((4, 2, 3), dtype, 8).permute(1, 2, 0),
    "channels last": lambda dtype: normal((2, 3, 4, 5), dtype, 9).to(memory_format=torch.channels_last),
    "channels last 3d": lambda dtype: normal((2, 3, 2, 3, 2), dtype, 10).to(memory_format=torch.channels_last_3d),
    "one channel, last": lambda dtype: normal((4, 1, 3, 3), dtype, 11).to(memory_format=torch.channels_last),
    "every other column": lambda dtype: normal((6, 10), dtype, 12)[:, ::2],
    "a column": lambda dtype: normal((8, 3), dtype, 13)[:, 1],
    "rows apart": lambda dtype: normal((6, 70), dtype, 14)[:, 3:],
    "offset": lambda dtype: normal((34,), dtype, 15)[1:],
    "sizes of one": lambda dtype: normal((3, 2, 5), dtype, 16)[:, :1, 2:3],
}

GRADIENTS = {
    "contiguous": lambda _, g: g,
    "as the parameter": lambda p, g: torch.empty_like(p).copy_(g),
    "reversed": lambda p, g: reverse(torch.empty(p.shape[::-1], dtype=p.dtype)).copy_(g),
    "every other": lambda p, g: torch.zeros((*p.shape, 2), dtype=p.dtype)[..., 1].copy_(g),
}


def params(dtype):
    return leaves(make(dtype) for make in PARAMS.values())


def set_gradients(opt, step):
    """Gradients for one step, whose layouts change from step to step."""
    for i, p in enumerate(parameters(opt)):
        place = list(GRADIENTS.values())[(i + step) % len(GRADIENTS)]
        p.grad = place(p.detach(), normal(p.shape, p.dtype, 100 * step + i))


def trajectories(config, dtype, steps=STEPS, **flags):
    """Both optimizers after the steps."""
    ours, theirs = config.ours(params(dtype), **flags), config.theirs(params(dtype))
    for step in range(steps):
        for opt in (ours, theirs):
            set_gradients(opt, step)
            opt.step()
    return ours, theirs


def assert_tensors_match(ours, theirs, limit):
    """Parameters by name and all states."""
    for name, p, q in zip(PARAMS, parameters(ours), parameters(theirs), strict=True):
        assert_close(p, q, limit, name)
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            mine = ours.state[p][key]
            if key == "step":
                assert_same(mine, value)
            elif key == "mu_product":
                assert_close(mine, value, 1e-6, f"{key}, {name}")
            elif key == "momentum_buffer":  # torch's SGD clones its first gradient, with its strides
                assert_close(mine.contiguous(), value.contiguous(), limit, f"{key}, {name}")
            elif value is not None:
                assert_close(mine, value, limit, f"{key}, {name}")


@configs
def test_float64(config):
    """Within 1e-12 of the largest value; NAdam, whose product of momenta is float32, within 1e-10."""
    assert_tensors_match(*trajectories(config, torch.float64), 1e-10 if config.name == "NAdam" else 1e-12)


FLOAT32 = {"SGD": 8, "Adagrad": 4, "RMSprop": 12, "Adadelta": 12, "Adam": 8, "AdamW": 12, "NAdam": 20}
"""In units of 2**-23. Measured: 5.1, 1.8, 8.7, 8.3, 5.1, 9.1 and 16.8, in parameters and states of one element.

From the trajectory in float64, ours were at most 21 such units away, and torch's own 21.
"""


@configs
def test_float32(config):
    """Both round after each operation, in another order."""
    assert_tensors_match(*trajectories(config, torch.float32), FLOAT32[config.name] * 2**-23)


BITS = {torch.bfloat16: (8, -133), torch.float16: (11, -24)}
"""Of 16-bit types: the bits of the significand, and the exponent of the smallest value."""


def assert_rounded(narrow, wide, what):
    """`narrow` is `wide` rounded to nearest, but for float32's own rounding of `wide`."""
    assert narrow.shape == wide.shape, what
    if wide.numel() == 0:
        return
    bits, smallest = BITS[narrow.dtype]
    wide = wide.detach().double()
    half = torch.exp2((torch.frexp(wide).exponent - bits).clamp(min=smallest).double()) / 2
    excess = ((narrow.detach().double() - wide).abs() - half).max().item()
    assert excess <= 2e-6 * wide.abs().max().item(), f"{what}: {excess}"


@pytest.mark.parametrize("dtype", BITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@configs
def test_16_bits(config, dtype):
    """Each step is torch's step in float32 from the same values, rounded once.

    torch's own steps in these types round after every operation.
    """
    ours = config.ours(params(dtype))
    for step in range(STEPS):
        theirs = config.theirs(leaves(p.detach().float() for p in parameters(ours)))
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        set_gradients(ours, step)
        for p, q in zip(parameters(ours), parameters(theirs), strict=True):
            q.grad = p.grad.float()
        ours.step()
        theirs.step()
        for name, p, q in zip(PARAMS, parameters(ours), parameters(theirs), strict=True):
            assert_rounded(p, q, f"{name}, step {step}")
            for key, value in theirs.state[q].items():
                if key == "step":
                    assert_same(ours.state[p][key], value)
                elif key == "mu_product":
                    assert_close(ours.state[p][key], value, 1e-6)
                elif value is not None:
                    assert_rounded(ours.state[p][key], value, f"{key}, {name}, step {step}")


ERRORS = [
    (name, error.optimizer_error_input)
    for name in NAMES
    for error in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
]


@pytest.mark.parametrize(("name", "case"), ERRORS, ids=[f"{n}-{e.desc}".replace(" ", "_") for n, e in ERRORS])
def test_errors(name, case):
    """The same exception or warning, with the same message."""

    def construct(cls):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = outcome(
                lambda: cls([normal((2,)).requires_grad_()] if case.params is None else case.params, **case.kwargs)
            )
        return [(w.category, str(w.message)) for w in caught], result

    warned, (ours, *error) = construct(OURS[name])
    assert (ours == "raised") or warned, "torch's table has it among the errors"
    expected, (theirs, *other) = construct(THEIRS[name])
    assert (warned, ours) == (expected, theirs)
    if ours == "raised":
        assert error == other


BY_GROUP = {
    "SGD": [
        {"lr": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.8, "nesterov": True, "maximize": True},
        {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
    ],
    "Adagrad": [{}, {"lr_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}, {"lr": 0.1, "eps": 1e-3}],
    "RMSprop": [{"momentum": 0.9}, {"centered": True}, {"alpha": 0.5, "maximize": True}, {"weight_decay": 0.1}],
    "Adadelta": [{"rho": 0.5}, {"eps": 1e-3}, {"maximize": True}, {"weight_decay": 0.1, "lr": 0.3}],
    "Adam": [{"amsgrad": True}, {"betas": (0.5, 0.9)}, {"maximize": True}, {"weight_decay": 0.1, "eps": 1e-3}],
    "AdamW": [{"amsgrad": True}, {"betas": (0.5, 0.9)}, {"maximize": True}, {"weight_decay": 0.0, "eps": 1e-3}],
    "NAdam": [
        {"momentum_decay": 0.1},
        {"betas": (0.5, 0.9), "maximize": True},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
}


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_groups(config, dtype):
    """Groups of different options in one optimizer."""

    def group(tensors):
        return [{"params": [p], **options} for p, options in zip(tensors, BY_GROUP[config.name], strict=True)]

    twins = Twins(config, lambda: simple(dtype), group)
    twins.step(20)
    twins.check()


@stateful
def test_types_mixed_in_one_group(config):
    """Each parameter has the bits that it has in an optimizer of its own."""
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16] * 2
    together = config.ours(leaves(normal((7, i), dtype, i) for i, dtype in enumerate(dtypes)))
    alone = [config.ours(leaves([normal((7, i), dtype, i)])) for i, dtype in enumerate(dtypes)]
    for step in range(5):
        for i, p in enumerate(parameters(together)):
            (q,) = parameters(alone[i])
            p.grad, q.grad = (normal(p.shape, p.dtype, 10 * step + i) for _ in range(2))
        for opt in (together, *alone):
            opt.step()
    for p, opt in zip(parameters(together), alone, strict=True):
        (q,) = parameters(opt)
        assert_same(p, q)
        assert together.state[p].keys() == opt.state[q].keys()
        for key, value in opt.state[q].items():
            assert_same(together.state[p][key], value, key)


@stateful
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_large_and_many(config, dtype):
    """Tensors that several threads share, and more tensors than are looked at in one go."""
    sizes = [200_003, 70_001, *[3] * 1000]
    twins = Twins(config, lambda: [normal((n,), dtype, n) for n in sizes])
    twins.step(3)
    twins.check()


@stateful
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_gradients_that_are_not_finite(config, value):
    """The elements that stay finite are the same as under torch, and have its values."""
    twins = Twins(config, lambda: [normal((40,))])
    twins.step(2)
    for opt in twins:
        twins.grads(opt)
        parameters(opt)[0].grad[3] = value
        opt.step()
    p, q = (parameters(opt)[0].detach() for opt in twins)
    assert torch.equal(p.isfinite(), q.isfinite())
    assert_close(p[q.isfinite()], q[q.isfinite()], twins.limit)


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    """torch's arguments with torch's defaults come first."""
    import inspect

    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (OURS[name], THEIRS[name]))
    assert [(p.name, p.default) for p in ours if p.name in {q.name for q in theirs}] == [
        (p.name, p.default) for p in theirs
    ]
    positional = [[p.name for p in of if p.kind is not p.KEYWORD_ONLY] for of in (ours, theirs)]
    assert positional[0] == positional[1]
    assert issubclass(OURS[name], THEIRS[name])
    assert forloop(name).keys() <= {p.name for p in ours}

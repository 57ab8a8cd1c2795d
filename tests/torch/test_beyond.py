"""What torch's classes do not have: the bits of gradstep's own optimizers on NumPy arrays of the same values."""

import copy
import io

import ml_dtypes
import pytest

import gradstep as gs

from .harness import NAMES, OURS, THEIRS, assert_same, gt, leaves, model, normal, outcome, parameters, torch

# The class of gradstep and its options that are torch's with these options.
RULES = {
    "SGD": (gs.Momentum, {"momentum": 0.9, "lr": 0.1}, {"dampen_first": False}),
    "Adagrad": (gs.AdaGrad, {"lr": 0.1}, {}),
    "RMSprop": (gs.RMSProp, {"lr": 0.01, "momentum": 0.9}, {}),
    "Adadelta": (gs.AdaDelta, {"lr": 1.0, "rho": 0.9}, {}),
    "Adam": (gs.Adam, {"lr": 1e-2, "betas": (0.9, 0.99)}, {}),
    "AdamW": (gs.Adam, {"lr": 1e-2, "weight_decay": 0.1}, {}),
    "NAdam": (gs.Nadam, {"lr": 1e-2}, {"float32_product": True}),
}
STATES = {
    "SGD": ["momentum_buffer"],
    "Adagrad": ["sum"],
    "RMSprop": ["square_avg", "momentum_buffer"],
    "Adadelta": ["square_avg", "acc_delta"],
    "Adam": ["exp_avg", "exp_avg_sq"],
    "AdamW": ["exp_avg", "exp_avg_sq"],
    "NAdam": ["exp_avg", "exp_avg_sq"],
}
"""The states, whose names are torch's and gradstep's."""

SIZES = [(5, 7), (5000,), (), (64, 80), (0,), (3,)]

# Options of both, and the types of the parameters that they are for.
OPTIONS = {
    "bfloat16 states": ({"state_dtype": "bfloat16"}, "float32"),
    "q8 states": ({"state_dtype": "q8"}, "float32"),
    "float32 states": ({"state_dtype": "float32"}, "bfloat16"),
    "bfloat16 states of bfloat16": ({"state_dtype": "bfloat16"}, "bfloat16"),
    "q8 states of bfloat16": ({"state_dtype": "q8"}, "bfloat16"),
    "master": ({"master": True, "state_dtype": "float32"}, "bfloat16"),
    "master of float16": ({"master": True, "state_dtype": "float32"}, "float16"),
    "master, bfloat16 states": ({"master": True, "state_dtype": "bfloat16"}, "bfloat16"),
    "master, q8 states": ({"master": True, "state_dtype": "q8"}, "bfloat16"),
    "stochastic rounding": ({"stochastic_rounding": 7, "state_dtype": "bfloat16"}, "bfloat16"),
    "stochastic rounding of float16": ({"stochastic_rounding": 7, "state_dtype": "float32"}, "float16"),
    "stochastic rounding, q8": ({"stochastic_rounding": 3, "state_dtype": "q8"}, "bfloat16"),
    "clipped": ({"max_grad_norm": 0.5}, "float32"),
    "clipped, float64": ({"max_grad_norm": 0.5}, "float64"),
    "clipped, master": ({"max_grad_norm": 0.5, "master": True, "state_dtype": "float32"}, "bfloat16"),
    "average": ({"ema": 0.9}, "float32"),
    "average, float64": ({"ema": 0.9}, "float64"),
    "average, q8": ({"ema": 0.9, "state_dtype": "q8"}, "bfloat16"),
    "all": (
        {"ema": 0.9, "max_grad_norm": 0.5, "master": True, "state_dtype": "q8", "stochastic_rounding": 1},
        "bfloat16",
    ),
}
OURS_ONLY = {"max_grad_norm": "clip_norm"}
"""Options that have other names in gradstep."""

cases = pytest.mark.parametrize("case", OPTIONS)
each = pytest.mark.parametrize("name", NAMES)


def to_numpy(tensor):
    """A copy as a NumPy array."""
    tensor = tensor.detach().clone()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def same_array(tensor, array) -> bool:
    """The same bits, type and shape."""
    mine = to_numpy(tensor)
    return mine.dtype == array.dtype and mine.shape == array.shape and mine.tobytes() == array.tobytes()


def key_of(name, array) -> str:
    """Codes of q8 have a name of their own, so that torch's classes do not take them for values."""
    return f"{name}_q8" if array.dtype.name in ("int8", "uint8") else name


def pair(name, case):
    """An optimizer of ours, and gradstep's own of arrays with the same values."""
    more, dtype = OPTIONS[case]
    rule, options, own = RULES[name]
    params = leaves(normal(shape, getattr(torch, dtype), seed) for seed, shape in enumerate(SIZES))
    arrays = [to_numpy(p) for p in params]
    theirs = rule(arrays, **options, **own, **{OURS_ONLY.get(key, key): value for key, value in more.items()})
    return OURS[name](params, **options, **more), theirs, arrays


def step_both(ours, theirs, step):
    params = parameters(ours)
    for i, p in enumerate(params):
        p.grad = normal(p.shape, p.dtype, 100 * step + i)
    ours.step()
    theirs.step([to_numpy(p.grad) for p in params])


def assert_bits(name, ours, theirs, arrays):
    for i, (p, array) in enumerate(zip(parameters(ours), arrays, strict=True)):
        assert same_array(p, array), f"parameter {i}"
        kept = theirs.state[f"[{i}]"]
        state = ours.state[p]
        assert kept.keys() >= {*STATES[name]}
        kept = {key_of(key, value): value for key, value in kept.items()}
        assert state.keys() - {"step", "mu_product"} == kept.keys(), f"parameter {i}"
        for key, value in kept.items():
            assert same_array(state[key], value), f"{key} of parameter {i}"


@cases
@each
def test_bits(name, case):
    """The same core: parameters, states, scales, masters and averages."""
    if name == "NAdam" and OPTIONS[case][1] == "float64":
        pytest.skip("its product of momenta is float32 here, as in torch, and float64 in gradstep")
    ours, theirs, arrays = pair(name, case)
    for step in range(4):
        step_both(ours, theirs, step)
        if theirs.grad_norm is not None:
            assert ours.grad_norm == theirs.grad_norm
    assert_bits(name, ours, theirs, arrays)
    assert ours.fallbacks() == []


@cases
@each
@pytest.mark.parametrize("way", ["deepcopy", "file"])
def test_checkpoints_keep_types_and_bits(name, case, way):
    """Into a new optimizer, that goes on with the same bits."""
    if name == "NAdam" and OPTIONS[case][1] == "float64":
        pytest.skip("its product of momenta is float32 here, as in torch, and float64 in gradstep")
    ours, theirs, arrays = pair(name, case)
    for step in range(2):
        step_both(ours, theirs, step)
    state = ours.state_dict()
    if way == "file":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    params = leaves(p.detach().clone() for p in parameters(ours))
    new = OURS[name](params, **RULES[name][1], **OPTIONS[case][0])
    new.load_state_dict(copy.deepcopy(state) if way == "deepcopy" else state)
    for p, q in zip(params, parameters(ours), strict=True):
        assert new.state[p].keys() == ours.state[q].keys()
        for key, value in ours.state[q].items():
            assert_same(new.state[p][key], value, key)
    for step in range(2, 4):
        step_both(new, theirs, step)
    assert_bits(name, new, theirs, arrays)


@pytest.mark.parametrize("case", ["q8 states", "master, q8 states", "average", "all"])
@each
def test_copies(name, case):
    """deepcopy and pickle go on with the same bits."""
    import pickle

    ours, theirs, arrays = pair(name, case)
    step_both(ours, theirs, 0)
    ours = copy.deepcopy(ours)
    step_both(ours, theirs, 1)
    ours = pickle.loads(pickle.dumps(ours))
    step_both(ours, theirs, 2)
    assert_bits(name, ours, theirs, arrays)


NARROW = ["bfloat16 states", "q8 states", "master", "master, bfloat16 states", "average"]


@pytest.mark.parametrize("case", NARROW)
@each
def test_torchs_checkpoint_into_narrow_states(name, case):
    """The states are rounded, masters and averages start as the parameters, and training goes on close to torch's."""
    more, dtype = OPTIONS[case]
    options = RULES[name][1]
    theirs = THEIRS[name](leaves(normal(shape, torch.float32, i) for i, shape in enumerate(SIZES)), **options)

    def train(opt, steps):
        for step in steps:
            for i, p in enumerate(parameters(opt)):
                p.grad = normal(p.shape, torch.float32, 100 * step + i).to(p.dtype)
            opt.step()

    train(theirs, range(3))
    new = OURS[name](leaves(p.detach().to(getattr(torch, dtype)) for p in parameters(theirs)), **options, **more)
    new.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for p, q in zip(parameters(new), parameters(theirs), strict=True):
        for key, value in theirs.state[q].items():
            state = new.state[p]
            if value.ndim == 0 and key in ("step", "mu_product"):
                assert_same(state[key], value, key)
            elif key in state:
                assert_same(state[key], value.to(state[key].dtype), key)
            else:
                assert {f"{key}_q8", f"{key}_scale"} <= state.keys()
    train(theirs, range(3, 6))
    train(new, range(3, 6))
    for p, q in zip(parameters(new), parameters(theirs), strict=True):
        assert p.dtype == getattr(torch, dtype)
        if p.numel():
            assert (p.float() - q).abs().max().item() < 0.05


@each
def test_to_torch_from_narrow_states(name):
    """torch's class can read what we save with bfloat16 states."""
    ours, _, _ = pair(name, "bfloat16 states")
    for i, p in enumerate(parameters(ours)):
        p.grad = normal(p.shape, p.dtype, i)
    ours.step()
    theirs = THEIRS[name](leaves(p.detach().clone() for p in parameters(ours)), **RULES[name][1])
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(parameters(ours), parameters(theirs), strict=True):
        for key in STATES[name]:
            assert_same(theirs.state[q][key], ours.state[p][key].float(), key)
        q.grad = normal(q.shape, q.dtype)
    theirs.step()


STORAGES = ["float32 states", "bfloat16 states of bfloat16", "q8 states of bfloat16", "master", "master, q8 states"]


@pytest.mark.parametrize("target", STORAGES)
@pytest.mark.parametrize("source", STORAGES)
@each
def test_checkpoints_between_storages(name, source, target):
    """The types are those of the optimizer that loads; the values are those that were saved, rounded."""

    def values(opt, p, key):
        state = opt.state[p]
        if key in state:
            return state[key].float()
        codes, scales = (state[f"{key}_{part}"].numpy() for part in ("q8", "scale"))
        return torch.from_numpy(gs.q8.decode(codes, scales))

    ours, theirs, _ = pair(name, source)
    for step in range(2):
        step_both(ours, theirs, step)
    params = leaves(p.detach().clone() for p in parameters(ours))
    new = OURS[name](params, **RULES[name][1], **OPTIONS[target][0])
    new.load_state_dict(copy.deepcopy(ours.state_dict()))
    for i, (p, q) in enumerate(zip(params, parameters(ours), strict=True)):
        p.grad = normal(p.shape, p.dtype, 99 + i)
        for key in STATES[name] if q.numel() else []:
            before = values(ours, q, key)
            error = (values(new, p, key) - before).abs().max().item() if key in new.state[p] else 0.0
            assert error <= 0.05 * before.abs().max().item(), f"{key} of parameter {i}"
    new.step()
    expected = pair(name, target)[0]
    for p, q in zip(parameters(expected), params, strict=True):
        p.grad = q.grad
    expected.step()
    for p, q in zip(params, parameters(expected), strict=True):
        assert {k: v.dtype for k, v in new.state[p].items()} == {k: v.dtype for k, v in expected.state[q].items()}
        assert p.isfinite().all()


@each
def test_storage_by_group(name):
    """Options of groups: each parameter has the bits that it has in an optimizer with these options for all."""
    options = [{"state_dtype": "q8"}, {"master": True, "state_dtype": "float32"}, {"state_dtype": "bfloat16"}]
    values = [normal((5000,), torch.bfloat16, i) for i in range(3)]
    together = OURS[name](
        [{"params": leaves([v.clone()]), **o} for v, o in zip(values, options, strict=True)], **RULES[name][1]
    )
    alone = [OURS[name](leaves(v.clone() for v in values), **RULES[name][1], **o) for o in options]
    for step in range(3):
        for opt in (together, *alone):
            for i, p in enumerate(parameters(opt)):
                p.grad = normal(p.shape, p.dtype, 10 * step + i)
            opt.step()
    for i, opt in enumerate(alone):
        p, q = parameters(together)[i], parameters(opt)[i]
        assert_same(p.detach(), q.detach())
        for key, value in opt.state[q].items():
            assert_same(together.state[p][key], value, key)


# Norms and averages


@each
def test_norm(name):
    """Before clipping; None before the first step and without the option. The gradients stay as they are."""
    shapes = [(40,), (3, 5)]
    params = leaves(normal(shape, torch.float32, i) for i, shape in enumerate(shapes))
    ours = OURS[name](params, max_grad_norm=1.0)
    theirs = THEIRS[name](leaves(p.detach().clone() for p in params))
    assert ours.grad_norm is None
    for step in range(3):
        grads = [normal(shape, torch.float32, 10 * step + i) * 3 for i, shape in enumerate(shapes)]
        for opt in (ours, theirs):
            for p, g in zip(parameters(opt), grads, strict=True):
                p.grad = g.clone()
        total = torch.nn.utils.clip_grad_norm_(parameters(theirs), 1.0)
        ours.step()
        theirs.step()
        assert ours.grad_norm == pytest.approx(total.item(), rel=1e-6)
        for p, g in zip(params, grads, strict=True):
            assert_same(p.grad, g)
    for p, q in zip(params, parameters(theirs), strict=True):
        assert (p - q).abs().max() < 1e-5
    assert OURS[name](leaves([normal((2,))])).grad_norm is None


def test_norm_over_all_groups_and_kinds():
    """Of all groups together. Parameters that torch's code would step count, or the option is refused for them."""
    p = leaves([normal((4,)), normal((5,))])
    opt = OURS["Adam"]([{"params": p[:1]}, {"params": p[1:], "lr": 0.1}], max_grad_norm=1.0)
    for q in p:
        q.grad = torch.full_like(q, 2.0)
    opt.step()
    assert opt.grad_norm == pytest.approx(6.0)
    z = normal((3,), torch.complex128)
    p = leaves([normal((4,)), z])

    def run():
        opt = OURS["Adam"](p, max_grad_norm=1.0)
        for q in p:
            q.grad = torch.ones_like(q)
        opt.step()
        return opt.grad_norm

    result = outcome(run)
    assert result[0] == "raised" or result[1] == pytest.approx(7**0.5)


@each
def test_average(name):
    """`averaged` swaps the averages in and the parameters out, also after an exception."""
    net = model(torch.float32)
    opt = OURS[name](net.parameters(), ema=0.5)
    expected = [p.detach().clone() for p in net.parameters()]
    for step in range(4):
        for p in net.parameters():
            p.grad = normal(p.shape, p.dtype, step)
        opt.step()
        expected = [0.5 * e + 0.5 * p.detach() for e, p in zip(expected, net.parameters(), strict=True)]
    trained = [p.detach().clone() for p in net.parameters()]

    def fail():
        with opt.averaged():
            for p, average in zip(net.parameters(), expected, strict=True):
                assert (p - average).abs().max() < 1e-5
                assert torch.equal(p.detach(), opt.state[p]["average"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for p, before in zip(net.parameters(), trained, strict=True):
        assert_same(p.detach(), before)


def test_no_step_within_averaged():
    (p,) = leaves([normal((3,), torch.float32)])
    opt = OURS["Adam"]([p], ema=0.5)
    p.grad = torch.ones_like(p)
    opt.step()
    with opt.averaged(), pytest.raises(RuntimeError):
        opt.step()
    opt.step()


def test_averaged_needs_an_average():
    with pytest.raises((RuntimeError, ValueError)), OURS["Adam"]([normal((3,))]).averaged():
        pass


# Refusals

REFUSED = [
    ({"state_dtype": "float8"}, ValueError),
    ({"state_dtype": 3}, TypeError),
    ({"max_grad_norm": -1.0}, ValueError),
    ({"max_grad_norm": "1"}, TypeError),
    ({"ema": 1.5}, ValueError),
    ({"ema": "x"}, TypeError),
    ({"stochastic_rounding": -1}, ValueError),
    ({"stochastic_rounding": "x"}, TypeError),
    ({"master": "yes"}, TypeError),
    ({"state_dtpye": "q8"}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), REFUSED, ids=[str(options) for options, _ in REFUSED])
@each
def test_refusals(name, options, error):
    with pytest.raises(error):
        OURS[name](leaves([normal((3,), torch.bfloat16)]), **options)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"state_dtype": "q8"}, "complex"),
        ({"state_dtype": "bfloat16"}, "differentiable"),
        ({"ema": 0.9}, "complex"),
        ({"master": True, "state_dtype": "float32"}, "sparse"),
    ],
    ids=str,
)
def test_what_torchs_code_cannot_do(options, kind):
    """A parameter that needs torch's own step has none of these: refused, at construction or by the step."""

    def run():
        p = normal((4, 2), torch.complex64 if kind == "complex" else torch.bfloat16).requires_grad_()
        flags = {"differentiable": True} if kind == "differentiable" else {}
        opt = OURS["Adagrad"]([p], **flags, **options)
        before = p.detach().clone()
        g = torch.ones_like(p, requires_grad=False)
        p.grad = g.to_sparse() if kind == "sparse" else g
        try:
            with torch.no_grad():
                opt.step()
        finally:
            changed = not torch.equal(p.detach(), before)
        return changed

    result = outcome(run)
    assert result[0] == "raised", "silently without the option"
    assert issubclass(result[1], (RuntimeError, ValueError, TypeError))


def test_added_groups_and_lazy_parameters():
    """Narrow states of parameters that come later."""
    p = leaves(normal((300, 20), torch.float32, seed) for seed in range(3))
    opt = OURS["Adam"](p[:1], state_dtype="q8")
    p[0].grad = torch.ones_like(p[0])
    opt.step()
    opt.add_param_group({"params": p[1:], "lr": 0.1})
    for q in p[:2]:
        q.grad = torch.ones_like(q)
    opt.step()
    assert opt.state[p[1]]["exp_avg_q8"].dtype == torch.int8
    assert opt.state[p[1]]["exp_avg_sq_q8"].dtype == torch.uint8
    assert opt.state[p[1]]["exp_avg_scale"].dtype == torch.float32
    assert p[2] not in opt.state
    assert opt.state[p[0]]["step"] == 2
    assert opt.state[p[1]]["step"] == 1


def test_memory_of_states():
    """Bytes a parameter."""
    p = leaves([normal((256, 256), torch.bfloat16)])
    sizes = {}
    for case in ({"state_dtype": "bfloat16"}, {"state_dtype": "q8"}, {"state_dtype": "float32", "master": True}):
        opt = gt.AdamW(leaves(q.detach().clone() for q in p), **case)
        (q,) = parameters(opt)
        q.grad = torch.ones_like(q)
        opt.step()
        sizes[str(case)] = sum(s.numel() * s.element_size() for s in opt.state[q].values()) / q.numel()
    bfloat16, q8, master = sizes.values()
    assert bfloat16 == pytest.approx(4, abs=0.1)
    assert q8 == pytest.approx(2 + 8 / 256, abs=0.1)
    assert master == pytest.approx(12, abs=0.1)

"""The public interface: signatures, attributes, presets, lookahead, configuration, and import time."""

import importlib.metadata
import importlib.resources
import inspect
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest

import gradstep as gs
from tests.table import RULES, WHOLE, knobs, same_bits, schedule
from tests.test_refusals import frozen

FIRST_EIGHT = ["sgd", "momentum", "nag", "adagrad", "rmsprop", "adadelta", "adam", "nadam"]
EVERY_RULE = pytest.mark.parametrize("rule", FIRST_EIGHT)
NEEDED = inspect.Parameter.empty
# The names of states, and the options that add a state.
STATES = {
    "sgd": ([], {}),
    "momentum": (["momentum_buffer"], {}),
    "nag": (["momentum_buffer"], {}),
    "adagrad": (["sum"], {}),
    "rmsprop": (["square_avg"], {"grad_avg": {"centered": True}, "momentum_buffer": {"momentum": 0.5}}),
    "adadelta": (["square_avg", "acc_delta"], {}),
    "adam": (["exp_avg", "exp_avg_sq"], {"max_exp_avg_sq": {"amsgrad": True}}),
    "nadam": (["exp_avg", "exp_avg_sq"], {}),
}
# Defaults of the frameworks, from their documentation and sources, that differ from ours. NEEDED: no default.
PRESETS = {
    "torch": {
        "sgd": {},
        "momentum": {"momentum": 0.0, "dampen_first": False},
        "nag": {"momentum": 0.0},
        "adagrad": {},
        "rmsprop": {},
        "adadelta": {},
        "adam": {},
        "nadam": {"float32_product": True},
    },
    "keras": {
        "sgd": {"lr": 1e-2},
        "momentum": {"lr": 1e-2, "momentum": 0.0, "lr_in_velocity": True},
        "nag": {"lr": 1e-2, "momentum": 0.0, "lr_in_velocity": True},
        "adagrad": {"lr": 1e-3, "initial_accumulator": 0.1, "eps": 0.0, "eps_root": 1e-7},
        "rmsprop": {"lr": 1e-3, "rho": 0.9, "eps": 0.0, "eps_root": 1e-7, "lr_in_velocity": True},
        "adadelta": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7},
        "adam": {"eps": 1e-7, "eps_hat": True},
        "nadam": {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0},
    },
    "optax": {
        "sgd": {"lr": NEEDED},
        "momentum": {"lr": NEEDED, "momentum": NEEDED},
        "nag": {"lr": NEEDED, "momentum": NEEDED},
        "adagrad": {"lr": NEEDED, "initial_accumulator": 0.1, "eps": 0.0, "eps_root": 1e-7},
        "rmsprop": {"lr": NEEDED, "rho": 0.9, "eps": 0.0, "eps_root": 1e-8, "lr_in_velocity": True},
        "adadelta": {"lr": NEEDED},
        "adam": {"lr": NEEDED, "amsgrad_corrected": True},
        "nadam": {"lr": NEEDED, "momentum_decay": None},
    },
    "paper": {
        "sgd": {"lr": NEEDED},
        "momentum": {"lr": NEEDED, "momentum": NEEDED, "lr_in_velocity": True},
        "nag": {"lr": NEEDED, "momentum": NEEDED, "lr_in_velocity": True, "lookahead": True},
        "adagrad": {"lr": NEEDED, "eps": NEEDED},
        "rmsprop": {"lr": NEEDED, "rho": 0.9},
        "adadelta": {"rho": 0.95},
        "adam": {},
        "nadam": {"lr": NEEDED, "betas": (0.975, 0.999), "momentum_decay": None},
    },
}


def defaults(rule):
    return {name: p.default for name, p in inspect.signature(RULES[rule]).parameters.items() if name not in WHOLE}


def test_the_classes():
    assert [cls.__name__ for cls in gs.optimizers.ALL][:8] == [
        *("SGD", "Momentum", "NAG", "AdaGrad", "RMSProp", "AdaDelta", "Adam", "Nadam")
    ]
    assert list(RULES) == [cls.__name__.lower() for cls in gs.optimizers.ALL]
    for cls in gs.optimizers.ALL:
        assert getattr(gs, cls.__name__) is cls
        assert issubclass(cls, gs.Optimizer)
        assert cls.__name__ in gs.__all__
        assert cls.__doc__
    assert set(gs.__all__) <= set(dir(gs))
    assert "scipy" in dir(gs)
    assert "scipy" not in gs.__all__  # `import *` would hide SciPy
    with pytest.raises(TypeError, match="Optimizer"):
        gs.Optimizer([np.ones(1)])


@EVERY_RULE
@pytest.mark.parametrize("framework", PRESETS)
def test_preset(rule, framework):
    cls, given = RULES[rule], PRESETS[framework][rule]
    needed = {name: 0.25 for name, value in given.items() if value is NEEDED}
    opt = cls.preset(framework, [np.ones(2)], **needed)
    assert type(opt) is cls
    assert dict(opt.groups[0]) == {**defaults(rule), **given, **needed}
    for name in needed:
        with pytest.raises(TypeError, match=f"{framework} has no default for {name}"):
            cls.preset(framework, [np.ones(2)], **{other: 0.25 for other in needed if other != name})
    over = cls.preset(framework, [np.ones(2)], **{**needed, "lr": 0.75, "l2": 0.5})
    assert dict(over.groups[0]) == {**opt.groups[0], "lr": 0.75, "l2": 0.5}
    over.step([np.ones(2)])


@EVERY_RULE
def test_presets_are_listed_and_others_refused(rule):
    assert set(RULES[rule].presets) == set(PRESETS)
    with pytest.raises(ValueError, match="no preset 'jax'; it has torch, keras, optax, paper"):
        RULES[rule].preset("jax", np.ones(1))


def shapes(arrays):
    """The structure with arrays replaced by their shapes."""
    if isinstance(arrays, dict):
        return {key: shapes(value) for key, value in arrays.items()}
    if isinstance(arrays, list | tuple):
        return type(arrays)(map(shapes, arrays))
    return arrays if arrays is None else arrays.shape


@EVERY_RULE
def test_states_have_their_names_and_the_structure_of_params(rule):
    cls, (always, added) = RULES[rule], STATES[rule]
    a, b, c = np.ones(3), np.ones((2, 2), np.float32), np.array(1.0)
    structures = [
        (a, (3,)),
        ([a, b], [(3,), (2, 2)]),
        ((a, b), ((3,), (2, 2))),
        ({"w": a, "b": b}, {"w": (3,), "b": (2, 2)}),
        ([{"params": {"w": a}}, {"params": b}, {"params": [c]}], [{"w": (3,)}, (2, 2), [()]]),
    ]
    for params, expected in structures:
        state = cls(params).state
        assert list(state) == always
        assert all(shapes(arrays) == expected for arrays in state.values())
    for name, option in added.items():
        assert set(cls(a, **option).state) == {*always, name}
        mixed = cls([{"params": [a, c]}, {"params": {"b": b}, **option}]).state
        assert shapes(mixed[name]) == [[None, None], {"b": (2, 2)}]
    everything = cls([a, b], **{k: v for option in added.values() for k, v in option.items()})
    everything.step([a.copy(), b.copy()])
    for arrays in everything.state.values():
        assert [x.dtype for x in arrays] == [a.dtype, b.dtype]
        assert all(x.flags.c_contiguous and x.flags.writeable for x in arrays)
        assert not any(np.shares_memory(x, y) for x in arrays for y in (a, b))
    assert all(everything.state[name][0] is everything.state[name][0] for name in everything.state)


def test_a_state_may_be_written():
    opt = gs.Momentum([np.zeros(2)], lr=1.0, momentum=0.5)
    opt.state["momentum_buffer"][0][:] = [4, 8]
    opt.step([np.zeros(2)])
    assert opt.state["momentum_buffer"][0].tolist() == [2, 4]
    start = gs.AdaGrad([np.zeros(2, np.float32)], initial_accumulator=0.1)
    assert start.state["sum"][0].tolist() == [np.float32(0.1)] * 2


@EVERY_RULE
def test_lr(rule):
    """lr is a number or a schedule; reading gives the number set, or the schedule's value for the step."""
    asked = []

    def rate(step):
        asked.append(step)
        return 1 / (1 + step)

    p, q = np.ones(3), np.ones(3)
    opt, twin = RULES[rule](p, lr=rate), RULES[rule](q)
    assert opt.schedule is opt.groups[0].schedule is rate
    assert twin.schedule is twin.groups[0].schedule is None
    assert asked == []
    for step in range(4):
        assert opt.step_count == step
        assert opt.lr == opt.groups[0]["lr"] == 1 / (1 + step), "what the next step takes"
        twin.lr = 1 / (1 + step)
        assert twin.lr == 1 / (1 + step)
        opt.step(np.ones(3))
        twin.step(np.ones(3))
    assert asked == [0, 1, 2, 3]
    assert same_bits(p, q)
    opt.lr = 0.5
    opt.step(np.ones(3))
    assert (asked, opt.lr, opt.schedule, opt.step_count) == ([0, 1, 2, 3], 0.5, None, 5)


def test_a_schedule_is_asked_once_a_step():
    """A schedule may have state, so it is called once per step even if groups share it or with lookahead."""
    asked = []

    def rate(step):
        asked.append(step)
        return 0.5

    two = gs.SGD([{"params": np.ones(1)}, {"params": np.ones(1)}], lr=rate)
    for _ in range(2):
        two.step([np.ones(1), np.ones(1)])
    assert asked == [0, 1]
    nag = gs.NAG(np.ones(1), lr=rate, lookahead=True)
    asked.clear()
    for _ in range(2):
        with nag.lookahead():
            g = np.ones(1)
        nag.step(g)
    assert asked == [0, 1]


def test_groups():
    a, b = np.ones(1), np.ones(1)
    opt = gs.SGD([{"params": a, "lr": 0.5}, {"params": b}], lr=0.25)
    assert [group["lr"] for group in opt.groups] == [0.5, 0.25]
    with pytest.raises(ValueError, match=r"^SGD: groups differ in lr \(0: 0.5, 1: 0.25\); use groups\[i\]\['lr'\]"):
        _ = opt.lr
    opt.step([np.ones(1), np.ones(1)])
    assert (a[0], b[0]) == (0.5, 0.75)
    opt.groups[1]["lr"] = 0.75
    opt.groups[0].update(maximize=True, lr=0.25)
    opt.step([np.ones(1), np.ones(1)])
    assert (a[0], b[0]) == (0.75, 0)
    opt.lr = 1
    assert [group["lr"] for group in opt.groups] == [1.0, 1.0]
    assert len(opt.groups[0]) == 13
    assert list(opt.groups[0]) == [
        *("lr", "l2", "weight_decay", "maximize", "flush_subnormals"),
        *("state_dtype", "master", "stochastic_rounding", "min_8bit_size", "clip_value", "frozen"),
        *("ema", "ema_correction"),
    ]
    assert "maximize" in repr(opt.groups[0])
    with pytest.raises(KeyError):
        opt.groups[0]["params"]


@EVERY_RULE
def test_repr(rule):
    text = repr(RULES[rule]([np.ones(1), np.ones(2)], **knobs(rule)[-1]))
    shown = {name: value for name, value in knobs(rule)[-1].items() if value != defaults(rule)[name]}
    options = [name for name in inspect.signature(RULES[rule]).parameters if name in shown]
    assert text == f"{RULES[rule].__name__}(2 arrays, {', '.join(f'{name}={shown[name]!r}' for name in options)})"


def test_a_class_can_be_derived():
    class AdamW(gs.Adam):
        def __init__(self, params, lr=1e-3, weight_decay=1e-2):
            super().__init__(params, lr, weight_decay=weight_decay)

    p, q = np.ones(3), np.ones(3)
    opt, twin = AdamW(p), gs.Adam(q, weight_decay=1e-2)
    opt.step(np.ones(3))
    twin.step(np.ones(3))
    assert same_bits(p, q)
    assert repr(opt).startswith("AdamW(")
    with pytest.raises(ValueError, match="AdamW: lr must be"):
        opt.lr = -1


def ahead(**options):
    """An optimizer with lookahead and three tensors, with velocities; the last has special values."""
    x = np.linspace(-1, 1, 60, dtype=np.float32)
    params = [x[:12].reshape(3, 4), x[12:42:3], np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-310, 1e308])]
    opt = gs.NAG(params, **{"lr": 0.3, "momentum": 0.7, "lookahead": True, **options})
    opt.step([np.full_like(p, 0.1 + i) for i, p in enumerate(params)])
    return params, opt


@pytest.mark.parametrize("in_velocity", [False, True])
def test_lookahead_moves_and_gives_back_every_bit(in_velocity):
    params, opt = ahead(lr_in_velocity=in_velocity, lr=schedule)
    before = frozen(opt, *params)
    shift = 0.7 if in_velocity else schedule(1) * 0.7
    with np.errstate(all="ignore"):
        expected = [p - p.dtype.type(shift) * v for p, v in zip(params, opt.state["momentum_buffer"], strict=True)]
    for _ in range(2):
        with opt.lookahead():
            assert all(map(same_bits, params, expected))
        assert frozen(opt, *params) == before


def test_lookahead_gives_back_every_bit_after_an_exception():
    params, opt = ahead()
    before = frozen(opt, *params)

    def fail():
        params[0][:] = 7
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"), opt.lookahead():
        fail()
    assert frozen(opt, *params) == before
    opt.step([np.zeros_like(p) for p in params])


def test_lookahead_refuses_to_step_or_to_look_further():
    params, opt = ahead()
    before = frozen(opt, *params)
    grads = [np.ones_like(p) for p in params]
    with opt.lookahead():
        moved = frozen(opt, *params)
        with pytest.raises(RuntimeError, match=r"step\(\) within lookahead\(\)"):
            opt.step(grads)
        with pytest.raises(RuntimeError, match="already at the point ahead"), opt.lookahead():
            pytest.fail("entered twice")
        assert frozen(opt, *params) == moved
    assert frozen(opt, *params) == before
    opt.step(grads)
    plain = gs.NAG(np.ones(1))
    with pytest.raises(RuntimeError, match="lookahead=True"), plain.lookahead():
        pytest.fail("entered")
    plain.step(np.ones(1))


def test_lookahead_leaves_other_groups():
    a, b, c = np.ones(2), np.ones(2), np.ones(2)
    opt = gs.NAG([{"params": a, "lookahead": True}, {"params": b}, {"params": c, "lookahead": True}], lr=0.5)
    opt.step([np.ones(2)] * 3)
    before = [x.tolist() for x in (a, b, c)]
    with opt.lookahead():
        assert [x.tolist() == then for x, then in zip((a, b, c), before, strict=True)] == [False, True, False]
    assert [x.tolist() for x in (a, b, c)] == before


def test_lookahead_survives_a_parameter_that_cannot_be_given_back():
    """The other parameters are restored, and the optimizer remains usable."""
    a, b = np.ones(2), np.ones(2)
    opt = gs.NAG([a, b], lr=0.5, lookahead=True)
    opt.step([np.ones(2)] * 2)
    before = b.tolist()
    with pytest.raises(ValueError, match="read-only"), opt.lookahead():
        a.flags.writeable = False
    a.flags.writeable = True
    assert b.tolist() == before
    opt.step([np.ones(2)] * 2)


@pytest.mark.parametrize("change", ["read-only", "reshaped"])
def test_lookahead_is_refused_where_a_step_would_be(change):
    p, q = np.ones(4), np.ones((2, 3))
    opt = gs.NAG([p, q], lookahead=True)
    opt.step([np.ones(4), np.ones((2, 3))])
    if change == "read-only":
        q.flags.writeable = False
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            q.shape = (3, 2)
    before = frozen(opt, p, q)
    with pytest.raises(ValueError, match=r"^params\[1\] (is read-only|was moved or reshaped)"), opt.lookahead():
        pytest.fail("entered")
    assert frozen(opt, p, q) == before
    opt.step([np.ones(4), None])


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("in_velocity", [False, True])
def test_lookahead_is_the_reformulated_rule_in_another_variable(in_velocity, maximize):
    """With q = p - lr * momentum * v (without lr if v includes it), lookahead's p and v give the default's q and v.

    For v' = momentum * v + g(q) and p' = p - lr * v':  q' = p' - lr * momentum * v' = q - lr * (g(q) + momentum * v').
    If the velocity includes the rate, this also holds for changing rates.
    """
    start = np.linspace(-2, 2, 9)
    options = {"lr": schedule if in_velocity else 0.02, "momentum": 0.9, "lr_in_velocity": in_velocity}
    p, q = start.copy(), start.copy()
    one = gs.NAG(p, lookahead=True, maximize=maximize, **options)
    other = gs.NAG(q, maximize=maximize, **options)

    def gradient(x):
        return (-1) ** maximize * (np.sin(3 * x) + x**3 / 4)

    for _ in range(60):
        with one.lookahead():
            np.testing.assert_allclose(p, q, rtol=0, atol=1e-12)
            g = gradient(p)
        one.step(g)
        other.step(gradient(q))
        v = one.state["momentum_buffer"]
        np.testing.assert_allclose(v, other.state["momentum_buffer"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(p - (0.9 if in_velocity else 0.02 * 0.9) * v, q, rtol=0, atol=1e-12)
    assert not np.allclose(p, q, rtol=0, atol=1e-6), "they are not the same point"


def test_show_config(capsys):
    config = gs.show_config(mode="dicts")
    assert capsys.readouterr().out == ""
    assert list(config) == ["version", "build", "isa", "prefetch", "threads", "cuda"]
    assert config["version"] == gs.__version__ == importlib.metadata.version("gradstep")
    assert {"compiler", "flags", "type", "system"} <= set(config["build"])
    assert "-ffp-contract=off" in config["build"]["flags"]
    assert "-ffast-math" not in config["build"]["flags"]
    isa = config["isa"]
    assert isa["compiled"][0] == isa["supported"][0] == "baseline"
    assert set(isa["supported"]) <= set(isa["compiled"])
    assert isa["chosen"] in isa["supported"]
    assert {*config["prefetch"].values()} <= {"off", "on"}
    gs.set_num_threads(5)
    shown = {"count": 5, "source": "set_num_threads", "default": config["threads"]["default"]}
    assert gs.show_config(mode="dicts")["threads"] == shown
    assert config["cuda"]["available"] or config["cuda"]["reason"]

    assert gs.show_config() is None
    out = capsys.readouterr().out
    for word in (gs.__version__, isa["chosen"], config["build"]["compiler"], config["cuda"].get("reason", ""), *config):
        assert word in out
    for mode in ("json", None, 1):
        with pytest.raises(ValueError, match="mode must be"):
            gs.show_config(mode=mode)


def python(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_import_is_quick():
    """Import time beyond NumPy's, the best of several runs, in CPU time of the process."""
    code = "import time, numpy; t = time.process_time(); import gradstep; print(1e3 * (time.process_time() - t))"
    assert min(float(python(code)) for _ in range(7)) < 30


def test_the_import_brings_in_numpy_and_the_standard_library_alone():
    code = "import sys, numpy; before = {*sys.modules}; import gradstep; print(*{*sys.modules} - before)"
    packages = {name.split(".")[0] for name in python(code).split()}
    assert packages - set(sys.stdlib_module_names) <= {"gradstep", "numpy"}


def test_the_package():
    files = importlib.resources.files("gradstep")
    assert (files / "py.typed").is_file()
    assert (files / "_core.pyi").is_file()
    needed = [r for r in importlib.metadata.requires("gradstep") if "extra ==" not in r]
    assert [r.split(">")[0] for r in needed] == ["numpy"]


@pytest.mark.parametrize("steps_before", [0, 1])
def test_states_of_small_arrays_are_made_when_they_are_read(steps_before):
    """Steps have the same bits, whenever that is, and check the arrays from then on."""
    params = {
        "a": np.ones((3, 2), np.float32, order="F"),
        "b": np.ones(5, np.float64),
        "c": np.float32([1]).reshape(()),
    }
    grads = {name: np.full_like(array, 0.5) for name, array in params.items()}
    opt = gs.Adam(params)
    for _ in range(steps_before):
        opt.step(grads)
    moment = opt.state["a"]["exp_avg"]
    assert opt.state["a"]["exp_avg"] is moment
    assert moment.strides == params["a"].strides
    opt.step(grads)
    other = gs.reference.Adam({name: np.ones_like(array) for name, array in params.items()})
    for _ in range(steps_before + 1):
        other.step(grads)
    assert same_bits(moment, other.state["exp_avg"]["a"])
    with pytest.raises(ValueError, match=r"^grads\.a overlaps state exp_avg of params\.a"):
        opt.step({**grads, "a": moment})
    moment.shape = (3, 2, 1)
    with pytest.raises(ValueError, match=r"^state exp_avg of params\.a was moved or reshaped"):
        opt.step(grads)

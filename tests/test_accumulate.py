"""Accumulated gradients: bits, layouts, clipping, checkpoints and refusals."""

import copy
import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from tests.table import (
    ALL_STORAGES,
    ISAS,
    REFERENCE,
    RULES,
    TAILS,
    THREADS,
    flat,
    same_bits,
    stored_problems,
)
from tests.test_average import layouts

HOWS = [{}, {"accumulation": "sum"}, {"clip_norm": 0.5}, {"ema": 0.75}]


def accumulate_and_step(opt, grads):
    """Steps with one micro-batch alone, with several, with the last one given, and with one that lacks a gradient."""
    first, second, third = grads
    partial = [*second[:3], None, *second[4:]]
    opt.accumulate(first)
    opt.accumulate(partial)
    opt.step()
    opt.accumulate(partial)
    opt.step(third)
    opt.step(first)
    opt.accumulate(partial)
    opt.step()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("storage", ALL_STORAGES, ids=str)
def test_bits(storage, isa):
    """All rules and storage types."""
    _core.use_isa(isa)
    for i, rule, start, grads in stored_problems(storage, TAILS):
        gs.set_num_threads(THREADS[i % 2])
        found = []
        for cls in (RULES[rule], REFERENCE[rule]):
            params = start()
            opt = cls(params, **storage.options(), **HOWS[i % len(HOWS)])
            accumulate_and_step(opt, grads)
            found.append([*params, *(opt.state[name] for name in opt.state)])
        for mine, theirs in zip(*found, strict=True):
            assert same_bits(flat([mine]), flat([theirs])), f"{rule}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", range(5))
def test_layouts(dtype, layout):
    """Of parameters and gradients."""
    shape, rng = (37, 129), np.random.default_rng(layout)
    start = rng.standard_normal(shape).astype(dtype)
    p = list(layouts(shape, np.dtype(dtype)))[layout]
    p[...] = start
    other = start.copy()
    ours, theirs = gs.Adam(p), gs.reference.Adam(other)
    for step in range(3):
        for k in range(2):
            g = list(layouts(shape, np.dtype(dtype)))[(layout + step + k) % 5]
            g[...] = rng.standard_normal(shape)
            ours.accumulate(g)
            theirs.accumulate(g.copy())
        ours.step()
        theirs.step()
    assert same_bits(p, other)


@pytest.mark.parametrize("order", ["C", "F"])
def test_stochastic_rounding_of_transposed_parameters(order):
    """Where the sums are not traversed in the order of memory."""
    rng = np.random.default_rng(0)
    p = np.asarray(rng.standard_normal((70, 90)), "bfloat16", order=order)
    other = p.copy(order="C")
    knobs = {"stochastic_rounding": 7, "lr": 0.1}
    ours, theirs = gs.Momentum(p, **knobs), gs.reference.Momentum(other, **knobs)
    for _ in range(2):
        for _ in range(3):
            g = rng.standard_normal(p.shape).astype(np.float32)
            ours.accumulate(g)
            theirs.accumulate(g)
        ours.step()
        theirs.step()
    assert same_bits(np.ascontiguousarray(p), other)


def problem(count=4):
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal((5, 7)), "b": rng.standard_normal(600).astype(np.float32)}
    grads = [{name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in params.items()} for _ in range(count)]
    return params, grads


def test_what_takes_no_part_stays():
    """A parameter without a gradient in all micro-batches, and one that is frozen before the step."""
    params, grads = problem()
    opt = gs.Adam(params)
    opt.accumulate({"w": grads[0]["w"], "b": None})
    before = copy.deepcopy(params)
    opt.step()
    assert same_bits(params["b"], before["b"])
    assert not same_bits(params["w"], before["w"])
    assert [own["step"] for own in opt.state_dict()["state"].values()] == [1, 0]
    opt = gs.SGD([{"params": params["w"]}, {"params": params["b"]}], lr=1.0)
    opt.accumulate([grads[0]["w"], grads[0]["b"]])
    opt.groups[1]["frozen"] = True
    before = copy.deepcopy(params)
    opt.step()
    assert same_bits(params["b"], before["b"])
    opt.groups[1]["frozen"] = False
    opt.accumulate([None, np.zeros_like(params["b"])])
    opt.step()
    assert same_bits(params["b"], before["b"])  # what was accumulated before is gone


def test_bound_gradients():
    params, grads = problem()
    others = copy.deepcopy(params)
    bound = {name: np.zeros_like(p) for name, p in params.items()}
    ours, theirs = gs.Adam(params, grads=bound), gs.reference.Adam(others)
    for round_ in range(2):
        for g in grads:
            for name, array in bound.items():
                array[...] = g[name]
            ours.accumulate()
            theirs.accumulate(g)
        ours.step()
        theirs.step()
        ours.step()
        theirs.step(grads[-1])
        assert all(same_bits(params[name], others[name]) for name in params), round_
    with pytest.raises(TypeError, match="accumulate\\(\\) takes no gradients"):
        ours.accumulate(grads[0])


@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_checkpoints(how, tmp_path):
    """Between micro-batches."""
    params, grads = problem()
    opt = gs.Adam(params, lr=0.1)
    opt.step(grads[0])
    opt.accumulate({"w": grads[0]["w"], "b": None})
    opt.accumulate({"w": grads[1]["w"], "b": None})
    twin = copy.deepcopy(params)
    if how == "state_dict":
        again = gs.Adam(twin)
        saved = opt.state_dict()
        assert saved["accumulated"] == 2
        assert same_bits(saved["state"]["w"]["accumulator"], grads[0]["w"] + grads[1]["w"])
        assert "accumulator" not in saved["state"]["b"]
        again.load_state_dict(saved)
    elif how == "file":
        again = gs.Adam(twin)
        gs.save(tmp_path / "x.safetensors", opt)
        gs.load(tmp_path / "x.safetensors", again)
    else:
        again = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
        twin = again.params
    for each in (opt, again):
        each.step({"w": grads[2]["w"], "b": None})
        each.step(grads[3])
    assert all(same_bits(params[name], twin[name]) for name in params)
    assert "accumulated" not in opt.state_dict()


def test_a_micro_batch_without_gradients_counts_in_a_checkpoint():
    params, grads = problem()
    opt, again = gs.Adam(params), gs.Adam(copy.deepcopy(params))
    opt.accumulate({"w": None, "b": None})
    again.load_state_dict(opt.state_dict())
    for each in (opt, again):
        each.step(grads[0])
    assert all(same_bits(params[name], again.params[name]) for name in params)


def test_a_state_dict_without_sums_drops_those_that_are_pending():
    params, grads = problem()
    opt = gs.Adam(params)
    saved = opt.state_dict()
    opt.accumulate(grads[0])
    opt.load_state_dict(saved)
    with pytest.raises(TypeError, match="needs gradients"):
        opt.step()


def test_refusals():
    params, grads = problem()
    opt = gs.Adam(params)
    before = copy.deepcopy(params)
    with pytest.raises(TypeError, match="accumulate\\(\\) takes gradients"):
        opt.accumulate()
    opt.accumulate(grads[0])
    saved = opt.state_dict()
    for wrong in ({"w": grads[0]["w"]}, {**grads[0], "w": np.zeros(3)}, {**grads[0], "w": np.zeros((5, 7), int)}):
        with pytest.raises((TypeError, ValueError), match="grads"):
            opt.accumulate(wrong)
        with pytest.raises((TypeError, ValueError), match="grads"):
            opt.step(wrong)
    now = opt.state_dict()
    assert now["accumulated"] == 1
    assert all(same_bits(now["state"][name]["accumulator"], saved["state"][name]["accumulator"]) for name in params)
    assert all(same_bits(params[name], before[name]) for name in params)
    with pytest.raises(RuntimeError, match="gradients were accumulated"):
        opt.rebind()
    with pytest.raises(ValueError, match="accumulation must be one of"):
        opt.accumulation = "median"
    with pytest.raises(TypeError, match="stream"):
        opt.accumulate(grads[0], stream=1)
    opt.lr = lambda _: -1.0
    with pytest.raises(ValueError, match="lr"):
        opt.step()
    opt.lr = 0.1
    opt.step()
    assert opt.step_count == 1
    nag = gs.NAG(params, lookahead=True)
    with nag.lookahead(), pytest.raises(RuntimeError, match=r"within lookahead\(\)"):
        nag.accumulate(grads[0])


@pytest.mark.parametrize("wrong", ["grad_scale", "stats", "read-only", "replaced", "loss_scale"])
def test_a_refused_step_adds_nothing(wrong):
    params, grads = problem()
    scale = gs.LossScale(1e300) if wrong == "loss_scale" else None
    opt = gs.Adam(params, on_nonfinite="skip", loss_scale=scale)
    opt.accumulate(grads[0])
    saved, w = opt.state_dict(), params["w"]
    keywords = {"grad_scale": {"grad_scale": -1.0}, "stats": {"stats": 2}, "loss_scale": {"grad_scale": 1e100}}
    if wrong == "read-only":
        w.flags.writeable = False
    if wrong == "replaced":
        params["w"] = w.copy()
    with pytest.raises((TypeError, ValueError)):
        opt.step(grads[1], **keywords.get(wrong, {}))
    w.flags.writeable, params["w"] = True, w
    now = opt.state_dict()
    assert now["accumulated"] == 1
    assert opt.step_count == 0
    assert all(same_bits(now["state"][name]["accumulator"], saved["state"][name]["accumulator"]) for name in params)


@pytest.mark.parametrize("order", ["C", "F"])
def test_skipped_steps_clear_the_sums(order):
    g = np.full((40, 300), np.inf, np.float32)
    p = np.ones(g.shape, np.float32, order=order)
    opt = gs.SGD(p, lr=1.0, on_nonfinite="skip")
    opt.accumulate(g)
    opt.step()
    assert np.all(p == 1)
    assert opt.step_count == 0
    opt.accumulate(np.full_like(g, 0.5))
    opt.step()
    assert np.all(p == 0.5)

"""Averages of the parameters: bits, layouts, instruction sets, checkpoints, `averaged()` and refusals."""

import copy
import pickle

import ml_dtypes
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
    assert_same,
    flat,
    leaves,
    run,
    same_bits,
    stored_problem,
    stored_problems,
)


def decay(step):
    """A decay that changes at every step."""
    return min(0.9, (1 + step) / (10 + step))


EMAS = [{"ema": 0.99}, {"ema": decay}, {"ema": 0.5, "ema_correction": True}, {"ema": 0.0}]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("storage", ALL_STORAGES, ids=str)
def test_bits(storage, isa):
    """All rules and storage types, with threads and sizes of tails."""
    _core.use_isa(isa)
    for i, rule, params, grads in stored_problems(storage, TAILS):
        gs.set_num_threads(THREADS[i % 2])
        options = {**storage.options(), **EMAS[i % len(EMAS)]}
        ours = run(RULES[rule], params(), grads, options)
        assert "average after step 3" in ours
        assert_same(ours, run(REFERENCE[rule], params(), grads, options), f"{rule} {storage}")


def layouts(shape, dtype):
    """Zeros of a shape: in Fortran order, strided, with rows apart, as a view that is not aligned."""
    rows, columns = shape
    item = np.dtype(dtype).itemsize
    yield np.zeros(shape, dtype).T.copy().T
    yield np.zeros((2 * rows, 3 * columns), dtype)[::2, ::3]
    yield np.zeros((rows, columns + 3), dtype)[:, 3:]
    yield np.zeros((rows, columns), dtype)[::-1]
    yield np.zeros(rows * columns * item + 1, np.uint8)[1:].view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("layout", range(5))
def test_layouts(dtype, layout):
    """Of parameters, gradients and averages."""
    shape = (37, 129)
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(layout)
    start = rng.standard_normal(shape).astype(dtype)
    p = list(layouts(shape, dtype))[layout]
    p[...] = start
    other = start.copy()
    seed = 5 if dtype.itemsize == 2 else None
    ours = gs.Adam(p, ema=0.9, stochastic_rounding=seed)
    theirs = gs.reference.Adam(other, ema=0.9, stochastic_rounding=seed)
    for step in range(3):
        g = list(layouts(shape, dtype))[(layout + step) % 5]
        g[...] = rng.standard_normal(shape)
        ours.step(g)
        theirs.step(g.copy())
    assert same_bits(p, other)
    assert same_bits(ours.state["average"], theirs.state["average"])
    with ours.averaged(), theirs.averaged():
        assert same_bits(p, other)


def problem(count=3):
    """Parameters in a dict, gradients, and an optimizer of them with an average."""
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal((5, 7)), "b": rng.standard_normal(600).astype(np.float32)}
    grads = [{name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in params.items()} for _ in range(count)]
    return params, grads


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("correction", [False, True])
def test_averaged(rule, correction):
    """The parameters are the averages inside, and what they were outside, also after an exception."""
    params, grads = problem()
    others = copy.deepcopy(params)
    knobs = {"ema": decay, "ema_correction": correction}
    ours, theirs = RULES[rule](params, **knobs), REFERENCE[rule](others, **knobs)
    before = copy.deepcopy(params)
    with ours.averaged():
        assert all(same_bits(params[name], before[name]) for name in params)
    for g in grads:
        ours.step(g)
        theirs.step(g)
    before = copy.deepcopy(params)
    average = copy.deepcopy(dict(ours.state["average"]))

    def fail():
        with ours.averaged(), theirs.averaged():
            assert all(same_bits(params[name], others[name]) for name in params)
            assert not same_bits(params["w"], before["w"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(same_bits(params[name], before[name]) for name in params)
    assert all(same_bits(ours.state["average"][name], average[name]) for name in params)


@pytest.mark.parametrize("storage", ALL_STORAGES, ids=str)
def test_averaged_of_storage(storage):
    p, grads = stored_problem(5000, storage.param, "float32")
    mine, other = p.copy(), p.copy()
    options = {**storage.options(), "ema": 0.9, "ema_correction": True}
    ours, theirs = gs.Adam([mine], **options), gs.reference.Adam([other], **options)
    for g in grads:
        ours.step([g])
        theirs.step([g])
    before = mine.copy()
    master = copy.deepcopy(ours.state.get("master"))
    with ours.averaged(), theirs.averaged():
        assert same_bits(mine, other)
    assert same_bits(mine, before)
    assert master is None or same_bits(ours.state["master"][0], master[0])
    ours.step([grads[0]])
    theirs.step([grads[0]])
    assert same_bits(mine, other)


def test_what_takes_no_part_stays():
    """Frozen tensors and those without a gradient keep average and product; groups may have none."""
    rng = np.random.default_rng(2)
    params = [rng.standard_normal(300) for _ in range(4)]
    groups = [
        {"params": params[:2], "ema": 0.5},
        {"params": [params[2]], "frozen": True, "ema": 0.9},
        {"params": [params[3]]},
    ]
    opt = gs.SGD(groups, lr=0.1)
    assert opt.state["average"][2] == [None]
    before = flat(opt.state["average"])
    opt.step([[None, params[1] * 2], [params[2] * 2], [params[3] * 2]])
    after = flat(opt.state["average"])
    assert same_bits(after[:300], before[:300])
    assert same_bits(after[600:], before[600:])
    assert same_bits(after[300:600], 0.5 * before[300:600] + 0.5 * params[1])
    assert [own.get("ema_product") for own in opt.state_dict()["state"].values()] == [1.0, 0.5, 1.0, None]
    old = params[3].copy()
    with opt.averaged():
        assert same_bits(params[3], old)


def test_decay_can_change_but_not_whether_there_is_one():
    params, [g, *_] = problem()
    opt = gs.Adam(params, ema=0.5)
    assert opt.ema == 0.5
    opt.ema = decay
    assert opt.ema == decay(0)
    opt.step(g)
    assert opt.ema == decay(1)
    opt.ema = 0.25
    with pytest.raises(ValueError, match="ema cannot be turned on or off"):
        opt.ema = None
    with pytest.raises(ValueError, match="ema cannot be turned on or off"):
        gs.Adam(params).ema = 0.5
    with pytest.raises(ValueError, match="cannot change after construction"):
        opt.ema_correction = True
    assert opt.ema == 0.25


@pytest.mark.parametrize("wrong", [1.0, -0.1, float("nan"), 2])
def test_decays_out_of_range(wrong):
    params, [g, *_] = problem()
    before = copy.deepcopy(params)
    with pytest.raises(ValueError, match="ema must be a number from 0 to below 1"):
        gs.Adam(params, ema=wrong)
    opt = gs.Adam(params, ema=lambda _: wrong)
    with pytest.raises(ValueError, match=r"ema\(0\) must be"):
        opt.step(g)
    assert all(same_bits(params[name], before[name]) for name in params)
    assert opt.step_count == 0


def test_refusals():
    params, [g, *_] = problem()
    with pytest.raises(TypeError, match="ema must be"):
        gs.Adam(params, ema="0.5")
    with pytest.raises(ValueError, match="ema_correction=True has no effect without ema"):
        gs.Adam(params, ema_correction=True)
    with pytest.raises(RuntimeError, match="for optimizers with ema"), gs.Adam(params).averaged():
        pass
    with pytest.raises(TypeError, match="ema"):
        gs.functional.sgd_(params["w"], params["w"].copy(), ema=0.5)
    opt = gs.NAG(params, ema=0.5, lookahead=True)
    opt.step(g)
    before = copy.deepcopy(params)
    with opt.averaged():
        for call, words in [
            (lambda: opt.step(g), r"step\(\) within averaged\(\)"),
            (lambda: opt.averaged().__enter__(), r"within averaged\(\)"),
            (lambda: opt.lookahead().__enter__(), r"within averaged\(\)"),
            (lambda: copy.deepcopy(opt), r"within averaged\(\)"),
            (opt.rebind, r"within averaged\(\)"),
        ]:
            with pytest.raises(RuntimeError, match=words):
                call()
    with opt.lookahead(), pytest.raises(RuntimeError, match=r"within lookahead\(\)"):
        opt.averaged().__enter__()
    assert all(same_bits(params[name], before[name]) for name in params)


@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_checkpoints(how, tmp_path):
    """A run that is resumed has the bits of one that is not interrupted."""
    params, grads = problem(6)
    knobs = {"ema": decay, "ema_correction": True}
    opt = gs.Adam(params, **knobs)
    for g in grads[:3]:
        opt.step(g)
    twin, again = copy.deepcopy(params), None
    if how == "state_dict":
        again = gs.Adam(twin, **knobs)
        again.load_state_dict(opt.state_dict())
        assert opt.state_dict()["groups"][0]["ema"] is None
    elif how == "file":
        again = gs.Adam(twin, **knobs)
        gs.save(tmp_path / "x.safetensors", opt)
        gs.load(tmp_path / "x.safetensors", again)
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(opt))
        twin = again.params
    else:
        again = copy.deepcopy(opt)
        twin = again.params
    for g in grads[3:]:
        opt.step(g)
        again.step(g)
    for with_averages in (False, True):
        if with_averages:
            with opt.averaged(), again.averaged():
                assert same_bits(flat(params["w"]), flat(twin["w"]))
        assert all(same_bits(params[name], twin[name]) for name in params)
    assert same_bits(flat(list(opt.state["average"].values())), flat(list(again.state["average"].values())))


def test_state_dicts_that_do_not_fit():
    params, [g, *_] = problem()
    opt = gs.Adam(params, ema=0.5)
    opt.step(g)
    with pytest.raises(ValueError, match="has average, which is not kept here"):
        gs.Adam(params).load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match="lacks average"):
        opt.load_state_dict(gs.Adam(params).state_dict())


def test_rebind_and_replace():
    params, [g, *_] = problem()
    opt = gs.SGD(params, lr=0.1, ema=0.5)
    opt.step(g)
    average = copy.deepcopy(dict(opt.state["average"]))
    params["b"] = params["b"].copy()
    opt.rebind()
    assert same_bits(opt.state["average"]["b"], average["b"])
    grown = np.concatenate([params["w"], np.ones((1, 7))])
    opt.replace("w", grown, rows=[0, 1, 2, 3, 4, -1])
    assert same_bits(opt.state["average"]["w"], np.concatenate([average["w"], np.ones((1, 7))]))
    assert leaves(opt.state["average"])[0] is opt.state["average"]["w"]

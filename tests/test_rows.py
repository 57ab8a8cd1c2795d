"""Gradients of some rows: the bits are those of the reference, and other rows are not touched."""

import copy
import pickle
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep as gs
from gradstep import _core, reference
from tests.table import (
    ALL_FLOATS,
    ISAS,
    LAYOUTS,
    PLAIN,
    REFERENCE,
    RULES,
    SEED,
    SHORT,
    STORAGES,
    THREADS,
    Layout,
    assert_same,
    bits,
    flat,
    knobs,
    run,
    same_bits,
    say,
    stored_cases,
    values,
)
from tests.test_layout import assert_untouched_around

CASES = stored_cases(storages=[*PLAIN, *(s for s in STORAGES if s not in PLAIN)], settings=["flush", "widest"])
WIDEST = stored_cases(storages=[*PLAIN, *(s for s in STORAGES if s not in PLAIN)], settings=["widest"])
ORDERS = ["ascending", "permuted", "repeated", "all", "none"]


def indices(order, rows, seed):
    """Indices of some of the rows."""
    rng = np.random.default_rng(seed)
    some = rng.choice(rows, (rows + 1) // 2, replace=False)
    return {
        "ascending": np.sort(some),
        "permuted": some,
        "repeated": some[rng.integers(0, max(len(some), 1), 3 * rows)],
        "all": np.arange(rows),
        "none": some[:0],
    }[order]


def gradients(orders, shape, grad, seed=0):
    """A gradient of rows for each order."""
    made = []
    for step, order in enumerate(orders):
        chosen = indices(order, shape[0], [seed, step])
        size = len(chosen) * int(np.prod(shape[1:]))
        made.append(gs.Rows(chosen, values([seed, step, 9], 1, size, grad)[0].reshape(len(chosen), *shape[1:])))
    return made


def row_length(case):
    """The elements of a row: with q8, whole blocks."""
    return 256 if case.storage.state == "q8" else 41


def table(case, rows=23, length=None):
    length = length or row_length(case)
    return values([rows, length], 1, rows * length, case.storage.param)[0].reshape(rows, length)


def both(case, params, grads, isas=ISAS):
    """Steps ours, for each instruction set, and the reference's; all bits must be equal."""
    expected = run(REFERENCE[case.rule], [p.copy() for p in params], grads, case.options())
    for isa in isas:
        _core.use_isa(isa)
        assert_same(run(RULES[case.rule], [p.copy() for p in params], grads, case.options()), expected, isa)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rule_and_storage(case):
    """Beside a tensor with a whole gradient, in every order of indices."""
    p, other = table(case), values([1], 1, 700, case.storage.param)[0]
    rows = gradients(ORDERS[:SHORT], p.shape, case.grad)
    both(case, [other, p], [[values([2, i], 1, 700, case.grad)[0], g] for i, g in enumerate(rows)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_every_order_of_indices(case, order):
    p = table(case, rows=17)
    both(case, [p], [[g] for g in gradients([order] * 2, p.shape, case.grad)], ISAS[-1:])


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_whole_gradients_in_turn_with_rows(case):
    """The same optimizer is given rows, whole gradients, rows as many as the parameter's, and None."""
    p = table(case, rows=9)
    first, second, third = gradients(["repeated", "all", "permuted"], p.shape, case.grad)
    dense = values([5], 1, p.size, case.grad)[0].reshape(p.shape)
    both(case, [p], [[first], [dense], [second], [dense], [None], [third], [dense]], ISAS[-1:])


@pytest.mark.parametrize("options", [{}, {"accumulation": "sum", "clip_norm": 0.01}], ids=str)
@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_accumulated_rows(case, options):
    """Rows alone, with repeats, and with whole gradients; the step then takes a whole gradient."""
    p, dense = table(case), values([5], 1, 23 * row_length(case), case.grad)[0]
    repeated, permuted = gradients(["repeated", "permuted"], p.shape, case.grad)
    found = []
    for cls in (RULES[case.rule], REFERENCE[case.rule]):
        param = p.copy()
        opt = cls([param, param[:3].copy()], **case.options(), **options)
        for grads in ([repeated, permuted], [permuted, dense.reshape(p.shape), repeated]):
            for g in grads:
                opt.accumulate([g, None])
            result = opt.step(stats=True)
        stats = result.stats if isinstance(result.stats, dict) else dict(zip(["[0]"], result.stats, strict=False))
        found.append([param, np.array(stats["[0]"]), *(opt.state[name][0] for name in opt.state)])
    for mine, theirs in zip(*found, strict=True):
        assert same_bits(mine, theirs)


@pytest.mark.parametrize(
    "shape", [(7,), (7, 1), (1, 5), (40, 3), (9, 5, 2, 3), (6, 1, 4), (5, 0), (0, 4), (11, 700)], ids=str
)
@pytest.mark.parametrize("grad", ALL_FLOATS)
def test_shapes_and_types_of_gradients(shape, grad):
    for dtype, stochastic in product(("float32", "float64", "bfloat16"), (None, SEED)):
        if stochastic is not None and dtype != "bfloat16":
            continue
        p = values([3], 1, int(np.prod(shape)), dtype)[0].reshape(shape)
        options = {"l2": 0.1, "weight_decay": 0.1, "stochastic_rounding": stochastic}
        grads = gradients(["repeated", "ascending"], shape, grad)
        expected = run(reference.Adam, p.copy(), grads, options)
        assert_same(run(gs.Adam, p.copy(), grads, options), expected, f"{dtype} {stochastic}")


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_strided_tables_and_values(case):
    """No other byte is written, that of other rows included."""
    for i, how in enumerate(LAYOUTS):
        p = table(case, rows=13)
        grads = gradients(["ascending", "repeated", "permuted"], p.shape, case.grad)
        expected = run(REFERENCE[case.rule], p.copy(), grads, case.options())
        placed = how.place(p)
        other = LAYOUTS[(i * 5 + 3) % len(LAYOUTS)]
        strided = [gs.Rows(Layout(gap=8).place(g.indices)[::1], other.place(g.values)) for g in grads]
        assert_same(run(RULES[case.rule], placed, strided, case.options()), expected, str(how))
        assert_untouched_around(placed)


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_threads(case):
    p = table(case, rows=300, length=256 if case.storage.state == "q8" else 97)
    grads = gradients(["repeated", "ascending"], p.shape, case.grad)
    expected = run(REFERENCE[case.rule], p.copy(), grads, case.options())
    _core.share_all(True)
    for threads in THREADS:
        gs.set_num_threads(threads)
        assert_same(run(RULES[case.rule], p.copy(), grads, case.options()), expected, f"{threads} threads")


@pytest.mark.parametrize("limit", [1e-3, 1e9])
@pytest.mark.parametrize("grad", ALL_FLOATS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_norm_counts_summed_rows(dtype, grad, limit):
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(s).astype(dtype) for s in [(50, 130), (7, 3), (99,)]]
    chosen = rng.choice(20, 200)
    g = [
        gs.Rows(chosen, rng.standard_normal((200, 130)).astype(grad)),
        rng.standard_normal((7, 3)).astype(grad),
        gs.Rows([98, 0], np.array([2, 3], grad)),
    ]
    theirs = reference.Adam([p.copy() for p in params], clip_norm=limit)
    for isa in ISAS:
        _core.use_isa(isa)
        ours = gs.Adam([p.copy() for p in params], clip_norm=limit)
        for _ in range(2):
            ours.step(g)
        assert gs.global_norm(g) == reference.global_norm(g)
    for _ in range(2):
        theirs.step(g)
    assert ours.grad_norm == theirs.grad_norm
    assert same_bits(flat(ours.state["exp_avg"]), flat(theirs.state["exp_avg"]))
    if grad != "float64":
        sums = np.zeros((20, 130), np.float32)
        for row, value in zip(chosen, g[0].values, strict=True):
            sums[row] += value
        assert gs.global_norm(g[0]) == gs.global_norm(sums[np.unique(chosen)])


EXACT = {
    "sgd": [{}, {"l2": 0.0, "maximize": True}],
    "adagrad": [{}, {"lr_decay": 0.5}, {"initial_accumulator": 0.1}, {"eps_root": 1e-6}],
}


@pytest.mark.parametrize(("rule", "setting"), [(r, s) for r in EXACT for s in EXACT[r]], ids=lambda x: str(x))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_rules_equal_the_whole_gradient(rule, setting, dtype):
    """Guide, table of rules: with these the step is that of a gradient which is zero elsewhere."""
    rng = np.random.default_rng(1)
    p = rng.standard_normal((30, 7)).astype(dtype)
    whole, some = p.copy(), p.copy()
    a, b = RULES[rule](whole, **setting), RULES[rule](some, **setting)
    for step in range(5):
        chosen = indices("repeated", 30, step)
        v = rng.standard_normal((len(chosen), 7)).astype(dtype)
        dense = np.zeros_like(p)
        np.add.at(dense, chosen, v)
        a.step(dense)
        b.step(gs.Rows(chosen, v))
        assert same_bits(whole, some)
        for name, state in a.state.items():
            assert same_bits(state, b.state[name])


@pytest.mark.parametrize(
    ("rule", "setting"),
    [
        ("sgd", {"l2": 0.1}),
        ("sgd", {"weight_decay": 0.1}),
        ("adagrad", {"weight_decay": 0.1}),
        *[(rule, {}) for rule in ("momentum", "nag", "rmsprop", "adadelta", "adam", "nadam")],
    ],
    ids=str,
)
def test_lazy_rules_leave_other_rows(rule, setting):
    """Guide, table of rules: with these, zero gradients would change other rows or their states."""
    rng = np.random.default_rng(1)
    p = rng.standard_normal((6, 3))
    first = rng.standard_normal((6, 3))
    whole, some = p.copy(), p.copy()
    a, b = RULES[rule](whole, **setting), RULES[rule](some, **setting)
    a.step(first)
    b.step(first)
    before = {"p": some.copy(), **{name: state.copy() for name, state in b.state.items()}}
    a.step(np.vstack([first[:1], np.zeros((5, 3))]))
    b.step(gs.Rows([0], first[:1]))
    after = {"p": some, **b.state}
    assert all(same_bits(after[name][1:], before[name][1:]) for name in before)
    assert same_bits(whole[0], some[0])
    assert not same_bits(whole, some) or any(not same_bits(a.state[n], b.state[n]) for n in a.state)
    assert a.step_count == b.step_count == 2


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_other_rows_are_not_read_or_written(case):
    p = table(case)
    opt = RULES[case.rule](p := p.copy(), **case.options())
    opt.step(values([8], 1, p.size, case.grad)[0].reshape(p.shape))
    before = {"p": p.copy(), **{name: state.copy() for name, state in opt.state.items()}}
    opt.step(gs.Rows([3, 4, 19, 3], np.full((4, p.shape[1]), 0.5, case.grad)))
    rest = np.setdiff1d(np.arange(len(p)), [3, 4, 19])
    for name, array in {"p": p, **opt.state}.items():
        by_row = array.reshape(len(p), -1)[rest]
        assert np.array_equal(bits(by_row), bits(before[name].reshape(len(p), -1)[rest])), name


@pytest.mark.parametrize("rule", RULES)
def test_no_rows_advance_the_step_number(rule):
    p = np.ones((4, 3), np.float32)
    opt, theirs = RULES[rule](p), REFERENCE[rule](q := p.copy())
    for g in (gs.Rows([], np.zeros((0, 3))), gs.Rows([1], np.ones((1, 3)))):
        opt.step(g)
        theirs.step(g)
    assert same_bits(p, q)
    assert opt.state_dict()["state"][""]["step"] == 2


def test_none_and_frozen_tensors():
    params = {"a": np.ones((4, 2)), "b": np.ones((4, 2)), "c": np.ones((4, 2))}
    opt = gs.SGD(params, lr=0.5, options={"b": {"frozen": True}})
    g = gs.Rows([1], np.ones((1, 2)))
    opt.step({"a": None, "b": gs.Rows([99], "ignored"), "c": g})
    assert np.all(params["a"] == 1)
    assert np.all(params["b"] == 1)
    assert np.array_equal(params["c"], [[1, 1], [0.5, 0.5], [1, 1], [1, 1]])
    opt.step({"a": g, "b": None, "c": None})
    assert np.all(params["a"][1] == 0.5)
    assert np.all(params["c"][1] == 0.5)


@pytest.mark.parametrize("case", stored_cases(settings=["default"]), ids=str)
def test_checkpoints_continue(case):
    p = table(case, rows=11)
    grads = gradients(["repeated", "ascending", "permuted", "repeated"], p.shape, case.grad)
    opt = RULES[case.rule](p := p.copy(), **case.options())
    for g in grads[:2]:
        opt.step(g)
    other = RULES[case.rule](q := p.copy(), **case.options())
    other.load_state_dict(opt.state_dict())
    for g in grads[2:]:
        opt.step(g)
        other.step(g)
    assert same_bits(p, q)


@given(
    st.sampled_from([(rule, setting) for rule in RULES for setting in knobs(rule)]),
    st.integers(1, 40),
    st.integers(1, 70),
    st.lists(st.lists(st.integers(0, 39), max_size=60), min_size=2, max_size=4),
    st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]),
    st.sampled_from(ISAS),
)
@settings(max_examples=200, deadline=None)
def test_any_indices(rule_and_setting, rows, length, chosen, dtype, isa):
    _core.use_isa(isa)
    rule, setting = rule_and_setting
    p = values([rows], 1, rows * length, "float32")[0].reshape(rows, length)
    grads = []
    for step, some in enumerate(chosen):
        some = np.array([i % rows for i in some], dtype)
        grads.append(gs.Rows(some, values([step], 1, len(some) * length, "float32")[0].reshape(-1, length)))
    expected = run(REFERENCE[rule], p.copy(), grads, setting)
    assert_same(run(RULES[rule], p.copy(), grads, setting), expected, say(setting))


V = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (gs.Rows([0, -1], V), ValueError, r"grads\.emb has the index -1 at place 1 .* negative"),
        (gs.Rows([0, 5], V), ValueError, r"grads\.emb has the index 5 at place 1 .* has 5 rows"),
        (gs.Rows(np.array([2**64 - 1, 0], np.uint64), V), ValueError, r"index 18446744073709551615 at place 0"),
        (gs.Rows([0, 1, 2], V), ValueError, r"the values of grads\.emb have shape \(2, 3\), .* \(3, 3\)"),
        (gs.Rows([0, 1], V[:, :2]), ValueError, r"the values of grads\.emb have shape \(2, 2\)"),
        (gs.Rows([0, 1], V[0]), ValueError, r"the values of grads\.emb have shape \(3,\)"),
        (gs.Rows(np.zeros((2, 1), int), V), ValueError, r"the indices of grads\.emb must have one axis"),
        (gs.Rows(np.array(1), V), ValueError, r"the indices of grads\.emb must have one axis"),
        (gs.Rows([0.0, 1.0], V), TypeError, r"the indices of grads\.emb must be integers"),
        (gs.Rows([True, False], V), TypeError, r"the indices of grads\.emb .* bool; numpy.flatnonzero"),
        (gs.Rows(np.array([0, 1], ">i4"), V), TypeError, r"the indices of grads\.emb .* native byte order"),
        (gs.Rows(np.array([0, 1], "m8[s]"), V), TypeError, r"the indices of grads\.emb must be integers"),
        (gs.Rows(np.ma.array([0, 1]), V), TypeError, r"the indices of grads\.emb is a masked array"),
        (gs.Rows(3, V), TypeError, r"the indices of grads\.emb must be a NumPy array of integers, not int"),
        (gs.Rows([0, 1], V.astype(int)), TypeError, r"the values of grads\.emb has dtype"),
        (gs.Rows([0, 1], [1.0, 2.0]), TypeError, r"the values of grads\.emb must be a NumPy array, not list"),
    ],
    ids=str,
)
def test_refusals_name_the_tensor(rows, error, words):
    params = {"w": np.ones(4, np.float32), "emb": np.ones((5, 3), np.float32)}
    opt = gs.Adam(params)
    for _ in range(2):
        with pytest.raises(error, match=words):
            opt.step({"w": np.ones(4, np.float32), "emb": rows})
        assert opt.step_count == 0
        assert np.all(params["w"] == 1)
        assert np.all(params["emb"] == 1)
        assert all(np.all(a == 0) for by in opt.state.values() for a in by.values())
    opt.step({"w": np.ones(4, np.float32), "emb": gs.Rows([0, 4], V)})
    assert params["emb"][4, 0] != 1


def test_other_refusals():
    scalar = np.ones((), np.float32)
    with pytest.raises(ValueError, match="has rows, but its parameter has no axes"):
        gs.SGD(scalar).step(gs.Rows([], np.zeros((0, 1), np.float32)))
    p = np.ones((20, 300), np.float32)
    with pytest.raises(ValueError, match="rows of 300 elements; with q8 states their number must be a multiple of 256"):
        gs.Adam(p, state_dtype="q8").step(gs.Rows([0], p[:1].copy()))
    with pytest.raises(ValueError, match="overlaps"):
        gs.SGD(p).step(gs.Rows([0], p[3:4]))
    with pytest.raises(TypeError, match="bound gradients are arrays"):
        gs.SGD(p, grads=gs.Rows([0], p[:1].copy()))
    with pytest.raises(TypeError, match="params must be a NumPy array, not Rows"):
        gs.SGD(gs.Rows([0], p[:1].copy()))
    with pytest.raises(ValueError, match="index -1 at place 0"):
        gs.global_norm([gs.Rows([-1], p[:1])])
    with pytest.raises(ValueError, match="must have a row for each of 2 indices"):
        gs.global_norm([gs.Rows([1, 2], p[:1])])
    assert np.all(p == 1)


def test_read_only_arrays():
    chosen, v = np.array([1, 1, 0]), np.ones((3, 2))
    chosen.flags.writeable = v.flags.writeable = False
    gs.SGD(p := np.ones((2, 2)), lr=0.25).step(gs.Rows(chosen, v))
    assert np.array_equal(p, [[0.75, 0.75], [0.5, 0.5]])


def test_the_class():
    rows = gs.Rows([2, 0], np.ones((2, 3)))
    for other in (copy.copy(rows), copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
        assert type(other) is gs.Rows
        assert np.array_equal(other.indices, [2, 0])
        assert np.array_equal(other.values, np.ones((2, 3)))
    assert repr(rows).startswith("Rows(array([2, 0]), array([[1.")
    with pytest.raises(AttributeError, match="immutable"):
        rows.indices = [1]
    with pytest.raises(AttributeError, match="immutable"):
        del rows.values
    with pytest.raises(AttributeError):
        rows.other = 1
    with pytest.raises(TypeError, match="no subclasses"):
        type("More", (gs.Rows,), {})


@pytest.mark.parametrize("chosen", [[1, 4, 9], [9, 4, 1, 4]], ids=["ascending", "summed"])
@pytest.mark.parametrize("grad", ALL_FLOATS)
def test_gradients_that_are_not_finite_change_nothing(grad, chosen):
    """The index that is named is that of the whole table."""
    p, v = np.ones((10, 600), np.float32), np.ones((len(chosen), 600), grad)
    v[chosen.index(9), 70] = np.inf
    for cls in (gs.Adam, reference.Adam):
        opt = cls(q := p.copy(), on_nonfinite="skip")
        result = opt.step(gs.Rows(chosen, v), grad_scale=2.0)
        assert not result.applied
        assert same_bits(p, q)
        assert result.nonfinite == ("" if cls is gs.Adam else 0, 9 * 600 + 70)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_averages_and_copies_of_other_rows_stay(dtype):
    rng = np.random.default_rng(5)
    p = rng.standard_normal((40, 33)).astype(dtype)
    ours, theirs = p.copy(), p.copy()
    copied = "float64" if dtype == "float64" else "float32"
    copies = [np.zeros(p.shape, copied) for _ in range(2)]
    opt = gs.Adam(ours, ema=0.9, copy_out=copies[0])
    ref = reference.Adam(theirs, ema=0.9, copy_out=copies[1])
    for _ in range(3):
        indices = rng.integers(0, 40, 9)
        rows = gs.Rows(indices, rng.standard_normal((9, 33)).astype(dtype))
        before = opt.state["average"].copy()
        opt.step(rows)
        ref.step(rows)
        others = np.setdiff1d(np.arange(40), indices)
        assert same_bits(opt.state["average"][others], before[others])
        assert same_bits(ours, theirs)
        assert same_bits(copies[0], copies[1])
        assert same_bits(opt.state["average"], ref.state["average"])

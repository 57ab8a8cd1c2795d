"""Gradients of some rows on a GPU: the bits are those of the reference, and other rows are not touched."""

import numpy as np
import pytest

import gradstep as gs
from gradstep import optimizers, reference
from tests.gpu.test_bits import to
from tests.gpu.test_steps import Graph
from tests.table import (
    ALL_FLOATS,
    ALL_STORAGES,
    LAYOUTS,
    REFERENCE,
    RULES,
    SEED,
    SHORT,
    assert_same,
    flat,
    leaves,
    run,
    same_bits,
    stored_cases,
    values,
)
from tests.test_clip import numbers
from tests.test_rows import ORDERS, gradients, indices, table
from tests.test_stats import named

CASES = stored_cases(storages=ALL_STORAGES, settings=["flush", "widest"])
WIDEST = stored_cases(storages=ALL_STORAGES, settings=["widest"])


def there(gpu, grad, on_device=True):
    """A gradient of rows on the GPU, with indices there or in host memory."""
    if not isinstance(grad, gs.Rows):
        return to(gpu, grad)
    return gs.Rows(gpu.array(grad.indices) if on_device else grad.indices, gpu.array(grad.values))


def run_there(gpu, case, params, steps):
    """The result of tests.table.run on a GPU."""
    params = to(gpu, params)
    opt = RULES[case.rule](params, **case.options())
    seen = {}
    for step, grads in enumerate(steps, 1):
        opt.step([there(gpu, g, step % 2 == 0) for g in grads])
        for name, arrays in {"params": params, **opt.state}.items():
            seen[f"{name} after step {step}"] = flat([gpu.numpy(array) for array in leaves(arrays)])
    return seen


def both(gpu, case, params, steps):
    expected = run(REFERENCE[case.rule], [p.copy() for p in params], steps, case.options())
    assert_same({k: v for k, v in run_there(gpu, case, params, steps).items() if k in expected}, expected, str(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rule_and_storage(case, gpu):
    """Beside a tensor with a whole gradient, in every order of indices."""
    p, other = table(case), values([1], 1, 700, case.storage.param)[0]
    rows = gradients(ORDERS[:SHORT], p.shape, case.grad)
    both(gpu, case, [other, p], [[values([2, i], 1, 700, case.grad)[0], g] for i, g in enumerate(rows)])


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_whole_gradients_in_turn_with_rows(case, gpu):
    p = table(case, rows=61)
    repeated, none, permuted = gradients(["repeated", "none", "permuted"], p.shape, case.grad)
    dense = values([5], 1, p.size, case.grad)[0].reshape(p.shape)
    both(gpu, case, [p], [[repeated], [dense], [none]])
    both(gpu, case, [p], [[dense], [permuted], [None]])


@pytest.mark.parametrize("shape", [(7,), (7, 1), (40, 3), (9, 5, 2, 3), (6, 1, 4), (5, 0), (0, 4), (11, 700)], ids=str)
@pytest.mark.parametrize("grad", ALL_FLOATS)
def test_shapes_types_and_layouts(shape, grad, gpu):
    for i, dtype in enumerate(("float32", "float64", "bfloat16", "float16")):
        p = values([3], 1, int(np.prod(shape)), dtype)[0].reshape(shape)
        steps = gradients(["repeated", "ascending"], shape, grad)
        theirs = p.copy()
        other = REFERENCE["adam"](theirs, l2=0.1, ema=0.9)
        how = [how for how in LAYOUTS if how.gap % 8 == how.row_gap % 8 == how.shift % 8 == 0][i]
        mine = gpu.array(how.place(p))
        opt = optimizers.Adam(mine, l2=0.1, ema=0.9)
        for g in steps:
            opt.step(gs.Rows(g.indices, gpu.array(how.place(g.values))))
            other.step(g)
        assert same_bits(gpu.numpy(mine), theirs), f"{dtype} {how}"
        assert same_bits(gpu.numpy(opt.state["average"]), other.state["average"])


@pytest.mark.parametrize("length", [1, 63, 256, 300, 1024])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stochastic_rounding(dtype, length, gpu):
    """Of parameters, states and copies: random bits are those of an element's place in the table."""
    p = values([length], 1, 300 * length, dtype)[0].reshape(300, length)
    start = p.copy()
    copies = [np.zeros(p.shape, "bfloat16") for _ in range(2)]
    mine, copied = gpu.array(start), gpu.array(copies[0])
    options = {"stochastic_rounding": SEED, "state_dtype": "bfloat16"}
    opt = optimizers.Adam(mine, copy_out=copied, **options)
    other = reference.Adam(p := start.copy(), copy_out=copies[1], **options)
    for g in gradients(["repeated", "ascending", "permuted"], p.shape, dtype):
        opt.step(there(gpu, g))
        other.step(g)
    for x, y in ((mine, p), (copied, copies[1]), *((opt.state[name], other.state[name]) for name in opt.state)):
        assert same_bits(gpu.numpy(x), y)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_clipping_statistics_and_sums(dtype, gpu):
    shape = (50, 130)
    p, *flats = numbers(1, [50 * 130] * 4, dtype)
    theirs = [p.reshape(shape).copy(), p[:99].copy()]
    params = to(gpu, [x.copy() for x in theirs])
    options = {"clip_norm": 0.01, "on_nonfinite": "skip"}
    opt, ref = optimizers.Nadam(params, **options), REFERENCE["nadam"](theirs, **options)
    for k, values_of in enumerate(flats):
        chosen = indices(["repeated", "permuted", "ascending"][k], 50, k)
        rows = gs.Rows(chosen, np.resize(values_of, (len(chosen), 130)))
        g = [rows, values_of[:99]]
        assert gs.global_norm([there(gpu, x) for x in g]) == reference.global_norm(g)
        opt.accumulate([there(gpu, x) for x in g])
        ref.accumulate(g)
        for of in (..., g):
            result = opt.step(of if of is ... else [there(gpu, x) for x in of], 2.0, stats=True)
            expected = ref.step(of, 2.0, stats=True)
            assert result.stats == named(expected.stats, opt.names)
            assert (result.grad_norm, result.clip_factor) == (expected.grad_norm, expected.clip_factor)
    assert all(same_bits(gpu.numpy(a), b) for a, b in zip(params, theirs, strict=True))
    bad = np.ones((3, 130), dtype)
    bad[1, 7] = np.nan
    result = opt.step([there(gpu, gs.Rows([4, 2, 30], bad)), None])
    assert (result.applied, result.nonfinite) == (False, ("[0]", 2 * 130 + 7))


def test_refusals(library):
    p = np.ones((4, 3), np.float32)
    on_gpu = library.array(p)
    opt = gs.Adam({"emb": on_gpu})
    row = library.array(p[:1])
    for wrong, error, words in (
        ([4], ValueError, r"grads\.emb has the index 4 at place 0 of its indices, but its parameter has 4 rows"),
        (np.array([-1]), ValueError, "negative indices are not supported"),
        (library.array(np.array([7], np.int32)), ValueError, "has the index 7"),
        (np.array([1.0]), TypeError, r"the indices of grads\.emb must be integers"),
        (library.array(np.array([1], np.float32)), TypeError, r"the indices of grads\.emb must be integers"),
        (np.array([True]), TypeError, "numpy.flatnonzero"),
        (np.array([[1]]), ValueError, "must have one axis, but have 2"),
        ({1}, TypeError, "must be an array of integers, not set"),
        ([1, 2], ValueError, r"the values of grads\.emb have shape \(1, 3\), but must have shape \(2, 3\)"),
    ):
        with pytest.raises(error, match=words):
            opt.step({"emb": gs.Rows(wrong, row)})
    assert opt.step_count == 0
    assert np.all(library.numpy(on_gpu) == 1)
    opt.step({"emb": gs.Rows(library.array(np.array([1])), row)})
    assert np.all((library.numpy(on_gpu) < 1) == [[False], [True], [False], [False]])


@pytest.mark.usefixtures("emulated")
def test_captured_steps_have_no_rows(gpu):
    p, rows = gpu.array(np.ones((4, 3), np.float32)), gs.Rows([1], gpu.array(np.ones((1, 3), np.float32)))
    opt = optimizers.SGD(p)
    with pytest.raises(RuntimeError, match="row gradients cannot be used while a step is captured"):
        Graph(gpu, lambda: opt.step(rows))
    g = gpu.array(np.ones((4, 3), np.float32))
    opt.step(rows)
    Graph(gpu, lambda: opt.step(g)).replay()
    with pytest.raises(RuntimeError, match="or after one was"):
        opt.step(rows)

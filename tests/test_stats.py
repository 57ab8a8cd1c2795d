"""Norms of each parameter in a step: they have the reference's bits, and the step has those that it has without."""

from itertools import product

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from tests.table import (
    ALL_FLOATS,
    ALL_STORAGES,
    ISAS,
    LAYOUTS,
    PLAIN,
    REFERENCE,
    RULES,
    SEED,
    SHORT,
    STORAGES,
    THREADS,
    assert_same,
    flat,
    same_bits,
    split,
    stored_cases,
    stored_problem,
)
from tests.test_clip import numbers
from tests.test_rows import indices
from tests.test_transaction import everything

SIZES = [3, 0, 300, 4097, 30_000, 1]
CASES = stored_cases(storages=ALL_STORAGES, settings=["widest"])


def case_problem(case, sizes=SIZES):
    """Numbers whose norms depend on the order of additions, as a parameter and gradients."""
    size = sum(sizes)
    p, grads = numbers(3, [size], "float64")[0], numbers(4, [size] * SHORT, "float64")
    dtype, grad = (a.dtype for a in stored_problem(size, case.storage.param, case.grad))
    return p.astype(dtype), [g.astype(grad) for g in grads]


def named(stats, names):
    """The reference's norms as those of the result."""
    return {name: tuple(norms) for name, norms in zip(names, stats, strict=True) if norms is not None}


def both(cls, ref, params, theirs, steps, options):
    """Takes steps, given as gradients and scales, with both, and compares norms, arrays and results."""
    ours, other = cls(params, **options), ref(theirs, **options)
    for grads, scale in steps:
        result, expected = ours.step(grads, scale, stats=True), other.step(grads, scale, stats=True)
        assert result.stats == named(expected.stats, ours.names)
        assert result.grad_norm == expected.grad_norm
    assert_same({"params": flat(params)}, {"params": flat(theirs)}, options)
    return ours


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stats(case):
    p, grads = case_problem(case)
    steps = [(split(g, SIZES), (1.0, 8.0, 3.0)[i % 3]) for i, g in enumerate(grads)]
    passes = [{}, {"clip_norm": 1.0}, {"clip_per_tensor": 1.0, "on_nonfinite": "skip"}]
    for i, (isa, threads) in enumerate(product(ISAS, (1, 3))):
        _core.use_isa(isa)
        gs.set_num_threads(threads)
        options = case.options() | passes[i % len(passes)]
        params = split(p.copy(), SIZES)
        opt = both(RULES[case.rule], REFERENCE[case.rule], params, split(p.copy(), SIZES), steps, options)
        plain = split(p.copy(), SIZES)
        without = RULES[case.rule](plain, **options)
        for g, scale in steps:
            assert without.step(g, scale).stats is None
        assert everything(opt, params) == everything(without, plain)


@pytest.mark.parametrize("stochastic", [None, SEED])
@pytest.mark.parametrize("dtype", ALL_FLOATS)
def test_layouts(dtype, stochastic):
    """The norms are those of arrays in C order; so are those of a step without stats between two with them."""
    if stochastic is not None and dtype in ("float64", "float32"):
        pytest.skip("there is nothing to round")
    shapes = [(41, 130), (3, 70, 31), (2, 3, 4, 3, 2), (9000,), ()]
    p = [x.reshape(s) for x, s in zip(numbers(1, [int(np.prod(s)) for s in shapes], dtype), shapes, strict=True)]
    grads = [
        [x.reshape(s) for x, s in zip(numbers(k, [int(np.prod(s)) for s in shapes], dtype), shapes, strict=True)]
        for k in (2, 3, 4)
    ]
    options = {"l2": 0.1, "clip_norm": 0.5, "stochastic_rounding": stochastic, "ema": 0.9}
    c_order = REFERENCE["adam"]([x.copy() for x in p], **options)
    expected = [c_order.step(g, stats=k != 1).stats for k, g in enumerate(grads)]
    for i, how in enumerate(LAYOUTS):
        params = [how.place(x) for x in p]
        opt = gs.Adam(params, **options)
        for k, g in enumerate(grads):
            other = LAYOUTS[(i * 5 + k) % len(LAYOUTS)]
            stats = opt.step([other.place(x) for x in g], stats=k != 1).stats
            assert stats == (None if k == 1 else named(expected[k], opt.names)), how


@pytest.mark.parametrize("shape", [(300, 700), (64, 64, 3, 3), (1200, 1300)], ids=str)
def test_transposed_gradients(shape):
    """These are gathered in blocks, and their chunks are visited in another order."""
    p, g = (x.reshape(shape) for x in numbers(5, [int(np.prod(shape))] * 2, "float32"))
    theirs = REFERENCE["adam"](p.copy())
    expected = [theirs.step(g, stats=True).stats for _ in range(2)]
    for threads in THREADS:
        gs.set_num_threads(threads)
        opt = gs.Adam(p.copy())
        for k in range(2):
            stats = opt.step(np.ascontiguousarray(g.T).T, stats=True).stats
            assert stats == named(expected[k], [""])


@pytest.mark.parametrize("case", stored_cases(storages=[*PLAIN, STORAGES[-1]], settings=["default"]), ids=str)
def test_rows(case):
    """The norms are those of the rows that the step has read."""
    p = case_problem(case, [40 * 256])[0].reshape(40, 256)
    chosen = [indices(order, 40, k) for k, order in enumerate(["repeated", "permuted", "none", "all"])]
    rows = [gs.Rows(of, numbers(k, [len(of) * 256], case.grad)[0].reshape(-1, 256)) for k, of in enumerate(chosen)]
    steps = [([g, g], 2.0) for g in rows]
    for how in LAYOUTS[:3]:
        both(
            RULES[case.rule],
            REFERENCE[case.rule],
            [how.place(p), p.copy()],
            [p.copy(), p.copy()],
            steps,
            case.options(),
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("accumulation", ["mean", "sum"])
@pytest.mark.parametrize("guard", ["skip", "raise"])
def test_accumulated_gradients(accumulation, guard, dtype):
    p, *grads = (split(x, SIZES) for x in numbers(7, [sum(SIZES)] * 4, dtype))
    params, theirs = [x.copy() for x in p], [x.copy() for x in p]

    def options():
        scale = gs.LossScale(64.0, interval=1) if guard == "skip" else None
        return {"accumulation": accumulation, "loss_scale": scale, "on_nonfinite": guard, "clip_per_tensor": 0.01}

    opt, ref = gs.Nadam(params, **options()), REFERENCE["nadam"](theirs, **options())
    for last in (..., grads[0], ...):
        for g in grads:
            opt.accumulate(g), ref.accumulate(g)
        result, expected = opt.step(last, 2.0, stats=True), ref.step(last, 2.0, stats=True)
        assert result.stats == named(expected.stats, opt.names)
        assert (result.grad_norm, result.clip_factor) == (expected.grad_norm, expected.clip_factor)
    assert all(same_bits(a, b) for a, b in zip(params, theirs, strict=True))


def test_who_is_in_it():
    """Parameters that take part, by name; no one where a step was skipped."""
    p = {"a": {"w": np.ones(4), "b": np.ones(3)}, "c": [np.ones(2), np.ones(1)], "empty": np.ones(0)}
    opt = gs.SGD(p, lr=1.0, on_nonfinite="skip", options={"c[0]": {"frozen": True}})
    g = {"a": {"w": np.full(4, 0.5), "b": None}, "c": [np.ones(2), np.full(1, 3.0)], "empty": np.ones(0)}
    result = opt.step(g, 0.5, stats=True)
    assert result.stats == {"a.w": (2.0, 2.0, 0.0), "c[1]": (6.0, 6.0, 5.0), "empty": (0.0, 0.0, 0.0)}
    norms = result.stats["a.w"]
    assert isinstance(norms, gs.TensorNorms)
    assert (norms.gradient, norms.update, norms.weight) == norms
    assert repr(result).endswith("weight=0.0)})")
    g["c"][1][0] = np.inf
    result = opt.step(g, stats=True)
    assert not result.applied
    assert result.stats is None
    g["c"][1][0] = 1.0
    assert opt.step(g).stats is None


def test_an_update_that_rounding_loses_is_zero():
    p = np.ones(8, np.float16)
    stats = gs.SGD(p, lr=1e-6).step(np.ones(8, np.float16), stats=True).stats
    assert stats[""] == (np.sqrt(8.0), 0.0, np.sqrt(8.0))
    stats = gs.SGD(p, lr=1e-6, master=True).step(np.ones(8, np.float16), stats=True).stats
    assert stats[""].update > 0


def test_bound_and_overlapping_gradients():
    p = np.arange(6.0)
    opt = gs.SGD(p[::2], lr=1.0)
    assert opt.step(p[1::2], stats=True).stats == {"": (np.sqrt(35.0), np.sqrt(35.0), np.sqrt(3.0))}
    g = np.full(3, 2.0)
    opt = gs.SGD(p[::2], lr=0.0, grads=g)
    assert opt.step(stats=True).stats[""].gradient == np.sqrt(12.0)


@pytest.mark.parametrize("stats", [1, None, "yes", np.array([True, False])])
def test_refusals(stats):
    p = np.zeros(3)
    opt = gs.SGD(p)
    with pytest.raises((TypeError, ValueError), match=r"SGD: stats must be True or False"):
        opt.step(np.ones(3), stats=stats)
    assert not p.any()
    assert opt.step_count == 0

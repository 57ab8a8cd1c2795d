"""A gradient may be of any float type on a GPU, too."""

import numpy as np
import pytest

from gradstep import optimizers
from tests.gpu.test_bits import EVERY_RULE, SIZES, run, to
from tests.table import (
    ALL_FLOATS,
    PLAIN,
    REFERENCE,
    RULES,
    SHORT,
    Storage,
    assert_same,
    same_bits,
    split,
    stored_cases,
    stored_problem,
)
from tests.table import run as expect
from tests.test_clip import clipped

CASES = stored_cases(storages=PLAIN, grads=ALL_FLOATS, settings=["flush", "widest"])
CODED = [Storage("float32", "q8"), Storage("bfloat16", "bfloat16", stochastic=True), Storage("float16", master=True)]


@pytest.mark.parametrize(
    "case", [*CASES, *stored_cases(storages=CODED, grads=["float64"], settings=["widest"])], ids=str
)
def test_every_pair_of_types(case, gpu):
    p, grads = case.problem(sum(SIZES))
    ours = run(gpu, case.rule, split(p, SIZES), [split(g, SIZES) for g in grads], case.options())
    assert_same(ours, case.expected(SIZES), "")


@pytest.mark.parametrize("case", CASES[1::2], ids=str)
def test_clipped_steps(case, gpu):
    params, grads, knobs = clipped(case)
    expected = expect(REFERENCE[case.rule], params(), grads, knobs)
    assert_same(run(gpu, case.rule, params(), grads, knobs), expected, "")


@pytest.mark.parametrize("clip_norm", [None, 10.0])
@pytest.mark.parametrize("case", stored_cases(["momentum", "adam"], PLAIN, ALL_FLOATS, ["widest"]), ids=str)
def test_strides(case, clip_norm, gpu):
    """Of a parameter, of its gradient, and of both; and one that has none, all in one optimizer."""
    p, *grads = (np.random.default_rng(i).standard_normal((4, 37, 106)) for i in range(1 + SHORT))
    p, grads = p.astype(case.storage.param), [g.astype(case.grad) for g in grads]
    knobs = case.options() | {"clip_norm": clip_norm}

    def turned(array):
        return array.swapaxes(0, 1)[::2]

    def placed(arrays, strided):
        """Those of these numbers as views, the others packed."""
        return [
            turned(gpu.array(x)) if k in strided else gpu.array(np.ascontiguousarray(turned(x)))
            for k, x in enumerate(arrays)
        ]

    ours, theirs = placed(p, (1, 3)), [turned(x).copy() for x in p]
    opt, ref = RULES[case.rule](ours, **knobs), REFERENCE[case.rule](theirs, **knobs)
    for g in grads:
        opt.step(placed(g, (2, 3)))
        ref.step([turned(x) for x in g])
        assert clip_norm is None or opt.grad_norm == ref.grad_norm
    assert all(same_bits(gpu.numpy(a), b) for a, b in zip(ours, theirs, strict=True))


@EVERY_RULE
def test_types_may_take_turns(rule, library):
    """In one list, and from one step to the next."""
    ours, theirs = ([stored_problem(600, dtype, dtype)[0].copy() for dtype in ALL_FLOATS] for _ in range(2))
    ours = to(library, ours)
    opt, ref = RULES[rule](ours), REFERENCE[rule](theirs)
    for step in range(4):
        grads = [
            stored_problem(600, dtype, ALL_FLOATS[(i + step) % 4])[1][step % SHORT]
            for i, dtype in enumerate(ALL_FLOATS)
        ]
        opt.step(to(library, grads))
        ref.step(grads)
    assert all(same_bits(library.numpy(a), b) for a, b in zip(ours, theirs, strict=True))


def test_a_double_is_rounded_once(gpu):
    ulp = 2.0**-23
    g = np.array([1 + ulp / 2, 1 + ulp / 2 + 2.0**-52, 2.0**-150, 2.0**-150 + 2.0**-202, 2.0**128 - 2.0**103] * 100)
    p = gpu.array(np.zeros(g.size, np.float32))
    optimizers.SGD(p, lr=1.0).step(gpu.array(g))
    assert same_bits(gpu.numpy(p), 0 - np.array([1, 1 + ulp, 0, 2.0**-149, np.inf] * 100, np.float32))

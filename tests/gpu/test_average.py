"""Averages and copies of the parameters on a GPU."""

import numpy as np
import pytest

from gradstep import optimizers
from tests.gpu.test_bits import SIZES, run, to
from tests.table import ALL_STORAGES, REFERENCE, RULES, assert_same, same_bits, stored_problems
from tests.table import run as expect
from tests.test_average import EMAS, decay
from tests.test_copy_out import BFLOAT16, copy_types
from tests.test_copy_out import storages as copied_storages


@pytest.mark.parametrize("storage", ALL_STORAGES, ids=str)
def test_bits(storage, gpu):
    for i, rule, params, grads in stored_problems(storage, SIZES):
        options = {**storage.options(), **EMAS[i % len(EMAS)]}
        ours = run(gpu, rule, params(), grads, options)
        assert_same(ours, expect(REFERENCE[rule], params(), grads, options), f"{rule} {storage}")


@pytest.mark.parametrize("storage", copied_storages(), ids=str)
def test_copies(storage, gpu):
    dtypes = copy_types(storage.param)
    for i, rule, start, grads in stored_problems(storage, SIZES):
        knobs = {**storage.options(), "ema": 0.75 if i % 2 else None}
        params = start()
        copies = [np.zeros(x.shape, dtypes[(i + k) % len(dtypes)]) for k, x in enumerate(params)]
        there, copied = to(gpu, params), to(gpu, copies)
        ours, theirs = RULES[rule](there, copy_out=copied, **knobs), REFERENCE[rule](params, copy_out=copies, **knobs)
        for g in grads:
            ours.step(to(gpu, g))
            theirs.step(g)
        for k, (mine, other) in enumerate(zip([*there, *copied], [*params, *copies], strict=True)):
            assert same_bits(gpu.numpy(mine), other), f"{rule} {k}"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_strides(dtype, gpu):
    """Of parameters and copies; averages have the order of their parameters."""
    dtype = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(0)
    start = rng.standard_normal((74, 300)).astype(dtype)
    p, copied = gpu.array(start)[::2, ::3], gpu.array(np.zeros((100, 37), np.float32).T)
    other, copies = start[::2, ::3].copy(), np.zeros((37, 100), np.float32)
    ours = optimizers.Adam(p, ema=decay, copy_out=copied)
    theirs = REFERENCE["adam"](other, ema=decay, copy_out=copies)
    for _ in range(3):
        g = rng.standard_normal(other.shape).astype(np.float32)
        ours.step(gpu.array(g))
        theirs.step(g)
    assert same_bits(gpu.numpy(p), other)
    assert same_bits(gpu.numpy(copied), copies)
    assert same_bits(gpu.numpy(ours.state["average"]), theirs.state["average"])


@pytest.mark.parametrize("correction", [False, True])
def test_averaged(correction, library):
    """Of libraries, with a checkpoint on the way."""
    rng = np.random.default_rng(3)
    start = [rng.standard_normal((5, 60)).astype(np.float32), rng.standard_normal(1000).astype(BFLOAT16)]
    params, others = to(library, start), [x.copy() for x in start]
    knobs = {"ema": 0.75, "ema_correction": correction}
    ours, theirs = optimizers.NAG(params, **knobs), REFERENCE["nag"](others, **knobs)
    for step in range(4):
        g = [rng.standard_normal(x.shape).astype(np.float32) for x in start]
        ours.step(to(library, g))
        theirs.step(g)
        if step == 1:
            saved = ours.state_dict()
            ours = optimizers.NAG(params, **knobs)
            ours.load_state_dict(saved)
        before = [library.numpy(x) for x in params]
        with ours.averaged(), theirs.averaged():
            assert all(same_bits(library.numpy(x), y) for x, y in zip(params, others, strict=True))
            with pytest.raises(RuntimeError, match=r"within averaged\(\)"):
                ours.step(to(library, g))
        assert all(same_bits(library.numpy(x), y) for x, y in zip(params, before, strict=True))
    average = [library.numpy(x) for x in ours.state["average"]]
    assert all(same_bits(x, y) for x, y in zip(average, theirs.state["average"], strict=True))

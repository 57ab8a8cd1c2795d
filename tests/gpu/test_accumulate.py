"""Accumulated gradients on a GPU."""

import numpy as np
import pytest

from gradstep import optimizers
from tests.gpu.test_bits import SIZES, to
from tests.table import ALL_STORAGES, REFERENCE, RULES, flat, leaves, same_bits, stored_problems
from tests.test_accumulate import HOWS, accumulate_and_step


@pytest.mark.parametrize("storage", ALL_STORAGES, ids=str)
def test_bits(storage, gpu):
    for i, rule, start, grads in stored_problems(storage, SIZES):
        options = {**storage.options(), **HOWS[i % len(HOWS)]}
        params = start()
        there = to(gpu, params)
        ours, theirs = RULES[rule](there, **options), REFERENCE[rule](params, **options)
        accumulate_and_step(ours, to(gpu, grads))
        accumulate_and_step(theirs, grads)
        assert all(same_bits(gpu.numpy(a), b) for a, b in zip(there, params, strict=True)), rule
        for name, arrays in ours.state.items():
            mine = flat([gpu.numpy(array) for array in leaves(arrays)])
            assert same_bits(mine, flat(theirs.state[name])), f"{rule} {name}"


def test_skipped_steps_clear_the_sums(gpu):
    """The kernels do it: the host does not know of the skip."""
    g = np.full((40, 300), np.inf, np.float32)
    p = gpu.array(np.ones(g.shape, np.float32))
    opt = optimizers.SGD(p, lr=1.0, on_nonfinite="skip")
    opt.accumulate(gpu.array(g))
    opt.step()
    assert np.all(gpu.numpy(p) == 1)
    opt.accumulate(gpu.array(np.full(g.shape, 0.5, np.float32)))
    opt.step()
    assert np.all(gpu.numpy(p) == 0.5)


def test_libraries(library):
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((5, 60)).astype(np.float32), rng.standard_normal(1000)]
    params, others = to(library, start), [x.copy() for x in start]
    ours, theirs = optimizers.Adam(params), REFERENCE["adam"](others)
    for step in range(3):
        for _ in range(2):
            g = [rng.standard_normal(x.shape).astype(np.float32) for x in start]
            ours.accumulate(to(library, g))
            theirs.accumulate(g)
        if step == 1:
            saved = ours.state_dict()
            ours = optimizers.Adam(params)
            ours.load_state_dict(saved)
        ours.step()
        theirs.step()
    assert all(same_bits(library.numpy(x), y) for x, y in zip(params, others, strict=True))

"""Norms of each parameter in a step on a GPU."""

import numpy as np
import pytest

from gradstep import optimizers
from tests.gpu.test_bits import to
from tests.gpu.test_steps import Graph
from tests.table import LAYOUTS, REFERENCE, RULES, same_bits, split
from tests.test_clip import numbers
from tests.test_stats import CASES, SIZES, case_problem, named


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stats(case, gpu):
    p, grads = case_problem(case)
    params = split(p.copy(), SIZES)
    there = to(gpu, params)
    options = case.options() | {"clip_per_tensor": 1.0}
    ours, theirs = RULES[case.rule](there, **options), REFERENCE[case.rule](params, **options)
    for step, g in enumerate(grads):
        parts = split(g, SIZES)
        parts[step] = None
        result = ours.step(to(gpu, parts), 8.0, stats=step != 1)
        expected = theirs.step(parts, 8.0, stats=step != 1).stats
        assert result.stats == (expected and named(expected, ours.names))
    assert all(same_bits(gpu.numpy(a), b) for a, b in zip(there, params, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_layouts(dtype, gpu):
    shapes = [(41, 130), (3, 70, 31), (9000,), ()]
    p, *grads = (
        [x.reshape(s) for x, s in zip(numbers(k, [int(np.prod(s)) for s in shapes], dtype), shapes, strict=True)]
        for k in range(4)
    )
    params = [np.array(x, order="F") for x in p]
    there = [gpu.array(x) for x in params]
    ours, theirs = optimizers.Adam(there, ema=0.9), REFERENCE["adam"](params, ema=0.9)
    for step, g in enumerate(grads):
        result = ours.step([gpu.array(LAYOUTS[1 + step].place(x)) for x in g], stats=step != 1)
        expected = theirs.step(g, stats=step != 1).stats
        assert result.stats == (expected and named(expected, ours.names))
    assert all(same_bits(gpu.numpy(a), b) for a, b in zip(there, params, strict=True))


def test_skipped_and_accumulated_steps(gpu):
    p = gpu.array(np.ones(300, np.float32))
    opt = optimizers.SGD(p, lr=1.0, on_nonfinite="skip")
    opt.accumulate(gpu.array(np.full(300, np.inf, np.float32)))
    result = opt.step(stats=True)
    assert (result.applied, result.stats) == (False, None)
    for x in (0.25, 0.75):
        opt.accumulate(gpu.array(np.full(300, x, np.float32)))
    stats = opt.step(stats=True).stats
    assert stats[""] == (np.sqrt(75.0), np.sqrt(75.0), np.sqrt(75.0))
    result = opt.step(gpu.array(np.ones(300, np.float32)), stats=True)
    opt.step(gpu.array(np.ones(300, np.float32)))
    with pytest.raises(RuntimeError, match="must be read before the next step"):
        result.stats  # noqa: B018


def test_memory_is_released_when_norms_are_read(gpu, emulated):
    p, g = gpu.array(np.ones(3000, np.float32)), gpu.array(np.ones(3000, np.float32))
    opt = optimizers.SGD(p)
    opt.step(g, stats=True)
    before = emulated.counts()["allocations"]
    assert opt.step(g, stats=True).stats is not None
    assert emulated.counts()["allocations"] == before + 1


@pytest.mark.usefixtures("emulated")
def test_a_replay_cannot_return_stats(gpu):
    opt = optimizers.SGD(gpu.array(np.ones(3, np.float32)))
    g = gpu.array(np.ones(3, np.float32))
    with pytest.raises(RuntimeError, match="SGD: a replay cannot return stats"):
        Graph(gpu, lambda: opt.step(g, stats=True))
    assert opt.step_count == 0

"""The global norm on a GPU, and clipped steps: the bits of the processor."""

import math

import numpy as np
import pytest

from gradstep import _libraries, global_norm, optimizers, reference
from tests.gpu.test_bits import run, to
from tests.gpu.test_steps import Count, Graph
from tests.table import (
    FLOATS,
    LARGE,
    REFERENCE,
    RULES,
    SHORT,
    SMALL,
    WIDEST,
    assert_same,
    same_bits,
    split,
    stored_cases,
)
from tests.table import run as expect
from tests.test_clip import CHUNKS, clipped, numbers
from tests.test_refusals import steps_of


@pytest.mark.parametrize("dtype", ["float64", *FLOATS])
def test_norm(dtype, library):
    dtype = _libraries.numpy_dtype(dtype)
    for sizes in (SMALL, CHUNKS, LARGE, [3] * 321, [5] * 3401, [4097], [1], [0]):
        arrays = numbers(len(sizes), sizes, dtype)
        assert global_norm(to(library, arrays)) == reference.global_norm(arrays)
    for seed in range(10):
        arrays = numbers(seed, [50_000, 30_000], dtype)
        assert global_norm(to(library, arrays)) == reference.global_norm(arrays)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_norm_of_any_layout(dtype, library):
    [x] = numbers(3, [16 * 27 * 40], dtype)
    x, flat = library.array(x.reshape(16, 27, 40)), library.array(x)
    for view in (
        *(x, x.swapaxes(0, 2), x[:, ::2], x[..., 1:], x.swapaxes(0, 1)[3:]),
        *(flat[first : first + size] for first in range(5) for size in (1, 100, 4096, 9000)),
    ):
        assert global_norm(view) == reference.global_norm([library.numpy(view)])


def test_norm_of_a_nest(library):
    a, b = numbers(4, [700, 5000], "float32")
    expected = reference.global_norm([a, None, b, None])
    assert global_norm([None, to(library, a)]) == reference.global_norm([None, a])
    assert global_norm([{"a": to(library, a)}, None, [to(library, b)], None]) == expected
    with pytest.raises(TypeError, match=r"arrays\[1\] must be an array on a GPU, not numpy.ndarray|is not on a GPU"):
        global_norm([to(library, a), b[:0].astype(np.int8)])


def test_norm_at_the_edges(gpu):
    for x in (np.inf, np.nan, 3e38, 1e-45):
        array = np.array([x, 1, 0] * 3, np.float32)
        ours, theirs = global_norm(gpu.array(array)), reference.global_norm([array])
        assert same_bits(np.float64(ours), np.float64(theirs))


def test_streams_and_devices(gpu, emulated):
    x = gpu.array(np.ones(3, np.float32))
    assert global_norm(x, stream=5) == math.sqrt(3)
    assert emulated.counts()["stream"] == 5
    with pytest.raises(TypeError, match="stream must be a CUDA stream or its handle, not"):
        global_norm(x, stream="default")
    with pytest.raises(RuntimeError, match="global_norm waits for the device and cannot be captured in a graph"):
        Graph(gpu, lambda: global_norm(x))
    with gpu.module.cuda.Device(1):
        there = gpu.array(np.ones(3, np.float32))
    assert global_norm(there) == math.sqrt(3)
    with pytest.raises(ValueError, match=r"arrays\[1\] is on cuda:1, but arrays\[0\] on cuda:0"):
        global_norm([x, there])


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_clipped_steps(case, gpu):
    for sizes, limit in ((SMALL, 5.0), (LARGE, 1e-3), ([1000, 5000], 1e9)):
        p, *grads = numbers(3, [sum(sizes)] * (1 + SHORT), case.dtype)
        grads, knobs = [split(g, sizes) for g in grads], case.knobs | {"clip_norm": limit}
        expected = expect(REFERENCE[case.rule], split(p.copy(), sizes), grads, knobs)
        assert_same(run(gpu, case.rule, split(p, sizes), grads, knobs), expected, f"limit {limit}")


@pytest.mark.parametrize("case", stored_cases(settings=("widest",))[::2], ids=str)
def test_clipped_steps_of_stored_arrays(case, gpu):
    params, grads, knobs = clipped(case)
    expected = expect(REFERENCE[case.rule], params(), grads, knobs)
    assert_same(run(gpu, case.rule, params(), grads, knobs), expected, "")


def test_groups_of_every_width_are_clipped_together(library):
    """Several launches, with None among the gradients. The norm equals global_norm's."""
    sizes, dtypes = [300, 5000, 2, 700], ["float32", "float64", "float16", "bfloat16"]
    params = [x.astype(_libraries.numpy_dtype(d)) for x, d in zip(numbers(5, sizes, "f4"), dtypes, strict=True)]
    ours, theirs = to(library, params), [p.copy() for p in params]

    def groups(arrays):
        return [{"params": arrays[:2]}, {"params": arrays[2:], "maximize": True, "l2": 0.1}]

    opt = optimizers.Adam(groups(ours), clip_norm=0.5)
    ref = reference.Adam(groups(theirs), clip_norm=0.5)
    for step in range(4):
        flat = numbers(6 + step, sizes, "float32")
        flat = [x.astype(_libraries.numpy_dtype(d)) for x, d in zip(flat, dtypes, strict=True)]
        flat[step] = None
        opt.step([to(library, flat[:2]), to(library, flat[2:])])
        ref.step([flat[:2], flat[2:]])
        assert opt.grad_norm == ref.grad_norm == global_norm(to(library, flat))
    assert all(same_bits(library.numpy(a), b) for a, b in zip(ours, theirs, strict=True))


def test_it_may_change_between_steps(library):
    p, *grads = numbers(7, [3000] * 6, "float32")
    p, grads = p.reshape(50, 60), [g.reshape(50, 60) for g in grads]
    ours, theirs = library.array(p).swapaxes(0, 1), p.copy().swapaxes(0, 1)
    opt, ref = optimizers.Nadam(ours), reference.Nadam(theirs)
    for limit, g in zip((None, 0.5, 0.1, None, 2.0), grads, strict=True):
        opt.clip_norm = ref.clip_norm = limit
        opt.step(library.array(g.T))
        ref.step(g.T)
        assert same_bits(library.numpy(ours), theirs)


def test_four_launches_and_nothing_else(gpu, emulated):
    params, grads = ([gpu.array(np.ones(n, np.float32)) for n in (5, 9000, 40)] for _ in range(2))
    opt = optimizers.Adam(params, clip_norm=1.0, lr=lambda step: 0.1 / (1 + step))
    opt.step(grads)
    seen = Count(emulated)
    for limit in (0.5, 2.0, 0.1):
        opt.clip_norm = limit
        opt.step(grads)
    assert [seen[what] for what in ("launches", "allocations", "copies", "waits")] == [12, 0, 0, 0]


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_skipped_steps(limit, captured, gpu):
    """A skipped step advances no clock, nor Nadam's product of momenta."""
    sizes = [5, 5000]
    params, grads = numbers(8, sizes, "float32"), [numbers(9 + i, sizes, "float32") for i in range(6)]
    ours, theirs, bound = to(gpu, params), [p.copy() for p in params], to(gpu, grads[0])
    opt = optimizers.Nadam(ours, clip_norm=limit, on_nonfinite="skip")
    ref = reference.Nadam(theirs, clip_norm=limit, on_nonfinite="skip")
    replay = Graph(gpu, lambda: opt.step(bound)).replay if captured else lambda: opt.step(bound)
    for step, bad in enumerate((None, np.inf, None, np.nan, -np.inf, None)):
        if bad is not None:
            grads[step][1][4321] = bad
        for array, g in zip(bound, grads[step], strict=True):
            array[...] = gpu.array(g)
        replay()
        expected = ref.step(grads[step])
        assert expected.applied == (bad is None)
        assert np.isfinite(opt.grad_norm) == (bad is None)
        assert opt.step_count == ref.step_count
        assert steps_of(opt) == [ref.step_count] * 2
        assert all(same_bits(gpu.numpy(a), b) for a, b in zip(ours, theirs, strict=True)), step
    assert opt.step_count == 3
    if captured:
        with pytest.raises(ValueError, match="skipping cannot be turned on or off after a step was captured"):
            opt.on_nonfinite = "propagate"
    else:
        opt.on_nonfinite = "propagate"
        opt.step(bound)
        assert opt.step_count == 4


@pytest.mark.parametrize("first", ["eager", "captured"])
def test_replays(first, gpu):
    """Each replay computes the norm of its gradients, and the limit may change between replays."""
    sizes = [5, 5000]
    params, grads = numbers(8, sizes, "float32"), [numbers(9 + i, sizes, "float32") for i in range(6)]
    ours, theirs, bound = to(gpu, params), [p.copy() for p in params], to(gpu, grads[0])
    opt, ref = optimizers.Adam(ours, clip_norm=0.5), reference.Adam(theirs, clip_norm=0.5)
    done = 0
    if first == "eager":
        opt.step(bound)
        ref.step(grads[0])
        done = 1
    graph = Graph(gpu, lambda: opt.step(bound))
    assert first == "eager" or np.isnan(opt.grad_norm)  # captured, but not yet executed
    for step in range(done, 6):
        if step == 3:
            opt.clip_norm = ref.clip_norm = 0.01
        for array, g in zip(bound, grads[step], strict=True):
            array[...] = gpu.array(g)
        opt.step(bound) if step == 4 else graph.replay()
        ref.step(grads[step])
        assert opt.grad_norm == ref.grad_norm
        assert all(same_bits(gpu.numpy(a), b) for a, b in zip(ours, theirs, strict=True)), step
    with pytest.raises(ValueError, match="clipping cannot be turned on or off after a step was captured"):
        opt.clip_norm = None
    before = opt.state_dict()
    with pytest.raises(ValueError, match="clipping cannot be turned on or off after a step was captured"):
        opt.load_state_dict(optimizers.Adam(params, lr=0.5).state_dict())
    assert (opt.clip_norm, opt.lr, opt.state_dict()["groups"]) == (0.01, 1e-3, before["groups"])


def test_a_checkpoint_goes_on_elsewhere(library):
    p, *grads = numbers(20, [5000] * 4, "float32")
    stayed, here = p.copy(), p.copy()
    opt, cpu = optimizers.Adam(stayed, clip_norm=0.5), optimizers.Adam(here, clip_norm=0.5)
    for g in grads:
        opt.step(g)
    cpu.step(grads[0])
    there = library.array(here)
    moved = optimizers.Adam(there)
    moved.load_state_dict(cpu.state_dict())
    for g in grads[1:]:
        moved.step(library.array(g))
    assert same_bits(library.numpy(there), stayed)


def test_a_failure_of_cuda_is_an_error_and_no_step(gpu, emulated):
    param, grad = (gpu.array(np.ones(3, np.float32)) for _ in range(2))
    opt = optimizers.Adam(param, clip_norm=1.0)
    emulated.fail(True)
    try:
        with pytest.raises(RuntimeError, match="CUDA: launching a norm failed"):
            opt.step(grad)
    finally:
        emulated.fail(False)
    assert (opt.step_count, steps_of(opt)) == (0, [0])
    assert opt.grad_norm is None
    assert same_bits(gpu.numpy(param), np.ones(3, np.float32))


@pytest.mark.parametrize("rule", RULES)
def test_a_graph_of_a_first_step_of_every_rule(rule, gpu):
    p, g = numbers(30, [700] * 2, "float32")
    ours, theirs, grad = gpu.array(p), p.copy(), gpu.array(g)
    opt, ref = RULES[rule](ours, clip_norm=0.1), REFERENCE[rule](theirs, clip_norm=0.1)
    graph = Graph(gpu, lambda: opt.step(grad))
    assert same_bits(gpu.numpy(ours), p)
    for _ in range(SHORT):
        graph.replay()
        ref.step(g)
    assert same_bits(gpu.numpy(ours), theirs)

"""A sharded step has the bits of one process that accumulates the gradients of all ranks in their order."""

from contextlib import nullcontext
from functools import cache
from itertools import product

import numpy as np
import pytest

import gradstep as gs
from tests.mpi.ranks import RANKS, TIMEOUT, bits_of, of
from tests.table import ALL_STORAGES, REFERENCE, RULES

SIZES = {"a.b": 5, "layer": {"w": (200, 130), "b": 0}, "c": [16_384, (3, 1, 13_001)], "s": ()}
"""The shapes of parameters: 7 blocks, so that shares are uneven."""
STEPS = 20
OPTIONS = [
    {},
    {"clip_norm": 0.5, "ema": 0.5},
    {"clip_per_tensor": 0.25, "on_nonfinite": "skip", "weight_decay": 0.1},
    {"accumulation": "sum", "ema": 0.9, "ema_correction": True, "lr": gs.schedules.cosine(0.01, STEPS)},
    {"on_nonfinite": "raise", "options": {"*.w": {"l2": 0.1}, "a.b": {"frozen": True}}},
]
BUCKETS = [1, 2**16, gs.mpi.BUCKET]
"""A block of each rank, several blocks, everything."""
CASES = [
    (rule, storage, OPTIONS[(number + ranks) % len(OPTIONS)], ranks, BUCKETS[number % len(BUCKETS)])
    for number, (rule, storage) in enumerate(product(RULES, ALL_STORAGES))
    for ranks in RANKS
    if REFERENCE[rule].codes or not storage.state
]


def nest_of(make, shapes=SIZES):
    if isinstance(shapes, dict):
        return {name: nest_of(make, of) for name, of in shapes.items()}
    return [nest_of(make, of) for of in shapes] if isinstance(shapes, list) else make(shapes)


def numbers(seed, dtype, order="C"):
    rng = np.random.default_rng(seed)
    return nest_of(lambda shape: np.asarray(rng.standard_normal(shape).astype(dtype), order=order))


@cache
def gradients(step, rank, nonfinite, dtype=np.float32):
    grads = numbers([step, rank], dtype)
    if nonfinite and step == 3 and rank == 0:
        grads["c"][1][2, 0, 9_000] = np.nan
    if step == 5:
        grads["layer"]["w"] = None
    return grads


def outcome(task):
    try:
        result = task()
    except FloatingPointError as error:
        return str(error).partition(" is not finite")[0]
    return repr((result.applied, result.step, result.grad_norm, result.clip_factor, result.nonfinite))


def one_process(cls, params, ranks, nonfinite, steps=STEPS, begin=0, opt=None, **options):
    """Steps in one process, and what they returned."""
    opt = opt or cls(params, **options)
    outcomes = []
    for step in range(begin, begin + steps):
        for rank in range(ranks):
            opt.accumulate(gradients(step, rank, nonfinite))
        outcomes.append(outcome(opt.step))
    return opt, outcomes


def sharded_steps(opt, comm, nonfinite, steps=STEPS, begin=0):
    return [outcome(lambda s=s: opt.step(gradients(s, comm.rank, nonfinite))) for s in range(begin, begin + steps)]


@pytest.mark.parametrize(("rule", "storage", "options", "ranks", "bucket"), CASES, ids=str)
def test_every_rule_storage_and_number_of_ranks(rule, storage, options, ranks, bucket):
    comm = of(ranks)
    options = {**storage.options(), **options}
    dtype = gs._libraries.numpy_dtype(storage.param)
    nonfinite = "on_nonfinite" in options
    params = numbers(0, dtype)
    opt = gs.mpi.sharded(RULES[rule], params, comm=comm, bucket=bucket, timeout=TIMEOUT, **options)
    outcomes = sharded_steps(opt, comm, nonfinite)
    saved = opt.state_dict()
    with opt.averaged() if "ema" in options else nullcontext():
        averages = bits_of(params)
    expected = None
    if comm.rank == 0:
        whole = numbers(0, dtype)
        one, returned = one_process(RULES[rule], whole, ranks, nonfinite, **options)
        assert outcomes == returned
        assert bits_of(saved) == bits_of(one.state_dict())
        with one.averaged() if "ema" in options else nullcontext():
            expected = bits_of(whole)
        expected = bits_of(whole), expected
    assert (bits_of(params), averages) == comm.bcast(expected)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("order", ["F", "strided"])
@pytest.mark.parametrize("bucket", BUCKETS)
def test_parameters_that_are_not_in_c_order(ranks, order, bucket):
    comm = of(ranks)

    def make():
        params = numbers(0, np.float32, "F")
        if order == "strided":
            params["c"][0] = np.repeat(params["c"][0], 2)[::2]
        return params

    params, whole = make(), make()
    options = {"state_dtype": "q8", "clip_norm": 1.0, "ema": 0.5}
    opt = gs.mpi.sharded(gs.Adam, params, comm=comm, bucket=bucket, timeout=TIMEOUT, **options)
    outcomes = sharded_steps(opt, comm, False, 4)
    one, returned = one_process(gs.Adam, whole, ranks, False, 4, **options)
    assert outcomes == returned
    assert bits_of(params) == bits_of(whole)
    saved = opt.state_dict()
    if comm.rank == 0:
        assert bits_of(saved) == bits_of(one.state_dict())
    with opt.averaged(), one.averaged():
        assert bits_of(params) == bits_of(whole)
    assert bits_of(params) == bits_of(whole)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_of_other_types_and_orders(ranks, bucket, order):
    comm = of(ranks)
    params, whole = ([np.zeros((300, 200), dtype) for dtype in (np.float32, np.float64)] for _ in range(2))

    def grads(step, rank):
        rng = np.random.default_rng([step, rank])
        dtypes = (np.float16, np.float64) if step < 2 else (np.float64, np.float32)
        first, second = (np.asarray(rng.standard_normal((300, 200)).astype(dtype), order=order) for dtype in dtypes)
        return [first, None if step == 1 else second]

    opt = gs.mpi.sharded(gs.Adam, params, comm=comm, bucket=bucket, timeout=TIMEOUT)
    one = gs.Adam(whole)
    for step in range(4):
        opt.step(grads(step, comm.rank))
        for rank in range(ranks):
            one.accumulate(grads(step, rank))
        one.step()
    assert bits_of(params) == bits_of(whole)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"on_nonfinite": "skip", "accumulation": "sum"}], ids=str)
def test_the_reduction_of_the_library(ranks, bucket, options):
    """All ranks have the same bits. On up to two, there is one order of additions; on more, sums are about the same."""
    comm = of(ranks)
    params, whole = numbers(0, np.float32), numbers(0, np.float32)
    params["s"], whole["s"] = np.zeros(()), np.zeros(())
    nonfinite = "on_nonfinite" in options
    opt = gs.mpi.sharded(
        gs.Adam, params, comm=comm, order="fast", bucket=bucket, timeout=TIMEOUT, lr=1e-3, eps=1e-3, **options
    )
    outcomes = sharded_steps(opt, comm, nonfinite, 6)
    assert opt.step_count == 6 - nonfinite
    _, returned = one_process(gs.Adam, whole, ranks, nonfinite, 6, lr=1e-3, eps=1e-3, **options)
    assert len(set(comm.allgather(repr((bits_of(params), outcomes))))) == 1
    if ranks <= 2:
        assert outcomes == returned
        assert bits_of(params) == bits_of(whole)
    exact = gs.mpi._named(opt, whole)
    assert all(np.allclose(p, exact[name], rtol=1e-4, atol=1e-5) for name, p in gs.mpi._named(opt, None).items())


def test_what_buckets_and_orders_may_be():
    params = [np.zeros(3, np.float32)]
    with pytest.raises(ValueError, match='order must be "ranks" or "fast", not \'any\''):
        gs.mpi.sharded(gs.SGD, params, comm=of(1), order="any")
    for bucket in (0, -1):
        with pytest.raises(ValueError, match="bucket must be"):
            gs.mpi.sharded(gs.SGD, params, comm=of(1), bucket=bucket)


@pytest.mark.parametrize("ranks", RANKS)
def test_groups_scales_and_a_loss_scale(ranks):
    comm = of(ranks)

    def make(cls, **given):
        a, b = np.full(40_000, 0.5, np.float16), np.ones((3, 2), np.float32)
        groups = [{"params": {"a": a}, "lr": 0.1}, {"params": [b], "weight_decay": 0.1}]
        options = {"on_nonfinite": "skip", "loss_scale": gs.LossScale(2.0**20)}
        return [a, b], cls(groups, **options, **given)

    def grads(step, rank):
        a = np.full(40_000, 300.0 * step, np.float16)
        a[step] = np.inf if (step, rank) == (2, 0) else 7
        return [{"a": a}, [np.full((3, 2), rank, np.float64)]]

    arrays, opt = make(
        lambda *args, **options: gs.mpi.sharded(gs.Momentum, *args, timeout=TIMEOUT, **options), comm=comm
    )
    whole, one = make(gs.Momentum)
    for step in range(5):
        result = opt.step(grads(step, comm.rank), grad_scale=2.0)
        for rank in range(ranks):
            one.accumulate(grads(step, rank))
        assert result.applied == one.step(grad_scale=2.0).applied
    assert opt.loss_scale.value == one.loss_scale.value
    assert bits_of(arrays) == bits_of(whole)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_size_of_the_whole_decides_about_q8(ranks):
    """A part may be smaller than min_8bit_size, and its whole not."""
    comm = of(ranks)
    opt = gs.mpi.sharded(
        gs.Adam, [np.ones(16_384 + 9, np.float32), np.ones(9, np.float32)], comm=comm, state_dtype="q8"
    )
    dtypes = [[None if x is None else x.dtype.name for x in opt.state[name]] for name in ("exp_avg", "exp_avg_scale")]
    assert dtypes == [["int8", "float32"], ["float32", None]]

"""Steps of parts of tensors, each with a stepper of its own, have the bits of a step of the whole tensors.

Ranks of a distributed run work like this. Here they are threads, which exchange the sums of the gradient pass.
"""

import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product

import numpy as np
import pytest

import gradstep as gs
from tests.table import ALL_STORAGES, REFERENCE, RULES, same_bits

PART = 16384
SIZES = [5, 40_000, 0, 16_384, 90_001]
STEPS = 4


class Exchange:
    """Gathers the sums of all ranks, in their order."""

    def __init__(self, ranks):
        self.barrier, self.given = threading.Barrier(ranks), [None] * ranks

    def of(self, rank):
        def exchange(sums, tensor, element):
            self.given[rank] = sums, tensor, element
            self.barrier.wait(60)
            all_sums = np.concatenate([sums for sums, *_ in self.given])
            found = [position for _, *position in self.given if position[0] >= 0]
            self.barrier.wait(60)
            return all_sums, *(min(found) if found else (-1, -1))

        return exchange


def cuts(ranks):
    """What each rank has of each tensor, begin and end: of all blocks, one after the other, its share."""
    blocks = [-(-size // PART) for size in SIZES]
    firsts = np.cumsum([0, *blocks])
    shares = [sum(blocks) * rank // ranks for rank in range(ranks + 1)]
    return [
        [
            (begin * PART, min(end * PART, size)) if begin < end else (0, 0)
            for size, begin, end in zip(
                SIZES, np.clip(low - firsts[:-1], 0, blocks), np.clip(high - firsts[:-1], 0, blocks), strict=True
            )
        ]
        for low, high in pairwise(shares)
    ]


def buckets_of(parts):
    """One of two blocks, an empty one, one of one block, and one of the rest."""
    blocks = [min(PART, end - at) for begin, end in parts for at in range(begin, end, PART)]
    return [sum(blocks[:2]), 0, sum(blocks[2:3]), sum(blocks[3:])]


def make(rule, params, options, parts=None, exchange=None, stepped=None):
    opt = RULES[rule](params, **options)
    if parts is not None:
        begins = [(begin, size) for (begin, _), size in zip(parts, SIZES, strict=True)]
        opt._engine.stepper.set_parts(begins, exchange, buckets_of(parts), stepped)
    return opt


def gradients(step, dtype):
    rng = np.random.default_rng(step)
    return [rng.standard_normal(size).astype(dtype) for size in SIZES]


def of_part(arrays, parts):
    return [None if x is None else x[begin:end] for x, (begin, end) in zip(arrays, parts, strict=True)]


def in_threads(tasks):
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result(60) for future in [pool.submit(task) for task in tasks]]


OPTIONS = [
    {},
    {"clip_norm": 0.5, "ema": 0.5},
    {"clip_per_tensor": 0.25, "on_nonfinite": "skip", "weight_decay": 0.1},
    {"on_nonfinite": "raise"},
]
CASES = [
    (rule, storage, OPTIONS[number % len(OPTIONS)], 2 + number % 3)
    for number, (rule, storage) in enumerate(product(RULES, ALL_STORAGES))
    if storage.param != "float64" and (REFERENCE[rule].codes or not storage.state)
]


@pytest.mark.parametrize(("rule", "storage", "options", "ranks"), CASES, ids=str)
def test_bits(rule, storage, options, ranks):
    """Random bits, blocks of q8 and norms are those of the whole; a step is skipped or refused by all or by none."""
    dtype = gs._libraries.numpy_dtype(storage.param)
    whole = [x.astype(dtype) for x in gradients(100, np.float32)]
    pieces = [of_part([x.copy() for x in whole], parts) for parts in cuts(ranks)]
    given = {**storage.options(), **options}
    opt, exchange = make(rule, whole, given), Exchange(ranks)
    counts = [[] for _ in range(ranks)]
    opts = [
        make(rule, pieces[rank], given, parts, exchange.of(rank), counts[rank].append)
        for rank, parts in enumerate(cuts(ranks))
    ]
    for step in range(STEPS):
        grads = gradients(step, np.float32)
        if step == 1:
            grads[4][70_000] = np.nan if "on_nonfinite" in options else 7
        if step == 2:
            grads[1] = None

        def take(opt, grads=grads, parts=None):
            try:
                result = opt.step(grads if parts is None else of_part(grads, parts))
            except FloatingPointError as error:
                return str(error).replace("[4][", "["), opt.step_count
            return result.applied, result.grad_norm, result.clip_factor, result.nonfinite, result.step

        expected = take(opt)
        taken = in_threads(
            [lambda opt=opt, parts=parts: take(opt, parts=parts) for opt, parts in zip(opts, cuts(ranks), strict=True)]
        )
        assert all(repr(each) == repr(expected) for each in taken), (taken, expected)
        begins = [] if {"clip_norm", "clip_per_tensor", "on_nonfinite"} & options.keys() else [0]
        taken_by_all = expected[0] is True
        assert counts == [[*begins, 1, 2, 3, 4] if taken_by_all else []] * ranks
        for count in counts:
            count.clear()
        for i, p in enumerate(whole):
            assert same_bits(np.concatenate([of_rank[i] for of_rank in pieces]), p)
    for name in opt.state_names():
        for i, state in enumerate(opt.state[name]):
            if state is not None:
                assert same_bits(np.concatenate([of_rank.state[name][i] for of_rank in opts]), state), name


def one(exchange, sizes=(100,), **options):
    params = [np.ones(size, np.float32) for size in sizes]
    opt = gs.SGD(params, **options)
    opt._engine.stepper.set_parts([(0, size) for size in sizes], exchange)
    return params, opt


def test_an_error_in_the_exchange():
    """The step has not happened."""

    def exchange(*_):
        raise ConnectionError("a rank is gone")

    [p], opt = one(exchange, clip_norm=1.0)
    with pytest.raises(ConnectionError, match="a rank is gone"):
        opt.step([np.ones(100, np.float32)])
    assert (opt.step_count, p.min()) == (0, 1)


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (([1.0, 2.0], -1, -1), ValueError),
        (([1.0], 1, 0), ValueError),
        (([1.0],), RuntimeError),
        (None, RuntimeError),
        ((["a"], 0, 0), (RuntimeError, ValueError)),
    ],
)
def test_sums_that_do_not_fit(returned, error):
    [p], opt = one(lambda *_: returned, clip_norm=1.0)
    with pytest.raises(error):
        opt.step([np.ones(100, np.float32)])
    assert (opt.step_count, p.min()) == (0, 1)


def test_without_a_gradient_pass_nothing_is_exchanged():
    [p], opt = one(None)
    opt.step([np.ones(100, np.float32)])
    assert p.max() < 1


def test_a_bucket_is_complete_when_it_is_announced():
    """And those after it are as they were."""
    params, seen = [np.zeros(5, np.float32), np.zeros(3 * PART, np.float32)], []
    opt = gs.SGD(params, lr=1.0)
    opt._engine.stepper.set_parts(
        [(0, 5), (0, 3 * PART)],
        None,
        [5 + PART, PART, PART],
        lambda count: seen.append([count, *(int(np.count_nonzero(param)) for param in params)]),
    )
    opt.step([np.ones_like(param) for param in params])
    assert seen == [[0, 0, 0], [1, 5, PART], [2, 5, 2 * PART], [3, 5, 3 * PART]]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [100, 40_000])
def test_an_error_between_buckets(at, size):
    """The step is taken wholly, unless the error comes before its beginning. Nothing more is announced."""
    counts = []

    def stepped(count):
        counts.append(count)
        if count == at:
            raise ConnectionError("a rank is gone")

    params = [np.ones(size, np.float32) for _ in range(3)]
    opt = gs.Adam(params, lr=1.0)
    opt._engine.stepper.set_parts([(0, size)] * 3, None, [size] * 3, stepped)
    with pytest.raises(ConnectionError, match="a rank is gone"):
        opt.step([np.ones(size, np.float32)] * 3)
    assert counts == list(range(at + 1))
    assert opt.step_count == (at > 0)
    assert [p.min() == p.max() == (at == 0) for p in params] == [True] * 3
    opt._engine.stepper.set_parts([(0, size)] * 3, None)
    opt.step([np.ones(size, np.float32)] * 3)
    assert opt.step_count == 1 + (at > 0)


def test_a_fork_while_a_bucket_is_announced():
    """The thread that forks holds the lock of Python, which the announcement needs."""
    begun, ended = threading.Event(), threading.Event()

    def stepped(count):
        if count == 1:
            begun.set()
            ended.wait(60)

    params = [np.ones(40_000, np.float32) for _ in range(2)]
    opt = gs.SGD(params)
    opt._engine.stepper.set_parts([(0, 40_000)] * 2, None, [40_000] * 2, stepped)
    thread = threading.Thread(target=lambda: opt.step([np.ones(40_000, np.float32)] * 2))
    thread.start()
    assert begun.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0)
    ended.set()
    thread.join(60)
    assert os.waitpid(child, 0)[1] == 0
    assert (thread.is_alive(), opt.step_count) == (False, 1)


@pytest.mark.parametrize("buckets", [[100], [99, 1], [1, 19_999, 0], [-1, 20_001], [8192, 4096, 7713], [20_000, 1]])
def test_buckets_that_do_not_fit(buckets):
    opt = gs.SGD([np.ones(20_000, np.float32)])
    with pytest.raises(ValueError, match="buckets must have all elements, and end at multiples of 4096"):
        opt._engine.stepper.set_parts([(0, 20_000)], None, buckets)


def test_what_parts_cannot_do():
    _, opt = one(None)
    words = "stats and row gradients are for whole tensors"
    with pytest.raises(ValueError, match=words):
        opt.step([np.ones(100, np.float32)], stats=True)
    with pytest.raises(ValueError, match=words):
        opt.step([gs.Rows(np.array([1]), np.ones(1, np.float32))])
    stepper = gs.SGD([np.ones(10)])._engine.stepper
    for parts in ([(4096, 5000)], [(-PART, 10)], [(0, 9)], [(PART, 10)]):
        with pytest.raises(ValueError, match="must begin at a multiple of 16384 within its whole"):
            stepper.set_parts(parts, None)
    with pytest.raises(ValueError, match="each tensor must be a part"):
        stepper.set_parts([], None)


def test_a_cycle_through_the_exchange_is_collected():
    class Owner:
        def exchange(self, *given):
            return given

    owner = Owner()
    _, owner.opt = one(owner.exchange, clip_norm=1.0)
    owner.opt._engine.stepper.set_parts([(0, 100)], owner.exchange, [100], owner.exchange)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None

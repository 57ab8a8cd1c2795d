"""The global norm and clipped steps have the reference's bits in all settings."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep
from gradstep import _core, reference
from tests.table import (
    FLOATS,
    ISAS,
    LARGE,
    PREFETCHES,
    REFERENCE,
    RULES,
    SHORT,
    SMALL,
    THREADS,
    WIDEST,
    assert_same,
    flat,
    run,
    same_bits,
    schedule,
    split,
    stored_cases,
)

CHUNKS = [0, 1, 127, 128, 129, 4095, 4096, 4097, 128 * 4096 - 1, 128 * 4096, 129 * 4096 + 300]


def numbers(seed, sizes, dtype):
    """Arrays whose norm depends on the order of additions.

    The square of a small number is less than half a unit of a sum with a large one, but many of them add up.
    """
    rng = np.random.default_rng(seed)
    return [
        (np.where(rng.random(n) < 0.01, 2.0**9, 2.0**-18) * rng.uniform(0.5, 1, n) * rng.choice([-1, 1], n)).astype(
            dtype
        )
        for n in sizes
    ]


@pytest.mark.parametrize("dtype", ["float64", *FLOATS])
def test_norm(dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else gradstep._libraries.bfloat16()
    for sizes in (SMALL, CHUNKS, LARGE, [3] * 1000, *([n] for n in (*SMALL, *CHUNKS))):
        arrays = numbers(len(sizes), sizes, dtype)
        expected = reference.global_norm(arrays)
        exact = math.sqrt(math.fsum(np.concatenate(arrays).astype(np.float64) ** 2))
        assert abs(expected - exact) <= 100 * 2.0**-53 * exact  # no number takes part in more than 100 additions
        for isa, prefetch in product(ISAS, PREFETCHES):
            _core.use_isa(isa)
            _core.use_prefetch(prefetch)
            assert gradstep.global_norm(arrays) == expected, (isa, prefetch, sizes)
    _core.use_isa("")
    for seed, threads in product(range(10), THREADS):
        gradstep.set_num_threads(threads)
        arrays = numbers(seed, [50_000, 30_000], dtype)
        assert gradstep.global_norm(arrays) == reference.global_norm(arrays)


def test_the_order_of_additions_is_its_own():
    """The other tests are sensitive to the order: every other order gives another norm for some arrays."""

    def orders(x):
        square = x.astype(np.float64) ** 2
        yield gradstep.global_norm(x[::-1])
        yield gradstep.global_norm([x[:8192], x[8192:]])
        yield gradstep.global_norm([x[:20_000], x[20_000:]])
        yield math.sqrt(np.sum(square))
        yield math.sqrt(np.cumsum(square)[-1])
        yield math.sqrt(math.fsum(square))

    arrays = [x for seed in range(60) for x in numbers(seed, [50_000], "float32")]
    others = [[other != gradstep.global_norm(x) for other in orders(x)] for x in arrays]
    assert min(np.sum(others, axis=0)) >= 2


@settings(max_examples=200)
@given(st.data())
def test_norm_of_any_layout(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    dtype = data.draw(st.sampled_from(["float64", "float32", "float16"]))
    [x] = numbers(len(shape), [math.prod(shape)], dtype)
    x = x.reshape(shape)
    axes = data.draw(st.permutations(range(len(shape))))
    room = np.zeros([shape[axis] * data.draw(st.integers(1, 2)) for axis in axes], dtype)
    steps = [
        data.draw(st.sampled_from([1, -1])) * (full // shape[axis]) for full, axis in zip(room.shape, axes, strict=True)
    ]
    view = room[tuple(slice(None, None, step) for step in steps)].transpose(np.argsort(axes))
    view[...] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view()
    unaligned = np.ndarray(shape, dtype, raw)
    unaligned[...] = x
    expected = reference.global_norm([x])
    assert gradstep.global_norm(view) == gradstep.global_norm(unaligned) == gradstep.global_norm(x) == expected


def test_norm_of_a_nest():
    a, b, c = numbers(2, [5, 5000, 700], "float32")
    expected = reference.global_norm([a, None, b, c])
    assert gradstep.global_norm([a, None, b, c]) == expected == gradstep.global_norm([{"a": a, "b": None}, (b, [c])])
    assert gradstep.global_norm([{"x": a.astype(np.float64)}, b]) == reference.global_norm([a, b])
    assert gradstep.global_norm([]) == gradstep.global_norm(None) == gradstep.global_norm([None, {}]) == 0.0
    assert isinstance(gradstep.global_norm(a), float)
    assert gradstep.global_norm([a[:0], np.zeros((3, 0))]) == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norm_at_the_edges(dtype):
    info = np.finfo(dtype)
    for x in (info.smallest_subnormal, info.tiny, info.max, np.inf, -np.inf, np.nan, -0.0):
        array = np.array([x, 0], dtype)
        ours, theirs = gradstep.global_norm(array), reference.global_norm([array])
        assert same_bits(np.float64(ours), np.float64(theirs)), x
    assert gradstep.global_norm(np.full(1000, np.finfo(np.float32).max, np.float32)) < np.inf


def test_norm_of_numbers_whose_squares_are_subnormal():
    x = np.full(10_000, 1e-160)
    assert gradstep.global_norm(x) == reference.global_norm([x]) > 0


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_clipped_steps(case):
    for sizes, limit in ((SMALL, 5.0), (LARGE, 1e-3), ([1000, 5000], 1e9)):
        knobs = case.knobs | {"clip_norm": limit}
        p = numbers(3, [sum(sizes)], case.dtype)[0]
        grads = [split(g, sizes) for g in numbers(4, [sum(sizes)] * SHORT, case.dtype)]
        expected = run(REFERENCE[case.rule], split(p.copy(), sizes), grads, knobs)
        for isa, threads in product(ISAS, (1, 3)):
            _core.use_isa(isa)
            gradstep.set_num_threads(threads)
            ours = run(RULES[case.rule], [piece.copy() for piece in split(p, sizes)], grads, knobs)
            assert_same(ours, expected, f"{isa}, {threads} threads, limit {limit}")


def clipped(case):
    """A function that makes parameters, gradients with a finite norm, and options of a storage case."""
    sizes = [5, 4500, 300]
    p, grads = case.problem(sum(sizes))
    p = np.where(np.isfinite(p), p, 1).astype(p.dtype)
    grads = [split(np.where(np.abs(g.astype(np.float64)) < 1e4, g, 1).astype(g.dtype), sizes) for g in grads]
    return lambda: split(p.copy(), sizes), grads, case.options() | {"clip_norm": 3.0}


@pytest.mark.parametrize("case", stored_cases(settings=("flush", "widest")), ids=str)
def test_clipped_steps_of_stored_arrays(case):
    params, grads, knobs = clipped(case)
    expected = run(REFERENCE[case.rule], params(), grads, knobs)
    for isa in ISAS:
        _core.use_isa(isa)
        assert_same(run(RULES[case.rule], params(), grads, knobs), expected, isa)


@pytest.mark.parametrize("rule", RULES)
def test_layouts_have_the_same_bits(rule):
    """Parameters and gradients with any order of axes give the bits of C order."""
    shape = (33, 70)
    p, *grads = (x.reshape(shape) for x in numbers(5, [math.prod(shape)] * (1 + SHORT), "float32"))
    expected = run(REFERENCE[rule], p.copy(), grads, {"clip_norm": 0.5})
    placed = {
        "C": lambda x: x.copy(),
        "F": np.asfortranarray,
        "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        "backwards": lambda x: x[::-1].copy()[::-1],
    }
    for (name, of_param), (other, of_grad) in product(placed.items(), repeat=2):
        params = of_param(p.copy())
        ours = run(RULES[rule], params, [of_grad(g) for g in grads], {"clip_norm": 0.5})
        assert_same(ours, expected, f"parameter {name}, gradient {other}")


def test_groups_are_clipped_together_and_none_is_left_out():
    sizes = [300, 5000, 2]
    a, b, c = numbers(6, sizes, "float32")
    ga, gb, gc = numbers(7, sizes, "float32")
    grads = [[ga, None], {"c": gc}], [[ga, gb], {"c": None}], [[None, None], {"c": None}]

    def made(cls):
        params = [x.copy() for x in (a, b, c)]
        groups = [{"params": params[:2], "lr": schedule}, {"params": {"c": params[2]}, "maximize": True, "l2": 0.1}]
        opt = cls(groups, clip_norm=0.25)
        norms = []
        for g in grads:
            opt.step(g)
            norms.append(opt.grad_norm)
        return flat(params), norms

    ours, theirs = made(gradstep.Adam), made(reference.Adam)
    assert same_bits(ours[0], theirs[0])
    assert ours[1] == theirs[1] == [gradstep.global_norm(g) for g in grads]


def test_what_is_below_the_limit_keeps_its_bits():
    p, g = numbers(8, [5000] * 2, "float32")
    norm = gradstep.global_norm(g)
    for limit, changed in ((norm, False), (math.nextafter(norm, 0), True), (norm / 2, True)):
        clipped, free = p.copy(), p.copy()
        gradstep.SGD(clipped, lr=1.0, clip_norm=limit).step(g)
        gradstep.SGD(free, lr=1.0).step(g)
        # Just below the limit the factor rounds to 1.
        assert same_bits(clipped, free) == (not changed or np.float32(limit / norm) == 1)


def test_the_limit_is_kept():
    p = np.zeros(5000)
    [g] = numbers(9, [5000], "float64")
    kept = g.copy()
    gradstep.SGD(p, lr=1.0, clip_norm=2.0).step(g)
    assert abs(gradstep.global_norm(p) - 2.0) < 1e-15 * 2
    assert same_bits(g, kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_no_number_is_not_hidden(bad):
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    g = np.array([1, bad, 1], np.float32)
    ours, theirs = gradstep.SGD(p, lr=1.0, clip_norm=1.0), reference.SGD(q, lr=1.0, clip_norm=1.0)
    ours.step(g)
    theirs.step(g)
    assert same_bits(p, q)
    assert np.isnan(p[1])
    assert not math.isfinite(ours.grad_norm)


def test_bound_gradients():
    p, g = numbers(10, [5000] * 2, "float32")
    q = p.copy()
    ours = gradstep.Adam(p, clip_norm=0.5, grads=g)
    theirs = reference.Adam(q, clip_norm=0.5)
    for scale in (1, 3, 0.001):
        g *= np.float32(scale)
        ours.step()
        theirs.step(g)
    assert same_bits(p, q)


def test_it_may_change_between_steps():
    """The limit may also be turned on and off, with arrays not in C order."""
    p, *grads = (x.reshape(50, 60) for x in numbers(11, [3000] * 6, "float32"))
    params, same = np.asfortranarray(p.copy()), p.copy()
    ours, theirs = gradstep.Nadam(params), reference.Nadam(same)
    for limit, g in zip((None, 0.5, 0.1, None, 2.0), grads, strict=True):
        ours.clip_norm = theirs.clip_norm = limit
        assert ours.clip_norm == limit
        ours.step(g)
        theirs.step(g)
        assert np.array_equal(params, same)


def test_checkpoints_have_it():
    p, *grads = numbers(12, [3000] * 4, "float32")
    through, first, second = p.copy(), p.copy(), p.copy()
    opt = gradstep.Adam(through, clip_norm=0.5)
    for g in grads:
        opt.step(g)
    early = gradstep.Adam(first, clip_norm=0.5)
    early.step(grads[0])
    second[...] = first
    late = gradstep.Adam(second)
    late.load_state_dict(early.state_dict())
    assert late.clip_norm == 0.5
    for g in grads[1:]:
        late.step(g)
    assert same_bits(second, through)
    for bad, error in (("1", TypeError), (0.0, ValueError), (math.nan, ValueError)):
        with pytest.raises(error, match=r"^the state dict\['options'\]: clip_norm must be a finite number > 0"):
            late.load_state_dict(opt.state_dict() | {"options": {"clip_norm": bad}})
    assert late.clip_norm == 0.5
    late.load_state_dict(gradstep.Adam(p).state_dict())
    assert late.clip_norm is None


@pytest.mark.parametrize("rule", RULES)
def test_refusals(rule):
    cls, p = RULES[rule], np.ones(3, np.float32)
    words = f"{cls.__name__}: clip_norm must be a finite number > 0, or None, or a callable, got"
    for bad, error in ((0, ValueError), (-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError)):
        with pytest.raises(error, match=words):
            cls(p, clip_norm=bad)
    for bad in ("1", True, [1.0]):
        with pytest.raises(TypeError, match=words):
            cls(p, clip_norm=bad)
    with pytest.raises(TypeError, match=r"group 0 has no option 'clip_norm'"):
        cls([{"params": p, "clip_norm": 1.0}])
    opt = cls(p, clip_norm=1)
    with pytest.raises(ValueError, match="clip_norm must be"):
        opt.clip_norm = -1
    assert opt.clip_norm == 1
    for bad, error in ((10**400, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="clip_norm must be"):
            opt.clip_norm = bad
    assert opt.clip_norm == 1
    assert repr(opt).endswith(", clip_norm=1.0)")
    opt.clip_norm = None
    assert "clip_norm" not in repr(opt)


def test_the_norm_of_the_last_step():
    """grad_norm is None if there was no norm, also after loading a checkpoint."""
    p = np.ones(3, np.float32)
    opt = gradstep.Adam(p, clip_norm=1)
    assert opt.grad_norm is None
    saved = opt.state_dict()
    opt.step(p.copy())
    assert opt.grad_norm == math.sqrt(3)
    opt.step([np.zeros(3, np.float32)][0])
    assert opt.grad_norm == 0.0
    opt.load_state_dict(saved)
    assert opt.grad_norm is None
    opt.step(p.copy())
    opt.clip_norm = None
    assert opt.grad_norm is None
    opt.clip_norm = 2.0
    opt.step(np.ones(3, np.float32))
    assert opt.grad_norm == math.sqrt(3)
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(4, np.float32))
    assert opt.grad_norm == math.sqrt(3)


def test_limits_of_numpy():
    """NumPy scalars of any type become float64."""
    p, g = numbers(13, [700] * 2, "float32")
    for limit in (np.float32(0.1), np.float16(0.7), np.int64(2), np.float64(0.3)):
        ours, theirs = p.copy(), p.copy()
        gradstep.SGD(ours, lr=1.0, clip_norm=limit).step(g)
        reference.SGD(theirs, lr=1.0, clip_norm=limit).step(g)
        assert same_bits(ours, theirs)


def test_lookahead():
    p, *grads = numbers(14, [700] * 4, "float32")
    ours, theirs = p.copy(), p.copy()
    options = {"lookahead": True, "clip_norm": 0.1}
    opt, ref = gradstep.NAG(ours, **options), reference.NAG(theirs, **options)
    for g in grads:
        with opt.lookahead(), ref.lookahead():
            assert same_bits(ours, theirs)
        opt.step(g)
        ref.step(g)
    assert same_bits(ours, theirs)


def test_keys_that_look_the_same():
    class Key:
        def __repr__(self):
            return "key"

    arrays = {Key(): np.ones(9), Key(): np.ones(16)}
    assert gradstep.global_norm(arrays) == 5.0, "which needs no names"
    with pytest.raises(ValueError, match=r"^params has two arrays named \[key\]"):
        gradstep.SGD(arrays)


def test_norm_refusals():
    x = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"arrays\[1\] must be an array, or a list, .*, not str"):
        gradstep.global_norm([x, "x"])
    with pytest.raises(TypeError, match=r"arrays\.b\[0\] has dtype int64"):
        gradstep.global_norm({"a": x, "b": [np.ones(3, np.int64)]})
    with pytest.raises(TypeError, match="arrays is a masked array"):
        gradstep.global_norm(np.ma.masked_array(x))
    with pytest.raises(TypeError, match="global_norm: stream is for arrays on a GPU"):
        gradstep.global_norm(x, stream=1)
    x.flags.writeable = False
    assert gradstep.global_norm(x) == math.sqrt(3)

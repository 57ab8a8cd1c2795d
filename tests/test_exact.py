"""A step has the bits of the NumPy reference for every instruction set, thread count and split into tensors."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep
from gradstep import _core, reference
from tests.table import (
    CASES,
    DTYPES,
    FEW,
    ISAS,
    LARGE,
    PREFETCHES,
    REFERENCE,
    RULES,
    SMALL,
    STEPS,
    THREADS,
    WIDEST,
    Case,
    assert_same,
    knobs,
    problem,
    run,
    same_bits,
    say,
    schedule,
    special,
    split,
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_setting_at_every_small_size(case):
    """Steps of a list of arrays equal the reference's steps of one array."""
    p, grads = problem(sum(SMALL), case.dtype)
    expected = case.expected(p.size)
    for isa in ISAS:
        _core.use_isa(isa)
        pieces = [piece.copy() for piece in split(p, SMALL)]
        assert_same(case.ours(pieces, [split(g, SMALL) for g in grads]), expected, isa)
    _core.use_isa("")
    assert_same(case.ours(p.copy(), grads), expected, "one array")


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_threads_and_large_sizes(case):
    p, grads = problem(sum(LARGE), case.dtype)
    expected = case.expected(p.size)
    lists, one_array = product(ISAS, PREFETCHES, THREADS, [LARGE]), product([""], PREFETCHES, THREADS, [[p.size]])
    for isa, prefetch, threads, sizes in [*lists, *one_array]:
        _core.use_isa(isa)
        _core.use_prefetch(prefetch)
        gradstep.set_num_threads(threads)
        ours = case.ours(split(p.copy(), sizes), [split(g, sizes) for g in grads])
        assert_same(ours, expected, f"{_core.isa()}, prefetch {prefetch}, {threads} threads, {len(sizes)} arrays")
    assert _core.worker_count() >= max(THREADS) - 1


@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_alignment(case):
    """Parameters and gradients begin at all offsets within a cache line, each at another one."""
    starts = 64 // np.dtype(case.dtype).itemsize
    sizes = [n for n in (1, 3, 17, 33, 66) for _ in range(starts)]

    def placed(array, pace):
        views = []
        for i, piece in enumerate(split(array, sizes)):
            room = np.empty(piece.size + 2 * starts, piece.dtype)
            first = (i * pace - room.ctypes.data // piece.itemsize) % starts
            views.append(room[first : first + piece.size])
            views[-1][:] = piece
        return views

    p, grads = problem(sum(sizes), case.dtype)
    expected = case.expected(p.size)
    for isa in ISAS:
        _core.use_isa(isa)
        for pace in (1, 3):
            assert_same(case.ours(placed(p, 1), [placed(g, pace) for g in grads]), expected, f"{isa}, pace {pace}")


@st.composite
def settings_of_a_rule(draw):
    """A case with random numbers within the domain of every option."""
    rule = draw(st.sampled_from(list(RULES)))
    setting = dict(draw(st.sampled_from(knobs(rule))))
    fraction = st.floats(0, 0.999) | st.sampled_from([1e-300, 1e-42, 1e-8, 0.5, 1 - 1e-7])
    known = RULES[rule](np.zeros(1), **setting).groups[0]
    for name, value in known.items():
        if RULES[rule].known[name].fixed or name == "frozen":
            continue
        if isinstance(value, tuple):
            drawn = st.tuples(*[fraction] * len(value))
        elif isinstance(value, bool):
            drawn = st.booleans()
        elif isinstance(value, float):
            drawn = fraction if name != "clip_value" else fraction.filter(bool)
        else:
            continue
        if draw(st.booleans()):
            setting[name] = draw(drawn)
    return Case(rule, draw(st.sampled_from(DTYPES)), setting)


@given(
    settings_of_a_rule(),
    st.lists(st.integers(0, 40) | st.sampled_from(SMALL[:-9]), min_size=1, max_size=6),
    st.sampled_from(ISAS),
    st.sampled_from(THREADS),
    st.integers(0, 1000),
)
@settings(max_examples=300)
def test_settings_at_random(case, sizes, isa, threads, first):
    _core.use_isa(isa)
    gradstep.set_num_threads(threads)
    p, grads = (a[..., first : first + sum(sizes)] for a in problem(sum(SMALL), case.dtype))
    ours = case.ours([piece.copy() for piece in split(p, sizes)], [split(g, sizes) for g in grads])
    assert_same(ours, run(REFERENCE[case.rule], p.copy(), grads, case.knobs), say(case.knobs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_pair_of_special_values(rule, dtype):
    """All pairs of zeros, subnormals, infinities, largest numbers and NaN, as parameter and as two gradients."""
    p, g, h = (np.ravel(a).copy() for a in np.meshgrid(*[special(dtype)] * 3))
    for setting in knobs(rule):
        case = Case(rule, dtype, setting)
        grads = [g, h] * (STEPS // 2)
        expected = run(REFERENCE[rule], p.copy(), grads, setting)
        for isa in ISAS:
            _core.use_isa(isa)
            assert_same(case.ours(p.copy(), grads), expected, f"{isa}, {say(setting)}")


@pytest.mark.parametrize("rule", RULES)
def test_groups_types_and_skipped_gradients(rule):
    """Groups with different options, float32 and float64 together, and arrays that are skipped in some steps."""

    def groups():
        a, b, c, d, e, f = (problem(n, dtype)[0].copy() for n, dtype in arrays)
        full = knobs(rule)[-1]
        return [{"params": {"a": a, "b": b}, **full}, {"params": [c, d, e], **full}, {"params": f, "l2": 0.5}]

    arrays = [(37, "float32"), (37, "float64"), (5, "float32"), (0, "float32"), (64, "float32"), (37, "float64")]
    grads = []
    for step in range(STEPS):
        a, b, c, d, e, f = (problem(n, dtype)[1][step] for n, dtype in arrays)
        # a and b have equal step numbers for a while, c and e never do.
        grads.append([{"b": b, "a": a if step < 9 else None}, [c, d, e if step % 5 else None], f if step > 4 else None])

    ours, expected = (run(cls, groups(), grads, {"lr": schedule}) for cls in (RULES[rule], REFERENCE[rule]))
    assert_same(ours, expected, "groups")


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("step", [1, 2, 1000, 10**6, 2**40])
def test_late_steps(case, step):
    """The scalars of late steps: powers of the betas vanish and counters exceed 32 bits."""
    p, grads = problem(100, case.dtype)
    ours, theirs = p.copy(), p.copy()
    opt, ref = RULES[case.rule](ours, **case.knobs), REFERENCE[case.rule](theirs, **case.knobs)
    saved = opt.state_dict()
    saved["state"][""]["step"] = step - 1
    opt.load_state_dict(saved)
    ref._groups[0].slots[0].t = step - 1
    for g in grads:
        opt.step(g)
        ref.step(g)
    assert_same({"params": ours, **opt.state}, {"params": theirs, **ref.state}, f"from step {step}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lr_in_velocity", [False, True])
def test_lookahead(dtype, lr_in_velocity):
    """Parameters have the reference's bits at the lookahead point and after it, also after an exception."""
    p, grads = problem(sum(SMALL), dtype)
    ours, theirs = p.copy(), p.copy()
    setting = {"lr": schedule, "lr_in_velocity": lr_in_velocity, "lookahead": True}
    opt, ref = gradstep.NAG(ours, **setting), reference.NAG(theirs, **setting)
    for g in grads:
        before = ours.copy()
        with opt.lookahead(), ref.lookahead():
            assert_same({"params": ours}, {"params": theirs}, "ahead")
            assert opt.step_count == 0 or not same_bits(ours, before)
        assert_same({"params": ours}, {"params": before}, "back")
        with pytest.raises(ZeroDivisionError), opt.lookahead():
            raise ZeroDivisionError
        assert_same({"params": ours}, {"params": before}, "back after an exception")
        opt.step(g)
        ref.step(g)
    assert_same({"params": ours, **opt.state}, {"params": theirs, **ref.state}, "after all")


@pytest.mark.parametrize("rule", RULES)
def test_states_are_the_arrays_that_steps_write(rule):
    """States have the structure, shapes and types of params and remain the same objects."""
    params = {"w": np.ones((2, 3), "float32"), "b": np.ones((), "float64"), "none": np.ones((0, 4))}
    opt = RULES[rule](params, **knobs(rule)[-1])
    before, names = opt.state, list(REFERENCE[rule](params, **knobs(rule)[-1]).state)
    opt.step({key: np.ones_like(p) for key, p in params.items()})
    assert list(opt.state) == names
    for name, arrays in opt.state.items():
        for key, p in params.items():
            assert arrays[key] is before[name][key]
            assert (arrays[key].shape, arrays[key].dtype) == (p.shape, p.dtype)
        assert np.all(arrays["w"] != 0), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fading_state_ends_at_zero_where_subnormals_are_flushed(dtype):
    """Without flushing it stays forever at a value whose product rounds back to itself."""
    left = {}
    for flush in (False, True):
        p = np.ones(100, dtype)
        opt = gradstep.Adam(p, flush_subnormals=flush)
        opt.step(np.ones(100, dtype))
        for _ in range(8000):
            opt.step(np.zeros(100, dtype))
        left[flush] = opt.state["exp_avg"][0]
        assert opt.state["exp_avg_sq"][0] > 0
    assert 0 < left[False] < np.finfo(dtype).tiny
    assert left[True] == 0

"""16-bit and 8-bit storage has the bits of the NumPy reference for all settings and layouts."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep
from gradstep import _core
from tests.table import (
    ALL_FLOATS,
    FLOATS,
    ISAS,
    LARGE,
    LAYOUTS,
    REFERENCE,
    RULES,
    SEED,
    SMALL,
    STORAGES,
    THREADS,
    Layout,
    Storage,
    StoredCase,
    assert_same,
    leaves,
    run,
    special,
    split,
    stored_cases,
    stored_problem,
    widest,
)
from tests.test_layout import SHAPES, assert_untouched_around, layouts, shaped

# The storage that differs most from the compute type.
Q8 = Storage("bfloat16", "q8", stochastic=True)
BFLOAT16 = Storage("float16", "bfloat16", stochastic=True)
MASTER = Storage("float16", "q8", master=True)
NEAREST = Storage("bfloat16", "bfloat16")
BLOCKS = [0, 1, 3, 7, 17, 31, 32, 33, 63, 65, 255, 256, 257, 511, 512, 513, 769, 1025, 3073]
WIDEST = stored_cases(storages=[Q8, BFLOAT16, MASTER, NEAREST], settings=["widest"])


@pytest.mark.parametrize("case", stored_cases(), ids=str)
def test_every_storage_at_every_small_size(case):
    """All sizes with the most options, otherwise sizes at the bounds of blocks."""
    sizes = SMALL if case.knobs == widest(case.rule, case.storage) else BLOCKS
    p, grads = case.problem(sum(sizes))
    expected = case.expected(sizes)
    for isa in ISAS:
        _core.use_isa(isa)
        assert_same(case.ours(split(p.copy(), sizes), [split(g, sizes) for g in grads]), expected, isa)


@pytest.mark.parametrize("case", stored_cases(["momentum", "adam"], grads=ALL_FLOATS, settings=["default"]), ids=str)
def test_every_type_of_parameter_with_every_type_of_gradient(case):
    p, grads = case.problem(sum(BLOCKS))
    assert_same(case.ours(split(p.copy(), BLOCKS), [split(g, BLOCKS) for g in grads]), case.expected(BLOCKS), "types")


@pytest.mark.parametrize("case", stored_cases(storages=[Q8, BFLOAT16], settings=["widest"]), ids=str)
def test_threads_and_large_sizes(case):
    p, grads = case.problem(sum(LARGE))
    for sizes in (LARGE, [p.size]):
        expected = case.expected(sizes)
        for isa, threads in [*product(ISAS[-1:], THREADS), *product(ISAS[:-1], THREADS[-1:])]:
            _core.use_isa(isa)
            gradstep.set_num_threads(threads)
            ours = case.ours(split(p.copy(), sizes), [split(g, sizes) for g in grads])
            assert_same(ours, expected, f"{isa}, {threads} threads, {len(sizes)} arrays")


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_every_alignment(case):
    """Parameters and gradients begin at all offsets within a cache line, odd bytes included."""
    sizes = [n for n in (1, 3, 17, 33, 66, 300) for _ in range(16)]

    def placed(array, pace):
        return [Layout(shift=i * pace % 64).place(piece) for i, piece in enumerate(split(array, sizes))]

    p, grads = case.problem(sum(sizes))
    expected = case.expected(sizes)
    for isa in ISAS:
        _core.use_isa(isa)
        assert_same(case.ours(placed(p, 5), [placed(g, 3) for g in grads]), expected, isa)


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_every_layout(case):
    """Parameters of every shape and layout in one optimizer; the gradients alternate between two layouts."""
    rows = [(shape, LAYOUTS[i], LAYOUTS[(7 * i + j) % 12]) for shape in SHAPES for i in range(12) for j in (0, 5)]
    p, grads = case.problem(sum(int(np.prod(shape)) for shape, _, _ in rows))

    def pieces(array):
        return shaped(array, [shape for shape, _, _ in rows])

    def place(array, which):
        return [row[which].place(piece) for row, piece in zip(rows, pieces(array), strict=True)]

    params = place(p, 1)
    expected = case.theirs(pieces(p.copy()), [pieces(g) for g in grads])
    assert_same(case.ours(params, (place(g, 2) for g in grads)), expected, "layouts")
    for param in params:
        assert_untouched_around(param)


@pytest.mark.parametrize("case", WIDEST, ids=str)
@pytest.mark.parametrize("layout", [LAYOUTS[1], LAYOUTS[4], LAYOUTS[-1]], ids=str)
def test_large_tensors_shared_among_threads(case, layout):
    """Tasks, tiles and blocks begin and end within rows."""
    shape = (3, 151, 149)
    p, grads = (a.reshape(*a.shape[:-1], *shape) for a in case.problem(int(np.prod(shape))))
    expected = case.theirs(p.copy(), grads)
    for threads in THREADS[:1] + THREADS[-1:]:
        gradstep.set_num_threads(threads)
        param = layout.place(p)
        assert_same(case.ours(param, (Layout(rotate=1).place(g) for g in grads)), expected, f"{threads} threads")
        assert_untouched_around(param)


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_broadcast_gradients(case):
    """Gradients with strides of zero, broadcast from a row, a column or one number."""
    p, grads = case.problem(31 * 17)
    p = p.reshape(31, 17)
    wide = [np.broadcast_to([g[:17], g[:31, None], g[0]][i % 3], p.shape) for i, g in enumerate(grads)]
    expected = case.theirs(p.copy(), [g.copy() for g in wide])
    for layout in LAYOUTS:
        assert_same(case.ours(layout.place(p), wide), expected, str(layout))


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_interleaved_parameters(case):
    """Columns of one array as separate parameters: none writes into its neighbour."""
    p, grads = case.problem(3 * 1025)
    table = p.reshape(3, -1).T.copy()
    expected = case.expected([1025] * 3)
    assert_same(case.ours(list(table.T), [list(g.reshape(3, -1)) for g in grads]), expected, "columns")


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_states_are_what_was_asked_for(storage):
    """States have the reference's names, types and shapes, or are None, and remain the same objects."""
    for rule in RULES:
        if rule == "sgd" and storage.state:
            continue
        params = {"w": np.ones((2, 300), storage.param), "b": np.ones((), storage.param), "none": np.ones((0, 4), "f4")}
        opt = RULES[rule](params, **storage.options())
        ref = REFERENCE[rule]({name: p.copy() for name, p in params.items()}, **storage.options())
        before = opt.state
        opt.step({name: np.ones_like(p) for name, p in params.items()})
        assert list(before) == list(ref.state)
        for name, arrays in opt.state.items():
            for key, theirs in ref.state[name].items():
                assert arrays[key] is before[name][key]
                assert theirs is None or (arrays[key].dtype, arrays[key].shape) == (theirs.dtype, theirs.shape)
                assert (theirs is None) == (arrays[key] is None)


def test_float32_is_the_default():
    for dtype in FLOATS:
        p, grads = stored_problem(1000, dtype, dtype)
        plain, named = (run(gradstep.Adam, p.copy(), grads, {"state_dtype": name}) for name in (None, "float32"))
        assert_same(named, plain, dtype)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097])
def test_small_arrays_keep_float32_states(size):
    """Arrays below min_8bit_size, by default a page, keep float32 states; others are coded completely."""
    [v] = leaves(gradstep.Momentum(np.ones(size, "f4"), state_dtype="q8").state["momentum_buffer"])
    assert v.dtype == ("float32" if size < 4096 else "int8")
    [v] = leaves(gradstep.Momentum(np.ones(size, "f4"), state_dtype="q8", min_8bit_size=size).state["momentum_buffer"])
    assert v.dtype == "int8"


@pytest.mark.parametrize("first", [0.1, 1e-30, 1e-42, 3e38, 1 + 2**-8 + 2**-30, 0.0])
@pytest.mark.parametrize("state", ["bfloat16", "q8"])
def test_a_first_value_is_stored_too(state, first):
    p, grads = stored_problem(1000, "bfloat16", "float32")
    setting = {"initial_accumulator": first, "state_dtype": state, "min_8bit_size": 0}
    ours, ref = gradstep.AdaGrad(p.copy(), **setting), REFERENCE["adagrad"](p.copy(), **setting)
    assert_same(ours.state, ref.state, "at first")
    assert_same(run(gradstep.AdaGrad, p.copy(), grads, setting), run(type(ref), p.copy(), grads, setting), "then")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", RULES)
def test_every_pair_of_special_values(rule, dtype):
    """All pairs of zeros, subnormals, infinities, largest numbers and NaN, as parameter and as two gradients."""
    p, g, h = (np.ravel(a).copy() for a in np.meshgrid(*[special(dtype)] * 3))
    for case in stored_cases([rule], [s for s in STORAGES if s.param == dtype], [dtype], ["default", "widest"]):
        expected = case.theirs(p.copy(), [g, h, g])
        for isa in ISAS:
            _core.use_isa(isa)
            assert_same(case.ours(p.copy(), [g, h, g]), expected, f"{isa}, {case}")


@st.composite
def cases(draw):
    storage = draw(st.sampled_from(STORAGES))
    rule = draw(st.sampled_from([rule for rule in RULES if rule != "sgd" or not storage.state]))
    [case] = stored_cases(
        [rule], [storage], [draw(st.sampled_from(ALL_FLOATS))], [draw(st.sampled_from(["default", "widest"]))]
    )
    seed = draw(st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**53]) | st.integers(0, 2**53))
    return StoredCase(rule, storage, case.grad, case.knobs), seed


@given(
    cases(),
    st.lists(
        st.tuples(st.lists(st.integers(0, 20), min_size=2, max_size=3), layouts(), layouts()), min_size=1, max_size=4
    ),
    st.sampled_from(ISAS),
    st.sampled_from(THREADS),
)
@settings(max_examples=150)
def test_shapes_and_layouts_at_random(case_and_seed, rows, isa, threads):
    _core.use_isa(isa)
    gradstep.set_num_threads(threads)
    case, seed = case_and_seed
    options = case.options() | ({"stochastic_rounding": seed} if case.storage.stochastic else {})
    shapes = [shape for shape, _, _ in rows]
    sizes = [int(np.prod(shape)) for shape in shapes]
    p, grads = (a[..., : sum(sizes)] for a in case.problem(40_000))

    def placed(array, which):
        return [row[which].place(piece) for row, piece in zip(rows, shaped(array, shapes), strict=True)]

    ours = run(RULES[case.rule], params := placed(p, 1), [placed(g, 2) for g in grads], options)
    theirs = run(REFERENCE[case.rule], shaped(p.copy(), shapes), [shaped(g, shapes) for g in grads], options)
    assert_same(ours, theirs, str(case))
    for param in params:
        assert_untouched_around(param)


@pytest.mark.parametrize("step", [2**31, 2**32 - 2, 2**32 + 5, 2**40])
def test_late_steps(step):
    """Random bits for step numbers that exceed 32 bits."""
    p, grads = stored_problem(700, "bfloat16", "bfloat16")
    ours, theirs = p.copy(), p.copy()
    setting = {"state_dtype": "q8", "min_8bit_size": 0, "stochastic_rounding": SEED}
    opt, ref = gradstep.Adam(ours, **setting), REFERENCE["adam"](theirs, **setting)
    saved = opt.state_dict()
    saved["state"][""]["step"] = step - 1
    opt.load_state_dict(saved)
    ref._groups[0].slots[0].t = step - 1
    for g in grads:
        opt.step(g)
        ref.step(g)
    assert_same({"params": ours, **opt.state}, {"params": theirs, **ref.state}, f"from step {step}")

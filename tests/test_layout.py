"""Arrays of any layout are updated in place with the bits of packed ones, and no other byte is written."""

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep
from gradstep import _core, functional, reference
from tests.table import (
    DTYPES,
    FEW,
    ISAS,
    LAYOUTS,
    PATTERN,
    REFERENCE,
    RULES,
    SMALL,
    THREADS,
    WIDEST,
    Case,
    Layout,
    assert_same,
    flat,
    knobs,
    problem,
    run,
    same_bits,
    say,
    split,
)


def assert_untouched_around(view):
    """Overwrites the elements with the pattern and checks that all other bytes still have it."""
    room = view
    while room.base is not None:
        room = room.base
    view[...] = np.full(view.itemsize, PATTERN, np.uint8).view(view.dtype)[0]
    assert np.all(room == PATTERN)


SHAPES = [(), (1,), (0, 3), (513,), (7, 11), (1, 5, 1), (3, 1, 260), (2, 3, 4, 3, 2)]


def shaped(array, shapes):
    """Parts of a flat array with these shapes."""
    pieces = split(array, [int(np.prod(shape)) for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_every_pair_of_layouts(case):
    """Parameters of every shape and layout, each with gradients of every layout, in one optimizer."""
    rows = list(product(SHAPES, LAYOUTS, LAYOUTS))
    p, grads = problem(sum(int(np.prod(shape)) for shape, _, _ in rows), case.dtype)

    def place(array, which):
        pieces = shaped(array, [shape for shape, _, _ in rows])
        return [row[which].place(piece) for row, piece in zip(rows, pieces, strict=True)]

    params = place(p, 1)
    assert_same(case.ours(params, (place(g, 2) for g in grads)), case.expected(p.size), "layouts")
    for param in params:
        assert_untouched_around(param)


@st.composite
def layouts(draw):
    return Layout(
        rotate=draw(st.integers(0, 4)),
        reverse=draw(st.booleans()),
        gap=draw(st.sampled_from([0, 0, 1, 8, 20])),
        flip=draw(st.booleans()),
        shift=draw(st.integers(0, 16)),
    )


@given(
    st.sampled_from([(rule, setting) for rule in RULES for setting in knobs(rule)]),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 5), max_size=5) | st.lists(st.integers(20, 30), min_size=2, max_size=2),
    st.lists(layouts(), min_size=5, max_size=5),
    st.sampled_from(ISAS),
)
@settings(max_examples=300)
def test_states_of_any_layout(rule_and_setting, dtype, shape, how, isa):
    """The functional kernels accept states of any layout; gradients are only read."""
    _core.use_isa(isa)
    rule, setting = rule_and_setting
    setting = {name: value for name, value in setting.items() if name not in RULES[rule].initial_state.values()}
    lr = setting.get("lr", 0.25)
    p, grads = (a[..., : int(np.prod(shape))].reshape((*a.shape[:-1], *shape)) for a in problem(5**5, dtype))

    param, grad, *states = (layout.place(np.zeros(shape, dtype)) for layout in how)
    param[...] = p
    kept = RULES[rule](param, **setting).state
    names = next(r["states"] for r in _core.rules() if r["name"] == rule)
    states = {name: state for name, state in zip(names, states, strict=False) if name in kept}
    clock = {}
    for step, g in enumerate(grads, 1):
        grad[...] = g
        now = setting | {"lr": lr(step - 1) if callable(lr) else lr, "step": step} | clock
        mu_product = getattr(functional, f"{rule}_")(param, grad, *map(states.get, names), **now)
        clock = {} if mu_product is None else {"mu_product": mu_product}

    theirs = p.copy()
    ref = REFERENCE[rule](theirs, **setting | {"lr": lr})
    for g in grads:
        ref.step(g)
    ours = {name: flat(array) for name, array in {"params": param, **states}.items()}
    assert_same(ours, {name: flat(array) for name, array in {"params": theirs, **ref.state}.items()}, say(setting))
    assert_same({"grads": flat(grad)}, {"grads": flat(grads[-1])}, "the gradient was written")
    for view in (param, grad, *states.values()):
        assert_untouched_around(view)


@pytest.mark.parametrize("case", WIDEST, ids=str)
@pytest.mark.parametrize("layout", [LAYOUTS[1], LAYOUTS[3], LAYOUTS[4], LAYOUTS[-1]], ids=str)
def test_large_tensors_shared_among_threads(case, layout):
    """Tasks and tiles begin and end within rows."""
    shape = (3, 151, 149)
    p, grads = problem(int(np.prod(shape)), case.dtype)
    expected = case.expected(p.size)
    for threads in THREADS[:1] + THREADS[-1:]:
        gradstep.set_num_threads(threads)
        param = layout.place(p.reshape(shape))
        placed = (replace(layout, rotate=1).place(g.reshape(shape)) for g in grads)
        assert_same(case.ours(param, placed), expected, f"{threads} threads")
        assert_untouched_around(param)


# Shapes and orders of axes in memory whose elements are gathered in blocks: with fewer and more rows and columns than a
# block has, with sizes that are no multiples of a register, with rows that are visited window by window.
BLOCKED = [
    ((5, 7), (1, 0)),
    ((33, 47), (1, 0)),
    ((300, 131), (1, 0)),
    ((64, 128), (1, 0)),
    ((1000, 5), (1, 0)),
    ((3, 9000), (1, 0)),
    ((70, 8200), (1, 0)),
    ((40, 20, 30), (2, 0, 1)),
    ((40, 20, 30), (1, 2, 0)),
    ((30, 100, 90), (2, 1, 0)),
    ((5, 40, 33), (0, 2, 1)),
    ((3, 3, 64, 60), (3, 2, 0, 1)),
    ((64, 60, 3, 3), (2, 3, 1, 0)),
]


def in_memory(array, axes, steps, offset=0):
    """A copy of the array whose axes have this order in memory, from the longest stride to the shortest."""
    full = [array.shape[axis] * abs(step) for axis, step in zip(axes, steps, strict=True)]
    room = np.zeros(int(np.prod(full)) * array.itemsize + offset, np.uint8)[offset:].view()
    placed = np.ndarray(full, array.dtype, room)[tuple(slice(None, None, step) for step in steps)]
    view = placed.transpose(np.argsort(axes))
    view[...] = array
    return view


@pytest.mark.parametrize(("shape", "axes"), BLOCKED, ids=str)
@pytest.mark.parametrize(("last_step", "offset"), [(1, 0), (-1, 0), (2, 1), (1, 3)])
def test_gradients_gathered_in_blocks(shape, axes, last_step, offset):
    """Every storage type and instruction set, several threads, and a gradient that changes in place between steps."""
    steps = [*[1] * (len(shape) - 2), -1 if offset else 1, last_step]
    cases = [
        ("float32", "float32", {}),
        ("float64", "float64", {}),
        ("float32", "float64", {"clip_norm": 0.5}),
        ("float32", "float16", {"state_dtype": "q8", "min_8bit_size": 1}),
        ("bfloat16", "bfloat16", {"stochastic_rounding": 3}),
    ]
    for (dtype, grad_dtype, options), isa, threads in zip(
        cases, (*ISAS, *ISAS, *ISAS), (*THREADS, *THREADS, *THREADS), strict=False
    ):
        _core.use_isa(isa)
        gradstep.set_num_threads(threads)
        rng = np.random.default_rng(len(shape))
        named = {
            name: gradstep._libraries.bfloat16() if name == "bfloat16" else np.dtype(name)
            for name in (dtype, grad_dtype)
        }
        first = rng.standard_normal(shape).astype(named[dtype])
        ours, theirs = first.copy(), first.copy()
        opt = gradstep.Adam(ours, **options)
        ref = reference.Adam(theirs, **options)
        placed = in_memory(np.zeros(shape, named[grad_dtype]), axes, steps, offset)
        for _ in range(2):
            grad = rng.standard_normal(shape).astype(named[grad_dtype])
            placed[...] = grad
            assert gradstep.global_norm(placed) == reference.global_norm([grad]), (dtype, isa)
            opt.step(placed)
            ref.step(grad)
        assert same_bits(ours, theirs), (dtype, grad_dtype, options, isa, threads)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_broadcast_gradients(case):
    """Gradients with strides of zero, broadcast from a row, a column or one number."""
    shape = (31, 17)
    p = problem(31 * 17, case.dtype)[0].reshape(shape)
    grads = []
    for step, g in enumerate(problem(31, case.dtype)[1]):
        narrow = [g[:17], g.reshape(31, 1), g[0]][step % 3]
        grads.append(np.broadcast_to(narrow, shape))
    expected = run(REFERENCE[case.rule], p.copy(), [g.copy() for g in grads], case.knobs)
    for layout in LAYOUTS:
        assert_same(case.ours(layout.place(p), grads), expected, str(layout))


def test_gradients_in_memory_that_cannot_be_written(tmp_path):
    """Gradients are only read: writing would crash even with unchanged bits."""
    file = np.memmap(tmp_path / "grads", "float64", "w+", shape=(600, 4))
    file[...] = 1.0
    file.flush()
    mapped = np.memmap(file.filename, "float64", "r", shape=file.shape)
    grads = [mapped, mapped[::-1, ::2], mapped.T, np.broadcast_to(mapped[0], (3, 4))]
    params = [np.ones(g.shape) for g in grads]
    gradstep.SGD(params, lr=0.25).step(grads)
    assert all(np.all(p == 0.75) for p in params)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_interleaved_parameters(case):
    """Columns of one array as separate parameters: none writes into its neighbour."""
    p, grads = problem(3 * sum(SMALL), case.dtype)
    table = p.reshape(3, -1).T.copy()
    assert_same(case.ours(list(table.T), [list(g.reshape(3, -1)) for g in grads]), case.expected(p.size), "columns")


@pytest.mark.parametrize("rule", RULES)
def test_the_reference_takes_every_shape(rule):
    """The reference handles zero-dimensional and empty arrays without special cases."""
    grads = [shaped(g, SHAPES) for g in problem(1512 + 9, "float32")[1]]
    params = shaped(problem(1512 + 9, "float32")[0].copy(), SHAPES)
    expected = Case(rule, "float32", knobs(rule)[-1]).expected(1512 + 9)
    assert_same(run(REFERENCE[rule], params, grads, knobs(rule)[-1]), expected, "shapes")


@dataclass
class Layer:
    w: object
    b: object


class Pair(NamedTuple):
    first: object
    second: object


def test_the_reference_takes_every_nesting():
    """Gradients and states have the nesting of the parameters; keys may come in another order, and None is skipped."""

    def tree(a, b, c, d, e, f):
        return {"x": [Layer(a, (b, [c])), {"z": d}], "y": Pair(e, {"k": f})}

    flat_params, nested_params = ([np.full(i, 1.0, np.float32) for i in range(1, 7)] for _ in range(2))
    options = {"master": True, "state_dtype": "q8", "min_8bit_size": 4}
    one = reference.Adam(flat_params, **options)
    nested = reference.Adam(params := tree(*nested_params), **options)
    for step in range(2):
        grads = [np.full(i, 0.25 + step, np.float32) for i in range(1, 7)]
        grads[1 + step] = None
        one.step(grads)
        nested.step(dict(reversed(tree(*grads).items())))
    assert all(same_bits(a, b) for a, b in zip(flat_params, nested_params, strict=True))
    assert repr(nested.state) == repr({name: tree(*arrays) for name, arrays in one.state.items()})
    assert list(params) == ["x", "y"]

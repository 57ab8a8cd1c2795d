"""A gradient may be of any float type, whatever its parameter is: the bits are those of the reference."""

import numpy as np
import pytest

import gradstep
from gradstep import _core, functional
from tests.table import (
    ALL_FLOATS,
    HALVES,
    ISAS,
    LARGE,
    LAYOUTS,
    PLAIN,
    REFERENCE,
    RULES,
    SHORT,
    THREADS,
    assert_same,
    run,
    same_bits,
    split,
    stored_cases,
    stored_problem,
)
from tests.test_clip import clipped, numbers
from tests.test_layout import assert_untouched_around, shaped
from tests.test_storage import BLOCKS

PAIRS = stored_cases(storages=PLAIN, grads=ALL_FLOATS, settings=["flush", "widest"])
WIDEST = stored_cases(storages=PLAIN, grads=ALL_FLOATS, settings=["widest"])
SHAPES = [(513,), (3, 1, 260)]


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_every_pair_of_types(case):
    p, grads = case.problem(sum(BLOCKS))
    expected = case.expected(BLOCKS)
    for isa in ISAS:
        _core.use_isa(isa)
        assert_same(case.ours(split(p.copy(), BLOCKS), [split(g, BLOCKS) for g in grads]), expected, isa)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_clipped_steps(case):
    params, grads, knobs = clipped(case)
    theirs = REFERENCE[case.rule](expected := params(), **knobs)
    norms = []
    for g in grads:
        theirs.step(g)
        norms.append(theirs.grad_norm)
    for isa in ISAS:
        _core.use_isa(isa)
        opt = RULES[case.rule](ours := params(), **knobs)
        for g, norm in zip(grads, norms, strict=True):
            opt.step(g)
            assert opt.grad_norm == norm, isa
        assert all(map(same_bits, ours, expected)), isa


@pytest.mark.parametrize("clip_norm", [None, 1e3])
@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_strided_and_unaligned_arrays(case, clip_norm):
    """Parameters of every layout, each with gradients of another, in one optimizer."""
    rows = [(shape, LAYOUTS[i], LAYOUTS[(7 * i + j) % 12]) for j, shape in enumerate(SHAPES) for i in range(12)]
    p, *grads = numbers(1, [sum(int(np.prod(shape)) for shape, _, _ in rows)] * (1 + SHORT), "float64")
    p, grads = p.astype(case.storage.param), [g.astype(case.grad) for g in grads]
    knobs = case.options() | {"clip_norm": clip_norm}

    def pieces(array):
        return shaped(array, [shape for shape, _, _ in rows])

    def place(array, which):
        return [row[which].place(piece) for row, piece in zip(rows, pieces(array), strict=True)]

    expected = run(REFERENCE[case.rule], pieces(p.copy()), [pieces(g) for g in grads], knobs)
    params = place(p, 1)
    assert_same(run(RULES[case.rule], params, (place(g, 2) for g in grads), knobs), expected, "layouts")
    for param in params:
        assert_untouched_around(param)


@pytest.mark.parametrize("case", stored_cases(["sgd", "adam"], PLAIN, ALL_FLOATS, ["widest"]), ids=str)
def test_threads_and_large_sizes(case):
    p, grads = case.problem(sum(LARGE))
    expected = case.expected(LARGE)
    for threads in THREADS:
        gradstep.set_num_threads(threads)
        assert_same(case.ours(split(p.copy(), LARGE), [split(g, LARGE) for g in grads]), expected, f"{threads} threads")


@pytest.mark.parametrize("param", ALL_FLOATS)
@pytest.mark.parametrize("rule", RULES)
def test_types_may_take_turns(rule, param):
    """From one step to the next, and bound, and in the bare kernel."""
    ours, theirs = (stored_problem(700, param, param)[0].copy() for _ in range(2))
    opt, ref = RULES[rule]([ours]), REFERENCE[rule]([theirs])
    for step in range(2 * len(ALL_FLOATS)):
        g = stored_problem(700, param, ALL_FLOATS[step % 4])[1][step % SHORT]
        opt.step([g])
        ref.step([g])
    assert same_bits(ours, theirs)
    assert all(same_bits(opt.state[name][0], x) for name, [x] in ref.state.items())
    for grad in ALL_FLOATS:
        g = stored_problem(700, param, grad)[1][0]
        bound, bare, theirs = (stored_problem(700, param, grad)[0].copy() for _ in range(3))
        RULES[rule](bound, grads=g).step()
        kept = RULES[rule](bare).state
        getattr(functional, f"{rule}_")(bare, g, *(kept.get(name) for name in _states(rule)))
        REFERENCE[rule](theirs).step(g)
        assert same_bits(bound, theirs)
        assert same_bits(bare, theirs)


def _states(rule):
    return next(about["states"] for about in _core.rules() if about["name"] == rule)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("param", ["float32", "float64"])
def test_a_gradient_is_rounded_once(isa, param):
    """To nearest even, before all else; and into a wider type not at all."""
    _core.use_isa(isa)
    ulp = 2.0**-23
    of = {
        1 + ulp / 2: 1.0,  # ties go to the even one
        1 + 3 * ulp / 2: 1 + 2 * ulp,
        1 + ulp / 2 + 2.0**-52: 1 + ulp,
        -1 - ulp / 2 - 2.0**-52: -1 - ulp,
        2.0**-149: 2.0**-149,
        2.0**-150: 0.0,  # subnormals are kept, and rounded as the others
        2.0**-150 + 2.0**-202: 2.0**-149,
        float(np.finfo("f4").max): float(np.finfo("f4").max),
        2.0**128 - 2.0**103: np.inf,
        -1e300: -np.inf,
        np.inf: np.inf,
    }
    g = np.array([*of] * 5)
    p = np.zeros(g.size, param)
    gradstep.SGD(p, lr=1.0).step(g)
    assert same_bits(p, 0 - np.array([*(of if param == "float64" else of.values())] * 5).astype(param))
    for narrow in (np.arange(2**16, dtype="u2").view(half) for half in HALVES):
        p = np.zeros(narrow.size, param)
        gradstep.SGD(p, lr=1.0).step(narrow)
        with np.errstate(invalid="ignore"):  # signalling NaNs
            assert same_bits(p, 0 - narrow.astype(param))


def test_the_norm_is_that_of_the_gradients_as_they_are_computed_with():
    p, q = np.zeros(5000, "float32"), np.zeros(5000)
    [g] = numbers(9, [5000], "float64")
    g *= 1 + np.random.default_rng(9).random(g.size)
    opt = gradstep.SGD(p, clip_norm=1.0)
    opt.step(g)
    assert opt.grad_norm == gradstep.global_norm(g.astype("float32")) != gradstep.global_norm(g)
    opt = gradstep.SGD(q, clip_norm=1.0)
    for narrow in (g.astype("float32"), g.astype("float16")):
        opt.step(narrow)
        assert opt.grad_norm == gradstep.global_norm(narrow)

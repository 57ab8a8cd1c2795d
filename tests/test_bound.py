"""Gradients bound to the optimizer: `step()` uses their current values and refuses what `step(grads)` would."""

import numpy as np
import pytest

import gradstep as gs
from tests.table import DTYPES, REFERENCE, RULES, STEPS, assert_same, knobs, problem, run, same_bits, say

SIZES = (3, 0, 1000, 4097, 70_001)
EVERY_RULE = pytest.mark.parametrize("rule", RULES)


def pieces(array):
    """Copies of parts of an array's last axis."""
    return [part.copy() for part in np.split(array, np.cumsum(SIZES)[:-1], axis=-1)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_RULE
def test_bound_steps_have_the_bits_of_steps(rule, dtype, threads):
    p, grads = problem(sum(SIZES), dtype)
    options = knobs(rule)[-1]
    params, bound = pieces(p), pieces(grads[0])
    expected = pieces(p)
    opt, theirs = RULES[rule](params, grads=bound, **options), REFERENCE[rule](expected, **options)
    gs.set_num_threads(threads)
    for g in grads:
        fresh = pieces(g)
        for kept, new in zip(bound, fresh, strict=True):
            kept[...] = new
        opt.step()
        theirs.step(fresh)
    assert all(map(same_bits, params, expected))
    for name, arrays in theirs.state.items():
        assert all(map(same_bits, opt.state[name], arrays)), name
    assert opt.step_count == theirs.step_count == STEPS


def test_any_structure_may_be_bound():
    def grads(value):
        return [{"w": np.full((2, 3), value), "b": None}, [np.full(2, value)]]

    def params():
        return [{"params": {"w": np.ones((2, 3)), "b": np.ones(3)}}, {"params": [np.ones(2)], "lr": 0.5}]

    p, q = params(), params()
    bound, given = gs.Adam(p, grads=grads(0.3)), gs.Adam(q)
    theirs = gs.reference.Adam(r := params(), grads=grads(0.3))
    for _ in range(3):
        bound.step()
        given.step(grads(0.3))
        theirs.step()
    assert str(p) == str(q) == str(r)
    assert (p[0]["params"]["b"] == 1).all(), "None: it stays"


def test_what_has_no_bound_gradient_is_not_looked_at():
    p, q = np.ones(3), np.ones(3)
    opt = gs.SGD.preset("torch", [p, q], grads=[np.ones(3), None], lr=1.0)
    q.flags.writeable = False
    opt.step()
    assert not p.any()
    assert q.all()


def test_the_reference_asks_for_gradients_as_the_class_does():
    with pytest.raises(TypeError):
        gs.reference.SGD(np.ones(3)).step()
    with pytest.raises(TypeError):
        gs.reference.SGD(np.ones(3), grads=np.ones(3)).step(np.ones(3))


def test_a_strided_gradient_may_be_bound():
    p, q, wide = np.ones((3, 4)), np.ones((3, 4)), np.arange(24.0).reshape(4, 6)
    bound, given = gs.Adam(p, grads=wide[:, ::2].T), gs.Adam(q)
    for _ in range(3):
        wide *= -1.5
        bound.step()
        given.step(wide[:, ::2].T)
    assert same_bits(p, q)


def test_the_bound_gradient_is_kept_alive():
    p = np.ones(100_000)
    opt = gs.SGD(p, lr=1.0, grads=np.ones(100_000))
    opt.step()
    assert not p.any()


def test_groups_schedules_checkpoints_and_lookahead_with_bound_gradients():
    p, g = np.ones(5), np.ones(5)
    opt = gs.NAG(p, lookahead=True, lr=lambda step: 0.1 / (1 + step), grads=g)
    q = np.ones(5)
    other = gs.NAG(q, lookahead=True, lr=lambda step: 0.1 / (1 + step))
    for _ in range(4):
        with opt.lookahead():
            g[...] = p
        opt.step()
        with other.lookahead():
            h = q.copy()
        other.step(h)
    assert same_bits(p, q)
    saved = opt.state_dict()
    opt.step()
    after = p.copy()
    resumed = gs.NAG(q, lookahead=True, lr=lambda step: 0.1 / (1 + step), grads=g)
    resumed.load_state_dict(saved)
    resumed.step()
    assert same_bits(q, after)


@EVERY_RULE
def test_what_a_step_refuses_cannot_be_bound(rule):
    p = np.ones(4)
    for bad, error, words in [
        ([np.ones(4)], TypeError, "grads must be a NumPy array, not list"),
        (np.ones(5), ValueError, "grads has shape"),
        (np.ones(4, np.int32), TypeError, "grads has dtype int32"),
        (p, ValueError, "grads overlaps params"),
        ("abc", TypeError, "grads must be a NumPy array"),
    ]:
        with pytest.raises(error, match=f"^{words}"):
            RULES[rule](p, grads=bad)
    assert (p == 1).all()


def test_step_takes_gradients_where_none_are_bound_and_only_there():
    p = np.ones(4)
    with pytest.raises(TypeError, match=r"^step\(\) needs gradients"):
        gs.Adam(p).step()
    opt = gs.Adam(p, grads=np.ones(4))
    with pytest.raises(TypeError, match=r"^step\(\) takes no gradients"):
        opt.step(np.ones(4))
    with pytest.raises(TypeError, match=r"^step\(\) takes no gradients"):
        opt.step(None)
    assert (p == 1).all()
    assert opt.step_count == 0


@pytest.mark.filterwarnings("ignore")  # new versions of NumPy warn when a shape is set
@pytest.mark.parametrize("what", ["params", "grads", "state exp_avg of params"])
def test_an_array_that_was_changed_after_it_was_bound(what):
    p, g = np.ones(4), np.ones(4)
    opt = gs.Adam(p, grads=g)
    array = {"params": p, "grads": g}.get(what, opt.state["exp_avg"])
    array.shape = (1, 4)
    with pytest.raises(ValueError, match=f"^{what} was moved or reshaped"):
        opt.step()
    array.shape = (4,)
    array.flags.writeable = False
    if what == "grads":  # gradients are only read
        opt.step()
        return
    with pytest.raises(ValueError, match=f"^{what} is read-only"):
        opt.step()
    assert (p == 1).all()
    assert opt.step_count == 0


@pytest.mark.parametrize("setting", knobs("adam"), ids=say)
def test_every_option_works_with_bound_gradients(setting):
    p, grads = problem(1000, "float32")
    expected = run(REFERENCE["adam"], p.copy(), grads, setting)
    bound = np.empty_like(p)

    class Bound(gs.Adam):
        def __init__(self, params, **options):
            super().__init__(params, grads=bound, **options)

        def step(self, g):
            bound[...] = g
            super().step()

    assert_same(run(Bound, p.copy(), grads, setting), expected, "bound")

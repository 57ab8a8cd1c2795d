"""Reference cycles through an optimizer are collected, and what is not garbage stays."""

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from tests.table import RULES, knobs, same_bits


class Plain(np.ndarray):
    """A subclass whose instances have attributes."""


def plain(*values):
    return np.array(values).view(Plain)


# Each returns an optimizer in a cycle, the arrays in it, and the arguments of a step.


def parameter():
    p = plain(1.0, 2.0)
    p.owner = gs.Adam(p)
    return p.owner, [p], [np.ones(2)]


def one_parameter_of_several():
    params = {"a": np.ones(3), "b": plain(1.0, 2.0), "c": np.ones(2)}
    params["b"].owner = gs.Nadam(params)
    return params["b"].owner, [*params.values()], [{"a": np.ones(3), "b": np.ones(2), "c": None}]


def bound_gradient():
    p, g = np.ones(2), plain(1.0, 2.0)
    g.owner = gs.SGD(p, grads=g)
    return g.owner, [p, g], []


def two_optimizers():
    p, q = plain(1.0, 2.0), plain(3.0)
    q.owner, p.owner = gs.SGD(p), gs.Adam(q)
    return q.owner, [p, q], [np.ones(2)]


def schedule():
    p = np.ones(2)
    opt = gs.SGD(p, lr=lambda step: 0.1 / (1 + step + opt.step_count))
    return opt, [p], [np.ones(2)]


@pytest.fixture
def manual():
    """The collector runs only when it is told to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("manual")
@pytest.mark.parametrize("make", [parameter, one_parameter_of_several, bound_gradient, two_optimizers, schedule])
@pytest.mark.parametrize("stepped", [False, True])
def test_cycle_is_collected(make, stepped):
    opt, arrays, step = make()
    if stepped:
        opt.step(*step)
    found = [weakref.ref(opt), *map(weakref.ref, arrays)]
    del opt, arrays
    assert all(ref() is not None for ref in found), "it is no cycle"
    gc.collect()
    assert [ref() for ref in found] == [None] * len(found)


@pytest.mark.parametrize("rule", RULES)
def test_collector_changes_no_step(rule):
    start, g = np.linspace(-1, 1, 5000, dtype="f4"), np.linspace(3, -2, 5000, dtype="f4")
    p, alone = start.copy().view(Plain), start.copy()
    p.owner = opt = RULES[rule](p, **knobs(rule)[-1])
    other = RULES[rule](alone, **knobs(rule)[-1])
    for _ in range(3):
        opt.step(g)
        gc.collect()
        other.step(g)
    assert same_bits(np.array(p), alone)
    del opt
    gc.collect()
    p.owner.step(g)  # the array alone holds it
    other.step(g)
    assert same_bits(np.array(p), alone)


@pytest.mark.usefixtures("manual")
def test_optimizers_that_were_dropped_leave_nothing():
    alive = weakref.WeakSet()
    objects = []
    for _ in range(2):
        for i in range(1000):
            opt, arrays, step = [parameter, one_parameter_of_several, bound_gradient, schedule][i % 4]()
            opt.step(*step)
            alive.add(opt)
        assert len(alive) == 1000
        del opt, arrays, step
        gc.collect()
        assert len(alive) == 0
        objects.append(len(gc.get_objects()))
    assert objects[1] - objects[0] < 100


def test_references_are_shown_to_the_collector():
    p, g, m = np.ones(3), np.ones(3), np.zeros(3)
    stepper = _core.Stepper()
    options = {name: 0.0 for rule in _core.rules() if rule["name"] == "momentum" for name in rule["options"]}
    options |= dict.fromkeys(("clip_value", "ema"), np.nan)  # off
    stepper.add_group("momentum", options)
    before = sys.getrefcount(p)
    stepper.add_tensors([0], [p], [{"momentum_buffer": m}])
    assert sys.getrefcount(p) == before + 1
    stepper.bind([g])
    shown = gc.get_referents(stepper)
    assert [sum(array is other for other in shown) for array in (p, m, g)] == [1, 1, 1]
    assert gc.is_tracked(stepper)
    del stepper, shown
    assert sys.getrefcount(p) == before


def test_stepper_that_was_never_initialized():
    stepper = _core.Stepper.__new__(_core.Stepper)
    assert gc.get_referents(stepper) in ([], [_core.Stepper])
    gc.collect()
    with pytest.raises(TypeError, match="not an acceptable base"):
        type("Derived", (_core.Stepper,), {})


def test_collector_runs_while_threads_step():
    opts = []
    for _ in range(3):
        p = np.zeros(300_000).view(Plain)
        p.owner = gs.SGD(p, lr=1.0)
        opts.append((p, p.owner))
    stop = threading.Event()

    def step(opt):
        g = np.ones(300_000)
        while not stop.is_set():
            opt.step(g)

    steppers = [threading.Thread(target=step, args=(opt,)) for _, opt in opts]
    for thread in steppers:
        thread.start()
    for _ in range(100):
        parameter()
        gc.collect()
    stop.set()
    for thread in steppers:
        thread.join()
    assert all(p.min() == p.max() == -opt.step_count < 0 for p, opt in opts)

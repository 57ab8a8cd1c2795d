"""gs.schedules: formulas, ends, arguments, pickle, equality, repr and types. tests/parity compares them with peers'."""

import copy
import inspect
import json
import math
import pickle
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import schedules
from gradstep.schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    join,
    linear,
    multi_step,
    noam,
    one_cycle,
    one_cycle_momentum,
    piecewise,
    plateau,
    polynomial,
    step,
    warm_restarts,
)

# A schedule of each kind, with its values at steps 0, 1, 10, 25 and 10**18.
VALUES = [
    (constant(0.1), [0.1, 0.1, 0.1, 0.1, 0.1]),
    (step(0.8, 10, 0.5), [0.8, 0.8, 0.4, 0.2, 0.0]),
    (multi_step(0.8, [1, 25], 0.5), [0.8, 0.4, 0.4, 0.2, 0.2]),
    (exponential(1.0, 0.5), [1.0, 0.5, 0.5**10, 0.5**25, 0.0]),
    (exponential(1.0, 2.0), [1.0, 2.0, 2.0**10, 2.0**25, math.inf]),
    (exponential(0.0, 2.0), [0.0, 0.0, 0.0, 0.0, 0.0]),
    (polynomial(1.0, 20, power=2.0), [1.0, 0.95**2, 0.5**2, 0.0, 0.0]),
    (polynomial(1.0, 45, 0.5, 3.0, 5), [0.0, 0.2, 0.5 + 0.5 * 0.875**3, 0.5 + 0.5 * 0.5**3, 0.5]),
    (linear(1.0, 20), [1.0, 0.95, 0.5, 0.0, 0.0]),
    (linear(1.0, 20, warmup=15, start=0.1), [0.1, 0.16, 0.7, 0.0, 0.0]),
    (linear(0.0, 20, 1.0), [0.0, 0.05, 0.5, 1.0, 1.0]),
    (cosine(1.0, 20), [1.0, (1 + math.cos(math.pi / 20)) / 2, 0.5, 0.0, 0.0]),
    (cosine(1.0, 40, 0.5, warmup=10), [0.0, 0.1, 1.0, 0.75, 0.5]),
    (cosine(1.0, 1, 0.25), [1.0, 0.25, 0.25, 0.25, 0.25]),
    (linear(1.0, 1, 0.25), [1.0, 0.25, 0.25, 0.25, 0.25]),
    (polynomial(1.0, 1, 0.25), [1.0, 0.25, 0.25, 0.25, 0.25]),
    (warm_restarts(1.0, 20), [1.0, (1 + math.cos(math.pi / 20)) / 2, 0.5, (1 + math.cos(math.pi / 4)) / 2, 1.0]),
    (warm_restarts(1.0, 10, 3), [1.0, (1 + math.cos(math.pi / 10)) / 2, 1.0, 0.5, None]),
    (warm_restarts(1.0, 1), [1.0, 1.0, 1.0, 1.0, 1.0]),
    (one_cycle(1.0, 40, 0.25, "linear", 10.0, 2.0), [0.1, 0.2, 1 - 0.95 / 30, 1 - 0.95 * 16 / 30, 0.05]),
    (one_cycle(1.0, 1, 1.0), [1.0, 1.0, 1.0, 1.0, 1.0]),
    (one_cycle(1.0, 1, div_factor=10.0, final_div_factor=2.0), [0.05, 0.05, 0.05, 0.05, 0.05]),
    (one_cycle(1.0, 10, 0.1, "linear", 10.0, 2.0), [1.0, 1 - 0.95 / 9, 0.05, 0.05, 0.05]),  # torch divides by zero
    (one_cycle_momentum(0.8, 0.9, 40, 0.25, "linear"), [0.9, 0.9 - 0.1 / 9, 0.8 + 0.1 / 30, 0.8 + 1.6 / 30, 0.9]),
    (one_cycle_momentum(0.8, 0.9, 40, 0.25, three_phase=True), [0.9, None, None, 0.9, 0.9]),
    (inverse_sqrt(1.0, 4), [0.0, 0.25, math.sqrt(4 / 10), math.sqrt(4 / 25), math.sqrt(4 / 1e18)]),
    (inverse_sqrt(1.0, 0), [1 / math.sqrt(n) for n in (1, 2, 11, 26, 1e18)]),
    (piecewise([0.1, 0.2, 0.3], [10, 20]), [0.1, 0.1, 0.2, 0.3, 0.3]),
    (piecewise([0.1], []), [0.1, 0.1, 0.1, 0.1, 0.1]),
    (piecewise([linear(1.0, 20), 0.5], [25]), [1.0, 0.95, 0.5, 0.5, 0.5]),
    (join([linear(0.0, 10, 1.0), linear(1.0, 30)], [10]), [0.0, 0.1, 1.0, 0.5, 0.0]),
    (join([0.1, join([0.2, constant(0.3)], [5])], [10]), [0.1, 0.1, 0.2, 0.3, 0.3]),
    (join([0.1, 0.2, 0.3], [0, 25]), [0.2, 0.2, 0.2, 0.3, 0.3]),
    (noam(512, 4), [512**-0.5 * f for f in (4**-1.5, 2 * 4**-1.5, 11**-0.5, 26**-0.5, 1e-9)]),
    (noam(16, 0, 8.0), [2 * n**-0.5 for n in (1, 2, 11, 26, 1e18)]),
    (plateau(0.1, 0.5, 3), [0.1, 0.1, 0.1, 0.1, 0.1]),
]
FUNCTIONS = [name for name in schedules.__all__ if name != "Schedule"]
EVERY = pytest.mark.parametrize("schedule", [schedule for schedule, _ in VALUES], ids=repr)


@pytest.mark.parametrize(("schedule", "values"), VALUES, ids=lambda x: repr(x) if callable(x) else "")
def test_values(schedule, values):
    for k, value in zip([0, 1, 10, 25, 10**18], values, strict=True):
        assert type(schedule(k)) is float
        if value is not None:
            assert schedule(k) == pytest.approx(value, rel=1e-12, abs=0), k


def test_every_function_is_tested():
    assert [name for name in FUNCTIONS if not any(repr(x).startswith(f"{name}(") for x, _ in VALUES)] == []


def test_ends_are_exact():
    for name in ("polynomial", "linear", "cosine"):
        schedule = getattr(schedules, name)(0.1, 1000, final=0.03, warmup=7, start=0.01)
        assert [schedule(k) for k in (0, 7, 1000, 1001)] == [0.01, 0.1, 0.03, 0.03]
    assert one_cycle(0.1, 100, 0.3)(29) == 0.1
    assert warm_restarts(0.1, 7, final=0.03)(7 * 10**12) == 0.1


def test_warm_restarts_after_many_cycles():
    schedule = warm_restarts(1.0, 3, 2)
    starts = [3 * (2**cycle - 1) for cycle in range(50)]
    assert all(schedule(k) == 1.0 for k in starts)
    assert all(schedule(k - 1) < 1.0 for k in starts[1:])


@EVERY
def test_copies_are_equal(schedule):
    assert eval(repr(schedule), vars(schedules)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert copy.deepcopy(schedule) == schedule
    assert [x for x, _ in VALUES if x == schedule] == [schedule]


def test_repr_and_hash():
    schedule = cosine(np.float32(0.5), np.int64(10), warmup=0)
    assert repr(schedule) == "cosine(lr=0.5, steps=10)"
    assert {schedule: 1}[cosine(0.5, 10)] == 1
    assert schedule != cosine(0.5, 11)
    assert schedule != linear(0.5, 10)
    assert (schedule.name, schedule.arguments) == ("cosine", (0.5, 10, 0.0, 0, 0.0))
    assert repr(plateau(0.5, mode="max")) == "plateau(lr=0.5, mode='max')"


def test_arguments_and_steps_of_numpy():
    schedule = multi_step(np.float64(0.8), np.array([5, 10]), np.array(0.5))
    assert schedule == multi_step(0.8, (5, 10), 0.5)
    assert [schedule(k) for k in (np.int32(4), np.uint8(5), np.array(10))] == [0.8, 0.4, 0.2]
    assert piecewise(np.array([0.5, 0.25]), np.array([3])) == piecewise([0.5, 0.25], [3])
    assert multi_step(0.8, range(5, 20, 5)) == multi_step(0.8, [5, 10, 15])


def warming(k):
    return np.float32(k / 4)


def test_schedules_within_schedules_may_be_any_functions():
    schedule = join([warming, cosine(1.0, 10)], [4])
    assert [schedule(k) for k in (0, 3, 4, 14)] == [0.0, 0.75, 1.0, 0.0]
    assert type(schedule(3)) is float
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_and_documentation(name):
    function = getattr(schedules, name)
    signature = inspect.signature(function)
    assert function.__doc__
    assert function.__module__ == "gradstep.schedules"
    assert inspect.isclass(function) or signature.return_annotation is Schedule
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty
    shown = "".join(pydoc.plain(pydoc.render_doc(function)).replace("|", "").split())  # a long one takes several lines
    assert f"{name}({next(iter(signature.parameters.values()))}".replace("|", "").replace(" ", "") in shown


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_page_has_every_function_with_its_arguments(name):
    page = Path(__file__).parents[1] / "docs" / "schedules.md"
    if not page.is_file():
        pytest.skip("there are no docs beside the tests")
    [row] = re.findall(rf"^\| `{name}\((.*?)\)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    parameters = inspect.signature(getattr(schedules, name)).parameters.values()
    written = [str(p.replace(annotation=p.empty)) for p in parameters]
    assert row.split(", ") == written or (row.endswith(", ...") and row.split(", ")[:-1] == written[: row.count(", ")])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: cosine(0.1), TypeError, "cosine: missing a required argument: 'steps'"),
        (lambda: cosine(0.1, 10, warmups=3), TypeError, "cosine: got an unexpected keyword argument 'warmups'"),
        (lambda: cosine("0.1", 10), TypeError, "cosine: lr must be a finite number >= 0, got '0.1'"),
        (lambda: cosine(math.nan, 10), ValueError, "cosine: lr must"),
        (lambda: cosine(-0.1, 10), ValueError, "cosine: lr must"),
        (lambda: cosine(0.1, 10, final=math.inf), ValueError, "cosine: final must"),
        (lambda: cosine(0.1, 0), ValueError, "cosine: steps must be an integer from 1"),
        (lambda: cosine(0.1, 10.0), TypeError, "cosine: steps must"),
        (lambda: cosine(0.1, True), TypeError, "cosine: steps must"),
        (lambda: cosine(0.1, 10, warmup=-1), ValueError, "cosine: warmup must"),
        (lambda: linear(0.1, 10, warmup=10), ValueError, "linear: warmup must be less than steps, 10, got 10"),
        (lambda: polynomial(0.1, 10, power=0.0), ValueError, "polynomial: power must be a finite number > 0"),
        (lambda: step(0.1, 0), ValueError, "step: every must"),
        (lambda: step(0.1, 5, 0.0), ValueError, "step: factor must"),
        (lambda: exponential(0.1, -0.5), ValueError, "exponential: factor must"),
        (lambda: multi_step(0.1, [10, 5]), ValueError, "multi_step: milestones must be integers >= 0 in ascending ord"),
        (lambda: multi_step(0.1, [5, 7.5]), TypeError, "multi_step: milestones must"),
        (lambda: multi_step(0.1, 5), TypeError, "multi_step: milestones must"),
        (lambda: warm_restarts(0.1, 10, 0), ValueError, "warm_restarts: multiplier must"),
        (lambda: one_cycle(0.1, 10, 1.5), ValueError, "one_cycle: pct_start must be a number from 0 to 1"),
        (lambda: one_cycle(0.1, 10, div_factor=0), ValueError, "one_cycle: div_factor must"),
        (lambda: one_cycle(0.1, 10, anneal_strategy="cosine"), ValueError, "one_cycle: anneal_strategy must be one of"),
        (lambda: one_cycle(0.1, 10, three_phase=1), TypeError, "one_cycle: three_phase must be True or False"),
        (lambda: inverse_sqrt(0.1, -1), ValueError, "inverse_sqrt: warmup must"),
        (lambda: noam(0, 10), ValueError, "noam: size must"),
        (lambda: piecewise([0.1, -0.2], [5]), ValueError, "piecewise: values must be a list of finite numbers"),
        (lambda: piecewise(0.1, []), TypeError, "piecewise: values must"),
        (lambda: piecewise([0.1], [5]), ValueError, "piecewise: boundaries must have one entry less than values, 0, g"),
        (lambda: join([0.1, 0.2], [-1]), ValueError, "join: boundaries must"),
        (lambda: join([0.1, "0.2"], [1]), TypeError, "join: schedules must"),
        (lambda: join([0.1, plateau(0.2)], [1]), TypeError, "join: schedules must .* without a state"),
        (lambda: cosine(0.1, 10)(-1), ValueError, "cosine: step must be an integer from 0"),
        (lambda: cosine(0.1, 10)(0.5), TypeError, "cosine: step must"),
        (lambda: plateau(-0.1), ValueError, "plateau: lr must"),
        (lambda: plateau(0.1, 1.0), ValueError, "plateau: factor must be a number from 0 to below 1"),
        (lambda: plateau(0.1, patience=-1), ValueError, "plateau: patience must"),
        (lambda: plateau(0.1, mode="least"), ValueError, "plateau: mode must be one of min, max"),
        (lambda: plateau(0.1, threshold=-1.0), ValueError, "plateau: threshold must"),
        (
            lambda: plateau(0.1, threshold_mode="absolute"),
            ValueError,
            "plateau: threshold_mode must be one of rel",
        ),
        (lambda: plateau(0.1, cooldown=0.5), TypeError, "plateau: cooldown must"),
        (lambda: plateau(0.1, min_lr=math.nan), ValueError, "plateau: min_lr must"),
        (lambda: plateau(0.1, eps=-1e-8), ValueError, "plateau: eps must"),
        (lambda: plateau(0.1).update("low"), ValueError, "low"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_plateau():
    schedule = plateau(0.5, 0.5, 1, threshold=0.1, cooldown=2, min_lr=0.2)
    # The first loss is the best one; 9.5 is not 10 % less; then the reduction, and two updates that do not count.
    for loss, value in [(10, 0.5), (9.5, 0.5), (np.float32(9.5), 0.25), (20, 0.25), (20, 0.25), (20, 0.25), (20, 0.2)]:
        schedule.update(loss)
        assert schedule(0) == schedule(10**9) == schedule.value == value
    schedule.update(math.nan)
    assert schedule.bad_updates == 0  # in the cooldown
    assert schedule.best == 10.0


def test_plateau_state():
    schedule = plateau(0.5, 0.5, 1, cooldown=2)
    fresh = copy.deepcopy(schedule)
    for loss in (3.0, 4.0, 5.0):
        schedule.update(loss)
    assert schedule.state_dict() == {"value": 0.25, "best": 3.0, "bad_updates": 0, "cooldown_left": 2}
    assert schedule != fresh
    assert schedule != 0.25
    assert eval(repr(schedule), vars(schedules)) == fresh
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    fresh.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert fresh == schedule
    again = plateau(0.1)
    again.load_state_dict(plateau(0.3).state_dict())  # before any update
    assert (again(0), again.best) == (0.3, math.inf)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"value": "0.1"}, TypeError, "plateau: value must"),
        ({"best": None}, TypeError, "plateau: best must"),
        ({"bad_updates": -1}, ValueError, "plateau: bad_updates must"),
        ({"cooldown_left": 0.5}, TypeError, "plateau: cooldown_left must"),
        ({"patience": 3}, ValueError, "the state of a plateau has value, best, bad_updates, cooldown_left, not .*pat"),
    ],
)
def test_plateau_refuses_a_state_and_stays_as_it_is(changed, error, words):
    schedule = plateau(0.5)
    schedule.update(2.0)
    before = copy.deepcopy(schedule)
    with pytest.raises(error, match=words):
        schedule.load_state_dict({"value": 0.25, "best": 1.0, "bad_updates": 1, "cooldown_left": 0} | changed)
    assert schedule == before


def test_an_optimizer_takes_schedules():
    w = np.ones(3)
    schedule = cosine(0.5, 10, warmup=4)
    opt = gs.SGD(w, lr=schedule)
    for k in range(12):
        assert opt.lr == schedule(k)
        before = w.copy()
        opt.step(np.ones(3))
        assert np.array_equal(w, before - schedule(k))
    assert pickle.loads(pickle.dumps(opt)).schedule == schedule


def test_an_optimizer_takes_a_plateau():
    schedule = plateau(0.5, 0.5, 0)
    opt = gs.SGD(np.ones(3), lr=schedule)
    rates = []
    for loss in (1.0, 2.0, 0.5, 2.0):
        rates.append(opt.lr)
        opt.step(np.ones(3))
        schedule.update(loss)
    assert rates == [0.5, 0.5, 0.25, 0.25]
    assert opt.lr == 0.125


@pytest.mark.parametrize("updates", [0, 4])
def test_a_checkpoint_has_the_state_of_a_plateau(updates, tmp_path):
    pytest.importorskip("safetensors")
    schedule, w = plateau(0.5, 0.5, 1), np.ones(3)
    opt = gs.SGD(w, lr=schedule)
    for loss in range(updates):
        opt.step(np.ones(3))
        schedule.update(loss)
    fresh = plateau(0.5, 0.5, 1)
    again = gs.SGD(w, lr=fresh)
    again.load_state_dict(opt.state_dict())
    assert again.schedule is fresh
    assert fresh == schedule
    fresh = plateau(0.5, 0.5, 1)
    gs.save(tmp_path / "checkpoint.safetensors", opt)
    gs.load(tmp_path / "checkpoint.safetensors", gs.SGD(w, lr=fresh))
    assert fresh == schedule
    assert copy.deepcopy(opt).schedule == schedule


TYPED = """
import gradstep as gs
from gradstep.schedules import Schedule

a: Schedule = gs.schedules.cosine(1e-3, 1000, warmup=100)
b: float = gs.schedules.join([0.1, a, lambda k: k / 2], [3, 5])(7)
opt = gs.Adam([], lr=a)
opt.lr = gs.schedules.plateau(0.1)
gs.schedules.cosine("1e-3", 1000)  # type: ignore[arg-type]
gs.schedules.cosine(1e-3)  # type: ignore[call-arg]
gs.schedules.cosine(1e-3, 1000, warmups=100)  # type: ignore[call-arg]
gs.schedules.one_cycle(1e-3, 1000, anneal_strategy="cosine")  # type: ignore[arg-type]
"""


def test_types(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "typed.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr

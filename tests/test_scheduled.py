"""Every option that is a number may be a schedule: values, bits, errors, groups, checkpoints."""

import copy
import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep import _options
from tests.table import REFERENCE, RULES, knobs, same_bits

STEPS = 6
START = {"momentum": 0.9} | dict.fromkeys(["clip_norm", "clip_per_tensor", "clip_value"], 0.5)
"""Values that an option needs at construction, so that it can be changed later."""


class Line:
    """A schedule that can be pickled: a different value at each step, valid for every option."""

    def __init__(self, first=0.05, slope=0.1):
        self.first, self.slope, self.asked = first, slope, []

    def __call__(self, step):
        self.asked.append(step)
        return self.first + self.slope * step


class Falling(Line):
    """A schedule with a state, which its owner changes."""

    def __init__(self, value):
        self.value = value

    def __call__(self, _):
        return self.value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, saved):
        self.value = float(saved["value"])


def scheduled(cls):
    return {name: option for name, option in {**cls.known, **cls.step_options}.items() if option.follows_schedules}


def grad(step, size=40):
    return (3 * np.sin(np.arange(size) * (step + 1))).astype(np.float32)


def start():
    return np.linspace(-1, 1, 40).astype(np.float32)


OPTIONS = [(rule, name) for rule in RULES for name in scheduled(RULES[rule])]


def as_pairs(option, schedule):
    """The schedule, for an option that is a pair as one that returns pairs."""
    return (lambda step: (schedule(step), 0.9)) if option.parts else schedule


@pytest.mark.parametrize(("rule", "name"), OPTIONS)
def test_a_step_has_the_bits_of_the_value(rule, name):
    """The same as the reference with the schedule, and as an optimizer whose option is set before each step."""
    cls = RULES[rule]
    schedule = as_pairs(scheduled(cls)[name], Line())
    ours, theirs, by_hand = start(), start(), start()
    first = {name: schedule(0)} if name in START or name == "ema" else {}
    opt, ref, hand = cls(ours, **{name: schedule}), REFERENCE[rule](theirs, **{name: schedule}), cls(by_hand, **first)
    for step in range(STEPS):
        setattr(hand, name, schedule(step))
        assert getattr(opt, name) == getattr(hand, name)
        for each in (opt, ref, hand):
            each.step(grad(step))
        assert same_bits(ours, theirs)
        assert same_bits(ours, by_hand)


def test_which_options():
    """All numbers but those that are fixed; none of the others."""
    for cls in RULES.values():
        for name, option in {**cls.known, **cls.step_options}.items():
            value = option.default
            is_number = isinstance(value, (float, tuple)) or (value is None and "number" in option.domain.words)
            assert option.follows_schedules == (is_number and not option.fixed), name
    with pytest.raises(TypeError, match=r"AdaGrad: initial_accumulator must be a finite number >= 0, got"):
        gs.AdaGrad(start(), initial_accumulator=Line())


def test_it_is_asked_once_a_step_for_each_option():
    line = Line()
    opt = gs.Momentum([{"params": start()}, {"params": start()}], lr=line, momentum=line)
    for step in range(3):
        opt.step([grad(step), grad(step)])
    assert line.asked == [0, 0, 1, 1, 2, 2]


def test_one_with_a_state_is_asked_again():
    """Its owner may change the value after it was read."""
    p, falling = start(), Falling(0.5)
    opt = gs.Adam(p, lr=falling, betas=(Falling(0.25), 0.9))
    assert (opt.lr, opt.betas) == (0.5, (0.25, 0.9))
    falling.value = opt.groups[0].schedules["betas"].parts[0].value = 0.0
    opt.step(grad(0))
    assert (opt.lr, opt.betas) == (0.0, (0.0, 0.9))
    assert same_bits(p, start())


def test_pairs():
    """One of two numbers may be a schedule, and so may the pair."""
    ours, theirs = start(), start()
    line = Line(0.5)
    opt, twin = gs.Adam(ours, betas=(line, 0.99)), gs.Adam(theirs, betas=lambda step: (0.5 + 0.1 * step, 0.99))
    for step in range(3):
        assert opt.betas == twin.betas == (0.5 + 0.1 * step, 0.99)
        opt.step(grad(step))
        twin.step(grad(step))
    assert same_bits(ours, theirs)
    assert copy.deepcopy(opt).betas == pickle.loads(pickle.dumps(opt)).betas == opt.betas
    opt.betas = (0.5, 0.25)
    opt.step(grad(3))
    assert opt.betas == (0.5, 0.25)
    for betas, error, words in [
        ((line, 1.0), ValueError, r"Adam: betas must be a pair, each a number from 0 to below 1, got"),
        ((line, "a"), TypeError, r"Adam: betas must be a pair"),
        ((line, 0.9, 0.9), TypeError, r"Adam: betas must be a pair"),
    ]:
        with pytest.raises(error, match=words):
            gs.Adam(start(), betas=betas)
        with pytest.raises(error, match=words):
            opt.betas = betas
    opt.betas = lambda _: 0.9
    with pytest.raises(TypeError, match=r"Adam: betas\(4\) must be a pair, each a number from 0 to below 1, got 0.9"):
        opt.step(grad(4))


@pytest.mark.parametrize(("rule", "name"), OPTIONS)
def test_a_value_that_the_option_cannot_have(rule, name):
    """The step is refused, and leaves everything as it was."""
    cls = RULES[rule]
    schedule = as_pairs(scheduled(cls)[name], Line())
    bad = as_pairs(scheduled(cls)[name], lambda _: -1.0)
    p = start()
    opt = cls(p, **{name: lambda step: schedule(step) if step < 2 else bad(step)})
    for step in range(2):
        opt.step(grad(step))
    before, saved = p.copy(), opt.state_dict()
    with pytest.raises(ValueError, match=rf"^{cls.__name__}: {name}\(2\) must be"):
        opt.step(grad(2))
    assert opt.step_count == 2
    assert same_bits(p, before)
    assert repr(opt.state_dict()) == repr(saved)


def test_momentum_that_becomes_zero():
    """RMSProp keeps a velocity where its momentum is above zero, so a schedule cannot turn it off."""
    p = start()
    opt = gs.RMSProp(p, momentum=lambda step: 0.5 if step == 0 else 0.0)
    opt.step(grad(0))
    before = p.copy()
    with pytest.raises(ValueError, match="would change whether momentum_buffer is kept"):
        opt.step(grad(1))
    assert same_bits(p, before)


@pytest.mark.parametrize(("rule", "name"), OPTIONS)
def test_a_number_ends_it(rule, name):
    cls = RULES[rule]
    option = scheduled(cls)[name]
    schedule, number = as_pairs(option, Line()), ((0.25, 0.5) if option.parts else 0.25)
    ours, theirs = start(), start()
    opt, twin = cls(ours, **{name: schedule}), cls(theirs, **{name: schedule(0)})
    for step in range(4):
        if step == 2:
            setattr(opt, name, number)
        setattr(twin, name, schedule(step) if step < 2 else number)
        opt.step(grad(step))
        twin.step(grad(step))
    assert getattr(opt, name) == number
    assert same_bits(ours, theirs)


def test_one_that_sets_its_own_option():
    """Its value holds for the step, and what it has set from the next one on."""
    p, taken = start(), []

    def momentum(_):
        opt.momentum = 0.125
        return 0.5

    opt = gs.Momentum(p, momentum=momentum)
    twin_p = start()
    twin = gs.Momentum(twin_p, momentum=0.5)
    for step in range(3):
        opt.step(grad(step))
        twin.step(grad(step))
        taken.append(opt.momentum)
        twin.momentum = 0.125
    assert taken == [0.125] * 3
    assert same_bits(p, twin_p)


def test_one_that_takes_a_step():
    opt = gs.SGD(np.zeros(1), lr=lambda _: opt.step(np.ones(1)))
    with pytest.raises(RuntimeError, match=r"step\(\) is not allowed in code that a step or a schedule calls"):
        opt.step(np.ones(1))
    assert opt.step_count == 0


def test_groups_have_their_own():
    ours, theirs = [start(), start()], [start(), start()]
    opt = gs.Adam([{"params": ours[0], "weight_decay": Line()}, {"params": ours[1]}], weight_decay=0.5)
    twin = gs.Adam([{"params": theirs[0]}, {"params": theirs[1]}], weight_decay=0.5)
    for step in range(3):
        twin.groups[0]["weight_decay"] = Line()(step)
        assert [group["weight_decay"] for group in opt.groups] == [Line()(step), 0.5]
        opt.step([grad(step)] * 2)
        twin.step([grad(step)] * 2)
    assert all(map(same_bits, ours, theirs))
    assert list(opt.groups[0].schedules) == ["weight_decay"]
    assert opt.groups[1].schedules == {}


@pytest.mark.parametrize("rule", RULES)
def test_checkpoints(rule, tmp_path):
    """All options at once are schedules; they are kept, with their states, and the run goes on with the same bits."""
    pytest.importorskip("safetensors")
    cls = RULES[rule]
    fixed = {name: value for name, value in knobs(rule)[-1].items() if isinstance(value, bool)}
    names = [name for name in scheduled(cls) if name != "clip_per_tensor"]

    def make(value):
        p = start()
        falling = {name: (Falling(value), 0.9) if name == "betas" else Falling(value) for name in names}
        return p, cls(p, **fixed, **falling)

    p, opt = make(0.5)
    for step in range(2):
        opt.step(grad(step))
    at_pause = p.copy()
    gs.save(tmp_path / "opt.safetensors", opt)
    saved = opt.state_dict()
    for each in (saved["groups"][0], saved["options"]):
        assert {name for name in each if name in names} == {name for name in names if name in each}
        assert all(each[name] is None for name in names if name in each)
    opt.step(grad(2))
    for load in (lambda new: new.load_state_dict(saved), lambda new: gs.load(tmp_path / "opt.safetensors", new)):
        q, resumed = make(0.25)
        q[...] = at_pause
        load(resumed)
        values = [getattr(resumed, name) for name in names]
        assert set(values) == {0.5} | {(0.5, 0.9) for name in names if name == "betas"}
        resumed.step(grad(2))
        assert same_bits(q, p)
        number = cls(start(), **fixed, **{name: (0.25, 0.5) if name == "betas" else 0.25 for name in names})
        load(number)
        assert number.lr == 0.25, "a checkpoint of a schedule says nothing of the value"


def test_a_checkpoint_does_not_share_the_state():
    class Live(Falling):
        def __init__(self):
            self.values = [0.5]

        def __call__(self, _):
            return self.values[-1]

        def state_dict(self):
            return vars(self)

        def load_state_dict(self, saved):
            vars(self).update(saved)

    schedule = Live()
    opt = gs.SGD(np.zeros(1), lr=schedule)
    saved = opt.state_dict()
    for _ in range(2):  # neither what was saved nor what was loaded
        schedule.values.append(0.25)
        assert opt.lr == 0.25
        opt.load_state_dict(saved)
        assert opt.lr == 0.5


def test_a_state_that_does_not_fit():
    opt = gs.Adam(start(), lr=Falling(0.5), betas=(Falling(0.5), 0.9))
    saved = opt.state_dict()
    assert saved["groups"][0]["schedules"] == {"lr": {"value": 0.5}, "betas": {"0": {"value": 0.5}, "1": None}}
    opt.groups[0].schedules["lr"].value = 0.25
    for bad in ({"lr": {}}, {"betas": {"0": {"value": 0.5}}}, {"lr": {"value": "x"}}):
        schedules = {**saved["groups"][0]["schedules"], **bad}
        with pytest.raises((TypeError, ValueError)):
            opt.load_state_dict({**saved, "groups": [{**saved["groups"][0], "schedules": schedules}]})
        assert opt.lr == 0.25, "nothing was loaded"
    with pytest.raises(TypeError, match=r"the state dict\['groups'\]\[0\]\['schedules'\] must be a dict"):
        opt.load_state_dict({**saved, "groups": [{**saved["groups"][0], "schedules": 1}]})
    opt.load_state_dict(saved)
    assert opt.groups[0].schedules["lr"].value == 0.5
    assert repr(_options.Both((0.5, 0.25))) == "(0.5, 0.25)"

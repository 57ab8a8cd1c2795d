"""A run resumed from a checkpoint has the bits of an uninterrupted one; checkpoints that do not fit are refused."""

import copy
import json
import math
import pickle
import re

import numpy as np
import pytest

import gradstep as gs
from tests.table import CASES, RULES, knobs, schedule
from tests.test_refusals import frozen, steps_of

STEPS, PAUSE = 9, 4
STATE_OPTIONS = {"rmsprop": {"centered", "momentum"}, "adam": {"amsgrad"}}


def through_pickle(saved, _):
    return pickle.loads(pickle.dumps(saved))


def through_copy(saved, _):
    return copy.deepcopy(saved)


def through_files(saved, path):
    """Saves arrays as npz and everything else as JSON: a state dict is plain data."""
    of_names = saved["state"].items()
    arrays = {f"{name} {key}": a for name, own in of_names for key, a in own.items() if isinstance(a, np.ndarray)}
    np.savez(path / "state.npz", **arrays)
    numbers = {name: {k: v for k, v in own.items() if not isinstance(v, np.ndarray)} for name, own in of_names}
    (path / "rest.json").write_text(json.dumps({**saved, "state": numbers}))
    loaded = json.loads((path / "rest.json").read_text())
    with np.load(path / "state.npz") as file:
        for place in file.files:
            name, key = place.rsplit(" ", 1)
            loaded["state"][name][key] = file[place]
    return loaded


def parameters(dtype):
    """Parameters of three shapes and layouts."""
    x = np.linspace(-1, 1, 60).astype(dtype)
    return [x[:12].reshape(3, 4).copy(), np.asfortranarray(x[12:42].reshape(5, 6)), x[42:][::-2]]


def gradients(params, step):
    """Gradients; the first is None at step 0, the third in two of three steps."""
    rng = np.random.default_rng(step)
    grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
    return [grads[0] if step else None, grads[1], grads[2] if step % 3 == 1 else None]


def bits(opt, params):
    return frozen(opt, *params)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_resumed_run_has_the_same_bits(case, tmp_path):
    cls = RULES[case.rule]
    params = parameters(case.dtype)
    opt = cls(params, **case.knobs)
    for step in range(PAUSE):
        opt.step(gradients(params, step))
    saved, at_pause = opt.state_dict(), [p.copy() for p in params]
    for step in range(PAUSE, STEPS):
        opt.step(gradients(params, step))

    for trip in (through_pickle, through_copy, through_files):
        # Schedules are not saved, and states cannot be added; all other options come from the checkpoint.
        kept = {k: v for k, v in case.knobs.items() if callable(v) or k in STATE_OPTIONS.get(case.rule, ())}
        again = [p.copy(order="K") for p in at_pause]
        resumed = cls(again, **kept)
        resumed.load_state_dict(trip(saved, tmp_path))
        for step in range(PAUSE, STEPS):
            resumed.step(gradients(again, step))
        assert bits(resumed, again) == bits(opt, params), trip.__name__
    assert steps_of(opt) == [STEPS - 1, STEPS, STEPS // 3]


def test_groups_keep_their_own():
    """Groups keep separate options, states and step numbers."""
    params = [np.ones(3), np.ones(2), np.ones((2, 2), np.float32)]

    def make(params):
        of = [{"w": params[0], "b": params[1]}, params[2]]
        opt = gs.Adam([{"params": of[0], "amsgrad": True, "betas": (0.5, 0.9)}, {"params": of[1], "eps": 0.1}])
        opt.groups[1]["lr"] = schedule
        return opt

    opt = make(params)
    opt.groups[0].update(lr=0.25, l2=0.5)
    opt.groups[1].update(maximize=True, eps=0.5)
    grads = [{"w": np.arange(3.0), "b": None}, np.ones((2, 2), np.float32)]
    opt.step(grads)
    saved = opt.state_dict()
    assert [group["lr"] for group in saved["groups"]] == [0.25, None]
    assert ["max_exp_avg_sq" in own for own in saved["state"].values()] == [True, True, False]
    assert [own["step"] for own in saved["state"].values()] == [1, 0, 1]
    assert [group["params"] for group in saved["groups"]] == [["[0].w", "[0].b"], ["[1]"]]

    again = copy.deepcopy(params)
    resumed = make(again)
    resumed.load_state_dict(saved)
    assert [dict(group) for group in resumed.groups] == [dict(group) for group in opt.groups]
    assert resumed.groups[1].schedule is schedule
    for each in (opt, resumed):
        each.step(grads)
    assert bits(resumed, again) == bits(opt, params)


def test_a_schedule_is_saved_as_none_and_kept():
    old, new = gs.SGD(np.ones(1), lr=schedule), gs.SGD(np.ones(1), lr=schedule)
    assert old.state_dict()["groups"][0]["lr"] is None
    new.load_state_dict(old.state_dict())
    assert new.schedule is schedule
    number = gs.SGD(np.ones(1), lr=0.5)
    number.load_state_dict(old.state_dict())
    assert number.lr == 0.5, "a checkpoint of a schedule says nothing of the rate"
    new.load_state_dict(number.state_dict())
    assert new.lr == 0.5


def plain(data):
    """Whether data consists only of plain types, without subclasses."""
    if type(data) is dict:
        return all(type(key) is str for key in data) and all(map(plain, data.values()))
    if type(data) in (list, tuple):
        return all(map(plain, data))
    return data is None or type(data) in (str, int, float, bool, np.ndarray)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_dict_is_plain_and_apart(rule):
    """NumPy scalars in options become plain, and later changes on one side do not affect the other."""
    p, g = np.ones(3), np.ones(3)
    opt = RULES[rule](p, lr=np.float32(0.25), **{name: v for name, v in knobs(rule)[-1].items() if name != "lr"})
    opt.step(g)
    saved = opt.state_dict()
    assert plain(saved)
    assert list(saved) == ["format", "rule", "step_count", "options", "groups", "state"]
    assert saved["format"] == 2
    assert list(saved["state"][""]) == ["step", *opt.scalar_names(), *opt.state]
    before, states = bits(opt, [p]), opt.state
    opt.load_state_dict(saved)
    for name in states:
        saved["state"][""][name].fill(7)
    saved["groups"][0]["l2"], saved["state"][""]["step"] = 7.0, 7
    assert bits(opt, [p]) == before
    assert all(opt.state[name] is a for name, a in states.items()), "states are written in place"


def put(*path):
    """An edit of a state dict: the last argument is the new value, the others are keys."""
    *where, key, value = path

    def edit(saved):
        for k in where:
            saved = saved[k]
        saved[key] = value

    return edit


def drop(*path):
    *where, key = path

    def edit(saved):
        for k in where:
            saved = saved[k]
        del saved[key]

    return edit


NO_COUNT = [-1, 1.0, 1.5, math.nan, math.inf, None, "1", True, 2**63, 2**70, [1], np.float64(1)]
NO_PRODUCT = [math.nan, math.inf, -0.5, 1.5, None, "1", 1j, True, [0.5]]
ARRAY = np.zeros(2)
KEPT = ("step", "mu_product", "exp_avg", "exp_avg_sq")
TYPES, SHAPES = ("float32", ">f8", "object"), ((), 1, (2, 1), 3, 0)
FIRST, SECOND = "[0]", "[1]"
# An edit of Nadam's state dict of two tensors of shapes (3,) and (2,), the error, and part of its message.
EDITS = [
    *((put("step_count", value), (TypeError, ValueError), "step_count") for value in NO_COUNT),
    *((put("state", SECOND, "step", value), (TypeError, ValueError), r"\['\[1\]'\]\['step'\]") for value in NO_COUNT),
    *((put("state", SECOND, "mu_product", value), (TypeError, ValueError), "mu_product") for value in NO_PRODUCT),
    *((put("state", SECOND, "mu_product", ARRAY[:n]), (TypeError, ValueError), "mu_product") for n in (0, 1, 2)),
    *((drop(key), ValueError, f"lacks '{key}'") for key in ("step_count", "options", "groups", "state")),
    (drop("format"), ValueError, "lacks 'steps'"),  # then it is one of version 0.1
    *((put("format", value), (TypeError, ValueError), "format") for value in (*NO_COUNT, 0, 1, 3)),
    *((drop("state", SECOND, key), ValueError, rf"mismatched: \[1\] \(lacks {key}\)") for key in KEPT),
    *((drop("state", name), ValueError, f"missing: {re.escape(name)}$") for name in (FIRST, SECOND)),
    (put("state", "w", {}), ValueError, "unexpected: w$"),
    (put("state", SECOND, None), TypeError, r"\['\[1\]'\] must be a dict"),
    (put("state", SECOND, "max_exp_avg_sq", ARRAY), ValueError, r"\[1\] \(has max_exp_avg_sq, which is not kept here"),
    (put("rule", "adam"), ValueError, "'adam'.*'nadam'"),
    (put("rule", None), (TypeError, ValueError), "rule"),
    (drop("groups", 0, "params"), TypeError, r"\['groups'\]\[0\] must have a list of names as 'params'"),
    (put("groups", 0, "params", "[0]"), TypeError, r"\['groups'\]\[0\] must have a list of names as 'params'"),
    (put("groups", [None]), TypeError, "groups"),
    (put("groups", None), TypeError, "groups"),
    (put("groups", 0, "lr", -1), ValueError, "lr must be"),
    (put("groups", 0, "lr", "1"), TypeError, "lr must be"),
    (put("groups", 0, "lr", schedule), TypeError, "lr must be"),
    (put("groups", 0, "eps", math.nan), ValueError, "eps must be"),
    (put("groups", 0, "betas", [0.9, 1.0]), ValueError, "betas must be"),
    (put("groups", 0, "maximize", 1), TypeError, "maximize must be"),
    (put("groups", 0, "amsgrad", False), (TypeError, ValueError), "amsgrad"),
    (put("options", None), TypeError, "options"),
    (put("options", "clip_norm", -1), ValueError, "clip_norm must be"),
    (put("options", "clip", 1), TypeError, "clip"),
    (put("state", None), TypeError, "state"),
    (put("state", []), TypeError, "state"),
    (put("state", SECOND, "exp_avg_sq", [0.0, 0.0]), TypeError, "exp_avg_sq.* not list"),
    (put("state", SECOND, "exp_avg_sq", 0.0), TypeError, "exp_avg_sq.* not float"),
    (put("state", SECOND, "exp_avg_sq", None), TypeError, "exp_avg_sq.* not NoneType"),
    (put("state", SECOND, "exp_avg_sq", np.ma.masked_array(ARRAY)), TypeError, "exp_avg_sq.* is a masked array"),
    *(
        (put("state", SECOND, "exp_avg", ARRAY.astype(t)), ValueError, rf"\[1\] \(exp_avg is {t}, and here float64")
        for t in TYPES
    ),
    *(
        (put("state", SECOND, "exp_avg", np.zeros(s)), ValueError, r"\[1\] \(exp_avg has shape .*, and here \(2,\)")
        for s in SHAPES
    ),
]


def pair(rule="nadam", **options):
    opt = RULES[rule]([np.ones(3), np.ones(2)], **options)
    opt.step([np.ones(3), np.full(2, 2.0)])
    return opt


@pytest.mark.parametrize(("edit", "error", "words"), EDITS)
def test_what_does_not_fit_is_refused_and_nothing_changes(edit, error, words):
    opt = pair()
    saved = pair(lr=0.5, eps=0.5).state_dict()
    saved["state"][FIRST]["exp_avg"].fill(5)
    edit(saved)
    before = frozen(opt)
    with pytest.raises(error, match=words):
        opt.load_state_dict(saved)
    assert frozen(opt) == before
    twin = pair()
    for each in (opt, twin):
        each.step([np.ones(3), np.ones(2)])
    assert frozen(opt) == frozen(twin)


@pytest.mark.parametrize("saved", [None, 1, [], "rule", {}, np.zeros(3)])
def test_no_state_dict_at_all(saved):
    opt = pair()
    before = frozen(opt)
    with pytest.raises((TypeError, ValueError), match="state dict"):
        opt.load_state_dict(saved)
    assert frozen(opt) == before


def test_other_optimizers_are_refused():
    """Checkpoints of other rules, and of the same rule with other tensors, types, states or groups."""
    for rule in RULES:
        for other in set(RULES) - {rule}:
            opt = pair(rule)
            before = frozen(opt)
            with pytest.raises(ValueError, match=f"'{other}'.*'{rule}'"):
                opt.load_state_dict(pair(other).state_dict())
            assert frozen(opt) == before
    a, b = np.ones(3), np.ones(2)
    unlike = [
        gs.Adam([a.copy()]),
        gs.Adam([a.copy(), b.copy(), a.copy()]),
        gs.Adam([b.copy(), a.copy()]),
        gs.Adam([a.astype("f4"), b.astype("f4")]),
        gs.Adam([a.copy(), b.astype("f4")]),
        gs.Adam([a.copy(), b.copy()], amsgrad=True),
        gs.Adam([{"params": [a.copy()]}, {"params": [b.copy()]}]),
        gs.Adam({"a": a.copy(), "b": b.copy()}),
        gs.Adam([a.reshape(1, 3), b]),
    ]
    for one in unlike:
        opt = pair("adam")
        for taker, giver in ((opt, one), (one, opt)):
            before = frozen(taker)
            with pytest.raises((TypeError, ValueError), match="state dict"):
                taker.load_state_dict(giver.state_dict())
            assert frozen(taker) == before


def test_what_numpy_makes_of_plain_data_is_taken():
    """NumPy's integers and floats are accepted, and tuples in place of lists."""
    opt = pair()
    saved = opt.state_dict()
    expected = frozen(opt)
    saved["step_count"] = np.int64(saved["step_count"])
    for own in saved["state"].values():
        own["step"], own["mu_product"] = np.array(own["step"]), np.float64(own["mu_product"])
    saved["groups"][0]["lr"] = np.float64(saved["groups"][0]["lr"])
    saved["groups"][0]["eps"] = np.array(saved["groups"][0]["eps"])
    saved["groups"] = tuple({**group, "params": tuple(group["params"])} for group in saved["groups"])
    fresh = gs.Nadam([np.ones(3), np.ones(2)])
    fresh.load_state_dict(saved)
    assert frozen(fresh) == expected
    assert plain(fresh.state_dict())

"""What people who do this job run into: one section for each kind of report, by its name."""

import copy
import dataclasses
import gc
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import site
import subprocess
import sys
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import make_dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from gradstep import _temporary, q8
from tests.table import REFERENCE, RULES, knobs, same_bits, schedule
from tests.test_refusals import frozen, steps_of

EVERY_RULE = pytest.mark.parametrize("rule", RULES)


class Layer(NamedTuple):
    w: np.ndarray
    b: np.ndarray


@dataclasses.dataclass
class Model:
    w: np.ndarray
    b: np.ndarray


def numbers(seed, shape, dtype="f8"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def refused(opt, arrays, error, words, call):
    """The call raises, in these words, and nothing changes."""
    before, names, options = frozen(opt, *arrays), opt.names, [group.raw for group in opt.groups]
    with pytest.raises(error, match=words):
        call()
    assert frozen(opt, *arrays) == before
    assert (opt.names, [group.raw for group in opt.groups]) == (names, options)


class TestNamesInCheckpoints:
    def test_another_order_of_keys_is_no_difference(self):
        w, b = numbers(1, 4), numbers(2, 4)
        one = gs.Adam({"w": w.copy(), "b": b.copy()})
        one.step({"w": w, "b": b})
        other = gs.Adam({"b": b.copy(), "w": w.copy()})
        assert not any(other.load_state_dict(one.state_dict()))
        for name in ("exp_avg", "exp_avg_sq"):
            for key in ("w", "b"):
                assert same_bits(other.state[name][key], one.state[name][key])
                assert other.state[key][name] is other.state[name][key]

    @pytest.mark.parametrize(
        ("make", "missing", "unexpected"),
        [
            (lambda w, b: [w, b], ["[0]", "[1]"], ["w", "b"]),
            (lambda w, b: {"layer": {"w": w, "b": b}}, ["layer.w", "layer.b"], ["w", "b"]),
            (lambda w, b: {"w": w, "bias": b}, ["bias"], ["b"]),
            (lambda w, _: {"w": w}, [], ["b"]),
        ],
    )
    def test_other_names_are_listed(self, make, missing, unexpected):
        w, b = numbers(1, 4), numbers(2, 4)
        flat = gs.Adam({"w": w.copy(), "b": b.copy()})
        flat.step({"w": w, "b": b})
        other = gs.Adam(make(w.copy(), b.copy()))
        words = [
            f"{kind}: {', '.join(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        with pytest.raises(ValueError, match="does not fit this optimizer; ") as caught:
            other.load_state_dict(flat.state_dict())
        assert str(caught.value).endswith("; ".join(words))
        assert steps_of(other) == [0] * len(other.names)

    def test_what_fits_is_taken_where_that_is_asked_for(self):
        saved = gs.Adam({"w": numbers(1, 4), "b": numbers(2, 3), "old": numbers(3, 2)}, lr=0.25)
        saved.step({"w": numbers(4, 4), "b": numbers(5, 3), "old": numbers(6, 2)})
        opt = gs.Adam({"w": numbers(1, 4), "b": numbers(2, 5), "new": numbers(3, 2)})
        found = opt.load_state_dict(saved.state_dict(), strict=False)
        assert (found.missing, found.unexpected) == (["new"], ["old"])
        [mismatched] = found.mismatched
        assert mismatched.startswith("b (exp_avg has shape (3,), and here (5,)")
        assert same_bits(opt.state["w"]["exp_avg"], saved.state["w"]["exp_avg"])
        assert not opt.state["b"]["exp_avg"].any()
        assert (steps_of(opt), opt.step_count, opt.lr) == ([1, 0, 0], 1, 0.25)

    def test_a_named_tuple_a_dataclass_and_a_dict_have_the_same_names(self):
        w, b = numbers(1, 4), numbers(2, 3)
        kinds = [Layer, Model, lambda w, b: {"b": b, "w": w}]
        made = [gs.Adam({"l": make(w.copy(), b.copy())}) for make in kinds]
        made[0].step({"l": (w, b)})
        for taker in made[1:]:
            taker.load_state_dict(made[0].state_dict())
            assert same_bits(taker.state["l.b"]["exp_avg"], made[0].state["l.b"]["exp_avg"])

    @EVERY_RULE
    def test_dicts_of_version_0_1_still_load(self, rule):
        options = knobs(rule)[-1]
        p, grads = [numbers(1, 4), numbers(2, (2, 3))], [numbers(3, 4), numbers(4, (2, 3))]
        opt = RULES[rule](p, **options)
        opt.step(grads)
        opt.step([grads[0], None])
        new = opt.state_dict()
        own = list(new["state"].values())
        old = {
            "rule": rule,
            "step_count": 2,
            "clip_norm": None,
            "steps": [each["step"] for each in own],
            "groups": [{k: v for k, v in group.items() if k not in ("params", "frozen")} for group in new["groups"]],
            "state": {name: [each.get(name) for each in own] for name in opt.state},
            **{name: [each[name] for each in own] for name in opt.scalar_names()},
        }
        kept = {k: v for k, v in options.items() if k in ("amsgrad", "centered", "momentum") or callable(v)}
        twin = [a.copy() for a in p]
        other = RULES[rule](twin, **kept)
        other.load_state_dict(old)
        for each in (opt, other):
            each.step(grads)
        assert frozen(other, *twin) == frozen(opt, *p)
        for bad in ({**old, "steps": [1]}, {**old, "groups": []}, {k: v for k, v in old.items() if k != "state"}):
            refused(other, twin, ValueError, "state dict", lambda bad=bad: other.load_state_dict(bad))


OTHER_VALUES = {
    **dict.fromkeys(["l2", "weight_decay", "eps", "eps_root", "lr_decay", "lr", "momentum_decay"], 0.03125),
    **dict.fromkeys(["dampening", "rho"], 0.75),
    "betas": (0.5, 0.75),
}


class TestOptionsAsAttributes:
    @EVERY_RULE
    def test_every_option_reads_and_sets_all_groups(self, rule):
        cls = RULES[rule]
        for name, option in cls.known.items():
            a, b = numbers(1, 4), numbers(2, 3)
            opt = cls([{"params": a}, {"params": b}], **({"momentum": 0.5} if rule == "rmsprop" else {}))
            now = getattr(opt, name)
            assert now == opt.groups[0][name] == opt.groups[1][name]
            if option.fixed:
                refused(
                    opt,
                    [a, b],
                    ValueError,
                    f"{name} .*cannot change",
                    lambda opt=opt, name=name, now=now: setattr(opt, name, now),
                )
                continue
            if isinstance(now, bool) and name != "amsgrad" and name != "centered":
                value = not now
            elif name in OTHER_VALUES:
                value = OTHER_VALUES[name]
            else:
                continue
            setattr(opt, name, value)
            assert getattr(opt, name) == value
            assert [group[name] for group in opt.groups] == [value, value]
            p, q = a.copy(), b.copy()
            twin = cls([p, q], **{"momentum": 0.5, name: value} if rule == "rmsprop" else {name: value})
            for _ in range(2):
                opt.step([a + 1, b + 1])
                twin.step([p + 1, q + 1])
            assert same_bits(a, p), name
            assert same_bits(b, q), name

    @EVERY_RULE
    def test_a_bad_value_changes_no_group(self, rule):
        a, b = np.ones(3), np.ones(2)
        opt = RULES[rule]([{"params": a}, {"params": b, "l2": 0.5}])
        for name, bad, error in [("lr", -1, ValueError), ("l2", "1", TypeError), ("maximize", 1, TypeError)]:
            refused(opt, [a, b], error, f"{name} must be", lambda name=name, bad=bad: setattr(opt, name, bad))
        with pytest.raises(ValueError, match=r"groups differ in l2 \(0: 0.0, 1: 0.5\)"):
            _ = opt.l2

    @pytest.mark.parametrize(
        ("wrong", "hint"),
        [
            ("learning_rate", "lr"),
            ("beta1", "betas"),
            ("weight_decya", "weight_decay"),
            ("epsilon", "eps"),
            ("step_cuont", "step_count"),
        ],
    )
    def test_an_unknown_attribute_is_an_error(self, wrong, hint):
        opt = gs.Adam(np.ones(1))
        words = f"^Adam has no attribute '{wrong}'; did you mean '{hint}'"
        with pytest.raises(AttributeError, match=words):
            setattr(opt, wrong, 1)
        with pytest.raises(AttributeError, match=words):
            getattr(opt, wrong)
        assert not hasattr(opt, wrong)

    @pytest.mark.parametrize(
        "name", ["params", "grads", "options", "step_count", "grad_norm", "groups", "state", "names"]
    )
    def test_what_is_no_option_cannot_be_set(self, name):
        opt = gs.Adam(np.ones(1))
        with pytest.raises(AttributeError):
            setattr(opt, name, 1)

    def test_clip_norm(self):
        opt = gs.SGD(p := np.zeros(1), lr=1.0)
        opt.clip_norm = np.float32(0.5)
        opt.step(np.ones(1))
        assert (opt.clip_norm, p[0]) == (0.5, -0.5)


def nests():
    """Containers with one array in each that can be put in another's place, and how."""
    made = {
        "dict": {"w": np.ones(2), "b": np.ones(3)},
        "nested": {"l": {"w": np.ones(2)}, "b": np.ones(3)},
        "list": [np.ones(2), np.ones(3)],
        "list of lists": [[np.ones(2)], np.ones(3)],
        "dataclass": Model(np.ones(2), np.ones(3)),
        "tuple of dicts": ({"w": np.ones(2)}, np.ones(3)),
        "groups": [{"params": {"w": np.ones(2)}}, {"params": [np.ones(3)]}],
    }
    ways = {
        "dict": (made["dict"], "w", "w"),
        "nested": (made["nested"]["l"], "w", "l.w"),
        "list": (made["list"], 0, "[0]"),
        "list of lists": (made["list of lists"][0], 0, "[0][0]"),
        "dataclass": (made["dataclass"], "w", "w"),
        "tuple of dicts": (made["tuple of dicts"][0], "w", "[0].w"),
        "groups": (made["groups"][0]["params"], "w", "[0].w"),
    }
    return {kind: (nest, *ways[kind]) for kind, nest in made.items()}


def put(container, key, value):
    if dataclasses.is_dataclass(container):
        setattr(container, key, value)
    else:
        container[key] = value


def grads_like(nest):
    if isinstance(nest, dict):
        return grads_like(nest["params"]) if "params" in nest else {k: grads_like(v) for k, v in nest.items()}
    if isinstance(nest, list | tuple):
        return type(nest)(map(grads_like, nest))
    if isinstance(nest, Model):
        return Model(grads_like(nest.w), grads_like(nest.b))
    return np.full_like(nest, 0.5)


class TestReboundEntries:
    @pytest.mark.parametrize("kind", nests())
    def test_a_rebound_parameter_is_noticed_and_can_be_taken_over(self, kind):
        nest, container, key, name = nests()[kind]
        old = container.w if kind == "dataclass" else container[key]
        opt = gs.Adam(nest)
        opt.step(grads_like(nest))
        new = np.clip(old, 0, 0.5)
        put(container, key, new)
        suffix = name if name.startswith("[") else f".{name}"
        before = frozen(opt, old, new)
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"is another array than the one that the optimizer steps.* rebind\(\)"
            ) as caught:
                opt.step(grads_like(nest))
            assert str(caught.value).startswith(f"params{suffix} is another")
        assert frozen(opt, old, new) == before
        states, kept = opt.state[name], old.copy()
        opt.rebind()
        assert steps_of(opt) == [1, 1]
        assert all(opt.state[name][state] is array for state, array in states.items())
        opt.step(grads_like(nest))
        assert same_bits(old, kept)
        assert not np.array_equal(new, np.clip(old, 0, 0.5))
        assert (steps_of(opt), opt.step_count) == ([2, 2], 2)

    @pytest.mark.parametrize("kind", nests())
    def test_a_rebound_gradient_is_noticed_and_can_be_taken_over(self, kind):
        nest = nests()[kind][0]
        grads = grads_like(nest)
        opt = gs.Adam(nest, grads=grads)
        opt.step()
        inner = grads
        while not isinstance(inner, Model) and not isinstance(
            first := inner["w" if "w" in inner else "l"] if isinstance(inner, dict) else inner[0], np.ndarray
        ):
            inner = first
        key = "w" if isinstance(inner, dict | Model) else 0
        new = np.full(2, -3.0)
        put(inner, key, new)
        before = frozen(opt)
        with pytest.raises(ValueError, match=r"^grads.* is another array than the one that the optimizer steps"):
            opt.step()
        assert frozen(opt) == before
        opt.rebind()
        new[:] = 0.5
        opt.step()
        assert steps_of(opt) == [2, 2]

    def test_an_entry_that_came_or_went_is_noticed(self):
        params = {"w": np.ones(2), "b": np.ones(3)}
        opt = gs.Adam(params)
        params["c"] = np.ones(1)
        refused(
            opt,
            [],
            ValueError,
            "^params has 'c', which it had not when the optimizer was made",
            lambda: opt.step(grads_like(params)),
        )
        del params["c"], params["b"]
        refused(opt, [], ValueError, "^params lacks 'b'", lambda: opt.step(grads_like(params)))

    def test_another_shape_or_dtype_cannot_be_taken_over(self):
        params = {"w": np.ones(2), "b": np.ones(3)}
        opt = gs.Adam(params)
        opt.step(grads_like(params))
        old = params["w"]
        for bad, what in ((np.ones(4), "shape"), (np.ones(2, "f4"), "dtype")):
            params["w"] = bad
            refused(opt, [bad], ValueError, rf"params\.w has {what} .*replace\(\)", opt.rebind)
        params["w"] = "no array"
        refused(opt, [], TypeError, r"params\.w must be an array", opt.rebind)
        params["w"] = old
        opt.step(grads_like(params))

    def test_the_reference_of_a_bare_array_is_no_container(self):
        p = np.ones(2)
        opt = gs.SGD(p, lr=1.0)
        p = p - 1
        opt.step(np.ones(2))
        assert p.tolist() == [0, 0]
        assert opt.params.tolist() == [0, 0]


class TestRatesOfSeveralGroups:
    def test_no_silent_flattening(self):
        a, b = np.ones(1), np.ones(1)
        opt = gs.Adam([{"params": a, "lr": 1e-4}, {"params": b, "lr": 1e-2}])
        with pytest.raises(ValueError, match=r"groups differ in lr \(0: 0.0001, 1: 0.01\); use groups"):
            opt.lr *= 0.5
        assert [group["lr"] for group in opt.groups] == [1e-4, 1e-2]
        for group in opt.groups:
            group["lr"] *= 0.5
        assert [group["lr"] for group in opt.groups] == [5e-5, 5e-3]
        opt.lr = 0.5
        opt.lr *= 0.5
        assert [group["lr"] for group in opt.groups] == [0.25, 0.25]

    def test_schedules_of_groups(self):
        opt = gs.SGD([{"params": np.ones(1), "lr": schedule}, {"params": np.ones(1)}], lr=0.5)
        with pytest.raises(ValueError, match="groups differ in their schedule"):
            _ = opt.schedule
        opt.schedule = schedule
        assert opt.schedule is schedule
        assert opt.lr == schedule(0)


def structures():
    """Nestings of two arrays, with the names."""
    w, b = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(-2, 1, 3)
    deep = w
    for _ in range(99):
        deep = [deep]
    return {
        "list of tuples": ([(w, b)], ["[0][0]", "[0][1]"]),
        "dict of tuples": ({"l1": (w,), "l2": (b,)}, ["l1[0]", "l2[0]"]),
        "named tuples": ({"l1": Layer(w, b)}, ["l1.w", "l1.b"]),
        "named tuple": (Layer(w, b), ["w", "b"]),
        "dataclass": (Model(w, b), ["w", "b"]),
        "dataclass of lists": ([Model([w], {"x": b})], ["[0].w[0]", "[0].b.x"]),
        "dicts of dicts": ({"a": {"b": {"w": w}}, "c": {"w": b}}, ["a.b.w", "c.w"]),
        "ordered": (OrderedDict(z=w, a=OrderedDict(y=b)), ["z", "a.y"]),
        "proxy": (MappingProxyType({"w": w, "b": b}), ["w", "b"]),
        "none": ({"w": w, "none": None, "b": [None, b]}, ["w", "b[1]"]),
        "empty": ([{}, w, [], (), {"b": b}], ["[1]", "[4].b"]),
        "deep": ({"w": deep, "b": b}, ["w" + "[0]" * 99, "b"]),
        "odd keys": ({0: w, ("a", 1): b}, ["[0]", "[('a', 1)]"]),
        "keys with brackets": ({"[0]": w, "": b}, ["['[0]']", "['']"]),
        "keys with dots": ({"a.b": w, "a": {"c": b}}, ["a.b", "a.c"]),
        "unicode": ({"Gewicht µ": w, "重み": b}, ["Gewicht µ", "重み"]),
    }


def mapped(f, nest):
    """A nest of the same structure with the arrays' images."""
    if nest is None or isinstance(nest, np.ndarray):
        return None if nest is None else f(nest)
    if isinstance(nest, Model):
        return Model(mapped(f, nest.w), mapped(f, nest.b))
    if isinstance(nest, Layer):
        return Layer(*(mapped(f, x) for x in nest))
    if isinstance(nest, list | tuple):
        return type(nest)(mapped(f, x) for x in nest)
    return {key: mapped(f, value) for key, value in nest.items()}


class TestNestedParameters:
    @pytest.mark.parametrize("kind", structures())
    def test_any_nesting_has_the_bits_of_a_list(self, kind):
        nest, names = structures()[kind]
        arrays = []
        mapped(arrays.append, nest)
        twin = [a.copy() for a in arrays]
        opt, expected = gs.Adam(nest), REFERENCE["adam"](twin)
        assert opt.names == names
        for step in range(3):
            opt.step(mapped(lambda p, step=step: np.cos(p + step), nest))
            expected.step([np.cos(p + step) for p in twin])
        assert all(map(same_bits, arrays, twin))
        for state, theirs in expected.state.items():
            shown = []
            mapped(shown.append, opt.state[state])
            assert all(map(same_bits, shown, theirs))
            for name, array in zip(names, shown, strict=True):
                assert opt.state[name][state] is array
        assert list(opt.state_dict()["state"]) == names
        again = gs.Adam(mapped(np.copy, nest))
        again.load_state_dict(opt.state_dict())
        assert frozen(again) == frozen(opt)
        assert gs.global_norm(nest) == gs.global_norm(arrays)

    def test_state_is_shown_in_the_types_of_params(self):
        opt = gs.Adam({"l": Layer(np.ones(1), np.ones(2)), "m": Model(np.ones(3), None), "t": (np.ones(1),)})
        state = opt.state["exp_avg"]
        assert type(state["l"]) is Layer
        assert type(state["m"]) is Model
        assert state["m"].b is None
        assert type(state["t"]) is tuple

    def test_none_in_params_is_no_parameter(self):
        opt = gs.SGD({"w": np.ones(1), "b": None})
        opt.step({"w": np.ones(1), "b": None})
        opt.step({"w": None, "b": None})
        refused(
            opt,
            [],
            TypeError,
            r"^grads\.b must be None, as params\.b is",
            lambda: opt.step({"w": np.ones(1), "b": np.ones(1)}),
        )

    def test_a_list_that_contains_itself(self):
        nest = [np.ones(1)]
        nest.append(nest)
        with pytest.raises(ValueError, match=r"^params(\[1\])+\[0\] is nested too deep$"):
            gs.Adam(nest)
        with pytest.raises(ValueError, match="nested too deep"):
            gs.global_norm(nest)

    def test_a_gradient_nest_that_contains_itself(self):
        opt = gs.Adam([np.ones(1), [np.ones(1)]])
        grads = [np.ones(1)]
        grads.append(grads)
        refused(opt, [], ValueError, r"^grads\[1\] has 2 entries, but params\[1\] has 1", lambda: opt.step(grads))

    @pytest.mark.parametrize(
        ("nest", "name"),
        [
            (lambda a, b: {"a.b": a, "a": {"b": b}}, "a.b"),
            (lambda a, b: {"a[0]": a, "a": [b]}, r"a\[0\]"),
            (lambda a, b: {"x": {"y.z": a, "y": {"z": b}}}, "x.y.z"),
        ],
    )
    def test_two_arrays_of_one_name(self, nest, name):
        with pytest.raises(ValueError, match=f"^params has two arrays named {name}$"):
            gs.Adam(nest(np.ones(1), np.ones(2)))

    @pytest.mark.parametrize(
        ("grads", "error", "words"),
        [
            ({"l": {"w": np.ones(1)}}, ValueError, r"^grads\.l lacks 'b'"),
            (
                {"l": {"w": np.ones(1), "b": [np.ones(2), np.ones(2)]}},
                ValueError,
                r"^grads\.l\.b has 2 entries, but params\.l\.b has 1",
            ),
            ({"l": [np.ones(1)]}, TypeError, r"^grads\.l must be a dict, as params\.l is, not list"),
            ({"l": {"w": [np.ones(1)], "b": [np.ones(2)]}}, TypeError, r"^grads\.l\.w must be a NumPy array, not list"),
            ({"l": {"w": np.ones(1), "b": [np.ones(3)]}}, ValueError, r"^grads\.l\.b\[0\] has shape \(3,\)"),
            (
                {"l": {"w": np.ones(1), "b": [np.ones(2)], "c": 1}},
                ValueError,
                r"^grads\.l has 'c', which params\.l has not",
            ),
            ({"l": None}, TypeError, r"^grads\.l must be a dict, as params\.l is, not NoneType"),
        ],
    )
    def test_wrong_nestings_of_gradients(self, grads, error, words):
        params = {"l": {"w": np.ones(1), "b": [np.ones(2)]}}
        opt = gs.Adam(params)
        refused(opt, [params["l"]["w"], params["l"]["b"][0]], error, words, lambda: opt.step(grads))


class TestScalarsInNumPysClothes:
    @EVERY_RULE
    def test_every_option_takes_numbers_of_numpy(self, rule):
        cls = RULES[rule]
        for name, option in cls.known.items():
            values = {float: 0.5, bool: True, tuple: (0.5, 0.25), int: 3}
            value = 7 if name == "stochastic_rounding" else values.get(type(option.default))
            if value is None or name in ("master", "ema_correction"):
                continue
            dtype = "bfloat16" if name == "stochastic_rounding" else "f8"
            if isinstance(value, tuple):
                clothes = [tuple(map(np.float32, value)), list(map(np.array, value)), tuple(map(np.float16, value))]
            elif isinstance(value, bool):
                clothes = [np.array(value), np.bool_(value)]
            elif isinstance(value, int):
                clothes = [np.int64(value), np.uint8(value), np.array(value), np.array(value, "i2")]
            else:
                clothes = [
                    np.float32(value),
                    np.float16(value),
                    np.array(value),
                    np.array(value, "f4"),
                    np.float64(value),
                ]
                clothes += [np.array(0), np.int64(0)]
            for given in clothes:
                opt = cls(np.ones(2, dtype), **{name: given})
                shown = opt.groups[0].raw[name]
                wanted = value if np.all(np.asarray(given) != 0) else 0.0
                assert (shown, type(shown)) == (wanted, type(option.domain.check(wanted, name)))
                if not option.fixed:
                    setattr(opt, name, given)
                    opt.groups[0][name] = given
                    assert getattr(opt, name) == wanted
                opt.step(np.ones(2, dtype))

    def test_clip_norm_takes_them(self):
        for given in (np.float32(0.5), np.array(0.5), np.array(0.5, "f2")):
            assert gs.SGD(np.ones(1), clip_norm=given).clip_norm == 0.5

    @pytest.mark.parametrize("make", [np.array, np.float32, np.float64, np.float16], ids=str)
    def test_schedules_return_them(self, make):
        opt = gs.SGD(p := np.ones(1), lr=lambda step: make(0.5 / (1 + step)))
        opt.step(np.ones(1))
        assert (p[0], opt.lr) == (0.5, 0.25)

    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_a_parameter_without_axes_takes_numbers_as_gradients(self, dtype):
        p, q = np.array(1.0, dtype), np.array(1.0, dtype)
        opt, twin = gs.Adam({"p": p}), gs.Adam({"p": q})
        residual = np.linspace(-1, 2, 5)
        for given in (residual.mean(), 0.25, 3, np.float32(0.5), np.int64(2), ml_dtypes.bfloat16(2)):
            opt.step({"p": given})
            twin.step({"p": np.array(given, dtype)})
            assert same_bits(p, q)
        for bad in ("1", 1j, [1.0], True):
            refused(opt, [p], (TypeError, ValueError), r"^grads\.p ", lambda bad=bad: opt.step({"p": bad}))

    def test_the_rest_takes_no_numbers_as_gradients(self):
        opt = gs.Adam([np.ones(1)])
        refused(opt, [], TypeError, r"^grads\[0\] must be a NumPy array, not float", lambda: opt.step([1.0]))


class Estimator:
    """A linear model as scikit-learn's estimators are: it holds arrays, and the optimizer of them."""

    def __init__(self, alpha=0.5):
        self.alpha = alpha

    def fit(self, steps=3):
        if not hasattr(self, "opt_"):
            self.coef_, self.intercept_ = numbers(1, 5), np.zeros(1)
            self.params_ = {"coef": self.coef_, "intercept": self.intercept_}
            self.opt_ = gs.Adam(
                self.params_, lr=self.rate, options={"intercept": {"weight_decay": 0.0}}, weight_decay=0.1
            )
        for _ in range(steps):
            self.opt_.step({"coef": np.sin(self.coef_), "intercept": np.cos(self.intercept_)})
        return self

    def rate(self, step):
        return self.alpha / (1 + step)


def fit_more(estimator):
    """In another process."""
    estimator.fit()
    return estimator.coef_.tobytes(), estimator.intercept_.tobytes(), estimator


class TestPickleDeepcopyJoblib:
    def tied(self, again, fitted):
        """It is apart from the original, and goes on with the same bits in its own arrays."""
        assert again.opt_.params is again.params_
        assert again.params_["coef"] is again.coef_ is not fitted.coef_
        assert again.opt_.schedule == again.rate
        before, expected = fitted.coef_.tobytes(), copy.deepcopy(fitted).fit().coef_
        again.fit()
        assert fitted.coef_.tobytes() == before
        assert same_bits(again.coef_, expected)
        assert steps_of(again.opt_) == [6, 6]
        assert [group["weight_decay"] for group in again.opt_.groups] == [
            group["weight_decay"] for group in fitted.opt_.groups
        ]

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle(self, protocol):
        fitted = Estimator().fit()
        self.tied(pickle.loads(pickle.dumps(fitted, protocol)), fitted)

    def test_deepcopy(self):
        fitted = Estimator().fit()
        self.tied(copy.deepcopy(fitted), fitted)

    def test_joblib(self, tmp_path):
        """It stores an array once for each object that holds it: here the dict is shared, and stays so."""
        joblib = pytest.importorskip("joblib")
        fitted = Estimator().fit()
        joblib.dump(fitted, tmp_path / "estimator")
        again = joblib.load(tmp_path / "estimator")
        assert again.opt_.params is again.params_
        again.coef_, again.intercept_ = again.params_["coef"], again.params_["intercept"]
        self.tied(again, fitted)

    def test_a_spawned_process(self):
        fitted = Estimator().fit()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            coef, intercept, back = pool.apply_async(fit_more, (fitted,)).get(timeout=120)
        assert (back.coef_.tobytes(), back.intercept_.tobytes()) == (coef, intercept)
        fitted.fit()
        assert (fitted.coef_.tobytes(), fitted.intercept_.tobytes()) == (coef, intercept)
        assert frozen(back.opt_) == frozen(fitted.opt_)

    @EVERY_RULE
    def test_every_rule_with_its_most_options(self, rule):
        params = [numbers(1, 4), [numbers(2, (2, 3), "f4")]]
        grads = [numbers(3, 4), [numbers(4, (2, 3), "f4")]]
        opt = RULES[rule](params, clip_norm=0.5, grads=grads, **knobs(rule)[-1])
        opt.step()
        for trip in (lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy):
            again = trip(opt)
            twin = trip(opt)
            assert type(again) is type(opt)
            assert frozen(again) == frozen(opt)
            assert again.clip_norm == 0.5
            for each in (again, twin):
                each.step()
            assert frozen(again, again.params[0]) == frozen(twin, twin.params[0])
            assert frozen(again) != frozen(opt)

    @pytest.mark.parametrize(
        "options", [{"state_dtype": "q8", "min_8bit_size": 0}, {"master": True, "state_dtype": "bfloat16"}], ids=str
    )
    def test_storage(self, options):
        p, g = numbers(1, 700, "bfloat16"), numbers(2, 700, "f4")
        opt = gs.Adam(p, **options)
        opt.step(g)
        again = pickle.loads(pickle.dumps(opt))
        for each in (opt, again):
            each.step(g)
        assert frozen(again, again.params) == frozen(opt, p)

    def test_a_derived_class_keeps_what_it_adds(self):
        opt = Derived(np.ones(2))
        opt.step(np.ones(2))
        for again in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
            assert again.history == [1]
            assert again.history is not opt.history

    def test_a_function_that_cannot_be_pickled_is_named(self):
        opt = gs.SGD(np.ones(1), lr=lambda _: 0.5)
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            pickle.dumps(opt)


class Derived(gs.Adam):
    def __init__(self, params):
        super().__init__(params)
        self.history = []

    def step(self, grads):
        super().step(grads)
        self.history.append(self.step_count)


class TestGrowingAndShrinking:
    def test_a_group_is_added(self):
        w, b, new = np.ones(2), np.ones(3), np.ones(4)
        opt = gs.Adam({"w": w, "b": b}, l2=0.5)
        opt.step({"w": w + 1, "b": b + 1})
        states = opt.state["w"]
        opt.add_group({"params": [new]}, lr=0.25)
        assert opt.names == ["[0].w", "[0].b", "[1][0]"]
        assert all(opt.state["[0].w"][name] is array for name, array in states.items())
        assert [(group["lr"], group["l2"]) for group in opt.groups] == [(1e-3, 0.5), (0.25, 0.5)]
        twins = [w.copy(), b.copy()]
        twin = gs.Adam({"w": twins[0], "b": twins[1]}, l2=0.5)
        other = gs.Adam(fresh := new.copy(), l2=0.5, lr=0.25)
        twin.load_state_dict(
            dict(
                opt.state_dict(),
                step_count=1,
                groups=[{"params": ["w", "b"]}],
                state={k: opt.state_dict()["state"][f"[0].{k}"] for k in "wb"},
            )
        )
        for _ in range(2):
            opt.step([{"w": w + 1, "b": b + 1}, [new + 1]])
            twin.step({"w": twins[0] + 1, "b": twins[1] + 1})
            other.step(fresh + 1)
        assert same_bits(w, twins[0])
        assert same_bits(b, twins[1])
        assert same_bits(new, fresh)
        assert (steps_of(opt), opt.step_count) == ([3, 3, 2], 3)
        opt.add_group(params=np.ones(1))
        assert opt.names[-1] == "[2]"

    @pytest.mark.parametrize(
        ("group", "error", "words"),
        [
            ({}, TypeError, 'needs its parameters as "params"'),
            ({"params": []}, None, ""),
            ({"params": np.ones(2), "lr": -1}, ValueError, "add_group: lr must be"),
            ({"params": np.ones(2), "lrr": 1}, TypeError, "has no option 'lrr'; did you mean 'lr'"),
            ({"params": np.ones(2, "i4")}, TypeError, r"params\[1\] has dtype int32"),
            ({"params": "w"}, TypeError, r"params\[1\] must be an array"),
        ],
    )
    def test_a_bad_group_changes_nothing(self, group, error, words):
        w = np.ones(2)
        opt = gs.Adam({"w": w})
        opt.step({"w": w + 1})
        if error is not None:
            refused(opt, [w], error, words, lambda: opt.add_group(group))
        refused(
            opt, [w], ValueError, r"params\[1\] is the same array as params\[0\]\.w", lambda: opt.add_group(params=w)
        )
        opt.step({"w": w + 1})
        bound = gs.Adam([np.ones(1)], grads=[np.ones(1)])
        refused(
            bound, [], ValueError, "cannot be used with bound gradients", lambda: bound.add_group(params=np.ones(1))
        )

    def test_entries_come_and_go(self):
        params = {"w": np.ones(2), "b": np.ones(3)}
        opt = gs.AdaGrad(params, initial_accumulator=0.5)
        opt.step(grads_like(params))
        kept = opt.state["b"]["sum"]
        del params["w"]
        params["c"] = np.ones(4)
        opt.rebind()
        assert opt.names == ["b", "c"]
        assert opt.state["b"]["sum"] is kept
        assert opt.state["c"]["sum"].tolist() == [0.5] * 4
        assert (steps_of(opt), opt.step_count) == ([1, 0], 1)
        opt.step(grads_like(params))
        assert steps_of(opt) == [2, 1]
        params.clear()
        refused(opt, [], ValueError, "got no parameters", opt.rebind)

    def test_an_array_under_another_name_keeps_its_states(self):
        a, b, c, d = (np.full(2, float(i)) for i in range(4))
        params = [a, b, c]
        opt = gs.Momentum(params)
        opt.step([np.full(2, 1.0), np.full(2, 2.0), None])
        del params[0]
        opt.rebind()
        assert [x[0] for x in opt.state["momentum_buffer"]] == [2, 0]
        assert (opt.names, steps_of(opt)) == (["[0]", "[1]"], [1, 0])
        params[:] = [d, c, b]
        opt.rebind()
        assert [x[0] for x in opt.state["momentum_buffer"]] == [0, 0, 2]
        assert steps_of(opt) == [0, 0, 1]

    @pytest.mark.parametrize("rows", [None, [0, 1, 2], [2, 0, -1, 1, 1], [-1, -1], [1], []], ids=str)
    @EVERY_RULE
    def test_rows_keep_their_states(self, rule, rows):
        params = {"w": numbers(1, (3, 2)), "b": numbers(2, 3)}
        opt = RULES[rule](params, **knobs(rule)[-1])
        opt.step(grads_like(params))
        opt.step(grads_like(params))
        before, clocks = copy.deepcopy(opt.state["w"]), copy.deepcopy(opt.state_dict()["state"]["w"])
        fresh = RULES[rule](np.ones((1, 2)), **knobs(rule)[-1]).state
        index = np.arange(3) if rows is None else np.asarray(rows, int)
        new = numbers(5, (len(index), 2))
        opt.replace("w", new, rows if rows is None else index)
        assert params["w"] is new
        for name, old in before.items():
            expected = np.where((index >= 0)[:, None], old[index] if len(index) else np.zeros((0, 2)), fresh[name])
            assert same_bits(opt.state["w"][name], expected), name
        now = opt.state_dict()["state"]["w"]
        assert {k: v for k, v in now.items() if k not in before} == {k: v for k, v in clocks.items() if k not in before}
        opt.step(grads_like(params))
        assert steps_of(opt) == [3, 3]

    @pytest.mark.parametrize("state", [None, "bfloat16", "q8"])
    @pytest.mark.parametrize("master", [False, True])
    def test_rows_of_storage(self, state, master):
        params = {"w": numbers(1, (4, 150), "bfloat16")}
        opt = gs.Adam(params, state_dtype=state, master=master, min_8bit_size=0, lr=0.1)
        for step in range(3):
            opt.step({"w": numbers(10 + step, (4, 150), "f4")})
        old, before = params["w"].copy(), copy.deepcopy(opt.state["w"])
        rows = np.array([3, -1, 0, 0, 2])
        new = np.concatenate([old[[3]], numbers(3, (1, 150), "bfloat16"), old[[0, 0, 2]]])
        new[4, 7] += 1  # no longer the rounding of its master
        opt.replace("w", new, rows)
        now = opt.state["w"]
        assert list(now) == list(before)
        for name in ("exp_avg", "exp_avg_sq"):
            was = q8.decode(before[name], before[f"{name}_scale"]) if state == "q8" else before[name]
            expected = np.where((rows >= 0)[:, None], was[rows], np.zeros((), was.dtype))
            if state == "q8":
                codes, scales = q8.encode(expected.astype("f4"), name == "exp_avg")
                assert same_bits(now[name], codes)
                assert same_bits(now[f"{name}_scale"], scales)
            else:
                assert same_bits(now[name], expected.astype(was.dtype))
        if master:
            expected = np.where((rows >= 0)[:, None], before["master"][rows], new.astype("f4"))
            expected[4, 7] = new[4, 7]
            assert same_bits(now["master"], expected)
        opt.step({"w": numbers(20, (5, 150), "f4")})
        assert steps_of(opt) == [4]

    @pytest.mark.parametrize(
        ("name", "array", "rows", "error", "words"),
        [
            ("v", np.ones((3, 2)), None, ValueError, "there is no parameter 'v'"),
            ("w", np.ones((4, 2)), None, ValueError, r"params\.w has shape \(4, 2\) now, and had \(3, 2\)"),
            ("w", np.ones((3, 2), "f4"), None, ValueError, r"params\.w has dtype float32 now, and had float64"),
            ("w", np.ones((3, 2), "f4"), [0, 1, 2], ValueError, "dtype"),
            ("w", np.ones((2, 3)), [0, 1], ValueError, "its shape except for the first axis"),
            ("w", np.ones((2, 2)), [0, 1, 2], ValueError, "rows must be 2 integers"),
            ("w", np.ones((2, 2)), [0, 3], ValueError, "rows must be from -1 to 2"),
            ("w", np.ones((2, 2)), [0, -2], ValueError, "rows must be from -1 to 2"),
            ("w", np.ones((2, 2)), [0.0, 1.0], ValueError, "rows must be 2 integers"),
            ("w", np.ones((2, 2)), [[0], [1]], ValueError, "rows must be 2 integers"),
            ("w", np.ones((2, 2)), [True, False], ValueError, "rows must be 2 integers"),
            ("s", np.array(1.0), [0], ValueError, "an array without axes has no rows"),
            ("t[0]", np.ones(2), None, ValueError, r"t\[0\] is in a tuple, which cannot be changed"),
            ("w", np.broadcast_to(1.0, (3, 2)), None, ValueError, r"params\.w is read-only"),
            ("w", np.broadcast_to(1.0, (2, 2)), [0, 1], ValueError, r"params\.w is read-only"),
            ("w", [[1.0, 2.0]] * 3, None, (TypeError, ValueError), "w"),
            ("w", [[1.0, 2.0]], [0], (TypeError, ValueError), "w"),
            ("w", None, None, (TypeError, ValueError), "w"),
            ("w", None, [0], (TypeError, ValueError), "w"),
        ],
    )
    def test_a_bad_replacement_changes_nothing(self, name, array, rows, error, words):
        params = {"w": numbers(1, (3, 2)), "s": np.array(1.0), "t": (np.ones(2),)}
        opt = gs.Adam(params)
        opt.step(mapped(np.ones_like, params))
        held = dict(params)
        refused(opt, [params["w"], params["s"], params["t"][0]], error, words, lambda: opt.replace(name, array, rows))
        assert all(params[key] is value for key, value in held.items())
        opt.step(mapped(np.ones_like, params))

    def test_an_array_that_is_a_parameter_already(self):
        params = {"a": np.ones(2), "b": np.ones(2)}
        opt = gs.Adam(params)
        a = params["a"]
        refused(opt, [a], ValueError, r"params\.b is the same array as params\.a", lambda: opt.replace("b", a))
        assert params["b"] is not a

    def test_a_bare_array_and_groups_are_replaced(self):
        opt = gs.SGD(p := np.ones((2, 1)), lr=1.0)
        opt.replace("", q := np.ones((3, 1)), [0, 1, -1])
        opt.step(np.ones((3, 1)))
        assert opt.params is q
        assert (p.sum(), q.sum()) == (2, 0)
        groups = gs.SGD([{"params": np.ones(1)}, {"params": {"w": np.ones(1)}}], lr=1.0)
        groups.replace("[0]", a := np.ones(2), [0, 0])
        groups.replace("[1].w", b := np.ones(3), [0, 0, 0])
        groups.step([np.ones(2), {"w": np.ones(3)}])
        assert not a.any()
        assert not b.any()

    def test_bound_gradients_are_replaced_first(self):
        params, grads = {"w": np.ones((2, 1))}, {"w": np.ones((2, 1))}
        opt = gs.SGD(params, lr=1.0, grads=grads)
        opt.step()
        new = np.ones((3, 1))
        refused(opt, [params["w"]], ValueError, "grads.w has shape", lambda: opt.replace("w", new, [0, 1, 1]))
        grads["w"] = np.ones((3, 1))
        opt.replace("w", new, [0, 1, 1])
        opt.step()
        assert not new.any()

    def test_a_replaced_optimizer_survives_a_checkpoint_and_pickle(self):
        params = {"w": numbers(1, (3, 2))}
        opt = gs.Adam(params)
        opt.step(grads_like(params))
        opt.replace("w", numbers(2, (4, 2)), [0, 1, 2, -1])
        again = pickle.loads(pickle.dumps(opt))
        fresh = gs.Adam({"w": params["w"].copy()})
        fresh.load_state_dict(opt.state_dict())
        for each in (opt, again, fresh):
            each.step(grads_like(params))
        assert frozen(opt, params["w"]) == frozen(again, again.params["w"]) == frozen(fresh, fresh.params["w"])

    def test_within_the_lookahead(self):
        params = {"w": np.ones((2, 1))}
        opt = gs.NAG(params, lookahead=True)
        opt.step(grads_like(params))
        w = params["w"]
        with opt.lookahead():
            for change in (
                opt.rebind,
                lambda: opt.replace("w", np.ones((2, 1))),
                lambda: opt.add_group(params=np.ones(1)),
            ):
                with pytest.raises(RuntimeError, match=r"within lookahead\(\)"):
                    change()
        assert params["w"] is w
        opt.step(grads_like(params))


class TestOptionsByPattern:
    def params(self):
        return {"l1": {"w": np.ones(2), "bias": np.ones(3)}, "l2": {"w": np.ones(4), "bias": np.ones(5)}}

    def test_names_and_patterns(self):
        opt = gs.Adam(
            self.params(),
            weight_decay=0.1,
            options={"*.bias": {"weight_decay": 0}, "l2.*": {"lr": np.float32(0.5)}, "l?.w": {"l2": 0.25}},
        )
        found = {name: group.raw for group in opt.groups for name in group.names}
        assert {name: (o["weight_decay"], o["lr"], o["l2"]) for name, o in found.items()} == {
            "l1.w": (0.1, 1e-3, 0.25),
            "l1.bias": (0.0, 1e-3, 0.0),
            "l2.w": (0.1, 0.5, 0.25),
            "l2.bias": (0.0, 0.5, 0.0),
        }

    def test_bits_are_those_of_groups(self):
        params, twins = self.params(), self.params()
        options = {"*.bias": {"l2": 0.0, "maximize": True}}
        opt = gs.Adam(params, l2=0.5, options=options)
        twin = gs.Adam(
            [
                {"params": [twins["l1"]["w"], twins["l2"]["w"]]},
                {"params": [twins["l1"]["bias"], twins["l2"]["bias"]], **options["*.bias"]},
            ],
            l2=0.5,
        )
        for _ in range(3):
            opt.step(mapped(np.cos, params))
            twin.step(
                [
                    [np.cos(twins["l1"]["w"]), np.cos(twins["l2"]["w"])],
                    [np.cos(twins["l1"]["bias"]), np.cos(twins["l2"]["bias"])],
                ]
            )
        assert str(params) == str(twins)

    def test_later_ones_override_and_groups_come_first(self):
        opt = gs.SGD(
            [{"params": {"w": np.ones(1), "b": np.ones(1)}, "lr": 0.5}, {"params": np.ones(1)}],
            options={"*": {"l2": 0.5}, "[0].b": {"l2": 0.25, "lr": 1}},
        )
        found = {name: (group["lr"], group["l2"]) for group in opt.groups for name in group.names}
        assert found == {"[0].w": (0.5, 0.5), "[0].b": (1.0, 0.25), "[1]": (1e-3, 0.5)}

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"*.bais": {"l2": 0}}, ValueError, r"options\['\*.bais'\] matches no parameter"),
            ({"w": {"l2": 0}}, ValueError, r"options\['w'\] matches no parameter"),
            ({"*": {"l22": 0}}, TypeError, r"options\['\*'\] has no option 'l22'; did you mean 'l2'"),
            ({"*": {"l2": -1}}, ValueError, r"options\['\*'\]: l2 must be"),
            ({"*": {"clip_norm": 1}}, TypeError, "no option 'clip_norm'"),
            ({"*": 1}, TypeError, "options must be a dict of dicts"),
            ([("*", {})], TypeError, "options must be a dict of dicts"),
            ({"*.w": {"master": True}}, ValueError, "master=True is for float16 and bfloat16"),
        ],
    )
    def test_bad_ones(self, options, error, words):
        with pytest.raises(error, match=words):
            gs.Adam(self.params(), options=options)

    def test_through_checkpoint_pickle_and_new_entries(self):
        params = self.params()
        opt = gs.Adam(params, options={"*.bias": {"lr": 0.5}})
        opt.step(grads_like(params))
        opt.groups[1]["lr"] = 0.25
        again = pickle.loads(pickle.dumps(opt))
        fresh = gs.Adam(copy.deepcopy(params), options={"*.bias": {"lr": 0.5}})
        fresh.load_state_dict(opt.state_dict())
        for each in (again, fresh):
            assert {name: group["lr"] for group in each.groups for name in group.names}["l2.bias"] == 0.25
            assert frozen(each) == frozen(opt)
        params["l3"] = {"bias": np.ones(1)}
        opt.rebind()
        assert {name: group["lr"] for group in opt.groups for name in group.names}["l3.bias"] == 0.25
        opt.step(grads_like(params))

    def test_what_is_added_later_changes_no_options(self):
        params = {"w": np.ones(1), "b": np.ones(1)}
        opt = gs.SGD(params, options={"b": {"lr": 0.5}}, lr=1.0)
        opt.add_group(params={"b": np.ones(1)}, lr=0.25)
        found = {name: group["lr"] for group in opt.groups for name in group.names}
        assert found == {"[0].w": 1.0, "[0].b": 0.5, "[1].b": 0.25}
        for later in (pickle.loads(pickle.dumps(opt)), opt):
            later.params[0]["params"]["w"] = np.zeros(1)
            later.rebind()
            assert {name: group["lr"] for group in later.groups for name in group.names} == found


class TestFrozenTensors:
    @pytest.mark.parametrize("clip", [None, 0.5])
    @EVERY_RULE
    def test_frozen_is_as_without_a_gradient(self, rule, clip):
        def make():
            a, b = numbers(1, 4), numbers(2, 3)
            return [a, b], RULES[rule]([{"params": a}, {"params": b}], clip_norm=clip, **knobs(rule)[-1])

        (params, opt), (twins, twin) = make(), make()
        for step, is_frozen in enumerate([False, True, True, False]):
            grads = [numbers(10 + step, 4), numbers(20 + step, 3)]
            opt.groups[1]["frozen"] = is_frozen
            opt.step(grads)
            twin.step([grads[0], None if is_frozen else grads[1]])
            assert all(map(same_bits, params, twins)), step
            assert opt.grad_norm == twin.grad_norm
            assert steps_of(opt) == steps_of(twin)

    def test_with_bound_gradients(self):
        a, b, grads = np.zeros(2), np.zeros(3), [np.ones(2), np.ones(3)]
        opt = gs.SGD([a, b], lr=1.0, grads=grads, options={"[1]": {"frozen": True}})
        opt.step()
        assert (a[0], b[0]) == (-1, 0)
        opt.frozen = True
        opt.step()
        assert (a[0], b[0], opt.step_count) == (-1, 0, 2)
        opt.frozen = False
        opt.step()
        assert (a[0], b[0]) == (-2, -1)
        opt.groups[0]["frozen"] = True
        grads[0][:] = np.nan
        opt.step()
        assert (a[0], b[0]) == (-2, -2)
        assert steps_of(opt) == [2, 2]

    def test_gradients_of_frozen_tensors_are_ignored(self):
        a, b = np.zeros(2), np.zeros(3)
        opt = gs.SGD([a, b], lr=1.0, options={"[1]": {"frozen": True}})
        for ignored in (None, np.full(3, np.nan), "no array"):
            opt.step([np.ones(2), ignored])
        assert (a[0], b[0]) == (-3, 0)
        b.flags.writeable = False
        opt.step([np.ones(2), None])

    def test_through_checkpoints_pickle_and_rebinding(self):
        params = {"a": np.zeros(1), "b": np.zeros(1)}
        opt = gs.SGD(params, lr=1.0, options={"b": {"frozen": True}})
        again = pickle.loads(pickle.dumps(opt))
        fresh = gs.SGD({"a": np.zeros(1), "b": np.zeros(1)}, options={"b": {"frozen": False}})
        fresh.load_state_dict(opt.state_dict())
        params["a"] = np.zeros(1)
        opt.rebind()
        for each in (opt, again, fresh):
            each.step({"a": np.ones(1), "b": np.ones(1)})
            assert (each.params["a"][0], each.params["b"][0]) == (-1, 0)

    def test_the_point_ahead_leaves_frozen_tensors(self):
        a, b = np.ones(1), np.ones(1)
        opt = gs.NAG([{"params": a}, {"params": b}], lookahead=True)
        opt.step([np.ones(1), np.ones(1)])
        opt.groups[1]["frozen"] = True
        before = a.copy(), b.copy()
        with opt.lookahead():
            assert a != before[0]
            assert b == before[1]
        assert (a, b) == before


class TestAScheduleThatSetsLr:
    def test_what_it_sets_wins_from_the_next_step_on(self):
        def rate(step):
            if step == 1:
                opt.lr = 0.125
            return 0.5

        opt = gs.SGD(p := np.ones(1), lr=rate)
        seen = []
        for _ in range(4):
            opt.step(np.ones(1))
            seen.append(p[0])
        assert seen == [0.5, 0, -0.125, -0.25]
        assert (opt.lr, opt.schedule) == (0.125, None)

    def test_one_that_sets_another_schedule(self):
        def rate(step):
            if step == 1:
                opt.schedule = lambda step: 2.0**-step
            return 0.5

        opt = gs.SGD(p := np.ones(1), lr=rate)
        for _ in range(4):
            opt.step(np.ones(1))
        assert p[0] == 1 - 0.5 - 0.5 - 0.25 - 0.125

    def test_one_that_reads_lr(self):
        opt = gs.SGD(p := np.ones(1), lr=lambda _: opt.lr / 2)
        refused(opt, [p], RuntimeError, "^SGD: the schedule of lr reads lr", lambda: opt.step(np.ones(1)))
        with pytest.raises(RuntimeError, match="the schedule of lr reads lr"):
            _ = opt.lr
        opt.lr = 0.5
        opt.step(np.ones(1))
        assert p[0] == 0.5

    def test_one_that_reads_another_option(self):
        opt = gs.SGD(p := np.ones(1), lr=lambda _: 0.5 if opt.l2 == 0 else 1.0)
        opt.step(np.ones(1))
        assert p[0] == 0.5


class TestRowGradients:
    """pytorch 1285, mxnet 9177: gradients of few rows of a table."""

    def test_a_batch_of_an_embedding(self):
        table, batch = np.ones((100, 8), np.float32), np.array([[3, 99], [3, 0]])
        per_word = np.full((2, 2, 8), 0.25, np.float32)
        opt = gs.Adam({"emb": table})
        opt.step({"emb": gs.Rows(batch.ravel(), per_word.reshape(-1, 8))})
        assert np.flatnonzero(np.any(table != 1, axis=1)).tolist() == [0, 3, 99]
        moments = opt.state["emb"]["exp_avg"]
        assert np.all(moments[3] == moments[0] * 2)  # the rows of both occurrences were summed

    @pytest.mark.skipif(not _temporary.COUNTS, reason="this interpreter's reference counts do not tell")
    def test_a_copy_that_nobody_holds(self):
        table, g, m, v = np.ones((10, 3)), np.ones((2, 3)), np.zeros((10, 3)), np.zeros((10, 3))
        rows = [0, 4]
        with pytest.raises(ValueError, match=r"sgd_: p is a temporary array, .* gradstep\.Rows"):
            gs.functional.sgd_(table[rows], g)
        with pytest.raises(ValueError, match=r"adam_: p is a temporary array, .* gradstep\.Rows"):
            gs.functional.adam_(table[rows], g, m[rows], v[rows], step=1)
        some, m, v = table[rows], m[rows], v[rows]
        gs.functional.adam_(some, g, m, v, step=1)
        table[rows] = some
        assert np.all(table[rows] < 1)


FORK = """
import os, sys, threading, time, warnings
import numpy as np
import gradstep as gs
warnings.simplefilter("ignore")  # fork in a process with threads: that is the test
p, g = np.zeros(300_000, "f4"), np.ones(300_000, "f4")
opt = gs.Adam(p)
stop = threading.Event()

def go_on():
    while not stop.is_set():
        opt.step(g)

threads = [threading.Thread(target=go_on) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for _ in range(20):
    time.sleep(0.002)
    pid = os.fork()
    if pid == 0:
        try:
            before = opt.step_count
            opt.lr = 0.5
            opt.step(g)
            opt.state_dict()
            gs.SGD(np.ones(3)).step(np.ones(3))
            os._exit(0 if opt.step_count == before + 1 else 3)
        except BaseException:
            os._exit(4)
    end = time.monotonic() + 20
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.005)
    if done[0] == 0:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        codes.append("hangs")
    else:
        codes.append(os.waitstatus_to_exitcode(done[1]))
stop.set()
for thread in threads:
    thread.join()
print(codes)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_fork_while_another_thread_steps():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str([0] * 20)


# Under --strict, mypy also complains of an ignored error that is none: what is marked must be rejected.
TYPED = """
import numpy as np
import gradstep as gs

w = np.ones(3, np.float32)
opt = gs.Adam({"w": w}, lr=1e-3, betas=(0.9, 0.99), options={"w": {"lr": 0.1}}, clip_norm=1.0)
opt.lr *= 0.5
opt.lr = lambda step: 0.1 / (1 + step)
opt.lr = np.float32(0.5)
rate: float = opt.lr
opt.weight_decay = 0
opt.betas = (0.5, 0.9)
opt.frozen = True
opt.clip_norm = None
opt.step({"w": w})
opt.groups[0]["lr"] = 0.5
pair: tuple[float, float] = opt.betas
gs.NAG([(w, w)], 0.1, 0.9, lookahead=True)
with gs.NAG([w], lookahead=True).lookahead():
    pass
gs.Adam(w, l2="x")  # type: ignore[arg-type]
gs.Adam(w, beta=1)  # type: ignore[call-arg]
gs.SGD()  # type: ignore[call-arg]
gs.SGD(w, momentum=0.9)  # type: ignore[call-arg]
opt.learning_rate = 1  # type: ignore[attr-defined]
opt.betas = 0.9  # type: ignore[assignment]
opt.weight_decay = "0"  # type: ignore[assignment]
opt.maximize = "yes"  # type: ignore[assignment]
opt.momentum  # type: ignore[attr-defined]
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_type_checkers(tmp_path):
    (tmp_path / "use.py").write_text(TYPED, encoding="utf-8")
    where = Path(gs.__file__).parents[1]
    elsewhere = {} if str(where) in site.getsitepackages() else {"MYPYPATH": str(where)}
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
        "use.py",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | elsewhere, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


class TestAReferenceCycle:
    def test_of_an_optimizer_and_its_schedule(self):
        def make():
            opt = gs.SGD(np.ones(1), lr=lambda _: 0.5 if opt.l2 == 0 else 1.0)
            opt.step(np.ones(1))
            return weakref.ref(opt)

        gone = make()
        gc.collect()
        assert gone() is None

    def test_of_an_optimizer_and_the_model_whose_fields_it_steps(self):
        model = Model(np.ones(1), np.ones(2))
        model.opt = gs.SGD(model, grads=Model(np.ones(1), np.ones(2)))
        model.opt.step()
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None


class Lazy(dict):
    """A mapping whose second answer for a key is another."""

    def __init__(self, entries, key, then):
        super().__init__(entries)
        self.asked, self.key, self.then = 0, key, then

    def __getitem__(self, key):
        self.asked += key == self.key
        return self.then if self.asked > 1 and key == self.key else super().__getitem__(key)


class TestHostileUse:
    """What a reader of the code tried: nothing is lost, half-written or silently ignored."""

    def test_a_step_within_a_step_that_was_held_back(self, monkeypatch):
        buffer = np.zeros((8, 7))
        p, g = buffer[::2, ::3][:, :2], buffer[1::2, 1::3][:, :2]
        g[...] = 1
        opt = gs.SGD([p], lr=1.0)
        apart, inner = gs._step.check_apart, [np.full(p.shape, 7.0)]

        def check_apart(overlaps):
            if inner:
                opt.step([inner.pop()])
            apart(overlaps)

        monkeypatch.setattr(gs._step, "check_apart", check_apart)
        opt.step([g])
        assert np.all(p == -8)
        assert opt.step_count == 2

    @pytest.mark.parametrize("rows", [None, [0, 1, 2, 3]])
    def test_replace_by_an_array_of_another_library(self, rows):
        torch = pytest.importorskip("torch")
        opt = gs.Adam({"w": np.ones((4, 2), np.float32)})
        with pytest.raises(TypeError, match="w must be"):
            opt.replace("w", torch.ones((4, 2)), rows)
        with pytest.raises(TypeError, match="byte-swapped"):
            opt.replace("w", np.ones((4, 2), ">f4"), rows)

    def test_a_group_whose_params_were_replaced(self):
        groups = [{"params": np.ones(2)}, {"params": np.ones(3)}]
        opt = gs.SGD(groups, lr=1.0)
        groups[0]["params"] = new = np.zeros(2)
        with pytest.raises(ValueError, match=r"group 0 have been replaced; call rebind"):
            opt.step([np.ones(2), np.ones(3)])
        opt.rebind()
        opt.step([np.ones(2), np.ones(3)])
        assert np.all(new == -1)
        groups.append({"params": np.ones(1)})
        with pytest.raises(ValueError, match=r"params has 3 groups, but had 2"):
            opt.rebind()
        groups.clear()
        opt.step([np.ones(2), np.ones(3)])
        assert opt.names == ["[0]", "[1]"]

    def test_params_have_the_groups_that_were_added(self):
        w, b = np.ones((4, 2)), np.ones(4)
        opt = gs.Adam({"w": w})
        opt.add_group(params={"b": b})
        assert [list(group["params"]) for group in opt.params] == [["w"], ["b"]]
        opt.add_group(params=b.copy())
        opt.replace("[2]", new := np.zeros(4))
        assert opt.params[2]["params"] is new
        opt.step([{"w": w + 1}, {"b": b + 1}, b + 1])
        assert np.all(new != 0)
        fixed = gs.Adam([MappingProxyType({"params": w})])
        with pytest.raises(ValueError, match="cannot be changed"):
            fixed.replace("[0]", w.copy())
        fixed.step([w + 1])

    def test_gradients_in_a_defaultdict(self):
        opt = gs.SGD({"w": np.ones(2), "b": np.ones(2)})
        grads = defaultdict(lambda: None, w=np.ones(2), bb=np.ones(2))
        with pytest.raises(ValueError, match="grads lacks 'b'"):
            opt.step(grads)
        assert sorted(grads) == ["bb", "w"]

    def test_an_array_is_no_dataclass(self):
        opt = gs.SGD(make_dataclass("Transposed", ["T"])(np.ones((2, 2))))
        with pytest.raises(TypeError, match="must be a dataclass"):
            opt.step(np.ones((2, 2)))

    def test_copies_and_files_within_the_lookahead(self, tmp_path):
        params = {"w": np.ones(2)}
        opt = gs.NAG(params, lookahead=True)
        opt.step({"w": np.ones(2)})
        with opt.lookahead():
            for call in (
                lambda: copy.deepcopy(opt),
                lambda: gs.save(tmp_path / "a", opt, params),
            ):
                with pytest.raises(RuntimeError, match="lookahead"):
                    call()

    def test_parameters_are_not_loaded_into_arrays_that_were_replaced(self, tmp_path):
        pytest.importorskip("safetensors")
        params = {"w": np.ones(2)}
        opt = gs.Adam(params)
        gs.save(tmp_path / "a", opt, params)
        params["w"] = np.zeros(2)
        with pytest.raises(ValueError, match="is another array"):
            gs.load(tmp_path / "a", opt)

    def test_a_change_of_parameters_within_a_step(self):
        class Hostile(Mapping):
            def __init__(self, entries):
                self.entries = entries

            def __getitem__(self, key):
                opt.rebind()
                return self.entries[key]

            def __iter__(self):
                return iter(self.entries)

            def __len__(self):
                return len(self.entries)

            def __contains__(self, key):
                return key in self.entries

        opt = gs.Adam({"w": np.ones(2)})
        with pytest.raises(RuntimeError, match="not allowed in code that a step"):
            opt.step(Hostile({"w": np.ones(2)}))
        assert opt.step_count == 0
        other = gs.SGD({"w": np.ones(2)}, lr=lambda _: other.add_group(params=np.ones(1)) or 0.5)
        with pytest.raises(RuntimeError, match="not allowed in code that a step"):
            other.step({"w": np.ones(2)})
        assert other.names == ["w"]

    def test_a_state_dict_is_read_once(self):
        opt = gs.Adam(np.ones(4), lr=0.1)
        saved = opt.state_dict()
        saved["state"][""] = Lazy(saved["state"][""], "exp_avg_sq", np.ones(3))
        opt.load_state_dict(saved)
        opt.step(np.ones(4))

    def test_groups_of_a_state_dict(self):
        opt = gs.Adam({"w": np.ones(4)}, lr=0.1)
        saved = opt.state_dict()
        [group] = saved["groups"]
        for groups, error, words in (
            ([], ValueError, "missing: the group of w"),
            ([group, {**group, "lr": 0.5}], ValueError, "'w' in two groups"),
            ([{**group, "params": [["w"]]}], TypeError, "must have names"),
        ):
            refused(opt, [], error, words, lambda groups=groups: opt.load_state_dict({**saved, "groups": groups}))
        bad = {**saved, "state": {"w": {**saved["state"]["w"], "exp_avg_sq": np.full(4, -1.0)}}}
        refused(opt, [], ValueError, "negative values", lambda: opt.load_state_dict(bad))

    def test_nothing_is_loaded_where_nothing_fits(self):
        opt, other = gs.Adam({"x": np.ones(4)}, clip_norm=1.0), gs.Adam({"w": np.ones(4)}, lr=0.5)
        opt.step({"x": np.ones(4)})
        assert other.load_state_dict(opt.state_dict(), strict=False).missing == ["w"]
        assert (other.step_count, other.clip_norm, other.lr) == (0, None, 0.5)

    def test_options_by_name_are_read_as_a_copy(self):
        opt = gs.SGD({"w": np.ones(2)}, lr=1.0, options={"w": {"lr": 0.5}})
        opt.options["w"]["lr"] = 9.0
        assert opt.options == {"w": {"lr": 0.5}}
        assert [group.names for group in opt.groups] == [["w"]]
        assert repr(opt) == "SGD(1 array, lr=0.5)"

    def test_the_option_lookahead(self):
        opt = gs.NAG(np.ones(2), lookahead=True)
        assert repr(opt.lookahead) == "True"
        assert gs.NAG(np.ones(2), lookahead=opt.lookahead).groups[0]["lookahead"] is True

    def test_a_named_tuple_with_a_constructor_of_its_own(self):
        class Layer(namedtuple("Layer", "w b")):
            def __new__(cls, size):
                return super().__new__(cls, np.ones(size), np.ones(size))

        opt = gs.Adam(Layer(3))
        opt.step([np.ones(3), np.ones(3)])
        assert type(opt.state["exp_avg"]) is Layer

    def test_an_error_of_a_schedule_is_its_own(self):
        with pytest.raises(AttributeError, match="'NoneType' object"):
            _ = gs.SGD(np.ones(1), lr=lambda _: None.foo).lr

    def test_odd_mappings_and_keys(self):
        class NoLength(dict):
            def items(self):
                return [["w", np.ones(1)]]

        with pytest.raises(TypeError, match="pairs"):
            gs.SGD(NoLength(w=np.ones(1)))
        key = Enum("Key", {"W": "w"}, type=str).W
        assert gs.SGD({key: np.ones(1), "\ud800": np.ones(1)}).names == ["w", r"['\ud800']"]

    def test_small_habits(self):
        opt = gs.Adam({"w": np.ones((2, 2))}, betas=np.array([0.5, 0.75]))
        assert opt.betas == (0.5, 0.75)
        opt.groups[0].update({"lr": 0.25}, l2=0.5)
        assert (opt.lr, opt.l2) == (0.25, 0.5)
        assert "w" in opt.state
        assert opt.state.get("w").keys() == {"exp_avg", "exp_avg_sq"}
        assert opt.state.get("v") is None
        with pytest.raises(TypeError, match="deepcopy"):
            copy.copy(opt)
        opt.replace("w", np.ones((0, 2)), rows=[])
        assert opt.state["w"]["exp_avg"].shape == (0, 2)

        class AdamW(gs.Adam):
            def __init__(self, params, lr=1e-3):
                super().__init__(params, lr, weight_decay=0.01)

        assert list(inspect.signature(AdamW).parameters) == ["params", "lr"]
        assert AdamW(np.ones(1)).weight_decay == 0.01

"""Any sequence of calls has the bits of the reference, and what is refused changes nothing.

A short run is a part of the tests. GRADSTEP_STATEFUL_EXAMPLES=2000 takes as many sequences, and other ones each time.
"""

import copy
import hashlib
import os
import pickle
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import gradstep as gs
from gradstep.reference._optimizer import _at, _plain
from tests.table import ALL_FLOATS, ALL_STORAGES, FLOATS, REFERENCE, RULES, knobs, same_bits, snapshot, values
from tests.test_layout import LAYOUTS

EXAMPLES = int(os.environ.get("GRADSTEP_STATEFUL_EXAMPLES", "0"))
SHAPES = [(), (1,), (0, 3), (7,), (3, 5), (2, 256), (5, 1, 3), (513,), (4097,)]
NESTS = {
    "array": lambda arrays: arrays[0],
    "list": lambda arrays: list(arrays),
    "dict": lambda arrays: {f"p{i}": array for i, array in enumerate(arrays)},
    "nested": lambda arrays: {"a": [arrays[0], {"b": arrays[1:]}], "t": ()},
    "groups": lambda arrays: [{"params": arrays[:1], "lr": 0.5}, {"params": {"x": arrays[1:]}, "l2": 0.25}],
}
VALUES = [
    *(None, True, False, 0, 1, 3, 2**53, 2**70, -1, 0.0, 0.25, 0.9, 1.0, 2.5, 1e-42, 1 - 1e-12, -0.5),
    *(float("inf"), float("nan"), np.float32(0.5), np.array(0.75), np.ones(3), "", "skip", "raise", "propagate"),
    *("mean", "sum", "q8", "bfloat16", (0.5, 0.25), [0.0, 0.0], (1.0, 2.0), (0.5,), {}, abs, 1j),
]
"""Candidates for options: each option takes some of them."""
WRONG = (TypeError, ValueError)


def equal(a, b):
    """Whether two results are the same number, or both None or NaN."""
    return a is b or a == b or (a != a and b != b)


class Sequences(RuleBasedStateMachine):
    """An optimizer beside the reference's."""

    @initialize(
        name=st.sampled_from(sorted(RULES)),
        nest=st.sampled_from(sorted(NESTS)),
        storage=st.sampled_from(ALL_STORAGES),
        rows=st.lists(st.tuples(*map(st.sampled_from, (SHAPES, LAYOUTS, FLOATS))), min_size=1, max_size=4),
        data=st.data(),
    )
    def make(self, name, nest, storage, rows, data):
        self.saved, self.forks, self.seed = None, 0, 0
        self.storage = storage
        cls = RULES[name]
        options = data.draw(st.sampled_from(knobs(name)), label="options")
        if storage.state and not REFERENCE[name].codes:
            storage = self.storage = ALL_STORAGES[0]
        options = {n: x for n, x in options.items() if storage.state != "q8" or n not in cls.q8_incompatible}
        options |= storage.options()
        if data.draw(st.booleans(), label="average"):
            options |= {"ema": 0.75, "ema_correction": data.draw(st.booleans(), label="corrected")}
        options |= data.draw(
            st.sampled_from([{}, {"clip_norm": 0.5}, {"clip_per_tensor": 2.0}, {"on_nonfinite": "skip"}]), label="pass"
        )
        if options.get("on_nonfinite") == "skip" and data.draw(st.booleans(), label="scaled"):
            options["loss_scale"] = gs.LossScale(4.0, interval=2)
        self.nest = nest
        dtypes = [storage.param, *(dtype for _, _, dtype in rows[1:])]  # so that the storage applies to the first
        self.ours = [layout.place(self.numbers(s, dtype)) for (s, layout, _), dtype in zip(rows, dtypes, strict=True)]
        self.theirs = [p.copy(order="C") for p in self.ours]
        if nest == "array":
            self.ours, self.theirs = self.ours[:1], self.theirs[:1]
        self.first = len(self.ours)
        self.opt = cls(NESTS[nest](self.ours), **options)
        self.ref = REFERENCE[name](NESTS[nest](self.theirs), **copy.deepcopy(options))

    # What the rules share.

    def numbers(self, shape, dtype):
        self.seed += 1
        return values([self.seed, 77], 1, int(np.prod(shape)), dtype)[0].reshape(shape)

    def slots(self):
        return [s for group in self.ref._groups for s in group.slots]

    def gradient(self, data, p):
        """A gradient of any type and layout, of some rows, or none."""
        dtype = data.draw(st.sampled_from(ALL_FLOATS), label="dtype")
        kind = data.draw(st.sampled_from(["array", "array", "array", "finite", "finite", "rows", "none"]), label="kind")
        blocks = self.storage.state != "q8" or (p.ndim > 1 and np.prod(p.shape[1:]) % 256 == 0)
        if kind == "none":
            return None
        if kind == "rows" and p.ndim > 0 and len(p) > 0 and blocks:
            rows = data.draw(
                st.lists(st.integers(0, len(p) - 1), max_size=2 * len(p) if len(p) < 9 else 9), label="rows"
            )
            return gs.Rows(np.array(rows, np.int64), self.numbers((len(rows), *p.shape[1:]), dtype))
        g = self.numbers(p.shape, dtype)
        if kind == "finite":
            with np.errstate(all="ignore"):
                g = np.where(np.abs(g.astype("float64")) < 100, g, g.dtype.type(1)).astype(g.dtype)
        return data.draw(st.sampled_from(LAYOUTS), label="layout").place(g)

    def nested(self, arrays):
        """Gradients in the nesting of params; for groups, a list with a nest for each."""
        tree = NESTS[self.nest](arrays[: self.first])
        return [*(group["params"] for group in tree), *arrays[self.first :]] if self.nest == "groups" else tree

    def gradients(self, data):
        return self.nested([self.gradient(data, p) for p in self.ours])

    def refused(self, call, errors=WRONG):
        """Calls what must be refused, and checks that nothing has changed."""
        before = snapshot(self.opt)
        with pytest.raises(errors):
            call()
        assert snapshot(self.opt) == before

    def compare_results(self, mine, other):
        assert (mine.applied, mine.step) == (other.applied, other.step)
        assert equal(mine.clip_factor, other.clip_factor)
        assert equal(mine.grad_norm, other.grad_norm)
        expected = other.nonfinite and (self.opt.names[other.nonfinite[0]], other.nonfinite[1])
        assert mine.nonfinite == expected
        if other.stats is not None:
            stats = zip(self.opt.names, other.stats, strict=True)
            expected = {name: tuple(norms) for name, norms in stats if norms is not None}
            assert (mine.stats or {}).keys() == expected.keys()
            for name, norms in expected.items():
                assert all(equal(a, b) for a, b in zip(mine.stats[name], norms, strict=True)), name

    def take(self, grads, scale=1.0, stats=False):
        """A step of both; where a schedule gives a value that its option refuses, of none."""
        try:
            for group in self.ref._groups:
                group.at(self.ref.step_count)
            for limit in (self.ref.clip_norm, self.ref.clip_per_tensor):
                _at(limit, self.ref.step_count)
        except WRONG:
            self.refused(lambda: self.opt.step(*grads, grad_scale=scale, stats=stats))
            return
        outcomes = []
        for each in (self.opt, self.ref):
            try:
                outcomes.append(each.step(*grads, grad_scale=scale, stats=stats))
            except FloatingPointError:
                outcomes.append(None)
        mine, other = outcomes
        assert (mine is None) == (other is None)
        if mine is not None:
            self.compare_results(mine, other)

    # Steps.

    @rule(data=st.data(), scale=st.sampled_from([1.0, 1.0, 4.0, 0.3]), stats=st.booleans())
    def step(self, data, scale, stats):
        self.take([self.gradients(data)], scale, stats)

    @rule(data=st.data())
    def accumulate(self, data):
        grads = self.gradients(data)
        self.opt.accumulate(grads)
        self.ref.accumulate(grads)

    @precondition(lambda self: self.ref.accumulated > 0)
    @rule(scale=st.sampled_from([1.0, 2.0]))
    def step_with_what_was_accumulated(self, scale):
        self.take([], scale)

    @rule(data=st.data())
    def step_that_is_refused(self, data):
        grads = [self.gradient(data, p) for p in self.ours]
        place = data.draw(st.integers(0, len(grads) - 1), label="place")
        p = self.ours[place]
        wrong = data.draw(
            st.sampled_from(
                [
                    lambda: np.zeros((*p.shape, 2), np.float32),
                    lambda: np.zeros(p.shape, np.int64),
                    lambda: np.zeros(p.shape, np.complex64),
                    lambda: "gradient",
                    lambda: [p],
                    lambda: {"a": p},
                    lambda: gs.Rows([-1], np.zeros((1, *p.shape[1:]), np.float32)),
                    lambda: gs.Rows([2**40], np.zeros((1, *p.shape[1:]), np.float32)),
                    lambda: gs.Rows([0, 0], np.zeros((3, *p.shape[1:]), np.float32)),
                    lambda: gs.Rows([0.5], np.zeros((1, *p.shape[1:]), np.float32)),
                ]
            ),
            label="wrong",
        )()
        if self.opt.groups[self.opt._numbers[place]]["frozen"]:
            return  # gradients of frozen parameters are ignored
        grads[place] = wrong
        tree = self.nested(grads)
        self.refused(lambda: self.opt.step(tree))
        self.refused(lambda: self.opt.accumulate(tree))

    @rule(scale=st.sampled_from([0, -1.0, float("inf"), float("nan"), "1", None, [1.0]]))
    def scale_that_is_refused(self, scale):
        grads = self.nested([np.zeros(p.shape) for p in self.ours])
        self.refused(lambda: self.opt.step(grads, scale))

    # Options.

    @rule(data=st.data())
    def set_option(self, data):
        known = {**self.opt.known, **self.opt.step_options}
        name = data.draw(st.sampled_from(sorted(known)), label="option")
        value = data.draw(st.sampled_from(VALUES), label="value")
        before = snapshot(self.opt)
        if name == "loss_scale":
            value = data.draw(st.sampled_from([None, gs.LossScale(8.0, interval=1)]), label="scale")
        try:
            if data.draw(st.booleans(), label="in a group") and name in self.opt.known:
                number = data.draw(st.integers(0, len(self.opt.groups) - 1), label="group")
                self.opt.groups[number][name] = value
                groups = [self.ref._groups[number]]
            else:
                setattr(self.opt, name, value)
                groups = self.ref._groups
        except WRONG:
            assert snapshot(self.opt) == before
            return
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if value is abs:
            value = lambda step: known[name].domain.plain(abs(step))  # noqa: E731
        if name in self.opt.step_options:
            setattr(self.ref, name, copy.deepcopy(value) if name == "loss_scale" else value)
        else:
            for group in groups:
                setattr(group.options, name, value if name == "stochastic_rounding" else _plain(value))

    @rule(name=st.sampled_from(["params", "learning_rate", "state", "step_count", "copy_out"]))
    def set_what_cannot_be_set(self, name):
        self.refused(lambda: setattr(self.opt, name, 1), AttributeError)

    # Averages.

    @rule(data=st.data())
    def averaged(self, data):
        if not any("average" in kept for kept in self.opt._kept.values()):
            self.refused(lambda: self.opt.averaged().__enter__(), RuntimeError)
            return
        with self.opt.averaged(), self.ref.averaged():
            self.same_params()
            with pytest.raises(RuntimeError):
                self.opt.step(self.gradients(data))

    # Checkpoints and copies.

    def reference_state(self):
        """What a checkpoint keeps of the reference."""
        slots = [{n: x for n, x in vars(s).items() if n not in ("p", "copy", "tensor", "size")} for s in self.slots()]
        whole = {n: getattr(self.ref, n) for n in ("step_count", "accumulated", *self.opt.step_options)}
        return copy.deepcopy((slots, whole, [vars(group.options) for group in self.ref._groups]))

    def set_reference_state(self, state):
        slots, whole, options = copy.deepcopy(state)
        for s, kept in zip(self.slots(), slots, strict=True):
            vars(s).update(kept)
        own = self.ref.loss_scale
        vars(self.ref).update(whole)
        if own is not None and whole["loss_scale"] is not None:
            own.load_state_dict(whole["loss_scale"].state_dict())
            self.ref.loss_scale = own
        for group, of in zip(self.ref._groups, options, strict=True):
            now = {n: x for n, x in vars(group.options).items() if n in of}
            # A schedule is not saved: the optimizer keeps its own value where one was.
            vars(group.options).update({n: now[n] if callable(x) else x for n, x in of.items()})

    def saved_arrays(self, with_params=False):
        """For each parameter its shape, or None where no arrays are saved for it."""
        each = zip(self.opt._params.items(), self.opt._kept.values(), self.slots(), strict=True)
        return {
            name: p.shape if with_params or kept or s.accumulator is not None else None for (name, p), kept, s in each
        }

    def fits(self, saved):
        """Whether what was saved is for the parameters as they are."""
        return saved.keys() == self.opt._params.keys() and all(
            shape in (None, self.opt._params[name].shape) for name, shape in saved.items()
        )

    @rule()
    def save(self):
        self.saved = SimpleNamespace(
            data=self.opt.state_dict(), state=self.reference_state(), arrays=self.saved_arrays(), params=None
        )

    @rule(with_params=st.booleans())
    def save_in_a_file(self, with_params):
        self.save()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.safetensors")
            gs.save(path, self.opt, self.opt.params if with_params else None)
            self.saved.data = path.read_bytes()
        self.saved.arrays = self.saved_arrays(with_params)
        self.saved.params = [p.copy() for p in self.theirs] if with_params else None

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self):
        saved = self.saved
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.safetensors")

            def load():
                if isinstance(saved.data, bytes):
                    path.write_bytes(saved.data)
                    gs.load(path, self.opt)
                else:
                    self.opt.load_state_dict(saved.data)

            if not self.fits(saved.arrays):
                self.refused(load)
                return
            load()
        self.set_reference_state(saved.state)
        for p, kept in zip(self.theirs, saved.params or [], strict=False):
            p[...] = kept

    @rule(data=st.data())
    def load_what_is_refused(self, data):
        saved = self.opt.state_dict()
        first = next(iter(saved["state"]))
        change = data.draw(
            st.sampled_from(
                [
                    lambda: saved.pop("state"),
                    lambda: saved.update(format=7),
                    lambda: saved.update(rule="none"),
                    lambda: saved.update(step_count=-1),
                    lambda: saved["groups"].clear(),
                    lambda: saved["state"].pop(first),
                    lambda: saved["state"].update(other={}),
                    lambda: saved["state"][first].update(step=1.5),
                    lambda: saved["options"].update(on_nonfinite="never"),
                    lambda: saved["groups"][-1].update(l2=-1.0),
                ]
            ),
            label="change",
        )
        change()
        self.refused(lambda: self.opt.load_state_dict(saved))

    @rule(how=st.sampled_from(["pickle", "deepcopy"]))
    def copy(self, how):
        """Goes on with a copy, whose arrays are the copy's own."""
        again = pickle.loads(pickle.dumps(self.opt)) if how == "pickle" else copy.deepcopy(self.opt)
        assert snapshot(again)[:2] == snapshot(self.opt)[:2]
        self.opt = again
        self.ours = list(again._params.values())
        if how == "deepcopy" and self.ref.loss_scale is not None:
            self.ref.loss_scale = copy.deepcopy(self.ref.loss_scale)

    @precondition(lambda self: hasattr(os, "fork") and self.forks < 1)
    @rule(data=st.data())
    def fork(self, data):
        """A child's step has the bits of the parent's."""
        self.forks += 1
        grads = self.gradients(data)
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fork in a process with threads
            child = os.fork()
        if child == 0:
            try:
                with suppress(FloatingPointError, *WRONG):
                    self.opt.step(grads)
                os.write(write, self.digest())
            finally:
                os._exit(0)
        os.close(write)
        self.take([grads])
        with os.fdopen(read, "rb") as pipe:
            found = pipe.read()
        os.waitpid(child, 0)
        assert found == self.digest()

    def digest(self):
        return hashlib.sha256(repr(snapshot(self.opt)[:2]).encode()).digest()

    # Parameters.

    @precondition(lambda self: self.ref.accumulated == 0)
    @rule(data=st.data())
    def replace(self, data):
        """An array in place of another, of other rows."""
        place = data.draw(st.integers(0, len(self.ours) - 1), label="place")
        name, old, s = self.opt.names[place], self.ours[place], self.slots()[place]
        rows = None
        if old.ndim > 0 and self.storage.state is None and not self.storage.master:
            wanted = st.lists(st.integers(-1, len(old) - 1), max_size=9)
            rows = data.draw(st.none() | wanted, label="rows")
        shape = old.shape if rows is None else (len(rows), *old.shape[1:])
        new = data.draw(st.sampled_from(LAYOUTS), label="layout").place(self.numbers(shape, old.dtype))
        self.opt.replace(name, new, rows)
        self.renew(place, s, new, rows)

    @precondition(lambda self: self.ref.accumulated == 0)
    @rule(data=st.data())
    def rebind(self, data):
        """Arrays put in place of others by the caller."""
        place = data.draw(st.integers(0, len(self.ours) - 1), label="place")
        new = self.numbers(self.ours[place].shape, self.ours[place].dtype).copy()
        keys = self.opt._engine.tree.keys(place)
        if not keys:
            return
        container = self.opt.params
        path = [keys[0], "params", *keys[1:]] if self.opt._is_grouped else keys
        for key in path[:-1]:
            container = container[key]
        container[path[-1]] = new
        self.refused(lambda: self.opt.step(self.nested([np.zeros(p.shape) for p in self.ours])), ValueError)
        self.opt.rebind()
        self.renew(place, self.slots()[place], new, None)

    def renew(self, place, s, new, rows):
        """What replacing has changed, in the reference."""
        values_of = new.copy(order="C")
        fresh = self.ref._slot(values_of, s.tensor, self.group_of(s).options)
        for name, array in vars(s).items():
            if name in ("p", "copy", "accumulator") or not isinstance(array, np.ndarray):
                continue
            if name == "master":
                setattr(s, name, fresh.master)
            elif rows is not None:
                made = getattr(fresh, name)
                index = np.array(rows, np.intp)
                made[index >= 0] = array[index[index >= 0]]
                setattr(s, name, made)
        s.p, s.size = values_of, values_of.size
        self.ours[place], self.theirs[place] = new, values_of

    def group_of(self, s):
        return next(group for group in self.ref._groups if any(s is other for other in group.slots))

    @rule(name=st.sampled_from(["", "none", "p99", "[77]"]))
    def replace_that_is_refused(self, name):
        if name not in self.opt.names:
            self.refused(lambda: self.opt.replace(name, np.ones(3)))
        first = self.opt.names[0]
        wrong_rows = [10**6] * 3
        self.refused(lambda: self.opt.replace(first, [1.0]))
        self.refused(lambda: self.opt.replace(first, np.ones(3, self.ours[0].dtype), wrong_rows))

    @precondition(lambda self: self.ref.accumulated == 0 and self.nest == "groups" and len(self.ref._groups) < 4)
    @rule(data=st.data())
    def add_group(self, data):
        layout = data.draw(st.sampled_from(LAYOUTS), label="layout")
        new = layout.place(self.numbers(data.draw(st.sampled_from(SHAPES), label="shape"), self.storage.param))
        copied = new.copy(order="C")
        self.opt.add_group({"params": new, "lr": 0.125})
        options = {**vars(self.ref._groups[0].options), "lr": 0.125}
        self.ref._groups.append(self.ref._group(copied, **options))
        self.ours.append(new)
        self.theirs.append(copied)
        last = len(self.ours) - 1
        assert self.opt.names[last] == f"[{len(self.ref._groups) - 1}]"

    @rule()
    def add_group_that_is_refused(self):
        errors = (*WRONG, RuntimeError)
        self.refused(lambda: self.opt.add_group({"params": np.ones(3), "l2": -0.5}), errors)

    # What always holds.

    def same_params(self):
        for name, mine, other in zip(self.opt.names, self.ours, self.theirs, strict=True):
            assert same_bits(np.asarray(mine), other), name

    @invariant()
    def same(self):
        self.same_params()
        assert self.opt.step_count == self.ref.step_count
        for name, s, kept in zip(self.opt.names, self.slots(), self.opt._kept.values(), strict=True):
            for state, array in kept.items():
                assert same_bits(array, getattr(s, state)), (name, state)
        for (step, (*scalars, product)), s in zip(self.opt._engine.stepper.clocks, self.slots(), strict=True):
            assert (step, product) == (s.t, s.ema_product)
            assert scalars == [getattr(s, name) for name in self.opt.scalar_names()]
        if self.ref.loss_scale is not None:
            assert self.opt.loss_scale.value == self.ref.loss_scale.value


def test_sequences():
    chosen = settings(
        max_examples=EXAMPLES or 150,
        stateful_step_count=25,
        derandomize=not EXAMPLES,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Sequences, settings=chosen)

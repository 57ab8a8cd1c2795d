"""The functional kernels have the classes' bits; the caller provides all states and step numbers."""

import functools
import inspect
import math
import pickle
import pydoc
import re
from types import SimpleNamespace

import numpy as np
import pytest

from gradstep import _temporary, functional
from gradstep.functional import adam_, sgd_
from tests.table import CASES, RULES, WHOLE, problem, same_bits
from tools import stubs

FUNCTIONS = {rule: getattr(functional, f"{rule}_") for rule in RULES}
EVERY_RULE = pytest.mark.parametrize("rule", RULES)
FIRST = {
    "adagrad": {"sum": "initial_accumulator"},
    "rmsprop": {"square_avg": "initial_scale"},
}  # states that do not start at zero: the option with the initial value


def state_names(rule):
    """The names of all states, kept or not."""
    parameters = inspect.signature(FUNCTIONS[rule]).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY][2:]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_classes_bits(case):
    p, grads = problem(200, case.dtype)
    own, theirs = p.copy(), p.copy()
    opt = RULES[case.rule](theirs, **case.knobs)
    options = {name: value for name, value in case.knobs.items() if name not in FIRST.get(case.rule, {}).values()}
    rate = options.pop("lr", None)
    first = {name: case.knobs.get(option, 0.0) for name, option in FIRST.get(case.rule, {}).items()}
    states = {name: np.full_like(p, first.get(name, 0.0)) for name in opt.state}
    given = [states.get(name) for name in state_names(case.rule)]
    while given and given[-1] is None:
        given.pop()
    carried = {}
    for step in range(1, 7):
        if rate is not None:
            options["lr"] = rate(step - 1) if callable(rate) else rate
        back = FUNCTIONS[case.rule](own, grads[step], *given, step=step, **carried, **options)
        if case.rule == "nadam":
            carried = {"mu_product": back}
        else:
            assert back is None
        opt.step(grads[step])
        assert same_bits(own, theirs), step
        assert all(same_bits(states[name], a) for name, a in opt.state.items()), step
    assert opt.state_dict()["state"][""].get("mu_product") == carried.get("mu_product")


@EVERY_RULE
def test_the_signature_is_the_classes(rule):
    function, cls = FUNCTIONS[rule], RULES[rule]
    shown = inspect.signature(function).parameters
    options = inspect.signature(cls).parameters
    # Options that the arrays replace; and a kernel that is not wanted is not called.
    settled = (*WHOLE, *(name for name, option in cls.known.items() if option.fixed), "frozen", "ema")
    expected = {name: option.default for name, option in options.items() if name not in settled} | {"master": None}
    positional = ["p", "g", *state_names(rule)]
    clock = {"step": 1, **({"mu_product": 1.0} if rule == "nadam" else {})}
    assert {name: p.default for name, p in shown.items() if name not in positional} == {**clock, **expected}
    assert {p.kind for name, p in shown.items() if name not in positional} == {inspect.Parameter.KEYWORD_ONLY}
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert re.search(rf"{rule}_\(\s*p,\s*g,\s", text)
    for word in (*positional, *expected, cls.__name__, "in place"):
        assert word in text
    assert function.__name__ == function.__qualname__ == f"{rule}_"
    assert pickle.loads(pickle.dumps(function)) is function


def test_there_is_one_function_a_rule():
    assert dir(functional) == sorted(f"{rule}_" for rule in RULES)
    for name in dir(functional):
        assert getattr(functional, name) is getattr(functional, name)
    with pytest.raises(AttributeError, match="adamw_"):
        _ = functional.adamw_
    names = {}
    exec("from gradstep.functional import *", names)
    assert set(dir(functional)) <= set(names)


P, G = np.ones(3), np.ones(3)
V, W = np.zeros(3), np.zeros(3)
READ_ONLY = np.broadcast_to(0.0, 3)
F = functional
REFUSED = [
    (lambda: F.sgd_([1.0], G), TypeError, "p must be a NumPy array, not list"),
    (lambda: F.sgd_(P, [1.0] * 3), TypeError, "g must be a NumPy array, not list"),
    (lambda: F.sgd_(P.astype("i4"), G), TypeError, "p has dtype int32; supported are"),
    (lambda: F.sgd_(P, G.astype("i4")), TypeError, "g has dtype int32; supported are"),
    (lambda: F.sgd_(P, G[:2]), ValueError, r"g has shape \(2,\), but its parameter has shape \(3,\)"),
    (lambda: F.sgd_(READ_ONLY, G), ValueError, "p is read-only"),
    (lambda: F.sgd_(P, P[::-1]), ValueError, "g overlaps p"),
    (lambda: F.momentum_(P, G), ValueError, "state momentum_buffer .*is missing"),
    (lambda: F.momentum_(P, G, None), ValueError, "state momentum_buffer .*is missing"),
    (lambda: F.adam_(P, G, V), ValueError, "state exp_avg_sq .*is missing"),
    (lambda: F.adam_(P, G, V, W, amsgrad=True), ValueError, "state max_exp_avg_sq .*is missing"),
    (lambda: F.adam_(P, G, V, W, np.zeros(3)), ValueError, "state max_exp_avg_sq .*is given, but"),
    (lambda: F.rmsprop_(P, G, V, W), ValueError, "state grad_avg .*is given, but"),
    (lambda: F.rmsprop_(P, G, V, None, None, momentum=0.5), ValueError, "state momentum_buffer .*is missing"),
    (lambda: F.sgd_(P, G, V), TypeError, "sgd_ takes .*states.*, got 1"),
    (lambda: F.momentum_(P, G, V, W), TypeError, r"momentum_ takes 1 states \(momentum_buffer\), got 2"),
    (lambda: F.momentum_(P, G, [0.0] * 3), TypeError, "state momentum_buffer .*must be a NumPy array, not list"),
    (lambda: F.momentum_(P, G, V.astype("f4")), TypeError, "state momentum_buffer .*is float32, but must be float64"),
    (lambda: F.momentum_(P, G, V.astype("f2")), TypeError, "state momentum_buffer .*is float16, but must be float64"),
    (lambda: F.momentum_(P, G, V.astype("i4")), TypeError, "state momentum_buffer .*dtype int32; supported are"),
    (lambda: F.momentum_(P, G, V[:2]), (TypeError, ValueError), "state momentum_buffer .*shape"),
    (lambda: F.momentum_(P, G, READ_ONLY), ValueError, "state momentum_buffer .*is read-only"),
    (lambda: F.momentum_(P, G, P), ValueError, "state momentum_buffer .*is the same array as p"),
    (lambda: F.momentum_(P, G, G), ValueError, "g overlaps state momentum_buffer"),
    (lambda: F.adam_(P, G, V, V), ValueError, "state exp_avg_sq .*is the same array as state exp_avg"),
    (lambda: F.sgd_(P, G, lr=lambda _: 0.1), TypeError, "sgd_: lr must be a finite number"),
    (lambda: F.sgd_(P, G, lr=-1), ValueError, "sgd_: lr must be"),
    (lambda: F.sgd_(P, G, learning_rate=1), TypeError, "sgd_ has no option 'learning_rate'; did you mean 'lr'"),
    (lambda: F.sgd_(P, G, mu_product=1.0), TypeError, "sgd_ has no option 'mu_product'"),
    (lambda: F.adagrad_(P, G, V, initial_accumulator=1.0), TypeError, "no option 'initial_accumulator'"),
    (lambda: F.momentum_(P, G, momentum_buffer=V), TypeError, "momentum_buffer"),
    (lambda: F.sgd_(P), TypeError, r"sgd_\(\) missing 1 required positional argument: 'g'"),
]
NO_STEPS = [0, -1, 1.0, 1.5, "1", None, math.nan, True, 2**63, 2**70]
REFUSED += [(lambda s=s: F.adam_(P, G, V, W, step=s), (TypeError, ValueError), "adam_: step must be") for s in NO_STEPS]
NO_PRODUCTS = [-0.5, 1.5, math.nan, math.inf, None, "1", 1j]
REFUSED += [
    (lambda m=m: F.nadam_(P, G, V, W, mu_product=m), (TypeError, ValueError), "nadam_: mu_product must be")
    for m in NO_PRODUCTS
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_refused_with_nothing_written(call, error, words):
    before = [a.tobytes() for a in (P, G, V, W)]
    with pytest.raises(error, match=words):
        call()
    assert before == [a.tobytes() for a in (P, G, V, W)]


def test_numbers_of_numpy_are_numbers():
    p, q = np.ones(3), np.ones(3)
    m, v = np.zeros((2, 2, 3))
    back = functional.nadam_(p, G, *m, step=np.int64(5), mu_product=np.float64(0.5), lr=np.float32(0.25))
    assert back == functional.nadam_(q, G, *v, step=5, mu_product=0.5, lr=0.25)
    assert type(back) is float
    assert same_bits(p, q)


@EVERY_RULE
def test_no_gradient_is_no_step(rule):
    """As in the classes, a gradient of None changes nothing."""
    p = np.ones(3)
    kept = RULES[rule](p.copy()).state
    states = [np.full(3, 2.0) if name in kept else None for name in state_names(rule)]
    given = states[: len(kept)]
    back = FUNCTIONS[rule](p, None, *given, **({"mu_product": 0.25} if rule == "nadam" else {}))
    assert back == (0.25 if rule == "nadam" else None)
    assert p.tolist() == [1.0] * 3
    assert all(s.tolist() == [2.0] * 3 for s in given)


def test_strided_and_misaligned_arrays_of_any_rank():
    record = np.zeros(4, [("a", "u1"), ("p", "f4"), ("g", "f4"), ("v", "f4")])
    record["a"], record["p"], record["g"] = 7, 1, [1, 2, 3, 4]
    functional.momentum_(record["p"][::-1], record["g"], record["v"], lr=0.5, momentum=0.5)
    assert record["p"].tolist() == [-1, -0.5, 0, 0.5]
    assert record["v"].tolist() == record["g"].tolist() == [1, 2, 3, 4]
    assert set(record["a"]) == {7}
    p = np.array(1.0)
    functional.sgd_(p, np.array(0.5), lr=1.0)
    assert p == 0.5


def test_the_stub_is_what_the_options_make():
    """After a change of options: `python tools/stubs.py`."""
    assert stubs.PATH.read_text() == stubs.stub()


class TestTemporaries:
    """A copy that nothing but the call holds is refused; whatever holds an array, it is not."""

    rows = (0, 2)

    def table(self):
        return [np.ones((4, 3)) for _ in range(4)]

    @pytest.fixture(autouse=True)
    def _counts(self):
        if not _temporary.COUNTS:
            pytest.skip("this interpreter's reference counts do not tell")

    def test_copies_of_rows_are_refused(self):
        w, g, m, v = self.table()
        rows = list(self.rows)
        some = [m[rows], v[rows]]
        for call, name in [
            (lambda: adam_(w[rows], g[rows], some[0], some[1]), "p"),
            (lambda: adam_(w[rows], g[rows], some[0], some[1], lr=0.1), "p"),
            (lambda: adam_(w[rows][:], g[rows], some[0], some[1]), "p"),
            (lambda: adam_(w[rows].T.T, g[rows], some[0], some[1]), "p"),
            (lambda: adam_(w[:2], g[rows], m[rows], some[1]), "exp_avg"),
            (lambda: adam_(w[:2], g[rows], some[0], v[rows]), "exp_avg_sq"),
            (lambda: adam_(w[:2].astype("f2"), g[rows], some[0].astype("f4"), some[1].astype("f4")), "p"),
        ]:
            with pytest.raises(ValueError, match=f"adam_: {name} is a temporary array.*gradstep.Rows"):
                call()
        assert all(np.all(array == 1) for array in (w, m, v, *some))

    def test_other_errors_come_first(self):
        with pytest.raises(TypeError, match="p has dtype int64"):
            sgd_(np.ones(3, int), np.ones(3))

    def test_held_arrays_are_not_refused(self):
        w, g, m, v = self.table()
        rows = list(self.rows)
        holder = SimpleNamespace(p=w[rows], m=m[rows])
        named = {"p": w[rows], "v": v[rows]}
        items = [w[rows], m[rows], v[rows]]
        arguments = (w[rows], g[rows], m[rows], v[rows])
        p, q = w[rows], w[rows]
        view = q[:]
        exported = memoryview(w[rows])
        m, v = m[rows], v[rows]
        g = g[rows]

        def wrapped(p, *rest, **options):
            return adam_(p, *rest, **options)

        def first(array):
            yield array

        adam_(p, g, m, v)
        adam_(view, g, m, v)
        adam_(view.base, g, m, v)
        adam_(q[:], g, m, v)
        adam_(q[:1], g[:1], m[:1], v[:1], lr=0.1)
        adam_(holder.p, g, holder.m, v)
        adam_(named["p"], g, m, named["v"])
        adam_(*items[:1], g, *items[1:])
        adam_(items[0], g, items[1], items[2])
        adam_(*arguments)
        functools.partial(adam_, *arguments)(lr=0.1)
        wrapped(p, g, m, v)
        wrapped(w[:2], g, m, v)
        for array in first(p):
            adam_(array, g, m, v)
        for _ in map(adam_, items[:1], [g], [m], [v]):
            pass
        adam_(kept := w[rows], g, m, v)
        adam_(np.asarray(exported), g, m, v)
        adam_(np.frombuffer(bytearray(48)).reshape(2, 3), g, m, v)
        adam_(w[::2], g, m, v)
        assert all(np.all(array != 1) for array in (p, q, kept, holder.p, named["p"], items[0], arguments[0], w[::2]))

"""Errors name the invalid argument and leave every bit unchanged; valid arguments are updated in place."""

import gc
import inspect
import math
import sys
import warnings
import weakref
from collections import OrderedDict
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import gradstep as gs
from gradstep import functional
from tests.table import REFERENCE, RULES, WHOLE, knobs, same_bits, schedule

SUPPORTED = "supported are float32, float64, float16, bfloat16"
EVERY_RULE = pytest.mark.parametrize("rule", RULES)


def frozen(opt, *arrays):
    """Everything that a step may change, as bytes, for comparison."""
    saved = opt.state_dict()
    states = {
        name: {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in own.items()}
        for name, own in saved["state"].items()
    }
    return {**saved, "state": states}, [a.tobytes() for a in arrays]


def steps_of(opt, what="step"):
    """The step number of each parameter, in order; or another number that the rule carries."""
    return [own[what] for own in opt.state_dict()["state"].values()]


class Three:
    """An optimizer of three tensors with many options, after one step; its parameters are in one buffer."""

    def __init__(self, rule, **options):
        self.buffer = np.linspace(-1, 1, 40)
        self.params = [self.buffer[:6].reshape(2, 3), self.buffer[10:20:2], self.buffer[24:32].reshape(2, 2, 2).T]
        self.opt = RULES[rule](self.params, **{**knobs(rule)[-1], **options})
        self.opt.step(self.grads())

    def grads(self):
        return [np.full_like(p, 0.25 + i) for i, p in enumerate(self.params)]

    def frozen(self):
        return frozen(self.opt, self.buffer)

    def refuses(self, grads, error, words):
        """Checks that the step raises this error and changes nothing."""
        before = self.frozen()
        with pytest.raises(error, match=words):
            self.opt.step(grads)
        assert self.frozen() == before


def other_types(array):
    """Arrays of that shape with unsupported types."""
    letters = ["?", "b", "B", "h", "H", "i", "l", "F", "D", "O", "S4", "U4", "V2", "V8", "M8[s]", "m8[s]"]
    letters += ["g"] * (np.dtype("g").itemsize != 8)
    types = [np.dtype(letter) for letter in letters] + [np.dtype([("a", "f4"), ("b", "f4")])]
    types += [np.dtype(of) for of in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4)]
    return [np.zeros(array.shape, dtype) for dtype in types]


class Other:
    """An array of another library."""

    def __array__(self, *_, **__):
        return np.ones((2, 2, 2))


# Ways to make the last gradient invalid, the error, and part of its message.
BAD_GRADIENTS = {
    "list": (lambda g: g.tolist(), TypeError, "must be a NumPy array, not list"),
    "number": (lambda _: 1.0, TypeError, "must be a NumPy array, not float"),
    "numpy scalar": (lambda _: np.float64(1), TypeError, "must be a NumPy array, not numpy.float64"),
    "other array": (lambda _: Other(), TypeError, r"must be a NumPy array, not .*Other; numpy\.asarray\(\) makes one"),
    "memoryview": (memoryview, TypeError, "must be a NumPy array, not memoryview"),
    "swapped": (lambda g: g.astype(g.dtype.newbyteorder("S")), TypeError, "byte-swapped"),
    "swapped f4": (lambda g: g.astype(np.dtype("f4").newbyteorder("S")), TypeError, "byte-swapped"),
    "swapped f2": (lambda g: g.astype(np.dtype("f2").newbyteorder("S")), TypeError, "byte-swapped"),
    "too few": (lambda g: g[:, :, :1].copy(), ValueError, r"has shape \(2, 2, 1\), but .* \(2, 2, 2\)"),
    "row": (lambda g: g[0, 0].copy(), ValueError, r"has shape \(2,\), but .* \(2, 2, 2\)"),
    "flat": (lambda g: g.ravel(), ValueError, r"has shape \(8,\), but .* \(2, 2, 2\)"),
    "more axes": (lambda g: g[None].copy(), ValueError, r"has shape \(1, 2, 2, 2\), but .* \(2, 2, 2\)"),
    "no axes": (lambda _: np.array(1.0), ValueError, r"has shape \(\), but .* \(2, 2, 2\)"),
    "empty": (lambda _: np.zeros((2, 2, 0)), ValueError, r"has shape \(2, 2, 0\), but .* \(2, 2, 2\)"),
}


@EVERY_RULE
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
def test_a_bad_gradient_last_of_all(rule, bad):
    make, error, words = BAD_GRADIENTS[bad]
    three = Three(rule)
    first, second, good = three.grads()
    three.refuses([first, second, make(good)], error, rf"^grads\[2\].*{words}")


@EVERY_RULE
def test_a_gradient_of_another_type(rule):
    three = Three(rule)
    first, second, good = three.grads()
    for bad in other_types(good):
        three.refuses([first, second, bad], TypeError, rf"^grads\[2\] has dtype .*; {SUPPORTED}")


@EVERY_RULE
def test_a_gradient_that_overlaps_what_the_step_writes(rule):
    three = Three(rule)
    first, second, third = three.params
    three.refuses([first, second, third], ValueError, r"grads\[0\] overlaps params\[0\]")
    three.refuses([None, second[::-1], None], ValueError, r"grads\[1\] overlaps params\[1\]")
    three.refuses([None, None, third], ValueError, r"grads\[2\] overlaps params\[2\]")
    three.refuses([None, three.buffer[1:6], None], ValueError, r"grads\[1\] overlaps params\[0\]")
    three.refuses([three.buffer[26:32].reshape(2, 3), None, None], ValueError, r"grads\[0\] overlaps params\[2\]")
    for name, states in three.opt.state.items():
        for i, state in enumerate(states):
            grads = [None, None, None]
            grads[i] = state[::-1]
            three.refuses(grads, ValueError, rf"grads\[{i}\] overlaps state {name} of params\[{i}\]")


class Liar(np.ndarray):
    """An array that claims to share memory with nothing."""

    def __array_function__(self, *_):
        return False


def test_overlap_does_not_ask_a_subclass():
    """One that would answer for itself is refused."""
    three = Three("adam")
    three.refuses([None, None, three.params[2].view(Liar)], TypeError, r"grads\[2\] .* __array_function__")
    with pytest.raises(TypeError, match=r"params\[1\] .* __array_function__"):
        gs.SGD([A, A[1:].view(Liar)])


def test_masks_are_refused():
    """Masks would be ignored: masked elements would be updated or used."""
    three = Three("adam")
    first, second, good = three.grads()
    three.refuses([first, second, np.ma.masked_array(good)], TypeError, r"^grads\[2\] .*mask")
    with pytest.raises(TypeError, match=r"^params\.b .*mask"):
        gs.SGD({"a": A, "b": np.ma.masked_array(B)})


def test_as_if_the_refused_step_had_never_been():
    """Also with a schedule, and with any valid gradients before the invalid one."""
    for rule in RULES:
        one, other = Three(rule, lr=schedule), Three(rule, lr=schedule)
        for bad, (make, error, _) in BAD_GRADIENTS.items():
            *good, last = one.grads()
            with pytest.raises(error):
                one.opt.step([*(None if bad == "list" else g for g in good), make(last)])
        for three in (one, other):
            three.opt.step(three.grads())
        assert one.frozen() == other.frozen(), rule


A, B = np.ones(3), np.ones(2)
LIST, DICT = [A, B], {"w": A, "b": B}
GROUPS = [{"params": A}, {"params": [B]}, {"params": {"w": np.ones(1)}}]
NOT_LISTS = [A, 1.0, None, "ab", {"w": A, "b": B}, {0: A, 1: B}, (g for g in (A, B)), {1, 2}, map(abs, [A, B])]
WRONG_STRUCTURES = [
    (A, [A], TypeError, "grads must be a NumPy array, not list"),
    (A, {"w": A}, TypeError, "grads must be a NumPy array, not dict"),
    (A, 1.0, TypeError, "grads must be a NumPy array, not float"),
    *(
        (LIST, g, TypeError, f"grads must be a list or tuple, as params is, not .*{type(g).__name__}")
        for g in NOT_LISTS
    ),
    (LIST, [], ValueError, "grads has 0 entries, but params has 2"),
    (LIST, [A], ValueError, "grads has 1 entry, but params has 2"),
    (LIST, [A, B, B], ValueError, "grads has 3 entries, but params has 2"),
    (LIST, [B, A], ValueError, r"grads\[0\] has shape \(2,\), but its parameter has shape \(3,\)"),
    (DICT, [A, B], TypeError, "grads must be a dict, as params is, not list"),
    (DICT, {}, ValueError, "grads lacks 'w'"),
    (DICT, {"w": A}, ValueError, "grads lacks 'b'"),
    (DICT, {"w": A, "b": B, "c": B}, ValueError, "grads has 'c', which params has not"),
    (DICT, {"w": A, "b": A}, ValueError, r"grads\.b has shape \(3,\)"),
    (GROUPS, [A, [B]], ValueError, "grads has 2 entries, but params has 3"),
    (GROUPS, {"w": A}, TypeError, "grads must be a list or tuple, as params is, not dict"),
    (GROUPS, A, TypeError, "grads must be a list or tuple, as params is, not numpy.ndarray"),
    (GROUPS, [A, B, {"w": A}], TypeError, r"grads\[1\] must be a list or tuple, as params\[1\] is, not numpy.ndarray"),
    (GROUPS, [[A], [B], {"w": A}], TypeError, r"grads\[0\] must be a NumPy array, not list"),
    (GROUPS, [A, [B], {"x": A}], ValueError, r"grads\[2\] lacks 'w'"),
    (GROUPS, [A, [B], {"w": B}], ValueError, r"grads\[2\]\.w has shape \(2,\)"),
    (GROUPS, [A, [A], {"w": None}], ValueError, r"grads\[1\]\[0\] has shape \(3,\)"),
]


@pytest.mark.parametrize(("like", "grads", "error", "words"), WRONG_STRUCTURES)
def test_a_wrong_structure_of_gradients(like, grads, error, words):
    opt = gs.Adam(copied(like))
    before = frozen(opt)
    with pytest.raises(error, match=f"^{words}"):
        opt.step(grads)
    assert frozen(opt) == before


def copied(arrays):
    """Copies of parameters in the same structure."""
    if isinstance(arrays, np.ndarray):
        return arrays.copy()
    if isinstance(arrays, dict):
        return type(arrays)((key, copied(value)) for key, value in arrays.items())
    return type(arrays)(map(copied, arrays))


def leaves(arrays):
    """The arrays of a structure."""
    if isinstance(arrays, np.ndarray):
        return [arrays]
    return [leaf for value in (arrays.values() if isinstance(arrays, dict) else arrays) for leaf in leaves(value)]


@pytest.mark.parametrize(
    ("like", "grads"),
    [
        (A, A),
        (A, np.broadcast_to(1.0, 3)),
        (LIST, (A, B)),
        (tuple(LIST), [A, B]),
        (DICT, OrderedDict(b=B, w=A)),
        (OrderedDict(DICT), {"b": B, "w": A}),
        (tuple(GROUPS), (A, (B,), {"w": np.ones(1)})),
    ],
)
def test_a_right_structure_of_gradients(like, grads):
    """The elements of all parameters and gradients are 1."""
    params = copied(like)
    gs.SGD(params, lr=1.0).step(grads)
    assert not any(np.any(a) for a in leaves(params))


def test_none_skips_the_tensor_its_states_and_its_step_number():
    for rule in RULES:
        three = Three(rule)
        scalars = three.opt.scalar_names()
        steps, products = steps_of(three.opt), [steps_of(three.opt, name) for name in scalars]
        kept = [three.params[1].tobytes(), *(s[1].tobytes() for s in three.opt.state.values())]
        first, _, third = three.grads()
        three.opt.step([first, None, third])
        assert (steps, steps_of(three.opt), three.opt.step_count) == ([1, 1, 1], [2, 1, 2], 2)
        assert kept == [three.params[1].tobytes(), *(s[1].tobytes() for s in three.opt.state.values())], rule
        for name, product in zip(scalars, products, strict=True):
            now = steps_of(three.opt, name)
            assert now[1] == product[1] != now[0]
        three.opt.step([None, None, None])
        assert steps_of(three.opt) == [2, 1, 2]
        assert three.opt.step_count == 3


def read_only():
    array = np.ones(3)
    array.flags.writeable = False
    return array


X = np.ones(12)
STRIDES = r"params\[1\] has strides that let its own elements overlap"
BAD_PARAMS = [
    ([], ValueError, "got no parameters"),
    ({}, ValueError, "got no parameters"),
    ([{"params": []}], ValueError, "got no parameters"),
    (None, TypeError, "params must be an array, .* not NoneType"),
    (1.0, TypeError, "params must be an array, .* not float"),
    ("ab", TypeError, "params must be an array, .* not str"),
    ((a for a in (A, B)), TypeError, "params must be an array, .* not generator"),
    ([A, [1.0, 2.0]], TypeError, r"params\[1\]\[0\] must be an array, or a list, .* not float"),
    ([A, 1.0], TypeError, r"params\[1\] must be an array, or a list, .* not float"),
    ([A, np.float64(1)], TypeError, r"params\[1\] must be an array, or a list, .* not .*float64"),
    ([None, {"a": None}], ValueError, "got no parameters"),
    ({"a": A, "b": {"c": 1}}, TypeError, r"params\.b\.c must be an array, or a list, .* not int"),
    ([A, read_only()], ValueError, r"params\[1\] is read-only"),
    ([A, np.broadcast_to(1.0, 3)], ValueError, r"params\[1\] is read-only"),
    ([A, np.frombuffer(bytes(8))], ValueError, r"params\[1\] is read-only"),
    ([A, B, A], ValueError, r"params\[2\] is the same array as params\[0\]"),
    ([A, B, A[:]], ValueError, r"params\[2\] is the same array as params\[0\]"),
    ([X[:6], X[5:]], ValueError, r"params\[1\] overlaps params\[0\]"),
    ([X[5:], X[:6]], ValueError, r"params\[1\] overlaps params\[0\]"),
    ({"a": X[::2], "b": X[::3]}, ValueError, r"params\.b overlaps params\.a"),
    ([X[::-1], B, X], ValueError, r"params\[2\] overlaps params\[0\]"),
    ([X, X.view("f4")], ValueError, r"params\[1\] overlaps params\[0\]"),
    ([X.reshape(3, 4), X.reshape(3, 4).T], ValueError, r"params\[1\] overlaps params\[0\]"),
    ([{"params": {"w": X}}, {"params": [A, X[3:4]]}], ValueError, r"params\[1\]\[1\] overlaps params\[0\]\.w"),
    ([A, as_strided(X, (5,), (4,))], ValueError, STRIDES),
    ([A, as_strided(X, (3, 3), (8, 8))], ValueError, STRIDES),
    ([A, as_strided(X, (3, 2), (0, 8))], ValueError, STRIDES),
    ([{"params": A}, {"parms": B}], TypeError, r'params\[1\] must be a group, a dict with the key "params"'),
    ([{"params": A}, B], TypeError, r'params\[1\] must be a group, a dict with the key "params"'),
    ([{"params": A}, {"params": "b"}], TypeError, r"params\[1\] must be an array"),
    ([{"params": A}, {"params": [B, 1]}], TypeError, r"params\[1\]\[1\] must be an array, .* not int"),
    ([{"params": A}, {"params": B, "lrr": 1}], TypeError, r"group 1 has no option 'lrr'; did you mean 'lr'"),
    ([{"params": A}, {"params": B, "lr": -1}], ValueError, r"group 1: lr must be .*, got -1"),
]


@EVERY_RULE
def test_bad_parameters(rule):
    before = [a.tobytes() for a in (A, B, X)]
    for params, error, words in BAD_PARAMS:
        with pytest.raises(error, match=words):
            RULES[rule](params)
    assert before == [a.tobytes() for a in (A, B, X)]


@EVERY_RULE
def test_a_parameter_of_another_type(rule):
    for bad in [*other_types(A), *(A.astype(np.dtype(t).newbyteorder("S")) for t in ("f2", "f4", "f8"))]:
        with pytest.raises(TypeError, match=rf"^params\.b has dtype .*; {SUPPORTED}"):
            RULES[rule]({"a": A, "b": bad})


def test_nothing_is_allocated_for_a_parameter_before_it_is_looked_at():
    """The parameter has more elements than fit into memory."""
    with pytest.raises(ValueError, match=STRIDES):
        gs.SGD([A, as_strided(X, (2**28, 2**28), (0, 0))])
    with pytest.raises(ValueError, match=STRIDES):
        gs.Adam([A, as_strided(X, (2**28, 2**28), (0, 0))])


def locked(p):
    p.flags.writeable = False


def reshaped(p):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p.shape = p.shape[::-1]


def retyped(p):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p.dtype = "i8"


@EVERY_RULE
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (locked, ValueError, "is read-only"),
        (reshaped, ValueError, "was moved or reshaped"),
        (retyped, TypeError, "has dtype int64"),
    ],
)
def test_a_parameter_changed_after_construction(rule, change, error, words):
    p, q = np.ones(4), np.ones((2, 3))
    opt = RULES[rule]([p, q], **knobs(rule)[-1])
    opt.step([np.ones(4), np.ones((2, 3))])
    change(q)
    before = frozen(opt, p, q)
    for shape in {(2, 3), q.shape}:
        with pytest.raises(error, match=rf"^params\[1\] {words}"):
            opt.step([np.ones(4), np.ones(shape)])
    assert frozen(opt, p, q) == before
    opt.step([np.ones(4), None])
    assert opt.step_count == 2


@pytest.mark.parametrize("role", ["params", "grads"])
@pytest.mark.parametrize("times", [1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore")  # new versions of NumPy warn when shapes and strides are set
def test_no_change_of_shape_goes_unseen(role, times):
    p, g = np.ones((4, 6)), np.ones((4, 6))
    opt = gs.SGD(p, grads=g)
    array = {"params": p, "grads": g}[role]
    for shape in ((6, 4), (2, 12), (12, 2), (3, 8))[:times]:
        array.shape = shape
    with pytest.raises(ValueError, match=f"^{role} was moved or reshaped"):
        opt.step()
    assert (p == 1).all()


@pytest.mark.parametrize("role", ["params", "grads", "state momentum_buffer of params"])
@pytest.mark.filterwarnings("ignore")
def test_no_change_of_strides_goes_unseen(role):
    p, g = np.ones((4, 4)), np.ones((4, 4))
    opt = gs.Momentum(p, grads=g)
    array = {"params": p, "grads": g}.get(role, opt.state["momentum_buffer"])
    if role.startswith("state"):
        array.shape = (16,)
    else:
        array.strides = array.strides[::-1]
    with pytest.raises(ValueError, match=f"^{role} was moved or reshaped"):
        opt.step()
    assert (p == 1).all()


def test_a_byte_order_that_is_native_by_name_is_native():
    order = "<" if np.little_endian else ">"
    for dtype in (np.dtype("f4").newbyteorder(order), np.dtype("f4", metadata={"a": 1})):
        p, g = np.ones(3, dtype), np.ones(3, dtype)
        gs.SGD(p, lr=1.0).step(g)
        assert not p.any()


def test_numpy_refuses_to_resize_what_an_optimizer_writes():
    """Resizing would leave the kernel with freed memory."""
    p, g = np.ones(4), np.ones(4)
    opt = gs.Adam(p, grads=g)
    for array in (p, g, opt.state["exp_avg"]):
        with pytest.raises(ValueError, match="resize"):
            array.resize(10_000, refcheck=False)
    opt.step()
    del opt
    p.resize(8, refcheck=False)
    assert p.size == 8


FLAG = ([0, 1, None, "True", 1.0, np.array(1), np.array([True])], [])
NOT_NUMBERS = ["1", None, True, 1j, [0.1], np.array([0.1]), np.array(True), np.array("1"), np.True_]
NEGATIVE = [-1, -1e-300, math.nan, math.inf, -math.inf, np.float32("nan"), np.array(-1.0)]
PAIRS = [0.9, (0.9,), (0.9, 0.9, 0.9), "ab", None, {0.9, 0.5}, (0.9, "a"), (None, 0.9), (0.9, True)]
# Invalid arguments for each option: by type, by value.
BAD_OPTIONS = {
    **dict.fromkeys(["lr", "l2", "weight_decay", "eps", "eps_root", "lr_decay"], (NOT_NUMBERS, NEGATIVE)),
    "clip_value": (["1", [], True], [0.0, -1.0, float("inf"), float("nan")]),
    **dict.fromkeys(["initial_accumulator", "initial_scale"], ([*NOT_NUMBERS, schedule], NEGATIVE)),
    "momentum_decay": ([x for x in NOT_NUMBERS if x is not None], NEGATIVE),
    **dict.fromkeys(["momentum", "dampening", "rho"], (NOT_NUMBERS, [*NEGATIVE, 1.0000001, 2])),
    "betas": (PAIRS, [(x, 0.9) for x in [*NEGATIVE, 1]] + [(0.9, x) for x in [*NEGATIVE, 1]]),
    **dict.fromkeys(
        ["lr_in_velocity", "dampen_first", "float32_product", "lookahead", "centered", "amsgrad", "maximize"], FLAG
    ),
    **dict.fromkeys(["frozen", "ema_correction"], FLAG),
    "ema": ([x for x in NOT_NUMBERS if x is not None], [*NEGATIVE, 1, 2]),
    **dict.fromkeys(["flush_subnormals", "bias_correction", "eps_hat", "amsgrad_corrected", "master"], FLAG),
    "state_dtype": ([0, True, 8, np.float32, np.dtype("f4"), b"q8", ["q8"]], ["", "Q8", "fp8", "int8", "float8"]),
    "stochastic_rounding": (
        ["1", True, 1.0, 1j, [1], np.array([1]), np.array(1.0), np.float64(1)],
        [-1, 2**53 + 1, 10**400],
    ),
    "min_8bit_size": (
        ["1", None, True, 1.0, 1j, [1], np.array([1]), np.array(1.0), np.float64(1)],
        [-1, 2**62 + 1, 10**400],
    ),
}


def option_names(rule):
    return [name for name in inspect.signature(RULES[rule]).parameters if name not in WHOLE]


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in RULES for name in option_names(rule)])
def test_a_bad_option(rule, name):
    """Constructor, group, assignment, checkpoint and functional kernel raise errors that name owner and option."""
    cls = RULES[rule]
    opt = cls([{"params": A.copy()}, {"params": B.copy()}], **knobs(rule)[-1])
    before = frozen(opt)
    saved = opt.state_dict()
    for error, values in zip((TypeError, ValueError), BAD_OPTIONS[name], strict=True):
        for value in values:
            with pytest.raises(error, match=rf"^{cls.__name__}: {name}\b.* must be .*got"):
                cls(A, **{name: value})
            with pytest.raises(error, match=rf"^{cls.__name__}, group 1: {name}\b.* must be"):
                cls([{"params": A}, {"params": B, name: value}])
            settles = cls.known[name].fixed  # such options cannot change at all
            with pytest.raises(
                (TypeError, ValueError) if settles else error,
                match=rf"^{cls.__name__}.*: {name}\b.* (must be|determines)",
            ):
                opt.groups[1][name] = value
            if not (name == "lr" and value is None):  # in a checkpoint None stands for a schedule, which is not saved
                with pytest.raises((TypeError, ValueError), match=name):
                    opt.load_state_dict({**saved, "groups": [saved["groups"][0], {**saved["groups"][1], name: value}]})
            if not settles and name not in (
                "frozen",
                "ema",
            ):  # bare kernels get arrays instead, and are not called for frozen ones
                with pytest.raises(error, match=rf"^{rule}_: {name}\b.* must be"):
                    getattr(functional, f"{rule}_")(A, B, **{name: value})
    if cls.known[name].follows_schedules:  # which a checkpoint does not hold, and a bare kernel does not call
        with pytest.raises(TypeError, match=rf": {name} must be .*got <function"):
            opt.load_state_dict({**saved, "groups": [saved["groups"][0], {**saved["groups"][1], name: schedule}]})
        if name != "ema":
            with pytest.raises(TypeError, match=rf"^{rule}_: {name} must be .*got <function"):
                getattr(functional, f"{rule}_")(A, B, **{name: schedule})
    assert frozen(opt) == before
    if name == "lr":
        for value in (-1.0, math.nan, "1"):
            with pytest.raises((TypeError, ValueError), match=f"^{cls.__name__}: lr must be"):
                opt.lr = value
        assert frozen(opt) == before


@pytest.mark.parametrize("value", [10**400, Fraction(10**400)], ids=["int", "fraction"])
def test_an_option_too_large_for_a_float(value):
    for name, bad in {"lr": value, "betas": (0.9, value), "l2": value}.items():
        with pytest.raises(ValueError, match=f"^Adam: {name}"):
            gs.Adam(A, **{name: bad})
    with pytest.raises(ValueError, match=r"lr\(0\) must be a finite number >= 0"):
        gs.SGD(A.copy(), lr=lambda _: value).step(A)


@EVERY_RULE
def test_an_unknown_option(rule):
    cls = RULES[rule]
    opt = cls(A.copy())
    with pytest.raises(TypeError, match="learning_rate"):
        cls(A, learning_rate=1)
    with pytest.raises(TypeError, match="'learning_rate'; did you mean 'lr'"):
        opt.groups[0]["learning_rate"] = 1
    with pytest.raises(TypeError, match="'learning_rate'; did you mean 'lr'"):
        opt.groups[0].update(lr=3.0, learning_rate=1)
    with pytest.raises(TypeError, match="learning_rate"):
        gs.SGD.preset("torch", A, learning_rate=1)
    assert opt.groups[0]["lr"] == opt.lr == inspect.signature(cls).parameters["lr"].default
    with pytest.raises((TypeError, AttributeError)):
        del opt.groups[0]["lr"]


@pytest.mark.parametrize(
    ("cls", "option"),
    [(gs.Adam, {"amsgrad": True}), (gs.RMSProp, {"momentum": 0.5}), (gs.RMSProp, {"centered": True})],
)
def test_an_option_that_would_add_or_drop_a_state(cls, option):
    for now, then in (({}, option), (option, {name: type(value)(0) for name, value in option.items()})):
        opt = cls(A.copy(), **now)
        before = frozen(opt)
        with pytest.raises(ValueError, match="states are kept cannot change"):
            opt.groups[0].update(lr=0.5, **then)
        assert frozen(opt) == before


def raises(_):
    raise KeyError("no such epoch")


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -1.0, None, "1", True, 1j, np.array([1.0]), np.array(-1.0), [1.0]]
)
@pytest.mark.parametrize("group", [0, 1])
def test_a_schedule_that_returns_no_rate(value, group):
    rates = [lambda _: 0.1, lambda _: 0.1]
    rates[group] = lambda step: 0.1 if step == 0 else value
    opt = gs.Nadam([{"params": A.copy(), "lr": rates[0]}, {"params": B.copy(), "lr": rates[1]}])
    opt.step([A, B])
    before = frozen(opt)
    error = ValueError if np.ndim(value) == 0 and type(value) in (int, float, np.ndarray) else TypeError
    with pytest.raises(error, match=r"lr\(1\) must be a finite number >= 0, got"):
        opt.step([A, B])
    assert frozen(opt) == before


def test_a_schedule_that_raises():
    three = Three("nadam")
    three.opt.lr = raises
    three.refuses(three.grads(), KeyError, "no such epoch")
    nag = gs.NAG(A.copy(), lr=raises, lookahead=True)
    before = frozen(nag)
    with pytest.raises(KeyError, match="no such epoch"), nag.lookahead():
        pytest.fail("entered")
    assert frozen(nag) == before
    nag.lr = 0.1
    nag.step(A)


def interleaved():
    """Parameters that interleave in one buffer without sharing an element, and the buffer."""
    x, square = np.linspace(-1, 1, 720), np.linspace(-1, 1, 36)
    cube = x.reshape(8, 9, 10)
    record = np.zeros(5, [("a", "u1"), ("x", "f8"), ("y", "f4"), ("b", "u1"), ("z", "f4")])
    return {
        "halves": ([x[::2], x[1::2]], x),
        "reversed": ([x[::-2], x[-2::-2]], x),
        "columns": ([cube[:, :, i] for i in range(10)], x),
        "lattice": ([cube[i::2, j::3, k::2] for i in range(2) for j in range(3) for k in range(2)], x),
        "transposed": ([cube[::2].T, cube[1::2].swapaxes(0, 1)], x),
        "diagonals": ([square[::7], square[1::7], square[6::7]], square),
        "misaligned fields": ([record["x"], record["y"], record["z"]], record),
    }


@pytest.mark.parametrize("layout", interleaved())
def test_interleaved_views_are_fine(layout):
    """The results have the reference's bits, and no other byte of the buffer is written."""
    for rule in RULES:
        params, buffer = interleaved()[layout]
        twins, expected = interleaved()[layout]
        own = [p.copy() for p in params]
        opt, oracle = (table[rule](p, **knobs(rule)[-1]) for table, p in ((RULES, params), (REFERENCE, own)))
        for step in range(3):
            grads = [np.linspace(-2, 2 + step, p.size).astype(p.dtype).reshape(p.shape) for p in params]
            opt.step(grads)
            oracle.step(grads)
        for twin, values in zip(twins, own, strict=True):
            twin[...] = values
        assert buffer.tobytes() == expected.tobytes(), rule


def test_gradients_may_lie_among_the_parameters():
    x = np.arange(12.0)
    opt = gs.SGD([x[::4], x[1::4]], lr=1.0)
    opt.step([x[2::4], x[3::4]])
    assert x.tolist() == [-2, -2, 2, 3, -2, -2, 6, 7, -2, -2, 10, 11]


def random_views(seed, cube, shapes):
    """Random views of these shapes in a cube, with axes in any order and direction."""
    rng = np.random.default_rng(seed)
    for shape in shapes:
        slices = []
        for have, want in zip(cube.shape, shape, strict=True):
            step = rng.integers(1, (have - 1) // want + 1)
            start = rng.integers(have - step * (want - 1))
            slices.append(slice(start, start + step * (want - 1) + 1, step))
        view = cube.transpose(rng.permutation(3))[tuple(slices)]
        yield view[:: rng.choice([-1, 1]), :, :: rng.choice([-1, 1])]


def test_any_views_are_refused_where_they_share_an_element_and_stepped_where_they_do_not():
    refused = 0
    for seed in range(500):
        rng = np.random.default_rng([seed, 1])
        cube, expected = np.tile(rng.standard_normal((8, 8, 8)), (2, 1, 1, 1))
        shapes = np.tile(rng.integers(1, 4, (2, 3)), (2, 1))
        *params, g, h = random_views(seed, cube, shapes)
        if any(np.shares_memory(a, b) for a, b in [params, *((p, x) for p in params for x in (g, h))]):
            refused += 1
            with pytest.raises(ValueError, match=r"overlaps|is the same array"):
                gs.SGD(params, lr=1.0).step([g, h])
        else:
            gs.SGD(params, lr=1.0).step([g, h])
            first, second, *grads = random_views(seed, expected, shapes)
            first -= grads[0]
            second -= grads[1]
        assert same_bits(cube, expected)
    assert 100 < refused < 400


class Units(np.ndarray):
    """A subclass that adds nothing."""


def exotic():
    """Unusual but valid arrays."""
    x = np.linspace(-1, 1, 720)
    record = np.zeros(7, [("a", "u1"), ("x", "f4"), ("y", "f8")])
    return {
        "no axes": np.array(0.5),
        "no elements": np.zeros((3, 0, 2)),
        "32 axes": x[:512].reshape((1,) * 11 + (2,) * 9 + (1,) * 12),
        "fortran": np.asfortranarray(x.reshape(8, 90)),
        "backwards": x.reshape(8, 90)[::-2, ::-1],
        "misaligned f4": record["x"],
        "misaligned f8": record["y"],
        "record": np.rec.array(record).y,
        "subclass": x[:9].view(Units),
        "wide strides": as_strided(x, (3, 2), (160, 24)),
        "interlaced strides": as_strided(x, (2, 3), (24, 16)),  # elements 0, 2, 4 and 3, 5, 7
    }


@pytest.mark.parametrize("kind", exotic())
def test_arrays_of_every_kind_are_taken_in_place(kind):
    for rule in RULES:
        p = exotic()[kind]
        own = np.array(p)
        opt, oracle = RULES[rule](p, **knobs(rule)[-1]), REFERENCE[rule](own, **knobs(rule)[-1])
        for step in range(3):
            g = np.linspace(-2, 2 + step, p.size).astype(p.dtype).reshape(p.shape)
            opt.step(g)
            oracle.step(g)
        assert same_bits(np.array(p), own), rule


def test_a_file_is_taken_in_place(tmp_path):
    path = tmp_path / "parameters"
    np.ones(6, "f4").tofile(path)
    p = np.memmap(path, "f4", "r+", shape=(3, 2))
    gs.SGD(p, lr=0.5).step(np.ones((3, 2), "f4"))
    p.flush()
    assert np.fromfile(path, "f4").tolist() == [0.5] * 6
    with pytest.raises(ValueError, match="params is read-only"):
        gs.SGD(np.memmap(path, "f4", "r"))


def test_a_step_keeps_no_reference():
    p, g, bad = np.ones(3), np.ones(3), np.ones(4)
    lists = [[g], [bad], [p], [g, bad]]
    optimizers = [cls([p], **knobs(rule)[-1]) for rule, cls in RULES.items()]
    for opt in optimizers:
        before = [sys.getrefcount(thing) for thing in (p, g, bad, *lists)]
        for _ in range(10):
            opt.step(lists[0])
            for refused in lists[1:]:
                with pytest.raises(ValueError, match="grads"):
                    opt.step(refused)
        del refused
        assert before == [sys.getrefcount(thing) for thing in (p, g, bad, *lists)], opt


@EVERY_RULE
def test_an_optimizer_goes_with_its_last_reference(rule):
    """Parameters and states are freed without the garbage collector."""
    opt = RULES[rule]([A.copy()], **knobs(rule)[-1])
    opt.step([A])
    gone = weakref.ref(opt)
    gc.disable()
    try:
        del opt
        assert gone() is None
    finally:
        gc.enable()

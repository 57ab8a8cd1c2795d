"""Errors of storage options name the argument, say what to do, and leave everything unchanged."""

import sys

import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from gradstep import _libraries, q8
from gradstep import functional as F
from tests.table import FLOATS, HALVES, RULES, say, stored_problem
from tests.test_refusals import frozen

EVERY_RULE = pytest.mark.parametrize("rule", RULES)
NATIVE, WIDE = np.ones(3, "f4"), np.ones(3)
HALF, BRAIN = np.ones(3, "f2"), np.ones(3, "bfloat16")
NOTHING = r"stochastic_rounding has nothing to round: it is for float16 and bfloat16 .*and there are none$"
# A class, its parameters and options, the error, and part of its message.
REFUSED = [
    (
        gs.Adam,
        NATIVE,
        {"state_dtype": "fp8"},
        ValueError,
        "state_dtype must be one of float32, bfloat16, float16, q8, or None, got 'fp8'",
    ),
    (gs.Adam, NATIVE, {"state_dtype": "int8"}, ValueError, "state_dtype must be one of .*, got 'int8'"),
    (gs.Adam, NATIVE, {"state_dtype": np.float32}, TypeError, "state_dtype must be one of .*, or None, got"),
    (gs.SGD, BRAIN, {"state_dtype": "bfloat16"}, ValueError, "'bfloat16' has no effect: SGD keeps no state"),
    (gs.SGD, BRAIN, {"state_dtype": "q8"}, ValueError, "'q8' has no effect: SGD keeps no state"),
    (gs.SGD, BRAIN, {"state_dtype": "float32"}, ValueError, "'float32' has no effect: SGD keeps no state"),
    (gs.RMSProp, NATIVE, {"state_dtype": "q8", "centered": True}, ValueError, "centered=True .*; use bfloat16"),
    (gs.Adam, NATIVE, {"state_dtype": "q8", "amsgrad": True}, ValueError, "amsgrad=True .*; use bfloat16"),
    (gs.Adam, NATIVE, {"master": True}, ValueError, "master=True is for float16 and bfloat16 parameters"),
    (gs.Adam, WIDE, {"master": True}, ValueError, "master=True is for float16 and bfloat16 parameters"),
    (gs.Adam, [NATIVE, WIDE], {"master": True}, ValueError, "master=True is for float16 and bfloat16 parameters"),
    (gs.Adam, NATIVE, {"stochastic_rounding": 1}, ValueError, NOTHING),
    (gs.Adam, WIDE, {"stochastic_rounding": 1}, ValueError, NOTHING),
    (gs.SGD, HALF, {"stochastic_rounding": 1, "master": True}, ValueError, NOTHING),
    (gs.Adam, BRAIN, {"stochastic_rounding": 1, "master": True}, ValueError, NOTHING),
    *(
        (gs.Adam, params, {"state_dtype": state}, TypeError, r"params.* is float64, .*; omit state_dtype")
        for params in (WIDE, [NATIVE, WIDE], {"a": HALF, "b": WIDE})
        for state in ("float32", "bfloat16", "q8")
    ),
]


@pytest.mark.parametrize(("cls", "params", "options", "error", "words"), REFUSED)
def test_what_has_nothing_to_act_on_or_cannot_be(cls, params, options, error, words):
    """Also as the options of one group among others."""
    before = [a.tobytes() for a in (NATIVE, WIDE, HALF, BRAIN)]
    with pytest.raises(error, match=f"^{cls.__name__}: .*{words}"):
        cls(params, **options)
    with pytest.raises(error, match=f"^{cls.__name__}.*: .*{words}"):
        cls([{"params": np.ones(2, "bfloat16")}, {"params": params, **options}])
    assert before == [a.tobytes() for a in (NATIVE, WIDE, HALF, BRAIN)]


@pytest.mark.parametrize(
    ("dtype", "options", "changes"),
    [
        ("bfloat16", {}, {"stochastic_rounding": 1}),
        ("bfloat16", {"stochastic_rounding": 1}, {"stochastic_rounding": None}),
        ("float32", {}, {"stochastic_rounding": 1}),
        ("float32", {"state_dtype": "q8"}, {"stochastic_rounding": 1}),
        ("bfloat16", {}, {"master": True}),
        ("bfloat16", {"master": True}, {"master": False}),
        ("float32", {}, {"state_dtype": "bfloat16"}),
        ("float32", {"state_dtype": "q8"}, {"state_dtype": None}),
        ("float32", {"state_dtype": "q8"}, {"min_8bit_size": 0}),
    ],
    ids=str,
)
def test_what_is_kept_and_how_it_is_rounded_cannot_change(dtype, options, changes):
    p = np.ones(300, dtype)
    opt = gs.Adam(p, **options)
    before = frozen(opt, p)
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}.*(cannot change|not be turned on or off)"):
        opt.groups[0].update(lr=0.5, **changes)
    assert frozen(opt, p) == before
    assert opt.lr == 1e-3
    assert dict(opt.groups[0]) | options == dict(opt.groups[0])


def test_another_seed_is_another_run_from_then_on():
    runs = []
    for then in (1, 2):
        p, grads = stored_problem(1000, "bfloat16", "bfloat16")
        opt = gs.Adam(p := p.copy(), stochastic_rounding=1)
        opt.step(grads[0])
        same = p.tobytes()
        opt.groups[0]["stochastic_rounding"] = then
        opt.step(grads[1])
        runs.append((same, p.tobytes()))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] != runs[1][1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bfloat16_states_without_the_package_that_has_the_type(monkeypatch, dtype):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    _libraries.numpy_dtype.cache_clear()
    p = np.ones(3, dtype)
    with pytest.raises(ModuleNotFoundError, match=r'ml_dtypes: pip install "gradstep\[bfloat16\]"'):
        gs.Adam(p, state_dtype="bfloat16")
    assert np.all(p == 1)
    for options in ({}, {"state_dtype": "q8", "min_8bit_size": 0}, {"state_dtype": "float32"}):
        gs.Adam(p, **options).step(np.ones(3, dtype))


@EVERY_RULE
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_of_as_many_bytes(rule, dtype):
    """No 8 or 16 bits are mistaken for others."""
    p = np.ones(3, dtype)
    opt = RULES[rule]([p])
    before = frozen(opt, p)
    for bad in (np.ones(3, "i2"), np.ones(3, "u2"), np.ones(3, ml_dtypes.float8_e5m2), np.ones(3, "i1")):
        with pytest.raises(TypeError, match=r"^grads\[0\] has dtype .*; supported are float32, float64, float16, bfl"):
            opt.step([bad])
    assert frozen(opt, p) == before


@pytest.mark.parametrize("dtype", HALVES)
def test_byte_swapped_halves(dtype):
    swapped = np.ones(3, dtype).view("u2").byteswap().view(np.dtype(dtype).newbyteorder("S"))
    with pytest.raises(TypeError, match=r"params has dtype .*byte-swapped; supported are"):
        gs.SGD(swapped)
    with pytest.raises(TypeError, match=r"grads has dtype .*byte-swapped; supported are"):
        gs.SGD(np.ones(3, "f4")).step(swapped)


P, G, H, D = np.ones((20, 15), "f4"), np.ones((20, 15), "f4"), np.ones((20, 15), "f2"), np.ones((20, 15))
C, U, S = np.zeros((20, 15), "i1"), np.zeros((20, 15), "u1"), np.zeros(2, "f4")
BUFFER = np.zeros(1000, "f4")
CODES = (
    "state momentum_buffer of p must be int8 codes without gaps in C order, of a float32, float16 or bfloat16 parameter"
)
SCALES = (
    "the scales of state momentum_buffer of p must be float32, of one axis, one for each 256 elements, without gaps"
)
MASTER = "state master of p must be float32, and its parameter of 16 bits"
PAIRS = {
    "uint8 for what has a sign": (lambda: F.momentum_(P, G, (U, S)), TypeError, CODES),
    "int8 for a second moment": (lambda: F.adagrad_(P, G, (C, S)), TypeError, "state sum of p must be uint8 codes"),
    "int8 for the second": (lambda: F.adam_(P, G, (C, S), (C, S)), TypeError, "state exp_avg_sq of p must be uint8"),
    "int16": (lambda: F.momentum_(P, G, (C.astype("i2"), S)), TypeError, "momentum_buffer of p has dtype int16"),
    "Fortran order": (lambda: F.momentum_(P, G, (np.asfortranarray(C), S)), TypeError, CODES),
    "gaps": (lambda: F.momentum_(P, G, (np.zeros((20, 30), "i1")[:, ::2], S)), TypeError, CODES),
    "backwards": (lambda: F.momentum_(P, G, (C[::-1], S)), TypeError, CODES),
    "another shape": (lambda: F.momentum_(P, G, (C.ravel(), S)), ValueError, "must have its parameter's shape"),
    "codes of a float64": (lambda: F.momentum_(D, D + 1, (C, S)), TypeError, CODES),
    "too few scales": (lambda: F.momentum_(P, G, (C, S[:1])), TypeError, SCALES),
    "too many scales": (lambda: F.momentum_(P, G, (C, np.zeros(3, "f4"))), TypeError, SCALES),
    "float64 scales": (lambda: F.momentum_(P, G, (C, np.zeros(2))), TypeError, SCALES),
    "strided scales": (lambda: F.momentum_(P, G, (C, np.zeros(4, "f4")[::2])), TypeError, SCALES),
    "scales of two axes": (lambda: F.momentum_(P, G, (C, np.zeros((2, 1), "f4"))), TypeError, SCALES),
    "misaligned scales": (lambda: F.momentum_(P, G, (C, np.zeros(9, "u1")[1:].view("f4"))), TypeError, SCALES),
    "no scales": (lambda: F.momentum_(P, G, (C,)), TypeError, "must be an array, or a pair of codes and their scales"),
    "bare codes": (
        lambda: F.momentum_(P, G, C),
        TypeError,
        "state momentum_buffer of p is int8, .* or codes with their scales",
    ),
    "a list of scales": (lambda: F.momentum_(P, G, (C, [1.0, 1.0])), TypeError, "must be a NumPy array, not list"),
    "float64 state": (
        lambda: F.momentum_(P, G, G.astype("f8")),
        TypeError,
        "float64, but must be float32, bfloat16 or f",
    ),
    "bfloat16 of a float64": (lambda: F.momentum_(D, D + 1, D.astype("bfloat16")), TypeError, "but must be float64"),
    "float16 master": (lambda: F.sgd_(H, G, master=G.astype("f2")), TypeError, MASTER),
    "float64 master": (lambda: F.sgd_(H, G, master=D), TypeError, MASTER),
    "master of float32": (lambda: F.sgd_(P, G, master=G.copy()), TypeError, MASTER),
    "master as a flag": (lambda: F.sgd_(H, G, master=True), TypeError, "state master of p must be a NumPy array"),
    "master of another shape": (lambda: F.sgd_(H, G, master=G[1:]), ValueError, "must have its parameter's shape"),
    "nothing to round": (lambda: F.sgd_(P, G, stochastic_rounding=1), ValueError, f"^sgd_: {NOTHING}"),
    "a master to round": (
        lambda: F.sgd_(H, G, master=G.copy(), stochastic_rounding=1),
        ValueError,
        f"^sgd_: {NOTHING}",
    ),
    # Arrays that share memory:
    "scales with scales": (
        lambda: F.adam_(P, G, (C, S), (U, S)),
        ValueError,
        "scales of .*same array as the scales of",
    ),
    "codes with codes": (
        lambda: F.adam_(P, G, (C, S), (C.view("u1"), S + 1)),
        ValueError,
        "state exp_avg_sq of p overlaps state exp_avg of p",
    ),
    "codes with the parameter": (
        lambda: F.momentum_(BUFFER[:300], G.ravel(), (BUFFER[:75].view("i1"), S)),
        ValueError,
        "state momentum_buffer of p overlaps p",
    ),
    "scales with the parameter": (
        lambda: F.momentum_(BUFFER[:300], G.ravel(), (C.ravel(), BUFFER[299:301])),
        ValueError,
        "scales of state momentum_buffer of p overlaps? p",
    ),
    "scales with their codes": (
        lambda: F.momentum_(P.ravel(), G.ravel(), (BUFFER[:75].view("i1"), BUFFER[74:76])),
        ValueError,
        "scales of state momentum_buffer of p overlaps? state momentum_buffer of p",
    ),
    "master with the parameter": (
        lambda: F.sgd_(BUFFER[:150].view("f2"), G.ravel(), master=BUFFER[:300]),
        ValueError,
        "state master of p overlaps p",
    ),
    "master with a state": (
        lambda: F.momentum_(H.ravel(), G.ravel(), BUFFER[:300], master=BUFFER[100:400]),
        ValueError,
        "state master of p overlaps state momentum_buffer of p",
    ),
    "gradient with the master": (lambda: F.sgd_(H, G, master=G), ValueError, "g overlaps state master of p"),
    "gradient with the scales": (
        lambda: F.momentum_(P.ravel(), BUFFER[:300], (C.ravel(), BUFFER[10:12])),
        ValueError,
        "g overlaps the scales of state momentum_buffer of p",
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_arrays_that_do_not_go_together(pair):
    call, error, words = PAIRS[pair]
    before = [a.tobytes() for a in (P, G, H, D, C, U, S, BUFFER)]
    with pytest.raises(error, match=words):
        call()
    assert before == [a.tobytes() for a in (P, G, H, D, C, U, S, BUFFER)]


def reshaped(array):
    array.shape = (*array.shape, 1)


def locked(array):
    array.flags.writeable = False


def retyped(array):
    array.dtype = "V4" if array.itemsize == 4 else "u1" if array.dtype == "i1" else "i1"


@pytest.mark.filterwarnings("ignore")  # new versions of NumPy warn when shapes and types are set
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (reshaped, ValueError, "moved or reshaped"),
        (locked, ValueError, "read-only"),
        (retyped, TypeError, "dtype"),
    ],
)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale", "master"])
def test_what_is_kept_was_changed_after_the_optimizer_was_made(name, change, error, words):
    p, g = np.ones(600, "bfloat16"), np.ones(600, "bfloat16")
    opt = gs.Adam(p, state_dtype="q8", min_8bit_size=0, master=True)
    bound = gs.Adam(np.ones(600, "bfloat16"), state_dtype="q8", min_8bit_size=0, master=True, grads=g)
    for each, grads in ((opt, (g,)), (bound, ())):
        each.step(*grads)
        change(each.state[name])
        before = frozen(each, p)
        called = f"the scales of state {name.removesuffix('_scale')}" if name.endswith("_scale") else f"state {name}"
        with pytest.raises(error, match=f"^{called} of params .*{words}"):
            each.step(*grads)
        assert frozen(each, p) == before
        assert each.step_count == 1


def test_a_gradient_that_overlaps_what_is_kept():
    opt = gs.Adam(np.ones(256, "bfloat16"), state_dtype="q8", min_8bit_size=0, master=True)
    before = frozen(opt)
    with pytest.raises(ValueError, match="grads overlaps state master of params, which the step writes"):
        opt.step(opt.state["master"][::-1])
    small = gs.Momentum(np.ones(1, "f4"), state_dtype="q8", min_8bit_size=0)
    with pytest.raises(ValueError, match="grads overlaps the scales of state momentum_buffer of params"):
        small.step(small.state["momentum_buffer_scale"])
    assert frozen(opt) == before
    assert small.step_count == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: q8.encode(np.ones(3)),
        lambda: q8.encode([1.0, 2.0]),
        lambda: q8.encode(np.ones(3, "f2")),
        lambda: q8.decode(np.zeros(300, "i1"), np.zeros(1, "f4")),
        lambda: q8.decode(np.zeros(300, "i1"), np.zeros(3, "f4")),
        lambda: q8.decode(np.zeros(300, "i1"), np.zeros(2)),
        lambda: q8.decode(np.zeros(300, "i1"), np.zeros((1, 2), "f4")),
        lambda: q8.decode(np.zeros(300, "i2"), np.zeros(2, "f4")),
        lambda: q8.decode(np.zeros(300, "f4"), np.zeros(2, "f4")),
        lambda: q8.decode(np.zeros(300, "i1"), [0.0, 0.0]),
    ],
)
def test_codes_values_and_scales_that_do_not_go_together(call):
    with pytest.raises(TypeError, match=r"codes|values|scales"):
        call()


@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"state_dtype": "q8", "min_8bit_size": 0}], ids=say)
def test_numpy_refuses_to_resize_what_is_kept(options):
    opt = gs.Momentum(np.ones(300, "bfloat16"), master=True, **options)
    for array in opt.state.values():
        with pytest.raises(ValueError, match="resize"):
            array.resize(100_000, refcheck=False)


def test_the_lookahead_refuses_what_a_step_would():
    """All parameters keep their bits."""
    p = np.ones(300, "bfloat16")
    opt = gs.NAG(p, lookahead=True, state_dtype="q8", min_8bit_size=0, master=True)
    opt.step(np.ones(300, "bfloat16"))
    before = frozen(opt, p)
    opt.state["master"].flags.writeable = False
    with pytest.raises(ValueError, match="state master of params is read-only"), opt.lookahead():
        pytest.fail("entered")
    assert frozen(opt, p) == before
    opt.state["master"].flags.writeable = True
    with opt.lookahead(), pytest.raises(RuntimeError, match="leave it first"):
        opt.step(np.ones(300, "bfloat16"))
    assert frozen(opt, p) == before


def test_a_common_option_need_not_act_on_every_group():
    """A common option must have an effect on at least one group."""
    half, wide = np.ones(2, "bfloat16"), np.ones(2)
    for options in ({"master": True}, {"stochastic_rounding": 1}, {"state_dtype": "bfloat16"}):
        gs.Adam([{"params": half}, {"params": wide}], **options)
        with pytest.raises((TypeError, ValueError), match=r"^Adam: "):
            gs.Adam([{"params": wide}, {"params": np.ones(3)}], **options)


@pytest.mark.parametrize("bad", [np.nan, -1.0, 0.1, 1e-45, np.inf, 0.0])
def test_scales_that_no_step_writes(bad):
    """Checkpoints and functional kernels refuse invalid scales and change nothing."""
    p = np.ones(300, "f4")
    opt = gs.Adam(p, state_dtype="q8", min_8bit_size=0)
    opt.step(p.copy())
    saved = opt.state_dict()
    saved["state"][""]["exp_avg_sq_scale"][1] = bad
    before = [a.tobytes() for a in opt.state.values()]
    with pytest.raises(ValueError, match=r"\[''\]\['exp_avg_sq_scale'\] must be powers of two"):
        opt.load_state_dict(saved)
    m, v = ((opt.state[name], opt.state[f"{name}_scale"].copy()) for name in ("exp_avg", "exp_avg_sq"))
    v[1][1] = bad
    with pytest.raises(ValueError, match=r"^adam_: the scales of exp_avg_sq must be powers of two"):
        F.adam_(p, p.copy(), m, v)
    assert before == [a.tobytes() for a in opt.state.values()]


def test_what_is_settled_is_not_loaded():
    opt = gs.Adam(np.ones(8, "f4"))
    opt.load_state_dict(gs.Adam(np.ones(8, "f4"), state_dtype="q8", min_8bit_size=100).state_dict())
    assert opt.groups[0]["state_dtype"] is None
    assert opt.groups[0]["min_8bit_size"] == 4096


def test_bare_kernels_refuse_what_q8_is_too_coarse_for():
    p = np.ones(3, "f4")
    coded = [(np.zeros(3, "u1"), np.zeros(1, "f4")), (np.zeros(3, "i1"), np.zeros(1, "f4"))]
    with pytest.raises(ValueError, match=r"^rmsprop_: centered=True .*; use bfloat16"):
        F.rmsprop_(p, p.copy(), *coded, centered=True)

"""Scaled, clipped, skipped and refused steps have the reference's bits; those that are not taken change no byte."""

import copy
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from gradstep import reference
from tests.table import (
    ALL_FLOATS,
    DTYPES,
    ISAS,
    REFERENCE,
    RULES,
    STORAGES,
    THREADS,
    knobs,
    same_bits,
    stored_cases,
    stored_problem,
    widest,
)

SIZES = [3, 0, 300, 4097, 9000]
NUMBERS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def problem(dtype, seed=1, steps=5):
    rng = np.random.default_rng(seed)
    params = [rng.standard_normal(n).astype(NUMBERS[dtype]) for n in SIZES]
    grads = [[(10.0**e * rng.standard_normal(n)).astype(NUMBERS[dtype]) for n in SIZES] for e in range(-2, steps - 2)]
    return params, grads


def everything(opt, params):
    """All bytes and numbers that a step may change."""
    arrays = [opt.state[name] for name in opt.state]
    flat = [a.tobytes() for nest in [params, *arrays] for a in nest if a is not None]
    clocks = opt._engine.stepper.clocks
    return flat, clocks, opt.step_count


def assert_like_reference(cls, ref_cls, dtype, options, scales):
    params, grads = problem(dtype)
    ours, theirs = [p.copy() for p in params], [p.copy() for p in params]
    opt, ref = cls(ours, **options), ref_cls(theirs, **options)
    for step, g in enumerate(grads):
        scale = scales[step % len(scales)]
        result, expected = opt.step(g, grad_scale=scale), ref.step(g, grad_scale=scale)
        assert result.applied == expected.applied
        assert result.step == expected.step == opt.step_count
        for name in ("grad_norm", "clip_factor"):
            mine, other = getattr(result, name), getattr(expected, name)
            assert mine == other or (mine != mine and other != other), (step, name)
        assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True)), step
        for name, states in ref.state.items():
            for a, b in zip(opt.state[name], states, strict=True):
                assert (a is None and b is None) or same_bits(a, b), (step, name)


PASSES = [
    {},
    {"clip_norm": 1.0},
    {"clip_per_tensor": 1.0},
    {"clip_per_tensor": 30.0, "clip_value": 0.25},
    {"on_nonfinite": "skip"},
    {"clip_norm": 5.0, "on_nonfinite": "raise", "clip_value": 0.01},
]


@pytest.mark.parametrize("dtype", ALL_FLOATS)
@pytest.mark.parametrize("options", PASSES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_scaled_and_clipped_steps(rule, options, dtype):
    assert_like_reference(
        RULES[rule], REFERENCE[rule], dtype, {**knobs(rule)[-1], **options}, [1.0, 65536.0, 3.0, 1e-3]
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", THREADS)
def test_everywhere(isa, threads):
    before = gs.get_num_threads()
    gs._core.use_isa(isa)
    gs.set_num_threads(threads)
    gs._core.share_all(True)
    try:
        for options in PASSES:
            assert_like_reference(gs.Adam, reference.Adam, "float32", options, [1.0, 7.0])
    finally:
        gs._core.share_all(False)
        gs.set_num_threads(before)
        gs._core.use_isa("")


@pytest.mark.parametrize("case", stored_cases(settings=("widest",)), ids=str)
def test_a_skipped_step_changes_no_byte(case):
    """For all rules and storage types: first steps and later ones, skipped and raised, with and without clipping."""
    size = 4096 + 700
    p, grads = stored_problem(size, case.storage.param, case.grad)
    grads = [np.where(np.isfinite(g.astype(np.float64)), g, g.dtype.type(1)).astype(g.dtype) for g in grads]
    for mode, clip in (("skip", None), ("raise", None), ("skip", 1.0)):
        params = [p.copy(), p[:5].copy()]
        opt = RULES[case.rule](params, **case.options(), clip_norm=clip, on_nonfinite=mode)
        for g in grads:
            bad = g.copy()
            bad[4321] = np.nan
            bad[4400] = np.inf
            before = everything(opt, params)
            if mode == "skip":
                result = opt.step([bad, g[:5]])
                assert not result.applied
                assert result.nonfinite == ("[0]", 4321)
            else:
                with pytest.raises(FloatingPointError, match=r"grads\[0\] is not finite at \[4321\], flat index 4321"):
                    opt.step([bad, g[:5]])
            assert everything(opt, params) == before
            assert opt.step([g, g[:5]]).applied
            assert everything(opt, params) != before
        theirs = [p.copy(), p[:5].copy()]
        ref = REFERENCE[case.rule](theirs, **case.options(), clip_norm=clip)
        for g in grads:
            ref.step([g, g[:5]])
        assert all(same_bits(a, b) for a, b in zip(params, theirs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_the_first_bad_element_is_named(dtype, bad):
    params = {"a": np.zeros((50, 70), dtype), "b": {"c": np.zeros((30, 1000), dtype), "d": np.zeros(0, dtype)}}
    grads = copy.deepcopy(params)
    opt = gs.SGD(params, on_nonfinite="skip")
    assert opt.step(grads).nonfinite is None
    grads["b"]["c"] = np.asfortranarray(grads["b"]["c"])  # the index is that of C order
    for place in [(29, 999), (7, 500), (7, 499), (0, 0)]:
        grads["b"]["c"][place] = bad
        assert opt.step(grads).nonfinite == ("b.c", place[0] * 1000 + place[1])
    grads["a"][49, 69] = bad
    assert opt.step(grads).nonfinite == ("a", 3499)
    opt.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=r"grads.a is not finite at \[49, 69\], flat index 3499"):
        opt.step(grads)
    grads["a"] = None
    with pytest.raises(FloatingPointError, match=r"grads.b.c is not finite at \[0, 0\]"):
        opt.step(grads)
    single = gs.SGD(np.zeros((), dtype), on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"grads is not finite at \[\], flat index 0"):
        single.step(bad)


def test_large_finite_gradients_are_no_false_alarm():
    w = np.ones(5000)
    opt = gs.Adam(w, on_nonfinite="raise")
    result = opt.step(np.full(5000, 1e300))
    assert result.applied
    assert result.nonfinite is None
    assert result.grad_norm == np.inf
    assert opt.step_count == 1
    # As a value of float32, this gradient is infinite.
    narrow = gs.Adam(np.ones(4, np.float32), on_nonfinite="skip")
    assert narrow.step(np.array([1, 1e39, 1, 1])).nonfinite == ("", 1)
    clipped = gs.Adam(w, on_nonfinite="raise", clip_norm=1.0)
    assert clipped.step(np.full(5000, 1e300)).clip_factor == 0


def test_propagated():
    w = np.ones(4, np.float32)
    opt = gs.SGD(w, clip_norm=1.0)
    result = opt.step(np.array([1, np.nan, 1, 1], np.float32))
    assert result.applied
    assert result.nonfinite == ("", 1)
    assert np.isnan(w).all()
    plain = gs.SGD(np.ones(4)).step(np.array([1, np.nan, 1, 1]))
    assert plain.applied
    assert plain.nonfinite is None
    assert plain.grad_norm is None
    assert plain.clip_factor == 1.0


def test_results():
    opt = gs.SGD([np.ones(9), np.ones(16)], clip_norm=2.5)
    result = opt.step([np.ones(9), np.ones(16)])
    assert isinstance(result, gs.StepResult)
    assert (result.applied, result.step, result.grad_norm, result.clip_factor, result.nonfinite) == (
        True,
        1,
        5,
        0.5,
        None,
    )
    assert (
        repr(result) == "StepResult(applied=True, step=1, grad_norm=5.0, clip_factor=0.5, nonfinite=None, stats=None)"
    )
    opt.step([np.ones(9), np.ones(16)])
    assert result.step == 1  # a result is that of its step
    opt.clip_norm, opt.clip_per_tensor = None, 3.0
    assert opt.step([np.ones(9), np.ones(16)]).clip_factor == 0.75
    with pytest.raises(AttributeError):
        result.applied = False


@pytest.mark.parametrize("scale", [0, -1.0, np.inf, np.nan, "1", None, True, [1.0]])
def test_bad_scales(scale):
    w = np.ones(3)
    opt = gs.Adam(w)
    before = everything(opt, [w])
    with pytest.raises((TypeError, ValueError), match="Adam: grad_scale must be a finite number > 0"):
        opt.step(np.ones(3), scale)
    assert everything(opt, [w]) == before


def test_any_number_is_a_scale():
    for scale in (2, 2.0, np.float32(2), np.int64(2), np.array(2.0)):
        w = np.ones(3)
        gs.SGD(w, lr=1.0).step(np.ones(3), scale)
        assert w[0] == 0.5


def test_options_that_exclude_each_other():
    w = np.ones(3)
    with pytest.raises(ValueError, match="only one of clip_norm and clip_per_tensor"):
        gs.SGD(w, clip_norm=1.0, clip_per_tensor=1.0)
    opt = gs.SGD(w, clip_norm=1.0)
    with pytest.raises(ValueError, match="only one of clip_norm and clip_per_tensor"):
        opt.clip_per_tensor = 1.0
    assert opt.clip_norm == 1.0
    assert opt.clip_per_tensor is None
    with pytest.raises(ValueError, match='loss_scale needs on_nonfinite="skip"'):
        gs.SGD(w, loss_scale=gs.LossScale())
    with pytest.raises(ValueError, match="on_nonfinite must be one of propagate, skip, raise"):
        gs.SGD(w, on_nonfinite="ignore")
    for bad in (1.0, "dynamic", True):
        with pytest.raises(TypeError, match="loss_scale must be a LossScale, or None"):
            gs.SGD(w, loss_scale=bad)


def test_schedules_are_asked_once_for_a_step_that_is_repeated():
    asked = []
    w = np.ones(3)
    opt = gs.SGD(w, lr=lambda step: asked.append(step) or 0.1, on_nonfinite="skip")
    bad, good = np.full(3, np.nan), np.ones(3)
    for g in (bad, bad, good, bad, good):
        opt.step(g)
    assert asked == [0, 1]


class TestLossScale:
    def test_it_grows_and_shrinks(self):
        scale = gs.LossScale(8.0, growth=4.0, backoff=0.25, interval=2)
        w = np.ones(3, np.float32)
        opt = gs.Adam(w, on_nonfinite="skip", loss_scale=scale)
        seen = []
        for bad in (True, False, False, False, True, False, False):
            opt.step(np.full(3, np.inf if bad else scale.value, np.float32))
            seen.append(scale.value)
        assert seen == [2.0, 2.0, 8.0, 8.0, 2.0, 2.0, 8.0]

    def test_the_step_divides_by_it(self):
        for wide in (np.float16, np.float32):
            ours, theirs = np.ones(5000, np.float32), np.ones(5000, np.float32)
            opt = gs.Adam(ours, on_nonfinite="skip", loss_scale=gs.LossScale(1024.0), clip_norm=0.5)
            ref = reference.Adam(theirs, on_nonfinite="skip", loss_scale=gs.LossScale(1024.0), clip_norm=0.5)
            rng = np.random.default_rng(3)
            for i in range(6):
                g = (rng.standard_normal(5000) * 1024 * (i != 3 or np.inf)).astype(wide)
                a, b = opt.step(g), ref.step(g)
                assert (a.applied, a.grad_norm) == (b.applied, b.grad_norm) or not a.applied
                assert opt.loss_scale.value == ref.loss_scale.value
                assert same_bits(ours, theirs)
            assert opt.step_count == 5

    def test_it_is_in_the_checkpoint(self):
        def make(scale):
            w = np.ones(4, np.float32)
            return w, gs.Adam(w, on_nonfinite="skip", loss_scale=scale)

        mine, other = gs.LossScale(64.0, interval=5), gs.LossScale()
        _w, opt = make(mine)
        for g in (1, np.nan, 1, 1):
            opt.step(np.full(4, g, np.float32))
        saved = opt.state_dict()
        assert saved["options"]["loss_scale"] == {
            "value": 32.0, "growth": 2.0, "backoff": 0.5, "interval": 5, "good_steps": 2,
        }  # fmt: skip
        _, again = make(other)
        again.load_state_dict(saved)
        assert again.loss_scale is other  # the object that the training loop reads
        assert (other.value, other.good_steps, other.interval) == (32.0, 2, 5)
        for bad in ({**saved["options"]["loss_scale"], "value": -1.0}, {"value": 1.0}):
            with pytest.raises(ValueError, match="LossScale"):
                again.load_state_dict({**saved, "options": {**saved["options"], "loss_scale": bad}})
        assert other.value == 32.0

    def test_copies(self):
        for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
            scale = gs.LossScale(4.0)
            w = np.ones(4, np.float32)
            opt = gs.Adam(w, on_nonfinite="skip", loss_scale=scale)
            opt.step(np.full(4, np.nan, np.float32))
            opt2, scale2 = copied((opt, scale))
            assert opt2.loss_scale is scale2
            assert scale2.value == 2.0

    def test_bad_arguments(self):
        for name, bad in {"value": 0.0, "growth": 0.5, "backoff": 1.0, "interval": 0}.items():
            with pytest.raises(ValueError, match=f"LossScale: {name} must be"):
                gs.LossScale(**{name: bad})
        assert repr(gs.LossScale()) == "LossScale(65536.0, growth=2.0, backoff=0.5, interval=2000)"

    def test_its_limits(self):
        scale = gs.LossScale(2.0**1023, interval=1)
        opt = gs.SGD(np.ones(1), on_nonfinite="skip", loss_scale=scale)
        opt.step(np.ones(1))
        assert scale.value == 2.0**1023
        tiny = gs.LossScale(5e-324)
        opt = gs.SGD(np.ones(1), on_nonfinite="skip", loss_scale=tiny)
        opt.step(np.full(1, np.nan))
        with pytest.raises(FloatingPointError, match="the loss scale became zero"):
            _ = tiny.value


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gs.Adam(np.ones(4), on_nonfinite="skip", clip_norm=1.0).step(np.full(4, np.inf))


def test_widest_storages_are_covered():
    assert {str(case.storage) for case in stored_cases(settings=("widest",))} >= {str(s) for s in STORAGES}
    assert all(widest(rule, STORAGES[0]) for rule in RULES)

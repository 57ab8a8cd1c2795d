"""16-bit and 8-bit numbers: every code, every tie, and the error of a round trip, in steps and in q8."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gradstep as gs
from gradstep import _core, q8
from tests.table import HALVES, ISAS, SEED, problem, same_bits

EVERY_ISA = pytest.mark.parametrize("isa", ISAS)
ALL = np.arange(2**16, dtype=np.uint16)
SEEDS = pytest.mark.parametrize("seed", [None, SEED])
# Exponents below the scale's, the least scale, and the code that is not finite and its decoded value.
FORMATS = {np.int8: (15, 2.0**-111, -128, math.nan), np.uint8: (30, 2.0**-96, 248, math.inf)}
MOST = 1.875  # upper bound of a block's magnitudes, in scales
EVERY_CODE = pytest.mark.parametrize("code", FORMATS)


@EVERY_ISA
@pytest.mark.parametrize("dtype", HALVES)
def test_all_codes_are_read_as_numpy_reads_them(dtype, isa):
    """Decodes a gradient by subtracting it from zero."""
    _core.use_isa(isa)
    p = np.zeros(ALL.size, "f4")
    gs.SGD(p, lr=1.0).step(ALL.view(dtype))
    with np.errstate(invalid="ignore"):  # some NaNs are signalling
        assert same_bits(p, 0 - ALL.view(dtype).astype("f4"))


@EVERY_ISA
@SEEDS
@pytest.mark.parametrize("dtype", HALVES)
def test_all_codes_are_written_back_as_they_were(dtype, seed, isa):
    """Exact values are stored exactly, whatever the random bits."""
    _core.use_isa(isa)
    p = ALL.view(dtype).copy()
    opt = gs.SGD(p, lr=0.0, stochastic_rounding=seed)
    for _ in range(3):
        opt.step(np.ones(ALL.size, dtype))
    assert same_bits(p, ALL.view(dtype))


@EVERY_ISA
@SEEDS
def test_all_codes_of_a_state_are_written_back_as_they_were(seed, isa):
    _core.use_isa(isa)
    opt = gs.Momentum(np.ones(ALL.size, "f4"), momentum=1.0, state_dtype="bfloat16", stochastic_rounding=seed)
    opt.state["momentum_buffer"][...] = ALL.view("bfloat16")
    for _ in range(3):
        opt.step(np.full(ALL.size, -0.0, "f4"))
    assert same_bits(opt.state["momentum_buffer"], ALL.view("bfloat16"))


def around_ties(dtype):
    """float32 values: the midpoints between neighbours of a type, values next to them, and random values."""
    codes = ALL[: 0x7C00 if dtype == "float16" else 0x7F80].view(dtype).astype("f8")
    above = [*codes[1:], 2 * codes[-1] - codes[-2]]  # the last is the overflow threshold
    middle = ((codes + above) / 2).astype("f4")
    anything = np.random.default_rng(0).integers(0, 2**32, 2**16, np.uint32).view("f4")
    ties = np.concatenate([np.nextafter(middle, -np.inf, dtype="f4"), middle, np.nextafter(middle, np.inf, dtype="f4")])
    return np.concatenate([ties, -ties, anything])


@EVERY_ISA
@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_nearest_is_numpys(dtype, isa):
    """Parameters, copies of masters and states: ties to even, subnormals kept, overflow to infinity."""
    _core.use_isa(isa)
    x = around_ties(dtype)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype)
        g, kept = -x, np.zeros_like(x)
        summed, velocity = (0 - g).astype(dtype), (0 + g).astype(dtype)  # removes the sign of zeros
    p = np.zeros(x.size, dtype)
    gs.SGD(p, lr=1.0).step(g)
    assert same_bits(p, summed)
    opt = gs.SGD(p, lr=0.0, master=True)
    opt.state["master"][...] = x
    opt.step(np.ones_like(x))
    assert same_bits(p, expected)
    assert same_bits(opt.state["master"], x)
    if dtype == "bfloat16":
        opt = gs.Momentum(kept, momentum=0.0, state_dtype=dtype)
        opt.step(g)
        assert same_bits(opt.state["momentum_buffer"], velocity)


@EVERY_ISA
@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_takes_a_neighbour(dtype, isa):
    """The result is the neighbour below or above in magnitude; infinity above the largest, NaN for NaN."""
    _core.use_isa(isa)
    x = around_ties(dtype)
    p = np.zeros(x.size, dtype)
    gs.SGD(p, lr=1.0, stochastic_rounding=SEED).step(-x)
    with np.errstate(all="ignore"):
        nearest = np.abs(x.astype(dtype))
        too_far = nearest.astype("f4") > np.abs(x)
    below = nearest.view("u2") - too_far
    got = np.abs(p).view("u2")
    exact = below.view(dtype).astype("f4") == np.abs(x)
    finite = np.isfinite(x) & ((np.abs(x) < 65536) | (dtype == "bfloat16"))
    assert np.array_equal(np.isnan(p), np.isnan(x))
    assert np.all((got == below)[finite] | (got == below + 1)[finite])
    assert np.all((got == below)[finite & exact])
    assert 0.4 < np.mean(got[: x.size // 3] == below[: x.size // 3]) < 0.6, "beside the middle, each as often"
    if dtype == "float16":
        assert np.all(np.isinf(p[np.abs(x) >= 65536]))
    signed = ~np.isnan(x) & (x != 0)
    assert np.array_equal(np.signbit(p)[signed], np.signbit(x)[signed])


def meaning(code, scale, of):
    """The value of a code, in plain arithmetic."""
    exponents, _, not_finite, read_as = FORMATS[of]
    if code == not_finite:
        return read_as
    if code == 0:
        return 0.0
    return math.copysign(scale * 2.0 ** (abs(code) // 8 - exponents) * (1 + abs(code) % 8 / 8), code)


@EVERY_ISA
@EVERY_CODE
def test_what_every_code_stands_for_at_every_scale(code, isa):
    _core.use_isa(isa)
    scales = [2.0**i for i in range(-126, 128) if 2.0**i >= FORMATS[code][1]]
    codes = np.arange(-128, 128) if code is np.int8 else np.append(np.arange(249), [0] * 7)
    values = q8.decode(np.tile(codes.astype(code), (len(scales), 1)), np.array(scales, "f4"))
    assert same_bits(values, np.array([[meaning(int(c), scale, code) for c in codes] for scale in scales], "f4"))


@EVERY_ISA
@EVERY_CODE
def test_what_every_code_stands_for_at_the_greatest_scale(code, isa):
    """2**128 overflows to infinity: codes end at the largest float32."""
    _core.use_isa(isa)
    finite = np.arange(8 * FORMATS[code][0])
    values = q8.decode(np.append(finite, [0] * (256 - finite.size)).astype(code), np.array([np.inf], "f4"))
    assert same_bits(values[: finite.size], np.array([meaning(int(c), 2.0**128, code) for c in finite], "f4"))


LARGEST = np.array([np.finfo("f4").max, 1, 1e30], "f4")
SIGNED_ZERO = np.array([-0.0, 1], "f4")
ANY_FLOATS = st.lists(st.floats(width=32), min_size=1, max_size=40)
NUMBERS = st.lists(st.floats(0, 1e9, width=32) | st.sampled_from([0.0, 1.0, 1.75, 1.875, 2.0]), min_size=1, max_size=40)


@st.composite
def blocks(draw):
    """A few hundred numbers from a short list, times powers of two that exceed a block's range."""
    some = np.array(draw(ANY_FLOATS | NUMBERS), "f4")
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    x = rng.choice(some, draw(st.sampled_from([1, 5, 255, 256, 257, 700])))
    with np.errstate(all="ignore"):
        return (
            x * rng.choice([-1, 1], x.size) * 2.0 ** rng.integers(-draw(st.sampled_from([0, 8, 40])), 1, x.size)
        ).astype("f4")


def by_step(x, code):
    """Stores numbers in a step, as a velocity or squared as a second moment. Returns the codes and the exact values."""
    if code is np.int8:
        opt = gs.Momentum(np.zeros_like(x), momentum=0.0, state_dtype="q8", min_8bit_size=0, stochastic_rounding=SEED)
        opt.step(x)
        return tuple(opt.state.values()), 0 + x
    opt = gs.AdaGrad(np.zeros_like(x), state_dtype="q8", min_8bit_size=0, stochastic_rounding=SEED)
    opt.step(x)
    return tuple(opt.state.values()), x * x


def by_encode(x, code):
    return q8.encode(x, signed=code is np.int8), x if code is np.int8 else np.abs(x)


@EVERY_CODE
@pytest.mark.parametrize(("store", "part"), [(by_step, 8), (by_encode, 16)])
@given(x=blocks(), isa=st.sampled_from(ISAS))
@example(x=LARGEST, isa="baseline")
@example(x=SIGNED_ZERO, isa="baseline")
def test_what_a_round_trip_changes(code, store, part, x, isa):
    """Errors are below 1/8 of an element, at most 1/16 to nearest; too small values become zero or the least."""
    _core.use_isa(isa)
    with np.errstate(all="ignore"):
        (codes, scales), x = store(x, code)
    exponents, least_scale, not_finite, _ = FORMATS[code]
    assert codes.dtype == code
    back = q8.decode(codes, scales).astype("f8")
    for block, scale in enumerate(scales.astype("f8")):
        where = slice(256 * block, 256 * (block + 1))
        v, w, kept = x[where].astype("f8"), back[where], codes[where]
        finite = np.isfinite(v)
        assert np.all(kept[~finite] == not_finite)
        v, w = v[finite], w[finite]
        assert math.frexp(scale)[0] == 0.5, "a power of two"
        assert scale == least_scale or np.abs(v).max() > MOST * scale / 2, "the least that holds them"
        assert scale == 2.0**127 or np.abs(v).max(initial=0) <= MOST * scale
        assert np.all(w[v == 0] == 0)
        least = 1.125 * 2.0**-exponents * scale
        small = np.abs(v) < least
        if code is np.int8:
            assert np.all((w == 0)[small] | (w == np.copysign(least, v))[small])
            assert np.all(w[np.abs(v) < 2.0**-exponents * scale] == 0)
        else:
            assert np.all(w[small & (v != 0)] == least)
        v, w = v[~small], w[~small]
        assert np.all(np.abs(w - v) < np.abs(v) / 8)
        assert np.all(np.abs(w - v) <= np.abs(v) / part)
        assert np.all(w * v > 0)


@EVERY_CODE
@given(x=blocks(), isa=st.sampled_from(ISAS))
@example(x=LARGEST, isa="baseline")
def test_what_does_not_change_is_stored_as_it_was(code, x, isa):
    """Values stay from the first step on, codes from the second: rounding may have made a smaller scale suffice."""
    _core.use_isa(isa)
    coded = {"state_dtype": "q8", "min_8bit_size": 0}
    cls, kept = (gs.Momentum, {"momentum": 1.0}) if code is np.int8 else (gs.AdaGrad, {})
    opt = cls(np.zeros_like(x), **coded, **kept)
    with np.errstate(all="ignore"):
        opt.step(x)
    seen = []
    for _ in range(4):
        codes, scales = (a.copy() for a in opt.state.values())
        seen.append((codes, scales, q8.decode(codes, scales)))
        opt.step(np.full_like(x, -0.0))
    for codes, scales, numbers in seen[1:]:
        assert same_bits(numbers, seen[0][2])
        assert same_bits(codes, seen[1][0])
        assert same_bits(scales, seen[1][1])


@EVERY_CODE
@EVERY_ISA
@pytest.mark.parametrize("largest", [1.0, 3.4e38])
def test_every_nan_has_one_code(code, largest, isa):
    """NaNs of any sign and payload, which depend on the machine, have one code, also beside the largest numbers."""
    _core.use_isa(isa)
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FE00000], "u4").view("f4")
    for seed in (None, SEED):
        x = np.append(nans, np.float32(largest))
        if seed is None:
            codes, _ = q8.encode(x, signed=code is np.int8)
        else:
            cls = gs.Momentum if code is np.int8 else gs.AdaGrad
            opt = cls(np.zeros_like(x), state_dtype="q8", min_8bit_size=0, stochastic_rounding=seed)
            opt.step(np.append(nans, np.float32(largest if code is np.int8 else math.sqrt(largest))))
            codes = next(iter(opt.state.values()))
        assert set(codes[:-1].tolist()) == {FORMATS[code][2]}


@EVERY_CODE
@pytest.mark.parametrize("store", [by_step, by_encode])
def test_what_is_not_finite_does_no_harm_to_its_neighbours(code, store):
    x = np.random.default_rng(1).standard_normal(700).astype("f4")
    hit = np.arange(700) % 37 == 5
    x[hit] = 0
    (calm, scales), _ = store(x, code)
    for value in (np.inf, -np.inf, np.nan):
        x[hit] = value
        (codes, with_it), _ = store(x, code)
        assert same_bits(with_it, scales)
        assert same_bits(codes[~hit], calm[~hit])
        assert np.all(codes[hit] == FORMATS[code][2])
        assert not np.any(np.isfinite(q8.decode(codes, with_it)[hit]))


@pytest.mark.parametrize(
    "rule", [rule for rule in _core.rules() if rule["non_negative"]], ids=lambda rule: rule["name"]
)
def test_second_moments_are_never_negative_nor_lost(rule):
    """For any gradients; and a nonzero moment stays nonzero, because its root is a divisor."""
    p, grads = problem(3000, "float32")
    cls = next(cls for cls in gs.optimizers.ALL if cls.rule == rule["name"])
    opt = cls(p.copy(), state_dtype="q8", min_8bit_size=0)
    seen = np.zeros(p.size, bool)
    for g in grads:
        opt.step(g)
        first = opt.state[rule["non_negative"][0]]
        assert first.dtype == np.uint8
        assert np.all(q8.decode(first, opt.state[f"{rule['non_negative'][0]}_scale"]) >= 0)
        seen |= np.abs(g) > 1e-15
        assert np.all(first[seen] > 0)


def test_scalars_and_empty_arrays_are_coded():
    for values in (np.float32(0.3), np.zeros((0, 3), "f4"), np.ones((2, 300), "f4").T):
        codes, scales = q8.encode(values)
        assert codes.shape == np.shape(values)
        assert q8.decode(codes, scales).shape == np.shape(values)
    codes, scales = q8.encode(np.arange(600, dtype="f4").reshape(20, 30).T)
    assert same_bits(codes, q8.encode(np.ascontiguousarray(np.arange(600, dtype="f4").reshape(20, 30).T))[0])
    assert same_bits(q8.decode(np.asfortranarray(codes), scales), q8.decode(codes, scales))

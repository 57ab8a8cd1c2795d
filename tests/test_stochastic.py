"""Stochastic rounding is unbiased; its bits depend only on seed, tensor, stream, step and element."""

import math

import numpy as np
import pytest

import gradstep as gs
from gradstep import q8
from gradstep.reference.storage import philox
from tests.table import HALVES, ISAS, REFERENCE, RULES, SEED, same_bits

SIZE, STEPS = 2**11, 64
ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # in [1, 2)
FRACTIONS = [2.0**-9, 0.1, 0.5, 0.75, 1 - 2.0**-9]
SEEDS = (0, 1, SEED)


def is_chance(deviations):
    """Whether deviations, one row per step, have a mean of zero within five standard errors.

    Bits of different steps are independent, and so are any two of one step, so the rows give the standard error.
    """
    rows = np.asarray(deviations, "f8").mean(axis=1)
    return abs(rows.mean()) <= 5 * rows.std() / math.sqrt(len(rows)) + 1e-12


def unbiased(got, exact, step):
    """Whether numbers, one row per step, are rounded to the neighbours of `exact` with unbiased probabilities."""
    got = np.asarray(got, "f8")
    part = exact / step % 1
    assert np.all(np.isin(got, [exact - part * step, exact + (1 - part) * step]))
    error = step * math.sqrt(part * (1 - part) / got.size)
    return abs(got.mean() - exact) <= 5 * error + step * 2.0**-16


# Known answers of the authors' library, for counters and keys of zeros, of ones, and of digits of pi.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
        ),
    ],
)
def test_philox_has_its_known_answers(counter, key, answer):
    assert list(philox(*counter, *key)) == answer
    many = philox(*(np.full(3, c, np.uint64) for c in counter), *key)
    assert np.array_equal(many, np.repeat(answer, 3).reshape(4, 3))


def stepped(dtype, start, by, seed=SEED, size=SIZE):
    """Parameters after steps from `start` that subtract `by`: one row per step."""
    p = np.empty(size, dtype)
    opt = gs.SGD(p, lr=1.0, stochastic_rounding=seed)
    rows = []
    for _ in range(STEPS):
        p[...] = start
        opt.step(np.full(size, by, "f4"))
        rows.append(p.astype("f8"))
    return np.array(rows)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("sign", [1, -1])
def test_parameters_are_rounded_without_bias(dtype, fraction, sign):
    by = np.float32(fraction * ULP[dtype])
    for seed in SEEDS:
        assert unbiased(sign * stepped(dtype, sign, -sign * by, seed), 1 + float(by), ULP[dtype]), seed


@pytest.mark.parametrize("units", [0.25, 3.5, 100.1])
def test_subnormal_parameters_are_rounded_without_bias(units):
    """The first value is below half the least subnormal, and would round to zero."""
    for dtype, unit in (("float16", 2.0**-24), ("bfloat16", 2.0**-133)):
        exact = float(np.float32(units * unit))
        assert unbiased(stepped(dtype, 0.0, -exact), exact, unit)


@pytest.mark.parametrize("dtype", HALVES)
def test_decay_of_parameters_has_no_bias(dtype):
    """Decay by less than half a unit, which rounding to nearest would lose."""
    p, kept = np.full(SIZE, 1.5, dtype), np.full(8, 1.5, dtype)
    decay, steps = ULP[dtype] / 16, 200
    opt = gs.SGD(p, lr=1.0, weight_decay=decay, stochastic_rounding=SEED)
    nearest = gs.SGD(kept, lr=1.0, weight_decay=decay)
    for _ in range(steps):
        opt.step(np.zeros(SIZE, dtype))
        nearest.step(np.zeros(8, dtype))
    assert np.all(kept == 1.5)
    exact = 1.5 * (1 - decay) ** steps
    assert abs(p.astype("f8").mean() - exact) < 5 * ULP[dtype] / 2 * math.sqrt(steps / SIZE)
    assert exact < 1.5 - 10 * ULP[dtype]


@pytest.mark.parametrize("dtype", HALVES)
def test_many_small_steps_add_up(dtype):
    p, steps, by = np.ones(SIZE, dtype), 320, ULP[dtype] / 32
    opt = gs.SGD(p, lr=1.0, stochastic_rounding=SEED)
    for _ in range(steps):
        opt.step(np.full(SIZE, -by, "f4"))
    error = ULP[dtype] * math.sqrt(steps * 31) / 32
    assert abs(p.astype("f8").mean() - (1 + steps * by)) < 5 * error / math.sqrt(SIZE)
    assert 0.8 < p.astype("f8").std() / error < 1.2, "each goes its own way"


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize(
    ("state", "seed"), [("bfloat16", 0), ("bfloat16", SEED), ("q8", None), ("q8", 0), ("q8", SEED)]
)
def test_states_are_rounded_without_bias(state, fraction, seed):
    """Also with weight decay of the parameter; q8 also without a seed."""
    ulp = ULP["bfloat16"] if state == "bfloat16" else 1 / 8
    x = np.full(SIZE, 1 + fraction * ulp, "f4")
    x[::256] = 1.75  # determines q8's scale
    options = {"state_dtype": state, "stochastic_rounding": seed, "weight_decay": 0.1, "min_8bit_size": 0}
    root = np.sqrt(x)
    for opt, g, exact in (
        (gs.Momentum(np.ones(SIZE, "f4"), momentum=0.0, **options), x, float(x[1])),
        (gs.RMSProp(np.ones(SIZE, "f4"), rho=0.0, **options), root, float(root[1] * root[1])),
    ):
        rows = []
        for _ in range(STEPS):
            opt.step(g)
            stored = list(opt.state.values())
            rows.append((q8.decode(*stored) if state == "q8" else stored[0].astype("f4"))[np.arange(SIZE) % 256 != 0])
        assert unbiased(rows, exact, ulp), type(opt)


def rounded_up(seed=SEED, tensors=1):
    """For each tensor, which elements of 1 + half a unit were rounded up: one row per step, 1 or -1."""
    p = [np.empty(SIZE, "bfloat16") for _ in range(tensors)]
    opt = gs.SGD(p, lr=1.0, stochastic_rounding=seed)
    rows = []
    for _ in range(STEPS):
        for a in p:
            a[...] = 1
        opt.step([np.full(SIZE, -ULP["bfloat16"] / 2, "f4")] * tensors)
        rows.append([np.where(a.astype("f4") > 1, 1, -1) for a in p])
    return list(np.array(rows).swapaxes(0, 1))


def test_seeds_tensors_and_steps_have_bits_of_their_own():
    series = rounded_up(tensors=3)
    series += [rounded_up(seed)[0] for seed in (0, 1, 2, SEED + 1, SEED + 2**32, SEED - 2**32, 2**32, 2**53)]
    series += [np.roll(series[0], 1, axis=0), np.roll(series[0], 2, axis=0)]
    for i, a in enumerate(series):
        assert is_chance(a)
        for b in series[:i]:
            assert is_chance(a * b)


def test_the_same_seed_has_the_same_bits():
    assert np.array_equal(rounded_up(), rounded_up())


@pytest.mark.parametrize("lag", [1, 2, 8, 16, 31, 32, 33, 64, 128, 192, 255, 256, 257, 512, 768, 1024])
def test_elements_have_bits_of_their_own(lag):
    """Bits of elements are uncorrelated, also if they share a counter, a place, a block or a lane."""
    [up] = rounded_up()
    assert is_chance(up[:, lag:] * up[:, :-lag])
    assert len(np.unique(up, axis=0)) == STEPS


def test_streams_have_bits_of_their_own():
    """Bits of streams are uncorrelated; all are rounded up with probabilities far from 0 and 1."""
    p, g = np.empty(SIZE, "bfloat16"), np.full(SIZE, math.sqrt(1 + 2.0**-8), "f4")
    options = {"lr": 2.0**-9, "betas": (0.0, 0.0), "eps": 0.0, "state_dtype": "bfloat16", "stochastic_rounding": SEED}
    opt = gs.Adam(p, **options)
    rows = []
    for _ in range(STEPS):
        p[...] = 1
        opt.step(g)
        rows.append([a.astype("f4") for a in (p, *opt.state.values())])
    series = [of == of.max() for of in np.array(rows).swapaxes(0, 1)]
    assert len(series) == 3
    for i, a in enumerate(series):
        assert 0.2 < a.mean() < 0.8
        for b in series[:i]:
            assert is_chance((a - a.mean()) * (b - b.mean()))


def test_all_random_bits_are_random():
    """A value 2^-k of a unit above a code is rounded up with a probability of 2^-k."""
    for k in range(1, 11):
        for dtype in HALVES:
            assert unbiased(stepped(dtype, 1.0, -(2.0**-k) * ULP[dtype]), 1 + 2.0**-k * ULP[dtype], ULP[dtype]), k


@pytest.mark.parametrize("rule", [rule for rule in RULES if getattr(REFERENCE[rule], "codes", None)])
@pytest.mark.parametrize("isa", ISAS)
def test_runs_are_the_same_on_every_machine(rule, isa):
    """Two runs have the same bits, also with q8 without a seed, which equals a seed of 0."""
    gs._core.use_isa(isa)
    seen = []
    for seed in (None, None, 0):
        p = np.linspace(-1, 1, 5000).astype("f4")
        opt = RULES[rule](p, state_dtype="q8", stochastic_rounding=seed)
        for i in range(3):
            opt.step(np.sin(np.arange(5000) * (i + 1)).astype("f4"))
        seen.append([p, *opt.state.values()])
    assert all(map(same_bits, seen[0], seen[1]))
    assert all(map(same_bits, seen[0], seen[2]))


DECADES = 10 ** np.linspace(-7, 1, 256)
SECOND = [
    *(("adagrad", {}), ("rmsprop", {}), ("rmsprop", {"momentum": 0.9}), ("adadelta", {}), ("adam", {})),
    *(("adam", {"eps": 1e-15}), ("nadam", {}), ("nadam", {"momentum_decay": None})),
]


def trained(rule, options, grads):
    """The parameter after every step from zero, with float32 states and with q8."""
    paths = []
    for state in ("float32", "q8"):
        p = np.zeros(grads.shape[1], "f4")
        opt = RULES[rule](p, state_dtype=state, min_8bit_size=0, **options)
        path = [p.copy()]
        for g in grads:
            opt.step(g)
            path.append(p.copy())
        paths.append(np.array(path, "f8"))
    return paths


@pytest.mark.parametrize(("rule", "options"), SECOND, ids=str)
def test_a_block_of_eight_decades_takes_no_wild_step(rule, options):
    """With constant magnitudes and random signs, no step is much larger than the largest with float32."""
    rng = np.random.default_rng(8)
    order = rng.permutation(256)
    grads = (DECADES[order] * rng.choice([-1, 1], (300, 256))).astype("f4")
    native, coded = (np.abs(np.diff(path, axis=0)) for path in trained(rule, options, grads))
    assert np.all(np.isfinite(coded))
    assert coded.max() <= 4 * native.max()
    assert np.all(coded.max(axis=0)[DECADES[order] > 1e-2] > native.max(axis=0)[DECADES[order] > 1e-2] / 4), (
        "nor stands"
    )


@pytest.mark.parametrize(
    ("rule", "options"), [*SECOND, ("momentum", {}), ("nag", {}), ("momentum", {"momentum": 0.99})], ids=str
)
@pytest.mark.parametrize("alone", [False, True])
def test_an_element_whose_gradient_stops_comes_to_rest(rule, options, alone):
    """With or without others in its block, it moves at most a few times as far as with float32 states.

    If random signs cancel with float32, earlier rounding errors remain here: a fraction of the others' movement.
    """
    rng = np.random.default_rng(9)
    grads = (DECADES * rng.choice([-1, 1], (1500, 256), p=[0.3, 0.7])).astype("f4")
    stops = np.ones(256, bool) if alone else np.arange(256) % 4 == 0
    grads[100:, stops] = 0
    paths = trained(rule, options, grads)
    native, coded = (np.abs(path[-1] - path[100])[stops] for path in paths)
    assert np.all(coded <= 4 * native + native.max() / 8)
    assert np.all(np.abs(paths[1][-1] - paths[1][-100])[stops] <= 1e-4 * native.max()), "it rests"

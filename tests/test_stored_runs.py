"""Runs with 16-bit and 8-bit storage: mixed lists, skipped and bound gradients, checkpoints, lookahead."""

import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, functional, q8
from tests.table import (
    FLOATS,
    REFERENCE,
    RULES,
    SEED,
    SHORT,
    STORAGES,
    Storage,
    assert_same,
    leaves,
    problem,
    same_bits,
    schedule,
    split,
    stored_cases,
    stored_problem,
)
from tests.test_checkpoint import STATE_OPTIONS
from tests.test_refusals import frozen

SIZES = [3, 0, 300, 4097, 70_001]
SHAPE = (37, 53)
EVERY_RULE = pytest.mark.parametrize("rule", RULES)
CODED = {"state_dtype": "q8", "min_8bit_size": 0, "stochastic_rounding": SEED}
# One case for each kind of data that a checkpoint must contain.
RUNS = [
    Storage("bfloat16", stochastic=True),
    Storage("float16", "bfloat16", stochastic=True),
    Storage("bfloat16", "bfloat16", master=True, stochastic=True),
    Storage("float32", "q8"),
    Storage("float16", "q8", master=True),
]


@pytest.mark.parametrize("case", stored_cases(storages=RUNS, settings=["widest"]), ids=str)
def test_bound_steps_have_the_bits_of_steps(case):
    p, grads = case.problem(sum(SIZES))
    params, bound = split(p.copy(), SIZES), split(grads[0].copy(), SIZES)
    opt = RULES[case.rule](params, grads=bound, **case.options())
    for g in grads:
        for kept, new in zip(bound, split(g, SIZES), strict=True):
            kept[...] = new
        opt.step()
    theirs = split(p.copy(), SIZES)
    ref = REFERENCE[case.rule](theirs, **case.options())
    for g in grads:
        ref.step(split(g, SIZES))
    for ours, expected in [(params, theirs), *((opt.state[name], arrays) for name, arrays in ref.state.items())]:
        assert all(a is b is None or same_bits(a, b) for a, b in zip(ours, expected, strict=True))


@EVERY_RULE
def test_groups_of_different_storage_and_skipped_gradients(rule):
    """Groups keep separate step numbers, seeds, states and masters; tensors are numbered across groups."""
    has_states = {"state_dtype": "q8", "min_8bit_size": 0} if rule != "sgd" else {}
    sizes = [700, 300, 5, 0, 257, 64, 300]
    dtypes = ["bfloat16", "float32", "float16", "float32", "float16", "bfloat16", "float64"]

    def groups():
        a, b, c, d, e, f, g = (problem(n, dtype)[0].copy() for n, dtype in zip(sizes, dtypes, strict=True))
        return [
            {"params": {"a": a, "b": b}, "stochastic_rounding": 7, **has_states},
            {"params": [c, d, e], "master": True, **has_states},
            {"params": f, "l2": 0.5, "stochastic_rounding": SEED},
            {"params": [g], "weight_decay": 0.1},
        ]

    grads = []
    for step in range(SHORT + 3):
        a, b, c, d, e, f, g = (problem(n, dtype)[1][step] for n, dtype in zip(sizes, dtypes, strict=True))
        grads.append(
            [{"b": b, "a": a if step < 2 else None}, [c, d, e if step % 2 else None], f if step > 2 else None, [g]]
        )
    ours, theirs = groups(), groups()
    opt, ref = RULES[rule](ours, lr=schedule), REFERENCE[rule](theirs, lr=schedule)
    for g in grads:
        opt.step(g)
        ref.step(g)
        assert all(map(same_bits, leaves(ours), leaves(theirs)))
        for name, of in ref.state.items():
            assert all(map(same_bits, leaves(opt.state[name]), leaves(of))), name


@EVERY_RULE
def test_mixed_lists(rule):
    """Types of all sizes in one list; all except float64 may have narrow states."""
    for dtypes, options in [
        (["float32", "bfloat16", "float64", "float16"], {}),
        (["float32", "bfloat16", "float64", "float16"], {"master": True}),
        (["float32", "bfloat16", "float64", "float16"], {"stochastic_rounding": 3}),
        (["float32", "bfloat16", "float16"], CODED if rule != "sgd" else {"stochastic_rounding": 3}),
        (["float16", "float32"], {"state_dtype": "bfloat16", "master": True} if rule != "sgd" else {"master": True}),
    ]:
        ours, theirs = ([problem(600, dtype)[0].copy() for dtype in dtypes] for _ in range(2))
        opt, ref = RULES[rule](ours, **options), REFERENCE[rule](theirs, **options)
        for step in range(SHORT):
            grads = [problem(600, dtype)[1][step] for dtype in dtypes]
            opt.step(grads)
            ref.step(grads)
        assert all(map(same_bits, ours, theirs))
        for name, arrays in ref.state.items():
            assert all(map(same_bits, leaves(opt.state[name]), leaves(arrays))), name


def c_order(tree):
    return [np.ascontiguousarray(array) for array in leaves(tree)]


@pytest.mark.parametrize("case", stored_cases(storages=RUNS, settings=["default"]), ids=str)
def test_the_order_in_memory_changes_no_bit(case):
    """Random bits depend on elements' indices, not on the order in memory."""
    p, grads = (a.reshape(*a.shape[:-1], *SHAPE) for a in case.problem(SHAPE[0] * SHAPE[1]))
    seen = []
    for params, of in [
        (p.copy(), grads),
        (np.asfortranarray(p), grads),
        (p.copy(), list(map(np.asfortranarray, grads))),
    ]:
        opt = RULES[case.rule](params, **case.options())
        for g in of:
            opt.step(g)
        seen.append(c_order([params, *opt.state.values()]))
    for other in seen[1:]:
        assert all(map(same_bits, other, seen[0]))


@pytest.mark.parametrize("case", stored_cases(storages=RUNS, settings=["widest"]), ids=str)
def test_a_resumed_run_has_the_same_bits(case):
    """Also with pickled checkpoints, and with parameters in another order in memory."""
    cls, options = RULES[case.rule], case.options()
    p, grads = (a.reshape(*a.shape[:-1], *SHAPE) for a in case.problem(SHAPE[0] * SHAPE[1]))
    params = [p.copy(), p[:, :5].copy()]

    def steps(opt, of):
        for g in of:
            opt.step([g, None if g is grads[0] else g[:, :5]])  # the second skips the first step

    opt = cls(params, **options)
    steps(opt, grads[:2])
    saved, at_pause = opt.state_dict(), [a.copy() for a in params]
    steps(opt, grads[2:])
    settling = (*STATE_OPTIONS.get(case.rule, ()), "state_dtype", "master", "min_8bit_size")
    kept = {name: value for name, value in options.items() if callable(value) or name in settling}
    if options["stochastic_rounding"] is not None:
        kept["stochastic_rounding"] = 1  # the seed comes from the checkpoint
    for order in ("C", "F"):
        for trip in (lambda saved: saved, lambda saved: pickle.loads(pickle.dumps(saved))):
            again = [a.copy(order=order) for a in at_pause]
            resumed = cls(again, **kept)
            resumed.load_state_dict(trip(saved))
            steps(resumed, grads[2:])
            assert all(
                map(same_bits, c_order([again, *resumed.state.values()]), c_order([params, *opt.state.values()]))
            )


def test_a_checkpoint_of_another_storage_is_refused_and_nothing_changes():
    """Every pair of different storages, in both directions."""

    def make(dtype, **options):
        opt = gs.Adam([np.ones(300, dtype), np.ones((2, 3), dtype)], **options)
        opt.step([np.ones(300, dtype), np.ones((2, 3), dtype)])
        return opt

    halves = [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "q8", "min_8bit_size": 0}, {"master": True}]
    unlike = [
        *(make("bfloat16", **options) for options in halves),
        make("bfloat16", state_dtype="q8", min_8bit_size=100),
        make("bfloat16", stochastic_rounding=1),
        make("bfloat16", state_dtype="q8", min_8bit_size=0, stochastic_rounding=1),
        make("bfloat16", state_dtype="q8", min_8bit_size=0, master=True),
        make("float64"),
    ]
    for taker in unlike:
        for giver in unlike:
            if giver is taker:
                continue
            before = frozen(taker)
            with pytest.raises((TypeError, ValueError), match=r"state dict|stochastic_rounding"):
                taker.load_state_dict(giver.state_dict())
            assert frozen(taker) == before


@pytest.mark.parametrize("wrong", [np.zeros(2, "f4"), np.zeros((1, 1), "f4"), np.zeros(1), None, [0.0]], ids=str)
def test_scales_that_do_not_fit_are_refused(wrong):
    opt = gs.Momentum(np.ones(256, "f4"), state_dtype="q8", min_8bit_size=0)
    saved = opt.state_dict()
    saved["state"][""]["momentum_buffer_scale"] = wrong
    before = frozen(opt)
    with pytest.raises((TypeError, ValueError), match="momentum_buffer_scale"):
        opt.load_state_dict(saved)
    assert frozen(opt) == before


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("lr_in_velocity", [False, True])
def test_lookahead(storage, lr_in_velocity):
    """Parameters have the reference's bits at the lookahead point and after it, for all velocities and masters."""
    sizes = [1, 257, 900]
    p, grads = stored_problem(sum(sizes), storage.param, "float32")
    ours, theirs = split(p.copy(), sizes), split(p.copy(), sizes)
    setting = {"lr": schedule, "lr_in_velocity": lr_in_velocity, "lookahead": True, **storage.options()}
    opt, ref = gs.NAG(ours, **setting), gs.reference.NAG(theirs, **setting)
    for g in grads:
        before = frozen(opt, *ours)
        with opt.lookahead(), ref.lookahead():
            assert all(map(same_bits, ours, theirs))
            assert opt.step_count == 0 or frozen(opt, *ours) != before
        assert frozen(opt, *ours) == before
        opt.step(split(g, sizes))
        ref.step(split(g, sizes))
    assert_same({"params": ours[2], **flat(opt)}, {"params": theirs[2], **flat(ref)}, "after all")


def flat(opt):
    return {name: arrays[2] for name, arrays in opt.state.items()}


@pytest.mark.parametrize("case", stored_cases(settings=["widest"]), ids=str)
def test_bare_kernels(case):
    """Functional kernels with bfloat16 or 8-bit states and a master have the class's bits."""
    p, grads = case.problem(1000)
    options = case.options()
    settled = [*RULES[case.rule].initial_state.values(), "state_dtype", "master", "min_8bit_size", "lr"]
    kept = {name: np.copy(array) for name, array in RULES[case.rule](p.copy(), **options).state.items()}
    names = next(rule["states"] for rule in _core.rules() if rule["name"] == case.rule)
    states = [(kept[s], kept[f"{s}_scale"]) if f"{s}_scale" in kept else kept.get(s) for s in names]
    own, carried = p.copy(), {}
    for step, g in enumerate(grads, 1):
        now = {name: value for name, value in options.items() if name not in settled} | {"step": step} | carried
        lr = options.get("lr", 0.02)
        back = getattr(functional, f"{case.rule}_")(
            own, g, *states, master=kept.get("master"), lr=lr(step - 1) if callable(lr) else lr, **now
        )
        carried = {} if back is None else {"mu_product": back}
    ref = REFERENCE[case.rule](theirs := p.copy(), **{"lr": 0.02, **options})
    for g in grads:
        ref.step(g)
    assert_same({"params": own, **kept}, {"params": theirs, **ref.state}, str(case))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_step_starts_from_what_codes_stand_for(dtype):
    """With zero gradients, a velocity moves the parameter by the values that gradstep.q8 decodes."""
    _, grads = stored_problem(1000, dtype, "float32")
    opt = gs.Momentum(np.zeros(1000, "f4"), state_dtype="q8", min_8bit_size=0)
    opt.step(grads[0])
    coded = tuple(opt.state.values())
    velocity, moved = q8.decode(*coded), np.zeros(1000, "f4")
    functional.momentum_(moved, np.zeros(1000, dtype), coded, lr=1.0, momentum=1.0)
    assert same_bits(moved, np.float32(0) - velocity)
    assert same_bits(q8.decode(*coded), velocity)


def test_the_master_stays_while_the_parameter_is_ahead():
    """A checkpoint saved at the lookahead point equals one saved outside, and one loaded there is kept."""
    p = np.linspace(-1, 1, 300).astype("bfloat16")
    opt = gs.NAG(p, lr=0.1, lookahead=True, master=True)
    opt.step(np.ones(300, "f4"))
    outside = opt.state_dict()
    with opt.lookahead():
        inside = opt.state_dict()
        assert not same_bits(p, outside["state"][""]["master"].astype("bfloat16"))
    for name in opt.state:
        assert same_bits(inside["state"][""][name], outside["state"][""][name]), name
    outside["state"][""]["master"][:] = 5
    with opt.lookahead():
        opt.load_state_dict(outside)
    assert np.all(opt.state["master"] == 5)

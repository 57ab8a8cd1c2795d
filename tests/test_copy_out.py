"""Low-precision copies of the parameters: bits, layouts, instruction sets, and refusals."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from tests.table import (
    ALL_STORAGES,
    ISAS,
    REFERENCE,
    RULES,
    TAILS,
    THREADS,
    flat,
    same_bits,
    stored_problems,
)
from tests.test_average import layouts

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = {"float16": np.dtype(np.float16), "bfloat16": BFLOAT16, "float32": np.dtype(np.float32)}


def storages():
    return [storage for storage in ALL_STORAGES if not storage.master]


def copy_types(param):
    return ("float32", "float64") if param == "float64" else tuple(TYPES)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("storage", storages(), ids=str)
def test_bits(storage, isa):
    """All rules, storage types and types of copies, some of them averaged, with threads and sizes of tails."""
    _core.use_isa(isa)
    dtypes = copy_types(storage.param)
    for i, rule, start, grads in stored_problems(storage, TAILS):
        gs.set_num_threads(THREADS[i % 2])
        found = []
        for cls in (RULES[rule], REFERENCE[rule]):
            params = start()
            copies = [np.zeros(x.shape, dtypes[(i + k) % len(dtypes)]) for k, x in enumerate(params)]
            copies[1] = None if i == 3 else copies[1]
            opt = cls(params, copy_out=copies, ema=0.75 if i % 2 else None, **storage.options())
            found.append([*params, *copies])
            for g in grads:
                opt.step(g)
        for k, (mine, theirs) in enumerate(zip(*found, strict=True)):
            assert (mine is None and theirs is None) or same_bits(mine, theirs), f"{rule} {k}"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", range(5))
def test_layouts(dtype, layout):
    """Of copies, beside parameters of other layouts; the bytes between their elements stay."""
    shape, rng = (37, 129), np.random.default_rng(layout)
    p = rng.standard_normal(shape).astype(np.float32)
    other = p.copy()
    mine = list(layouts(shape, TYPES[dtype]))[layout]
    theirs = np.zeros(shape, TYPES[dtype])
    ours, reference = gs.Adam(p, copy_out=mine, ema=0.9), gs.reference.Adam(other, copy_out=theirs, ema=0.9)
    assert same_bits(mine, p.astype(TYPES[dtype]))  # before the first step
    for _ in range(3):
        g = rng.standard_normal(shape).astype(np.float32)
        ours.step(g)
        reference.step(g)
    assert same_bits(mine, theirs)
    assert same_bits(p, other)
    assert layout == 0 or not np.any(mine.base[..., 1] if layout == 1 else 0)


def problem():
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal((5, 7)).astype(np.float32), "b": rng.standard_normal(600).astype(np.float32)}
    copies = {name: np.zeros(p.shape, BFLOAT16) for name, p in params.items()}
    return params, copies, {name: np.ones_like(p) for name, p in params.items()}


def test_what_takes_no_part_stays():
    params, copies, g = problem()
    opt = gs.SGD(params, lr=0.5, copy_out=copies)
    before = copy.deepcopy(copies)
    opt.step({"w": g["w"], "b": None})
    assert same_bits(copies["b"], before["b"])
    assert not same_bits(copies["w"], before["w"])
    assert opt.copy_out is copies


def test_groups_and_names():
    params, copies, g = problem()
    opt = gs.SGD([{"params": params["w"]}, {"params": [params["b"]]}], lr=0.5, copy_out=[copies["w"], [None]])
    opt.step([g["w"], [g["b"]]])
    assert same_bits(copies["w"], params["w"].astype(BFLOAT16))
    assert not np.any(copies["b"])


def test_pickles_and_copies():
    params, copies, g = problem()
    opt = gs.Adam(params, copy_out=copies)
    for again in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        again.step(g)
        assert all(same_bits(again.copy_out[name], again.params[name].astype(BFLOAT16)) for name in params)
    assert all(same_bits(copies[name], params[name].astype(BFLOAT16)) for name in params)


def test_replaced_and_moved_arrays_are_noticed():
    params, copies, g = problem()
    opt = gs.Adam(params, copy_out=copies)
    old = copies["w"]
    copies["w"] = old.copy()
    before = copy.deepcopy(params)
    with pytest.raises(ValueError, match=r"copy_out\.w"):
        opt.step(g)
    assert all(same_bits(params[name], before[name]) for name in params)
    opt.rebind()
    opt.step(g)
    assert same_bits(copies["w"], params["w"].astype(BFLOAT16))
    assert not same_bits(old, copies["w"])
    copies["b"].shape = (2, 300)
    with pytest.raises(ValueError, match=r"copy_out\.b"):
        opt.step(g)


def read_only(shape):
    array = np.zeros(shape, np.float16)
    array.flags.writeable = False
    return array


WRONG = {
    "another shape": (lambda _: np.zeros((7, 5), BFLOAT16), ValueError, r"copy_out\.w must have its parameter's shape"),
    "integers": (lambda p: np.zeros(p.shape, np.int8), TypeError, r"copy_out\.w"),
    "float64": (
        lambda p: np.zeros(p.shape),
        TypeError,
        r"copy_out\.w is float64, but must be float16, bfloat16 or float32",
    ),
    "read-only": (lambda p: read_only(p.shape), ValueError, r"copy_out\.w"),
    "the parameter": (lambda p: p, ValueError, r"copy_out\.w is the same array as params\.w"),
    "a number": (lambda _: 1.0, TypeError, r"copy_out\.w"),
    "overlapping itself": (
        lambda _: np.lib.stride_tricks.as_strided(np.zeros(7, np.float32), (5, 7), (0, 4)),
        ValueError,
        r"copy_out\.w has strides",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_refusals(what):
    make, error, words = WRONG[what]
    params, copies, _ = problem()
    before = copy.deepcopy(copies["b"])
    with pytest.raises(error, match=words):
        gs.Adam(params, copy_out={**copies, "w": make(params["w"])})
    assert same_bits(copies["b"], before)


def test_refusals_of_the_whole():
    params, copies, g = problem()
    halves = {name: p.astype(np.float16) for name, p in params.items()}
    with pytest.raises(ValueError, match=r"copy_out\.w has no place where master is True"):
        gs.Adam(halves, master=True, copy_out=copies)
    with pytest.raises(TypeError, match=r"copy_out\[0\] is float16, but must be float32 or float64"):
        gs.Adam([np.zeros(3)], copy_out=[np.zeros(3, np.float16)])
    with pytest.raises((TypeError, ValueError), match="copy_out"):
        gs.Adam(params, copy_out={"w": copies["w"]})
    both = np.zeros(600, np.float32)
    with pytest.raises(ValueError, match=r"copy_out\.b .*copy_out\.w"):
        gs.Adam({"w": params["b"], "b": params["b"].copy()}, copy_out={"w": both, "b": both})
    opt = gs.Adam(params, copy_out=copies)
    with pytest.raises(AttributeError, match="copy_out cannot be set"):
        opt.copy_out = None
    with pytest.raises(ValueError, match=r"grads\.w overlaps copy_out\.w|is the same array"):
        opt.step({**g, "w": copies["w"]})
    assert flat([copies["b"]]).size == 600

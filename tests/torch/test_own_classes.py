"""torch tensors on the CPU, stepped by the classes and functions of gradstep itself."""

import copy
import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep import functional as F

from ..table import RULES, knobs

torch = pytest.importorskip("torch")

SHAPES = ((3, 4), (5,), (), (0, 3), (70, 80))
DTYPES = ("float64", "float32", "float16", "bfloat16")


def arrays(seed, dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), np.float64).astype(dtype) for shape in shapes]


def tensors(values):
    def tensor(x):
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(x.copy())

    return [tensor(x) for x in values]


def same(tensor, array):
    values = tensor.detach()
    if array.dtype.name == "bfloat16":
        return np.array_equal(values.view(torch.int16).numpy(), array.view(np.int16))
    return np.array_equal(values.numpy(), array, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_gets_the_bits_of_an_array(rule, dtype):
    for options in knobs(rule):
        ours, theirs = arrays(1, dtype), tensors(arrays(1, dtype))
        a, b = RULES[rule](ours, **options), RULES[rule](theirs, **options)
        for step in range(3):
            grads = arrays(2 + step, dtype)
            a.step(grads)
            b.step(tensors(grads))
        assert all(map(same, theirs, ours))
        for state in a.state:
            assert all(map(same, b.state[state], a.state[state])), state


@pytest.mark.parametrize(
    "options",
    [
        {"state_dtype": "bfloat16"},
        {"state_dtype": "float16"},
        {"state_dtype": "q8"},
        {"master": True},
        {"stochastic_rounding": 3},
        {"ema": 0.9, "clip_norm": 0.1, "on_nonfinite": "skip"},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_storage_and_of_the_pass(options):
    ours, theirs = arrays(1, "bfloat16"), tensors(arrays(1, "bfloat16"))
    a, b = gs.Adam(ours, **options), gs.Adam(theirs, **options)
    for step in range(3):
        grads = arrays(2 + step)
        one, two = a.step(grads, stats=True), b.step(tensors(grads), stats=True)
    assert all(map(same, theirs, ours))
    assert (one.grad_norm, one.stats) == (two.grad_norm, two.stats)


def test_strides_and_mixes_of_libraries():
    ours = [np.arange(12.0, dtype="f4").reshape(3, 4).T, np.ones((4, 6), "f4")[:, ::2]]
    base = torch.from_numpy(np.ones((4, 6), "f4"))
    theirs = [torch.arange(12.0).reshape(3, 4).T, base[:, ::2]]
    grads = [np.full(x.shape, 0.1, "f4") for x in ours]
    mixed = [torch.from_numpy(grads[0].T.copy()).T, grads[1]]
    a, b = gs.Adam(ours), gs.Adam(theirs)
    for _ in range(2):
        a.step(grads), b.step(mixed)
    assert all(np.array_equal(np.asarray(x), y) for x, y in zip(theirs, ours, strict=True))
    assert torch.equal(base[:, 1::2], torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"^params\[2\] is a NumPy array, but params\[0\] a torch tensor"):
        gs.Adam([*theirs, *ours])


def test_a_parameter_that_needs_a_gradient_and_its_version():
    p = torch.nn.Parameter(torch.ones(3))
    out = torch.ones(3, requires_grad=True)
    opt = gs.SGD({"w": p}, lr=0.5)
    product = (p * out).sum()
    opt.step({"w": torch.ones(3)})
    assert p._version == 1
    assert torch.equal(p.detach(), torch.full((3,), 0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    opt.step({"w": None})
    assert p._version == 1  # it took no part
    copied = torch.zeros(3)
    gs.SGD([p], copy_out=[copied]).step([torch.ones(3)])
    assert p._version == 2
    assert copied._version > 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: torch.ones(3).to_sparse(), TypeError, "layout torch.sparse_coo; only strided tensors are supported"),
        (lambda: torch._neg_view(torch.ones(3)), ValueError, r"differ from those in memory; pass resolve_neg\(\)"),
        (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, ValueError, "resolve_neg"),
        (lambda: torch.ones(3, dtype=torch.complex64), TypeError, "has dtype torch.complex64; supported are float32"),
        (lambda: torch.ones(3, dtype=torch.int32), TypeError, "has dtype torch.int32; supported are float32"),
        (lambda: torch.ones(3, device="meta"), TypeError, "is on meta, but other arrays are in the processor's memory"),
        (lambda: torch.ones(3).as_subclass(Tagged), TypeError, "is of the subclass .*Tagged of Tensor"),
        (lambda: torch.ones(4), ValueError, r"has shape \(4,\), but its parameter has shape \(3,\)"),
    ],
)
def test_what_cannot_be_stepped_is_refused_by_name(make, error, words):
    w = torch.ones(3)
    opt = gs.Adam({"w": w})
    with pytest.raises(error, match=f"^grads\\.w.*{words}"):
        opt.step({"w": make()})
    assert torch.equal(w, torch.ones(3))
    assert opt.step_count == 0
    if "shape" not in words:
        with pytest.raises(error, match=f"^params\\.w.*{words}"):
            gs.Adam({"w": make(), "v": torch.ones(1)})


class Tagged(torch.Tensor):
    pass


def test_memory_that_moved_or_overlaps():
    w = torch.ones(3)
    opt = gs.Adam({"w": w})
    with pytest.raises(ValueError, match=r"grads\.w overlaps params\.w, which the step writes"):
        opt.step({"w": w})
    w.data = torch.zeros(3)
    with pytest.raises(ValueError, match=r"^params\.w was moved or reshaped after the optimizer was made"):
        opt.step({"w": torch.ones(3)})
    with pytest.raises(ValueError, match="overlap"):
        gs.Adam(torch.ones(1).expand(3))
    base = torch.ones(4)
    with pytest.raises(ValueError, match="overlaps"):
        gs.Adam([base, base[1:]])


def test_copies_checkpoints_and_changes(tmp_path):
    params = {"w": torch.nn.Parameter(torch.ones(3)), "b": torch.ones(2).bfloat16()}
    grads = {"w": torch.full((3,), 0.5), "b": torch.ones(2)}
    opt = gs.Adam(params, lr=0.1, ema=0.9)
    opt.step(grads)
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    saved = opt.state_dict()
    with opt.averaged():
        pass
    opt.accumulate(grads)
    opt.step()
    for twin in twins:
        twin.step(grads)
        assert all(
            torch.equal(x, y)
            for x, y in zip(twin.state["exp_avg"].values(), opt.state["exp_avg"].values(), strict=False)
        )
    opt.load_state_dict(saved)
    assert opt.step_count == 1
    assert isinstance(opt.state["exp_avg"]["w"], torch.Tensor)
    pytest.importorskip("safetensors")
    gs.save(tmp_path / "x.safetensors", opt, params=params)
    before = params["b"].clone()
    opt.step(grads)
    gs.load(tmp_path / "x.safetensors", opt)
    assert torch.equal(params["b"], before)
    assert opt.step_count == 1


def test_rows_functions_and_norms():
    table, indices, values = torch.zeros(5, 2), torch.tensor([3, 1]), torch.ones(2, 2)
    gs.SGD(table, lr=1.0).step(gs.Rows(indices, values))
    assert table.sum(1).tolist() == [0, -2, 0, -2, 0]
    p, g = torch.ones(3), torch.ones(3)
    F.sgd_(p, g, lr=0.5)
    assert p.tolist() == [0.5] * 3
    assert p._version == 1
    assert gs.global_norm([g, np.ones(1, "f4")]) == 2

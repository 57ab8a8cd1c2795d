"""Parameters of torch on a GPU that are offloaded get the bits of parameters on the CPU."""

import copy

import pytest

torch = pytest.importorskip("torch", "2.10")
if not torch.cuda.is_available():
    pytest.skip("torch has no GPU", allow_module_level=True)

import gradstep.torch as gt  # noqa: E402
from gradstep.torch import _offload  # noqa: E402

from ..torch.test_offload import CLASSES, DTYPES, WIDE, check_same, gradients, parameters  # noqa: E402

SHAPES = ((700, 801), (5,), (), (0, 3), (64, 33, 3, 3), (1 << 20,))
LATE = 20_000_000
"""Cycles for which the GPU's current stream is kept busy, so that the CPU runs ahead of it."""


def twins(dtype):
    theirs = parameters(dtype, SHAPES)
    theirs[4].data = theirs[4].data.to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(p.detach().to("cuda")) for p in theirs], theirs


def backward(ours, theirs, seed):
    """Makes gradients on a GPU that lags behind, and gives the other parameters copies of the same."""
    grads = gradients(theirs, seed)
    there = [g.to("cuda") for g in grads]
    torch.cuda._sleep(LATE)
    sum((p * g).sum().float() for p, g in zip(ours, there, strict=True)).backward()
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g if p.grad is None else p.grad + g


def train(a, b, ours, theirs, steps=3):
    for seed in range(steps):
        backward(ours, theirs, seed)
        a.step(), b.step()
        read = [p.detach() * 1 for p in ours]  # by the current stream, which waits for the new values
        a.zero_grad(), b.zero_grad()
        assert all(torch.equal(x.cpu(), p) for x, p in zip(read, theirs, strict=True))
    check_same(a, b)


@pytest.mark.parametrize("chunk", [1, _offload.CHUNK])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_every_class(monkeypatch, name, dtype, chunk):
    monkeypatch.setattr(_offload, "CHUNK", chunk)
    ours, theirs = twins(dtype)
    cls = getattr(gt, name)
    a = cls(ours, lr=0.1, offload=True, **CLASSES[name])
    b = cls(theirs, lr=0.1, **WIDE, **CLASSES[name])
    train(a, b, ours, theirs)
    assert all(
        own.staged.is_pinned() and own.grad.is_pinned() for own in a._plan.offloaded.values() if own.param.numel()
    )
    assert all(x.device.type == "cpu" for state in a.state.values() for x in state.values())


@pytest.mark.parametrize("options", [{"max_grad_norm": 0.1}, {"state_dtype": "q8", "ema": 0.9}], ids="-".join)
def test_options_and_accumulation(options):
    ours, theirs = twins(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True, **options), gt.AdamW(theirs, **{**WIDE, **options})
    backward(ours, theirs, 7)  # the first step's gradients are sums
    train(a, b, ours, theirs)
    assert a.grad_norm == b.grad_norm


def test_changed_gradients_and_steps_without_a_pause():
    ours, theirs = twins(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True), gt.AdamW(theirs, **WIDE)
    for seed in range(4):
        backward(ours, theirs, seed)
        for p in (*ours, *theirs):
            p.grad.mul_(0.5)
        a.step(), b.step(), a.step(), b.step()
        a.zero_grad(set_to_none=seed % 2 == 0), b.zero_grad(set_to_none=seed % 2 == 0)
    check_same(a, b)


def test_checkpoints():
    ours, theirs = twins(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True), gt.AdamW(theirs, **WIDE)
    train(a, b, ours, theirs)
    others = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    c = gt.AdamW(others, offload=True)
    c.load_state_dict(copy.deepcopy(a.state_dict()))
    train(c, b, others, theirs)
    d = torch.optim.AdamW([torch.nn.Parameter(p.detach().float()) for p in others])
    d.load_state_dict(copy.deepcopy(c.state_dict()))  # torch moves states to the GPU
    e = gt.AdamW([torch.nn.Parameter(p.detach().clone()) for p in others], offload=True)
    e.load_state_dict(d.state_dict())
    check_same(e, c)

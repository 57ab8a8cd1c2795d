"""Offloaded parameters get the bits of parameters on the CPU, whatever the order of the copies."""

import copy
import gc
import io
import weakref
from itertools import chain

import numpy as np
import pytest

torch = pytest.importorskip("torch", "2.10")

import gradstep.torch as gt  # noqa: E402
from gradstep.torch import _fused, _offload  # noqa: E402

from .simulated import Device  # noqa: E402

CLASSES = {
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adadelta": {},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "NAdam": {},
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = ((70, 80), (5,), (), (0, 3), (9, 11), (64, 64))
WIDE = {"master": True, "state_dtype": "float32"}


@pytest.fixture
def device(monkeypatch):
    simulated = Device()
    monkeypatch.setattr(_fused, "link", lambda _: simulated.link)
    return simulated


def parameters(dtype=torch.float32, shapes=SHAPES):
    source = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=source).to(dtype)) for shape in shapes]


def gradients(params, seed, without=()):
    source = torch.Generator().manual_seed(seed)
    grads = [torch.randn(p.shape, generator=source).to(p.dtype) for p in params]
    return [None if i in without else grad for i, grad in enumerate(grads)]


def backward(params, grads):
    """Lets backward make these gradients, which calls hooks."""
    sum((p * g).sum().float() for p, g in zip(params, grads, strict=True) if g is not None).backward()


def give(params, grads):
    """Sets gradients without backward."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()


def bits(tensor):
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def check_same(a, b):
    """Compares the parameters and states of two optimizers."""
    pairs = zip(*(chain.from_iterable(group["params"] for group in opt.param_groups) for opt in (a, b)), strict=True)
    for p, q in pairs:
        assert np.array_equal(bits(p), bits(q))
        assert a.state.get(p, {}).keys() == b.state.get(q, {}).keys()
        for name, value in b.state.get(q, {}).items():
            assert (a.state[p][name].dtype, a.state[p][name].device) == (value.dtype, value.device)
            assert np.array_equal(bits(a.state[p][name]), bits(value)), name


def train(device, a, b, ours, theirs, steps=3, set_grads=backward, **which):
    for step in range(steps):
        grads = gradients(ours, step, **which)
        set_grads(ours, grads)
        give(theirs, grads)
        a.step(), b.step()
        a.zero_grad(), b.zero_grad()
        device.drain()
    check_same(a, b)


@pytest.mark.parametrize("chunk", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_with_chunks_of_every_size(device, monkeypatch, name, dtype, chunk):
    monkeypatch.setattr(_offload, "CHUNK", chunk)
    cls = getattr(gt, name)
    ours, theirs = parameters(dtype), parameters(dtype)
    a = cls(ours, lr=0.1, offload=True, **CLASSES[name])
    b = cls(theirs, lr=0.1, **WIDE, **CLASSES[name])
    train(device, a, b, ours, theirs, steps=4)
    assert device.torn == 0
    moved = len(ours) * (1 + 4 + 4)  # each parameter at first; gradients; the new values
    assert device.copies == moved
    assert [f.reason for f in a.fallbacks()] == []


@pytest.mark.parametrize("set_grads", [backward, give])
@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.1},
        {"ema": 0.9},
        {"state_dtype": "q8"},
        {"state_dtype": "bfloat16", "stochastic_rounding": 3},
        {"max_grad_norm": 0.1, "ema": 0.9, "maximize": True},
    ],
    ids="-".join,
)
def test_options_and_gradients_that_were_set(device, monkeypatch, options, set_grads):
    monkeypatch.setattr(_offload, "CHUNK", 1)
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True, **options), gt.AdamW(theirs, **{**WIDE, **options})
    train(device, a, b, ours, theirs, set_grads=set_grads)
    assert a.grad_norm == b.grad_norm
    assert device.torn == 0
    if "ema" in options:
        with a.averaged(), b.averaged():
            assert all(np.array_equal(bits(p), bits(q)) for p, q in zip(ours, theirs, strict=True))
        train(device, a, b, ours, theirs, set_grads=set_grads)


@pytest.mark.parametrize("chunk", [1, 1 << 30])
def test_parameters_without_gradients(device, monkeypatch, chunk):
    monkeypatch.setattr(_offload, "CHUNK", chunk)
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    ours[1].requires_grad_(False)
    a, b = gt.Adam(ours, offload=True), gt.Adam(theirs, **WIDE)
    train(device, a, b, ours, theirs, without=(0, 1))
    train(device, a, b, ours, theirs, without=(1, 4))
    train(device, a, b, ours, theirs, set_grads=give, without=range(len(ours)))


def test_several_groups_of_which_one_is_offloaded(device, monkeypatch):
    monkeypatch.setattr(_offload, "CHUNK", 1)
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)

    def groups(params, **options):
        return [{"params": params[:2]}, {"params": params[2:4], "lr": 0.1, **options}, {"params": params[4:]}]

    a, b = gt.NAdam(groups(ours, offload=True)), gt.NAdam(groups(theirs, **WIDE))
    train(device, a, b, ours, theirs)
    assert device.copies == 2 * (1 + 3 + 3)
    new, other = parameters(torch.float16, [(33,)]), parameters(torch.float16, [(33,)])
    a.add_param_group({"params": new, "offload": True})
    b.add_param_group({"params": other, **WIDE})
    train(device, a, b, ours + new, theirs + other)


def test_accumulated_and_changed_gradients(device):
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True), gt.AdamW(theirs, **WIDE)
    train(device, a, b, ours, theirs, steps=1)
    for seed in range(3):
        for params in (ours, theirs):
            backward(params, gradients(params, seed))
            backward(params, gradients(params, 10 + seed))
            torch.nn.utils.clip_grad_norm_(params, 0.5)
            params[0].grad.mul_(2)
        a.step(), b.step()
        a.zero_grad(set_to_none=seed == 1), b.zero_grad(set_to_none=seed == 1)
        device.drain()
    check_same(a, b)


def test_layouts(device):
    pairs = parameters(), parameters()
    for params in pairs:
        params[0].data = params[0].data.T
        params[4].data = torch.ones(9, 22)[:, ::2]
    a, b = gt.Adam(pairs[0], offload=True), gt.Adam(pairs[1])
    for seed in range(3):
        for params in pairs:
            grads = gradients(params, seed)
            grads[0] = grads[0].T.clone().T
            grads[4] = grads[4][:1].expand(9, 11)
            grads[5] = torch._neg_view(grads[5])
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.resolve_neg() if params is pairs[1] else grad
        a.step(), b.step()
        device.drain()
    check_same(a, b)


def test_a_gradient_is_copied_by_backward_and_once(device):
    ours = parameters()
    opt = gt.SGD(ours, offload=True)
    backward(ours, gradients(ours, 0))
    opt.step()
    before = device.copies
    backward(ours, gradients(ours, 1))
    assert device.copies == before + 2 * len(ours) - len(ours)
    before = device.copies
    opt.step()
    assert device.copies == before + len(ours)  # the new values only
    for p in ours:
        p.grad = p.grad.clone()  # the same values, and others' memory
    before = device.copies
    opt.step()
    assert device.copies == before + 2 * len(ours)


def test_gradients_of_distributed_training_are_copied_by_the_step(device, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    ours, theirs = parameters(), parameters()
    a, b = gt.Adam(ours, offload=True), gt.Adam(theirs)
    for step in range(3):
        backward(ours, gradients(ours, step))
        ours[0].grad.data.mul_(0.5)  # as a reduction does it
        give(theirs, gradients(theirs, step))
        theirs[0].grad.mul_(0.5)
        a.step(), b.step()
        a.zero_grad()
        device.drain()
    check_same(a, b)


def test_a_step_waits_for_the_copies_of_the_step_before(device, monkeypatch):
    monkeypatch.setattr(_offload, "CHUNK", 1)
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True), gt.AdamW(theirs, **WIDE)
    for seed in range(3):  # without draining, as if the GPU were slow
        for params in (ours, theirs):
            give(params, gradients(params, seed))
        a.step(), b.step()
    assert any(np.isnan(p.detach().float().numpy()).any() for p in ours)
    device.drain()
    check_same(a, b)
    assert device.torn == 0


@pytest.mark.parametrize("forgotten", ["wait", "join"])
def test_the_simulation_finds_what_is_not_waited_for(device, monkeypatch, forgotten):
    if forgotten == "wait":
        monkeypatch.setattr(_offload.Offloaded, "wait", lambda _: None)
    else:
        monkeypatch.setattr(type(device.up), "join", lambda _: None)
    ours, theirs = parameters(), parameters()
    a, b = gt.SGD(ours, offload=True), gt.SGD(theirs)
    with pytest.raises(AssertionError):
        train(device, a, b, ours, theirs)


def test_weights_that_others_write(device):
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = gt.Adam(ours, offload=True), gt.Adam(theirs, **WIDE)
    train(device, a, b, ours, theirs)
    for params in (ours, theirs):
        with torch.no_grad():
            params[0].fill_(2)
        params[4].data = torch.full_like(params[4], 3)
    train(device, a, b, ours, theirs)
    for params in (ours, theirs):
        params[5].data = params[5].data[:7].clone()
        params[5].grad = None
    for opt, params in ((a, ours), (b, theirs)):
        opt.state.pop(params[5])
    train(device, a, b, ours, theirs)


def test_checkpoints_resume_with_the_same_bits(device):
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True), gt.AdamW(theirs, **WIDE)
    train(device, a, b, ours, theirs)
    file = io.BytesIO()
    torch.save([a.state_dict(), [p.detach() for p in ours]], file)
    file.seek(0)
    state, values = torch.load(file)
    others = [torch.nn.Parameter(p) for p in values]
    c = gt.AdamW(others, offload=True)
    c.load_state_dict(state)
    check_same(c, b)
    train(device, c, b, others, theirs)
    d = gt.AdamW(theirs, **WIDE)  # and without offload
    d.load_state_dict(c.state_dict())
    check_same(d, c)
    assert not d.param_groups[0].get("offload")


def test_checkpoints_of_torch_in_both_directions(device):
    ours, theirs, third = parameters(), parameters(), parameters()
    a, b, c = gt.AdamW(ours, offload=True), torch.optim.AdamW(theirs, foreach=False), gt.AdamW(third)
    for _ in range(2):
        for params, opt in ((ours, a), (third, c)):
            give(params, gradients(params, 1))
            opt.step()
    device.drain()
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(a.state[p]["exp_avg_sq"], b.state[q]["exp_avg_sq"])
        q.detach().copy_(p.detach())
    give(theirs, gradients(theirs, 2))
    b.step()
    for opt, params in ((a, ours), (c, third)):
        opt.load_state_dict(b.state_dict())
        for p, q in zip(params, theirs, strict=True):
            p.detach().copy_(q.detach())
        opt.zero_grad()
    train(device, a, c, ours, third)


@pytest.mark.parametrize("chunk", [1, 1 << 30])
@pytest.mark.parametrize("sizes", [None, [0]])
def test_what_is_refused_changes_nothing(device, monkeypatch, chunk, sizes):
    monkeypatch.setattr(_offload, "CHUNK", chunk)
    params = parameters()
    opt = gt.Adam([{"params": params[:5], "offload": True}, {"params": params[5:], "ema": 0.9}])
    give(params, gradients(params, 1))
    opt.step()
    give(params, gradients(params, 2))
    at = 4 if sizes is None else 5  # offloaded, or not
    params[at].grad = torch.ones(params[at].shape).to_sparse()
    device.drain()
    before = copy.deepcopy([opt.state_dict(), params])
    with pytest.raises(RuntimeError, match="torch's own step, which has no " + ("offload" if sizes is None else "ema")):
        opt.step()
    device.drain()
    after = [opt.state_dict(), params]
    assert all(np.array_equal(bits(p), bits(q)) for p, q in zip(before[1], after[1], strict=True))
    for i, own in before[0]["state"].items():
        assert all(torch.equal(value, after[0]["state"][i][name]) for name, value in own.items())


def test_states_that_were_moved_are_noticed_before_the_first_chunk(device, monkeypatch):
    monkeypatch.setattr(_offload, "CHUNK", 1)
    ours, theirs = parameters(), parameters()
    a, b = gt.Adam(ours, offload=True), gt.Adam(theirs)
    train(device, a, b, ours, theirs)
    for opt, params in ((a, ours), (b, theirs)):
        opt.state[params[4]]["exp_avg"].data = torch.ones(9, 11)
        opt.state[params[5]]["exp_avg"] = torch.ones(64, 64, dtype=torch.float64)
    train(device, a, b, ours, theirs)
    for opt, params in ((a, ours), (b, theirs)):
        opt.state[params[5]]["exp_avg"].data = torch.ones(64, 64, dtype=torch.float64)
    train(device, a, b, ours, theirs)


def test_a_scaler(device):
    ours, theirs = parameters(), parameters()
    a, b = gt.AdamW(ours, offload=True), gt.AdamW(theirs)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    for seed in range(3):
        for opt, params, scaler in ((a, ours, scalers[0]), (b, theirs, scalers[1])):
            grads = gradients(params, seed)
            loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
            if seed == 1:
                params[0].grad[0, 0] = float("inf")
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        device.drain()
    check_same(a, b)


def test_the_optimizer_is_one_of_torch(device):
    ours, theirs = parameters(), parameters()
    a, b = gt.SGD(ours, lr=0.1, momentum=0.9, offload=True), gt.SGD(theirs, lr=0.1, momentum=0.9)
    rates = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.5) for opt in (a, b)]
    for _ in range(2):
        train(device, a, b, ours, theirs, steps=1)
        for rate in rates:
            rate.step()
    c = copy.deepcopy(a)
    assert c.param_groups[0]["offload"]
    train(device, c, b, c.param_groups[0]["params"], theirs)


@pytest.mark.usefixtures("device")
def test_hooks_do_not_outlive_the_optimizer():
    params = parameters()
    opt = gt.SGD(params, offload=True)
    give(params, gradients(params, 1))
    opt.step()
    assert params[0]._post_accumulate_grad_hooks
    own = weakref.ref(opt._plan.offloaded[0])
    del opt
    gc.collect()
    assert own() is None
    assert not params[0]._post_accumulate_grad_hooks


def test_on_the_cpu_the_parameter_itself_is_stepped():
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = gt.AdamW(ours, offload=True), gt.AdamW(theirs, **WIDE)
    train(Device(), a, b, ours, theirs)
    assert not a._plan.offloaded


def test_other_devices_and_values_are_refused():
    with pytest.raises(TypeError, match="SGD: offload must be True or False, got 1"):
        gt.SGD(parameters(), offload=1)
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    opt = gt.SGD([p], offload=True)
    p.grad = torch.empty(3, device="meta")
    with pytest.raises(RuntimeError, match="offload is for parameters on a CUDA GPU or the CPU, not on meta"):
        opt.step()


@pytest.mark.parametrize(("options", "resident", "moved"), [({}, 16, 32), ({"state_dtype": "q8"}, 10, 20)], ids=str)
@pytest.mark.usefixtures("device")
def test_bytes_of_an_element(options, resident, moved):
    (p,) = params = parameters(torch.bfloat16, [(1 << 16,)])
    opt = gt.AdamW(params, offload=True, **options)
    give(params, gradients(params, 1))
    opt.step()
    own = opt._plan.offloaded[0]
    kept = sum(x.nbytes for x in opt.state[p].values() if x.dim()) / p.numel()
    copies = own.staged.itemsize + own.grad.itemsize
    assert round(copies + kept) == resident
    assert round(2 * copies + 2 * kept) == moved  # the link, and the step: each once; states are read and written

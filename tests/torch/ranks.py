"""Processes of torch.distributed, and what they do in tests."""

import copy
import traceback
from contextlib import closing

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from .harness import OURS, loss_of, model, normal, outcome, parameters

FULL = StateDictOptions(full_state_dict=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Ranks:
    """Processes that call the functions of this module together."""

    def __init__(self, count, folder):
        context = torch.multiprocessing.get_context("forkserver")  # torch is imported once
        context.set_forkserver_preload([__name__])
        self.pipes, self.processes = [], []
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, rank, count, str(folder / "init")), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def call(self, name, *args):
        """What the function returns on each rank."""
        for pipe in self.pipes:
            pipe.send((name, args))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(120), f"rank {rank} does not answer"
            answers.append(pipe.recv())
        for rank, (kind, value) in enumerate(answers):
            assert kind == "returned", f"rank {rank}: {value}"
        return [value for _, value in answers]

    def close(self):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def serve(pipe, rank, count, init):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=count)
    with closing(pipe):
        while True:
            try:
                name, args = pipe.recv()
            except EOFError:
                break
            try:
                pipe.send(("returned", globals()[name](*args)))
            except Exception:
                pipe.send(("raised", traceback.format_exc()))
    dist.destroy_process_group()


PLAIN = (3,)
"""The shape of a parameter that is no DTensor."""


def shapes_of(case):
    """Parameters whose parts begin at multiples of 16384, or anywhere, some of them empty."""
    if case == "scalar":
        return [(), (3, 4)]
    return [(64, 1024), (128, 512)] if case == "aligned" else [(7, 5), (33,), (2, 3, 4), (5, 1024), (1,), PLAIN]


def whole_params(case, dtype=torch.float32):
    return [torch.nn.Parameter(normal(shape, dtype, seed)) for seed, shape in enumerate(shapes_of(case))]


def mesh_of(kind):
    count = dist.get_world_size()
    if kind == "replicated":
        return init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("replicas", "parts")), [Replicate(), Shard(0)]
    if kind == "copies":
        return init_device_mesh("cpu", (count,)), [Replicate()]
    if kind == "second axis":
        return init_device_mesh("cpu", (count,)), [Shard(1)]
    if kind == "both axes":
        return init_device_mesh("cpu", (2, count // 2)), [Shard(0), Shard(1)]
    return init_device_mesh("cpu", (count,)), [Shard(0)]


def sharded(params, kind="rows"):
    mesh, placements = mesh_of(kind)
    copies = [p.detach().clone() for p in params]
    return [torch.nn.Parameter(p if p.shape == PLAIN else distribute_tensor(p, mesh, placements)) for p in copies]


def set_grads(wholes, parts, step, skip=None):
    for i, (p, q) in enumerate(zip(wholes, parts, strict=True)):
        p.grad = None if i == skip else normal(p.shape, torch.float32, 100 * step + i).to(p.dtype)
        q.grad = None if i == skip else like(q, p.grad)


def like(p, whole):
    """A tensor, distributed as a parameter is."""
    return distribute_tensor(whole, p.device_mesh, p.placements) if isinstance(p, DTensor) else whole.clone()


def full(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def assert_equal(value, expected, what=""):
    value, expected = full(value).detach(), full(expected).detach()
    if "scale" in str(what):
        value = value.reshape(-1)
    assert value.dtype == expected.dtype, what
    assert value.shape == expected.shape, (what, value.shape, expected.shape)
    assert torch.equal(value, expected), what


def assert_same_run(opt, expected):
    """Parameters and states."""
    for p, q in zip(parameters(opt), parameters(expected), strict=True):
        assert_equal(p, q, "parameter")
        assert opt.state[p].keys() == expected.state[q].keys()
        parted = expected.state[q].keys() - {"step", "mu_product"}
        for key, value in expected.state[q].items():
            assert isinstance(opt.state[p][key], DTensor) == (key in parted and isinstance(p, DTensor)), key
            assert_equal(opt.state[p][key], value, key)


def same_bits(name, options, case, kind="rows", dtype="float32"):
    """Sharded tensors and whole ones, with the same gradients. Returns the bytes of a rank's states."""
    wholes = whole_params(case, getattr(torch, dtype))
    parts = sharded(wholes, kind)
    groups = [{"params": of[:1], "lr": 0.02} for of in (wholes, parts)], [{"params": of[1:]} for of in (wholes, parts)]
    expected, opt = (OURS[name](list(of), **options) for of in zip(*groups, strict=True))
    for step in range(5):
        set_grads(wholes, parts, step, skip=1 if step == 2 else None)
        versions = [p._version for p in parts]
        for each in (expected, opt):
            each.step()
        assert not opt.fallbacks()
        assert [p._version > old for p, old in zip(parts, versions, strict=True)] == [p.grad is not None for p in parts]
        assert opt.grad_norm == expected.grad_norm
        if step == 3:
            with torch.no_grad():
                for p in (*wholes, *parts):
                    p.mul_(0.5)  # masters follow
            parts[0]._local_tensor = parts[0]._local_tensor.clone()  # as fully_shard may do
            opt.param_groups[0]["lr"] = expected.param_groups[0]["lr"] = 0.5
    assert_same_run(opt, expected)
    if "ema" in options:
        with opt.averaged(), expected.averaged():
            for p, q in zip(parts, wholes, strict=True):
                assert_equal(p, q, "average")
        assert_same_run(opt, expected)
    return [(s.dtype, tuple(s.to_local().shape)) for s in opt.state[parts[0]].values() if isinstance(s, DTensor)]


def nearly(name, options, case, kind="rows"):
    """The norm of unaligned parts: the same on all ranks, and that of the whole to rounding."""
    wholes = whole_params(case)
    parts = sharded(wholes, kind)
    expected, opt = OURS[name](wholes, **options), OURS[name](parts, **options)
    norms = []
    for step in range(3):
        set_grads(wholes, parts, step)
        expected.step()
        opt.step()
        norms.append((opt.grad_norm, expected.grad_norm))
    return norms, [full(p).detach() for p in parts], [p.detach() for p in wholes]


def rounded(name, options):
    """Random bits of parts that begin anywhere: their mean is exact, and those of ranks are not alike."""
    mesh, placements = mesh_of("rows")
    p = torch.nn.Parameter(distribute_tensor(torch.ones(64, 40).bfloat16(), mesh, placements))
    opt = OURS[name]([p], lr=2.0**-10, **options)
    p.grad = torch.ones_like(p)
    opt.step()
    return full(p).detach().float()


def nonfinite_norm(name):
    """One rank alone has an element that is not finite; the norm is the same on all."""
    parts = sharded(whole_params("any"))
    opt = OURS[name](parts, max_grad_norm=1.0)
    for p in parts:
        p.grad = torch.ones_like(p)
    if dist.get_rank() == 0:
        parts[0].grad.to_local()[0, 0] = torch.inf
    opt.step()
    return repr(opt.grad_norm), [bool(full(p).isfinite().all()) for p in parts]


def fsdp(name, options, kind="rows", clip=False):
    """A network under fully_shard, and an optimizer of the whole parameters that is given the same gradients."""
    net = model(torch.float32)
    mesh, _ = mesh_of(kind)
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    opt = OURS[name](net.named_parameters(), **options)
    wholes = [torch.nn.Parameter(full(p).detach().clone()) for p in parameters(opt)]
    expected = OURS[name](wholes, **options)
    for step in range(4):
        opt.zero_grad()
        loss_of(net, step * dist.get_world_size() + dist.get_rank()).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        for p, q in zip(parameters(opt), wholes, strict=True):
            q.grad = full(p.grad).clone()
        opt.step()
        expected.step()
        assert not opt.fallbacks()
    assert_same_run(opt, expected)
    return [full(p).detach() for p in parameters(opt)]


def new_run(name, options, case, seed=0):
    wholes = whole_params(case)
    parts = sharded(wholes)
    with torch.no_grad():
        for p in (*parts, *wholes):
            p.mul_(1 + seed)
    net = torch.nn.ParameterList(parts)
    return net, OURS[name](net.parameters(), **options)


def train(opt, steps):
    for step in steps:
        for i, p in enumerate(parameters(opt)):
            p.grad = like(p, normal(p.shape, torch.float32, 100 * step + i))
        opt.step()


def resumed(name, options, case, form, folder):
    """Three steps, a checkpoint, a new optimizer that has stepped, three more: with the bits of six steps."""
    whole = OURS[name](whole_params(case), **options)
    train(whole, range(6))
    net, opt = new_run(name, options, case)
    train(opt, range(3))
    new_net, new = new_run(name, options, case, seed=3)
    train(new, [7])
    if form == "plain":
        new.load_state_dict(copy.deepcopy(opt.state_dict()))
        set_model_state_dict(new_net, get_model_state_dict(net))
    elif form == "full":
        states = get_model_state_dict(net, options=FULL), get_optimizer_state_dict(net, opt, options=FULL)
        states = states if dist.get_rank() == 0 else ({}, {})
        set_model_state_dict(new_net, states[0], options=FROM_FIRST)
        set_optimizer_state_dict(new_net, new, states[1], options=FROM_FIRST)
    else:
        states = {"model": get_model_state_dict(net), "optim": get_optimizer_state_dict(net, opt)}
        dcp.save(states, checkpoint_id=folder)
        into = {"model": get_model_state_dict(new_net), "optim": get_optimizer_state_dict(new_net, new)}
        dcp.load(into, checkpoint_id=folder)
        set_model_state_dict(new_net, into["model"])
        set_optimizer_state_dict(new_net, new, into["optim"])
    train(new, range(3, 6))
    assert not new.fallbacks()
    assert_same_run(new, whole)


def save(name, options, case, folder):
    net, opt = new_run(name, options, case)
    train(opt, range(3))
    dcp.save({"model": get_model_state_dict(net), "optim": get_optimizer_state_dict(net, opt)}, checkpoint_id=folder)


def load(name, options, case, folder):
    """A checkpoint of another number of ranks."""
    whole = OURS[name](whole_params(case), **options)
    train(whole, range(6))
    net, opt = new_run(name, options, case, seed=3)
    into = {"model": get_model_state_dict(net), "optim": get_optimizer_state_dict(net, opt)}
    dcp.load(into, checkpoint_id=folder)
    set_model_state_dict(net, into["model"])
    set_optimizer_state_dict(net, opt, into["optim"])
    train(opt, range(3, 6))
    assert_same_run(opt, whole)


def gathered(name, options, case):
    """A full state dict, loaded into an optimizer of whole parameters."""
    whole = OURS[name](whole_params(case), **options)
    train(whole, range(6))
    net, opt = new_run(name, options, case)
    train(opt, range(3))
    one = torch.nn.ParameterList(whole_params(case))
    new = OURS[name](one.parameters(), **options)
    set_model_state_dict(one, get_model_state_dict(net, options=FULL))
    set_optimizer_state_dict(one, new, get_optimizer_state_dict(net, opt, options=FULL))
    train(new, range(3, 6))
    assert_same_run(new, whole)


def zero(name, options):
    """ZeroRedundancyOptimizer, consolidated and loaded, and one optimizer of all parameters."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns about its own modules

    opts = []
    for make in (
        lambda params: OURS[name](params, **options),
        lambda params: ZeroRedundancyOptimizer(params, optimizer_class=OURS[name], **options),
    ):
        net = model(torch.float32)
        opts.append(make(net.parameters()))
        for step in range(6):
            for i, p in enumerate(net.parameters()):
                p.grad = normal(p.shape, p.dtype, 10 * step + i)
            opts[-1].step()
            if step == 3 and len(opts) == 2:
                opts[-1].consolidate_state_dict()
                states = [opts[-1].state_dict() if dist.get_rank() == 0 else None]
                dist.broadcast_object_list(states)
                net2 = model(torch.float32)
                net2.load_state_dict(net.state_dict())
                net, opts[-1] = net2, make(net2.parameters())
                opts[-1].load_state_dict(states[0])
    for p, q in zip(*map(parameters, opts), strict=True):
        assert_equal(p, q)


def refusals():
    """What is left to torch's own step, and what is refused, with their words."""
    mesh, _ = mesh_of("rows")
    words = []

    def whole(seed):
        return normal((4, 6), torch.float32, seed)

    p = torch.nn.Parameter(distribute_tensor(whole(0), mesh, [Shard(0)]))
    p.grad = distribute_tensor(whole(1), mesh, [Replicate()])
    q = torch.nn.Parameter(whole(0))
    q.grad = whole(1)
    for opt in (OURS["Adam"]([p]), OURS["Adam"]([q])):
        for _ in range(2):
            opt.step()
        words += [fallback.reason for fallback in opt.fallbacks()]
    assert torch.allclose(full(p), q)
    words.append(outcome(lambda: OURS["Adam"]([p], max_grad_norm=1.0).step())[-1])
    p.grad = torch.ones_like(p)
    opt = OURS["Adam"]([p])
    opt.state[p]["exp_avg"] = whole(0)
    words.append(outcome(opt.step)[-1])
    return words


def own_classes():
    """The classes for arrays refuse DTensors."""
    import gradstep as gs

    (p,) = sharded(whole_params("any")[:1])
    return outcome(lambda: gs.Adam([p]))[1:]

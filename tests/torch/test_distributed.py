"""torch.distributed with one process: data parallel training, sharded states, distributed checkpoints."""

import copy
import warnings

import pytest

from .harness import (
    STATEFUL,
    TwinModels,
    assert_close,
    assert_same,
    every_class,
    loss_of,
    model,
    normal,
    outcome,
    parameters,
    stateful,
    torch,
)

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch says about its own modules


@pytest.fixture(scope="module", autouse=True)
def _group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@stateful
@pytest.mark.parametrize("view", [False, True], ids=["gradients apart", "gradients as views of buckets"])
def test_data_parallel(config, view):
    def wrap(net):
        return torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=view)

    twins = TwinModels(config, wrap=wrap)
    twins.train(5)
    twins.check()


@every_class
def test_data_parallel_join(config):
    """The context for uneven inputs."""
    twins = TwinModels(config, wrap=torch.nn.parallel.DistributedDataParallel)
    for net, opt in twins:
        with net.join():
            for step in range(3):
                opt.zero_grad()
                loss_of(net, step).backward()
                opt.step()
    twins.check()


@stateful
@pytest.mark.parametrize("buckets", [False, True], ids=["parameters", "buckets"])
def test_zero_redundancy(config, buckets):
    """States sharded by ZeroRedundancyOptimizer, which makes our class itself; consolidated and loaded."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    nets, opts = [model(), model()], []
    for net, make in zip(nets, (config.ours, config.theirs), strict=True):
        cls = type(make(net.parameters()))
        more = {} if make == config.ours else {"foreach": False}
        opts.append(
            ZeroRedundancyOptimizer(
                net.parameters(), optimizer_class=cls, parameters_as_bucket_view=buckets, **config.options, **more
            )
        )
        assert type(opts[-1].optim) is cls
    for net, opt in zip(nets, opts, strict=True):
        for step in range(6):
            opt.zero_grad()
            loss_of(net, step).backward()
            opt.step()
            if step == 3:
                opt.consolidate_state_dict()
                opt.load_state_dict(opt.state_dict())
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert_close(p, q, 1e-8)


@stateful
def test_zero_redundancy_later_group(config):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    p = torch.nn.Parameter(normal((3, 4)))
    opt = ZeroRedundancyOptimizer([p], optimizer_class=type(config.ours([normal(1)])), **config.options)
    q = torch.nn.Parameter(normal((5,)))
    opt.add_param_group({"params": [q], "lr": 0.5})
    before = q.detach().clone()
    p.grad, q.grad = normal((3, 4)), normal((5,))
    opt.step()
    assert not torch.equal(q.detach(), before)


@stateful
@pytest.mark.parametrize("stepped", [False, True], ids=["into a new optimizer", "into one that has stepped"])
def test_distributed_checkpoint(config, stepped, tmp_path):
    """Saved from ours, loaded into a new model and optimizer; the states have the same bits."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    twins = TwinModels(config)
    twins.train(3)
    net, opt = twins.nets[0], twins.opts[0]
    states, optim = get_state_dict(net, opt)
    dcp.save({"model": states, "optim": optim}, checkpoint_id=tmp_path / "checkpoint")
    new = model(seed=5)
    other = config.ours(new.parameters())
    if stepped:
        loss_of(new, 9).backward()
        other.step()
        other.zero_grad()
    states, optim = get_state_dict(new, other)
    into = {"model": states, "optim": optim}
    dcp.load(into, checkpoint_id=tmp_path / "checkpoint")
    set_state_dict(new, other, model_state_dict=into["model"], optim_state_dict=into["optim"])
    for p, q in zip(parameters(other), parameters(opt), strict=True):
        assert_same(p.detach(), q.detach())
        assert other.state[p].keys() == opt.state[q].keys()
        for key, value in opt.state[q].items():
            assert_same(other.state[p][key].to(value.dtype), value, key)
    twins.nets[0], twins.opts[0] = new, other
    twins.train(3, 3)
    twins.check()


@stateful
@pytest.mark.parametrize("direction", ["from torch", "to torch"])
def test_optimizer_state_dict_by_name(config, direction):
    """get_optimizer_state_dict and set_optimizer_state_dict, between the two implementations."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    twins = TwinModels(config)
    twins.train(3)
    (mine, ours), (their, theirs) = twins
    source, target = ((their, theirs), (mine, ours)) if direction == "from torch" else ((mine, ours), (their, theirs))
    target[0].load_state_dict(source[0].state_dict())
    set_optimizer_state_dict(*target, optim_state_dict=copy.deepcopy(get_optimizer_state_dict(*source)))
    for p, q in zip(*map(parameters, twins.opts), strict=True):
        for key, value in theirs.state[q].items():
            assert_same(ours.state[p][key].to(value.dtype), value, key)
    twins.train(3, 3)
    twins.check()


@pytest.mark.parametrize("config", STATEFUL, ids=lambda config: config.name)
def test_distributed_tensors(config):
    """DTensor parameters on a mesh of one process: torch's own step, or ours on the local part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    opts = []
    for make in (config.ours, config.theirs):
        p = torch.nn.Parameter(distribute_tensor(normal((4, 3)), mesh, [Shard(0)]))
        opts.append(make([p]))
        for step in range(3):
            p.grad = distribute_tensor(normal((4, 3), seed=step), mesh, [Shard(0)])
            opts[-1].step()
    ours, theirs = (parameters(opt)[0].full_tensor().detach() for opt in opts)
    assert_close(ours, theirs, 1e-9)


@pytest.mark.parametrize("config", STATEFUL, ids=lambda config: config.name)
def test_fully_sharded(config):
    """fully_shard (FSDP2) on the CPU, if this build can."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))

    def run(make):
        net = model()
        fully_shard(net, mesh=mesh)
        opt = make(net.parameters())
        for step in range(3):
            opt.zero_grad()
            loss_of(net, step).backward()
            opt.step()
        return [p.full_tensor().detach() for p in net.parameters()]

    with warnings.catch_warnings():
        ours, theirs = (outcome(lambda m=make: run(m)) for make in (config.ours, config.theirs))
    if theirs[0] == "raised":
        pytest.skip(f"torch: {theirs[2][:80]}")
    assert ours[0] == "returned", ours
    for p, q in zip(ours[1], theirs[1], strict=True):
        assert_close(p, q, 1e-9)

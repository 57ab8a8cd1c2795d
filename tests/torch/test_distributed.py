"""torch.distributed: data parallel training, sharded parameters and states, distributed checkpoints."""

import copy
import warnings
from contextlib import ExitStack, closing
from functools import cache

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

from .ranks import Ranks

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


# Two and four processes.

RULES = [
    *((config.name, config.options) for config in STATEFUL),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]
STORED = [
    ("aligned", "float32", {"state_dtype": "q8", "max_grad_norm": 1.0}),
    ("aligned", "bfloat16", {"state_dtype": "bfloat16", "stochastic_rounding": 3, "ema": 0.5}),
    ("any", "bfloat16", {"master": True, "ema": 0.9}),
]
"""With all that depends on where a part begins, for parts that begin at multiples; and without."""
rules = pytest.mark.parametrize(("name", "options"), RULES, ids=str)


@pytest.fixture(scope="module")
def ranks_of(tmp_path_factory):
    """Returns the ranks of a number, which are started once."""
    with ExitStack() as stack:
        yield cache(lambda count: stack.enter_context(closing(Ranks(count, tmp_path_factory.mktemp("ranks")))))


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request, ranks_of):
    return ranks_of(request.param)


@rules
def test_parts_have_the_bits_of_the_whole(ranks, name, options):
    """Groups, gradients that are None, changed options and weights; parameters and states that are DTensors."""
    ranks.call("same_bits", name, options, "any")


@pytest.mark.parametrize("kind", ["replicated", "second axis", "both axes"])
def test_placements(ranks, kind):
    ranks.call("same_bits", "Adam", {}, "aligned", kind)


def test_copies(ranks):
    """DTensors that are whole on all ranks; one of them has no axes."""
    ranks.call("same_bits", "NAdam", {"max_grad_norm": 1.0, "ema": 0.9}, "scalar", "copies")


@pytest.mark.parametrize(("case", "dtype", "more"), STORED, ids=str)
@rules
def test_storage_of_parts(ranks, name, options, case, dtype, more):
    """Random bits, blocks of codes and the norm are those of the whole where parts begin at multiples of 16384."""
    ranks.call("same_bits", name, {**options, **more}, case, "rows", dtype)


def test_bytes_of_codes(ranks):
    """A rank keeps its rows, and a scale for each block of them."""
    rows = 64 // len(ranks.processes)
    codes = [(torch.int8, (rows, 1024)), (torch.float32, (rows, 4)), (torch.uint8, (rows, 1024))]
    for of_rank in ranks.call("same_bits", "Adam", {"state_dtype": "q8"}, "aligned"):
        assert of_rank == [*codes, codes[1]]


@pytest.mark.parametrize("kind", ["rows", "replicated"])
def test_norm_of_parts(ranks, kind):
    """Of parts that begin anywhere: the same on all ranks, so that replicas stay alike, and right to rounding."""
    (norms, params, wholes), *others = ranks.call("nearly", "Adam", {"max_grad_norm": 1.0}, "any", kind)
    for norm, expected in norms:
        assert norm == pytest.approx(expected, rel=1e-12)
    for p, q in zip(params, wholes, strict=True):
        assert_close(p, q, 1e-6)
    for other_norms, other, _ in others:
        assert other_norms == norms
        for p, q in zip(other, params, strict=True):
            assert_same(p, q)


def test_norm_that_is_not_finite(ranks):
    assert {str(of_rank) for of_rank in ranks.call("nonfinite_norm", "Adam")} == {str(("inf", [False] + [True] * 5))}


def test_random_bits_of_parts(ranks):
    """Parts that begin anywhere are rounded without bias, and not like each other."""
    p = ranks.call("rounded", "SGD", {"stochastic_rounding": 0})[0]
    assert set(p.unique().tolist()) == {1 - 2.0**-8, 1.0}
    assert abs((1 - p).mean().item() * 2**10 - 1) < 0.1
    first, second = p.chunk(len(ranks.processes))[:2]
    assert not torch.equal(first, second)


@rules
def test_fully_sharded_network(ranks, name, options):
    """fully_shard: the bits of an optimizer of whole parameters that has the same gradients."""
    first, *others = ranks.call("fsdp", name, options)
    for other in others:
        for p, q in zip(other, first, strict=True):
            assert_same(p, q)


def test_fully_sharded_network_replicated(ranks):
    ranks.call("fsdp", "AdamW", {}, "replicated")


def test_fully_sharded_network_clipped_by_torch(ranks):
    ranks.call("fsdp", "AdamW", {}, "rows", True)


@pytest.mark.parametrize("form", ["plain", "full", "sharded"])
@rules
def test_resumed_run(ranks, name, options, form, tmp_path):
    """From state_dict, from a full state dict of rank 0, and from a distributed checkpoint."""
    if (name, options, form) == ("SGD", {}, "full"):
        pytest.skip("torch broadcasts no state dict without a tensor")
    ranks.call("resumed", name, options, "any", form, str(tmp_path))


@pytest.mark.parametrize("form", ["plain", "full", "sharded"])
@pytest.mark.parametrize("more", [{"state_dtype": "q8", "ema": 0.9}, {"state_dtype": "bfloat16"}], ids=str)
def test_resumed_storage(ranks, more, form, tmp_path):
    ranks.call("resumed", "Adam", more, "aligned", form, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "case", "options"), [("Adam", "any", {}), ("NAdam", "aligned", {"state_dtype": "q8"})], ids=str
)
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
def test_resumed_with_another_number_of_ranks(ranks_of, before, after, name, case, options, tmp_path):
    ranks_of(before).call("save", name, options, case, str(tmp_path))
    ranks_of(after).call("load", name, options, case, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "case", "options"), [("Adam", "any", {}), ("NAdam", "aligned", {"state_dtype": "q8"})], ids=str
)
def test_resumed_by_one_process(ranks, name, case, options):
    ranks.call("gathered", name, options, case)


@rules
def test_zero_redundancy_of_ranks(ranks, name, options):
    ranks.call("zero", name, options)


def test_what_parts_are_left_to_torch(ranks):
    for other, unknown, foreign in ranks.call("refusals"):
        assert other == "its gradient has the placements (Replicate(),), and it has others"
        assert "is left to torch's own step, which has no max_grad_norm" in unknown
        assert foreign.startswith(
            "the state exp_avg is no DTensor of shape (4, 6) with the placements of its parameter"
        )


def test_arrays_are_no_distributed_tensors(ranks):
    for error, words in ranks.call("own_classes"):
        assert error is TypeError
        assert "DTensor" in words

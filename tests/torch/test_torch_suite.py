"""The cases of torch's own tests of optimizers, over its table, in our words.

Not here: cases that need a GPU (parameters on several devices, peak memory, graph capture), and those of `optim_db`
itself. Where a case compares flags of one class, both ours and torch's take part.
"""

import copy
import io
import itertools
import math

import pytest

from .harness import (
    FUSED,
    INFOS,
    NAMES,
    OURS,
    THEIRS,
    Config,
    assert_close,
    assert_same,
    every_class,
    leaves,
    normal,
    optim_db_configs,
    parameters,
    torch,
)

configs = pytest.mark.parametrize("config", optim_db_configs(), ids=str)


# The direction of steps


def problem(contiguous=True, dtype=torch.float32):
    """A linear layer and its loss."""
    weight = normal((10, 5) if contiguous else (10, 5, 2), dtype, 1)
    bias = normal((10,) if contiguous else (10, 2), dtype, 2)
    if not contiguous:
        weight, bias = weight[..., 0], bias[..., 0]
    weight, bias = leaves([weight, bias])
    x = normal((5,), dtype, 3)
    return [weight, bias], lambda: ((weight.mv(x) + bias) ** 2).sum()


def descend(opt, loss, schedulers=(), steps=20):
    """Losses before and after the steps."""

    def closure():
        opt.zero_grad()
        value = loss()
        value.backward()
        return value

    initial = closure().item()
    for _ in range(steps):
        value = opt.step(closure)
        for scheduler in schedulers:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(value.detach())
            else:
                scheduler.step()
    return initial, loss().item()


def assert_right_direction(config, before, after):
    assert after > before if config.options.get("maximize") else after < before


@configs
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@pytest.mark.parametrize("flags", [{}, {"foreach": False}, {"foreach": True}], ids=str)
def test_goes_right_direction(config, contiguous, flags):
    if flags.get("foreach") and isinstance(config.options.get("lr"), torch.Tensor) and config.name in ("Adam", "AdamW"):
        pytest.skip("torch refuses these flags together")
    params, loss = problem(contiguous)
    assert_right_direction(config, *descend(config.ours(params, **flags), loss))


SCHEDULES = [(name, i) for name in NAMES for i in range(len(INFOS[name].scheduler_inputs))]


@pytest.mark.parametrize(("name", "which"), SCHEDULES)
def test_goes_right_direction_with_schedulers(name, which):
    for info in INFOS[name].optim_inputs_func(device="cpu"):
        config = Config(name, info.kwargs)
        params, loss = problem()
        opt = config.ours(params)
        schedulers = [make(opt) for make in INFOS[name].scheduler_inputs[which]]
        assert_right_direction(config, *descend(opt, loss, schedulers))


@configs
def test_goes_right_direction_in_groups(config):
    """The second group has its own rate, and a schedule applies to both."""
    (weight, bias), loss = problem()
    opt = config.ours([{"params": [weight]}, {"params": [bias], "lr": 0.01}])
    schedulers = [torch.optim.lr_scheduler.StepLR(opt, 10, 0.9)]
    assert_right_direction(config, *descend(opt, loss, schedulers))


# Rates as tensors


@configs
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensor_rates(config, shape, dtype):
    """The result of the number, whatever the dimensions of the tensor; the tensor itself is not changed."""
    options = {key: value for key, value in config.options.items() if key != "lr"}
    rate = torch.full(shape, 0.015625, dtype=dtype)
    results = []
    for lr in (rate, 0.015625):
        params, loss = problem(dtype=torch.float64)
        opt = Config(config.name, options).ours(params, lr=lr)
        descend(opt, loss, steps=5)
        results.append(params)
        assert opt.param_groups[0]["lr"] is lr
    for p, q in zip(*results, strict=True):
        assert_same(p.detach(), q.detach())
    assert torch.equal(rate, torch.full(shape, 0.015625, dtype=dtype))


# Flags against the for-loop form


def compare_with_forloop(config, flags, dtype, steps=7, **more):
    opts = []
    for make, flag in ((config.ours, flags), (config.theirs, {})):
        params = leaves(normal(shape, dtype, seed) for seed, shape in enumerate([(3, 4), (5,), (1, 2, 3), (1,)]))
        opts.append(make(params, **flag, **more))
        for step in range(steps):
            for i, p in enumerate(params):
                p.grad = normal(p.shape, dtype, 10 * step + i) if (step, i) != (3, 3) else None
            opts[-1].step()
    limit = 1e-10 if dtype in (torch.float64, torch.complex128) else 3e-6
    for p, q in zip(*map(parameters, opts), strict=True):
        assert_close(p, q, limit)
        assert opts[0].state[p].keys() == opts[1].state[q].keys()


@configs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_flag_matches_forloop(config, flag, dtype):
    if flag == "fused" and config.name not in FUSED:
        pytest.skip("torch has no fused form")
    if flag == "foreach" and isinstance(config.options.get("lr"), torch.Tensor) and config.name in ("Adam", "AdamW"):
        pytest.skip("torch refuses these flags together")
    compare_with_forloop(config, {flag: True}, dtype)


@configs
def test_set_default_dtype_works_with_foreach(config):
    """A default type of float64."""
    torch.set_default_dtype(torch.float64)
    params, loss = problem(dtype=torch.float64)
    opt = config.ours(params, foreach=True)
    assert_right_direction(config, *descend(opt, loss, steps=2))
    assert all(state["step"].item() == 2 for state in opt.state.values() if "step" in state)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["foreach", "fused", None])
def test_large_tensors(name, flag):
    """More elements than one block of any kernel."""
    if flag == "fused" and name not in FUSED:
        pytest.skip("torch has no fused form")
    p = torch.ones(2**20 + 3, requires_grad=True)
    opt = OURS[name]([p], **({flag: True} if flag else {}))
    p.grad = torch.ones_like(p)
    opt.step()
    assert p.min() == p.max() != 1


@every_class
def test_mixed_types(config):
    """float16 to float64 in one group: each close to what float32 has."""
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    values = normal((5, 3), torch.bfloat16)  # which all others contain
    params = leaves(values.to(dtype, copy=True) for dtype in dtypes)
    opt = config.ours(params)
    for step in range(3):
        g = normal((5, 3), torch.bfloat16, step)
        for p in params:
            p.grad = g.to(p.dtype)
        opt.step()
    for p in params:
        # NAdam and Adam divide by the root of a state that these types round, so a step may differ by its half.
        assert (p.detach().double() - params[2].detach().double()).abs().max() < 0.05


# Complex numbers


@configs
@pytest.mark.parametrize("flags", [{}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("shape", [(3,), (2, 4)], ids=str)
def test_complex_is_two_real_numbers(config, flags, shape):
    """A complex parameter and its two parts make the same steps."""
    z = normal(shape, torch.complex128)
    z, pair = leaves([z, torch.view_as_real(z).clone()])
    one, two = config.ours([z], **flags), config.ours([pair], **flags)
    if config.options.get("initial_accumulator_value"):
        flags = {}
    for step in range(5):
        z.grad = normal(shape, torch.complex128, step)
        pair.grad = torch.view_as_real(z.grad).clone()
        for opt in (one, two):
            opt.step()
        assert_close(torch.view_as_real(z.detach()), pair.detach(), 1e-10)


@configs
def test_complex_loss(config):
    """The gradients come from a loss of complex values."""
    results = []
    for make in (config.ours, config.theirs):
        (z,) = leaves([normal((4,), torch.complex128)])
        opt = make([z])
        for _ in range(5):
            opt.zero_grad()
            (z * z.conj() + (z - 1j).abs()).abs().sum().backward()
            opt.step()
        results.append(z.detach())
    assert_close(*results, 1e-9)


# Groups


@every_class
def test_add_param_group_with_decay(config):
    """A group added later, whose own decay acts alone."""
    weight, bias = leaves([normal((4, 3)), normal((4,), seed=1)])
    opt = config.ours([weight])
    opt.add_param_group({"params": bias, "weight_decay": 0.7})
    assert [len(group["params"]) for group in opt.param_groups] == [1, 1]
    assert opt.param_groups[1]["params"][0] is bias
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    before = weight.detach().clone(), bias.detach().clone()
    opt.step()
    assert (bias.detach().abs() <= before[1].abs()).all()
    assert not torch.equal(bias.detach(), before[1])
    if opt.param_groups[0]["weight_decay"] == 0:
        assert_same(weight.detach(), before[0])


@configs
def test_groups_with_weight_decay(config):
    """The decay of one group does not touch the other."""
    options = {**config.options, "weight_decay": 0.0}
    if options.get("maximize"):
        pytest.skip("the decay would have the other sign")
    weight, bias = leaves([normal((4, 3)), normal((4,), seed=1)])
    opt = Config(config.name, options).ours([{"params": [weight], "weight_decay": 0.01}, {"params": [bias]}])
    for p in (weight, bias):
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in (weight, bias)]
    opt.step()
    assert (weight.detach().abs() < before[0].abs()).all()
    assert_same(bias.detach(), before[1])


@configs
def test_groups_with_rates(config):
    """A group with a rate of zero stays."""
    weight, bias = leaves([normal((4, 3)), normal((4,), seed=1)])
    opt = config.ours([{"params": [weight], "lr": 0.0}, {"params": [bias]}])
    before = [p.detach().clone() for p in (weight, bias)]
    for step in range(3):
        weight.grad, bias.grad = normal((4, 3), seed=step), normal((4,), seed=step)
        opt.step()
    assert_same(weight.detach(), before[0])
    assert (bias.detach() != before[1]).all()


# Steps without effect


@configs
def test_no_effect_without_gradients(config):
    params, _ = problem()
    opt = config.ours(params)
    before, states = [p.detach().clone() for p in params], copy.deepcopy(opt.state_dict())
    for _ in range(3):
        opt.step()
    for p, q in zip(params, before, strict=True):
        assert_same(p.detach(), q)
    after = opt.state_dict()
    assert after["state"].keys() == states["state"].keys()
    for i, state in states["state"].items():
        for key, value in state.items():
            assert_same(after["state"][i][key], value, key)


@configs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_no_effect_of_zero_gradients(config, dtype):
    """But for weight decay, and AdamW's is on by default. torch's Adam in float16 divides zero by zero."""
    options = {**config.options, "weight_decay": 0.0}
    params = leaves([normal((4, 5), dtype)])
    opt = Config(config.name, options).ours(params)
    before = params[0].detach().clone()
    for _ in range(3):
        params[0].grad = torch.zeros_like(params[0])
        opt.step()
    assert_same(params[0].detach(), before)


@configs
def test_first_step_after_none(config):
    """A parameter that gets its first gradient late starts at step 1."""
    first, late = leaves([normal((3,)), normal((3,), seed=1)])
    opt = config.ours([first, late])
    for step in range(4):
        first.grad = normal((3,), seed=step)
        late.grad = normal((3,), seed=step) if step == 3 else None
        opt.step()
    state = opt.state.get(late, {})
    if "step" in state:
        assert state["step"].item() == 1
        assert opt.state[first]["step"].item() == 4


@configs
def test_non_empty_state(config):
    """Once stepped, every class but plain SGD keeps something for each parameter."""
    params, loss = problem()
    opt = config.ours(params)
    descend(opt, loss, steps=1)
    expected = config.name != "SGD" or "momentum" in config.options
    assert all(bool(opt.state.get(p)) == expected for p in params)


# State dicts


@configs
@pytest.mark.parametrize("flags", [{}, {"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_deterministic_state_dict(config, flags):
    """Two optimizers, one loaded from the other's state, make the same steps, bit for bit."""
    if "fused" in flags and config.name not in FUSED:
        pytest.skip("torch has no fused form")
    if isinstance(config.options.get("lr"), torch.Tensor) and config.name in ("Adam", "AdamW") and "foreach" in flags:
        pytest.skip("torch refuses these flags together")
    params, loss = problem()
    opt = config.ours(params, **flags)
    descend(opt, loss, steps=5)
    other, other_loss = problem()
    for p, q in zip(other, params, strict=True):
        p.data.copy_(q.data)
    twin = config.ours(other, **flags)
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(5):
        assert descend(opt, loss, steps=1) == descend(twin, other_loss, steps=1)
    for p, q in zip(params, other, strict=True):
        assert_same(p.detach(), q.detach())
    # Saving again gives the same, and groups keep their numbers.
    saved = opt.state_dict(), twin.state_dict()
    assert [g["params"] for g in saved[0]["param_groups"]] == [g["params"] for g in saved[1]["param_groups"]]


@configs
def test_equal_after_file_with_weights_only(config):
    params, loss = problem()
    opt = config.ours(params)
    descend(opt, loss, steps=2)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    saved = opt.state_dict()
    assert loaded["param_groups"] == saved["param_groups"]
    assert loaded["state"].keys() == saved["state"].keys()
    for i, state in saved["state"].items():
        for key, value in state.items():
            if value is not None:
                assert_same(loaded["state"][i][key], value, key)


@configs
def test_older_state_dicts(config):
    """Without the flags that torch added over the years; they get their defaults."""
    params, loss = problem()
    opt = config.ours(params)
    descend(opt, loss, steps=2)
    state = copy.deepcopy(opt.state_dict())
    flags = INFOS[config.name].not_og_supported_flags
    for flag in flags:
        for group in state["param_groups"]:
            group.pop(flag, None)
    maximize = config.options.get("maximize")
    opt.load_state_dict(state)
    for flag in flags:
        if flag in opt.defaults:
            assert not opt.param_groups[0][flag], "the default is not what the file lacks"
    before, after = descend(opt, loss, steps=2)
    assert after < before or maximize


@configs
def test_step_counts_that_are_numbers(config):
    """From before torch had tensors for them."""
    params, loss = problem()
    opt = config.ours(params)
    descend(opt, loss, steps=3)
    state = copy.deepcopy(opt.state_dict())
    for s in state["state"].values():
        if "step" in s:
            s["step"] = s["step"].item()
    opt.load_state_dict(state)
    for s in opt.state.values():
        if "step" in s:
            assert isinstance(s["step"], torch.Tensor)
            assert s["step"].item() == 3
    descend(opt, loss, steps=1)
    assert all(s.get("step", torch.tensor(4.0)).item() == 4 for s in opt.state.values())


NAMING = list(itertools.product([False, True], repeat=2))


@every_class
@pytest.mark.parametrize(("saved", "loaded"), NAMING, ids=[f"{a}-{b}".replace("True", "named") for a, b in NAMING])
def test_named_and_unnamed_state_dicts(config, saved, loaded):
    """Names are loaded where they are saved, and kept where they are not."""

    def make(named, prefix):
        params, loss = problem()
        return config.ours([(f"{prefix}{i}", p) for i, p in enumerate(params)] if named else params), loss

    opt, loss = make(saved, "a")
    descend(opt, loss, steps=2)
    other, other_loss = make(loaded, "b")
    for p, q in zip(parameters(other), parameters(opt), strict=True):
        p.data.copy_(q.data)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    expected = ["a0", "a1"] if saved else ["b0", "b1"] if loaded else None
    assert other.param_groups[0].get("param_names") == expected
    assert descend(opt, loss, steps=2) == descend(other, other_loss, steps=2)


@every_class
def test_names_loaded_in_another_order(config):
    """A hook before loading may put states in the order of names, as torch's documentation shows."""
    params, loss = problem()
    opt = config.ours([("weight", params[0]), ("bias", params[1])])
    descend(opt, loss, steps=2)
    other, _ = problem()
    new = config.ours([("bias", other[1]), ("weight", other[0])])

    def by_name(optimizer, state):
        names = state["param_groups"][0]["param_names"]
        order = [names.index(name) for name in optimizer.param_groups[0]["param_names"]]
        return {
            "state": {i: state["state"][j] for i, j in enumerate(order) if j in state["state"]},
            "param_groups": state["param_groups"],
        }

    new.register_load_state_dict_pre_hook(by_name)
    new.load_state_dict(copy.deepcopy(opt.state_dict()))
    for p, q in zip(params, reversed(parameters(new)), strict=True):
        for key, value in opt.state.get(p, {}).items():
            assert_same(new.state[q][key], value, key)


@configs
def test_deepcopy_of_public_attributes(config):
    """Every attribute is copied, before and after a step."""
    params, loss = problem()
    opt = config.ours(params)
    for steps in (0, 1):
        descend(opt, loss, steps=steps)
        other = copy.deepcopy(opt)
        public = [{name for name in vars(o) if not name.startswith("_")} for o in (opt, other)]
        assert public[0] == public[1]
        assert public[0] >= {"defaults", "param_groups", "state"}


# What is called


@every_class
def test_step_methods_are_hooked_once(config):
    """Many instances wrap `step` of their class once."""
    for _ in range(3):
        opt = config.ours(leaves([normal((2,))]))
    calls = []
    opt.register_step_post_hook(lambda *_: calls.append(1))
    opt.step()
    assert calls == [1]
    assert type(opt).step.hooked


@every_class
def test_profiler_sees_steps(config):
    """Under the name that profiles of torch's optimizers have."""
    params = leaves([normal((2,))])
    opt = config.ours(params)
    params[0].grad = torch.ones_like(params[0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
        opt.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert f"Optimizer.step#{config.name}.step" in names
    assert f"Optimizer.zero_grad#{config.name}.zero_grad" in names


@every_class
def test_hooks_of_steps(config):
    """Pre and post hooks run around every step, and not once removed."""
    params, loss = problem()
    opt = config.ours(params)
    seen = []
    handles = [
        opt.register_step_pre_hook(lambda _opt, _args, _kwargs: seen.append("pre")),
        opt.register_step_post_hook(lambda _opt, _args, _kwargs: seen.append("post")),
    ]
    descend(opt, loss, steps=2)
    assert seen == ["pre", "post"] * 2
    for handle in handles:
        handle.remove()
    descend(opt, loss, steps=1)
    assert len(seen) == 4


@every_class
def test_iteration_counts(config):
    """Losses that a closure returns come out, one call for each step."""
    opt, calls = config.ours(problem()[0]), []
    for step in range(3):
        assert opt.step(lambda step=step: calls.append(step) or step) == step
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("factor", [1.0, 2.0**14])
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_scale_and_verdict_handed_over(name, factor, found):
    """fused=True: the optimizer's attributes grad_scale and found_inf, as GradScaler sets them."""
    results = []
    for handed in (True, False):
        (p,) = leaves([normal((7,), torch.float32)])
        opt = OURS[name]([p], fused=True) if handed else THEIRS[name]([p], foreach=False, fused=False)
        if handed:
            assert opt._step_supports_amp_scaling
        for step in range(3):
            skip = step == 1 and found
            g = normal((7,), torch.float32, step)
            if handed:
                p.grad = g * factor
                opt.grad_scale, opt.found_inf = torch.tensor(factor), torch.tensor(1.0 if skip else 0.0)
                opt.step()
                del opt.grad_scale, opt.found_inf
            elif not skip:
                p.grad = g
                opt.step()
        results.append(p.detach())
    assert_close(*results, 2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    """Forward in bfloat16, parameters and steps in float32."""
    losses = []
    for cls in (OURS[name], THEIRS[name]):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = torch.nn.Linear(6, 2)
        opt = cls(net.parameters())
        scaler = torch.amp.GradScaler("cpu", enabled=True)
        for step in range(4):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = net(normal((4, 6), torch.float32, step)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
        losses.append(loss.item())
    assert math.isclose(*losses, rel_tol=0.02)

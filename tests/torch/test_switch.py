"""Changing one import is the whole migration: everything around an optimizer works as with torch's classes."""

import copy
import threading
import warnings
from functools import partial

import numpy
import pytest

from .harness import (
    CAPTURABLE,
    FUSED,
    NAMES,
    OURS,
    SOME_STATE,
    STATEFUL,
    THEIRS,
    Config,
    TwinModels,
    Twins,
    assert_close,
    assert_matches,
    assert_same,
    every_class,
    leaves,
    loss_of,
    model,
    normal,
    outcome,
    parameters,
    relative_error,
    simple,
    stateful,
    torch,
)

lr_scheduler = torch.optim.lr_scheduler


# Groups


@every_class
def test_groups_share_the_dicts_that_users_change(config):
    """Options are read from `param_groups` at each step."""
    twins = Twins(config, group=lambda p: [{"params": p[:2]}, {"params": p[2:], "lr": 0.5}])
    for step in range(6):
        for opt in twins:
            opt.param_groups[0]["lr"] = 0.1 / (1 + step)
            opt.param_groups[1]["weight_decay"] = 0.01 * step
        twins.step()
    twins.check()
    assert [g["lr"] for g in twins.ours.param_groups] == [g["lr"] for g in twins.theirs.param_groups]


@stateful
def test_the_same_keys_and_repr(config):
    twins = Twins(config, group=lambda p: [{"params": p[:1]}, {"params": p[1:], "lr": 0.5}])
    ours = repr(twins.ours)
    for group in twins.theirs.param_groups:  # the flags of the for-loop form
        group.update({key: twins.ours.param_groups[0][key] for key in ("foreach", "fused") if key in group})
    assert ours == repr(twins.theirs)
    assert [g.keys() for g in twins.ours.param_groups] == [g.keys() for g in twins.theirs.param_groups]
    assert twins.ours.defaults.keys() == twins.theirs.defaults.keys()


@stateful
def test_named_parameters(config):
    twins = Twins(config, group=lambda p: [(f"layer{i}", q) for i, q in enumerate(p)])
    twins.step(3)
    twins.check()
    for opt in twins:
        assert opt.state_dict()["param_groups"][0]["param_names"] == ["layer0", "layer1", "layer2", "layer3"]


@stateful
def test_add_param_group(config):
    """Before the first step, between steps, with other options."""
    twins = Twins(config, lambda: simple()[:1])
    for seed in range(3):
        for opt in twins:
            (new,) = leaves([normal((4, seed + 1), seed=seed)])
            opt.add_param_group({"params": [new], "lr": 0.01 * (1 + seed)})
        twins.step(3)
    assert len(twins.ours.param_groups) == 4
    twins.check()


@every_class
def test_groups_that_are_refused(config):
    """A parameter in two groups; something that is not a tensor; a set; a tensor with a history; names for some."""
    p, q = leaves(simple()[:2])
    bad = [{"params": [p]}, {"params": [1.0]}, {"params": {q}}, {"params": [q * 2]}, {"params": [("q", q)]}, [q]]
    for group in bad:
        opts = config.ours([p]), config.theirs([p])
        ours, theirs = (outcome(partial(opt.add_param_group, group)) for opt in opts)
        assert ours == theirs
        assert ours[0] == "raised"


@every_class
def test_parameter_lists_that_are_refused(config):
    for params in ([], (), {}, [{}], 3, normal((2,))):
        ours, theirs = outcome(lambda p=params: config.ours(p)), outcome(lambda p=params: config.theirs(p))
        assert ours == theirs
        assert ours[0] == "raised"


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam"])
def test_betas_in_a_list(name):
    """Whose elements may change in place."""
    twins = Twins(Config(name))
    for opt in twins:
        opt.param_groups[0]["betas"] = [0.9, 0.99]
    for beta in (0.9, 0.5, 0.1):
        for opt in twins:
            opt.param_groups[0]["betas"][0] = beta
        twins.step(2)
    twins.check()


# Options of which gradstep's own optimizers accept less: at construction, and set later.
ACCEPTED = [
    ("SGD", {"momentum": 1.0}, {}),
    ("SGD", {"momentum": 1.5}, {}),
    ("SGD", {"momentum": 0.9, "dampening": 1.5}, {}),
    ("SGD", {"momentum": 0.9, "dampening": -0.5}, {}),
    ("SGD", {"lr": 0.0}, {}),
    ("SGD", {"lr": 1}, {}),
    ("SGD", {"momentum": True}, {}),
    ("SGD", {}, {"weight_decay": -0.1}),
    ("RMSprop", {"alpha": 1.0}, {}),
    ("RMSprop", {"alpha": 0.0, "eps": 0.0}, {}),
    ("RMSprop", {"momentum": 1.5}, {}),
    ("Adadelta", {"rho": 1.0}, {}),
    ("Adadelta", {"rho": 0.0}, {}),
    ("Adagrad", {"eps": 0.0, "initial_accumulator_value": 2}, {}),
    ("Adam", {"betas": (0.0, 0.0)}, {}),
    ("Adam", {"eps": 0}, {"betas": (0.9, 0.5)}),
    ("AdamW", {"weight_decay": 200.0}, {}),
    ("NAdam", {"momentum_decay": 5.0}, {}),
    *((name, {}, {"lr": -0.1}) for name in NAMES),
    *((name, {}, {"lr": 0}) for name in NAMES),
    *((name, {"lr": numpy.float64(0.25)}, {"lr": numpy.float64(0.125)}) for name in NAMES),
    *((name, {}, {"lr": torch.tensor(0.125, dtype=torch.float64), "maximize": True}) for name in NAMES),
]


@pytest.mark.parametrize(("name", "options", "later"), ACCEPTED, ids=[f"{n}-{o}-{p}" for n, o, p in ACCEPTED])
def test_options_that_torch_accepts(name, options, later):
    """Numbers of any kind, and out of the range that makes sense."""
    twins = Twins(Config(name, options))
    twins.step(2)
    for opt in twins:
        opt.param_groups[0].update(later)
    twins.step(2)
    twins.check()


# Learning rates


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=3, cycle_momentum=has_momentum(o)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=13, cycle_momentum=has_momentum(o)),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(o, 4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-4, anneal_epochs=3),
}


def has_momentum(opt):
    return "momentum" in opt.defaults or "betas" in opt.defaults


@stateful
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("family", SCHEDULERS)
def test_schedulers(family, tensor, config):
    """The rates, and momenta where they are cycled, are the same at each step; so is what they lead to."""
    lr = torch.tensor(0.01, dtype=torch.float64) if tensor else 0.01
    twins = Twins(Config(config.name, {**config.options, "lr": lr}))
    scheduled = [SCHEDULERS[family](opt) for opt in twins]
    for step in range(12):
        twins.step()
        for scheduler in scheduled:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step")  # SequentialLR's own
                scheduler.step(*([1.0 + step] if family == "ReduceLROnPlateau" else []))
        (ours,), (theirs,) = (opt.param_groups for opt in twins)
        for key in {"lr", "betas", "momentum"} & theirs.keys():
            assert ours[key] == theirs[key]
        assert isinstance(ours["lr"], torch.Tensor) == isinstance(theirs["lr"], torch.Tensor)
    twins.check()


@stateful
def test_scheduler_resumed(config):
    """From the state dicts of both, into new objects."""
    twins = Twins(config)
    scheduled = [lr_scheduler.OneCycleLR(opt, 0.1, total_steps=9, cycle_momentum=False) for opt in twins]
    for step in range(8):
        if step == 4:
            saved = twins.ours.state_dict(), scheduled[0].state_dict()
            twins.ours = config.ours(leaves(p.clone() for p in parameters(twins.ours)))
            scheduled[0] = lr_scheduler.OneCycleLR(twins.ours, 0.1, total_steps=9, cycle_momentum=False)
            twins.ours.load_state_dict(saved[0])
            scheduled[0].load_state_dict(saved[1])
        twins.step()
        for scheduler in scheduled:
            scheduler.step()
    twins.check()


@every_class
@pytest.mark.parametrize("wrong", [-1.0, "tensor of two"])
def test_rates_that_are_refused(config, wrong):
    lr = torch.tensor([0.1, 0.1]) if isinstance(wrong, str) else wrong
    ours, theirs = (outcome(lambda m=make: m([normal((2,))], lr=lr)) for make in (config.ours, config.theirs))
    assert ours == theirs
    assert ours[0] == "raised"


@every_class
def test_stochastic_weight_averaging(config):
    swa = torch.optim.swa_utils
    twins = TwinModels(config)
    averages = [swa.AveragedModel(net) for net, _ in twins]
    for step in range(4):
        twins.train(1, step)
        for (net, _), average in zip(twins, averages, strict=True):
            average.update_parameters(net)
    twins.check()
    for p, q in zip(*(average.parameters() for average in averages), strict=True):
        assert_close(p, q, twins.limit)


# Steps


@every_class
def test_closure(config):
    """Called once with gradients enabled, whatever is around the step; its result is the step's."""
    twins = Twins(config)
    for opt in twins:
        calls = []

        def closure(opt=opt, calls=calls):
            assert torch.is_grad_enabled()
            calls.append(1)
            opt.zero_grad()
            loss = sum((p**2).sum() for p in parameters(opt))
            loss.backward()
            return loss

        for step in (lambda o: o.step(closure), lambda o: o.step(closure=closure)):
            with torch.no_grad():
                expected = sum((p**2).sum() for p in parameters(opt))
                result = step(opt)
            assert result.requires_grad
            assert_close(result.detach(), expected, 1e-14)
        assert calls == [1, 1]
    twins.check()
    assert all(opt.step(lambda: 2.5) == 2.5 for opt in twins)
    assert all(opt.step() is None for opt in twins)


@every_class
def test_an_error_in_a_closure_changes_nothing(config):
    p = leaves(simple())
    opt = config.ours(p)
    before = [q.detach().clone() for q in p]

    def closure():
        raise KeyError("loss")

    with pytest.raises(KeyError):
        opt.step(closure)
    for q, start in zip(p, before, strict=True):
        assert_same(q.detach(), start)


@every_class
def test_step_hooks(config):
    """Of one optimizer and of all, in order, with the arguments; a hook before the step may replace them."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    opt = config.ours(leaves(simple()))
    seen = []

    def before(o, args, _kwargs):
        assert o is opt
        seen.append("before")
        return args, {"closure": lambda: 7.0}

    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("before all")),
        opt.register_step_pre_hook(before),
        opt.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_post_hook(lambda *_: seen.append("after all")),
    ]
    try:
        assert opt.step() == 7.0
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["before all", "before", "after", "after all"]
    assert opt.step() is None
    assert len(seen) == 4


@every_class
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(config, to_none):
    twins = Twins(config)
    twins.step()
    held = [p.grad for p in parameters(twins.ours)]
    for opt in twins:
        opt.zero_grad(set_to_none=to_none)
    for p, grad in zip(parameters(twins.ours), held, strict=True):
        assert p.grad is (None if to_none else grad)
        assert to_none or not grad.any()
    for opt in twins:
        opt.step()
    twins.check()


PATTERNS = {
    "first never": lambda _, i: i == 0,
    "late": lambda step, i: i == 1 and step < 3,
    "in alternation": lambda step, i: (i + step) % 2,
    "once none": lambda step, _: step == 2,
    "only the first time": lambda step, i: step > 0 and i == 2,
    "always none": lambda *_: True,
}


@stateful
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_none(config, pattern):
    """Parameters keep their own step counts, and have no state before their first gradient, as under torch."""
    twins = Twins(config)
    for step in range(6):
        twins.step(skip=lambda i, step=step: PATTERNS[pattern](step, i))
        assert len(twins.ours.state) == len(twins.theirs.state)
        assert all(twins.ours.state.values()), "an empty entry"
    twins.check()


@every_class
def test_state_has_no_entry_before_it_is_needed(config):
    """Not at construction, nor after steps without gradients, nor after looking."""
    twins = Twins(config)
    for opt in twins:
        opt.step()
        opt.state_dict()
        repr(opt)
    assert len(twins.ours.state) == len(twins.theirs.state)


@stateful
def test_frozen_parameters(config):
    """That do not require gradients, from the start or from now on; one that has a gradient is updated, as by torch."""
    twins = Twins(config)
    for opt in twins:
        parameters(opt)[0].requires_grad_(False)
    twins.step(2, skip=lambda i: i == 0)
    for opt in twins:
        parameters(opt)[1].requires_grad_(False)
    twins.step(2, skip=lambda i: i == 0)
    twins.step(2)
    twins.check()


@stateful
def test_under_no_grad_and_inference_of_flags(config):
    """A step keeps requires_grad, leaves the gradients alone, and leaves the grad mode as it was."""
    p = leaves(simple())
    opt = config.ours(p)
    grads = [normal(q.shape, seed=9) for q in p]
    for q, g in zip(p, grads, strict=True):
        q.grad = g.clone()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            opt.step()
            assert torch.is_grad_enabled() == enabled
    for q, g in zip(p, grads, strict=True):
        assert q.requires_grad
        assert q.is_leaf
        assert_same(q.grad, g)
    for state in opt.state.values():
        assert not any(value.requires_grad for value in state.values() if isinstance(value, torch.Tensor))


def test_parameters_made_under_inference_mode():
    """Inference tensors have no version counter; torch's step changes them in inference mode."""

    def run(cls):
        with torch.inference_mode():
            p = normal((5,))
            p.grad = normal((5,), seed=1)
            opt = cls([p])
            opt.step()
            return p.tolist()

    assert run(OURS["Adam"]) == pytest.approx(run(THEIRS["Adam"]), rel=1e-12)


# Autograd


@every_class
def test_saved_tensors_are_known_to_have_changed(config):
    """backward through a graph from before the step raises, as it must: the parameter that it saved has changed."""
    (w,) = leaves([normal((4,))])
    opt = config.ours([w])
    loss = (w**3).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_class
def test_version_counters(config):
    """Those of updated parameters grow, and no other."""
    p = leaves(simple())
    opt = config.ours(p)
    before = [q._version for q in p]
    for q in p[:2]:
        q.grad = normal(q.shape)
    opt.step()
    assert [q._version > v for q, v in zip(p, before, strict=True)] == [True, True, False, False]


@stateful
def test_hooks_after_gradients_accumulate(config):
    """A step within backward, one optimizer a parameter."""
    nets = [model(), model()]
    for net, make in zip(nets, (config.ours, config.theirs), strict=True):
        opts = {p: make([p]) for p in net.parameters()}

        def step(p, opts=opts):
            opts[p].step()
            opts[p].zero_grad()

        for p in net.parameters():
            p.register_post_accumulate_grad_hook(step)
        for k in range(4):
            loss_of(net, k).backward()
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert_close(p, q, 1e-7)


@every_class
def test_compiled_loss(config):
    """torch.compile of the loss, and of the step, whose code may stay as it is."""
    ours, theirs = model(), model()
    opts = config.ours(ours.parameters()), config.theirs(theirs.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(lambda step: loss_of(ours, step), backend="eager")
        for step in range(3):
            opts[0].zero_grad()
            compiled(torch.tensor(step).item()).backward()
            opts[0].step()
            opts[1].zero_grad()
            loss_of(theirs, step).backward()
            opts[1].step()
        torch.compiler.reset()
    assert_matches(*opts, 1e-7)


def test_compiled_step():
    twins = Twins(Config("Adam"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(lambda: twins.ours.step(), backend="eager")
        for _ in range(3):
            twins.grads(twins.ours)
            compiled()
            twins.grads(twins.theirs)
            twins.theirs.step()
            twins.steps += 1
        torch.compiler.reset()
    for p, q in zip(*map(parameters, twins), strict=True):
        assert_close(p, q, 1e-7)  # torch's compiled form has other operations


# Gradient scaling


def scaled(make, infinite, unscale, **flags):
    """Training with torch.amp.GradScaler; some steps have gradients that are not finite."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Linear(5, 3)
    opt = make(net.parameters(), **flags)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    scales = []
    for step in range(8):
        opt.zero_grad()
        loss = net(normal((4, 5), torch.float32, step)).square().mean()
        scaler.scale(loss).backward()
        if step in infinite:
            net.weight.grad[0, 0] = float("inf") if step % 2 else float("nan")
        if unscale:
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        scaler.step(opt)
        scaler.update()
        scales.append(scaler.get_scale())
    return opt, scales


@stateful
@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled and clipped"])
@pytest.mark.parametrize("infinite", [(), (0, 3), (5,)], ids=["finite", "infinite at once", "infinite later"])
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_grad_scaler(config, fused, infinite, unscale):
    """Steps with infinite gradients are skipped; the others use the gradients over the scale.

    With fused=True torch's scaler leaves both to the optimizer. torch's fused SGD then begins with a momentum of
    arbitrary values if the first step is skipped, so the for-loop form is the reference.
    """
    if fused and config.name not in FUSED:
        pytest.skip("torch has no fused form")
    ours, scales = scaled(config.ours, infinite, unscale, **({"fused": True} if fused else {}))
    theirs, expected = scaled(config.theirs, infinite, unscale)
    assert scales == expected
    assert_matches(ours, theirs, 1e-5)


# Flags


@pytest.mark.parametrize(
    "flags",
    [
        {"foreach": True},
        {"foreach": False},
        {"fused": True},
        {"fused": False},
        {"capturable": True},
        {"foreach": True, "fused": True},
        {"foreach": False, "fused": True},
        {"differentiable": True},
        {"differentiable": True, "fused": True},
        {"differentiable": True, "foreach": True},
        {"maximize": True, "foreach": True},
        {"foreach": True, "lr": torch.tensor(0.01)},
        {"capturable": True, "lr": torch.tensor(0.01)},
        {"fused": True, "lr": torch.tensor(0.01)},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_flags(name, flags):
    """Accepted or refused with the same error, at construction or by the step; with the same result."""

    def run(cls):
        p = leaves(normal((6,), torch.float64, seed) for seed in range(3))
        opt = cls(p, **SOME_STATE.get(name, {}), **flags)
        with torch.no_grad():
            for step in range(3):
                for i, q in enumerate(p):
                    q.grad = normal((6,), torch.float64, 10 * step + i)
                opt.step()
        return opt

    (ours, *mine), (theirs, *other) = (outcome(lambda c=cls: run(c)) for cls in (OURS[name], THEIRS[name]))
    assert ours == theirs, (mine, other)
    if ours == "raised":
        assert mine == other
    else:
        assert_matches(*mine, *other, 1e-7 if name == "NAdam" else 1e-10)


@pytest.mark.parametrize("name", CAPTURABLE)
def test_capturable_set_later(name):
    """In a group, by a user or a checkpoint."""
    twins = Twins(Config(name))
    twins.step()
    results = []
    for opt in twins:
        opt.param_groups[0]["capturable"] = True
        twins.grads(opt)
        results.append(outcome(opt.step))
    assert results[0] == results[1]


@every_class
def test_differentiable(config):
    """Gradients of what comes after a step with respect to what was before it."""

    def meta_gradient(make):
        start = normal((5,)).requires_grad_()
        g = normal((5,), seed=1).requires_grad_()
        p = start.clone()
        opt = make([p], differentiable=True)
        for _ in range(2):
            p.grad = g
            opt.step()
        return torch.autograd.grad((p**2).sum(), [start, g])

    for ours, theirs in zip(*(meta_gradient(make) for make in (config.ours, config.theirs)), strict=True):
        assert_close(ours, theirs, 1e-12)


# Threads and types


def test_two_optimizers_in_two_threads():
    """At the same time, each with its own parameters."""
    twins = [Twins(config) for config in STATEFUL]
    errors = []

    def train(twin):
        try:
            for _ in range(30):
                twin.step()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=train, args=(twin,)) for twin in twins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for twin in twins:
        twin.check()


@stateful
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_default_types(config, default):
    """Steps do not depend on it. With float64 torch's step counts are float64; ours are always float32."""
    torch.set_default_dtype(default)
    twins = Twins(config)
    twins.step(5)
    for p, q in zip(*map(parameters, twins), strict=True):
        assert_close(p, q, twins.limit)
        ours, theirs = twins.ours.state[p], twins.theirs.state[q]
        assert ours.keys() == theirs.keys()
        assert float(ours.get("step", 0)) == float(theirs.get("step", 0))
    for opt, state in zip(twins, [o.state_dict() for o in twins][::-1], strict=True):
        opt.load_state_dict(copy.deepcopy(state))
    twins.step(2)
    for p, q in zip(*map(parameters, twins), strict=True):
        assert_close(p, q, twins.limit)


@stateful
def test_type_changed_before_the_first_step(config):
    """model.to(dtype) after the optimizer was made."""
    for dtype in (torch.float64, torch.float32):
        twins = TwinModels(config, dtype=torch.float32)
        for net, _ in twins:
            net.to(dtype)
        twins.limit = 1e-7 if dtype == torch.float64 else 1e-4  # torch's Adagrad has float32 states from the start
        twins.train(3)
        for p, q in zip(*map(parameters, twins.opts), strict=True):
            assert_close(p, q, twins.limit)


@every_class
def test_training(config):
    """A network for fifty steps: the loss falls as much as under torch."""
    losses = []
    twins = TwinModels(config)
    for net, opt in twins:
        trace = []
        for _ in range(50):
            opt.zero_grad()
            loss = loss_of(net, 0)
            loss.backward()
            opt.step()
            trace.append(loss.item())
        losses.append(torch.tensor(trace, dtype=torch.float64))
    assert relative_error(*losses) < 1e-9
    assert losses[0][-1] < losses[0][0]

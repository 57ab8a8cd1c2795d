"""What code of the user's changes between steps, beside torch's own step after the same changes."""

import pytest

torch = pytest.importorskip("torch")

from gradstep import torch as gt  # noqa: E402


def leaf(value=1.0, size=3, dtype=torch.float64):
    p = torch.nn.Parameter(torch.full((size,), value, dtype=dtype))
    p.grad = torch.ones_like(p)
    return p


def run(name, change, steps=3, count=2, **options):
    """The parameters after steps of gradstep's and of torch's class, with a change before the second."""
    results = []
    for library in (gt, torch.optim):
        params = [leaf(1.0 + i) for i in range(count)]
        opt = getattr(library, name)(params, **options)
        for step in range(steps):
            if step == 1:
                params = change(opt, params) or params
            opt.step()
        results.append([p.detach().clone() for p in params])
    return results


def replace_in_list(opt, params):
    other = leaf(5.0)
    opt.param_groups[0]["params"][0] = other
    return [*params, other]


def append_to_list(opt, params):
    other = leaf(5.0)
    opt.param_groups[0]["params"].append(other)
    return [*params, other]


def tie(_, params):
    params[1].data = params[0].data


def reset_and_move(opt, params):
    for p in params:
        if "step" in opt.state[p]:
            opt.state[p]["step"].zero_()
        p.data = p.data.clone()


@pytest.mark.parametrize("change", [replace_in_list, append_to_list, tie, reset_and_move], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_changes_of_lists_memory_and_counts(name, change):
    options = {"weight_decay": 0.5, **({"lr": 0.5, "momentum": 0.9} if name == "SGD" else {})}
    for ours, theirs in zip(*run(name, change, **options), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_parameters_that_share_memory_are_stepped_in_their_order():
    for options in ({"lr": 0.5, "weight_decay": 0.5}, {"lr": 0.5, "momentum": 0.9}):
        values = []
        for library in (gt, torch.optim):
            p = leaf()
            q = torch.nn.Parameter(p.data)
            q.grad = torch.full_like(q, 2.0)
            opt = library.SGD([p, q], **options)
            for _ in range(3):
                opt.step()
            values.append(p.detach().clone())
        torch.testing.assert_close(*values, rtol=1e-12, atol=0)


def test_a_parameter_that_becomes_another_type_at_the_same_address():
    p = leaf(1.0, dtype=torch.float16)
    opt = gt.SGD([p], lr=0.5)
    opt.step()
    p.data = torch.ones(3, dtype=torch.bfloat16)
    p.data = p.data.view(torch.float16).view(torch.bfloat16)
    p.grad = torch.ones(3, dtype=torch.bfloat16)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), 0.5, dtype=torch.bfloat16))


def test_a_master_follows_a_parameter_that_was_replaced():
    p = leaf(1.0, dtype=torch.bfloat16)
    opt = gt.SGD([p], lr=0.5, master=True)
    opt.step()
    p.data = torch.full((3,), 7.0, dtype=torch.bfloat16)
    opt.step()
    assert torch.equal(p.detach().float(), torch.full((3,), 6.5))


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("max_grad_norm", -1.0, ValueError),
        ("ema", 7, ValueError),
        ("ema", lambda _: 0.5, TypeError),
        ("state_dtype", "int4", ValueError),
        ("offload", 1, TypeError),
    ],
)
def test_options_are_checked_also_where_a_group_is_changed(option, value, error):
    p = leaf()
    with pytest.raises(error, match=f"^Adam: {option} must be"):
        gt.Adam([p], **{option: value})
    opt = gt.Adam([p])
    opt.step()
    before = p.detach().clone()
    opt.param_groups[0][option] = value
    with pytest.raises(error, match=f"^Adam: {option} must be"):
        opt.step()
    assert torch.equal(p.detach(), before)


def test_max_grad_norm_is_one_for_all_groups():
    opt = gt.Adam([leaf()], max_grad_norm=1.0)
    with pytest.raises(ValueError, match="max_grad_norm must be the same in all groups"):
        opt.add_param_group({"params": [leaf()], "max_grad_norm": 2.0})
    assert len(opt.param_groups) == 1


def test_asking_for_fallbacks_begins_no_state():
    opt = gt.SGD([leaf()], momentum=0.9, dampening=0.5)
    assert opt.fallbacks() == []
    assert not opt.state_dict()["state"]


def test_a_gradient_that_cannot_be_stepped_is_torchs_only_as_long_as_it_is_there():
    p = leaf()
    opt = gt.Adam([p])
    p.grad = torch._neg_view(torch.ones_like(p))
    opt.step()
    assert [fallback.parameter is p for fallback in opt.fallbacks()] == [True]
    p.grad = torch.ones_like(p)
    opt.step()
    assert opt.fallbacks() == []
    p.grad = p.data
    opt.step()
    assert "shares memory" in opt.fallbacks()[0].reason
    p.grad = torch.ones_like(p)
    opt.step()
    assert opt.fallbacks() == []
    assert opt.state[p]["step"] == 4


def test_a_rule_without_states_waits_for_no_gradient():
    p, q = leaf(), leaf()
    q.grad = None
    opt = gt.SGD([p, q], lr=0.5)
    opt.step()
    plan = opt._plan
    p.grad, q.grad = None, torch.ones_like(q)
    opt.step()
    assert opt._plan is plan
    assert torch.equal(q.detach(), torch.full((3,), 0.5, dtype=torch.float64))


def test_a_step_number_that_is_none():
    p = leaf()
    opt = gt.Adam([p])
    opt.step()
    opt.state[p]["step"].fill_(float("nan"))
    with pytest.raises(ValueError, match="is nan, and no number of a step"):
        opt.step()


def test_the_signature_of_a_class_derived_from_one_of_ours():
    import inspect

    class Own(gt.Adam):
        def __init__(self, params, speed):
            super().__init__(params, lr=speed)

    assert list(inspect.signature(Own).parameters) == ["params", "speed"]
    assert "state_dtype" in inspect.signature(gt.Adam).parameters

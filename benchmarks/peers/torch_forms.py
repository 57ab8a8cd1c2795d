"""torch's optimizers: single, foreach, and fused where it exists. On the processor tensors share NumPy's memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from gradstep.bench import Arm, Problem

from .peer import Peer, limiter

# torch's defaults equal gradstep's except for these.
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nag": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adam": (torch.optim.Adam, {}),
    "nadam": (torch.optim.NAdam, {}),
}
FORMS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def runs(cls: type[torch.optim.Optimizer], options: dict[str, Any], device: str) -> bool:
    """Whether torch has this form on this device; it refuses some only at the first step."""
    one = torch.zeros(1, device=device, requires_grad=True)
    one.grad = torch.zeros_like(one)
    try:
        cls([one], **options).step()
    except (TypeError, RuntimeError):
        return False
    return True


def make(form: str, device: str, name: str, problem: Problem) -> Arm | None:
    """The arm of one of torch's forms."""
    cls, options = OPTIMIZERS.get(problem.cls.rule, (None, {}))
    if cls is None or not runs(cls, FORMS[form], device):
        return None
    if form == "foreach" and "nesterov" in options:
        return None  # it adds the velocity to the caller's gradients, so a second step on them would differ
    tensors = [torch.from_numpy(param).to(device).requires_grad_() for param in problem.params()]
    for tensor, grad in zip(tensors, problem.grads, strict=True):
        tensor.grad = torch.from_numpy(grad).to(device)
    opt = cls(tensors, **options, **FORMS[form])
    return Arm(name, opt.step, problem, lambda: [tensor.detach().cpu().numpy() for tensor in tensors])


LIMIT = limiter(torch.get_num_threads, torch.set_num_threads)
PEERS = [Peer(f"torch {form}", "torch", partial(make, form, "cpu"), LIMIT) for form in FORMS]

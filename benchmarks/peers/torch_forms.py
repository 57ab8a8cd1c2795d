"""torch's optimizers on tensors that share the memory of NumPy arrays: one by one, foreach, and fused where it is."""

from __future__ import annotations

import inspect
from functools import partial

import torch

from gradstep.bench import Arm, Problem

from .peer import Peer, limiter

# torch's defaults are gradstep's, but for these.
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


def make(form: str, name: str, problem: Problem) -> Arm | None:
    """The step in one of torch's forms."""
    cls, options = OPTIMIZERS.get(problem.cls.rule, (None, {}))
    if cls is None or not FORMS[form].keys() <= inspect.signature(cls).parameters.keys():
        return None
    if form == "foreach" and "nesterov" in options:
        return None  # it adds the velocity onto the caller's gradients, so a second step on them computes another thing
    params = problem.params()
    tensors = [torch.from_numpy(param).requires_grad_() for param in params]
    for tensor, grad in zip(tensors, problem.grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    opt = cls(tensors, **options, **FORMS[form])
    return Arm(name, opt.step, problem, lambda: params)


LIMIT = limiter(torch.get_num_threads, torch.set_num_threads)
PEERS = [Peer(f"torch {form}", "torch", partial(make, form), LIMIT) for form in FORMS]

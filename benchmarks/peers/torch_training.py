"""A whole training step with torch, on tensors that share NumPy's memory; see parts/training.py."""

from __future__ import annotations

import torch

from gradstep.bench import Arm, Problem

from .peer import Peer
from .torch_forms import LIMIT


def make(name: str, problem: Problem) -> Arm | None:
    """The arm of AdamW with gradient scaler, clipping, average and copy."""
    if problem.cls.rule != "adam":
        return None
    tensors = [torch.from_numpy(param).requires_grad_() for param in problem.params()]
    for tensor, grad in zip(tensors, problem.grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    grads = [tensor.grad for tensor in tensors]
    detached = [tensor.detach() for tensor in tensors]
    averages = [tensor.clone() for tensor in detached]
    copies = [tensor.to(torch.bfloat16) for tensor in detached]
    weight_decay, limit, decay = (problem.options[option] for option in ("weight_decay", "clip_norm", "ema"))
    opt = torch.optim.AdamW(tensors, weight_decay=weight_decay, fused=True)
    found, inverse_scale = torch.zeros(1), torch.ones(1)

    def step():
        found.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, inverse_scale)
        if found.item():
            return
        torch.nn.utils.clip_grad_norm_(tensors, limit, foreach=True)
        opt.step()
        torch._foreach_lerp_(averages, detached, 1 - decay)
        torch._foreach_copy_(copies, detached)

    return Arm(name, step, problem, lambda: [tensor.numpy() for tensor in detached])


PEERS = [Peer("torch", "torch", make, LIMIT)]

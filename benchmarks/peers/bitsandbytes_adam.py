"""bitsandbytes' Adam on the processor, with 8-bit and with 32-bit states; tensors share NumPy's memory."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from bitsandbytes.optim import Adam

from gradstep.bench import Arm, Problem

from .peer import Peer
from .torch_forms import LIMIT

STATES = {8: ("q8", torch.uint8), 32: (None, torch.float32)}
"""The `state_dtype` of ours that so many bits stand beside, and as what they are kept."""
FORM = {"state_dtype", "min_8bit_size"}
"""The options of a problem that say no more than how states are stored."""


def make(bits: int, name: str, problem: Problem) -> Arm | None:
    """The arm with states of this many bits. Raises TypeError if the library keeps them in another type."""
    state_dtype, kept = STATES[bits]
    if problem.cls.rule != "adam" or problem.first[0].dtype != np.float32:
        return None
    if problem.options.get("state_dtype") != state_dtype or problem.options.keys() - FORM:
        return None
    tensors = [torch.from_numpy(param).requires_grad_() for param in problem.params()]
    for tensor, grad in zip(tensors, problem.grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    opt = Adam(tensors, optim_bits=bits, min_8bit_size=0)  # same defaults as gradstep
    for place, tensor in enumerate(tensors):
        opt.init_state(opt.param_groups[0], tensor, 0, place)
        found = {opt.state[tensor][state].dtype for state in ("state1", "state2")}
        if found != {kept}:
            raise TypeError(f"{name} keeps its states as {found}")
    return Arm(name, opt.step, problem, lambda: [tensor.detach().numpy() for tensor in tensors])


PEERS = [Peer(f"bitsandbytes {bits}-bit", "bitsandbytes", partial(make, bits), LIMIT) for bits in STATES]

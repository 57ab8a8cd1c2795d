"""torch's optimizers with gradstep's step: one import is changed, and checkpoints go both ways.

The classes derive from those of `torch.optim` with the same names, and have their signatures, defaults, options, hooks
and states. A step of tensors on the CPU is one call of the core, whatever the number of tensors; of DTensors, such as
those of `fully_shard`, each process steps its part. Tensors that are not for the core are stepped by torch's own code;
`fallbacks()` names them.

More is available by keyword, of the class or of a group of parameters:

state_dtype : None, "float32", "bfloat16", "float16" or "q8"
    The type of states. None is torch's: that of the parameter, or float32 with a master. With "q8", the state "exp_avg"
    is stored as "exp_avg_q8", one byte for each element, and "exp_avg_scale", float32 for each 256; in parameters of
    fewer than 4096 elements it is float32.
master : bool
    Whether a float32 copy of every float16 and bfloat16 parameter is kept, as the state "master", and updated; the
    parameter is its rounding.
stochastic_rounding : int or None
    A seed: 16-bit parameters without a master and 16-bit states are rounded at random, without bias.
ema : float or None
    The decay of an average of each parameter, the state "average", of the same pass; `averaged()` uses the averages.
max_grad_norm : float or None
    The maximum of the norm of all gradients together, in the same pass: they are multiplied by max_grad_norm / norm
    where the norm is greater. `grad_norm` is the norm of the last step. It is one for all groups.
offload : bool
    Whether the states of parameters on a CUDA GPU are in the CPU's memory, with a float32 master of every float16 and
    bfloat16 parameter, and the CPU takes the step. Gradients are copied while backward makes them.

>>> import torch
>>> from gradstep.torch import AdamW
>>> model = torch.nn.Linear(3, 1)
>>> opt = AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
>>> model(torch.ones(2, 3)).sum().backward()
>>> opt.step()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gradstep import optimizers

from ._fused import Fallback, Fused, Translated

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Fallback", "NAdam", "RMSprop"]


def _common(group: Mapping[str, Any]) -> dict[str, Any]:
    """What all have. torch's weight_decay is added to the gradient, unless it is decoupled."""
    decay = "weight_decay" if group.get("decoupled_weight_decay") else "l2"
    return {"lr": group["lr"], decay: group["weight_decay"], "maximize": group["maximize"]}


def _moments(group: Mapping[str, Any]) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {"betas": (beta1, beta2), "eps": group["eps"], **_common(group)}


class SGD(Fused, torch.optim.SGD):
    """`torch.optim.SGD` with gradstep's step."""

    def translate(self, group: Mapping[str, Any]) -> Translated:
        options = _common(group)
        if group["momentum"] == 0:
            return optimizers.SGD, options
        options["momentum"] = group["momentum"]
        if group["nesterov"]:
            return optimizers.NAG, options
        return optimizers.Momentum, {**options, "dampening": group["dampening"], "dampen_first": False}


class Adagrad(Fused, torch.optim.Adagrad):
    """`torch.optim.Adagrad` with gradstep's step."""

    def translate(self, group: Mapping[str, Any]) -> Translated:
        first = group["initial_accumulator_value"]
        same = {name: group[name] for name in ("lr_decay", "eps")}
        return optimizers.AdaGrad, {**same, "initial_accumulator": first, **_common(group)}


class RMSprop(Fused, torch.optim.RMSprop):
    """`torch.optim.RMSprop` with gradstep's step."""

    def translate(self, group: Mapping[str, Any]) -> Translated:
        same = {name: group[name] for name in ("eps", "momentum", "centered")}
        return optimizers.RMSProp, {**same, "rho": group["alpha"], **_common(group)}


class Adadelta(Fused, torch.optim.Adadelta):
    """`torch.optim.Adadelta` with gradstep's step."""

    def translate(self, group: Mapping[str, Any]) -> Translated:
        return optimizers.AdaDelta, {**{name: group[name] for name in ("rho", "eps")}, **_common(group)}


class Adam(Fused, torch.optim.Adam):
    """`torch.optim.Adam` with gradstep's step."""

    def translate(self, group: Mapping[str, Any]) -> Translated:
        return optimizers.Adam, {**_moments(group), "amsgrad": group["amsgrad"]}


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW` with gradstep's step."""


class NAdam(Fused, torch.optim.NAdam):
    """`torch.optim.NAdam` with gradstep's step."""

    def translate(self, group: Mapping[str, Any]) -> Translated:
        of_float32 = torch.get_default_dtype() != torch.float64  # the type of torch's product of momenta
        options = {"momentum_decay": group["momentum_decay"], "float32_product": of_float32}
        return optimizers.Nadam, {**_moments(group), **options}

"""A whole training step with NumPy, in pieces that fit into the cache; see parts/training.py."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np

from gradstep.bench import Arm, Problem

from .numpy_out import PIECE, adam
from .peer import Peer
from .scalars import SCALARS


def make(name: str, problem: Problem) -> Arm | None:
    """The arm of AdamW with unscaling, check, clipping, average and copy."""
    if problem.cls.rule != "adam":
        return None
    params = problem.params()
    defaults = SimpleNamespace(**problem.cls.defaults)
    scalars = SCALARS["adam"](defaults)
    weight_decay, limit, decay = (problem.options[option] for option in ("weight_decay", "clip_norm", "ema"))
    keep = 1 - defaults.lr * weight_decay
    a, b = np.empty((2, min(PIECE, max(param.size for param in params))), np.float32)
    pieces = []
    for param, grad in zip(params, problem.grads, strict=True):
        m, v = np.zeros((2, param.size), np.float32)
        arrays = (param, grad, m, v, param.copy(), np.empty(param.size, ml_dtypes.bfloat16))
        pieces += [[array[start : start + PIECE] for array in arrays] for start in range(0, param.size, PIECE)]

    def step():
        squares = sum(float(np.dot(g, g)) for _, g, *_ in pieces)
        if not np.isfinite(squares):
            return
        factor = min(1.0, limit / max(squares**0.5, 1e-300)) / 1.0  # the scale of the loss
        numbers = next(scalars)
        for p, g, m, v, average, copy in pieces:
            scaled, rest = b[: p.size], a[: p.size]
            np.multiply(g, factor, out=scaled)
            p *= keep
            adam(p, scaled, m, v, rest, None, *numbers)
            average *= decay
            average += np.multiply(p, 1 - decay, out=rest)
            copy[...] = p

    return Arm(name, step, problem, lambda: params)


PEERS = [Peer("NumPy out=", "numpy", make)]

"""optax, compiled by jax, with the buffers of parameters and states donated."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradstep.bench import Arm, Problem

from .peer import Peer

OPTIMIZERS = {
    "sgd": lambda o: optax.sgd(o.lr),
    "momentum": lambda o: optax.sgd(o.lr, momentum=o.momentum),
    "nag": lambda o: optax.sgd(o.lr, momentum=o.momentum, nesterov=True),
    "adagrad": lambda o: optax.adagrad(o.lr, initial_accumulator_value=0.1, eps=1e-7),
    "rmsprop": lambda o: optax.rmsprop(o.lr, decay=o.rho, eps=o.eps, eps_in_sqrt=False),
    "adadelta": lambda o: optax.adadelta(o.lr, rho=o.rho, eps=o.eps),
    "adam": lambda o: optax.adam(o.lr, *o.betas, eps=o.eps),
    "nadam": lambda o: optax.nadam(o.lr, *o.betas, eps=o.eps),
}
FORMS = {
    "adagrad": {"initial_accumulator": 0.1, "eps": 0.0, "eps_root": 1e-7},
    "nadam": {"momentum_decay": None},
}
"""What optax computes where it is not our default, in our options."""
MOST = 1000
"""Tensors; with more, compiling takes minutes."""


def make(name: str, problem: Problem) -> Arm | None:
    """The arm of optax."""
    make_optimizer = OPTIMIZERS.get(problem.cls.rule)
    if make_optimizer is None or len(problem.first) > MOST:
        return None
    opt = make_optimizer(SimpleNamespace(**problem.cls.defaults))

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    grads = [jnp.array(grad) for grad in problem.grads]
    params = [jnp.array(param) for param in problem.first]
    state = opt.init(params)

    def step():
        nonlocal params, state
        params, state = update(params, state, grads)

    if problem.cls.rule in FORMS:
        problem = replace(problem, options=FORMS[problem.cls.rule])
    return Arm(
        name,
        step,
        problem,
        answer=lambda: [np.asarray(param) for param in params],
        finish=lambda: jax.block_until_ready(params),
    )


PEERS = [Peer("optax jit", "optax", make)]

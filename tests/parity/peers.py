"""Runs the peers on the problem, in float64 where they can. Each function imports its framework when called."""

import importlib.util
import os
from collections.abc import Callable
from unittest import mock

import numpy as np

from . import problem
from .cases import Case
from .problem import Trajectory

MODULES = {
    "torch": ["torch"],
    "keras": ["keras", "jax"],
    "optax": ["optax", "jax"],
    "chainer": ["chainer"],
    "autograd": ["autograd"],
    "thinc": ["thinc"],
}


def missing(framework: str) -> str | None:
    """The reason why a framework cannot be run here, or None."""
    absent = [name for name in MODULES[framework] if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def torch(case: Case) -> Trajectory:
    """torch.optim as installed, except that the Nadam64 and NadamW64 variants use a default type of float64."""
    import torch

    default = torch.get_default_dtype()
    if case.variant.endswith("64"):
        torch.set_default_dtype(torch.float64)
    try:
        p = torch.tensor(problem.START)
        opt = getattr(torch.optim, case.peer.name)([p], **case.theirs)

        def update(g: np.ndarray, step: int) -> np.ndarray:
            p.grad = torch.tensor(g)
            if case.schedule:
                opt.param_groups[0]["lr"] = problem.scheduled(case.theirs["lr"], step)
            opt.step()
            return p.numpy().copy()

        return problem.trajectory(update, case.maximize)
    finally:
        torch.set_default_dtype(default)


def keras(case: Case) -> Trajectory:
    """keras.optimizers on JAX.

    Keras stores the learning rate in a variable of type `floatx`; float32, the default, would cause an error of 1e-9.
    The parameters' type determines all other types.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import jax

    jax.config.update("jax_enable_x64", True)
    import keras

    keras.config.set_floatx("float64")
    p = keras.Variable(problem.START, dtype="float64")
    opt = getattr(keras.optimizers, case.peer.name)(**case.theirs)
    opt.build([p])

    def update(g: np.ndarray, step: int) -> np.ndarray:
        if case.schedule:
            opt.learning_rate = problem.scheduled(case.theirs["learning_rate"], step)
        opt.apply([keras.ops.convert_to_tensor(g, dtype="float64")])
        return keras.ops.convert_to_numpy(p.value)

    return problem.trajectory(update, case.maximize)


def optax(case: Case) -> Trajectory:
    """optax in JAX' 64-bit mode, where Python scalars get the type of the parameters."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import optax

    arguments = dict(case.theirs)
    limit, l2 = (arguments.pop(name, None) for name in ("clip_norm", "l2"))
    if case.schedule:
        rates = jax.numpy.array([problem.scheduled(arguments["learning_rate"], k) for k in range(problem.STEPS)])
        arguments["learning_rate"] = lambda count: rates[count]
    opt = getattr(optax, case.peer.name)(**arguments)
    if l2 is not None:
        opt = optax.chain(optax.add_decayed_weights(l2), opt)
    if limit is not None:
        opt = optax.chain(optax.clip_by_global_norm(limit), opt)

    @jax.jit
    def compiled(p, g, state):
        updates, state = opt.update(g, state, p)
        return optax.apply_updates(p, updates), state

    p = jax.numpy.array(problem.START)
    state = opt.init(p)

    def update(g: np.ndarray, _step: int) -> np.ndarray:
        nonlocal p, state
        p, state = compiled(p, g, state)
        return np.asarray(p)

    return problem.trajectory(update, case.maximize)


def chainer(case: Case) -> Trajectory:
    """chainer.optimizers of Chainer 7.8.1, the last version, which needs a NumPy before 1.24."""
    import chainer

    arguments = dict(case.theirs)
    hooks = {"clip_norm": chainer.optimizer_hooks.GradientClipping, "l2": chainer.optimizer_hooks.WeightDecay}
    hooks = {name: hook(arguments.pop(name)) for name, hook in hooks.items() if name in arguments}
    opt = getattr(chainer.optimizers, case.peer.name)(**arguments)
    model = chainer.Link()
    with model.init_scope():
        model.p = chainer.Parameter(problem.START.copy())
    opt.setup(model)
    for hook in hooks.values():
        opt.add_hook(hook)

    def update(g: np.ndarray, step: int) -> np.ndarray:
        if case.schedule:
            rate = case.peer.options["lr"]
            setattr(opt, rate, problem.scheduled(arguments[rate], step))
        model.p.grad = g
        opt.update()
        return model.p.array.copy()

    return problem.trajectory(update, case.maximize)


def autograd(case: Case) -> Trajectory:
    """autograd.misc.optimizers, which have a loop of their own and call back before each step."""
    from autograd.misc import optimizers

    points: list[np.ndarray] = []
    last = getattr(optimizers, case.peer.name)(
        problem.gradient,
        problem.START,
        callback=lambda p, _step, _g: points.append(p),
        num_iters=problem.STEPS,
        **case.theirs,
    )
    after = [*points[1:], last]
    return problem.trajectory(lambda _g, step: after[step])


def thinc(case: Case) -> Trajectory:
    """thinc.optimizers as installed, whose compiled Adam takes only float32.

    The Adam64 variant uses the NumPy form of `Ops`, thinc's base class of backends, with moments in float64.
    """
    import thinc.optimizers
    from thinc.api import Ops

    arguments = dict(case.theirs)
    if case.schedule:
        arguments["learn_rate"] = [problem.scheduled(arguments["learn_rate"], k) for k in range(problem.STEPS)]
    opt = getattr(thinc.optimizers, case.peer.name)(**arguments)
    key = (0, "p")
    if case.variant.endswith("64"):
        p, backend = problem.START.copy(), Ops()
        opt.mom1[key], opt.mom2[key] = np.zeros_like(p), np.zeros_like(p)
    else:
        p = problem.START.astype(np.float32)
        backend = thinc.optimizers.get_array_ops(p)

    def update(g: np.ndarray, _step: int) -> np.ndarray:
        nonlocal p
        with mock.patch.object(thinc.optimizers, "get_array_ops", return_value=backend):
            p, _ = opt(key, p, g.astype(p.dtype))
        opt.step_schedules()
        return p.copy()

    return problem.trajectory(update, case.maximize)


RUN: dict[str, Callable[[Case], Trajectory]] = {
    "torch": torch,
    "keras": keras,
    "optax": optax,
    "chainer": chainer,
    "autograd": autograd,
    "thinc": thinc,
}

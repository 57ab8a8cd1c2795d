"""The table of schedules here and their peers' in torch and optax, and their values over 100 steps.

Arguments of a peer are a dict with its name, and so are schedules among them. For torch, `lr` is the optimizer's.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradstep as gs
from gradstep.schedules import (
    constant,
    cosine,
    exponential,
    join,
    linear,
    multi_step,
    one_cycle,
    one_cycle_momentum,
    piecewise,
    plateau,
    polynomial,
    step,
    warm_restarts,
)

from .problem import NOISE, STEPS

TOLERANCE = 1e-12  # relative, at every checkpoint
CHECKPOINTS = (0, 1, 2, 3, 4, 5, 9, 10, 11, 15, 19, 20, 21, 29, 30, 31, 40, 49, 50, 51, 60, 75, 90, 98, 99)
LOSSES = [2.0 + float(NOISE[k, 0]) + 10.0 / (1 + k) for k in range(STEPS)]
"""What `plateau` and its peers are told after each step."""

Values = list[float]


@dataclass(frozen=True)
class ScheduleCase:
    """One schedule here, and the arguments of its peer."""

    framework: str
    ours: gs.schedules.Schedule | plateau
    theirs: dict[str, Any]
    option: str  # what the peer changes
    number: int  # the index among the framework's cases

    @property
    def id(self) -> str:
        name = self.ours.name if isinstance(self.ours, gs.schedules.Schedule) else "plateau"
        return f"{self.framework}-{name}-{self.number}"


_PLATEAU = plateau(0.1, 0.5, 2, threshold=0.05, cooldown=3, min_lr=0.003, eps=1e-4)
_ONE_CYCLE = {"name": "OneCycleLR", "lr": 1.0}
_LINEAR = {"name": "linear_schedule", "end_value": 0.1}

TORCH: list[tuple[gs.schedules.Schedule | plateau, dict[str, Any]]] = [
    (piecewise([0.02, 0.1], [20]), {"name": "ConstantLR", "lr": 0.1, "factor": 0.2, "total_iters": 20}),
    (step(0.1, 30), {"name": "StepLR", "lr": 0.1, "step_size": 30}),
    (step(0.1, 1, 0.9), {"name": "StepLR", "lr": 0.1, "step_size": 1, "gamma": 0.9}),
    (multi_step(0.1, [20, 50]), {"name": "MultiStepLR", "lr": 0.1, "milestones": [20, 50]}),
    (multi_step(0.1, [5, 5, 75], 0.3), {"name": "MultiStepLR", "lr": 0.1, "milestones": [5, 5, 75], "gamma": 0.3}),
    (exponential(0.1, 0.95), {"name": "ExponentialLR", "lr": 0.1, "gamma": 0.95}),
    (exponential(0.1, 1.05), {"name": "ExponentialLR", "lr": 0.1, "gamma": 1.05}),
    (polynomial(0.1, 50), {"name": "PolynomialLR", "lr": 0.1, "total_iters": 50}),
    (polynomial(0.1, 60, power=2.5), {"name": "PolynomialLR", "lr": 0.1, "total_iters": 60, "power": 2.5}),
    (
        linear(0.1, 50, final=0.01),
        {"name": "LinearLR", "lr": 0.1, "start_factor": 1.0, "end_factor": 0.1, "total_iters": 50},
    ),
    (
        linear(0.025, 30, final=0.1),
        {"name": "LinearLR", "lr": 0.1, "start_factor": 0.25, "total_iters": 30},
    ),
    (cosine(0.1, 99), {"name": "CosineAnnealingLR", "lr": 0.1, "T_max": 99}),
    (cosine(0.1, 99, final=0.01), {"name": "CosineAnnealingLR", "lr": 0.1, "T_max": 99, "eta_min": 0.01}),
    (
        join([cosine(0.1, 50, final=0.01), cosine(0.01, 50, final=0.1)], [50]),
        {"name": "CosineAnnealingLR", "lr": 0.1, "T_max": 50, "eta_min": 0.01},
    ),
    (
        cosine(0.1, 99, final=0.01, warmup=10, start=0.02),
        {
            "name": "SequentialLR",
            "lr": 0.1,
            "schedulers": [
                {"name": "LinearLR", "start_factor": 0.2, "total_iters": 10},
                {"name": "CosineAnnealingLR", "T_max": 89, "eta_min": 0.01},
            ],
            "milestones": [10],
        },
    ),
    (
        polynomial(0.1, 90, power=2.0, warmup=20, start=0.05),
        {
            "name": "SequentialLR",
            "lr": 0.1,
            "schedulers": [
                {"name": "LinearLR", "start_factor": 0.5, "total_iters": 20},
                {"name": "PolynomialLR", "total_iters": 70, "power": 2.0},
            ],
            "milestones": [20],
        },
    ),
    (
        join([0.01, exponential(0.1, 0.9), step(0.1, 10, 0.5)], [10, 50]),
        {
            "name": "SequentialLR",
            "lr": 0.1,
            "schedulers": [
                {"name": "ConstantLR", "factor": 0.1, "total_iters": 100},
                {"name": "ExponentialLR", "gamma": 0.9},
                {"name": "StepLR", "step_size": 10, "gamma": 0.5},
            ],
            "milestones": [10, 50],
        },
    ),
    (warm_restarts(0.1, 20), {"name": "CosineAnnealingWarmRestarts", "lr": 0.1, "T_0": 20}),
    (
        warm_restarts(0.1, 10, 2, final=0.01),
        {"name": "CosineAnnealingWarmRestarts", "lr": 0.1, "T_0": 10, "T_mult": 2, "eta_min": 0.01},
    ),
    (warm_restarts(0.1, 3, 3), {"name": "CosineAnnealingWarmRestarts", "lr": 0.1, "T_0": 3, "T_mult": 3}),
    (one_cycle(0.1, 100), _ONE_CYCLE | {"max_lr": 0.1, "total_steps": 100}),
    (
        one_cycle(0.1, 103, 0.23, "linear", 10.0, 50.0),
        _ONE_CYCLE
        | {"max_lr": 0.1, "total_steps": 103, "pct_start": 0.23, "anneal_strategy": "linear"}
        | {"div_factor": 10.0, "final_div_factor": 50.0},
    ),
    (
        one_cycle(0.1, 100, 0.4, three_phase=True),
        _ONE_CYCLE | {"max_lr": 0.1, "total_steps": 100, "pct_start": 0.4, "three_phase": True},
    ),
    (
        one_cycle(0.1, 100, 0.7, three_phase=True),
        _ONE_CYCLE | {"max_lr": 0.1, "total_steps": 100, "pct_start": 0.7, "three_phase": True},
    ),
    (one_cycle(0.1, 100, 0.0), _ONE_CYCLE | {"max_lr": 0.1, "total_steps": 100, "pct_start": 0.0}),
    (one_cycle(0.1, 100, 1.0), _ONE_CYCLE | {"max_lr": 0.1, "total_steps": 100, "pct_start": 1.0}),
    (one_cycle_momentum(0.85, 0.95, 100), _ONE_CYCLE | {"max_lr": 0.1, "total_steps": 100}),
    (
        one_cycle_momentum(0.7, 0.9, 100, 0.4, "linear", True),
        _ONE_CYCLE
        | {"max_lr": 0.1, "total_steps": 100, "pct_start": 0.4, "anneal_strategy": "linear", "three_phase": True}
        | {"base_momentum": 0.7, "max_momentum": 0.9},
    ),
    (plateau(0.1), {"name": "ReduceLROnPlateau", "lr": 0.1}),
    (
        _PLATEAU,
        {"name": "ReduceLROnPlateau", "lr": 0.1, "factor": 0.5, "patience": 2, "threshold": 0.05}
        | {"cooldown": 3, "min_lr": 0.003, "eps": 1e-4},
    ),
    (
        plateau(0.1, 0.7, 3, mode="max", threshold=0.2, threshold_mode="abs"),
        {"name": "ReduceLROnPlateau", "lr": 0.1, "factor": 0.7, "patience": 3, "mode": "max"}
        | {"threshold": 0.2, "threshold_mode": "abs"},
    ),
]

OPTAX: list[tuple[gs.schedules.Schedule | plateau, dict[str, Any]]] = [
    (constant(0.1), {"name": "constant_schedule", "value": 0.1}),
    (
        step(0.1, 30),
        {"name": "exponential_decay", "init_value": 0.1, "transition_steps": 30, "decay_rate": 0.1, "staircase": True},
    ),
    (
        multi_step(0.1, [20, 50], 0.3),
        {"name": "piecewise_constant_schedule", "init_value": 0.1, "boundaries_and_scales": {20: 0.3, 50: 0.3}},
    ),
    (
        exponential(0.1, 0.5 ** (1 / 20)),
        {"name": "exponential_decay", "init_value": 0.1, "transition_steps": 20, "decay_rate": 0.5},
    ),
    (
        polynomial(0.1, 60, final=0.01, power=2.5),
        {"name": "polynomial_schedule", "init_value": 0.1, "end_value": 0.01, "power": 2.5, "transition_steps": 60},
    ),
    (
        join([0.1, polynomial(0.1, 60, final=0.01, power=2.0)], [20]),
        {"name": "polynomial_schedule", "init_value": 0.1, "end_value": 0.01, "power": 2.0, "transition_steps": 60}
        | {"transition_begin": 20},
    ),
    (linear(0.1, 50, final=0.01), _LINEAR | {"init_value": 0.1, "end_value": 0.01, "transition_steps": 50}),
    (linear(0.0, 50, final=0.1), _LINEAR | {"init_value": 0.0, "transition_steps": 50}),
    (
        linear(0.1, 90, final=0.01, warmup=10),
        {
            "name": "join_schedules",
            "schedules": [
                _LINEAR | {"init_value": 0.0, "transition_steps": 10},
                _LINEAR | {"init_value": 0.1, "end_value": 0.01, "transition_steps": 80},
            ],
            "boundaries": [10],
        },
    ),
    (
        cosine(0.1, 75, final=0.01),
        {"name": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 75, "alpha": 0.1},
    ),
    (
        cosine(0.1, 90, warmup=10),
        {"name": "warmup_cosine_decay_schedule", "init_value": 0.0, "peak_value": 0.1}
        | {"warmup_steps": 10, "decay_steps": 90},
    ),
    (
        cosine(0.1, 90, final=0.02, warmup=30, start=0.01),
        {"name": "warmup_cosine_decay_schedule", "init_value": 0.01, "peak_value": 0.1}
        | {"warmup_steps": 30, "decay_steps": 90, "end_value": 0.02},
    ),
    (
        warm_restarts(0.1, 20, 2, final=0.01),
        {
            "name": "sgdr_schedule",
            "cosine_kwargs": [
                {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 0, "decay_steps": steps, "end_value": 0.01}
                for steps in (20, 40, 80)
            ],
        },
    ),
    (
        one_cycle(0.1, 91, pct_start=(int(0.3 * 90) + 1) / 91),
        {"name": "cosine_onecycle_schedule", "transition_steps": 90, "peak_value": 0.1},
    ),
    (
        join([linear(0.004, 27, final=0.1), linear(0.1, 49, final=0.004), linear(0.004, 14, final=4e-7)], [27, 76]),
        {"name": "linear_onecycle_schedule", "transition_steps": 90, "peak_value": 0.1},
    ),
    (
        piecewise([0.1, 0.05, 0.2], [20, 50]),
        {"name": "piecewise_constant_schedule", "init_value": 0.1, "boundaries_and_scales": {20: 0.5, 50: 4.0}},
    ),
    (
        join([linear(0.0, 10, final=0.1), constant(0.1), cosine(0.1, 50)], [10, 40]),
        {
            "name": "join_schedules",
            "schedules": [
                _LINEAR | {"init_value": 0.0, "transition_steps": 10},
                {"name": "constant_schedule", "value": 0.1},
                {"name": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 50},
            ],
            "boundaries": [10, 40],
        },
    ),
    (
        plateau(0.1, 0.5, 2, threshold=0.05, cooldown=3, min_lr=0.004, eps=0.0),
        {"name": "reduce_on_plateau", "lr": 0.1, "factor": 0.5, "patience": 3, "rtol": 0.05}
        | {"cooldown": 3, "min_scale": 0.04},
    ),
]

CASES = [
    ScheduleCase(framework, ours, theirs, "momentum" if "one_cycle_momentum" in repr(ours) else "lr", number)
    for framework, table in {"torch": TORCH, "optax": OPTAX}.items()
    for number, (ours, theirs) in enumerate(table)
]


def at_checkpoints(value: Callable[[int], float], update: Callable[[float], object]) -> Values:
    """The values at the checkpoints; `update(loss)` goes to the next step."""
    kept = []
    for k in range(STEPS):
        if k > 0:
            update(LOSSES[k - 1])
        if k in CHECKPOINTS:
            kept.append(float(value(k)))
    return kept


def ours(case: ScheduleCase) -> Values:
    schedule = copy.deepcopy(case.ours)
    return at_checkpoints(schedule, schedule.update if isinstance(schedule, plateau) else lambda _loss: None)


def torch(case: ScheduleCase) -> Values:
    """The option of an optimizer in torch whose learning rate is a Python number."""
    import torch

    opt = torch.optim.SGD([torch.zeros(1)], lr=case.theirs["lr"], momentum=0.5)

    def build(theirs: dict[str, Any]) -> Any:
        arguments = {name: value for name, value in theirs.items() if name not in ("name", "lr")}
        if "schedulers" in arguments:
            arguments["schedulers"] = [build(inner) for inner in arguments["schedulers"]]
        return getattr(torch.optim.lr_scheduler, theirs["name"])(opt, **arguments)

    scheduler = build(case.theirs)

    def update(loss: float) -> None:
        opt.step()
        scheduler.step(*[loss] if isinstance(case.ours, plateau) else [])

    return at_checkpoints(lambda _step: opt.param_groups[0][case.option], update)


def optax(case: ScheduleCase) -> Values:
    """optax in JAX' 64-bit mode."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import optax
    import optax.contrib

    def build(theirs: dict[str, Any]) -> Any:
        arguments = {name: value for name, value in theirs.items() if name not in ("name", "lr")}
        if "schedules" in arguments:
            arguments["schedules"] = [build(inner) for inner in arguments["schedules"]]
        home = optax if hasattr(optax, theirs["name"]) else optax.contrib
        return getattr(home, theirs["name"])(**arguments)

    if not isinstance(case.ours, plateau):
        return at_checkpoints(build(case.theirs), lambda _loss: None)
    transformation = build(case.theirs)
    update_of = jax.jit(transformation.update)
    lr = jax.numpy.array(case.theirs["lr"], dtype="float64")
    state, present = transformation.init(lr), lr

    def update(loss: float) -> None:
        nonlocal present, state
        present, state = update_of(lr, state, value=loss)

    return at_checkpoints(lambda _step: float(present), update)


RUN: dict[str, Callable[[ScheduleCase], Values]] = {"torch": torch, "optax": optax}


def relative_error(ours: Values, theirs: Values) -> float:
    """The largest error at any checkpoint, relative to the peer's value; where that is 0, ours must be 0."""
    return max(0.0 if a == b else abs(a - b) / abs(b) if b else float("inf") for a, b in zip(ours, theirs, strict=True))

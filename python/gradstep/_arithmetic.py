"""Arithmetic on whole arrays, as steps of the core's SGD: multiples of arrays, and sums of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import _core, _storage
from ._groups import RULES
from ._libraries import Library, refuse_capture, use_stream
from ._step import Engine, run_step
from ._types import Array


def sgd_options(lr: float) -> dict[str, float]:
    """Options of the core's rule "sgd" without all that is common to rules."""
    off = dict.fromkeys(("stochastic_rounding", "clip_value", "ema"), math.nan)
    return {**dict.fromkeys(RULES["sgd"]["options"], 0.0), **off, "lr": lr}


def assign_multiples(library: Library, multiples: Sequence[tuple[Array, Array, float]]) -> None:
    """Sets each first array to a multiple of the second, rounded to nearest where types differ.

    Raises with nothing written.
    """
    stepper: _core.Stepper = library.core.Stepper()
    for _, _, factor in multiples:
        stepper.add_group("sgd", sgd_options(-factor))
    targets = [target for target, _, _ in multiples]
    stepper.add_tensors(range(len(targets)), targets, [{} for _ in targets])
    if library.on_gpu:
        use_stream(library, stepper)
    for target in targets:
        library.fill(target, -0.0)  # -0 - (-factor * value) is a step of SGD; the sum with -0 is exact
    run_step(stepper, [value for _, value, _ in multiples])


def adder(sums: list[Array], core: Any = _core, tree: _core.Tree | None = None) -> _core.Stepper:
    """A stepper whose steps add their gradients to arrays. With a tree, these are its leaves."""
    stepper: _core.Stepper = core.Stepper(tree, "accumulated params")
    stepper.add_group("sgd", sgd_options(-1.0))  # sum = sum - (-1) * g is a step of SGD
    stepper.add_tensors([0] * len(sums), sums, [{} for _ in sums])
    return stepper


class Sums:
    """The gradients that an optimizer has accumulated, in the type that its parameters are computed in."""

    def __init__(self, engine: Engine, params: Mapping[str, Array]) -> None:
        library = engine.library
        self._engine = engine
        self.arrays: dict[str, Array] = {}
        """By the names of parameters, zero where nothing was added."""
        for name, param in params.items():
            self.arrays[name] = library.zeros_like(param, "float64" if _storage.is_double(param) else "float32")
        self._stepper = adder(list(self.arrays.values()), library.core, engine.tree)
        self.count = 0
        """The number of gradients that were added."""
        self.given: set[str] = set()
        """The parameters that have got a gradient since the last step."""
        engine.wait()

    def add(self, grads: Sequence[Array | None], stream: Any) -> None:
        """Adds gradients in the order of the parameters. Raises with nothing changed."""
        self._engine.use(stream, self._stepper)
        words = "accumulate() cannot be captured: replays would not count"
        refuse_capture(self._engine.library, self._stepper, words)
        run_step(self._stepper, self._engine.tree.build(grads))
        self.given.update(name for name, grad in zip(self.arrays, grads, strict=True) if grad is not None)
        self.count += 1

    def clear(self) -> None:
        """Sets the sums to zero."""
        for name in self.given:
            self._engine.library.fill(self.arrays[name], 0.0)
        self.given.clear()
        self.count = 0

"""gradstep.torch beside torch's own optimizers, called as users call them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import Any

import ml_dtypes
import numpy as np

import gradstep as gs
from gradstep import optimizers
from gradstep.bench import CHUNK, Arm, Array, Problem

from ..harness import Row, Settings, Trial, Turns, gradstep_threads
from ..tables import group, markdown, timed, times, words
from .threads import shared_arm

TITLE = "torch's optimizers with gradstep's step"
ABOUT = """\
`optimizer.step()` of `gradstep.torch` and of `torch.optim`, on parameters of torch and on as many threads; of torch's
forms (single, foreach, and fused where it exists) the fastest by medians. The gradients of each step are other tensors
than those of the step before; they are assigned to the parameters before the time of the step begins. The models are
100 vectors, a transformer of 12 layers, a perceptron of 3 layers, and ResNet-50."""

Shape = tuple[int, ...]

SCALES = (1.0, -0.5, 0.25)
"""Gradients are the first ones multiplied by these, in turn. Powers of two lose no bits in any type."""
OFFLOAD = "offload"


# ---- the shapes of models -------------------------------------------------------------------------------------------


def vectors(width: int) -> Iterator[Shape]:
    """A hundred vectors of this size."""
    return repeat((width,), 100)


def transformer(width: int, layers: int = 12, tokens: int = 4096, context: int = 256) -> Iterator[Shape]:
    """A GPT whose output layer has weights of its own."""
    yield from [(tokens, width), (context, width)]
    for _ in range(layers):
        norm = [(width,), (width,)]
        attention = [(3 * width, width), (3 * width,), (width, width), (width,)]
        yield from [*norm, *attention, *norm, (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    yield from [(width,), (width,), (tokens, width), (tokens,)]


def perceptron(width: int) -> Iterator[Shape]:
    """Three layers, for pictures of 28 x 28 and ten classes."""
    yield from [(width, 784), (width,), (width, width), (width,), (10, width), (10,)]


def resnet50(width: int) -> Iterator[Shape]:
    """The convolutions without biases, each with the two vectors of its normalization, and the last layer."""
    channels, convolutions = width, [(width, 3, 7, 7)]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            convolutions += [(inner, channels, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            if block == 0:
                convolutions.append((4 * inner, channels, 1, 1))
            channels = 4 * inner
    yield from chain.from_iterable([shape, shape[:1], shape[:1]] for shape in convolutions)
    yield from [(1000, channels), (1000,)]


MODELS: dict[str, tuple[Callable[[int], Iterator[Shape]], int]] = {
    "vectors": (vectors, 1000),
    "transformer": (transformer, 128),
    "perceptron": (perceptron, 1024),
    "ResNet-50": (resnet50, 64),
}
"""The shapes for a width, and the width."""
NARROWER = 8
"""How many times narrower models are in a quick run."""

CLASSES: dict[str, tuple[type[gs.Optimizer], str, dict[str, Any], dict[str, Any]]] = {
    "SGD": (gs.SGD, "SGD", {}, {}),
    "SGD, momentum": (gs.Momentum, "SGD", {"momentum": 0.9}, {}),
    "Adagrad": (gs.AdaGrad, "Adagrad", {}, {}),
    "RMSprop": (gs.RMSProp, "RMSprop", {}, {}),
    "Adadelta": (gs.AdaDelta, "Adadelta", {}, {}),
    "Adam": (gs.Adam, "Adam", {}, {}),
    "AdamW": (gs.Adam, "AdamW", {}, {"weight_decay": 0.01}),
    "NAdam": (gs.Nadam, "NAdam", {}, {}),
}
"""The rule, the name of torch's class, its options, and those of gradstep's class that differ from the defaults."""


# ---- arms -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Changing(Problem):
    """A problem with other gradients at every step."""

    def solve(self, first: Array, grad: Array, after: Sequence[int]) -> Iterator[Array]:
        param = first.copy()
        opt = self.optimizer(param, self.oracle)
        grads = [grad * scale for scale in SCALES]
        for steps in after:
            while opt.step_count < steps:
                opt.step(grads[opt.step_count % len(grads)])
            yield param


@dataclass(eq=False)
class TorchArm(Arm):
    """An arm that is given other gradients before every step."""

    params: Sequence[Any] = ()
    grads: Sequence[Sequence[Any]] = field(default_factory=list)

    def take(self, calls: int) -> float:
        took = 0.0
        for _ in repeat(None, calls):
            for param, grad in zip(self.params, self.grads[self.steps % len(self.grads)], strict=True):
                param.grad = grad
            start = time.perf_counter()
            self.step()
            took += time.perf_counter() - start
            self.steps += 1
        return took


def tensors(arrays: Sequence[Array]) -> list[Any]:
    """Copies in torch's memory."""
    import torch

    bits = [array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array for array in arrays]
    copies = [torch.from_numpy(array).clone() for array in bits]
    return [copy.view(torch.bfloat16) if copy.dtype == torch.int16 else copy for copy in copies]


def array(tensor: Any) -> Array:
    """A tensor as an array on the same memory."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return array(tensor.detach().view(torch.int16)).view(ml_dtypes.bfloat16)
    values: Array = tensor.detach().numpy()
    return values


def changing_grads(arrays: Sequence[Array]) -> list[list[Any]]:
    """The gradients of as many steps as there are scales."""
    return [[grad * scale for grad in tensors(arrays)] for scale in SCALES]


def arm_of(name: str, make: Callable[[list[Any]], Any], one: Problem, grads: list[list[Any]], exact: bool) -> TorchArm:
    """An arm that calls the step of an optimizer made with the parameters."""
    params = [param.requires_grad_() for param in tensors(one.first)]
    step, answer = make(params).step, partial(map, array, params)
    return TorchArm(name, step, one, lambda: list(answer()), exact=exact, params=params, grads=grads)


@contextmanager
def both_threads(count: int) -> Iterator[None]:
    """Sets the number of threads of gradstep and of torch."""
    from ..peers.torch_forms import LIMIT

    with gradstep_threads(count), LIMIT(count):
        yield


def on_threads(arms: Sequence[Arm], counts: Sequence[int]) -> Iterator[tuple[int, list[Arm]]]:
    """The arms for each number of threads; those for a further number take the steps of the first ones."""
    for arm in arms:
        arm.around = partial(both_threads, counts[0])
    yield counts[0], list(arms)
    for count in counts[1:]:
        yield count, [shared_arm(arm.name, arm, partial(both_threads, count)) for arm in arms]


def threads_of(settings: Settings) -> list[int]:
    """The first and the last number of threads."""
    return list(dict.fromkeys((settings.threads[0], settings.threads[-1])))


def arms(settings: Settings, rule: str, shapes: Sequence[Shape]) -> dict[str, Sequence[Arm]]:
    import torch

    import gradstep.torch

    from ..peers.torch_forms import FORMS, runs

    cls, name, options, ours = CLASSES[rule]
    rng = np.random.default_rng(0)
    first, grads = ([rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(2))
    one = Changing(cls, first, grads, {**options, **ours}, oracle=optimizers)
    changing = changing_grads(grads)
    made = [arm_of("gradstep", partial(getattr(gradstep.torch, name), **options), one, changing, exact=True)]
    peer = getattr(torch.optim, name)
    for form, flags in FORMS.items():
        if runs(peer, {**options, **flags}, "cpu"):
            made.append(arm_of(f"torch {form}", partial(peer, **options, **flags), one, changing, exact=False))
    return {str(count): found for count, found in on_threads(made, threads_of(settings))}


# ---- offloaded training ---------------------------------------------------------------------------------------------

STORED: dict[str, dict[str, Any]] = {
    "float32 master and states": {"master": True, "state_dtype": "float32"},
    "float32 master, bfloat16 states": {"master": True, "state_dtype": "bfloat16"},
    "float32 master, q8 states": {"master": True, "state_dtype": "q8"},
    "no master, stochastic rounding, q8 states": {"stochastic_rounding": 0, "state_dtype": "q8"},
}
TENSORS, SIZE = 10, 5_000_000
DECAY = {"weight_decay": 0.01}


def widened_arm(first: Sequence[Array], grads: Sequence[Array], changing: list[list[Any]]) -> TorchArm:
    """torch's way: widened gradients, the fused step of float32 masters, and the masters copied to the parameters."""
    import torch

    one = Changing(gs.Adam, [param.astype(np.float32) for param in first], grads, DECAY, oracle=optimizers)
    params = [param.requires_grad_() for param in tensors(first)]
    masters = [master.requires_grad_() for master in tensors(one.first)]
    narrow, wide = [param.detach() for param in params], [master.detach() for master in masters]
    buffers = [torch.empty_like(master) for master in wide]
    for master, buffer in zip(masters, buffers, strict=True):
        master.grad = buffer
    opt = torch.optim.AdamW(masters, fused=True)

    def step() -> None:
        for buffer, param in zip(buffers, params, strict=True):
            buffer.copy_(param.grad)
        opt.step()
        for param, master in zip(narrow, wide, strict=True):
            param.copy_(master)

    def answer() -> list[Array]:
        if not all(torch.equal(param, master.to(param.dtype)) for param, master in zip(narrow, wide, strict=True)):
            raise ValueError("a parameter is not its rounded master")
        return [array(master) for master in masters]

    return TorchArm("torch", step, one, answer, params=params, grads=changing)


def offload_arms(settings: Settings, size: int) -> dict[str, Sequence[Arm]]:
    import gradstep.torch

    rng = np.random.default_rng(0)
    first, grads = (
        [rng.standard_normal(size, np.float32).astype(ml_dtypes.bfloat16) for _ in range(TENSORS)] for _ in range(2)
    )
    changing = changing_grads(grads)
    made: list[Arm] = [widened_arm(first, grads, changing)]
    for stored, options in STORED.items():
        one = Changing(gs.Adam, first, grads, {**DECAY, **options}, oracle=optimizers, compared=min(size, CHUNK))
        make = partial(gradstep.torch.AdamW, **options)
        made.append(arm_of(stored, make, one, changing, exact=True))
    return {f"{OFFLOAD}: {count}": found for count, found in on_threads(made, threads_of(settings))}


# ---- trials and tables ----------------------------------------------------------------------------------------------


def trials(settings: Settings) -> Iterator[Trial]:
    for model, (shapes, width) in MODELS.items():
        of_model = list(shapes(width // NARROWER if settings.quick else width))
        for rule, (cls, *_) in CLASSES.items():
            if cls in settings.rules:
                cases = partial(arms, settings, rule, of_model)
                yield Turns(f"{rule}, {model}", cases, {"rule": rule, "model": model})
    for _ in settings.rule("Adam"):
        cases = partial(offload_arms, settings, settings.scaled(SIZE))
        yield Turns(OFFLOAD, cases, {"rule": "AdamW", "model": OFFLOAD})


def best(found: Mapping[str, Row]) -> tuple[str, Row]:
    """The fastest of torch's forms, and its row."""
    forms = {name.partition(" ")[2]: row for name, row in found.items() if name.startswith("torch")}
    return min(forms.items(), key=lambda item: item[1]["median"])


def table(rows: Sequence[Row]) -> str:
    lines = []
    plain = [row for row in rows if row["model"] != OFFLOAD]
    for (model, rule, threads), found in group(plain, "model", "rule", "case").items():
        ours, (form, theirs) = found["gradstep"], best(found)
        sizes = [words(ours["tensors"]), words(ours["elements"])]
        lines.append([model, *sizes, rule, threads, timed(ours), timed(theirs), form, times(theirs, ours)])
    columns = ["model", "tensors", "elements", "class", "threads", "gradstep", "torch", "its form", "torch takes"]
    return "\n\n".join([markdown(columns, lines), *offload_table([row for row in rows if row["model"] == OFFLOAD])])


def offload_table(rows: Sequence[Row]) -> list[str]:
    """The table of offloaded training; empty if it was not measured."""
    lines = []
    for (case,), found in group(rows, "case").items():
        theirs = found.pop("torch")
        for stored, ours in found.items():
            threads, sizes = case.removeprefix(f"{OFFLOAD}: "), words(ours["elements"])
            measured = [f"{ours['bytes']:.3g}", timed(ours), timed(theirs), times(theirs, ours)]
            lines.append([stored, sizes, threads, *measured])
    about = (
        "AdamW on the processor for training elsewhere: bfloat16 gradients come in, bfloat16 parameters go out. "
        "gradstep takes one step of the bfloat16 parameters. torch widens the gradients into float32 tensors that "
        "exist already, takes its fused step of float32 masters, and copies these to the parameters. Bytes are those "
        "that a step of gradstep reads and writes, for each element."
    )
    headings = ["gradstep stores", "elements", "threads", "bytes", "gradstep", "torch", "torch takes"]
    return [about, markdown(headings, lines)] if lines else []

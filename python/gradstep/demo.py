"""The demonstration, ``python -m gradstep demo``: eight optimizers, one perceptron, real handwritten digits.

A multilayer perceptron in plain NumPy learns the 8 x 8 digits that scikit-learn ships, once with every optimizer, from
the same weights and the same batches. After every step the same update is done by `gradstep.reference` (the same
formulas as plain NumPy expressions) on a copy of the parameters: both are timed, and their bits compared.
Parameters, gradients and states may be stored in fewer bits.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

import gradstep
from gradstep import optimizers, reference
from gradstep._groups import RULES
from gradstep._libraries import bfloat16
from gradstep._race import shown
from gradstep._storage import STATE_DTYPES
from gradstep.plot import COLOURS, FAINT, INK, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.progress import TaskID
    from rich.table import Table

Array = npt.NDArray[Any]
Params = dict[str, Array]
Options = Mapping[str, Any]

REQUIRES = (
    "matplotlib",
    "rich",
    "sklearn",
    "threadpoolctl",
)  # what `pip install "gradstep[demo]"` brings; imported where they are used
EPOCHS, BATCH, HIDDEN = 30, 64, (256, 128)
DTYPES = ("float32", "float16", "bfloat16")
STATES = tuple(dtype for dtype in STATE_DTYPES if dtype != "float16")  # in float16 second moments vanish

# Of float16 gradients. Unscaled, up to 56 % lie below 2**-14, where float16 loses bits, and up to 4 % become zero; with
# a loss 1024 times as large at most 0.3 % do, and the largest, 1.6 before, is still a fortieth of the limit.
LOSS_SCALE = 1024

# Optimizers that are not named here run with their defaults.
DIGITS: dict[str, Options] = {
    "SGD": {"lr": 0.2},
    "Momentum": {"lr": 0.05, "momentum": 0.9},
    "NAG": {"lr": 0.05, "momentum": 0.9},
    "AdaGrad": {"lr": 0.02},
    "RMSProp": {"lr": 0.001},
    "AdaDelta": {"lr": 1.0, "rho": 0.95, "eps": 1e-5},
    "Adam": {"lr": 0.002},
    "Nadam": {"lr": 0.002},
}
RAVINE: dict[str, Options] = {
    "SGD": {"lr": 0.92},
    "Momentum": {"lr": 0.1, "momentum": 0.8},
    "NAG": {"lr": 0.1, "momentum": 0.8},
    "AdaGrad": {"lr": 1.5},
    "RMSProp": {"lr": 0.2, "rho": 0.9},
    "AdaDelta": {"lr": 2.0, "eps": 1e-2},
    "Adam": {"lr": 0.4},
    "Nadam": {"lr": 0.4},
}


# ---- the data -------------------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Images (rows of 64 pixels from 0 to 1) and labels, to learn from and to be tested on."""

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


def load_digits(seed: int) -> Digits:
    """The 1797 digits of scikit-learn, shuffled; every fifth is kept for the test."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    cut = len(labels) // 5
    return Digits(images[cut:], labels[cut:], images[:cut], labels[:cut])


def batches(rng: np.random.Generator, count: int) -> Iterator[Array]:
    """The indices of one epoch's batches: every sample once, in random order."""
    order = rng.permutation(count)
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH]


# ---- the model ------------------------------------------------------------------------------------------------------


def widths(digits: Digits, hidden: Sequence[int]) -> tuple[int, ...]:
    """The number of units of every layer, from the pixels to the ten classes."""
    return (digits.images.shape[1], *hidden, 10)


def initial_params(rng: np.random.Generator, widths: Sequence[int]) -> Params:
    """Weights after He, biases zero: ``weight1, bias1, weight2, ...``, in float32."""
    params = {}
    for layer, (inputs, outputs) in enumerate(pairwise(widths), 1):
        weight = rng.standard_normal((inputs, outputs), np.float32)
        params[f"weight{layer}"] = weight * np.float32(np.sqrt(2 / inputs))
        params[f"bias{layer}"] = np.zeros(outputs, np.float32)
    return params


def widened(params: Params) -> Params:
    """The parameters, those of 16 bits in float32: NumPy has no fast matrix product of anything smaller."""
    return {name: a.astype(np.float32) if a.dtype.itemsize == 2 else a for name, a in params.items()}


def forward(params: Params, images: Array) -> list[Array]:
    """What every layer puts out: the images first, the scores of the ten classes last."""
    params = widened(params)
    depth = len(params) // 2
    outputs = [images]
    for layer in range(1, depth + 1):
        sums = outputs[-1] @ params[f"weight{layer}"] + params[f"bias{layer}"]
        outputs.append(np.maximum(sums, 0) if layer < depth else sums)
    return outputs


def log_softmax(scores: Array) -> Array:
    """The logarithms of the probabilities that the scores stand for."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def mean_loss(params: Params, images: Array, labels: Array) -> float:
    """The mean cross-entropy."""
    return -float(log_softmax(forward(params, images)[-1])[np.arange(len(labels)), labels].mean())


def gradients(params: Params, images: Array, labels: Array, scale: float = 1) -> Params:
    """The gradient of `mean_loss`, times `scale`, by every parameter: backpropagation, written out."""
    params = widened(params)
    outputs = forward(params, images)
    error = np.exp(log_softmax(outputs[-1]))
    error[np.arange(len(labels)), labels] -= 1
    error /= np.float32(len(labels))
    error *= scale
    grads = {}
    for layer in range(len(params) // 2, 0, -1):
        below = outputs[layer - 1]
        grads[f"weight{layer}"] = below.T @ error
        grads[f"bias{layer}"] = error.sum(axis=0)
        error = (error @ params[f"weight{layer}"].T) * (below > 0)
    return grads


def accuracy(params: Params, images: Array, labels: Array) -> float:
    """The share of images whose highest score is the right one."""
    return float((forward(params, images)[-1].argmax(axis=1) == labels).mean())


# ---- storage --------------------------------------------------------------------------------------------------------


class Storage(NamedTuple):
    """What parameters with their gradients, and states, are stored as. The network computes in float32."""

    dtype: str = "float32"
    state: str = "float32"
    master: bool = False

    def rounded(self, arrays: Params) -> Params:
        """Parameters or gradients as they are stored."""
        dtype = bfloat16() if self.dtype == "bfloat16" else np.dtype(self.dtype)
        return {name: array.astype(dtype, copy=False) for name, array in arrays.items()}

    def gradients(self, params: Params, images: Array, labels: Array) -> Params:
        """The gradients that a step takes: as they are stored, or, with a loss scale, widened and freed of it."""
        if self.dtype != "float16":
            return self.rounded(gradients(params, images, labels))
        scaled = self.rounded(gradients(params, images, labels, LOSS_SCALE))
        return {name: grad / LOSS_SCALE for name, grad in widened(scaled).items()}

    def options(self, cls: type[gradstep.Optimizer], seed: int) -> Options:
        """The options with which an optimizer stores so."""
        chosen: dict[str, Any] = {}
        if self.state != "float32" and RULES[cls.rule]["states"]:  # SGD has none
            chosen["state_dtype"] = self.state
        if self.master:
            chosen["master"] = True
        elif self.dtype != "float32":
            chosen["stochastic_rounding"] = seed % 2**53
        return chosen

    def words(self, sizes: Sequence[int]) -> str:
        """A line on how arrays of these sizes are stored."""
        scale = f" with a loss scale of {LOSS_SCALE}" if self.dtype == "float16" else ""
        rounding = "; a float32 master" if self.master else "; stochastic rounding" if self.dtype != "float32" else ""
        coded = sum(size >= gradstep.Adam.defaults["min_8bit_size"] for size in sizes)
        which = f" in {coded} of {len(sizes)} arrays, float32 in small ones" if self.state == "q8" else ""
        return f"{self.dtype} parameters and gradients{scale}{rounding}; {self.state} states{which}"


PLAIN = Storage()


def bytes_per_parameter(params: Params, grads: Params, state: Mapping[str, Mapping[str, Array | None]]) -> float:
    """The memory that a step reads and writes: parameters, gradients, and states with their scales and master."""
    arrays = [array for kind in (params, grads, *state.values()) for array in kind.values() if array is not None]
    return sum(array.nbytes for array in arrays) / sum(array.size for array in params.values())


# ---- the training loop ----------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one optimizer did on the digits. Times are seconds, one a step."""

    name: str
    options: Options
    storage: Storage = PLAIN
    losses: list[float] = field(default_factory=list)  # over the training set: before the first epoch, and after each
    accuracy: float = 0.0
    same_bits: bool = True
    bytes: float = 0.0  # per parameter
    times: dict[str, list[float]] = field(default_factory=lambda: {"gradients": [], "gradstep": [], "NumPy": []})

    def median(self, part: str) -> float:
        """The median time of a part of the step, in seconds."""
        return statistics.median(self.times[part])

    @property
    def ratio(self) -> float:
        """How many times longer NumPy takes for the update."""
        return self.median("NumPy") / self.median("gradstep")

    def share(self, arm: str) -> float:
        """The update's share of a training step (gradients and update)."""
        return self.median(arm) / (self.median("gradients") + self.median(arm))


def same_bits(ours: Params, theirs: Params) -> bool:
    """Whether all arrays are the same, bit for bit, and free of NaN."""
    return all(a.tobytes() == theirs[name].tobytes() and not np.isnan(a).any() for name, a in ours.items())


def train(
    cls: type[gradstep.Optimizer],
    digits: Digits,
    *,
    hidden: Sequence[int] = HIDDEN,
    epochs: int = EPOCHS,
    seed: int = 0,
    storage: Storage = PLAIN,
    on_epoch: Callable[[float], None] = lambda _: None,
) -> Run:
    """Train a perceptron on the digits with one optimizer, its NumPy twin updating a copy beside it."""
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    params = storage.rounded(initial_params(rng, widths(digits, hidden)))
    copy = {name: array.copy() for name, array in params.items()}
    options = DIGITS.get(cls.__name__, {})
    chosen = {**options, **storage.options(cls, seed)}
    ours, theirs = cls(params, **chosen), getattr(reference, cls.__name__)(copy, **chosen)
    arms = [("gradstep", ours), ("NumPy", theirs)]
    run = Run(cls.__name__, {"lr": ours.lr, **options}, storage)
    run.losses.append(mean_loss(params, digits.images, digits.labels))
    with threadpool_limits(limits=1, user_api="blas"):  # on matrices this small, two threads mostly wait for each other
        for _ in range(epochs):
            for batch in batches(rng, len(digits.labels)):
                start = time.perf_counter()
                grads = storage.gradients(params, digits.images[batch], digits.labels[batch])
                run.times["gradients"].append(time.perf_counter() - start)
                for arm, opt in arms:
                    start = time.perf_counter()
                    opt.step(grads)
                    run.times[arm].append(time.perf_counter() - start)
                arms.reverse()  # neither arm always finds the gradients warm
                run.same_bits = run.same_bits and same_bits(params, copy)
            run.losses.append(mean_loss(params, digits.images, digits.labels))
            on_epoch(run.losses[-1])
    run.accuracy = accuracy(params, digits.test_images, digits.test_labels)
    run.bytes = bytes_per_parameter(params, grads, ours.state)
    return run


# ---- the ravine -----------------------------------------------------------------------------------------------------

START = (-7.0, 2.0)


def ravine(x: Array, y: Array) -> Array:
    """A valley that is twenty times steeper across than along; its lowest point is the origin."""
    height: Array = x**2 / 20 + y**2
    return height


def descend(cls: type[gradstep.Optimizer], steps: int = 40) -> Array:
    """The path of an optimizer down the ravine: one row (x, y) before the first step, and one after each."""
    point = np.array(START)
    opt = cls(point, **RAVINE.get(cls.__name__, {}))
    path = [point.copy()]
    for _ in range(steps):
        opt.step(point * (0.1, 2.0))  # the gradient of the ravine
        path.append(point.copy())
    return np.array(path)


# ---- the picture ----------------------------------------------------------------------------------------------------


def picture(runs: Sequence[Run], paths: Mapping[str, Array]) -> bytes:
    """A PNG: the loss curves on the left, and on the right the path of every optimizer down the ravine."""
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(paths)}
    figure = new_figure(12, 5.6, dpi=130)
    [[left, right]] = figure.subfigures(1, 2, squeeze=False, width_ratios=(5, 7))
    draw_losses(left.subplots(), runs, colours)
    grid = right.subplots(-(-len(paths) // 2), 2, squeeze=False).T.flat
    for (name, path), axes in zip(paths.items(), grid, strict=False):
        draw_path(axes, path, colours[name])
        title = f"$\\bf{{{name}}}$   {shown(RAVINE.get(name, {}))}"
        axes.set_title(title, fontsize=9, loc="left", color=INK, pad=4)
    for axes in grid:  # an odd number of optimizers leaves one over
        axes.set_axis_off()
    left.suptitle("Loss on the digits", color=INK)
    right.suptitle("Forty steps down a ravine, $x^2\\!/20 + y^2$", color=INK)
    return png(figure)


def draw_losses(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str]) -> None:
    """The loss of every run after each epoch."""
    for i, run in enumerate(runs):
        axes.semilogy(run.losses, color=colours[run.name], linestyle=("-", "--")[i % 2], label=run.name, linewidth=1.6)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("mean cross-entropy, all training digits", color=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2)


def draw_path(axes: Axes, path: Array, colour: str) -> None:
    """One path over the ravine's contour lines; a cross marks the lowest point."""
    x, y = np.meshgrid(np.linspace(-8, 2, 200), np.linspace(-2.5, 2.5, 100))
    axes.contour(x, y, np.sqrt(ravine(x, y)), 9, colors=FAINT, linewidths=0.8)
    axes.plot(*path.T, "-o", color=colour, markersize=2.6, linewidth=1.2)
    axes.plot(0, 0, "+", color=INK, markersize=9)
    axes.set(xlim=(-8, 2), ylim=(-2.5, 2.5), xticks=[], yticks=[])
    axes.spines[:].set_color(FAINT)


# ---- the report -----------------------------------------------------------------------------------------------------


def table(runs: Sequence[Run]) -> Table:
    """One row an optimizer: how well it learnt, and how long its updates took."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    result.add_column("optimizer", style="bold", no_wrap=True)
    result.add_column("settings")
    for heading in ("final\nloss", "test\naccuracy", "gradstep\nµs/step", "NumPy\nµs/step", "ratio"):
        result.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        learnt = (f"{run.losses[-1]:.4f}", f"{run.accuracy:.3f}")
        times = (f"{run.median('gradstep') * 1e6:.1f}", f"{run.median('NumPy') * 1e6:.1f}", f"{run.ratio:.1f}x")
        result.add_row(run.name, shown(run.options), *learnt, *times)
    return result


def remarks(runs: Sequence[Run]) -> Iterator[str]:
    """What the table's numbers mean, one remark a line."""
    shares = {arm: [100 * run.share(arm) for run in runs] for arm in ("gradstep", "NumPy")}
    spans = [f"{min(share):.0f} to {max(share):.0f} % with {arm}" for arm, share in shares.items()]
    yield f"The update's share of a whole training step: {', '.join(spans)}."
    yield "µs/step: median time of the update alone, the two taken in turns on the same gradients."
    yield "NumPy: gradstep.reference, plain array expressions, written to be read; ratio: NumPy / gradstep."
    if any(run.storage != PLAIN for run in runs):
        sizes = ", ".join(f"{run.name} {run.bytes:.1f}" for run in runs)
        yield f"Bytes per parameter that a step reads and writes: {sizes}."
    differing = ", ".join(run.name for run in runs if not run.same_bits)
    yield f"Same bits as NumPy after every step: {f'no ({differing})' if differing else 'yes, with every optimizer'}."


def check_output(path: Path) -> None:
    """Raise OSError where the picture could not be written: better now than after the training."""
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise OSError("not a writable file")
    with TemporaryFile(dir=path.parent):
        pass


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that its name never stands for half of it."""
    path = path.resolve()  # a link stays a link
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def run(
    output: Path,
    *,
    hidden: Sequence[int] = HIDDEN,
    epochs: int = EPOCHS,
    seed: int = 0,
    storage: Storage = PLAIN,
) -> list[Run]:
    """The whole demonstration: train with every optimizer, print the table, write the picture."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    digits = load_digits(seed)
    sizes = [array.size for array in initial_params(np.random.default_rng(seed), widths(digits, hidden)).values()]
    console = Console(highlight=False, markup=False, soft_wrap=True)
    config = gradstep.show_config(mode="dicts")
    console.print(f"gradstep {config['version']}, {config['isa']['chosen']}, threads: {config['threads']['count']}")
    console.print(
        f"digits: {len(digits.labels)} to learn, {len(digits.test_labels)} to test; "
        f"perceptron: {'-'.join(map(str, widths(digits, hidden)))}, {sum(sizes)} parameters in {len(sizes)} arrays; "
        f"epochs: {epochs}; batch: {BATCH}"
    )
    if storage != PLAIN:
        console.print(f"storage: {storage.words(sizes)}")
    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        tasks = [(cls, progress.add_task(cls.__name__, total=epochs, loss="")) for cls in optimizers.ALL]
        runs = []
        for cls, task in tasks:

            def advance(loss: float, task: TaskID = task) -> None:
                progress.update(task, advance=1, loss=f"loss {loss:.4f}")

            runs.append(train(cls, digits, hidden=hidden, epochs=epochs, seed=seed, storage=storage, on_epoch=advance))
    console.print("", table(runs), "", sep="\n")
    for remark in remarks(runs):
        console.print(remark)
    write_whole(output, picture(runs, {cls.__name__: descend(cls) for cls in optimizers.ALL}))
    console.print(f"Picture: {output}")
    return runs

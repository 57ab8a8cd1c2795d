"""The measurement, ``python -m gradstep bench``: every rule beside a pass over its memory, and beside plain NumPy.

A step reads the gradient, and reads and writes the parameter and each state: that many bytes it must move. NumPy's
in-place pass moves the same bytes, on as many threads, and only adds. Arms take turns, so that a noisy moment hits all
of them, and a step that computes anything but the reference's bits fails the run. ``benchmarks/`` measures more, with
these parts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise, repeat
from math import ceil
from pathlib import Path
from random import Random
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import gradstep
from gradstep import _core, optimizers, reference

if TYPE_CHECKING:
    from rich.table import Table

Array = npt.NDArray[Any]
Shape = tuple[int, int]  # how many tensors, of how many elements each

REQUIRES = ("rich",)  # what `pip install "gradstep[bench]"` brings; imported where it is used
SHAPES: tuple[Shape, ...] = ((1, 1000), (1, 100_000), (100, 1000), (1, 16_000_000))
REPEATS = 5

BLOCK = 300e-6  # seconds: calls that are shorter are timed several at once
SLOW = 50e-3  # a call this long is timed alone; shorter ones may have as long to come up to speed
AWAKE = 1e-3  # the least time for which short calls warm up: threads may be woken only for calls that come often
CHUNK = 1 << 16  # elements that the reference takes at once: they and its temporaries stay in the cache
PASS_FROM = 1 << 22  # elements; what is smaller may lie in a cache, and the pass would measure Python's calls
PASS_PIECE = 1 << 16  # elements added at once: the gradient's stay in the cache for the next array
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
TOLERANCE = 1e-3  # how far another library's answer may lie from ours, in parts of the way from the first parameters


class WrongAnswer(Exception):
    """An arm computed something else than the reference."""


# ---- what is computed -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Problem:
    """What arms are to compute: a rule with its options, the first parameters, and the gradients of every step."""

    cls: type[gradstep.Optimizer]
    first: Sequence[Array]
    grads: Sequence[Array]
    options: Mapping[str, Any] = field(default_factory=dict)
    first_states: Mapping[str, float] = field(default_factory=dict)  # those of one array that do not start as usual
    oracle: ModuleType = reference  # whose optimizers give the right answer
    compared: int = CHUNK  # elements that the oracle takes at once; where places matter, the first so many alone

    @property
    def elements(self) -> int:
        """The elements of all parameters."""
        return sum(param.size for param in self.first)

    @property
    def states(self) -> int:
        """How many states the rule keeps, with these options."""
        return len(self.cls(np.zeros(1, np.float32), **self.options).state)

    @property
    def bytes_moved(self) -> float:
        """The least traffic of a step, in bytes an element."""
        param = np.zeros(_core.BLOCK, self.first[0].dtype)
        kept = self.cls(param, **{**self.options, "min_8bit_size": 0}).state
        written = sum(array.nbytes for array in kept.values()) + (0 if "master" in kept else param.nbytes)
        only = _core.BLOCK * self.grads[0].itemsize + (param.nbytes if "master" in kept else 0)  # read, or written
        again = self.grads[0].itemsize if "clip_norm" in self.options else 0
        moved: float = (2 * written + only) / _core.BLOCK + again
        return moved

    @property
    def depends_on_place(self) -> bool:
        """Whether what comes out of an element depends on where in its array it lies: random bits do."""
        return self.options.get("state_dtype") == "q8" or "stochastic_rounding" in self.options

    def params(self) -> list[Array]:
        """The first parameters, to be changed."""
        return [param.copy() for param in self.first]

    def optimizer(self, params: Any, module: ModuleType = optimizers) -> Any:
        """One of our optimizers, or of the reference's, for these parameters."""
        opt = getattr(module, self.cls.__name__)(params, **self.options)
        for name, value in self.first_states.items():
            opt.state[name][...] = value
        return opt

    def solve(self, first: Array, grad: Array, after: Sequence[int]) -> Iterator[Array]:
        """What the oracle makes of some of the elements, after each of these rising numbers of steps."""
        param = first.copy()
        opt = self.optimizer(param, self.oracle)
        for steps in after:
            while opt.step_count < steps:
                opt.step(grad)
            yield param


def flat(arrays: Sequence[Array]) -> Array:
    """All elements in one row; a view where it is one array without gaps."""
    return arrays[0].reshape(-1) if len(arrays) == 1 else np.concatenate([array.reshape(-1) for array in arrays])


def bare(arrays: Sequence[Array]) -> Any:
    """One array as itself, several as their list: what a user would hand over."""
    return arrays[0] if len(arrays) == 1 else list(arrays)


def random_arrays(rng: np.random.Generator, shape: Shape) -> list[Array]:
    """Normal numbers in float32."""
    count, size = shape
    return [rng.standard_normal(size, np.float32) for _ in range(count)]


# ---- how it is timed ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Arm:
    """One way to take the steps of a problem, and the times that it took, in seconds a call."""

    name: str
    step: Callable[[], object]
    problem: Problem
    answer: Callable[[], Sequence[Array]] | None = None  # the parameters now; None: there is nothing to check
    exact: bool = False  # whether the answer must have the reference's bits
    finish: Callable[[], object] = lambda: None  # waits for what `step` left running
    around: Callable[[], AbstractContextManager[Any]] = nullcontext  # what a block is timed within
    calls: int = 0  # in a block; 0: as many as fill it
    once: float = 0.0  # the least time of a single call, in the warm-up
    steps: int = 0
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median time of a call."""
        return median(self.samples)

    def take(self, calls: int) -> float:
        """Take so many steps; the seconds that they took."""
        start = time.perf_counter()
        for _ in repeat(None, calls):
            self.step()
        self.finish()
        took = time.perf_counter() - start
        self.steps += calls
        return took

    def warm_up(self) -> None:
        """Take the first steps, in which libraries compile and allocate, and settle how many calls fill a block."""
        with self.around():
            times = [self.take(1), self.take(1)]
            while sum(times[1:]) < (SLOW if len(times) < 5 else AWAKE):
                times.append(self.take(1))
        self.once = min(times)
        if not self.calls:
            self.calls = 1 if self.once > SLOW else max(3, ceil(BLOCK / self.once))

    def time_block(self) -> None:
        """Time one block, once the caches are filled and the threads are awake, each on a core of its own."""
        with self.around():
            if self.calls > 1:
                until = time.perf_counter() + SLOW
                while self.take(1) > 1.5 * self.once and time.perf_counter() < until:
                    pass
            self.samples.append(self.take(self.calls) / self.calls)


def take_turns(arms: Sequence[Arm], repeats: int, pause: float = 0.0) -> None:
    """Time a block of every arm in turn, so many times, each after a pause in seconds.

    Every round has an order of its own, so that no arm always comes after the same one, whose threads may still spin.
    """
    for arm in arms:
        time.sleep(pause)
        arm.warm_up()
    order = Random(0)
    for _ in range(repeats):
        for arm in order.sample(arms, len(arms)):
            time.sleep(pause)
            arm.time_block()


def check(arms: Sequence[Arm]) -> None:
    """Compare every answer with the oracle's after as many steps. Raises WrongAnswer.

    Of a problem in which places matter, the first elements are compared.
    """
    together: defaultdict[Problem, list[tuple[Arm, Array]]] = defaultdict(list)
    for arm in sorted(arms, key=lambda arm: arm.steps):
        if arm.answer is not None:
            together[arm.problem].append((arm, flat(arm.answer())))
    for problem, answers in together.items():
        first, grads = flat(problem.first), flat(problem.grads)
        chunk = problem.compared
        for start in range(0, chunk if problem.depends_on_place else problem.elements, chunk):
            part = slice(start, start + chunk)
            expected = problem.solve(first[part], grads[part], [arm.steps for arm, _ in answers])
            for (arm, answer), right in zip(answers, expected, strict=True):
                if not (same_bits if arm.exact else close)(answer[part], right, first[part]):
                    raise WrongAnswer(f"{problem.cls.rule}: {arm.name} computed something else than the reference")


def same_bits(answer: Array, right: Array, _: Array) -> bool:
    """Whether an answer is right to the last bit, and free of NaN."""
    return answer.tobytes() == right.tobytes() and not bool(np.isnan(answer).any())


def close(answer: Array, right: Array, first: Array) -> bool:
    """Whether an answer lies close to the right one, for the way from the first parameters; rounding is allowed for."""
    off, way, size = (float(np.linalg.norm(x)) for x in (answer - right, right - first, right))
    return off <= TOLERANCE * way + 1e-6 * size


# ---- the arms -------------------------------------------------------------------------------------------------------


def gradstep_arm(problem: Problem, params: list[Array] | None = None) -> Arm:
    """The step that is measured, on a copy of the first parameters or on these, which lie in memory in another way."""
    params = problem.params() if params is None else params
    opt = problem.optimizer(bare(params))
    return Arm("gradstep", partial(opt.step, bare(problem.grads)), problem, lambda: params, exact=True)


def reference_arm(problem: Problem) -> Arm:
    """The same step in plain NumPy, written to be read."""
    params = problem.params()
    opt = problem.optimizer(bare(params), reference)
    return Arm("NumPy", partial(opt.step, bare(problem.grads)), problem, lambda: params, exact=True)


def pass_arm(problem: Problem) -> Arm:
    """NumPy's in-place pass over as many elements and states, which only adds."""
    threads = gradstep.get_num_threads()
    ones = [np.ones(problem.elements, problem.first[0].dtype) for _ in range(2 + problem.states)]
    ends = [problem.elements * i // threads for i in range(threads + 1)]
    parts = [[array[begin:end] for array in ones] for begin, end in pairwise(ends)]
    return Arm("in-place pass", lambda: list(workers(threads).map(add_in_place, parts)), problem)


@cache
def workers(count: int) -> ThreadPoolExecutor:
    """So many threads of Python's, which last."""
    return ThreadPoolExecutor(count)


def add_in_place(arrays: Sequence[Array]) -> None:
    """Add the first array to each of the others, piece by piece."""
    for start in range(0, arrays[0].size, PASS_PIECE):
        added, *written = (array[start : start + PASS_PIECE] for array in arrays)
        for array in written:
            np.add(array, added, out=array)


# ---- the command ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One row of the table: the median times of the arms, by name."""

    rule: str
    shape: Shape
    bytes_moved: float
    seconds: Mapping[str, float]

    @property
    def rate(self) -> float:
        """The traffic of the step, in bytes a second."""
        return self.bytes_moved * self.shape[0] * self.shape[1] / self.seconds["gradstep"]

    def times(self, arm: str) -> float | None:
        """How many times longer another arm takes; None where it was not timed."""
        return self.seconds[arm] / self.seconds["gradstep"] if arm in self.seconds else None


def measure(problem: Problem, shape: Shape, repeats: int) -> Result:
    """Time one rule beside NumPy, and where it is large beside an in-place pass, and check its bits."""
    arms = [gradstep_arm(problem), reference_arm(problem)]
    if problem.elements >= PASS_FROM:
        arms.append(pass_arm(problem))
    take_turns(arms, repeats)
    check(arms)
    return Result(problem.cls.__name__, shape, problem.bytes_moved, {arm.name: arm.median for arm in arms})


def duration(seconds: float) -> str:
    """A time with three digits, in the unit that fits."""
    unit, scale = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    number = seconds / scale
    return f"{number:.{max(0, 3 - len(str(int(number))))}f} {unit}"


def shape_words(shape: Shape) -> str:
    """A shape for people: ``1000`` or ``100 x 1000``."""
    count, size = shape
    return f"{count} x {size}" if count > 1 else str(size)


def table(results: Sequence[Result]) -> Table:
    """One row a rule and shape."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("optimizer", style="bold", no_wrap=True)
    for heading in (
        "elements",
        "bytes an\nelement",
        "time of\na step",
        "GB/s",
        "of an in-\nplace pass",
        "faster than\nNumPy",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, result in enumerate(results):
        speed = (duration(result.seconds["gradstep"]), f"{result.rate / 1e9:.1f}")
        of_pass = result.times("in-place pass")
        ratios = ("" if of_pass is None else f"{of_pass:.0%}", f"{result.times('NumPy'):.1f}x")
        cells = (result.rule, shape_words(result.shape), f"{result.bytes_moved:g}", *speed, *ratios)
        table.add_row(*cells, end_section=any(after.shape != result.shape for after in results[i + 1 : i + 2]))
    return table


def processor() -> str:
    """The name of the processor, or what is known of it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return str(gradstep.show_config(mode="dicts")["build"]["system"])


def run(shapes: Sequence[Shape] = SHAPES, repeats: int = REPEATS) -> list[Result]:
    """The whole measurement: every rule at every shape, then the table."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(highlight=False, markup=False, soft_wrap=True)
    config = gradstep.show_config(mode="dicts")
    console.print(
        f"gradstep {config['version']}, {processor()}, {config['isa']['chosen']}, threads: {config['threads']['count']}"
    )
    columns = (TextColumn("{task.description:25}"), BarColumn(), MofNCompleteColumn())
    results = []
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        task = progress.add_task("", total=len(shapes) * len(optimizers.ALL))
        for shape in shapes:
            rng = np.random.default_rng(0)
            first, grads = random_arrays(rng, shape), random_arrays(rng, shape)
            for cls in optimizers.ALL:
                progress.update(task, description=f"{cls.__name__}, {shape_words(shape)}")
                results.append(measure(Problem(cls, first, grads), shape, repeats))
                progress.advance(task)
    console.print("", table(results), "", sep="\n")
    console.print(f"float32; medians, {repeats} turns of each arm. GB/s: the least traffic of a step, by its time.")
    console.print("In-place pass: NumPy reads and writes as many arrays, on as many threads, and only adds.")
    console.print("NumPy: gradstep.reference, plain array expressions, written to be read.")
    console.print("The bits after all steps are NumPy's, with every optimizer.")
    return results

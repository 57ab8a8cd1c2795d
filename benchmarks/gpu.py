"""A GPU, and arms timed with its events. torch provides arrays and events; CuPy, if installed, arrays too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import repeat
from math import inf
from typing import Any

import gradstep as gs
from gradstep import optimizers
from gradstep._libraries import TORCH, library_of
from gradstep.bench import Arm, Array, Problem, Shape, bare

from .harness import numbers

FLUSH = 1 << 28
"""Bytes of the buffer that is written before every sample, and more where the cache is larger than half of that."""
MARGIN = 1.5
"""How many times longer than the processor took to send off the last sample the GPU is kept busy before the next."""
LONGEST = 0.02
"""Seconds that it is kept busy at most."""
ARRAYS = 80
"""Of the size of a parameter, in all arms of a trial."""


def missing() -> str | None:
    """The reason why nothing can be measured on a GPU here, or None."""
    found = gs.show_config(mode="dicts")["cuda"]
    if not found["available"]:
        return found.get("reason", "there is no GPU")
    if not find_spec("torch"):
        return "torch, whose events time a GPU, is not installed"
    return None if import_module("torch").cuda.is_available() else "torch finds no GPU"


class Gpu:
    """The first GPU, with a stream that is no library's default."""

    def __init__(self) -> None:
        self.torch: Any = import_module("torch")
        self.cupy: Any = import_module("cupy") if find_spec("cupy") else None
        about = self.torch.cuda.get_device_properties(0)
        self.name, self.memory, self.cache = about.name, about.total_memory, about.L2_cache_size
        self.multiprocessors = about.multi_processor_count
        self.uploads: dict[str, Callable[[Array], Any]] = {"torch": self.upload}
        if self.cupy:
            self.uploads["CuPy"] = self.cupy.asarray
            self.cupy_stream = self.cupy.cuda.Stream(non_blocking=True)
            self.stream = self.torch.cuda.ExternalStream(self.cupy_stream.ptr)
        else:
            self.stream = self.torch.cuda.Stream()
        self.buffer = self.torch.ones(max(2 * self.cache, FLUSH) // 4, device="cuda")
        self.lanes = 2 * [self.torch.ones(0, dtype=self.torch.uint8, device="cuda")]
        self.pass_time = inf  # seconds per pass over the buffer
        with self.current():
            self.pass_time = min(self.seconds(self.overwrite) for _ in range(5))

    def about(self) -> dict[str, Any]:
        """The description of the GPU for a report."""
        names = ("name", "memory", "cache", "multiprocessors")
        versions = {library.__name__: library.__version__ for library in (self.torch, self.cupy) if library}
        return {**{name: getattr(self, name) for name in names}, "versions": versions}

    def at_most(self, elements: int) -> int:
        """The size, limited to the largest for which there is memory."""
        return min(elements, self.memory // (4 * ARRAYS))

    def upload(self, values: Array) -> Any:
        """A tensor with these values, of any type that a step accepts."""
        tensor = self.torch.empty(values.shape, dtype=getattr(self.torch, values.dtype.name), device="cuda")
        TORCH.from_numpy(tensor, values)
        return tensor

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the stream every library's current one. The GPU is idle on entry and on exit."""
        with ExitStack() as stack:
            stack.enter_context(self.torch.cuda.stream(self.stream))
            if self.cupy:
                stack.enter_context(self.cupy_stream)
            self.torch.cuda.synchronize()
            yield
            self.torch.cuda.synchronize()

    def overwrite(self) -> None:
        """Evicts everything from the cache."""
        self.buffer.add_(1)

    def seconds(self, work: Callable[[], object], busy: float = 0.0) -> float:
        """The seconds that work takes on the GPU, launched while the GPU overwrites its cache for `busy` seconds."""
        for _ in range(1 + int(busy / self.pass_time)):
            self.overwrite()
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def copying(self, bytes: int) -> Callable[[], object]:
        """A function that copies `bytes` bytes within the GPU's memory. All such functions share the memory."""
        if len(self.lanes[0]) < bytes:
            self.lanes = [self.torch.ones(bytes, dtype=self.torch.uint8, device="cuda") for _ in range(2)]
        to, source = (lane[:bytes] for lane in self.lanes)
        return partial(to.copy_, source)


@cache
def gpu() -> Gpu:
    """The GPU of this process."""
    return Gpu()


@dataclass(eq=False)
class OnGpu(Arm):
    """An arm timed on the GPU: unless it takes too long, Python's dispatch has ended before the work begins."""

    gpu: Gpu = field(kw_only=True)
    dispatch: float = 0.0  # seconds that the processor took to launch the last step

    def take(self, calls: int) -> float:
        def work() -> None:
            start = time.perf_counter()
            for _ in repeat(None, calls):
                self.step()
            self.dispatch = (time.perf_counter() - start) / calls

        took = self.gpu.seconds(work, min(MARGIN * calls * self.dispatch, LONGEST))
        self.steps += calls
        return took


def on_gpu(arm: Arm, calls: int = 0) -> Arm:
    """An arm timed on the GPU with `calls` calls per block; 0: as many as fill a block."""
    here = gpu()
    checked = {"answer": arm.answer, "exact": arm.exact}
    return OnGpu(arm.name, arm.step, arm.problem, **checked, around=here.current, calls=calls, gpu=here)


def dispatched(arm: Arm) -> Arm:
    """An arm timed on the processor: the time to launch a step, without waiting for it."""
    arm.around = gpu().current
    return arm


def problem(cls: type[gs.Optimizer], shape: Shape) -> Problem:
    """A rule on random numbers. Expected results come from the processor, which is faster than the reference."""
    return Problem(cls, *numbers(shape), oracle=optimizers)


def gradstep_arm(problem: Problem, library: str = "torch", *, bound: bool = False) -> Arm:
    """The arm of gradstep, on arrays of one of the GPU libraries."""
    params, grads = (
        bare([gpu().uploads[library](array) for array in arrays]) for arrays in (problem.first, problem.grads)
    )
    opt = problem.cls(params, **problem.options, grads=grads if bound else None)
    arrays = params if isinstance(params, list) else [params]
    step = opt.step if bound else partial(opt.step, grads)
    name = "gradstep bound" if bound else "gradstep"
    return Arm(name, step, problem, lambda: [library_of(array).to_numpy(array) for array in arrays], exact=True)


def ceiling_arm(problem: Problem) -> Arm:
    """A copy within the GPU's memory that reads and writes as many bytes in total as the step."""
    bytes = int(problem.bytes_moved * problem.elements)
    return Arm("ceiling", gpu().copying(bytes // 2), problem)

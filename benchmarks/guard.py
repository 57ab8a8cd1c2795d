"""Speed limits: ``python -m benchmarks.guard`` fails if a ratio of two arms of one trial is too low.

On a tensor that exceeds every cache each rule must come near the ceiling, must not be slower than with the other choice
of prefetching, and must beat torch. A tensor of medium size, and many small ones, must not be slower on all threads
than on one, and many small ones must clearly beat torch's best form. Limits are ratios because times depend on the
machine. Noise may spoil some of the five attempts, but hardly all: on a shared machine two arms of one trial with the
same code differed by up to 13 %. The limits allow for that; the comments beside them give the targets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import gradstep as gs
from gradstep import _core, optimizers
from gradstep.bench import Arm, Shape, WrongAnswer, check, gradstep_arm, shape_words, take_turns

from . import machine
from .ceiling import NoCeiling, ceiling_arms
from .harness import gradstep_threads, limited_arms, problem
from .parts.threads import forced, shared_arm
from .peers import load
from .peers.peer import Peer

ATTEMPTS = 5
REPEATS, PAUSE = 9, 0.04
ARRAYS = 50
"""Of the size of a parameter, in all arms of a trial."""
MIDDLE: tuple[Shape, ...] = ((1, 1_000_000), (3500, 1000))
MIDDLE_RULES = (gs.SGD, gs.Adam)  # rules with the fewest streams and with many
MANY = (100, 1000)

OF_CEILING = 0.9  # target: 0.95
OF_PREFETCH = 0.95  # target: 0.97
OF_ONE_THREAD = 0.97  # target: 1
OF_TORCH = {"RMSProp": 5.0, "AdaDelta": 7.0, "Nadam": 5.0}
OF_TORCH_FUSED = 0.95  # target: 1; all others
OF_TORCH_MANY = 8.0

Bars = Mapping[str, tuple[Sequence[Arm], float]]
"""What gradstep is compared with: its arms, and the least that gradstep's speed may be in parts of the best one's."""


@dataclass(frozen=True)
class Trial:
    """One comparison, whose arms are timed in turn."""

    title: str
    arms: Callable[[], tuple[Arm, Bars]]  # gradstep's, and the others

    def holds(self) -> bool:
        """Whether each limit is met in one of a few attempts."""
        missed = set()
        for attempt in range(1, ATTEMPTS + 1):
            ours, bars = self.arms()
            take_turns([ours, *(arm for others, _ in bars.values() for arm in others)], REPEATS, PAUSE)
            check([ours, *(arm for others, _ in bars.values() for arm in others)])
            for name, (others, least) in bars.items():
                if attempt > 1 and name not in missed:
                    continue
                ratio = min(arm.median for arm in others) / ours.median
                words = f"{ratio:.2f} times the speed of {name}, at least {least} is asked for"
                print(f"{self.title}: {words} (attempt {attempt} of {ATTEMPTS})", flush=True)
                missed.discard(name) if ratio >= least else missed.add(name)
            if not missed:
                return True
        return False


def on(threads: int, arms: Sequence[Arm]) -> Sequence[Arm]:
    """The arms, run with this number of gradstep's threads."""
    for arm in arms:
        arm.around = partial(gradstep_threads, threads)
    return arms


def large(cls: type[gs.Optimizer], size: int, threads: int, torch: Sequence[Peer]) -> tuple[Arm, Bars]:
    """A tensor that exceeds every cache."""
    one = problem(cls, (1, size))
    ours = gradstep_arm(one)
    on(threads, [ours])
    bars: dict[str, tuple[Sequence[Arm], float]] = {"the ceiling": (on(threads, ceiling_arms(one)), OF_CEILING)}
    for choice in _core.prefetch_choices():
        if choice != _core.prefetch():
            name = f"prefetch {choice}"
            bars[name] = ([shared_arm(name, ours, partial(forced, threads, choice))], OF_PREFETCH)
    theirs = []
    for arm, limit in limited_arms(torch, one):
        arm.around = partial(limit, threads) if limit else arm.around
        theirs.append(arm)
    if theirs:
        bars["torch's best form"] = (theirs, OF_TORCH.get(cls.__name__, OF_TORCH_FUSED))
    return ours, bars


def middle(cls: type[gs.Optimizer], shape: Shape, threads: int) -> tuple[Arm, Bars]:
    """A tensor that threads may share, or as many elements in small tensors."""
    ours = gradstep_arm(problem(cls, shape))
    on(threads, [ours])
    return ours, {"one thread": ([shared_arm("one thread", ours, partial(gradstep_threads, 1))], OF_ONE_THREAD)}


def many(torch: Sequence[Peer]) -> tuple[Arm, Bars]:
    """Many small tensors."""
    several = problem(gs.Adam, MANY)
    theirs = [arm for arm, _ in limited_arms(torch, several)]
    return gradstep_arm(several), {"torch's best form": (theirs, OF_TORCH_MANY)}


def trials(torch: Sequence[Peer]) -> Iterator[Trial]:
    """All trials for this machine."""
    most = gs.get_num_threads()
    size = min(machine.large(), machine.fitting(ARRAYS))
    if size < machine.large():
        print(f"The memory is too small for {machine.large()} elements: {size} may lie partly in the last cache.")
    for cls, threads in product(optimizers.ALL, sorted({1, most})):
        title = f"{cls.__name__}, {size} elements, threads: {threads}"
        yield Trial(title, partial(large, cls, size, threads, torch))
    for cls, shape in product(MIDDLE_RULES, MIDDLE if most > 1 else ()):
        yield Trial(
            f"{cls.__name__}, {shape_words(shape)} elements, threads: {most}", partial(middle, cls, shape, most)
        )
    yield Trial(f"Adam, {shape_words(MANY)} elements", partial(many, torch))


def main() -> int:
    """Runs all trials and returns the exit status."""
    try:
        held = [trial.holds() for trial in trials(load(["torch"]))]
    except ModuleNotFoundError as error:
        return fail(f"{error.name} is not installed")
    except (NoCeiling, WrongAnswer, MemoryError) as error:
        return fail(str(error))
    return 0 if all(held) else fail("the step is too slow")


def fail(message: str) -> int:
    """Prints an error in one line and returns the exit status."""
    print(f"python -m benchmarks.guard: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

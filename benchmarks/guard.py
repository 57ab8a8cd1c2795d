"""The guard of speed: ``python -m benchmarks.guard`` fails where a ratio of two arms that took turns falls too low.

A tensor beyond every cache must come near the ceiling, with the prefetching that is best on this machine; a tensor of
middle size and many small ones must not be slower on all threads than on one; and many small ones must beat torch's
best form clearly. Ratios hold on any machine, times on one; and a noisy neighbour spoils one attempt, hardly three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import gradstep as gs
from gradstep.bench import Arm, Problem, Shape, WrongAnswer, check, gradstep_arm, shape_words, take_turns

from . import machine
from .ceiling import ceiling_arms
from .harness import gradstep_threads, problem
from .parts.threads import forced_arms
from .peers import load
from .peers.peer import Peer

ATTEMPTS = 3
REPEATS, PAUSE = 11, 0.04
LARGE = (1, max(16_000_000, machine.beyond_cache()))
MIDDLE: tuple[Shape, ...] = ((1, 1_000_000), (3500, 1000))
MANY = (100, 1000)
OF_CEILING, OF_PREFETCHES, OF_ONE_THREAD, OF_TORCH = 0.85, 0.95, 1.0, 8.0
RULES = (gs.SGD, gs.Adam)  # the fewest streams, and many


@dataclass(frozen=True)
class Bar:
    """The least speed of gradstep, in parts of that of the best of other arms."""

    name: str
    arms: Callable[[], Sequence[Arm]]  # the first is gradstep
    least: float

    def holds(self) -> bool:
        """Whether one of a few attempts reaches it."""
        for attempt in range(1, ATTEMPTS + 1):
            ratio = speed(self.arms())
            words = f"{ratio:.2f}, at least {self.least} is asked for (attempt {attempt} of {ATTEMPTS})"
            print(f"{self.name}: {words}", flush=True)
            if ratio >= self.least:
                return True
        return False


def on(threads: int, arm: Arm) -> Arm:
    """An arm on so many threads of gradstep."""
    arm.around = partial(gradstep_threads, threads)
    return arm


def beside(
    others: Callable[[Problem], Sequence[Arm]], cls: type[gs.Optimizer], shape: Shape, threads: int
) -> list[Arm]:
    """gradstep and other arms, of one problem and on as many threads."""
    one = problem(cls, shape)
    return [on(threads, arm) for arm in (gradstep_arm(one), *others(one))]


def beside_prefetches(cls: type[gs.Optimizer], threads: int) -> list[Arm]:
    ours = on(threads, gradstep_arm(problem(cls, LARGE)))
    return [ours, *forced_arms(ours, threads)]


def beside_one_thread(cls: type[gs.Optimizer], shape: Shape, threads: int) -> list[Arm]:
    one = problem(cls, shape)
    return [on(count, gradstep_arm(one)) for count in (threads, 1)]


def peer_arms(peers: Sequence[Peer], problem: Problem) -> list[Arm]:
    return [arm for peer in peers if (arm := peer.make(peer.name, problem))]


def bars(torch: Sequence[Peer]) -> Iterator[Bar]:
    """What is asked of this machine."""
    most = gs.get_num_threads()
    for cls, threads in product(RULES, sorted({1, most})):
        words = f"{cls.__name__}, {shape_words(LARGE)} elements, threads: {threads}, times the speed of"
        yield Bar(f"{words} the ceiling", partial(beside, ceiling_arms, cls, LARGE, threads), OF_CEILING)
        yield Bar(f"{words} the best prefetching", partial(beside_prefetches, cls, threads), OF_PREFETCHES)
    for cls, shape in product(RULES, MIDDLE if most > 1 else ()):
        words = f"{cls.__name__}, {shape_words(shape)} elements, threads: {most}, times the speed of one thread"
        yield Bar(words, partial(beside_one_thread, cls, shape, most), OF_ONE_THREAD)
    words = f"Adam, {shape_words(MANY)} elements, times the speed of torch's best form"
    yield Bar(words, partial(beside, partial(peer_arms, torch), gs.Adam, MANY, most), OF_TORCH)


def speed(arms: Sequence[Arm]) -> float:
    """How many times longer the best of the others took than the first, which is gradstep."""
    take_turns(arms, REPEATS, PAUSE)
    check(arms)
    ours, *others = arms
    return min(other.median for other in others) / ours.median


def main() -> int:
    """Run the guard and return its exit status."""
    try:
        held = [bar.holds() for bar in bars(load(["torch"]))]
    except ModuleNotFoundError as error:
        return fail(f"{error.name} is not installed")
    except (RuntimeError, WrongAnswer) as error:
        return fail(str(error))
    return 0 if all(held) else fail("the step is too slow")


def fail(message: str) -> int:
    """Say what is wrong, in one line, and hand back the exit status."""
    print(f"python -m benchmarks.guard: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

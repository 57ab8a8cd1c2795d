"""The guard of speed: ``python -m benchmarks.guard`` fails where a ratio of two arms that took turns falls too low.

A large tensor must come near the ceiling, and many small ones must beat torch's best form clearly. Ratios hold on any
machine, times on one; and a noisy neighbour spoils one attempt, hardly three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import gradstep as gs
from gradstep.bench import Arm, WrongAnswer, ceiling_arm, check, gradstep_arm, take_turns

from .harness import problem
from .peers import load
from .peers.peer import Peer

ATTEMPTS = 3
REPEATS, PAUSE = 11, 0.04
LARGE, MANY = (1, 16_000_000), (100, 1000)
OF_CEILING, OF_TORCH = 0.8, 8.0


def beside_ceiling() -> list[Arm]:
    one = problem(gs.Adam, LARGE)
    return [gradstep_arm(one), ceiling_arm(one)]


def beside(peers: list[Peer]) -> list[Arm]:
    several = problem(gs.Adam, MANY)
    arms = [peer.make(peer.name, several) for peer in peers]
    return [gradstep_arm(several), *(arm for arm in arms if arm)]


def speed(arms: list[Arm]) -> float:
    """How many times longer the best of the others took than the first, which is gradstep."""
    take_turns(arms, REPEATS, PAUSE)
    check(arms)
    ours, *others = arms
    return min(other.median for other in others) / ours.median


def holds(name: str, make: Callable[[], list[Arm]], least: float) -> bool:
    """Whether one of a few attempts reaches the least ratio."""
    for attempt in range(1, ATTEMPTS + 1):
        ratio = speed(make())
        print(f"{name}: {ratio:.2f}, at least {least} is asked for (attempt {attempt} of {ATTEMPTS})", flush=True)
        if ratio >= least:
            return True
    return False


def main() -> int:
    """Run the guard and return its exit status."""
    try:
        torch = load(["torch"])
        large = holds("Adam, 16 million elements, speed in parts of the ceiling", beside_ceiling, OF_CEILING)
        many = holds("Adam, 100 x 1000, times the speed of torch's best form", partial(beside, torch), OF_TORCH)
    except ModuleNotFoundError as error:
        return fail(f"{error.name} is not installed")
    except WrongAnswer as error:
        return fail(str(error))
    return 0 if large and many else fail("the step is too slow")


def fail(message: str) -> int:
    """Say what is wrong, in one line, and hand back the exit status."""
    print(f"python -m benchmarks.guard: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

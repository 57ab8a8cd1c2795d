"""What all parts share: the settings of a run, a trial whose arms take turns, and the rows that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

import gradstep as gs
from gradstep import _core
from gradstep.bench import Arm, Array, Problem, Shape, check, random_arrays, take_turns

from .peers.peer import Limit, Peer, limiter

Row = dict[str, Any]
"""One arm of one case of one trial, as the JSON has it."""

gradstep_threads = limiter(gs.get_num_threads, gs.set_num_threads)
prefetching = limiter(_core.prefetch, _core.use_prefetch)


def limited_arms(peers: Sequence[Peer], problem: Problem) -> Iterator[tuple[Arm, Limit | None]]:
    """The arms of the peers that have the rule, each with what limits its threads."""
    for peer in peers:
        arm = peer.make(peer.name, problem)
        if arm is not None:
            yield arm, peer.limit


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    rules: Sequence[type[gs.Optimizer]]
    sizes: Sequence[int]
    large: int  # elements of a tensor beyond every cache
    threads: Sequence[int]
    peers: Sequence[Peer]
    repeats: int
    pause: float  # seconds before every block
    quick: bool
    cuda_peers: Sequence[Peer] = ()
    narrow_peers: Sequence[Peer] = ()  # those that have narrow states

    def on_gpu(self) -> Settings:
        """Those of a part on a GPU: its peers, no rest for threads, and more turns, for a sample is one short step."""
        return replace(self, peers=self.cuda_peers, pause=0.0, repeats=3 * self.repeats)

    def scaled(self, elements: int) -> int:
        """A size, or a small part of it in a quick run."""
        return max(elements // 100, 10) if self.quick else elements

    def rule(self, name: str) -> Iterator[type[gs.Optimizer]]:
        """The rule of that name, where it is to be measured."""
        return (cls for cls in self.rules if cls.__name__ == name)

    def peer_arms(self, problem: Problem) -> list[Arm]:
        """The arms of all peers that have the rule."""
        return [arm for arm, _ in self.limited_peer_arms(problem)]

    def limited_peer_arms(self, problem: Problem) -> Iterator[tuple[Arm, Limit | None]]:
        """The same, each with what limits its threads."""
        return limited_arms(self.peers, problem)


class Trial(Protocol):
    """One comparison: its name for the progress, and what it leaves."""

    title: str

    def run(self, settings: Settings) -> list[Row]: ...


@dataclass(frozen=True)
class Turns:
    """A trial whose arms take turns, whichever case they belong to."""

    title: str
    cases: Callable[[], Mapping[str, Sequence[Arm]]]  # made when its turn comes, and given back to memory after it
    labels: Mapping[str, Any] = field(default_factory=dict)  # further entries of its rows

    def run(self, settings: Settings) -> list[Row]:
        cases = self.cases()
        arms = [arm for arms in cases.values() for arm in arms]
        take_turns(arms, settings.repeats, settings.pause)
        check(arms)
        return [row(case, arm) | self.labels for case, arms in cases.items() for arm in arms]


def row(case: str, arm: Arm) -> Row:
    """What an arm leaves: times are seconds a call, `bytes` the least traffic an element."""
    return {
        "rule": arm.problem.cls.__name__,
        "case": case,
        "arm": arm.name,
        "elements": arm.problem.elements,
        "tensors": len(arm.problem.first),
        "bytes": arm.problem.bytes_moved,
        "calls": arm.calls,
        **times_of(arm.samples),
    }


def times_of(samples: list[float]) -> Row:
    """What is kept of the times of a call."""
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return {"median": middle, "low": low, "high": high, "least": min(samples), "samples": samples}


@lru_cache(maxsize=1)
def numbers(shape: Shape) -> tuple[list[Array], list[Array]]:
    """The first parameters and the gradients of so many tensors; those used last are kept."""
    rng = np.random.default_rng(0)
    return random_arrays(rng, shape), random_arrays(rng, shape)


def problem(cls: type[gs.Optimizer], shape: Shape, **options: Any) -> Problem:
    """A rule on random numbers."""
    return Problem(cls, *numbers(shape), options)

"""Shared by all parts: the settings of a run, trials whose arms are timed in turn, and rows of results."""

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
    """The arms of the peers that have the rule, each with the context that limits its threads."""
    for peer in peers:
        arm = peer.make(peer.name, problem)
        if arm is not None:
            yield arm, peer.limit


@dataclass(frozen=True)
class Settings:
    """What a run measures, and how often."""

    rules: Sequence[type[gs.Optimizer]]
    sizes: Sequence[int]
    large: int  # elements of a tensor that exceeds every cache
    threads: Sequence[int]
    peers: Sequence[Peer]
    repeats: int
    pause: float  # seconds before every block
    quick: bool
    cuda_peers: Sequence[Peer] = ()
    narrow_peers: Sequence[Peer] = ()  # peers with narrow states
    training_peers: Sequence[Peer] = ()  # peers that take a whole training step

    def on_gpu(self) -> Settings:
        """The settings of a GPU part: its peers, no pauses, and more turns, because a sample is one short step."""
        return replace(self, peers=self.cuda_peers, pause=0.0, repeats=3 * self.repeats)

    def scaled(self, elements: int) -> int:
        """The size, or a small fraction of it in a quick run."""
        return max(elements // 100, 10) if self.quick else elements

    def rule(self, name: str) -> Iterator[type[gs.Optimizer]]:
        """The rule of this name, if it is to be measured."""
        return (cls for cls in self.rules if cls.__name__ == name)

    def peer_arms(self, problem: Problem) -> list[Arm]:
        """The arms of all peers that have the rule."""
        return [arm for arm, _ in self.limited_peer_arms(problem)]

    def limited_peer_arms(self, problem: Problem) -> Iterator[tuple[Arm, Limit | None]]:
        """The arms of all peers that have the rule, each with the context that limits its threads."""
        return limited_arms(self.peers, problem)


class Trial(Protocol):
    """One comparison: its name in progress messages, and its results."""

    title: str

    def run(self, settings: Settings) -> list[Row]: ...


@dataclass(frozen=True)
class Turns:
    """A trial whose arms are timed in turn, across all its cases."""

    title: str
    cases: Callable[[], Mapping[str, Sequence[Arm]]]  # called when the trial begins; the arms are freed after it
    labels: Mapping[str, Any] = field(default_factory=dict)  # additional entries of the rows

    def run(self, settings: Settings) -> list[Row]:
        cases = self.cases()
        arms = [arm for arms in cases.values() for arm in arms]
        take_turns(arms, settings.repeats, settings.pause)
        check(arms)
        return [row(case, arm) | self.labels for case, arms in cases.items() for arm in arms]


def row(case: str, arm: Arm) -> Row:
    """The row of an arm: times are seconds per call, `bytes` is the minimal traffic per element."""
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
    """The statistics of the times of a call."""
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return {"median": middle, "low": low, "high": high, "least": min(samples), "samples": samples}


@lru_cache(maxsize=1)
def numbers(shape: Shape) -> tuple[list[Array], list[Array]]:
    """Initial parameters and gradients of tensors of this shape; the last ones are cached."""
    rng = np.random.default_rng(0)
    return random_arrays(rng, shape), random_arrays(rng, shape)


def problem(cls: type[gs.Optimizer], shape: Shape, **options: Any) -> Problem:
    """A rule on random numbers."""
    return Problem(cls, *numbers(shape), options)

"""The arithmetic of a step in the cache, and a model of machines with more cores or faster memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import gradstep as gs
from gradstep import _core
from gradstep.bench import Arm, Problem, gradstep_arm

from ..ceiling import ceiling_arms
from ..harness import Row, Settings, Trial, Turns, gradstep_threads, problem
from ..machine import caches
from ..tables import ceiling, group, markdown
from .storage import BOTH, PARAMS, PLAIN, STATES, Stored, problem_of
from .threads import shared_arm

TITLE = "What carries over to other machines"
ABOUT = """\
Nanoseconds an element. In the cache: on one core, by the difference between tensors of two sizes, so that the fixed
cost of a call drops out; their arrays lie in its L2 cache, and the transfers from there are included. This figure
holds for all cores of this kind and instruction set, while bandwidth belongs to a machine. Model: a step takes bytes
/ bandwidth or arithmetic / cores, whichever is longer. On the threads of this machine the bandwidth is that of the
ceiling of as many float32 arrays in the same trial, and what was measured on a tensor beyond every cache stands
beside the model, and in brackets in parts of it. The bandwidths of 16 and 64 cores are assumptions."""

ASSUMED = {16: 150, 64: 300}
"""The bandwidth in GB/s that machines of so many cores are assumed to have."""
L2 = caches().get("L2", 1 << 19)
"""Bytes of a core's own cache."""
FEW, MANY = "few in cache", "many in cache"


def stored_as(cls: type[gs.Optimizer]) -> Stored:
    """All rules in both types without conversions, Adam in all combinations."""
    plain: Stored = {PLAIN: (np.dtype("f4"), {}), "float64": (np.dtype("f8"), {})}
    return {**plain, **STATES, **PARAMS, **BOTH} if cls is gs.Adam else plain


def on(threads: int) -> str:
    """The name of an arm, or of a case of the ceiling, on this number of threads."""
    return f"threads: {threads}"


def in_cache(cls: type[gs.Optimizer], dtype: np.dtype, options: dict[str, Any]) -> list[Arm]:
    """Two sizes on one thread; a step of the larger moves as many bytes as half of L2."""
    few = int(L2 / 4 / problem_of(cls, 1, dtype, options).bytes_moved) // _core.BLOCK * _core.BLOCK
    arms = []
    for name, size in ((FEW, few), (MANY, 2 * few)):
        arm = gradstep_arm(problem_of(cls, size, dtype, options))
        arm.name, arm.around = name, partial(gradstep_threads, 1)
        arms.append(arm)
    return arms


def beyond_cache(one: Problem, threads: Sequence[int]) -> list[Arm]:
    """A tensor on each number of threads, the first of which is 1."""
    ours = gradstep_arm(one)
    ours.name, ours.around = on(1), partial(gradstep_threads, 1)
    return [ours, *(shared_arm(on(count), ours, partial(gradstep_threads, count)) for count in threads[1:])]


def arms(cls: type[gs.Optimizer], large: int, threads: Sequence[int]) -> dict[str, Sequence[Arm]]:
    chosen = stored_as(cls)
    cases = {case: beyond_cache(problem_of(cls, large, *stored), threads) for case, stored in chosen.items()}
    ceilings = ceiling_arms(problem(cls, (1, large)))
    for case, stored in chosen.items():
        cases[case] += in_cache(cls, *stored)
    for count in threads:
        cases[on(count)] = [shared_arm(arm.name, arm, partial(gradstep_threads, count)) for arm in ceilings]
    return cases


def trials(settings: Settings) -> Iterator[Trial]:
    threads = sorted({1, max(settings.threads)})
    for cls in settings.rules:
        title = f"{cls.__name__}, {settings.large}"
        yield Turns(title, partial(arms, cls, settings.large, threads), {"threads": threads})


def arithmetic(found: dict[str, Row]) -> float:
    """Nanoseconds per element in the cache."""
    few, many = found[FEW], found[MANY]
    return (many["median"] - few["median"]) / (many["elements"] - few["elements"]) * 1e9


def model(found: dict[str, Row], cores: int, bandwidth: float) -> tuple[float, str]:
    """Nanoseconds per element with these cores and GB/s, and the limiting factor."""
    return max((found[FEW]["bytes"] / bandwidth, "memory"), (arithmetic(found) / cores, "arithmetic"))


def measured(found: dict[str, Row], threads: int, best: Row | None) -> list[str]:
    """The ceiling's bandwidth on this number of threads, the model's prediction from it, and the measurement."""
    if best is None:
        return [""] * 3
    bandwidth = best["bytes"] * best["elements"] / best["median"] / 1e9
    modelled, limit = model(found, threads, bandwidth)
    took = found[on(threads)]["median"] / found[on(threads)]["elements"] * 1e9
    return [f"{bandwidth:.1f}", f"{modelled:.3f} ({limit})", f"{took:.3f} ({took / modelled:.0%})"]


def table(rows: Sequence[Row]) -> str:
    threads = rows[0]["threads"]
    headings = ["optimizer", "stored as", "bytes", "in the cache"]
    headings += [f"{on(count)}, {what}" for count in threads for what in ("GB/s", "model", "measured")]
    headings += [f"{cores} cores, {bandwidth} GB/s" for cores, bandwidth in ASSUMED.items()]
    by_case = group(rows, "rule", "case")
    lines = []
    for (rule, case), found in by_case.items():
        if FEW in found:  # other cases are the ceiling's
            cells = [rule, case, f"{found[FEW]['bytes']:.3g}", f"{arithmetic(found):.3f}"]
            for count in threads:
                cells += measured(found, count, ceiling(by_case.get((rule, on(count)), {})))
            for assumed in ASSUMED.items():
                modelled, limit = model(found, *assumed)
                cells.append(f"{modelled:.3f} ({limit})")
            lines.append(cells)
    return markdown(headings, lines)

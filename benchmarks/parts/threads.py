"""One thread to all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import gradstep as gs
from gradstep.bench import Arm, ceiling_arm, gradstep_arm

from ..harness import Row, Settings, Trial, Turns, gradstep_threads, problem
from ..tables import comparison, group, markdown, times, words

TITLE = "Threads"
ABOUT = """\
How many times faster gradstep and its ceiling are than on one thread; and the peers on as many threads, but for optax,
which cannot be told their number."""

SIZES = (100_000, 16_000_000)


def arms(settings: Settings, cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    one = problem(cls, (1, size))
    cases = {}
    for count in settings.threads:
        limited = [(gradstep_arm(one), gradstep_threads), (ceiling_arm(one), gradstep_threads)]
        limited += [(arm, limit) for arm, limit in settings.limited_peer_arms(one) if limit]
        for arm, limit in limited:
            arm.around = partial(limit, count)
        cases[str(count)] = [arm for arm, _ in limited]
    return cases


def trials(settings: Settings) -> Iterator[Trial]:
    for size in map(settings.scaled, SIZES):
        for cls in settings.rules:
            yield Turns(f"{cls.__name__}, {size}", partial(arms, settings, cls, size))


def table(rows: Sequence[Row]) -> str:
    lines = []
    by_threads = group(rows, "rule", "elements", "case")
    for (rule, elements, case), found in by_threads.items():
        one = by_threads.get((rule, elements, "1"), {})
        ratios = [times(one.get(arm), found[arm]) for arm in ("gradstep", "ceiling")]
        lines.append([rule, words(elements), case, *ratios])
    headings = ["optimizer", "elements", "threads", "gradstep is faster than on one", "its ceiling"]
    beside = comparison([row | {"threads": row["case"]} for row in rows], "elements", "threads")
    return f"{markdown(headings, lines)}\n\n{beside}"

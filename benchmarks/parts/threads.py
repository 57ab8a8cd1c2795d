"""One thread to all, prefetching off and on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import gradstep as gs
from gradstep import _core
from gradstep.bench import Arm, Shape, gradstep_arm, shape_words

from ..ceiling import ceiling_arms
from ..harness import Row, Settings, Trial, Turns, gradstep_threads, prefetching, problem
from ..tables import ceiling, comparison, group, markdown, times

TITLE = "Threads"
ABOUT = """\
How many times faster gradstep and its ceiling are than on one thread; and beside them, on as many threads, gradstep
with prefetching forced off and on, one of which is its default, and the peers, but for optax, which cannot be told
their number. The last size is beyond every cache: SGD's arrays, the fewest, are four times as large as the last one."""

SHAPES: tuple[Shape, ...] = ((1, 100_000), (1, 1_000_000), (3500, 1000))


@contextmanager
def forced(threads: int, prefetch: str) -> Iterator[None]:
    """So many threads of gradstep, prefetching or not."""
    with ExitStack() as stack:
        stack.enter_context(gradstep_threads(threads))
        stack.enter_context(prefetching(prefetch))
        yield


@dataclass(eq=False)
class Same(Arm):
    """An arm that takes the steps of another, on its very arrays: where they lie makes no difference between them."""

    other: Arm | None = None

    def take(self, calls: int) -> float:
        assert self.other is not None
        return self.other.take(calls)


def forced_arms(ours: Arm, threads: int) -> Iterator[Arm]:
    """An arm of gradstep's with each choice of prefetching."""
    for choice in _core.prefetch_choices():
        around = partial(forced, threads, choice)
        yield Same(f"prefetch {choice}", ours.step, ours.problem, around=around, other=ours)


def arms(settings: Settings, cls: type[gs.Optimizer], shape: Shape) -> dict[str, Sequence[Arm]]:
    one = problem(cls, shape)
    cases = {}
    for count in settings.threads:
        ours = gradstep_arm(one)
        limited = [(arm, gradstep_threads) for arm in (ours, *ceiling_arms(one))]
        limited += [(arm, limit) for arm, limit in settings.limited_peer_arms(one) if limit]
        for arm, limit in limited:
            arm.around = partial(limit, count)
        cases[str(count)] = [arm for arm, _ in limited] + list(forced_arms(ours, count))
    return cases


def trials(settings: Settings) -> Iterator[Trial]:
    for count, size in (*SHAPES, (1, settings.large)):
        shape = (count // 50 or 1, size) if settings.quick else (count, size)
        for cls in settings.rules:
            yield Turns(f"{cls.__name__}, {shape_words(shape)}", partial(arms, settings, cls, shape))


def table(rows: Sequence[Row]) -> str:
    lines = []
    named = [
        row | {"threads": row["case"], "size": shape_words((row["tensors"], row["elements"] // row["tensors"]))}
        for row in rows
    ]
    by_threads = group(named, "rule", "size", "threads")
    for (rule, size, threads), found in by_threads.items():
        one = by_threads.get((rule, size, "1"), {})
        ratios = [times(one.get("gradstep"), found["gradstep"]), times(ceiling(one), ceiling(found))]
        lines.append([rule, size, threads, *ratios])
    headings = ["optimizer", "elements", "threads", "gradstep is faster than on one", "its ceiling"]
    return f"{markdown(headings, lines)}\n\n{comparison(named, 'size', 'threads')}"

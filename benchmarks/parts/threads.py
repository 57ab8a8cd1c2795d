"""From one thread to all, with prefetching off and on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
their number. The last size is at least so large that SGD's arrays, the fewest, take four times the last cache, if the
memory suffices (see "left out" above)."""

SHAPES: tuple[Shape, ...] = ((1, 100_000), (1, 1_000_000), (3500, 1000))


@contextmanager
def forced(threads: int, prefetch: str) -> Iterator[None]:
    """Sets gradstep's number of threads and prefetching."""
    with ExitStack() as stack:
        stack.enter_context(gradstep_threads(threads))
        stack.enter_context(prefetching(prefetch))
        yield


@dataclass(eq=False)
class SharedArm(Arm):
    """An arm that runs the steps of another on the same arrays, so that their addresses make no difference."""

    owner: Arm | None = None

    def take(self, calls: int) -> float:
        assert self.owner is not None
        return self.owner.take(calls)


def shared_arm(name: str, owner: Arm, around: Callable[[], AbstractContextManager[None]]) -> SharedArm:
    """An arm with the steps of another, under another name and in a context of settings."""
    return SharedArm(name, owner.step, owner.problem, around=around, owner=owner)


def forced_arms(ours: Arm, threads: int) -> Iterator[Arm]:
    """One arm of gradstep for each choice of prefetching."""
    for choice in _core.prefetch_choices():
        yield shared_arm(f"prefetch {choice}", ours, partial(forced, threads, choice))


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

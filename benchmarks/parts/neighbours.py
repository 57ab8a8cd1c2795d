"""More threads than cores while another process is busy."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import gradstep as gs
from gradstep.bench import Arm, gradstep_arm

from ..harness import Row, Settings, Trial, Turns, gradstep_threads, problem
from ..machine import cores
from ..peers.peer import Limit
from ..tables import arms as arms_of
from ..tables import group, markdown, times

TITLE = "More threads than cores"
ABOUT = """\
Adam on 8 threads beside one process that never rests, against the same arm undisturbed on as many threads as cores. The
neighbour may take a core, so the cores allow no better than what is said for them."""

SIZE = 1_000_000
CALLS = 20  # per block: time slices of the scheduler are milliseconds
THREADS = 8
ALONE, CROWDED = "alone", "crowded"


@contextmanager
def crowd(limit: Limit) -> Iterator[None]:
    """More threads than cores, and a busy process."""
    with ExitStack() as stack:
        neighbour = stack.enter_context(subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]))
        stack.callback(neighbour.kill)
        stack.enter_context(limit(THREADS))
        time.sleep(0.05)  # waits until it runs
        yield


def arms(settings: Settings, cls: type[gs.Optimizer], size: int) -> dict[str, Sequence[Arm]]:
    one = problem(cls, (1, size))
    cases = {}
    for case in (ALONE, CROWDED):
        limited = [(gradstep_arm(one), gradstep_threads)]
        limited += [(arm, limit) for arm, limit in settings.limited_peer_arms(one) if limit]
        for arm, limit in limited:
            arm.calls = CALLS
            arm.around = partial(limit, cores()) if case == ALONE else partial(crowd, limit)
        cases[case] = [arm for arm, _ in limited]
    return cases


def trials(settings: Settings) -> Iterator[Trial]:
    for cls in settings.rule("Adam"):
        size = settings.scaled(SIZE)
        yield Turns(f"{cls.__name__}, {size}", partial(arms, settings, cls, size), {"cores": cores()})


def table(rows: Sequence[Row]) -> str:
    names = arms_of(rows, beside=())
    count = rows[0]["cores"]
    alone, crowded = (group(rows, "case")[(case,)] for case in (ALONE, CROWDED))
    cells = [
        f"{count} cores allow {count / max(count - 1, 0.5):.3g}x",
        *(times(crowded[arm], alone[arm]) for arm in names),
    ]
    return markdown(["longer than alone", *names], [cells])

"""The temporary memory of steps; each arm runs in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import gradstep as gs
from gradstep.bench import Arm, Problem, check, gradstep_arm, reference_arm

from ..harness import Row, Settings, Trial
from ..machine import ROOT
from ..peers import load
from ..tables import arms as arms_of
from ..tables import group, markdown, words

TITLE = "Memory"
ABOUT = """\
By how many bytes an element the memory of the process grows, at its peak, over the first three steps, beyond the states
that the rule has to keep: temporaries. Compiling (optax, Numba) adds tens of megabytes, whatever the size."""

RULES = ("SGD", "Adam")
SIZE = 64_000_000
STEPS = 3


def makers(libraries: Sequence[str]) -> dict[str, Callable[[Problem], Arm | None]]:
    """The functions that make the arms, by name."""
    peers = {peer.name: partial(peer.make, peer.name) for peer in load(libraries)}
    return {"gradstep": gradstep_arm, "NumPy": reference_arm, **peers}


def peak() -> int:
    """The peak of resident memory in bytes; getrusage would include the parent's peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def growth(library: str, arm_name: str, rule: str, size: str) -> dict[str, int] | None:
    """The growth of this process over the steps of one arm, and the part of it that is states."""
    full = partial(np.full, int(size), dtype=np.float32)
    one = Problem(getattr(gs, rule), [full(0.5)], [full(0.25)])
    arm = makers([library] if library else [])[arm_name](one)
    if arm is None:
        return None
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak to the resident memory
    before = peak()
    for _ in range(STEPS):
        arm.take(1)
    grown = peak() - before
    check([arm])
    return {"growth": grown, "kept": 4 * one.states * int(size)}


@dataclass(frozen=True)
class Process:
    """A trial of one arm in a separate process."""

    title: str
    library: str
    arm: str
    rule: str
    size: int

    def run(self, _: Settings) -> list[Row]:
        program = f"from {__name__} import growth; import json, sys; print(json.dumps(growth(*sys.argv[1:])))"
        command = [sys.executable, "-c", program, self.library, self.arm, self.rule, str(self.size)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{self.title}: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout)
        labels = {"rule": self.rule, "case": "", "arm": self.arm, "elements": self.size}
        return [labels | found] if found else []


def trials(settings: Settings) -> Iterator[Trial]:
    names = [("", "gradstep"), ("", "NumPy"), *((peer.library, peer.name) for peer in settings.peers)]
    size = settings.scaled(SIZE)
    for rule in RULES:
        for _ in settings.rule(rule):
            for library, arm in names:
                yield Process(f"{rule}, {arm}", library, arm, rule, size)


def table(rows: Sequence[Row]) -> str:
    names = arms_of(rows, beside=())
    lines = []
    for (rule, elements), found in group(rows, "rule", "elements").items():
        beyond = {arm: (row["growth"] - row["kept"]) / elements for arm, row in found.items()}
        lines.append([rule, words(elements), *(f"{beyond[arm]:.1f}" if arm in beyond else "" for arm in names)])
    return markdown(["optimizer", "elements", *names], lines)

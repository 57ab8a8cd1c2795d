"""Speed limits for a data-centre GPU: ``python -m benchmarks.cuda_guard RESULTS.JSON``.

Reads stored results of the GPU parts and fails if a rule is too slow: on a large tensor relative to a copy of as many
bytes, the same with narrow states, relative to torch's best form, and on 1000 tensors of 1000 elements.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .harness import Row
from .parts.cuda_many import BACK_TO_BACK, DISPATCH
from .parts.storage import PLAIN, STATES
from .tables import best_ratio, group, markdown

OF_COPY, OF_COPY_NARROW = 0.95, 0.85
OF_TORCH = {"SGD": 1.0, "AdaGrad": 1.0, "Adam": 1.0, "RMSProp": 3.0, "AdaDelta": 3.0, "Nadam": 3.0}
MICROSECONDS = {BACK_TO_BACK: ("GPU", 20.0), DISPATCH: ("CPU", 25.0)}
MANY_OF_TORCH = 1.0
BOUND = "gradstep bound, torch"


@dataclass(frozen=True)
class Bar:
    """A measured value and its lower or upper limit."""

    what: str
    measured: float
    asked: float | None = None
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value is within its limit; False if nothing was measured."""
        if self.asked is None:
            return True
        return self.measured <= self.asked if self.at_most else self.measured >= self.asked

    def __str__(self) -> str:
        asked = "" if self.asked is None else f" ({'<' if self.at_most else '>'} {self.asked:g})"
        return f"{self.measured:.3g}{asked}{'' if self.holds else ' FAILS'}"


def bars_of(rule: str, rows: Sequence[Row]) -> Iterator[Bar]:
    """The limits of one rule, from its rows."""
    parts = {name: [row for row in rows if row["part"] == name] for name in ("cuda_large", "cuda_storage", "cuda_many")}
    for found in group(parts["cuda_large"], "rule").values():
        yield Bar("of the copy", of_ceiling(found), OF_COPY)
        yield Bar("torch", best_ratio(found, "torch"), OF_TORCH.get(rule))
    for (case,), found in group(parts["cuda_storage"], "case").items():
        if case in STATES and case != PLAIN:
            yield Bar(case, of_ceiling(found), OF_COPY_NARROW)
    for (case,), found in group(parts["cuda_many"], "case").items():
        if case in MICROSECONDS:
            clock, most = MICROSECONDS[case]
            yield Bar(f"many, us {clock}", found[BOUND]["median"] * 1e6, most, at_most=True)
            yield Bar(f"many, torch {clock}", best_ratio(found, "torch", BOUND), MANY_OF_TORCH)


def of_ceiling(found: dict[str, Row]) -> float:
    """The speed of a step as a fraction of the copy's."""
    return float(found["ceiling"]["median"] / found["gradstep"]["median"])


def main(args: Sequence[str] | None = None) -> int:
    """Prints the limits, one line per rule, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_guard", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.JSON")
    try:
        rows = json.loads(parser.parse_args(args).results.read_text(encoding="utf-8"))["rows"]
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    bars = {
        rule: {bar.what: bar for bar in bars_of(rule, [row for row in rows if row["rule"] == rule])}
        for rule in dict.fromkeys(row["rule"] for row in rows)
    }
    headings = list(dict.fromkeys(what for of_rule in bars.values() for what in of_rule))
    lines = [[rule, *(str(of_rule.get(what, "")) for what in headings)] for rule, of_rule in bars.items()]
    print(markdown(["", *headings], lines))
    held = [bar.holds for of_rule in bars.values() for bar in of_rule.values()]
    print(f"{sum(held)} of {len(held)} hold")
    return 0 if held and all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

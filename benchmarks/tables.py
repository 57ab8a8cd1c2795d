"""Markdown tables from rows of results, and the format of their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan

from gradstep.bench import duration

from .harness import Row

Cells = Sequence[str]

CEILING = "ceiling"
"""What the names of the ceiling's arms begin with."""


def markdown(headings: Cells, lines: Iterable[Cells]) -> str:
    """A table; all columns except the first are right-aligned."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, marks, *lines))


def group(rows: Iterable[Row], *keys: str) -> dict[tuple, dict[str, Row]]:
    """Groups rows by these entries, and within a group by arm."""
    groups: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["arm"]] = row
    return groups


def arms(rows: Iterable[Row], *, beside: Iterable[str] = ("gradstep",)) -> list[str]:
    """All arms except these and the ceiling's, in the order of the rule that has most of them."""
    by_rule = group(rows, "rule").values()
    names = dict.fromkeys(arm for found in sorted(by_rule, key=len, reverse=True) for arm in found)
    return [arm for arm in names if arm not in beside and not is_ceiling(arm)]


def is_ceiling(arm: str) -> bool:
    """Whether an arm is one of the ceiling's."""
    return arm.partition(",")[0] == CEILING


def ceiling(found: dict[str, Row]) -> Row | None:
    """The fastest of the ceiling's arms."""
    return min((row for arm, row in found.items() if is_ceiling(arm)), key=lambda row: row["median"], default=None)


def of_ceiling(found: dict[str, Row]) -> str:
    """The speed of a step as a fraction of its ceiling's, and the form of the ceiling in brackets."""
    best = ceiling(found)
    if best is None:
        return ""
    form = best["arm"].partition(", ")[2]
    return percent(best, found["gradstep"]) + (f" ({form})" if form else "")


def words(entry: int | str) -> str:
    """An entry of a row; numbers have thousands separators."""
    return f"{entry:,}" if isinstance(entry, int) else entry


def timed(row: Row | None) -> str:
    """A median time with its quartiles."""
    return f"{duration(row['median'])} ({duration(row['low'])} to {duration(row['high'])})" if row else ""


def rate(row: Row) -> str:
    """The minimal traffic of a step divided by its time."""
    return f"{row['bytes'] * row['elements'] / row['median'] / 1e9:.1f}"


def times(row: Row | None, other: Row | None) -> str:
    """How many times longer the first took than the other, by medians, and by minima in brackets."""
    if not row or not other:
        return ""
    of_median, of_least = (ratio_words(row[key] / other[key]) for key in ("median", "least"))
    return f"{of_median} ({of_least})"


def ratio_words(ratio: float) -> str:
    """A ratio with about three digits; empty for NaN."""
    return "" if isnan(ratio) else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def best_ratio(by_arm: dict[str, Row], library: str, ours: str = "gradstep") -> float:
    """How many times longer a library's best form takes than ours; NaN if it has none."""
    medians = [row["median"] for name, row in by_arm.items() if name.split()[0] == library]
    return min(medians, default=float("nan")) / float(by_arm[ours]["median"])


def percent(row: Row | None, other: Row | None) -> str:
    """The time of the first as a percentage of the other's."""
    return f"{row['median'] / other['median']:.0%}" if row and other else ""


def comparison(rows: Sequence[Row], *keys: str) -> str:
    """gradstep compared with its ceiling and all other arms: one line per rule and value of these entries."""
    others = arms(rows)
    headings = ["optimizer", *keys, "a step of gradstep", "GB/s", "of the ceiling", *others]
    lines = []
    for (rule, *entries), found in group(rows, "rule", *keys).items():
        ours = found["gradstep"]
        ratios = [times(found.get(arm), ours) for arm in others]
        measured = [timed(ours), rate(ours), of_ceiling(found)]
        lines.append([rule, *map(words, entries), *measured, *ratios])
    return markdown(headings, lines)

"""The plots of a report, each a PNG from the warm rows of the size sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which has windows and global state

from gradstep.plot import COLOURS, FAINT, INK

from .harness import Row
from .tables import CEILING, arms, best_ratio, ceiling, group, ratio_words

STYLES = ("-", "--", ":")


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The line styles of these arms: one colour per library, one style per form."""
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(name.split()[0], []).append(name)
    return {
        name: {"color": colour, "linestyle": style, "linewidth": 1.4}
        for colour, of_library in zip(COLOURS, forms.values(), strict=False)
        for style, name in zip(STYLES, of_library, strict=False)
    }


def figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def png(figure: Figure) -> bytes:
    data = BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def tidy(axes: Axes, title: str, *, grid: Literal["both", "y"] = "both") -> None:
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def over_sizes(rows: Sequence[Row]) -> bytes:
    """Time per element against size, with one panel per rule and one line per arm."""
    lines = {CEILING: {"color": INK, "linestyle": ":", "linewidth": 1.4}, **styles(arms(rows, beside=()))}
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    columns = min(4, len(rules))
    lengths = -(-len(rules) // columns)
    drawn = figure(3.4 * columns + 1.5, 2.8 * lengths)
    grid = drawn.subplots(lengths, columns, sharex=True, sharey=True, squeeze=False).flat
    for rule, axes in zip(rules, grid, strict=False):
        for name, style in lines.items():
            of_rule = group((row for row in rows if row["rule"] == rule), "elements").values()
            found = [ceiling(by_arm) if name == CEILING else by_arm.get(name) for by_arm in of_rule]
            points = [(row["elements"], row["median"]) for row in found if row]
            sizes = [size for size, _ in sorted(points)]
            axes.loglog(sizes, [time / size * 1e9 for size, time in sorted(points)], label=name, **style)
        tidy(axes, rule)
    for axes in grid:
        axes.set_axis_off()
    drawn.supxlabel("elements", color=INK)
    drawn.supylabel("ns an element", color=INK)
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return png(drawn)


def of_ceiling(rows: Sequence[Row]) -> bytes:
    """The fraction of the ceiling that each rule reaches on the largest tensor."""
    largest = max(row["elements"] for row in rows)
    found = group([row for row in rows if row["elements"] == largest], "rule").items()
    drawn = figure(8, 3)
    axes = drawn.subplots()
    speeds = {
        rule: best["median"] / by_arm["gradstep"]["median"] for (rule,), by_arm in found if (best := ceiling(by_arm))
    }
    axes.bar_label(axes.bar(list(speeds), list(speeds.values()), 0.6, color=COLOURS[4]), fmt="{:.2f}", color=INK)
    axes.axhline(1, color=INK, linewidth=1)
    tidy(axes, f"Speed in parts of the ceiling, {largest:,} elements", grid="y")
    return png(drawn)


def beside_peers(rows: Sequence[Row]) -> bytes:
    """How many times longer each library's best form takes, at a small size and at the largest."""
    sizes = sorted({row["elements"] for row in rows})
    small = min(sizes, key=lambda size: abs(size - 1000))
    libraries = list(dict.fromkeys(name.split()[0] for name in arms(rows)))
    width = 0.8 / max(len(libraries), 1)
    drawn = figure(11, 6)
    for axes, size in zip(drawn.subplots(2), (small, sizes[-1]), strict=True):
        found = group([row for row in rows if row["elements"] == size], "rule")
        for i, library in enumerate(libraries):
            best = [best_ratio(by_arm, library) for by_arm in found.values()]
            places = [place + i * width for place in range(len(found))]
            bars = axes.bar(places, best, width, label=f"{library}, best form", color=COLOURS[i + 1])
            axes.bar_label(bars, [ratio_words(ratio) for ratio in best], fontsize=7, color=INK)
        middle = width * (len(libraries) - 1) / 2
        axes.set_xticks([place + middle for place in range(len(found))], [rule for (rule,) in found])
        axes.axhline(1, color=INK, linewidth=1)
        axes.set_yscale("log")
        tidy(axes, f"Times longer than gradstep, {size:,} elements", grid="y")
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
    return png(drawn)


PLOTS: dict[str, tuple[str, Callable[[Sequence[Row]], bytes]]] = {
    "peers.png": ("How many times longer the best form of each peer takes than gradstep", beside_peers),
    "ceiling.png": ("The speed of each rule in parts of its ceiling", of_ceiling),
    "sizes.png": ("Time an element over the size of the tensor, by rule", over_sizes),
}
"""What each shows, and what draws it, in the order of the report."""

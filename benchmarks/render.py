"""A report in Markdown with plots, from the results of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradstep.demo import write_whole

from .parts import ALL
from .plots import PLOTS
from .tables import markdown

Results = dict[str, Any]


def size_words(bytes: int) -> str:
    """A readable size of memory."""
    return f"{bytes / 2**30:.1f} GB" if bytes >= 2**30 else f"{bytes / 2**10:.0f} KB"


def setup(results: Results) -> Iterator[tuple[str, str]]:
    """What was measured, and where."""
    machine, settings = results["machine"], results["settings"]
    hardware, config = machine["hardware"], machine["gradstep"]
    yield "date", results["date"]
    about = ", ".join(filter(None, [hardware.get("model"), "a virtual machine" if hardware["virtual"] else ""]))
    yield "processor", hardware["processor"] + (f" ({about})" if about else "")
    yield "cores", str(hardware["cores"])
    yield "caches", ", ".join(f"{name} {size_words(size)}" for name, size in hardware["caches"].items())
    if "last_cache" in hardware:
        yield "last level of caches, all cores", size_words(hardware["last_cache"])
    yield "memory", size_words(hardware["memory"])
    if "huge_pages" in hardware:
        yield "huge pages", hardware["huge_pages"] or "none"
    yield "system", f"{machine['system']}, Python {machine['python']}"
    yield "gradstep", f"{config['version']}, {config['isa']['chosen']}, threads: {config['threads']['count']}"
    if "prefetch" in config:
        yield "prefetching", config["prefetch"]["chosen"]
    yield "commit", f"{machine['commit'] or 'unknown'}{' with changes' if machine['dirty'] else ''}"
    yield "compiler", config["build"]["compiler"]
    yield "flags", f"`{config['build']['flags']}`"
    versions = machine["versions"].items()
    yield "peers", ", ".join(f"{name} {version or 'not installed'}" for name, version in versions)
    yield "measured", f"{settings['repeats']} turns of each arm, {settings['pause'] * 1e3:.0f} ms of rest before each"
    if "gpu" in machine:
        gpu, cuda = machine["gpu"], config["cuda"]
        yield "GPU", f"{gpu['name']}, {size_words(gpu['memory'])}, L2 {size_words(gpu['cache'])}"
        names = ("driver", "runtime", "compiler", "architectures")
        yield "CUDA", ", ".join(f"{name} {cuda[name]}" for name in names if name in cuda)
        yield "peers on it", ", ".join(f"{name} {version}" for name, version in gpu["versions"].items())
    if results.get("notes"):
        yield "notes", "; ".join(results["notes"])
    if results["left_out"]:
        yield "left out", "; ".join(results["left_out"])
    if results.get("failed"):
        yield "failed", "; ".join(results["failed"])


def report(results: Results, plots: list[tuple[str, str]]) -> str:
    """The whole page; `plots` are pairs of file name and description."""
    parts = [
        "# gradstep beside its peers",
        "Written by `python -m benchmarks`, whose docstring says how it measures; the samples are in "
        "[results.json](results.json). Times are medians, with quartiles in brackets. A peer's column says how many "
        "times longer it takes than gradstep, by medians, and in brackets by the least times. On a shared machine "
        "only such ratios mean something. Every answer was checked.",
        markdown(("", ""), setup(results)),
        *(f"![{words}]({name})" for name, words in plots),
    ]
    for name, part in ALL.items():
        rows = [row for row in results["rows"] if row["part"] == name]
        if rows:
            parts += [f"## {part.TITLE}", part.ABOUT, part.table(rows)]
    return "\n\n".join(parts) + "\n"


def render(results: Results, folder: Path) -> None:
    """Writes the report and its plots into a folder."""
    sizes = [row for row in results["rows"] if row["part"] == "sizes" and row["case"] == "warm"]
    shown = []
    for name, (words, draw) in PLOTS.items():
        if sizes:
            write_whole(folder / name, draw(sizes))
            shown.append((name, words))
    write_whole(folder / "README.md", report(results, shown).encode())

"""The command line: measures, stores the samples and writes a report; or writes the report of stored results."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import gradstep as gs
from gradstep.__main__ import Parser, at_least
from gradstep.bench import WrongAnswer
from gradstep.demo import write_whole

from . import ceiling, gpu, machine, peers
from .harness import Settings
from .parts import ALL, ON_GPU, ON_TORCH
from .peers.peer import Peer
from .render import Results, render

SIZES = (10, 100, 1000, 10_000, 100_000, 1_000_000, 16_000_000, 1 << 24, 64_000_000)
"""Elements; a power of two among the large ones, because arrays of such sizes can evict each other from L1."""
QUICK_SIZES = (10, 1000, 100_000)
ARRAYS = 40
"""Of the size of a parameter, in all arms of a trial and what they leave behind."""
OF_LARGE = {"threads", "arithmetic"}
"""Parts with tensors beyond every cache, whose trials have arms for several numbers of threads."""


def build_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks",
        description="gradstep beside its ceiling and its peers; see benchmarks/__init__.py.",
    )
    options = parser.add_argument
    rules = [cls.__name__ for cls in gs.optimizers.ALL]
    libraries = {**peers.MODULES, **peers.ON_GPU, **peers.NARROW, **peers.TRAINING}
    sizes = " ".join(map(str, SIZES))
    whole = at_least(1)
    options("--parts", choices=ALL, nargs="+", default=list(ALL), metavar="PART", help=f"of {', '.join(ALL)}")
    options("--rules", choices=rules, nargs="+", default=rules, metavar="RULE", help=f"of {', '.join(rules)}")
    options(
        "--sizes",
        type=whole,
        nargs="+",
        metavar="N",
        help=f"elements, for the part sizes [{sizes}]",
    )
    options("--threads", type=whole, nargs="+", metavar="N", help="for the part threads [1 to all]")
    options(
        "--peers", choices=libraries, nargs="*", metavar="LIBRARY", help=f"of {', '.join(libraries)} [those installed]"
    )
    options("--repeats", type=whole, metavar="N", help="turns of every arm [11, or 3 in a quick run]")
    options("--pause", type=at_least(0), metavar="MS", help="rest before every block [40, or 5 in a quick run]")
    options("--quick", action="store_true", help="small sizes and few turns: whether it works, not how fast")
    options(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="of the report [benchmarks/results/ and the processor's or the GPU's name]",
    )
    commands = parser.add_subparsers(dest="command", metavar="render", title="without measuring")
    again = commands.add_parser("render", help="write the report of kept results again")
    again.add_argument("results", type=Path, metavar="RESULTS.JSON")
    about = "of the report [that of the results]"
    again.add_argument("--output", type=Path, default=argparse.SUPPRESS, metavar="FOLDER", help=about)
    return parser


def possible(parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The parts that can be measured here, and messages about the others. Raises RuntimeError if there is none."""
    reasons = {} if find_spec("torch") else dict.fromkeys(ON_TORCH, "torch is not installed")
    if (on_gpu := set(parts) & ON_GPU.keys()) and (reason := gpu.missing()):
        reasons |= dict.fromkeys(on_gpu, reason)
    missing = [part for part in parts if part in reasons]
    messages = [f"{', '.join(group)}: {reason}" for reason, group in groupby(missing, reasons.__getitem__)]
    if len(missing) == len(parts):
        raise RuntimeError("; ".join(messages))
    return [part for part in parts if part not in reasons], messages


def chosen_peers(given: argparse.Namespace, modules: Mapping[str, str]) -> list[Peer]:
    """The peers of the named libraries that are among the modules; by default of the installed libraries."""
    names = peers.installed(modules) if given.peers is None else [name for name in given.peers if name in modules]
    return peers.load(names, modules)


def sizes() -> list[int]:
    """The sizes of the sweep; the last exceeds every cache."""
    return sorted({*SIZES, max(*SIZES, machine.large())})


def settings_of(given: argparse.Namespace, parts: Sequence[str]) -> Settings:
    """The settings from the options. Raises ModuleNotFoundError for a named peer that is not installed."""
    return Settings(
        rules=[cls for cls in gs.optimizers.ALL if cls.__name__ in given.rules],
        sizes=given.sizes or (QUICK_SIZES if given.quick else sizes()),
        large=max(QUICK_SIZES) if given.quick else machine.large(),
        threads=given.threads or range(1, gs.get_num_threads() + 1),
        peers=chosen_peers(given, peers.MODULES) if set(parts) - ON_GPU.keys() else [],
        cuda_peers=chosen_peers(given, peers.ON_GPU) if set(parts) & ON_GPU.keys() else [],
        narrow_peers=chosen_peers(given, peers.NARROW) if "storage" in parts else [],
        training_peers=chosen_peers(given, peers.TRAINING) if "training" in parts else [],
        repeats=given.repeats or (3 if given.quick else 11),
        pause=((5 if given.quick else 40) if given.pause is None else given.pause) / 1000,
        quick=given.quick,
    )


def fitting(settings: Settings, parts: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings without the sizes that exceed the memory, and messages about those."""
    most = machine.fitting(ARRAYS)
    left_out = [f"{size} elements: too little memory" for size in settings.sizes if size > most]
    # Adam in all storage types takes as much memory as two thread counts.
    large = min(settings.large, machine.fitting(ARRAYS * max(2, len(settings.threads))))
    if large < settings.large:
        words = f"{settings.large} elements: too little memory, so {large}"
        left_out += [f"{part}, {words}" for part in parts if part in OF_LARGE]
    return replace(settings, sizes=[size for size in settings.sizes if size <= most], large=large), left_out


def about(settings: Settings, parts: Sequence[str], left_out: list[str]) -> Results:
    """Results without rows: the description of the run."""
    about_gpu = {"gpu": gpu.gpu().about()} if set(parts) & ON_GPU.keys() else {}
    return {
        "date": date.today().isoformat(),
        "machine": machine.describe() | about_gpu,
        "settings": {
            "parts": list(parts),
            "rules": [cls.__name__ for cls in settings.rules],
            "sizes": list(settings.sizes),
            "large": settings.large,
            "threads": list(settings.threads),
            "peers": [peer.name for peer in settings.peers],
            "cuda_peers": [peer.name for peer in settings.cuda_peers],
            "narrow_peers": [peer.name for peer in settings.narrow_peers],
            "repeats": settings.repeats,
            "pause": settings.pause,
            "quick": settings.quick,
        },
        "left_out": left_out,
        "failed": [],
        "rows": [],
    }


def measure(settings: Settings, parts: Sequence[str], results: Results, output: Path) -> None:
    """Runs the trials of these parts and writes results.json after each. A failed trial does not stop the others."""
    start = time.monotonic()
    columns = (TextColumn("{task.description:45}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for name in parts:
            of_part = settings.on_gpu() if name in ON_GPU else settings
            trials = list(ALL[name].trials(of_part))
            task = progress.add_task(name, total=len(trials))
            for trial in trials:
                progress.update(task, description=f"{name}: {trial.title}")
                try:
                    results["rows"] += [{"part": name, **row} for row in trial.run(of_part)]
                except (RuntimeError, TypeError, ValueError, MemoryError, WrongAnswer) as error:
                    results["failed"].append(f"{name}, {trial.title}: {error}")
                    progress.console.print(f"Failed: {results['failed'][-1]}")
                gc.collect()  # optimizers of other libraries are in reference cycles that hold arrays
                results["minutes"] = round((time.monotonic() - start) / 60, 1)
                write_whole(output / "results.json", (json.dumps(results) + "\n").encode())
                progress.advance(task)
            progress.update(task, description=name)


def run(given: argparse.Namespace) -> Path:
    """Measures, or reads stored results, and writes the report, also after an interrupted run. Returns its folder.

    Raises RuntimeError at the end if a trial failed.
    """
    if given.command == "render":
        output: Path = given.output or given.results.parent
        render(json.loads(given.results.read_text(encoding="utf-8")), output)
    else:
        parts, left_out = possible(given.parts)
        for words in left_out:
            print(f"Left out: {words}")
        name = gpu.gpu().name if set(parts) <= ON_GPU.keys() else None
        output = given.output or machine.ROOT / "benchmarks" / "results" / machine.slug(name)
        output.mkdir(parents=True, exist_ok=True)
        settings, too_large = fitting(settings_of(given, parts), parts)
        if set(parts) - ON_GPU.keys():
            ceiling.library()  # reports a failing compilation at once
        results = about(settings, parts, left_out + too_large)
        try:
            measure(settings, parts, results, output)
        finally:
            render(results, output)
        if results["failed"]:
            raise RuntimeError("; ".join(results["failed"]))
    return output


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = build_parser()
    given = parser.parse_args(args)
    try:
        print(f"Report: {run(given) / 'README.md'}")
    except KeyboardInterrupt:
        return fail(parser, "interrupted", 130)
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError, WrongAnswer, MemoryError) as error:
        return fail(parser, f"{error}", 1)
    return 0


def fail(parser: Parser, message: str, status: int) -> int:
    """Prints an error in one line and returns the exit status."""
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

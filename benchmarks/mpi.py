"""Sharded steps on MPI beside one process and data-parallel loops: `python -m benchmarks.mpi`.

Adam in float32, on one rank and on as many as there are cores, a thread each. All arms exist at once and are timed in
turn; a step takes as long as on the slowest rank. Arms are

- `gradstep.mpi`: `gs.mpi.sharded`, and the same with `order="fast"`;
- `Allreduce, gs.Adam`: the gradients of all ranks are added by MPI, and each rank steps all parameters;
- `Allreduce, NumPy`: the same, with NumPy's functions and `out=`, in pieces that fit into the cache;
- `one process`: `accumulate` with the gradients of each rank, then `step()`, with as many threads as there are ranks,
  while the other ranks sleep;
- `each rank alone`: the same on each rank with its own gradients and one thread, without any exchange. What an element
  takes there is a constant for plans.

After the last turn, parameters of the first and of the last are compared by their bits, and the others roughly. The
memory of each arm is measured in processes of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import wraps
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

import gradstep as gs
from gradstep.demo import write_whole

from . import machine
from .parts.memory import peak
from .peers import numpy_out
from .peers.scalars import SCALARS
from .tables import markdown

SIDE = 1000
"""Parameters are square matrices of this side, and vectors."""
OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
LINK, LINKS = 8 << 20, 16
"""Bytes of a message by which the bandwidth is measured, and their number, so that they do not stay in a cache."""


class Clock:
    """The seconds that functions have taken, and the bytes that were sent, since the last reset."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + value

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls are timed."""

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.add(name, time.perf_counter() - begin)

        return call

    def counting(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """`Ranks.send`, whose bytes are counted."""

        @wraps(send)
        def call(ranks: Any, messages: Any, to: int) -> Any:
            self.add("bytes", sum(message.nbytes for message in messages))
            self.add("messages", len(messages))
            return send(ranks, messages, to)

        return call

    def watch(self) -> None:
        """Times the sections of a sharded step. What is made afterwards is timed."""
        of = gs.mpi.Sharded
        of._accumulate = self.timed("exchange", of._accumulate)
        of._stepped = self.timed("within", of._stepped)
        gs.mpi.Gather.finish = self.timed("after", gs.mpi.Gather.finish)
        gs.mpi.Ranks.send = self.counting(gs.mpi.Ranks.send)

    def sections(self) -> dict[str, float]:
        """Exchange, step and gather of a sharded step, or what an arm has timed; and what was sent."""
        of = dict(self.totals)
        self.totals.clear()
        if "within" in of:
            within = of.pop("within")
            of["step"] -= within
            of["gather"] = within + of.pop("after", 0.0)
        return of


def shapes(elements: int) -> list[tuple[int, ...]]:
    """Matrices and vectors, with about so many elements."""
    return [(SIDE, SIDE), (SIDE,)] * max(1, round(elements / (SIDE * SIDE + SIDE)))


def arrays(elements: int, seed: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random numbers in one array, and the parameters in it."""
    of = shapes(elements)
    flat = np.random.default_rng(seed).standard_normal(sum(map(np.prod, of)), np.float32)
    ends = np.cumsum([np.prod(shape) for shape in of])
    return flat, [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), of, strict=True)]


class Loop:
    """An arm: it steps the same parameters with the same gradients, on all ranks."""

    def __init__(self, name: str, comm: Any, elements: int, clock: Clock) -> None:
        self.name, self.comm, self.clock = name, comm, clock
        self.flat, self.params = arrays(elements, 0)
        self.given, self.grads = arrays(elements, [1, comm.rank])
        self.threads = comm.size if name == "one process" else 1
        self.take = getattr(self, {"e": "_alone", "o": "_one", "g": "_sharded", "A": "_reduced"}[name[0]])()

    def _sharded(self) -> Callable[[], Any]:
        order = "fast" if "fast" in self.name else "ranks"
        opt = gs.mpi.sharded(gs.Adam, self.params, comm=self.comm, order=order, **OPTIONS)
        kind = type(opt._inner)  # of this optimizer alone
        kind.step = self.clock.timed("step", kind.step)
        return lambda: opt.step(self.grads)

    def _one(self) -> Callable[[], Any]:
        if self.comm.rank > 0:
            return lambda: None
        others = [arrays(self.flat.size, [1, rank])[1] for rank in range(1, self.comm.size)]
        return self._accumulated([self.grads, *others])

    def _alone(self) -> Callable[[], Any]:
        return self._accumulated([self.grads])

    def _accumulated(self, everyones: list[list[np.ndarray]]) -> Callable[[], Any]:
        opt = gs.Adam(self.params, **OPTIONS)

        def add() -> None:
            for grads in everyones:
                opt.accumulate(grads)

        exchange, step = self.clock.timed("exchange", add), self.clock.timed("step", opt.step)
        return lambda: (exchange(), step())

    def _reduced(self) -> Callable[[], Any]:
        from mpi4py import MPI

        kept = np.empty_like(self.given)
        grads = [kept[: self.flat.size]] if "NumPy" in self.name else [kept]

        def reduce() -> None:
            self.comm.Allreduce(self.given, kept, MPI.SUM)
            np.multiply(kept, np.float32(1 / self.comm.size), out=kept)

        if "NumPy" in self.name:
            states = np.zeros((2, self.flat.size), np.float32)
            scalars = SCALARS["adam"](SimpleNamespace(**{**gs.Adam.defaults, **OPTIONS}))
            most = numpy_out.PIECE
            temporaries = np.empty((2, most), np.float32)
            starts = range(0, self.flat.size, most)
            whole = (self.flat, kept, *states)
            pieces = [[array[start : start + most] for array in whole] for start in starts]

            def update() -> None:
                numbers = next(scalars)
                for piece in pieces:
                    numpy_out.adam(*piece, *temporaries[:, : piece[0].size], *numbers)

        else:
            opt = gs.Adam([self.flat], **OPTIONS)

            def update() -> None:
                opt.step(grads)

        exchange, step = self.clock.timed("exchange", reduce), self.clock.timed("step", update)
        return lambda: (exchange(), step())


NAMES = (
    "gradstep.mpi",
    'gradstep.mpi, order="fast"',
    "Allreduce, gs.Adam",
    "Allreduce, NumPy",
    "one process",
    "each rank alone",
)


def asleep(comm: Any) -> None:
    """Waits for all ranks, without a busy loop."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.0005)


def slowest(comm: Any, of_rank: dict[str, float]) -> dict[str, float]:
    """The largest of each number."""
    everyones = comm.allgather(of_rank)
    return {name: max(of.get(name, 0.0) for of in everyones) for name in sorted({n for of in everyones for n in of})}


def once(loop: Loop) -> dict[str, float]:
    """One step, by sections, and in all."""
    asleep(loop.comm)
    gs.set_num_threads(loop.threads)
    loop.clock.totals.clear()
    begin = time.perf_counter()
    loop.take()
    took = time.perf_counter() - begin
    asleep(loop.comm)
    return slowest(loop.comm, {**loop.clock.sections(), "whole": took})


def in_turn(loops: list[Loop], repeats: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Samples of all loops, in an order that changes, after two steps of each that do not count."""
    for turn in range(-2, repeats):
        first = turn % len(loops)
        for loop in loops[first:] + loops[:first]:
            sample = once(loop)
            if turn >= 0:
                yield loop.name, sample


def check(loops: dict[str, Loop]) -> None:
    """Raises RuntimeError where results differ."""
    first = loops["gradstep.mpi"]
    right = first.comm.bcast(loops["one process"].flat if first.comm.rank == 0 else None)
    for name in NAMES[:-1]:
        loop = loops[name]
        exact = name == "gradstep.mpi"
        good = loop.flat.tobytes() == right.tobytes() if exact else np.allclose(loop.flat, right, rtol=0, atol=1e-3)
        if not good and (name != "one process" or loop.comm.rank == 0):
            raise RuntimeError(f"{name}: a wrong result")


def constants(comm: Any, repeats: int) -> dict[str, float]:
    """Of messages in both directions between two ranks, if there are two: the latency, and the seconds a byte."""
    latency, transfer = [], []
    of: dict[str, float] = {}
    if comm.size > 1:
        ranks, peer = gs.mpi.Ranks(comm, 300.0), comm.rank ^ 1
        to, back = np.ones((LINKS, LINK), np.uint8), np.zeros((LINKS, LINK), np.uint8)

        def exchange(sent: np.ndarray, received: np.ndarray) -> None:
            ranks.wait("a benchmark", *ranks.receive([received], peer), *ranks.send([sent], peer))

        for _ in range(repeats + 2):
            if peer < comm.size:
                begin = time.perf_counter()
                for _ in range(100):
                    exchange(to[0, :8], back[0, :8])
                latency.append((time.perf_counter() - begin) / 100)
                begin = time.perf_counter()
                for i in range(LINKS):
                    exchange(to[i], back[i])
                transfer.append((time.perf_counter() - begin) / LINKS)
            comm.Barrier()
        of = {"latency": median(latency[2:]), "byte": median(transfer[2:]) / LINK}
    return slowest(comm, of)


def time_arms(elements: int, repeats: int) -> None:
    """Prints samples, and constants, on rank 0."""
    from mpi4py import MPI

    comm, clock = MPI.COMM_WORLD, Clock()
    clock.watch()
    loops = {name: Loop(name, comm, elements, clock) for name in NAMES}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    for name, sample in in_turn(list(loops.values()), repeats):
        samples[name].append(sample)
    check(loops)
    size = loops["gradstep.mpi"].flat.size
    del loops
    gc.collect()
    of = constants(comm, repeats)
    of |= {
        key: median(sample[section] for sample in samples["each rank alone"]) / size
        for key, section in (("add", "exchange"), ("step", "step"))
    }
    if comm.rank == 0:
        print(json.dumps({"elements": size, "samples": samples, "constants": of}))


def measure_memory(name: str, elements: int) -> None:
    """Prints the growth of memory over the construction of an arm, its gradients and three steps, on rank 0."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    comm.Barrier()
    before = peak()
    loop = Loop(name, comm, elements, Clock())
    for _ in range(3):
        loop.take()
    grown = slowest(comm, {"bytes": peak() - before})
    if comm.rank == 0:
        print(json.dumps(grown["bytes"]))


def busy_share(seconds: float) -> float:
    """The share of all cores' time that is used."""

    def ticks() -> tuple[int, int]:
        of = list(map(int, machine.read(Path("/proc/stat")).split("\n")[0].split()[1:]))
        return sum(of), sum(of) - of[3] - of[4]

    (first, used), _, (last, used_then) = ticks(), time.sleep(seconds), ticks()
    return (used_then - used) / max(1, last - first)


def wait_for_quiet(seconds: float) -> float:
    """Waits until others use less than a tenth of the cores, or so long. Returns the share that they use then."""
    end = time.monotonic() + seconds
    while (busy := busy_share(2.0)) >= 0.1 and time.monotonic() < end:
        pass
    return busy


def on_ranks(ranks: int, *words: Any) -> Any:
    """What this program prints on so many ranks."""
    command = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "benchmarks.mpi", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=machine.ROOT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def report(results: dict[str, Any]) -> str:
    """The report in Markdown."""
    of = results["machine"]
    hardware = of["hardware"]
    lines = [
        "# Sharded steps on MPI",
        "",
        f"Written by `python -m benchmarks.mpi`; the samples are in [results.json](results.json). {results['date']}, "
        f"{hardware['processor']} ({hardware['model']}), {hardware['cores']} cores, {of['system']}, Python "
        f"{of['python']}, mpi4py {results['versions']['mpi4py']}, {results['versions']['library']}. "
        f"Commit {of['commit']}{' with changes' if of['dirty'] else ''}.",
    ]
    for run in results["runs"]:
        ranks, samples = run["ranks"], run["samples"]
        lines += ["", f"## {ranks} rank{'s' * (ranks > 1)}, {run['elements'] / 1e6:.1f} million parameters", ""]
        lines += [f"Others used {run['busy']:.0%} of the processors just before.", ""]
        rows = []
        for name, taken in samples.items():
            middle = {key: median(sample.get(key, 0.0) for sample in taken) for key in taken[0]}
            rows.append(
                [
                    name,
                    ms(middle["whole"]),
                    *(ms(middle[key]) if key in middle else "" for key in ("exchange", "step", "gather")),
                    f"{middle['bytes'] / 1e6:.1f}" if middle.get("bytes") else "",
                    f"{run['memory'][name] / 1e9:.2f}",
                ]
            )
        million = f"{results['memory_elements'] / 1e6:.0f} million"
        headings = ["", "a step, ms", "exchange, ms", "step, ms", "gather, ms", "MB sent", f"GB at {million}"]
        lines += [markdown(headings, rows)]
    lines += [
        "",
        "Milliseconds are medians, of the slowest rank. Exchange is what is done before the step: gradients are sent "
        "and added (`accumulate` in one process; `Allreduce` and the division). Gather is all that a rank does for the "
        "exchange of parameters, during the step and after it. MB sent are those of a rank and a step, without what "
        "reductions of the library send. GB are the growth of a rank's memory: parameters, gradients, states and all "
        "that a step needs.",
        "",
        "## Constants",
        "",
        markdown(
            ["", *(f"{run['ranks']} rank{'s' * (run['ranks'] > 1)}" for run in results["runs"])],
            [
                [words, *(f"{run['constants'][key] * scale:.3g}" if key in run["constants"] else "" for run in runs)]
                for runs in [results["runs"]]
                for key, words, scale in (
                    ("add", "to add a gradient, ns an element", 1e9),
                    ("step", "a step with sums, ns an element", 1e9),
                    ("latency", "a message of 8 bytes, from Python, µs", 1e6),
                    ("byte", "a message of 8 MiB, ns a byte", 1e9),
                )
            ],
        ),
        "",
        "The first two are of the arm `each rank alone`; messages go in both directions at a time.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mpi", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--elements", type=int, default=16_000_000, help="parameters whose steps are timed")
    parser.add_argument("--memory-elements", type=int, default=100_000_000, help="parameters whose memory is measured")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each arm")
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait, at most, for a quiet machine")
    parser.add_argument("--output", type=Path, help="folder of the report")
    parser.add_argument("--render", type=Path, metavar="RESULTS.JSON", help="write the report of kept results again")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        what, *numbers = given.worker
        if what == "times":
            time_arms(*map(int, numbers))
        else:
            measure_memory(NAMES[int(numbers[0])], int(numbers[1]))
        return
    if given.render:
        results = json.loads(given.render.read_text(encoding="utf-8"))
        output = given.output or given.render.parent
    else:
        import mpi4py
        from mpi4py import MPI

        output = given.output or machine.ROOT / "benchmarks" / "results" / machine.slug() / "mpi"
        results = {
            "date": date.today().isoformat(),
            "machine": machine.describe(),
            "versions": {
                "mpi4py": mpi4py.__version__,
                "library": " ".join(MPI.Get_library_version().split("\n")[0].split()[:3]).rstrip("\0"),
            },
            "memory_elements": given.memory_elements,
            "runs": [],
        }
        for ranks in sorted({1, machine.cores()}):
            busy = wait_for_quiet(given.wait)
            run = on_ranks(ranks, "--worker", "times", given.elements, given.repeats)
            results["runs"].append({"ranks": ranks, "busy": busy, **run})
        for run in results["runs"]:
            run["memory"] = {
                name: on_ranks(run["ranks"], "--worker", "memory", number, given.memory_elements)
                for number, name in enumerate(NAMES)
            }
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "results.json", json.dumps(results, indent=1).encode())
    write_whole(output / "README.md", report(results).encode())
    print(output / "README.md")


if __name__ == "__main__":
    main()

"""The command line, ``python -m gradstep``: a demonstration, a measurement, a race, and what this build can do."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import gradstep
from gradstep import _race, bench, demo, plot
from gradstep._functions import FUNCTIONS, Function
from gradstep._minimize import METHODS
from gradstep._options import POSITIVE


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def at_least(lowest: int, most: float = math.inf) -> Callable[[str], int]:
    """The type of an option: a whole number, `lowest` or more, and `most` or less."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {lowest} or more")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r} is more than {most}")
        return int(text)

    return whole


def shape(text: str) -> bench.Shape:
    """The type of an option: the elements of one tensor, or how many tensors of how many elements."""
    count, _, size = text.rpartition("x")
    whole = at_least(1)
    return whole(count or "1"), whole(size)


def path_of(ending: str) -> Callable[[str], Path]:
    """The type of an option: a path with this ending."""

    def path(text: str) -> Path:
        if not text.lower().endswith(ending):
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {ending}")
        return Path(text)

    return path


def named(find: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option: what `find` has by this name."""

    def by_name(text: str) -> Any:
        try:
            return find(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return by_name


def classes(text: str) -> dict[str, type[gradstep.Optimizer]]:
    """The type of an option: names of optimizers, between commas."""
    found = [named(_race.optimizer_named)(name.strip()) for name in text.split(",")]
    return {cls.__name__: cls for cls in found}


def positive(text: str) -> float:
    """The type of an option: a finite number above zero."""
    try:
        return float(POSITIVE.check(float(text), ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0") from None


PNG = path_of(".png")
MOST_STEPS = 1_000_000  # of a race, so that all its points fit in memory


def sentence(text: str) -> str:
    """A help text as a sentence of its own."""
    return f"{text[0].upper()}{text[1:]}."


def build_parser() -> Parser:
    """The commands and their options."""
    parser = Parser(prog="python -m gradstep", description="Fused, exact, in-place optimizer steps.")
    parser.add_argument("--version", action="version", version=f"gradstep {gradstep.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands")

    about = "train on handwritten digits with every optimizer and time the updates beside NumPy's"
    options = commands.add_parser("demo", help=about, description=sentence(about)).add_argument
    options("--output", type=PNG, default=Path("gradstep-demo.png"), metavar="PNG", help="the picture [%(default)s]")
    options("--epochs", type=at_least(1), default=demo.EPOCHS, metavar="N", help="passes over the data [%(default)s]")
    options("--seed", type=at_least(0), default=0, metavar="N", help="of weights, split and batches [%(default)s]")
    hidden = " ".join(map(str, demo.HIDDEN))
    about = f"units of the perceptron's hidden layers [{hidden}]"
    options("--hidden", type=at_least(1), default=demo.HIDDEN, metavar="N", nargs="+", help=about)
    about = "of parameters and gradients: %(choices)s [%(default)s]"
    options("--dtype", choices=demo.DTYPES, default=demo.PLAIN.dtype, metavar="TYPE", help=about)
    about = "of the optimizers' states: %(choices)s [%(default)s]"
    options("--state", choices=demo.STATES, default=demo.PLAIN.state, metavar="TYPE", help=about)
    options("--master", action="store_true", help="keep a float32 master of 16-bit parameters")

    about = "time every optimizer beside the limit of memory and beside NumPy, for a minute"
    options = commands.add_parser("bench", help=about, description=sentence(about)).add_argument
    shapes = " ".join(bench.shape_words(shape).replace(" ", "") for shape in bench.SHAPES)
    about = f"elements of the tensor, or of so many tensors [{shapes}]"
    options("--size", type=shape, default=bench.SHAPES, dest="shapes", metavar="N or MxN", nargs="+", help=about)
    options("--threads", type=at_least(1), metavar="N", help="that a step may use [as many as cores]")
    options("--repeats", type=at_least(1), default=bench.REPEATS, metavar="N", help="turns of every arm [%(default)s]")

    about = "race optimizers down a test function, and draw their paths and losses"
    options = commands.add_parser("race", help=about, description=sentence(about)).add_argument
    options("--list", action="store_true", dest="listing", help="list the functions and the optimizers")
    function = named(_race.function_named)
    options("--function", type=function, default="rosenbrock", metavar="NAME", help="the function [%(default)s]")
    options("--optimizers", type=classes, metavar="A,B", help="names, between commas [all]")
    options(
        "--steps",
        type=at_least(1, MOST_STEPS),
        default=_race.STEPS,
        metavar="N",
        help="of each optimizer [%(default)s]",
    )
    about = "the learning rate [for each, the best of a series]"
    options("--lr", type=positive, metavar="X", help=about)
    about = "of a random start within the plot [the function's own start]"
    options("--seed", type=at_least(0), metavar="N", help=about)
    options("--output", type=PNG, default=Path("gradstep-race.png"), metavar="PNG", help="the picture [%(default)s]")
    options("--animate", type=path_of(".gif"), metavar="GIF", help="an animation of the paths [none]")

    about = "show the version, the build, the instruction sets, the threads and CUDA"
    commands.add_parser("info", help=about, description=sentence(about))
    return parser


def need(modules: Sequence[str], command: str, extra: str | None = None) -> None:
    """Raise ModuleNotFoundError, with its remedy, where a command lacks a module: the extra that brings it."""
    remedy = f'pip install "gradstep[{extra or command}]"'
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{command} needs {error.name}: {remedy}") from None


def run_demo(output: Path, dtype: str, state: str, master: bool, **options: Any) -> int:
    """The command ``demo``."""
    if master and dtype == "float32":
        return fail(2, "--master is for --dtype float16 or bfloat16: float32 parameters need none")
    need(demo.REQUIRES, "demo")
    if "bfloat16" in (dtype, state):
        need(["ml_dtypes"], "demo", "bfloat16")
    try:
        demo.check_output(output)
    except OSError as error:
        return fail(2, f"cannot write {output}: {error.strerror or error}")
    runs = demo.run(output, storage=demo.Storage(dtype, state, master), **options)
    if not all(run.same_bits for run in runs):
        return fail(1, "the bits of gradstep and of NumPy differ")
    return 0


def run_bench(threads: int | None, **options: Any) -> int:
    """The command ``bench``."""
    need(bench.REQUIRES, "bench")
    try:
        if threads is not None:
            gradstep.set_num_threads(threads)
    except ValueError as error:
        return fail(2, str(error))
    try:
        bench.run(**options)
    except MemoryError as error:
        return fail(1, f"too little memory: {error}")
    return 0


def run_race(
    listing: bool,
    function: Function,
    seed: int | None,
    output: Path,
    animate: Path | None,
    **options: Any,
) -> int:
    """The command ``race``."""
    if listing:
        print("functions: ", *FUNCTIONS)
        print("optimizers:", *METHODS)
        return 0
    need(plot.REQUIRES, "race", "plot")
    for path in filter(None, (output, animate)):
        try:
            demo.check_output(path)
        except OSError as error:
            return fail(2, f"cannot write {path}: {error.strerror or error}")
    start = None if seed is None else np.random.default_rng(seed).uniform(*np.transpose(function.bounds))
    function = _race.problem(function, start)
    runs = _race.run_all(function, **options)
    print(f"{function.name} from ({function.start[0]:g}, {function.start[1]:g}), {options['steps']} steps")
    print(*_race.table(function, runs), sep="\n")
    demo.write_whole(output, plot.png(plot.overview(function, runs)))
    print(f"Picture: {output}")
    if animate is not None:
        demo.write_whole(animate, plot.gif(function, runs))
        print(f"Animation: {animate}")
    return 0


def fail(status: int, message: str) -> int:
    """Say what is wrong, in one line, and hand back the exit status."""
    print(f"python -m gradstep: error: {message}", file=sys.stderr)
    return status


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = build_parser()
    options = vars(parser.parse_args(args))
    command = options.pop("command")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an old terminal's "?" for a sign that it lacks, not an error
    try:
        if command == "demo":
            return run_demo(**options)
        if command == "bench":
            return run_bench(**options)
        if command == "race":
            return run_race(**options)
        if command == "info":
            gradstep.show_config()
        else:
            parser.print_help()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return fail(130, "interrupted")
    except (OSError, ModuleNotFoundError, bench.WrongAnswer) as error:
        return fail(1, str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())

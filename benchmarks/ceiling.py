"""The ceiling: in-place passes that only add, over as many streams as a step has, independent of gradstep.

A ceiling that shared a choice with gradstep would be too low where the choice is wrong. The loops are therefore
separate (ceiling.cpp, compiled here for this machine), with their own threads and memory. Each form of prefetching on
each kind of page is an arm; the best arm of a trial is its ceiling, and tables name its form.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

import gradstep as gs
from gradstep.bench import Arm, Array, Problem

from .machine import huge_pages
from .tables import CEILING

FORMS = {"plain": 0, "1 line ahead": 1, "8 lines ahead": 8}
"""How many lines of each stream are prefetched at a time, 2 KB ahead."""
SMALL_PAGES, HUGE_PAGES = f"{mmap.PAGESIZE // 1024} KB pages", "2 MB pages"
HUGE = 1 << 21
"""Bytes of a huge page."""
OFFSET = 832
"""Bytes between the offsets of the streams within a page; arrays that share one can evict each other from L1."""
SMALLEST = 100_000
"""Elements; below, a step takes little longer than the call, and no pass over memory is a measure of it."""


class NoCeiling(RuntimeError):
    """The passes cannot be compiled."""


@cache
def library() -> ctypes.CDLL:
    """The compiled passes. Raises NoCeiling."""
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "ceiling.so"
        compiler = shlex.split(os.environ.get("CXX") or "c++")
        options = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", source, "-o", built)
        try:
            subprocess.run((*compiler, *options), check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise NoCeiling(f"the ceiling needs a C++ compiler, and {compiler[0]} is not installed") from None
        except subprocess.CalledProcessError as error:
            errors = (line for line in error.stderr.splitlines() if "error" in line)
            raise NoCeiling(f"the ceiling cannot be compiled: {next(errors, error)}") from None
        loaded = ctypes.CDLL(str(built))
    numbers = (ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    loaded.passes.argtypes = (ctypes.POINTER(ctypes.c_void_p), *numbers)
    loaded.passes.restype = ctypes.c_double
    return loaded


def passes(streams: Sequence[Array], lines: int, threads: int, count: int = 1) -> float:
    """Adds the first stream to each of the others `count` times and returns the seconds that this took.

    Streams are packed float32 arrays of one size. The time excludes starting the threads.
    """
    pointers = (ctypes.c_void_p * len(streams))(*(stream.ctypes.data for stream in streams))
    seconds: float = library().passes(pointers, len(streams) - 1, streams[0].size, threads, lines, count)
    return seconds


def stream_on(pages: str, elements: int, place: int) -> Array:
    """A float32 array of ones on pages of this kind, at offset `place * OFFSET` within a page."""
    memory = mmap.mmap(-1, 4 * elements + 2 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages():
        memory.madvise(mmap.MADV_HUGEPAGE if pages == HUGE_PAGES else mmap.MADV_NOHUGEPAGE)
    whole = np.frombuffer(memory, np.float32)
    first = (-whole.ctypes.data % HUGE + OFFSET * place) // 4
    stream = whole[first : first + elements]
    stream.fill(1)
    return stream


@dataclass(eq=False)
class Passes(Arm):
    """An arm of passes over streams, on as many threads as gradstep may use."""

    streams: Sequence[Array] = ()
    lines: int = 0

    def take(self, calls: int) -> float:
        """Makes `calls` passes and returns the seconds that they took."""
        self.steps += calls
        return passes(self.streams, self.lines, gs.get_num_threads(), calls)


def ceiling_arms(problem: Problem) -> list[Arm]:
    """One arm per form and kind of page that a problem's streams can be on; none for small problems."""
    if problem.elements < SMALLEST:
        return []
    large = huge_pages() and 4 * problem.elements >= HUGE
    arms: list[Arm] = []
    for pages in (SMALL_PAGES, HUGE_PAGES) if large else (SMALL_PAGES,):
        streams = [stream_on(pages, problem.elements, place) for place in range(2 + problem.states)]
        for form, lines in FORMS.items():
            name = f"{CEILING}, {form}, {pages}"
            arms.append(Passes(name, lambda: None, problem, streams=streams, lines=lines))
    return arms

"""The ceiling: in-place passes over as many streams as a step has, which only add, written apart from gradstep.

A ceiling that shared a choice with what it judges would be low wherever the choice is wrong. So these loops are the
benchmark's own (ceiling.cpp, compiled here for this machine), with their own threads and memory. Each form of
prefetching on each kind of page is an arm; the best arm of a trial is its ceiling, and tables name it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
import time
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
SMALL_PAGES, HUGE_PAGES = "4 KB pages", "2 MB pages"
HUGE = 1 << 21
"""Bytes of a huge page."""


@cache
def library() -> ctypes.CDLL:
    """The compiled passes. Raises RuntimeError where they cannot be compiled."""
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "ceiling.so"
        compiler = os.environ.get("CXX", "c++")
        command = (compiler, "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", source, "-o", built)
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError(f"the ceiling needs a C++ compiler, and {compiler} is not installed") from None
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"the ceiling cannot be compiled: {error.stderr}") from None
        return ctypes.CDLL(str(built))


def passes(streams: Sequence[Array], lines: int, threads: int, count: int = 1) -> None:
    """Adds the first stream to each of the others, so many times. They are packed float32 arrays of one size."""
    pointers = (ctypes.c_void_p * len(streams))(*(stream.ctypes.data for stream in streams))
    size = ctypes.c_int64(streams[0].size)
    library().passes(pointers, len(streams) - 1, size, threads, lines, count)


def stream_on(pages: str, elements: int, place: int) -> Array:
    """A float32 array of ones on pages of this kind, which begins `place` KB after a page does.

    Arrays whose addresses differ by a power of two take each other's lines from the first cache of some processors.
    """
    memory = mmap.mmap(-1, 4 * elements + 2 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages():
        memory.madvise(mmap.MADV_HUGEPAGE if pages == HUGE_PAGES else mmap.MADV_NOHUGEPAGE)
    whole = np.frombuffer(memory, np.float32)
    first = (-whole.ctypes.data % HUGE + 1024 * place) // 4
    stream = whole[first : first + elements]
    stream.fill(1)
    return stream


@dataclass(eq=False)
class Passes(Arm):
    """An arm of passes over these streams, on as many threads as gradstep may use."""

    streams: Sequence[Array] = ()
    lines: int = 0

    def take(self, calls: int) -> float:
        """Take so many passes in one call, for which threads are started once; the seconds that they took."""
        start = time.perf_counter()
        passes(self.streams, self.lines, gs.get_num_threads(), calls)
        took = time.perf_counter() - start
        self.steps += calls
        return took


def ceiling_arms(problem: Problem) -> list[Arm]:
    """An arm for each form on each kind of page that the streams of a problem can lie on."""
    library()
    large = huge_pages() and 4 * problem.elements >= HUGE
    arms: list[Arm] = []
    for pages in (SMALL_PAGES, HUGE_PAGES) if large else (SMALL_PAGES,):
        streams = [stream_on(pages, problem.elements, place) for place in range(2 + problem.states)]
        for form, lines in FORMS.items():
            name = f"{CEILING}, {form}, {pages}"
            arms.append(Passes(name, lambda: None, problem, streams=streams, lines=lines))
    return arms

"""Where the states that an optimizer makes lie in memory: a place of their own within a page, on huge pages."""

import re
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from benchmarks.machine import huge_pages


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "q8"}], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_states_have_a_place_of_their_own_within_a_page(options, order):
    """Where all begin at one place, processors of AMD hold but one of several lines in the first cache."""
    p = np.zeros((300, 700), np.float32, order=order)
    state = gs.Adam(p, **options).state
    line = p.ctypes.data // 64 * 64
    places = [(state[name].ctypes.data - line) % 4096 for name in ("exp_avg", "exp_avg_sq")]
    assert places == [1024, 2048]
    if not options:
        assert [array.flags.f_contiguous for array in state.values()] == [order == "F"] * 2


def test_small_states_are_arrays_of_numpy_alone():
    assert all(array.base is None for array in gs.Adam(np.zeros(100, np.float32)).state.values())


def huge_bytes(array):
    """The bytes on huge pages of the mappings in which an array lies."""
    begin, end, found = array.ctypes.data, array.ctypes.data + array.nbytes, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            meets = int(bounds[1], 16) < end and int(bounds[2], 16) > begin
        elif line.startswith("AnonHugePages:") and meets:
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.skipif(not huge_pages(), reason="this system has no huge pages for who asks for them")
def test_large_states_lie_on_huge_pages():
    p = np.zeros(8_000_000, np.float32)
    opt = gs.Adam(p)
    opt.step(np.ones_like(p))
    for name, array in opt.state.items():
        assert huge_bytes(array) > 0.8 * array.nbytes, name

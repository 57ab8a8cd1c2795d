"""The addresses of states: separate offsets within a page, and huge pages."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from benchmarks.machine import huge_pages


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "q8"}], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_states_have_offsets_of_their_own_within_a_page(options, order):
    """Arrays with the same offset can evict each other from the L1 cache."""
    p = np.zeros((300, 700), np.float32, order=order)
    state = gs.Adam(p, **options).state
    assert offsets(p, [state["exp_avg"], state["exp_avg_sq"]]) == [832, 1664]
    if not options:
        assert [array.flags.f_contiguous for array in state.values()] == [order == "F"] * 2


def test_the_offsets_of_three_states_and_a_master_differ():
    p = np.zeros(100_000, np.float16)
    found = offsets(p, gs.Adam(p, amsgrad=True, master=True).state.values())
    assert sorted(found) == [832, 1664, 2496, 3328]


def offsets(param, states):
    """The offsets of states within a page, relative to their parameter's."""
    return [(state.ctypes.data - param.ctypes.data) % 4096 for state in states]


@pytest.mark.parametrize("offset", [2, 4, 6, 30])
def test_states_of_a_parameter_anywhere_are_aligned(offset):
    whole = np.zeros(400_032, np.uint8)
    first = (-whole.ctypes.data) % 64 + offset
    p = whole[first : first + 399_000].view(np.float16)
    for state in gs.Adam(p, master=True).state.values():
        assert state.flags.aligned
        assert state.dtype == np.float32


def test_states_of_small_arrays_share_an_allocation():
    opt = gs.Adam([np.zeros(100, np.float32), np.zeros((3, 5), np.float32).T, np.zeros(0, np.float32)])
    for states in opt.state.values():
        assert states[0].base is states[1].base is states[2].base
        assert not np.shares_memory(states[0], states[1])
        assert states[1].strides == (4, 20)
        assert all(state.ctypes.data % 16 == 0 and state.flags.aligned for state in states)


def asks_for_huge_pages(array):
    """Whether the mapping that contains the middle of an array is marked for huge pages (madvise)."""
    middle, within = array.ctypes.data + array.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif line.startswith("VmFlags:") and within:
            return "hg" in line.split()
    return False


@pytest.mark.skipif(not huge_pages(), reason="this system has no huge pages for who asks for them")
@pytest.mark.skipif("NUMPY_MADVISE_HUGEPAGE" in os.environ, reason="NumPy was told whether to ask")
def test_large_states_ask_for_huge_pages():
    states = gs.Adam(np.zeros(8_000_000, np.float32)).state
    assert all(map(asks_for_huge_pages, states.values()))

"""What gradstep.mpi does without MPI; tests/mpi has the rest."""

import sys

import numpy as np
import pytest

import gradstep as gs


def test_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"gradstep\[mpi\]\""):
        gs.mpi.sharded(gs.SGD, [np.ones(3)])


@pytest.mark.parametrize("sizes", [[0], [1], [5, 40_000, 0, 16_384, 90_001], [16_384] * 7, [2**33]])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 64])
def test_cut(sizes, ranks):
    """Parts follow one another, are whole blocks but for the last of a parameter, and are shared evenly."""
    parts = gs.mpi.cut(sizes, ranks)
    for tensor, size in enumerate(sizes):
        of = [part[tensor] for part in parts if part[tensor] != (0, 0)]
        assert [begin for begin, _ in of] + [size] * bool(of) == [0] * bool(of) + [end for _, end in of]
        assert bool(of) == (size > 0)
        assert all(begin % gs.mpi.PART == 0 for begin, _ in of)
    blocks = [sum(-(-(end - begin) // gs.mpi.PART) for begin, end in part) for part in parts]
    assert max(blocks) - min(blocks) <= 1

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


@pytest.mark.parametrize("sizes", [[0], [1], [5, 40_000, 0, 16_384, 90_001], [16_384] * 7, [300_000]])
@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
@pytest.mark.parametrize("size", [16_384, 40_000, 2**22])
def test_buckets_of_a_part(sizes, ranks, size):
    """Buckets have the elements of the part in order, and about as many each, but for the last."""
    for part in gs.mpi.cut(sizes, ranks):
        buckets = gs.mpi.buckets_of(part, size)
        spans = [(tensor, *span) for bucket in buckets for tensor, span in bucket.items()]
        for tensor, (begin, end) in enumerate(part):
            of = [(low, high) for number, low, high in spans if number == tensor]
            assert [low for low, _ in of] + [end] * bool(of) == [begin] * bool(of) + [high for _, high in of]
            assert bool(of) == (begin < end)
            assert all(low % gs.mpi.PART == 0 for low, _ in of)
        assert [number for number, *_ in spans] == sorted(number for number, *_ in spans)
        counts = [sum(high - low for low, high in bucket.values()) for bucket in buckets]
        assert all(size <= count < size + gs.mpi.PART for count in counts[:-1])
        assert counts[-1] < size + gs.mpi.PART

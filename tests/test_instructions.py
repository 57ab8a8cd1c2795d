"""The comparison of instruction counts and its errors. Counting itself needs valgrind."""

import pytest

from benchmarks import instructions

KEPT = {"sgd float32 avx2 element": 2.0, "sgd float32 avx2 tensor": 100.0}
ELEMENT, TENSOR = KEPT


@pytest.mark.parametrize(
    ("counts", "risen", "said"),
    [
        (KEPT, False, "Of 2 counts 0 rose by more than 2%, and 0 fell."),
        (KEPT | {TENSOR: 101.0}, False, "0 rose by more than 2%, and 0 fell."),
        (KEPT | {ELEMENT: 2.05, TENSOR: 50.0}, True, "1 rose by more than 2%, and 1 fell.\nRun with --update"),
        (KEPT | {ELEMENT: 1.5}, False, "-25.0%"),
        (KEPT | {"new": 1.0}, False, "is new"),
        ({ELEMENT: 2.0}, False, "is no longer counted"),
    ],
)
def test_only_a_rise_fails(capsys, counts, risen, said):
    assert instructions.compare(KEPT, counts) is risen
    assert said in capsys.readouterr().out


def test_a_missing_tool_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["instructions"])
    with pytest.raises(SystemExit, match="2"):
        instructions.main()
    assert capsys.readouterr().err == "counting instructions needs cmake, which is not installed\n"

"""The part of the benchmark that compares with torch's optimizers: its arms compute the same."""

import json

import numpy as np
import pytest

from gradstep import reference

from ..test_bench import SMALL, main

pytest.importorskip("torch")

from benchmarks.parts import torch as part


def test_the_step_of_gradstep_torch_has_the_bits_of_the_other_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(part, "optimizers", reference)
    options = [*SMALL, "--parts", "torch", "--rules", "Adam", "--threads", "1", "--output", str(tmp_path)]
    assert main(options) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["rule"] for row in rows} == {"Adam", "AdamW"}
    update = reference.Adam.update
    monkeypatch.setattr(reference.Adam, "update", lambda *args: np.nextafter(update(*args), np.float32(9)))
    assert main(options) == 1
    assert "adam: gradstep computed something else" in capsys.readouterr().err

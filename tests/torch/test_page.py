"""The code of docs/torch.md, and the example, run as written."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ..test_cli import TORCH_EXAMPLE

pytest.importorskip("torch")

PAGE = Path(__file__).parents[2] / "docs/torch.md"
BLOCKS = re.findall(r"(?:<!-- needs: (.*?) -->\n)?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(folder, *args):
    """Runs Python in a folder. Returns its output."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_blocks_run_in_order(tmp_path):
    out = run(tmp_path, "-c", "\n".join(code for needs, code in BLOCKS if not needs))
    assert "weight: its gradient has layout torch.sparse_coo; only strided tensors are supported\n" in out


@pytest.mark.parametrize(("needs", "code"), [block for block in BLOCKS if block[0]])
def test_a_recipe_runs(needs, code, tmp_path):
    for package in needs.split():
        if not find_spec(package):
            pytest.skip(f"{package} is not installed")
    run(tmp_path, "-c", code)


def test_the_example_has_losses_like_torchs(tmp_path):
    out = run(tmp_path, TORCH_EXAMPLE, "--steps", "20")
    rows = re.findall(r"^ +\d+ +([\d.]+) +([\d.]+)$", out, re.M)
    theirs, ours = np.array(rows, float).reshape(2, 10, 2).T
    assert np.allclose(ours, theirs, rtol=0.05)
    assert np.all(ours[-1] < 0.9 * ours[0])

"""The code of docs/torch.md runs as written."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/torch.md"
BLOCKS = re.findall(r"(?:<!-- needs: (.*?) -->\n)?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(code, folder):
    """Runs code in a process of its own, whose temporary files are in a folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_blocks_run_in_order(tmp_path):
    pytest.importorskip("torch")
    out = run("\n".join(code for needs, code in BLOCKS if not needs), tmp_path)
    assert "weight: its gradient has layout torch.sparse_coo; only strided tensors are supported\n" in out


@pytest.mark.parametrize(("needs", "code"), [block for block in BLOCKS if block[0]])
def test_a_recipe_runs(needs, code, tmp_path):
    for package in ["torch", *needs.split()]:
        if not find_spec(package):
            pytest.skip(f"{package} is not installed")
    run(code, tmp_path)

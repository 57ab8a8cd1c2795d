"""The inputs in tests/fuzz/seeds, which fuzzing by coverage has found, without its tools."""

from pathlib import Path

import pytest

pytest.importorskip("safetensors")
from tests.fuzz.checkpoints import TARGETS

SEEDS = Path(__file__).parent / "fuzz" / "seeds"


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target):
    seeds = sorted((SEEDS / target).iterdir())
    assert seeds
    for seed in seeds:
        TARGETS[target](seed.read_bytes())

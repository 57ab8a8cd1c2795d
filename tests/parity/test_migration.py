"""The tables of docs/migration.md are those of the parity cases, and each row makes the optimizer that it describes."""

import re
from pathlib import Path

import numpy as np
import pytest

import gradstep
from gradstep._optimizer import REQUIRED

from . import migration
from .cases import PEERS, SETTINGS

PAGE = Path(__file__).parents[2] / "docs/migration.md"
if not PAGE.is_file():
    pytest.skip("there are no docs beside the tests", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("framework", PEERS)
def test_page_has_the_table(framework):
    assert migration.table(framework) in TEXT, "run python -m tests.parity.migration"


ROWS = re.findall(r"^\| `[^|]+` \| `([^|`]+)` \| ([^|]*) \| [^|]*\|$", TEXT, re.M)


def test_page_has_a_row_for_each_peer():
    assert len(ROWS) == sum(map(len, migration.ROWS.values()))


@pytest.mark.parametrize(("here", "defaults"), ROWS)
def test_row_makes_an_optimizer_with_these_defaults(here, defaults):
    params = np.ones(3)
    opt = eval(f"gradstep.{here}".replace("=...", "=0.5"), {"gradstep": gradstep, "params": params})
    opt.step(params.copy())
    named = [text if "=" in text else f"{text}=0.5" for text in re.findall("`([^`]+)`", defaults)]
    for name, value in eval(f"dict({', '.join(named)})").items():
        assert opt.groups[0][name] == value, name


@pytest.mark.parametrize("framework", PEERS)
def test_rows_without_a_default_are_those_of_the_presets(framework):
    """All but the options that a preset requires are in the first setting, which parity tests compare."""
    for variant in migration.ROWS[framework]:
        cls = getattr(gradstep, PEERS[framework][variant].cls)
        required = {name for name, value in cls.presets.get(framework, {}).items() if value is REQUIRED}
        assert set(SETTINGS[framework][variant][0]) >= required

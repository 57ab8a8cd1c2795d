"""What README and guide show has types: mypy, strictly, and pyright find nothing in it."""

import re
import subprocess
import sys

import pytest

from tests.test_docs import PAGES, ROOT

# A page assigns optimizers of several classes to one name.
OPTIONS = {"mypy": ["--strict", "--allow-redefinition", "--config-file="], "pyright": ["--pythonpath", sys.executable]}


def code(page):
    """The Python blocks of a page as one module, each in the lines that it has on the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.split(r"(?<=```python\n)(.*?)(?=```)", text, flags=re.DOTALL)
    return "".join(block if number % 2 else "\n" * block.count("\n") for number, block in enumerate(blocks))


@pytest.mark.parametrize("checker", OPTIONS)
def test_python_blocks_have_types(checker, tmp_path):
    pytest.importorskip(checker)
    modules = [re.sub(r"\W", "_", page) + ".py" for page in PAGES]
    for page, module in zip(PAGES, modules, strict=True):
        (tmp_path / module).write_text(code(page), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", checker, *OPTIONS[checker], *modules],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("page", PAGES)
def test_blocks_keep_their_lines(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert any(code(page).splitlines())
    for line, original in zip(code(page).splitlines(), lines, strict=False):
        assert line in ("", original)

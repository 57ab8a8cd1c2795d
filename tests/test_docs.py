"""The code of README and docs runs as written, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])
NEEDS_TORCH = "docs/torch.md"  # tests/torch/test_page.py runs it
PAGES = [page for page in LINKED if page != NEEDS_TORCH and "```python" in (ROOT / page).read_text()]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_readme_has_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"```sh\n[^\n]+\n```", text)) == text.count("```sh") == 2


@pytest.mark.parametrize("page", LINKED)
def test_anchors_are_headings(page):
    """GitHub makes an anchor of a heading: lower case, without punctuation, hyphens for spaces."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", (ROOT / page).read_text()):
        text = ((ROOT / page).parent / target if target else ROOT / page).read_text()
        headings = re.findall(r"^#+ (.+)$", text, re.M)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor

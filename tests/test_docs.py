"""The code of README and docs runs as written, their links lead somewhere, and translations keep up."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import gradstep
from gradstep._optimizer import REQUIRED
from gradstep.optimizers import ALL

ROOT = Path(__file__).parent.parent
LINKED = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NEEDS_MPI = "docs/mpi.md"
NEEDS_TORCH = "docs/torch.md"  # tests/torch/test_page.py runs it
PAGES = [page for page in LINKED if page != NEEDS_TORCH and "```python" in (ROOT / page).read_text(encoding="utf-8")]
READMES = [page for page in LINKED if page.startswith("README")]
TOURS = ["docs/tour.md", "docs/zh/tour.md"]
OPTIMIZERS = "docs/optimizers.md"
TRANSLATED = {
    "README.md": "README.zh.md",
    OPTIMIZERS: "docs/zh/optimizers.md",
    "docs/speed.md": "docs/zh/speed.md",
    "docs/tour.md": "docs/zh/tour.md",
}
EXCERPTS = {"docs/guide.md": "docs/zh/guide.md"}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    return re.findall(r"```python\n(.*?)```", read(page), re.DOTALL)


def run(page):
    """The names that the page's blocks define."""
    names = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    if page == NEEDS_MPI:
        pytest.importorskip("mpi4py")
    monkeypatch.chdir(tmp_path)
    assert run(page)


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", read(page)):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", READMES)
def test_readme_has_two_commands(page):
    text = read(page)
    assert len(re.findall(r"```sh\n[^\n]+\n```", text)) == text.count("```sh") == 2


@pytest.mark.parametrize("page", LINKED)
def test_anchors_are_headings(page):
    """GitHub makes an anchor of a heading: lower case, without punctuation, hyphens for spaces."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", read(page)):
        text = ((ROOT / page).parent / target if target else ROOT / page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.M)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor


def test_code_of_the_core_is_quoted_as_it_is():
    page = read("docs/how-it-works.md")
    sources = [re.sub(r"^ +", "", path.read_text(encoding="utf-8"), flags=re.M) for path in ROOT.glob("csrc/**/*.h")]
    quoted = re.findall(r"```cpp\n(.*?)```", page, re.DOTALL)
    assert quoted
    for block in quoted:
        assert any(re.sub(r"^ +", "", block, flags=re.M) in source for source in sources)
    named = re.findall(r"`((?:csrc|cmake|python)/[\w./]+)`", page)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_reference_has_all_public_names():
    pages = "".join(read(page) for page in LINKED if page.startswith("docs/api/"))
    documented = re.findall(r"^::: gradstep\.(\w+)", pages, re.M)
    assert set(gradstep.__all__) - {"__version__", "reference"} <= set(documented)


def test_version_is_the_same_everywhere():
    """As far as pages name it."""
    [version] = re.findall(r'^version = "(.*)"$', read("pyproject.toml"), re.M)
    assert f"\nversion: {version}\n" in read("CITATION.cff")
    assert re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.M)[0] == version
    assert set(re.findall(r"\b0\.\d\.0\b", read("README.md"))) == {version}


# ---- translations ---------------------------------------------------------------------------------------------------


def statements(page):
    """The code of each block, without comments and docstrings."""
    trees = [ast.parse(block) for block in blocks(page)]
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if ast.get_docstring(node) is not None:
            del node.body[0]
    return [ast.dump(tree) for tree in trees]


def numbers(text):
    """How often each number occurs: `17 million` is `1700 万`. Those in names, such as float32, do not count."""
    text = re.sub(r"(?<=\d)\s(?=\d{3}\b)", "", text)
    units = {"": 1, "million": 10**6, "万": 10**4, "亿": 10**8}
    found = re.findall(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)*)(?:\s(million|万|亿))?", text)
    return Counter(f"{int(x) * units[unit]}" if unit else x for x, unit in found)


@pytest.mark.parametrize("page", TRANSLATED)
def test_translation_has_the_code_and_the_numbers(page):
    assert statements(TRANSLATED[page]) == statements(page)
    of_page, of_translation = numbers(read(page)), numbers(read(TRANSLATED[page]))
    assert not of_page - of_translation, f"{TRANSLATED[page]} lacks numbers of {page}"
    assert not of_translation - of_page, f"{page} lacks numbers of {TRANSLATED[page]}"


def targets(page):
    """What the page links to; instead of a translation its original, which the page itself counts as linked."""
    originals = {translation: original for original, translation in {**TRANSLATED, **EXCERPTS}.items()}
    links = re.findall(r"\]\(([^)#]+)", read(page))
    files = [link if ":" in link else str(((ROOT / page).parent / link).resolve().relative_to(ROOT)) for link in links]
    return {originals.get(file, file) for file in [*files, page]}


@pytest.mark.parametrize("page", TRANSLATED)
def test_translation_has_the_links(page):
    assert targets(page) == targets(TRANSLATED[page])


@pytest.mark.parametrize("page", EXCERPTS)
def test_excerpt_has_code_of_the_page(page):
    assert set(statements(EXCERPTS[page])) <= set(statements(page))


@pytest.mark.parametrize("page", READMES)
def test_readme_has_figures_of_the_page_on_speed(page):
    """Its columns are those for two threads, and those for small arrays."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", read(page), re.M)
    of_page = re.findall(r"^\| `(\w+)` \| (.*) \|$", read("docs/speed.md"), re.M)
    chosen = [(name, [cells.split(" | ")[column] for column in (1, 3, 4, 5)]) for name, cells in of_page]
    assert [(name, cells.replace("%", " %").replace("  ", " ").split(" | ")) for name, cells in rows] == chosen


@pytest.mark.parametrize("page", TOURS)
def test_tour_lists_the_eight(page):
    assert re.findall(r"^\| `(\w+)` \| [^|]*p ←", read(page), re.M) == [cls.__name__ for cls in ALL]


# ---- the page of the optimizers -------------------------------------------------------------------------------------

COMMON = set.intersection(*(set(cls.known) for cls in ALL))


def options_named(page, cls):
    """The options that the class's section names."""
    [section] = re.findall(rf"^### {cls.__name__}$(.*?)(?=^##)", read(page), re.M | re.S)
    return set(re.findall(r"`(\w+)", section)) & set(cls.known)


@pytest.mark.parametrize("cls", ALL)
def test_page_names_the_options(cls):
    named = options_named(OPTIMIZERS, cls)
    assert named >= set(cls.known) - COMMON | {"lr"}
    assert options_named(TRANSLATED[OPTIMIZERS], cls) == named


@pytest.mark.parametrize("cls", ALL)
def test_page_has_the_presets(cls):
    rows = re.findall(rf"^\| `{cls.__name__}` \|(.*`lr`.*)\|$", read(OPTIMIZERS), re.M)
    [cells] = [row.split(" | ") for row in rows]
    [names] = re.findall(r'^\| \| ("torch".*) \|$', read(OPTIMIZERS), re.M)
    for framework, cell in zip(names.replace('"', "").split(" | "), cells, strict=True):
        given = [x if "=" in x else f"{x}=REQUIRED" for x in re.findall("`([^`]*)`", cell)]
        assert eval(f"dict({', '.join(given)})", {"REQUIRED": REQUIRED}) == cls.presets[framework]


def test_steps_on_the_ravine_are_those_of_the_best_rates():
    steps = run(OPTIMIZERS)["steps"]
    rates = [digit * 10.0**power for power in (-3, -2, -1, 0) for digit in (1, 2, 5)]
    by_name = {cls.__name__: cls for cls in ALL}
    row = r"^\| `(\w+)(?:\((.*)\))?` \| ([\d.]+) \| (\d+) \| ([\d.]+) \| (\d+) \|$"
    rows = re.findall(row, read(OPTIMIZERS), re.M)
    assert {name for name, *_ in rows} == set(by_name)
    for name, given, *cells in rows:
        options = eval(f"dict({given})")
        for ravine, rate, count in zip(("straight", "turned"), cells[::2], cells[1::2], strict=True):
            best = min((steps(by_name[name], ravine, lr=lr, **options), lr) for lr in rates)
            assert best == (int(count), float(rate)), (name, given, ravine)

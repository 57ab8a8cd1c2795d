"""The hook of mkdocs.yml: the pages of the site have the paths that they have in the repository.

A link between two files is then the same on both. The pages of `docs` lie at the top of the site. Files elsewhere are
pages too: the README, CONTRIBUTING.md and others, the examples with their code, and the reports of measured machines.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
TEXTS = ["README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
CODE = ["CITATION.cff", "LICENSE", *(f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py")))]
HOMES = {"README.md": "index.html", "README.zh.md": "zh/index.html"}


class Code(File):
    """A page with the contents of a file that is not Markdown."""

    def is_documentation_page(self) -> bool:
        return True


def as_page(uri: str, config: MkDocsConfig) -> File:
    """The page or other file of the site for a file of the repository."""
    if uri in CODE:
        file: File = Code(uri, str(ROOT), config.site_dir, config.use_directory_urls)
        path = Path(uri)
        file.dest_uri = f"{path.with_suffix('')}/index.html".lower()
        language = "python" if path.suffix == ".py" else "text"
        file.content_string = f"# {path.name}\n\n```{language}\n{(ROOT / uri).read_text(encoding='utf-8')}```\n"
        return file
    file = File(uri, str(ROOT), config.site_dir, config.use_directory_urls)
    file.dest_uri = HOMES.get(uri, file.dest_uri.removeprefix("docs/").lower())
    return file


def on_config(config: MkDocsConfig) -> None:
    """The report of each machine is in the menu, by the name of its folder."""
    [speed] = [section["Speed"] for section in config.nav if "Speed" in section]
    for report in sorted(RESULTS.glob("*/README.md")):
        speed.append({report.parent.name: report.relative_to(ROOT).as_posix()})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    reports = [path.relative_to(ROOT).as_posix() for path in sorted(RESULTS.rglob("*.*"))]
    theirs = [file for file in files if file.src_dir != config.docs_dir]
    ours = [f"docs/{file.src_uri}" for file in files if file.src_dir == config.docs_dir]
    return Files([*theirs, *(as_page(uri, config) for uri in [*ours, *TEXTS, *CODE, *reports])])

"""What CONTRIBUTING.md and the tools of contributors refer to exists, and is the same as in CI."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / ".ci" / "run").exists():
    pytest.skip("there is no clone of the repository around the tests", allow_module_level=True)

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def git(*arguments):
    run = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, encoding="utf-8")
    return run.stdout.strip()


def test_files_that_are_named_exist():
    named = set(re.findall(r"`([\w.]+/[\w./-]+)`", TEXT)) | set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert named
    assert set(missing) <= {"csrc/rules/x.h", "csrc/codecs/x.h", "tmp/report"}


def test_commits_that_are_cited_exist():
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("the history is not here")
    cited = re.findall(r"`([0-9a-f]{7})`,?\s+\(?\*([^*]+)\*", TEXT)
    assert len(cited) >= 4
    for commit, subject in cited:
        assert git("log", "-1", "--format=%s", commit) == " ".join(subject.split())
    assert set(re.findall(r"`([0-9a-f]{7})`", TEXT)) == {commit for commit, _ in cited}


def test_sections_of_ci_that_are_named_exist():
    listed = subprocess.run([ROOT / ".ci" / "run", "--list"], capture_output=True, encoding="utf-8", check=True).stdout
    names = re.findall(r"^(\w+): ", listed, re.M)
    assert len(names) == len(listed.splitlines())
    assert set(re.findall(r"(?:\.ci/run|nox -s) (\w+)", TEXT)) <= set(names)


def test_hooks_have_the_versions_of_the_dev_extra():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pins = dict(re.findall(r'"([\w-]+)==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    revisions = re.findall(r"repo: .*?/(?:mirrors-)?(ruff|clang-format)(?:-pre-commit)?\n\s+rev: v([\d.]+)\n", hooks)
    assert dict(revisions) == {tool: pins[tool] for tool in ("ruff", "clang-format")}

"""Includes and imports point one way, and code compiled per instruction set shares no code with other files."""

import ast
import re
import sys
from pathlib import Path

import pytest

from gradstep import reference

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="there are no sources beside the tests")

# The other folders that a folder of csrc may include.
ARROWS = {
    "base": set(),
    "rules": {"base"},
    "codecs": {"base"},
    "exec": {"base", "rules", "codecs"},
    "cpu": {"base", "rules", "codecs", "exec"},
    "cuda": {"base", "rules", "codecs", "exec"},
    "step": {"base", "rules", "codecs", "exec", "cpu", "cuda"},
    "bind": {"base", "rules", "codecs", "exec", "cpu", "cuda", "step"},
}
GENERATED = {"isa_list.inc"}
# Headers without templates and inline functions that the linker could share between instruction sets; intrinsics are
# always inlined.
C_HEADERS = {"cstddef", "cstdint", "math.h", "immintrin.h", "arm_neon.h"}
PER_ISA = ["cpu/kernels.cpp", "cpu/conversions.cpp"]

SOURCES = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*") if path.is_file())


def includes(source):
    """A file's includes: those in quotes, and those in angle brackets."""
    found = re.findall(r'^\s*#\s*include\s*([<"])(.*?)[>"]', (CSRC / source).read_text(encoding="utf-8"), re.MULTILINE)
    return [name for mark, name in found if mark == '"'], [name for mark, name in found if mark == "<"]


def test_every_source_has_a_place():
    assert {source.split("/")[0] for source in SOURCES} <= set(ARROWS)


@pytest.mark.parametrize("source", SOURCES)
def test_includes_point_one_way(source):
    layer = source.split("/")[0]
    ours, others = includes(source)
    for name in set(ours) - GENERATED:
        assert name in SOURCES, f"{source} includes {name}, which is not written as from csrc/"
        assert name.split("/")[0] in ARROWS[layer] | {layer}, f"{source} must not include {name}"
    for name in others:
        python = name == "Python.h" or name.startswith(("pybind11/", "numpy/"))
        assert layer == "bind" or not python, f"{source} includes {name}: bindings are for csrc/bind"
        assert name not in SOURCES, f'{source} includes <{name}>, to be written "{name}"'


def test_what_is_compiled_per_instruction_set_is_what_is_looked_at():
    [added] = re.findall(
        r"add_library\(kernels_\S+ OBJECT (.*?)\)", (ROOT / "cmake/isa.cmake").read_text(encoding="utf-8")
    )
    assert added.split() == [f"csrc/{source}" for source in PER_ISA]


@pytest.mark.parametrize("root", PER_ISA)
def test_what_is_compiled_per_instruction_set_includes_no_shared_code(root):
    reached, todo = set(), [root]
    while todo:
        source = todo.pop()
        ours, others = includes(source)
        assert set(others) <= C_HEADERS, f"{root} reaches {source}, which includes {others}"
        todo += set(ours) - reached
        reached |= {source, *ours}
    assert {"cpu/kernels.cpp": "rules/all.h", "cpu/conversions.cpp": "codecs/all.h"}[root] in reached


REFERENCE = Path(reference.__file__).parent


def test_the_reference_stands_alone():
    """It imports NumPy, the standard library and itself alone: what it shared with the extension, it could not judge.

    ml_dtypes, for bfloat16, is the exception.
    """
    at_once, ever = set(), set()
    for path in REFERENCE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_once |= imports(ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], []))
        ever |= imports(tree)
    assert at_once - sys.stdlib_module_names == {"numpy"}
    assert ever - sys.stdlib_module_names == {"numpy", "ml_dtypes"}


def imports(tree):
    """The packages that are imported anywhere in a syntax tree, but for modules of the reference itself."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level == 1, "from above the reference"
            assert (REFERENCE / f"{node.module}.py").is_file()
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    return {name.split(".")[0] for name in imported}

"""The built code: loops vectorized at full width, nothing fused, nothing of one instruction set where another may run.

The installed extension is stripped, so it is read as a whole. What is read by kernel and by symbol are the objects that
it was linked from: those under build/ of this interpreter's newest build, or under GRADSTEP_BUILD_DIR.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from gradstep import _core
from tests.table import REFERENCE

BUILD = _core.build_info()
OBJDUMP, NM = shutil.which("objdump"), shutil.which("nm")
COMPILED = _core.compiled_isas()

pytestmark = [
    pytest.mark.skipif(BUILD["system"] != "Linux x86_64", reason=f"reads x86-64 ELF files, not {BUILD['system']}"),
    pytest.mark.skipif(OBJDUMP is None or NM is None, reason="needs objdump and nm, of binutils"),
    pytest.mark.skipif(BUILD["type"] != "Release", reason=f"a {BUILD['type']} build need not be vectorized"),
]

FUSED = re.compile(r"vf(n?m(add|sub)|maddsub|msubadd)")
NEWER_THAN_AVX2 = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]")
KERNEL = re.compile(r"gradstep::rules::Element<gradstep::rules::(\w+), (float|double), \d+u, (true|false)>")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@cache
def functions(path):
    """The instructions of a file's functions, each as its mnemonic and operands."""
    found = defaultdict(list)
    for line in output(OBJDUMP, "--disassemble", "--demangle", "--no-show-raw-insn", path).splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = head[1]
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(.*)", line):
            found[name].append(instruction[1])
    return found


def instructions(path):
    return [instruction for body in functions(path).values() for instruction in body]


@cache
def kernels(path):
    """The instructions of an object's kernels: a list of variants by rule, type and whether they have L2."""
    found = defaultdict(list)
    for name, body in functions(path).items():
        if key := KERNEL.search(name):
            found[key[1].lower(), key[2], key[3]].append(body)
    return found


@cache
def build_dir():
    named = os.environ.get("GRADSTEP_BUILD_DIR")
    if named is not None:
        return Path(named)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-*"
    built = sorted(Path(__file__).parents[1].glob(f"build/{tag}/CMakeFiles"), key=lambda path: path.stat().st_mtime)
    if not built:
        pytest.skip(f"no objects under build/{tag}: build from this source tree, or set GRADSTEP_BUILD_DIR")
    return built[-1].parent


def kernel_object(isa):
    [path] = build_dir().glob(f"CMakeFiles/kernels_{isa}.dir/**/kernels.cpp.o")
    return path


def packed(operation, dtype, isa):
    """What an operation is called on whole registers of an instruction set's width."""
    v, register = ("v", "zmm") if isa.startswith("avx512") else ("v", "ymm") if isa.startswith("avx") else ("", "xmm")
    return re.compile(rf"{v}{operation}p{dtype[0].replace('f', 's')}\s.*%{register}\d")


def test_the_extension_is_vectorized_and_nothing_in_it_is_fused():
    code = instructions(_core.__file__)
    assert not [line for line in code if FUSED.match(line)]
    for isa in COMPILED:
        for operation in ("mul", "sub", "div", "sqrt"):
            for dtype in ("float", "double"):
                wanted = packed(operation, dtype, isa)
                assert any(map(wanted.match, code)), f"{isa} has no {wanted.pattern}"


@pytest.mark.parametrize("isa", COMPILED)
def test_every_kernel_is_vectorized_at_full_width(isa):
    found = kernels(kernel_object(isa))
    assert found.keys() == set(product(REFERENCE, ("float", "double"), ("false", "true")))
    for (rule, dtype, l2), variants in found.items():
        divides = "np.sqrt(" in inspect.getsource(REFERENCE[rule].update)
        for operation in ("mul", "sub", "div", "sqrt") if divides else ("mul", "sub"):
            wanted = packed(operation, dtype, isa)
            for body in variants:
                assert any(map(wanted.match, body)), f"{rule}, {dtype}, l2={l2} has no {wanted.pattern}"
    everything = [line for variants in found.values() for body in variants for line in body]
    assert not [line for line in everything if line.startswith("call")], "a kernel calls a function"
    assert not [line for line in instructions(kernel_object(isa)) if FUSED.match(line)]


@pytest.mark.parametrize("isa", COMPILED)
def test_an_instruction_set_defines_its_entries_alone(isa):
    """Whatever else it defined, the linker might keep it in place of the same function for older machines."""
    defined = output(NM, "--extern-only", "--defined-only", "--demangle", kernel_object(isa)).splitlines()
    entries = {
        f"gradstep::cpu::find_addition_{isa}(int, gradstep::Compute)",
        f"gradstep::cpu::find_flush_{isa}(gradstep::Compute)",
        f"gradstep::cpu::find_kernel_{isa}(gradstep::rules::Key const&)",
    }
    assert {line.split(maxsplit=2)[2] for line in defined if line.split()[1] == "T"} == entries
    assert len(defined) == len(entries)
    assert "sqrt" not in output(NM, "--undefined-only", kernel_object(isa))


def test_no_newer_instructions_where_older_machines_run():
    newer = {kernel_object(isa) for isa in COMPILED if isa != "baseline"}
    rest = {*build_dir().glob("CMakeFiles/*.dir/csrc/**/*.o")} - newer
    assert kernel_object("baseline") in rest
    for path in rest:
        # Whatever AVX brought has a mnemonic that begins with v; nothing before it that a compiler uses does.
        assert not [line for line in instructions(path) if line.startswith("v")], path
    if "avx2" in COMPILED:
        assert not [line for line in instructions(kernel_object("avx2")) if NEWER_THAN_AVX2.search(line)]

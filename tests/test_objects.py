"""The compiled code: loops vectorized at full width, nothing fused, instruction sets share no code.

The installed extension is stripped, so it is disassembled as a whole. Kernels and symbols are read from the objects
that it was linked from: those under build/ of this interpreter's newest build, or under GRADSTEP_BUILD_DIR.
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
OWN = "gradstep::cpu::(anonymous namespace)::"
SOURCES = ("kernels", "conversions")  # compiled into one object per instruction set
KERNEL = re.compile(
    r"KernelOf<gradstep::rules::ElementUpdate<gradstep::rules::(\w+), (float|double), \d+u, (true|false), (true|false)>"
    r".*::run_many\("
)


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@cache
def functions(path):
    """The instructions of a file's functions, as mnemonic and operands."""
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
    """The instructions of an object's kernels: lists of variants by rule, type, L2 and bounds."""
    found = defaultdict(list)
    for name, body in functions(path).items():
        if key := KERNEL.search(name):
            found[(key[1].lower(), *key.groups()[1:])].append(body)
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


def isa_object(isa, source):
    [path] = build_dir().glob(f"CMakeFiles/kernels_{isa}.dir/**/{source}.cpp.o")
    return path


def isa_objects(isas):
    return {isa_object(isa, source) for isa in isas for source in SOURCES}


def registers(isa):
    """The names of an instruction set's full-width registers, and the prefix of its mnemonics."""
    return ("v", "zmm") if isa.startswith("avx512") else ("v", "ymm") if isa.startswith("avx") else ("", "xmm")


def packed(operation, dtype, isa):
    """The mnemonic of an operation on full-width registers of an instruction set."""
    v, register = registers(isa)
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
    found = kernels(isa_object(isa, "kernels"))
    forms = [("false", "false"), ("true", "false"), ("true", "true")]  # of L2 and bounds
    wanted = product(REFERENCE, ("float", "double"), forms)
    assert found.keys() == {(rule, dtype, *form) for rule, dtype, form in wanted}
    for (rule, dtype, l2, bounds), variants in found.items():
        divides = "np.sqrt(" in inspect.getsource(REFERENCE[rule].update)
        operations = ["mul", "sub"] + ["div", "sqrt"] * divides + [r"(cmp\w*)?(and\w*)?"] * (bounds == "true")
        for operation in operations:
            wanted = packed(operation, dtype, isa)
            for body in variants:
                assert any(map(wanted.match, body)), f"{rule}, {dtype}, {l2=}, {bounds=} has no {wanted.pattern}"


@pytest.mark.parametrize("isa", COMPILED)
def test_every_conversion_is_vectorized_at_full_width(isa):
    """Decoding, encoding and random bits are vectorized."""
    v, register = registers(isa)
    found = {name: body for name, body in functions(isa_object(isa, "conversions")).items() if "(anonymous" in name}
    moves = re.compile(rf"{v}(p(s[lr]l|add|sub)[dw]|punpck[lh](bw|wd)|perm[wi]2?w?|pshufb|cvtph2ps)\s.*%{register}\d")
    products = re.compile(rf"{v}pmul(udq|lq)\s.*%{register}\d")
    for codec in ("Float16", "BFloat16", "Q8<signed char>", "Q8<unsigned char>"):
        for direction in ("decode", "encode"):
            names = [name for name in found if codec_of(name) == codec and direction in name]
            own = [name for name in names if not any(line.startswith("call") for line in found[name])]
            assert own, f"{direction} {codec}"
            for name in own:  # the other functions call these
                assert any(map(moves.match, found[name])), f"{name} has no {moves.pattern}"
    draws = [name for name in found if "::draw" in name]
    assert draws
    for name in draws:
        assert any(map(products.match, found[name])), f"{name} has no {products.pattern}"


def codec_of(name):
    """The first codec in a function's template arguments, or None."""
    found = re.search(r"codecs::(\w+(<[\w ]+>)?)", name)
    return found and found[1]


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("source", SOURCES)
def test_an_instruction_set_calls_its_own_code_alone_and_fuses_nothing(isa, source):
    code = instructions(isa_object(isa, source))
    assert not [line for line in code if FUSED.match(line)]
    assert not [line for line in code if line.startswith("call") and OWN not in line]


# The symbols that each object exports, per instruction set.
ENTRIES = {
    "kernels": ["find_kernels_{}(gradstep::rules::Key const&)"],
    "conversions": ["conversions_{}()"],
}


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("source", SOURCES)
def test_an_instruction_set_defines_its_entries_alone(isa, source):
    """The linker might use any other exported function in place of the same function for older machines."""
    path = isa_object(isa, source)
    defined = output(NM, "--extern-only", "--defined-only", "--demangle", path).splitlines()
    entries = {f"gradstep::cpu::{entry.format(isa)}" for entry in ENTRIES[source]}
    assert {line.split(maxsplit=2)[2] for line in defined if line.split()[1] == "T"} == entries
    assert len(defined) == len(entries)
    assert "sqrt" not in output(NM, "--undefined-only", path)


def test_no_newer_instructions_where_older_machines_run():
    rest = {*build_dir().glob("CMakeFiles/*.dir/**/*.o")} - isa_objects(isa for isa in COMPILED if isa != "baseline")
    assert isa_objects(["baseline"]) <= rest
    for path in rest:
        # All AVX mnemonics begin with v; no older instruction that compilers use does.
        assert not [line for line in instructions(path) if line.startswith("v")], path
    if "avx2" in COMPILED:
        for path in isa_objects(["avx2"]):
            assert not [line for line in instructions(path) if NEWER_THAN_AVX2.search(line)], path

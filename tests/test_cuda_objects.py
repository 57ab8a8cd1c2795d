"""The compiled CUDA kernels: complete on every architecture, nothing fused, nothing spilled, 128-bit accesses.

The kernels are read from the installed module with CUDA's tools, which need no GPU.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from gradstep import _core

_cuda = pytest.importorskip("gradstep._cuda", reason="built without the CUDA backend")
ASKED = _cuda.build_info()["architectures"].split()
# The tools come from a CUDA toolkit or from PyPI.
PATH = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sysconfig.get_path("purelib"), "nvidia/cu13/bin"))])
MISSING = [tool for tool in ("cuobjdump", "nvdisasm", "nm", "readelf") if shutil.which(tool, path=PATH) is None]

if ASKED == ["none"]:
    pytest.skip("the CUDA backend is emulated, and has no code for a GPU", allow_module_level=True)
if MISSING:
    pytest.skip(f"needs {', '.join(MISSING)}, of CUDA or binutils", allow_module_level=True)


def lines(tool, *options):
    """A tool's output for the module, line by line, because machine code takes many megabytes."""
    command = [shutil.which(tool, path=PATH), *options, _cuda.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PATH": PATH}) as process:
        yield from process.stdout
    assert process.returncode == 0, command


MACHINE = list(dict.fromkeys(re.search(r"sm_(\w+)\.cubin", line)[1] for line in lines("cuobjdump", "--list-elf")))


class Kernel(NamedTuple):
    kind: str
    rule: str
    dtype: str
    variant: int
    l2: bool
    tensors: int  # per launch

    @property
    def states(self):
        return (self.variant & 0b111).bit_count()

    @property
    def vectors(self):
        """The number of 128-bit accesses for a lane's 8 elements of a stream."""
        return 2 if self.dtype == "f32" else 4


# The mangled name of kernel<Element<Rule, type, variant, l2>, tensors>.
MANGLED = re.compile(
    r"\d(native|stored)INS_5rules13ElementUpdateINS\d_\d+(\w+?)E([fd])Lj(\d+)ELb([01])ELb1EEELi(\d+)EEE"
)


def kernel(name):
    found = MANGLED.search(name)
    if found is None:
        return name
    kind, rule, dtype, variant, l2, tensors = found.groups()
    return Kernel(kind, rule.lower(), {"f": "f32", "d": "f64"}[dtype], int(variant), l2 == "1", int(tensors))


@pytest.fixture(scope="module")
def ptx():
    """The counts of PTX instructions by kernel."""
    found = {}
    for line in lines("cuobjdump", "--dump-ptx"):
        if entry := re.search(r"\.entry (\w+)", line):
            counts = found[kernel(entry[1])] = Counter()
        elif found:
            counts.update(re.findall(r"(?<![\w.%$])[a-z]\w*(?:\.\w+)+", line))
    if not found:
        pytest.skip(f"there is no PTX: the build was for {' '.join(ASKED)}")
    return found


@pytest.fixture(scope="module", params=MACHINE)
def architecture(request):
    return f"sm_{request.param}"


@pytest.fixture(scope="module")
def sass(architecture):
    """The instructions of each kernel on one architecture, as mnemonic and operands."""
    found = defaultdict(list)
    for line in lines("cuobjdump", "--dump-sass", "--gpu-architecture", architecture):
        if head := re.match(r"\s+Function : (\w+)", line):
            body = found[kernel(head[1])]
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w.*?)\s*;", line):
            body.append(instruction[1])
    return found


def mnemonics(body):
    return Counter(instruction.split()[0] for instruction in body)


def assert_complete(kernels):
    """Each variant of each rule has kernels with and without L2; stored kernels compute only in float."""
    kernels = {name for name in kernels if isinstance(name, Kernel)}
    updates = {(found.rule, found.variant) for found in kernels}
    assert {rule for rule, _ in updates} == {rule["name"] for rule in _core.rules()}
    wanted = set()
    for kind, dtype in (("native", "f32"), ("native", "f64"), ("stored", "f32")):
        sizes = {found.tensors for found in kernels if found.kind == kind}
        for (rule, variant), l2, size in product(updates, (False, True), sizes):
            wanted.add(Kernel(kind, rule, dtype, variant, l2, size))
    assert kernels == wanted


def test_the_architectures_are_those_asked_for():
    asked = [re.fullmatch(r"(\d+[a-z]?)(-real|-virtual)?", word) for word in ASKED]
    if None in asked:
        pytest.skip(f"asked for by name: {' '.join(ASKED)}")
    ptx = {re.search(r"sm_(\w+)\.ptx", line)[1] for line in lines("cuobjdump", "--list-ptx") if ".ptx" in line}
    assert set(MACHINE) == {word[1] for word in asked if word[2] != "-virtual"}
    assert ptx == {word[1] for word in asked if word[2] != "-real"}


def test_ptx_has_every_kernel(ptx):
    assert_complete(ptx)


def test_machine_code_has_every_kernel(sass):
    assert_complete(sass)


# Instructions that round to nearest once, and instructions that do not compute. The assembler may fuse a product with a
# sum unless both PTX instructions specify a rounding mode.
ROUNDED = re.compile(r"(add|sub|mul|div|rcp|sqrt)\.rn\.f(32|64)")
EXACT = re.compile(r"(abs|neg|mov|selp|setp\.\w+|(ld|st)(\.\w+)*)\.f(32|64)|cvt\.(rn\.|rzi\.)?\w+\.\w+")


def test_ptx_rounds_every_operation_once_and_to_nearest(ptx):
    for name, counts in ptx.items():
        floating = [word for word in counts if re.search(r"\.(b?f|tf)\d+", word)]
        assert not [word for word in floating if not ROUNDED.fullmatch(word) and not EXACT.fullmatch(word)], name
        assert not isinstance(name, Kernel) or any(map(ROUNDED.fullmatch, floating)), name


NEGATION = re.compile(r"[FD]ADD R\d+, -RZ, -")
FUSED = re.compile(r"[FDH]FMA(?!2(\.MMA)? R\d+, -RZ, RZ, )")  # except HFMA2 that loads a constant into a register


def test_machine_code_fuses_nothing(sass, ptx):
    """Divisions and roots consist of fused operations, but every sum is a separate instruction."""
    for name, body in sass.items():
        counts = ptx[name]
        found = mnemonics(instruction for instruction in body if not NEGATION.match(instruction))
        if not any(word.startswith(("div.rn.f", "rcp.rn.f", "sqrt.rn.f")) for word in counts):
            assert not list(filter(FUSED.match, body)), name
        for dtype, addition in (("f32", "FADD"), ("f64", "DADD")):
            sums = counts[f"add.rn.{dtype}"] + counts[f"sub.rn.{dtype}"]
            # The common code of double roots has one extra sum, for NaN.
            shared = dtype == "f64" and "sqrt.rn.f64" in counts
            if isinstance(name, Kernel):
                assert found[addition] == sums + shared, name
            else:  # code may be duplicated, and its sums with it
                assert found[addition] >= sums + shared, name


def test_nothing_is_kept_in_local_memory(architecture, sass):
    for name, body in sass.items():
        assert not [instruction for instruction in body if instruction.startswith(("LDL", "STL"))], name
    usage = lines("cuobjdump", "--dump-resource-usage", "--gpu-architecture", architecture)
    usage = [re.search(r"STACK:(\d+) .*LOCAL:(\d+)", line) for line in usage if "REG:" in line]
    assert len(usage) == len(sass)
    assert {found.groups() for found in usage} == {("0", "0")}


def test_streams_are_moved_128_bits_at_a_time(sass):
    for name, body in sass.items():
        counts = mnemonics(body)
        loads, stores = (
            sum(counts[word] for word in counts if re.match(rf"{move}G\.E\.128", word)) for move in ("LD", "ST")
        )
        if "add_chunks" in name:
            assert loads >= 2 + 4, name  # of float, and of double
        if isinstance(name, Kernel):
            assert loads >= name.vectors * (2 + name.states), name  # parameter, gradient and states
            assert stores >= name.vectors * (1 + name.states), name


def test_the_module_is_small_shows_its_entry_alone_and_needs_no_library_of_cuda():
    assert Path(_cuda.__file__).stat().st_size < 6_000_000
    # Weak symbols are the standard library's templates.
    shown = [line.split()[1:] for line in lines("nm", "--dynamic", "--defined-only")]
    assert [name for kind, name in shown if kind not in "WVu"] == ["PyInit__cuda", "PyInit__cuda_main"]
    assert not [line for line in lines("readelf", "--dynamic") if re.search(r"NEEDED.*libcu|R(UN)?PATH", line)]


def test_no_kernel_has_a_trap(sass):
    """nvcc inserts a trap where a host array is indexed at run time, and does not always warn."""
    for name, body in sass.items():
        assert not [instruction for instruction in body if instruction.startswith("BPT")], name

"""Counts and compares a step's instructions: `python -m benchmarks.instructions [--update] [--build FOLDER]`.

Times can be compared only on a quiet machine; counts do not depend on what else runs. The C++ core is counted without
Python: every rule in its plain form in float32 and float64, and Adam with every other type (`parameters+states`), with
every instruction set that valgrind supports (not AVX-512), per element of a large tensor and per tensor of many tiny
ones. instructions.json stores the counts of each compiler; if one has risen by more than 2 %, the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_suffix(".json")
TOLERANCE = 0.02
# The units of counts and their decimal places: those of a tensor would depend on its address.
DIGITS = {"element": 3, "tensor": 0}

Counts = dict[str, float]  # key: "rule type isa unit"


def output(*command: str | Path) -> str:
    environment = os.environ | {"GRADSTEP_ISA": "", "GRADSTEP_NUM_THREADS": ""}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def build(folder: Path) -> Path:
    """Builds the driver as a release, regardless of CXXFLAGS."""
    options = ("CMAKE_BUILD_TYPE=Release", "CMAKE_CXX_FLAGS=", "GRADSTEP_PYTHON=OFF", "GRADSTEP_BENCHMARKS=ON")
    output("cmake", "-S", ROOT, "-B", folder, *(f"-D{option}" for option in options))
    output("cmake", "--build", folder, "--target", "instructions")
    return folder / "benchmarks" / "instructions"


def count(driver: Path) -> tuple[str, Counts]:
    """The compiler, and the counts. The driver prints what each call does, callgrind its instructions."""
    dumps = driver.with_suffix(".callgrind")
    tool = ("valgrind", "-q", "--tool=callgrind", "--combine-dumps=yes", f"--callgrind-out-file={dumps}")
    compiler, *calls = output(*tool, "--toggle-collect=counted", "--dump-after=counted", driver).splitlines()
    did = [(what, int(parts)) for what, _, parts in (call.rpartition(" ") for call in calls)]
    took = [int(total) for total in re.findall(r"^totals: (\d+)$", dumps.read_text(), re.MULTILINE)]
    counted = list(zip(did, took[:-1], strict=True))  # the last dump, at exit, is empty
    counts = {}
    for ((what, few), less), ((_, many), more) in zip(counted[::2], counted[1::2], strict=True):
        counts[what] = round((more - less) / (many - few), DIGITS[what.split()[-1]])
    return compiler, counts


def show(counts: Counts) -> None:
    print(f"{'rule':14}{'type':18}{'isa':10}{'an element':>11}{'a tensor':>11}")
    for row in dict.fromkeys(what.rpartition(" ")[0] for what in counts):
        rule, dtype, isa = (*row.split(), "", "")[:3]
        cells = (f"{counts[what]:.{n}f}" if (what := f"{row} {unit}") in counts else "" for unit, n in DIGITS.items())
        print(f"{rule:14}{dtype:18}{isa:10}", *(f"{cell:>11}" for cell in cells), sep="")


def compare(kept: Counts, counts: Counts) -> bool:
    """Prints the differences and returns whether any count has risen."""
    ratios = {what: counts[what] / kept[what] for what in counts if what in kept}
    changed = {what: ratio for what, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE}
    for what, ratio in changed.items():
        print(f"{what:35}{kept[what]:>9} -> {counts[what]:<9}{ratio - 1:+.1%}")
    for what in sorted(counts.keys() ^ kept.keys()):
        print(f"{what:35}{'is no longer counted' if what in kept else 'is new'}")
    risen = sum(ratio > 1 for ratio in changed.values())
    fallen = len(changed) - risen
    print(f"Of {len(ratios)} counts {risen} rose by more than {TOLERANCE:.0%}, and {fallen} fell.")
    if fallen or counts.keys() != kept.keys():
        print("Run with --update to keep the new ones.")
    return risen > 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="keep the counts instead of comparing them")
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="where to build (default: a temporary folder)")
    given = parser.parse_args()
    for tool in ("cmake", "valgrind"):
        if shutil.which(tool) is None:
            parser.exit(2, f"counting instructions needs {tool}, which is not installed\n")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            compiler, counts = count(build(given.build or Path(temporary)))
        except subprocess.CalledProcessError as error:
            parser.exit(2, f"{error}\n{error.stdout}{error.stderr}")

    print(f"{compiler}: instructions of a step\n")
    show(counts)
    print()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if given.update:
        KEPT.write_text(json.dumps(kept | {compiler: counts}, indent=2) + "\n")
        print(f"Kept in {KEPT.name}.")
    elif compiler in kept:
        return int(compare(kept[compiler], counts))
    else:
        print(f"{KEPT.name} has no counts of this compiler to compare with; --update keeps these.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the peers on all cases and stores their trajectories: `python -m tests.parity.record [framework ...]`.

The values of their schedules are stored, too. The tests then need no peers, which take gigabytes to install. Run this
again after changes to cases.py, schedules.py or problem.py.
"""

import argparse
import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import peers, problem, schedules
from .cases import CASES, PEERS

DATA = Path(__file__).parent / "data"


def text(framework: str, checkpoints: Sequence[int], cases: Iterable[dict[str, Any]]) -> str:
    """The file of one framework: a header, then one line per case."""
    versions = {name: version(name) for name in [*peers.MODULES[framework], "numpy"]}
    header = {
        "script": "python -m tests.parity.record",
        "versions": {"python": platform.python_version()} | versions,
        "machine": platform.machine(),
        "checkpoints": checkpoints,
    }
    return json.dumps(header)[:-1] + ', "cases": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]}\n"


def record(framework: str) -> str:
    cases = (
        {"id": case.id, "ours": case.ours, "theirs": case.theirs, "trajectory": peers.RUN[framework](case)}
        for case in CASES
        if case.framework == framework
    )
    return text(framework, problem.CHECKPOINTS, cases)


def record_schedules(framework: str) -> str:
    cases = (
        {"id": case.id, "ours": repr(case.ours), "theirs": case.theirs, "values": schedules.RUN[framework](case)}
        for case in schedules.CASES
        if case.framework == framework
    )
    return text(framework, schedules.CHECKPOINTS, cases)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", nargs="*", default=list(PEERS), help=", ".join(PEERS))
    for framework in parser.parse_args().framework:
        files = {f"{framework}.json": record}
        if framework in schedules.RUN:
            files[f"schedules-{framework}.json"] = record_schedules
        for name, of in files.items():
            path = DATA / name
            path.write_text(of(framework), encoding="utf-8")
            print(path.name, path.stat().st_size, "bytes")

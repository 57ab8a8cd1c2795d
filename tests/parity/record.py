"""Runs the peers on all cases and stores their trajectories: `python -m tests.parity.record [framework ...]`.

The tests then need no peers, which take gigabytes to install. Run this again after changes to cases.py or problem.py.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

from . import peers, problem
from .cases import CASES, PEERS

DATA = Path(__file__).parent / "data"


def record(framework: str) -> str:
    """The file of one framework: a header, then one line per case."""
    versions = {name: version(name) for name in [*peers.MODULES[framework], "numpy"]}
    header = {
        "script": "python -m tests.parity.record",
        "versions": {"python": platform.python_version()} | versions,
        "machine": platform.machine(),
        "checkpoints": problem.CHECKPOINTS,
    }
    lines = [
        json.dumps({"id": case.id, "ours": case.ours, "theirs": case.theirs, "trajectory": peers.RUN[framework](case)})
        for case in CASES
        if case.framework == framework
    ]
    return json.dumps(header)[:-1] + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", nargs="*", default=list(PEERS), help=", ".join(PEERS))
    for framework in parser.parse_args().framework:
        path = DATA / f"{framework}.json"
        path.write_text(record(framework), encoding="utf-8")
        print(path.name, path.stat().st_size, "bytes")

"""Fuzzes the loading of state dicts and files by coverage: `python -m tests.fuzz.run state_dict corpus`.

Needs atheris. The arguments after the target are those of libFuzzer.
"""

import sys

import atheris

with atheris.instrument_imports(include=["gradstep"]):
    import gradstep  # noqa: F401

from tests.fuzz.checkpoints import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()

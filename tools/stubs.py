"""Writes python/gradstep/functional.pyi: the signatures of the bare kernels, from the options of the classes.

Run `python tools/stubs.py` after a change of options; a test compares the file with what this would write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradstep import functional, optimizers
from gradstep._groups import RULES
from gradstep._optimizer import Optimizer

PATH = Path(__file__).resolve().parent.parent / "python" / "gradstep" / "functional.pyi"
TYPES = {
    "Number": "SupportsFloat",
    "LearningRate": "SupportsFloat",
    "NumberOrNone": "float | None",
    "Numbers": "tuple[float, float]",
    "Lookahead": "bool",
}
"""What is passed for an option that is declared as one of these; `Option[X]` stands for X."""
HEADER = '''"""The bare kernels' signatures. Written by tools/stubs.py."""

from typing import Any, SupportsFloat, TypeAlias

from ._types import ArrayLike

State: TypeAlias = ArrayLike | tuple[ArrayLike, ArrayLike] | None
"""A state array, a pair of q8 codes and their scales, or None where the options do not keep it."""

__all__: list[str]

'''


def annotation(cls: type[Optimizer], option: str) -> str:
    """The type of what is passed for an option."""
    declared = str({**Optimizer.__annotations__, **cls.__annotations__}[option])
    return TYPES.get(declared) or declared.removeprefix("Option[").removesuffix("]")


def signature(cls: type[Optimizer]) -> str:
    """The function of a class, as a stub."""
    rule = RULES[cls.rule]
    states = "".join(f"    {state}: State = ...,\n" for state in rule["states"])
    keywords: dict[str, tuple[str, Any]] = {"step": ("int", 1)}
    keywords |= {name: ("SupportsFloat", first) for name, first in rule["scalars"]}
    keywords |= {name: (annotation(cls, name), option.default) for name, option in functional.options_of(cls).items()}
    keywords["master"] = ("ArrayLike | None", None)
    given = "".join(f"    {name}: {kind} = {default!r},\n" for name, (kind, default) in keywords.items())
    returned = "float" if rule["scalars"] else "None"
    return f"def {cls.rule}_(\n    p: ArrayLike,\n    g: Any,\n{states}    /,\n    *,\n{given}) -> {returned}: ...\n"


def stub() -> str:
    """The whole file."""
    return HEADER + "".join(map(signature, optimizers.ALL))


if __name__ == "__main__":
    PATH.write_text(stub())

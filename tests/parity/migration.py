"""The tables of docs/migration.md, from the table of parity cases: `python -m tests.parity.migration` prints them."""

from typing import Any

import gradstep
from gradstep._optimizer import REQUIRED

from .cases import PEERS, SETTINGS

HEADER = ("there", "here", "defaults", "other names")
ROWS = {framework: [name for name in peers if not name.endswith("64")] for framework, peers in PEERS.items()}
"""The variants of PEERS, without those that are forms of the same optimizer in float64."""


def written(options: dict[str, Any]) -> list[str]:
    """Options as arguments; those that have no default by their names alone."""
    return [name if value is REQUIRED else f"{name}={value!r}".replace("e-0", "e-") for name, value in options.items()]


def code(texts: list[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


def renamed(framework: str, variant: str) -> list[tuple[str, str]]:
    """Their arguments that have another name here, with that name."""
    options = PEERS[framework][variant].options.items()
    pairs = [(ours, target if isinstance(target, str) else "`, `".join(target)) for ours, target in options]
    return [(theirs, ours) for ours, theirs in pairs if theirs != ours]


def everywhere(framework: str) -> list[tuple[str, str]]:
    """The names that differ in all rows alike."""
    first, *others = (renamed(framework, variant) for variant in ROWS[framework])
    return [pair for pair in first if all(pair in other for other in others)] if others else []


def row(framework: str, variant: str) -> tuple[str, str, str, str]:
    """An optimizer of a framework, what makes it here, and its defaults and arguments by the names here."""
    peer, cls = PEERS[framework][variant], getattr(gradstep, PEERS[framework][variant].cls)
    preset = cls.presets.get(framework)
    required = {name: REQUIRED for name, value in (preset or {}).items() if value is REQUIRED}
    given = peer.ours | SETTINGS[framework][variant][0] | required  # the first setting has the peer's defaults
    made = [
        "params",
        *(f"{name}=..." if value is REQUIRED else written({name: value})[0] for name, value in given.items()),
    ]
    here = (
        f"{peer.cls}({', '.join(made)})" if preset is None else f'{peer.cls}.preset("{framework}", {", ".join(made)})'
    )
    values = cls.defaults | (preset or {}) | given
    unused = {name for name in gradstep.SGD.defaults if values.get(name) == gradstep.SGD.defaults[name]} - {"lr"}
    defaults = {name: values[name] for name in peer.options if name in values and name not in unused}
    names = [
        f"`{theirs}`: `{ours}`"
        for theirs, ours in renamed(framework, variant)
        if (theirs, ours) not in everywhere(framework)
    ]
    there = f"{peer.name}({', '.join(written(peer.theirs))})" if peer.theirs else peer.name
    return f"`{there}`", f"`{here}`", code(written(defaults)), ", ".join(names)


def table(framework: str) -> str:
    """In Markdown, with the names that differ in all rows above it."""
    common = ", ".join(f"`{theirs}` is `{ours}`" for theirs, ours in everywhere(framework))
    rows = [HEADER, ["---"] * len(HEADER), *(row(framework, variant) for variant in ROWS[framework])]
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in rows]
    return "\n".join([*([f"In all rows {common}.", ""] if common else []), *lines]) + "\n"


if __name__ == "__main__":
    for framework in PEERS:
        print(f"{framework}\n\n{table(framework)}")

"""Draws the pictures of docs/plots: those that the blocks of docs/plots.md save, and one for each optimizer.

``python tools/draw_docs.py``
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

import gradstep as gs
from gradstep import plot

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "plots.md").read_text(encoding="utf-8")

# At these rates a path shows what is typical of its optimizer. The largest stable rate of SGD is 0.02.
ZIGZAG = partial(gs.SGD, lr=0.019)
RAVINE: dict[str, Any] = {
    "sgd": partial(gs.SGD, lr=0.01),
    "momentum": partial(gs.Momentum, lr=0.01),
    "nag": partial(gs.NAG, lr=0.005),
    "adagrad": partial(gs.AdaGrad, lr=1.5),
    "rmsprop": partial(gs.RMSProp, lr=0.3, rho=0.9),
    "adadelta": partial(gs.AdaDelta, lr=2.0, eps=1e-2),
    "adam": partial(gs.Adam, lr=0.5),
    "nadam": partial(gs.Nadam, lr=0.5),
}

SAVED = re.findall(r"!\[.*\]\(plots/(\w+)\.png\)", PAGE)
PICTURES = [*SAVED, *(cls.rule for cls in gs.optimizers.ALL)]


def draw_page() -> None:
    """Runs the blocks of the page in the present directory."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/plots.md", "exec"), names)


def draw_ravine(rule: str) -> None:
    """The path of an optimizer beside that of plain SGD, in a frame of the same size for all."""
    figure = Figure(figsize=(8, 3), dpi=150)
    axes = figure.add_axes((0.075, 0.17, 0.62, 0.73))
    plot.paths("ravine", [ZIGZAG, RAVINE[rule]], 60, bounds=((-9, 4), (-1.5, 1.5)), axes=axes)
    figure.savefig(f"{rule}.png")


def store(name: str) -> None:
    """A picture of the present directory, with a palette, which makes it a third as large."""
    image = Image.open(f"{name}.png").convert("RGB")
    palette = plot.frequent_colours(image)
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(DOCS / f"plots/{name}.png", optimize=True)


if __name__ == "__main__":
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        draw_page()
        for cls in gs.optimizers.ALL:
            draw_ravine(cls.rule)
        for name in PICTURES:
            store(name)
        os.chdir(DOCS)

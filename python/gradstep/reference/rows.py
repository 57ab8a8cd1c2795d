"""Gradients of some rows: the page's **Row gradients**."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from .storage import Array, widened

ARRAYS_BY_ELEMENT = ("p", "master", "average", "copy")


def is_rows(g: Any) -> bool:
    """Whether it has rows by their indices."""
    return hasattr(g, "indices") and hasattr(g, "values")


def summed(g: Any, T: Any) -> tuple[Array, Array]:
    """The indices in ascending order, each once, and the sums of their rows in ``T``, in the order of occurrence."""
    rows = sorted({int(row) for row in g.indices})
    values = widened(g.values).astype(T, copy=False)
    sums: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        for row, value in zip(g.indices, values, strict=True):
            sums[int(row)] = sums[int(row)] + value if int(row) in sums else value
    stacked = [sums[row] for row in rows]
    return np.array(rows, np.int64), np.array(stacked, T).reshape((len(rows), *values.shape[1:]))


def part(s: SimpleNamespace, rows: Array, states: list[str]) -> SimpleNamespace:
    """A slot with these rows alone, and the places of their elements in the whole."""
    places = np.arange(s.p.size).reshape(s.p.shape)[rows].reshape(-1)
    chosen = {name: getattr(s, name)[rows] for name in (*ARRAYS_BY_ELEMENT, *states) if getattr(s, name) is not None}
    for name in states:
        if (scales := getattr(s, f"{name}_scale")) is not None:
            chosen[f"{name}_scale"] = scales.reshape(len(s.p), -1)[rows].reshape(-1)
    return SimpleNamespace(**{**vars(s), **chosen, "places": places, "size": s.p.size})


def put_back(s: SimpleNamespace, of: SimpleNamespace, rows: Array, states: list[str]) -> None:
    """Write what `part` has taken, and the step number and scalars."""
    for name, value in vars(of).items():
        if name in (*ARRAYS_BY_ELEMENT, *states) and value is not None:
            getattr(s, name)[rows] = value
        elif name.removesuffix("_scale") in states and value is not None:
            by_row = getattr(s, name).reshape(len(s.p), -1)
            by_row[rows] = value.reshape(len(rows), by_row.shape[1])
        elif not isinstance(value, np.ndarray) and name not in ("size", "places"):
            setattr(s, name, value)

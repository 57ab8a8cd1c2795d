"""Gradients of some rows of a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    from ._types import ArrayLike


class Rows:
    """The gradient of some rows of a parameter, in place of an array; the gradient of all other rows is zero.

    A step reads and writes only these rows of the parameter and its states. Rows that are named several times are
    summed. The moments and the decay of other rows do not advance ("lazy"): where a rule changes a row whose gradient
    is zero, the step differs from that with the whole gradient. `docs/guide.md` lists the rules.

    The arrays are only read, by the step. A Rows is immutable, its arrays are not copied.

    Parameters
    ----------
    indices : array or sequence of integers
        The rows, in any order: indices of the parameter's first axis, which may not be negative. For parameters on a
        GPU an array there or of NumPy; the step waits for one on the GPU.
    values : array
        A row for each index: of shape `(len(indices), *param.shape[1:])`, of any strides and any type of gradients.
    """

    __slots__ = ("indices", "values")

    indices: Any
    values: Any

    def __init__(self, indices: ArrayLike | Sequence[int], values: ArrayLike) -> None:
        if isinstance(indices, (list, tuple, range)):
            indices = np.asarray(indices, None if len(indices) else np.int64)
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "values", values)

    def __init_subclass__(cls) -> None:
        raise TypeError("Rows has no subclasses")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Rows is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Rows is immutable: {name} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.indices, self.values)

    def __repr__(self) -> str:
        return f"Rows({self.indices!r}, {self.values!r})"

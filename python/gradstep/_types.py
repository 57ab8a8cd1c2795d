"""The types of arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy.typing as npt

from ._core import Zeros
from ._rows import Rows

Array: TypeAlias = npt.NDArray[Any]
"""The type of arrays inside the package. Arrays of other libraries are treated as this type, too."""
Column: TypeAlias = list[Any] | Zeros
"""An array for each parameter, or None; Zeros have no objects yet."""


class ArrayLike(Protocol):
    """An array of NumPy, CuPy or torch."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...


class Dataclass(Protocol):
    """An instance of a dataclass; its fields are treated like the entries of a dict."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Params: TypeAlias = ArrayLike | Sequence["Params"] | Mapping[Any, Any] | Dataclass | None
"""An array; any nesting of lists, tuples, named tuples, dicts and dataclasses of arrays and None; or a list of groups,
which are dicts with such a nest under "params" and with options."""
Grads: TypeAlias = ArrayLike | Rows | float | Sequence["Grads"] | Mapping[Any, Any] | Dataclass | None
"""The nesting of the parameters, with None for an array to skip. A number is allowed for a parameter without axes,
and a Rows for one with axes."""


def is_groups(params: object) -> bool:
    """Whether these are groups: a list of mappings that each have their parameters under the key "params"."""
    return (
        isinstance(params, (list, tuple)) and bool(params) and isinstance(params[0], Mapping) and "params" in params[0]
    )

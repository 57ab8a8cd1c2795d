"""What users hand over: an array, a list or a dict of arrays, or a list of groups: taken apart, put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Array | Sequence[Array] | Mapping[str, Array]
Group: TypeAlias = Mapping[str, Any]
Params: TypeAlias = Arrays | Sequence[Group]
Grads: TypeAlias = Any  # the structure of the parameters, with None in place of an array that is to be skipped


def is_array(value: object) -> bool:
    """Whether it is an array: one of NumPy's, or one that shows itself by a protocol of GPU arrays."""
    return isinstance(value, np.ndarray) or any(
        hasattr(type(value), protocol) for protocol in ("__cuda_array_interface__", "__dlpack__")
    )


def first_array(params: Any) -> Any:
    """The first array of parameters, or what stands in its place."""
    while not is_array(params) and isinstance(params, (list, tuple, Mapping)) and params:
        if isinstance(params, Mapping):
            params = params["params"] if is_groups([params]) else next(iter(params.values()))
        else:
            params = params[0]
    return params


def is_groups(params: object) -> bool:
    """Whether these are groups: a list of mappings that each have their parameters under the key "params"."""
    return (
        isinstance(params, (list, tuple)) and bool(params) and isinstance(params[0], Mapping) and "params" in params[0]
    )


class Structure:
    """The shape of one array, list or dict of arrays. `names` is what follows "params" or "grads" for each of them.

    `kind` is list, dict, or object for one array.
    """

    def __init__(self, arrays: object, prefix: str = "") -> None:
        self.kind: type
        self.keys: list[Any]
        if is_array(arrays):
            self.kind, self.keys, self.names = object, [None], [prefix]
        elif isinstance(arrays, (list, tuple)):
            self.kind, self.keys = list, list(range(len(arrays)))
            self.names = [f"{prefix}[{i}]" for i in self.keys]
        elif isinstance(arrays, Mapping):
            self.kind, self.keys = dict, list(arrays)
            self.names = [f"{prefix}[{key!r}]" for key in self.keys]
        else:
            raise TypeError(
                f"params{prefix} must be an array, a list or dict of arrays, or a list of groups, "
                f"not {type(arrays).__name__}"
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"params{prefix} has two keys that look the same: params{twice}")
        self.prefix = prefix

    def flatten(self, values: Any, what: str) -> Sequence[Any]:
        """The arrays in order. Raises TypeError or ValueError, naming `what`, where the structure is another."""
        what = what + self.prefix
        if self.kind is object:
            if isinstance(values, (list, tuple, dict)):
                raise TypeError(f"{what} must be an array, as params{self.prefix} is, not {type(values).__name__}")
            return [values]
        if self.kind is list:
            if not isinstance(values, (list, tuple)):
                raise TypeError(f"{what} must be a list, as params{self.prefix} is, not {type(values).__name__}")
            if len(values) != len(self.keys):
                raise ValueError(f"{what} has {len(values)} arrays, but params{self.prefix} has {len(self.keys)}")
            return values
        if not isinstance(values, Mapping):
            raise TypeError(f"{what} must be a dict, as params{self.prefix} is, not {type(values).__name__}")
        for key in self.keys:
            if key not in values:
                raise ValueError(f"{what} lacks {key!r}")
        if len(values) != len(self.keys):
            extra = next(key for key in values if key not in self.keys)
            raise ValueError(f"{what} has {extra!r}, which params{self.prefix} has not")
        return [values[key] for key in self.keys]

    def build(self, arrays: Iterable[Any]) -> Any:
        """The inverse of flatten."""
        arrays = list(arrays)
        if self.kind is object:
            return arrays[0]
        return arrays if self.kind is list else dict(zip(self.keys, arrays, strict=True))

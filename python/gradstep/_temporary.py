"""Recognizes arrays that only the arguments of a call hold: the update of such a copy would be lost."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

ALONE: Final = 2
"""What `sys.getrefcount` returns in a function for an argument that nothing but the call holds: one reference of the
function, one of `getrefcount`."""


def is_lost(references: int, array: Any) -> bool:
    """Whether nothing holds an argument of the caller, or the memory of which it is a view.

    `references` is what `sys.getrefcount` returned for it in the caller, where nothing else of the caller's held it.
    """
    if references != ALONE or type(array) is not np.ndarray or not COUNTS:
        return False
    base = array.base
    if base is None:
        return bool(array.flags.owndata)
    is_owner = type(base) is np.ndarray and base.base is None and base.flags.owndata
    return bool(is_owner) and sys.getrefcount(base) == ALONE + 1  # the variable, too


def _counts() -> bool:
    """Whether this interpreter's counts tell arguments that only a call holds from all others.

    Some pass references that the caller holds without counting them. Where any way of holding an array looks as if
    there were none, nothing is refused.
    """

    def of_first(p: Any, g: Any, /, *arrays: Any, **given: Any) -> int:  # noqa: ARG001
        return sys.getrefcount(p)

    def of_rest(p: Any, g: Any, /, *arrays: Any, **given: Any) -> int:  # noqa: ARG001
        return sys.getrefcount(arrays[0])

    held = np.empty(1)
    holder = SimpleNamespace(array=np.empty(1))
    in_dict, in_list = {"array": np.empty(1)}, [np.empty(1)]
    arguments = (np.empty(1), 0, np.empty(1))

    def in_cell() -> Any:
        return held

    lost = [
        of_first(np.empty(1), 0),
        of_first(np.empty(1), 0, lr=0),
        of_rest(0, 0, np.empty(1)),
        of_rest(0, 0, np.empty(1), lr=0),
    ]
    kept = [
        of_first(held, 0),
        of_first(in_cell(), 0, lr=0),
        of_first(holder.array, 0),
        of_first(in_dict["array"], 0),
        of_first(in_list[0], 0),
        of_first(*arguments),
        of_rest(*arguments),
        of_first(arguments[0], 0),
        of_rest(0, 0, held),
        of_rest(0, 0, holder.array, lr=0),
        of_rest(0, 0, in_list[0]),
        partial(of_first, np.empty(1))(0),
        partial(of_rest, 0, 0, np.empty(1))(),
        *map(of_first, [np.empty(1)], [0]),
    ]
    return all(count == ALONE for count in lost) and all(count > ALONE for count in kept)


COUNTS: Final = _counts()

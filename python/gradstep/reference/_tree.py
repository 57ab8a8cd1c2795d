"""Nested parameters: dicts, lists, tuples, named tuples and dataclasses of arrays, or one array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any


def leaves(tree: Any, like: Any) -> list[Any]:
    """What stands in ``tree`` where ``like``, of the same nesting, has arrays, in the order of ``like``."""
    if isinstance(like, Mapping):
        branches = [(tree[key], like[key]) for key in like]
    elif isinstance(like, (list, tuple)):
        branches = list(zip(tree, like, strict=True))
    elif is_dataclass(like):
        branches = [(getattr(tree, field.name), getattr(like, field.name)) for field in fields(like)]
    else:
        return [tree]
    return [leaf for branch in branches for leaf in leaves(*branch)]


def build(found: Iterator[Any], like: Any) -> Any:
    """The nesting of ``like`` with others in place of its arrays: the inverse of ``leaves``."""
    if isinstance(like, Mapping):
        return {key: build(found, like[key]) for key in like}
    if isinstance(like, (list, tuple)):
        branches = [build(found, branch) for branch in like]
        return type(like)(*branches) if hasattr(like, "_fields") else type(like)(branches)
    if is_dataclass(like) and not isinstance(like, type):
        return replace(like, **{field.name: build(found, getattr(like, field.name)) for field in fields(like)})
    return next(found)

"""Digests of the bits of every rule, type, storage and layout with every instruction set: ``python tools/digests.py``.

If a change to the code changes no bit of a result, every line of the output is the same as before. So is it on another
kind of processor. The problems, settings and layouts are those of tests/table.py, and so are the dependencies. All NaNs
are considered equal.
"""

import hashlib
import math
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import gradstep as gs
from gradstep import _core
from tests import table

SIZES = (1, 4097, 20_001)  # one task, two, and many
SHAPE = (3, 7, 11)  # of the arrays of each layout


def digest_of(results):
    """The SHA-256 of named arrays, shortened."""
    digest = hashlib.sha256()
    for name, array in sorted(results.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table.bits(array)).tobytes())
    return digest.hexdigest()[:16]


def placed_in_layouts(flat, layouts):
    """The parts of a flat array, each in its layout."""
    return [layout.place(part) for layout, part in zip(layouts, flat.reshape(-1, *SHAPE), strict=True)]


def digests():
    """One digest per rule and storage, over all settings, sizes and layouts, and one of the problems."""
    found = defaultdict(dict)
    for case in table.CASES:
        for size in SIZES:
            params, grads = table.problem(size, case.dtype)
            ours = case.ours(params.copy(), grads[: table.SHORT])
            found["problems"] |= {f"{size} {case.dtype}": params, f"{size} {case.dtype} grads": grads}
            found[f"{case.rule} {case.dtype}"] |= {f"{case} {size} {name}": array for name, array in ours.items()}
    for case in table.stored_cases():
        for size in SIZES:
            params, grads = case.problem(size)
            found["problems"] |= {f"{size} {case.storage}": params, f"{size} {case.storage} {case.grad} grads": grads}
            ours = case.ours([params.copy()], [[grad] for grad in grads])
            found[f"{case.rule} {case.storage}"] |= {f"{case} {size} {name}": array for name, array in ours.items()}
    size = math.prod(SHAPE)
    for case in table.stored_cases(storages=table.ALL_STORAGES, settings=("widest",)):
        params, grads = case.problem(size * len(table.LAYOUTS))
        placed = placed_in_layouts(params, table.LAYOUTS)
        ours = case.ours(placed, [placed_in_layouts(grad, table.LAYOUTS[::-1]) for grad in grads])
        found[f"{case.rule} {case.storage}"] |= {f"{case} layouts {name}": array for name, array in ours.items()}
    for dtype in ("float32", "float64", "float16"):
        normal = [np.random.default_rng(size).standard_normal(size).astype(dtype) for size in SIZES]
        found[f"norm {dtype}"] = {"norms": np.array([gs.global_norm(numbers) for numbers in normal])}
    return {name: digest_of(results) for name, results in found.items()}


def main():
    _core.share_all(True)
    found = {}
    for isa, prefetch in product(_core.supported_isas(), _core.prefetch_choices()):
        _core.use_isa(isa)
        _core.use_prefetch(prefetch)
        with np.errstate(all="ignore"):
            found[f"{isa}, prefetch {prefetch}"] = digests()
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            sys.exit(f"{other} gives different bits than {first}")
    for name, digest in found[first].items():
        print(digest, name)


if __name__ == "__main__":
    main()

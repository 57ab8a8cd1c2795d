"""Digests of the bits of every rule, type and storage with every instruction set: ``python tools/digests.py``.

If a change to the code changes no bit of a result, every line of the output is the same as before. The problems and
settings are those of tests/table.py, and so are the dependencies. All NaNs are considered equal.
"""

import hashlib
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import gradstep as gs
from gradstep import _core
from tests import table

SIZES = (1, 4097, 70_001)  # one task, two, and many


def digest_of(results):
    """The SHA-256 of named arrays, shortened."""
    digest = hashlib.sha256()
    for name, array in sorted(results.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table.bits(array)).tobytes())
    return digest.hexdigest()[:16]


def digests():
    """One digest per rule and storage, over all settings and sizes."""
    found = defaultdict(dict)
    for case in table.CASES:
        for size in SIZES:
            params, grads = table.problem(size, case.dtype)
            ours = case.ours(params.copy(), grads[: table.SHORT])
            found[f"{case.rule} {case.dtype}"] |= {f"{case} {size} {name}": array for name, array in ours.items()}
    for case in table.stored_cases():
        for size in SIZES:
            params, grads = case.problem(size)
            ours = case.ours([params.copy()], [[grad] for grad in grads])
            found[f"{case.rule} {case.storage}"] |= {f"{case} {size} {name}": array for name, array in ours.items()}
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

"""The norm of all gradients, of which the order of additions is part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .rows import is_rows, summed
from .storage import Array, compute_type, widened


def lane_sums(x: Array) -> Array:
    """The sum of every row of float64, none of them negative, by 128 lanes."""
    lanes = np.zeros((len(x), 128))
    for first in range(0, x.shape[1], 128):
        some = x[:, first : first + 128]
        lanes[:, : some.shape[1]] += some
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def global_norm(arrays: Sequence[Any]) -> float:
    """The Euclidean norm of all elements together: chunks of 4096 are added up, then tensors, then the whole."""
    sums = np.zeros((1, len(arrays)))
    with np.errstate(all="ignore"):
        for i, array in enumerate(arrays):
            if is_rows(array):
                array = summed(array, compute_type(array.values))[1]
            if array is not None and array.size > 0:
                x = widened(array).reshape(-1).astype(np.float64)
                chunks = np.pad(x * x, (0, -x.size % 4096)).reshape(-1, 4096)
                [sums[0, i]] = lane_sums(lane_sums(chunks).reshape(1, -1))
        return math.sqrt(lane_sums(sums)[0])

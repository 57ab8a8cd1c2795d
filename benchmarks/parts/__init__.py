"""The parts of the benchmark. Each file defines TITLE, ABOUT, `trials` and `table`."""

from . import (
    arithmetic,
    cuda_large,
    cuda_many,
    cuda_storage,
    layouts,
    many,
    memory,
    neighbours,
    options,
    share,
    sizes,
    storage,
    subnormals,
    threads,
    torch,
    training,
)

PARTS = {
    "share": share,
    "sizes": sizes,
    "many": many,
    "threads": threads,
    "options": options,
    "training": training,
    "torch": torch,
    "storage": storage,
    "arithmetic": arithmetic,
    "memory": memory,
    "layouts": layouts,
    "subnormals": subnormals,
    "neighbours": neighbours,
}
ON_TORCH = {"torch"}
"""Those of PARTS that need torch."""
ON_GPU = {
    "cuda_large": cuda_large,
    "cuda_many": cuda_many,
    "cuda_storage": cuda_storage,
}
ALL = {**PARTS, **ON_GPU}
"""In the order of the report."""

"""The parts of the benchmark: one short file each, with a TITLE, ABOUT it, its `trials` and its `table`."""

from . import layouts, many, memory, neighbours, options, share, sizes, storage, subnormals, threads

PARTS = {
    "share": share,
    "sizes": sizes,
    "many": many,
    "threads": threads,
    "options": options,
    "storage": storage,
    "memory": memory,
    "layouts": layouts,
    "subnormals": subnormals,
    "neighbours": neighbours,
}
"""In the order of the report."""

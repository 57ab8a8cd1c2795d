"""The peers: one file per library, imported only if the library is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec

from .peer import Peer

MODULES = {"numpy": "numpy_out", "torch": "torch_forms", "optax": "optax_jit", "numba": "numba_jit"}
"""The file of each library. A further peer is a line here and a file with PEERS, its forms."""
ON_GPU = {"torch": "torch_cuda", "cupy": "cupy_out"}
"""The same on a GPU."""
NARROW = {"bitsandbytes": "bitsandbytes_adam"}
"""The same beside narrow states, in the part storage."""

TRAINING = {"numpy": "numpy_training", "torch": "torch_training"}
"""The same for a whole training step, in the part training."""


def installed(modules: Mapping[str, str] = MODULES) -> list[str]:
    """The installed libraries."""
    return [library for library in modules if find_spec(library)]


def load(libraries: Iterable[str], modules: Mapping[str, str] = MODULES) -> list[Peer]:
    """The forms of these libraries. Raises ModuleNotFoundError if one is not installed."""
    return [peer for library in libraries for peer in import_module(f".{modules[library]}", __name__).PEERS]

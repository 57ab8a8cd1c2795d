"""What was built, what this machine has, and what is in use."""

from __future__ import annotations

import importlib
from typing import Any, Literal, overload

from . import _core, _options
from ._libraries import cuda_missing


def get_num_threads() -> int:
    """The number of threads that a step may use, including the calling thread."""
    return _core.num_threads()


def set_num_threads(count: int) -> None:
    """Sets the number of threads that a step may use, for the whole process.

    The default is GRADSTEP_NUM_THREADS. Without that variable it is the number of cores that this process may use (its
    affinity and its control group's quota), limited by OMP_NUM_THREADS, which process pools set. The number does not
    affect results. Raises ValueError where `count` is not from 1 to 1024.
    """
    _core.set_num_threads(_options.whole(1, _core.MAX_THREADS).check(count, "the number of threads"))


def cuda_info() -> dict[str, Any]:
    """The CUDA backend: whether it can be used, or what is missing."""
    try:
        cuda = importlib.import_module("gradstep._cuda")
    except ImportError as error:
        return {"available": False, "reason": cuda_missing(error)}
    built: dict[str, Any] = cuda.build_info()
    try:
        devices = cuda.device_count()
    except RuntimeError as error:
        return {"available": False, "reason": str(error), **built}
    return {"available": devices > 0, "devices": devices, **built}


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Prints the version, build, instruction sets, prefetching, threads and CUDA; mode="dicts" returns them instead."""
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode must be "stdout" or "dicts", got {mode!r}')
    config: dict[str, Any] = {
        "version": _core.__version__,
        "build": _core.build_info(),
        "isa": {
            "compiled": _core.compiled_isas(),
            "supported": _core.supported_isas(),
            "chosen": _core.isa(),
        },
        "prefetch": {"chosen": _core.prefetch(), "default": _core.default_prefetch()},
        "threads": {
            "count": _core.num_threads(),
            "source": _core.threads_source(),
            "default": _core.default_threads(),
        },
        "cuda": cuda_info(),
    }
    if mode == "dicts":
        return config
    for section, content in config.items():
        if not isinstance(content, dict):
            print(f"{section}: {content}")
            continue
        print(f"{section}:")
        for key, value in content.items():
            print(f"  {key}: {', '.join(value) if isinstance(value, list) else value}")
    return None

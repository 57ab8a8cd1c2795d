"""The environment of a measurement: processor, memory, system, compiler, versions, commit. No host names."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import Any

import gradstep as gs
from gradstep.bench import processor

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "torch", "optax", "jax", "numba", "bitsandbytes")


def read(path: Path) -> str:
    """The text of a small system file; empty if there is none."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def kilobytes(name: str) -> int:
    """An entry of /proc/meminfo in KB, such as MemTotal."""
    found = re.search(rf"^{name}:\s+(\d+) kB", read(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) if found else 0


def caches() -> dict[str, int]:
    """The sizes of the first core's caches in bytes, such as "L2"."""
    sizes = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, size = read(cache / "type"), read(cache / "size")
        if kind and size.endswith("K"):
            sizes[f"L{read(cache / 'level')}{' ' + kind.lower() if kind != 'Unified' else ''}"] = int(size[:-1]) * 1024
    return sizes


def last_cache() -> int:
    """The bytes of last-level cache that this process can use; 0 if unknown."""
    last = {}  # by core: the level, the cores that share it, and its size
    for core in core_numbers():
        for cache in Path(f"/sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
            level, shared, size = (read(cache / name) for name in ("level", "shared_cpu_list", "size"))
            if size.endswith("K") and int(level) >= last.get(core, (0,))[0]:
                last[core] = (int(level), shared, int(size[:-1]) * 1024)
    return sum(size for _, _, size in set(last.values()))


LARGE = 16_000_000
"""Elements of a tensor that is called large, where the last cache would not hold much of it."""


def large() -> int:
    """The elements of a large tensor: even SGD's arrays, the fewest, take at least four times the last-level cache.

    Whole millions, because arrays whose sizes are powers of two can evict each other from L1.
    """
    return max(LARGE, ceil(4 * last_cache() / 8e6) * 1_000_000)


def fitting(arrays: int) -> int:
    """The largest size of which this number of float32 arrays fits into the free memory."""
    return kilobytes("MemAvailable") * 1024 // (4 * arrays)


def huge_pages() -> str:
    """The system's setting of huge pages: "always", "madvise" (on request), or "" if they are not available."""
    found = re.search(r"\[(always|madvise)\]", read(Path("/sys/kernel/mm/transparent_hugepage/enabled")))
    return found[1] if found else ""


def core_numbers() -> list[int]:
    """The cores that this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))


def cores() -> int:
    """The number of cores that this process may use."""
    return len(core_numbers())


def model() -> str:
    """The processor's family and model, if known: names such as "AMD EPYC" are ambiguous."""
    found = re.findall(r"^(cpu family|model)\s*: (\d+)$", read(Path("/proc/cpuinfo")), re.MULTILINE)
    return " ".join(f"{name.removeprefix('cpu ')} {number}" for name, number in dict(found).items())


def hardware() -> dict[str, Any]:
    """The processor and the memory."""
    return {
        "processor": processor(),
        "model": model(),
        "cores": cores(),
        "caches": caches(),
        "last_cache": last_cache(),
        "memory": kilobytes("MemTotal") * 1024,
        "huge_pages": huge_pages(),
        "virtual": "hypervisor" in read(Path("/proc/cpuinfo")),
    }


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """The version of each package; None if it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git(*words: str) -> str | None:
    """The output of a git command in this repository; None if there is no repository."""
    try:
        return subprocess.run(("git", "-C", ROOT, *words), check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe() -> dict[str, Any]:
    """The complete description."""
    return {
        "hardware": hardware(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "gradstep": gs.show_config(mode="dicts"),
        "versions": versions(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
    }


def slug(gpu: str | None = None) -> str:
    """A folder name for this kind of machine: the GPU, or else the processor and its cores."""
    words = re.sub(r"\(\w+\)|\bCPU\b|\bProcessor\b|@.*", " ", gpu or f"{processor()} {model()}")
    return "-".join([*re.findall(r"[a-z0-9]+", words.lower()), *([] if gpu else [str(cores()), "cores"])])

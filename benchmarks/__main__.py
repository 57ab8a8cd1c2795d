"""One step of every rule beside the same step in plain NumPy: `python -m benchmarks [--size N] [--repeats N]`.

Both arms run interleaved on the same values, and the answers are compared bit for bit. GB/s counts the least traffic
that the rule needs: the parameter and each state read and written, the gradient read.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import gradstep as gs


def seconds(step: Callable[[np.ndarray], None], grads: np.ndarray) -> float:
    start = time.perf_counter()
    step(grads)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000, help="elements of the one float32 tensor (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each arm (%(default)s)")
    given = parser.parse_args()

    config = gs.show_config(mode="dicts")
    print(f"{given.size} float32 elements, {config['isa']['chosen']}, {config['threads']['count']} threads; medians\n")
    print(f"{'rule':10} {'bytes':>5} {'gradstep ms':>12} {'GB/s':>6} {'NumPy ms':>9} {'ratio':>6}")
    rng = np.random.default_rng(0)
    first, g = (rng.standard_normal(given.size).astype(np.float32) for _ in range(2))
    for cls in gs.optimizers.ALL:
        p, q = first.copy(), first.copy()
        fused, plain = cls(p), gs.reference.RULES[cls.rule](q)
        times = [(seconds(fused.step, g), seconds(plain.step, g)) for _ in range(given.repeats)]
        if p.tobytes() != q.tobytes():
            raise SystemExit(f"{cls.rule}: the answer is wrong")
        ours, numpys = (statistics.median(arm) for arm in zip(*times, strict=True))
        moved = 4 * (3 + 2 * len(fused.state))
        rate = moved * given.size / ours / 1e9
        print(f"{cls.rule:10} {moved:5} {ours * 1e3:12.3f} {rate:6.1f} {numpys * 1e3:9.2f} {numpys / ours:6.1f}")


if __name__ == "__main__":
    main()

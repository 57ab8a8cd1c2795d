"""Tests and measures gradstep.torch's offload on a CUDA GPU: `python tools/offload_check.py [--elements 50000000]`.

It needs torch with CUDA, pytest, and gradstep, whose own CUDA backend is not used. The measurement is the time from the
end of backward to the new parameters on the GPU, of AdamW with bfloat16 parameters and gradients, for gradstep and for
torch's own classes: gradients copied to pinned memory and widened, the fused step of float32 masters, and a copy back.
gradstep has copied the gradients during backward, except where the step copies them. Arms take turns; the medians are
printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import gradstep
import gradstep.torch

TENSOR = 1 << 22
TURNS = 20
TORCH = "torch: copies, fused step"
COPYING = "gradstep, copied by the step"


def parameters(elements: int) -> list[torch.nn.Parameter]:
    sizes = [min(TENSOR, elements - first) for first in range(0, elements, TENSOR)]
    return [torch.nn.Parameter(torch.randn(size, device="cuda").bfloat16()) for size in sizes]


def backward(params: list[torch.nn.Parameter], factors: list[Tensor]) -> None:
    for p in params:
        p.grad = None
    torch.stack([(p * factor).sum() for p, factor in zip(params, factors, strict=True)]).sum().backward()


def by_gradstep(params: list[torch.nn.Parameter], **options: object) -> Callable[[], None]:
    opt = gradstep.torch.AdamW(params, offload=True, **options)
    return lambda: opt.step()


def by_torch(params: list[torch.nn.Parameter]) -> Callable[[], None]:
    narrow = [torch.empty_like(p, device="cpu", pin_memory=True) for p in params]
    masters = [torch.nn.Parameter(p.detach().cpu().float()) for p in params]
    for master in masters:
        master.grad = torch.zeros_like(master)
    opt = torch.optim.AdamW(masters, fused=True)

    def step() -> None:
        for p, copy in zip(params, narrow, strict=True):
            assert p.grad is not None
            copy.copy_(p.grad, non_blocking=True)
        torch.cuda.synchronize()
        for master, copy in zip(masters, narrow, strict=True):
            assert master.grad is not None
            master.grad.copy_(copy)
        opt.step()
        for p, copy, master in zip(params, narrow, masters, strict=True):
            copy.copy_(master.detach())
            p.detach().copy_(copy, non_blocking=True)

    return step


def measure(elements: int) -> None:
    made = {
        TORCH: by_torch,
        "gradstep": by_gradstep,
        COPYING: by_gradstep,
        "gradstep, q8 states": partial(by_gradstep, state_dtype="q8"),
        "gradstep, max_grad_norm": partial(by_gradstep, max_grad_norm=1.0),
    }
    all_params = {name: parameters(elements) for name in made}
    arms = {name: make(all_params[name]) for name, make in made.items()}
    factors = [torch.randn_like(p) for p in all_params[TORCH]]
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(TURNS + 3):
        for name, step in arms.items():
            backward(all_params[name], factors)
            if name == COPYING:
                for p in all_params[name]:
                    p.grad = p.grad.clone()
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {elements / 1e6:g} M elements")
    print(f"threads: {torch.get_num_threads()} of torch, {gradstep.get_num_threads()} of gradstep")
    first = statistics.median(times[TORCH])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:28} {median * 1e3:8.2f} ms {first / median:6.2f} times")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=50_000_000)
    elements = parser.parse_args().elements
    if not torch.cuda.is_available():
        print("torch finds no CUDA GPU", file=sys.stderr)
        return 2
    root = Path(__file__).parent.parent
    tests = ["tests/torch/test_offload.py", "tests/gpu/test_offload.py"]
    status = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=root, check=False).returncode
    measure(elements)
    return status


if __name__ == "__main__":
    sys.exit(main())

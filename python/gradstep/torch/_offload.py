"""Parameters on a GPU whose masters and states are in the CPU's memory, where the core steps a copy of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

CHUNK: Final = 8 << 20
"""Bytes of gradients that a step takes at once. On a CPU, 4 to 16 MB took as long, and less took longer."""


class Event(Protocol):
    """The end of a copy."""

    def synchronize(self) -> None:
        """Waits for it."""


class Stream(Protocol):
    """Copies between a GPU and the CPU's memory in one direction, each begun when those before it have ended."""

    def start(self, to: Tensor, values: Tensor) -> Event:
        """Copies after all work that the GPU's current stream has now, without waiting for it."""

    def join(self) -> None:
        """Lets the GPU's current stream wait for all copies, without waiting for them."""


class CudaStream:
    """A stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.own = torch.cuda.Stream(device)

    def start(self, to: Tensor, values: Tensor) -> Event:
        self.own.wait_stream(torch.cuda.current_stream(self.device))
        with torch.no_grad(), torch.cuda.stream(self.own):
            if values.is_cuda:
                values.record_stream(self.own)  # its memory is not used again before the copy has ended
                if values.stride() != to.stride() or values.is_neg():  # the copy must be one of bytes
                    same = torch.empty_strided(to.shape, to.stride(), dtype=to.dtype, device=self.device)
                    values = same.copy_(values)
            else:
                to.record_stream(self.own)
            to.copy_(values, non_blocking=True)
            event: Event = self.own.record_event()
        return event

    def join(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.own)


class Link(NamedTuple):
    """How a device exchanges tensors with the CPU's memory."""

    down: Stream
    up: Stream
    like: Callable[[Tensor], Tensor]
    """Makes a tensor in the CPU's memory for one of the device."""


@cache
def link(device: torch.device) -> Link | None:
    """The link to a device; None for the CPU. Raises RuntimeError for a device of another kind."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        raise RuntimeError(f"offload is for parameters on a CUDA GPU or the CPU, not on {device}")
    return Link(CudaStream(device), CudaStream(device), _pinned_like)


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True)


class Offloaded:
    """A parameter on a device, with the copies of it and its gradient that the core uses."""

    def __init__(self, param: Tensor, to_cpu: Link) -> None:
        self.param, self.device, self.link = param, param.device, to_cpu
        self.staged = to_cpu.like(param.detach())
        """The copy that the core steps."""
        self.grad: Tensor | None = None
        """The copy of the gradient, which later ones overwrite."""
        self.was_stepped = False
        """Whether the core has taken such a gradient, so that it will not refuse one."""
        self._source: tuple[TensorWeakRef, int] | None = None
        """The gradient of which `grad` is a copy, and its version."""
        self._last: dict[Stream, Event] = {}
        """The ends of the last copies in both directions."""
        self._seen: tuple[int, int] | None = None
        """The version and the address of the parameter when the copy was the same."""
        self.fetch_param()
        if param.requires_grad:
            own = weakref.ref(self)  # the parameter may outlive the optimizer
            hook = param.register_post_accumulate_grad_hook(lambda _: _fetch_early(own()))
            weakref.finalize(self, hook.remove)

    def fits(self) -> bool:
        """Whether the copies are for the parameter as it is now."""
        p, copy = self.param, self.staged
        return (p.shape, p.dtype, p.device) == (copy.shape, copy.dtype, self.device)

    def fetch_param(self) -> None:
        """Copies the parameter, and waits for it, if others have written to it."""
        if self._seen != self._now():
            self._seen = self._now()
            self._copy(self.link.down, self.staged, self.param.detach())
            self.wait()

    def fetch_grad(self) -> Tensor | None:
        """Copies the gradient, unless it has been copied as it is. Returns the copy, which is to be waited for.

        A gradient that cannot be copied is returned itself; the core refuses it.
        """
        grad = self.param.grad
        if grad is None:
            return None
        if unfit(grad) is not None:
            self.was_stepped = False
            return grad
        if self._source is None or self._source[0]() is not grad or self._source[1] != grad._version:
            values = grad.detach()
            if self.grad is None or (self.grad.dtype, self.grad.shape) != (values.dtype, values.shape):
                self.grad = self.link.like(values)
                self.was_stepped = False
            self._source = TensorWeakRef(grad), grad._version
            self._copy(self.link.down, self.grad, values)
        return self.grad

    def wait(self) -> None:
        """Waits until no copy uses this memory."""
        for event in self._last.values():
            event.synchronize()
        self._last.clear()

    def put_back(self) -> None:
        """Begins to copy the new values to the parameter."""
        self._copy(self.link.up, self.param.detach(), self.staged)
        self._seen = self._now()

    def _now(self) -> tuple[int, int]:
        return self.param._version, self.param.data_ptr()

    def _copy(self, stream: Stream, to: Tensor, values: Tensor) -> None:
        self._last[stream] = stream.start(to, values)


def _fetch_early(own: Offloaded | None) -> None:
    """Copies a gradient that backward has made. DistributedDataParallel writes to it later, which its version hides."""
    if own is not None and not (torch.distributed.is_available() and torch.distributed.is_initialized()) and own.fits():
        own.fetch_grad()


def unfit(tensor: Tensor) -> str | None:
    """Why a parameter or gradient cannot be copied as it is; None if it can."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return f"it is a {type(tensor).__name__} of layout {tensor.layout}; only plain strided tensors can be copied"
    return None


def step_chunks(
    step: Callable[[Sequence[Tensor | None]], Any],
    grads: Sequence[Tensor | None],
    offloaded: Mapping[int, Offloaded],
    together: bool,
) -> Any:
    """Steps the parameters in chunks, each while the copies of others are under way. Returns the last result.

    The first chunk has all gradients that the core may refuse, so that nothing has been written if it does.
    """
    result = None
    for number, chunk in enumerate([[*offloaded]] if together else _chunks(grads, offloaded)):
        for i in chunk:
            offloaded[i].wait()
        members = set(chunk)
        if number == 0:
            members.update(i for i in range(len(grads)) if i not in offloaded)
        result = step([grad if i in members else None for i, grad in enumerate(grads)])
        for i in chunk:
            if grads[i] is not None:
                offloaded[i].was_stepped = True
                offloaded[i].put_back()
    for stream in {own.link.up for own in offloaded.values()}:
        stream.join()
    return result


def _chunks(grads: Sequence[Tensor | None], offloaded: Mapping[int, Offloaded]) -> list[list[int]]:
    """Divides the offloaded parameters that have gradients: those of new types, then runs of CHUNK bytes."""
    moving = [(i, grad) for i in offloaded if (grad := grads[i]) is not None]
    new = [i for i, _ in moving if not offloaded[i].was_stepped]
    runs: list[list[int]] = []
    size = CHUNK
    for i, grad in moving:
        if offloaded[i].was_stepped:
            if size >= CHUNK:
                runs.append([])
                size = 0
            runs[-1].append(i)
            size += grad.nbytes
    return [new, *runs] if new or not runs else runs

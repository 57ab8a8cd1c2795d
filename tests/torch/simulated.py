"""Streams without a GPU: copies are made as late as they may be, and a copy of memory that was touched is NaN."""

from __future__ import annotations

import torch

from gradstep.torch import _offload


class Device:
    """A device whose memory is the CPU's. Its work is done when something waits for it, or when it is drained."""

    def __init__(self):
        self.current = []
        """The copies for which its current stream waits."""
        self.copies = 0
        self.torn = 0
        """Copies whose memory was written to while they were under way."""
        self.down, self.up = Stream(self), Stream(self)
        self.link = _offload.Link(self.down, self.up, torch.empty_like)

    def drain(self):
        """Waits for the current stream, as a user of a parameter does."""
        for copy in self.current:
            copy.synchronize()
        self.current = []


class Stream:
    def __init__(self, device):
        self.device, self.queue = device, []

    def start(self, to, values):
        self.device.copies += 1
        copy = Copy(self.device, [*self.queue[-1:], *self.device.current], to, values)
        self.queue = [*self.queue[-1:], copy]
        return copy

    def join(self):
        self.device.current = [*self.device.current, *self.queue[-1:]]


class Copy:
    """A copy that is made when it is waited for, after those before it."""

    def __init__(self, device, before, to, values):
        self.device, self.before, self.is_made = device, before, False
        to.detach().fill_(torch.nan)  # whoever does not wait sees this; the version changes, as on a GPU
        self.to, self.values = to.data, values.data  # without a version
        self.memory = to.detach(), values.detach()
        self.versions = [tensor._version for tensor in self.memory]

    def synchronize(self):
        if self.is_made:
            return
        self.is_made = True
        for copy in self.before:
            copy.synchronize()
        self.before = []
        self.to.copy_(self.values)
        if self.versions != [tensor._version for tensor in self.memory]:
            self.device.torn += 1
            self.to.fill_(torch.nan)

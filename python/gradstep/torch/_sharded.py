"""Parameters that are DTensors: the core steps the part on this rank, and their states are DTensors, too."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from gradstep import _core

from ._states import MIN_8BIT_SIZE, is_scale

NEVER: Final = sys.maxsize


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # without it there is none, and importing it takes long
    return module is not None and type(tensor) is module.DTensor


def local_of(tensor: Any) -> Any:
    """The part of a DTensor on this rank; any other object itself."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def local_grad(param: Tensor) -> Any:
    """The gradient, as the core can read it: of a DTensor the part on this rank.

    One that is distributed in another way than its parameter is returned itself; the core refuses it.
    """
    grad: Any = param.grad
    if is_sharded(param) and is_sharded(grad) and is_alike(param, grad):
        grad = grad._local_tensor
    return grad


def is_alike(a: Any, b: Any) -> bool:
    """Whether two DTensors of the same shape have the same part on each rank."""
    return bool(a.placements == b.placements and a.device_mesh == b.device_mesh)


class Part:
    """The part of a parameter on this rank, and how its elements are numbered.

    The parts follow each other in the order of ranks, each from a multiple of `_core.PART` on. These are the numbers of
    the elements in the whole tensor where it is sharded along its first axis and all parts but the last are such
    multiples: then random bits and the norm are those of the whole tensor, too.
    """

    def __init__(self, param: Any) -> None:
        from torch.distributed.tensor import Replicate, Shard

        self.param, self.local = param, param._local_tensor
        mesh, shape = param.device_mesh, tuple(param.shape)
        self.mesh = mesh
        self.reason: str | None = None
        """Why its part cannot be stepped."""
        self.axes: tuple[int, ...] = ()
        """The axes of the mesh along which it is sharded."""
        of_first_axis = True
        sharded = []
        for axis, placement in enumerate(param.placements):
            if type(placement) is Shard:
                sharded.append((axis, placement.dim))
                of_first_axis = of_first_axis and placement.dim == 0
            elif type(placement) is not Replicate:
                self.reason = f"it is a DTensor with the placement {placement}; only Shard and Replicate are supported"
                return
        self.axes = tuple(axis for axis, _ in sharded)
        place = mesh.get_coordinate()
        if place is None:
            self.reason = "it is a DTensor on a mesh without this rank"
            return
        self.sizes: list[int] = []
        """The elements of all parts, in the order of ranks."""
        for ranks in product(*(range(mesh.size(axis)) for axis in self.axes)):
            part = list(shape)
            for (axis, dim), rank in zip(sharded, ranks, strict=True):
                each = -(-part[dim] // mesh.size(axis))
                part[dim] = max(0, min(each, part[dim] - each * rank))
            if ranks == tuple(place[axis] for axis in self.axes):
                self.rank = len(self.sizes)
                if list(self.local.shape) != part:
                    self.reason = f"it is a DTensor whose part has shape {list(self.local.shape)}, and not {part}"
            self.sizes.append(math.prod(part))
        self.begins: list[int] = []
        """The numbers of their first elements."""
        self.whole = 0
        """The number after that of the last element."""
        for size in self.sizes:
            self.begins.append(-(-self.whole // _core.PART) * _core.PART if size else 0)
            self.whole = max(self.whole, self.begins[-1] + size)
        self.row = math.prod(shape[1:])
        coded = bool(shape) and of_first_axis and self.row % _core.BLOCK == 0 and math.prod(shape) >= MIN_8BIT_SIZE
        self.min_8bit_size = 0 if coded else NEVER
        """Of the part: a block of 8-bit states must be of one row, so that no rank has part of a block."""

    def fits(self) -> bool:
        """Whether it is the part that the parameter has now."""
        return self.param._local_tensor is self.local

    def unwrap(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of states. Raises ValueError for a tensor that is not distributed as the parameter is."""
        found = {}
        for name, value in own.items():
            if isinstance(value, Tensor) and (value.dim() > 0 or is_sharded(value)):
                shape = self._shape_of_scales() if is_scale(name) else tuple(self.param.shape)
                if not is_sharded(value) or not is_alike(self.param, value) or tuple(value.shape) != shape:
                    raise ValueError(
                        f"the state {name} is no DTensor of shape {shape} with the placements of its parameter; "
                        "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict loads states of other ones"
                    )
                value = value._local_tensor.reshape(-1) if is_scale(name) else value._local_tensor
            found[name] = value
        return found

    def wrap(self, name: str, array: Tensor) -> Tensor:
        """A state, for its part."""
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

        shape, stride = torch.Size(self.param.shape), self.param.stride()
        if is_scale(name):
            shape = torch.Size(self._shape_of_scales())
            stride = (shape[1], 1)
            array = array.view(-1, shape[1])
        spec = DTensorSpec(self.mesh, self.param.placements, tensor_meta=TensorMeta(shape, stride, array.dtype))
        return DTensor(array, spec, requires_grad=False)  # from_local() would move it to the device of the mesh

    def _shape_of_scales(self) -> tuple[int, ...]:
        """A scale for each block of each row, so that scales are distributed as rows are."""
        return self.param.shape[0], self.row // _core.BLOCK


class NormExchange:
    """Completes the sums of the gradient pass with those of the other ranks' parts, on all ranks in the same order."""

    def __init__(self, parts: Mapping[int, Part], sizes: Sequence[int]) -> None:
        self.parts = parts
        self.counts = [_chunks(size) for size in sizes]
        """The chunks of each tensor on this rank."""
        self.meshes: dict[tuple[Any, tuple[int, ...]], list[tuple[int, Part]]] = {}
        """The parts, by the ranks that have the others of them."""
        for i, part in parts.items():
            self.meshes.setdefault((part.mesh, part.axes), []).append((i, part))

    def __call__(self, sums: Any, tensor: int, element: int) -> tuple[Any, int, int]:
        """The sums of all chunks, and the first element that is not finite, for those on this rank."""
        whole = np.split(sums, np.cumsum(self.counts)[:-1])
        nonfinite = [(tensor, element)]
        for (mesh, axes), members in self.meshes.items():
            given = np.concatenate([whole[i] for i, _ in members])
            ranks = range(len(members[0][1].sizes))
            counts = [[_chunks(part.sizes[rank]) for _, part in members] for rank in ranks]
            sent = np.zeros(max(map(sum, counts)) + 2)
            sent[: given.size], sent[-2:] = given, (tensor, element)
            whole_parts = [np.zeros(_chunks(part.whole)) for _, part in members]
            for rank, row in enumerate(_gather(torch.from_numpy(sent), mesh, axes).numpy()):
                nonfinite.append((int(row[-2]), int(row[-1])))
                at = 0
                for (_, part), of_part, count in zip(members, whole_parts, counts[rank], strict=True):
                    first = part.begins[rank] // _core.CHUNK
                    of_part[first : first + count] = row[at : at + count]
                    at += count
            for (i, _), of_part in zip(members, whole_parts, strict=True):
                whole[i] = of_part
        return np.concatenate(whole), *min((place for place in nonfinite if place[0] >= 0), default=(-1, -1))


def _chunks(size: int) -> int:
    return -(-size // _core.CHUNK)


def _gather(sums: Tensor, mesh: Any, axes: Sequence[int]) -> Tensor:
    """The vectors of all ranks along some axes of a mesh, in the order of ranks."""
    rows = sums[None]
    for axis in reversed(axes):
        received = [torch.empty_like(rows) for _ in range(mesh.size(axis))]
        torch.distributed.all_gather(received, rows.contiguous(), group=mesh.get_group(axis))
        rows = torch.cat(received)
    return rows

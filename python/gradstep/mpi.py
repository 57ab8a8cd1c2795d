"""Optimizers whose states are shared out among the ranks of an MPI program, with the bits of one process.

Each rank has all parameters, and keeps the states of its part of them (the first stage of ZeRO; Rajbhandari, Rasley,
Ruwase and He, 2020). A step exchanges gradients, steps the part and gathers parameters.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from . import _core, _files, _storage
from ._arithmetic import sgd_options
from ._groups import RULES, OptionGroup
from ._libraries import numpy_dtype
from ._loss_scale import LossScale
from ._optimizer import Optimizer, StepResult
from ._options import POSITIVE
from ._step import check_apart
from ._types import Array, Grads, Params, is_groups

PART: Final = _core.PART
"""The number of elements of a block. Parts of parameters begin and end at blocks, and at the parameter's end."""
ALIGNMENT: Final = 64
"""Pieces in a buffer of messages begin at multiples of this number of bytes."""
REFUSED: Final = ("add_group", "replace", "rebind", "lookahead", "accumulate", "stats", "preset")
"""Attributes of optimizers that a sharded one lacks."""


def sharded(
    optimizer: type[Optimizer], params: Params, *args: Any, comm: Any = None, timeout: float = 300.0, **options: Any
) -> Sharded:
    """An optimizer whose states are shared out among the ranks of a communicator. All ranks call it alike.

    Parameters
    ----------
    optimizer : class
        One of the optimizers, such as `gradstep.Adam`.
    params : nesting of NumPy arrays, or a list of groups
        As of the optimizer, with the same bits on all ranks.
    *args, **options
        As of the optimizer, the same on all ranks. `grads` and `copy_out` are not supported.
    comm : mpi4py.MPI.Intracomm, default MPI.COMM_WORLD
        The communicator. Nothing else may use it while a method is called.
    timeout : float, seconds
        How long a rank waits for the others.

    Raises
    ------
    ModuleNotFoundError
        Without the package mpi4py: `pip install "gradstep[mpi]"`.
    ValueError
        On all ranks, where parameters or options differ between ranks; else as the optimizer's class.
    RuntimeError
        Where another rank has raised an error.
    TimeoutError
        Where another rank does not answer.
    """
    return Sharded(optimizer, params, args, options, comm, timeout)


class AgreedError(RuntimeError):
    """An error of another rank, which all ranks know of."""


class Ranks:
    """The ranks of a communicator, which meet before they exchange anything."""

    def __init__(self, comm: Any, timeout: float) -> None:
        try:
            from mpi4py import MPI
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'gradstep.mpi needs the package mpi4py: pip install "gradstep[mpi]"', name=error.name
            ) from error
        self.mpi: Any = MPI
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.timeout = POSITIVE.check(timeout, "timeout")
        self.rank: int = self.comm.Get_rank()
        self.count: int = self.comm.Get_size()
        self._lost = ""  # why nothing can be exchanged any more

    def wait(self, request: Any, what: str) -> None:
        """Waits for a communication. Raises TimeoutError."""
        begin = time.monotonic()
        done = False
        try:
            while not (done := request.Test()):
                waited = time.monotonic() - begin
                if waited > self.timeout:
                    raise TimeoutError(
                        f"rank {self.rank} of {self.count} has waited {self.timeout:g} s for the others in {what}: "
                        "one has ended, or does not take part"
                    )
                time.sleep(0 if waited < 0.01 else 0.001)
        finally:
            if not done:
                self._lost = f"{what} was not completed, and the ranks may be at different places"

    def meet(self, call: str, facts: Mapping[str, Any], error: Exception | None = None) -> list[dict[str, Any]] | None:
        """Waits for all ranks, and raises on all of them where they differ or one has an error.

        `facts` must be the same on all ranks. A rank with an error raises that, and the others an AgreedError, which
        has the facts of all ranks as `facts`.
        """
        self.check_reachable()
        mine = np.zeros(16, np.uint8)
        mine[0] = error is not None
        mine[1:] = np.frombuffer(hashlib.blake2b(repr((call, facts)).encode(), digest_size=15).digest(), np.uint8)
        all_digests = np.empty((self.count, 16), np.uint8)
        self.wait(self.comm.Iallgather(mine, all_digests), call)
        if not all_digests[:, 0].any() and (all_digests == mine).all():
            return None
        words = None if error is None else f"{type(error).__name__}: {error}"
        given = self.comm.allgather((words, {"call": call, **_flat(facts)}))
        everyones = [of for _, of in given]
        failed = {rank: words for rank, (words, _) in enumerate(given) if words is not None}
        if error is not None:
            return everyones
        if failed:
            rank, words = next(iter(failed.items()))
            agreed = AgreedError(f"{call}: rank {rank} raised {words}")
            agreed.facts = everyones  # type: ignore[attr-defined]
            raise agreed
        raise ValueError(f"the ranks differ: {'; '.join(_differences(everyones))}")

    def check_reachable(self) -> None:
        """Raises RuntimeError where an exchange was not completed."""
        if self._lost:
            raise RuntimeError(f"the communicator cannot be used: {self._lost}")

    def fail(self, call: str, error: Exception) -> list[dict[str, Any]] | None:
        """Tells the others, who wait for this rank, of its error, unless they cannot be reached."""
        return None if self._lost else self.meet(call, {}, error)

    @contextmanager
    def agreeing(self, call: str, facts: Callable[[], Mapping[str, Any]] = dict) -> Iterator[None]:
        """Code of this rank alone, after which all ranks meet: where it raises on one, all raise."""
        self.check_reachable()
        try:
            yield
            own = facts()
        except AgreedError:
            raise
        except Exception as error:
            self.fail(call, error)
            raise
        self.meet(call, own)

    def gather(self, part: Array, counts: Sequence[int], what: str) -> Array | None:
        """The parts of all ranks, one after the other, on rank 0."""
        part = np.ascontiguousarray(part).reshape(-1)
        whole = np.empty(sum(counts), part.dtype) if self.rank == 0 else None
        nbytes = [count * part.itemsize for count in counts]
        to = None if whole is None else [whole.view(np.uint8), nbytes, _begins(nbytes), self.mpi.BYTE]
        self.wait(self.comm.Igatherv([part.view(np.uint8), self.mpi.BYTE], to, root=0), what)
        return whole

    def scatter(self, whole: Array | None, counts: Sequence[int], dtype: Any, what: str) -> Array:
        """This rank's part of an array of rank 0."""
        part = np.empty(counts[self.rank], dtype)
        nbytes = [count * part.itemsize for count in counts]
        of = None
        if whole is not None:
            of = [np.ascontiguousarray(whole).reshape(-1).view(np.uint8), nbytes, _begins(nbytes), self.mpi.BYTE]
        self.wait(self.comm.Iscatterv(of, [part.view(np.uint8), self.mpi.BYTE], root=0), what)
        return part


class Piece(NamedTuple):
    """A part of a parameter in a buffer."""

    tensor: int
    begin: int
    end: int
    place: int
    """Of its first byte, within its rank's bytes."""
    dtype: np.dtype[Any]

    def of(self, buffer: Array) -> Array:
        """The elements, in the bytes of its rank."""
        size = (self.end - self.begin) * self.dtype.itemsize
        return buffer[self.place : self.place + size].view(self.dtype)


class Layout:
    """How the parts of arrays lie in a buffer, rank after rank."""

    def __init__(self, parts: Sequence[Sequence[tuple[int, int]]], dtypes: Sequence[np.dtype[Any] | None]) -> None:
        self.pieces: list[list[Piece]] = []
        self.counts: list[int] = []
        for of_rank in parts:
            pieces, place = [], 0
            for tensor, ((begin, end), dtype) in enumerate(zip(of_rank, dtypes, strict=True)):
                if dtype is not None and begin < end:
                    pieces.append(Piece(tensor, begin, end, place, dtype))
                    place += -(-(end - begin) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
            self.pieces.append(pieces)
            self.counts.append(place)
        self.begins = _begins(self.counts)
        self.size = sum(self.counts)

    def of_rank(self, buffer: Array, rank: int) -> Array:
        """The bytes of a rank."""
        return buffer[self.begins[rank] : self.begins[rank] + self.counts[rank]]


def cut(sizes: Sequence[int], ranks: int) -> list[list[tuple[int, int]]]:
    """The part of each array that each rank has: the begin and the end, in C order.

    Of all blocks of all arrays, one after the other, each rank has an equal share.
    """
    blocks = [-(-size // PART) for size in sizes]
    firsts = np.cumsum([0, *blocks])[:-1]
    bounds = [sum(blocks) * rank // ranks for rank in range(ranks + 1)]
    parts = []
    for low, high in pairwise(bounds):
        each = zip(sizes, np.clip(low - firsts, 0, blocks), np.clip(high - firsts, 0, blocks), strict=True)
        parts.append([(int(a) * PART, min(int(b) * PART, size)) if a < b else (0, 0) for size, a, b in each])
    return parts


class Sharded:
    """An optimizer whose states are shared out among ranks; see `sharded`.

    All ranks must call the same methods in the same order. Options are attributes, as of the optimizer; each rank sets
    them to the same values. `state` has the arrays of this rank's part, which are one-dimensional, and `parts` says
    which part that is.

    The bits of parameters and states are those of one process that calls `accumulate` of the optimizer with the
    gradients of each rank, in the order of ranks, and then `step()`.
    """

    _ranks: Ranks
    _tree: _core.Tree
    _inner: Optimizer
    """Steps this rank's parts."""
    _params: list[Array]
    _sizes: list[int]
    _all_parts: list[list[tuple[int, int]]]
    """The parts that each rank has."""
    _own: list[_Part]
    """The arrays that the inner optimizer steps."""
    _layouts: dict[tuple[Any, ...], Layout]
    """The last one, by the dtypes of what is exchanged."""
    _buffers: dict[str, Array]
    _broken: str
    """Why no step is possible before a load."""

    def __init__(
        self,
        optimizer: type[Optimizer],
        params: Params,
        args: Sequence[Any],
        options: Mapping[str, Any],
        comm: Any,
        timeout: float,
    ) -> None:
        ranks = Ranks(comm, timeout)
        with ranks.agreeing("sharded()", self._first_facts):
            if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
                raise TypeError("sharded() takes a class of optimizers, such as gradstep.Adam")
            for name in ("grads", "copy_out"):
                if options.get(name) is not None:
                    raise ValueError(f"a sharded {optimizer.__name__} cannot have {name}")
            specs = list(params) if is_groups(params) else None  # type: ignore[arg-type]
            self.__dict__.update(_ranks=ranks, _tree=_core.Tree(_nest(params, specs)), _broken="", _buffers={})
            leaves = self._tree.leaves
            self._checker("params", leaves)
            sizes = [leaf.size for leaf in leaves]
            all_parts = cut(sizes, ranks.count)
            own = all_parts[ranks.rank]
            buffers = [_Part(leaf, begin, end) for leaf, (begin, end) in zip(leaves, own, strict=True)]
            views = [buffer.array for buffer in buffers]
            given = self._tree.build(views)
            if specs is not None:
                given = [{**spec, "params": nest} for spec, nest in zip(specs, given, strict=True)]
            inner = _with_sizes(optimizer, views, sizes)(given, *args, **options)
            parts = [(begin, size) for (begin, _), size in zip(own, sizes, strict=True)]
            inner._engine.stepper.set_parts(parts, self._exchange)
            self.__dict__.update(
                _inner=inner, _params=leaves, _sizes=sizes, _all_parts=all_parts, _own=buffers, _layouts={}
            )

    def _first_facts(self) -> dict[str, Any]:
        """What must be the same on all ranks at construction."""
        inner = self._inner
        each = list(zip(inner.names, self._params, strict=True))
        return {
            "optimizer": type(inner).__name__,
            "rule": inner.rule,
            "the number of parameters": len(each),
            "shape": {name: param.shape for name, param in each},
            "dtype": {name: param.dtype.name for name, param in each},
            "checksum": {
                name: zlib.crc32(np.ascontiguousarray(param).reshape(-1).view(np.uint8).data) for name, param in each
            },
            **self._option_facts(),
        }

    def _option_facts(self) -> dict[str, Any]:
        """The step number, and the values of options at the next step."""
        inner = self._inner
        of_step = {name: inner._step_value(name) for name in inner.step_options}
        return {
            "step_count": inner.step_count,
            "option": {
                **{name: x.state_dict() if isinstance(x, LossScale) else x for name, x in of_step.items()},
                **{
                    (name if len(inner._groups) == 1 else f"{name} of group {group.number}"): group[name]
                    for group in inner._groups
                    for name in group
                },
            },
        }

    def _checker(self, what: str, arrays: Sequence[Any]) -> None:
        """Raises TypeError or ValueError where parameters or gradients are not NumPy arrays of the right types."""
        stepper = _core.Stepper(self._tree, what)
        stepper.check_params(list(arrays), what == "params")
        if what == "params":
            for path, array in zip(self._tree.paths, arrays, strict=True):
                if not isinstance(array, np.ndarray):
                    raise TypeError(f"params{_storage.suffix(path)} must be a NumPy array")
            stepper.add_group("sgd", sgd_options(0.0))
            stepper.add_tensors([0] * len(arrays), list(arrays), [{} for _ in arrays])
            check_apart(stepper.possible_overlaps())

    # Steps.

    def step(self, grads: Grads, grad_scale: float = 1.0, *, stats: bool = False) -> StepResult:
        """Takes one step with the gradients of all ranks, their mean, or their sum with `accumulation="sum"`.

        Parameters
        ----------
        grads : the nesting of params
            This rank's gradients of all parameters, as of `Optimizer.step`, with the same dtypes on all ranks. A
            parameter whose gradient is None on all ranks is skipped.
        grad_scale : a finite number > 0
            As of `Optimizer.step`, the same on all ranks.

        Returns
        -------
        StepResult
            As of `Optimizer.step`, of all gradients.

        Raises
        ------
        TypeError, ValueError, FloatingPointError
            As `Optimizer.step` does; ValueError on all ranks where they differ in their step numbers, in the values of
            options, or in which gradients are None. Nothing has changed then.
        RuntimeError
            Where another rank has raised an error. If that was after some ranks had taken the step, no further step is
            possible before `load_state_dict`.
        TimeoutError
            Where another rank does not answer. The communicator cannot be used then.
        """
        call, ranks, inner = "step()", self._ranks, self._inner
        flat: list[Array | None] = []

        def facts() -> dict[str, Any]:
            of = zip(inner.names, flat, strict=True)
            grads_given = {name: None if grad is None else grad.dtype.name for name, grad in of}
            return {**self._option_facts(), "grad_scale": grad_scale, "the gradient of": grads_given}

        with ranks.agreeing(call, facts):
            if self._broken:
                raise RuntimeError(f"{self._broken}; load a checkpoint, with parameters and states")
            if stats:
                raise ValueError("stats are for whole tensors, and a sharded optimizer has parts of them")
            flat += self._checked(grads)
            grad_scale = POSITIVE.check(grad_scale, f"{type(inner).__name__}: grad_scale")

        before, refused = inner.step_count, None
        try:
            self._accumulate(flat)
            for own in self._own:
                own.refresh()
            try:
                result = inner.step(grad_scale=grad_scale)
            except FloatingPointError as error:  # on all ranks
                refused = error
        except AgreedError:  # of the exchange of norms, before anything was written
            self._drop_sums()
            raise
        except Exception as error:
            self._drop_sums()
            self._note(error, ranks.fail(call, error), before)
            raise
        outcome = str(refused) if refused else (result.applied, result.step, result.grad_norm, result.nonfinite)
        try:
            ranks.meet(call, {"outcome": outcome, "step_count": inner.step_count})
        except (AgreedError, ValueError) as error:
            self._note(error, getattr(error, "facts", None), before)
            raise
        if refused is not None:
            raise refused
        if result.applied:
            self._gather(call, [grad is not None for grad in flat])
        return result

    def _checked(self, grads: Grads) -> list[Array | None]:
        """The gradients, None for frozen parameters. Raises TypeError or ValueError."""
        self._tree.check_unchanged()
        _core.Stepper(self._tree, "params").check_params(self._params)
        frozen = [group["frozen"] for group in self._inner._groups]
        given = self._tree.flatten(grads, "grads")
        flat: list[Any] = [
            None
            if grad is None or frozen[number]
            else np.asarray(grad, getattr(grad, "dtype", np.float64))
            if param.ndim == 0 and not isinstance(grad, np.ndarray)
            else grad
            for grad, param, number in zip(given, self._params, self._inner._numbers, strict=True)
        ]
        pairs = list(zip(flat, self._params, strict=True))
        self._checker("grads", [param if grad is None else grad for grad, param in pairs])
        for path, (grad, param) in zip(self._tree.paths, pairs, strict=True):
            if grad is not None and grad.shape != param.shape:
                words = f"has shape {grad.shape}, but its parameter {param.shape}"
                raise ValueError(f"grads{_storage.suffix(path)} {words}")
        return flat

    def _accumulate(self, flat: Sequence[Array | None]) -> None:
        """Adds the gradients of all ranks, in their order, to the sums of this rank's parts.

        Those of one rank are added while those of later ones are under way.
        """
        ranks, call = self._ranks, "step()"
        layout = self._layout([None if grad is None else grad.dtype for grad in flat])
        size = layout.counts[ranks.rank]
        sent, received = self._buffer("sent", layout.size), self._buffer("received", size * ranks.count)
        rows = [np.ascontiguousarray(grad).reshape(-1) if grad is not None else None for grad in flat]
        for rank, pieces in enumerate(layout.pieces):
            of_rank = layout.of_rank(sent, rank)
            for piece in pieces:
                piece.of(of_rank)[...] = rows[piece.tensor][piece.begin : piece.end]  # type: ignore[index]
        of = [received[rank * size : (rank + 1) * size] for rank in range(ranks.count)]
        requests = [
            ranks.comm.Iscatterv(
                [sent, layout.counts, layout.begins, ranks.mpi.BYTE] if rank == ranks.rank else None,
                [of[rank], ranks.mpi.BYTE],
                root=rank,
            )
            for rank in range(ranks.count)
        ]
        failed: Exception | None = None
        empty: list[Array | None] = [None if grad is None else np.empty(0, grad.dtype) for grad in flat]
        for request, buffer in zip(requests, of, strict=True):
            ranks.wait(request, call)
            if failed is not None:  # the others expect that this rank's messages arrive
                continue
            parts = list(empty)
            for piece in layout.pieces[ranks.rank]:
                parts[piece.tensor] = piece.of(buffer)
            try:
                self._inner.accumulate(self._inner._engine.tree.build(parts))
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    def _exchange(self, sums: Array, tensor: int, element: int) -> tuple[Array, int, int]:
        """The sums of squares of all ranks' gradients, and the first element that is not finite."""
        ranks, call = self._ranks, "step()"
        ranks.meet(call, {"exchanged": "norms"})
        mine, everyones = np.array([sums.size, tensor, element]), np.empty((ranks.count, 3), np.int64)
        ranks.wait(ranks.comm.Iallgather(mine, everyones), call)
        counts = everyones[:, 0].tolist()
        whole = np.empty(sum(counts))
        to = [whole, counts, _begins(counts), ranks.mpi.DOUBLE]
        ranks.wait(ranks.comm.Iallgatherv([sums, ranks.mpi.DOUBLE], to), call)
        found = [(first, at) for _, first, at in everyones.tolist() if first >= 0]
        return whole, *min(found, default=(-1, -1))

    def _gather(self, call: str, active: Iterable[bool] | None = None) -> None:
        """Sets the parameters on all ranks to the parts that each has."""
        ranks = self._ranks
        dtypes = [param.dtype for param in self._params]
        layout = self._layout(
            dtypes if active is None else [x if on else None for x, on in zip(dtypes, active, strict=True)]
        )
        buffer = self._buffer("sent", layout.size)
        of_rank = layout.of_rank(buffer, ranks.rank)
        for piece in layout.pieces[ranks.rank]:
            piece.of(of_rank)[...] = self._own[piece.tensor].array
        to = [buffer, layout.counts, layout.begins, ranks.mpi.BYTE]
        ranks.wait(ranks.comm.Iallgatherv(ranks.mpi.IN_PLACE, to), call)
        for rank, pieces in enumerate(layout.pieces):
            of_rank = layout.of_rank(buffer, rank)
            for piece in pieces:
                param = self._params[piece.tensor]
                if rank != ranks.rank or not self._own[piece.tensor].is_view:
                    _elements(param)[piece.begin : piece.end] = piece.of(of_rank)

    def _layout(self, dtypes: Sequence[np.dtype[Any] | None]) -> Layout:
        key = tuple(dtypes)
        if key not in self._layouts:
            self._layouts.clear()  # of other parameters that take part
            self._layouts[key] = Layout(self._all_parts, dtypes)
        return self._layouts[key]

    def _buffer(self, name: str, size: int) -> Array:
        """Bytes that are kept from step to step."""
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, np.uint8)
        return self._buffers[name][:size]

    def _drop_sums(self) -> None:
        if self._inner._sums is not None:
            self._inner._sums.clear()

    def _note(self, error: Exception, facts: list[dict[str, Any]] | None, before: int) -> None:
        """Refuses further steps where some ranks have taken the one that failed."""
        counts = [self._inner.step_count, *(of.get("step_count", before) for of in facts or [])]
        if any(count != before for count in counts):
            self.__dict__["_broken"] = f"a step has failed after some ranks had taken it ({error})"

    # What the optimizer has.

    @property
    def comm(self) -> Any:
        """The communicator."""
        return self._ranks.comm

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in order."""
        return self._inner.names

    @property
    def groups(self) -> list[OptionGroup]:
        """The options of each group of parameters, as `Optimizer.groups`."""
        return self._inner.groups

    @property
    def parts(self) -> dict[str, slice]:
        """The elements of each parameter that this rank steps, in C order."""
        return dict(zip(self.names, (slice(*part) for part in self._all_parts[self._ranks.rank]), strict=True))

    @property
    def state(self) -> dict[str, Any]:
        """The state arrays of this rank's parts, as `Optimizer.state`."""
        return self._inner.state

    @property
    def step_count(self) -> int:
        """The number of steps taken."""
        return self._inner.step_count

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, as `Optimizer.grad_norm`."""
        return self._inner.grad_norm

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in REFUSED:
            raise AttributeError(f"a sharded optimizer has no {name}")
        return getattr(self._inner, name) if self._has(name) else object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._has(name):
            raise AttributeError(f"a sharded {type(self._inner).__name__} has no option {name!r}")
        setattr(self._inner, name, value)

    def _has(self, name: str) -> bool:
        return name in self._inner.known or name in self._inner.step_options or name == "schedule"

    def __repr__(self) -> str:
        return f"{self._inner!r} on rank {self._ranks.rank} of {self._ranks.count}"

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """`with opt.averaged():` sets the parameters to their averages on all ranks; see `Optimizer.averaged`.

        Leaving restores their exact bits, from a copy, without communication.
        """
        call = "averaged()"
        with ExitStack() as stack:
            with self._ranks.agreeing(call, self._option_facts):
                saved = [param.copy() for param in self._params]
                for own in self._own:
                    own.refresh()
                stack.callback(self._restore, saved)
                stack.enter_context(self._inner.averaged())
            self._gather(call)
            yield

    def _restore(self, saved: Sequence[Array]) -> None:
        for param, bits in zip(self._params, saved, strict=True):
            param[...] = bits

    # Checkpoints.

    def state_dict(self) -> dict[str, Any] | None:
        """On rank 0 the state dict, whole, as `Optimizer.state_dict` of one process; None on the others."""
        call, ranks = "state_dict()", self._ranks
        data: dict[str, Any] = {}
        with ranks.agreeing(call, self._option_facts):
            data.update(self._inner.state_dict())
        for tensor, entries in enumerate(data["state"].values()):
            for name, value in entries.items():
                if isinstance(value, np.ndarray):
                    shape, counts = self._shape(tensor, name)
                    whole = ranks.gather(value, counts, call)
                    entries[name] = None if whole is None else whole.reshape(shape)
        return data if ranks.rank == 0 else None

    def load_state_dict(self, saved: Mapping[str, Any] | None) -> None:
        """Loads what `state_dict` returned, of any number of ranks, or what that of one process did.

        Parameters
        ----------
        saved : dict, or None
            The state dict on rank 0. What other ranks give is ignored.

        Raises
        ------
        TypeError, ValueError
            As `Optimizer.load_state_dict` does, on the rank that finds it. Nothing has changed then.
        RuntimeError
            Where another rank has raised an error.
        """
        call, ranks = "load_state_dict()", self._ranks
        data: Any = None
        with ranks.agreeing(call):
            if ranks.rank == 0:
                data = self._outline(saved)
        data = ranks.comm.bcast(data, root=0)
        for tensor, path in enumerate(self.names):
            entries = data["state"].get(path, {})
            for name, of in entries.items():
                if isinstance(of, _Outline):
                    _, counts = self._shape(tensor, name)
                    whole = saved["state"][path][name] if ranks.rank == 0 else None  # type: ignore[index]
                    entries[name] = ranks.scatter(whole, counts, numpy_dtype(of.dtype), call)
        before = self._inner.state_dict()
        try:
            with ranks.agreeing(call):
                self._inner.load_state_dict(data)
        except Exception:
            self._inner.load_state_dict(before)
            raise
        self.__dict__["_broken"] = ""

    def _outline(self, saved: Any) -> dict[str, Any]:
        """A state dict without its arrays. Raises where they do not fit."""
        if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
            raise TypeError("a sharded optimizer loads state dicts of format 2, on rank 0")
        if saved.get("accumulated"):
            raise ValueError("the state dict has accumulated gradients, which a sharded optimizer cannot load")
        tensors = {path: tensor for tensor, path in enumerate(self.names)}
        state: dict[str, Any] = {}
        wrong = []
        for path, entries in saved["state"].items():
            if not isinstance(entries, Mapping):
                raise TypeError(f"the state dict['state'][{path!r}] must be a dict")
            state[path] = dict(entries)
            for name, value in entries.items():
                if not isinstance(value, np.ndarray):
                    continue
                own = self._inner._kept.get(path, {}).get(name)
                if own is None:  # refused by its name
                    state[path][name] = np.empty(0)
                    continue
                shape, _ = self._shape(tensors[path], name)
                if value.shape != shape or value.dtype != own.dtype:
                    wrong.append(f"{path} ({name} is {value.dtype} {value.shape}, not {own.dtype} {shape})")
                state[path][name] = _Outline(own.dtype.name)
        if wrong:
            raise ValueError(f"the state dict does not fit this optimizer; mismatched: {'; '.join(wrong)}")
        return {**saved, "state": state}

    def _shape(self, tensor: int, name: str) -> tuple[tuple[int, ...], list[int]]:
        """The shape of a kept array of the whole, and the number of elements that each rank has of it."""
        counts = [end - begin for begin, end in (of_rank[tensor] for of_rank in self._all_parts)]
        if name in {_storage.scale_of(state) for state in RULES[self._inner.rule]["states"]}:
            return (-(-self._sizes[tensor] // _core.BLOCK),), [-(-count // _core.BLOCK) for count in counts]
        return self._params[tensor].shape, counts


def save(path: str | os.PathLike[str], opt: Sharded, params: Params | None = None) -> None:
    """Saves what `gradstep.save` saves, in one file, which rank 0 writes; all ranks call it.

    A file at `path` is replaced only when the new one is complete and on the disk. It does not depend on the number of
    ranks: `gradstep.load` reads it in one process. Needs `gradstep[safetensors]`.

    Raises
    ------
    OSError, ModuleNotFoundError
        As `gradstep.save`, on rank 0.
    RuntimeError
        On the other ranks where rank 0 has raised an error.
    """
    data, ranks = opt.state_dict(), opt._ranks
    with ranks.agreeing("save()"):
        if data is not None:
            _files.write(path, data, None if params is None else _named(opt, params))


def load(path: str | os.PathLike[str], opt: Sharded) -> None:
    """Loads what `save` or `gradstep.save` wrote, which rank 0 reads; all ranks call it. Raises as `gradstep.load`.

    Other ranks raise RuntimeError where rank 0 has raised an error.
    """
    call, ranks = "load()", opt._ranks
    data: dict[str, Any] | None = None
    params: Any = None
    with ranks.agreeing(call):
        if ranks.rank == 0:
            data, params = _files.read(path)
            _files._check_params(params or {}, {} if params is None else _named(opt, None))
    opt.load_state_dict(data)
    if ranks.comm.bcast(params is not None, root=0):
        for name, param in _named(opt, None).items():
            whole = np.ascontiguousarray(params[name] if ranks.rank == 0 else param).reshape(-1).view(np.uint8)
            ranks.wait(ranks.comm.Ibcast([whole, ranks.mpi.BYTE], root=0), call)
            param[...] = whole.view(param.dtype).reshape(param.shape)


class _Outline(NamedTuple):
    """What stands for an array while it is on the way."""

    dtype: str


class _Part:
    """A part of a parameter as a contiguous array: a view, or a copy where the parameter is not in C order."""

    def __init__(self, param: Array, begin: int, end: int) -> None:
        self._param, self._begin, self._end = param, begin, end
        self.is_view = bool(param.flags.c_contiguous)
        of = _elements(param)[begin:end]
        self.array: Array = of if self.is_view else np.array(of)

    def refresh(self) -> None:
        """Takes over the values of the parameter."""
        if not self.is_view:
            self.array[...] = _elements(self._param)[self._begin : self._end]


def _elements(param: Array) -> Any:
    """The elements of an array in C order, which can be written."""
    return param.reshape(-1) if param.flags.c_contiguous else param.flat


def _with_sizes(optimizer: type[Optimizer], views: Sequence[Array], sizes: Sequence[int]) -> type[Optimizer]:
    """The class, with states for parts as for their wholes: `min_8bit_size` is about the size of the whole."""
    whole = {id(view): size for view, size in zip(views, sizes, strict=True)}

    def make(self: Any, params: Sequence[Array], group: OptionGroup) -> _storage.Columns:
        rule, firsts, options = RULES[self.rule], self._first_states(group), group.raw
        least = options["min_8bit_size"]
        kept: _storage.Columns = {}
        for i, param in enumerate(params):
            of_whole = {**options, "min_8bit_size": 0 if whole[id(param)] >= least else param.size + 1}
            own = _storage.rows_of(_storage.make([param], rule, firsts, of_whole), 1)[0]
            _storage.put_row(kept, own, i, len(params))
        return kept

    return type(optimizer.__name__, (optimizer,), {"_make": make, "__doc__": optimizer.__doc__})


def _nest(params: Any, specs: list[Any] | None) -> Any:
    """The nest of all parameters, with a list entry for each group."""
    return params if specs is None else [spec.get("params") for spec in specs]


def _named(opt: Sharded, params: Any) -> dict[str, Array]:
    """The parameters by name; or the arrays of another nest of the same structure."""
    if params is None:
        return dict(zip(opt.names, opt._params, strict=True))
    nest = _nest(params, list(params) if is_groups(params) else None)
    return dict(zip(opt.names, opt._tree.flatten(nest, "params"), strict=True))


def _begins(counts: Sequence[int]) -> list[int]:
    """Where the parts of these sizes begin, one after the other."""
    return [0, *accumulate(counts)][:-1]


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without nesting, as text; numbers of steps stay numbers."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat.update({f"{name} {key}": repr(own) for key, own in value.items()})
        else:
            flat[name] = value if isinstance(value, int) else repr(value)
    return flat


def _differences(everyones: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Words for each fact that is not the same on all ranks."""
    for name in dict.fromkeys(name for of in everyones for name in of):
        ranks_of: dict[Any, list[int]] = {}
        for rank, of in enumerate(everyones):
            ranks_of.setdefault(of.get(name, "absent"), []).append(rank)
        if len(ranks_of) > 1:
            shown = ", ".join(
                f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
                for value, ranks in ranks_of.items()
            )
            yield f"{name} is {shown}"

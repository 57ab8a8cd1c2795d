"""Optimizers whose states are shared out among the ranks of an MPI program, with the bits of one process.

Each rank has all parameters, and keeps the states of its part of them (the first stage of ZeRO; Rajbhandari, Rasley,
Ruwase and He, 2020). A step exchanges gradients, steps the part and gathers parameters, one bucket after the other: one
is on the way while another is worked on.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from . import _core, _files, _storage
from ._arithmetic import Sums, adder, sgd_options
from ._groups import RULES, OptionGroup
from ._libraries import numpy_dtype
from ._loss_scale import LossScale
from ._optimizer import Optimizer, StepResult
from ._options import POSITIVE, whole
from ._step import check_apart, run_step
from ._types import Array, Grads, Params, is_groups

PART: Final = _core.PART
"""The number of elements of a block. Parts of parameters begin and end at blocks, and at the parameter's end."""
BUCKET: Final = 2**22
"""The number of elements, of all ranks together, that are exchanged at a time."""
ALONE: Final = 2**16
"""Pieces of at least this number of bytes are sent from where they are; smaller ones are packed into one message."""
ALIGNMENT: Final = 64
"""Pieces in a buffer of messages begin at multiples of this number of bytes."""
ORDERS: Final = ("ranks", "fast")
"""How the gradients of ranks are added."""
REFUSED: Final = ("add_group", "replace", "rebind", "lookahead", "accumulate", "stats", "preset")
"""Attributes of optimizers that a sharded one lacks."""


def sharded(
    optimizer: type[Optimizer],
    params: Params,
    *args: Any,
    comm: Any = None,
    order: str = "ranks",
    bucket: int = BUCKET,
    timeout: float = 300.0,
    **options: Any,
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
    order : {"ranks", "fast"}
        How gradients are added: in the order of ranks, which gives the bits of one process; or by the reduction of the
        MPI library, in an order of its own, so that results depend on the library and the number of ranks.
    bucket : int
        The number of elements, of all ranks together, that are exchanged while those before them are worked on. Each
        rank has at least a block of 16384 in a bucket.
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
    return Sharded(optimizer, params, args, options, Ranks(comm, timeout), order, bucket)


class AgreedError(RuntimeError):
    """An error of another rank, which all ranks know of."""


give_way: Final[Callable[[], None]] = getattr(os, "sched_yield", partial(time.sleep, 0))
"""Lets other processes run. `time.sleep(0)` takes 80 us in Python 3.11, where a small message takes 5 us."""


class Transfer(NamedTuple):
    """A communication under way, and the arrays that it reads or writes."""

    request: Any
    arrays: tuple[Array, ...]


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
        self.others = [(self.rank + i) % self.count for i in range(1, self.count)]
        self._lost = ""  # why nothing can be exchanged any more
        self._under_way: dict[int, Transfer] = {}  # keeps their arrays alive, also after a failure

    def begin(self, request: Any, *arrays: Array) -> Transfer:
        """A communication that has begun."""
        transfer = Transfer(request, arrays)
        self._under_way[id(transfer)] = transfer
        return transfer

    def send(self, messages: Sequence[Array], to: int) -> list[Transfer]:
        """Begins to send bytes to a rank."""
        return [self.begin(self.comm.Isend([bytes_, self.mpi.BYTE], to), bytes_) for bytes_ in messages]

    def receive(self, messages: Sequence[Array], of: int) -> list[Transfer]:
        """Begins to receive bytes from a rank, in the order in which it sends them."""
        return [self.begin(self.comm.Irecv([bytes_, self.mpi.BYTE], of), bytes_) for bytes_ in messages]

    def wait(self, what: str, *transfers: Transfer) -> None:
        """Waits for communications. Raises TimeoutError."""
        begin = time.monotonic()
        requests = [transfer.request for transfer in transfers]
        done = False
        try:
            while not (done := self.mpi.Request.Testall(requests)):
                waited = time.monotonic() - begin
                if waited > self.timeout:
                    raise TimeoutError(
                        f"rank {self.rank} of {self.count} has waited {self.timeout:g} s for the others in {what}: "
                        "one has ended, or does not take part"
                    )
                if waited < 0.01:
                    give_way()
                else:
                    time.sleep(0.001)
        finally:
            if done:
                for transfer in transfers:
                    del self._under_way[id(transfer)]
            else:
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
        self.wait(call, self.begin(self.comm.Iallgather(mine, all_digests), mine, all_digests))
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
        whole = np.empty(sum(counts) if self.rank == 0 else 0, part.dtype)
        nbytes = [count * part.itemsize for count in counts]
        to = [whole.view(np.uint8), nbytes, _begins(nbytes), self.mpi.BYTE] if self.rank == 0 else None
        self.wait(what, self.begin(self.comm.Igatherv([part.view(np.uint8), self.mpi.BYTE], to, root=0), part, whole))
        return whole if self.rank == 0 else None

    def scatter(self, whole: Array | None, counts: Sequence[int], dtype: Any, what: str) -> Array:
        """This rank's part of an array of rank 0."""
        part = np.empty(counts[self.rank], dtype)
        nbytes = [count * part.itemsize for count in counts]
        given = np.ascontiguousarray([] if whole is None else whole).reshape(-1).view(np.uint8)
        of = None if whole is None else [given, nbytes, _begins(nbytes), self.mpi.BYTE]
        self.wait(what, self.begin(self.comm.Iscatterv(of, [part.view(np.uint8), self.mpi.BYTE], root=0), part, given))
        return part


class Piece(NamedTuple):
    """A part of a parameter in a bucket."""

    begin: int
    end: int
    place: int
    """Of its first byte among those of the bucket."""
    dtype: np.dtype[Any]

    def of(self, buffer: Array) -> Array:
        """The elements, in the bytes of the bucket."""
        return buffer[self.place : self.place + (self.end - self.begin) * self.dtype.itemsize].view(self.dtype)


class Bucket:
    """What is sent of a rank's parts at one time: large pieces as messages of their own, the others packed into one."""

    def __init__(self, spans: Mapping[int, tuple[int, int]], dtypes: Sequence[np.dtype[Any] | None]) -> None:
        self.pieces: dict[int, Piece] = {}
        """By the number of the parameter, small ones first."""
        self.packed = self.size = 0
        """The numbers of bytes: of small pieces, and of all."""
        for are_large in (False, True):
            for tensor, (begin, end) in spans.items():
                dtype = dtypes[tensor]
                if dtype is None:
                    continue
                nbytes = (end - begin) * dtype.itemsize
                if (nbytes >= ALONE) is are_large:
                    self.pieces[tensor] = Piece(begin, end, self.size, dtype)
                    self.size += -(-nbytes // ALIGNMENT) * ALIGNMENT
            if not are_large:
                self.packed = self.size

    def views(self, buffer: Array) -> dict[int, Array]:
        """The pieces in a buffer."""
        return {tensor: piece.of(buffer) for tensor, piece in self.pieces.items()}

    def pack(self, arrays: Mapping[int, Array], buffer: Array) -> Array:
        """Copies small pieces to a buffer."""
        for tensor, piece in self.pieces.items():
            if piece.place < self.packed:
                piece.of(buffer)[...] = arrays[tensor]
        return buffer

    def messages(self, arrays: Mapping[int, Array], buffer: Array) -> list[Array]:
        """The bytes of the packed pieces, which are in a buffer, and of each other one, which is an array."""
        large = [tensor for tensor, piece in self.pieces.items() if piece.place >= self.packed]
        return [buffer[: self.packed]] * (self.packed > 0) + [arrays[tensor].view(np.uint8) for tensor in large]


def buckets_of(part: Sequence[tuple[int, int]], size: int) -> list[dict[int, tuple[int, int]]]:
    """The part that a rank has, in buckets of successive elements, at least `size` and less than `size` + PART.

    Each bucket has the begin and the end of its elements by the number of the array. They are whole blocks, but for the
    last of an array. The last bucket may be smaller. `size` is at least PART.
    """
    buckets: list[dict[int, tuple[int, int]]] = [{}]
    room = size
    for tensor, (begin, end) in enumerate(part):
        while begin < end:
            if room <= 0:
                buckets.append({})
                room = size
            stop = min(begin + -(-room // PART) * PART, end)
            buckets[-1][tensor] = begin, stop
            room -= stop - begin
            begin = stop
    return buckets


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


class Gather:
    """Parameters on the way: each rank sends those of its part, bucket by bucket, and receives those of the others."""

    def __init__(self, opt: Sharded, call: str, dtypes: list[np.dtype[Any] | None]) -> None:
        self._opt, self._call = opt, call
        self._layout = opt._layout("params", dtypes)
        self._begun: list[tuple[list[Transfer], list[tuple[int, Piece, Array]]]] = []
        """Of each bucket the messages, and the arrays from which pieces of parameters are to be copied."""
        self._finished = 0

    def send(self, count: int) -> None:
        """Begins to exchange the first `count` buckets, which have been stepped. Two are under way at a time."""
        for number in range(len(self._begun), count):
            self._finish(number - 1)
            self._begun.append(self._begin(number))

    def finish(self) -> None:
        """Sets the parameters on all ranks to the parts that each has."""
        self.send(len(self._layout[0]))
        self._finish(len(self._begun))

    def _begin(self, number: int) -> tuple[list[Transfer], list[tuple[int, Piece, Array]]]:
        opt, ranks = self._opt, self._opt._ranks
        transfers: list[Transfer] = []
        copied = []
        received = opt._buffer(("received", number % 2), sum(of[number].size for of in self._layout))
        for rank in ranks.others:
            bucket = self._layout[rank][number]
            buffer, received = received[: bucket.size], received[bucket.size :]
            arrays = bucket.views(buffer)
            for tensor, piece in bucket.pieces.items():
                param = opt._params[tensor]
                if piece.place >= bucket.packed and param.flags.c_contiguous:
                    arrays[tensor] = _elements(param)[piece.begin : piece.end]
                else:
                    copied.append((tensor, piece, arrays[tensor]))
            transfers += ranks.receive(bucket.messages(arrays, buffer), rank)
        bucket = self._layout[ranks.rank][number]
        own = {tensor: opt._own[tensor].of(piece.begin, piece.end) for tensor, piece in bucket.pieces.items()}
        copied += [(tensor, bucket.pieces[tensor], own[tensor]) for tensor in own if not opt._own[tensor].is_view]
        buffer = bucket.pack(own, opt._buffer(("sent", number % 2), bucket.packed))
        for rank in ranks.others:
            transfers += ranks.send(bucket.messages(own, buffer), rank)
        return transfers, copied

    def _finish(self, count: int) -> None:
        for number in range(self._finished, count):
            transfers, copied = self._begun[number]
            self._opt._ranks.wait(self._call, *transfers)
            for tensor, piece, array in copied:
                _elements(self._opt._params[tensor])[piece.begin : piece.end] = array
            self._finished = number + 1


class Sharded:
    """An optimizer whose states are shared out among ranks; see `sharded`.

    All ranks must call the same methods in the same order. Options are attributes, as of the optimizer; each rank sets
    them to the same values. `state` has the arrays of this rank's part, which are one-dimensional, and `parts` says
    which part that is.

    The bits of parameters and states are those of one process that calls `accumulate` of the optimizer with the
    gradients of each rank, in the order of ranks, and then `step()`, unless `order="fast"`.
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
    _order: str
    _bucket: int
    _buckets: list[list[dict[int, tuple[int, int]]]]
    """The buckets of each rank, with the begin and the end of the elements of each parameter."""
    _layouts: dict[str, tuple[list[str | None], list[list[Bucket]]]]
    """Of gradients and of parameters, the last dtypes and the buckets of each rank."""
    _adders: tuple[Sums | None, list[_core.Stepper]]
    """The sums of gradients, and what adds to them, for each bucket."""
    _gathered: Gather
    """The parameters of the step that is taken."""
    _buffers: dict[tuple[str, int], Array]
    _broken: str
    """Why no step is possible before a load."""

    def __init__(
        self,
        optimizer: type[Optimizer],
        params: Params,
        args: Sequence[Any],
        options: Mapping[str, Any],
        ranks: Ranks,
        order: str,
        bucket: int,
    ) -> None:
        with ranks.agreeing("sharded()", self._first_facts):
            if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
                raise TypeError("sharded() takes a class of optimizers, such as gradstep.Adam")
            for name in ("grads", "copy_out"):
                if options.get(name) is not None:
                    raise ValueError(f"a sharded {optimizer.__name__} cannot have {name}")
            if order not in ORDERS:
                raise ValueError(f'order must be "ranks" or "fast", not {order!r}')
            bucket = whole(1, 2**62).check(bucket, "bucket")
            specs = list(params) if is_groups(params) else None  # type: ignore[arg-type]
            self.__dict__.update(_ranks=ranks, _tree=_core.Tree(_nest(params, specs)), _broken="", _buffers={})
            self.__dict__.update(_order=order, _bucket=bucket, _layouts={}, _adders=(None, []))
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
            buckets = [buckets_of(part, max(PART, bucket // ranks.count)) for part in all_parts]
            most = max(map(len, buckets))
            buckets = [[*of_rank, *({} for _ in range(most - len(of_rank)))] for of_rank in buckets]
            counts = [sum(end - begin for begin, end in spans.values()) for spans in buckets[ranks.rank]]
            inner._engine.stepper.set_parts(parts, self._exchange, counts, self._stepped)
            self.__dict__.update(
                _inner=inner, _params=leaves, _sizes=sizes, _all_parts=all_parts, _own=buffers, _buckets=buckets
            )

    def _first_facts(self) -> dict[str, Any]:
        """What must be the same on all ranks at construction."""
        inner = self._inner
        each = list(zip(inner.names, self._params, strict=True))
        return {
            "optimizer": type(inner).__name__,
            "rule": inner.rule,
            "order": self._order,
            "bucket": self._bucket,
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
            self._prepare(flat)
            grad_scale = POSITIVE.check(grad_scale, f"{type(inner).__name__}: grad_scale")

        before, refused = inner.step_count, None
        self.__dict__["_gathered"] = gathered = Gather(
            self, call, [None if grad is None else param.dtype for grad, param in zip(flat, self._params, strict=True)]
        )
        try:
            self._accumulate(flat)
            for own in self._own:
                own.refresh()
            try:
                result = inner.step(grad_scale=grad_scale)
            except FloatingPointError as error:  # on all ranks
                refused = error
            else:
                if result.applied:
                    gathered.finish()
        except AgreedError:  # of the last meeting before anything was written
            self._drop_sums()
            raise
        except Exception as error:
            self._drop_sums()
            if inner.step_count != before:
                with suppress(TimeoutError, RuntimeError):  # the others wait for this rank's parameters
                    ranks.check_reachable()
                    gathered.finish()
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

    def _prepare(self, flat: Sequence[Array | None]) -> None:
        """Makes what the exchange of gradients needs, which may fail on one rank."""
        ranks, inner = self._ranks, self._inner
        self._layout("grads", [None if grad is None else grad.dtype for grad in flat])
        with inner._engine.lock:
            sums = inner._accumulator()
        if self._adders[0] is not sums:
            arrays, firsts = list(sums.arrays.values()), [begin for begin, _ in self._all_parts[ranks.rank]]
            adders = [
                adder([arrays[tensor][begin - firsts[tensor] : end - firsts[tensor]] for tensor, (begin, end) in of])
                for of in (spans.items() for spans in self._buckets[ranks.rank])
            ]
            self.__dict__["_adders"] = sums, adders

    def _accumulate(self, flat: Sequence[Array | None]) -> None:
        """Adds the gradients of all ranks to the sums of this rank's parts.

        Those of a bucket are added while those of the next one are under way.
        """
        ranks, (sums, adders) = self._ranks, self._adders
        assert sums is not None
        sums.given.update(name for name, grad in zip(sums.arrays, flat, strict=True) if grad is not None)
        begin = self._in_rank_order if self._order == "ranks" else self._reduced
        failed: Exception | None = None
        under_way = begin(0, flat)
        for number, (spans, stepper) in enumerate(zip(self._buckets[ranks.rank], adders, strict=True)):
            arriving = under_way
            if number + 1 < len(adders):
                under_way = begin(number + 1, flat)
            for arrays in arriving:
                if failed is not None:  # the others expect that this rank's messages arrive
                    continue
                try:
                    run_step(stepper, [arrays.get(tensor) for tensor in spans])
                except Exception as error:
                    failed = error
        if failed is not None:
            raise failed
        sums.count = ranks.count

    def _in_rank_order(self, number: int, flat: Sequence[Array | None]) -> Iterator[dict[int, Array]]:
        """Begins the exchange of a bucket's gradients. Yields those of each rank, one rank after the other."""
        ranks, layout = self._ranks, self._layouts["grads"][1]
        own = layout[ranks.rank][number]
        received = self._buffer(("received", number % 2), own.size * ranks.count).reshape(ranks.count, own.size)
        sent = self._buffer(("sent", number % 2), sum(of_rank[number].packed for of_rank in layout))
        arrays = [own.views(buffer) for buffer in received]
        arrays[ranks.rank] = _pieces(own, flat)
        arriving: list[list[Transfer]] = [[] for _ in arrays]
        leaving: list[Transfer] = []
        for rank in ranks.others:
            arriving[rank] = ranks.receive(own.messages(arrays[rank], received[rank]), rank)
        for rank in ranks.others:
            bucket = layout[rank][number]
            pieces, buffer, sent = _pieces(bucket, flat), sent[: bucket.packed], sent[bucket.packed :]
            leaving += ranks.send(bucket.messages(pieces, bucket.pack(pieces, buffer)), rank)

        def arrive() -> Iterator[dict[int, Array]]:
            for rank, transfers in enumerate(arriving):
                ranks.wait("step()", *transfers)
                yield arrays[rank]
            ranks.wait("step()", *leaving)

        return arrive()

    def _reduced(self, number: int, flat: Sequence[Array | None]) -> Iterator[dict[int, Array]]:
        """Begins the reduction of a bucket's gradients by the library. Yields their sums."""
        ranks, layout = self._ranks, self._layouts["grads"][1]
        sums: dict[int, Array] = {}
        transfers = []
        for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
            pieces = [
                {tensor: piece for tensor, piece in of[number].pieces.items() if self._is_summed_in(tensor, dtype)}
                for of in layout
            ]
            counts = [sum(piece.end - piece.begin for piece in of_rank.values()) for of_rank in pieces]
            if sum(counts) == 0:
                continue
            sent = self._buffer((f"sent {dtype}", number % 2), sum(counts) * dtype.itemsize).view(dtype)
            received = self._buffer((f"received {dtype}", number % 2), counts[ranks.rank] * dtype.itemsize).view(dtype)
            place = 0
            with np.errstate(over="ignore"):  # a float64 gradient may be infinite in float32
                for tensor, piece in (item for of_rank in pieces for item in of_rank.items()):
                    size = piece.end - piece.begin
                    sent[place : place + size] = _elements(flat[tensor])[piece.begin : piece.end]
                    place += size
            place = 0
            for tensor, piece in pieces[ranks.rank].items():
                size = piece.end - piece.begin
                sums[tensor] = received[place : place + size]
                place += size
            request = ranks.comm.Ireduce_scatter(sent, received, counts, ranks.mpi.SUM)
            transfers.append(ranks.begin(request, sent, received))

        def arrive() -> Iterator[dict[int, Array]]:
            ranks.wait("step()", *transfers)
            yield sums

        return arrive()

    def _is_summed_in(self, tensor: int, dtype: np.dtype[Any]) -> bool:
        """Whether the sums of a parameter's gradients have a dtype."""
        return _storage.is_double(self._params[tensor]) is (dtype == np.float64)

    def _stepped(self, count: int) -> None:
        """Sends the parameters of the buckets that have been stepped. Before the step, all ranks meet."""
        if count == 0:
            self._ranks.meet("step()", {"exchanged": "gradients"})
        else:
            self._gathered.send(count)

    def _exchange(self, sums: Array, tensor: int, element: int) -> tuple[Array, int, int]:
        """The sums of squares of all ranks' gradients, and the first element that is not finite."""
        ranks, call = self._ranks, "step()"
        ranks.meet(call, {"exchanged": "norms"})
        mine, everyones = np.array([sums.size, tensor, element]), np.empty((ranks.count, 3), np.int64)
        ranks.wait(call, ranks.begin(ranks.comm.Iallgather(mine, everyones), mine, everyones))
        counts = everyones[:, 0].tolist()
        whole = np.empty(sum(counts))
        to = [whole, counts, _begins(counts), ranks.mpi.DOUBLE]
        ranks.wait(call, ranks.begin(ranks.comm.Iallgatherv([sums, ranks.mpi.DOUBLE], to), sums, whole))
        found = [(first, at) for _, first, at in everyones.tolist() if first >= 0]
        return whole, *min(found, default=(-1, -1))

    def _layout(self, what: str, dtypes: list[np.dtype[Any] | None]) -> list[list[Bucket]]:
        """The buckets of each rank for arrays of these dtypes, None for those that are not exchanged."""
        names = [None if dtype is None else dtype.name for dtype in dtypes]  # the dtype float64 equals None
        last = self._layouts.get(what)
        if last is None or last[0] != names:
            buckets = [[Bucket(spans, dtypes) for spans in of_rank] for of_rank in self._buckets]
            self._layouts[what] = last = names, buckets
        return last[1]

    def _buffer(self, name: tuple[str, int], size: int) -> Array:
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
            Gather(self, call, [param.dtype for param in self._params]).finish()
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
            ranks.wait(call, ranks.begin(ranks.comm.Ibcast([whole, ranks.mpi.BYTE], root=0), whole))
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

    def of(self, begin: int, end: int) -> Array:
        """Elements of the parameter, by their places there."""
        return self.array[begin - self._begin : end - self._begin]

    def refresh(self) -> None:
        """Takes over the values of the parameter."""
        if not self.is_view:
            self.array[...] = _elements(self._param)[self._begin : self._end]


def _elements(array: Any) -> Any:
    """The elements of an array in C order, which can be written."""
    return array.reshape(-1) if array.flags.c_contiguous else array.flat


def _pieces(bucket: Bucket, arrays: Sequence[Array | None]) -> dict[int, Array]:
    """The pieces of a bucket: views, or copies where arrays are not in C order."""
    return {tensor: _elements(arrays[tensor])[piece.begin : piece.end] for tensor, piece in bucket.pieces.items()}


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

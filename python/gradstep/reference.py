"""The eight optimizers in plain NumPy: the oracle of gradstep's tests, to be read beside ``docs/numerics.md``.

Each ``update`` is that page's **Scalars** (Python floats, rounded once by ``T``) and then its **Element** lines, which
NumPy evaluates in ``T``, one rounding an operation. Around it, what is stored as something else is widened to ``T``
and rounded back: the page's **Storage**. Nothing is validated here, and nothing is fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Array | Sequence[Array] | dict[str, Array]
Params: TypeAlias = Arrays | Sequence[dict[str, Any]]
Grads: TypeAlias = Any  # the structure of params, with None in place of an array that is to be skipped
Rate: TypeAlias = float | Callable[[int], float]
Options: TypeAlias = SimpleNamespace  # a group's options by name; within a step, lr is a float
Slot: TypeAlias = SimpleNamespace  # a parameter p, its own step number t, its place tensor, and its states by name


def power(base: float, n: int) -> float:
    """``base`` to the whole power ``n``, by repeated squaring."""
    result = 1.0
    while n > 0:
        if n % 2 == 1:
            result = result * base
        base = base * base
        n = n // 2
    return result


def momentum_schedule(x: float) -> float:
    """``0.96 ** x`` for ``x >= 0``: a whole power, times a Taylor series for the fraction."""
    if x > 1e6:
        return 0.0
    whole = math.floor(x)
    r = (x - whole) * -0.040821994520255166
    series = 1.0
    for i in range(12, 0, -1):
        series = 1.0 + (r * series) / i
    return power(0.96, whole) * series


def lane_sums(x: Array) -> Array:
    """The sum of every row of float64, none of them negative, by 128 lanes."""
    lanes = np.zeros((len(x), 128))
    for first in range(0, x.shape[1], 128):
        some = x[:, first : first + 128]
        lanes[:, : some.shape[1]] += some
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def global_norm(arrays: Sequence[Array | None]) -> float:
    """The Euclidean norm of all elements together: chunks of 4096 are added up, then tensors, then the whole."""
    sums = np.zeros((1, len(arrays)))
    with np.errstate(all="ignore"):
        for i, array in enumerate(arrays):
            if array is not None and array.size > 0:
                x = widened(array).reshape(-1).astype(np.float64)
                chunks = np.pad(x * x, (0, -x.size % 4096)).reshape(-1, 4096)
                [sums[0, i]] = lane_sums(lane_sums(chunks).reshape(1, -1))
        return math.sqrt(lane_sums(sums)[0])


# Storage. The codecs below take and give arrays of one dimension, of all elements in C order; codes are of the unsigned
# integers that they fit into, and ``r`` holds the random bits of every element.


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-7 of the counter ``c`` and the key ``k``: of integers, or of uint64 arrays, none above 32 bits."""
    for _ in range(7):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 % 2**32, (product0 >> 32) ^ c3 ^ k1, product0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def random_bits(size: int, stream: int, t: int, tensor: int, seed: int) -> Array:
    """``r`` of elements 0 to ``size``: a word for the place in a group of 64, and one for the group."""

    def draw(n: Array, kind: int) -> tuple[Array, ...]:
        upper = (n >> 32) + (stream << 24) + (kind << 31)
        return philox(n % 2**32, upper, t % 2**32, tensor, seed % 2**32, seed >> 32)

    place = np.concatenate(draw(np.arange(16, dtype=np.uint64), 1))
    group = np.stack(draw(np.arange(-(-size // 256), dtype=np.uint64), 0), axis=1).reshape(-1, 1)
    r: Array = (group ^ place).reshape(-1)[:size].astype(np.uint32)
    return r


def bits(x: Array) -> Array:
    """float32 as integers."""
    return np.asarray(x, np.float32).view(np.uint32)


def from_bits(code: Array) -> Array:
    """Integers as float32."""
    return code.astype(np.uint32).view(np.float32)


def to_bfloat16(x: Array, r: Any) -> Array:
    """The codes of float32: stochastic, or to nearest where ``r`` is None."""
    half = 0x7FFF + ((bits(x) >> 16) & 1)  # of a step: a tie goes to the even one
    up = half if r is None else r >> 16
    return np.where(np.isnan(x), 0x7FC0, (bits(x) + up) >> 16).astype(np.uint16)


def to_float16(x: Array, r: Any) -> Array:
    """The codes of float32: stochastic, or to nearest where ``r`` is None."""
    if r is None:
        return x.astype(np.float16).view(np.uint16)
    a = np.abs(x)
    normal = ((bits(a) + (r >> 19)) >> 13) - (112 << 10)
    subnormal = ((a * 2.0**40).astype(np.uint32) + (r >> 16)) >> 16
    nan, infinity = np.uint32(0x7E00), np.uint32(0x7C00)
    code = np.select([np.isnan(x), a >= 65536, a >= 2.0**-14], [nan, infinity, normal], subnormal)
    signed: Array = (code | ((bits(x) >> 16) & 0x8000)).astype(np.uint16)
    return signed


class Q8(NamedTuple):
    """A format of one byte."""

    exponents: int
    least_scale: float
    not_finite: int  # the magnitude for infinity and NaN, and what it is read as
    read_as: float


FORMATS = {
    np.dtype(np.int8): Q8(15, 2.0**-111, 128, math.nan),
    np.dtype(np.uint8): Q8(30, 2.0**-96, 248, math.inf),
}


def each(scales: Array, size: int) -> Array:
    """The scale of every element."""
    return np.repeat(scales, 256)[:size]


def to_scales(x: Array, f: Q8) -> Array:
    """The scales of the blocks of float32."""
    finite = np.where(np.isfinite(x), np.abs(x), np.float32(0))
    M = np.pad(finite, (0, -x.size % 256)).reshape(-1, 256).max(axis=1)
    scales: Array = from_bits((bits(M) + 0x0FFFFF) & 0x7F800000).clip(np.float32(f.least_scale), np.float32(2.0**127))
    return scales


def to_q8(x: Array, scales: Array, r: Any, dtype: np.dtype[Any]) -> Array:
    """The codes of float32, as ``dtype``."""
    f, signed = FORMATS[dtype], dtype == np.int8
    first = bits(each(scales, x.size)).astype(np.int64) - (f.exponents << 23)
    k = (bits(np.abs(x)).astype(np.int64) - first + (r >> 12)) >> 20
    k = np.clip(k, 0 if signed else np.where(x == 0, 0, 1), f.not_finite - 1)
    k = np.where(np.isfinite(x), k, f.not_finite)
    codes: Array = (np.where(np.signbit(x), -k, k) if signed else k).astype(dtype)
    return codes


def from_q8(codes: Array, scales: Array) -> Array:
    """The float32 of codes."""
    f = FORMATS[codes.dtype]
    k = np.abs(codes.astype(np.int64))
    b = bits(each(scales, k.size)).astype(np.int64) - (f.exponents << 23) + (k << 20)
    finite = np.where(k == 0, np.float32(0), from_bits(b % 2**32))
    return np.copysign(np.where(k == f.not_finite, np.float32(f.read_as), finite), codes.astype(np.float32))


def is_bfloat16(x: Array) -> bool:
    return str(x.dtype.name) == "bfloat16"


def widened(x: Array, scales: Array | None = None) -> Array:
    """What is stored, as values of ``T``: ``x`` itself where it is stored so. ``scales`` are those of q8."""
    if scales is not None:
        return from_q8(x.reshape(-1), scales).reshape(x.shape)
    if is_bfloat16(x):
        return from_bits(x.reshape(-1).view(np.uint16).astype(np.uint32) << 16).reshape(x.shape)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def store(x: Any, into: Array, scales: Array | None = None, r: Any = None) -> None:
    """Write values of ``T``, rounded to what is stored; ``scales`` are those of q8."""
    flat = np.reshape(x, -1)
    if scales is not None and r is not None:
        scales[...] = to_scales(flat, FORMATS[into.dtype])
        into[...] = to_q8(flat, scales, r, into.dtype).reshape(into.shape)
    elif into.dtype.itemsize == 2:
        codes = (to_bfloat16 if is_bfloat16(into) else to_float16)(flat, r)
        into.view(np.uint16)[...] = codes.reshape(into.shape)
    else:
        into[...] = x


def drawn(stored: Array, stream: int, o: Options, s: Slot) -> Array | None:
    """The random bits for storing so: q8 always, 16 bits where there is a seed. None: to nearest."""
    seed = o.stochastic_rounding
    if stored.dtype.itemsize > 2 or (stored.dtype.itemsize == 2 and seed is None):
        return None
    return random_bits(stored.size, stream, s.t, s.tensor, 0 if seed is None else int(seed))


class Optimizer:
    """What all share: groups, the structure of params, step numbers, storage; sign, L2 and decay before every rule."""

    codes: ClassVar[dict[str, type]] = {}  # all states of the rule, in the page's order: uint8 where never negative
    scalars: Sequence[tuple[str, float]] = ()  # float64 kept beside a parameter's states, with their first values

    def states(self, _: Options) -> dict[str, float]:
        """The states that a group keeps, with their first values."""
        return {}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        """Advance the states of ``s`` in place and return the new parameter."""
        raise NotImplementedError

    def _begin(self, given: dict[str, Any]) -> None:
        """Set up from the arguments of ``__init__``: params and options by name."""
        self.step_count = 0
        params = given["params"]
        self._grouped = isinstance(params, (list, tuple)) and len(params) > 0 and isinstance(params[0], dict)
        self._groups: list[_Group] = []
        for spec in params if self._grouped else [{}]:
            self._groups.append(self._group({**given, **spec}))
        self.clip_norm = given["clip_norm"]
        self._bound = given["grads"]

    def _group(self, given: dict[str, Any]) -> _Group:
        params = given["params"]
        given = {name: value for name, value in given.items() if name not in NO_OPTIONS}
        o = Options(**{name: value if name in EXACT else _plain(value) for name, value in given.items()})
        first = sum(len(group.slots) for group in self._groups)
        return _Group(params, o, [self._slot(p, first + i, o) for i, p in enumerate(_leaves(params, params))])

    def _slot(self, p: Array, tensor: int, o: Options) -> Slot:
        """A parameter with its first states: ``<name>``, ``<name>_scale`` of q8 or None, and ``master`` or None."""
        s = Slot(p=p, t=0, tensor=tensor, master=None, **dict(self.scalars))
        for name, first in self.states(o).items():
            x = np.full(p.shape, first, p.dtype if p.dtype.itemsize > 2 else np.float32)
            stored, scales = x, None
            if x.dtype != np.float64 and o.state_dtype == "q8" and p.size >= o.min_8bit_size:
                stored, scales = np.zeros(p.shape, self.codes[name]), np.zeros(-(-p.size // 256), np.float32)
            elif x.dtype != np.float64 and o.state_dtype == "bfloat16":
                stored = np.zeros(p.shape, _bfloat16(p))
            if stored is not x and first != 0:
                store(x, stored, scales, None if scales is None else 2**31)
            setattr(s, name, stored)
            setattr(s, f"{name}_scale", scales)
        if o.master and p.dtype.itemsize == 2:
            s.master = widened(p)
        return s

    @property
    def lr(self) -> Rate:
        """The learning rate (of the first group), or its schedule; setting it sets every group's."""
        rate: Rate = self._groups[0].options.lr
        return rate

    @lr.setter
    def lr(self, rate: Rate) -> None:
        for group in self._groups:
            group.options.lr = _plain(rate)

    @property
    def state(self) -> dict[str, Any]:
        """The state arrays by name, in the structure of params; None for a group that does not keep one."""
        kept = [[*self.states(group.options), *group.beside(self.states(group.options))] for group in self._groups]
        names = [*self.codes, *(f"{name}_scale" for name in self.codes), "master"]
        shown = {
            name: [group.show(name) if name in has else None for group, has in zip(self._groups, kept, strict=True)]
            for name in names
            if any(name in has for has in kept)
        }
        return shown if self._grouped else {name: only for name, [only] in shown.items()}

    def step(self, grads: Grads = ...) -> None:
        """Take one step, in place; ``grads`` has the structure of params, None where a parameter is to be skipped."""
        if (grads is ...) is not (self._bound is not None):
            raise TypeError("step() takes gradients where none were bound, and only there")
        grads = self._bound if grads is ... else grads
        trees = grads if self._grouped else [grads]
        leaves = [_leaves(tree, group.params) for group, tree in zip(self._groups, trees, strict=True)]
        factor = self._factor([g for flat in leaves for g in flat])
        with np.errstate(all="ignore"):
            for group, flat in zip(self._groups, leaves, strict=True):
                o = group.at(self.step_count)
                for s, g in zip(group.slots, flat, strict=True):
                    if g is not None:
                        self._step_one(g, factor, o, s)
        self.step_count += 1

    def _factor(self, grads: Sequence[Array | None]) -> float:
        """What clips all gradients together."""
        if self.clip_norm is None:
            return 1.0
        norm, limit = global_norm(grads), float(self.clip_norm)
        self.grad_norm = norm
        return 1.0 if norm <= limit else limit / norm

    def _step_one(self, g: Array, factor: float, o: Options, s: Slot) -> None:
        s.t += 1
        wide = self._widened(o, s)
        p, T, g = wide.p, wide.p.dtype.type, widened(g)
        scale = T(-factor if o.maximize else factor)
        l2 = T(o.l2)
        decay = T(1.0 - o.lr * o.weight_decay)

        if o.flush_subnormals:
            g = np.where(np.abs(g) < (2.0**-56 if T is np.float32 else 2.0**-500), T(0), g)
        g = scale * g
        if o.l2 != 0:
            g = g + l2 * p
        p = self.update(decay * p, g, o, wide)
        if o.flush_subnormals:
            for name in self.states(o):
                state = getattr(wide, name)
                state[np.abs(state) < np.finfo(T).tiny] = 0
        self._store(p, wide, o, s)

    def _widened(self, o: Options, s: Slot) -> Slot:
        """The slot in ``T``. What is stored in ``T`` is the same array, and is updated in place."""
        states = {name: widened(getattr(s, name), getattr(s, f"{name}_scale")) for name in self.states(o)}
        return Slot(**{**vars(s), **states, "p": widened(s.p if s.master is None else s.master)})

    def _store(self, p: Array, wide: Slot, o: Options, s: Slot) -> None:
        """Round the new parameter, and what ``wide`` holds, to what is stored."""
        for name, _ in self.scalars:
            setattr(s, name, getattr(wide, name))
        for stream, name in enumerate(self.codes, start=2):
            if name in self.states(o):
                x, stored = getattr(wide, name), getattr(s, name)
                if x is not stored:
                    store(x, stored, getattr(s, f"{name}_scale"), drawn(stored, stream, o, s))
        if s.master is None:
            store(p, s.p, r=drawn(s.p, 0, o, s))
        else:
            s.master[...] = p
            store(p, s.p)


class SGD(Optimizer):
    """``p -= lr g`` (Robbins and Monro 1951)."""

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def update(self, p: Array, g: Array, o: Options, _: Slot) -> Any:
        T = p.dtype.type
        lr = T(o.lr)

        return p - lr * g


class Momentum(Optimizer):
    """``v = mu v + g; p -= lr v`` (Polyak 1964, "Some methods of speeding up the convergence of iteration methods")."""

    codes: ClassVar = {"momentum_buffer": np.int8}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        lr_in_velocity: bool = False,
        *,
        dampen_first: bool = True,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, _: Options) -> dict[str, float]:
        return {"momentum_buffer": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, v = p.dtype.type, s.momentum_buffer
        undamped = 1.0 if s.t == 1 and not o.dampen_first else 1.0 - o.dampening
        momentum = T(o.momentum)
        weight = T(o.lr * undamped if o.lr_in_velocity else undamped)
        rate = T(1.0 if o.lr_in_velocity else o.lr)

        v[...] = momentum * v + weight * g
        return p - rate * v


class NAG(Optimizer):
    """``v = mu v + g; p -= lr (g + mu v)`` (Nesterov 1983; this form: Sutskever et al. 2013).

    With ``lookahead`` it is the method as first written, ``v = mu v + g(p - lr mu v); p -= lr v``.
    """

    codes: ClassVar = {"momentum_buffer": np.int8}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        momentum: float = 0.9,
        lr_in_velocity: bool = False,
        lookahead: bool = False,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, _: Options) -> dict[str, float]:
        return {"momentum_buffer": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, v = p.dtype.type, s.momentum_buffer
        momentum = T(o.momentum)
        weight = T(o.lr if o.lr_in_velocity else 1.0)
        rate = T(1.0 if o.lr_in_velocity else o.lr)

        x = weight * g
        v[...] = momentum * v + x
        if o.lookahead:
            return p - rate * v
        return p - rate * (x + momentum * v)

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Within it the parameters (of the groups with ``lookahead``) stand ahead, at ``p - lr momentum v``."""
        groups = [group for group in self._groups if group.options.lookahead]
        kept = [(s.p, s.p.copy()) for group in groups for s in group.slots]
        try:
            with np.errstate(all="ignore"):
                for group in groups:
                    o = group.at(self.step_count)
                    for s in group.slots:
                        wide = self._widened(o, s)
                        shift = wide.p.dtype.type(o.momentum if o.lr_in_velocity else o.lr * o.momentum)
                        store(wide.p - shift * wide.momentum_buffer, s.p)
            yield
        finally:
            for p, bits in kept:
                p[...] = bits


class AdaGrad(Optimizer):
    """``a += g^2; p -= lr g / (sqrt(a) + eps)`` (Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods")."""

    codes: ClassVar = {"sum": np.uint8}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        lr_decay: float = 0.0,
        initial_accumulator: float = 0.0,
        eps: float = 1e-10,
        eps_root: float = 0.0,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, o: Options) -> dict[str, float]:
        return {"sum": o.initial_accumulator}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, a = p.dtype.type, s.sum
        rate = T(o.lr / (1.0 + (s.t - 1) * o.lr_decay))
        eps = T(o.eps)
        eps_root = T(o.eps_root)

        a[...] = a + g * g
        return p - rate * (g / (np.sqrt(a + eps_root) + eps))


class RMSProp(Optimizer):
    """``s = rho s + (1 - rho) g^2; p -= lr g / (sqrt(s) + eps)`` (Tieleman and Hinton 2012, lecture 6.5).

    With ``centered``, ``s - m^2`` stands under the root, ``m = rho m + (1 - rho) g`` (Graves 2013).
    """

    codes: ClassVar = {"square_avg": np.uint8, "grad_avg": np.int8, "momentum_buffer": np.int8}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        rho: float = 0.99,
        momentum: float = 0.0,
        centered: bool = False,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        *,
        lr_in_velocity: bool = False,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, o: Options) -> dict[str, float]:
        kept = {"square_avg": True, "grad_avg": o.centered, "momentum_buffer": o.momentum > 0}
        return {name: 0.0 for name, keep in kept.items() if keep}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, square = p.dtype.type, s.square_avg
        rho = T(o.rho)
        one_minus_rho = T(1.0 - o.rho)
        eps = T(o.eps)
        eps_root = T(o.eps_root)
        momentum = T(o.momentum)
        weight = T(o.lr if o.momentum > 0 and o.lr_in_velocity else 1.0)
        rate = T(1.0 if o.momentum > 0 and o.lr_in_velocity else o.lr)

        square[...] = rho * square + one_minus_rho * (g * g)
        variance = square
        if o.centered:
            m = s.grad_avg
            m[...] = rho * m + one_minus_rho * g
            variance = square - m * m
            variance = np.where(variance < 0, T(0.0), variance)
        u = g / (np.sqrt(variance + eps_root) + eps)
        if o.momentum > 0:
            v = s.momentum_buffer
            v[...] = momentum * v + weight * u
            return p - rate * v
        return p - rate * u


class AdaDelta(Optimizer):
    """``d = sqrt((u + eps) / (a + eps)) g; p -= lr d``, ``a`` and ``u`` the means of g^2 and d^2 (Zeiler 2012)."""

    codes: ClassVar = {"square_avg": np.uint8, "acc_delta": np.uint8}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, _: Options) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, a, u = p.dtype.type, s.square_avg, s.acc_delta
        rho = T(o.rho)
        one_minus_rho = T(1.0 - o.rho)
        eps = T(o.eps)
        rate = T(o.lr)

        a[...] = rho * a + one_minus_rho * (g * g)
        d = np.sqrt((u + eps) / (a + eps)) * g
        u[...] = rho * u + one_minus_rho * (d * d)
        return p - rate * d


class Adam(Optimizer):
    """``p -= lr m / (sqrt(v) + eps)``, ``m`` and ``v`` the unbiased means of g and g^2 (Kingma and Ba 2015).

    With ``amsgrad``, the largest ``v`` so far stands under the root (Reddi, Kale and Kumar 2018).
    """

    codes: ClassVar = {"exp_avg": np.int8, "exp_avg_sq": np.uint8, "max_exp_avg_sq": np.uint8}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_root: float = 0.0,
        amsgrad: bool = False,
        bias_correction: bool = True,
        *,
        eps_hat: bool = False,
        amsgrad_corrected: bool = False,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, o: Options) -> dict[str, float]:
        kept = {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": o.amsgrad}
        return {name: 0.0 for name, keep in kept.items() if keep}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        T, m, v = p.dtype.type, s.exp_avg, s.exp_avg_sq
        beta1 = T(o.betas[0])
        one_minus_beta1 = T(1.0 - o.betas[0])
        beta2 = T(o.betas[1])
        one_minus_beta2 = T(1.0 - o.betas[1])
        correction1 = 1.0 - power(o.betas[0], s.t) if o.bias_correction else 1.0
        correction2 = 1.0 - power(o.betas[1], s.t) if o.bias_correction else 1.0
        eps = T(o.eps)
        eps_root = T(o.eps_root)
        if o.eps_hat:
            scalars = 1.0, 1.0, (o.lr * math.sqrt(correction2)) / correction1
        elif o.amsgrad_corrected and o.amsgrad:
            scalars = 1.0 / correction2, 1.0, o.lr / correction1
        else:
            scalars = 1.0, 1.0 / correction2, o.lr / correction1
        unbias_before, unbias_after, rate = map(T, scalars)

        m[...] = beta1 * m + one_minus_beta1 * g
        v[...] = beta2 * v + one_minus_beta2 * (g * g)
        second = v
        if o.amsgrad:
            x = s.max_exp_avg_sq
            y = v * unbias_before
            x[...] = np.where(x >= y, x, y)
            second = x
        return p - rate * (m / (np.sqrt(second * unbias_after + eps_root) + eps))


class Nadam(Optimizer):
    """Adam whose mean of g looks one step ahead, as NAG's velocity does (Dozat 2016)."""

    codes: ClassVar = {"exp_avg": np.int8, "exp_avg_sq": np.uint8}
    scalars = (("mu_product", 1.0),)

    def __init__(
        self,
        params: Params,
        lr: Rate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_root: float = 0.0,
        momentum_decay: float | None = 0.004,
        *,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        flush_subnormals: bool = False,
        state_dtype: str | None = None,
        master: bool = False,
        stochastic_rounding: int | None = None,
        min_8bit_size: int = 4096,
        clip_norm: float | None = None,
        grads: Grads = None,
    ) -> None:
        self._begin(locals())

    def states(self, _: Options) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        def mu(i: int) -> float:
            beta: float = o.betas[0]
            return beta if o.momentum_decay is None else beta * (1.0 - 0.5 * momentum_schedule(i * o.momentum_decay))

        T, m, v = p.dtype.type, s.exp_avg, s.exp_avg_sq
        beta1 = T(o.betas[0])
        one_minus_beta1 = T(1.0 - o.betas[0])
        beta2 = T(o.betas[1])
        one_minus_beta2 = T(1.0 - o.betas[1])
        mu_now = mu(s.t)
        mu_next = mu(s.t + 1)
        P = s.mu_product = s.mu_product * mu_now
        momentum_rate = T((o.lr * mu_next) / (1.0 - P * mu_next))
        gradient_rate = T((o.lr * (1.0 - mu_now)) / (1.0 - P))
        unbias = T(1.0 / (1.0 - power(o.betas[1], s.t)))
        eps = T(o.eps)
        eps_root = T(o.eps_root)

        m[...] = beta1 * m + one_minus_beta1 * g
        v[...] = beta2 * v + one_minus_beta2 * (g * g)
        return p - (momentum_rate * m + gradient_rate * g) / (np.sqrt(v * unbias + eps_root) + eps)


NO_OPTIONS = ("self", "params", "clip_norm", "grads")  # of __init__
EXACT = ("state_dtype", "master", "stochastic_rounding", "min_8bit_size")  # options that are no numbers of the page
RULES: dict[str, type[Any]] = {rule.__name__.lower(): rule for rule in Optimizer.__subclasses__()}


@dataclass
class _Group:
    params: Arrays
    options: Options
    slots: list[Slot]

    def at(self, step_count: int) -> Options:
        """The options at this step: lr is a number, whether or not it follows a schedule."""
        lr = self.options.lr
        return Options(**{**vars(self.options), "lr": float(lr(step_count) if callable(lr) else lr)})

    def beside(self, states: Iterable[str]) -> list[str]:
        """The names of the scales and the master, those that some tensor of the group has."""
        names = [*(f"{name}_scale" for name in states), "master"]
        return [name for name in names if any(getattr(s, name) is not None for s in self.slots)]

    def show(self, name: str) -> Any:
        """The states of this name, in the structure of the group's params; None for a tensor that has none."""
        arrays = [getattr(s, name) for s in self.slots]
        if isinstance(self.params, dict):
            return dict(zip(self.params, arrays, strict=True))
        return arrays if isinstance(self.params, (list, tuple)) else arrays[0]


def _leaves(tree: Any, like: Arrays) -> list[Any]:
    """The entries of ``tree``, in the order of ``like``, which has its structure."""
    if isinstance(like, dict):
        return [tree[name] for name in like]
    return list(tree) if isinstance(like, (list, tuple)) else [tree]


def _bfloat16(p: Array) -> Any:
    """The type bfloat16: the parameter's own, or that of ml_dtypes, which only this needs."""
    if is_bfloat16(p):
        return p.dtype
    import ml_dtypes

    return ml_dtypes.bfloat16


def _plain(value: Any) -> Any:
    """An option as float64: a NumPy float32 would pull the scalars down to its precision. A bool counts as 1 or 0."""
    if value is None or callable(value):
        return value
    return tuple(map(_plain, value)) if np.iterable(value) else float(value)

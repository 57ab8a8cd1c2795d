"""The base of the eight: the common options, groups, step numbers and states; sign, L2 and decay before every rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import SimpleNamespace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ._tree import build, leaves
from .norm import global_norm
from .rows import is_rows, part, put_back, summed
from .storage import NARROW, Array, bfloat16_for, compute_type, drawn, is_narrow, store, widened

Params: TypeAlias = Any  # arrays, nested in any way, or a list of groups
Grads: TypeAlias = Any  # the structure of params, with None in place of an array that is to be skipped
Rate: TypeAlias = float | Callable[[int], float]
Options: TypeAlias = SimpleNamespace  # a group's options by name; within a step, lr is a float
Slot: TypeAlias = SimpleNamespace  # a parameter p, its own step number t, its place tensor, and its states by name


COMMON = {
    "l2": 0.0,
    "weight_decay": 0.0,
    "maximize": False,
    "flush_subnormals": False,
    "state_dtype": None,
    "master": False,
    "stochastic_rounding": None,
    "min_8bit_size": 4096,
    "clip_value": None,
    "frozen": False,
    "ema": None,
    "ema_correction": False,
    "clip_norm": None,
    "clip_per_tensor": None,
    "on_nonfinite": "propagate",
    "accumulation": "mean",
    "loss_scale": None,
    "grads": None,
    "copy_out": None,
}
"""The options of every rule, after its own. The gradients and WHOLE are the optimizer's, the others a group's."""
WHOLE = ("clip_norm", "clip_per_tensor", "on_nonfinite", "accumulation", "loss_scale")
EXACT = ("state_dtype", "master", "stochastic_rounding", "min_8bit_size")  # options that are no numbers of the page


class Optimizer:
    """What all share. A rule has its options, its states and its update."""

    options: ClassVar[dict[str, Any]] = {}  # the rule's own, with their defaults
    keyword_options: ClassVar[dict[str, Any]] = {}  # those that are given by name alone
    codes: ClassVar[dict[str, type]] = {}  # all states of the rule, in the page's order: uint8 where never negative
    scalars: Sequence[tuple[str, float]] = ()  # float64 kept beside a parameter's states, with their first values

    def states(self, _: Options) -> dict[str, float]:
        """The states that a group keeps, with their first values."""
        return {}

    def update(self, p: Array, g: Array, o: Options, s: Slot) -> Any:
        """Advance the states of ``s`` in place and return the new parameter."""
        raise NotImplementedError

    __signature__: ClassVar[Signature]

    def __init_subclass__(cls) -> None:
        by_name = {**cls.keyword_options, **COMMON}
        cls.__signature__ = Signature(
            [
                Parameter("params", Parameter.POSITIONAL_OR_KEYWORD),
                *(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=x) for name, x in cls.options.items()),
                *(Parameter(name, Parameter.KEYWORD_ONLY, default=x) for name, x in by_name.items()),
            ]
        )

    def __init__(self, *args: Any, **options: Any) -> None:
        bound = self.__signature__.bind(*args, **options)
        bound.apply_defaults()
        given = bound.arguments
        self.step_count = 0
        for name in WHOLE:
            setattr(self, name, given.pop(name))
        self._bound = given.pop("grads")
        copies = given.pop("copy_out")
        self.accumulated = 0
        params = given.pop("params")
        self._grouped = isinstance(params, (list, tuple)) and len(params) > 0 and is_group(params[0])
        self._groups: list[_Group] = []
        for group in params if self._grouped else [{"params": params}]:
            self._groups.append(self._group(**{**given, **group}))
        if copies is not None:
            for group, tree in zip(self._groups, copies if self._grouped else [copies], strict=True):
                for s, copy in zip(group.slots, leaves(tree, group.params), strict=True):
                    s.copy = copy
                    if copy is not None:
                        _copy(widened(s.p), copy)

    def _group(self, params: Params, **given: Any) -> _Group:
        o = Options(**{name: value if name in EXACT else _plain(value) for name, value in given.items()})
        first = sum(len(group.slots) for group in self._groups)
        return _Group(params, o, [self._slot(p, first + i, o) for i, p in enumerate(leaves(params, params))])

    def _slot(self, p: Array, tensor: int, o: Options) -> Slot:
        """A parameter with its first states: ``<name>``, ``<name>_scale`` of q8 or None, and ``master`` or None."""
        s, T = (
            Slot(
                p=p,
                t=0,
                tensor=tensor,
                master=None,
                average=None,
                copy=None,
                accumulator=None,
                places=None,
                size=p.size,
                ema_product=1.0,
                **dict(self.scalars),
            ),
            compute_type(p),
        )
        for name, first in self.states(o).items():
            x = np.full(p.shape, first, T)
            stored, scales = x, None
            if T is np.float32 and o.state_dtype == "q8" and p.size >= o.min_8bit_size:
                stored, scales = np.zeros(p.shape, self.codes[name]), np.zeros(-(-p.size // 256), np.float32)
            elif T is np.float32 and o.state_dtype in NARROW:
                stored = np.zeros(p.shape, bfloat16_for(p) if o.state_dtype == "bfloat16" else o.state_dtype)
            if stored is not x and first != 0:
                store(x, stored, scales, None if scales is None else 2**31)
            setattr(s, name, stored)
            setattr(s, f"{name}_scale", scales)
        if o.master and is_narrow(p):
            s.master = widened(p)
        if o.ema is not None:
            s.average = np.zeros(p.shape, T) if o.ema_correction else widened(p).copy()
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
        names = [*self.codes, *(f"{name}_scale" for name in self.codes), "master", "average"]
        shown = {
            name: [group.show(name) if name in has else None for group, has in zip(self._groups, kept, strict=True)]
            for name in names
            if any(name in has for has in kept)
        }
        return shown if self._grouped else {name: only for name, [only] in shown.items()}

    clip_norm: float | None
    clip_per_tensor: float | None
    on_nonfinite: str
    accumulation: str
    loss_scale: Any

    def step(self, grads: Grads = ..., grad_scale: float = 1.0, stats: bool = False) -> SimpleNamespace:
        """Take one step, in place; ``grads`` has the structure of params, None where a parameter is to be skipped.

        Return whether it was applied, the number of steps, the norm, the clip factor, the first gradient that is not
        finite as the indices of its parameter and element, and with ``stats`` the norms of gradient, update and weight
        of each parameter.
        """
        with np.errstate(all="ignore"):
            scale = float(grad_scale) * (1.0 if self.loss_scale is None else self.loss_scale.value)
            if self.accumulated > 0:
                if grads is not ...:
                    self.accumulate(grads)
                scale *= self.accumulated if self.accumulation == "mean" else 1
                found = self._taken()
            else:
                found = self._found(grads)
            flat_grads = [g[1] if isinstance(g, tuple) else g for flat in found for g in flat]
            factors, result = self._pass(flat_grads, scale)
            bad = result.nonfinite = _whole([g for flat in found for g in flat], result.nonfinite)
            result.applied = bad is None or self.on_nonfinite == "propagate"
            if not result.applied and self.on_nonfinite == "raise":
                raise FloatingPointError(bad)
            result.stats = [] if stats and result.applied else None
            each = iter(factors)
            for group, flat in zip(self._groups, found, strict=True):
                o = group.at(self.step_count)
                for s, g in zip(group.slots, flat, strict=True):
                    factor = next(each)
                    before = weights(s, g).copy() if result.stats is not None else None
                    if g is not None and result.applied:
                        self._step_one(g, factor, o, s)
                    if result.stats is not None:
                        values = g[1] if isinstance(g, tuple) else g
                        after = weights(s, g)
                        norms = [global_norm([values]) / scale, global_norm([after - before]), global_norm([after])]
                        result.stats.append(None if g is None else norms)
        self.step_count += result.applied
        result.step = self.step_count
        if self.loss_scale is not None:
            self.loss_scale.update(result)
        return result

    def accumulate(self, grads: Grads = ...) -> None:
        """Add gradients to those of the next step."""
        with np.errstate(all="ignore"):
            for group, flat in zip(self._groups, self._found(grads), strict=True):
                for s, g in zip(group.slots, flat, strict=True):
                    if g is not None:
                        rows, values = g if isinstance(g, tuple) else (..., g)
                        if s.accumulator is None:
                            s.accumulator = np.zeros(s.p.shape, values.dtype)
                        s.accumulator[rows] = s.accumulator[rows] + values
        self.accumulated += 1

    def _taken(self) -> list[list[Array | None]]:
        """What was accumulated for the slots of each group; the next sums begin at zero."""
        found = [[None if group.options.frozen else s.accumulator for s in group.slots] for group in self._groups]
        self.accumulated = 0
        for group in self._groups:
            for s in group.slots:
                s.accumulator = None
        return found

    def _found(self, grads: Grads) -> list[list[Array | None]]:
        """The gradients of the slots of each group; None for those that are frozen."""
        if (grads is ...) is not (self._bound is not None):
            raise TypeError("gradients are given where none were bound, and only there")
        grads = self._bound if grads is ... else grads
        return [
            [None] * len(group.slots) if group.options.frozen else group.gradients(tree)
            for group, tree in zip(self._groups, grads if self._grouped else [grads], strict=True)
        ]

    def _pass(self, grads: Sequence[Array | None], scale: float) -> tuple[list[float], SimpleNamespace]:
        """What every gradient is multiplied by; the norm and the first that is not finite, where options need them."""
        clip_norm, clip_per_tensor = (_at(limit, self.step_count) for limit in (self.clip_norm, self.clip_per_tensor))
        if clip_norm is clip_per_tensor is None and self.on_nonfinite == "propagate":
            return [1.0 / scale] * len(grads), SimpleNamespace(grad_norm=None, clip_factor=1.0, nonfinite=None)

        def clip(norm: float, limit: float) -> float:
            return 1.0 if norm <= limit else np.float64(limit) / norm

        norm = self.grad_norm = global_norm(grads) / scale
        clips = [1.0] * len(grads)
        if clip_norm is not None:
            clips = [clip(norm, float(clip_norm))] * len(grads)
        if clip_per_tensor is not None:
            clips = [clip(global_norm([g]) / scale, float(clip_per_tensor)) for g in grads]
        smallest = float(np.min([1.0, *clips]))
        bad = [(i, first_nonfinite(g)) for i, g in enumerate(grads)]
        first = next((position for position in bad if position[1] >= 0), None)
        return [x / scale for x in clips], SimpleNamespace(grad_norm=norm, clip_factor=smallest, nonfinite=first)

    def _step_one(self, g: Any, factor: float, o: Options, s: Slot) -> None:
        if isinstance(g, tuple):  # indices of rows, and their gradients
            rows, values = g
            states = list(self.states(o))
            of = part(s, rows, states)
            self._step_one(values, factor, o, of)
            put_back(s, of, rows, states)
            return
        s.t += 1
        wide = self._widened(o, s)
        p, T = wide.p, wide.p.dtype.type
        scale = T(-factor if o.maximize else factor)
        l2 = T(o.l2)
        decay = T(1.0 - o.lr * o.weight_decay)

        if o.flush_subnormals:
            g = np.where(np.abs(g) < (2.0**-56 if T is np.float32 else 2.0**-500), T(0), g)
        g = scale * g
        if o.clip_value is not None:
            c = T(o.clip_value)
            g = np.where(g > c, c, np.where(g < -c, -c, g))
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

        def bits(stored: Array, stream: int) -> Array | None:
            r = drawn(s.size, stored, stream, s.t, s.tensor, o.stochastic_rounding)
            return r if r is None or s.places is None else r[s.places]

        for name, _ in self.scalars:
            setattr(s, name, getattr(wide, name))
        for stream, name in enumerate(self.codes, start=2):
            if name in self.states(o):
                x, stored = getattr(wide, name), getattr(s, name)
                if x is not stored:
                    store(x, stored, getattr(s, f"{name}_scale"), bits(stored, stream))
        if s.master is None:
            store(p, s.p, r=bits(s.p, 0))
        else:
            s.master[...] = p
            store(p, s.p)
        now = widened(s.p if s.master is None else s.master)
        if s.average is not None:
            T = now.dtype.type
            s.average[...] = T(o.ema) * s.average + T(1.0 - o.ema) * now
            s.ema_product = s.ema_product * o.ema
        if s.copy is not None:
            _copy(now, s.copy)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the parameters are their averages, where they have any and, with correction, have been stepped."""
        slots = [(group.options, s) for group in self._groups for s in group.slots if s.average is not None]
        slots = [(o, s) for o, s in slots if s.ema_product < 1 or not o.ema_correction]
        kept = [(s.p, s.p.copy()) for _, s in slots]
        try:
            with np.errstate(all="ignore"):
                for o, s in slots:
                    weight = 1.0 / (1.0 - s.ema_product) if o.ema_correction else 1.0
                    store(compute_type(s.p)(weight) * s.average, s.p)
            yield
        finally:
            for p, bits in kept:
                p[...] = bits


def _copy(p: Array, into: Array) -> None:
    """Write values of ``T``, rounded to nearest."""
    with np.errstate(all="ignore"):
        store(p, into)


def weights(s: Slot, g: Any) -> Array:
    """The parameter or its master in ``T``; of a gradient of some rows, these rows."""
    values = widened(s.p if s.master is None else s.master)
    return values[g[0]] if isinstance(g, tuple) else values


def first_nonfinite(g: Array | None) -> int:
    """The index, in C order, of the first element that is infinite or NaN; -1 where there is none."""
    bad: Any = [] if g is None else np.flatnonzero(~np.isfinite(g))
    return int(bad[0]) if len(bad) else -1


def is_group(x: Any) -> bool:
    """Whether it is a group of parameters, with options of its own beside them."""
    return isinstance(x, Mapping) and "params" in x


@dataclass
class _Group:
    params: Params
    options: Options
    slots: list[Slot]

    def at(self, step_count: int) -> Options:
        """The options at this step: numbers, whether or not they follow a schedule."""
        return Options(**{name: _at(value, step_count) for name, value in vars(self.options).items()})

    def gradients(self, tree: Grads) -> list[Any]:
        """Gradients in the order of the slots, each as values of its parameter's ``T``; of rows, with their indices."""
        pairs = zip(leaves(tree, self.params), self.slots, strict=True)
        return [None if g is None else _in(g, compute_type(s.p)) for g, s in pairs]

    def beside(self, states: Iterable[str]) -> list[str]:
        """The names of the scales and the master, those that some tensor of the group has."""
        names = [*(f"{name}_scale" for name in states), "master", "average"]
        return [name for name in names if any(getattr(s, name) is not None for s in self.slots)]

    def show(self, name: str) -> Any:
        """The states of this name, in the structure of the group's params; None for a tensor that has none."""
        return build((getattr(s, name) for s in self.slots), self.params)


def _at(value: Any, step_count: int) -> Any:
    """An option at a step."""
    if isinstance(value, tuple):
        return tuple(_at(part, step_count) for part in value)
    return _plain(value(step_count)) if callable(value) else value


def _whole(grads: Sequence[Any], position: tuple[int, int] | None) -> tuple[int, int] | None:
    """A tensor and an index of its gradient, which may be that of some rows, with the index in the whole."""
    if position is None or not isinstance(grads[position[0]], tuple):
        return position
    rows, values = grads[position[0]]
    row, column = divmod(position[1], values[0].size)
    return position[0], int(rows[row]) * values[0].size + column


def _in(g: Any, T: Any) -> Any:
    return summed(g, T) if is_rows(g) else widened(g).astype(T, copy=False)


def _plain(value: Any) -> Any:
    """An option as float64: a NumPy float32 would pull the scalars down to its precision. A bool counts as 1 or 0."""
    if value is None or callable(value):
        return value
    return tuple(map(_plain, value)) if np.iterable(value) else float(value)

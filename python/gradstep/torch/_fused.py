"""The step of the core as the step of torch's optimizers."""

from __future__ import annotations

import inspect
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradstep import _core, optimizers
from gradstep._groups import RULES
from gradstep._libraries import TORCH
from gradstep._optimizer import Optimizer
from gradstep._options import FLAG, POSITIVE, UP_TO_ONE, Domain, for_core, optional
from gradstep._step import LOCKED, check_apart, finish_step
from gradstep._storage import AVERAGE, MASTER

from ._offload import Offloaded, link, step_chunks, unfit
from ._sharded import NormExchange, Part, is_sharded, local_grad, local_of
from ._states import STEP, Clock, Storage, adopt, count, is_beyond, is_scale

Translated: TypeAlias = tuple[type[Optimizer], dict[str, Any]]
"""The class of gradstep that has the rule of a group, and its options there."""

STORED: Final = ("state_dtype", "master", "ema", "offload")
"""Options beyond torch's that determine what is stored; those of a checkpoint have no effect."""
BEYOND: Final[dict[str, Any]] = {
    "state_dtype": None,
    "master": False,
    "stochastic_rounding": None,
    "ema": None,
    "max_grad_norm": None,
    "offload": False,
}
"""All options beyond torch's, with their defaults. Groups have only those that were given."""
DOMAINS: Final[dict[str, Domain]] = {
    **{name: optimizers.Adam.known[name].domain for name in ("state_dtype", "master", "stochastic_rounding")},
    "ema": optional(UP_TO_ONE),
    "max_grad_norm": optional(POSITIVE),
    "offload": FLAG,
}
"""Their values."""
ATTEMPTS: Final = 4


class Fallback(NamedTuple):
    """A parameter that torch's own code steps."""

    parameter: Tensor
    name: str
    """Its name, if the optimizer was given names; or its place, such as "param_groups[0]['params'][3]"."""
    reason: str


class Fused(torch.optim.Optimizer):
    """The base of the optimizers. After it comes torch's class, which steps the tensors that the core cannot step."""

    translate: Callable[[Mapping[str, Any]], Translated]
    """The class and the options of gradstep for a group."""
    torch_class: ClassVar[type[torch.optim.Optimizer]]
    param_groups: list[dict[str, Any]]
    __signature__: ClassVar[inspect.Signature]

    # What is not pickled or copied: it is made anew at the next step.
    _plan: Plan | None = None
    _refused: Mapping[Tensor, Refused] = MappingProxyType({})
    """The parameters whose gradients are not for the core."""
    _result: Any = None
    _is_averaged = False

    def __init_subclass__(cls) -> None:
        cls.torch_class = next(base for base in cls.__mro__ if base.__module__.startswith("torch.optim."))
        if "__init__" in vars(cls):
            arguments = list(inspect.signature(vars(cls)["__init__"]).parameters.values())
            cls.__signature__ = inspect.Signature(arguments[1:])
            return
        own = list(inspect.signature(cls.torch_class).parameters.values())
        beyond = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=of) for name, of in BEYOND.items()]
        cls.__signature__ = inspect.Signature([*own, *beyond])

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        given = {name: options.pop(name, default) for name, default in BEYOND.items()}
        self._beyond = {name: value for name, value in given.items() if value is not BEYOND[name]}
        super().__init__(params, *args, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of torch's class."""
        if isinstance(param_group, dict):
            for name, value in self._beyond.items():
                param_group.setdefault(name, value)
            checked_beyond(type(self).__name__, [*self.param_groups, param_group])
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_beyond": self._beyond}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._plan is not None:
            self._plan.end()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step, as torch's class does.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients; its value is returned.

        Raises
        ------
        ValueError
            For a state that does not fit its parameter, or an option out of range.
        RuntimeError
            Where torch's own step of a parameter raises it; and for such a parameter with an option that torch lacks.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._is_averaged:
            raise RuntimeError("step() within averaged(): leave it first, which restores the parameters")
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is None or not float(found_inf):
            self._step(1.0 if scale is None else float(scale))
        return loss

    def _step(self, scale: float) -> None:
        stepped: set[Tensor] = set()  # by torch
        for attempt in range(1, ATTEMPTS + 1):
            plan = self._current_plan()
            if plan.fallbacks:
                before = [own for own in plan.fallbacks if own not in stepped and own not in plan.sharing]
                stepped |= self._step_by_torch(before)
            try:
                if plan.params:
                    grads = plan.grads()
                    with plan.lock, torch._C.DisableTorchFunction():  # a mode would make every look at a tensor slow
                        plan.follow_writes()
                        self._result = plan.step(grads, scale)
                        plan.note_writes(grads)
                if plan.sharing:
                    self._step_by_torch([own for own in plan.sharing if own not in stepped])
                return
            except (TypeError, ValueError):
                if attempt == ATTEMPTS or not self._adapt(plan, grads):
                    raise

    def _current_plan(self) -> Plan:
        """The plan for the groups and states as they are now."""
        plan = self._plan
        if self._refused:
            still = {param: why for param, why in self._refused.items() if why.holds(param)}
            if len(still) < len(self._refused):
                self._refused = still
                plan = None if plan is None else plan.end()
        if plan is not None and plan.is_current(self) and all(param.grad is None for param in plan.waiting):
            return plan
        self._plan = plan = Plan(self, plan)
        plan.add_params()
        return plan

    def _adapt(self, plan: Plan, grads: list[Tensor | None]) -> bool:
        """After the core has refused a step: adapts to what changed. Returns whether anything may have."""
        refused = {}
        tensors = chain(plan.stepped, *(kept.values() for kept in plan.kept))
        written = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
        for param, grad in zip(plan.params, grads, strict=True):
            if grad is None:
                continue
            reason = refusal_of_grad(grad)
            if reason is not None:
                refused[param] = Refused(reason, None)
            elif grad.numel() and grad.untyped_storage().data_ptr() in written:
                memory = grad.untyped_storage().data_ptr()
                refused[param] = Refused("its gradient shares memory with parameters or states", memory)
        if refused:
            self._refused = {**self._refused, **refused}
            plan.end()
            return True
        try:
            return plan.follow_memory()
        except (TypeError, ValueError):
            plan.end()
        return True

    def _step_by_torch(self, params: list[Tensor]) -> set[Tensor]:
        """Takes torch's own step of these parameters. Returns those that have a gradient."""
        moving = {param for param in params if param.grad is not None}
        if not moving:
            return moving
        groups: list[dict[str, Any]] = self.param_groups
        step = self.torch_class.step
        if getattr(step, "hooked", False):  # an instance of torch's class was made; hooks are called once
            step = step.__wrapped__
        try:
            self.param_groups = [
                {**group, "params": [param for param in group["params"] if param in moving]} for group in groups
            ]
            step(self)
        finally:
            self.param_groups = groups
        return moving

    def fallbacks(self) -> list[Fallback]:
        """The parameters that torch's own code steps, and why."""
        names = {
            param: name_of(group, number, i)
            for number, group in enumerate(self.param_groups)
            for i, param in enumerate(group["params"])
        }
        plan = self._plan
        if plan is None or not plan.is_current(self):
            plan = Plan(self, plan)  # without states: those begin at a step
        return [Fallback(param, names[param], reason) for param, reason in plan.fallbacks.items()]

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, before clipping; None without max_grad_norm."""
        return None if self._result is None else self._result.grad_norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the parameters are their averages; leaving it restores their exact bits.

        Raises RuntimeError where no parameter has an average, which is kept with `ema`.
        """
        plan = self._plan
        params = [] if plan is None else [p for p in plan.params if AVERAGE in self.state.get(p, {})]
        pairs = [(p, self.state[p][AVERAGE]) for p in params]
        if not pairs:
            raise RuntimeError(f"{type(self).__name__} keeps no averages yet: they need ema, and a step")
        if self._is_averaged:
            raise RuntimeError("averaged() within averaged()")
        before = [param.detach().clone() for param, _ in pairs]
        self._is_averaged = True
        try:
            for param, average in pairs:
                param.detach().copy_(average)
            yield
        finally:
            self._is_averaged = False
            for (param, _), values in zip(pairs, before, strict=True):
                param.detach().copy_(values)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state of this class or of torch's, with the types of states that this optimizer has.

        How states are stored (`state_dtype`, `master`, `ema`) remains as it is; what the checkpoint lacks begins anew.
        """
        before = self.param_groups
        saved = state_dict

        def without_stored(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            """torch casts states to the types of their parameters, and moves them to their devices."""
            nonlocal saved
            saved = given
            stored = {
                number
                for group, other in zip(before, given["param_groups"], strict=False)
                for number in other["params"]
                if _stores(group)
            }
            return {**given, "state": {number: own for number, own in given["state"].items() if number not in stored}}

        hook = self.register_load_state_dict_pre_hook(without_stored)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, old in zip(self.param_groups, before, strict=True):
            for name in BEYOND:
                if name in STORED:
                    group.pop(name, None)
                if name in old:
                    group.setdefault(name, old[name])
        for group, other in zip(self.param_groups, saved["param_groups"], strict=True):
            stores = _stores(group)
            for param, number in zip(group["params"], other["params"], strict=True):
                own = saved["state"].get(number, {})
                if own and stores:
                    self.state[param] = dict(own)
                for name, value in own.items():
                    if isinstance(value, Tensor) and (stores or is_beyond(name)):
                        value = value.detach().to("cpu", copy=True)
                        of_dtensor = is_scale(name) and not is_sharded(param)  # its scales have two axes
                        self.state[param][name] = value.flatten() if of_dtensor else value
        if any(is_beyond(name) for own in self.state.values() for name in own):
            self._current_plan().forget()  # a plan gives states the form that this optimizer has


class Refused(NamedTuple):
    """Why the gradient of a parameter is not for the core."""

    reason: str
    memory: int | None
    """The memory that it shares; None for another reason."""

    def holds(self, param: Tensor) -> bool:
        """Whether it is so for the gradient that there is now."""
        if param.grad is None:
            return True
        grad = local_grad(param)
        if self.memory is not None:
            return bool(grad.untyped_storage().data_ptr() == self.memory)
        return refusal_of_grad(grad) is not None


class Known(NamedTuple):
    """The clock of a parameter whose state has no step number, as long as it has the same arrays."""

    arrays: list[int]
    """Their identities."""
    clock: Clock


class Plan:
    """What a step of the core takes: the tensors of all groups, and what they were like when it was made."""

    def __init__(self, opt: Any, before: Plan | None) -> None:
        self.is_stale = False
        self.state, self.groups = opt.state, opt.param_groups
        self.stepper: _core.Stepper = TORCH.core.Stepper(None, "parameter ", "gradient of ")
        self.lock = _core.Gate()
        LOCKED.add(self)
        self.fallbacks: dict[Tensor, str] = {}
        self.sharing: list[Tensor] = []
        """Those of them that share memory with others, after which they are stepped."""
        self.waiting: list[Tensor] = []
        """Parameters without states, because they have had no gradient."""
        self.params: list[Tensor] = []
        """Those that the core steps; what follows is in their order."""
        self.stepped: list[Tensor] = []
        """What it steps for each: the parameter, its part on this rank, or the copy of one that is offloaded."""
        self.offloaded: dict[int, Offloaded] = {}
        self.parts: dict[int, Part] = {}
        """Of those that are DTensors."""
        self.storages: list[Storage] = []
        self.kept: list[dict[str, Tensor]] = []
        """Their arrays, by the core's names."""
        self.known = {} if before is None else before.clocks()
        copies = {} if before is None else {own.param: own for own in before.offloaded.values()}
        self._add_groups(opt)
        self.places = self._sort(opt, copies)
        """The group and the name of each."""
        self.indirect: list[Offloaded | Part] = [*self.offloaded.values(), *self.parts.values()]
        """Of parameters that are not stepped themselves."""
        self._watch_groups()

    def end(self) -> Plan:
        """Another plan is needed."""
        self.is_stale = True
        return self

    def _add_groups(self, opt: Any) -> None:
        self.beyond = checked_beyond(type(opt).__name__, self.groups)
        self.rules: list[tuple[type[Optimizer], dict[str, Any], dict[str, float]]] = []
        """Of each group: gradstep's class, the options there, and those of the core."""
        for group, beyond in zip(self.groups, self.beyond, strict=True):
            cls, options = opt.translate(group)
            self.rules.append((cls, options, core_options(cls, options, beyond)))
            self.stepper.add_group(cls.rule, self.rules[-1][2])
        self.limit = self.beyond[0]["max_grad_norm"] if self.beyond else None
        self.stepper.set_gradient_pass(self.limit, None, "propagate")

    def _sort(self, opt: Any, copies: Mapping[Tensor, Offloaded]) -> list[tuple[int, str]]:
        """Sorts parameters by who steps them. Returns the group and the name of each that the core steps."""
        places = []
        seen = Extents()
        for number, (group, beyond, rule) in enumerate(zip(self.groups, self.beyond, self.rules, strict=True)):
            unusable = next((f"{name}=True" for name in ("differentiable", "capturable") if group.get(name)), None)
            times = Counter(group["params"])
            for i, param in enumerate(group["params"]):
                name = name_of(group, number, i)
                again = "it is in its group more than once" if times[param] > 1 else None
                state = self.state.get(param)
                device = link(param.device) if beyond["offload"] else None
                part = Part(param) if device is None and is_sharded(param) else None
                own_part = param if part is None else part.local
                strange = part and part.reason
                strange = strange or (refusal(own_part, "it") if device is None else unfit(param))
                storage = None if strange else Storage(*rule, beyond, own_part, part)
                waits = param.grad is None and not state and storage is not None and storage.has_state
                own = None
                if device is not None and not strange and not waits:
                    own = copies.get(param)
                    own = own if own is not None and own.fits() else Offloaded(param, device)
                    strange = refusal(own.staged, "it")
                    storage = Storage(*rule, beyond, own.staged)
                refused = opt._refused[param].reason if param in opt._refused else None
                reason = refused or unusable or again or strange
                if reason is None and not seen.add([own_part, *map(local_of, (state or {}).values())]):
                    reason = "it or its state shares memory with another parameter or its state"
                    self.sharing.append(param)
                if reason is not None or storage is None:
                    self._fall_back(f"{type(opt).__name__}: {name}", param, reason or "", beyond)
                elif waits:
                    self.waiting.append(param)
                else:
                    places.append((number, name))
                    if own is not None:
                        self.offloaded[len(self.params)] = own
                    if part is not None:
                        self.parts[len(self.params)] = part
                    self.params.append(param)
                    self.stepped.append(own_part if own is None else own.staged)
                    self.storages.append(storage)
        return places

    def _fall_back(self, name: str, param: Tensor, reason: str, beyond: Mapping[str, Any]) -> None:
        """Leaves a parameter to torch."""
        for option, value in beyond.items():
            if value is not BEYOND[option]:
                raise RuntimeError(f"{name} is left to torch's own step, which has no {option}: {reason}")
        self.fallbacks[param] = reason

    def add_params(self) -> None:
        """Adds the parameters to the core, with their states and counts, which are made where they are missing."""
        for param in self.fallbacks:
            if param in self.known and self.known[param].clock[0] == 0:  # it was never stepped
                self.state.pop(param, None)
        clocks = []
        for param, storage in zip(self.params, self.storages, strict=True):
            own = self.state[param] if storage.has_state else {}
            clock = storage.clock(own)
            for name, value in zip(storage.counts, (clock[0], *clock[1]), strict=False):
                count(own, name, value)
            self.kept.append(adopt(own, storage))
            if not storage.counts and param in self.known and self.known[param].arrays == _ids(self.kept[-1]):
                clock = self.known[param].clock
            clocks.append(clock)
        numbers, names = [number for number, _ in self.places], [name for _, name in self.places]
        self.stepper.add_tensors(numbers, self.stepped, self.kept, None, names)
        check_apart(self.stepper.possible_overlaps())
        self._set_parts()
        self._set_clocks(clocks)
        self._bind_counts()
        self.masters = [(i, own[MASTER]) for i, own in enumerate(self.kept) if MASTER in own]
        """The places of parameters, and their masters."""
        self.versions = [-1] * len(self.masters)
        """Of parameters with a master, after the last step."""
        owned = [self.state[param] for param in self.params if param in self.state]
        self.states = _core.Snapshot([self.state, *owned])

    def forget(self) -> None:
        """Removes what a checkpoint has and this optimizer does not keep."""
        for param, storage in zip(self.params, self.storages, strict=True):
            for name in {MASTER, AVERAGE, STEP} - {*storage.dtypes, *storage.counts}:
                self.state.get(param, {}).pop(name, None)

    def _set_parts(self) -> None:
        """Makes the tensors of the core parts of DTensors. Others are the same on all ranks."""
        if self.parts:
            sizes = [tensor.numel() for tensor in self.stepped]
            places = [(0, size) for size in sizes]
            for i, part in self.parts.items():
                places[i] = part.begins[part.rank], part.whole
            self.stepper.set_parts(places, NormExchange(self.parts, sizes))

    def _set_clocks(self, clocks: list[Clock]) -> None:
        self.stepper.set_times(max((t for t, _ in clocks), default=0), clocks)

    def _bind_counts(self) -> int:
        """Lets the core read and write the states that are numbers. Returns how many had been moved."""
        if not any(storage.counts for storage in self.storages):
            return 0
        counts: list[list[Any]] = [[], []]
        for param, storage in zip(self.params, self.storages, strict=True):
            arrays = [self.state[param][name] for name in storage.counts]
            for column, array in zip(counts, [*arrays, None, None], strict=False):
                column.append(array)
        return self.stepper.bind_clocks(*counts)

    def clocks(self) -> dict[Tensor, Known]:
        """What is known of each parameter besides its state."""
        return {
            param: Known(_ids(kept), clock)
            for param, kept, clock in zip(self.params, self.kept, self.stepper.clocks, strict=True)
        }

    def grads(self) -> list[Tensor | None]:
        """The gradients, as the core can read them. Those of offloaded parameters may still be on their way."""
        grads = [param.grad for param in self.params]
        for i, own in self.offloaded.items():
            grads[i] = own.fetch_grad()
        for i, part in self.parts.items():
            grads[i] = local_grad(part.param)
        return grads

    def step(self, grads: list[Tensor | None], scale: float) -> Any:
        """Takes a step of the core, or one for each chunk of what is offloaded. Returns the result."""
        if not self.offloaded:
            return finish_step(self.stepper, self.stepper.step(grads, scale), scale)

        def step(chosen: Sequence[Tensor | None]) -> Any:
            return finish_step(self.stepper, self.stepper.step(chosen, scale), scale)

        self.follow_memory()  # before the first chunk, because the core refuses states that were moved
        return step_chunks(step, grads, self.offloaded, together=self.limit is not None)

    def follow_memory(self) -> bool:
        """Steps the memory that tensors have now. Returns whether any had another before.

        Raises ValueError where tensors share memory now.
        """
        moved = self.stepper.move_tensors(self.stepped, self.kept)
        if moved:
            check_apart(self.stepper.possible_overlaps())
            self.versions = [-1] * len(self.masters)
        now = zip(self.params, self.storages, self.stepper.clocks, strict=True)
        self._set_clocks([storage.clock(self.state[param]) if storage.counts else old for param, storage, old in now])
        return moved + self._bind_counts() > 0

    def follow_writes(self) -> None:
        """Makes masters follow what others have written into their parameters, such as weights that were loaded."""
        for own in self.offloaded.values():
            own.fetch_param()
        for (i, master), version in zip(self.masters, self.versions, strict=True):
            if self._version(i) != version:
                values = self.stepped[i].detach()
                master.copy_(torch.where(master.to(values.dtype) == values, master, values.to(master.dtype)))

    def note_writes(self, grads: list[Tensor | None]) -> None:
        """To be called after a step with these gradients."""
        if self.parts:  # the core has told autograd of plain tensors
            written = [part.param for i, part in self.parts.items() if grads[i] is not None]
            torch.autograd.graph.increment_version(written)
        if self.masters:
            self.versions = [self._version(i) for i, _ in self.masters]

    def _version(self, i: int) -> int:
        """Of the values of a parameter. A write to a DTensor is not one to its part, nor the reverse."""
        version: int = self.stepped[i]._version
        return version + self.params[i]._version if i in self.parts else version

    def _watch_groups(self) -> None:
        self.values = [dict(group) for group in self.groups]
        options = [{**group, "params": None, "param_names": None} for group in self.groups]
        self.is_mutable = not all(_is_immutable(value) for group in options for value in group.values())
        """Whether an option may be changed in place, such as a learning rate that is a tensor."""
        self.options = _core.Snapshot(self.groups)
        self.lists = _core.Snapshot([self.groups, *(group["params"] for group in self.groups)])

    def is_current(self, opt: Any) -> bool:
        """Whether it is the plan for the optimizer as it is now, after changes of options alone were followed."""
        if self.is_stale or self.state is not opt.state or self.groups is not opt.param_groups:
            return False
        if not (self.lists.holds() and self.states.holds() and all(own.fits() for own in self.indirect)):
            return False
        return (self.options.holds() and not self.is_mutable) or self._follow(opt)

    def _follow(self, opt: Any) -> bool:
        """Follows changes of options. Returns False where they need another plan."""
        for number, (group, old) in enumerate(zip(self.groups, self.values, strict=True)):
            changed = {name for name in group.keys() | old.keys() if group.get(name) is not old.get(name)}
            if self.is_mutable:
                changed |= {"lr", "betas"}
            if changed == {"lr"}:
                self.stepper.set_number(number, "lr", float(group["lr"]))
            elif changed:
                cls, options = opt.translate(group)
                beyond = beyond_of(group)
                keeps = changed.isdisjoint(("differentiable", "capturable"))
                if not keeps or (cls, beyond) != (self.rules[number][0], self.beyond[number]):
                    return False
                try:
                    self.stepper.set_options(number, core_options(cls, options, beyond))
                except ValueError:  # other states are kept
                    return False
            if changed:
                self.values[number] = dict(group)
        self.options = _core.Snapshot(self.groups)
        return True


class Extents:
    """The memory of parameters and their states, to find those that share it."""

    def __init__(self) -> None:
        self._all: list[tuple[int, int]] = []  # disjoint, in order

    def add(self, tensors: Iterable[Any]) -> bool:
        """Adds what tensors on the CPU have. Returns False, with nothing added, where others have it already."""
        found = [extent for tensor in tensors if (extent := _extent(tensor)) is not None]
        for begin, end in found:
            i = bisect_right(self._all, (begin, end))
            if (i > 0 and self._all[i - 1][1] > begin) or (i < len(self._all) and self._all[i][0] < end):
                return False
        for extent in found:
            insort(self._all, extent)
        return True


def _extent(tensor: Any) -> tuple[int, int] | None:
    """The addresses of a tensor's first byte, and of the first after it."""
    if not isinstance(tensor, Tensor) or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return None
    if not tensor.numel():
        return None
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size()


def name_of(group: Mapping[str, Any], number: int, i: int) -> str:
    """The name of a parameter of a group, or its place."""
    named = "param_names" in group
    return str(group["param_names"][i]) if named else f"param_groups[{number}]['params'][{i}]"


def core_options(cls: type[Optimizer], options: Mapping[str, Any], beyond: Mapping[str, Any]) -> dict[str, float]:
    """A group's options in the form of the core."""
    chosen = {name: beyond[name] for name in ("stochastic_rounding", "ema")}
    return for_core({**cls.defaults, **options, **chosen}, cls.known, RULES[cls.rule]["options"])


@cache
def _checker(what: str) -> _core.Stepper:
    stepper: _core.Stepper = TORCH.core.Stepper(None, what)
    return stepper


def refusal(tensor: Tensor, what: str, written: bool = True) -> str | None:
    """Why the core cannot step a tensor; None if it can."""
    try:
        _checker(what).check_params([tensor], written)
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return None


def refusal_of_grad(grad: Tensor) -> str | None:
    """Why the core cannot step with what `local_grad` returned; None if it can."""
    if is_sharded(grad):
        return f"its gradient has the placements {grad.placements}, and it has others"
    return refusal(grad, "its gradient", written=False)


def _stores(group: Mapping[str, Any]) -> bool:
    """Whether states are stored as torch does not store them."""
    return any(group.get(name) for name in STORED)


def _is_immutable(value: Any) -> bool:
    return all(map(_is_immutable, value)) if isinstance(value, tuple) else isinstance(value, int | float | str | None)


def _ids(kept: Mapping[str, Tensor]) -> list[int]:
    return [id(array) for array in kept.values()]


def beyond_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group that torch does not have."""
    return {name: group.get(name, default) for name, default in BEYOND.items()}


def checked_beyond(owner: str, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The options beyond torch's, of each group. Raises TypeError or ValueError."""
    checked = []
    for group in groups:
        values = beyond_of(group)
        for name, domain in DOMAINS.items():
            values[name] = domain.check(values[name], f"{owner}: {name}")
        checked.append(values)
    if len({values["max_grad_norm"] for values in checked}) > 1:
        raise ValueError(f"{owner}: max_grad_norm must be the same in all groups")
    return checked

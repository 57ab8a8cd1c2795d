"""The base of the eight classes: structure, groups, states and checkpoints around the compiled step."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar

from . import _checkpoint, _core, _options, _storage
from ._libraries import Library, library_of, refuse_capture, use_stream
from ._options import Rate
from ._step import check_apart, run_step
from ._structure import Array, Grads, Params, Structure, first_array, is_groups

RULES: Final[dict[str, Any]] = {rule["name"]: rule for rule in _core.rules()}
"""The compiled rules by name: the names of their options, states and scalars."""

Chosen = TypeVar("Chosen", bound="Optimizer")

NO_OPTIONS: Final = ("self", "params", "clip_norm", "grads")
"""What the classes take besides options of groups."""

REQUIRED: Final = inspect.Parameter.empty
"""In a preset: the framework has no default."""


class OptionGroup(Mapping[str, Any]):
    """The options of one group of parameters. Setting one, `group["lr"] = 0.1`, takes effect at the next step."""

    def __init__(
        self,
        library: Library,
        stepper: _core.Stepper,
        lock: threading.RLock,
        cls: type[Optimizer],
        options: dict[str, Any],
    ) -> None:
        self._library = library
        self._stepper = stepper
        self._lock = lock
        self._cls = cls
        self._options = options
        self._number = stepper.add_group(self._for_core(options))

    def __getitem__(self, name: str) -> Any:
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __setitem__(self, name: str, value: Any) -> None:
        self.update(**{name: value})

    def update(self, **options: Any) -> None:
        """Sets several options at once, or none where one is bad. Raises TypeError or ValueError."""
        with self._lock:
            for name in (*self._cls.initial_state.values(), *_storage.FIXED):
                if name in options:
                    what = "determines which state is allocated and cannot change after construction"
                    raise ValueError(f"{self._cls.__name__}: {name} {what}")
            self.apply(self.checked(options))

    def apply(self, checked: Mapping[str, Any]) -> None:
        """Sets options that `checked` gave."""
        changed = {**self._options, **checked}
        if self._library.on_gpu:  # where options may be after a capture
            use_stream(self._library, self._stepper)
        self._stepper.set_options(self._number, self._for_core(changed))
        self._options = changed

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options in their plain types, as this group may take them. Raises TypeError or ValueError."""
        checked = _options.check_all(options, self._cls.defaults, self._cls.__name__)
        self._stepper.check_options(self._number, self._for_core({**self._options, **checked}))
        return checked

    def set_rate(self, rate: float) -> None:
        """Hands the core the value of a schedule."""
        self._stepper.set_lr(self._number, rate)

    def kept_states(self) -> list[str]:
        """The names of the states that this group keeps."""
        return _core.kept_states(self._cls.rule, self._for_core(self._options))

    def _for_core(self, options: Mapping[str, Any]) -> dict[str, float]:
        rate = 0.0 if callable(options["lr"]) else options["lr"]  # a schedule's value comes with the step
        return _options.for_core({**options, "lr": rate}, RULES[self._cls.rule]["options"])

    def __repr__(self) -> str:
        return f"OptionGroup({self._options})"


class Optimizer:
    """What all optimizers share. Not made itself; see the eight classes.

    Parameters
    ----------
    params : array, list or tuple of arrays, dict of arrays, or list of groups
        NumPy arrays of float32, float64, float16 or `ml_dtypes.bfloat16`, of any shape and strides; or arrays on one
        GPU, of CuPy, torch, or any library that shows them by `__cuda_array_interface__` or DLPack. They are updated in
        place; nothing is copied. Those of 16 bits are computed with in float32 and rounded once.
        A group is a dict with its arrays (array, list or dict) under "params" and options that override the others.
    lr : float or callable
        The learning rate, >= 0; or a schedule, called once a step with `step_count` (0 at the first step).
    l2 : float
        L2 regularization, added to the gradient: g + l2 * p.
    weight_decay : float
        Decoupled weight decay (Loshchilov and Hutter, 2019): p *= 1 - lr * weight_decay, before the update.
    maximize : bool
        Ascend instead of descending.
    flush_subnormals : bool
        Treat subnormal values, which are slow to compute with, as zero: of the gradient, what is below
        2**-56 (1.4e-17) in float32 or 2**-500 in float64, before it is clipped, and of the states what became subnormal
        (below 1.2e-38 or 2.2e-308). For gradients that fade: a moment whose gradient stays zero ends there.
    state_dtype : str or None
        What states are stored as: "float32" (None: the same; float64 for float64 parameters), "bfloat16", or "q8", one
        byte an element and a float32 for each 256; q8 rounds stochastically. `opt.state` has the codes of q8 under
        the state's name and their scales under that name and `_scale`; `gradstep.q8` reads them.
    master : bool
        Keep a float32 `master` (in `opt.state`) of every float16 and bfloat16 parameter: steps update that, and the
        parameter is its rounding. What you write into the parameter is overwritten by the next step.
    stochastic_rounding : int or None
        A seed, from 0 to 2**53: float16 and bfloat16 parameters (without a master) and bfloat16 states are rounded up
        or down at random, without bias, in place of to nearest. The random bits depend on the seed, the array's place
        in the optimizer, its step number and the element alone. Not to be turned on or off later.
    min_8bit_size : int
        An array of fewer elements keeps float32 states under "q8".
    clip_norm : float or None
        The most that the Euclidean norm of all gradients of a step together, groups and all, may be, > 0: where it is
        more, the step is one with `clip_norm / norm` times the gradients, which stay as they are (Pascanu, Mikolov and
        Bengio, 2013). By default they are not clipped. A norm that is NaN makes all parameters NaN; an infinite one, of
        gradients that are infinite or beyond 1e154, counts all finite gradients as zero. `opt.clip_norm` may be set
        between steps; `opt.grad_norm` is the norm of the last one.
    grads : the structure of params
        Gradients that stay where they are: the training loop writes them in place, and `step()` takes no argument. They
        are validated once, at construction; each step only checks that they have not been moved. `None` in place of an
        array leaves that parameter as it is, always.

    Raises
    ------
    TypeError
        For something that is no array, an unsupported dtype, an unknown option, or an option of the wrong type.
    ValueError
        For an option out of range, a read-only parameter, parameters that overlap, or none at all; for an option of
        storage that has nothing to act on.
    ModuleNotFoundError
        For bfloat16 states without the package ml_dtypes.
    RuntimeError
        For arrays on a GPU where the CUDA backend was not built, or CUDA fails.
    """

    rule: ClassVar[str]
    """The name of the compiled rule."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Defaults and forms of other frameworks; see `preset`."""
    initial_state: ClassVar[dict[str, str]] = {}
    """States that do not start at zero: the option that holds their first value."""
    q8_incompatible: ClassVar[dict[str, str]] = {}
    """Options under which states of q8 would do harm, and why."""

    defaults: ClassVar[dict[str, Any]]
    """The options of groups with their defaults, as the signature of the class has them."""

    def __init_subclass__(cls) -> None:
        if "rule" not in vars(cls):
            return  # derived from one of the optimizers: the options are those of that
        parameters = inspect.signature(cls.__init__).parameters.values()
        cls.defaults = {p.name: p.default for p in parameters if p.name not in NO_OPTIONS}

    def __init__(self, params: Params) -> None:  # noqa: ARG002
        raise TypeError("Optimizer is the base of the optimizers; make one of them")

    def _begin(self, arguments: dict[str, Any]) -> None:
        """Set up from the arguments of a class's `__init__`."""
        owner = type(self).__name__
        params = arguments["params"]
        defaults = _options.check_all(
            {name: value for name, value in arguments.items() if name not in NO_OPTIONS},
            self.defaults,
            owner,
        )
        self._grouped = is_groups(params)
        groups: list[Any] = list(params) if self._grouped else [{"params": params}]
        self._library = library_of(first_array(groups))
        self._stepper: _core.Stepper = self._library.core.Stepper(self.rule)
        self._structures: list[Structure] = []
        self._groups: list[OptionGroup] = []
        self._params: list[Array] = []
        self._states: list[dict[str, Array]] = []
        self._schedule_cache: list[
            tuple[Callable[[int], float], int, float]
        ] = []  # schedules, the step, what they said
        self._lock = threading.RLock()  # one step, or one checkpoint, at a time
        self._clip_norm: float | None = None
        self.clip_norm = arguments["clip_norm"]
        unused: list[dict[str, Exception]] = []  # of each group, but for what it has of its own
        for number, group in enumerate(groups):
            if not isinstance(group, Mapping) or "params" not in group:
                raise TypeError(f'params[{number}] must be a group, a dict with the key "params", as params[0] is')
            own = {name: value for name, value in group.items() if name != "params"}
            merged = {**defaults, **_options.check_all(own, self.defaults, f"{owner}, group {number}")}
            structure = Structure(group["params"], f"[{number}]" if self._grouped else "")
            errors = self._add_group(structure, group["params"], merged)
            for name in own:
                if name in errors:
                    raise errors[name]
            unused.append(errors)
        for name in unused[0] if unused else []:
            if all(name in errors for errors in unused):
                raise unused[0][name]
        if not self._params:
            raise ValueError(f"{owner} got no parameters")
        check_apart(self._stepper.possible_overlaps())
        self._wait()
        self._bound = arguments["grads"] is not None
        if self._bound:
            check_apart(self._stepper.bind(self._flatten(arguments["grads"])))

    def _add_group(self, structure: Structure, params: Any, options: dict[str, Any]) -> dict[str, Exception]:
        """Adds it, and returns its options that have nothing to act on, with the errors to raise for them."""
        owner, number = type(self).__name__, len(self._groups)
        group = OptionGroup(self._library, self._stepper, self._lock, type(self), options)
        named = dict(zip(structure.names, structure.flatten(params, "params"), strict=True))
        for name, param in named.items():
            self._library.core.check_param(param, name)  # before states are allocated
        if self._library.on_gpu:
            named = {name: self._library.own(param) for name, param in named.items()}
        rule = RULES[self.rule]
        firsts = {
            state: options[self.initial_state[state]] if state in self.initial_state else 0.0
            for state in group.kept_states()
        }
        if options["state_dtype"] == "q8":
            _storage.check_q8(owner, options, self.q8_incompatible)
        for name, param in named.items():
            states = _storage.make(param, rule, firsts, options)
            for_core = _storage.for_core(states, rule["states"])
            self._stepper.add_tensor(number, name, param, for_core, states.get(_storage.MASTER))
            self._params.append(param)
            self._states.append(states)
        self._structures.append(structure)
        self._groups.append(group)
        return _storage.unused_options(owner, options, named, firsts)

    def step(self, grads: Grads = ..., *, stream: Any = None) -> None:
        """Takes one step, changing parameters and states in place: wholly, or not at all where an error is raised.

        Parameters
        ----------
        grads : the structure of params
            The gradients, each of its parameter's shape, of any strides; float32, float64, float16 or bfloat16,
            whatever the parameter is: float64 is rounded once to float32 where the parameter is not float64. They are
            only read. `None` in place of an array leaves that parameter, its states and its own step number as they
            are. Left out where gradients were bound, as `grads` of the class, and only there.
        stream : a stream of CUDA, or its handle
            Where arrays on a GPU are stepped; by default the current stream of their library. It is not waited for. If
            a CUDA graph is captured there, replays take the step again. From then on step numbers and options are the
            device's: `lr` may be set between replays, `step_count` waits for the device. The optimizer must live as
            long as the graph.

        Raises
        ------
        TypeError
            For another structure, something that is no array, or another dtype; for a stream where there is no GPU.
        ValueError
            For a wrong shape, too few or too many gradients, a parameter that became read-only, a gradient that
            overlaps a parameter or state, or a schedule whose value is no rate.
        RuntimeError
            Where CUDA fails, or a step with a schedule is captured in a graph.
        """
        with self._lock:
            if self._bound is not (grads is ...):
                raise TypeError(
                    f"{type(self).__name__}: step() takes no gradients, for they were bound with the optimizer"
                    if self._bound
                    else f"{type(self).__name__}: step() needs gradients, for none were bound with the optimizer"
                )
            self._use(stream, self._stepper)
            flat = None if self._bound else self._flatten(grads)
            for group in self._groups:
                if callable(group["lr"]):
                    words = f"{type(self).__name__}: lr is a schedule, which a replay cannot ask; set lr between them"
                    refuse_capture(self._library, self._stepper, words)
                    group.set_rate(self._rate(group))
            run_step(self._stepper, flat)

    def _use(self, stream: Any, stepper: Any) -> None:
        """Settles where the next step on a GPU goes."""
        if self._library.on_gpu:
            use_stream(self._library, stepper, stream)
        elif stream is not None:
            raise TypeError(f"{type(self).__name__}: a stream is for arrays on a GPU, and these are NumPy's")

    def _wait(self) -> None:
        """Until a GPU is done: states are made and copied in the library's stream, and steps may go to another."""
        if self._library.on_gpu:
            self._stepper.wait()  # type: ignore[attr-defined]

    def _rate(self, group: OptionGroup) -> float:
        """The group's learning rate at the next step. A schedule is asked once a step, whoever shares it."""
        lr = group["lr"]
        if not callable(lr):
            return float(lr)
        step = self.step_count
        for schedule, asked_at, rate in self._schedule_cache:
            if schedule is lr and asked_at == step:
                return rate
        rate = _options.number(lr(step), _options.DOMAINS["lr"], f"{type(self).__name__}: lr({step})")
        self._schedule_cache = [asked for asked in self._schedule_cache if asked[1] == step]
        self._schedule_cache.append((lr, step, rate))
        return rate

    def _flatten(self, grads: Grads) -> Any:
        if not self._grouped:
            return self._structures[0].flatten(grads, "grads")
        if not isinstance(grads, (list, tuple)):
            raise TypeError(f"grads must be a list of groups, as params is, not {type(grads).__name__}")
        if len(grads) != len(self._structures):
            raise ValueError(f"grads has {len(grads)} groups, but params has {len(self._structures)}")
        return [
            g
            for structure, group in zip(self._structures, grads, strict=True)
            for g in structure.flatten(group, "grads")
        ]

    def _build(self, flat: list[Any]) -> Any:
        """A flat list in the structure of params."""
        rest = iter(flat)
        built = [structure.build(next(rest) for _ in structure.names) for structure in self._structures]
        return built if self._grouped else built[0]

    @property
    def step_count(self) -> int:
        """The number of steps taken."""
        with self._lock:
            return self._stepper.step_count

    @property
    def lr(self) -> Rate:
        """The learning rate or schedule, of the first group where they differ. Setting it sets every group's."""
        rate: Rate = self._groups[0]["lr"]
        return rate

    @lr.setter
    def lr(self, value: Rate) -> None:
        with self._lock:
            for group in self._groups:
                group["lr"] = value

    @property
    def clip_norm(self) -> float | None:
        """The most that the norm of all gradients of a step together may be; None: they are taken as they are."""
        return self._clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        with self._lock:
            self._take_clip_norm(_options.limit(value, f"{type(self).__name__}: clip_norm"))

    def _take_clip_norm(self, checked: float | None) -> None:
        if self._library.on_gpu:  # where the limit may be after a capture
            use_stream(self._library, self._stepper)
        self._stepper.set_clip_norm(checked)
        self._clip_norm = checked

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step together, before they were clipped. A GPU is waited for.

        None without `clip_norm`, and before the first step since `load_state_dict`. NaN where that step was captured in
        a graph and not replayed yet.
        """
        with self._lock:
            return self._stepper.grad_norm

    @property
    def groups(self) -> list[OptionGroup]:
        """The options of each group of parameters; one group where none were given."""
        return list(self._groups)

    @property
    def state(self) -> dict[str, Any]:
        """The state arrays by name, each in the structure of params; None in place of an array that is not kept.

        Beside the rule's states: `<name>_scale`, the scales of q8 codes, and `master`.
        """
        return {name: self._build([states.get(name) for states in self._states]) for name in self.state_names()}

    def state_names(self) -> list[str]:
        """The names of the arrays that are kept for some parameter."""
        known = _storage.names(RULES[self.rule]["states"])
        return [name for name in known if any(name in states for states in self._states)]

    def scalar_names(self) -> list[str]:
        """The names of the numbers that each tensor carries from step to step besides its step number."""
        return [name for name, _ in RULES[self.rule]["scalars"]]

    def state_dict(self) -> dict[str, Any]:
        """Everything a later run needs to go on with the same bits, as plain data with copies of the arrays.

        The parameters themselves are not in it. A schedule is saved as None, and the new optimizer's own stays.
        """
        with self._lock:
            self._wait()
            return _checkpoint.save(self)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave: options, step numbers and states. All is checked before anything changes.

        Raises ValueError where it is of another rule, of other shapes or lacks something, TypeError for other dtypes:
        nothing is cast or broadcast.
        """
        with self._lock:
            self._wait()
            _checkpoint.load(self, saved)
            self._wait()
            self._schedule_cache.clear()

    def _names(self) -> list[tuple[int, str]]:
        """Each tensor's group and name, in order."""
        return [(number, name) for number, structure in enumerate(self._structures) for name in structure.names]

    @classmethod
    def preset(cls: type[Chosen], framework: str, params: Params, **overrides: Any) -> Chosen:
        """This optimizer with a framework's defaults and forms: "torch", "keras", "optax", or the original "paper".

        `overrides` are options by their names here, and stand over the framework's. Raises ValueError for an unknown
        framework, TypeError where it has no default for an option (optax has none for lr) and none is given.
        """
        if framework not in cls.presets:
            raise ValueError(f"{cls.__name__} has no preset {framework!r}; it has {', '.join(cls.presets)}")
        options = {**cls.presets[framework], **overrides}
        for name, value in options.items():
            if value is REQUIRED:
                raise TypeError(
                    f"{framework} has no default for {name}: {cls.__name__}.preset({framework!r}, params, {name}=...)"
                )
        return cls(params, **options)

    def __reduce__(self) -> str:
        raise TypeError("an optimizer cannot be copied or pickled, for it holds your arrays; use state_dict()")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._groups[0].items())
        count = len(self._params)
        clipped = "" if self._clip_norm is None else f", clip_norm={self._clip_norm!r}"
        return f"{type(self).__name__}({count} array{'s' * (count != 1)}, {options}{clipped})"

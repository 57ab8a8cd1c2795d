"""The base of the optimizers: parameters, groups, states and checkpoints around the compiled step."""

from __future__ import annotations

import copyreg
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import compress
from types import EllipsisType, MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, SupportsFloat, TypeAlias, TypeVar

from . import _checkpoint, _core, _storage
from ._arithmetic import Sums, assign_multiples
from ._groups import RULES, OptionGroup
from ._libraries import library_of, refuse_capture
from ._loss_scale import LOSS_SCALE, LossScale
from ._options import (
    BELOW_ONE,
    COUNT,
    FLAG,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    Argument,
    ByName,
    Declared,
    LearningRate,
    Number,
    NumberOrNone,
    Option,
    Schedule,
    StepNumber,
    StepOption,
    check_all,
    did_you_mean,
    load_state,
    one_of,
    optional,
    schedules_of,
    without_schedules,
)
from ._step import Engine, PendingResult, check_apart, finish_step
from ._types import Array, Grads, Params, is_groups

Chosen = TypeVar("Chosen", bound="Optimizer")

REQUIRED: Final = inspect.Parameter.empty
"""In a preset: the framework has no default."""


StepResult: TypeAlias = _core.StepResult
"""What a step returns."""
UNSCALED: Final = 1.0
"""The scale of gradients where none is given."""
Clock: TypeAlias = tuple[int, list[float]]
"""A tensor's own step number, the rule's scalars, and the product of the decays of its average."""
Key: TypeAlias = tuple[int, tuple[str, ...]]
"""What identifies a group: the index of the given group, and the patterns that match the names."""


class State(dict[str, Any]):
    """The state arrays by name, each in the nesting of params; and by a parameter's name, its own arrays by name."""

    def __init__(self, by_name: Mapping[str, Any], kept: Mapping[str, dict[str, Array]]) -> None:
        super().__init__(by_name)
        self._kept = kept

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._kept

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        try:
            return self[name]
        except KeyError:
            return default

    def __missing__(self, name: str) -> dict[str, Array]:
        if name not in self._kept:
            raise KeyError(f"{name!r} names neither a state nor a parameter{did_you_mean(name, [*self, *self._kept])}")
        return dict(self._kept[name])


class Optimizer(Declared):
    """The base class of the optimizers, which have its options and methods. It has no instances of its own.

    Raises
    ------
    TypeError
        For an object that is not an array, an ndarray subclass that defines one of NumPy's hooks, an unsupported dtype,
        an unknown option, or an option of the wrong type.
    ValueError
        For an option out of range, a read-only parameter, parameters that overlap, or no parameters; for an option of
        storage that has no effect.
    ModuleNotFoundError
        For bfloat16 states without the package ml_dtypes.
    RuntimeError
        For arrays on a GPU where the CUDA backend was not built, or CUDA fails.
    """

    __slots__ = (
        "__weakref__",
        "_arguments",  # as they were given
        "_arrays",  # the parameters as their library has them
        "_away",  # the method within which the parameters have other values; "" outside
        "_columns",  # what is kept for the parameters, a list for each name
        "_engine",
        "_groups",
        "_keys",  # what makes each group
        "_leaves",  # the parameters as they were given
        "_named",  # the parameters by name; None where they were not asked for
        "_nests",  # of parameters, one for each group that was given
        "_numbers",  # the number of each parameter's group
        "_paths",  # the names of the parameters
        "_rows",  # what is kept for each parameter, by name; None where it was not asked for
        "_specs",  # the groups that were given, None without groups
        "_step_options",
        "_sums",  # the gradients that were accumulated; None before the first call
    )

    rule: ClassVar[str]
    """The name of the compiled rule."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Defaults and forms of other frameworks; see `preset`."""
    initial_state: ClassVar[dict[str, str]] = {}
    """States that do not start at zero, with the option that has their first value."""
    q8_incompatible: ClassVar[dict[str, str]] = {}
    """Options for which q8 states are too coarse, with the reasons."""

    known: ClassVar[dict[str, Option[Any]]] = {}
    """The options of groups, by name."""
    step_options: ClassVar[dict[str, Option[Any]]] = {}
    """The options of the whole step."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Their defaults."""
    signature: ClassVar[inspect.Signature]
    """The arguments of the class. Those of a derived class may be others."""
    __signature__: ClassVar[inspect.Signature]

    params: Argument[Params] = Argument(
        doc="The parameters: an array, any nesting of lists, tuples, named tuples, dicts and dataclasses of "
        'arrays, or a list of groups. A group is a dict with its parameters under "params" and options that '
        "override the others. Arrays are NumPy arrays of float32, float64, float16 or `ml_dtypes.bfloat16`, of "
        "any shape and strides; or arrays on one GPU, of CuPy, torch, or any library with "
        "`__cuda_array_interface__` or DLPack. They are updated in place; nothing is copied. The arithmetic of "
        'those of 16 bits is float32, with one rounding. The name of an array is its path, such as "layer1.w" or '
        '"[0].b". None in place of an array is allowed, and stands for no parameter.',
    )
    lr: LearningRate = LearningRate(default=...)
    l2: Number = Number(
        default=0.0, kw_only=True, domain=NON_NEGATIVE, doc="L2 regularization, added to the gradient: g + l2 * p."
    )
    weight_decay: Number = Number(
        default=0.0,
        kw_only=True,
        domain=NON_NEGATIVE,
        doc="Decoupled weight decay (Loshchilov and Hutter, 2019): p *= 1 - lr * weight_decay, before the update.",
    )
    maximize: Option[bool] = Option(
        default=False, kw_only=True, domain=FLAG, doc="Whether to ascend instead of descending."
    )
    flush_subnormals: Option[bool] = Option(
        default=False,
        kw_only=True,
        domain=FLAG,
        doc="Whether to treat subnormal values, which are slow to compute with, as zero: gradients below 2**-56 "
        "(1.4e-17) in float32 or 2**-500 in float64, before clipping, and subnormal states (below 1.2e-38 or "
        "2.2e-308). It is for gradients that vanish: a moment whose gradient stays zero becomes zero.",
    )
    state_dtype: Option[str | None] = Option(
        default=None,
        kw_only=True,
        fixed=True,
        domain=optional(one_of(*_storage.STATE_DTYPES)),
        doc="The storage type of states: float32 (None: the same, but float64 for float64 parameters), bfloat16, "
        "float16, in which moments of gradients below 1e-4 vanish, or q8, which has one byte for each element and a "
        "float32 scale for each 256, and rounds stochastically. "
        "`state` has the codes of q8 under the state's name, and their scales under that name with `_scale`; "
        "`gradstep.q8` decodes them.",
    )
    master: Option[bool] = Option(
        default=False,
        kw_only=True,
        fixed=True,
        domain=FLAG,
        doc="Whether to keep a float32 `master` (in `state`) of every float16 and bfloat16 parameter. Steps "
        "update the master, and the parameter is its rounding: what is written into the parameter is "
        "overwritten by the next step.",
    )
    stochastic_rounding: Option[int | None] = Option(
        default=None,
        kw_only=True,
        domain=optional(SEED),
        doc="A seed: float16 and bfloat16 parameters (without a master) and states of these types are rounded up or "
        "down at random, without bias, instead of to nearest. The random bits depend only on the seed, the "
        "array's place in the optimizer, its step number and the element. It cannot be turned on or off after "
        "construction.",
    )
    min_8bit_size: Option[int] = Option(
        default=4096,
        kw_only=True,
        fixed=True,
        domain=COUNT,
        doc="An array of fewer elements has float32 states with q8.",
    )
    clip_value: NumberOrNone = NumberOrNone(
        default=None,
        kw_only=True,
        domain=optional(POSITIVE),
        doc="The largest magnitude of an element of the gradients, after they were scaled and clipped by norm: larger "
        "ones become `clip_value` with their sign. NaN stays NaN.",
    )
    frozen: Option[bool] = Option(
        default=False,
        kw_only=True,
        domain=FLAG,
        doc="Whether steps leave the parameters, their states and step numbers as they are. Gradients are then "
        "ignored.",
    )
    ema: NumberOrNone = NumberOrNone(
        default=None,
        kw_only=True,
        domain=optional(BELOW_ONE),
        doc="The decay of an exponential moving average of each parameter, `average` in `state`: average = ema * "
        "average + (1 - ema) * p after each step, in the same pass over memory. It is float32, or float64 for float64 "
        "parameters, and starts as the parameter. `averaged` uses the averages. It cannot be turned on or off after "
        "construction.",
    )
    ema_correction: Option[bool] = Option(
        default=False,
        kw_only=True,
        fixed=True,
        domain=FLAG,
        doc="Whether the average starts at zero, and `averaged` divides it by one minus the product of all decays so "
        "far, so that it does not depend on the first parameters.",
    )
    clip_norm: StepNumber = StepNumber(
        default=None,
        kw_only=True,
        domain=optional(POSITIVE),
        doc="The maximum of the Euclidean norm of all gradients of a step together, those of all groups. Where the "
        "norm is greater, the step uses `clip_norm / norm` times the gradients; their arrays do not change "
        "(Pascanu, Mikolov and Bengio, 2013). A norm that is NaN makes all parameters NaN. With an infinite "
        "norm, of gradients that are infinite or above 1e154, all finite gradients count as zero. `grad_norm` "
        "is the norm of the last step.",
    )
    clip_per_tensor: StepNumber = StepNumber(
        default=None,
        kw_only=True,
        domain=optional(POSITIVE),
        doc="As clip_norm, but of the norm of each array's gradient alone. Only one of the two can be given.",
    )
    on_nonfinite: StepOption[str] = StepOption(
        default="propagate",
        kw_only=True,
        domain=one_of("propagate", "skip", "raise"),
        doc="What a step does where any element of the gradients is infinite or NaN, as values of the type of the "
        "computation: propagate it into the parameters, skip the step (parameters, states, step numbers and random "
        "numbers stay as they are), or raise FloatingPointError, with nothing changed. The latter waits for a GPU.",
    )
    accumulation: StepOption[str] = StepOption(
        default="mean",
        kw_only=True,
        domain=one_of("mean", "sum"),
        doc="Whether a step uses the mean of the gradients that `accumulate` has added, or their sum.",
    )
    loss_scale: StepOption[LossScale | None] = StepOption(
        default=None,
        kw_only=True,
        domain=LOSS_SCALE,
        doc="The `LossScale` by whose value the loss is multiplied: steps divide the gradients by it, and adapt it. It "
        'needs on_nonfinite="skip".',
    )
    options: ByName = ByName(
        default=None,
        kw_only=True,
        doc='Options of parameters by name: `{"*.bias": {"weight_decay": 0}}`. A key is the name of a parameter, '
        "or a pattern in which * stands for any characters and ? for any one. Where several match, later ones "
        "override.",
    )
    grads: Argument[Grads] = Argument(
        default=None,
        kw_only=True,
        doc="Bound gradients, in the nesting of params: the training loop writes them in place, and `step()` takes no "
        "argument. They are validated once, at construction; each step only checks that they have not been "
        "moved. None in place of an array always skips that parameter.",
    )
    copy_out: Argument[Params] = Argument(
        default=None,
        kw_only=True,
        doc="Arrays that each step sets to the parameters, rounded to nearest, in the same pass over memory: float16, "
        "bfloat16 or float32 (float32 or float64 for float64 parameters), in the nesting of params and with the shapes "
        "of the parameters. They get the values of the parameters at construction. None in place of an array: no "
        "copy of that parameter. With a master the parameter is the copy.",
    )

    def __init_subclass__(cls) -> None:
        if "rule" not in vars(cls):
            if "__init__" in vars(cls):  # derived from one of the optimizers: the options are those of that
                arguments = list(inspect.signature(vars(cls)["__init__"]).parameters.values())
                cls.__signature__ = inspect.Signature(arguments[1:])
            return
        own, common = (
            {name: argument for name, argument in vars(of).items() if isinstance(argument, Argument)}
            for of in (cls, Optimizer)
        )
        first = ("params", "lr")
        ordered = [
            *({**common, **own}[name] for name in first),
            *sorted((a for a in own.values() if a.name not in first), key=lambda a: a.kw_only),
            *(a for a in common.values() if a.name not in first),
        ]
        cls.known = {a.name: a for a in ordered if isinstance(a, Option) and not isinstance(a, StepOption)}
        cls.step_options = {a.name: a for a in ordered if isinstance(a, StepOption)}
        cls.defaults = {name: option.default for name, option in cls.known.items()}
        cls.__signature__ = cls.signature = inspect.Signature(
            [
                inspect.Parameter(
                    a.name,
                    inspect.Parameter.KEYWORD_ONLY if a.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=REQUIRED if a.default is ... else a.default,
                )
                for a in ordered
            ]
        )
        cls.__doc__ = _documented(cls.__doc__ or "", ordered)

    def __init__(self, *args: Any, **given: Any) -> None:
        cls = type(self)
        if not cls.known:
            raise TypeError("Optimizer is the base class of the optimizers and has no instances of its own")
        arguments = _bind(cls, args, given)
        params = arguments["params"]
        defaults = check_all({name: arguments[name] for name in cls.known}, cls.known, cls.__name__)
        own = _own_options(cls, params)
        self._arguments = {name: arguments[name] for name in ("params", "grads", "copy_out")}
        self._arguments["options"] = _checked_patterns(cls, arguments["options"])
        self._step_options = _checked_step_options(cls, {name: arguments[name] for name in cls.step_options}, {})
        self._specs = list(params) if is_groups(params) else None
        self._begin({(base, ()): {**defaults, **options} for base, options in enumerate(own)}, {}, {}, 0, {})
        self._refuse_unused(own)

    def _begin(
        self,
        groups: Mapping[Key, dict[str, Any]],
        kept: Mapping[str, dict[str, Array]],
        clocks: Mapping[str, Clock],
        step_count: int,
        numbers: Mapping[str, int],
    ) -> None:
        """Sets up the engine and the groups, and what `_rebuild` does."""
        self._engine = Engine(type(self).__name__)
        self._keys = list(groups)
        self._groups = [OptionGroup(self._engine, type(self), i, options) for i, options in enumerate(groups.values())]
        self._rebuild(self._read(), kept, clocks, step_count, numbers)
        self._engine.wait()

    def _read(self) -> list[Any]:
        """The nests of parameters that were given, as they are now: one for each group."""
        if self._specs is None:
            return [self._arguments["params"]]
        return [spec["params"] for spec in self._specs]

    def _rebuild(
        self,
        nests: list[Any],
        kept: Mapping[str, dict[str, Array]],
        clocks: Mapping[str, Clock],
        step_count: int,
        numbers: Mapping[str, int],
    ) -> None:
        """Steps these nests from now on, or raises with nothing changed.

        `kept`, `clocks` and the `numbers` of groups are those of tensors by name; other tensors get new ones.
        """
        nest = nests if self._is_grouped else nests[0]
        tree = _core.Tree(nest)
        if nest is None:
            raise TypeError("params must be an array, or a list, tuple, dict or dataclass of arrays, not NoneType")
        if not tree.leaves:
            raise ValueError(f"{type(self).__name__} got no parameters")
        leaves, paths = tree.leaves, tree.paths
        library = _storage.library_of_all(leaves, paths)
        if library.on_gpu:
            tree = library.core.Tree(nest)
        keys, groups, group_numbers = self._assign(tree, paths, numbers)
        stepper: _core.Stepper = library.core.Stepper(tree)
        for group in groups:
            stepper.add_group(self.rule, group.for_core(group.raw))
        stepper.check_params(leaves)  # before states are allocated
        params = [library.own(leaf) for leaf in leaves] if library.on_gpu else leaves
        columns: _storage.Columns = {}
        known = list(map(kept.get, paths)) if kept else [None] * len(paths)
        for i, own in enumerate(known if kept else ()):
            _storage.put_row(columns, own or {}, i, len(paths))
        for number, group in enumerate(groups):
            new = [i for i, own in enumerate(known) if own is None and group_numbers[i] == number]
            for name, arrays in self._make([params[i] for i in new], group).items():
                _storage.put_column(columns, name, arrays, new, len(paths))
        copies = self._arguments["copy_out"]
        stepper.add_tensors(group_numbers, params, columns, copies)
        check_apart(stepper.possible_overlaps())
        if self._arguments["grads"] is not None:
            check_apart(stepper.bind(self._arguments["grads"]))
        for group in groups:  # gradients of frozen tensors have been validated: they may be used later
            stepper.set_frozen(group.number, group.raw["frozen"])
        _set_gradient_pass(stepper, self._step_options)
        if copies is not None:
            of = zip(tree.flatten(copies, "copy_out"), params, strict=True)
            assign_multiples(library, [(library.own(copy), param, 1.0) for copy, param in of if copy is not None])
        self._away = ""
        self._sums: Sums | None = None
        if clocks or step_count > 0:
            of_new = (0, [*(value for _, value in RULES[self.rule]["scalars"]), 1.0])
            stepper.set_times(step_count, [clocks.get(path, of_new) for path in paths])

        self._nests, self._keys, self._groups, self._numbers = nests, keys, groups, group_numbers
        self._paths, self._leaves, self._arrays, self._columns = paths, leaves, params, columns
        self._named: dict[str, Array] | None = None
        self._rows: dict[str, dict[str, Array]] | None = None
        prepares = self._is_grouped or self._step_options["loss_scale"] is not None
        self._engine.begin(library, tree, stepper, prepares)
        if any(group.schedules for group in groups) or schedules_of(self._step_options):
            self._engine.expect_schedule()
        for group in groups:
            group.names = []
        add_to = [group.names.append for group in groups]
        for path, number in zip(paths, group_numbers, strict=True):
            add_to[number](path)

    def _assign(
        self, tree: _core.Tree, paths: Sequence[str], known: Mapping[str, int]
    ) -> tuple[list[Key], list[OptionGroup], list[int]]:
        """The groups with their keys, those that patterns ask for added, and the number of each leaf's group.

        Leaves whose group is `known` stay in it: their names may have changed since patterns were matched.
        """
        keys, groups = list(self._keys), list(self._groups)
        bases = [0] * len(paths)
        if self._is_grouped:
            bases = [base for base, size in enumerate(tree.entry_sizes) for _ in range(size)]
        given = self._arguments["options"]
        if not given:
            return keys, groups, bases
        patterns = {name: _pattern(name) for name in given}
        of_leaves = [
            keys[known[path]]
            if path in known and keys[known[path]][0] == base
            else (base, tuple(name for name, pattern in patterns.items() if pattern.fullmatch(path)))
            for base, path in zip(bases, paths, strict=True)
        ]
        numbers = {key: number for number, key in enumerate(keys)}
        for base, names in dict.fromkeys(of_leaves):
            if (base, names) not in numbers:
                options = groups[numbers[base, ()]].raw
                for name in names:
                    options |= given[name]
                numbers[base, names] = len(groups)
                keys.append((base, names))
                groups.append(OptionGroup(self._engine, type(self), len(groups), options))
        return keys, groups, [numbers[key] for key in of_leaves]

    def _first_states(self, group: OptionGroup) -> dict[str, float]:
        """The states that a group keeps, with their first values."""
        options = group.raw
        if options["state_dtype"] == "q8":
            _storage.check_q8(type(self).__name__, options, self.q8_incompatible)
        return {state: options.get(self.initial_state.get(state, ""), 0.0) for state in group.kept_states()}

    # Dicts by name are made when they are asked for, because steps need none, and a million names take a second.

    @property
    def _params(self) -> dict[str, Array]:
        """The parameters by name, as their library has them."""
        if self._named is None:
            self._named = dict(zip(self._paths, self._arrays, strict=True))
        return self._named

    @property
    def _kept(self) -> dict[str, dict[str, Array]]:
        """By name, what is kept for each parameter, by name."""
        if self._rows is None:
            with self._engine.lock:
                self._engine.stepper.make_states(self._columns)
                self._rows = dict(zip(self._paths, _storage.rows_of(self._columns, len(self._paths)), strict=True))
        return self._rows

    def _make(self, params: Sequence[Array], group: OptionGroup) -> _storage.Columns:
        """New states for parameters of a group."""
        return _storage.make(params, RULES[self.rule], self._first_states(group), group.raw)

    def _refuse_unused(self, own: Sequence[Mapping[str, Any]]) -> None:
        """Raises where an option has nothing to act on: in the group that it is for, or in all."""
        owner, patterns = type(self).__name__, self._arguments["options"]
        for _, names in self._keys:  # a pattern that matches nothing
            patterns = {name: options for name, options in patterns.items() if name not in names}
        for name in patterns:
            raise ValueError(f"{owner}: options[{name!r}] matches no parameter{did_you_mean(name, self._params)}")
        everywhere: dict[str, Exception] | None = None
        for (base, patterns_of), group in zip(self._keys, self._groups, strict=True):
            if not group.names:
                continue
            named = ((self._params[path], path) for path in group.names)
            errors = _storage.unused_options(owner, group.raw, named, self._first_states(group))
            given = [own[base], *(self._arguments["options"][pattern] for pattern in patterns_of)]
            for name in [name for options in given for name in options]:
                if name in errors:
                    raise errors[name]
            everywhere = {name: e for name, e in errors.items() if everywhere is None or name in everywhere}
        for error in (everywhere or {}).values():
            raise error

    @property
    def _is_grouped(self) -> bool:
        return self._specs is not None

    # Steps.

    def step(
        self,
        grads: Grads | EllipsisType = ...,
        grad_scale: SupportsFloat = UNSCALED,
        *,
        stream: Any = None,
        stats: bool = False,
    ) -> StepResult:
        """Takes one step, which changes parameters and states in place; where an error is raised, nothing has changed.

        Ctrl-C does not interrupt a step: KeyboardInterrupt is raised before the step begins or after it was taken
        wholly.

        Parameters
        ----------
        grads : the nesting of params
            The gradients, each with its parameter's shape, of any strides and any of the types float64, float32,
            float16 and bfloat16. They are only read. A number is allowed for a parameter without axes; a `Rows` has
            the gradients of some rows. None in place of an array skips that parameter: its states and its own step
            number stay as they are. Omitted where gradients were bound, as `grads` of the class, and only there; after
            `accumulate` the step takes what was accumulated, and what is given here is added first.
        grad_scale : a finite number > 0
            The gradients are divided by it, before they are clipped: the factor by which the loss was multiplied, or
            the number of micro-batches whose gradients were added up. A step that is captured in a graph keeps it.
        stream : a CUDA stream, or its handle
            The stream for arrays on a GPU; by default the current stream of their library. The step does not wait for
            it. If a CUDA graph is captured there, replays take the step again. From then on step numbers and options
            are on the device: `lr` may be set between replays, and `step_count` waits for the device. The optimizer
            must exist as long as the graph.
        stats : bool
            Whether the norms of each parameter are measured in the pass of the step, as `stats` of the result. The
            bits of the step are the same. Parameters that are not in C order are then traversed in the order of their
            indices, which is slower. A step on a GPU takes memory of the size of the parameters for it.

        Returns
        -------
        StepResult
            `applied`: whether the step was taken, and not skipped. `step`: `step_count` after it. `grad_norm`: the norm
            of all gradients, divided by grad_scale and not yet clipped, or None where no option requires it.
            `clip_factor`: what clipping multiplied them by. `nonfinite`: None, or the name of the first parameter whose
            gradient is infinite or NaN, with the index of its first such element in C order. `stats`: with stats=True,
            a dict with `TensorNorms` for each parameter that took part, by name: `gradient`, the norm of its gradient
            as in `grad_norm`; `update`, that of the change of the parameter; `weight`, that of the parameter after the
            step. With a master they are those of the master, for a `Rows` those of the rows that were stepped. None
            where the step was skipped. On a GPU they are waited for when they are read, which must be before the next
            step.

        Raises
        ------
        TypeError
            For another nesting, an object that is not an array, or another dtype; for a stream where arrays are not on
            a GPU.
        ValueError
            For a wrong shape, too few or too many gradients, an index of a row out of range, a parameter that became
            read-only, a parameter that was replaced in its container, a gradient that overlaps a parameter or state, or
            a schedule whose value its option does not allow.
        FloatingPointError
            For gradients that are not finite, with on_nonfinite="raise".
        RuntimeError
            Where CUDA fails, or a step with a schedule, a loss scale, or stats, or with on_nonfinite="raise", is
            captured in a graph.
        """
        engine = self._engine
        if grad_scale is UNSCALED and stream is None and stats is False:
            result = engine.quick_step(grads)
            if result is not None:
                return result
        with engine.lock:
            if engine.prepares or stream is not None:
                self._prepare(stream)
                if self._sums is not None and self._sums.count > 0:
                    return self._step_with(self._sums, grads, grad_scale, stream, stats)
            return self._step_scaled(grads, self._divisor(grad_scale), self._measures(stats))

    def _divisor(self, grad_scale: Any) -> float:
        """What gradients are divided by: the scale of this step times the loss scale."""
        engine = self._engine
        loss_scale: LossScale | None = self._step_options["loss_scale"]
        divisor: float = POSITIVE.check(grad_scale, f"{engine.name}: grad_scale")
        if loss_scale is None:
            return divisor
        words = f"{engine.name}: a replay cannot adapt a loss scale; use grad_scale"
        refuse_capture(engine.library, engine.stepper, words)
        divisor = POSITIVE.check(divisor * loss_scale.value, f"{engine.name}: grad_scale * loss_scale.value")
        return divisor

    def _measures(self, stats: Any) -> bool:
        """Whether the norms of parameters are measured."""
        engine = self._engine
        measures: bool = FLAG.check(stats, f"{engine.name}: stats")
        if measures:
            refuse_capture(engine.library, engine.stepper, f"{engine.name}: a replay cannot return stats")
        return measures

    def _step_scaled(self, grads: Any, divisor: float, measures: bool, clears: bool = False) -> StepResult:
        """Takes a step whose gradients are divided. `clears`: they are sums that become zero."""
        engine = self._engine
        begun = engine.stepper.step(grads, divisor, clears, measures)
        finished: StepResult | None = finish_step(engine.stepper, begun, divisor, measures)
        result = PendingResult(engine) if finished is None else finished
        loss_scale: LossScale | None = self._step_options["loss_scale"]
        if loss_scale is not None:
            loss_scale.update(result)
        return result

    def accumulate(self, grads: Grads | EllipsisType = ..., *, stream: Any = None) -> None:
        """Adds the gradients of a micro-batch to those of the next step.

        `step()` without gradients then takes their mean, or their sum with `accumulation="sum"`, and begins anew;
        `step(grads)` adds these first. The sums are float32, or float64 for float64 parameters. A parameter without a
        gradient in all micro-batches takes no part in the step. A step that is skipped because of `on_nonfinite`, or
        raises an error for it, drops the sums.

        Parameters
        ----------
        grads : the nesting of params
            As of `step`. Omitted where gradients were bound: those are added.
        stream : a CUDA stream, or its handle
            As of `step`, and the same as that of the step.

        Raises
        ------
        TypeError, ValueError
            As `step` does, with nothing changed.
        RuntimeError
            Where CUDA fails, or while a CUDA stream is captured in a graph.
        """
        with self._engine.lock:
            self._add(self._accumulator(), grads, stream)

    def _accumulator(self) -> Sums:
        """The sums of gradients, which the first call makes."""
        self._check_settled("accumulate()")
        self._check_nests()
        if self._sums is None:
            self._sums = Sums(self._engine, self._params)
        self._engine.prepare_steps()
        return self._sums

    def _add(self, sums: Sums, grads: Grads | EllipsisType, stream: Any) -> None:
        """Adds gradients to sums."""
        bound = self._arguments["grads"]
        if (grads is ...) is (bound is None):
            words = "no gradients, because they were" if bound is not None else "gradients, because none were"
            raise TypeError(f"accumulate() takes {words} bound with the optimizer")
        tree = self._engine.tree
        tree.check_unchanged()
        frozen = [group["frozen"] for group in self._groups]
        flat = tree.flatten(bound if grads is ... else grads, "grads")
        of = zip(flat, self._numbers, strict=True)
        sums.add([None if frozen[number] else grad for grad, number in of], stream)

    def _step_with(
        self, sums: Sums, grads: Grads | EllipsisType, grad_scale: SupportsFloat, stream: Any, stats: bool
    ) -> StepResult:
        """Takes a step with accumulated gradients, after the last ones were added."""
        engine = self._engine
        words = f"{engine.name}: a step with accumulated gradients cannot be captured"
        refuse_capture(engine.library, engine.stepper, words)
        divisor, measures = self._divisor(grad_scale), self._measures(stats)
        if grads is not ...:
            engine.stepper.check_arrays()  # first, because a step that is refused must not have added gradients
            self._add(sums, grads, stream)
        frozen = {name for group in self._groups if group["frozen"] for name in group.names}
        given = [array if name in sums.given - frozen else None for name, array in sums.arrays.items()]
        count = sums.count if self.accumulation == "mean" else 1
        try:
            result = self._step_scaled(engine.tree.build(given), divisor * count, measures, clears=True)
        except FloatingPointError:  # it was skipped
            sums.clear()
            raise
        sums.given &= frozen  # the step has cleared the others
        sums.clear()
        return result

    def _prepare(self, stream: Any) -> None:
        """Prepares a step on a GPU or with schedules."""
        engine = self._engine
        if self._away:
            raise RuntimeError(f"step() within {self._away}: leave it first, which restores the parameters")
        self._check_nests()
        self._check_idle("step()")
        engine.use(stream)
        if self._step_options["on_nonfinite"] == "raise":
            words = f'{engine.name}: on_nonfinite="raise" waits for the device and cannot be captured; use "skip"'
            refuse_capture(engine.library, engine.stepper, words)
        if engine.is_scheduled:
            self._follow_schedules()

    def _follow_schedules(self) -> None:
        """Sets the options that are schedules to their values at the next step."""
        engine, known = self._engine, self.known
        schedules = [(group, name, of) for group in self._groups for name, of in group.schedules.items()]
        of_step = schedules_of(self._step_options)
        if engine.library.on_gpu:
            for name in [*(name for _, name, _ in schedules), *of_step]:
                words = f"{engine.name}: {name} is a schedule, which a replay cannot call; set {name} between replays"
                refuse_capture(engine.library, engine.stepper, words)
        values = [(group, name, engine.value_at(of, known[name])) for group, name, of in schedules]
        limits = {name: engine.value_at(of, self.step_options[name]) for name, of in of_step.items()}
        now = [(group.number, name) for group, name, _ in schedules] + [(-1, name) for name in limits]
        if now != engine.scheduled:
            for number, name in engine.scheduled:
                if number >= 0 and (number, name) not in now:
                    self._groups[number].set_now(name, self._groups[number].raw[name])
        for group, name, value in values:
            group.set_now(name, value)
        if limits or now != engine.scheduled:
            _set_gradient_pass(engine.stepper, {**self._step_options, **limits})
        # A schedule that has set its own option ends with this step, and the next one takes what it has set.
        engine.scheduled, engine.is_scheduled = now, bool(now)

    def _check_nests(self) -> None:
        """Raises ValueError where a group has other parameters than those that are stepped."""
        for number, (spec, nest) in enumerate(zip(self._specs or (), self._nests, strict=False)):
            if spec["params"] is not nest:
                raise ValueError(
                    f'{self._engine.name}: the "params" of group {number} have been replaced; '
                    "call rebind() to step the new ones"
                )

    @property
    def step_count(self) -> int:
        """The number of steps taken."""
        with self._engine.lock:
            return self._engine.stepper.step_count

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step together, before clipping. Waits for a GPU.

        None where no option requires it, and before the first step since `load_state_dict`. NaN if that step was
        captured in a graph and has not been replayed.
        """
        with self._engine.lock:
            return self._engine.stepper.grad_norm

    # Options.

    @property
    def groups(self) -> list[OptionGroup]:
        """The options of each group of parameters: the given groups, or one, and those made for patterns of names."""
        return [group for group in self._groups if group.names or self._is_grouped]

    @property
    def schedule(self) -> Schedule | None:
        """The callable that gives `lr`; None where that is a number. Setting it sets `lr`.

        It is called once a step with `step_count` (0 at the first step). One that sets `lr` itself is replaced by that
        value, from the next step on.
        """
        first, *rest = [group.schedule for group in self._groups if group.names]
        if any(schedule is not first for schedule in rest):
            raise ValueError(f"{type(self).__name__}: groups differ in their schedule; read groups[i].schedule")
        return first

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self._set_everywhere("lr", value)

    def _common_value(self, name: str) -> Any:
        """The value of an option that all groups share."""
        with self._engine.lock:
            values = {number: group[name] for number, group in enumerate(self.groups) if group.names}
        first, *rest = values.values()
        if any(value != first for value in rest):
            shown = ", ".join(f"{number}: {value!r}" for number, value in values.items())
            raise ValueError(f"{type(self).__name__}: groups differ in {name} ({shown}); use groups[i][{name!r}]")
        return first

    def _set_everywhere(self, name: str, value: Any) -> None:
        with self._engine.lock:
            checked = [group.checked({name: value}) for group in self._groups]
            for group, options in zip(self._groups, checked, strict=True):
                group.apply(options)

    def _set_step_options(self, given: Mapping[str, Any]) -> None:
        with self._engine.lock:
            changed = _checked_step_options(type(self), given, self._step_options)
            self._engine.use()  # after a capture, options are on the GPU
            _set_gradient_pass(self._engine.stepper, changed)
            if changed["loss_scale"] is not None:
                self._engine.prepare_steps()
            if schedules_of(changed):
                self._engine.expect_schedule()
            self._step_options = changed

    def _step_value(self, name: str) -> Any:
        """The value of an option of the whole step."""
        return self._engine.read(self._step_options[name], self.step_options[name])

    # Parameters and states.

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in order."""
        return list(self._paths)

    @property
    def state(self) -> dict[str, Any]:
        """The state arrays by name, each in the nesting of params; None in place of an array that is not kept.

        They include `<name>_scale`, the scales of q8 codes, and `master`. The arrays of one parameter are under its
        name: `opt.state["layer1.w"]["exp_avg"]`.
        """
        shown = {
            name: self._engine.tree.build([kept.get(name) for kept in self._kept.values()])
            for name in self.state_names()
        }
        return State(shown, self._kept)

    def state_names(self) -> list[str]:
        """The names of the arrays that are kept for at least one parameter."""
        present = {name for kept in self._kept.values() for name in kept}
        return [name for name in _storage.names(RULES[self.rule]["states"]) if name in present]

    def _named_params(self, params: Any = None) -> dict[str, Array]:
        """The parameters by name; or the arrays of another nest of the same structure."""
        self._check_settled("saving or loading parameters")
        if params is None:
            self._engine.tree.check_unchanged()
            return dict(self._params)
        nest = [group["params"] for group in params] if is_groups(params) else params
        return dict(zip(self._paths, self._engine.tree.flatten(nest, "params"), strict=True))

    def rebind(self) -> None:
        """Takes over what `params` (and bound `grads`) hold now: arrays put in place of others, new ones, fewer ones.

        An array that is still there keeps its states and step number, also under another name; so does one that took
        the place, by name, of another of the same shape and dtype. A new one begins as at construction; those that are
        gone are dropped. Raises ValueError, with nothing changed, where an
        array has another shape or dtype: see `replace`.
        """
        with self._engine.lock:
            given = self._arguments["params"]
            if self._specs is not None and len(given) != len(self._specs):
                raise ValueError(f"params has {len(given)} groups, but had {len(self._specs)}; add_group() adds one")
            self._take_over(self._read())

    def add_group(self, group: Mapping[str, Any] | None = None, /, **given: Any) -> None:
        """Adds a group: a dict or keywords, with its parameters as "params" and options that override the first's.

        From then on gradients are a list with one entry for each group. Where the optimizer was made without groups,
        its parameters become the first one, and their names begin with "[0]". Raises as the class does, with nothing
        changed; ValueError where gradients are bound or there is a `copy_out`.
        """
        owner = type(self).__name__
        with self._engine.lock:
            if self._arguments["grads"] is not None:
                raise ValueError(f"{owner}: add_group() cannot be used with bound gradients")
            if self._arguments["copy_out"] is not None:
                raise ValueError(f"{owner}: add_group() cannot be used with copy_out")
            spec = {**(group or {}), **given}
            if "params" not in spec:
                raise TypeError(f'{owner}: a group needs its parameters as "params"')
            own = check_all({k: v for k, v in spec.items() if k != "params"}, self.known, f"{owner}, add_group")
            before = self._arguments, self._specs, self._keys, self._groups, self._paths, self._kept
            try:
                if self._specs is None:
                    self._specs = [{"params": self._nests[0]}]
                    kept = self._kept.values()
                    self._paths, self._named = ["[0]" + _storage.suffix(path) for path in self._paths], None
                    self._rows = dict(zip(self._paths, kept, strict=True))
                self._keys = [*self._keys, (len(self._specs), ())]
                self._specs = [*self._specs, spec]
                self._arguments = {**self._arguments, "params": self._specs}
                options = {**self._groups[0].raw, **own}
                self._groups = [*self._groups, OptionGroup(self._engine, type(self), len(self._groups), options)]
                self._take_over(self._read())
            except BaseException:
                self._arguments, self._specs, self._keys, self._groups, self._paths, self._rows = before
                self._named = None
                raise

    def replace(self, name: str, array: Any, rows: Any = None) -> None:
        """Puts an array in place of the parameter `name`, grown or pruned along its first axis, and keeps its states.

        The array is put into the container of params, too. The parameter's step number stays.

        Parameters
        ----------
        array : array
            The new parameter, of the same dtype.
        rows : array of integers
            For each row of `array`, the row of the old parameter whose states it takes over; -1: states that begin as
            at construction. None: the shape is the same, and all states stay.

        Raises
        ------
        TypeError
            For an object that is not an array.
        ValueError
            For an unknown name, another dtype or shape, rows out of range, or a container that cannot be changed.
            Nothing has changed then.
        """
        owner = type(self).__name__
        with self._engine.lock:
            if name not in self._params:
                raise ValueError(f"{owner}: there is no parameter {name!r}{did_you_mean(name, self._params)}")
            engine = self._engine
            if _core.Tree([array], name).paths != ["[0]"] or library_of(array) is not engine.library:
                raise TypeError(
                    f"{owner}: {name} must be an array of {engine.library.name}, not {type(array).__name__}"
                )
            engine.library.core.Stepper(None, f"params{_storage.suffix(name)}").check_params([array])
            place = self.names.index(name)
            group = self._groups[self._numbers[place]]
            make_new = partial(self._make, [array], group)
            kept = _storage.moved_rows(self._params[name], array, rows, self._kept[name], make_new, name)
            keys = engine.tree.keys(place)
            if self._specs is not None:
                undo = _put(self._specs, [keys[0], "params", *keys[1:]], array, name)
            else:
                undo = _put(self._arguments, ["params", *keys], array, name)
            try:
                self._take_over(self._read(), {name: kept})
            except BaseException:
                undo()
                raise

    def _take_over(self, nests: list[Any], renewed: Mapping[str, dict[str, Array]] = MappingProxyType({})) -> None:
        """Steps these nests from now on, with what is kept for each tensor, or `renewed` for it, by name."""
        self._check_settled("a change of parameters")
        if self._sums is not None and self._sums.count > 0:
            raise RuntimeError(f"{self._engine.name}: gradients were accumulated for the parameters as they are")
        engine = self._engine
        if engine.stepper.is_captured:
            raise RuntimeError(
                f"{engine.name}: a step was captured in a graph, which replays it with the arrays it had"
            )
        engine.wait()
        tree = _core.Tree(nests if self._is_grouped else nests[0])
        names = self._paths
        clocks_now = dict(zip(names, engine.stepper.clocks, strict=True))
        numbers_now = dict(zip(names, self._numbers, strict=True))
        given = dict(zip(names, self._leaves, strict=True))
        name_of = {id(leaf): name for name, leaf in given.items()}
        still_there = {name_of.get(id(leaf)) for leaf in tree.leaves}
        kept: dict[str, dict[str, Array]] = {}
        clocks: dict[str, Clock] = {}
        numbers: dict[str, int] = {}
        for path, leaf in zip(tree.paths, tree.leaves, strict=True):
            name = name_of.pop(id(leaf), None if path in still_there else path)
            if name is None or name not in given:
                continue
            clocks[path], numbers[path] = clocks_now[name], numbers_now[name]
            if path in renewed:
                kept[path] = renewed[path]
            elif leaf is given[name]:
                kept[path] = self._kept[name]
            else:
                kept[path] = _storage.for_other(self._params[name], leaf, self._kept[name], path)
        self._rebuild(nests, kept, clocks, engine.stepper.step_count, numbers)
        engine.wait()

    def _check_settled(self, what: str) -> None:
        """Raises RuntimeError where parameters and states are not those that a step has left."""
        self._check_idle(what)
        if self._away:
            raise RuntimeError(f"{what} cannot be used within {self._away}: leave it first")

    def _check_idle(self, what: str) -> None:
        """Raises RuntimeError in code that a step or a schedule calls."""
        if self._engine.is_busy:
            raise RuntimeError(f"{self._engine.name}: {what} is not allowed in code that a step or a schedule calls")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """`with opt.averaged():` sets the parameters to their averages, and restores their exact bits on leaving.

        They are restored also on an exception. Averages are rounded to the type of the parameters, and divided by one
        minus the product of decays with `ema_correction`. Parameters that are not averaged, and with `ema_correction`
        those without a step, stay as they are. Raises RuntimeError without `ema`, within itself and within
        `lookahead()`, and while a CUDA stream is captured in a graph.
        """
        engine = self._engine
        with ExitStack() as stack:
            with engine.lock:  # until the parameters have moved: no other thread passes the checks meanwhile
                if not any(_storage.AVERAGE in kept for kept in self._kept.values()):
                    raise RuntimeError("averaged() is for optimizers with ema")
                self._check_settled("averaged()")
                factors = [
                    1.0 / (1.0 - product) if product < 1 else 0.0 for (_, (*_, product)) in engine.stepper.clocks
                ]
                factors = [
                    factor if self._groups[number]["ema_correction"] else 1.0
                    for factor, number in zip(factors, self._numbers, strict=True)
                ]
                each = list(zip(self._params.values(), self._kept.values(), factors, strict=True))
                moves = [_storage.AVERAGE in kept and factor > 0 for _, kept, factor in each]
                moving = compress(each, moves)
                multiples = [(param, kept[_storage.AVERAGE], factor) for param, kept, factor in moving]
                move = partial(assign_multiples, engine.library, multiples)
                stack.enter_context(self._moved("averaged()", moves, move))
            yield

    @contextmanager
    def _moved(self, what: str, moves: Sequence[bool], move: Callable[[], None]) -> Iterator[None]:
        """A context in which `move` has changed the parameters for which `moves` is true. Masters keep their bits.

        Where `move` raises TypeError or ValueError, it has changed nothing.
        """
        engine = self._engine
        with engine.lock:
            engine.use()
            words = f"{what} cannot be captured: replays would not restore the parameters"
            refuse_capture(engine.library, engine.stepper, words)
            copy, assign = engine.library.copy, engine.library.assign
            params = [(param, copy(param)) for param in compress(self._params.values(), moves)]
            kept = [of[_storage.MASTER] for of in compress(self._kept.values(), moves) if _storage.MASTER in of]
            masters = [(master, copy(master)) for master in kept]
            self._away = what
            engine.prepare_steps()
        try:
            try:
                with engine.lock:
                    move()
                    for master, bits in masters:  # restored at once: only the parameters move
                        assign(master, bits)
            except (TypeError, ValueError):
                params = []
                raise
            yield
        finally:
            with engine.lock, ExitStack() as stack:  # restores the others where one fails
                for param, bits in params:
                    stack.callback(assign, param, bits)
                self._away = ""

    # Checkpoints and copies.

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later run needs to continue with the same bits, as plain data with copies of the arrays.

        Parameters are not included. An option that is a schedule is saved as None, and the new optimizer keeps its
        own value or schedule; a number replaces a schedule.

        Returns
        -------
        dict
            "format": 2. "rule": its name. "step_count". "options": those of the whole step. "groups": the options of
            each group, with the names of its parameters as "params". "schedules", there and in groups: the options
            that are schedules, each with what its `state_dict()` returns, or None. "state": for each parameter, by
            name, its own step number as "step", the scalars of the rule (Nadam's "mu_product"), "ema_product", the
            product of the decays so far, where it has an average, and its state arrays by name. Where gradients were
            accumulated since the last step: "accumulated", their number, and their sums as "accumulator" in "state".
        """
        with self._engine.lock:
            self._engine.wait()
            copied = {
                path: {
                    name: self._engine.library.to_numpy(value) if name in self._kept[path] else value
                    for name, value in own.items()
                }
                for path, own in self._own_state().items()
            }
            pending = {}
            if self._sums is not None and self._sums.count > 0:
                pending = {"accumulated": self._sums.count}
                for path in self._sums.given:
                    copied[path][_checkpoint.SUM] = self._engine.library.to_numpy(self._sums.arrays[path])
            return {
                **pending,
                "format": _checkpoint.FORMAT,
                "rule": self.rule,
                "step_count": self._engine.stepper.step_count,
                "options": _plain_step_options(self._step_options),
                **_checkpoint.states_of(schedules_of(self._step_options)),
                "groups": [
                    {
                        **group.raw,
                        **dict.fromkeys(group.schedules),
                        **_checkpoint.states_of(group.schedules),
                        "params": list(group.names),
                    }
                    for group in self._groups
                ],
                "state": copied,
            }

    def load_state_dict(self, saved: Mapping[str, Any], strict: bool = True) -> _checkpoint.Differences:
        """Loads what `state_dict` returned: options, step numbers and states, by the names of parameters.

        Everything is checked before anything changes; nothing is cast or broadcast. Dicts of format 1 (version 0.1),
        which go by position, can be loaded if they have the same number of parameters.

        Parameters
        ----------
        strict : bool
            Whether all names must be present and fit. False: what fits is loaded, and the rest stays as it is.

        Returns
        -------
        Differences
            The names that are `missing`, `unexpected` and `mismatched`.

        Raises
        ------
        TypeError
            Where it is not a dict of this form.
        ValueError
            Where it is for another rule; with `strict`, for the names that are missing, unexpected or mismatched; for
            values that no step gives, callables, masks, and arrays that share memory with the optimizer's own.
        """
        with self._engine.lock:
            self._check_idle("load_state_dict()")  # states alone: within lookahead() and averaged() it is fine
            engine = self._engine
            engine.wait()
            ours, sums = self._own_state(), None
            accumulated, pending = _checkpoint.accumulated(saved)
            if accumulated > 0:
                sums = Sums(engine, self._params)
                for path in pending:
                    if path in ours:
                        ours[path][_checkpoint.SUM] = sums.arrays[path]
            plan = _checkpoint.plan(
                saved,
                rule=self.rule,
                scalars=[*self.scalar_names(), _checkpoint.EMA_PRODUCT],
                non_negative=RULES[self.rule]["non_negative"],
                ours=ours,
                groups=[group.names for group in self._groups],
                known={**self.known, **self.step_options},
                library=engine.library,
            )
            if strict:
                plan.differences.refuse()
            checked = [
                group.checked(options, loading=True) for group, options in zip(self._groups, plan.groups, strict=True)
            ]
            states = [(group.schedules, states) for group, states in zip(self._groups, plan.schedules, strict=True)] + [
                (schedules_of(self._step_options), plan.schedules_of_step)
            ]
            loading = [pair for own, theirs in states for pair in _checkpoint.loaders(own, theirs)]
            if plan.clocks:
                self._load_step_options(plan.options)  # first, because a device may refuse it
            for group, options in zip(self._groups, checked, strict=True):
                group.apply(options)
            for schedule, state in loading:
                load_state(schedule, state)
            for path, arrays in plan.arrays.items():
                for name, array in arrays.items():
                    own = sums.arrays[path] if sums is not None and name == _checkpoint.SUM else self._kept[path][name]
                    engine.library.from_numpy(own, array)
            clocks = dict(zip(self._paths, engine.stepper.clocks, strict=True)) | plan.clocks
            if sums is not None:
                sums.count = accumulated
                sums.given = {path for path in pending if path in plan.arrays}
                engine.prepare_steps()
            if plan.clocks:
                self._sums = sums
                engine.stepper.set_times(plan.step_count, list(clocks.values()))
            engine.wait()
            engine.values.clear()
            return plan.differences

    def _load_step_options(self, options: Mapping[str, Any]) -> None:
        """Sets the options of the whole step. The optimizer's own loss scale takes over the state of another."""
        own, other = self._step_options["loss_scale"], options.get("loss_scale")
        if own is None or other is None:
            return self._set_step_options(options)
        self._set_step_options({**options, "loss_scale": own})
        own.load_state_dict(other.state_dict())

    def scalar_names(self) -> list[str]:
        """The names of the scalars that each tensor has besides its step number."""
        return [name for name, _ in RULES[self.rule]["scalars"]]

    def _own_state(self) -> dict[str, dict[str, Any]]:
        """What each tensor keeps between steps, by name: step number, scalars and arrays."""
        clocks, names = self._engine.stepper.clocks, self.scalar_names()
        return {
            path: {
                "step": step,
                **dict(zip(names, scalars, strict=True)),
                **({_checkpoint.EMA_PRODUCT: product} if _storage.AVERAGE in kept else {}),
                **kept,
            }
            for (path, kept), (step, (*scalars, product)) in zip(self._kept.items(), clocks, strict=True)
        }

    @classmethod
    def preset(cls: type[Chosen], framework: str, params: Params, **overrides: Any) -> Chosen:
        """This optimizer with a framework's defaults and forms: "torch", "keras", "optax", or the original "paper".

        `overrides` are options with gradstep's names, which override the framework's. Raises ValueError for an unknown
        framework, and TypeError where it has no default for an option (optax has none for lr) and none is given.
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

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the parameters and gradients as they were given, options, states, step numbers."""
        with self._engine.lock:
            self._check_settled("a copy or pickle")
            self._engine.wait()
            return {
                "arguments": self._arguments,
                "specs": self._specs,
                "step_options": self._step_options,
                "groups": {key: group.raw for key, group in zip(self._keys, self._groups, strict=True)},
                "kept": self._kept,
                "numbers": dict(zip(self._paths, self._numbers, strict=True)),
                "clocks": dict(zip(self._paths, self._engine.stepper.clocks, strict=True)),
                "step_count": self._engine.stepper.step_count,
                "sums": self._sums and {path: self._sums.arrays[path] for path in self._sums.given},
                "accumulated": self._sums.count if self._sums else 0,
                "others": getattr(self, "__dict__", {}),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments = state["arguments"]
        self._specs = state["specs"]
        self._step_options = state["step_options"]
        self._begin(state["groups"], state["kept"], state["clocks"], state["step_count"], state["numbers"])
        if state.get("accumulated"):
            self._sums = Sums(self._engine, self._params)
            for path, array in state["sums"].items():
                self._engine.library.assign(self._sums.arrays[path], array)
            self._sums.given, self._sums.count = set(state["sums"]), state["accumulated"]
            self._engine.prepare_steps()
        for name, value in state["others"].items():  # attributes of a derived class
            setattr(self, name, value)

    def __copy__(self) -> None:
        raise TypeError("a shallow copy would share the states, but not the step numbers; use copy.deepcopy()")

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    if not TYPE_CHECKING:  # with which type checkers would accept every attribute

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except AttributeError:
                if hasattr(type(self), name):
                    raise
                raise AttributeError(self._unknown(name), name=name, obj=self) from None

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property, or a slot of a derived class, that raised an AttributeError
                return object.__getattribute__(self, name)
            raise AttributeError(self._unknown(name), name=name, obj=self)

    def _unknown(self, name: str) -> str:
        public = [known for known in dir(type(self)) if not known.startswith("_")]
        return f"{type(self).__name__} has no attribute {name!r}{did_you_mean(name, public)}"

    def __repr__(self) -> str:
        first = next(group for group in self._groups if group.names)
        options = {name: value for name, value in first.raw.items() if value != self.defaults[name]}
        options |= {
            name: value for name, value in self._step_options.items() if value != self.step_options[name].default
        }
        shown = "".join(f", {name}={value!r}" for name, value in options.items())
        count = len(self._paths)
        return f"{type(self).__name__}({count} array{'s' * (count != 1)}{shown})"


def _bind(cls: type[Optimizer], args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with defaults. Raises TypeError as a function of that signature does."""
    signature = cls.signature
    for name in given:
        if name not in signature.parameters:
            hint = did_you_mean(name, signature.parameters) or f"; it has {', '.join(signature.parameters)}"
            raise TypeError(f"{cls.__name__} has no option {name!r}{hint}")
    try:
        bound = signature.bind(*args, **given)
    except TypeError as error:
        raise TypeError(f"{cls.__name__}: {error}") from None
    bound.apply_defaults()
    return bound.arguments


def _own_options(cls: type[Optimizer], params: Any) -> list[dict[str, Any]]:
    """The options that each group of params overrides."""
    if not is_groups(params):
        return [{}]
    own = []
    for number, group in enumerate(params):
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'params[{number}] must be a group, a dict with the key "params", as params[0] is')
        given = {name: value for name, value in group.items() if name != "params"}
        own.append(check_all(given, cls.known, f"{cls.__name__}, group {number}"))
    return own


def _checked_patterns(cls: type[Optimizer], options: Any) -> dict[str, dict[str, Any]]:
    """Options by patterns of names, in their plain types."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(own, Mapping) for own in options.values()):
        raise TypeError(f"{cls.__name__}: options must be a dict of dicts, options by names of parameters")
    return {name: check_all(own, cls.known, f"{cls.__name__}, options[{name!r}]") for name, own in options.items()}


def _checked_step_options(cls: type[Optimizer], given: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the whole step, some of them changed. Raises TypeError or ValueError."""
    options = {**now, **check_all(given, cls.step_options, cls.__name__)}
    if options["clip_norm"] is not None and options["clip_per_tensor"] is not None:
        raise ValueError(f"{cls.__name__}: only one of clip_norm and clip_per_tensor can be given")
    if options["loss_scale"] is not None and options["on_nonfinite"] != "skip":
        raise ValueError(f'{cls.__name__}: loss_scale needs on_nonfinite="skip"')
    return options


def _plain_step_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the whole step as plain data."""
    plain = {name: x.state_dict() if isinstance(x, LossScale) else x for name, x in options.items()}
    return {name: None if callable(x) else x for name, x in plain.items()}


def _set_gradient_pass(stepper: _core.Stepper, options: Mapping[str, Any]) -> None:
    """Sets the options of the gradient pass, with a number in place of each schedule."""
    known = {name: getattr(Optimizer, name) for name in ("clip_norm", "clip_per_tensor", "on_nonfinite")}
    stepper.set_gradient_pass(*without_schedules({name: options[name] for name in known}, known).values())


def _pattern(name: str) -> re.Pattern[str]:
    """A pattern in which * stands for any characters and ? for any one."""
    return re.compile(re.escape(name).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def _put(nests: Any, keys: Sequence[Any], array: Any, name: str) -> Callable[[], None]:
    """Puts an array into a nest, and returns a function that undoes it. Raises ValueError if the nest is immutable."""
    container: Any = nests
    for key in keys[:-1]:
        container = getattr(container, key) if _has_fields(container) else container[key]
    last = keys[-1]
    try:
        if _has_fields(container):
            old = getattr(container, last)
            setattr(container, last, array)
            return lambda: setattr(container, last, old)
        old = container[last]
        container[last] = array
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{name} is in a {type(container).__name__}, which cannot be changed") from error
    return lambda: container.__setitem__(last, old)


def _has_fields(container: Any) -> bool:
    """Whether the entries of a container of a nest are its attributes: a dataclass's, or a named tuple's."""
    return any(hasattr(container, fields) for fields in ("_fields", "__dataclass_fields__"))


def _documented(text: str, arguments: Iterable[Argument[Any]]) -> str:
    """A docstring with a section of parameters."""
    section = "\n".join(["    Parameters", "    ----------", *(argument.documentation for argument in arguments)])
    return f"{text.rstrip()}\n\n    Raises as `Optimizer` does.\n\n{section}\n"

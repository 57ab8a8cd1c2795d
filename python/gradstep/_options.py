"""Options: each is declared once, with the values that it may have.

A class of optimizers declares an option as an attribute, `momentum = Number(default=0.9, domain=UP_TO_ONE, doc=...)`.
The declaration gives its place in the signature, its documentation, its key in groups, its check and its property.
"""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsFloat, TypeAlias, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[type], type]:
        """`typing.dataclass_transform`, which needs Python 3.11; it does nothing at run time."""
        return lambda cls: cls


T = TypeVar("T")
Schedule: TypeAlias = Callable[[int], SupportsFloat]
Pair: TypeAlias = tuple[float, float]


class Domain(NamedTuple):
    """The values that an option may have: their description, and a function that converts a value to its plain type.

    The function raises TypeError or ValueError without a message. `example` is a number in the middle of real ones.
    """

    words: str
    plain: Callable[[Any], Any]
    example: Any = None

    def check(self, value: object, name: str) -> Any:
        """`value` in its plain type. Raises TypeError or ValueError with `name` in the message."""
        try:
            return self.plain(scalar(value))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} must be {self.words}, got {value!r}") from None


def scalar(value: Any) -> Any:
    """A NumPy scalar or an array without axes as a Python number; anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def real(words: str, holds: Callable[[float], bool]) -> Domain:
    """Finite numbers for which `holds` is true, as float."""

    def plain(value: Any) -> float:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError
        try:
            x = float(value)
        except OverflowError:
            x = math.inf
        if not (math.isfinite(x) and holds(x)):
            raise ValueError
        return x

    return Domain(words, plain, 0.5)


def whole(least: int, most: int) -> Domain:
    """Integers from `least` to `most`."""

    def plain(value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError
        if not least <= int(value) <= most:
            raise ValueError
        return int(value)

    return Domain(f"an integer from {least} to {most}", plain)


def one_of(*names: str) -> Domain:
    """One of these strings."""

    def plain(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        if value not in names:
            raise ValueError
        return value

    return Domain(f"one of {', '.join(names)}", plain)


def pair_of(domain: Domain) -> Domain:
    """Tuples or lists of two values of a domain, as a tuple."""

    def plain(value: Any) -> tuple[Any, Any]:
        value = value.tolist() if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist") else value
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError
        first, second = (domain.plain(scalar(x)) for x in value)
        return first, second

    return Domain(f"a pair, each {domain.words}", plain, (domain.example, domain.example))


def optional(domain: Domain) -> Domain:
    """The values of another domain, and None."""
    return Domain(
        f"{domain.words}, or None", lambda value: None if value is None else domain.plain(value), domain.example
    )


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


NON_NEGATIVE = real("a finite number >= 0", lambda x: x >= 0)
POSITIVE = real("a finite number > 0", lambda x: x > 0)
UP_TO_ONE = real("a number from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE = real("a number from 0 to below 1", lambda x: 0 <= x < 1)
FLAG = Domain("True or False", _flag)
COUNT = whole(0, 2**62)
SEED = whole(0, 2**53)  # the core gets it as a float64


def has_state(schedule: Any) -> bool:
    """Whether a schedule has a state: its value may change between steps, and is saved in checkpoints."""
    return any(map(has_state, schedule.parts)) if isinstance(schedule, Both) else hasattr(schedule, "state_dict")


def state_of(schedule: Any) -> Any:
    """A copy of the state of a schedule as plain data; None where it has none."""
    return copy.deepcopy(schedule.state_dict()) if has_state(schedule) else None


def load_state(schedule: Any, state: Any) -> None:
    """Loads a copy of what `state_of` returned into a schedule that has a state."""
    if state is not None and has_state(schedule):
        schedule.load_state_dict(copy.deepcopy(state))


class Both:
    """The schedule of a pair, from a schedule or number for each of its two."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)

    def __call__(self, step: int) -> tuple[Any, ...]:
        return tuple(part(step) if callable(part) else part for part in self.parts)

    def state_dict(self) -> dict[str, Any]:
        """The states of its schedules, by place."""
        return {str(place): state_of(part) for place, part in enumerate(self.parts)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        for place, part in enumerate(self.parts):
            load_state(part, saved[str(place)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Both) and self.parts == other.parts

    def __repr__(self) -> str:
        return repr(self.parts)


class Argument(Generic[T]):
    """An argument of the classes: its default, its documentation and its place in the signature."""

    name: str

    def __init__(self, *, default: Any = ..., doc: str, kw_only: bool = False) -> None:
        self.default = default
        """`...` for a required argument."""
        self.doc = doc
        self.kw_only = kw_only

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def words(self) -> str:
        """The description of its values in the documentation."""
        return "nest of arrays"

    @cached_property
    def documentation(self) -> str:
        """Its entry in a docstring's section of parameters."""
        default = "" if self.default is ... else f", default {self.default!r}"
        text = textwrap.fill(self.doc, 112, initial_indent=" " * 8, subsequent_indent=" " * 8)
        return f"    {self.name} : {self.words}{default}\n{text}"

    @overload
    def __get__(self, opt: None, owner: type) -> Self: ...
    @overload
    def __get__(self, opt: Any, owner: type) -> T: ...
    def __get__(self, opt: Any, owner: type) -> Any:
        return self if opt is None else opt._arguments[self.name]

    def __set__(self, opt: Any, value: T) -> None:
        raise AttributeError(f"{type(opt).__name__}: {self.name} cannot be set after construction")


class ByName(Argument[Mapping[str, Mapping[str, Any]] | None]):
    """Options of parameters by name, which are read as a copy."""

    @overload
    def __get__(self, opt: None, owner: type) -> Self: ...
    @overload
    def __get__(self, opt: Any, owner: type) -> Mapping[str, Mapping[str, Any]] | None: ...
    def __get__(self, opt: Any, owner: type) -> Any:
        return self if opt is None else {name: dict(own) for name, own in opt._arguments[self.name].items()}


class Option(Argument[T]):
    """An option of groups: an attribute of the optimizer that reads the common value of groups, and sets it in all."""

    def __init__(
        self,
        *,
        default: Any,
        domain: Domain,
        doc: str,
        kw_only: bool = False,
        fixed: bool = False,
        parts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(default=default, doc=doc, kw_only=kw_only)
        self.domain = domain
        self.fixed = fixed
        """Whether it determines which state is allocated, and so cannot change after construction."""
        self.parts = parts
        """The names of its parts in the core, where its value is a tuple."""

    @property
    def follows_schedules(self) -> bool:
        """Whether a schedule, which gives the value for each step, may be its value."""
        return self.domain.example is not None and not self.fixed

    @property
    def words(self) -> str:
        return f"{self.domain.words}, or a callable" if self.follows_schedules else self.domain.words

    def check(self, value: Any, name: str) -> Any:
        """`value` in its plain type, or a schedule. Raises TypeError or ValueError with `name` in the message."""
        if not self.follows_schedules:
            return self.domain.check(value, name)
        if callable(value):
            return value
        if self.parts and isinstance(value, (tuple, list)) and any(callable(part) for part in value):
            self.domain.check([self.domain.example[0] if callable(part) else part for part in value], name)
            return Both(value)
        return Domain(self.words, self.domain.plain).check(value, name)

    @overload
    def __get__(self, opt: None, owner: type) -> Self: ...
    @overload
    def __get__(self, opt: Any, owner: type) -> T: ...
    def __get__(self, opt: Any, owner: type) -> Any:
        return self if opt is None else opt._common_value(self.name)

    def __set__(self, opt: Any, value: T) -> None:
        opt._set_everywhere(self.name, value)

    def for_core(self, value: Any) -> dict[str, float]:
        """The value in the form of the core: floats, with NaN for None."""
        if not self.parts:
            return {self.name: math.nan if value is None else float(value)}
        return dict(zip(self.parts, map(float, value), strict=True))


class Number(Option[float]):
    """An option that is a float: every kind of number, or a schedule; reading it gives the number for the next step."""

    def __set__(self, opt: Any, value: SupportsFloat | Schedule) -> None:
        super().__set__(opt, value)  # type: ignore[arg-type]


class LearningRate(Number):
    """The learning rate."""

    def __init__(self, *, default: Any) -> None:
        doc = "The learning rate; or a schedule, called once a step with `step_count` (0 at the first step)."
        super().__init__(default=default, domain=NON_NEGATIVE, doc=doc)


class NumberOrNone(Option[float | None]):
    """A number, a schedule or None; reading it gives the number for the next step."""

    def __set__(self, opt: Any, value: SupportsFloat | Schedule | None) -> None:
        super().__set__(opt, value)  # type: ignore[arg-type]


class Numbers(Option[Pair]):
    """A pair of numbers or schedules, or a schedule of pairs; reading it gives the numbers for the next step."""

    def __set__(
        self, opt: Any, value: tuple[SupportsFloat | Schedule, SupportsFloat | Schedule] | Callable[[int], Pair]
    ) -> None:
        super().__set__(opt, value)  # type: ignore[arg-type]


class StepOption(Option[T]):
    """An option of the whole step, common to all groups."""

    @overload
    def __get__(self, opt: None, owner: type) -> Self: ...
    @overload
    def __get__(self, opt: Any, owner: type) -> T: ...
    def __get__(self, opt: Any, owner: type) -> Any:
        return self if opt is None else opt._step_value(self.name)

    def __set__(self, opt: Any, value: T) -> None:
        opt._set_step_options({self.name: value})


class StepNumber(StepOption[float | None]):
    """A number, a schedule or None, common to all groups; reading it gives the number for the next step."""

    def __set__(self, opt: Any, value: SupportsFloat | Schedule | None) -> None:
        super().__set__(opt, value)  # type: ignore[arg-type]


@dataclass_transform(
    eq_default=False,
    field_specifiers=(
        Argument,
        ByName,
        Option,
        Number,
        LearningRate,
        NumberOrNone,
        Numbers,
        StepOption,
        StepNumber,
    ),
)
class Declared:
    """The base of classes whose arguments are attributes, from which type checkers derive the signature."""

    __slots__ = ()


ELSEWHERE = {"learning_rate": "lr", "beta1": "betas", "beta2": "betas", "decay": "weight_decay", "epsilon": "eps"}
"""Names of options in other libraries."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A suggestion for an error about an unknown name; empty where no name is similar."""
    import difflib

    names = list(names)
    close = [ELSEWHERE[name]] if ELSEWHERE.get(name) in names else difflib.get_close_matches(str(name), names, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_all(
    given: Mapping[str, Any], known: Mapping[str, Option[Any]], owner: str, schedules: bool = True
) -> dict[str, Any]:
    """Values in their plain types. Raises TypeError for an unknown option or wrong type, ValueError if out of range.

    `schedules`: whether they may be schedules.
    """
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known)}"
            raise TypeError(f"{owner} has no option {name!r}{hint}")
    return {
        name: (known[name] if schedules else known[name].domain).check(value, f"{owner}: {name}")
        for name, value in given.items()
    }


def schedules_of(values: Mapping[str, Any]) -> dict[str, Schedule]:
    """The options that are schedules."""
    return {name: value for name, value in values.items() if callable(value)}


def without_schedules(values: Mapping[str, Any], known: Mapping[str, Option[Any]]) -> dict[str, Any]:
    """Options with a number in place of each schedule, whose value is set before each step."""
    return {name: known[name].domain.example if callable(value) else value for name, value in values.items()}


def for_core(values: Mapping[str, Any], known: Mapping[str, Option[Any]], names: Sequence[str]) -> dict[str, float]:
    """The options of the core, `names`, in its form."""
    parts = {
        name: x
        for option, value in without_schedules(values, known).items()
        if option in names or known[option].parts
        for name, x in known[option].for_core(value).items()
    }
    return {name: parts[name] for name in names}

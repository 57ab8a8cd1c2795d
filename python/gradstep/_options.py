"""Options: each is declared once, with the values that it may have.

A class of optimizers declares an option as an attribute, `momentum = Number(default=0.9, domain=UP_TO_ONE, doc=...)`.
The declaration gives its place in the signature, its documentation, its key in groups, its check and its property.
"""

from __future__ import annotations

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


class Domain(NamedTuple):
    """The values that an option may have: their description, and a function that converts a value to its plain type.

    The function raises TypeError or ValueError without a message.
    """

    words: str
    plain: Callable[[Any], Any]

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

    return Domain(words, plain)


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

    return Domain(f"a pair, each {domain.words}", plain)


def optional(domain: Domain) -> Domain:
    """The values of another domain, and None."""
    return Domain(f"{domain.words}, or None", lambda value: None if value is None else domain.plain(value))


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
DECAY = Domain(
    "a number from 0 to below 1, a callable, or None",
    lambda x: x if x is None or callable(x) else BELOW_ONE.plain(x),
)
RATE = Domain("a finite number >= 0 or a callable", lambda x: x if callable(x) else NON_NEGATIVE.plain(x))


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
    def words(self) -> str:
        return self.domain.words

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
        values = dict(zip(self.parts, value, strict=True)) if self.parts else {self.name: value}
        return {name: math.nan if x is None else float(x) for name, x in values.items()}


class Number(Option[float]):
    """An option that is a float; every kind of number is accepted."""

    def __set__(self, opt: Any, value: SupportsFloat) -> None:
        super().__set__(opt, value)  # type: ignore[arg-type]


class LearningRate(Option[float]):
    """The learning rate: a number or a schedule; reading it gives the number for the next step."""

    def __init__(self, *, default: Any) -> None:
        doc = "The learning rate; or a schedule, called once a step with `step_count` (0 at the first step)."
        super().__init__(default=default, domain=RATE, doc=doc)

    def __set__(self, opt: Any, value: SupportsFloat | Schedule) -> None:
        super().__set__(opt, value)  # type: ignore[arg-type]


class Decay(Option[float | None]):
    """The decay of an average: a number, a schedule or None; reading it gives the number for the next step."""

    def __set__(self, opt: Any, value: SupportsFloat | Schedule | None) -> None:
        super().__set__(opt, value)  # type: ignore[arg-type]


SCHEDULED: Mapping[str, Domain] = {"lr": NON_NEGATIVE, "ema": BELOW_ONE}
"""Options that may be schedules, and what these may return."""


class StepOption(Option[T]):
    """An option of the whole step, common to all groups."""

    @overload
    def __get__(self, opt: None, owner: type) -> Self: ...
    @overload
    def __get__(self, opt: Any, owner: type) -> T: ...
    def __get__(self, opt: Any, owner: type) -> Any:
        return self if opt is None else opt._step_options[self.name]

    def __set__(self, opt: Any, value: T) -> None:
        opt._set_step_options({self.name: value})


@dataclass_transform(
    eq_default=False, field_specifiers=(Argument, ByName, Option, Number, LearningRate, Decay, StepOption)
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
    close = [ELSEWHERE[name]] if ELSEWHERE.get(name) in names else difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_all(given: Mapping[str, Any], known: Mapping[str, Option[Any]], owner: str) -> dict[str, Any]:
    """Values in their plain types. Raises TypeError for an unknown option or wrong type, ValueError if out of range."""
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known)}"
            raise TypeError(f"{owner} has no option {name!r}{hint}")
    return {name: known[name].domain.check(value, f"{owner}: {name}") for name, value in given.items()}


def for_core(values: Mapping[str, Any], known: Mapping[str, Option[Any]], names: Sequence[str]) -> dict[str, float]:
    """The options of the core, `names`, in its form."""
    parts = {
        name: x
        for option, value in values.items()
        if option in names or known[option].parts
        for name, x in known[option].for_core(value).items()
    }
    return {name: parts[name] for name in names}

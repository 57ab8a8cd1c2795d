"""The options of one group of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from . import _core
from ._options import Option, Schedule, check_all, for_core, schedules_of
from ._step import Engine

RULES: Final[dict[str, Any]] = {rule["name"]: rule for rule in _core.rules()}
"""The compiled rules by name: the names of their options, states and scalars."""


class OptionGroup(Mapping[str, Any]):
    """The options of one group of parameters. Setting one, `group["lr"] = 0.1`, takes effect at the next step."""

    __slots__ = ("_engine", "_known", "_options", "_rule", "names", "number", "schedules")

    def __init__(self, engine: Engine, cls: Any, number: int, options: dict[str, Any]) -> None:
        self._engine = engine
        self._rule: str = cls.rule
        self._known: Mapping[str, Option[Any]] = cls.known
        self._set(options)
        self.number = number
        """Its index among the optimizer's groups."""
        self.names: list[str] = []
        """The names of the group's parameters."""

    def _set(self, options: dict[str, Any]) -> None:
        self._options = options
        self.schedules: dict[str, Schedule] = schedules_of(options)
        """The options that are schedules."""

    def __getitem__(self, name: str) -> Any:
        return self._engine.read(self._options[name], self._known[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __setitem__(self, name: str, value: Any) -> None:
        self.update(**{name: value})

    @property
    def schedule(self) -> Schedule | None:
        """The callable that gives `lr`; None where that is a number. Setting it sets `lr`."""
        lr = self._options["lr"]
        return lr if callable(lr) else None

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self["lr"] = value

    def update(self, given: Mapping[str, Any] = MappingProxyType({}), /, **options: Any) -> None:
        """Sets several options at once, or none if one is invalid. Raises TypeError or ValueError."""
        with self._engine.lock:
            self.apply(self.checked({**given, **options}))

    def checked(self, options: Mapping[str, Any], loading: bool = False) -> dict[str, Any]:
        """Validated options, in their plain types. Raises TypeError or ValueError.

        `loading`: states are loaded with them, so that options that determine which states are kept are allowed.
        """
        checked = check_all(options, self._known, self._engine.name)
        for name in checked:
            if self._known[name].fixed and not loading:
                what = "determines which state is allocated and cannot change after construction"
                raise ValueError(f"{self._engine.name}: {name} {what}")
        self._engine.stepper.check_options(self.number, self.for_core({**self._options, **checked}))
        return checked

    def apply(self, checked: Mapping[str, Any]) -> None:
        """Sets options that `checked` returned."""
        changed = {**self._options, **checked}
        self._engine.use()  # after a capture, options are on the GPU
        self._engine.stepper.set_options(self.number, self.for_core(changed))
        self._engine.stepper.set_frozen(self.number, changed["frozen"])
        self._set(changed)
        if self.schedules:
            self._engine.expect_schedule()

    def kept_states(self) -> list[str]:
        """The names of the states that this group keeps."""
        return _core.kept_states(self._rule, self.for_core(self._options))

    def for_core(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Options in the form of the core. The value of a schedule is set before each step."""
        return for_core(options, self._known, RULES[self._rule]["options"])

    def set_now(self, name: str, value: Any) -> None:
        """Sets the value that the next step takes for an option."""
        stepper, option = self._engine.stepper, self._known[name]
        for part, number in option.for_core(value).items():
            stepper.set_number(self.number, part, number)

    @property
    def raw(self) -> dict[str, Any]:
        """The options, with schedules as callables."""
        return dict(self._options)

    def __repr__(self) -> str:
        return f"OptionGroup({self._options})"

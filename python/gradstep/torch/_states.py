"""The states of a parameter: their names and types in torch's `state`, and how others become what a step needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from gradstep import _core, _storage, q8
from gradstep._groups import RULES
from gradstep._libraries import TORCH
from gradstep._optimizer import Optimizer

if TYPE_CHECKING:
    from ._sharded import Part

MIN_8BIT_SIZE: Final = Optimizer.min_8bit_size.default
Clock: TypeAlias = tuple[int, list[float]]
"""A step number, the rule's scalars, and the product of the decays of the average."""
CODES: Final = ("int8", "uint8")
STEP: Final = "step"


class Storage:
    """What the core keeps for a parameter, and the types of it."""

    def __init__(
        self,
        cls: type[Optimizer],
        options: Mapping[str, Any],
        core: dict[str, float],
        beyond: Mapping[str, Any],
        p: Tensor,
        part: Part | None = None,
    ) -> None:
        self.param, self.part = p, part
        self.rule = RULES[cls.rule]
        self.firsts = {
            state: float(options.get(cls.initial_state.get(state, ""), 0.0))
            for state in _core.kept_states(cls.rule, core)
        }
        """The states, with their first values."""
        master = (beyond["master"] or beyond["offload"]) and _storage.is_narrow(p)
        chosen = beyond["state_dtype"] or ("float32" if master else TORCH.dtype(p))
        self.options = {
            "state_dtype": chosen,
            "min_8bit_size": MIN_8BIT_SIZE if part is None else part.min_8bit_size,
            "master": master,
            "ema": beyond["ema"],
            "ema_correction": False,
        }
        dtype = _storage.state_dtypes([p], self.options)[0]
        coded = dtype == "q8"
        self.dtypes: dict[str, str] = {}
        """The type of each array, by the core's names."""
        for state in self.firsts:
            if coded:
                self.dtypes[state] = "uint8" if state in self.rule["non_negative"] else "int8"
                self.dtypes[_storage.scale_of(state)] = "float32"
            else:
                self.dtypes[state] = dtype
        if master:
            self.dtypes[_storage.MASTER] = "float32"
        if beyond["ema"] is not None:
            self.dtypes[_storage.AVERAGE] = "float64" if _storage.is_double(p) else "float32"
        names = (STEP, *(name for name, _ in self.rule["scalars"]))
        of_sgd = cls.rule in ("sgd", "momentum", "nag")
        stochastic = coded or beyond["stochastic_rounding"] is not None
        self.counts = () if of_sgd and not stochastic else names
        """The states that are numbers. torch's SGD has none; random numbers depend on the step number."""
        self.has_state = bool(self.dtypes or self.counts)
        """Whether torch's state has an entry for the parameter."""

    def clock(self, own: Mapping[str, Any]) -> Clock:
        """The step number and the scalars that a state has. Without a number, a state is that of a later step."""
        arrays = [key_of(name, dtype) for name, dtype in self.dtypes.items()]
        t, given = own.get(STEP), [(own.get(name), first) for name, first in self.rule["scalars"]]
        if t is None:
            t = any(_is_tensor(own.get(key)) for key in arrays)
        if not 0 <= float(t) < 2**62:
            raise ValueError(f"the state {STEP} is {float(t)}, and no number of a step")
        return int(t), [*(float(first if value is None else value) for value, first in given), 1.0]

    def fits(self, name: str, array: Any) -> bool:
        """Whether an array can be stepped as it is."""
        if not _is_tensor(array) or array.device.type != "cpu" or TORCH.dtype(array) != self.dtypes[name]:
            return False
        return is_scale(name) or (self.dtypes[name] not in CODES or bool(array.is_contiguous()))


def is_beyond(name: str) -> bool:
    """Whether torch's optimizers have no such state."""
    return name in (_storage.MASTER, _storage.AVERAGE) or name.endswith("_q8") or is_scale(name)


def is_scale(name: str) -> bool:
    """Whether it is the name of the scales of codes."""
    return name.endswith(_storage.scale_of(""))


def key_of(name: str, dtype: str) -> str:
    """The name in torch's state of what the core calls `name`: codes have another than values, for torch's sake."""
    return f"{name}_q8" if dtype in CODES else name


def adopt(own: dict[str, Any], storage: Storage) -> dict[str, Tensor]:
    """The arrays that the core keeps, by its names. Those that a state has not, or in another form, are made in it.

    Raises ValueError for a state of another shape than its parameter.
    """
    p, part = storage.param, storage.part
    keys = {name: key_of(name, dtype) for name, dtype in storage.dtypes.items()}
    given = own if part is None else part.unwrap(own)
    for name, key in keys.items():
        array: Any = given.get(key)
        if _is_tensor(array) and not is_scale(name) and array.shape != p.shape:
            raise ValueError(f"the state {key} has shape {tuple(array.shape)}, but its parameter has {tuple(p.shape)}")
    if all(storage.fits(name, given.get(key)) for name, key in keys.items()):
        return {name: given[key] for name, key in keys.items()}
    made = _storage.rows_of(_storage.make([p], storage.rule, storage.firsts, storage.options), 1)[0]
    for name in (*storage.firsts, _storage.MASTER, _storage.AVERAGE):
        if name not in made:
            continue
        arrays = [of for of in (name, _storage.scale_of(name)) if of in made]
        if all(storage.fits(of, given.get(keys[of])) for of in arrays):
            made.update({of: given[keys[of]] for of in arrays})
        else:
            _convert(given, made, name)
    for name in storage.firsts:
        for stale in (name, f"{name}_q8", _storage.scale_of(name)):
            own.pop(stale, None)
    own.update({keys[name]: array if part is None else part.wrap(name, array) for name, array in made.items()})
    return made


def count(own: dict[str, Any], name: str, value: float) -> Tensor:
    """A state that is a number, as the core can read and write it: an array of torch's, without axes."""
    array: Any = own.get(name)
    wide = torch.get_default_dtype() == torch.float64
    fits = _is_tensor(array) and array.dim() == 0 and array.device.type == "cpu"
    if not (fits and array.dtype in (torch.float32, torch.float64) and type(array) is Tensor):
        array = torch.tensor(value, dtype=torch.float64 if wide else torch.float32, device="cpu")
        own[name] = array
    return array


def _convert(own: Mapping[str, Any], made: dict[str, Tensor], name: str) -> None:
    """Sets a new array to the values of an old state of another form, if there is one."""
    codes: Any = own.get(f"{name}_q8")
    values: Any = own.get(name)
    if _is_tensor(codes):
        values = torch.from_numpy(q8.decode(codes.cpu().numpy(), own[_storage.scale_of(name)].cpu().numpy()))
    if not _is_tensor(values):
        return
    if _storage.scale_of(name) in made:
        numbers = np.ascontiguousarray(values.detach().to("cpu", torch.float32).numpy())
        codes, scales = q8.encode(numbers, made[name].dtype == torch.int8)
        TORCH.from_numpy(made[name], codes)
        TORCH.from_numpy(made[_storage.scale_of(name)], scales)
    else:
        TORCH.assign(made[name], values)


def _is_tensor(value: Any) -> TypeGuard[Any]:
    return isinstance(value, Tensor)

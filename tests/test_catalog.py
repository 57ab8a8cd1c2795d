"""Classes, functions, reference and docs cover the list of rules that the extension reports."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import gradstep
from gradstep import _core, _storage, functional, optimizers, reference
from tests.table import REFERENCE, RULES

CORE = {rule["name"]: rule for rule in _core.rules()}
NUMERICS = Path(__file__).parents[1] / "docs" / "numerics.md"

# The contract for the first eight classes: names, order and defaults.
CONTRACT = {
    "SGD": "lr=1e-3, *",
    "Momentum": "lr=1e-3, momentum=0.9, dampening=0.0, lr_in_velocity=False, *, dampen_first=True",
    "NAG": "lr=1e-3, momentum=0.9, lr_in_velocity=False, lookahead=False, *",
    "AdaGrad": "lr=1e-2, lr_decay=0.0, initial_accumulator=0.0, eps=1e-10, eps_root=0.0, *",
    "RMSProp": "lr=1e-2, rho=0.99, momentum=0.0, centered=False, eps=1e-8, eps_root=0.0, *, lr_in_velocity=False",
    "AdaDelta": "lr=1.0, rho=0.9, eps=1e-6, *",
    "Adam": "lr=1e-3, betas=(0.9, 0.999), eps=1e-8, eps_root=0.0, amsgrad=False, bias_correction=True, *, "
    "eps_hat=False, amsgrad_corrected=False",
    "Nadam": "lr=2e-3, betas=(0.9, 0.999), eps=1e-8, eps_root=0.0, momentum_decay=0.004, *",
}
COMMON = (
    "l2=0.0, weight_decay=0.0, maximize=False, flush_subnormals=False, "
    "state_dtype=None, master=False, stochastic_rounding=None, min_8bit_size=4096, clip_norm=None, "
    "grads=None"
)


def signature(cls):
    """A class's parameters: names, kinds and defaults."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]


def test_every_rule_has_one_class_in_its_place():
    assert [cls.rule for cls in optimizers.ALL] == list(CORE)
    assert list(CONTRACT) == [cls.__name__ for cls in optimizers.ALL][: len(CONTRACT)]
    for cls in optimizers.ALL:
        assert getattr(gradstep, cls.__name__) is cls
        assert cls.__name__ in gradstep.__all__


@pytest.mark.parametrize("name", CONTRACT)
def test_signatures_are_the_contract(name):
    scope = {}
    exec(f"def contract(params, {CONTRACT[name]}, {COMMON}): ...", scope)
    ours, contract = signature(getattr(gradstep, name)), signature(scope["contract"])
    assert ours == contract
    assert [type(default) for _, _, default in ours] == [type(default) for _, _, default in contract]


@pytest.mark.parametrize("rule", CORE)
def test_reference_and_class_agree(rule):
    ours, theirs = RULES[rule], REFERENCE[rule]
    assert CORE[rule]["scalars"] == list(theirs.scalars)
    assert theirs is not None, f"{reference.__name__} lacks {ours.__name__}"
    assert signature(ours) == signature(theirs)
    assert signature(ours)[-9:] == signature(optimizers.SGD)[-9:], "the options that every class has"


@pytest.mark.parametrize("rule", CORE)
def test_the_core_takes_the_options_of_the_class(rule):
    """`betas` becomes two options; options of allocation and initial state remain in the class."""
    known = RULES[rule](np.zeros(1), **{}).groups[0]
    settled = {*RULES[rule].initial_state.values(), *_storage.FIXED}
    taken = [name for name in known if name not in settled]
    apart = [part for name in taken for part in (["beta1", "beta2"] if name == "betas" else [name])]
    assert sorted(apart) == sorted(CORE[rule]["options"])
    assert set(RULES[rule].initial_state) <= set(CORE[rule]["states"])


@pytest.mark.parametrize("rule", CORE)
def test_every_rule_has_its_bare_kernel(rule):
    assert f"{rule}_" in dir(functional)
    parameters = inspect.signature(getattr(functional, f"{rule}_")).parameters
    assert list(parameters)[: 2 + len(CORE[rule]["states"])] == ["p", "g", *CORE[rule]["states"]]


# Options documented before and after the sections of the rules.
AROUND = {"l2", "weight_decay", "maximize", "flush_subnormals", "stochastic_rounding"}


@pytest.mark.parametrize("rule", [name.lower() for name in CONTRACT])
def test_docs_write_the_rule_down(rule):
    """Each of the first eight rules has a section that names all its states and options."""
    if not NUMERICS.is_file():
        pytest.skip("there are no docs beside the tests")
    sections = dict(re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", NUMERICS.read_text(encoding="utf-8"), re.M | re.S))
    text = sections[RULES[rule].__name__]
    assert "**Scalars**" in text
    assert "**Element**" in text
    for name in {*CORE[rule]["states"], *CORE[rule]["options"]} - AROUND:
        assert re.search(rf"\b{name}\b", text), f"the section {RULES[rule].__name__} says nothing of {name}"


def test_docs_write_down_what_is_around_the_rules():
    """The sections before and after those of the rules name the common options, except min_8bit_size."""
    if not NUMERICS.is_file():
        pytest.skip("there are no docs beside the tests")
    text = re.sub(r"^## \w+$.*?(?=^## )", "", NUMERICS.read_text(encoding="utf-8"), flags=re.M | re.S)
    for name in AROUND | {"master"}:
        assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("rule", CORE)
def test_docstrings_name_what_a_class_has(rule):
    cls = RULES[rule]
    text = inspect.getdoc(cls) + inspect.getdoc(gradstep.Optimizer)
    for name in {*CORE[rule]["states"], *inspect.signature(cls).parameters}:
        assert re.search(rf"\b{name}\b", text), f"the docstring of {cls.__name__} says nothing of {name}"

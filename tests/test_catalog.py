"""Classes, functions, reference and docs cover the list of rules that the extension reports."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import gradstep
from gradstep import _core, functional, optimizers
from tests.parity.cases import PEERS, SETTINGS
from tests.table import KNOBS, NOT_IN_REFERENCE, REFERENCE, RULES

CORE = {rule["name"]: rule for rule in _core.rules()}
ROOT = Path(__file__).parents[1]
TOUR, NUMERICS = ROOT / "docs" / "tour.md", ROOT / "docs" / "numerics.md"
FRAMEWORKS = {*PEERS, "paper"}

# The contract for the first eight classes: names, order and defaults.
CONTRACT = {
    "SGD": "lr=1e-3, *",
    "Momentum": "lr=1e-3, momentum=0.9, dampening=0.0, lr_in_velocity=False, *, dampen_first=True",
    "NAG": "lr=1e-3, momentum=0.9, lr_in_velocity=False, lookahead=False, *",
    "AdaGrad": "lr=1e-2, lr_decay=0.0, initial_accumulator=0.0, eps=1e-10, eps_root=0.0, *",
    "RMSProp": "lr=1e-2, rho=0.99, momentum=0.0, centered=False, eps=1e-8, eps_root=0.0, *, lr_in_velocity=False, "
    "initial_scale=0.0",
    "AdaDelta": "lr=1.0, rho=0.9, eps=1e-6, *",
    "Adam": "lr=1e-3, betas=(0.9, 0.999), eps=1e-8, eps_root=0.0, amsgrad=False, bias_correction=True, *, "
    "eps_hat=False, amsgrad_corrected=False",
    "Nadam": "lr=2e-3, betas=(0.9, 0.999), eps=1e-8, eps_root=0.0, momentum_decay=0.004, *, float32_product=False",
}
COMMON = (
    "l2=0.0, weight_decay=0.0, maximize=False, flush_subnormals=False, "
    "state_dtype=None, master=False, stochastic_rounding=None, min_8bit_size=4096, clip_value=None, "
    "frozen=False, ema=None, ema_correction=False, clip_norm=None, clip_per_tensor=None, "
    "on_nonfinite='propagate', accumulation='mean', loss_scale=None, options=None, grads=None, copy_out=None"
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
    assert theirs is not None, f"python/gradstep/reference lacks the class {ours.__name__}"
    assert CORE[rule]["scalars"] == list(theirs.scalars)
    assert list(theirs.codes) == CORE[rule]["states"], f"`codes` of the reference's {ours.__name__} are not its states"
    computed = [argument for argument in signature(ours) if argument[0] not in NOT_IN_REFERENCE]
    assert computed == [argument for argument in signature(theirs) if argument[0] not in NOT_IN_REFERENCE]
    assert signature(ours)[-20:] == signature(optimizers.SGD)[-20:], "the options that every class has"


@pytest.mark.parametrize("rule", CORE)
def test_the_core_takes_the_options_of_the_class(rule):
    """`betas` becomes two options; options of allocation, of initial state and `frozen` remain in the class."""
    known = RULES[rule](np.zeros(1), **{}).groups[0]
    settled = {name for name, option in RULES[rule].known.items() if option.fixed or name == "frozen"}
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
AROUND = {"l2", "weight_decay", "maximize", "flush_subnormals", "stochastic_rounding", "clip_value", "ema"}


@pytest.mark.parametrize("rule", CORE)
def test_numerics_specify_the_rule(rule):
    """It has a section that names all its states and options."""
    if not NUMERICS.is_file():
        pytest.skip("there are no docs beside the tests")
    name = RULES[rule].__name__
    sections = dict(re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", NUMERICS.read_text(encoding="utf-8"), re.M | re.S))
    assert name in sections, f"docs/numerics.md lacks the section '## {name}'"
    of_section = {"**Scalars**", "**Element**", *CORE[rule]["states"], *CORE[rule]["options"]} - AROUND
    missing = [of for of in of_section if not re.search(rf"(?<!\w){re.escape(of)}(?!\w)", sections[name])]
    assert not missing, f"the section '## {name}' of docs/numerics.md lacks {', '.join(sorted(missing))}"


@pytest.mark.parametrize("rule", CORE)
def test_tour_lists_the_rule(rule):
    if not TOUR.is_file():
        pytest.skip("there are no docs beside the tests")
    name = RULES[rule].__name__
    rows = re.findall(rf"^\| `{name}` \| [^|]*p ←", TOUR.read_text(encoding="utf-8"), re.M)
    assert rows, f"the table of optimizers in docs/tour.md lacks a row '| `{name}` | the update |'"


@pytest.mark.parametrize("rule", CORE)
def test_the_rule_has_presets(rule):
    cls = RULES[rule]
    assert cls.presets, f"python/gradstep/optimizers.py: {cls.__name__} has no presets"
    assert set(cls.presets) <= FRAMEWORKS, f"{cls.__name__} has a preset of an unknown framework"


@pytest.mark.parametrize("rule", CORE)
def test_the_table_of_tests_varies_the_options_of_the_rule(rule):
    own = set(RULES[rule].known) - set(gradstep.SGD.known)
    assert rule in KNOBS, f"KNOBS in tests/table.py lacks {rule!r}"
    missing = own - {name for knobs in KNOBS[rule] for name in knobs}
    assert not missing, f"KNOBS[{rule!r}] in tests/table.py never sets {', '.join(sorted(missing))}"


@pytest.mark.parametrize("rule", CORE)
def test_parity_compares_every_preset_of_the_rule(rule):
    name = RULES[rule].__name__
    for framework in set(RULES[rule].presets) - {"paper"}:
        variants = [variant for variant, peer in PEERS[framework].items() if peer.cls == name]
        assert variants, f"PEERS[{framework!r}] in tests/parity/cases.py lacks a peer of {name}"
        for variant in variants:
            assert SETTINGS[framework].get(variant), f"tests/parity/cases.py lacks SETTINGS[{framework!r}][{variant!r}]"


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

"""Subclasses of ndarray: those that mean something are refused by name, those that only add attributes are stepped."""

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from tests.table import RULES, knobs, same_bits

A = np.linspace(-1, 1, 6).reshape(2, 3)


class Quantity(np.ndarray):
    """Has a unit, which results take over."""

    def __new__(cls, values, unit):
        made = np.asarray(values).view(cls)
        made.unit = unit
        return made

    def __array_finalize__(self, parent):
        self.unit = getattr(parent, "unit", None)


class Meters(Quantity):
    """Inherits its meaning."""


class Mixin:
    """Is no array, and yet decides for one."""

    def __array_ufunc__(self, *_, **__):
        return NotImplemented


class Mixed(Mixin, np.ndarray):
    """Has the hook of another base."""


class Wrapped(np.memmap):
    """A file with a hook."""

    def __array_wrap__(self, array, *_):
        return array


class Answering(np.ndarray):
    """Answers for NumPy's functions."""

    def __array_function__(self, *_):
        return False


class Prior(np.ndarray):
    """Wants the results of operations to be of its class."""

    __array_priority__ = 10.0


def meaningful(a):
    """Arrays that are refused, with the class, and what the message says besides."""
    name = "tests.test_subclasses."
    return {
        "unit": (Quantity(a, "m"), name + "Quantity", "__array_finalize__"),
        "inherited": (a.view(Meters), name + "Meters", "__array_finalize__"),
        "mixin": (a.view(Mixed), name + "Mixed", "__array_ufunc__"),
        "memmap": (a.view(Wrapped), name + "Wrapped", "__array_wrap__"),
        "functions": (a.view(Answering), name + "Answering", "__array_function__"),
        "priority": (a.view(Prior), name + "Prior", "__array_priority__"),
        "matrix": (a.view(np.matrix), np.matrix.__module__ + ".matrix", "__array_finalize__"),
        "masked": (np.ma.masked_array(a), np.ma.MaskedArray.__module__ + ".MaskedArray", "masked"),
    }


@pytest.mark.parametrize("kind", meaningful(A))
def test_subclass_that_means_something_is_refused_by_name(kind):
    p, g, m = A.copy(), A.copy(), A.copy()
    array, cls, word = meaningful(A.copy())[kind]
    cure = r"pass its \.data$" if kind == "masked" else r"pass numpy\.asarray\(x\)$"

    def refused(name):
        return pytest.raises(TypeError, match=rf"^{name} is .*\b{cls}\b.*{word}.*{cure}")

    with refused(r"params.w"):
        gs.SGD({"v": p, "w": array})
    with refused("params"):
        gs.Adam(array)
    with refused("grads"):
        gs.Adam(p).step(array)
    with refused(r"grads\[0\]"):
        gs.Adam([p], grads=[array])
    with refused("arrays"):
        gs.global_norm(array)
    for arrays, name in (((array, g, m), "p"), ((p, array, m), "g"), ((p, g, array), "state momentum_buffer of p")):
        with refused(name):
            gs.functional.momentum_(*arrays)
    assert all(same_bits(x, A) for x in (p, g, m, np.asarray(array)))
    step = gs.Adam(p)
    step.step(array.data if kind == "masked" else np.asarray(array))


class Plain(np.ndarray):
    """Adds nothing but attributes and a method."""

    def double(self):
        return self * 2


class Lying(np.ndarray):
    """Says something else of itself than what it is."""

    shape = property(lambda _: (1,))
    strides = property(lambda _: (0,))
    ndim = property(lambda _: 1)
    size = property(lambda _: 1)
    dtype = property(lambda _: np.dtype("f4"))
    flags = ctypes = base = T = property(lambda _: None)

    def view(self, *_):
        raise AssertionError

    copy = reshape = __getitem__ = __array__ = __len__ = __iter__ = view


def plain(path):
    """Makers of arrays of subclasses that mean nothing, from values."""

    def mapped(a):
        file = np.memmap(path, a.dtype, "w+", shape=a.shape)
        file[...] = a
        return file

    def field(a):
        record = np.zeros(a.shape, [("a", "u1"), ("x", a.dtype)]).view(np.recarray)
        record.x = a
        return record.x

    return {
        "memmap": mapped,
        "view of memmap": lambda a: mapped(a)[...],
        "field": field,
        "recarray": lambda a: a.copy().view(np.recarray),
        "plain": lambda a: a.copy().view(Plain),
        "lying": lambda a: a.copy().view(Lying),
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", plain(None))
@pytest.mark.parametrize("where", ["params", "grads", "bound"])
def test_subclass_that_means_nothing_is_stepped(rule, kind, where, tmp_path):
    make = plain(tmp_path / "array")[kind]
    options = {name: value for name, value in knobs(rule)[-1].items() if name != "lr"}
    values, g = np.linspace(-1, 1, 12).reshape(3, 4), np.linspace(3, -2, 12).reshape(3, 4)
    own, p = values.copy(), make(values) if where == "params" else values.copy()
    grad = g if where == "params" else make(g)
    opt = RULES[rule](p, **options, **({"grads": grad} if where == "bound" else {}))
    other = RULES[rule](own, **options)
    for _ in range(3):
        opt.step() if where == "bound" else opt.step(grad)
        other.step(g)
    assert same_bits(np.ndarray.view(p, np.ndarray), own)
    assert opt.state.keys() == other.state.keys()
    for mine, theirs in zip(opt.state.values(), other.state.values(), strict=True):
        assert type(mine) is np.ndarray
        assert same_bits(mine, theirs)
    assert gs.global_norm(grad) == gs.global_norm(g)


def test_lie_about_the_shape_is_not_believed():
    p, g, m = (np.ones((2, 3)).view(Lying) for _ in range(3))
    gs.functional.momentum_(p, g, m, lr=0.5, momentum=0.0)
    assert (np.ndarray.view(p, np.ndarray) == 0.5).all()
    with pytest.raises(ValueError, match=r"has shape \(2, 3\), but its parameter has shape \(1,\)"):
        gs.SGD(np.ones(1)).step(g)


def test_array_function_that_checks_a_class():
    _core.check_array_class(A.view(Plain), "x")
    with pytest.raises(TypeError, match=r"^x is of the ndarray subclass tests\.test_subclasses\.Quantity, whose "):
        _core.check_array_class(Quantity(A, "m"), "x")


def named(name, size):
    """A dtype whose scalar type has a name."""
    return np.dtype((type(name, (np.void,), {"__module__": "ml_dtypes"}), f"V{size}"))


@pytest.mark.parametrize("name", ["ml_dtypes.bfloat16", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("first", [False, True])
def test_type_that_only_has_the_name_of_bfloat16(name, size, first):
    """Before and after an array of the real one was seen."""
    if first:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        gs.SGD(np.ones(3, ml_dtypes.bfloat16)).step(np.ones(3, ml_dtypes.bfloat16))
    array = np.zeros(8, named(name, size))
    for call in (gs.SGD, gs.global_norm, gs.SGD(np.ones(8, "f4")).step):
        with pytest.raises(TypeError, match="has dtype"):
            call(array)

"""The table of test cases: rules, settings, types, storage, sizes, layouts, instruction sets, threads, prefetching.

KNOBS has an entry for each rule, which sets each of its own options; tests/test_catalog.py fails where one is missing.
"""

from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, product

import ml_dtypes
import numpy as np

from gradstep import _core, optimizers, reference

RULES = {cls.rule: cls for cls in optimizers.ALL}
REFERENCE = {rule: getattr(reference, cls.__name__, None) for rule, cls in RULES.items()}
DTYPES = ("float32", "float64")
ISAS = _core.supported_isas()
PREFETCHES = _core.prefetch_choices()
THREADS = (1, 2, 3, 8)
WHOLE = (
    "params",
    "clip_norm",
    "clip_per_tensor",
    "on_nonfinite",
    "accumulation",
    "loss_scale",
    "options",
    "grads",
    "copy_out",
)  # what the classes take besides options of groups
NOT_IN_REFERENCE = ("options",)  # what says which steps to take, and not how one is computed
STEPS = 24
SHORT = 3  # the number of steps in tests that cross storage with everything else
CHECKPOINTS = (1, 2, SHORT, STEPS)


def schedule(step):
    """A rate that changes at every step, so that velocities with and without the rate differ."""
    return 0.02 * (1 + 3 * step % 8)


COMMON = [
    {},
    {"lr": 0.0},
    {"lr": schedule, "maximize": True},
    {"l2": 0.01},
    {"weight_decay": 0.1},
    {"flush_subnormals": True},
    {"clip_value": 0.5},
    {"lr": schedule, "l2": 0.3, "weight_decay": 0.2, "maximize": True},
]
ALMOST_1 = 1 - 1e-12  # 1 in float32, but 1 - ALMOST_1 is not 0
TINY = 1e-42  # a subnormal in float32
KNOBS = {
    "sgd": [{"lr": TINY}, {"lr": schedule, "l2": 3.0, "weight_decay": 0.5}],
    "momentum": [
        {"momentum": 0.0},
        {"momentum": 1.0, "dampening": 1.0},
        {"dampening": 0.3},
        {"dampening": 0.3, "dampen_first": False},
        {"lr_in_velocity": True, "lr": schedule},
        {"lr_in_velocity": True, "lr": schedule, "dampening": 0.7, "dampen_first": False, "l2": 0.1},
    ],
    "nag": [
        {"momentum": 0.0},
        {"momentum": 1.0},
        {"lookahead": True},
        {"lr_in_velocity": True, "lr": schedule},
        {"lr_in_velocity": True, "lr": schedule, "lookahead": True, "l2": 0.1},
    ],
    "adagrad": [
        {"eps": 0.0},
        {"initial_accumulator": 0.1, "eps": TINY},
        {"lr_decay": 0.5, "lr": schedule, "weight_decay": 0.1},
        {"eps": 0.0, "eps_root": 1e-7, "initial_accumulator": 0.1},
        {"eps": 1e-3, "eps_root": 1e-3, "lr_decay": 10.0, "l2": 0.1},
    ],
    "rmsprop": [
        {"eps": 0.0},
        {"centered": True},
        # With a steady gradient the variance soon approaches zero, and rounding makes it negative.
        {"centered": True, "rho": 0.1, "eps_root": 1e-12, "l2": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "lr_in_velocity": True, "lr": schedule},
        {"lr_in_velocity": True, "lr": schedule},
        {"rho": 0.0, "centered": True, "momentum": 1.0, "eps": TINY},
        {"rho": 1.0, "eps_root": 1e-6},
        {"initial_scale": 1.0, "rho": 0.9},
        {"rho": ALMOST_1, "eps": 0.1, "eps_root": 0.1},
        {"momentum": 0.5, "centered": True, "lr_in_velocity": True, "lr": schedule, "l2": 0.1, "weight_decay": 0.1},
    ],
    "adadelta": [
        {"eps": 0.0},
        {"rho": 0.0},
        {"rho": 1.0, "eps": TINY},
        {"rho": ALMOST_1, "eps": 1e-3, "l2": 0.1},
    ],
    "adam": [
        {"betas": (0.0, 0.0), "eps": 0.0},
        {"betas": (ALMOST_1, ALMOST_1)},
        {"amsgrad": True},
        {"amsgrad": True, "amsgrad_corrected": True, "l2": 0.1},
        {"amsgrad": True, "amsgrad_corrected": True, "bias_correction": False},
        {"amsgrad": True, "amsgrad_corrected": True, "eps_hat": True},
        {"amsgrad_corrected": True},
        {"eps_hat": True, "eps": 1e-7},
        {"eps_hat": True, "bias_correction": False},
        {"bias_correction": False, "eps": TINY},
        {"eps": 0.0, "eps_root": 1e-8, "betas": (0.5, 0.9)},
        {"amsgrad": True, "eps": 1e-3, "eps_root": 1e-3, "lr": schedule, "l2": 0.1, "weight_decay": 0.1},
    ],
    "nadam": [
        {"betas": (0.0, 0.0), "eps": 0.0},
        {"betas": (ALMOST_1, ALMOST_1)},
        {"momentum_decay": None},
        {"momentum_decay": 0.0},
        {"float32_product": True},
        {"momentum_decay": 1.0, "eps": TINY},
        {"momentum_decay": 3e5},  # the exponent of 0.96 exceeds 1e6, so that the power is 0
        {"eps": 1e-3, "eps_root": 1e-3, "betas": (0.5, 0.9), "lr": schedule, "l2": 0.1, "weight_decay": 0.1},
    ],
}


def knobs(rule):
    """The settings of a rule; the last has the most options."""
    return COMMON + KNOBS.get(rule, [])


def say(knobs):
    """The test id of a setting."""
    words = (f"{name}={'schedule' if callable(value) else value}" for name, value in knobs.items())
    return ",".join(words).replace(" ", "") or "default"


# Sizes at boundaries: 2**k times {1, 2, 3}, each minus one, exact and plus one, beyond every vector width (16),
# unrolled loop, block (256) and tile (512).
SMALL = sorted({0, *(n * 2**k + d for n in (1, 3) for k in range(11) for d in (-1, 0, 1))})
# The same for the sizes of a task (4096) and of steps that are shared with awake threads (16384) and that wake threads
# (65536), and a large odd size.
LARGE = [4095, 4096, 4097, 16383, 0, 16384, 1, 16385, 65535, 65536, 65537, 100_003, 7]


def special(dtype):
    """The extreme and special values of a type."""
    info = ml_dtypes.finfo(dtype)  # supports NumPy's types, too
    positive = [0.0, 1.0, info.smallest_subnormal, info.tiny, info.eps, info.max, np.inf, np.nan]
    return np.array([*positive, *(-x for x in positive)], dtype)


def values(seed, rows, size, dtype):
    """Rows of numbers; each column has one kind in all rows, so that infinities stay in few elements."""
    rng = np.random.default_rng(seed)
    info = ml_dtypes.finfo(dtype)
    x = rng.standard_normal((rows, size))
    kind = rng.choice(6, size, p=[0.6, 0.1, 0.1, 0.06, 0.1, 0.04])
    steady, sparse, tiny, wide, edge = (kind == k for k in range(1, 6))
    x[:, steady] = x[:1, steady]
    x[:, sparse] *= rng.random((rows, sparse.sum())) < 0.3  # the others become zeros of both signs
    x[:, tiny] *= float(info.tiny)
    exponents = rng.integers(info.minexp - info.nmant, info.maxexp, (rows, wide.sum()))
    with np.errstate(all="ignore"):
        x[:, wide] = np.ldexp(x[:, wide], exponents)
        x = x.astype(dtype)
    x[:, edge] = rng.choice(special(dtype), (rows, edge.sum()))
    x.flags.writeable = False
    return x


@cache
def problem(size, dtype):
    """A parameter, and a gradient for every step."""
    return values([size, 1], 1, size, dtype)[0], values([size, 2], STEPS, size, dtype)


def split(flat, sizes):
    """Views of consecutive parts of an array with these sizes."""
    ends = list(accumulate(sizes))
    assert ends[-1] == flat.size
    return [flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def leaves(tree):
    """The arrays in a structure: an array, a list or dict of arrays, or a list of groups; without None."""
    if isinstance(tree, dict):
        return leaves(tree["params"] if "params" in tree else list(tree.values()))
    if isinstance(tree, list | tuple):
        return [array for branch in tree for array in leaves(branch)]
    return [] if tree is None else [tree]


def flat(tree):
    """All elements in order, in a new array."""
    return np.concatenate([np.ravel(array) for array in leaves(tree)])


def run(cls, params, grads, knobs):
    """Parameters and states at the checkpoints, by name, from one of our classes or of the reference's."""
    opt = cls(params, **knobs)
    seen = {}
    for step, g in enumerate(grads, 1):
        opt.step(g)
        if step in CHECKPOINTS:
            seen |= {f"{name} after step {step}": flat(a) for name, a in {"params": params, **opt.state}.items()}
    return seen


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    rule: str
    dtype: str
    knobs: dict = field(hash=False)

    def __str__(self):
        return f"{self.rule}-{self.dtype}-{say(self.knobs)}"

    def ours(self, params, grads):
        return run(RULES[self.rule], params, grads, self.knobs)

    def expected(self, size):
        """The reference's result for the problem as one array."""
        p, grads = problem(size, self.dtype)
        return run(REFERENCE[self.rule], p.copy(), grads, self.knobs)


CASES = [Case(rule, dtype, k) for rule in RULES for k in knobs(rule) for dtype in DTYPES]
WIDEST = [Case(rule, dtype, knobs(rule)[-1]) for rule in RULES for dtype in DTYPES]
FEW = [Case(rule, dtype, k) for rule in RULES for dtype in DTYPES for k in ({}, {"flush_subnormals": True})] + WIDEST


HALVES = ("float16", "bfloat16")
FLOATS = ("float32", *HALVES)  # the types of parameters that are computed in float32
ALL_FLOATS = ("float64", *FLOATS)  # of parameters, and of gradients whatever their parameters are
SEED = 0x1F2E3D4C5B6A7  # with digits in both words of the key
STRETCH = 700


@dataclass(frozen=True)
class Storage:
    """A way to store a parameter and its states."""

    param: str
    state: str | None = None
    master: bool = False
    stochastic: bool = False

    def __str__(self):
        rest = ["master"] * self.master + ["stochastic"] * self.stochastic
        return "-".join([self.param, *([self.state] if self.state else []), *rest])

    def is_legal(self):
        """Whether the combination has narrow parameters for a master, and narrow types to round."""
        half = self.param != "float32" and not self.master
        return not (self.master and self.param == "float32") and (half or self.state or not self.stochastic)

    def options(self):
        seed = SEED if self.stochastic else None
        return {"state_dtype": self.state, "master": self.master, "stochastic_rounding": seed, "min_8bit_size": 0}


STORAGES = [Storage(*row) for row in product(FLOATS, (None, "bfloat16", "q8"), (False, True), (False, True))]
STORAGES += [Storage(dtype, "float16", stochastic=dtype == "bfloat16") for dtype in FLOATS]
STORAGES = [storage for storage in STORAGES if storage.is_legal()]
PLAIN = [Storage(dtype) for dtype in ALL_FLOATS]  # with states that are stored as they are computed with


@cache
def stored_problem(size, dtype, grad):
    """A parameter and a few gradients, with separate types.

    Every second part has only numbers within a few decades: in a block with a huge one, 8 bits would store zeros.
    """
    calm = np.arange(size) // STRETCH % 2 == 1
    columns = np.random.default_rng([size, 3]).uniform(-4, 1, size)

    def mixed(seed, rows, of):
        ordinary = np.random.default_rng([size, seed]).standard_normal((rows, size)) * 10**columns
        return np.where(calm, ordinary.astype(of), values([size, seed], rows, size, of))

    return mixed(4, 1, dtype)[0], mixed(5, SHORT, grad)


ALL_STORAGES = list(dict.fromkeys([*PLAIN, *STORAGES]))
TAILS = [1, 0, 7, 255, 513, 4097, 20001]  # sizes that leave a tail in each loop


def stored_problems(storage, sizes):
    """A problem for each rule that a storage allows.

    Yields a number, the rule, a function that returns new parameters of these sizes, and gradients, whose types take
    turns.
    """
    for i, rule in enumerate(RULES):
        if storage.state and not REFERENCE[rule].codes:
            continue
        p, grads = stored_problem(sum(sizes), storage.param, ("float32", "float16", "float64")[i % 3])
        yield i, rule, lambda p=p: split(p.copy(), sizes), [split(g, sizes) for g in grads]


@dataclass(frozen=True)
class StoredCase:
    """One row of the table of storage types."""

    rule: str
    storage: Storage
    grad: str
    knobs: dict = field(hash=False)

    def __str__(self):
        return f"{self.rule}-{self.storage}-{self.grad}-{say(self.knobs)}"

    def options(self):
        return self.knobs | self.storage.options()

    def problem(self, size):
        return stored_problem(size, self.storage.param, self.grad)

    def ours(self, params, grads):
        return run(RULES[self.rule], params, grads, self.options())

    def theirs(self, params, grads):
        """The reference's result. Random bits depend on a tensor's index, so the reference needs the same list."""
        return run(REFERENCE[self.rule], params, grads, self.options())

    def expected(self, sizes):
        """The reference's result for the problem in parts of these sizes."""
        p, grads = self.problem(sum(sizes))
        return self.theirs(split(p.copy(), sizes), [split(g, sizes) for g in grads])


def widest(rule, storage):
    """The setting with the most options that a storage allows."""
    refused = RULES[rule].q8_incompatible if storage.state == "q8" else ()
    return {name: value for name, value in knobs(rule)[-1].items() if name not in refused}


def stored_cases(rules=RULES, storages=STORAGES, grads=None, settings=("default", "flush", "widest")):
    """Rules crossed with storages, settings and types of gradients, which alternate if `grads` is not given."""
    rows = [row for row in product(rules, storages) if getattr(REFERENCE[row[0]], "codes", None) or not row[1].state]
    found = []
    for rule, storage in rows:
        choices = {"default": {}, "flush": {"flush_subnormals": True}, "widest": widest(rule, storage)}
        for setting in settings:
            turn = FLOATS[len(found) % len(FLOATS)]
            found += [StoredCase(rule, storage, grad, choices[setting]) for grad in grads or [turn]]
    return found


PATTERN = 0xA5  # fills the bytes between elements


@dataclass(frozen=True)
class Layout:
    """The memory layout of an array."""

    rotate: int = 0  # by how many places the axes are rotated, from C order
    reverse: bool = False  # whether the order of axes is then reversed (C order becomes F order)
    gap: int = 0  # unused bytes after every element, every row and so on
    row_gap: int = 0  # unused bytes after every row and so on, but not between elements
    flip: bool = False  # whether all strides are negative
    shift: int = 0  # offset in bytes from a 64-byte boundary

    def place(self, array):
        """A copy of the array with this layout. Its base is a buffer filled with a pattern."""
        order = sorted(range(array.ndim), key=lambda axis: (axis + self.rotate) % array.ndim, reverse=self.reverse)
        strides, reach = [0] * array.ndim, array.itemsize
        for axis in reversed(order):
            strides[axis] = reach + self.gap
            reach = strides[axis] * max(array.shape[axis], 1) + self.row_gap
        room = np.full(64 + self.shift + reach + 64, PATTERN, np.uint8)
        view = np.ndarray(array.shape, array.dtype, room, -room.ctypes.data % 64 + self.shift, strides)
        if self.flip:
            view = view[(..., *[slice(None, None, -1)] * view.ndim)]
        view[...] = array
        return view


LAYOUTS = [
    Layout(),
    Layout(reverse=True),
    Layout(rotate=1),
    Layout(gap=16),
    Layout(row_gap=16),  # as columns of a wider matrix
    Layout(row_gap=6),
    Layout(flip=True),
    Layout(shift=1),
    Layout(shift=2, flip=True),
    Layout(shift=3, reverse=True),
    Layout(gap=5),  # as a field of packed records
    Layout(rotate=2, reverse=True, gap=8, flip=True, shift=4),
]


def bits(array):
    """An array's bits as integers. All NaNs are mapped to one, because payloads depend on the machine."""
    array = np.asarray(array)
    if array.dtype.kind in "iu":
        return array
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.where(np.isnan(array), array.dtype.type(np.nan), array).view(f"u{array.itemsize}")


def same_bits(a, b):
    """Whether two arrays have the same shape, type and bits, signs of zeros included."""
    return a.dtype == b.dtype and np.array_equal(bits(a), bits(b))


def assert_same(ours, expected, where):
    """Compares results of `run` and reports the first element that differs."""
    assert ours.keys() == expected.keys(), where
    for name, theirs in expected.items():
        mine = ours[name]
        if same_bits(mine, theirs):
            continue
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), f"{where}: {name}"
        wrong = np.flatnonzero(bits(mine) != bits(theirs))
        i = wrong[0]
        raise AssertionError(
            f"{where}: {name}: {wrong.size} of {theirs.size} elements differ, the first at {i}: "
            f"{float(mine[i]).hex()} where the reference has {float(theirs[i]).hex()}"
        )


def hashable(tree):
    """Nested data in a form that compares exactly: dtype, shape and bytes of arrays, types and `repr` of all else."""
    if isinstance(tree, dict):
        return tuple((hashable(key), hashable(value)) for key, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return tuple(map(hashable, tree))
    if isinstance(tree, np.ndarray):
        return tree.dtype.str, tree.shape, tree.tobytes()
    return type(tree).__name__, repr(tree)


def snapshot(opt, saved=None):
    """All that a checkpoint has of an optimizer (or `saved`, from another time), its parameters, and its schedules."""
    options = [opt._step_options, *(group.raw for group in opt.groups)]
    return hashable(opt.state_dict() if saved is None else saved), hashable(list(opt._params.values())), repr(options)

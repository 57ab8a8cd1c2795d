"""A step on a GPU has the bits of the NumPy reference, and therefore those of the processor."""

import numpy as np
import pytest

from gradstep import functional, optimizers
from gradstep._libraries import numpy_dtype
from tests.gpu.conftest import EMULATED
from tests.table import (
    CASES,
    CHECKPOINTS,
    FEW,
    LARGE,
    REFERENCE,
    RULES,
    SHORT,
    SMALL,
    WIDEST,
    Storage,
    assert_same,
    flat,
    leaves,
    problem,
    same_bits,
    schedule,
    split,
    stored_cases,
    stored_problem,
)

EVERY_RULE = pytest.mark.parametrize("rule", RULES)
SIZES = [3, 0, 300, 4097, 70_001, 256, 1]


def to(gpu, tree):
    """The same structure with arrays of a GPU."""
    if isinstance(tree, dict):
        return {name: to(gpu, branch) for name, branch in tree.items()}
    if isinstance(tree, list):
        return [to(gpu, branch) for branch in tree]
    return gpu.array(tree) if isinstance(tree, np.ndarray) else tree


def run(gpu, rule, params, grads, options):
    """The result of tests.table.run on a GPU."""
    params = to(gpu, params)
    opt = RULES[rule](params, **options)
    seen = {}
    for step, g in enumerate(grads, 1):
        opt.step(to(gpu, g))
        if step in CHECKPOINTS:
            for name, arrays in {"params": params, **opt.state}.items():
                seen[f"{name} after step {step}"] = flat([gpu.numpy(array) for array in leaves(arrays)])
    return seen


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_setting_at_every_small_size(case, gpu):
    p, grads = problem(sum(SMALL), case.dtype)
    expected = case.expected(p.size)
    assert_same(run(gpu, case.rule, split(p, SMALL), [split(g, SMALL) for g in grads], case.knobs), expected, "pieces")
    assert_same(run(gpu, case.rule, p, grads[:SHORT], case.knobs), first_of(expected), "one array")


def first_of(expected):
    return {name: values for name, values in expected.items() if int(name.rpartition(" ")[2]) <= SHORT}


@pytest.mark.parametrize("case", WIDEST, ids=str)
def test_large_sizes(case, gpu):
    p, grads = problem(sum(LARGE), case.dtype)
    expected = first_of(case.expected(p.size))
    assert_same(
        run(gpu, case.rule, split(p, LARGE), [split(g, LARGE) for g in grads[:SHORT]], case.knobs), expected, "pieces"
    )


@pytest.mark.parametrize("case", stored_cases(), ids=str)
def test_every_storage(case, gpu):
    p, grads = case.problem(sum(SIZES))
    ours = run(gpu, case.rule, split(p, SIZES), [split(g, SIZES) for g in grads], case.options())
    assert_same(ours, case.expected(SIZES), "")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_alignment(case, gpu):
    """Arrays begin at all offsets within the 16 bytes of an access, each at another one."""
    sizes = [n for n in (1, 3, 300, 1025) for _ in range(4)]
    p, grads = problem(sum(sizes), case.dtype)

    def placed(array, pace):
        views = []
        for i, piece in enumerate(split(array, sizes)):
            room = np.zeros(piece.size + 8, piece.dtype)
            first = i * pace % 4
            room[first : first + piece.size] = piece
            views.append(gpu.array(room)[first : first + piece.size])
        return views

    params = placed(p, 1)
    opt = RULES[case.rule](params, **case.knobs)
    for g in grads[:SHORT]:
        opt.step(placed(g, 3))
    name = f"params after step {SHORT}"
    assert same_bits(flat([gpu.numpy(param) for param in params]), case.expected(p.size)[name])


@pytest.mark.parametrize(
    "storage", [Storage("float32"), Storage("bfloat16", stochastic=True), Storage("float16", "q8")]
)
@EVERY_RULE
def test_strides(rule, storage, library):
    """Transposed arrays, slices with steps, and columns: only their elements change, not the memory between them."""
    if storage.state and rule == "sgd":
        pytest.skip("it keeps no state")
    shape = (37, 3, 53)
    p, grads = stored_problem(2 * int(np.prod(shape)), storage.param, "float32")
    whole = p.reshape(2, *shape)

    def views(array):
        return [array[0].swapaxes(0, 2), array[1][:, :, ::2], array[1][:, :, 1::4], array[1][:, :, 3::4]]

    ours, theirs = library.array(whole), whole.copy()
    opt = RULES[rule](views(ours), **storage.options())
    ref = REFERENCE[rule](views(theirs), **storage.options())
    for g in grads:
        opt.step([library.array(x) for x in views(g.reshape(2, *shape))])
        ref.step(views(g.reshape(2, *shape)))
    assert same_bits(library.numpy(ours), theirs)
    for name, arrays in ref.state.items():
        for mine, expected in zip(opt.state[name], arrays, strict=True):
            assert (mine is None) == (expected is None)
            assert mine is None or same_bits(library.numpy(mine), expected), name


@EVERY_RULE
def test_groups_and_skipped_gradients(rule, gpu):
    """Each tensor keeps its own step number, also within a group."""
    sizes = [700, 300, 5, 257, 64, 300, *range(40, 52)]
    params = [problem(n, "float32")[0] for n in sizes]

    def groups(arrays):
        return [
            {"params": arrays[:2], "lr": 0.1},
            {"params": arrays[2:4], "l2": 0.5},
            {"params": arrays[4:], "weight_decay": 0.1},
        ]

    ours, theirs = [gpu.array(p) for p in params], [p.copy() for p in params]
    opt, ref = RULES[rule](groups(ours), lr=schedule), REFERENCE[rule](groups(theirs), lr=schedule)
    for step in range(2 * len(sizes)):
        grads = [None if step < i else problem(n, "float32")[1][step % 24] for i, n in enumerate(sizes)]
        opt.step(split_like(to(gpu, grads)))
        ref.step(split_like(grads))
    assert all(same_bits(gpu.numpy(a), b) for a, b in zip(ours, theirs, strict=True))


def split_like(arrays):
    return [arrays[:2], arrays[2:4], arrays[4:]]


def test_many_tensors(gpu):
    """More tensors than kFew, and more than one launch can take."""
    for count in (321, 4200):
        sizes = [1 + i % 7 for i in range(count)]
        p, grads = problem(sum(sizes), "float32")
        ours = [gpu.array(piece) for piece in split(p, sizes)]
        opt, theirs = optimizers.Adam(ours), p.copy()
        ref = REFERENCE["adam"](theirs)
        for g in grads[:2]:
            opt.step([gpu.array(piece) for piece in split(g, sizes)])
            ref.step(g)
        assert same_bits(flat([gpu.numpy(a) for a in ours]), theirs)


def test_types_of_every_width_in_one_list(library):
    dtypes = ["float32", "bfloat16", "float64", "float16"]
    ours, theirs = ([problem(600, dtype)[0].copy() for dtype in dtypes] for _ in range(2))
    ours = to(library, ours)
    opt, ref = optimizers.Adam(ours, master=True), REFERENCE["adam"](theirs, master=True)
    for step in range(SHORT):
        grads = [problem(600, dtype)[1][step] for dtype in dtypes]
        opt.step(to(library, grads))
        ref.step(grads)
    assert all(same_bits(library.numpy(a), b) for a, b in zip(ours, theirs, strict=True))


def test_bound_gradients(library):
    p, grads = problem(1000, "float32")
    param, bound, theirs = library.array(p), library.array(grads[0]), p.copy()
    opt, ref = optimizers.Nadam([param], grads=[bound]), REFERENCE["nadam"]([theirs])
    for g in grads[:SHORT]:
        bound[...] = library.array(g)
        opt.step()
        ref.step([g])
    assert same_bits(library.numpy(param), theirs)


def test_the_bare_kernels(library):
    p, grads = problem(1000, "float32")
    theirs = [p.copy(), np.zeros_like(p), np.zeros_like(p)]
    ours = to(library, theirs)
    for step in range(1, SHORT + 1):
        functional.adam_(ours[0], library.array(grads[step]), ours[1], ours[2], step=step, lr=0.1)
        functional.adam_(theirs[0], grads[step], theirs[1], theirs[2], step=step, lr=0.1)
    assert all(same_bits(library.numpy(a), b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("options", [{}, {"state_dtype": "q8", "min_8bit_size": 0}])
def test_lookahead(options, library):
    p, grads = stored_problem(700, "float32", "float32")
    ours, theirs = library.array(p), p.copy()
    opt, cpu = (optimizers.NAG(array, lookahead=True, **options) for array in (ours, theirs))
    for g in grads:
        before = library.numpy(ours)
        with opt.lookahead(), cpu.lookahead():
            assert same_bits(library.numpy(ours), theirs)
        assert same_bits(library.numpy(ours), before)
        opt.step(library.array(g))
        cpu.step(g)
    assert same_bits(library.numpy(ours), theirs)


@pytest.mark.parametrize("case", stored_cases(settings=["widest"])[::3], ids=str)
def test_a_checkpoint_goes_on_elsewhere(case, library):
    """Moving from the processor to the GPU and back changes no bit."""
    p, grads = case.problem(5000)
    stayed, here, there = p.copy(), p.copy(), None
    opt = RULES[case.rule]([stayed], **case.options())
    cpu = RULES[case.rule]([here], **case.options())
    for step, g in enumerate(grads):
        opt.step([g])
        if step % 2 == 0:
            cpu.step([g])
            saved = cpu.state_dict()
            continue
        there = library.array(here)
        moved = RULES[case.rule]([there], **case.options())
        moved.load_state_dict(saved)
        moved.step([library.array(g)])
        here[...] = library.numpy(there)
        cpu.load_state_dict(moved.state_dict())
    assert same_bits(here, stayed)
    for name, [array] in opt.state.items():
        assert array is None or same_bits(cpu.state[name][0], array), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_elements_than_32_bits_count(dtype, gpu):
    size, ends = 2**31 + 1000, [slice(None, 1000), slice(-1000, None)]
    xp = gpu.module
    if EMULATED or xp.cuda.Device().mem_info[0] < 3 * 4 * size:
        pytest.skip("it needs 24 GB of a GPU")
    as_type = numpy_dtype(dtype)
    values = [problem(2000, dtype)[0], problem(2000, dtype)[1][0]]
    param, grad = (xp.full(size, 0.5, as_type) for _ in range(2))
    theirs = [np.concatenate([v[:1000], np.full(1, 0.5, as_type), v[1000:]]) for v in values]
    for array, v in zip((param, grad), values, strict=True):
        for end, half in zip(ends, (v[:1000], v[1000:]), strict=True):
            array[end] = gpu.array(half)
    optimizers.SGD(param, lr=0.1).step(grad)
    REFERENCE["sgd"](theirs[0], lr=0.1).step(theirs[1])
    assert same_bits(np.concatenate([gpu.numpy(param[end]) for end in ends]), np.delete(theirs[0], 1000))
    assert bool((param[1000:-1000] == gpu.array(theirs[0])[1000]).all())

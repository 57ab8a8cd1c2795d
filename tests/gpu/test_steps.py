"""Steps on a GPU other than their bits: two launches, no synchronization; streams, graphs, refusals."""

import pickle
from collections import deque

import numpy as np
import pytest

from gradstep import functional, optimizers, show_config
from tests.table import REFERENCE, RULES, SHORT, leaves, problem, same_bits, schedule
from tests.test_refusals import steps_of
from tests.test_scheduled import scheduled

from .conftest import EMULATED, CuPy

EVERY_RULE = pytest.mark.parametrize("rule", RULES)


class Count:
    """Counts the emulation's calls."""

    def __init__(self, emulated):
        self.emulated, self.before = emulated, emulated.counts()

    def __getitem__(self, name):
        return self.emulated.counts()[name] - self.before[name]


@pytest.mark.parametrize("count", [1, 7, 320, 321, 3400])
def test_a_step_is_two_launches_and_nothing_else(count, gpu, emulated):
    """For any number of tensors, also if the rate and the gradients change with every step."""
    params = [gpu.array(np.ones(1 + i % 5, np.float32)) for i in range(count)]
    grads = [[gpu.array(np.ones(1 + i % 5, np.float32)) for i in range(count)] for _ in range(2)]
    opt = optimizers.Adam(params, lr=schedule)
    opt.step(grads[0])
    seen = Count(emulated)
    for step in range(4):
        opt.step(grads[step % 2])
    assert [seen[what] for what in ("launches", "allocations", "copies", "waits")] == [8, 0, 0, 0]


def test_groups_of_one_kernel_share_launches(gpu, emulated):
    arrays = [gpu.array(np.ones(5, np.float32)) for _ in range(8)]
    opt = optimizers.Adam(
        [{"params": [array], "lr": 0.1 * i, "weight_decay": 0.1 * i} for i, array in enumerate(arrays)]
    )
    grads = [[gpu.array(np.ones(5, np.float32))] for _ in range(8)]
    opt.step(grads)
    seen = Count(emulated)
    opt.step(grads)
    assert seen["launches"] == 2


def test_more_groups_than_a_launch_has_room_for(gpu, emulated):
    rates = [0.01 * i for i in range(20)]
    ours, theirs = [gpu.array(np.ones(5, np.float32)) for _ in rates], [np.ones(5, np.float32) for _ in rates]
    opt, ref = (
        cls([{"params": [array], "lr": lr} for array, lr in zip(arrays, rates, strict=True)])
        for cls, arrays in ((optimizers.Nadam, ours), (REFERENCE["nadam"], theirs))
    )
    grads = [[np.full(5, i, np.float32)] for i in range(20)]
    opt.step([[gpu.array(g)] for [g] in grads])
    ref.step(grads)
    seen = Count(emulated)
    opt.step([[gpu.array(g)] for [g] in grads])
    ref.step(grads)
    assert seen["launches"] == 4
    assert opt.step_count == 2
    assert all(same_bits(gpu.numpy(a), b) for a, b in zip(ours, theirs, strict=True))


def test_tables_are_copied_once_for_gradients_that_lie_otherwise(gpu, emulated):
    opt = optimizers.SGD(gpu.array(np.ones((4, 6), np.float32)))
    packed, other = gpu.array(np.ones((4, 6), np.float32)), gpu.array(np.ones((6, 4), np.float32)).swapaxes(0, 1)
    opt.step(packed)
    seen = Count(emulated)
    opt.step(other)
    opt.step(other)
    assert seen["copies"] == 1


def test_streams(gpu, emulated):
    from tests.emulated import cupy

    class Stream:
        cuda_stream = 77

    class OfProtocol:
        def __cuda_stream__(self):
            return 0, 78

    opt = optimizers.SGD(gpu.array(np.ones(3, np.float32)))
    grad = gpu.array(np.ones(3, np.float32))
    for stream, handle in [(None, cupy.STREAM), (5, 5), (Stream(), 77), (OfProtocol(), 78)]:
        opt.step(grad, stream=stream)
        assert emulated.counts()["stream"] == handle
    for wrong in ("default", -1, 1.5, True):
        with pytest.raises(TypeError, match="stream must be a CUDA stream or its handle, not"):
            opt.step(grad, stream=wrong)


def test_a_stream_is_for_a_gpu():
    with pytest.raises(TypeError, match="SGD: stream is for arrays on a GPU"):
        optimizers.SGD(np.ones(3)).step(np.ones(3), stream=0)


class Graph:
    """A captured graph, real or emulated."""

    def __init__(self, gpu, capture):
        import gradstep._cuda as cuda

        self.emulated = hasattr(cuda, "replay") and cuda
        if self.emulated:
            cuda.begin_capture()
            try:
                capture()
            finally:
                cuda.end_capture()
        else:
            stream = gpu.module.cuda.Stream(non_blocking=True)
            with stream:
                stream.begin_capture()
                try:
                    capture()
                finally:
                    self.graph = stream.end_capture()

    def replay(self):
        self.emulated.replay() if self.emulated else self.graph.launch()


@pytest.mark.parametrize("options", [{}, {"state_dtype": "q8", "min_8bit_size": 0}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY_RULE
def test_replays_go_on_from_the_last_step(rule, dtype, options, gpu):
    """Step numbers and rates are on the device: replays continue after eager steps, new rates and checkpoints."""
    if options and (rule == "sgd" or dtype == "float64"):
        pytest.skip("it has no states of q8")
    sizes = [5, 700, 300, 0]
    groups = [problem(n, dtype) for n in sizes]

    def make(arrays):
        return [{"params": arrays[:2]}, {"params": arrays[2:], "weight_decay": 0.1}]

    def at(step):
        g = [grads[step] for _, grads in groups]
        return [[g[0], None if step == 1 else g[1]], g[2:]]

    ours, theirs = [gpu.array(p) for p, _ in groups], [p.copy() for p, _ in groups]
    bound = [gpu.array(grads[0]) for _, grads in groups]
    opt, ref = RULES[rule](make(ours), lr=0.1, **options), REFERENCE[rule](make(theirs), lr=0.1, **options)

    def write(step):
        for array, (_, grads) in zip(bound, groups, strict=True):
            array[...] = gpu.array(grads[step])

    def check(step):
        assert opt.step_count == ref.step_count == step + 1
        for name, arrays in {"params": make(theirs), **ref.state}.items():
            mine = make(ours) if name == "params" else opt.state[name]
            for a, b in zip(leaves(mine), leaves(arrays), strict=True):
                assert same_bits(gpu.numpy(a), b), (name, step)

    for step in range(2):  # plain replays
        opt.step([[x if x is None else gpu.array(x) for x in group] for group in at(step)])
        ref.step(at(step))
    check(1)
    graph = Graph(gpu, lambda: opt.step([bound[:2], bound[2:]]))
    assert opt.step_count == 2
    check(1)
    for step in range(2, 7):
        if step == 4:
            opt.lr = ref.lr = 0.01
        write(step)
        if step == 5:  # an eager step in between
            opt.step([bound[:2], bound[2:]])
        else:
            graph.replay()
        ref.step(at(step))
        check(step)
    saved = opt.state_dict()
    assert steps_of(opt) == [7, 6, 7, 7]
    opt.load_state_dict(saved)
    write(7)
    graph.replay()
    ref.step(at(7))
    check(7)


@EVERY_RULE
def test_every_option_follows_a_schedule(rule, gpu):
    cls = RULES[rule]
    schedules = {name: line(option) for name, option in scheduled(cls).items() if name != "clip_per_tensor"}
    p, grads = problem(300, "float32")
    ours, theirs = gpu.array(p), p.copy()
    opt, ref = cls(ours, **schedules), REFERENCE[rule](theirs, **schedules)
    for g in grads[:SHORT]:
        opt.step(gpu.array(g))
        ref.step(g)
        assert same_bits(gpu.numpy(ours), theirs)


def line(option):
    """A schedule of values that are valid for every option."""
    return (lambda step: (0.5 + 0.1 * step, 0.9)) if option.parts else (lambda step: 0.5 + 0.1 * step)


def test_what_a_graph_cannot_replay(gpu):
    grad = gpu.array(np.ones(3, np.float32))
    opt = optimizers.SGD(gpu.array(np.ones(3, np.float32)), lr=schedule)
    opt.step(grad)
    with pytest.raises(RuntimeError, match="lr is a schedule, which a replay cannot call"):
        Graph(gpu, lambda: opt.step(grad))
    opt = optimizers.SGD(gpu.array(np.ones(3, np.float32)))
    Graph(gpu, lambda: opt.step(grad))
    with pytest.raises(ValueError, match="these options need another kernel"):
        opt.groups[0]["l2"] = 0.1
    assert opt.groups[0]["l2"] == 0.0

    def change():
        opt.step(grad)
        opt.lr = 0.5

    with pytest.raises(RuntimeError, match="options cannot be set while a step is captured"):
        Graph(gpu, change)
    assert opt.lr == 1e-3
    nag = optimizers.NAG(gpu.array(np.ones(3, np.float32)), lookahead=True)

    def ahead():
        with nag.lookahead():
            pass

    ahead()
    with pytest.raises(RuntimeError, match=r"lookahead\(\) cannot be captured: replays would not restore"):
        Graph(gpu, ahead)
    ahead()


def test_a_captured_step_of_which_all_gradients_are_none_counts(gpu):
    opt = optimizers.Adam([gpu.array(np.ones(3, np.float32))])
    graph = Graph(gpu, lambda: opt.step([None]))
    for count in (1, 2):
        graph.replay()
        assert opt.step_count == count
    opt.step([None])
    assert opt.step_count == 3
    assert steps_of(opt) == [0]


def test_a_first_step_may_be_captured(gpu):
    p, grads = problem(300, "float32")
    ours, theirs, grad = gpu.array(p), p.copy(), gpu.array(grads[0])
    opt, ref = optimizers.Adam(ours), REFERENCE["adam"](theirs)
    graph = Graph(gpu, lambda: opt.step(grad))
    assert same_bits(gpu.numpy(ours), p)
    for g in grads[:SHORT]:
        grad[...] = gpu.array(g)
        graph.replay()
        ref.step(g)
    assert same_bits(gpu.numpy(ours), theirs)


def refused(error, words, call, gpu, *arrays):
    """The call raises, and no bit of any array changes."""
    before = [gpu.numpy(array) for array in arrays]
    with pytest.raises(error, match=words):
        call()
    assert all(same_bits(gpu.numpy(a), b) for a, b in zip(arrays, before, strict=True))


def test_arrays_of_the_processor_among_those_of_a_gpu(library):
    on_gpu, on_cpu = library.array(np.ones(3, np.float32)), np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"params\[1\] (must be an array on a GPU, not numpy|is a NumPy array, but )"):
        optimizers.Adam([on_gpu, on_cpu])
    with pytest.raises(TypeError, match=r"params\[1\] must be a NumPy array, not|but params\[1\] a torch tensor"):
        optimizers.Adam([on_cpu, on_gpu])
    opt = optimizers.Adam(on_gpu)
    refused(TypeError, "grads must be an array on a GPU, not numpy.ndarray", lambda: opt.step(on_cpu), library, on_gpu)
    opt = optimizers.Adam(on_cpu)
    if isinstance(library, CuPy) or not EMULATED:  # memory of the processor is in the place of a GPU's
        with pytest.raises(TypeError, match=r"grads (must be a NumPy array, not|is on cuda)"):
            opt.step(on_gpu)


def test_other_types_and_shapes(library):
    param = library.array(np.ones((3, 4), np.float32))
    for wrong, error, words in [
        (
            np.ones((3, 4), np.int32),
            TypeError,
            "grads has dtype .*int32; supported are float32, float64, float16, bfloat16",
        ),
        (np.ones((4, 3), np.float32), ValueError, r"grads has shape \(4, 3\), but its parameter has shape \(3, 4\)"),
    ]:
        opt = optimizers.Momentum(param)
        refused(error, words, lambda opt=opt, wrong=wrong: opt.step(library.array(wrong)), library, param)
        assert opt.step_count == 0
    with pytest.raises(TypeError, match=r"params has dtype .*int64"):
        optimizers.Adam(library.array(np.ones(3, np.int64)))


def test_arrays_that_overlap(library):
    whole = library.array(np.zeros(10, np.float32))
    with pytest.raises(ValueError, match=r"params\[1\] overlaps params\[0\]"):
        optimizers.SGD([whole[:6], whole[4:]])
    with pytest.raises(ValueError, match=r"params\[1\] is the same array as params\[0\]"):
        optimizers.SGD([whole, whole])
    opt = optimizers.SGD([whole[:5], whole[5:]])
    other = library.array(np.ones(5, np.float32))
    refused(ValueError, r"grads\[1\] overlaps params\[0\]", lambda: opt.step([other, whole[:5]]), library, whole)
    matrix = library.array(np.zeros((4, 6), np.float32))
    optimizers.SGD([matrix[:, ::2], matrix[:, 1::2]])  # interleaved, but without a common byte


def interface(array, **changes):
    """An object with an array's interface, with changes."""

    def show(_):
        return {**array.__cuda_array_interface__, **changes}

    return type("Shown", (), {"__cuda_array_interface__": property(show)})()


def test_what_an_array_shows_of_itself(gpu):
    array = gpu.array(np.ones(4, np.float32))
    pointer, host = gpu.pointer(array), np.ones(4, np.float32)
    for changes, error, words in [
        ({"data": (pointer, True)}, ValueError, "params is read-only, and a step writes it in place"),
        ({"data": (host.ctypes.data, False)}, ValueError, "params points to no memory of a GPU"),
        ({"data": (pointer + 2, False), "shape": (2,)}, ValueError, "params is not aligned to its items"),
        ({"mask": array}, TypeError, "params is masked"),
        ({"typestr": ">f4"}, TypeError, "params has dtype .*; supported are"),
    ]:
        with pytest.raises(error, match=words):
            optimizers.SGD(interface(array, **changes))
    opt = optimizers.SGD(interface(array))
    other = gpu.array(host)
    opt.step(interface(other, data=(gpu.pointer(other), True)))  # gradients are only read
    assert same_bits(gpu.numpy(array), np.full(4, 1 - np.float32(1e-3), np.float32))


def test_another_device(gpu):
    if show_config("dicts")["cuda"]["devices"] < 2:
        pytest.skip("there is one device")
    with gpu.module.cuda.Device(1):
        there = gpu.array(np.ones(3, np.float32))
    here = gpu.array(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"params\[1\] is on cuda:1, but params\[0\] on cuda:0"):
        optimizers.SGD([here, there])
    opt = optimizers.SGD(here)
    refused(ValueError, "grads is on cuda:1, but params on cuda:0", lambda: opt.step(there), gpu, here)
    opt = optimizers.Adam(there)
    with gpu.module.cuda.Device(1):
        opt.step(gpu.array(np.ones(3, np.float32)))
    assert opt.state["exp_avg"].device.id == 1
    opt.load_state_dict(opt.state_dict())
    with gpu.module.cuda.Device(1):
        half, grad = gpu.array(np.ones(3, np.float16)), gpu.array(np.ones(3, np.float16))
    optimizers.AdaGrad(half, master=True, initial_accumulator=0.1).step(grad)
    nag = optimizers.NAG(half, lookahead=True)
    nag.step(grad)
    with nag.lookahead():
        pass


def test_states_are_the_librarys_own(library):
    param = library.array(np.ones((40, 120), np.float32))
    for options in ({}, {"state_dtype": "bfloat16"}, {"state_dtype": "q8"}):
        opt = optimizers.Adam({"w": param}, **options)
        for arrays in opt.state.values():
            assert type(arrays["w"]) is type(param)
        saved = opt.state_dict()["state"]["w"]
        assert set(saved) == {"step", *opt.state}
        assert all(isinstance(saved[name], np.ndarray) for name in opt.state)


@pytest.mark.usefixtures("_cuda")
@pytest.mark.parametrize("kind", ["Tensor", "Parameter"])
def test_tensors_whose_memory_is_swapped(kind):
    """Detected within the number of steps that checks all arrays, eight per step."""
    torch = pytest.importorskip("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    params, grads = ([torch.ones(3, device=device) for _ in range(20)] for _ in range(2))
    if kind == "Parameter":
        params = [torch.nn.Parameter(param) for param in params]
    opt = optimizers.Adam(params, grads=grads)
    for moved, name in [(params[7], r"params\[7\]"), (grads[19], r"grads\[19\]")]:
        kept = moved.data
        moved.data = torch.ones(3, device=device)
        with pytest.raises(ValueError, match=name + " was moved or reshaped after the optimizer was made"):
            deque(opt.step() for _ in range(10))
        moved.data = kept


def test_a_failure_of_cuda_is_an_error_and_no_step(gpu, emulated):
    param, grad = (gpu.array(np.ones(3, np.float32)) for _ in range(2))
    opt = optimizers.Adam(param)
    emulated.fail(True)
    try:
        refused(RuntimeError, "CUDA: launching a step failed", lambda: opt.step(grad), gpu, param)
    finally:
        emulated.fail(False)
    assert (opt.step_count, steps_of(opt)) == (0, [0])
    opt.step(grad)
    assert opt.step_count == 1


def test_arrays_without_elements_or_axes(library):
    """Arrays without elements or axes can be stepped, also after a checkpoint."""
    for shape in [(0,), (3, 0), ()]:
        param, grad = (library.array(np.ones(shape, np.float32)) for _ in range(2))
        opt, cpu = optimizers.Adam(param), optimizers.Adam(np.ones(shape, np.float32))
        for _ in range(2):
            opt.step(grad)
            cpu.step(np.ones(shape, np.float32))
            saved = pickle.loads(pickle.dumps(opt.state_dict()))
            opt.load_state_dict(saved)
        assert saved["state"][""]["step"] == 2
        assert saved["state"][""]["exp_avg"].shape == shape
        assert same_bits(saved["state"][""]["exp_avg"], cpu.state["exp_avg"])


def test_a_checkpoint_that_is_read_only(library):
    opt = optimizers.Adam(library.array(np.ones(3, np.float32)))
    saved = opt.state_dict()
    for name in opt.state:
        saved["state"][""][name].flags.writeable = False
    opt.load_state_dict(saved)


def test_a_bare_kernel_is_not_captured(gpu):
    param, grad = (gpu.array(np.ones(3, np.float32)) for _ in range(2))
    with pytest.raises(RuntimeError, match="sgd_: a step cannot be captured in a graph without an optimizer"):
        Graph(gpu, lambda: functional.sgd_(param, grad))


@pytest.mark.usefixtures("_cuda")
def test_tensors_of_a_class_of_the_users():
    torch = pytest.importorskip("torch")

    class Weight(torch.nn.Parameter):
        pass

    opt = optimizers.Adam(Weight(torch.ones(3, device="cuda" if torch.cuda.is_available() else "cpu")))
    assert isinstance(opt.state["exp_avg"], torch.Tensor)

"""Threads: their number and use, equal bits, a released GIL, and safe fork and exit."""

import _thread
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from tests.table import RULES, THREADS, knobs, problem, same_bits
from tests.test_refusals import steps_of

SMALL, LARGE = 65535, 80 * 4096  # elements of Adam: too few to wake a thread; enough for eighty
STARTED = """
import os, signal, sys, threading, time, warnings
import numpy as np

def tasks():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else None

def make(size=400_000, rule="Adam", **options):
    p, g = np.linspace(-1, 1, size, dtype="f4"), np.linspace(2, -3, size, dtype="f4")
    return getattr(gs, rule)(p, **options), p, g

before = tasks()
import gradstep as gs
from gradstep import _core
"""


def interpreter(code, **env):
    """Runs code in a new interpreter, with only these environment variables of gradstep."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRADSTEP_")} | env
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30)


def python(code, **env):
    """The output of code in a new interpreter, which must exit successfully, in time and without errors."""
    done = interpreter(STARTED + code, **env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def refusal(**env):
    """The message of the error that the import raises."""
    done = interpreter("import gradstep", **env)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@LINUX
def test_threads_start_with_the_first_step_worth_sharing():
    out = python(f"""
gs.set_num_threads(4)
assert (tasks() - before, _core.worker_count()) == (0, 0), "at import"
for rule in ("SGD", "Adam", "Nadam"):
    opt, p, g = make({SMALL}, rule)
    opt.step(g)
many = [np.ones(32) for _ in range({SMALL} // 32)]
gs.Adam(many).step([a.copy() for a in many])
time.sleep(0.001)
gs.functional.sgd_(p, g)
assert (tasks() - before, _core.worker_count()) == (0, 0), "small"
opt, p, g = make({LARGE})
gs.set_num_threads(1)
opt.step(g)
assert (tasks() - before, _core.worker_count()) == (0, 0), "one thread"
for threads, workers in ((4, 3), (2, 3), (6, 5), (1, 5), (4, 5)):
    gs.set_num_threads(threads)
    opt.step(g)
    assert (tasks() - before, _core.worker_count()) == (workers, workers), threads
gs.set_num_threads(1000)
opt.step(g)
assert _core.worker_count() == 79, "no more than there are tasks"
print("done", gs.show_config(mode="dicts")["threads"]["count"])
""")
    assert out == ["done", "1000"]


@LINUX
def test_frequent_steps_are_shared_from_a_smaller_size_on():
    """A worker woken for one step is still awake for the next."""
    out = python(f"""
gs.set_num_threads(4)
opt, p, g = make({SMALL})
for _ in range(10):
    opt.step(g)
    time.sleep(0.001)
print(_core.worker_count())
p, g = p[: {SMALL} // 2], g[: {SMALL} // 2]
clipped, other = gs.Adam(p, clip_norm=1.0), gs.Adam(p.copy())
for _ in range(10):
    clipped.step(g)
    other.step(g)
    time.sleep(0.001)
print(_core.worker_count())
for _ in range(1000):
    opt.step(np.ones({SMALL}, "f4"))
print(_core.worker_count())
""")
    assert out == ["0", "0", "3"], "alone; two together, one of which takes a norm first; often"


@LINUX
def test_no_openmp():
    assert (
        python("""
def loaded():
    with open("/proc/self/maps") as maps:
        return {line.split("/")[-1] for line in maps if "omp" in line}

opt, _, g = make()
opt.step(g)
print(*loaded())
""")
        == []
    )


def test_the_default_is_what_this_process_may_use():
    count, default, shown = map(
        int,
        python("""
print(gs.get_num_threads(), _core.default_threads(), gs.show_config(mode="dicts")["threads"]["default"])
"""),
    )
    assert count == default == shown
    assert 1 <= count <= (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_one_core_is_one_thread():
    pin = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    show = "import gradstep as gs; print(gs.get_num_threads(), gs.show_config(mode='dicts')['threads']['default'])"
    assert interpreter(pin + show).stdout.split() == ["1", "1"]


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("3", 3), ("1024", 1024), ("", _core.default_threads())])
def test_the_variable_sets_the_number(text, count):
    out = python(
        "print(gs.get_num_threads()); gs.set_num_threads(2); print(gs.get_num_threads())", GRADSTEP_NUM_THREADS=text
    )
    assert out == [str(count), "2"]


@pytest.mark.parametrize("text", ["0", "-1", "1025", "two", "2.0", "2 3", "0x2", "2,3", "9" * 30])
def test_a_bad_variable_is_an_error_at_import(text):
    error = refusal(GRADSTEP_NUM_THREADS=text)
    assert error.startswith("ImportError: ")
    assert "GRADSTEP_NUM_THREADS: " in error
    assert f"got '{text}'" in error


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_the_instruction_set_can_be_chosen(isa):
    assert python("print(gs.show_config(mode='dicts')['isa']['chosen'])", GRADSTEP_ISA=isa) == [isa]


@pytest.mark.parametrize(
    "isa", ["nonsense", "AVX2", "baseline,avx2", *(set(_core.compiled_isas()) - {*_core.supported_isas()})]
)
def test_an_instruction_set_that_is_not_there(isa):
    error = refusal(GRADSTEP_ISA=isa)
    assert error.startswith("ImportError: ")
    assert repr(isa) in error
    assert f"this machine supports {', '.join(_core.supported_isas())}" in error
    assert "GRADSTEP_ISA" in error, "the user may not know where the name came from"


@pytest.mark.parametrize("choice", ["", *_core.prefetch_choices()])
def test_prefetching_can_be_chosen(choice):
    default = _core.default_prefetch()
    shown = python("print(*gs.show_config(mode='dicts')['prefetch'].values())", GRADSTEP_PREFETCH=choice)
    assert shown == [choice or default, default]


@pytest.mark.parametrize("choice", ["nonsense", "ON", "on,off", "1"])
def test_a_bad_choice_of_prefetching_is_an_error_at_import(choice):
    error = refusal(GRADSTEP_PREFETCH=choice)
    assert error.startswith("ImportError: GRADSTEP_PREFETCH: ")
    assert error.endswith(f"prefetching must be 'off' or 'on', got '{choice}'")


@pytest.mark.parametrize(
    ("count", "error"),
    [*((n, ValueError) for n in (0, -1, 1025, 2**40)), *((n, TypeError) for n in (2.5, "3", None))],
)
def test_a_bad_number_of_threads(count, error):
    gs.set_num_threads(3)
    with pytest.raises(error, match=r"number of threads|count"):
        gs.set_num_threads(count)
    assert gs.get_num_threads() == 3


@pytest.mark.parametrize("rule", RULES)
def test_the_bits_do_not_depend_on_the_number_of_threads(rule):
    """For packed, strided and transposed tensors in one step."""
    values, grads = problem(3 * 49152 + 7, "float32")
    seen = []
    for threads in THREADS:
        gs.set_num_threads(threads)
        buffer = values.copy()
        cut = [lambda x: x[7:98311:2], lambda x: x[8:98311:2], lambda x: x[98311:].reshape(192, 256).T]
        opt = RULES[rule]([f(buffer) for f in cut], **knobs(rule)[-1])
        for g in grads[:4]:
            opt.step([f(g) for f in cut])
        seen.append([buffer, *(a for states in opt.state.values() for a in states)])
    for other in seen[1:]:
        assert all(map(same_bits, seen[0], other))


@FORK
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_child_can_step(busy):
    """After steps in the parent, or (busy) while another thread of it is in one; also in a grandchild."""
    out = python(f"""
warnings.simplefilter("ignore")  # fork in a process with threads: that is the test
gs.set_num_threads(3)
opt, p, g = make()
opt.step(g)
stop = False

def step_on():
    other, _, g = make(2_000_000)
    while not stop:
        other.step(g)

thread = threading.Thread(target=step_on)
if {busy}:
    thread.start()

def child(generations):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # the watchdog
        opt.step(g)
        assert _core.worker_count() == 2
        good = child(generations - 1) if generations else True
        os.write(result, p.tobytes()[-4096:])
        os._exit(0 if good else 1)
    return os.waitpid(pid, 0)[1] == 0

for _ in range(5):
    source, result = os.pipe()
    good = child(1)
    grandchild, of_child = os.read(source, 4096), os.read(source, 4096)
    print(good)
stop = True
if {busy}:
    thread.join()
opt.step(g)
print(of_child == p.tobytes()[-4096:])
opt.step(g)
print(grandchild == p.tobytes()[-4096:])
""")
    assert out == ["True"] * 7


def test_other_threads_run_during_a_step():
    """The switch interval is so long that other threads run only if the step releases the GIL."""
    gs.set_num_threads(1)
    p, g = np.zeros(8_000_000, np.float32), np.ones(8_000_000, np.float32)
    opt = gs.Adam(p)
    opt.step(g)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for _ in range(20):  # the system may schedule the other thread later
            go, ran = threading.Event(), []
            thread = threading.Thread(target=lambda go=go, ran=ran: (go.wait(), ran.append(time.perf_counter())))
            thread.start()
            time.sleep(0.001)
            go.set()
            opt.step(g)
            end = time.perf_counter()
            thread.join()
            if ran[0] < end:
                return
    finally:
        sys.setswitchinterval(interval)
    pytest.fail("no other thread ran during any of 20 steps")


@pytest.fixture
def eager():
    """Makes threads switch as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    gs.set_num_threads(3)
    yield
    sys.setswitchinterval(interval)


def together(*calls):
    """The results of the calls, which run concurrently, each in a new thread."""
    start = threading.Barrier(len(calls))
    with ThreadPoolExecutor(len(calls)) as pool:
        return [done.result() for done in [pool.submit(lambda call=call: (start.wait(), call())[1]) for call in calls]]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", [100, LARGE])
def test_threads_that_step_optimizers_of_their_own(size):
    p, grads = problem(size, "float32")
    rules = [*RULES, "adam"]

    def run(rule, result):
        own = p.copy()
        opt = RULES[rule](own, **knobs(rule)[-1])
        for g in grads:
            opt.step(g)
        result[:] = [own, *opt.state.values()]

    alone, ours = [[] for _ in rules], [[] for _ in rules]
    for rule, result in zip(rules, alone, strict=True):
        run(rule, result)
    together(*(lambda r=rule, o=result: run(r, o) for rule, result in zip(rules, ours, strict=True)))
    for mine, expected in zip(ours, alone, strict=True):
        assert all(map(same_bits, mine, expected))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("rate", ["number", "schedule"])
@pytest.mark.parametrize("size", [100, LARGE])
def test_threads_that_step_one_optimizer(size, rate):
    """Concurrent steps are serialized: none is lost, and each has a separate step number."""
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.01 * (step + 1)

    def make():
        p = np.linspace(-1, 1, size, dtype=np.float32)
        return p, gs.Nadam(p, lr=0.1 if rate == "number" else schedule)

    g = np.linspace(3, -2, size, dtype=np.float32)
    threads, steps = 4, 25
    p, opt = make()
    together(*[lambda: [opt.step(g) for _ in range(steps)]] * threads)
    assert opt.step_count == threads * steps
    assert steps_of(opt) == [threads * steps]
    assert asked == ([] if rate == "number" else [*range(threads * steps)])
    expected, alone = make()
    for _ in range(threads * steps):
        alone.step(g)
    assert same_bits(p, expected)
    assert steps_of(opt, "mu_product") == steps_of(alone, "mu_product")


@pytest.mark.usefixtures("eager")
def test_a_checkpoint_is_taken_between_steps():
    p, g = np.zeros(2_000_000), np.ones(2_000_000)
    opt = gs.AdaGrad(p)
    thread = threading.Thread(target=lambda: [opt.step(g) for _ in range(20)])
    thread.start()
    while thread.is_alive():
        saved = opt.state_dict()
        own = saved["state"][""]
        assert own["sum"].min() == own["sum"].max() == own["step"] == saved["step_count"]
    thread.join()


@pytest.mark.parametrize("change", ["lr", "group", "checkpoint"])
def test_a_change_of_options_waits_for_the_step_that_is_under_way(change):
    """Kernels read the options while other threads run."""
    under_way = threading.Event()

    def rate(_):
        under_way.set()
        return 0.5

    params = [np.zeros(6_000_000), np.zeros(1)]
    opt = gs.SGD([{"params": params[0], "lr": rate}, {"params": params[1]}])
    saved = opt.state_dict()
    thread = threading.Thread(target=opt.step, args=([np.ones(6_000_000), np.ones(1)],))
    thread.start()
    under_way.wait()
    if change == "lr":
        opt.lr = 0.25
    elif change == "group":
        opt.groups[1].update(lr=0.25, l2=0.5)
    else:
        opt.load_state_dict(saved)
    assert opt.step_count == (0 if change == "checkpoint" else 1)
    thread.join()
    assert opt.step_count == (0 if change == "checkpoint" else 1)
    assert params[0].max() == -0.5


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("place", ["lookahead", "averaged"])
def test_threads_that_move_the_parameters_and_step(place):
    """Only one thread at a time is at the lookahead point or at the averages, and no step starts there."""
    start, g = np.linspace(-1, 1, 300_000), np.linspace(2, -3, 300_000)
    p, own = start.copy(), start.copy()
    opt, alone = (gs.NAG(x, lr=0.1, lookahead=True, ema=0.9) for x in (p, own))
    taken = []

    def move_and_step():
        for _ in range(30):
            with contextlib.suppress(RuntimeError), getattr(opt, place)():
                time.sleep(1e-5)
            with contextlib.suppress(RuntimeError):
                opt.step(g)
                taken.append(1)

    together(*[move_and_step] * 3)
    assert opt.step_count == len(taken) > 0
    for _ in taken:
        alone.step(g)
    assert same_bits(opt.state["momentum_buffer"], alone.state["momentum_buffer"])
    assert same_bits(p, own)


def operate(opt, p, g, saved, seed):
    """Uses an optimizer in ways and in an order that the seed determines."""
    rng = random.Random(seed)
    for _ in range(40):
        operation, l2 = rng.choice(["step", "step", "set", "save", "load", "averaged"]), rng.random()
        with contextlib.suppress(RuntimeError):  # another thread has moved the parameters to the averages
            if operation == "step":
                opt.step(g)
            elif operation == "set":
                opt.l2 = l2
            elif operation == "save":
                own = opt.state_dict()
                assert own["step_count"] == own["state"][""]["step"]
            elif operation == "load":
                opt.load_state_dict(saved)
            else:
                with opt.averaged():
                    before = p.copy()
                    time.sleep(1e-5)
                    assert same_bits(p, before)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", [100, LARGE])
@pytest.mark.parametrize("rule", RULES)
def test_threads_that_use_one_optimizer(rule, size):
    """Each operation is atomic: the same steps, in the order in which they were taken, give the same bits alone."""
    p, g = np.linspace(-1, 1, size, dtype=np.float32), np.linspace(3, -2, size, dtype=np.float32)
    own, taken = p.copy(), []

    def schedule(step):
        taken.append((step, opt.l2))
        return 0.01

    opt, alone = RULES[rule](p, lr=schedule, ema=0.9), RULES[rule](own, lr=lambda _: 0.01, ema=0.9)
    saved = opt.state_dict()
    taken.clear()
    together(*(lambda seed=seed: operate(opt, p, g, saved, seed) for seed in range(8)))
    for step, l2 in [*taken]:
        if step != alone.step_count:
            assert step == 0
            alone.load_state_dict(saved)
        alone.l2 = l2
        alone.step(g)
    if opt.step_count != alone.step_count:  # loaded after the last step
        alone.load_state_dict(saved)
    assert opt.step_count == alone.step_count
    assert same_bits(p, own)
    assert all(same_bits(opt.state[name], alone.state[name]) for name in opt.state)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", [100, LARGE])
def test_threads_that_use_optimizers_of_their_own(size):
    start, g = np.linspace(-1, 1, size, dtype=np.float32), np.linspace(3, -2, size, dtype=np.float32)

    def run(rule, seed):
        p = start.copy()
        opt = RULES[rule](p, ema=0.9)
        operate(opt, p, g, opt.state_dict(), seed)
        return [p, *opt.state.values()]

    cases = [*zip(islice(cycle(RULES), 8), range(8), strict=True)]
    expected = [run(*case) for case in cases]
    for ours, theirs in zip(together(*(partial(run, *case) for case in cases)), expected, strict=True):
        assert all(map(same_bits, ours, theirs))


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also in a job in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_waiting_for_another_thread_can_be_interrupted():
    p, g = np.zeros(3), np.ones(3)
    opt = gs.SGD(p, lr=1.0)
    has_it, may_go = threading.Event(), threading.Event()

    def hold():
        with opt._engine.lock, opt._engine.lock:
            has_it.set()
            may_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    has_it.wait()
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        opt.step(g)
    assert p.tolist() == [0.0] * 3
    may_go.set()
    thread.join()
    opt.step(g)
    assert p.tolist() == [-1.0] * 3


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_on_the_way_ahead_gives_back_every_bit():
    p = np.full(4_000_000, 0.5)
    opt = gs.NAG(p, lr=0.25, momentum=0.5, lookahead=True)
    opt.step(np.ones_like(p))
    before = p.copy()

    def interrupt():
        while p[0] == before[0]:
            time.sleep(0)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), opt.lookahead():
        time.sleep(10)
    thread.join()
    assert same_bits(p, before)
    opt.step(np.ones_like(p))


@pytest.mark.usefixtures("eager")
def test_gradients_may_be_dropped_from_the_list_during_a_step():
    """The step must hold references to the gradients."""
    params = [np.zeros(1_000_000) for _ in range(3)]
    opt = gs.SGD(params, lr=1.0)
    grads, stop = [], threading.Event()

    def drop():
        while not stop.wait(0.0005):
            grads[:] = [None] * 3

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        for _ in range(10):
            grads[:] = [np.ones(1_000_000) for _ in range(3)]
            opt.step(grads)
    finally:
        stop.set()
        thread.join()
    steps = steps_of(opt)
    assert any(steps)
    assert [(p.min(), p.max()) for p in params] == [(-t, -t) for t in steps]


@pytest.mark.parametrize("nest", ["list", "dict"])
def test_a_container_may_shrink_and_grow_during_a_step(nest):
    """Other threads run while NumPy checks whether a gradient overlaps a parameter, and without the GIL at any time."""
    out = python(
        f"nest = {nest}"
        """
sys.setswitchinterval(1e-5)

def nested(arrays):
    return arrays if nest is list else {str(i): a for i, a in enumerate(arrays)}

x = np.ones(8000)
params, good = [x[i:4000:400] for i in range(200)], [x[200 + i : 4000 : 400] for i in range(200)]
opt = gs.SGD(nested(params), lr=1.0)
grads, all_grads = nest(nested(good)), nested(good)
end = time.monotonic() + 1.5

def change():
    while time.monotonic() < end:
        grads.clear()
        grads.extend(all_grads) if nest is list else grads.update(all_grads)
        for _ in range(100):
            pass

thread = threading.Thread(target=change)
thread.start()
taken = 0
while time.monotonic() < end:
    try:
        opt.step(grads)
        taken += 1
    except (RuntimeError, ValueError):
        pass
thread.join()
print(taken == opt.step_count, {p[0] for p in params} == {1.0 - taken}, {g[0] for g in good} == {1.0})
"""
    )
    assert out == ["True"] * 3


@pytest.mark.parametrize("size", [1000, 200_000])
@pytest.mark.parametrize(("daemons", "own"), [(0, True), (1, True), (3, True), (3, False)])
def test_the_interpreter_exits(size, daemons, own):
    """With sleeping workers, and with daemon threads in a step of their own or of a shared optimizer."""
    out = python(f"""
gs.set_num_threads(3)
shared, _, g = make({size})
other, _, large = make()
other.step(large)

def step_on():
    opt = make({size})[0] if {own} else shared
    while True:
        opt.step(g)

for _ in range({daemons}):
    threading.Thread(target=step_on, daemon=True).start()
time.sleep(0.05)
print(_core.worker_count())
""")
    assert out == ["2"]


def test_the_interpreter_exits_while_a_step_calls_python():
    """Before Python 3.14 the thread is ended while it is in Python code that C++ has called."""
    for _ in range(4):  # earlier builds crashed in one of three
        assert python("""
class Busy(dict):
    def items(self):
        entered.set()
        while True:
            pass

    __getitem__ = __iter__ = __len__ = keys = values = get = lambda self, *args: self.items()

entered = threading.Event()
opt = gs.SGD({"w": np.zeros(1000)})
threading.Thread(target=opt.step, args=(Busy(w=np.ones(1000)),), daemon=True).start()
print(entered.wait(10))
""") == ["True"]


def test_the_interpreter_exits_while_overlaps_are_looked_for():
    """Interleaved parameters and gradients are checked exactly, by NumPy."""
    for _ in range(2):
        assert (
            python("""
x = np.zeros(8000)
opt = gs.SGD([x[i:4000:400] for i in range(200)])
grads = [x[200 + i : 4000 : 400] for i in range(200)]

def step_on():
    while True:
        opt.step(grads)

for _ in range(3):
    threading.Thread(target=step_on, daemon=True).start()
time.sleep(0.1)
""")
            == []
        )


def test_idle_workers_leave_the_processor_alone():
    assert python(f"""
opt, p, g = make({LARGE})
gs.set_num_threads(4)
opt.step(g)
time.sleep(0.1)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before < 0.05)
""") == ["True"]

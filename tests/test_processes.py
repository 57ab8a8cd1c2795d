"""What process pools, forks, interrupts and sub-interpreters do to an optimizer's process."""

import os

import pytest

from tests.test_threads import FORK, interpreter, python

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SHOW = "print(*gs.show_config(mode='dicts')['threads'].values(), sep='\\n')"


def threads(**env):
    """The number of threads, where it came from, and the default, in a process with these variables."""
    count, *source, default = python(SHOW, **env)
    return int(count), " ".join(source), int(default)


@pytest.fixture
def cores(monkeypatch):
    """The number of threads where no variable is set."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return threads()[0]


@pytest.mark.skipif(CORES < 2, reason="there is one core")
@pytest.mark.parametrize("text", ["1", " 1 ", "+1", "1,4", "1 , 4", "1,1,1"])
def test_openmp_variable_limits_the_default(text):
    assert threads(OMP_NUM_THREADS=text) == (1, "OMP_NUM_THREADS", 1)


@pytest.mark.parametrize("text", ["", " ", "0", "-1", "1x", "one", "1.0", "1 2", ",1", "4096", "9" * 30])
def test_openmp_variable_that_is_no_limit_is_ignored(text, cores):
    assert threads(OMP_NUM_THREADS=text) == (cores, "available cores", cores)


def test_our_variable_and_function_stand_over_openmp_variable():
    assert threads(OMP_NUM_THREADS="1", GRADSTEP_NUM_THREADS="5") == (5, "GRADSTEP_NUM_THREADS", 1)
    assert python("gs.set_num_threads(7)\n" + SHOW, OMP_NUM_THREADS="1") == ["7", "set_num_threads", "1"]


@pytest.mark.parametrize("first", ["", "import gradstep\n"], ids=["first", "after the main interpreter"])
def test_sub_interpreter_is_refused_in_words(first):
    """On Python 3.11 the import waited for ever. In the main interpreter it works afterwards."""
    done = interpreter(f"""{first}
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
interpreters.run_string(interpreters.create(), '''
try:
    import gradstep
except ImportError as error:
    print(error, flush=True)
''')
import gradstep as gs, numpy as np
p = np.ones(2)
gs.SGD(p, lr=0.5).step(p.copy())
print(p)
""")
    assert (done.returncode, done.stderr) == (0, "")
    refusal, result = done.stdout.splitlines()
    assert refusal in (
        "gradstep cannot be imported in a sub-interpreter, which NumPy does not support either; "
        "use threads or processes",
        "module gradstep._core does not support loading in subinterpreters",  # Python's own words, from 3.13 on
    )
    assert result == "[0.5 0.5]"


FORKED = """
warnings.simplefilter("ignore")  # fork in a process with threads: that is the test
gs.set_num_threads({threads})
size = {size}
p, v, g = np.zeros(size), np.zeros(size), np.ones(size)
{make}
step()
stop = False

def step_on():
    while not stop:
        step()

def child():
    whole = p.min() == p.max() and v.min() == v.max() == count()
    before = p.copy(), v.copy(), count()
    step()
    after = np.array_equal(v, before[1] + 1), np.array_equal(p, before[0] - v), count() == before[2] + 1
    return whole and all(after)

thread = threading.Thread(target=step_on)
thread.start()
good = 0
for _ in range(20):
    time.sleep(0.002)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # the watchdog
        os._exit(0 if child() else 1)
    good += os.waitpid(pid, 0)[1] == 0
stop = True
thread.join()
print(good, p.min() == p.max(), v.max() == count())
"""
CORE = """
options = dict.fromkeys(next(rule["options"] for rule in _core.rules() if rule["name"] == "momentum"), 0.0)
options |= dict.fromkeys(("clip_value", "ema"), float("nan"))  # off
stepper = _core.Stepper()
stepper.add_group("momentum", {**options, "lr": 1.0, "momentum": 1.0})
stepper.add_tensors([0], [p], [{"momentum_buffer": v}])
step, count = lambda: stepper.step([g]), lambda: stepper.step_count
"""
CLASS = """
opt = gs.Momentum(p, lr=1.0, momentum=1.0)
v = opt.state["momentum_buffer"]
step, count = lambda: opt.step(g), lambda: opt.step_count
"""
LOCKS_ARE_RENEWED = True  # in a child of fork(), each optimizer's own


@FORK
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1000, 50_000, 1_000_000])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(CORE, id="core"),
        pytest.param(CLASS, id="class", marks=pytest.mark.skipif(not LOCKS_ARE_RENEWED, reason="the child waits")),
    ],
)
def test_child_steps_what_another_thread_was_stepping(make, size, threads):
    """It finds each step of the parent's wholly taken or not begun."""
    out = python(FORKED.replace("{threads}", str(threads)).replace("{size}", str(size)).replace("{make}", make))
    assert out == ["20", "True", "True"]


@FORK
def test_fork_does_not_wait_for_its_own_thread():
    """A schedule forks, and so does a thread that has just stepped, while others step and fork."""
    out = python("""
warnings.simplefilter("ignore")
gs.set_num_threads(2)

def fork():
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        other, _, g = make(100_000)
        other.step(g)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def work(done):
    def rate(step):
        if step % 10 == 0:
            done.append(fork())
        return 0.1

    opt, _, g = make(200_000, "SGD", lr=rate)
    for _ in range(50):
        opt.step(g)
    done.append(fork())

results = [[] for _ in range(3)]
threads = [threading.Thread(target=work, args=(done,)) for done in results]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*results)
""")
    assert "".join(out) == "[0,0,0,0,0,0]" * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are POSIX's")
def test_interrupt_during_a_step_comes_after_it():
    """A step is taken wholly, whatever arrives meanwhile; `step_count` tells that it was."""
    out = python("""
gs.set_num_threads(1)
p, g = np.zeros(2_000_000), np.ones(2_000_000)
opt = gs.SGD(p, lr=1.0)
main, interrupts = threading.main_thread().ident, 0
for _ in range(20):
    timer = threading.Timer(0.01, signal.pthread_kill, (main, signal.SIGINT))
    try:
        timer.start()
        while True:
            opt.step(g)
    except KeyboardInterrupt:
        interrupts += 1
    timer.join()
    assert p.min() == p.max() == -opt.step_count
print(interrupts)
""")
    assert out == ["20"]

"""What process pools, forks, interrupts and sub-interpreters do to an optimizer's process."""

import os

import pytest

from tests.test_threads import interpreter, python

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
    assert done.stdout.splitlines() == [
        "gradstep cannot be imported in a sub-interpreter, which NumPy does not support either; "
        "use threads or processes",
        "[0.5 0.5]",
    ]

import hypothesis
import pytest

import gradstep
from gradstep import _core

# The same examples on every run: a test that fails today failed yesterday.
hypothesis.settings.register_profile("gradstep", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("gradstep")


@pytest.fixture(autouse=True)
def _restore():
    """Tests choose instruction sets, prefetching and numbers of threads as they like."""
    threads = gradstep.get_num_threads()
    yield
    _core.use_isa("")
    _core.use_prefetch("")
    gradstep.set_num_threads(threads)

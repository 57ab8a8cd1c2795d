import hypothesis
import pytest

import gradstep
from gradstep import _core

# The same examples on every run, so that failures are reproducible.
hypothesis.settings.register_profile("gradstep", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("gradstep")


@pytest.fixture(autouse=True)
def _restore():
    """Restores settings that tests change, and lets threads share steps of any size."""
    threads = gradstep.get_num_threads()
    _core.share_all(True)
    yield
    _core.use_isa("")
    _core.use_prefetch("")
    _core.share_all(False)
    gradstep.set_num_threads(threads)

"""The tests of gradstep.torch need torch, and compare with it: they are live tests."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if __package__ in item.nodeid.replace("/", "."):
            item.add_marker(pytest.mark.live)


@pytest.fixture(autouse=True)
def _torch_settings():
    """One thread, which is fastest for small tensors, and the default type that was there before."""
    import torch

    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(default)

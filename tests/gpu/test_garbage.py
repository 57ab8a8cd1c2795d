"""Reference cycles through an optimizer of GPU arrays are collected."""

import gc
import weakref

import numpy as np
import pytest

import gradstep as gs


@pytest.mark.parametrize("which", ["parameter", "gradient"])
@pytest.mark.parametrize("stepped", [False, True])
def test_cycle_is_collected(library, which, stepped):
    p, g = (library.array(np.ones(5, np.float32)) for _ in range(2))
    holder = p if which == "parameter" else g
    opt = gs.Adam(p, grads=g)
    try:
        holder.owner = opt
    except AttributeError:
        pytest.skip("these arrays take no attributes")
    if stepped:
        opt.step()
    found = weakref.ref(opt)
    del opt, holder, p, g
    assert found() is not None, "it is no cycle"
    gc.collect()
    assert found() is None

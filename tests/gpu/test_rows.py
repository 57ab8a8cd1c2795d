"""Gradients of some rows are refused on a GPU, with nothing changed."""

import numpy as np
import pytest

import gradstep as gs


def test_refusal(library):
    p = np.ones((4, 3), np.float32)
    on_gpu = library.array(p)
    opt = gs.Adam({"emb": on_gpu})
    rows = gs.Rows([1], library.array(p[:1]))
    with pytest.raises(TypeError, match=r"the indices of grads\.emb .* row gradients are not supported on a GPU"):
        opt.step({"emb": rows})
    with pytest.raises(TypeError, match="row gradients are not supported on a GPU"):
        gs.global_norm([rows])
    assert opt.step_count == 0
    opt.step({"emb": library.array(p)})
    assert np.all(library.numpy(on_gpu) < 1)

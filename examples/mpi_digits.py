"""Data-parallel training on MPI: `mpiexec -n 2 python examples/mpi_digits.py` ends with the bits of one process.

Each rank has a share of every batch, and the states of its part of the parameters.
Needs scikit-learn, mpi4py and an MPI library: pip install scikit-learn mpi4py mpich
"""

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits

import gradstep as gs

comm = MPI.COMM_WORLD
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = (images[order] / 16).astype(np.float32), labels[order]
images, test_images = images[360:], images[:360]
labels, test_labels = labels[360:], labels[:360]


def first_params():
    rng = np.random.default_rng(1)
    w1 = rng.standard_normal((64, 512), np.float32) / np.float32(np.sqrt(32))
    w2 = rng.standard_normal((512, 10), np.float32) / np.float32(np.sqrt(256))
    return {"w1": w1, "b1": np.zeros(512, np.float32), "w2": w2, "b2": np.zeros(10, np.float32)}


def forward(params, x):
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    return hidden, hidden @ params["w2"] + params["b2"]


def gradients(params, batch):
    x, y = images[batch], labels[batch]
    hidden, scores = forward(params, x)
    error = np.exp(scores - scores.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)  # the gradient of the mean cross-entropy by the scores
    below = (error @ params["w2"].T) * (hidden > 0)
    return {"w1": x.T @ below, "b1": below.sum(axis=0), "w2": hidden.T @ error, "b2": error.sum(axis=0)}


batches = np.random.default_rng(2).integers(len(labels), size=(220, comm.size, 64 // comm.size))
params = first_params()
opt = gs.mpi.sharded(gs.Adam, params, lr=2e-3, clip_norm=1.0, comm=comm)
for shares in batches:
    opt.step(gradients(params, shares[comm.rank]))  # params have changed in place, alike on all ranks

alone = first_params()
one = gs.Adam(alone, lr=2e-3, clip_norm=1.0)
for shares in batches:
    for share in shares:
        one.accumulate(gradients(alone, share))
    one.step()
accuracy = (forward(params, test_images)[1].argmax(axis=1) == test_labels).mean()
print(f"rank {comm.rank} of {comm.size}: {opt.parts['w1']} of w1, test accuracy {accuracy:.3f}")
assert accuracy >= 0.93
assert all(params[name].tobytes() == alone[name].tobytes() for name in params)

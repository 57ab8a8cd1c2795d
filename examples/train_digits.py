"""A whole training loop: a perceptron in plain NumPy learns handwritten digits with Adam.

Needs scikit-learn: pip install scikit-learn
"""

import numpy as np
from sklearn.datasets import load_digits

import gradstep as gs

rng = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
order = rng.permutation(len(labels))
images, labels = (images[order] / 16).astype(np.float32), labels[order]
images, test_images = images[360:], images[:360]
labels, test_labels = labels[360:], labels[:360]

params = {
    "w1": rng.standard_normal((64, 128), np.float32) / np.float32(np.sqrt(32)),
    "b1": np.zeros(128, np.float32),
    "w2": rng.standard_normal((128, 10), np.float32) / np.float32(np.sqrt(64)),
    "b2": np.zeros(10, np.float32),
}
opt = gs.Adam(params, lr=2e-3)


def forward(x):
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    return hidden, hidden @ params["w2"] + params["b2"]


for _ in range(30):
    for batch in np.array_split(rng.permutation(len(labels)), 22):
        x, y = images[batch], labels[batch]
        hidden, scores = forward(x)
        error = np.exp(scores - scores.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(len(y)), y] -= 1
        error /= len(y)  # the gradient of the mean cross-entropy by the scores
        below = (error @ params["w2"].T) * (hidden > 0)
        grads = {"w1": x.T @ below, "b1": below.sum(axis=0), "w2": hidden.T @ error, "b2": error.sum(axis=0)}
        opt.step(grads)  # params have changed in place

accuracy = (forward(test_images)[1].argmax(axis=1) == test_labels).mean()
print(f"test accuracy: {accuracy:.3f}")
assert accuracy >= 0.93

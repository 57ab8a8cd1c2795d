"""Two groups of parameters with their own options, and a learning rate that follows a schedule."""

import numpy as np

import gradstep as gs

STEPS = 300

rng = np.random.default_rng(0)
x = rng.standard_normal((500, 20))
y = x @ rng.standard_normal(20) + 3 + 0.1 * rng.standard_normal(500)

weight, bias = np.zeros(20), np.zeros(1)
opt = gs.Adam(
    [
        {"params": weight, "weight_decay": 1e-3},
        {"params": bias},  # a bias is not decayed
    ],
    lr=gs.schedules.cosine(0.1, STEPS, warmup=10),
)
for _ in range(STEPS):
    error = (x @ weight + bias - y) / len(y)  # the gradient of half the mean squared error
    opt.step([x.T @ error, error.sum(keepdims=True)])

rms = np.sqrt(((x @ weight + bias - y) ** 2).mean())
print(f"bias: {bias[0]:.3f} (expected: 3), error: {rms:.3f} (noise: 0.1)")
assert abs(bias[0] - 3) < 0.02
assert rms < 0.11

"""A classifier of two spirals: mygrad computes the gradients of tensors, and gradstep updates their arrays in place.

Needs mygrad: pip install mygrad
"""

import mygrad as mg
import numpy as np

import gradstep as gs

rng = np.random.default_rng(0)
angle = np.tile(np.linspace(0.5, 3 * np.pi, 100), 2)
labels = np.repeat([0.0, 1.0], 100)
radius = angle / 10 + 0.02 * rng.standard_normal(200)
points = np.stack([radius * np.cos(angle + np.pi * labels), radius * np.sin(angle + np.pi * labels)], axis=1)


def layer(n, m):
    return {"weight": mg.tensor(rng.standard_normal((n, m)) * np.sqrt(2 / n)), "bias": mg.tensor(np.zeros(m))}


def forward(x):
    for each in layers[:-1]:
        x = mg.nnet.relu(x @ each["weight"] + each["bias"])
    return (x @ layers[-1]["weight"] + layers[-1]["bias"])[:, 0]


layers = [layer(2, 32), layer(32, 32), layer(32, 1)]
# A tensor keeps its array until it is assigned to (tensor[...] = x, tensor += x).
opt = gs.Adam([{name: tensor.data for name, tensor in each.items()} for each in layers], lr=0.01)

for _ in range(200):
    score = forward(points)
    loss = mg.mean(mg.logaddexp(0, score) - labels * score)  # cross-entropy
    loss.backward()  # until here the graph makes the arrays read-only, and a step would be refused
    opt.step([{name: tensor.grad for name, tensor in each.items()} for each in layers])

with mg.no_autodiff:  # no graph: arrays stay writable
    accuracy = np.mean((forward(points).data > 0) == labels)
print(f"loss: {loss.item():.4f}, accuracy: {accuracy:.3f}")
assert loss.item() < 0.02
assert accuracy > 0.98

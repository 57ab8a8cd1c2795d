"""Nesterov's method in its original form, with the gradient at the point to which the velocity leads."""

import numpy as np

import gradstep as gs

point = np.array([-7.0, 2.0])
opt = gs.NAG(point, lr=0.1, momentum=0.8, lookahead=True)

for _ in range(100):
    with opt.lookahead():  # point is the point ahead here; afterwards its exact bits are restored
        grad = point * (0.1, 2.0)  # of the ravine x**2 / 20 + y**2
    opt.step(grad)

x, y = point
height = x**2 / 20 + y**2
print(f"the ravine's lowest point: ({x:.4f}, {y:.4f}), height {height:.1e}")
assert height < 1e-4

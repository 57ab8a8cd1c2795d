"""Length, amplitude and noise of a Gaussian process by maximum marginal likelihood, with the gradient by hand.

Needs scikit-learn, to compare with its optimum: pip install scikit-learn
"""

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

import gradstep as gs

rng = np.random.default_rng(0)
x = np.sort(rng.uniform(0, 10, 60))
y = np.sin(x) + 0.5 * np.cos(3 * x) + 0.2 * rng.standard_normal(60)
distance = (x[:, None] - x) ** 2
log = {"amplitude": np.zeros(()), "length": np.zeros(()), "noise": np.zeros(())}  # logarithms: all are above 0


def likelihood():
    """The log marginal likelihood and its gradient (Rasmussen and Williams, 2006, equations 5.8 and 5.9)."""
    smooth = np.exp(2 * log["amplitude"] - distance / (2 * np.exp(2 * log["length"])))
    noise = np.exp(2 * log["noise"]) * np.eye(len(x))
    inverse = np.linalg.inv(smooth + noise)
    alpha = inverse @ y
    value = -(y @ alpha - np.linalg.slogdet(inverse)[1] + len(x) * np.log(2 * np.pi)) / 2
    outer = np.outer(alpha, alpha) - inverse
    slopes = {"amplitude": smooth, "length": smooth * distance / (2 * np.exp(2 * log["length"])), "noise": noise}
    return value, {name: np.sum(outer * slope) for name, slope in slopes.items()}


opt = gs.Adam(log, lr=0.1, maximize=True)  # the step goes up
for _ in range(200):
    value, grads = likelihood()
    opt.step(grads)

found = np.exp([log["amplitude"], log["length"], log["noise"]])
kernel = ConstantKernel() * RBF() + WhiteKernel()
peer = GaussianProcessRegressor(kernel).fit(x[:, None], y)
expected = np.exp(peer.kernel_.theta) ** (0.5, 1, 0.5)  # its amplitude and noise are variances
print("amplitude {:.4f}, length {:.4f}, noise {:.4f} (0.2 was drawn)".format(*found))
print(f"log likelihood: {value:.6f}, scikit-learn's: {peer.log_marginal_likelihood_value_:.6f}")
assert np.allclose(found, expected, rtol=1e-3)

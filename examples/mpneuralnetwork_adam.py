"""gradstep as the optimizer of a network of mpneuralnetwork, a library in NumPy, beside the library's own Adam.

Needs mpneuralnetwork and scikit-learn: pip install mpneuralnetwork scikit-learn
"""

from time import perf_counter

import numpy as np
from mpneuralnetwork.activations import Tanh
from mpneuralnetwork.layers import Dense
from mpneuralnetwork.losses import CategoricalCrossEntropy
from mpneuralnetwork.model import Model
from mpneuralnetwork.optimizers import Adam, Optimizer
from sklearn.datasets import load_digits

import gradstep as gs


class GradstepAdam(Optimizer):
    """Takes the parameters from the layers at the first step."""

    opt = None

    def step(self, layers):
        pairs = [layer.params for layer in layers if hasattr(layer, "params")]  # {name: (parameter, gradient)} of each
        if self.opt is None:
            params = [{name: param for name, (param, _) in each.items()} for each in pairs]
            no_decay = {"*.biases": {"weight_decay": 0.0}}
            self.opt = gs.Adam(params, self.learning_rate, weight_decay=self.weight_decay, options=no_decay)
        self.opt.step([{name: grad for name, (_, grad) in each.items()} for each in pairs])


def train(optimizer):
    """The parameters after two epochs."""
    np.random.seed(0)  # noqa: NPY002 (the library draws from it)
    layers = [Dense(256, input_size=64), Tanh(), Dense(256), Tanh(), Dense(10)]
    model = Model(layers, CategoricalCrossEntropy(), optimizer)
    step, times = optimizer.step, []

    def timed(layers):
        start = perf_counter()
        step(layers)
        times.append(perf_counter() - start)

    optimizer.step = timed
    model.train(images / 16, np.eye(10)[labels], epochs=2, batch_size=32)
    print(f"{type(optimizer).__name__}: a step takes {1e3 * np.median(times):.2f} ms")
    return [param for layer in layers[::2] for param, _ in layer.params.values()]


images, labels = load_digits(return_X_y=True)
options = {"learning_rate": 1e-3, "regularization": "L2", "weight_decay": 1e-3}
runs = train(Adam(**options)), train(GradstepAdam(**options))
difference = max(np.abs(theirs - ours).max() for theirs, ours in zip(*runs, strict=True))
print(f"largest difference of a parameter: {difference:.1e}")
assert difference < 1e-5

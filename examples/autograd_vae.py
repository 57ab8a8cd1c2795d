"""A variational autoencoder of digits: the gradients of HIPS autograd are nested as the parameters.

Needs autograd and scikit-learn: pip install autograd scikit-learn
"""

from itertools import pairwise

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from sklearn.datasets import load_digits

import gradstep as gs

LATENT, STEPS = 8, 600

rng = np.random.default_rng(0)
images = load_digits().data / 16  # 1797 images of 64 pixels between 0 and 1


def layers(*sizes):
    """A list of (weight, bias) tuples."""
    return [(rng.standard_normal((n, m)) / np.sqrt(n), np.zeros(m)) for n, m in pairwise(sizes)]


def network(layers, x):
    *hidden, (weight, bias) = layers
    for w, b in hidden:
        x = anp.tanh(x @ w + b)
    return x @ weight + bias


def loss(params, x, noise):
    """The negative evidence lower bound (Kingma and Welling, 2014) per image, in nats."""
    code = network(params["encoder"], x)
    mean, log_std = code[:, :LATENT], code[:, LATENT:]
    logits = network(params["decoder"], mean + anp.exp(log_std) * noise)
    reconstruction = anp.sum(anp.logaddexp(0, logits) - x * logits)  # cross-entropy of the pixels
    divergence = anp.sum((mean**2 + anp.exp(2 * log_std) - 1) / 2 - log_std)
    return (reconstruction + divergence) / len(x)


params = {"encoder": layers(64, 64, 2 * LATENT), "decoder": layers(LATENT, 64, 64)}
opt = gs.Adam(params, lr=3e-3)
losses = []
for _ in range(STEPS):
    batch = images[rng.integers(len(images), size=100)]
    value, grads = value_and_grad(loss)(params, batch, rng.standard_normal((100, LATENT)))
    opt.step(grads)  # lists of tuples, as the parameters
    losses.append(value)

before, after = losses[0], np.mean(losses[-50:])
print(f"negative evidence lower bound: {before:.1f} nats at first, {after:.1f} at last")
assert after < 26

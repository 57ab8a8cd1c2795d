"""JAX differentiates a simulated pendulum, whose frequency and friction (a network) are parameters in NumPy.

Needs JAX: pip install jax
"""

import jax
import jax.numpy as jnp
import numpy as np

import gradstep as gs

rng = np.random.default_rng(0)


def simulate(frequency, friction):
    """200 angles, 0.1 seconds apart, of a pendulum that is let go at 2 radians."""

    def advance(state, _):
        angle, speed = state
        speed = speed - 0.1 * (frequency**2 * jnp.sin(angle) + friction(speed))
        angle = angle + 0.1 * speed
        return (angle, speed), angle

    return jax.lax.scan(advance, (2.0, 0.0), length=200)[1]


def network(params):
    return lambda speed: jnp.tanh(speed * params["w1"] + params["b1"]) @ params["w2"]


@jax.jit
@jax.value_and_grad
def loss(params):
    return jnp.mean((simulate(params["frequency"], network(params["friction"])) - observed) ** 2)


observed = simulate(1.2, lambda speed: 0.1 * speed * abs(speed)) + 0.02 * rng.standard_normal(200)
params = {
    "frequency": np.ones((), np.float32),
    "friction": {
        "w1": rng.standard_normal(16, np.float32),
        "b1": np.zeros(16, np.float32),
        "w2": np.zeros(16, np.float32),
    },
}
opt = gs.Adam(params, lr=0.01, clip_norm=1.0)
for _ in range(1000):
    value, grads = loss(params)
    # Parameters cannot be JAX's arrays, which are read-only; gradients are only read. np.asarray copies nothing on the
    # CPU, and waits until JAX has finished reading params.
    opt.step(jax.tree.map(np.asarray, grads))

learned = network(params["friction"])(1.0)
print(f"mean square error: {value:.1e} (noise: 4e-4)")
print(f"frequency: {params['frequency']:.3f} (1.2), friction at speed 1: {learned:.3f} (0.1)")
assert value < 1e-3

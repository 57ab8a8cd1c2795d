"""The eight optimizers in plain NumPy: the oracle of gradstep's tests, to be read beside ``docs/numerics.md``.

Nothing is validated here, and nothing is fast. The package imports nothing of gradstep but itself.
"""

from .norm import global_norm
from .rules import NAG, SGD, AdaDelta, AdaGrad, Adam, Momentum, Nadam, RMSProp

__all__ = ["NAG", "SGD", "AdaDelta", "AdaGrad", "Adam", "Momentum", "Nadam", "RMSProp", "global_norm"]

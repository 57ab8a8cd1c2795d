"""Optimizer steps for NumPy arrays, at the speed of memory, with the same bits everywhere.

>>> import numpy as np, gradstep as gs
>>> params = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
>>> opt = gs.Adam(params, lr=1e-3)
>>> opt.step({"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)})  # params change in place
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional, optimizers, q8, reference
from ._config import get_num_threads, set_num_threads, show_config
from ._core import TensorNorms, __version__
from ._loss_scale import LossScale
from ._norm import global_norm
from ._optimizer import Optimizer, StepResult
from ._rows import Rows
from .optimizers import *  # noqa: F403  the list of optimizers stands there, once

if TYPE_CHECKING:
    from . import mpi, plot, schedules
    from . import scipy as scipy  # public, and not in __all__: `import *` would hide SciPy
    from ._files import load, save
    from ._minimize import OptimizeResult, minimize
else:
    _LAZY = {
        "OptimizeResult": "_minimize",
        "load": "_files",
        "minimize": "_minimize",
        "mpi": "mpi",
        "plot": "plot",
        "save": "_files",
        "schedules": "schedules",
        "scipy": "scipy",
    }
    """Names whose modules are imported when they are used first, and these modules: all the rest is imported faster."""

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
        return module if _LAZY[name] == name else getattr(module, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY})


__all__ = [
    "LossScale",
    "OptimizeResult",
    "Optimizer",
    "Rows",
    "StepResult",
    "TensorNorms",
    "__version__",
    "functional",
    "get_num_threads",
    "global_norm",
    "load",
    "minimize",
    "mpi",
    "plot",
    "q8",
    "reference",
    "save",
    "schedules",
    "set_num_threads",
    "show_config",
]
__all__ += optimizers.__all__

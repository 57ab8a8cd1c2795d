"""CuPy on a GPU, with the very expressions that are written for NumPy: its arrays take them over."""

from __future__ import annotations

import sys
from functools import partial

import cupy

from .numpy_out import make
from .peer import Peer

# No cache holds a piece here: whole arrays.
PEERS = [Peer("CuPy out=", "cupy", partial(make, module=cupy, most=sys.maxsize))]

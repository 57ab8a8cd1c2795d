"""CuPy on a GPU, with the expressions written for NumPy, which CuPy's arrays also implement."""

from __future__ import annotations

import sys
from functools import partial

import cupy

from .numpy_out import make
from .peer import Peer

# Whole arrays: pieces that fit into a cache do not help here.
PEERS = [Peer("CuPy out=", "cupy", partial(make, module=cupy, most=sys.maxsize))]

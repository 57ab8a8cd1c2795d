"""torch's optimizers on a GPU."""

from __future__ import annotations

from functools import partial

from .peer import Peer
from .torch_forms import FORMS, make

PEERS = [Peer(f"torch {form}", "torch", partial(make, form, "cuda")) for form in FORMS]

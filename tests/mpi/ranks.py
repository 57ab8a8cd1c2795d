"""Communicators of 1 to 4 ranks, for tests that `mpiexec -n 4 python -m pytest tests/mpi` runs on all ranks alike."""

import os

import numpy as np
import pytest

UNDER = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""What mpiexec of MPICH and Open MPI sets."""
if not any(os.environ.get(name) == "4" for name in UNDER):
    pytest.skip("mpiexec -n 4 python -m pytest tests/mpi", allow_module_level=True)

MPI = pytest.importorskip("mpi4py.MPI")

WORLD = MPI.COMM_WORLD
RANKS = (1, 2, 3, 4)
COMMS = {ranks: WORLD.Split(0 if WORLD.rank < ranks else MPI.UNDEFINED) for ranks in RANKS}
TIMEOUT = 60.0


def of(ranks):
    """A communicator of the first ranks. The test ends here on the others."""
    if WORLD.rank >= ranks:
        pytest.skip(f"needs {ranks} ranks")
    return COMMS[ranks]


def error_of(task):
    """The error that a task raises."""
    try:
        task()
    except Exception as error:
        return error
    return None


def everyones_error(comm, task):
    """The type and the message of the error that a task raises on each rank."""
    error = error_of(task)
    return comm.allgather((type(error).__name__, str(error)))


def bits_of(nest):
    """Plain data with the bytes of arrays, in which NaN equals NaN."""
    if isinstance(nest, dict):
        return {name: bits_of(value) for name, value in nest.items()}
    if isinstance(nest, (list, tuple)):
        return [bits_of(value) for value in nest]
    if isinstance(nest, np.ndarray):
        return nest.dtype.name, nest.shape, nest.tobytes()
    return repr(nest)

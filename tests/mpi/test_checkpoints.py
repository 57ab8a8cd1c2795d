"""A run goes on with the same bits on any number of ranks; a save that ends half-way leaves the old file whole."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import gradstep as gs
from gradstep import _files
from tests.mpi.ranks import COMMS, RANKS, TIMEOUT, WORLD, bits_of, everyones_error, of
from tests.mpi.test_bits import nest_of, numbers

pytest.importorskip("safetensors")
OPTIONS = {
    "state_dtype": "q8",
    "master": True,
    "stochastic_rounding": 3,
    "clip_norm": 1.0,
    "ema": 0.5,
    "accumulation": "sum",
}


def make(comm, **options):
    params = numbers(0, np.float16)
    if comm is None:
        return params, gs.Adam(params, **{**OPTIONS, **options})
    return params, gs.mpi.sharded(gs.Adam, params, comm=comm, timeout=TIMEOUT, **{**OPTIONS, **options})


def step(opt, number, rank=0):
    """A step with gradients whose sum is the same for any number of ranks."""
    grads = numbers([number], np.float32)
    opt.step(grads if rank == 0 else nest_of(lambda shape: np.zeros(shape, np.float32)))


@pytest.fixture
def directory():
    """One for all ranks. Those of pytest are one for each, and ranks would remove those of others."""
    with TemporaryDirectory() if WORLD.rank == 0 else nullcontext() as name:
        yield Path(WORLD.bcast(name))
        WORLD.barrier()


@pytest.mark.parametrize(("before", "after"), [*product(RANKS, RANKS)])
def test_a_run_goes_on_with_another_number_of_ranks(before, after, directory):
    path = directory / "run.safetensors"
    if WORLD.rank < before:
        params, opt = make(COMMS[before])
        for number in range(3):
            step(opt, number, WORLD.rank)
        gs.mpi.save(path, opt, params)
    WORLD.barrier()
    if WORLD.rank < after:
        params, opt = make(COMMS[after])
        for number in range(5):  # other states than those of the file
            step(opt, number, WORLD.rank)
        gs.mpi.load(path, opt)
        step(opt, 3, WORLD.rank)
        saved = opt.state_dict()
    if WORLD.rank == 0:
        whole, one = make(None)
        for number in range(4):
            step(one, number)
        assert bits_of(params) == bits_of(whole)
        assert bits_of(saved) == bits_of(one.state_dict())


@pytest.mark.parametrize("ranks", RANKS)
def test_files_are_those_of_one_process(ranks, directory):
    comm = of(ranks)
    path = directory / "run.safetensors"
    params, opt = make(comm)
    step(opt, 0, WORLD.rank)
    gs.mpi.save(path, opt, params)
    if comm.rank == 0:
        whole, one = make(None)
        gs.load(path, one)
        assert bits_of(whole) == bits_of(params)
        gs.save(path, one, whole)
        of_one = bits_of(_files.read(path))
    gs.mpi.load(path, opt)
    gs.mpi.save(path, opt, params)
    if comm.rank == 0:
        assert bits_of(_files.read(path)) == of_one


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_does_not_fit_changes_nothing(ranks):
    comm = of(ranks)
    _params, opt = make(comm)
    step(opt, 0, WORLD.rank)
    saved = opt.state_dict()

    def refused(change):
        other = None
        if comm.rank == 0:
            other = {**saved, "state": {name: dict(own) for name, own in saved["state"].items()}}
            change(other)
        return everyones_error(comm, lambda: opt.load_state_dict(other))

    def negative(other):  # in the last rank's part
        scales = other["state"]["c[1]"]["exp_avg_sq_scale"]
        other["state"]["c[1]"]["exp_avg_sq_scale"] = np.append(scales[:-1], np.float32(-1))

    for change, words in (
        (lambda other: other["state"].pop("layer.w"), "missing: layer.w"),
        (lambda other: other["state"]["layer.w"].update(exp_avg=np.zeros(3, np.int8)), "mismatched: layer.w"),
        (lambda other: other["state"].update(x={"exp_avg": np.ones(1)}), "unexpected: x"),
        (lambda other: other.update(rule="sgd"), "is for the rule 'sgd'"),
        (lambda other: other.update(state=[]), "format 2"),
        (negative, "exp_avg_sq_scale"),
    ):
        errors = refused(change)
        assert all(words in text for _, text in errors), errors
        assert all(kind in ("ValueError", "TypeError", "AgreedError") for kind, _ in errors)
        again = opt.state_dict()
        assert bits_of(saved) == bits_of(again)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_file_that_cannot_be_written(ranks, directory):
    comm = of(ranks)
    path = directory / "nowhere" / "x"
    _, opt = make(comm)
    first, *others = everyones_error(comm, lambda: gs.mpi.save(path, opt))
    assert first[0] == "FileNotFoundError"
    assert all(kind == "AgreedError" and "rank 0 raised FileNotFoundError" in words for kind, words in others)
    first, *others = everyones_error(comm, lambda: gs.mpi.load(path, opt))
    assert first[0] == "FileNotFoundError"
    step(opt, 0, WORLD.rank)


SAVING = """
import os, sys
import numpy as np, gradstep as gs
from mpi4py import MPI
pids = MPI.COMM_WORLD.allgather(os.getpid())
params = [np.ones(3_000_000, np.float32)]
opt = gs.mpi.sharded(gs.Adam, params, timeout=20)
opt.step([np.ones(3_000_000, np.float32)])
gs.mpi.save(sys.argv[1], opt, params)
if MPI.COMM_WORLD.rank == 0:
    print(*pids, flush=True)
while True:
    opt.step([np.ones(3_000_000, np.float32)])
    gs.mpi.save(sys.argv[1], opt, params)
"""


@pytest.mark.skipif(WORLD.rank > 0, reason="rank 0 starts other programs")
def test_a_rank_that_is_killed_while_it_saves():
    """20 times. The file is then that of a whole save, which one process can load."""
    hidden = ("PMI_", "PMIX_", "HYDI_", "OMPI_", "PALS_", "MPI_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    steps = set()
    with TemporaryDirectory() as directory:
        path = Path(directory) / "run.safetensors"
        for attempt in range(20):
            program = subprocess.Popen(
                ["mpiexec", "-n", "2", sys.executable, "-c", SAVING, path],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                encoding="utf-8",
            )
            pids = program.stdout.readline().split()
            time.sleep(0.01 + 0.02 * attempt)
            os.kill(int(pids[attempt % 2]), signal.SIGKILL)
            program.wait(60)
            program.stdout.close()
            params = [np.zeros(3_000_000, np.float32)]
            one = gs.Adam(params)
            gs.load(path, one)
            assert one.step_count >= 1
            steps.add(one.step_count)
    assert len(steps) > 1

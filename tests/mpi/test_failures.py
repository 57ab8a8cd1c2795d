"""Ranks that differ get the same error before anything is exchanged; an error of one rank ends the call on all."""

import time

import numpy as np
import pytest

import gradstep as gs
from tests.mpi.ranks import TIMEOUT, WORLD, bits_of, everyones_error, of

SIZE = 40_000


def make(comm, **options):
    params = {"w": np.ones((SIZE // 10, 10), np.float32), "b": np.zeros(3, np.float32)}
    return params, gs.mpi.sharded(gs.Adam, params, comm=comm, timeout=TIMEOUT, **options)


def grads(value=1.0):
    return {"w": np.full((SIZE // 10, 10), value, np.float32), "b": np.full(3, value, np.float32)}


def array(shape=(SIZE,), dtype=np.float32, value=1.0):
    return {"w": np.full(shape, value, dtype)}


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(
    ("of_last", "options", "words"),
    [
        (array((SIZE - 1,)), {}, "shape w is (40000,) on "),
        (array(dtype=np.float64), {}, "dtype w is 'float32' on "),
        (array(value=2.0), {}, "checksum w is "),
        ({"v": array()["w"]}, {}, "shape v is absent on "),
        (array(), {"lr": 0.5}, "option lr is 0.001 on "),
        (array(), {"clip_norm": 0.5}, "option clip_norm is None on "),
        (array(), {"order": "fast"}, "order is 'ranks' on "),
        (array(), {"bucket": 7}, "bucket is 4194304 on "),
    ],
    ids=["shape", "dtype", "values", "name", "lr", "clip_norm", "order", "bucket"],
)
def test_ranks_that_differ_at_construction(ranks, of_last, options, words):
    comm = of(ranks)
    is_last = comm.rank == ranks - 1
    params, given = (of_last, options) if is_last else (array(), {})
    errors = everyones_error(comm, lambda: gs.mpi.sharded(gs.Adam, params, comm=comm, timeout=TIMEOUT, **given))
    assert len(set(errors)) == 1
    kind, text = errors[0]
    assert kind == "ValueError"
    assert text.startswith("the ranks differ: ")
    assert words in text
    assert f"on rank {ranks - 1}" in text


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_ranks_that_differ_in_a_step(ranks, clip_norm):
    comm = of(ranks)
    params, opt = make(comm, clip_norm=clip_norm)
    opt.step(grads())
    before = bits_of(params)
    first = comm.rank == 0

    def lr():
        opt.lr = 0.5 if first else 0.25
        try:
            opt.step(grads())
        finally:
            opt.lr = 0.25

    for task, words in (
        (
            lambda: opt.step({**grads(), "b": None} if first else grads()),
            "the gradient of b is None on rank 0, 'float32'",
        ),
        (
            lambda: opt.step({**grads(), "b": np.ones(3)} if first else grads()),
            "the gradient of b is 'float64' on rank 0",
        ),
        (lambda: opt.step(grads(), grad_scale=2.0 if first else 3.0), "grad_scale is 2.0 on rank 0, 3.0 on "),
        (lr, "option lr is 0.5 on rank 0, 0.25 on "),
        (lambda: opt.step(grads()) if first else opt.state_dict(), "call is step() on rank 0, state_dict() on "),
    ):
        errors = everyones_error(comm, task)
        assert len(set(errors)) == 1
        assert errors[0][0] == "ValueError"
        assert words in errors[0][1], errors[0]
        assert bits_of(params) == before
    assert opt.step_count == 1
    opt.step(grads())
    assert opt.step_count == 2


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_wrong_gradient_on_one_rank(ranks, clip_norm):
    comm = of(ranks)
    params, opt = make(comm, clip_norm=clip_norm)
    before = bits_of(params)
    for wrong, kind, words in (
        ({"w": np.ones(3), "b": None}, "ValueError", "has shape (3,)"),
        ({"w": grads()["w"].astype(np.int32), "b": None}, "TypeError", "int32"),
        ({"w": grads()["w"]}, "ValueError", "b"),
        ({"w": gs.Rows(np.array([1]), np.ones((1, 10), np.float32)), "b": None}, "TypeError", "must be a NumPy array"),
    ):
        errors = everyones_error(comm, lambda wrong=wrong: opt.step(wrong if comm.rank == 1 else grads()))
        assert errors[1][0] == kind
        assert words in errors[1][1]
        others = errors[:1] + errors[2:]
        assert all(of == ("AgreedError", f"step(): rank 1 raised {kind}: {errors[1][1]}") for of in others), errors
        assert bits_of(params) == before
    params["w"].flags.writeable = comm.rank != 1
    errors = everyones_error(comm, lambda: opt.step(grads()))
    assert all("params.w is read-only" in text for _, text in errors), errors
    params["w"].flags.writeable = True
    assert bits_of(params) == before
    opt.step(grads())


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("clip_norm", "late"), [(None, False), (1.0, False), (None, True), (1.0, True)])
def test_an_error_within_the_step_of_one_rank(ranks, clip_norm, late, monkeypatch):
    """Before all ranks have met for the update nothing is written. Later, no further step is taken before a load."""
    comm = of(ranks)
    params, opt = make(comm, clip_norm=clip_norm)
    opt.step(grads())
    saved, bits = opt.state_dict(), bits_of(params)
    copies = {name: param.copy() for name, param in params.items()}
    inner = opt._inner
    if comm.rank == 1:
        method = type(inner).step

        def step(self, *args, **options):
            if late:
                method(self, *args, **options)
            raise MemoryError("none left")

        monkeypatch.setattr(type(inner), "step", step)
    errors = everyones_error(comm, lambda: opt.step(grads()))
    assert errors[1] == ("MemoryError", "none left")
    assert all(of == ("AgreedError", "step(): rank 1 raised MemoryError: none left") for of in errors[:1] + errors[2:])
    monkeypatch.undo()
    if not late:
        assert bits_of(params) == bits
    else:
        errors = everyones_error(comm, lambda: opt.step(grads()))
        assert all("after some ranks had taken it" in text for _, text in errors), errors
        for name, param in params.items():
            param[...] = copies[name]
        opt.load_state_dict(saved)
    opt.step(grads())
    assert opt.step_count == 2


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("where", ["gradients", "parameters"])
def test_an_error_within_a_bucket_of_one_rank(ranks, where, monkeypatch):
    """The other buckets are exchanged: no rank waits for the one with the error, and all hear of it."""
    comm = of(ranks)
    params = {"w": np.ones((1000, 400), np.float32)}
    opt = gs.mpi.sharded(gs.Adam, params, comm=comm, bucket=1, timeout=TIMEOUT)
    given = {"w": np.ones((1000, 400), np.float32)}
    opt.step(given)
    saved, bits = opt.state_dict(), bits_of(params)
    copies = params["w"].copy()
    calls = []
    if comm.rank == 1:
        owner, name = {"gradients": (gs.mpi, "run_step"), "parameters": (gs.mpi.Gather, "send")}[where]
        method = getattr(owner, name)

        def fail(*args):
            calls.append(args)
            if len(calls) == 3:
                raise MemoryError("none left")
            return method(*args)

        monkeypatch.setattr(owner, name, fail)
    errors = everyones_error(comm, lambda: opt.step(given))
    assert errors[1] == ("MemoryError", "none left")
    assert all(of == ("AgreedError", "step(): rank 1 raised MemoryError: none left") for of in errors[:1] + errors[2:])
    monkeypatch.undo()
    if where == "gradients":
        assert bits_of(params) == bits
    else:
        assert len(set(comm.allgather(repr(bits_of(params))))) == 1
        errors = everyones_error(comm, lambda: opt.step(given))
        assert all("after some ranks had taken it" in text for _, text in errors), errors
        params["w"][...] = copies
        opt.load_state_dict(saved)
    opt.step(given)
    whole = {"w": np.ones((1000, 400), np.float32)}
    one = gs.Adam(whole)
    for _ in range(2):
        for _ in range(ranks):
            one.accumulate(given)
        one.step()
    assert opt.step_count == 2
    assert bits_of(params) == bits_of(whole)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_is_gone_within_a_bucket(ranks, monkeypatch):
    comm = of(ranks).Dup()
    params = [np.ones(400_000, np.float32)]
    opt = gs.mpi.sharded(gs.SGD, params, comm=comm, bucket=1, timeout=TIMEOUT)
    opt._ranks.timeout = 0.5
    if comm.rank == 1:
        method = gs.mpi.Gather.send

        def end(self, count):
            if count == 3:
                raise KeyboardInterrupt
            method(self, count)

        monkeypatch.setattr(gs.mpi.Gather, "send", end)
        with pytest.raises(KeyboardInterrupt):
            opt.step([np.ones(400_000, np.float32)])
    else:
        with pytest.raises(TimeoutError, match=r"has waited 0.5 s for the others in step\(\)"):
            opt.step([np.ones(400_000, np.float32)])
        with pytest.raises(RuntimeError, match="the communicator cannot be used"):
            opt.step([np.ones(400_000, np.float32)])
    of(ranks).barrier()


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_schedule_that_raises_on_one_rank(ranks):
    comm = of(ranks)

    def schedule(step):
        return 1 / 0 if (step, comm.rank) == (1, 1) else 0.1

    params, opt = make(comm, lr=schedule)
    opt.step(grads())
    before = bits_of(params)
    errors = everyones_error(comm, lambda: opt.step(grads()))
    assert [kind for kind, _ in errors] == [
        "ZeroDivisionError" if rank == 1 else "AgreedError" for rank in range(ranks)
    ]
    opt.lr = 0.1
    assert bits_of(params) == before
    opt.step(grads())


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_rank_that_is_gone_within_a_step(ranks, clip_norm, monkeypatch):
    comm = of(ranks).Dup()
    params, opt = make(comm, clip_norm=clip_norm)
    opt._ranks.timeout = 0.5

    def end(*_, **__):
        raise KeyboardInterrupt

    if comm.rank == 1:
        monkeypatch.setattr(type(opt._inner), "step", end)
        with pytest.raises(KeyboardInterrupt):
            opt.step(grads())
    else:
        with pytest.raises(TimeoutError, match=r"has waited 0.5 s for the others in step\(\)"):
            opt.step(grads())
        with pytest.raises(RuntimeError, match="the communicator cannot be used"):
            opt.step(grads())
    of(ranks).barrier()
    assert params["b"].max() == 0


@pytest.mark.parametrize("ranks", [2, 4])
def test_wrong_options_on_one_rank_or_on_all(ranks):
    comm = of(ranks)
    errors = everyones_error(comm, lambda: make(comm, lr=-1.0 if comm.rank == 1 else 1.0))
    assert [kind for kind, _ in errors] == ["ValueError" if rank == 1 else "AgreedError" for rank in range(ranks)]
    errors = everyones_error(comm, lambda: make(comm, lr=-1.0))
    assert errors == [errors[0]] * ranks
    assert errors[0][0] == "ValueError"


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_does_not_come(ranks):
    comm = of(ranks).Dup()
    params = [np.ones(SIZE, np.float32)]
    opt = gs.mpi.sharded(gs.SGD, params, comm=comm, timeout=TIMEOUT)
    opt._ranks.timeout = 0.3
    if comm.rank > 0:
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match=rf"rank {comm.rank} of {ranks} has waited 0.3 s for the others in step"):
            opt.step([np.ones(SIZE, np.float32)])
        assert time.monotonic() - begin < 20
        with pytest.raises(RuntimeError, match="the communicator cannot be used"):
            opt.step([np.ones(SIZE, np.float32)])
    of(ranks).barrier()
    assert params[0].min() == 1


def test_what_is_refused():
    comm = of(1)
    params = [np.ones(3, np.float32)]
    with pytest.raises(TypeError, match="takes a class of optimizers"):
        gs.mpi.sharded("adam", params, comm=comm)
    with pytest.raises(ValueError, match="cannot have grads"):
        gs.mpi.sharded(gs.SGD, params, comm=comm, grads=params)
    with pytest.raises(ValueError, match="cannot have copy_out"):
        gs.mpi.sharded(gs.SGD, params, comm=comm, copy_out=params)
    with pytest.raises(ValueError, match="same array"):
        gs.mpi.sharded(gs.SGD, [params[0], params[0]], comm=comm)
    with pytest.raises(TypeError, match="no option 'rate'"):
        gs.mpi.sharded(gs.SGD, params, comm=comm, rate=1)
    opt = gs.mpi.sharded(gs.SGD, params, comm=comm)
    with pytest.raises(ValueError, match="stats are for whole tensors"):
        opt.step(params, stats=True)
    for name in gs.mpi.REFUSED:
        with pytest.raises(AttributeError, match=f"has no {name}"):
            getattr(opt, name)
    with pytest.raises(AttributeError, match="has no option 'rate'"):
        opt.rate = 1
    with pytest.raises(AttributeError):
        opt.rate  # noqa: B018
    with pytest.raises(RuntimeError, match="for optimizers with ema"), opt.averaged():
        pass


def test_options_are_attributes():
    comm = of(1)
    _, opt = make(comm, clip_norm=2.0)
    opt.lr, opt.clip_norm = 0.5, 1.0
    assert (opt.lr, opt.clip_norm, opt.schedule, opt.names) == (0.5, 1.0, None, ["w", "b"])
    assert opt.groups[0]["lr"] == 0.5
    assert opt.parts == {"w": slice(0, SIZE), "b": slice(0, 3)}
    assert opt.comm is comm
    assert repr(opt) == "Adam(2 arrays, lr=0.5, clip_norm=1.0) on rank 0 of 1"
    assert WORLD.size == 4

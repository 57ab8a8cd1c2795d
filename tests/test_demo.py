"""The demonstration trains, times, compares and plots as documented."""

import os
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from gradstep import demo, optimizers, reference

pytest.importorskip("matplotlib")
pytest.importorskip("ml_dtypes")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

NAMES = [cls.__name__ for cls in optimizers.ALL]
STORAGES = [
    demo.Storage(dtype, state, master)
    for dtype, master in [("float32", False), *product(("float16", "bfloat16"), (False, True))]
    for state in demo.STATES
]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits(0)


@pytest.fixture(scope="module")
def runs(digits):
    return [demo.train(cls, digits, hidden=(32,), epochs=2) for cls in optimizers.ALL]


def test_data_are_split_without_overlap(digits):
    assert len(digits.labels) + len(digits.test_labels) == 1797
    assert len(digits.test_labels) == 359
    assert digits.images.dtype == np.float32
    assert 0 <= digits.images.min() < digits.images.max() <= 1


def test_batches_hold_every_sample_once():
    drawn = list(demo.batches(np.random.default_rng(0), 150))
    assert [len(batch) for batch in drawn] == [64, 64, 22]
    assert sorted(np.concatenate(drawn)) == list(range(150))


@pytest.mark.parametrize("hidden", [(), (5,), (6, 5)])
def test_gradients_are_those_of_the_loss(hidden):
    rng = np.random.default_rng(0)
    images, labels = rng.random((7, 8)), rng.integers(0, 10, 7)
    single = demo.initial_params(rng, (8, *hidden, 10))
    params = {name: array.astype(np.float64) for name, array in single.items()}
    grads = demo.gradients(params, images, labels)
    assert grads.keys() == params.keys()
    for name, array in params.items():
        for index in np.ndindex(array.shape):
            kept, sides = array[index], []
            for shift in (1e-6, -1e-6):
                array[index] = kept + shift
                sides.append(demo.mean_loss(params, images, labels))
            array[index] = kept
            assert grads[name][index] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_gradients_are_float32_where_the_digits_are(digits):
    params = demo.initial_params(np.random.default_rng(0), (64, 5, 10))
    grads = demo.gradients(params, digits.images[:7], digits.labels[:7])
    assert {array.dtype for array in [*params.values(), *grads.values()]} == {np.dtype(np.float32)}


def test_runs_start_from_the_same_weights_and_learn(runs):
    assert [run.name for run in runs] == NAMES
    assert len({run.losses[0] for run in runs}) == 1
    for run in runs:
        assert len(run.losses) == 3
        assert run.losses[-1] < run.losses[0]


def test_runs_have_the_bits_of_numpy(runs):
    assert all(run.same_bits for run in runs)


def test_stored_as_float32_nothing_is_touched(digits):
    params = demo.initial_params(np.random.default_rng(0), (64, 5, 10))
    batch = digits.images[:7], digits.labels[:7]
    for kept in (demo.PLAIN.rounded(params), demo.widened(params)):
        assert all(kept[name] is array for name, array in params.items())
    assert demo.same_bits(demo.PLAIN.gradients(params, *batch), demo.gradients(params, *batch))
    assert not any(demo.PLAIN.options(cls, 0) for cls in optimizers.ALL)


@pytest.mark.parametrize("storage", [storage for storage in STORAGES if storage.state == "float32"], ids=str)
def test_gradients_are_those_of_what_is_stored(storage, digits):
    params = storage.rounded(demo.initial_params(np.random.default_rng(0), (64, 5, 10)))
    grads = storage.gradients(params, digits.images[:7], digits.labels[:7])
    exact = demo.gradients(params, digits.images[:7], digits.labels[:7])
    assert {str(array.dtype) for array in params.values()} == {storage.dtype}
    assert {str(array.dtype) for array in grads.values()} == {"bfloat16" if storage.dtype == "bfloat16" else "float32"}
    for name, grad in grads.items():
        # Half a unit of the stored type: of bfloat16, the coarser one, or of float16's subnormals, 2**-24.
        assert grad.astype(np.float32) == pytest.approx(exact[name], rel=2**-8, abs=2**-25 / demo.LOSS_SCALE)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_run_in_fewer_bits_learns_and_has_the_bits_of_numpy(storage, digits):
    for cls in (optimizers.SGD, optimizers.Adam):
        run = demo.train(cls, digits, hidden=(72,), epochs=1, storage=storage)  # q8 for the 4608 weights of layer 1
        assert run.same_bits
        assert run.losses[-1] < run.losses[0]


BYTES = [
    ("SGD", demo.PLAIN, 8),
    ("Adam", demo.PLAIN, 16),
    ("SGD", demo.Storage("bfloat16", "q8"), 4),
    ("Adam", demo.Storage("bfloat16"), 12),
    ("Adam", demo.Storage("bfloat16", master=True), 16),
    ("Adam", demo.Storage("bfloat16", "bfloat16"), 8),
    ("Adam", demo.Storage("float16", "bfloat16"), 10),  # the step reads float32 gradients
    ("Momentum", demo.Storage("float32", "bfloat16"), 10),
    # The first 64 * 72 weights take one byte each and a scale per 256, the other 802 float32.
    ("Adam", demo.Storage("bfloat16", "q8"), 4 + 2 * (4608 + 18 * 4 + 802 * 4) / 5410),
]


@pytest.mark.parametrize(("name", "storage", "expected"), BYTES)
def test_bytes_are_those_of_the_arrays(name, storage, expected, digits):
    run = demo.train(getattr(optimizers, name), digits, hidden=(72,), epochs=1, storage=storage)
    assert run.bytes == pytest.approx(expected)
    remark = f"Bytes per parameter that a step reads and writes: {name} {expected:.1f}."
    assert (remark in demo.remarks([run])) is (storage != demo.PLAIN)


def test_any_seed_is_one_of_stochastic_rounding(digits):
    storage = demo.Storage("float16")
    assert demo.train(optimizers.SGD, digits, hidden=(8,), epochs=1, seed=2**70, storage=storage).same_bits


def test_every_step_is_timed(runs):
    for run in runs:
        assert {part: len(times) for part, times in run.times.items()} == {"gradients": 46, "gradstep": 46, "NumPy": 46}
        assert run.ratio > 0
        assert 0 < run.share("gradstep") < 1


def test_a_run_is_reproducible(digits, runs):
    again = demo.train(optimizers.ALL[0], digits, hidden=(32,), epochs=2)
    assert (again.losses, again.accuracy) == (runs[0].losses, runs[0].accuracy)


def test_a_differing_bit_is_noticed(digits, monkeypatch):
    class Off(reference.Adam):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            self.params = params

        def step(self, grads):
            super().step(grads)
            self.params["bias1"][0] = np.nextafter(self.params["bias1"][0], np.float32(1))

    monkeypatch.setattr(demo, "reference", SimpleNamespace(Adam=Off))
    run = demo.train(optimizers.Adam, digits, hidden=(8,), epochs=1)
    assert not run.same_bits
    assert "Same bits as NumPy after every step: no (Adam)." in demo.remarks([run])


def test_nan_is_no_success():
    params = {"w": np.array([np.nan])}
    assert not demo.same_bits(params, params)


def test_an_optimizer_without_settings_runs_with_its_defaults(digits, monkeypatch):
    monkeypatch.setattr(demo, "DIGITS", {})
    monkeypatch.setattr(demo, "RAVINE", {})
    run = demo.train(optimizers.Adam, digits, hidden=(8,), epochs=1)
    path = demo.descend(optimizers.Adam)
    assert run.options == {"lr": 1e-3}
    assert demo.picture([run], {"Adam": path}).startswith(PNG)


@pytest.mark.parametrize("cls", [cls for cls in optimizers.ALL if cls.__name__ in demo.RAVINE])
def test_paths_lead_down_the_ravine(cls):
    path = demo.descend(cls)
    assert path.shape == (41, 2)
    assert tuple(path[0]) == demo.START
    assert demo.ravine(*path[-1]) < 0.1 * demo.ravine(*path[0])


def test_the_picture_is_a_png_of_the_right_size(runs):
    png = demo.picture(runs, {cls.__name__: demo.descend(cls) for cls in optimizers.ALL})
    assert png.startswith(PNG)
    assert tuple(np.frombuffer(png[16:24], ">u4")) == (1560, 728)


def test_the_picture_leaves_matplotlib_as_it_was(runs):
    import matplotlib

    before = dict(matplotlib.rcParams)
    demo.picture(runs, {cls.__name__: demo.descend(cls) for cls in optimizers.ALL})
    assert dict(matplotlib.rcParams) == before


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    demo.write_whole(path, b"old")

    def fail(part, _):
        part.touch()
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        demo.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def command(path, *options, encoding="utf-8"):
    """Runs the command line and returns its exit status and output."""
    return subprocess.run(
        [sys.executable, "-m", "gradstep", "demo", "--output", str(path), *options],
        capture_output=True,
        encoding=encoding,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"},
        timeout=300,
    )


def test_the_whole_command(tmp_path):
    path = tmp_path / "picture.png"
    done = command(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 50_000
    assert list(tmp_path.iterdir()) == [path]
    assert "Same bits as NumPy after every step: yes" in done.stdout
    assert not any(line.startswith(("storage:", "Bytes")) for line in done.stdout.splitlines())
    rows = {words[0]: words for words in map(str.split, done.stdout.splitlines()) if words and words[-1].endswith("x")}
    assert list(rows) == NAMES
    for _, *settings, loss, accuracy, _, _, _ in rows.values():
        assert settings[0].startswith("lr=")
        assert float(loss) < 0.1
        assert float(accuracy) >= 0.93


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--dtype", "bfloat16", "--state", "q8"],
            "bfloat16 parameters and gradients; stochastic rounding; q8 states in 1 of 4 arrays, float32 in small ones",
        ),
        (
            ["--dtype", "float16", "--master"],
            "float16 parameters and gradients with a loss scale of 1024; a float32 master; float32 states",
        ),
        (["--state", "bfloat16"], "float32 parameters and gradients; bfloat16 states"),
    ],
)
def test_the_command_says_how_it_stores(options, words, tmp_path):
    done = command(tmp_path / "picture.png", "--epochs", "1", "--hidden", "72", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"storage: {words}\n" in done.stdout
    assert "\nBytes per parameter that a step reads and writes: SGD " in done.stdout
    assert "Same bits as NumPy after every step: yes" in done.stdout


def test_the_command_speaks_to_an_ascii_terminal(tmp_path):
    done = command(tmp_path / "picture.png", "--epochs", "1", "--hidden", "8", encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in NAMES)

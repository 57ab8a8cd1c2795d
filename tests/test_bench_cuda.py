"""The GPU parts of the benchmark, run on the processor: measurements, checks and messages."""

import json
import time
from contextlib import nullcontext

import numpy as np
import pytest

import gradstep as gs
from gradstep import reference
from gradstep.bench import Arm

pytest.importorskip("matplotlib")
pytest.importorskip("ml_dtypes")
pytest.importorskip("rich")
pytest.importorskip("threadpoolctl")

from benchmarks import cuda_guard, gpu, machine, peers
from benchmarks.__main__ import main
from benchmarks.parts import ON_GPU

SMALL = ["--quick", "--repeats", "1", "--peers", "numpy", "--rules", "SGD", "Adam"]
TURNS = 3  # rounds on a GPU for each round on the processor


class Processor(gpu.Gpu):
    """A stand-in for a GPU: the processor with NumPy's arrays."""

    def __init__(self):
        self.name, self.memory, self.cache, self.multiprocessors = "NVIDIA Stand-in", 1 << 30, 1 << 20, 2
        self.torch, self.cupy = np, None
        self.uploads = {"torch": np.copy}
        self.busy = []

    def current(self):
        return nullcontext()

    def seconds(self, work, busy=0.0):
        self.busy.append(busy)
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def copying(self, bytes):
        return lambda: np.ones(bytes, np.uint8).copy()


@pytest.fixture
def processor(monkeypatch):
    """Replaces the GPU by the stand-in and its peers by NumPy."""
    monkeypatch.setattr(gpu, "Gpu", Processor)
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(peers, "ON_GPU", {"numpy": "numpy_out"})
    gpu.gpu.cache_clear()
    yield gpu.gpu()
    gpu.gpu.cache_clear()


@pytest.fixture
def results(processor, tmp_path):
    """The results of a small run of the GPU parts."""
    assert main([*SMALL, "--parts", *ON_GPU, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["machine"]["gpu"]["name"] == processor.name
    return results


def test_every_part_leaves_rows_and_a_section(results, tmp_path):
    assert list(dict.fromkeys(row["part"] for row in results["rows"])) == list(ON_GPU)
    assert {len(row["samples"]) for row in results["rows"]} == {TURNS}
    text = (tmp_path / "README.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        part.TITLE for part in ON_GPU.values()
    ]


def test_all_arms_of_a_rule_take_turns(results):
    arms = {part: list(dict.fromkeys(row["arm"] for row in results["rows"] if row["part"] == part)) for part in ON_GPU}
    assert arms == {
        "cuda_large": ["gradstep", "ceiling", "NumPy out="],
        "cuda_many": ["gradstep bound, torch", "gradstep, torch", "NumPy out="],
        "cuda_storage": ["gradstep", "ceiling"],
    }


def test_large_samples_are_single_steps(results):
    assert {row["calls"] for row in results["rows"] if row["part"] == "cuda_large"} == {1}
    assert {row["bytes"] for row in results["rows"] if row["part"] == "cuda_large"} == {12, 28}


def test_the_gpu_is_kept_busy_while_a_step_is_sent_off(processor):
    def sleep():
        time.sleep(0.002)

    arm = gpu.on_gpu(Arm("a", sleep, gpu.problem(gs.SGD, (1, 10))))
    arm.take(1)
    arm.take(2)
    arm.take(100)
    first, second, third = processor.busy
    assert first == 0
    assert 2 * gpu.MARGIN * 0.002 <= second <= third == gpu.LONGEST


@pytest.mark.usefixtures("processor")
def test_a_wrong_bit_fails_the_run(tmp_path, monkeypatch, capsys):
    update = reference.Adam.update
    monkeypatch.setattr(reference.Adam, "update", lambda *args: np.nextafter(update(*args), np.float32(9)))
    monkeypatch.setattr(gpu, "optimizers", reference)
    assert main([*SMALL, "--parts", "cuda_large", "--output", str(tmp_path)]) == 1
    assert "adam: gradstep computed something else" in capsys.readouterr().err


def test_a_machine_without_a_gpu_leaves_its_parts_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "missing", lambda: "there is no GPU")
    words = f"{', '.join(ON_GPU)}: there is no GPU"
    assert main([*SMALL, "--parts", "threads", *ON_GPU, "--output", str(tmp_path)]) == 0
    assert f"Left out: {words}\n" in capsys.readouterr().out
    assert words in (tmp_path / "README.md").read_text()
    assert main([*SMALL, "--parts", *ON_GPU, "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"python -m benchmarks: error: {words}\n"


def test_the_folder_has_the_name_of_the_gpu():
    assert machine.slug("NVIDIA H200") == "nvidia-h200"


# ---- python -m benchmarks.cuda_guard --------------------------------------------------------------------------------


def row(part, arm, median, rule="Adam", case=""):
    return {"part": part, "rule": rule, "case": case, "arm": arm, "median": median}


@pytest.mark.parametrize(("ours", "status"), [(1.04, 0), (1.06, 1)])
def test_the_guard_looks_at_kept_results(ours, status, tmp_path, capsys):
    rows = [
        row("cuda_large", arm, median) for arm, median in {"gradstep": ours, "ceiling": 1.0, "torch fused": 1.1}.items()
    ]
    kept = tmp_path / "results.json"
    kept.write_text(json.dumps({"rows": rows}))
    assert cuda_guard.main([str(kept)]) == status
    assert ("FAILS" in capsys.readouterr().out) is (status == 1)


def test_the_guard_reads_what_the_parts_leave(results, tmp_path, capsys):
    assert results["rows"]
    assert cuda_guard.main([str(tmp_path / "results.json")]) in (0, 1)
    out = capsys.readouterr().out
    assert all(words in out for words in ("of the copy", "q8 states", "many, us GPU", "many, us CPU"))

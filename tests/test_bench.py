"""Benchmarks time their arms in turn, check results, and write the documented files; speed is not tested."""

import json
import math
import platform
import shutil
import sys
from contextlib import nullcontext

import numpy as np
import pytest

import gradstep as gs
from gradstep import bench, optimizers, reference
from gradstep.__main__ import main as gradstep_main

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("threadpoolctl")
if not shutil.which("c++"):
    pytest.skip("the ceiling needs a C++ compiler", allow_module_level=True)

from benchmarks import __main__, ceiling, guard, machine, peers
from benchmarks.__main__ import main
from benchmarks.harness import problem, row
from benchmarks.parts import PARTS, arithmetic, storage
from benchmarks.parts import torch as torch_part
from benchmarks.peers import numpy_out
from benchmarks.peers.peer import Peer

NAMES = [cls.__name__ for cls in optimizers.ALL]
MEASURED = __main__.possible(list(PARTS))[0]
SMALL = ["--quick", "--sizes", "1000", "--repeats", "1", "--pause", "0", "--peers", "numpy"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def adam_is_off(monkeypatch):
    """Changes the reference, and so the expected results, by one bit."""
    update = reference.Adam.update
    monkeypatch.setattr(reference.Adam, "update", lambda *args: np.nextafter(update(*args), np.float32(9)))


# ---- python -m gradstep bench ---------------------------------------------------------------------------------------


def test_the_minute_has_a_row_for_every_rule_and_shape(capsys):
    assert gradstep_main(["bench", "--size", "1000", "3x10", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.endswith("x ")]
    assert [words[0] for words in rows] == 2 * NAMES
    assert [" ".join(words[1:4]) for words in rows[len(NAMES) :]] == ["3 x 10"] * len(NAMES)
    assert f"threads: {gs.get_num_threads()}" in out
    assert "The bits after all steps are NumPy's, with every optimizer." in out


def test_a_large_tensor_is_beside_an_in_place_pass(capsys, monkeypatch):
    monkeypatch.setattr(bench, "PASS_FROM", 1000)
    assert gradstep_main(["bench", "--size", "999", "1000", "--repeats", "1"]) == 0
    percents = [line.count("%") for line in capsys.readouterr().out.splitlines() if line.endswith("x ")]
    assert percents == [0] * len(NAMES) + [1] * len(NAMES)


def test_the_in_place_pass_reaches_every_element(monkeypatch):
    monkeypatch.setattr(bench, "PASS_PIECE", 7)
    arrays = [np.arange(100.0) for _ in range(4)]
    bench.add_in_place(arrays)
    assert all(np.array_equal(array, 2 * arrays[0]) for array in arrays[1:])


@pytest.mark.usefixtures("adam_is_off")
def test_a_wrong_bit_fails_the_minute(capsys):
    assert gradstep_main(["bench", "--size", "10", "--repeats", "1"]) == 1
    words = "python -m gradstep: error: adam: gradstep computed something else than the reference\n"
    assert capsys.readouterr().err == words


def test_the_bytes_are_those_of_all_streams():
    states = {cls.__name__: problem(cls, (1, 10)).bytes_moved for cls in (gs.SGD, gs.Momentum, gs.Adam)}
    assert states == {"SGD": 12, "Momentum": 20, "Adam": 28}
    assert problem(gs.Adam, (1, 10), amsgrad=True).bytes_moved == 36


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.5e-7, "0.25 µs"), (1.234e-6, "1.23 µs"), (0.0123, "12.3 ms"), (0.456, "456 ms"), (7, "7.00 s")],
)
def test_durations(seconds, words):
    assert bench.duration(seconds) == words


def stand_in(name, seen):
    """An arm that computes nothing."""
    return bench.Arm(name, lambda: seen.append(name), problem(gs.SGD, (1, 10)), calls=3)


def test_arms_take_turns(monkeypatch):
    """The order of the arms changes in each round."""
    seen = []
    monkeypatch.setattr(bench.Arm, "time_block", lambda arm: seen.append(arm.name))
    bench.take_turns([stand_in(name, []) for name in "abc"], 9)
    rounds = ["".join(seen[i : i + 3]) for i in range(0, 27, 3)]
    assert {*map("".join, map(sorted, rounds))} == {"abc"}
    assert len(set(rounds)) > 3


def test_a_short_call_is_timed_many_times_at_once():
    arm = stand_in("a", [])
    arm.calls = 0
    arm.warm_up()
    assert arm.calls > 30


def test_a_block_is_timed_within_its_surroundings():
    entered = []
    arm = stand_in("a", [])
    arm.around = lambda: nullcontext(entered.append(len(arm.samples)))
    arm.warm_up()
    arm.time_block()
    assert entered == [0, 0]


@pytest.mark.parametrize(("off", "right"), [(0.0, True), (1e-5, True), (0.01, False), (np.nan, False)])
def test_a_peer_may_round_in_another_way(off, right):
    first = np.ones(4)
    assert bench.close(first + 1 + off, first + 1, first) is right


# ---- python -m benchmarks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a small run of all parts."""
    folder = tmp_path_factory.mktemp("report")
    assert main([*SMALL, "--parts", *PARTS, "--rules", "SGD", "Adam", "--output", str(folder)]) == 0
    return folder


def test_the_results_hold_every_part_and_how_they_came_about(report):
    results = json.loads((report / "results.json").read_text())
    assert list(dict.fromkeys(row["part"] for row in results["rows"])) == MEASURED
    assert results["settings"]["peers"] == ["NumPy out="]
    assert results["machine"]["versions"]["numpy"] == np.__version__
    assert results["machine"]["gradstep"]["build"]["compiler"]
    assert results["machine"].keys() >= {"hardware", "system", "python", "commit", "dirty"}
    assert platform.node() not in json.dumps(results["machine"]["hardware"])
    assert {(found["rule"], found["bytes"]) for found in results["rows"] if found["part"] == "sizes"} == {
        ("SGD", 12),
        ("Adam", 28),
    }
    for timed in (found for found in results["rows"] if "samples" in found):
        assert 0 < timed["least"] <= timed["low"] <= timed["median"] <= timed["high"]
        assert len(timed["samples"]) == 1
        assert timed["calls"] >= 1


def test_the_report_has_a_section_for_every_part_and_its_plots(report):
    text = (report / "README.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        PARTS[part].TITLE for part in MEASURED
    ]
    for name in ("peers.png", "ceiling.png", "sizes.png"):
        assert f"({name})" in text
        assert (report / name).read_bytes().startswith(PNG)
    assert str(report) not in text


def test_a_report_is_written_again_without_measuring(report, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.measure", lambda *_: pytest.fail("it was measured"))
    assert main(["render", str(report / "results.json"), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == (report / "README.md").read_text()


@pytest.mark.usefixtures("adam_is_off")
def test_a_wrong_bit_fails_the_run(tmp_path, capsys):
    assert main([*SMALL, "--parts", "sizes", "--rules", "Adam", "--output", str(tmp_path)]) == 1
    assert "adam: gradstep computed something else" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []
    assert "| failed | sizes, Adam, 1000, warm: adam: gradstep computed" in (tmp_path / "README.md").read_text()


@pytest.mark.usefixtures("adam_is_off")
def test_a_trial_that_fails_does_not_keep_others(tmp_path):
    assert main([*SMALL, "--parts", "sizes", "--rules", "Adam", "SGD", "--output", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["rule"] for row in results["rows"]} == {"SGD"}
    assert [words.partition(": ")[0] for words in results["failed"]] == [
        "sizes, Adam, 1000, warm",
        "sizes, Adam, 1000, cold",
    ]


def test_a_wrong_peer_fails_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(numpy_out.RULES, "adam", lambda p, g, *_: np.subtract(p, g, out=p))
    assert main([*SMALL, "--parts", "sizes", "--rules", "Adam", "--output", str(tmp_path)]) == 1
    assert "adam: NumPy out= computed something else" in capsys.readouterr().err


def test_a_size_beyond_the_memory_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "kilobytes", lambda _: 1000)
    options = [*SMALL, "--parts", "sizes", "--rules", "SGD", "--output", str(tmp_path), "--sizes", "10", "1000000"]
    assert main(options) == 0
    assert "1000000 elements: too little memory" in (tmp_path / "README.md").read_text()


def test_a_size_that_the_last_cache_would_hold_is_not_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "last_cache", lambda: 1 << 40)
    assert __main__.sizes()[-1] == machine.large() == 549_756_000_000
    monkeypatch.setattr(__main__, "QUICK_SIZES", (1 << 39,))
    monkeypatch.setattr(machine, "kilobytes", lambda _: 1000)
    assert main([*SMALL, "--parts", "threads", "--rules", "SGD", "--output", str(tmp_path)]) == 0
    assert f"threads, {1 << 39} elements: too little memory, so " in (tmp_path / "README.md").read_text()


def test_a_peer_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(peers.MODULES, "numpy", "nowhere")
    assert main([*SMALL, "--output", str(tmp_path)]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_rule_that_a_peer_lacks_has_no_arm(monkeypatch):
    monkeypatch.setattr(gs.Adam, "rule", "ninth")
    assert [peer.make(peer.name, problem(gs.Adam, (1, 10))) for peer in peers.load(["numpy"])] == [None]


@pytest.mark.live
@pytest.mark.parametrize("library", list(peers.MODULES))
def test_a_peer_computes_what_it_is_timed_for(library):
    pytest.importorskip(library)
    for cls in optimizers.ALL:
        arms = [peer.make(peer.name, problem(cls, (2, 50))) for peer in peers.load([library])]
        for arm in filter(None, arms):
            arm.take(3)
            bench.check([arm])
            assert row("", bench.Arm(arm.name, arm.step, arm.problem, calls=1, samples=[1.0]))["tensors"] == 2


@pytest.mark.live
def test_a_peer_with_narrow_states_steps_beside_our_storage_of_as_many_bits():
    pytest.importorskip("bitsandbytes")
    narrow = peers.load(["bitsandbytes"], peers.NARROW)
    cases = {
        case: [arm for arm in (peer.make(peer.name, one) for peer in narrow) if arm]
        for case, one in storage.problems(gs.Adam, 1000).items()
    }
    assert {case: [arm.name for arm in arms] for case, arms in cases.items() if arms} == {
        "float32": ["bitsandbytes 32-bit"],
        "q8 states": ["bitsandbytes 8-bit"],
    }
    for (arm,) in filter(None, cases.values()):
        arm.take(3)
    bench.check(cases["float32"])
    assert [peer.make(peer.name, problem(gs.Nadam, (1, 10))) for peer in narrow] == [None, None]


def test_narrow_states_deviate_by_less_than_no_step_at_all(report):
    rows = json.loads((report / "results.json").read_text())["rows"]
    found = {row["arm"]: row["deviation"] for row in rows if "deviation" in row and row["spread"] == "of one scale"}
    assert 0 < found["bfloat16 states"] < found["q8 states"] < 0.2
    still = Peer("still", "nowhere", lambda name, one: bench.Arm(name, lambda: None, one, one.params))
    with pytest.raises(bench.WrongAnswer, match="still moved the parameters elsewhere"):
        list(storage.Deviations(256).rows("of one scale", [still]))


def test_the_model_of_other_machines_takes_the_longer_of_memory_and_arithmetic(report):
    rows = json.loads((report / "results.json").read_text())["rows"]
    cases = {row["case"] for row in rows if row["part"] == "arithmetic" and row["rule"] == "Adam"}
    assert cases >= {"float32", "float64", *storage.STATES, *storage.PARAMS, *storage.BOTH, "threads: 1"}

    def timed(case, arm, elements, seconds):
        return {"rule": "Adam", "case": case, "arm": arm, "elements": elements, "bytes": 28, "median": seconds}

    rows = [
        timed("float32", arithmetic.FEW, 1000, 2e-6),
        timed("float32", arithmetic.MANY, 3000, 6e-6),  # 2 ns per element on one core
        timed("float32", "threads: 1", 1000, 3.5e-6),
        timed("float32", "threads: 2", 1000, 1.5e-6),
        timed("threads: 1", "ceiling, plain", 1000, 2.8e-6),  # 10 GB/s
        timed("threads: 1", "ceiling, 1 line ahead", 1000, 5.6e-6),
        timed("threads: 2", "ceiling, plain", 1000, 0.7e-6),  # 40 GB/s
    ]
    cells = arithmetic.table([row | {"threads": [1, 2]} for row in rows]).splitlines()[-1].strip("| ").split(" | ")
    one, two = ["10.0", "2.800 (memory)", "3.500 (125%)"], ["40.0", "1.000 (arithmetic)", "1.500 (150%)"]
    more = ["0.187 (memory)", "0.093 (memory)"]
    assert cells == ["Adam", "float32", "28", "2.000", *one, *two, *more]


@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [
        ("vectors", 100, 100_000),
        ("transformer", 150, 3_464_960),
        ("perceptron", 6, 1_863_690),
        ("ResNet-50", 161, 25_557_032),
    ],
)
def test_the_models_have_the_sizes_of_their_namesakes(model, tensors, elements):
    shapes, width = torch_part.MODELS[model]
    found = list(shapes(width))
    assert (len(found), sum(map(math.prod, found))) == (tensors, elements)


def test_without_torch_its_part_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "find_spec", lambda _: None)
    assert __main__.possible(["sizes", "torch"]) == (["sizes"], ["torch: torch is not installed"])
    assert main([*SMALL, "--parts", "torch", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "python -m benchmarks: error: torch: torch is not installed\n"


# ---- the ceiling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", ceiling.FORMS.values())
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, 17, 1000, 100_003])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_passes_reach_every_element_of_every_stream(count, size, threads, lines):
    streams = [np.arange(size, dtype=np.float32) for _ in range(count)]
    ceiling.passes(streams, lines, threads, count=2)
    expected = np.arange(size, dtype=np.float32)
    assert np.array_equal(streams[0], expected)
    assert all(np.array_equal(stream, 3 * expected) for stream in streams[1:])


def test_the_ceiling_has_an_arm_for_each_form_and_kind_of_page():
    one = problem(gs.Adam, (1, 1 << 19))
    arms = ceiling.ceiling_arms(one)
    assert len({arm.name for arm in arms}) == len(arms) == len(ceiling.FORMS) * (2 if machine.huge_pages() else 1)
    for arm in arms:
        assert [stream.ctypes.data % 4096 for stream in arm.streams] == [0, 832, 1664, 2496]
        arm.take(2)
        assert arm.steps == 2
        assert np.all(arm.streams[-1][[0, -1]] >= 3)


def test_a_ceiling_that_cannot_be_compiled_is_one_line(monkeypatch, tmp_path, capsys):
    ceiling.library.cache_clear()
    monkeypatch.setenv("CXX", "no-compiler -O1")
    assert main([*SMALL, "--parts", "sizes", "--rules", "SGD", "--output", str(tmp_path)]) == 1
    words = "error: the ceiling needs a C++ compiler, and no-compiler is not installed\n"
    assert capsys.readouterr().err.endswith(words)
    ceiling.library.cache_clear()


# ---- python -m benchmarks.guard -------------------------------------------------------------------------------------


BOUNDS = {"OF_CEILING": 4, "OF_PREFETCH": 4, "OF_TORCH_FUSED": 4, "OF_ONE_THREAD": 2, "OF_TORCH_MANY": 1}
"""What is asked for, and how often."""


@pytest.fixture
def small_guard(monkeypatch):
    """A guard with small sizes that uses NumPy in place of torch."""
    small = {"MIDDLE": ((1, 1000),), "MANY": (2, 10), "REPEATS": 1, "PAUSE": 0}
    for name, value in {**small, **dict.fromkeys(BOUNDS, 0.0), "OF_TORCH": {}}.items():
        monkeypatch.setattr(guard, name, value)
    monkeypatch.setattr(machine, "large", lambda: 1000)
    monkeypatch.setattr(ceiling, "SMALLEST", 500)
    monkeypatch.setattr(optimizers, "ALL", (gs.SGD, gs.Adam))
    monkeypatch.setattr(guard, "load", lambda _: numpy_out.PEERS)
    gs.set_num_threads(2)


@pytest.mark.usefixtures("small_guard")
def test_the_guard_is_content_with_the_first_attempt_that_holds(capsys):
    assert guard.main() == 0
    out, err = capsys.readouterr()
    assert (out.count("attempt 1 of 5"), out.count("attempt 2 of 5"), err) == (sum(BOUNDS.values()), 0, "")


@pytest.mark.usefixtures("small_guard")
@pytest.mark.parametrize(("bound", "bars"), BOUNDS.items())
def test_the_guard_fails_after_five_attempts(bound, bars, monkeypatch, capsys):
    monkeypatch.setattr(guard, bound, 1e9)
    assert guard.main() == 1
    out, err = capsys.readouterr()
    assert out.count("attempt 5 of 5") == bars
    assert err == "python -m benchmarks.guard: error: the step is too slow\n"


@pytest.mark.usefixtures("small_guard")
def test_the_guard_says_where_the_memory_is_too_small(monkeypatch, capsys):
    monkeypatch.setattr(machine, "fitting", lambda _: 500)
    assert guard.main() == 0
    out = capsys.readouterr().out
    assert "The memory is too small for 1000 elements: 500 may lie partly in the last cache." in out
    assert "SGD, 500 elements, threads: 1: " in out


def test_the_guard_needs_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.torch_forms", raising=False)
    assert guard.main() == 1
    assert capsys.readouterr().err == "python -m benchmarks.guard: error: torch is not installed\n"

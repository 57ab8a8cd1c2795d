"""The command line's output, refusals and failures; the examples run."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import gradstep
from gradstep import bench, demo
from gradstep.__main__ import main
from gradstep._functions import FUNCTIONS

ROOT = Path(__file__).parents[1]
TORCH_EXAMPLE = ROOT / "examples/train_torch.py"  # tests/torch/test_page.py runs it
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {TORCH_EXAMPLE})


def run(*args):
    """Runs Python and returns its exit status and output."""
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, encoding="utf-8", timeout=120)


def refused(args, capsys):
    """The one-line message with which arguments are refused."""
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.fixture
def demo_stops(monkeypatch):
    """Replaces the demonstration by a function of the test."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("ml_dtypes")
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    return lambda stand_in: monkeypatch.setattr(demo, "run", stand_in)


@pytest.mark.parametrize("args", [["--help"], []])
def test_help(args):
    done = run("-m", "gradstep", *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m gradstep")
    assert all(command in done.stdout for command in ("bench", "demo", "info", "race"))


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"gradstep {gradstep.__version__}\n"


def test_info(capsys):
    assert main(["info"]) == 0
    out, err = capsys.readouterr()
    config = gradstep.show_config(mode="dicts")
    assert config["version"] in out
    assert config["isa"]["chosen"] in out
    assert err == ""


def test_info_needs_numpy_alone():
    extras = {"matplotlib", "rich", "sklearn", "threadpoolctl"}
    code = f"import sys; from gradstep.__main__ import main; main(['info']); print(*{extras} & {{*sys.modules}})"
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["dmeo"], "dmeo"),
        (["demo", "--epoch", "x"], "x"),
        (["demo", "--epochs", "0"], "--epochs: '0' is not a whole number of 1 or more"),
        (["demo", "--epochs", "1.5"], "1.5"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--hidden", "8", "0"], "--hidden"),
        (["demo", "--output", "a.pdf"], "'a.pdf' does not end in .png"),
        (["demo", "--dtype", "float8"], "--dtype: invalid choice: 'float8'"),
        (["demo", "--state", "q4"], "--state: invalid choice: 'q4'"),
        (["bench", "--size", "0"], "--size: '0' is not a whole number of 1 or more"),
        (["bench", "--size", "100x"], "--size"),
        (["bench", "--size", "0x10"], "--size: '0' is not a whole number of 1 or more"),
        (["bench", "--threads", "all"], "--threads"),
        (["bench", "--repeats", "0"], "--repeats"),
        (["race", "--function", "rosenbrok"], "--function: no function 'rosenbrok'; there are rosenbrock, rastrigin,"),
        (["race", "--optimizers", "adam,nga"], "--optimizers: no optimizer 'nga'; there are sgd, momentum, nag,"),
        (["race", "--optimizers", ""], "--optimizers: no optimizer ''"),
        (["race", "--steps", "0"], "--steps: '0' is not a whole number of 1 or more"),
        (["race", "--steps", "9999999"], "--steps: '9999999' is more than 1000000"),
        (["race", "--lr", "0"], "--lr: '0' is not a finite number above 0"),
        (["race", "--lr", "nan"], "--lr: 'nan' is not a finite number above 0"),
        (["race", "--lr", "x"], "--lr: 'x' is not a finite number above 0"),
        (["race", "--seed", "-1"], "--seed"),
        (["race", "--output", "a.gif"], "'a.gif' does not end in .png"),
        (["race", "--animate", "a.png"], "'a.png' does not end in .gif"),
        (["info", "--all"], "--all"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(args, words, capsys):
    assert words in refused(args, capsys)


@pytest.mark.parametrize("missing", ["matplotlib", "rich", "sklearn"])
def test_a_missing_extra_is_named_with_its_remedy(missing, capsys, monkeypatch, demo_stops):
    demo_stops(lambda *_, **__: pytest.fail("the demo was started"))
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == (
        f'python -m gradstep: error: demo needs {missing}: pip install "gradstep[demo]"\n'
    )


@pytest.mark.parametrize("option", ["--dtype", "--state"])
def test_missing_bfloat16_is_named_with_its_remedy(option, capsys, monkeypatch, demo_stops):
    demo_stops(lambda *_, **__: pytest.fail("the demo was started"))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main(["demo", option, "bfloat16"]) == 1
    assert capsys.readouterr().err == (
        'python -m gradstep: error: demo needs ml_dtypes: pip install "gradstep[bfloat16]"\n'
    )


def test_without_bfloat16_the_rest_of_the_demo_runs(tmp_path, monkeypatch, demo_stops):
    demo_stops(lambda *_, **__: [])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main(["demo", "--output", str(tmp_path / "a.png"), "--dtype", "float16", "--state", "q8"]) == 0


def test_a_master_of_float32_is_refused(capsys, demo_stops):
    demo_stops(lambda *_, **__: pytest.fail("the demo was started"))
    assert main(["demo", "--master"]) == 2
    assert capsys.readouterr().err == (
        "python -m gradstep: error: --master is for --dtype float16 or bfloat16: float32 parameters need none\n"
    )


def test_an_unwritable_output_is_reported_before_the_training(tmp_path, capsys, demo_stops):
    demo_stops(lambda *_, **__: pytest.fail("the demo was started"))
    directory = tmp_path / "directory.png"
    directory.mkdir()
    for path in (directory, tmp_path / "nowhere" / "a.png"):
        assert main(["demo", "--output", str(path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"python -m gradstep: error: cannot write {path}: ")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [directory]


def test_options_reach_the_demo(tmp_path, demo_stops):
    seen = []
    demo_stops(lambda *args, **options: seen.append((args, options)) or [])
    path = tmp_path / "a.png"
    args = ["demo", "--output", str(path), "--epochs", "3", "--seed", "7", "--hidden", "9", "8"]
    assert main(args) == 0
    assert main([*args, "--dtype", "bfloat16", "--state", "q8", "--master"]) == 0
    options = {"epochs": 3, "seed": 7, "hidden": [9, 8]}
    storages = demo.PLAIN, demo.Storage("bfloat16", "q8", master=True)
    assert seen == [((path,), {**options, "storage": storage}) for storage in storages]


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (OSError("disk full"), 1)])
def test_an_interrupted_demo_ends_with_one_line(stop, status, tmp_path, capsys, demo_stops):
    def stand_in(*_, **__):
        raise stop

    demo_stops(stand_in)
    assert main(["demo", "--output", str(tmp_path / "a.png")]) == status
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_bench(monkeypatch):
    pytest.importorskip("rich")
    seen = []
    monkeypatch.setattr(bench, "run", lambda **options: seen.append((options, gradstep.get_num_threads())))
    assert main(["bench", "--size", "7", "30x5", "--threads", "3", "--repeats", "2"]) == 0
    assert seen == [({"shapes": [(1, 7), (30, 5)], "repeats": 2}, 3)]


@pytest.mark.parametrize(
    ("stop", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate"), 1, "too little memory: Unable to allocate"),
        (bench.WrongAnswer("adam: wrong"), 1, "adam: wrong"),
    ],
)
def test_a_bench_that_stops_says_why_in_one_line(stop, status, words, monkeypatch, capsys):
    pytest.importorskip("rich")

    def stand_in(**_):
        raise stop

    monkeypatch.setattr(bench, "run", stand_in)
    assert main(["bench"]) == status
    assert capsys.readouterr().err == f"python -m gradstep: error: {words}\n"


def test_a_bench_of_too_many_threads_is_refused(capsys):
    pytest.importorskip("rich")
    assert main(["bench", "--threads", "99999"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bench_without_rich_names_its_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["bench"]) == 1
    assert capsys.readouterr().err == 'python -m gradstep: error: bench needs rich: pip install "gradstep[bench]"\n'


def test_a_race_lists_its_functions_and_optimizers_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["race", "--list"]) == 0
    functions, optimizers = capsys.readouterr().out.splitlines()
    assert functions.split() == ["functions:", *FUNCTIONS]
    assert optimizers.split() == ["optimizers:", *(cls.rule for cls in gradstep.optimizers.ALL)]


def test_a_race_without_matplotlib_names_its_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["race"]) == 1
    assert capsys.readouterr().err == 'python -m gradstep: error: race needs matplotlib: pip install "gradstep[plot]"\n'


def test_a_race(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    picture, animation = tmp_path / "a.png", tmp_path / "a.gif"
    args = ["--function", "booth", "--optimizers", "adam,NAG", "--steps", "80"]
    done = run("-m", "gradstep", "race", *args, "--output", picture, "--animate", animation)
    assert (done.returncode, done.stderr) == (0, "")
    title, heading, *rows, saved, animated = done.stdout.splitlines()
    assert title == "booth from (-5, 5), 80 steps"
    assert heading.split() == ["optimizer", "lr", "final", "value", "distance", "to", "the", "nearest", "minimum"]
    assert [row.split()[0] for row in rows] == ["Adam", "NAG"]
    for row in rows:
        _, lr, value, distance = row.split()
        assert float(lr) > 0
        assert float(value) < 0.1
        assert float(distance) < 0.3
    assert (saved, animated) == (f"Picture: {picture}", f"Animation: {animation}")
    assert sorted(tmp_path.iterdir()) == [animation, picture]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    with image.open(animation) as frames:
        assert (frames.format, frames.n_frames, frames.size) == ("GIF", 60, (800, 460))


def test_a_race_from_a_random_start_that_diverges(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    args = ["race", "--optimizers", "sgd,adam", "--lr", "1", "--steps", "20", "--output", str(tmp_path / "a.png")]
    outputs = []
    for seed in ("3", "3", "4"):
        assert main([*args, "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert [line.split()[0] for line in outputs[0].splitlines() if line.endswith("  diverged")] == ["SGD"]


@pytest.mark.parametrize("option", ["--output", "--animate"])
def test_an_unwritable_picture_is_reported_before_the_race(option, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "nowhere" / {"--output": "a.png", "--animate": "a.gif"}[option]
    rest = ["--output", str(tmp_path / "b.png")] if option == "--animate" else []
    assert main(["race", *rest, option, str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"python -m gradstep: error: cannot write {path}: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def imported(source):
    """The modules outside the standard library that a script imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path):
    """Each asserts its outcome, and draws a picture if it takes a path. `.ci/run parity` has all that they import."""
    source = path.read_text()
    assert source.count("\n") < 60
    assert "\nassert " in source
    for name in sorted(imported(source)):
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")
    picture = [tmp_path / "picture.png"] if "sys.argv" in source else []
    done = run(path, *picture)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(file.stat().st_size > 1000 for file in picture)


def test_tour_lists_the_examples():
    tour = (ROOT / "docs/tour.md").read_text()
    assert all(f"| [{path.name}](../examples/{path.name}) |" in tour for path in [*EXAMPLES, TORCH_EXAMPLE])

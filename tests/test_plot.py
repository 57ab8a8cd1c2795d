"""The pictures show what they say: lines, labels, limits; arguments are refused before anything is drawn."""

import importlib
import io
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import _race
from gradstep._functions import FUNCTIONS

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

ROOT = Path(__file__).parents[1]
NAMES = [cls.__name__ for cls in gs.optimizers.ALL]
WHITE = (255, 255, 255)


def bowl(x):
    return x[0] ** 2 + 3 * x[1] ** 2, np.array([2 * x[0], 6 * x[1]])


def train(optimizer, seed):
    """Ten losses of a training with random gradients."""
    rng = np.random.default_rng(seed)
    w = np.ones(3)
    opt = optimizer(w)
    for _ in range(10):
        yield w @ w
        opt.step(w * rng.uniform(0.5, 1.5, 3))


def image(figure):
    """The picture as an array of shape (height, width, 3), which must not be empty at once."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return np.asarray(Image.open(data).convert("RGB"))


def texts(figure):
    """All texts of a figure that are not empty."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def lines(axes):
    """The data of lines by label."""
    return {line.get_label(): np.array(line.get_data()).T for line in axes.lines}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def overlaps(axes):
    """The pairs of annotations that overlap in the picture."""
    axes.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the end
    assert all(axes.figure.bbox.containsx(box.x1) and axes.figure.bbox.containsy(box.y1) for box in boxes)
    heights = sorted((box.y0, box.y1) for box in boxes)
    return [(low, high) for low, high in pairwise(heights) if low[1] > high[0]]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: gs.plot.paths("booth", ["sgd", "adam"], 20),
        lambda: gs.plot.paths("booth", None, 20),
        lambda: gs.plot.race("booth", None, 20),
        lambda: gs.plot.schedule(lambda step: 1 / (step + 1), 20),
        lambda: gs.plot.stats([gs.SGD([np.ones(3)]).step([np.ones(3)], stats=True)]),
    ],
    ids=["paths", "panels", "race", "schedule", "stats"],
)
def test_a_figure_is_drawn_without_global_state(figure):
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn = figure()
    assert type(drawn) is Figure
    pixels = image(drawn)
    assert pixels.shape[1] == 1200
    assert (pixels != WHITE).any(axis=2).mean() > 0.002
    assert dict(matplotlib.rcParams) == before


def test_nothing_is_imported_before_it_is_used():
    code = """
import sys, gradstep as gs
assert not {"gradstep.plot", "matplotlib"} & {*sys.modules}
gs.plot
assert "matplotlib" not in sys.modules
gs.plot.paths("booth", "sgd", 5)
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_are_those_of_the_optimizers():
    figure = gs.plot.paths("ravine", {"a": partial(gs.SGD, lr=0.01), "b": partial(gs.Adam, lr=0.5)}, 30)
    [axes] = figure.axes
    fun = FUNCTIONS["ravine"]
    assert (axes.get_xlim(), axes.get_ylim()) == fun.bounds
    assert axes.get_title(loc="left") == "ravine, 30 steps"
    drawn = lines(axes)
    assert legend(axes) == list(drawn) == ["start", "a", "b", "minimum"]
    assert np.array_equal(drawn["start"], [fun.start])
    assert np.array_equal(drawn["minimum"], fun.minima)
    x = fun.start.copy()
    opt = gs.Adam(x, lr=0.5)
    for point in drawn["b"]:
        assert np.array_equal(point, x)
        opt.step(fun.gradient(x))
    assert len(drawn["a"]) == len(drawn["b"]) == 31


def test_lookahead_takes_the_gradient_ahead():
    runs = _race.descend(FUNCTIONS["booth"], "", partial(gs.NAG, lr=0.01, lookahead=True), 5)
    x = FUNCTIONS["booth"].start.copy()
    opt = gs.NAG(x, lr=0.01, lookahead=True)
    for point in runs.points[0]:
        assert np.array_equal(point, x)
        with opt.lookahead():
            gradient = FUNCTIONS["booth"].gradient(x)
        opt.step(gradient)


def test_more_than_four_paths_have_a_frame_each():
    figure = gs.plot.paths("himmelblau", None, 20)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left").split()[0] for axes in shown] == NAMES
    assert len({tuple(line.get_color() for line in axes.lines[1:2]) for axes in shown}) == len(NAMES)
    assert all(len(lines(axes)["minimum"]) == 4 for axes in shown)
    five = gs.plot.paths("himmelblau", NAMES[:5], 20)
    assert [axes.axison for axes in five.axes] == [True] * 5 + [False]
    together = Figure().subplots()
    gs.plot.paths("himmelblau", None, 20, axes=together)
    assert len(legend(together)) == len(NAMES) + 2


def test_a_function_of_ones_own():
    figure = gs.plot.paths(bowl, gs.Adam, 9, start=(1, 1), bounds=[(-2, 2), (-1, 3)], minima=(0, 0), lr=0.5)
    [axes] = figure.axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((-2, 2), (-1, 3))
    assert axes.get_title(loc="left") == "bowl, 9 steps"
    assert legend(axes) == ["start", "Adam lr=0.5", "minimum"]
    unnamed = gs.plot.paths(lambda x: bowl(x), "adam", 9, start=(1, 1), bounds=((-2, 2), (-1, 3)), lr=0.5)
    assert unnamed.axes[0].get_title(loc="left") == "9 steps"
    assert legend(unnamed.axes[0]) == ["start", "Adam lr=0.5"]


def test_contour_levels_grow_geometrically(monkeypatch):
    levels = []
    monkeypatch.setattr(Axes, "contourf", lambda *args, **_: levels.extend(args[-1]))
    gs.plot.paths("rosenbrock", "adam", 1, lr=1)
    monkeypatch.undo()
    inner = np.array(levels)
    assert np.allclose(inner[1:] / inner[:-1], inner[1] / inner[0])
    assert inner[-1] == pytest.approx(2509)
    assert 0 < inner[0] < 10
    flat = gs.plot.paths(lambda x: (1.0, 0 * x), "sgd", 3, start=(0, 0), bounds=((-1, 1), (-1, 1)), lr=1)
    assert not flat.axes[0].collections
    image(flat)
    holes = gs.plot.paths(lambda x: (np.sqrt(x[0]), 0 * x), "sgd", 3, start=(1, 1), bounds=((-1, 1), (-1, 1)), lr=1)
    assert holes.axes[0].collections
    image(holes)


def test_a_function_may_keep_change_and_return_its_argument():
    def half(x):
        value = x @ x / 2
        return value, x

    def change(x):
        value, gradient = half(x.copy())
        x[:] = 5
        return value, gradient

    drawn = [gs.plot.paths(fun, "sgd", 5, lr=0.5, **OWN) for fun in (half, change)]
    for figure in drawn:
        assert figure.axes[0].lines[1].get_xdata().tolist() == [0.5**k for k in range(6)]


def test_a_function_that_is_flat_almost_everywhere():
    figure = gs.plot.paths(lambda x: (1 - np.exp(-1e4 * (x @ x)), np.zeros(2)), "sgd", 5, **OWN)
    image(figure)


def test_a_path_that_diverges_is_named_and_cut_off():
    figure = gs.plot.paths("ravine", {"wild": partial(gs.SGD, lr=1.0), "tame": partial(gs.SGD, lr=0.01)}, 400)
    [axes] = figure.axes
    assert legend(axes) == ["start", "wild (diverged)", "tame", "minimum"]
    assert (axes.get_xlim(), axes.get_ylim()) == FUNCTIONS["ravine"].bounds
    image(figure)
    race = gs.plot.race("ravine", {"wild": partial(gs.SGD, lr=1.0), "tame": partial(gs.SGD, lr=0.01)}, 400)
    assert {"wild (diverged)", "tame"} <= set(texts(race))
    assert race.axes[0].get_ylim()[1] < 1000
    image(race)
    wild = gs.plot.race("ravine", {"wild": partial(gs.SGD, lr=1.0), "wilder": partial(gs.SGD, lr=2.0)}, 400)
    assert 1e5 < wild.axes[0].get_ylim()[1] < 1e9


def test_a_rate_is_the_best_that_does_not_rise():
    """Of the rates of the series, below 0.02, where SGD diverges."""
    fun = FUNCTIONS["ravine"]
    [runs] = _race.run_all(fun, "sgd", 50, None)
    assert (runs.label, runs.lr) == ("SGD lr=0.01", 0.01)
    assert _race.RATES[:4] == (1e-4, 2e-4, 5e-4, 1e-3)
    assert _race.RATES[-1] == 500
    ends = {lr: _race.descend(fun, "", gs.Adam, 50, lr) for lr in _race.RATES}
    falling = {lr: run.values[0, -1] for lr, run in ends.items() if (run.values <= run.values[0, 0]).all()}
    [runs] = _race.run_all(fun, "adam", 50, None)
    assert runs.lr == min(falling, key=falling.get)
    [runs] = _race.run_all(fun, {"x": "adam"}, 50, 0.25)
    assert runs.label == "x lr=0.25"


def test_names_in_upper_case():
    assert gs.plot.paths("Booth", "ADAM", 3).axes[0].get_title(loc="left") == "booth, 3 steps"


def test_forms_of_optimizers():
    assert list(_race.named(None)) == NAMES
    assert _race.named("ADAM") == {"Adam": gs.Adam}
    assert _race.named(gs.NAG) == {"NAG": gs.NAG}
    make = partial(gs.Adam, lr=0.5, betas=(0.8, 0.9), amsgrad=True)
    assert list(_race.named(["nag", make])) == ["NAG", "Adam lr=0.5 betas=(0.8, 0.9) amsgrad=True"]
    assert _race.named({"x": make, "y": "sgd"}) == {"x": make, "y": gs.SGD}


def test_race_on_a_function_has_medians_and_quartiles():
    starts = np.random.default_rng(0).uniform(-2, 2, (7, 3))
    figure = gs.plot.race("rosenbrock", partial(gs.SGD, lr=1e-4), 12, start=starts)
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "value above the minimum")
    assert axes.get_xlim() == (0, 12)
    values = []
    for start in starts:
        x = start.copy()
        opt = gs.SGD(x, lr=1e-4)
        values.append([])
        for _ in range(13):
            values[-1].append(FUNCTIONS["rosenbrock"].value(x))
            opt.step(FUNCTIONS["rosenbrock"].gradient(x))
    assert np.allclose(axes.lines[0].get_ydata(), np.median(values, axis=0), rtol=1e-12)
    [band] = axes.collections
    corners = set(map(tuple, band.get_paths()[0].vertices))
    for edge in np.sort(values, axis=0)[[2, 4]]:  # with seven values the quartiles are nearest to these
        assert all(any(x == k and np.isclose(y, height) for x, y in corners) for k, height in enumerate(edge))
    assert {"SGD lr=0.0001"} <= set(texts(figure))


def test_the_value_is_above_the_minimum():
    [axes] = gs.plot.race("saddle", "adam", 30, lr=0.1).axes
    start = FUNCTIONS["saddle"].value(FUNCTIONS["saddle"].start)
    assert axes.lines[0].get_ydata()[0] == start + 0.25


def test_the_scale_is_logarithmic_where_it_helps():
    scales = [
        gs.plot.race(lambda *_, losses=losses: losses, "sgd").axes[0].get_yscale()
        for losses in ([1.0, 0.1], [1.0, 0.04], [1.0, 0.0], [1.0, 0.01, 0.0], [1.0, 0.01, -1.0], [0.0, 0.0])
    ]
    assert scales == ["linear", "log", "linear", "log", "linear", "linear"]


@pytest.mark.parametrize("start", [np.nan, np.inf])
def test_losses_that_are_not_finite_at_once(start):
    [axes] = gs.plot.race(lambda *_: [start, start], "sgd").axes
    assert axes.texts[0].get_text() == "SGD (diverged)"
    [axes] = gs.plot.race(lambda make, _: [start, 1.0] if make is gs.SGD else [1.0, 0.5], ["sgd", "adam"]).axes
    assert axes.get_ylim() == pytest.approx((0.475, 1.025))


def test_race_of_a_training():
    figure = gs.plot.race(train, {"one": gs.SGD, "two": partial(gs.Adam, lr=0.1)}, seeds=5)
    [axes] = figure.axes
    assert axes.get_ylabel() == "loss"
    assert [line.get_ydata().size for line in axes.lines] == [10, 10]
    assert len(axes.collections) == 2
    assert axes.get_xlim() == (0, 9)
    expected = np.median([list(train(gs.SGD, seed)) for seed in range(5)], axis=0)
    assert np.array_equal(axes.lines[0].get_ydata(), expected)
    [axes] = gs.plot.race(train, ["sgd"], 4, seeds=[7], lr=0.5).axes
    assert not axes.collections
    assert np.array_equal(axes.lines[0].get_ydata(), list(train(partial(gs.SGD, lr=0.5), 7))[:4])
    assert axes.texts[0].get_text() == "SGD lr=0.5"


def test_labels_at_the_ends_do_not_overlap():
    figure = gs.plot.race("himmelblau", None, 100)
    assert len(figure.axes[0].texts) == len(NAMES)
    assert not overlaps(figure.axes[0])
    same = gs.plot.schedule({f"schedule {i}": lambda _: 0.1 for i in range(8)}, 10)
    assert not overlaps(same.axes[0])


def test_long_labels_are_below():
    long = "a label that is too long beside the axes"
    for figure in (
        gs.plot.schedule({long: lambda _: 0.1, "short": lambda _: 0.2}, 10),
        gs.plot.paths("booth", {long: gs.SGD, "short": gs.Adam}, 10, lr=0.01),
    ):
        [axes] = figure.axes
        assert not axes.texts
        assert {long, "short"} <= {text.split(" lr")[0] for text in legend(axes)}
        figure.draw_without_rendering()
        box = axes.get_legend().get_window_extent()
        assert box.y1 < axes.bbox.y0
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0


def test_more_lines_than_colours_differ_in_style():
    from gradstep.plot import look

    styles = [(look(i)["color"], look(i)["linestyle"]) for i in range(32)]
    assert len(set(styles)) == 32


def test_schedules():
    def halves(step):
        return 0.5**step

    [axes] = gs.plot.schedule([halves, gs.schedules.constant(0.5)], 5).axes
    assert np.array_equal(axes.lines[0].get_ydata(), [1, 0.5, 0.25, 0.125, 0.0625])
    assert [text.get_text() for text in axes.texts] == ["halves", "constant(lr=0.5)"]
    [axes] = gs.plot.schedule({"a": halves}, 1).axes
    assert [text.get_text() for text in axes.texts] == ["a"]
    assert len(gs.plot.schedule([lambda _: 1.0, lambda _: 2.0], 5).axes[0].lines) == 2


def results(params, steps=6, **options):
    opt = gs.Adam(params, lr=0.1, **options)
    rng = np.random.default_rng(0)
    return [
        opt.step({name: rng.standard_normal(x.shape) for name, x in params.items()}, stats=True) for _ in range(steps)
    ]


def test_norms_of_steps():
    found = results({"w": np.ones((3, 2)), "b": np.zeros(4)})
    image(gs.plot.stats([{"w": (1, 2, 3), "b": (0, 0, 0)}] * 3))  # integers
    for given in (found, [result.stats for result in found], iter(found)):
        axes = gs.plot.stats(given).axes
        titles = [panel.get_title(loc="left") for panel in axes]
        assert titles == ["norm of the gradient", "norm of the update", "norm of the weight", "update / weight"]
        for panel, of in zip(
            axes, (lambda n: n[0], lambda n: n[1], lambda n: n[2], lambda n: n[1] / n[2]), strict=True
        ):
            assert panel.get_yscale() == "log"
            for name in ("w", "b"):
                assert np.array_equal(lines(panel)[name][:, 1], [of(result.stats[name]) for result in found])
        assert legend(axes[1]) == ["w", "b"]


def test_norms_have_gaps():
    w = np.zeros(3)
    opt = gs.SGD({"w": w, "v": np.ones(1)}, lr=1.0, on_nonfinite="skip")
    grads = [{"w": np.ones(3), "v": None}, {"w": np.full(3, np.nan), "v": None}, {"w": np.zeros(3), "v": np.ones(1)}]
    gradient, update, weight, ratio = gs.plot.stats([opt.step(g, stats=True) for g in grads]).axes
    assert np.array_equal(np.isnan(lines(gradient)["w"][:, 1]), [False, True, True])  # zero has no logarithm
    assert np.array_equal(np.isnan(lines(update)["v"][:, 1]), [True, True, False])
    assert np.array_equal(np.isnan(lines(weight)["v"][:, 1]), [True, True, True])
    assert np.array_equal(np.isnan(lines(ratio)["v"][:, 1]), [True, True, True])  # by zero


def test_norms_of_many_parameters():
    figure = gs.plot.stats(results({f"w{i}": np.ones(2) for i in range(30)}))
    assert legend(figure.axes[1]) == [f"w{i}" for i in range(0, 30, 4)]
    assert len(figure.axes[1].lines) == 30
    assert len({line.get_color() for line in figure.axes[1].lines}) == 30
    single = gs.plot.stats([gs.SGD(np.ones(2)).step(np.ones(2), stats=True)])
    assert legend(single.axes[1]) == ["array"]


def test_axes_of_ones_own():
    figure = Figure(layout="constrained")
    part, other = figure.subfigures(1, 2)
    axes = part.subplots()
    assert gs.plot.paths("booth", "sgd", 5, axes=axes) is figure
    assert gs.plot.race("booth", "sgd", 5, axes=other.subplots()) is figure
    image(figure)
    figure = Figure()
    assert gs.plot.schedule(lambda _: 1.0, 5, axes=figure.subplots()) is figure
    figure = Figure()
    found = results({"w": np.ones(2)})
    assert gs.plot.stats(found, axes=figure.subplots(1, 4)) is figure
    assert gs.plot.stats(found, axes=list(figure.axes)) is figure


OWN = {"start": (1, 1), "bounds": ((-2, 2), (-2, 2))}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gs.plot.paths("rosenbrok"), "no function 'rosenbrok'; .* did you mean 'rosenbrock'"),
        (lambda: gs.plot.paths("booth", "adm"), "no optimizer 'adm'; .* did you mean 'adam'"),
        (lambda: gs.plot.paths("booth", ["sgd", 3]), "optimizers must be names, classes, or .*, got 3"),
        (lambda: gs.plot.paths("booth", 3), "optimizers must be names, classes, or .*, got 3"),
        (lambda: gs.plot.paths("booth", []), "optimizers must have different names"),
        (lambda: gs.plot.paths("booth", ["sgd", gs.SGD]), "optimizers must have different names"),
        (lambda: gs.plot.paths("booth", "sgd", 0), "steps must be an integer from 1"),
        (lambda: gs.plot.paths("booth", "sgd", 1.5), "steps must be an integer from 1"),
        (lambda: gs.plot.paths("booth", "sgd", lr=0), "lr must be a finite number > 0"),
        (lambda: gs.plot.paths("booth", "sgd", lr="x"), "lr must be a finite number > 0"),
        (lambda: gs.plot.paths("booth", "sgd", start=(1, 2, 3)), "start must be a point of two numbers"),
        (lambda: gs.plot.paths("booth", "sgd", start=[(1, 2)]), "start must be a point of two numbers"),
        (lambda: gs.plot.paths("booth", "sgd", start=(1, np.nan)), "start must be a point"),
        (lambda: gs.plot.paths("booth", "sgd", start="x"), "start must be a point"),
        (lambda: gs.plot.paths("booth", "sgd", bounds=((0, 1), (1, 0))), "bounds must be two pairs"),
        (lambda: gs.plot.paths("booth", "sgd", bounds=(0, 1)), "bounds must be two pairs"),
        (lambda: gs.plot.paths("booth", "sgd", minima=(0, 1, 2)), "minima must be points of two"),
        (lambda: gs.plot.paths(3, "sgd", **OWN), "fun must be a name or a function, got 3"),
        (lambda: gs.plot.paths(bowl, "sgd", start=(1, 1)), "bounds must be given"),
        (lambda: gs.plot.paths(bowl, "sgd", bounds=((0, 1), (0, 1))), "start must be given"),
        (lambda: gs.plot.paths(lambda x: x[0], "sgd", **OWN), "fun must return its value and its gradient"),
        (
            lambda: gs.plot.paths(lambda _: (1, 2), "sgd", **OWN),
            r"fun must return a gradient of shape \(2,\), got \(\)",
        ),
        (lambda: gs.plot.race("booth", "sgd", start=(1, 2, 3)), "start must be a point of two .* with booth"),
        (lambda: gs.plot.race("booth", "sgd", start=[[1]]), "start must be a point of two numbers, or rows"),
        (lambda: gs.plot.race("booth", lambda _: 3), "optimizers must return an Optimizer, not int"),
        (lambda: gs.plot.race("booth", "sgd", seeds=3), "seeds must not be given with a function"),
        (lambda: gs.plot.race("booth", "sgd", 0), "steps must be an integer"),
        (lambda: gs.plot.race("booth", "sgd", start=np.zeros((0, 2))), "start must be a point"),
        (lambda: gs.plot.race(3, "sgd"), "fun must be a name or a function, got 3"),
        (lambda: gs.plot.race(train, "sgd", seeds=0), "seeds must be an integer from 1"),
        (lambda: gs.plot.race(train, "sgd", seeds=[]), "seeds must not be empty"),
        (lambda: gs.plot.race(train, "sgd", lr=-1), "lr must be a finite number > 0"),
        (lambda: gs.plot.race(train, "sgd", steps=0), "steps must be an integer"),
        (lambda: gs.plot.race(lambda *_: [], "sgd"), "fun must return as many losses with each seed"),
        (lambda: gs.plot.race(lambda _, seed: [1.0] * seed, "sgd", seeds=[1, 2]), r"got \[1, 2\] with SGD"),
        (lambda: gs.plot.schedule([], 5), "schedules must be one or more callables"),
        (lambda: gs.plot.schedule(0.1, 5), "schedules must be one or more callables"),
        (lambda: gs.plot.schedule([0.1], 5), "schedules must be one or more callables"),
        (lambda: gs.plot.schedule(lambda _: 1.0, 0), "steps must be an integer"),
        (lambda: gs.plot.stats([]), "results must have norms: take the steps with stats=True"),
        (lambda: gs.plot.stats([gs.SGD(np.ones(1)).step(np.ones(1))]), "results must have norms"),
        (lambda: gs.plot.stats(results({"w": np.ones(1)}), axes=[]), "axes must be four, got 0"),
    ],
)
def test_refusals(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_matplotlib_is_imported_when_a_picture_is_drawn(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (
        lambda: gs.plot.paths("booth"),
        lambda: gs.plot.race("booth"),
        lambda: gs.plot.schedule(lambda _: 1.0, 5),
        lambda: gs.plot.stats(results({"w": np.ones(1)})),
    ):
        with pytest.raises(
            ModuleNotFoundError, match=r'gradstep.plot needs matplotlib.*: pip install "gradstep\[plot\]"'
        ):
            call()


def test_the_documented_names_are_public():
    assert gs.plot.__all__ == ["paths", "race", "schedule", "stats"]
    assert all(getattr(gs.plot, name).__doc__ for name in gs.plot.__all__)


def test_the_pictures_of_the_docs_are_those_of_the_script():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        script = importlib.import_module("draw_docs")
    finally:
        sys.path.remove(str(ROOT / "tools"))
    files = {path.stem: path.stat().st_size for path in (ROOT / "docs/plots").iterdir()}
    assert set(files) == set(script.PICTURES)
    assert len(script.PICTURES) == len(set(script.PICTURES))
    assert max(files.values()) < 150_000
    assert set(script.RAVINE) == {cls.rule for cls in gs.optimizers.ALL}
    assert all(f'savefig("{name}.png")' in script.PAGE for name in script.SAVED)

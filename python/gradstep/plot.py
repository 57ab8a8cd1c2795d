"""Pictures of optimizers: paths over contours, loss curves, schedules, and the norms of steps.

They need matplotlib, `pip install "gradstep[plot]"`. Each function returns a `matplotlib.figure.Figure` that is made
without pyplot: no window opens, and no global state changes. `figure.savefig("picture.png")` writes it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias

import numpy as np

from ._functions import Function
from ._race import (
    LENGTH,
    STEPS,
    Array,
    Objective,
    Optimizers,
    Runs,
    Train,
    diverged,
    plane_problem,
    problem,
    run_all,
    train_all,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

__all__ = ["paths", "race", "schedule", "stats"]

Schedule: TypeAlias = Callable[[int], SupportsFloat]

REQUIRES = ("matplotlib",)  # what `pip install "gradstep[plot]"` brings; imported where it is used

# After Okabe and Ito, told apart with any colour vision; a brown stands for their yellow, too faint on white.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C6D31")
STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.2, 1.5, 1.2)))
INK, FAINT = "#333333", "#D9D9D9"
LOW, HIGH, LEVEL = "#F4F6F9", "#CBD5E0", "#AEBBC9"  # of contours
FONT = 9
TOGETHER = 4  # the most paths in one frame
LONG = 30  # the most characters of labels beside the axes
FRAMES = 60  # the most frames of an animation


# ---- paths ----------------------------------------------------------------------------------------------------------


def paths(
    fun: str | Function | Objective,
    optimizers: Optimizers | None = None,
    steps: int = STEPS,
    *,
    start: Any = None,
    bounds: Any = None,
    minima: Any = None,
    lr: float | None = None,
    axes: Axes | None = None,
) -> Figure:
    """The paths of optimizers over the contours of a function of two variables.

    Contour levels grow geometrically, so that ravines show. Up to four paths share a frame; more have one each. A path
    is cut off at the bounds, and the label of one that ended above its start, or not finite, says that it diverged.

    Parameters
    ----------
    fun : the name of a test function (rosenbrock, rastrigin, himmelblau, beale, booth, ackley, ravine, saddle), or a
        function that takes x, float64 of shape (2,), and returns its value and its gradient
    optimizers : a list of names ("adam"), classes, or functions of the parameters such as `partial(gs.Adam, lr=0.1)`;
        or a mapping from labels to these; default: all eight
    steps : a positive integer, default 500
    start : two finite numbers; default: the test function's
    bounds : ((low, high), (low, high)) of x[0] and x[1]; default: the test function's
    minima : points to mark, of shape (k, 2) or (2,); default: the test function's
    lr : the learning rate of optimizers that are given by name or class, a finite number > 0. Default: of 0.0001,
        0.0002, 0.0005, 0.001, ... 500, the one with the lowest last value; those whose value rises above its start
        are passed over.
    axes : matplotlib's Axes to draw in, all paths in one; default: those of a new figure

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, or out of range.
    ModuleNotFoundError
        Without matplotlib.
    """
    fun = plane_problem(fun, start, bounds, minima)
    figure = new_figure() if axes is None else root(axes)
    runs = run_all(fun, optimizers, steps, lr)
    if axes is None and len(runs) > TOGETHER:
        figure.suptitle(title_of(fun, runs), fontsize=FONT + 1, color=INK)
        draw_panels(figure, fun, runs)
        return figure
    axes = figure.subplots() if axes is None else axes
    draw_paths(axes, fun, dict(enumerate(runs)))
    tidy(axes, title_of(fun, runs), "$x_0$", "$x_1$")
    legend(axes)
    return figure


def title_of(fun: Function, runs: Sequence[Runs]) -> str:
    """The name of the function, and the number of steps."""
    return ", ".join(filter(None, [fun.name, f"{runs[0].steps} steps"]))


def draw_contours(axes: Axes, fun: Function) -> None:
    """Filled contours, within the function's bounds."""
    from matplotlib.colors import LinearSegmentedColormap

    x, y = np.meshgrid(*(np.linspace(low, high, 201) for low, high in fun.bounds))
    with np.errstate(all="ignore"):
        heights = np.asarray(fun.value(np.stack([x, y])), np.float64)
    heights -= min([np.min(heights, initial=np.inf, where=np.isfinite(heights)), *minimum_of(fun)])
    known = heights[np.isfinite(heights)]
    if known.size and (highest := known.max()) > 0:
        lowest = np.quantile(known, 0.01)
        # Of a function that is flat almost everywhere, the quantile is the flat part.
        lowest = max(lowest, highest / 1000) if lowest < highest / 2 else highest / 1000
        levels = np.geomspace(lowest, highest, 12)
        colours = LinearSegmentedColormap.from_list("", [LOW, HIGH])(np.linspace(0, 1, len(levels) + 1))
        axes.contourf(x, y, heights, levels, colors=[*colours], extend="both")
        axes.contour(x, y, heights, levels, colors=LEVEL, linewidths=0.5)
    axes.set(xlim=fun.bounds[0], ylim=fun.bounds[1])


def minimum_of(fun: Function) -> list[float]:
    """The least value of a function in a list, which is empty where it is not known."""
    return [float(fun.value(fun.minima[0]))] if len(fun.minima) else []


def draw_paths(axes: Axes, fun: Function, runs: Mapping[int, Runs], size: float = 1.6) -> list[Any]:
    """Paths over contours, each in the look of its number; the lines of the paths."""
    draw_contours(axes, fun)
    axes.plot(*fun.start, "o", color=INK, markerfacecolor="white", markersize=6, zorder=4, label="start")
    lines = []
    for number, run in runs.items():
        points = np.where(np.abs(run.points[0]) < 1e9, run.points[0], np.nan)  # matplotlib cannot clip larger ones
        style = {**look(number), "linewidth": size, "marker": ".", "markersize": 2 * size}
        lines += axes.plot(*points.T, label=marked(run.label, run.values[0]), **style)
    if len(fun.minima):
        axes.plot(*fun.minima.T, "x", color=INK, markersize=7, markeredgewidth=1.8, zorder=4, label="minimum")
    return lines


def draw_panels(figure: FigureBase, fun: Function, runs: Sequence[Runs]) -> None:
    """A frame for each path."""
    columns = 3 if len(runs) in (5, 6, 9) else 4
    grid = figure.subplots(-(-len(runs) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for number, axes in enumerate(grid):
        if number >= len(runs):
            axes.set_axis_off()
            continue
        draw_paths(axes, fun, {number: runs[number]}, size=1.2)
        tidy(axes, "", "$x_0$", "$x_1$")
        label = textwrap.fill(marked(runs[number].label, runs[number].values[0]), 18)
        axes.set_title(label, fontsize=FONT, loc="left", color=INK)
        axes.label_outer()


def gif(fun: Function, runs: Sequence[Runs]) -> bytes:
    """An animation of paths in one frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = new_figure(dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines = draw_paths(axes, fun, dict(enumerate(runs)))
    tracks = [np.array(line.get_data()) for line in lines]
    heads = [axes.plot([], [], "o", color=line.get_color(), markersize=6, zorder=5)[0] for line in lines]
    tidy(axes, title_of(fun, runs), "$x_0$", "$x_1$")
    legend(axes)
    canvas.draw()
    figure.set_layout_engine("none")  # which has done its work
    images: list[Any] = []
    for step in np.unique(np.linspace(0, runs[0].steps, FRAMES).astype(int))[::-1]:
        for line, head, track in zip(lines, heads, tracks, strict=True):
            line.set_data(track[:, : step + 1])
            head.set_data(track[:, step : step + 1])
        tidy(axes, f"{fun.name}, step {step}", "$x_0$", "$x_1$")
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        # All frames have the palette of the last, so that each is stored as its difference from the one before.
        palette = images[-1] if images else frequent_colours(image)
        images.insert(0, image.quantize(palette=palette, dither=Image.Dither.NONE))
    data = BytesIO()
    pauses = [80] * (len(images) - 1) + [2000]  # milliseconds
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=pauses, loop=0)
    return data.getvalue()


def frequent_colours(image: Any) -> Any:
    """The palette, as an image, of the most frequent colours of an image: those of areas and lines, not of edges."""
    from PIL import Image

    counted = sorted(image.getcolors(image.width * image.height), reverse=True)
    # Pillow finds the nearest colour to within some units, so that white must have no neighbour.
    colours = [colour for _, colour in counted if min(colour) < 247 or min(colour) == 255]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in colours[:256] for channel in colour])
    return palette


# ---- losses ---------------------------------------------------------------------------------------------------------


def race(
    fun: str | Function | Objective | Train,
    optimizers: Optimizers | None = None,
    steps: int | None = None,
    *,
    start: Any = None,
    seeds: int | Iterable[int] | None = None,
    lr: float | None = None,
    axes: Axes | None = None,
) -> Figure:
    """The losses of optimizers by step: on a function, or in a training.

    Of several runs, from several starts or with several seeds, a curve is the median, and a band lies between the
    quartiles. The scale is logarithmic where losses are positive and span more than a factor of 20.

    Parameters
    ----------
    fun : the name of a test function (see `paths`); with `start`, a function that takes x, float64 of shape (n,), and
        returns its value and its gradient; without, a training function: `fun(optimizer, seed)` makes an optimizer,
        `optimizer(params)`, trains, and returns or yields the losses, one a step
    optimizers : as in `paths`
    steps : a positive integer; default: 500, and of a training function as many as it has
    start : a point, of shape (n,), or one a run, of shape (runs, n); default: the test function's
    seeds : of a training function: a number of seeds, which are then 0, 1, 2, ..., or the seeds; default 1
    lr : as in `paths`, but a training function has the defaults of the classes where none is given
    axes : matplotlib's Axes to draw in; default: those of a new figure

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, or out of range.
    ModuleNotFoundError
        Without matplotlib.
    """
    axes = new_figure().subplots() if axes is None else axes
    given: Any = fun
    if isinstance(fun, (str, Function)) or start is not None:
        if seeds is not None:
            raise ValueError("seeds must not be given with a function; its start may have a row for each run")
        chosen = problem(given, start)
        draw_race(axes, chosen, run_all(chosen, optimizers, STEPS if steps is None else steps, lr))
    else:
        draw_curves(axes, train_all(given, optimizers, steps, seeds, lr), "loss")
    return root(axes)


def draw_race(axes: Axes, fun: Function, runs: Sequence[Runs]) -> None:
    """The values of runs, above the minimum where that is known."""
    lowest = minimum_of(fun)
    ylabel = "value above the minimum" if lowest else "value"
    draw_curves(axes, {run.label: run.values - sum(lowest) for run in runs}, ylabel)


def draw_curves(axes: Axes, curves: Mapping[str, Array], ylabel: str) -> None:
    """The medians of curves of shape (runs, steps), and bands between the quartiles."""
    medians = {}
    for number, (label, values) in enumerate(curves.items()):
        values = np.where(np.isfinite(values), values, np.inf)
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75), axis=0, method="nearest")
        if len(values) > 1:
            colour = look(number)["color"]
            axes.fill_between(range(len(median)), lower, upper, color=colour, alpha=0.15, linewidth=0)
        axes.plot(median, **look(number))
        medians[marked(label, median)] = median
    # A run that diverges leaves the frame, later where all do.
    factor = 1e6 if all(map(diverged, medians.values())) else 2
    limit = factor * max((abs(median[0]) for median in medians.values() if np.isfinite(median[0])), default=np.inf)
    drawn = np.concatenate([median[np.isfinite(median) & (median <= limit)] for median in medians.values()])
    drawn = drawn if drawn.size else np.zeros(1)
    positive = drawn[drawn > 0]
    if drawn.min() >= 0 and positive.size and drawn.max() > 20 * positive.min():
        axes.set_ylim(positive.min() / 2, drawn.max() * 2)
        log_scale(axes)
    else:
        margin = 0.05 * (drawn.max() - drawn.min()) or 1
        axes.set_ylim(drawn.min() - margin, drawn.max() + margin)
    axes.set_xlim(0, max(1, *(len(median) - 1 for median in medians.values())))
    tidy(axes, "", "step", ylabel, grid=True)
    label_ends(axes, list(medians))


def overview(fun: Function, runs: Sequence[Runs]) -> Figure:
    """Paths on the left, and on the right the values by step."""
    figure = new_figure(12, 5)
    figure.suptitle(title_of(fun, runs), fontsize=FONT + 2, color=INK)
    [[left, right]] = figure.subfigures(1, 2, squeeze=False, width_ratios=(7, 5))
    if len(runs) > TOGETHER:
        draw_panels(left, fun, runs)
    else:
        axes = left.subplots()
        draw_paths(axes, fun, dict(enumerate(runs)))
        tidy(axes, "", "$x_0$", "$x_1$")
    draw_race(right.subplots(), fun, runs)
    return figure


# ---- schedules and norms --------------------------------------------------------------------------------------------


def schedule(
    schedules: Schedule | Sequence[Schedule] | Mapping[str, Schedule], steps: int, *, axes: Axes | None = None
) -> Figure:
    """The values of schedules by step.

    Parameters
    ----------
    schedules : a schedule, a callable of the step number; a list of schedules, whose labels are their `__name__` or
        their `repr`; or a mapping from labels to schedules
    steps : a positive integer: they are called with 0, 1, ... steps - 1
    axes : matplotlib's Axes to draw in; default: those of a new figure

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, or out of range.
    ModuleNotFoundError
        Without matplotlib.
    """
    steps = LENGTH.check(steps, "steps")
    if callable(schedules) or not isinstance(schedules, Iterable):
        schedules = [schedules]
    called = list(schedules.values() if isinstance(schedules, Mapping) else schedules)
    if not called or not all(map(callable, called)):
        raise TypeError(f"schedules must be one or more callables of the step number, got {schedules!r}")
    labels = schedules if isinstance(schedules, Mapping) else [getattr(each, "__name__", repr(each)) for each in called]
    values = [[float(each(step)) for step in range(steps)] for each in called]
    axes = new_figure(8, 4).subplots() if axes is None else axes
    for number, line in enumerate(values):
        axes.plot(line, **look(number))
    axes.set_xlim(0, max(steps - 1, 1))
    tidy(axes, "", "step", "value", grid=True)
    label_ends(axes, list(labels))
    return root(axes)


def stats(results: Iterable[Any], *, axes: Any = None) -> Figure:
    """The norms of steps by tensor: of gradient, update and weight, and the ratio of update and weight.

    Parameters
    ----------
    results : what `opt.step(grads, stats=True)` returned, one a step, or the `stats` of these; a step that was skipped,
        and a tensor that took no part, leave a gap. The result of a step on a GPU must be read before the next step:
        keep its `stats`.
    axes : four of matplotlib's Axes to draw in; default: those of a new figure

    Raises
    ------
    ValueError
        For results without norms, or other than four axes.
    ModuleNotFoundError
        Without matplotlib.
    """
    found = [getattr(result, "stats", result) or {} for result in results]
    names = list(dict.fromkeys(name for norms in found for name in norms))
    if not names:
        raise ValueError("results must have norms: take the steps with stats=True")
    panels: Any = new_figure(8, 4.8).subplots(2, 2, sharex=True) if axes is None else axes
    panels = np.ravel(panels)
    if len(panels) != 4:
        raise ValueError(f"axes must be four, got {len(panels)}")
    norms = np.array([[norms.get(name, (np.nan,) * 3) for norms in found] for name in names], np.float64)
    with np.errstate(all="ignore"):
        values = [*np.moveaxis(norms, 2, 0), norms[..., 1] / norms[..., 2]]
    every = -(-len(names) // len(COLOURS))  # so many labels fit
    titles = ("norm of the gradient", "norm of the update", "norm of the weight", "update / weight")
    for panel, lines, title, xlabel in zip(panels, values, titles, ("", "", "step", "step"), strict=True):
        lines[~(np.isfinite(lines) & (lines > 0))] = np.nan
        for number, (name, line) in enumerate(zip(names, lines, strict=True)):
            style = look(number) if every == 1 else gradual(number / len(names))
            panel.plot(line, label=(name or "array") if number % every == 0 else None, **style)
        log_scale(panel)
        tidy(panel, title, xlabel, "", grid=True)
    legend(panels[1])
    return root(panels[0])


# ---- what the pictures share ----------------------------------------------------------------------------------------


def new_figure(width: float = 8, height: float = 4.6, dpi: float = 150) -> Figure:
    """An empty figure of this size in inches. Raises ModuleNotFoundError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'gradstep.plot needs {error.name}: pip install "gradstep[plot]"') from None
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07)
    return Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    data = BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def root(axes: Axes) -> Figure:
    """The figure of axes, also where they are in a part of it."""
    figure: Any = axes.figure
    whole: Figure = figure.figure
    return whole


def look(number: int) -> dict[str, Any]:
    """The colour and line style of one of several lines."""
    turn, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": STYLES[(colour + turn) % len(STYLES)], "linewidth": 1.6}


def gradual(share: float) -> dict[str, Any]:
    """The colour and line style of one of many lines, from the first, 0, to the last, 1."""
    from matplotlib import colormaps

    return {"color": colormaps["viridis"](0.9 * share), "linewidth": 1.2}


def marked(label: str, values: Array) -> str:
    """The label of a run, which says where it diverged."""
    return f"{label} (diverged)" if diverged(values) else label


def tidy(axes: Axes, title: str, xlabel: str, ylabel: str, grid: bool = False) -> None:
    """Title and labels, and a frame without its upper and right side."""
    axes.set_title(title, fontsize=FONT + 1, loc="left", color=INK)
    axes.set_xlabel(xlabel, fontsize=FONT, color=INK)
    axes.set_ylabel(ylabel, fontsize=FONT, color=INK)
    axes.tick_params(which="both", labelsize=FONT - 1, colors=INK)
    axes.spines[:].set_color(FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color=FAINT, linewidth=0.6)


def log_scale(axes: Axes) -> None:
    """A logarithmic scale of y, whose ticks have plain numbers where it spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else range(1, 10)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def legend(axes: Axes, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """A legend, of what has labels or of these, to the right of the axes; of long labels below."""
    if not labels:
        handles, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"bbox_to_anchor": (1.01, 1.02)}
    if max(map(len, labels)) > LONG:
        below = 0.45 * axes.figure.dpi / axes.bbox.height  # half an inch is for ticks and the label of x
        place = {"bbox_to_anchor": (0, -below), "ncols": 2}
    style = {"handlelength": 2.6, "labelcolor": INK, "frameon": False, "fontsize": FONT}
    axes.legend(handles, labels, loc="upper left", **place, **style)


def label_ends(axes: Axes, labels: Sequence[str]) -> None:
    """Labels of the last lines, each to the right of the line's end, moved apart where they would overlap."""
    lines = list(axes.lines)[-len(labels) :]
    if max(map(len, labels)) > LONG:
        return legend(axes, lines, labels)
    to_axes = axes.transData + axes.transAxes.inverted()
    with np.errstate(all="ignore"):
        ends = [float(to_axes.transform((0, np.ravel(line.get_ydata())[-1]))[1]) for line in lines]
    ends = [min(max(end, 0.0), 1.0) if np.isfinite(end) else 1.0 for end in ends]
    gap = 1.4 * FONT / 72 * axes.figure.dpi / axes.bbox.height
    order = sorted(range(len(lines)), key=ends.__getitem__)
    places = [ends[i] for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - gap
    for i, place in zip(order, places, strict=True):
        colour = lines[i].get_color()
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)}
        text = axes.annotate(labels[i], (1, ends[i]), (1.035, place), "axes fraction", arrowprops=arrow)
        text.set(color=colour, fontsize=FONT, verticalalignment="center")

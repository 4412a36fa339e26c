"""The plots of the report, made to be read at half a column's width.

A lineage looks the same in every plot, by its place in the experiment. The same numbers give the same bytes.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from noisebox.files import atomic_path
from noisebox.report.markdown import signed
from noisebox.report.statistics import CELL, interval, seed_means, summarise

# Okabe and Ito (2008), told apart with any colour vision; yellow and black are left out, for paper and axes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DIVERGING, NO_NUMBER = "RdBu", "#dddddd"  # Brewer's, told apart with any colour vision as well
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
HATCH = {"-": "", "--": "/////", ":": ".....", "-.": "xxxxx"}  # of a bar, for the line style of its lineage
MARKERS = ("o", "s", "^", "D")
WIDTH, HEIGHT, DPI = 3.4, 2.3, 300  # inches, inches, dots per inch
PANEL, BAR = 1.5, 0.075  # inches: heights of each of several panels, and of a bar
LEGEND_LINE, LEGEND_WIDTH = 0.14, 50  # inches, characters
TICK_GAP = 0.04  # share of a logarithmic axis that two ticks need between them
SPREAD = 1.12  # ratio of the last to the first of several lineages' places at one step count, beside each other
NARROW = 22  # characters: names up to this long stand two by two in the legend
LINE, SMALL = 1.3, 6  # points: a line's width, the size of letters inside a plot
POINTS = 100  # along the axis of iterations: more are averaged
LOG_FROM = 3.0  # a loss that falls by more than this factor is drawn on a logarithmic axis

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.titlesize": 7.5,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 1.8,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "noisebox",
}


class Look(NamedTuple):
    """A lineage's colour, line style and marker."""

    colour: str
    dashes: Literal["-", "--", ":", "-."]
    marker: str


@dataclass(frozen=True)
class Curve:
    """What a run's training gave, such as its loss: `steps` and `values` of equal length, `start` the iterations its
    ancestors were trained."""

    lineage: str
    train_seed: int
    steps: tuple[int, ...]
    values: tuple[float, ...]
    start: int = 0


def appearance(place: int) -> Look:
    """How the lineage at `place` in the experiment looks; past the palette's end line style and marker change."""
    turn, colour = divmod(place, len(PALETTE))
    return Look(PALETTE[colour], DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)])


def loss_plot(curves: Sequence[Curve], looks: Mapping[str, Look], path: Path) -> None:
    """Draw losses as `draw_losses` does; what went on from a parent has a panel of its own, from its own start, since
    finetunes are much shorter than what they go on from."""
    of_scratch = [curve for curve in curves if curve.start == 0]
    finetunes = [replace(curve, start=0) for curve in curves if curve.start > 0]
    panels: dict[str, Sequence[Curve]] = {"iterations": of_scratch, "iterations after the parent's": finetunes}
    shown = {words: some for words, some in panels.items() if some} or {"iterations": curves}
    with figure_of(path, lines_of(looks), panels=len(shown), sharex=False) as every:
        for axes, (words, some) in zip(every, shown.items(), strict=True):
            draw_losses(axes, some, looks, "loss")
            axes.set_xlabel(words)


def draw_losses(axes: Axes, curves: Sequence[Curve], looks: Mapping[str, Look], label: str) -> None:
    """Draw curves as `draw_curves` does, on a logarithmic axis where they fall far."""
    drawn = draw_curves(axes, curves, looks)
    axes.set_ylabel(label)
    fall = drawn.max() / drawn.min() if drawn.min() > 0 else 0.0
    if fall > LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylabel(f"{label} (log scale)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if fall < 10 else (1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def draw_curves(
    axes: Axes, curves: Sequence[Curve], looks: Mapping[str, Look], marked: bool = False, nested: bool = False
) -> "pd.Series[float]":
    """Each run (thin) and per lineage the mean over its train seeds where all have a value, against iterations; if
    `marked`, with a marker at each; if `nested`, the first lineages wider, to be seen behind others of the same values.
    Returns the means of all lineages."""
    block = max((curve.start + max(curve.steps, default=0) for curve in curves), default=0) / POINTS
    means = []
    for place, (lineage, look) in enumerate(looks.items()):
        of_lineage = [curve for curve in curves if curve.lineage == lineage and curve.steps]
        if not of_lineage:
            continue
        table = _by_iteration(of_lineage, block)
        means.append(table.mean(axis="columns", skipna=False))
        if len(of_lineage) > 1:
            axes.plot(table.index, table.to_numpy(), color=look.colour, linewidth=0.6, alpha=0.4)
        width = LINE * (len(looks) - place) if nested else LINE
        (line,) = axes.plot(table.index, means[-1], color=look.colour, linestyle=look.dashes, linewidth=width)
        if marked or len(table) == 1:
            line.set(marker=look.marker, markersize=3)
    axes.set_xlabel("iterations")
    axes.set_xlim(left=0)
    return pd.concat(means) if means else pd.Series(dtype=float)


def _by_iteration(curves: Sequence[Curve], block: float) -> pd.DataFrame:
    """A column per train seed, a row per logged iteration, or per block of `block` iterations where these are fewer."""
    values = {curve.train_seed: pd.Series(curve.values, np.add(curve.steps, curve.start)) for curve in curves}
    table = pd.DataFrame(values).sort_index().rename_axis("iteration").reset_index()
    return table.groupby(np.ceil(table["iteration"] / block)).mean().set_index("iteration")


def steps_plot(results: pd.DataFrame, looks: Mapping[str, Look], path: Path, noiseless: Collection[str] = ()) -> None:
    """Draw AP against sampling steps: mean over train seeds with its interval, each train seed a point; what is
    `noiseless` as `at_every_step` has it."""
    results = at_every_step(results, noiseless)
    summary, points = summarise(results), seed_means(results)
    with figure_of(path, lines_of(looks)) as (axes,):
        _ap_axis(axes, summary, points["AP"])
        for aside, (lineage, look) in zip(_asides(len(looks)), looks.items(), strict=True):
            mean, own = summary[summary["run"] == lineage], points[points["run"] == lineage]
            steps = mean["sample_step"] * aside
            axes.plot(steps, mean["AP"], color=look.colour, linestyle=look.dashes, linewidth=LINE)
            _interval_bars(axes, steps, mean, look)
            (dots,) = axes.plot(own["sample_step"] * aside, own["AP"], look.marker, linestyle="", color=look.colour)
            dots.set(markersize=2.4, markeredgewidth=0, alpha=0.6)
        _steps_axis(axes, results["sample_step"])


def at_every_step(results: pd.DataFrame, noiseless: Collection[str]) -> pd.DataFrame:
    """Results in which lineages that draw no noise, and so have no steps, have the same rows at each step count of the
    others."""
    once = results["run"].isin(list(noiseless))
    others, same = results[~once], results[once]
    repeated = [same.assign(sample_step=steps) for steps in others["sample_step"].unique()]
    return pd.concat([others, *repeated], ignore_index=True)


def tradeoff_plot(table: pd.DataFrame, looks: Mapping[str, Look], path: Path) -> None:
    """Draw `tables/tradeoff.tsv`: against sampling steps AP with its interval, and seconds per image."""
    with figure_of(path, lines_of(looks), panels=2) as (above, below):
        _ap_axis(above, table)
        for aside, (lineage, look) in zip(_asides(len(looks)), looks.items(), strict=True):
            rows = table[table["run"] == lineage]
            steps = rows["sample_step"] * aside
            for axes, name in ((above, "AP"), (below, "s_per_img")):
                (line,) = axes.plot(steps, rows[name], color=look.colour, linestyle=look.dashes)
                line.set(linewidth=LINE, marker=look.marker, markersize=3)
            _interval_bars(above, steps, rows, look)
        _steps_axis(below, table["sample_step"])
        below.set_yscale("log")
        log_ticks(below.yaxis)
        below.set_ylabel("s per image (log scale)")


def distillation_plot(table: pd.DataFrame, points: pd.DataFrame, looks: Mapping[str, Look], path: Path) -> None:
    """Draw AP and its interval against seconds per image: of a student what `tables/distillation.tsv` has, filled; of a
    teacher its `points`, a table as `tables/tradeoff.tsv`, up to the steps that were learned from, joined. The upper
    axis tells the sampling steps at their mean time.
    """
    lessons = {
        str(teacher): points[(points["run"] == teacher) & (points["sample_step"] <= most)]
        for teacher, most in table.groupby("teacher")["teacher_steps"].max().items()
    }
    drawn = pd.concat([*lessons.values(), table])
    if drawn["AP"].isna().all():
        words_plot("AP is nan in every run.", path)
        return
    legend: dict[str, Line2D] = {}
    with figure_of(path, legend) as (axes,):
        _ap_axis(axes, drawn)
        for lineage, look in looks.items():
            own, lesson = table[table["run"] == lineage], lessons.get(lineage)
            if lesson is not None:
                _interval_bars(axes, lesson["s_per_img"], lesson, look)
                (line,) = axes.plot(lesson["s_per_img"], lesson["AP"], color=look.colour, linestyle=look.dashes)
                line.set(linewidth=0.9, marker=look.marker, markersize=3.5, markerfacecolor="white")
                legend[lineage] = line
            if len(own):
                _interval_bars(axes, own["s_per_img"], own, look)
                (dots,) = axes.plot(own["s_per_img"], own["AP"], look.marker, color=look.colour, markersize=4.5)
                legend.setdefault(lineage, dots)
        axes.set_xscale("log")
        axes.margins(x=0.08)
        log_ticks(axes.xaxis)
        axes.set_xlabel("seconds per image (log scale)")
        times = apart(drawn.groupby("sample_step")["s_per_img"].mean())
        above = axes.secondary_xaxis("top")
        above.set_xticks(times.to_numpy(), [str(steps) for steps in times.index])
        above.xaxis.set_minor_locator(NullLocator())
        above.set_xlabel("sampling steps")


def guidance_plot(table: pd.DataFrame, path: Path) -> None:
    """Draw `tables/guidance.tsv` as heat maps of the difference of AP to no guidance: scale × Langevin steps; a row of
    panels per lineage and step count, a panel per mode. Blue is above no guidance, red below; a star says that the
    verdict is better or worse."""
    guided = table[table["guidance_scale"] > 0]
    modes, bands = list(guided["guidance_mode"].unique()), list(guided.groupby(CELL, sort=False))
    limit = max(0.01, guided["delta"].abs().max())
    colours = colormaps[DIVERGING].with_extremes(bad=NO_NUMBER)
    with canvas(path) as figure:
        figure.set_size_inches(WIDTH, (0.8 + 0.2 * guided["guidance_scale"].nunique()) * len(bands))
        parts = figure.subfigures(len(bands), squeeze=False)[:, 0]
        for ((lineage, steps), band), part in zip(bands, parts, strict=True):
            part.suptitle(broken(f"{lineage}, sampling steps: {steps}"))
            panels = part.subplots(1, len(modes), squeeze=False)[0]
            for mode, axes in zip(modes, panels, strict=True):
                of_mode = band[band["guidance_mode"] == mode]
                cells, verdicts = (
                    of_mode.pivot(index="guidance_scale", columns="guidance_steps", values=name)
                    for name in ("delta", "delta_verdict")
                )
                drawn = axes.imshow(cells, colours, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
                for (row, column), delta in np.ndenumerate(cells.to_numpy()):
                    ink = "white" if abs(delta) > 0.6 * limit else "black"
                    star = "*" if verdicts.iat[row, column] in ("better", "worse") else ""
                    axes.text(column, row, signed(delta) + star, color=ink, fontsize=SMALL, ha="center", va="center")
                axes.set_xticks(range(len(cells.columns)), [str(count) for count in cells.columns])
                axes.set_yticks(range(len(cells.index)), [f"{scale:g}" for scale in cells.index])
                axes.set(title=f"mode {mode}", xlabel="k")
                axes.grid(False)
                axes.spines[:].set_visible(False)
                axes.tick_params(length=0)
            panels[0].set_ylabel("scale")
            part.colorbar(drawn, ax=panels, label="Δ AP")


def words_plot(words: str, path: Path) -> None:
    """Write a picture of words, where there is nothing to draw."""
    with canvas(path) as figure:
        figure.set_size_inches(WIDTH, 0.6)
        figure.text(0.5, 0.5, fill(words, LEGEND_WIDTH), ha="center", va="center")


def _asides(count: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """For each of several lineages the factor that puts its marks beside those of the others on a logarithmic axis."""
    return SPREAD ** ((np.arange(count) + 0.5) / count - 0.5)


def _interval_bars(axes: Axes, places: "pd.Series[float]", rows: pd.DataFrame, look: Look) -> None:
    """The 95 % interval of AP, where there is one, as a bar behind all else, with an end mark at either end, or a
    triangle where it goes on beyond the axis, whose limits are set by then."""
    ends = (rows["AP"] - rows["AP_low"], rows["AP_high"] - rows["AP"])
    bars = axes.errorbar(places, rows["AP"], yerr=ends, fmt="none", ecolor=look.colour, capsize=1.6, zorder=1)
    for part in (*bars[1], *bars[2]):
        part.set(linewidth=0.6, alpha=0.5)
    low, high = axes.get_ylim()
    for limit, beyond, marker in ((low, rows["AP_low"] < low, "v"), (high, rows["AP_high"] > high, "^")):
        if beyond.any():  # the layout would make room in the corner for a line of no points that is not clipped
            (cut,) = axes.plot(places[beyond], np.full(beyond.sum(), limit), marker, color=look.colour, markersize=3)
            cut.set(markeredgewidth=0, clip_on=False, zorder=3)


def _ap_axis(axes: Axes, rows: pd.DataFrame, points: "pd.Series[float] | None" = None) -> None:
    """An axis of AP that shows every mean and point, and of the intervals what leaves these half of it: with two train
    seeds an interval may be a hundred times as long as all that was measured."""
    axes.set_ylabel("AP (COCO, 0–100)")
    measured = rows["AP"] if points is None else pd.concat([rows["AP"], points])
    low, high = measured.min(), measured.max()
    if math.isnan(low):
        return
    room = max((high - low) / 2, 0.5)  # one value alone has some, too
    below, above = (beyond.fillna(0).clip(0, room).max() for beyond in (low - rows["AP_low"], rows["AP_high"] - high))
    axes.set_ylim(max(low - below, 0) - room / 5, high + above + room / 5)


def apart(times: "pd.Series[float]") -> "pd.Series[float]":
    """Those of some times that stand clear of each other on a logarithmic axis, where they are to be told."""
    rising = times.sort_values()
    width = math.log(rising.iloc[-1] / rising.iloc[0])
    kept = [0]
    for place in range(1, len(rising)):
        if math.log(rising.iloc[place] / rising.iloc[kept[-1]]) > TICK_GAP * width:
            kept.append(place)
    return rising.iloc[kept]


def _steps_axis(axes: Axes, steps: "pd.Series[int]") -> None:
    """A logarithmic axis of sampling steps, with a tick at each that was measured."""
    counts = sorted(steps.unique())
    axes.set_xscale("log")
    axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sampling steps (log scale)")


def log_ticks(axis: Axis) -> None:
    """Few ticks on a logarithmic axis, each with its number."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def lines_of(looks: Mapping[str, Look]) -> dict[str, Line2D]:
    """What a legend shows of lineages that are drawn as lines."""
    return {
        lineage: Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=LINE)
        for lineage, look in looks.items()
    }


@contextmanager
def figure_of(path: Path, legend: Mapping[str, Line2D], panels: int = 1, sharex: bool = True) -> Iterator[list[Axes]]:
    """Yield the axes of a figure, panels below each other, that is then written to `path`, its legend at the bottom."""
    with canvas(path) as figure:
        yield list(figure.subplots(panels, sharex=sharex, squeeze=False)[:, 0])
        names = [broken(name) for name in legend]
        columns = 2 if len(names) > 1 and max(len(name) for name in names) <= NARROW else 1
        lines = math.ceil(sum(name.count("\n") + 1 for name in names) / columns)
        plots = HEIGHT if panels == 1 else PANEL * panels + 0.3
        figure.set_size_inches(WIDTH, plots + LEGEND_LINE * lines)
        figure.legend(list(legend.values()), names, loc="outside lower center", ncols=columns, borderaxespad=0.2)


@contextmanager
def bars_of(
    path: Path,
    names: Sequence[str],
    values: Mapping[str, "np.ndarray[Any, np.dtype[np.float64]]"],
    looks: Mapping[str, Look],
) -> Iterator[Axes]:
    """Yield the axes of a figure that is then written to `path`: for each name a group of bars, one a lineage, from
    its `values` (train seeds, names): their mean with its 95 % interval as far as the axis goes, and of several train
    seeds each a point."""
    thickness = 0.8 / len(values)
    with canvas(path) as figure:
        legend = [broken(lineage) for lineage in values]
        figure.set_size_inches(WIDTH, BAR * len(names) * (len(values) + 1) + 0.5 + legend_height(legend))
        axes, bars = figure.subplots(), []
        for row, (lineage, of_seeds) in enumerate(values.items()):
            places = np.arange(len(names)) + (row - (len(values) - 1) / 2) * thickness
            means, ends = of_seeds.mean(axis=0), np.array([interval(column) for column in of_seeds.T]).T
            look = looks[lineage]
            drawn = axes.barh(places, means, 0.9 * thickness, facecolor=look.colour, edgecolor="white")
            for bar in drawn.patches:
                bar.set(linewidth=0, hatch=HATCH[look.dashes], hatch_linewidth=0.5)
            bars.append(drawn.patches[0])
            if len(of_seeds) > 1:
                axes.errorbar(means, places, xerr=np.abs(ends - means), fmt="none", ecolor="black", elinewidth=0.5)
                seeds = np.broadcast_to(places, of_seeds.shape).ravel()
                axes.scatter(of_seeds.ravel(), seeds, 2.5, "white", edgecolors="black", linewidths=0.4, zorder=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        yield axes
        figure.legend(bars, legend, loc="outside lower center")


def legend_height(names: Sequence[str]) -> float:
    return LEGEND_LINE * sum(name.count("\n") + 1 for name in names)


@contextmanager
def canvas(path: Path) -> Iterator[Figure]:
    """Yield an empty figure in our style that is then written to `path`, a PNG, and beside it as SVG."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
        pixels: Any = FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            pixels.print_png(temporary, metadata={"Software": None})
        figure.set_layout_engine("none")  # both forms are laid out alike
        vectors: Any = FigureCanvasSVG(figure)
        with atomic_path(path.with_suffix(".svg")) as temporary:
            vectors.print_svg(temporary, metadata={"Date": None, "Creator": None})


def broken(lineage: str) -> str:
    """A lineage's name in lines of at most LEGEND_WIDTH characters, broken before a '+'."""
    lines = [""]
    for part in re.split(r"(?=\+)", lineage):
        fits = not lines[-1] or len(lines[-1] + part) <= LEGEND_WIDTH
        lines = [*lines[:-1], lines[-1] + part] if fits else [*lines, f"  {part}"]
    return "\n".join(lines)

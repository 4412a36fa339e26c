"""The plots of the report, made to be read at half a column's width.

A lineage looks the same in every plot, by its place in the experiment. The same numbers give the same bytes.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from noisebox.files import atomic_path
from noisebox.report.markdown import signed
from noisebox.report.statistics import CELL, seed_means, summarise

# Okabe and Ito (2008), told apart with any colour vision; yellow and black are left out, for paper and axes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DIVERGING, NO_NUMBER = "RdBu", "#dddddd"  # Brewer's, told apart with any colour vision as well
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
WIDTH, HEIGHT, DPI = 3.4, 2.3, 300  # inches, inches, dots per inch
PANEL = 1.5  # inches: the height of each of several panels
LEGEND_LINE, LEGEND_WIDTH = 0.14, 50  # inches, characters
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
    "savefig.facecolor": "white",
}


class Look(NamedTuple):
    """A lineage's colour, line style and marker."""

    colour: str
    dashes: Literal["-", "--", ":", "-."]
    marker: str


@dataclass(frozen=True)
class Curve:
    """A run's training loss: `steps` and `loss` of equal length, `start` the iterations its ancestors were trained."""

    lineage: str
    train_seed: int
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    start: int = 0


def appearance(place: int) -> Look:
    """How the lineage at `place` in the experiment looks; past the palette's end line style and marker change."""
    turn, colour = divmod(place, len(PALETTE))
    return Look(PALETTE[colour], DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)])


def loss_plot(curves: Sequence[Curve], looks: Mapping[str, Look], path: Path) -> None:
    """Draw each run's loss (thin) and, per lineage, the mean over its train seeds where all have a value."""
    block = max((curve.start + max(curve.steps, default=0) for curve in curves), default=0) / POINTS
    means = []
    with _figure(path, _lines(looks)) as (axes,):
        for lineage, look in looks.items():
            of_lineage = [curve for curve in curves if curve.lineage == lineage and curve.steps]
            if not of_lineage:
                continue
            table = _losses(of_lineage, block)
            means.append(table.mean(axis="columns", skipna=False))
            if len(of_lineage) > 1:
                axes.plot(table.index, table.to_numpy(), color=look.colour, linewidth=0.6, alpha=0.4)
            dot = look.marker if len(table) == 1 else None
            axes.plot(table.index, means[-1], marker=dot, color=look.colour, linestyle=look.dashes, linewidth=LINE)
        axes.set_xlabel("iterations")
        axes.set_ylabel("training loss")
        axes.set_xlim(left=0)
        drawn = pd.concat(means) if means else pd.Series(dtype=float)
        fall = drawn.max() / drawn.min() if drawn.min() > 0 else 0.0
        if fall > LOG_FROM:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if fall < 10 else (1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())


def _losses(curves: Sequence[Curve], block: float) -> pd.DataFrame:
    """A column per train seed, a row per logged iteration, or per block of `block` iterations where these are fewer."""
    losses = {curve.train_seed: pd.Series(curve.loss, np.add(curve.steps, curve.start)) for curve in curves}
    table = pd.DataFrame(losses).sort_index().rename_axis("iteration").reset_index()
    return table.groupby(np.ceil(table["iteration"] / block)).mean().set_index("iteration")


def steps_plot(results: pd.DataFrame, looks: Mapping[str, Look], path: Path) -> None:
    """Draw AP against sampling steps: mean over train seeds with its interval, each train seed a point."""
    summary, points = summarise(results), seed_means(results)
    with _figure(path, _lines(looks)) as (axes,):
        for aside, (lineage, look) in zip(_asides(len(looks)), looks.items(), strict=True):
            mean, own = summary[summary["run"] == lineage], points[points["run"] == lineage]
            steps = mean["sample_step"] * aside
            axes.plot(steps, mean["AP"], color=look.colour, linestyle=look.dashes, linewidth=LINE)
            _interval_bars(axes, steps, mean, look)
            (dots,) = axes.plot(own["sample_step"] * aside, own["AP"], look.marker, linestyle="", color=look.colour)
            dots.set(markersize=2.4, markeredgewidth=0, alpha=0.6)
        _steps_axis(axes, results["sample_step"])
        _ap_axis(axes, summary, points["AP"])


def tradeoff_plot(table: pd.DataFrame, looks: Mapping[str, Look], path: Path) -> None:
    """Draw `tables/tradeoff.tsv`: against sampling steps AP with its interval, and seconds per image."""
    with _figure(path, _lines(looks), panels=2) as (above, below):
        for aside, (lineage, look) in zip(_asides(len(looks)), looks.items(), strict=True):
            rows = table[table["run"] == lineage]
            steps = rows["sample_step"] * aside
            for axes, name in ((above, "AP"), (below, "s_per_img")):
                (line,) = axes.plot(steps, rows[name], color=look.colour, linestyle=look.dashes)
                line.set(linewidth=LINE, marker=look.marker, markersize=3)
            _interval_bars(above, steps, rows, look)
        _steps_axis(below, table["sample_step"])
        _ap_axis(above, table)
        below.set_yscale("log")
        _log_ticks(below.yaxis)
        below.set_ylabel("seconds per image")


def distillation_plot(table: pd.DataFrame, points: pd.DataFrame, looks: Mapping[str, Look], path: Path) -> None:
    """Draw AP and its interval against seconds per image: of a student what `tables/distillation.tsv` has, filled; of a
    teacher its `points`, a table as `tables/tradeoff.tsv`, up to the steps that were learned from, joined. The upper
    axis tells the sampling steps at their mean time.
    """
    learned_from = table.groupby("teacher")["teacher_steps"].max()
    legend: dict[str, Line2D] = {}
    drawn = []
    with _figure(path, legend) as (axes,):
        for lineage, look in looks.items():
            own, lesson = table[table["run"] == lineage], points[points["run"] == lineage]
            if lineage in learned_from:
                lesson = lesson[lesson["sample_step"] <= learned_from[lineage]]
                drawn.append(lesson)
                _interval_bars(axes, lesson["s_per_img"], lesson, look)
                (line,) = axes.plot(lesson["s_per_img"], lesson["AP"], color=look.colour, linestyle=look.dashes)
                line.set(linewidth=0.9, marker=look.marker, markersize=3.5, markerfacecolor="white")
                legend[lineage] = line
            if len(own):
                drawn.append(own)
                _interval_bars(axes, own["s_per_img"], own, look)
                (dots,) = axes.plot(own["s_per_img"], own["AP"], look.marker, color=look.colour, markersize=4.5)
                legend.setdefault(lineage, dots)
        axes.set_xscale("log")
        axes.margins(x=0.08)
        _ap_axis(axes, pd.concat(drawn))
        _log_ticks(axes.xaxis)
        axes.set_xlabel("seconds per image (log scale)")
        times = pd.concat(drawn).groupby("sample_step")["s_per_img"].mean()
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
    with _canvas(path) as figure:
        figure.set_size_inches(WIDTH, (0.8 + 0.2 * guided["guidance_scale"].nunique()) * len(bands))
        parts = figure.subfigures(len(bands), squeeze=False)[:, 0]
        for ((lineage, steps), band), part in zip(bands, parts, strict=True):
            part.suptitle(_broken(f"{lineage}, sampling steps: {steps}"))
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
    with _canvas(path) as figure:
        figure.set_size_inches(WIDTH, 0.6)
        figure.text(0.5, 0.5, fill(words, LEGEND_WIDTH), ha="center", va="center")


def _asides(count: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """For each of several lineages the factor that puts its marks beside those of the others on a logarithmic axis."""
    return SPREAD ** ((np.arange(count) + 0.5) / count - 0.5)


def _interval_bars(axes: Axes, places: "pd.Series[float]", rows: pd.DataFrame, look: Look) -> None:
    """The 95 % interval of AP, where there is one, as a bar with an end mark at either end, behind all else."""
    ends = (rows["AP"] - rows["AP_low"], rows["AP_high"] - rows["AP"])
    bars = axes.errorbar(places, rows["AP"], yerr=ends, fmt="none", ecolor=look.colour, capsize=1.6, zorder=1)
    for part in (*bars[1], *bars[2]):
        part.set(linewidth=0.6, alpha=0.5)


def _ap_axis(axes: Axes, rows: pd.DataFrame, points: "pd.Series[float] | None" = None) -> None:
    """An axis of AP that shows every mean and point, and of the intervals what leaves these half of it: with two train
    seeds an interval may be a hundred times as long as all that was measured."""
    axes.set_ylabel("AP (COCO, 0–100)")
    measured = rows["AP"] if points is None else pd.concat([rows["AP"], points])
    low, high = measured.min(), measured.max()
    room = (high - low) / 2
    if room > 0:
        below, above = (
            beyond.fillna(0).clip(0, room).max() for beyond in (low - rows["AP_low"], rows["AP_high"] - high)
        )
        axes.set_ylim(max(low - below, 0) - room / 5, high + above + room / 5)


def _steps_axis(axes: Axes, steps: "pd.Series[int]") -> None:
    """A logarithmic axis of sampling steps, with a tick at each that was measured."""
    counts = sorted(steps.unique())
    axes.set_xscale("log")
    axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sampling steps (log scale)")


def _log_ticks(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _lines(looks: Mapping[str, Look]) -> dict[str, Line2D]:
    """What a legend shows of lineages that are drawn as lines."""
    return {
        lineage: Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=LINE)
        for lineage, look in looks.items()
    }


@contextmanager
def _figure(path: Path, legend: Mapping[str, Line2D], panels: int = 1) -> Iterator[list[Axes]]:
    """Yield the axes of a figure, panels below each other, that is then written to `path`, its legend at the bottom."""
    with _canvas(path) as figure:
        yield list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
        names = [_broken(name) for name in legend]
        columns = 2 if len(names) > 1 and max(len(name) for name in names) <= NARROW else 1
        lines = math.ceil(sum(name.count("\n") + 1 for name in names) / columns)
        plots = HEIGHT if panels == 1 else PANEL * panels + 0.3
        figure.set_size_inches(WIDTH, plots + LEGEND_LINE * lines)
        figure.legend(list(legend.values()), names, loc="outside lower center", ncols=columns, borderaxespad=0.2)


@contextmanager
def _canvas(path: Path) -> Iterator[Figure]:
    """Yield an empty figure in our style that is then written to `path`."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=DPI, metadata={"Software": None})


def _broken(lineage: str) -> str:
    """A lineage's name in lines of at most LEGEND_WIDTH characters, broken before a '+'."""
    lines = [""]
    for part in re.split(r"(?=\+)", lineage):
        fits = not lines[-1] or len(lines[-1] + part) <= LEGEND_WIDTH
        lines = [*lines[:-1], lines[-1] + part] if fits else [*lines, f"  {part}"]
    return "\n".join(lines)

"""The plots of the report: training loss, and AP against sampling steps, made to be read at half a column's width.

A lineage has the same colour in every plot, given by its place in the experiment. The same numbers give the same bytes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from noisebox.files import atomic_path
from noisebox.report.tables import seed_means, summarise

# Okabe and Ito (2008), told apart with any colour vision; yellow and black are left out, for paper and axes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
WIDTH, HEIGHT, DPI = 3.4, 2.3, 300  # inches, inches, dots per inch
LEGEND_LINE = 0.14  # inches
LINE = 1.3  # points
POINTS = 100  # along the axis of iterations: more are averaged
LOG_FROM = 3.0  # a loss that falls by more than this factor is drawn on a logarithmic axis

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
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


def loss_plot(curves: Sequence[Curve], lineages: Sequence[str], path: Path) -> None:
    """Draw each run's loss (thin) and, per lineage, the mean over its train seeds where all have a value."""
    block = max((curve.start + max(curve.steps, default=0) for curve in curves), default=0) / POINTS
    means = []
    with _figure(path, lineages) as axes:
        for place, lineage in enumerate(lineages):
            of_lineage = [curve for curve in curves if curve.lineage == lineage and curve.steps]
            if not of_lineage:
                continue
            look, table = appearance(place), _losses(of_lineage, block)
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


def steps_plot(results: pd.DataFrame, lineages: Sequence[str], path: Path) -> None:
    """Draw AP against sampling steps: mean over train seeds, their spread as a band, each train seed a point."""
    summary, points = summarise(results), seed_means(results)
    with _figure(path, lineages) as axes:
        for place, lineage in enumerate(lineages):
            look = appearance(place)
            rows, own = summary[summary["run"] == lineage], points[points["run"] == lineage]
            steps, mean, std = (rows[name].to_numpy() for name in ("sample_step", "AP", "AP_std"))
            axes.fill_between(steps, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0)
            (dots,) = axes.plot(own["sample_step"], own["AP"], look.marker, linestyle="", color=look.colour)
            dots.set(markersize=2.4, markeredgewidth=0, alpha=0.6)
            axes.plot(steps, mean, color=look.colour, linestyle=look.dashes, linewidth=LINE)
        counts = sorted(results["sample_step"].unique())
        axes.set_xscale("log")
        axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("sampling steps (log scale)")
        axes.set_ylabel("AP (COCO, 0–100)")


def appearance(place: int) -> Look:
    """How the lineage at `place` in the experiment looks; past the palette's end the line style changes."""
    turn, colour = divmod(place, len(PALETTE))
    return Look(PALETTE[colour], DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)])


@contextmanager
def _figure(path: Path, lineages: Sequence[str]) -> Iterator[Axes]:
    """Yield the axes of a figure that is then written to `path`, its legend below the plot."""
    with style.context(["default", STYLE]):
        columns = 2 if max(len(name) for name in lineages) <= 22 and len(lineages) > 1 else 1
        lines = math.ceil(len(lineages) / columns)
        figure = Figure(figsize=(WIDTH, HEIGHT + LEGEND_LINE * lines), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        yield axes
        looks = [appearance(place) for place in range(len(lineages))]
        handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=LINE) for look in looks]
        figure.legend(handles, list(lineages), loc="outside lower center", ncols=columns, borderaxespad=0.2)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=DPI, metadata={"Software": None})

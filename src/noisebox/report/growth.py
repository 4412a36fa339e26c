"""The plot of `noisebox bench --growth`: cost against size on logarithmic axes, with each curve's fitted exponent."""

from pathlib import Path

import numpy as np
import pandas as pd

from noisebox.report.plots import HEIGHT, LINE, SMALL, WIDTH, appearance, canvas, log_ticks


def growth_plot(table: pd.DataFrame, path: Path) -> None:
    """Draw `growth.tsv`: a panel for each axis, of each curve its medians with their spread and its power law."""
    names = table["part"] + ": " + table["what"]
    curves = {axis: names[table["axis"] == axis].unique() for axis in table["axis"].unique()}
    with canvas(path) as figure:
        figure.set_size_inches(WIDTH, HEIGHT * len(curves))
        panels = figure.subplots(len(curves), squeeze=False)[:, 0]
        for panel, (name, of_axis) in zip(panels, curves.items(), strict=True):
            for place, curve in enumerate(of_axis):
                rows = table[(table["axis"] == name) & (names == curve)]
                look, median = appearance(place), rows["median_s"]
                spread = (median - rows["low_s"], rows["high_s"] - median)
                panel.errorbar(rows["size"], median, spread, fmt=look.marker, color=look.colour, markersize=3)
                ends = np.array([rows["size"].min(), rows["size"].max()])
                exponent, factor = rows["exponent"].iloc[0], rows["factor"].iloc[0]
                (line,) = panel.plot(ends, factor * ends**exponent, color=look.colour, linestyle=look.dashes)
                line.set(linewidth=LINE, label=f"{curve}, k = {exponent:.2f}")
            panel.set(xscale="log", yscale="log", xlabel=f"{name} (log scale)", ylabel="seconds (log scale)")
            for axis in (panel.xaxis, panel.yaxis):
                log_ticks(axis)
            panel.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=SMALL)  # beside the curves, wherever they go

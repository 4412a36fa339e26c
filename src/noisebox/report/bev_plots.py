"""The plots of `reports/comparison/`: how lineages that segment from above train, and what IoU each class has."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from noisebox.report.bev_evaluations import BevRun, class_columns
from noisebox.report.evaluations import IOU_PREFIX, iterations_before
from noisebox.report.plots import (
    Curve,
    Look,
    bars_of,
    draw_curves,
    draw_losses,
    figure_of,
    lines_of,
    words_plot,
)
from noisebox.report.statistics import seed_means

# By plot the column of training.csv and the name of its axis. A mode `val` has the metric, `train` all else.
LOSSES = {
    "loss": ("loss", "total loss"),
    "lwce": ("Lwce", "weighted cross-entropy Lwce"),
    "ldepth": ("Ldepth", "depth loss Ldepth"),
    "ldiff": ("Ldiff", "diffusion loss Ldiff"),
}
MIOU, RATE, CLASSES = "miou", "lr", "iou"
PLOTS = (MIOU, *LOSSES, RATE, CLASSES)

Looks = Mapping[str, Look]


def write_plots(runs: Sequence[BevRun], results: pd.DataFrame, looks: Looks, folder: Path) -> None:
    """Write PLOTS below `folder`, each as PNG and SVG, and words in place of those that have nothing to draw.

    `results`: of each lineage the rows of the one step count that the bars show.
    """
    for name, (column, label) in LOSSES.items():
        curves = curves_of(runs, "train", column)
        if curves:
            drawn = _drawn(curves, looks)
            with figure_of(folder / f"{name}.png", lines_of(drawn)) as (axes,):
                draw_losses(axes, curves, drawn, label)
        else:
            words_plot(f"No training of the experiment has the loss {column}.", folder / f"{name}.png")
    rates, scores = curves_of(runs, "train", "lr"), curves_of(runs, "val", "mIoU")
    _write_curves(rates, looks, "learning rate", folder / f"{RATE}.png", nested=True)
    _write_curves(scores, looks, "validation mIoU (0–100)", folder / f"{MIOU}.png", marked=True)
    if len(results):
        classes_plot(results, looks, folder / f"{CLASSES}.png")
    else:
        words_plot("The experiment has no lineage that segments from above.", folder / f"{CLASSES}.png")


def curves_of(runs: Sequence[BevRun], mode: str, column: str) -> list[Curve]:
    """A column of training.csv where rows of the mode have it, over each run's own iterations, after those of its
    ancestors, as far as these are in the report. Runs that lack it are left out."""
    iterations = {(run.lineage, run.train_seed): run.iterations for run in runs}
    curves = []
    for run in runs:
        rows = run.training[run.training["mode"] == mode]
        rows = rows[rows[column].notna()] if column in rows else rows[:0]
        if len(rows):
            start = iterations_before(run.lineage, run.train_seed, iterations)
            curves.append(Curve(run.lineage, run.train_seed, tuple(rows["step"]), tuple(rows[column]), start))
    return curves


def _drawn(curves: Sequence[Curve], looks: Looks) -> dict[str, Look]:
    lineages = {curve.lineage for curve in curves}
    return {lineage: look for lineage, look in looks.items() if lineage in lineages}


def _write_curves(curves: Sequence[Curve], looks: Looks, label: str, path: Path, **drawing: bool) -> None:
    """Curves over iterations on an axis from 0, drawn as `draw_curves` does."""
    if not curves:
        words_plot(f"No training of the experiment has a {label.partition(' (')[0]}.", path)
        return
    drawn = _drawn(curves, looks)
    with figure_of(path, lines_of(drawn)) as (axes,):
        draw_curves(axes, curves, drawn, **drawing)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)


def classes_plot(results: pd.DataFrame, looks: Looks, path: Path) -> None:
    """Draw each lineage's IoU of each class, and the mean over classes. A class that is nan has no bar."""
    columns = [*class_columns(results), "mIoU"]
    per_seed = seed_means(results, columns)
    values = {str(lineage): rows[columns].to_numpy() for lineage, rows in per_seed.groupby("run", sort=False)}
    highest = max(np.nanmax(of_seeds, initial=0) for of_seeds in values.values())
    with bars_of(path, [name.removeprefix(IOU_PREFIX) for name in columns], values, looks) as axes:
        axes.set_xlim(0, min(1.1 * highest, 100) or 1)
        axes.axhline(len(columns) - 1.5, color="black", linewidth=0.6)
        axes.set_xlabel("IoU (0–100)")

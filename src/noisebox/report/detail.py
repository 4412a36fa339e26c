"""What lies behind each lineage's AP, drawn: precision-recall curves, confusion matrices, and what errors cost.

Curves and costs are means over the train seeds, counts are sums.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from noisebox.report.breakdown import IOUS, KINDS, RECALLS, Breakdown, Counts, objects_of
from noisebox.report.plots import (
    LEGEND_LINE,
    LINE,
    SMALL,
    WIDTH,
    Look,
    bars_of,
    broken,
    canvas,
    legend_height,
    lines_of,
    words_plot,
)

MOST_CURVES = 5  # classes with a panel of their own, those of the most objects; one more panel has the mean over all
MOST_CLASSES = 8  # of a confusion matrix, those of the most objects; the rest are one
REST, BACKGROUND, MISSED = "others", "background", "missed"
SEQUENTIAL = "Blues"  # Brewer's, told apart with any colour vision
THICKNESS = dict(zip(IOUS, (LINE, 0.6 * LINE), strict=True))  # of the curve at each IoU
PANEL, LABELS = 1.2, 0.55  # inches: heights of a panel, and of names that stand upright
HEAD_WIDTH = 44  # characters: the names above confusion matrices, all of a row together

Of = Mapping[str, Sequence[Breakdown]]  # by lineage the breakdown of each train seed


def curves_plot(of: Of, looks: Mapping[str, Look], path: Path) -> None:
    """Draw precision against recall: the mean over all classes, then the classes of the most objects. Thick at the
    lower IoU, thin at the higher; of several train seeds the mean."""
    classes, objects = objects_of(of)
    if not objects.any():
        words_plot("No curves: the validation split has no object.", path)
        return
    panels = {"all classes": np.flatnonzero(objects)} if len(classes) > 1 else {}
    panels |= {classes[place]: np.array([place]) for place in _most(objects, MOST_CURVES)}
    columns = 2 if len(panels) <= 4 else 3
    rows = math.ceil(len(panels) / columns)
    with canvas(path) as figure:
        names = [broken(lineage) for lineage in of]
        figure.set_size_inches(WIDTH, PANEL * rows + 0.25 + legend_height(names))
        every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (title, chosen) in zip(every, panels.items(), strict=False):
            for lineage, runs in of.items():
                _draw_curves(axes, runs, chosen, looks[lineage])
            axes.set(title=title, xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.set(xlabel="recall", ylabel="precision")
            axes.label_outer()
        for axes in every[len(panels) :]:
            axes.set_axis_off()
        thickness = [Line2D([], [], color="black", linewidth=width) for width in THICKNESS.values()]
        key = every[0].legend(thickness, [f"IoU {iou}" for iou in THICKNESS], fontsize=SMALL, handlelength=1.2)
        key.set(frame_on=True)
        key.get_frame().set(edgecolor="none", alpha=0.8)
        lines = lines_of({lineage: looks[lineage] for lineage in of})
        figure.legend(list(lines.values()), names, loc="outside lower center")


def _draw_curves(axes: Axes, runs: Sequence[Breakdown], chosen: Counts, look: Look) -> None:
    """The mean over chosen classes and over runs, as far as the recall that is reached."""
    for iou, width in THICKNESS.items():
        precision = np.mean([run.curves[iou][chosen].mean(axis=0) for run in runs], axis=0)
        end = min(np.count_nonzero(precision) + 1, len(RECALLS))
        axes.plot(RECALLS[:end], precision[:end], color=look.colour, linestyle=look.dashes, linewidth=width)


def _most(objects: Counts, count: int) -> list[int]:
    """The places of the classes with the most objects, in the classes' order; none without any."""
    most = np.argsort(-objects, kind="stable")[:count]
    return sorted(place for place in most.tolist() if objects[place])


def confusion_plot(of: Of, path: Path) -> None:
    """Draw what each lineage detects objects as: rows are true classes, in percent of their objects; the last row
    shares out the detections on background. Train seeds are added up."""
    classes, objects = objects_of(of)
    rest = len(classes) > MOST_CLASSES
    chosen = _most(objects, MOST_CLASSES) if rest else list(range(len(classes)))
    names = [*(classes[place] for place in chosen), *([REST] if rest else [])]
    columns = min(len(of), 3 if len(names) <= 4 else 2)
    rows = math.ceil(len(of) / columns)
    heads = [fill(lineage.replace("+", " +"), HEAD_WIDTH // columns).replace(" +", "+") for lineage in of]
    with canvas(path) as figure:
        of_row = [heads[first : first + columns] for first in range(0, len(heads), columns)]
        lines = sum(max(head.count("\n") + 1 for head in row) for row in of_row)
        labelled = 1 if len(of) % columns == 0 else 2  # rows with names below them
        figure.set_size_inches(WIDTH, rows * (WIDTH - 0.8) / columns + LEGEND_LINE * lines + LABELS * labelled + 0.2)
        every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, head, runs in zip(every, heads, of.values(), strict=False):
            _draw_confusion(axes, folded(np.sum([run.confusion for run in runs], axis=0), chosen, rest))
            axes.set_title(head)
        every[0].set_xticks(range(len(names) + 1), [*names, MISSED])  # the axes are shared
        every[0].set_yticks(range(len(names) + 1), [*names, BACKGROUND])
        for axes in every[len(of) :]:
            axes.set_axis_off()
        for axes in every[len(of) - columns : len(of)]:  # the lowest of each column
            axes.tick_params("x", labelbottom=True, labelrotation=90)
        figure.supxlabel("detected as, % of each row", fontsize="medium")
        figure.supylabel("ground truth", fontsize="medium")


def folded(counts: Counts, chosen: Sequence[int], rest: bool) -> Counts:
    """The rows and columns of the chosen classes, with `rest` those of all others added up, and background."""
    classes = len(counts) - 1
    others = [place for place in range(classes) if place not in chosen]
    groups = [[place] for place in chosen] + ([others] if rest else []) + [[classes]]
    return np.array([[counts[np.ix_(row, column)].sum() for column in groups] for row in groups])


def _draw_confusion(axes: Axes, counts: Counts) -> None:
    """Each row in percent; a row of nothing stays empty, and so does the corner, which stands for nothing."""
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total, 100 * counts / total.clip(min=1), np.nan)
    share[-1, -1] = np.nan
    axes.imshow(share, colormaps[SEQUENTIAL].with_extremes(bad="white"), vmin=0, vmax=100)
    for (row, column), percent in np.ndenumerate(share):
        if not np.isnan(percent):
            ink = "white" if percent > 60 else "black"
            axes.text(column, row, f"{percent:.0f}", color=ink, fontsize=SMALL, ha="center", va="center")
    axes.axhline(len(counts) - 1.5, color="black", linewidth=0.6)
    axes.axvline(len(counts) - 1.5, color="black", linewidth=0.6)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def errors_plot(of: Of, looks: Mapping[str, Look], path: Path) -> None:
    """Draw what each kind of error costs each lineage."""
    costs = {lineage: np.array([[run.costs[kind] for kind in KINDS] for run in runs]) for lineage, runs in of.items()}
    every = np.concatenate(list(costs.values()))
    with bars_of(path, KINDS, costs, looks) as axes:
        axes.set_xlim(1.1 * np.nanmin(every, initial=0), 1.1 * np.nanmax(every, initial=0) or 1)
        axes.set_xlabel("AP50 (0–100) gained without these errors")

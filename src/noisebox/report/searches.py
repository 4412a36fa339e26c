"""The page of a budget search, `reports/searches/<name>.md`: its trials, best first, and three plots, from its CSV."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from noisebox import graph
from noisebox.config.best import Trial, cell_of, ranked, read_trials
from noisebox.config.search import BudgetConfig, PruningConfig, RangeConfig, SearchConfig, load_search
from noisebox.files import write_text
from noisebox.report.markdown import ABSENT, number, plural, table
from noisebox.report.plots import HEIGHT, LINE, PALETTE, SMALL, WIDTH, canvas, figure_of, words_plot

COMPLETED, PRUNED, FAILED = PALETTE[0], PALETTE[1], "#777777"
RISING = "viridis"  # told apart with any colour vision, and light where it is high
ENOUGH = 8  # completed trials, of which importance says something
CENTRED: Any = {end: {"fontsize": SMALL, "ha": "center", "va": va} for end, va in ((0, "top"), (1, "bottom"))}
QUANTILE = 0.25  # of the trials, that are held against all

Ranges = Mapping[str, RangeConfig]


def write_search_report(name: str, root: Path) -> list[Path]:
    """Write graph.search_report_outputs of a search below `root`.

    Returns their paths. Raises UserError when the search has no file or no results.
    """
    config = load_search(root / graph.search_file(name))
    trials = read_trials(root / graph.search_csv(name))
    ranges = ranges_of(trials)
    page, *plots = (root / path for path in graph.search_report_outputs(name))
    draw = {"importance": importance_plot, "parallel": parallel_plot, "history": history_plot}
    for kind in graph.SEARCH_PLOTS:
        draw[kind](trials, ranges, page.with_name(f"{name}_{kind}.png"))
    write_text(page, text(name, config, trials, list(ranges)))
    return [page, *plots]


def ranges_of(trials: Sequence[Trial]) -> dict[str, RangeConfig]:
    """What the trials span of each key, in the order of the columns."""
    keys = dict.fromkeys(key for trial in trials for key in trial.values)
    return {key: RangeConfig.spanning([trial.values[key] for trial in trials if key in trial.values]) for key in keys}


# The page


def text(name: str, config: SearchConfig, trials: Sequence[Trial], keys: Sequence[str]) -> str:
    """The Markdown of the page."""
    best = ranked(trials)
    others = sorted((trial for trial in trials if trial not in best), key=lambda trial: (trial.status, trial.number))
    counts = {status: sum(trial.status == status for trial in trials) for status in ("completed", "pruned", "failed")}
    rows = [
        [
            str(rank) if rank <= len(best) else ABSENT,
            str(trial.number),
            trial.status,
            ABSENT if trial.metric is None else number(trial.metric),
            ABSENT if trial.loss is None else f"{trial.loss:.4g}",
            *(cell_of(trial.values[key]) if key in trial.values else ABSENT for key in keys),
        ]
        for rank, trial in enumerate([*best, *others], start=1)
    ]
    reasons = [f"- Trial {trial.number} failed: {trial.reason}" for trial in trials if trial.status == "failed"]
    parts = [
        f"# Search `{name}`",
        f"{config.description[0].upper()}{config.description[1:]}.",
        f"{plural(len(trials), 'trial')} of `{config.lineage}`, train seed {config.seed}, each of "
        f"{budget(config.budget)}: {', '.join(f'{count} {status}' for status, count in counts.items() if count)}. "
        f"{pruning(config.pruning)}",
        table(["rank", "trial", "status", "metric", "loss", *(f"`{key}`" for key in keys)], rows),
        "*Metric: what the lineage's training validates by (AP, in the BEV line mIoU; 0 to 100), at the last "
        "evaluation of the trial; loss: of its last iterations. A short training says which settings start well, not "
        "which end best, and the metric is of the validation split that the report measures on: part of what the best "
        f"is ahead by is chance.* Numbers: [{name}.csv]({name}.csv).",
        *(["\n".join(reasons)] if reasons else []),
        *(
            f"[![{shows}]({name}_{kind}.png)]({name}_{kind}.svg)\n\n*{caption}*"
            for kind, shows, caption in (
                (
                    "importance",
                    "Importance of each key",
                    f"Importance by PED-ANOVA (Watanabe et al. 2023): how differently the best {QUANTILE:.0%} of the "
                    "completed trials are spread over a key's values than all of them. The shares sum to 1.",
                ),
                (
                    "parallel",
                    "Values and metric of each trial",
                    "Each completed trial is a line through its values to its metric, which colours it; others are "
                    "grey. Log: a logarithmic axis.",
                ),
                (
                    "history",
                    "Metric by trial",
                    "The metric that each trial ended with, and the best of the completed ones so far.",
                ),
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def budget(given: BudgetConfig) -> str:
    """The budget of a trial in words."""
    parts = [plural(given.iters, "iteration") if given.iters else f"{given.epochs:g} epochs"]
    parts += [f"on {plural(given.subset, 'image')}"] if given.subset else []
    parts += [f"at {given.image_size} pixels"] if given.image_size else []
    often = plural(given.evaluated(given.iters) if given.iters else given.evaluations, "time")
    return f"{' '.join(parts)}, evaluated {often if given.iters or given.evaluations == 1 else f'up to {often}'}"


def pruning(given: PruningConfig | None) -> str:
    """When trials were given up, in words."""
    said = []
    if given and given.early_stop_threshold is not None:
        said.append(f"One is given up when its metric is below {given.early_stop_threshold:g}.")
    if given and given.successive_halving:
        halving = given.successive_halving
        said.append(
            f"After {plural(halving.min_resource, 'evaluation')}, and whenever that has grown "
            f"{halving.reduction_factor}-fold, one goes on if it is in the best 1/{halving.reduction_factor} so far."
        )
    return " ".join(said) or "None is given up early."


# The plots


def importance_plot(trials: Sequence[Trial], ranges: Ranges, path: Path) -> None:
    """Draw how much each key matters for being among the best; words where too few trials say so."""
    shares = importance(ranked(trials), ranges)
    if not shares:
        words_plot(f"Fewer than {ENOUGH} trials were completed that differ: no importance.", path)
        return
    rising = sorted(shares, key=lambda key: (shares[key], key))
    with canvas(path) as figure:
        figure.set_size_inches(WIDTH, 0.5 + 0.22 * len(rising))
        axes = figure.subplots()
        axes.barh(range(len(rising)), [shares[key] for key in rising], 0.6, facecolor=COMPLETED)
        axes.set_yticks(range(len(rising)), rising)
        axes.set(xlabel="importance", xlim=(0, 1))
        axes.grid(False, axis="y")


def importance(completed: Sequence[Trial], ranges: Ranges) -> dict[str, float]:
    """The share of each key that all trials have, by PED-ANOVA; empty where there are too few or all are alike."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    keys = [key for key in ranges if all(key in trial.values for trial in completed)]
    differ = len({trial.score for trial in completed}) > 1
    if len(completed) < ENOUGH or not keys or not differ:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={key: ranges[key].in_optuna(trial.values[key]) for key in keys},
                distributions={key: ranges[key].distribution() for key in keys},
                value=trial.score,
            )
            for trial in completed
        ]
    )
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=QUANTILE))
    return found if any(found.values()) else {}


def parallel_plot(trials: Sequence[Trial], ranges: Ranges, path: Path) -> None:
    """Draw each trial as a line through its values, in the unit of each key's range, to its metric."""
    shown = [trial for trial in trials if trial.metric is not None]
    scores = [trial.score for trial in shown if trial.status == "completed"]
    if not scores or not ranges:
        words_plot("No trial was completed that has values.", path)
        return
    low, high = min(trial.score for trial in shown), max(trial.score for trial in shown)
    norm = Normalize(low, high if high > low else low + 1)
    colours = colormaps[RISING]
    with canvas(path) as figure:
        figure.set_size_inches(max(WIDTH, 1.1 * (len(ranges) + 1)), HEIGHT)
        axes = figure.subplots()
        for trial in sorted(shown, key=lambda trial: (trial.status == "completed", trial.score, -trial.number)):
            is_completed = trial.status == "completed"
            heights = [_height(ranges[key], trial.values.get(key)) for key in ranges] + [float(norm(trial.score))]
            colour = colours(float(norm(trial.score))) if is_completed else "#bbbbbb"
            axes.plot(range(len(heights)), heights, color=colour, linewidth=LINE if is_completed else 0.7)
        axes.set_xticks(range(len(ranges) + 1), [*(_title(*each) for each in ranges.items()), "metric\n(0–100)"])
        axes.set_yticks([])
        axes.set(xlim=(-0.3, len(ranges) + 0.3), ylim=(-0.14, 1.14))
        axes.spines["left"].set_visible(False)
        for place, range_ in enumerate(ranges.values()):
            _mark(axes, place, range_)
        axes.vlines(len(ranges), 0, 1, color="black", linewidth=0.6, zorder=1)
        axes.grid(False)
        for height, score in ((0, low), (1, high)) if high > low else ((0, low),):
            _tick(axes, len(ranges), height, number(score))


def _title(key: str, range_: RangeConfig) -> str:
    """A key in two lines, and that its axis is logarithmic."""
    return key.replace(".", ".\n", 1) + (" (log)" if range_.log_uniform else "")


def _height(range_: RangeConfig, value: object) -> float:
    """Where a value stands between the ends of its range, 0 to 1; nan where a trial has none."""
    if value is None:
        return math.nan
    if range_.choice is not None:
        return range_.choice.index(value) / max(1, len(range_.choice) - 1)
    low, high = range_.ends
    given = float(str(value))
    if range_.log_uniform:
        return math.log(given / low) / math.log(high / low)
    return (given - low) / (high - low)


def _mark(axes: Axes, place: int, range_: RangeConfig) -> None:
    axes.vlines(place, 0, 1, color="black", linewidth=0.6, zorder=1)
    for value in range_.extremes():
        _tick(axes, place, _height(range_, value), cell_of(value) if range_.choice is not None else f"{value:.3g}")


def _tick(axes: Axes, place: float, height: float, words: str) -> None:
    """Words at an axis: beyond its ends, where no line runs, or else on a ground of their own."""
    if height in (0, 1):
        axes.annotate(words, (place, height), (0, 5 if height else -5), textcoords="offset points", **CENTRED[height])
        return
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    axes.text(place + 0.04, height, words, fontsize=SMALL, va="center", bbox=box)


def history_plot(trials: Sequence[Trial], ranges: Ranges, path: Path) -> None:
    """Draw the metric of each trial that has one by its number, and the best of the completed ones so far."""
    trials = [trial for trial in trials if trial.metric is not None]
    if not trials:
        words_plot("No trial came as far as to have a metric.", path)
        return
    looks = {
        "completed": Line2D([], [], color=COMPLETED, marker="o", linestyle="", markersize=4),
        "pruned": Line2D([], [], color=PRUNED, marker="s", linestyle="", markersize=3.5, markerfacecolor="white"),
        "failed": Line2D([], [], color=FAILED, marker="x", linestyle="", markersize=4),
    }
    shown = {status: look for status, look in looks.items() if any(trial.status == status for trial in trials)}
    completed = [trial for trial in trials if trial.status == "completed"]
    best = Line2D([], [], color=COMPLETED, linewidth=LINE, drawstyle="steps-post")
    with figure_of(path, {**shown, **({"best so far": best} if completed else {})}) as (axes,):
        for status, look in shown.items():
            of_status = [trial for trial in trials if trial.status == status]
            (dots,) = axes.plot([trial.number for trial in of_status], [trial.score for trial in of_status])
            dots.set(color=look.get_color(), marker=look.get_marker(), markersize=look.get_markersize(), linestyle="")
            dots.set_markerfacecolor(look.get_markerfacecolor())
        if completed:
            so_far = np.maximum.accumulate([trial.score for trial in completed])
            (line,) = axes.plot([trial.number for trial in completed], so_far)
            line.set(color=COMPLETED, linewidth=LINE, drawstyle="steps-post", zorder=1, alpha=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="trial", ylabel="metric (0–100)")

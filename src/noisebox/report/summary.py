"""`reports/summary.md`, and everything it shows: read every evaluation of the experiment, write graph.REPORT_FILES.

Only files below `evals/` and the images they name are read, nothing tells the time, and the order is the experiment's:
the same inputs give the same bytes. Whether a difference means anything is not judged here.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig
from noisebox.errors import UserError
from noisebox.files import write_json, write_text
from noisebox.report import pictures, plots, tables
from noisebox.report.pictures import Pictures
from noisebox.report.plots import Curve

SHORT = 12  # characters of a hash
ABSENT = "–"


@dataclass(frozen=True)
class Run:
    """What the report knows of one trained run: its evaluation's tables, curve, pictures and provenance (run.json)."""

    lineage: str
    train_seed: int
    results: pd.DataFrame
    speed: pd.DataFrame
    training: pd.DataFrame
    pictures: Pictures
    provenance: dict[str, Any]


def write_report(experiment: ExperimentConfig, root: Path) -> list[Path]:
    """Write graph.REPORT_FILES below `root` from the evaluations of every lineage and train seed of the experiment.

    Returns the files written. Raises UserError when an evaluation is missing or broken; nothing is written then.
    """
    lineages, seeds = list(dict.fromkeys(experiment.lineages)), list(dict.fromkeys(experiment.train_seeds))
    runs = [read_run(lineage, seed, root) for lineage in lineages for seed in seeds]
    results = tables.collect([run.results for run in runs])
    speed = tables.speed_table(tables.collect([run.speed for run in runs]))
    main, steps = tables.main_table(results), tables.steps_table(results)
    classes = [name.removeprefix(tables.CLASS_PREFIX) for name in tables.class_columns(results)]
    pictured = {run.lineage: run.pictures for run in runs if run.train_seed == seeds[0]}
    grid = pictures.picture_grid(pictured, classes, root)
    reports = root / graph.REPORTS
    pictures.write_png(grid, reports / "pictures/detections.png")
    plots.loss_plot(training_curves(runs), lineages, reports / "plots/loss.png")
    plots.steps_plot(results, lineages, reports / "plots/steps.png")
    for name, table in (("main", main), ("steps", steps), ("speed", speed)):
        write_text(reports / f"tables/{name}.tsv", tables.tsv(table))
    write_json(reports / "metrics.json", tables.scalars(main))
    write_text(reports / "summary.md", summary(experiment.scale, runs, results, main, steps, speed))
    return [root / path for path in graph.report_outputs()]


def read_run(lineage: str, train_seed: int, root: Path) -> Run:
    """Read what `noisebox evaluate` wrote; raises UserError naming a file that is missing or broken."""
    folder = root / graph.evaluation_folder(lineage, train_seed)
    command = f"noisebox evaluate {lineage} --seed {train_seed}"
    for name in graph.EVALUATION_FILES:
        if not (folder / name).exists():
            raise UserError(f"{folder / name} does not exist; this makes it: {command}")
    results = tables.read_evaluation(folder / "results.tsv", tables.RESULTS, lineage, train_seed)
    speed = tables.read_evaluation(folder / "speed.tsv", tables.SPEED, lineage, train_seed)
    if len({*results["ckpt_sha256"], *speed["ckpt_sha256"]}) > 1:
        raise UserError(f"{folder}: results.tsv and speed.tsv name several checkpoints in ckpt_sha256; run {command}")
    return Run(
        lineage,
        train_seed,
        results,
        speed,
        tables.read_training(folder / "training.csv"),
        pictures.read_pictures(folder / "detections.json"),
        _provenance(folder / "run.json"),
    )


def _provenance(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not a {type(content).__name__}")
    return content


def training_curves(runs: Sequence[Run]) -> list[Curve]:
    """Each run's loss over its own iterations, after those of its ancestors, as far as these are in the report."""
    iterations = {(run.lineage, run.train_seed): int(run.provenance.get("iterations") or 0) for run in runs}
    curves = []
    for run in runs:
        *ancestors, _ = graph.Lineage.parse(run.lineage).ancestry()
        start = sum(iterations.get((ancestor.name, run.train_seed), 0) for ancestor in ancestors)
        steps, losses = tuple(run.training["step"]), tuple(run.training["loss"])
        curves.append(Curve(run.lineage, run.train_seed, steps, losses, start))
    return curves


def summary(
    scale: str, runs: Sequence[Run], results: pd.DataFrame, main: pd.DataFrame, steps: pd.DataFrame, speed: pd.DataFrame
) -> str:
    """The text of summary.md; its numbers are those of the tables given, which are rounded already."""
    parts = [
        "# Results",
        _outcome(main),
        "## What was run",
        _what_was_run(scale, runs, results),
        "## Average precision",
        _main(main),
        *_nan_note(results),
        "Each train seed, mean over its eval seeds:",
        _train_seeds(steps),
        "![AP against sampling steps](plots/steps.png)",
        "*AP against sampling steps: mean over train seeds (line), each train seed (points), ± standard deviation "
        "across train seeds (band).* Numbers: [tables/steps.tsv](tables/steps.tsv).",
        "### By class and size",
        _classes(main),
        "## Speed",
        _speed(speed),
        "## Training",
        "![Training loss](plots/loss.png)",
        "*Training loss of each train seed (thin) and its mean over them (thick), averaged over hundredths of the "
        "axis. A finetune goes on where its parent ended, if the parent is reported too; losses of different recipes "
        "may have different terms.* Numbers: training.csv under [Provenance](#provenance).",
        "## Pictures",
        "![Ground truth and detections](pictures/detections.png)",
        _pictures_caption(runs),
        "## Provenance",
        _evidence(runs),
    ]
    return "\n\n".join(parts) + "\n"


def _outcome(main: pd.DataFrame) -> str:
    """What came out at the fewest and the most steps, in numbers without a verdict."""
    fewest, most = int(main["sample_step"].min()), int(main["sample_step"].max())
    sentence = f"At {_plural(fewest, 'sampling step')} AP (0–100) {_range(main[main['sample_step'] == fewest])}"
    if most > fewest:
        sentence += f"; at {_plural(most, 'step')} it {_range(main[main['sample_step'] == most])}"
    seeds = " or ".join(str(count) for count in sorted(main["train_seeds"].unique()))
    if seeds == "1":
        return f"{sentence}. There is one train seed, so nothing is known about the spread across trainings."
    return (
        f"{sentence}. These are means over {seeds} train seeds ± the standard deviation across them. No difference was "
        "tested, so none is to be read as better or worse."
    )


def _range(rows: pd.DataFrame) -> str:
    """The APs of a few lineages, or the lowest and highest of many."""
    told = {
        run: f"{_number(ap)}{'' if math.isnan(std) else f' ± {_number(std)}'} for `{run}`"
        for run, ap, std in zip(rows["run"], rows["AP"], rows["AP_std"], strict=True)
    }
    measured = rows.dropna(subset=["AP"]).sort_values("AP", kind="stable")["run"].tolist()
    if len(told) <= 3 or not measured:
        return "is " + _listed(told.values())
    missing = len(told) - len(measured)
    ends = f"runs from {told[measured[0]]} to {told[measured[-1]]} over {len(told)} lineages"
    return ends + (f", {missing} of them nan" if missing else "")


def _what_was_run(scale: str, runs: Sequence[Run], results: pd.DataFrame) -> str:
    iterations = {run.lineage: run.provenance.get("iterations", "?") for run in runs}
    lineages = _listed(f"`{lineage}` ({count} iterations)" for lineage, count in iterations.items())
    datasets = _listed(f"`{run.provenance.get('dataset') or 'unknown'}`" for run in runs)
    hashes = dict.fromkeys(_data_hash(run) for run in runs)
    lines = [
        f"- **Scale** `{scale}`, **data** {datasets} (sha256 {_listed(hashes)}), evaluated on "
        f"{_listed(results['images'])} images",
        f"- **Lineages** {lineages}",
        f"- **Train seeds** {_listed(run.train_seed for run in runs)}; **eval seeds** {_listed(results['eval_seed'])} "
        f"at {_listed(sorted(results['sample_step']))} sampling steps",
        f"- **Code** {_listed(_commit(run) for run in runs)}",
    ]
    if len(hashes) > 1:
        lines.append("- **Not comparable: the runs were trained on different data**, see [Provenance](#provenance)")
    return "\n".join(lines)


def _data_hash(run: Run) -> str:
    return f"`{(run.provenance.get('data_hash') or 'unknown')[:SHORT]}`"


def _commit(run: Run) -> str:
    commit = run.provenance.get("git_commit")
    named = f"commit `{commit[:SHORT]}`" if commit else "no commit"
    return named + (" with uncommitted changes" if run.provenance.get("git_dirty") else "")


def _main(main: pd.DataFrame) -> str:
    header = ["lineage", "steps", "AP", "std", "flat std", "AP50", "AP75", "train × eval seeds", "results.tsv"]
    rows = [
        [
            f"`{row['run']}`",
            str(row["sample_step"]),
            _number(row["AP"]),
            ABSENT if row["train_seeds"] == 1 else _number(row["AP_std"]),
            ABSENT if row["runs"] == 1 else _number(row["AP_std_flat"]),
            _number(row["AP50"]),
            _number(row["AP75"]),
            f"{row['train_seeds']} × {row['eval_seeds']}",
            _links(row["results"]),
        ]
        for row in main.to_dict("records")
    ]
    caption = (
        "*AP: mean over train seeds of each one's mean over eval seeds; AP50 and AP75 likewise. std: population "
        "standard deviation across the train seeds' means; flat std: of all runs.* "
        "Numbers: [tables/main.tsv](tables/main.tsv)."
    )
    return f"{_table(header, rows)}\n\n{caption}"


def _nan_note(results: pd.DataFrame) -> list[str]:
    """Which runs have no AP; nothing where all have one."""
    missing = results[results["AP"].isna()]
    if missing.empty:
        return []
    runs: dict[tuple[str, int, int], list[int]] = {}
    for row in missing.to_dict("records"):
        runs.setdefault((row["run"], row["train_seed"], row["sample_step"]), []).append(row["eval_seed"])
    told = f"**AP is nan in {len(missing)} of {len(results)} runs.** They count: a mean over one of them is nan.\n"
    lines = [
        f"- `{run}` train seed {seed} at {_plural(step, 'step')}: eval seed {_listed(eval_seeds)} "
        f"({_link('results.tsv', tables.results_path(run, seed))})"
        for (run, seed, step), eval_seeds in runs.items()
    ]
    return ["\n".join([told, *lines])]


def _train_seeds(steps: pd.DataFrame) -> str:
    seeds = list(steps["train_seed"].unique())
    cells: dict[tuple[str, int], list[str]] = {}
    for row in steps.to_dict("records"):
        linked = _link(_number(row["AP"]), tables.results_path(row["run"], row["train_seed"]))
        cells.setdefault((row["run"], row["sample_step"]), []).append(linked)
    rows = [[f"`{run}`", str(step), *values] for (run, step), values in cells.items()]
    caption = "*AP; each value links to its results.tsv.* Numbers: [tables/steps.tsv](tables/steps.tsv)."
    return f"{_table(['lineage', 'steps', *(f'train seed {seed}' for seed in seeds)], rows)}\n\n{caption}"


def _classes(main: pd.DataFrame) -> str:
    columns = [*tables.class_columns(main), *tables.SIZES]
    absent = [name for name in columns if main[name].isna().all()]
    rows = [
        [
            f"`{row['run']}`",
            str(row["sample_step"]),
            *(ABSENT if name in absent else _number(row[name]) for name in columns),
        ]
        for row in main.to_dict("records")
    ]
    classes = [name.removeprefix(tables.CLASS_PREFIX) for name in tables.class_columns(main)]
    header = ["lineage", "steps", *classes, "small", "medium", "large"]
    reason = f" {ABSENT}: nan in every run, as where the ground truth has no such object." if absent else ""
    caption = f"*AP, means as above, from the same results.tsv.{reason}* Numbers: [tables/main.tsv](tables/main.tsv)."
    return f"{_table(header, rows)}\n\n{caption}"


def _speed(speed: pd.DataFrame) -> str:
    header = ["lineage", "steps", "s / image", "images / s", "ratio", "speed.tsv"]
    records = speed.to_dict("records")
    rows = [
        [
            f"`{row['run']}`",
            str(row["sample_step"]),
            f"{row['s_per_img']:.4f}",
            f"{row['img_per_s']:.1f}",
            f"{row['ratio']:.1f}",
            _links(row["speed"]),
        ]
        for row in records
    ]
    where = _listed(
        f"{row['device']} (threads {row['threads']}; batches of {row['batch']} images × {row['eval_seeds']} eval seeds)"
        for row in records
    )
    caption = (
        "*Seconds per image and eval seed, mean over train seeds; images per second: its inverse; ratio: to the fewest "
        f"steps. Measured on {where}; timings vary with the machine and its load.* "
        "Numbers: [tables/speed.tsv](tables/speed.tsv)."
    )
    return f"{_table(header, rows)}\n\n{caption}"


def _pictures_caption(runs: Sequence[Run]) -> str:
    first = [run for run in runs if run.train_seed == runs[0].train_seed]
    asked = _listed(f"{_plural(run.pictures.sample_step, 'step')}, eval seed {run.pictures.eval_seed}" for run in first)
    below = sum(not pictures.shown(image)[1] for run in first for image in run.pictures.images)
    dashed = f" In {_plural(below, 'cell')} none does; there the best {pictures.FALLBACK} are dashed." if below else ""
    files = ", ".join(_link(f"`{run.lineage}`", _evaluated(run, "detections.json")) for run in first)
    images = _plural(len(first[0].pictures.images), "validation image")
    return (
        f"*The first {images}: ground truth, then what each lineage, trained with seed {first[0].train_seed}, detects "
        f"({asked}) with a score of at least {pictures.SCORE}.{dashed}* Detections: {files}."
    )


def _evidence(runs: Sequence[Run]) -> str:
    """Which checkpoint, data and code are behind which files, per run."""
    rows = []
    for run in runs:
        checkpoint, sha256 = run.results.iloc[0][["ckpt", "ckpt_sha256"]]
        files = ("results.tsv", "speed.tsv", "training.csv", "run.json")
        rows.append(
            [
                f"`{run.lineage}`",
                str(run.train_seed),
                _link(f"`{sha256[:SHORT]}`", checkpoint),
                _data_hash(run),
                _commit(run),
                " ".join(_link(name, _evaluated(run, name)) for name in files),
            ]
        )
    return _table(["lineage", "train seed", "checkpoint sha256", "data sha256", "code", "files"], rows)


def _evaluated(run: Run, name: str) -> str:
    return f"{graph.evaluation_folder(run.lineage, run.train_seed)}/{name}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is aligned as text, too; columns of numbers go to the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    right = [all(re.match(rf"\[?(\d|nan|{ABSENT})", cell) for cell in column[1:]) for column in columns]
    layout = list(zip(widths, right, strict=True))
    lines = [
        " | ".join(cell.rjust(w) if r else cell.ljust(w) for cell, (w, r) in zip(row, layout, strict=True))
        for row in cells
    ]
    rule = " | ".join("-" * (w - 1) + (":" if r else "-") for w, r in layout)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.2f}"


def _link(text: str, path: str) -> str:
    """A link from reports/summary.md to a file named from the repository's root."""
    return f"[{text}](../{path})"


def _links(files: str) -> str:
    """Links to one file per train seed, given joined by ',' as in the tables, each named by its folder."""
    return " ".join(_link(Path(file).parent.name, file) for file in files.split(","))


def _listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

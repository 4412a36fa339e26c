"""The sections of summary.md, each the Markdown of one table, with a caption that says what its numbers are.

The numbers are those of `tables/*.tsv`, rounded there already; whether a difference means anything is not judged here.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig, GuidanceProtocol
from noisebox.report import pictures, plots
from noisebox.report.evaluations import SIZES, Asked, Run, results_path
from noisebox.report.markdown import ABSENT, link, links, listed, number, plural, signed, table
from noisebox.report.tables import Row, Taught, class_columns, not_asked, records

SHORT = 12  # characters of a hash


# What was run


def what_was_run(experiment: ExperimentConfig, runs: Sequence[Run], iterations: Mapping[str, str]) -> str:
    """Scale, data, lineages, seeds, protocols and code."""
    datasets = listed(f"`{run.provenance.get('dataset') or 'unknown'}`" for run in runs)
    hashes = dict.fromkeys(_data_hash(run) for run in runs)
    images = listed(count for run in runs for count in run.results["images"])
    of_length: dict[str, list[str]] = {}
    for lineage, count in iterations.items():
        of_length.setdefault(count, []).append(f"`{lineage}`")
    lines = [
        f"- **Scale** `{experiment.scale}`, **data** {datasets} (sha256 {listed(hashes)}), evaluated on {images} "
        "images",
        f"- **Lineages** {'; '.join(f'{listed(names)} ({count} iterations)' for count, names in of_length.items())}",
        f"- **Train seeds** {listed(run.train_seed for run in runs)}",
    ]
    for name, protocol in experiment.protocols.by_name().items():
        line = (
            f"- **Protocol `{name}`** {plural(len(experiment.lineages_asked(name)), 'lineage')}; eval seeds "
            f"{listed(protocol.eval_seeds)}; sampling steps {listed(sorted(protocol.sample_steps))}"
        )
        if isinstance(protocol, GuidanceProtocol):
            scales = listed(f"{scale:g}" for scale in sorted(protocol.scales))
            line += f"; scales {scales}; modes {listed(protocol.modes)}; k {listed(sorted(protocol.langevin_steps))}"
        lines.append(line)
    lines.append(f"- **Code** {listed(_commit(run) for run in runs)}")
    if len(hashes) > 1:
        lines.append("- **Not comparable: the runs were trained on different data**, see [Provenance](#provenance)")
    return "\n".join(lines)


def _data_hash(run: Run) -> str:
    return f"`{(run.provenance.get('data_hash') or 'unknown')[:SHORT]}`"


def _commit(run: Run) -> str:
    commit = run.provenance.get("git_commit")
    named = f"commit `{commit[:SHORT]}`" if commit else "no commit"
    return named + (" with uncommitted changes" if run.provenance.get("git_dirty") else "")


# Average precision


def main(rows: pd.DataFrame) -> str:
    """The main table."""
    header = [
        "lineage",
        "iterations",
        "steps",
        "AP",
        "std",
        "flat std",
        "AP50",
        "AP75",
        "train × eval seeds",
        "results.tsv",
    ]
    cells = [
        [
            f"`{row['run']}`",
            row["iterations"],
            str(row["sample_step"]),
            number(row["AP"]),
            ABSENT if row["train_seeds"] == 1 else number(row["AP_std"]),
            ABSENT if row["runs"] == 1 else number(row["AP_std_flat"]),
            number(row["AP50"]),
            number(row["AP75"]),
            _seeds(row),
            links(row["results"]),
        ]
        for row in records(rows)
    ]
    caption = (
        "*AP: mean over train seeds of each one's mean over eval seeds; AP50 and AP75 likewise. std: population "
        "standard deviation across the train seeds' means; flat std: of all runs. Iterations: of the lineage's last "
        f"stage.* {_numbers('main')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def _seeds(row: Row) -> str:
    return f"{row['train_seeds']} × {row['eval_seeds']}"


def _spread(row: Row, name: str) -> str:
    """A standard deviation, or a dash where there is one value only."""
    return ABSENT if math.isnan(row[name]) and row["train_seeds"] == 1 else number(row[name])


def _numbers(name: str) -> str:
    return f"Numbers: [tables/{name}.tsv](tables/{name}.tsv)."


def nan_note(results: pd.DataFrame) -> list[str]:
    """Which runs have no AP; nothing where all have one."""
    missing = results[results["AP"].isna()]
    if missing.empty:
        return []
    runs: dict[tuple[str, int, int], list[int]] = {}
    for row in records(missing):
        runs.setdefault((row["run"], row["train_seed"], row["sample_step"]), []).append(row["eval_seed"])
    told = f"**AP is nan in {len(missing)} of {len(results)} runs.** They count: a mean over one of them is nan.\n"
    lines = [
        f"- `{run}` train seed {seed} at {plural(step, 'step')}: eval seed {listed(eval_seeds)} "
        f"({link('results.tsv', results_path(run, seed))})"
        for (run, seed, step), eval_seeds in runs.items()
    ]
    return ["\n".join([told, *lines])]


def train_seeds(steps: pd.DataFrame) -> str:
    """AP of each train seed, a column each."""
    seeds = list(steps["train_seed"].unique())
    cells: dict[tuple[str, int], list[str]] = {}
    for row in records(steps):
        linked = link(number(row["AP"]), results_path(row["run"], row["train_seed"]))
        cells.setdefault((row["run"], row["sample_step"]), []).append(linked)
    rows = [[f"`{run}`", str(step), *values] for (run, step), values in cells.items()]
    caption = f"*AP; each value links to its results.tsv.* {_numbers('steps')}"
    return f"{table(['lineage', 'steps', *(f'train seed {seed}' for seed in seeds)], rows)}\n\n{caption}"


def steps_caption(main: pd.DataFrame) -> str:
    """What the plot of AP against steps shows."""
    band = ", ± standard deviation across train seeds (band)" if main["run"].nunique() <= plots.BANDS else ""
    return (
        f"*AP against sampling steps: mean over train seeds (line), each train seed (points){band}.* "
        f"{_numbers('steps')}"
    )


def classes(main: pd.DataFrame) -> str:
    """AP by class and size of object."""
    columns = [*class_columns(main), *SIZES]
    absent = [name for name in columns if main[name].isna().all()]
    rows = [
        [
            f"`{row['run']}`",
            str(row["sample_step"]),
            *(ABSENT if name in absent else number(row[name]) for name in columns),
        ]
        for row in records(main)
    ]
    names = [name.removeprefix("AP-") for name in class_columns(main)]
    header = ["lineage", "steps", *names, "small", "medium", "large"]
    reason = f" {ABSENT}: nan in every run, as where the ground truth has no such object." if absent else ""
    caption = f"*AP, means as above, from the same results.tsv.{reason}* {_numbers('main')}"
    return f"{table(header, rows)}\n\n{caption}"


# The other protocols


def tradeoff(rows: pd.DataFrame) -> str:
    """AP and time of each step count."""
    header = ["lineage", "steps", "AP", "std", "s / image", "ratio", "train × eval seeds", "results.tsv", "speed.tsv"]
    cells = [
        [
            *[f"`{row['run']}`", str(row["sample_step"]), number(row["AP"]), _spread(row, "AP_std")],
            *[
                f"{row['s_per_img']:.4f}",
                f"{row['ratio']:.1f}",
                _seeds(row),
                links(row["results"]),
                links(row["speed"]),
            ],
        ]
        for row in records(rows)
    ]
    caption = (
        "*AP and its standard deviation across train seeds as in the main table; seconds per image and eval seed; "
        f"ratio: to the fewest steps.* {_numbers('tradeoff')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def distillation(rows: pd.DataFrame, asked: Asked, taught: Taught, runs: Sequence[Run]) -> str:
    """Students against their teachers."""
    header = [
        *["student", "steps", "AP", "std", "teacher", "teacher's AP, 1 step", "n steps", "AP, n steps"],
        *["gap", "gap std", "s / image", "teacher's s / image", "speed-up", "train × eval seeds", "results.tsv"],
    ]
    cells = []
    for row in records(rows):
        measured = row["pairs"] > 0
        many = [number(row["teacher_AP"]), signed(row["gap"]), number(row["gap_std"])]
        teacher_ap, gap, gap_std = many if measured else [ABSENT] * 3
        seconds = [f"{row['teacher_s_per_img']:.4f}", f"{row['speedup']:.1f}"] if measured else [ABSENT] * 2
        cells.append(
            [
                *[f"`{row['run']}`", str(row["sample_step"]), number(row["AP"]), _spread(row, "AP_std")],
                *[_teacher(row), number(row["teacher_AP_1"]) if row["pairs_1"] else ABSENT],
                *[str(row["teacher_steps"]), teacher_ap, gap, gap_std if row["pairs"] != 1 else ABSENT],
                *[f"{row['s_per_img']:.4f}", *seconds, _seeds(row), links(row["results"])],
            ]
        )
    missing = listed(f"`{run}` seed {seed} at {plural(n, 'step')}" for run, seed, n in not_asked(asked, taught))
    reason = f" {ABSENT}: protocols.distillation does not ask for {missing}." if missing else ""
    caption = (
        "*n: the steps of the teacher's that the student learned from. Gap: the student's AP minus the teacher's at n "
        "steps, paired by train and eval seed, and its standard deviation over the pairs; speed-up: the teacher's "
        f"seconds per image at n steps over the student's.{reason}* {_numbers('distillation')}"
    )
    return "\n\n".join([table(header, cells), caption, *_other_checkpoints(taught, runs)])


def _teacher(row: Row) -> str:
    parent = graph.Lineage.parse(row["run"]).parent
    return "its parent" if parent and parent.name == row["teacher"] else f"`{row['teacher']}`"


def _other_checkpoints(taught: Taught, runs: Sequence[Run]) -> list[str]:
    """Which students learned from a checkpoint that is not the one evaluated here; nothing where none did."""
    evaluated = {(run.lineage, run.train_seed): run.results["ckpt_sha256"].iloc[0] for run in runs}
    other = [
        f"`{lineage}` seed {seed}"
        for lineage, of_seed in taught.items()
        for seed, teacher in of_seed.items()
        if evaluated.get((teacher.lineage, teacher.seed), teacher.sha256) != teacher.sha256
    ]
    return (
        [f"**The teacher evaluated is not the checkpoint learned from:** {listed(other)}; train again."]
        if other
        else []
    )


def ablations(rows: pd.DataFrame) -> str:
    """The variants, group by group."""
    header = [
        *["group", "variant", "steps", "AP", "std", "Δ", "Δ std", "iterations", "train × eval seeds"],
        *["lineage", "results.tsv"],
    ]
    cells, group = [], None
    for row in records(rows):
        first = row["group"] != group
        reference = rows[rows["group"] == row["group"]]["variant"].iloc[0] == row["variant"]
        group = row["group"]
        one = row["train_seeds"] * row["eval_seeds"] == 1
        deltas = [ABSENT] * 2 if reference else [signed(row["delta"]), ABSENT if one else number(row["delta_std"])]
        cells.append(
            [
                *[f"**{group}**" if first else "", row["variant"], str(row["sample_step"]), number(row["AP"])],
                *[_spread(row, "AP_std"), *deltas, row["iterations"], _seeds(row)],
                *[f"`{row['run']}`", links(row["results"])],
            ]
        )
    caption = (
        "*Δ: AP minus that of the group's first variant, paired by train and eval seed, and its standard deviation "
        f"over the pairs; iterations: of the lineage's last stage.* {_numbers('ablations')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def guidance(rows: pd.DataFrame) -> str:
    """Each way of guiding against none."""
    header = [
        *["lineage", "steps", "scale", "mode", "k", "AP", "std", "Δ", "Δ std", "s / image", "ratio"],
        *["train × eval seeds", "results.tsv"],
    ]
    cells = []
    for row in records(rows):
        unguided, one = row["guidance_scale"] == 0, row["train_seeds"] * row["eval_seeds"] == 1
        deltas = [ABSENT] * 2 if unguided else [signed(row["delta"]), ABSENT if one else number(row["delta_std"])]
        cells.append(
            [
                *[f"`{row['run']}`", str(row["sample_step"]), f"{row['guidance_scale']:g}", row["guidance_mode"]],
                *[
                    ABSENT if unguided else str(row["guidance_steps"]),
                    number(row["AP"]),
                    _spread(row, "AP_std"),
                    *deltas,
                ],
                *[f"{row['s_per_img']:.4f}", f"{row['ratio']:.2f}", _seeds(row), links(row["results"])],
            ]
        )
    caption = (
        "*k: Langevin steps at each guided sampling step. Δ: AP minus that without guidance, paired by train and eval "
        "seed, and its standard deviation over the pairs; ratio: of seconds per image to those without guidance.* "
        f"{_numbers('guidance')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


# Speed, pictures, provenance


def speed(rows: pd.DataFrame) -> str:
    """Seconds per image of the main protocol."""
    header = ["lineage", "steps", "s / image", "images / s", "ratio", "speed.tsv"]
    cells = [
        [
            f"`{row['run']}`",
            str(row["sample_step"]),
            f"{row['s_per_img']:.4f}",
            f"{row['img_per_s']:.1f}",
            f"{row['ratio']:.1f}",
            links(row["speed"]),
        ]
        for row in records(rows)
    ]
    where = listed(
        f"{row['device']} (threads {row['threads']}; batches of {row['batch']} images × {row['eval_seeds']} eval seeds)"
        for row in records(rows)
    )
    caption = (
        "*Seconds per image and eval seed, mean over train seeds; images per second: its inverse; ratio: to the fewest "
        f"steps. Measured on {where}; timings vary with the machine and its load.* {_numbers('speed')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def pictures_caption(runs: Sequence[Run]) -> str:
    """What the picture grid shows of `runs`, one a lineage."""
    ways = {
        f"`{run.lineage}`": f"{plural(run.pictures.sample_step, 'step')}, eval seed {run.pictures.eval_seed}"
        for run in runs
    }
    alike = len(set(ways.values())) == 1
    sampled = listed(ways.values()) if alike else "; ".join(f"{lineage}: {way}" for lineage, way in ways.items())
    below = sum(not pictures.shown(image)[1] for run in runs for image in run.pictures.images)
    dashed = f" In {plural(below, 'cell')} none does; there the best {pictures.FALLBACK} are dashed." if below else ""
    files = ", ".join(link(f"`{run.lineage}`", _evaluated(run, "detections.json")) for run in runs)
    images = plural(len(runs[0].pictures.images), "validation image")
    return (
        f"*The first {images}: ground truth, then what each lineage, trained with seed {runs[0].train_seed}, detects "
        f"({sampled}) with a score of at least {pictures.SCORE}.{dashed}* Detections: {files}."
    )


def provenance(runs: Sequence[Run]) -> str:
    """Which checkpoint, data and code are behind which files, per run."""
    rows = []
    for run in runs:
        checkpoint, sha256 = run.results.iloc[0][["ckpt", "ckpt_sha256"]]
        files = ("results.tsv", "speed.tsv", "training.csv", "run.json")
        rows.append(
            [
                f"`{run.lineage}`",
                str(run.train_seed),
                link(f"`{sha256[:SHORT]}`", checkpoint),
                _data_hash(run),
                _commit(run),
                " ".join(link(name, _evaluated(run, name)) for name in files),
            ]
        )
    return table(["lineage", "train seed", "checkpoint sha256", "data sha256", "code", "files"], rows)


def _evaluated(run: Run, name: str) -> str:
    return f"{graph.evaluation_folder(run.lineage, run.train_seed)}/{name}"

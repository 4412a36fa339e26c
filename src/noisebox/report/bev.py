"""The lineages that segment from above, in the report: tables, `reports/comparison/`, and their section of summary.md.

The first of `bev.lineages` is the baseline that the others are held against. mIoU and IoU are on the 0–100 scale.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from noisebox.config import ExperimentConfig
from noisebox.errors import UserError
from noisebox.files import write_text
from noisebox.report import bev_pictures, bev_plots, plots, sections
from noisebox.report.bev_evaluations import METRICS, BevRun, asked_of, class_columns, read_bev_run
from noisebox.report.bev_pictures import Maps, read_maps
from noisebox.report.evaluations import IOU_PREFIX, results_path, speed_path
from noisebox.report.markdown import ABSENT, links, listed, number, plural, table
from noisebox.report.pictures import words_picture, write_png
from noisebox.report.statistics import CELL, difference, mean_of, seed_means, summarise, under_eval_seeds
from noisebox.report.tables import Row, compared_columns, difference_cells, joined, judged, records, rounded, tsv

BEV = [
    *["run", "iterations", "sample_step", "mIoU", "mIoU_std", "mIoU_std_flat", "mIoU_low", "mIoU_high", "accuracy"],
    *["train_seeds", "eval_seeds", "runs", "nan_runs", "s_per_img", "results", "speed", "ckpt_sha256"],
]
DIFFERENCES = [
    *["run", "reference", "sample_step", "reference_step", "mIoU", "reference_mIoU", *compared_columns("delta")],
    *["pairs", "train_seeds", "unpaired", "results", "reference_results"],
]
NOTHING = "The experiment has no lineage that segments from above."
NO_PICTURES = "bev.pictures names no image."
PAIRING = (
    "A model that draws no noise says the same under every eval seed: it is evaluated once, at 1 step, and paired by "
    "train seed with each eval seed of the other side."
)
IN_WORDS = {
    "better": "better, by more than chance between trainings makes likely",
    "worse": "worse, by more than chance between trainings makes likely",
    "inconclusive": "inconclusive, as chance between trainings may explain it",
    "no verdict": "no verdict, as there is no spread over train seeds to judge it by",
}
SHOWN = {
    "miou": "mIoU of the validation split over iterations",
    "iou": "IoU of each class",
    "loss": "total loss over iterations",
    "lwce": "weighted cross-entropy over iterations",
    "ldepth": "depth loss over iterations",
    "ldiff": "diffusion loss over iterations",
    "lr": "learning rate over iterations",
}


@dataclass(frozen=True)
class BevEvidence:
    """All that this part of the report is made from: the runs, of their results.tsv and speed.tsv the rows that the
    protocol asks for, and by lineage the maps of the first train seed."""

    lineages: tuple[str, ...]
    runs: Sequence[BevRun]
    results: pd.DataFrame
    speed: pd.DataFrame
    maps: Mapping[str, Maps]

    def most_steps(self) -> pd.DataFrame:
        """The results of each lineage at the most steps that it was asked."""
        return self.results[self.results["sample_step"] == self.results.groupby("run")["sample_step"].transform("max")]


@dataclass(frozen=True)
class BevTables:
    """The tables of this part; each is written to `tables/<name>.tsv`."""

    bev: pd.DataFrame
    bev_differences: pd.DataFrame


def gather(experiment: ExperimentConfig, root: Path) -> BevEvidence:
    """Read the evaluations of every lineage of `bev.lineages` and every train seed.

    Raises UserError when one is missing or broken, lacks a row that the protocol asks for, or has other classes.
    """
    lineages = tuple(dict.fromkeys(experiment.bev.lineages))
    seeds = list(dict.fromkeys(experiment.train_seeds))
    if not lineages:
        columns = ["run", "train_seed", "eval_seed", "sample_step", *METRICS]
        return BevEvidence((), [], pd.DataFrame(columns=columns), pd.DataFrame(), {})
    of = {lineage: [read_bev_run(lineage, seed, root) for seed in seeds] for lineage in lineages}
    runs = [run for of_lineage in of.values() for run in of_lineage]
    for run in runs:
        if class_columns(run.results) != class_columns(runs[0].results):
            raise UserError(
                f"{results_path(run.lineage, run.train_seed)} has other classes than "
                f"{results_path(runs[0].lineage, runs[0].train_seed)}: evaluate both on the same dataset"
            )
    asked = [asked_of(of_lineage, experiment.bev.protocol) for of_lineage in of.values()]
    results, speed = (pd.concat(parts, ignore_index=True) for parts in zip(*asked, strict=True))
    maps = {name: read_maps((root / results_path(name, seeds[0])).with_name("maps.npz")) for name in lineages}
    return BevEvidence(lineages, runs, results, speed, maps)


# Tables


def tabulated(evidence: BevEvidence) -> BevTables:
    return BevTables(bev_table(evidence), differences_table(evidence))


def bev_table(evidence: BevEvidence) -> pd.DataFrame:
    """`tables/bev.tsv`: per lineage and step count `summarise` for mIoU, accuracy and each class, rounded, with seconds
    per image; each row names its files and checkpoints."""
    results = evidence.results
    if results.empty:
        return pd.DataFrame(columns=BEV)
    classes = class_columns(results)
    found = summarise(results, [*METRICS, *classes])
    cells = []
    for run, steps in found[CELL].itertuples(index=False):
        own, speed = _cell(results, run, steps), _cell(evidence.speed, run, steps)
        iterations = listed(each.iterations for each in evidence.runs if each.lineage == run)
        files = {"results": _files(own, results_path), "speed": _files(speed, speed_path)}
        seconds = mean_of(speed["inference_s_per_img"])
        cells.append(
            {"iterations": iterations, "s_per_img": seconds, **files, "ckpt_sha256": joined(own["ckpt_sha256"])}
        )
    place = BEV.index("accuracy") + 1
    return rounded(found.join(pd.DataFrame(cells))[[*BEV[:place], *classes, *BEV[place:]]])


def differences_table(evidence: BevEvidence) -> pd.DataFrame:
    """`tables/bev_differences.tsv`: the mIoU of each lineage at each step count minus the baseline's, at the same step
    count if it has one, else at its fewest: one of the two draws no noise."""
    measured = dict(iter(evidence.results.groupby(CELL, sort=False)))
    fewest = evidence.results.groupby("run")["sample_step"].min()
    rows: list[Row] = []
    for (run, steps), own in measured.items():
        baseline = evidence.lineages[0]
        if run == baseline:
            continue
        reference_steps = steps if (baseline, steps) in measured else fewest[baseline]
        theirs = measured[baseline, reference_steps]
        delta = difference(*_paired(own, theirs), "mIoU")
        row = {"run": run, "reference": baseline, "sample_step": steps, "reference_step": reference_steps}
        row |= {"mIoU": _miou(own), "reference_mIoU": _miou(theirs), **difference_cells("delta", delta)}
        row |= {"pairs": delta.pairs, "train_seeds": delta.train_seeds, "unpaired": delta.unpaired}
        row |= {"results": _files(own, results_path), "reference_results": _files(theirs, results_path)}
        rows.append(row)
    return judged(rows, DIFFERENCES, "delta")


def _paired(own: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both sides, each at one step count, so that a side with one row a train seed has it under each eval seed of the
    other's."""
    if not theirs["train_seed"].duplicated().any():
        return own, under_eval_seeds(theirs, own)
    if not own["train_seed"].duplicated().any():
        return under_eval_seeds(own, theirs), theirs
    return own, theirs


def _cell(rows: pd.DataFrame, run: str, steps: int) -> pd.DataFrame:
    return rows[(rows["run"] == run) & (rows["sample_step"] == steps)]


def _files(rows: pd.DataFrame, path: Callable[[str, int], str]) -> str:
    return joined(path(run, seed) for run, seed in zip(rows["run"], rows["train_seed"], strict=True))


def _miou(results: pd.DataFrame) -> float:
    """Mean over train seeds of each one's mean over eval seeds."""
    return mean_of(results.groupby("train_seed", sort=False)["mIoU"].agg(mean_of))


# Files


def write(evidence: BevEvidence, found: BevTables, reports: Path) -> None:
    """Write the tables, `comparison/` and `pictures/bev.png` below `reports`."""
    if any(maps.samples for maps in evidence.maps.values()):
        picture = bev_pictures.grid(evidence.maps)
    else:
        picture = words_picture(NO_PICTURES if evidence.maps else NOTHING)
    write_png(picture, reports / "pictures/bev.png")
    looks = {lineage: plots.appearance(place) for place, lineage in enumerate(evidence.lineages)}
    bev_plots.write_plots(evidence.runs, evidence.most_steps(), looks, reports / "comparison")
    for name, made in vars(found).items():
        write_text(reports / f"tables/{name}.tsv", tsv(made))
    write_text(reports / "comparison/summary.md", comparison(evidence, found))


def comparison(evidence: BevEvidence, found: BevTables) -> str:
    """The text of comparison/summary.md."""
    parts = ["# Comparison of the lineages that segment from above"]
    if not evidence.lineages:
        return "\n\n".join([*parts, NOTHING]) + "\n"
    parts += [*sections.data_note(evidence.runs, "../summary.md"), outcome(found)]
    parts += ["## Best and final mIoU", _trainings(evidence)]
    if len(found.bev_differences):
        caption = (
            f"*Δ: mIoU minus that of the baseline, over the pairs of both sides; mean over train seeds. {PAIRING} "
            "Intervals and verdicts: see [Differences](../summary.md#differences).* Numbers: "
            "[tables/bev_differences.tsv](../tables/bev_differences.tsv)."
        )
        rows = records(found.bev_differences)
        made = table(DIFFERENCE_HEADER, [_difference_cells(row) for row in rows])
        parts += ["## Differences", f"{made}\n\n{caption}"]
    parts += ["## Plots", *(f"[![{shown}]({name}.png)]({name}.svg)" for name, shown in SHOWN.items())]
    parts.append(
        "*Each train seed (thin) and the mean over them (thick), averaged over hundredths of the axis; a lineage goes "
        "on where its parent ended, if that is compared too. Bars: means over train seeds (points) with their 95 % "
        "interval, which may go on beyond the plot, at the most sampling steps.*"
    )
    return "\n\n".join(parts) + "\n"


def _trainings(evidence: BevEvidence) -> str:
    """Of each run its best validation and its final evaluation, and of each lineage the means."""
    finals = seed_means(evidence.most_steps(), ["mIoU"])
    final_of = {(row["run"], row["train_seed"]): row for row in records(finals)}
    rows = []
    for lineage in evidence.lineages:
        own = [run for run in evidence.runs if run.lineage == lineage]
        best = [_best(run) for run in own]
        final = [final_of[lineage, run.train_seed] for run in own]
        for run, (value, at), row in zip(own, best, final, strict=True):
            where = ABSENT if math.isnan(value) else f"{at} of {run.iterations}"
            cells = [_or_absent(value), where, number(row["mIoU"]), str(row["sample_step"])]
            rows.append([f"`{lineage}`", str(run.train_seed), *cells])
        if len(own) > 1:
            means = [mean_of([value for value, _ in best]), mean_of([row["mIoU"] for row in final])]
            rows.append([f"`{lineage}`", "mean", _or_absent(means[0]), ABSENT, number(means[1]), ABSENT])
    header = ["lineage", "train seed", "best validation mIoU", "at iteration", "final mIoU", "steps"]
    caption = (
        "*Best validation mIoU: the highest in training, on the validation split at 1 sampling step under eval seed 0, "
        "with the iteration of it; best_mIoU.pth is the checkpoint. Final mIoU: of model_final.pth, evaluated at the "
        "protocol's most steps, mean over eval seeds.*"
    )
    return f"{table(header, rows)}\n\n{caption}"


def _best(run: BevRun) -> tuple[float, int]:
    """The highest mIoU in training and its iteration, the first of several; nan where nothing was validated."""
    validated = run.training[(run.training["mode"] == "val") & run.training["mIoU"].notna()]
    if validated.empty:
        return math.nan, 0
    row = validated.iloc[int(validated["mIoU"].argmax())]
    return float(row["mIoU"]), int(row["step"])


def _or_absent(value: float) -> str:
    return ABSENT if math.isnan(value) else number(value)


# The section of summary.md


def section(evidence: BevEvidence, found: BevTables) -> list[str]:
    """The parts of the section, its heading first."""
    heading = "## Segmentation from above"
    if not evidence.lineages:
        return [heading, NOTHING]
    parts = [heading, *sections.data_note(evidence.runs), outcome(found), _main(found.bev), _classes(found.bev)]
    if len(found.bev_differences):
        parts += ["### Against the baseline", _differences(found.bev_differences)]
    parts += [
        "### Trainings and maps",
        "[Comparison](comparison/summary.md): mIoU, loss and its terms over iterations, and the IoU of each class.",
        "[![mIoU of the validation split over iterations](comparison/miou.png)](comparison/miou.svg)",
    ]
    if any(maps.samples for maps in evidence.maps.values()):
        parts += ["![True and predicted maps](pictures/bev.png)", _pictures_caption(evidence)]
    return parts


def outcome(found: BevTables) -> str:
    """What came out, in plain words."""
    first, rows = records(found.bev)[0], records(found.bev_differences)
    baseline = f"The baseline `{first['run']}` reaches an mIoU (0–100) of {number(first['mIoU'])}"
    if not rows:
        return f"{baseline}; there is no other lineage to hold against it."
    told = [
        f"- `{row['run']}` reaches {number(row['mIoU'])} at {plural(row['sample_step'], 'step')}, "
        f"{_distance(row['delta'])}: {IN_WORDS[row['delta_verdict']]}"
        for row in rows
    ]
    return "\n".join([f"{baseline}.\n", *told])


def _distance(delta: float) -> str:
    if math.isnan(delta):
        return "which cannot be compared"
    return f"{number(abs(delta))} {'more' if delta >= 0 else 'less'}"


def _main(rows: pd.DataFrame) -> str:
    header = [
        *["lineage", "iterations", "steps", "mIoU", "95 % interval", "std", "accuracy", "s / image"],
        *["train × eval seeds", "results.tsv"],
    ]
    cells = [
        [
            *[f"`{row['run']}`", row["iterations"], str(row["sample_step"]), number(row["mIoU"])],
            *[sections.interval_cell(row, "mIoU", number), _or_absent(row["mIoU_std"]), number(row["accuracy"])],
            *[f"{row['s_per_img']:.4f}", sections.seeds_cell(row), links(row["results"])],
        ]
        for row in records(rows)
    ]
    caption = (
        "*mIoU: the mean IoU over the classes that the ground truth has, of all cells that count; accuracy: the share "
        "of these that are right. Means over train seeds of each one's mean over eval seeds; std: population standard "
        f"deviation across these means; 95 % interval: Student's t over them. {sections.reach_note(rows)}* "
        f"{sections.numbers_link('bev')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def _classes(rows: pd.DataFrame) -> str:
    columns = class_columns(rows)
    absent = [name for name in columns if rows[name].isna().all()]
    cells = [
        [
            *[f"`{row['run']}`", str(row["sample_step"])],
            *(ABSENT if name in absent else number(row[name]) for name in columns),
        ]
        for row in records(rows)
    ]
    names = [name.removeprefix(IOU_PREFIX) for name in columns]
    without = listed(name.removeprefix(IOU_PREFIX) for name in absent)
    reason = f" The ground truth has no cell of {without}, which the mean leaves out." if absent else ""
    caption = f"*IoU of each class, means as above.{reason}* {sections.numbers_link('bev')}"
    return f"{table(['lineage', 'steps', *names], cells)}\n\n{caption}"


DIFFERENCE_HEADER = [
    *["lineage", "steps", "mIoU", "baseline", "its mIoU", "Δ", "95 % interval", "verdict", "p (Holm)", "pairs"],
    "train seeds",
]


def _difference_cells(row: Row) -> list[str]:
    p, steps = row["delta_p_holm"], row["reference_step"]
    at = "" if steps in (1, row["sample_step"]) else f" at {plural(steps, 'step')}"
    return [
        *[f"`{row['run']}`", str(row["sample_step"]), number(row["mIoU"]), f"`{row['reference']}`{at}"],
        *[number(row["reference_mIoU"]), *sections.judged_cells(row, "delta")],
        *[ABSENT if math.isnan(p) else sections.p_cell(p), str(row["pairs"]), str(row["train_seeds"])],
    ]


def _differences(rows: pd.DataFrame) -> str:
    header = [*DIFFERENCE_HEADER, "results.tsv", "baseline's results.tsv"]
    cells = [[*_difference_cells(row), links(row["results"]), links(row["reference_results"])] for row in records(rows)]
    caption = (
        "*Δ: mIoU minus that of the baseline, the first of bev.lineages, paired by train and eval seed; mean over "
        f"train seeds. {PAIRING}{sections.unpaired_note(rows)} {sections.AS_BEFORE}* "
        f"{sections.numbers_link('bev_differences')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def _pictures_caption(evidence: BevEvidence) -> str:
    first = next(iter(evidence.maps.values()))
    places = listed(sample.place for sample in first.samples)
    ways = listed(
        f"`{lineage}` at {plural(maps.sample_step, 'step')} under eval seed {maps.eval_seed}"
        for lineage, maps in evidence.maps.items()
    )
    return (
        f"*Validation images by place, {places}: the camera image above its depth ground truth, the true map, and of "
        f"each lineage, trained with seed {evidence.runs[0].train_seed}, the predicted map above its errors ({ways}). "
        "Other images: `noisebox show-bev`.*"
    )

"""The lineages that look twice at images from above (family yolc), in the report: tables, a picture, and their section
of summary.md.

`crops` is 0 where they looked once, at the whole image, and 1 where they looked again at the densest parts. AP is on
the 0–100 scale. Nothing is random in how they look, so a run is evaluated once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig
from noisebox.errors import UserError
from noisebox.files import write_text
from noisebox.report import aerial_pictures, sections
from noisebox.report.aerial_pictures import Looks, read_looks
from noisebox.report.evaluations import (
    RESULTS,
    evaluate_command,
    read_measured,
    read_provenance,
    results_path,
    speed_path,
)
from noisebox.report.markdown import ABSENT, links, listed, number, signed, table
from noisebox.report.pictures import words_picture, write_png
from noisebox.report.statistics import difference, mean_of, summarise
from noisebox.report.tables import (
    Row,
    by_length,
    compared_columns,
    difference_cells,
    joined,
    judged,
    records,
    references,
    rounded,
    tsv,
)

CELL = ["run", "crops"]
METRICS = ["AP", "AP50", "APs"]
CONTROL = "yolc_finetune"  # the recipe that trains on as before
AERIAL = [
    *[*CELL, "iterations", "AP", "AP_std", "AP_low", "AP_high", "AP50", "APs", "s_per_img", "train_seeds"],
    *["results", "speed", "ckpt_sha256"],
]
DIFFERENCES = [
    *[*CELL, "reference", "reference_crops", "relation", "AP", "reference_AP", *compared_columns("delta")],
    *["APs", "reference_APs", *compared_columns("delta_small")],
    *["train_seeds", "results", "reference_results"],
]
NOTHING = "The experiment has no lineage that looks at images from above."
NO_PICTURES = "aerial.pictures asks for no image."


@dataclass(frozen=True)
class AerialRun:
    """What the report knows of one trained run: its results and speed, and its provenance (run.json)."""

    lineage: str
    train_seed: int
    results: pd.DataFrame
    speed: pd.DataFrame
    provenance: dict[str, Any]
    iterations: int


@dataclass(frozen=True)
class AerialEvidence:
    """All that this part of the report is made from: the runs, of their results.tsv and speed.tsv the rows that the
    line asks for, by lineage the iterations of its last stage, and what the first run saw in the pictured images."""

    lineages: tuple[str, ...]
    runs: Sequence[AerialRun]
    results: pd.DataFrame
    speed: pd.DataFrame
    iterations: Mapping[str, str]
    looks: Looks | None


@dataclass(frozen=True)
class AerialTables:
    """The tables of this part; each is written to `tables/<name>.tsv`."""

    aerial: pd.DataFrame
    aerial_differences: pd.DataFrame


def gather(experiment: ExperimentConfig, root: Path) -> AerialEvidence:
    """Read the evaluations of every lineage of `aerial.lineages` and every train seed.

    Raises UserError when one is missing or broken, or lacks a row that `aerial.crops` asks for.
    """
    lineages, seeds = tuple(dict.fromkeys(experiment.aerial.lineages)), tuple(dict.fromkeys(experiment.train_seeds))
    if not lineages:
        nothing = pd.DataFrame(columns=CELL)
        return AerialEvidence((), [], nothing, nothing, {}, None)
    crops = [int(each) for each in sorted(set(experiment.aerial.crops))]
    runs = [_read(lineage, seed, root) for lineage in lineages for seed in seeds]
    asked = [(run, each) for name in lineages for each in crops for run in runs if run.lineage == name]
    results, speed = (pd.concat([_asked(run, name, each) for run, each in asked]) for name in ("results", "speed"))
    looks = read_looks((root / results_path(lineages[0], seeds[0])).with_name("looks.npz"))
    iterations = {name: listed(run.iterations for run in runs if run.lineage == name) for name in lineages}
    return AerialEvidence(
        lineages, runs, results.reset_index(drop=True), speed.reset_index(drop=True), iterations, looks
    )


def _read(lineage: str, seed: int, root: Path) -> AerialRun:
    """Read what `noisebox evaluate` wrote; raises UserError naming a file that is missing or broken."""
    folder = root / graph.evaluation_folder(lineage, seed)
    results, speed = read_measured(folder, lineage, seed, graph.AERIAL_EVALUATION_FILES, RESULTS)
    provenance, iterations, _ = read_provenance(folder / "run.json")
    return AerialRun(lineage, seed, results, speed, provenance, iterations)


def _asked(run: AerialRun, name: str, crops: int) -> pd.DataFrame:
    """Of a run's results.tsv or speed.tsv the rows with or without crops; raises UserError when there are none."""
    table: pd.DataFrame = getattr(run, name)
    rows = table[table["crops"] == crops]
    if rows.empty:
        path = (results_path if name == "results" else speed_path)(run.lineage, run.train_seed)
        raise UserError(
            f"{path} has no row {'with' if crops else 'without'} crops, which aerial.crops in {graph.EXPERIMENT} asks "
            f"for; this makes it: {evaluate_command(run.lineage, run.train_seed)}"
        )
    return rows


# Tables


def tabulated(evidence: AerialEvidence) -> AerialTables:
    return AerialTables(aerial_table(evidence), differences_table(evidence))


def aerial_table(evidence: AerialEvidence) -> pd.DataFrame:
    """`tables/aerial.tsv`: per lineage, without and with crops, `summarise` and seconds per image, rounded; each row
    names its files and checkpoints."""
    if evidence.results.empty:
        return pd.DataFrame(columns=AERIAL)
    found = summarise(evidence.results, METRICS, CELL)
    cells = []
    for run, crops in found[CELL].itertuples(index=False):
        own, speed = (_cell(rows, run, crops) for rows in (evidence.results, evidence.speed))
        files = {"results": _files(own), "speed": joined(speed_path(run, seed) for seed in speed["train_seed"])}
        seconds = mean_of(speed["inference_s_per_img"])
        facts = {"iterations": evidence.iterations[run], "s_per_img": seconds}
        cells.append({**facts, **files, "ckpt_sha256": joined(own["ckpt_sha256"])})
    return rounded(found.join(pd.DataFrame(cells))[AERIAL])


def differences_table(evidence: AerialEvidence) -> pd.DataFrame:
    """`tables/aerial_differences.tsv`: of AP (`delta`) and AP small (`delta_small`), each lineage with crops against
    itself without, and in either way against its parent and its control, if these are in the experiment."""
    lengths = evidence.iterations
    cells: list[tuple[str, int]] = list(evidence.results[CELL].drop_duplicates().itertuples(index=False, name=None))
    measured = {cell: _cell(evidence.results, *cell) for cell in cells}
    rows: list[Row] = []
    for (run, crops), own in measured.items():
        compared = [("no crops", run, 0)] if crops else []
        compared += [(relation, name, crops) for relation, name in references(run, CONTROL).items()]
        for relation, reference, its_crops in compared:
            theirs = measured.get((reference, its_crops))
            if theirs is None:
                continue
            delta, small = (difference(own, theirs, metric) for metric in ("AP", "APs"))
            row = {"run": run, "crops": crops, "reference": reference, "reference_crops": its_crops}
            row |= {"relation": by_length(relation, lengths[run], lengths[reference])}
            row |= {**difference_cells("delta", delta), **difference_cells("delta_small", small)}
            for metric in ("AP", "APs"):
                row |= {metric: mean_of(own[metric]), f"reference_{metric}": mean_of(theirs[metric])}
            row |= {"train_seeds": delta.train_seeds, "results": _files(own), "reference_results": _files(theirs)}
            rows.append(row)
    return judged(rows, DIFFERENCES, "delta", "delta_small")


def _cell(rows: pd.DataFrame, run: str, crops: int) -> pd.DataFrame:
    return rows[(rows["run"] == run) & (rows["crops"] == crops)]


def _files(results: pd.DataFrame) -> str:
    return joined(results_path(run, seed) for run, seed in zip(results["run"], results["train_seed"], strict=True))


# Files


def write(evidence: AerialEvidence, found: AerialTables, reports: Path) -> None:
    """Write the tables and `pictures/aerial.png` below `reports`."""
    picture = reports / "pictures/aerial.png"
    if evidence.looks and evidence.looks.sights:
        write_png(aerial_pictures.grid(evidence.looks), picture)
    else:
        write_png(words_picture(NO_PICTURES if evidence.looks else NOTHING), picture)
    for name, made in vars(found).items():
        write_text(reports / f"tables/{name}.tsv", tsv(made))


# The section of summary.md


def section(evidence: AerialEvidence, found: AerialTables) -> list[str]:
    """The parts of the section, its heading first."""
    heading = "## Crops in images from above"
    if not evidence.lineages:
        return [heading, NOTHING]
    parts = [heading, *sections.data_note(evidence.runs), *outcome(found), _main(found.aerial)]
    if len(found.aerial_differences):
        parts += ["### Crops and distillation", _differences(found.aerial_differences, evidence.iterations)]
    if evidence.looks and evidence.looks.sights:
        parts += ["![Heatmap, crops, coarse and final boxes](pictures/aerial.png)", _pictures_caption(evidence)]
    return parts


def outcome(found: AerialTables) -> list[str]:
    """What crops and further training gave, in plain words; nothing where nothing was compared."""
    told = []
    for row in records(found.aerial_differences):
        if row["relation"] == "no crops":
            what = f"Crops on `{row['run']}`"
        else:
            what = f"`{row['run']}` {_looked(row['crops'])} against its {row['relation']} `{row['reference']}`"
        told.append(
            f"- {what}: AP {number(row['reference_AP'])} → {number(row['AP'])} ({signed(row['delta'])}, "
            f"{row['delta_verdict']}), AP small {number(row['reference_APs'])} → {number(row['APs'])} "
            f"({signed(row['delta_small'])}, {row['delta_small_verdict']})"
        )
    return ["\n".join(told)] if told else []


def _looked(crops: int) -> str:
    return "with crops" if crops else "without crops"


def _main(rows: pd.DataFrame) -> str:
    header = ["lineage", "crops", "iterations", "AP", "95 % interval", "AP50", "AP small", "s / image"]
    fastest = rows.groupby("run")["s_per_img"].transform("first")
    cells = [
        [
            *[f"`{row['run']}`", "yes" if row["crops"] else "no", row["iterations"], number(row["AP"])],
            *[sections.interval_cell(row, "AP", number), number(row["AP50"]), number(row["APs"])],
            *[f"{row['s_per_img']:.4f}", f"{row['s_per_img'] / first:.1f}", str(row["train_seeds"])],
            links(row["results"]),
        ]
        for row, first in zip(records(rows), fastest, strict=True)
    ]
    caption = (
        "*Means over train seeds; 95 % interval: Student's t over them. "
        f"{sections.reach_note(rows)} Crops: looked again, closer, where objects crowd; ratio: of the time to that of "
        f"the lineage's first row.* {sections.numbers_link('aerial')}"
    )
    return f"{table([*header, 'ratio', 'train seeds', 'results.tsv'], cells)}\n\n{caption}"


def _differences(rows: pd.DataFrame, iterations: Mapping[str, str]) -> str:
    header = [
        *["lineage", "crops", "reference", "Δ AP", "95 % interval", "verdict", "p (Holm)"],
        *[
            "Δ AP small",
            "95 % interval",
            "verdict",
            "p (Holm)",
            "train seeds",
            "results.tsv",
            "reference's results.tsv",
        ],
    ]
    cells = [
        [
            *[f"`{row['run']}`", "yes" if row["crops"] else "no", f"{row['relation']} `{row['reference']}`"],
            *[*sections.judged_cells(row, "delta"), _p(row["delta_p_holm"])],
            *[*sections.judged_cells(row, "delta_small"), _p(row["delta_small_p_holm"])],
            *[str(row["train_seeds"]), links(row["results"]), links(row["reference_results"])],
        ]
        for row in records(rows)
    ]
    lengths = {"iterations": rows["run"].map(iterations), "reference_iterations": rows["reference"].map(iterations)}
    caption = (
        "*Δ: AP, or AP of small objects, minus that of the reference, paired by train seed; mean over train seeds. "
        "Reference: the lineage itself without crops, or in the same way of looking its parent, or the control, which "
        f"is the parent trained on as before, by recipe `{CONTROL}`."
        f"{sections.unequal_note(rows.assign(**lengths))} {sections.AS_BEFORE}* "
        f"{sections.numbers_link('aerial_differences')}"
    )
    return f"{table(header, cells)}\n\n{caption}"


def _p(value: float) -> str:
    return ABSENT if pd.isna(value) else sections.p_cell(value)


def _pictures_caption(evidence: AerialEvidence) -> str:
    return (
        f"*The first validation images as `{evidence.lineages[0]}`, trained with seed {evidence.runs[0].train_seed}, "
        "sees them: the true boxes; the heatmap's largest value over the classes and, framed, the crops that it asks "
        "for; "
        "the boxes of the first look before they are refined; the final boxes of both looks. Of the boxes those that "
        f"score {aerial_pictures.SCORE:g} or more; colours are classes.*"
    )

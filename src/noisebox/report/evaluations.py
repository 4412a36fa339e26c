"""Reading what `noisebox evaluate` wrote below `evals/`, and picking of it the rows that a protocol asks for.

A row of results.tsv is one checkpoint under one eval seed, sampled in one way: so many steps, with or without guidance.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig, Sampling
from noisebox.errors import UserError
from noisebox.report import pictures
from noisebox.report.pictures import Pictures

SIZES = ["APs", "APm", "APl"]
METRICS = ["AP", "AP50", "AP75", *SIZES]
CLASS_PREFIX = "AP-"


def _text(cell: str) -> str:
    if not cell:
        raise ValueError("is empty")
    return cell


def _count(cell: str) -> int:
    if not cell.isdecimal():
        raise ValueError(f"must be a whole number, not {cell!r}")
    return int(cell)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"must be a number or nan, not {cell!r}") from None


def _ap(cell: str) -> float:
    value = _number(cell)
    if not (math.isnan(value) or 0 <= value <= 100):
        raise ValueError(f"must lie in 0 to 100 or be nan, not {cell!r}")
    return value


def _scale(cell: str) -> float:
    value = _number(cell)
    if not 0 <= value < math.inf:
        raise ValueError(f"must be a number from 0 on, not {cell!r}")
    return value


def _mode(cell: str) -> str:
    if cell not in ("none", "final", "all"):
        raise ValueError(f"must be none, final or all, not {cell!r}")
    return cell


def _seconds(cell: str) -> float:
    value = _number(cell)
    if not 0 < value < math.inf:
        raise ValueError(f"must be a positive number of seconds, not {cell!r}")
    return value


Columns = dict[str, Callable[[str], Any]]
RUN: Columns = {"run": _text, "train_seed": _count, "eval_seed": _count, "sample_step": _count}
GUIDANCE: Columns = {
    "guidance_scale": _scale,
    "guidance_mode": _mode,
    "guidance_steps": _count,
    "guidance_topk": _count,
}
RESULTS: Columns = {
    **RUN,
    **GUIDANCE,
    **dict.fromkeys(METRICS, _ap),
    "images": _count,
    "ckpt": _text,
    "ckpt_sha256": _text,
}
SPEED: Columns = {
    **dict.fromkeys(["run", "device", "ckpt", "ckpt_sha256"], _text),
    **dict.fromkeys(["train_seed", "sample_step", "threads", "batch", "eval_seeds"], _count),
    **GUIDANCE,
    "inference_s_per_img": _seconds,
}
TRAINING: Columns = {"mode": _text, "step": _count, "loss": lambda cell: _number(cell) if cell else math.nan}


def read_table(path: Path, columns: Columns, delimiter: str = "\t") -> pd.DataFrame:
    """Read a table whose header holds at least `columns`, each with the function that reads its cells.

    Columns named AP-<class> are read as AP; others stay text. Raises UserError, naming file, line and column, when the
    file is missing, is no such table, has no rows, or a cell does not fit.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = [row for row in csv.reader(file, delimiter=delimiter) if row] or [[]]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8 text: {error}") from None
    for name in columns:
        if name not in header:
            raise UserError(f"{path}: column {name!r} is missing; the header has {', '.join(header) or 'nothing'}")
    if len(set(header)) < len(header):
        raise UserError(f"{path}: column {max(header, key=header.count)!r} appears twice")
    if not rows:
        raise UserError(f"{path} has a header but no rows")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: {len(row)} cells for {len(header)} columns; is the file cut off?")
    readers = {name: columns.get(name, _ap if name.startswith(CLASS_PREFIX) else str) for name in header}
    named_cells = zip(header, zip(*rows, strict=True), strict=True)
    return pd.DataFrame({name: _column(path, name, cells, readers[name]) for name, cells in named_cells})


def _column(path: Path, name: str, cells: Sequence[str], read: Callable[[str], Any]) -> list[Any]:
    values = []
    for line, cell in enumerate(cells, start=2):
        try:
            values.append(read(cell))
        except ValueError as error:
            raise UserError(f"{path}, line {line}: column {name!r} {error}") from None
    return values


def read_evaluation(path: Path, columns: Columns, lineage: str, train_seed: int) -> pd.DataFrame:
    """Read a run's results.tsv (RESULTS) or speed.tsv (SPEED).

    Raises UserError when a row is of another run, or the same run appears twice.
    """
    table = read_table(path, columns)
    for name, expected in (("run", lineage), ("train_seed", train_seed)):
        strange = next((value for value in table[name] if value != expected), expected)
        if strange != expected:
            raise UserError(f"{path}: column {name!r} says {strange} where the folder says {expected}")
    names = [name for name in (*RUN, *GUIDANCE) if name in table]
    (row, count), *_ = Counter(zip(*(table[name] for name in names), strict=True)).most_common(1)
    if count > 1:
        twice = ", ".join(f"{name} {value}" for name, value in zip(names, row, strict=True))
        raise UserError(f"{path}: {count} rows for {twice}")
    return table


def read_training(path: Path) -> pd.DataFrame:
    """A run's training loss, from its training.csv: `step` and `loss` of the rows of mode `train`.

    Raises UserError when a step appears twice.
    """
    table = read_table(path, TRAINING, delimiter=",")
    losses = table[(table["mode"] == "train") & table["loss"].notna()][["step", "loss"]]
    repeated = losses["step"][losses["step"].duplicated()]
    if len(repeated):
        raise UserError(f"{path}: two rows of mode 'train' for step {repeated.iloc[0]}")
    return losses


@dataclass(frozen=True)
class Teacher:
    """The run that a student learned from, and the sampling steps of both in that training."""

    lineage: str
    seed: int
    sha256: str
    kind: str
    teacher_steps: int
    student_steps: int


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
    iterations: int
    teacher: Teacher | None


def read_run(lineage: str, train_seed: int, root: Path) -> Run:
    """Read what `noisebox evaluate` wrote; raises UserError naming a file that is missing or broken."""
    folder = root / graph.evaluation_folder(lineage, train_seed)
    command = _command(lineage, train_seed)
    for name in graph.EVALUATION_FILES:
        if not (folder / name).exists():
            raise UserError(f"{folder / name} does not exist; this makes it: {command}")
    results = read_evaluation(folder / "results.tsv", RESULTS, lineage, train_seed)
    speed = read_evaluation(folder / "speed.tsv", SPEED, lineage, train_seed)
    if len({*results["ckpt_sha256"], *speed["ckpt_sha256"]}) > 1:
        raise UserError(f"{folder}: results.tsv and speed.tsv name several checkpoints in ckpt_sha256; run {command}")
    training = read_training(folder / "training.csv")
    pictured = pictures.read_pictures(folder / "detections.json")
    return Run(lineage, train_seed, results, speed, training, pictured, *_read_provenance(folder / "run.json"))


def _command(lineage: str, train_seed: int) -> str:
    return f"noisebox evaluate {lineage} --seed {train_seed}"


def _read_provenance(path: Path) -> tuple[dict[str, Any], int, Teacher | None]:
    """The whole of a run.json, the iterations of the lineage's last stage, and its teacher."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not a {type(content).__name__}")
    try:
        taught = content.get("teacher")
        teacher = Teacher(**{name: taught[name] for name in Teacher.__annotations__}) if taught else None
        return content, int(content["iterations"]), teacher
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not what a training writes: {error}") from None


def results_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/results.tsv"


def speed_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/speed.tsv"


@dataclass(frozen=True)
class Asked:
    """The rows that one protocol asks for: of results.tsv, and of speed.tsv, where eval seeds have no rows of their
    own. Both are empty where the experiment has no such protocol."""

    results: pd.DataFrame
    speed: pd.DataFrame


def asked(runs: Sequence[Run], name: str, experiment: ExperimentConfig) -> Asked:
    """The rows for `protocols.<name>`: lineages in the experiment's order, rising steps, train seeds as given.

    Raises UserError, naming file and command, when an evaluation lacks a row that is asked for.
    """
    results = pd.concat([run.results for run in runs], ignore_index=True)
    speed = pd.concat([run.speed for run in runs], ignore_index=True)
    protocol = experiment.protocols.by_name().get(name)
    lineages = experiment.lineages_asked(name)
    samplings = dict.fromkeys(sorted(protocol.asked(), key=lambda sampling: sampling.steps) if protocol else [])
    eval_seeds = dict.fromkeys(protocol.eval_seeds if protocol else [])
    taken = [
        (run.lineage, run.train_seed, sampling)
        for lineage in lineages
        for sampling in samplings
        for run in runs
        if run.lineage == lineage
    ]
    of_results = [(lineage, seed, each, sampling) for lineage, seed, sampling in taken for each in eval_seeds]
    of_speed = [(lineage, seed, None, sampling) for lineage, seed, sampling in taken]
    return Asked(_rows(results, of_results, name), _rows(speed, of_speed, name))


def unguided(runs: Sequence[Run], lineages: Sequence[str], eval_seeds: Sequence[int]) -> Asked:
    """All that some lineages were asked without guidance under these eval seeds, by whichever protocol, in the order
    of `asked`."""
    tables = []
    for name in ("results", "speed"):
        parts = [pd.concat([getattr(run, name) for run in runs if run.lineage == lineage]) for lineage in lineages]
        table = pd.concat([part.sort_values("sample_step", kind="stable") for part in parts], ignore_index=True)
        kept = table["guidance_scale"] == 0
        tables.append(table[kept & table["eval_seed"].isin(eval_seeds) if "eval_seed" in table else kept])
    return Asked(*(table.reset_index(drop=True) for table in tables))


def _rows(table: pd.DataFrame, wanted: Sequence[tuple[str, int, int | None, Sampling]], name: str) -> pd.DataFrame:
    """The rows of lineage, train seed, eval seed (None in speed.tsv) and sampling, in the order wanted."""
    eval_seeds = table["eval_seed"] if "eval_seed" in table else [None] * len(table)
    keys = zip(table["run"], table["train_seed"], eval_seeds, *(table[cell] for cell in _CELLS), strict=True)
    place = {key: row for row, key in enumerate(keys)}
    found = []
    for lineage, train_seed, eval_seed, sampling in wanted:
        row = place.get((lineage, train_seed, eval_seed, *_cells(sampling)))
        if row is None:
            path = (speed_path if eval_seed is None else results_path)(lineage, train_seed)
            under = "" if eval_seed is None else f" under eval seed {eval_seed}"
            raise UserError(
                f"{path} has no row for {described(sampling)}{under}, which protocols.{name} in {graph.EXPERIMENT} "
                f"asks for; this makes it: {_command(lineage, train_seed)}"
            )
        found.append(row)
    return table.iloc[found].reset_index(drop=True)


_CELLS = ("sample_step", *GUIDANCE)


def _cells(sampling: Sampling) -> tuple[int, float, str, int, int]:
    """A way to sample as results.tsv and speed.tsv write it."""
    guidance = sampling.guidance
    if guidance.scale == 0:
        return sampling.steps, 0.0, "none", 0, 0
    return sampling.steps, guidance.scale, guidance.mode, guidance.langevin_steps, guidance.topk or 0


def described(sampling: Sampling) -> str:
    """A way to sample in words."""
    guidance = sampling.guidance
    words = f"{sampling.steps} sampling step{'' if sampling.steps == 1 else 's'}"
    if guidance.scale == 0:
        return words
    return f"{words}, guidance scale {guidance.scale:g}, mode {guidance.mode}, k {guidance.langevin_steps}"

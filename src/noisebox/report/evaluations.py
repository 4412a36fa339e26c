"""Reading what `noisebox evaluate` wrote below `evals/`, and picking of it the rows that a protocol asks for.

A row of results.tsv is one checkpoint under one eval seed, sampled in one way: so many steps, with or without guidance.
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig, ProtocolsConfig, Sampling
from noisebox.config.sampling import UNNORMALISED
from noisebox.errors import UserError
from noisebox.files import read_json, unreadable
from noisebox.report.breakdown import Breakdown, read_breakdown
from noisebox.report.markdown import plural

SIZES = ["APs", "APm", "APl"]
METRICS = ["AP", "AP50", "AP75", *SIZES]
CLASS_PREFIX = "AP-"
IOU_PREFIX = "IoU-"


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


def percentage(cell: str) -> float:
    value = _number(cell)
    if not (math.isnan(value) or 0 <= value <= 100):
        raise ValueError(f"must lie in 0 to 100 or be nan, not {cell!r}")
    return value


def number_or_blank(cell: str) -> float:
    return _number(cell) if cell else math.nan


def _scale(cell: str) -> float:
    value = _number(cell)
    if not 0 <= value < math.inf:
        raise ValueError(f"must be a number from 0 on, not {cell!r}")
    return value


def _mode(cell: str) -> str:
    if cell.removesuffix(UNNORMALISED) not in ("none", "final", "all"):
        raise ValueError(f"must be none, final or all, the latter two maybe with {UNNORMALISED}, not {cell!r}")
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
LOOK: Columns = {"crops": _count}  # 1 where the densest parts were looked at again
EVIDENCE: Columns = {"images": _count, "ckpt": _text, "ckpt_sha256": _text}
RESULTS: Columns = {**RUN, **GUIDANCE, **LOOK, **dict.fromkeys(METRICS, percentage), **EVIDENCE}
IMPORTED: Columns = {**RESULTS, "images": str, "ckpt_sha256": str, "source": _text}  # the first two may be unknown
DATASET: Columns = {"dataset": str}  # optional in an imported results.tsv; the name that the log has, or nothing
SPEED: Columns = {
    **dict.fromkeys(["run", "device", "ckpt", "ckpt_sha256"], _text),
    **dict.fromkeys(["train_seed", "sample_step", "threads", "batch", "eval_seeds"], _count),
    **GUIDANCE,
    **LOOK,
    "inference_s_per_img": _seconds,
}
WAY = ("sample_step", *GUIDANCE, *LOOK)  # the columns that say how was sampled, in the order of Sampling.columns
TRAINING: Columns = {"mode": _text, "step": _count, "loss": number_or_blank}


def read_table(path: Path, columns: Columns, delimiter: str = "\t", optional: Columns | None = None) -> pd.DataFrame:
    """What `read_cells` reads, as a frame."""
    return pd.DataFrame(read_cells(path, columns, delimiter, optional))


def read_cells(
    path: Path, columns: Columns, delimiter: str = "\t", optional: Columns | None = None
) -> dict[str, list[Any]]:
    """Read a table whose header holds at least `columns`, each with the function that reads its cells, and maybe the
    `optional` ones: by column its values, as many as there are rows.

    Columns named AP-<class> are read as AP, IoU-<class> as IoU; others are left out. Raises UserError, naming file,
    line and column, when the file is missing, is no such table, has no rows, or a cell does not fit.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file, delimiter=delimiter) if row] or [[]]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise unreadable(path, error) from None
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
    of_class = {name: percentage for name in header if name.startswith((CLASS_PREFIX, IOU_PREFIX))}
    readers = of_class | (optional or {}) | columns
    named_cells = zip(header, zip(*rows, strict=True), strict=True)
    return {name: _column(path, name, cells, readers[name]) for name, cells in named_cells if name in readers}


def _column(path: Path, name: str, cells: Sequence[str], read: Callable[[str], Any]) -> list[Any]:
    values = []
    for line, cell in enumerate(cells, start=2):
        try:
            values.append(read(cell))
        except ValueError as error:
            raise UserError(f"{path}, line {line}: column {name!r} {error}") from None
    return values


def read_evaluation(
    path: Path, columns: Columns, lineage: str, train_seed: int, optional: Columns | None = None
) -> pd.DataFrame:
    """Read a run's results.tsv (RESULTS, or IMPORTED and maybe DATASET) or speed.tsv (SPEED).

    Raises UserError when a row is of another run, or the same run appears twice.
    """
    table = read_cells(path, columns, optional=optional)
    for name, expected in (("run", lineage), ("train_seed", train_seed)):
        strange = next((value for value in table[name] if value != expected), expected)
        if strange != expected:
            raise UserError(f"{path}: column {name!r} says {strange} where the folder says {expected}")
    if "sample_step" not in columns:
        return pd.DataFrame(table)
    names = [name for name in (*RUN, *GUIDANCE, *LOOK) if name in table]
    (row, count), *_ = Counter(zip(*(table[name] for name in names), strict=True)).most_common(1)
    if count > 1:
        twice = ", ".join(f"{name} {value}" for name, value in zip(names, row, strict=True))
        raise UserError(f"{path}: {count} rows for {twice}")
    return pd.DataFrame(table)


def read_training(path: Path) -> dict[int, float]:
    """A run's training loss by step, from its training.csv: of the rows of mode `train`, in their order.

    Raises UserError when a step appears twice.
    """
    table = read_cells(path, TRAINING, delimiter=",")
    losses: dict[int, float] = {}
    for mode, step, loss in zip(table["mode"], table["step"], table["loss"], strict=True):
        if mode != "train" or math.isnan(loss):
            continue
        if step in losses:
            raise UserError(f"{path}: two rows of mode 'train' for step {step}")
        losses[step] = loss
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


class Evaluated(Protocol):
    """What every line of research tells of a run: results.tsv, and where the run comes from (run.json)."""

    @property
    def lineage(self) -> str: ...
    @property
    def train_seed(self) -> int: ...
    @property
    def results(self) -> pd.DataFrame: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Run:
    """What the report knows of each trained run: its evaluation's tables, breakdown, curve, and run.json."""

    lineage: str
    train_seed: int
    results: pd.DataFrame
    speed: pd.DataFrame
    training: dict[int, float]
    breakdown: Breakdown
    provenance: dict[str, Any]
    iterations: int
    teacher: Teacher | None


def read_run(lineage: str, train_seed: int, root: Path) -> Run:
    """Read what `noisebox evaluate` wrote; raises UserError naming a file that is missing or broken."""
    folder = root / graph.evaluation_folder(lineage, train_seed)
    results, speed = read_measured(folder, lineage, train_seed, graph.EVALUATION_FILES, RESULTS)
    training = read_training(folder / "training.csv")
    breakdown = read_breakdown(folder / "breakdown.json")
    provenance = read_provenance(folder / "run.json")
    return Run(lineage, train_seed, results, speed, training, breakdown, *provenance)


def read_measured(
    folder: Path, lineage: str, train_seed: int, files: Sequence[str], columns: Columns
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results.tsv, with `columns`, and speed.tsv of an evaluation's folder, where all `files` must lie.

    Raises UserError when a file is missing or broken, or they are of several checkpoints.
    """
    command = evaluate_command(lineage, train_seed)
    for name in files:
        if not (folder / name).exists():
            raise UserError(f"{folder / name} does not exist; this makes it: {command}")
    results = read_evaluation(folder / "results.tsv", columns, lineage, train_seed)
    speed = read_evaluation(folder / "speed.tsv", SPEED, lineage, train_seed)
    if len({*results["ckpt_sha256"], *speed["ckpt_sha256"]}) > 1:
        raise UserError(f"{folder}: results.tsv and speed.tsv name several checkpoints in ckpt_sha256; run {command}")
    return results, speed


def evaluate_command(lineage: str, train_seed: int) -> str:
    return f"noisebox evaluate {lineage} --seed {train_seed}"


def read_provenance(path: Path) -> tuple[dict[str, Any], int, Teacher | None]:
    """The whole of a run.json, the iterations of the lineage's last stage, and its teacher."""
    content = read_json(path)
    try:
        taught = content.get("teacher")
        samples = taught and "use_teacher_crop" not in taught  # a YOLC teacher is no sampler that students are held to
        teacher = Teacher(**{name: taught[name] for name in Teacher.__annotations__}) if taught and samples else None
        return content, int(content["iterations"]), teacher
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not what a training writes: {error}") from None


def iterations_before(lineage: str, train_seed: int, iterations: Mapping[tuple[str, int], int]) -> int:
    """How long the ancestors of a run were trained, as far as `iterations`, by lineage and train seed, tells."""
    *ancestors, _ = graph.Lineage.parse(lineage).ancestry()
    return sum(iterations.get((ancestor.name, train_seed), 0) for ancestor in ancestors)


def results_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/results.tsv"


def imported_path(lineage: str, train_seed: int) -> str:
    """What `noisebox import-logs` wrote."""
    return f"{graph.imported_folder(lineage, train_seed)}/results.tsv"


def speed_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/speed.tsv"


def detections_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/detections.json"


def breakdown_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/breakdown.json"


@dataclass(frozen=True)
class Asked:
    """The rows that one protocol asks for: of results.tsv, and of speed.tsv, where eval seeds have no rows of their
    own. Both are empty where the experiment has no such protocol."""

    results: pd.DataFrame
    speed: pd.DataFrame


def asked(runs: Sequence[Run], experiment: ExperimentConfig) -> dict[str, Asked]:
    """The rows for each protocol: lineages in the experiment's order, rising steps, train seeds as given. A lineage
    that draws no noise has one row a train seed.

    Raises UserError, naming file and command, when an evaluation lacks a row that is asked for.
    """
    results, speed = _Rows([run.results for run in runs]), _Rows([run.speed for run in runs])
    protocols, once = experiment.protocols.by_name(), experiment.detr.asked()
    found = {}
    for name in ProtocolsConfig.model_fields:
        protocol = protocols.get(name)
        samplings = sorted(protocol.asked(), key=lambda sampling: sampling.steps) if protocol else []
        eval_seeds = list(dict.fromkeys(protocol.eval_seeds if protocol else []))
        ways = dict.fromkeys(samplings, eval_seeds)
        taken = [
            (run, sampling, under)
            for lineage in experiment.lineages_asked(name)
            for sampling, under in (once if lineage in experiment.detr.lineages else ways).items()
            for run in runs
            if run.lineage == lineage
        ]
        timed = [(run, sampling, [None]) for run, sampling, _ in taken]
        found[name] = Asked(results.of(taken, name), speed.of(timed, name))
    return found


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


def under_all(runs: Sequence[Run], lineages: Sequence[str], eval_seeds: Sequence[int]) -> Asked:
    """Of `unguided` those ways to sample that a run was asked under each of the eval seeds, so that means compare."""
    found = unguided(runs, lineages, eval_seeds)
    counts = found.results.groupby(["run", "train_seed", *WAY])["eval_seed"].transform("nunique")
    return Asked(found.results[counts == len(set(eval_seeds))].reset_index(drop=True), found.speed)


class _Rows:
    """The rows of all results.tsv, or of all speed.tsv, found by what they are about."""

    def __init__(self, tables: Sequence[pd.DataFrame]) -> None:
        self.table = pd.concat(tables, ignore_index=True)
        eval_seeds = self.table["eval_seed"].tolist() if "eval_seed" in self.table else [None] * len(self.table)
        named = (self.table[name].tolist() for name in ("run", "train_seed"))
        ways = (self.table[name].tolist() for name in WAY)
        keys = zip(*named, eval_seeds, *ways, strict=True)
        self.place = {key: row for row, key in enumerate(keys)}

    def of(self, taken: Sequence[tuple[Run, Sampling, Sequence[int | None]]], protocol: str) -> pd.DataFrame:
        """The rows of each run and sampling, for each of its eval seeds (None in speed.tsv), in that order."""
        found = []
        for run, sampling, eval_seeds in taken:
            lineage, train_seed, way = run.lineage, run.train_seed, sampling.columns().values()
            for eval_seed in eval_seeds:
                row = self.place.get((lineage, train_seed, eval_seed, *way))
                if row is None:
                    path = (speed_path if eval_seed is None else results_path)(lineage, train_seed)
                    under = "" if eval_seed is None else f" under eval seed {eval_seed}"
                    raise UserError(
                        f"{path} has no row for {described(sampling)}{under}, which protocols.{protocol} in "
                        f"{graph.EXPERIMENT} asks for; this makes it: {evaluate_command(lineage, train_seed)}"
                    )
                found.append(row)
        return self.table.iloc[found].reset_index(drop=True)


def described(sampling: Sampling) -> str:
    """A way to sample in words."""
    guidance = sampling.guidance
    words = f"{plural(sampling.steps, 'sampling step')}{', crops' if sampling.crops else ''}"
    if guidance.scale == 0:
        return words
    mode = sampling.columns()["guidance_mode"]
    return f"{words}, guidance scale {guidance.scale:g}, mode {mode}, k {guidance.langevin_steps}"

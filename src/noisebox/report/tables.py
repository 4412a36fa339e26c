"""The numbers of the report: reading an evaluation's TSVs, and the published arithmetic over train and eval seeds.

AP is on the 0–100 scale everywhere. A run is one checkpoint with one eval seed at one number of sampling steps; it is
`nan` where there was nothing to measure, and a mean over a `nan` is `nan`.
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisebox import graph
from noisebox.errors import UserError

PROTOCOL = ["eval_seed", "sample_step"]
SIZES = ["APs", "APm", "APl"]
METRICS = ["AP", "AP50", "AP75", *SIZES]
CLASS_PREFIX = "AP-"
DECIMALS = 4


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


def _seconds(cell: str) -> float:
    value = _number(cell)
    if not 0 < value < math.inf:
        raise ValueError(f"must be a positive number of seconds, not {cell!r}")
    return value


Columns = dict[str, Callable[[str], Any]]
RUN: Columns = {"run": _text, "train_seed": _count, "eval_seed": _count, "sample_step": _count}
RESULTS: Columns = {**RUN, **dict.fromkeys(METRICS, _ap), "images": _count, "ckpt": _text, "ckpt_sha256": _text}
SPEED: Columns = {
    **dict.fromkeys(["run", "device", "ckpt", "ckpt_sha256"], _text),
    **dict.fromkeys(["train_seed", "sample_step", "threads", "batch", "eval_seeds"], _count),
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
    keys = [key for key in RUN if key in table]
    (row, count), *_ = Counter(zip(*(table[key] for key in keys), strict=True)).most_common(1)
    if count > 1:
        twice = ", ".join(f"{key} {value}" for key, value in zip(keys, row, strict=True))
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


def collect(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of many: lineages in the order given, their step counts rising, then train seeds in the order given.

    Raises UserError when two train seeds of a lineage were not asked the same, as their means could not be compared.
    """
    by_lineage = pd.concat(tables, ignore_index=True).groupby("run", sort=False)
    merged = pd.concat([rows.sort_values("sample_step", kind="stable") for _, rows in by_lineage], ignore_index=True)
    asked: dict[str, tuple[int, set[tuple[int, ...]]]] = {}
    for _, rows in merged.groupby(["run", "train_seed"], sort=False):
        run, train_seed = str(rows["run"].iloc[0]), int(rows["train_seed"].iloc[0])
        protocol = set(rows[[key for key in PROTOCOL if key in rows]].itertuples(index=False, name=None))
        first, expected = asked.setdefault(run, (train_seed, protocol))
        if protocol != expected:
            raise UserError(
                f"{results_path(run, first)} and {results_path(run, train_seed)} differ in eval seeds or sampling "
                f"steps: evaluate both again, with the protocol in {graph.EXPERIMENT}"
            )
    return merged


def results_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/results.tsv"


def speed_path(lineage: str, train_seed: int) -> str:
    return f"{graph.evaluation_folder(lineage, train_seed)}/speed.tsv"


def class_columns(table: pd.DataFrame) -> list[str]:
    """The columns of per-class AP, in the dataset's order."""
    return [str(name) for name in table.columns if str(name).startswith(CLASS_PREFIX)]


def seed_means(results: pd.DataFrame, metrics: Sequence[str] = ("AP",)) -> pd.DataFrame:
    """Per lineage, step count and train seed: the mean over eval seeds of each metric, and how many they are."""
    grouped = results.groupby(["run", "sample_step", "train_seed"], sort=False)
    means = grouped[list(metrics)].agg(_mean)
    return means.assign(eval_seeds=grouped.size()).reset_index()


def summarise(results: pd.DataFrame, metrics: Sequence[str] = ("AP",)) -> pd.DataFrame:
    """The published arithmetic, per lineage and step count.

    Each of `metrics` is the mean over train seeds of their means over eval seeds; `AP_std` the population standard
    deviation across those means of train seeds, `AP_std_flat` that of all runs; both are nan where there is one value
    only. `runs` counts the runs, `nan_runs` those whose AP is nan.
    """
    per_seed = seed_means(results, metrics).groupby(["run", "sample_step"], sort=False)
    all_runs = results.groupby(["run", "sample_step"], sort=False)["AP"]
    summary = per_seed[list(metrics)].agg(_mean)
    summary.insert(1, "AP_std", per_seed["AP"].agg(_spread))
    summary.insert(2, "AP_std_flat", all_runs.agg(_spread))
    counts = {"train_seeds": per_seed.size(), "eval_seeds": per_seed["eval_seeds"].max(), "runs": all_runs.size()}
    return summary.assign(**counts, nan_runs=all_runs.agg(lambda values: int(values.isna().sum()))).reset_index()


def _mean(values: "pd.Series[float]") -> float:
    """nan where one of the values is: pandas' own mean would leave it out."""
    return float(np.mean(values.to_numpy()))


def _spread(values: "pd.Series[float]") -> float:
    return float(np.std(values.to_numpy())) if len(values) > 1 else math.nan


def _joined(values: Iterable[object]) -> str:
    return ",".join(dict.fromkeys(str(value) for value in values))


def main_table(results: pd.DataFrame) -> pd.DataFrame:
    """`tables/main.tsv`: `summarise` for every metric and class, rounded; each row names its TSVs and checkpoints."""
    table = summarise(results, [*METRICS, *class_columns(results)]).round(DECIMALS)
    files = [results_path(run, seed) for run, seed in zip(results["run"], results["train_seed"], strict=True)]
    rows = results.assign(results=files).groupby(["run", "sample_step"], sort=False)
    evidence = rows[["results", "ckpt_sha256"]].agg(_joined)
    return table.merge(evidence.reset_index(), on=["run", "sample_step"])


def steps_table(results: pd.DataFrame) -> pd.DataFrame:
    """`tables/steps.tsv`: AP at each step count per train seed, a mean over eval seeds; `AP_std` is their spread."""
    table = seed_means(results)
    spread = results.groupby(["run", "sample_step", "train_seed"], sort=False)["AP"].agg(_spread)
    table["AP_std"] = spread.to_numpy()
    return table[["run", "train_seed", "sample_step", "AP", "AP_std", "eval_seeds"]].round(DECIMALS)


def speed_table(speed: pd.DataFrame) -> pd.DataFrame:
    """`tables/speed.tsv`: seconds per image and eval seed, a mean over train seeds; images per second; and the cost as
    a multiple of the lineage's fewest sampling steps. Nothing but speed.tsv goes in."""
    files = [speed_path(run, seed) for run, seed in zip(speed["run"], speed["train_seed"], strict=True)]
    grouped = speed.assign(speed=files).groupby(["run", "sample_step"], sort=False)
    seconds = grouped["inference_s_per_img"].mean()
    table = pd.DataFrame({"s_per_img": seconds.round(6), "img_per_s": (1 / seconds).round(3)})
    table["ratio"] = (seconds / seconds.groupby("run").transform("first")).round(3)
    where = grouped[["device", "threads", "batch", "eval_seeds"]].agg(_joined)
    return table.join(where).assign(train_seeds=grouped.size(), speed=grouped["speed"].agg(_joined)).reset_index()


def scalars(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """`metrics.json`: AP and AP50 at each step count, per lineage, of a main table; None where the mean is nan."""
    metrics: dict[str, dict[str, float | None]] = {}
    for row in table.to_dict("records"):
        values = {f"{name}@{row['sample_step']}": row[name] for name in ("AP", "AP50")}
        metrics.setdefault(row["run"], {}).update({key: None if math.isnan(v) else v for key, v in values.items()})
    return metrics


def tsv(table: pd.DataFrame) -> str:
    """A table as TSV text, `nan` where there is no number."""
    return table.to_csv(sep="\t", index=False, na_rep="nan", lineterminator="\n")

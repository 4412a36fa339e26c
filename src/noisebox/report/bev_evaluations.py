"""Reading what `noisebox evaluate` wrote of a lineage that segments from above: the family `bev`.

A row of results.tsv is one checkpoint under one eval seed at so many sampling steps; a model that draws no noise has a
single one, of eval seed 0 and 1 step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisebox import graph
from noisebox.config import ProtocolConfig, check_section
from noisebox.config.bev import BevLabelsConfig
from noisebox.errors import UserError
from noisebox.files import read_json
from noisebox.report import evaluations
from noisebox.report.evaluations import (
    EVIDENCE,
    IOU_PREFIX,
    RUN,
    Columns,
    evaluate_command,
    number_or_blank,
    percentage,
    read_measured,
    read_provenance,
    read_table,
    results_path,
    speed_path,
)
from noisebox.report.markdown import listed, plural

METRICS = ["mIoU", "accuracy"]
RESULTS: Columns = {**RUN, **dict.fromkeys(METRICS, percentage), **EVIDENCE}
TERMS = ("Lwce", "Ldepth", "Ldiff")  # of the loss; a model without depth ground truth or diffusion lacks the others
TRAINING: Columns = {**evaluations.TRAINING, "lr": number_or_blank, "mIoU": number_or_blank}
ONCE = (0, 1)  # eval seed and steps of a model that draws no noise
LABEL_VALUES = 256  # label maps are stored in 8 bits

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class BevRun:
    """What the report knows of one trained run: its results and speed, the rows of training.csv, where `loss`, its
    terms, `lr` and `mIoU` are nan where they are blank, and its provenance (run.json)."""

    lineage: str
    train_seed: int
    results: pd.DataFrame
    speed: pd.DataFrame
    training: pd.DataFrame
    provenance: dict[str, Any]
    iterations: int

    @property
    def denoises(self) -> bool:
        """Whether it learned to, so that its evaluation draws noise."""
        return "Ldiff" in self.training and bool(self.training["Ldiff"].notna().any())


def read_bev_run(lineage: str, train_seed: int, root: Path) -> BevRun:
    """Read what `noisebox evaluate` wrote; raises UserError naming a file that is missing or broken."""
    folder = root / graph.evaluation_folder(lineage, train_seed)
    results, speed = read_measured(folder, lineage, train_seed, graph.BEV_EVALUATION_FILES, RESULTS)
    if not class_columns(results):
        raise UserError(f"{folder / 'results.tsv'} has no column of a class, such as {IOU_PREFIX}car")
    provenance, iterations, _ = read_provenance(folder / "run.json")
    return BevRun(lineage, train_seed, results, speed, read_training(folder / "training.csv"), provenance, iterations)


def class_columns(table: pd.DataFrame) -> list[str]:
    """The columns of per-class IoU, in the dataset's order."""
    return [str(name) for name in table.columns if str(name).startswith(IOU_PREFIX)]


def read_training(path: Path) -> pd.DataFrame:
    """The rows of a training.csv; raises UserError when there are two of one mode for one step."""
    table = read_table(path, TRAINING, ",", dict.fromkeys(TERMS, number_or_blank))
    repeated = table[table.duplicated(["mode", "step"])]
    if len(repeated):
        mode, step = repeated.iloc[0][["mode", "step"]]
        raise UserError(f"{path}: two rows of mode {mode!r} for step {step}")
    return table


def asked_of(runs: Sequence[BevRun], protocol: ProtocolConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of the runs of one lineage the rows of results.tsv and speed.tsv that the protocol asks for: rising steps, train
    seeds as given. All rows where every run has the one of a model that draws no noise, and is none that denoises.

    Raises UserError, naming file and command, when a row is missing.
    """
    places = [list(zip(run.results["eval_seed"], run.results["sample_step"], strict=True)) for run in runs]
    every = [
        (seed, steps) for steps in sorted(set(protocol.sample_steps)) for seed in dict.fromkeys(protocol.eval_seeds)
    ]
    is_noiseless = all(place == [ONCE] for place in places) and not any(run.denoises for run in runs)
    wanted = [ONCE] if is_noiseless else every
    for run, place in zip(runs, places, strict=True):
        for seed, steps in wanted:
            if (seed, steps) not in place:
                raise _lacking(run, results_path, f"{plural(steps, 'sampling step')} under eval seed {seed}")
            if steps not in set(run.speed["sample_step"]):
                raise _lacking(run, speed_path, plural(steps, "sampling step"))
    results = [
        run.results.iloc[[place.index(each)]] for each in wanted for run, place in zip(runs, places, strict=True)
    ]
    counts = dict.fromkeys(steps for _, steps in wanted)
    speed = [run.speed[run.speed["sample_step"] == steps] for steps in counts for run in runs]
    return pd.concat(results, ignore_index=True), pd.concat(speed, ignore_index=True)


def _lacking(run: BevRun, path: Callable[[str, int], str], way: str) -> UserError:
    return UserError(
        f"{path(run.lineage, run.train_seed)} has no row for {way}, which bev.protocol in {graph.EXPERIMENT} asks for; "
        f"this makes it: {evaluate_command(run.lineage, run.train_seed)}"
    )


@dataclass(frozen=True, eq=False)
class Confusion:
    """A confusion.json: the dataset's `classes`, what its label values mean, and by eval seed and sampling steps how
    many cells of each label value (row) were predicted as each class (column): (256, K)."""

    path: Path
    classes: tuple[str, ...]
    labels: BevLabelsConfig
    counts: dict[tuple[int, int], Counts]

    def at(self, steps: int | None) -> tuple[int, list[int], Counts]:
        """At so many steps, by default the most: these steps, the eval seeds that they were taken under, and the counts
        of all of these together. Raises UserError when nothing was measured at these steps."""
        measured = sorted({of_steps for _, of_steps in self.counts})
        steps = measured[-1] if steps is None else steps
        if steps not in measured:
            raise UserError(f"{self.path} has no counts at {plural(steps, 'sampling step')}, but at {listed(measured)}")
        of_seeds = {seed: counts for (seed, of_steps), counts in self.counts.items() if of_steps == steps}
        return steps, list(of_seeds), np.sum(list(of_seeds.values()), axis=0)


def read_confusion(path: Path) -> Confusion:
    """Raises UserError naming the file and what is wrong in it."""
    content = read_json(path)
    try:
        classes, labels = tuple(map(str, content["classes"])), check_section(BevLabelsConfig, content["labels"], path)
        predicted = len(labels.values(len(classes)))
        counts = {
            (int(entry["eval_seed"]), int(entry["sample_step"])): _counts(entry["cells"], predicted)
            for entry in content["counts"]
        }
        if not counts:
            raise ValueError("it counts nothing")
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not what an evaluation writes: {error}") from None
    return Confusion(path, classes, labels, counts)


def _counts(cells: dict[str, list[int]], predicted: int) -> Counts:
    counts = np.zeros((LABEL_VALUES, predicted), np.int64)
    for value, row in cells.items():
        if len(row) != predicted:
            raise ValueError(f"label value {value} has {len(row)} counts for {predicted} classes")
        counts[int(value)] = row
    return counts

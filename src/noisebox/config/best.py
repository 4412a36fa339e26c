"""What a budget search came to: the rows of `reports/searches/<name>.csv`, and the best of them as values of a recipe.

The file has a row for each trial: trial_id, status, final_metric, final_loss, seconds, param_<key> for every key that
was tuned, and the reason of a failure. A cell of a parameter is JSON, or text that is no JSON as it stands.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from noisebox import graph
from noisebox.config.run import RecipeConfig
from noisebox.config.section import merged
from noisebox.errors import UserError
from noisebox.files import unreadable, write_text

Status = Literal["completed", "pruned", "failed"]
PARAM = "param_"
FIXED = ("trial_id", "status", "final_metric", "final_loss", "seconds")
TUNABLE = ("model", "loss", "solver", "distill")  # the sections of a recipe, which is where the best may go


@dataclass(frozen=True)
class Trial:
    """A row: `values` by dotted key; `metric`, higher is better, and `loss` are None where there is none."""

    number: int
    status: Status
    metric: float | None
    loss: float | None
    seconds: float
    values: dict[str, Any]
    reason: str = ""

    @property
    def score(self) -> float:
        """The metric, where none or nan (nothing was detected) is the lowest there is."""
        return 0.0 if self.metric is None or math.isnan(self.metric) else self.metric


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The completed trials, best first; of equal ones the earlier first."""
    completed = [trial for trial in trials if trial.status == "completed"]
    return sorted(completed, key=lambda trial: (-trial.score, trial.number))


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Write the rows, one a trial, in their order."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIXED, *(f"{PARAM}{key}" for key in keys), "reason"])
    for trial in trials:
        metric = "" if trial.metric is None else f"{trial.metric:.4f}"
        loss = "" if trial.loss is None else f"{trial.loss:.6g}"
        values = [cell_of(trial.values[key]) if key in trial.values else "" for key in keys]
        writer.writerow([trial.number, trial.status, metric, loss, f"{trial.seconds:.1f}", *values, trial.reason])
    write_text(path, text.getvalue())


def read_trials(path: Path) -> list[Trial]:
    """Read the rows; raises UserError, naming file and line, when the file is missing or no such table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [_trial(row, f"{path}, line {line}") for line, row in enumerate(csv.DictReader(file), start=2)]
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; make it with: noisebox search {graph.search_file(path.stem)}"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8 text: {error}") from None


def _trial(row: Mapping[str | None, Any], where: str) -> Trial:
    try:
        if row["status"] not in get_args(Status):
            raise ValueError
        cells = {column: cell for column, cell in row.items() if column and column.startswith(PARAM) and cell}
        values = {column.removeprefix(PARAM): value_of(cell) for column, cell in cells.items()}
        if boundless := [key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)]:
            column = f"{PARAM}{boundless[0]}"
            raise UserError(f"{where}: column {column!r} must be a finite number, not {cells[column]!r}")
        if any(key.partition(".")[0] not in TUNABLE for key in values):
            raise ValueError
        return Trial(
            number=int(row["trial_id"]),
            status=row["status"],
            metric=float(row["final_metric"]) if row["final_metric"] else None,
            loss=float(row["final_loss"]) if row["final_loss"] else None,
            seconds=float(row["seconds"]),
            values=values,
            reason=row["reason"],
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: this is no row that noisebox search wrote; run the search again") from None


def cell_of(value: Any) -> str:
    """A value as the text of a cell, from which `value_of` makes the same value."""
    return value if isinstance(value, str) and value and value_of(value) == value else json.dumps(value)


def value_of(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def best_of(search: str, rank: int, root: Path = Path()) -> dict[str, Any]:
    """The values of the trial at `rank`, from 1, of a search; raises UserError where there is none."""
    path = root / graph.search_csv(search)
    best = ranked(read_trials(path))
    if len(best) < rank:
        raise UserError(f"{path}: {len(best)} trials completed, so there is no best of rank {rank}")
    return best[rank - 1].values


def with_values(recipe: RecipeConfig, values: Mapping[str, Any]) -> RecipeConfig:
    """The recipe with values by dotted key, such as `solver.base_lr`, in place of its own.

    `finetune`, which counts over `solver` where the recipe has a parent, loses what the values say.
    """
    changed = recipe.model_dump()
    for dotted, value in values.items():
        section, *keys = dotted.split(".")
        for key in reversed(keys):
            value = {key: value}
        changed[section] = merged(changed[section] or {}, value)
    changed["finetune"] = {key: value for key, value in recipe.finetune.items() if f"solver.{key}" not in values}
    return RecipeConfig(**changed)

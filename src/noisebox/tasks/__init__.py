"""What belongs together for a task: its data, batches, metric and evaluation; the verbs know it by this interface.

Opening a task reads its dataset's description and imports no torch, so that a mistake is told at once.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from noisebox import graph
from noisebox.config import ExperimentConfig, RunConfig
from noisebox.files import clear_unfinished, only_here

if TYPE_CHECKING:
    from noisebox.structures import Examples

# One line a family: the module whose `open_task(config)` opens its task.
TASKS = {
    "diffusiondet": "noisebox.tasks.detection",
    "yolc": "noisebox.tasks.detection",
    "bev": "noisebox.tasks.bev",
}
# One line a family: the module whose `evaluate_run` evaluates on its task; a training does not depend on it.
EVALUATIONS = {
    "diffusiondet": "noisebox.evaluation.boxes",
    "yolc": "noisebox.evaluation.aerial",
    "bev": "noisebox.evaluation.bev",
}


class Task(Protocol):
    """A dataset opened for one run's configuration, with what is done on it."""

    metric: str  # what validation measures, as metrics.csv names it; higher is better
    classes: tuple[str, ...]
    data_hash: str

    def batch(self, step: int) -> "Examples":
        """The batch of a training step."""

    def batches(self, start: int, stop: int) -> "Iterator[Examples]":
        """The batches of the steps from `start` up to, not including, `stop`."""

    def validate(self, model: Any) -> float:
        """A model's metric on the validation split, in the cheapest way that the task knows."""


def open_task(config: RunConfig) -> Task:
    """The task of the run's family; raises UserError when its data is not there or not what the manifest says."""
    task: Task = import_module(TASKS[config.family]).open_task(config)
    return task


def measured_rows(
    model: Any, split: Any, config: RunConfig, asked: Any, evidence: dict[str, str], label: str
) -> dict[Any, dict[str, Any]]:
    """The rows of results.tsv that a checkpoint gives on a split of its task, by (eval seed, sampling)."""
    rows: dict[Any, dict[str, Any]] = import_module(EVALUATIONS[config.family]).measured_rows(
        model, split, config, asked, evidence, label
    )
    return rows


def evaluate_run(
    model: Any, config: RunConfig, checkpoint: Path, experiment: ExperimentConfig, classes: list[str]
) -> None:
    """Write what `noisebox evaluate` makes of a checkpoint of a model trained for `classes`.

    Raises UserError when it cannot be evaluated as the experiment asks, the dataset has other classes, or another
    process evaluates the same run.
    """
    task = open_task(config)
    folder = Path(graph.evaluation_folder(config.lineage, config.seed))
    with only_here(folder / "lock", f"{folder} is being made"):
        clear_unfinished(folder)
        import_module(EVALUATIONS[config.family]).evaluate_run(model, task, checkpoint, experiment, classes)

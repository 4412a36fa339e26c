"""What belongs together for a task: its data, batches, metric and evaluation; the verbs know it by this interface.

Opening a task reads its dataset's description and imports no torch, so that a mistake is told at once.
"""

import copy
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from noisebox import graph
from noisebox.config import AUTO, ExperimentConfig, RunConfig
from noisebox.errors import UserError
from noisebox.files import clear_unfinished, only_here
from noisebox.randomness import numpy_generator

if TYPE_CHECKING:
    from noisebox.structures import Examples

# One line a family: the module whose `open_task(config)` opens its task.
TASKS = {
    "diffusiondet": "noisebox.tasks.detection",
    "detr": "noisebox.tasks.detection",
    "yolc": "noisebox.tasks.detection",
    "bev": "noisebox.tasks.bev",
}
# One line a family: the module whose `evaluate_run` evaluates on its task; a training does not depend on it.
EVALUATIONS = {
    "diffusiondet": "noisebox.evaluation.boxes",
    "detr": "noisebox.evaluation.boxes",
    "yolc": "noisebox.evaluation.aerial",
    "bev": "noisebox.evaluation.bev",
}


class Task(Protocol):
    """A dataset opened for one run's configuration, with what is done on it."""

    config: RunConfig  # with what only the dataset can tell, see `settled`
    images: int  # trained on, in an epoch
    metric: str  # what validation measures, as metrics.csv names it; higher is better
    goal: tuple[str, float]  # a metric, and how much of it a model must reach on a few images that it learns by heart
    checks: tuple[str, ...]  # what is likely wrong where it does not, in sentences
    classes: tuple[str, ...]
    data_hash: str

    def batch(self, step: int) -> "Examples":
        """The batch of a training step."""

    def batches(self, start: int, stop: int) -> "Iterator[Examples]":
        """The batches of the steps from `start` up to, not including, `stop`; of each the share of this process."""

    def measured(self, model: Any) -> dict[str, float]:
        """A model's metrics by name on the validation split, in the cheapest way that the task knows."""

    def validate(self, model: Any) -> float:
        """`metric` alone."""


class Split(Protocol):
    """Images in an order."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def only(self, places: Sequence[int]) -> Self:
        """The images at these places alone."""


SplitT = TypeVar("SplitT", bound=Split)


def trained_on(split: SplitT, config: RunConfig) -> SplitT:
    """What of a training split the solver asks for; raises UserError when it has not so many images."""
    solver, count = config.solver, len(split)
    if solver.subset_size is None:
        return split
    if solver.subset_size > count:
        raise UserError(f"solver.subset_size {solver.subset_size} is more than {split.name} has: {count} images")
    order = range(count) if solver.overfit else numpy_generator(solver.subset_seed, "subset").permutation(count)
    return split.only(sorted(int(place) for place in order[: solver.subset_size]))


def repeated(factors: NDArray[np.float64], seed: int) -> list[int]:
    """The places of a split's images as often as these factors say, each rounded up or down once for a training, by
    chance and so that its mean is kept."""
    drawn = numpy_generator(seed, "repeat").random(len(factors))
    times: NDArray[np.int64] = (np.floor(factors) + (drawn < factors % 1)).astype(np.int64)
    return [int(place) for place in np.repeat(np.arange(len(factors)), times)]


def settled(config: RunConfig, images: int) -> RunConfig:
    """The configuration with the iterations that its epochs take over so many images."""
    solver = config.solver
    if solver.max_iter is not None or solver.epochs is None or solver.batch_size == AUTO:
        return config
    iterations = solver.iterations_of(solver.epochs, images)
    return config.model_copy(update={"solver": solver.model_copy(update={"max_iter": iterations})})


TaskT = TypeVar("TaskT", bound=Task)


def with_batch_size(task: TaskT, size: int) -> TaskT:
    """The same task with batches of another size, and the iterations that its epochs then take."""
    config = task.config
    other = copy.copy(task)
    solver = config.solver.model_copy(update={"batch_size": size})
    other.config = settled(config.model_copy(update={"solver": solver}), task.images)
    return other


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
    """Write what `noisebox evaluate` makes of a checkpoint of a model trained for `classes`. What a killed one has
    measured is not measured again.

    Raises UserError when it cannot be evaluated as the experiment asks, the dataset has other classes, or another
    process evaluates the same run.
    """
    from noisebox import processes
    from noisebox.evaluation.ongoing import Ongoing, facts_of, place_in

    task = processes.in_turn(lambda: open_task(config))
    folder = Path(graph.evaluation_of(checkpoint.as_posix(), config.lineage, config.seed))
    claim = only_here(folder / "lock", f"{folder} is being made")
    ongoing = Ongoing(place_in(folder), facts_of(checkpoint, task.config) | {"data": task.data_hash})
    with processes.company(), processes.held_by_the_first(claim), ongoing:
        if processes.first():
            clear_unfinished(folder)
        import_module(EVALUATIONS[config.family]).evaluate_run(model, task, checkpoint, experiment, classes, ongoing)

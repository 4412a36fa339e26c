"""A project whose lineage `toy` trains in milliseconds, and searches of it, for the tests of the budget search."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from toy_detector import CLASSES, register, toy_batch, toy_batches

from noisebox import graph
from noisebox.config import RunConfig
from noisebox.config.best import Trial
from noisebox.config.search import Search
from noisebox.search.trials import run_search
from noisebox.structures import Batch
from noisebox.tasks import TASKS, settled

SCALE = {
    "dataset": "toy",
    "solver": {"base_lr": 1.0e-2, "max_iter": 12, "batch_size": 4, "log_every": 5, "checkpoint_every": 3},
}
RECIPE = {"description": "one box an image", "family": "toy", "solver": {"weight_decay": 0.0}}
RATES = [3e-3, 1e-9, 3e-2, 1e-3, 1e-2]  # the second learns nothing


class ToyTask:
    """32 images, and a metric that rises as the loss on an unseen batch falls."""

    metric, images, classes, data_hash = "AP", 32, CLASSES, "d" * 64

    def __init__(self, config: RunConfig) -> None:
        self.config = settled(config, config.solver.subset_size or self.images)

    def batch(self, step: int) -> Batch:
        return toy_batch(step)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        return toy_batches(start, stop)

    def validate(self, model: Any) -> float:
        with torch.no_grad():
            loss = sum(float(term) for term in model(toy_batch(1000), 0, 0).values())
        return math.nan if loss > 1e6 else 100 / (1 + loss)


open_task = ToyTask


def register_toy(set_item: Callable[[Any, Any, Any], None] = dict.__setitem__) -> None:
    """Enter family and task into the tables; in a test, `set_item` is monkeypatch.setitem."""
    register(set_item)
    set_item(TASKS, "toy", __name__)


def make_toy_project(root: Path) -> Path:
    """Recipe and scale; the current folder must become `root`, as tasks open their data there."""
    for path, content in ((graph.recipe_file("toy"), RECIPE), (graph.scale_file("toy"), SCALE)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(yaml.safe_dump(content))
    return root


def write_search(root: Path, name: str = "rates", **changes: Any) -> Path:
    """The file of a search that tries RATES for 12 iterations, evaluated 4 times; None takes a key out."""
    content = {
        "description": "which rate learns fastest",
        "lineage": "toy",
        "budget": {"iters": 12, "evaluations": 4},
        "trials": [{"solver.base_lr": rate} for rate in RATES],
        **changes,
    }
    path = Path(graph.search_file(name))
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def search_toy(path: Path) -> list[Trial]:
    """Search in the current folder."""
    return run_search(Search(path, "toy"), lambda trial: None)


def rows(root: Path, name: str = "rates") -> list[list[str]]:
    """The CSV without the seconds."""
    lines = (root / graph.search_csv(name)).read_text().splitlines()
    return [[cell for place, cell in enumerate(line.split(",")) if place != 4] for line in lines]

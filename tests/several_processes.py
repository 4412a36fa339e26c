"""A script for a launcher: trainings and evaluations one after the other, with a launch and an import of torch for all.

`python several_processes.py LINEAGE…` in a project. In place of a batch, the last process dies of `LINEAGE@1`, as by
kill -9, and fails of `LINEAGE!1`, of both in the second step.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noisebox import graph, processes
from noisebox.cli import launch, told
from noisebox.config import load_experiment, resolve, teacher_of
from noisebox.errors import UserError
from noisebox.interrupt import listen
from noisebox.tasks import evaluate_run, open_task
from noisebox.training.checkpoint import load_model
from noisebox.training.loop import Batches, train


def train_and_evaluate(lineage: str) -> None:
    train_here(lineage)
    evaluate(graph.Lineage.parse(lineage).name)


def train_here(lineage: str) -> None:
    """As `noisebox train` does."""
    lineage, _, failing = lineage.partition("!")
    lineage, _, killed = lineage.partition("@")
    parent, teacher = graph.Lineage.parse(lineage).parent, teacher_of(lineage, 0)
    task = open_task(resolve(lineage, 0, load_experiment().scale))
    batches = mortal(task.batches, killed, failing)
    train(
        task.config, Path(graph.run_folder(lineage, 0)), task.classes, batches, task.data_hash,
        metric=task.metric, validate=task.validate, images=task.images,
        parent=Path(graph.checkpoint(parent.name, 0)) if parent else None,
        teacher=Path(teacher) if teacher else None,
    )  # fmt: skip


def evaluate(lineage: str) -> None:
    """As `noisebox evaluate` does."""
    path = Path(graph.checkpoint(lineage, 0))
    model, config, checkpoint = load_model(path)
    evaluate_run(model, config, path, load_experiment(), checkpoint["classes"])


def mortal(batches: Batches, killed: str, failing: str) -> Batches:
    """The batches, but for what the last process gets where a step is given."""

    def taken(start: int, stop: int) -> Iterator[Any]:
        for step, batch in enumerate(batches(start, stop), start):
            if processes.number() == processes.count() - 1:
                if str(step) == killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                if str(step) == failing:
                    raise UserError("only the last process sees that")
            yield batch

    return taken


if __name__ == "__main__":
    listen()
    with told(), launch.shared(None):
        for lineage in sys.argv[1:]:
            train_and_evaluate(lineage)

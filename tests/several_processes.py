"""A script for a launcher: trainings and evaluations one after the other, with a launch and an import of torch for all.

`python several_processes.py LINEAGE…` in a project; without a launcher, in one process.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from noisebox import graph, processes
from noisebox.cli.launch import launched
from noisebox.config import load_experiment, resolve, teacher_of
from noisebox.tasks import evaluate_run, open_task
from noisebox.training.checkpoint import load_model
from noisebox.training.loop import train


def train_and_evaluate(lineage: str) -> None:
    """As `noisebox train` and `noisebox evaluate` do."""
    experiment = load_experiment()
    parent, teacher = graph.Lineage.parse(lineage).parent, teacher_of(lineage, 0)
    task = open_task(resolve(lineage, 0, experiment.scale))
    train(
        task.config, Path(graph.run_folder(lineage, 0)), task.classes, task.batches, task.data_hash,
        metric=task.metric, validate=task.validate, images=task.images,
        parent=Path(graph.checkpoint(parent.name, 0)) if parent else None,
        teacher=Path(teacher) if teacher else None,
    )  # fmt: skip
    path = Path(graph.checkpoint(lineage, 0))
    model, config, checkpoint = load_model(path)
    evaluate_run(model, config, path, experiment, checkpoint["classes"])


if __name__ == "__main__":
    with ExitStack() as stack:
        if launched() > 1:
            stack.enter_context(processes.joined())
        for lineage in sys.argv[1:]:
            train_and_evaluate(lineage)

"""Deliberate overfitting: a model whose targets, losses and decoding are right knows by heart the few images it saw."""

import csv
from dataclasses import dataclass
from pathlib import Path

from noisebox.config import RunConfig
from noisebox.tasks import Task
from noisebox.training.checkpoint import load_model
from noisebox.training.loop import train_task
from noisebox.training.step import is_loss


@dataclass(frozen=True)
class Memory:
    """What an overfitted model knows of its images: `value` of `metric`, of which `enough` shows that nothing is wrong;
    and each loss term's mean in the first and the last row of metrics.csv."""

    metric: str
    value: float
    enough: float
    terms: dict[str, tuple[float, float]]

    @property
    def learnt(self) -> bool:
        return self.value >= self.enough

    @property
    def stuck(self) -> str:
        """The loss term that fell least."""
        return max(self.terms, key=lambda name: self.terms[name][1] / (abs(self.terms[name][0]) or 1.0))


def overfit(task: Task, run: Path) -> Memory:
    """Train in the folder `run` as a solver with `overfit` says, and ask for what was shown.

    Raises UserError as `train` does.
    """
    config = task.config
    train_task(task, run, if_changed="fresh")
    model, _, _ = load_model(run / "model_final.pth")
    metric, enough = task.goal
    return Memory(metric, task.measured(model.to(config.device))[metric], enough, _terms(run / "metrics.csv"))


def _terms(path: Path) -> dict[str, tuple[float, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "train"]
    return {name: (float(rows[0][name]), float(rows[-1][name])) for name in rows[0] if name != "loss" and is_loss(name)}


def advice(memory: Memory, task: Task) -> list[str]:
    """What to check, in sentences, when a model did not learn its images."""
    config: RunConfig = task.config
    first, last = memory.terms[memory.stuck]
    rate = config.solver.lr
    return [
        f"{memory.stuck} stayed high: {first:.3g} at first, {last:.3g} at the end; look at its targets and its weight",
        *task.checks,
        f"learning rate: it peaked at {rate:.3g}; try --set solver.base_lr={rate * 3:.3g} and {rate / 3:.3g}",
        f"time: {config.solver.iterations} iterations; if the loss still falls, give more by --iters",
    ]

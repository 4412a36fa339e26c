"""`batch_size: auto`: the largest batch that the GPU can train on, found by trying, then kept with the run.

A trial is two optimiser steps, the second of which has everything in memory that a training has. A tenth of the memory
stays free for batches of larger images or more objects. What is found depends on the GPU, so a training that is gone on
with keeps the one it began with. The learning rate is not scaled.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from noisebox import processes
from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.machine import check_device
from noisebox.models import build_model
from noisebox.tasks import Task, TaskT, with_batch_size
from noisebox.training.folder import WORK
from noisebox.training.smoke import stand_in_teacher
from noisebox.training.step import Trainer

SHARE = 0.9  # of the memory


def with_largest_batch(task: TaskT, run: Path) -> TaskT:
    """The task with the batch size that its run was begun with or, in a new run, the largest that fits.

    Raises UserError where several processes share a batch, on a CPU, whose processes are killed where a GPU says that
    its memory is full, where there is no GPU, and when not even one image for each accumulation step fits.
    """
    begun = _begun(run)
    if begun and with_batch_size(task, begun.solver.batch_size).config == begun:
        return with_batch_size(task, begun.solver.batch_size)
    config = task.config
    if processes.count() > 1:
        raise UserError("solver.batch_size auto is found by one process; give a number where several share a batch")
    if config.device != "cuda":
        raise UserError(
            "solver.batch_size auto needs device cuda, which tells when memory is full; on cpu give a number"
        )
    check_device(config)
    unit = config.solver.accumulate
    torch.cuda.set_per_process_memory_fraction(SHARE)
    try:
        found = largest(lambda size: _fits(with_batch_size(task, size)), unit, max(unit, task.images))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    if not found:
        raise UserError(
            f"{config.lineage}: not even a batch of {unit} fits the GPU; take smaller images or a smaller model"
        )
    return with_batch_size(task, found)


def largest(fits: Callable[[int], bool], unit: int, most: int) -> int:
    """The largest multiple of `unit` up to `most` that fits, where all smaller ones of what fits do, too; 0 if none."""
    fitting, beyond = 0, most // unit + 1  # in units
    trial = 1
    while fitting + 1 < beyond:
        if fits(trial * unit):
            fitting, trial = trial, min(2 * trial, (trial + beyond) // 2)
        else:
            beyond, trial = trial, (fitting + trial) // 2
    return fitting * unit


def _fits(task: Task) -> bool:
    fits = True
    try:
        _take_two_steps(task)
    except torch.OutOfMemoryError:
        fits = False
    torch.cuda.empty_cache()
    return fits


def _take_two_steps(task: Task) -> None:
    config, classes = task.config, len(task.classes)
    trainer = Trainer(config, build_model(config, classes, fetch_weights=False), stand_in_teacher(config, classes))
    for step in range(2):
        trainer.update(task.batch(step), step)


def _begun(run: Path) -> RunConfig | None:
    """The configuration of an interrupted training."""
    path = run / WORK / "config.yaml"
    try:
        return RunConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, KeyError, ValidationError, yaml.YAMLError):
        return None

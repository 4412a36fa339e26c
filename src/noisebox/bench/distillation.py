"""The time of learning from a sampling teacher: an iteration beside plain passes of the head, as many as the teacher's
steps."""

import itertools
from dataclasses import replace

import torch

from noisebox.bench.made import batch, run_config
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.config.diffusiondet import DistillConfig
from noisebox.evaluation.measuring import autocast
from noisebox.models import build_model
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.report.markdown import plural
from noisebox.training.step import Trainer


def timings(settings: BenchSettings) -> list[Timing]:
    """The teacher takes the most of `settings.steps`, the student one."""
    settings = replace(settings, crops=())
    steps = max(settings.steps)
    lesson = DistillConfig(kind="sampler", teacher_steps=steps, student_steps=1)
    config = run_config(settings).model_copy(update={"distill": lesson})
    student, teacher = (build_model(config, settings.classes, fetch_weights=False) for _ in range(2))
    trainer, count = Trainer(config, student, teacher), itertools.count()
    images = batch(settings, settings.batch, "train")
    iteration = timed(
        lambda: trainer.update(images, next(count)),
        settings,
        part="distillation",
        what=f"teacher of {plural(steps, 'step')}, student of one",
        unit="iteration",
        images=settings.batch,
        repeats=settings.train_iters,
        with_flop=True,
    )
    return [iteration, _plain_passes(teacher.eval(), settings, steps)]


def _plain_passes(model: DiffusionDet, settings: BenchSettings, steps: int) -> Timing:
    """So many passes of the head over a training batch, without gradients."""
    images = batch(settings, settings.batch, "train").to(settings.device)
    with torch.no_grad(), autocast(settings.device, settings.precision):
        pyramid, noisy = model.encode(images), model.noisy_proposals(images, 0, 0)

        def passes() -> None:
            for _ in range(steps):
                model.look(pyramid, images, noisy)

        return timed(
            passes,
            settings,
            part="distillation",
            what=f"{steps} passes of the head",
            unit="batch",
            images=settings.batch,
            with_flop=True,
        )

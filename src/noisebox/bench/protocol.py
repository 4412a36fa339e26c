"""The time of the protocol: all eval seeds at each step count, each image's features computed once for all seeds."""

from dataclasses import replace
from functools import partial

import torch

from noisebox.bench.made import batch, detector
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.config import Sampling
from noisebox.evaluation.measuring import autocast
from noisebox.models import Detector
from noisebox.report.markdown import plural
from noisebox.structures import Batch


def timings(settings: BenchSettings) -> list[Timing]:
    """Seconds per image and eval seed, features included: what stands beside a detector that is run seed by seed."""
    settings = replace(settings, crops=())
    model = detector(settings)
    images = batch(settings, settings.images, "infer").to(settings.device)
    return [
        timed(
            partial(_evaluate, model, images, settings, steps),
            settings,
            part="protocol",
            what=plural(steps, "step"),
            unit="image and eval seed",
            units=settings.images * settings.seeds,
            images=settings.images,
            with_flop=True,
        )
        for steps in settings.steps
    ]


def _evaluate(model: Detector, images: Batch, settings: BenchSettings, steps: int) -> None:
    with torch.no_grad(), autocast(settings.device, settings.precision):
        model.detect(model.encode(images), images, range(settings.seeds), Sampling(steps=steps))

"""What sampling costs by itself: the features of an image, and one eval seed at each step count without them."""

from dataclasses import replace
from functools import partial

import torch

from noisebox.bench.made import batch, detector
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.config import Sampling
from noisebox.evaluation.measuring import autocast
from noisebox.report.markdown import plural


def timings(settings: BenchSettings) -> list[Timing]:
    settings = replace(settings, crops=())
    model = detector(settings)
    images = batch(settings, settings.images, "infer").to(settings.device)
    of_part = partial(
        timed, settings=settings, part="steps", unit="image", units=settings.images, images=settings.images
    )
    with torch.no_grad(), autocast(settings.device, settings.precision):
        encoded = model.encode(images)
        features = of_part(lambda: model.encode(images), what="features", with_flop=True)
        sampled = [
            of_part(
                partial(model.detect, encoded, images, [0], Sampling(steps=steps)),
                what=plural(steps, "step"),
                with_flop=True,
            )
            for steps in settings.steps
        ]
    return [features, *sampled]

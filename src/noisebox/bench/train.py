"""The time of a training iteration, as `noisebox train` takes it: forward, matching, backward, optimiser."""

import itertools

from noisebox.bench.made import batch, run_config
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.models import build_model
from noisebox.training.step import Trainer


def timings(settings: BenchSettings) -> list[Timing]:
    config = run_config(settings)
    trainer = Trainer(config, build_model(config, settings.classes, fetch_weights=False))
    images, steps = batch(settings, settings.batch, "train"), itertools.count()
    iteration = timed(
        lambda: trainer.update(images, next(steps)),
        settings,
        part="train",
        what=config.family,
        unit="iteration",
        images=settings.batch,
        repeats=settings.train_iters,
        with_flop=True,
    )
    return [iteration]

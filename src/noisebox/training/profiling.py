"""`noisebox train --profile`: where the time of a training step goes, in a trace for Perfetto and as the costliest
operations; no run is touched."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from noisebox.config import RunConfig
from noisebox.files import atomic_path
from noisebox.models import build_model
from noisebox.structures import Examples
from noisebox.training.distill import load_teacher
from noisebox.training.step import Trainer

WARM_UP = 2  # steps before the first that is traced
COSTLIEST = 10


def profile_training(
    config: RunConfig,
    classes: Sequence[str],
    batches: Iterable[Examples],
    trace: Path,
    steps: int,
    teacher: Path | None = None,
) -> str:
    """Take `steps` training steps, from freshly drawn weights, after WARM_UP more, and write a Chrome trace, gzipped.

    Waiting for the loader is an operation of its own, `loader`. Returns the table of the costliest operations. Raises
    UserError when the teacher does not fit.
    """
    detector = build_model(config, len(classes), fetch_weights=False)
    mentor, _ = load_teacher(teacher, config, detector, classes) if teacher else (None, None)
    trainer, stream = Trainer(config, detector, mentor), iter(batches)
    for step in range(WARM_UP):
        trainer.update(next(stream), step)
    on_gpu = config.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for step in range(WARM_UP, WARM_UP + steps):
            with record_function("loader"):
                batch = next(stream)
            with record_function("step"):
                trainer.update(batch, step)
        if on_gpu:
            torch.cuda.synchronize()
    with atomic_path(trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=COSTLIEST, max_name_column_width=40))

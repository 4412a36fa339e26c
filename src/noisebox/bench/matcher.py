"""The time of matching proposals to objects: every stage of the head, for a training batch at once."""

import torch

from noisebox.bench.made import targets
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.config.diffusiondet import LossConfig
from noisebox.models.diffusiondet.matcher import PaddedTargets, match
from noisebox.randomness import torch_generator
from noisebox.report.markdown import plural


def timings(settings: BenchSettings) -> list[Timing]:
    every = PaddedTargets.of([each.to(settings.device) for each in targets(settings, settings.batch)])
    height, width = settings.size
    whwh = torch.tensor([[width, height, width, height]] * settings.batch, dtype=torch.float32)
    drawn = torch_generator(0, "bench matcher predictions")
    shape = (settings.heads, settings.batch, settings.proposals)
    logits = torch.randn(*shape, settings.classes, generator=drawn)
    corners = torch.rand(*shape, 4, generator=drawn)
    boxes = torch.cat([corners[..., :2] * 0.6, corners[..., :2] * 0.6 + corners[..., 2:] * 0.4 + 0.01], -1)
    given = (tensor.to(settings.device) for tensor in (logits, boxes * whwh[:, None], whwh))
    logits, boxes, whwh = given
    call = timed(
        lambda: match(logits, boxes, every, whwh, LossConfig()),
        settings,
        part="matcher",
        what=f"{plural(settings.heads, 'stage')}, {plural(settings.boxes, 'object')}",
        unit="batch",
        images=settings.batch,
    )
    return [call]

"""The time of attention between proposals, forward and backward, by each implementation."""

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.config.diffusiondet import DiffusionDetConfig
from noisebox.evaluation.measuring import autocast
from noisebox.models.diffusiondet.attention import attend
from noisebox.randomness import isolated, torch_generator

Implementation = Literal["mha", "sdpa"]


def timings(settings: BenchSettings) -> list[Timing]:
    heads = DiffusionDetConfig.model_fields["attention_heads"].default
    with isolated(0, "bench attention"):
        layer = nn.MultiheadAttention(settings.hidden, heads, batch_first=True).to(settings.device)
    drawn = torch_generator(0, "bench attention proposals")
    proposals = torch.randn(settings.batch, settings.proposals, settings.hidden, generator=drawn).to(settings.device)
    return [
        timed(
            partial(_there_and_back, layer, proposals, implementation, settings),
            settings,
            part="attention",
            what=implementation,
            unit="batch",
            images=settings.batch,
            with_flop=True,
        )
        for implementation in get_args(Implementation)
    ]


def _there_and_back(
    layer: nn.MultiheadAttention, proposals: Tensor, implementation: Implementation, settings: BenchSettings
) -> None:
    with autocast(settings.device, settings.precision):
        attended, _ = attend(layer, proposals, None, implementation, False)
    torch.autograd.grad(attended.float().sum(), list(layer.parameters()))

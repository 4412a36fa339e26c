"""What measuring a model takes, whatever its task: what is asked, the precision, the clock."""

import time
from collections.abc import Mapping, Sequence

import torch

from noisebox.config import Sampling
from noisebox.models import Model

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

Asked = Mapping[Sampling, Sequence[int]]  # each way to sample, with the eval seeds to run it under


def asked_of(model: Model, asked: Asked) -> Asked:
    """What an evaluation runs; a model that draws no noise gives the same however it is asked, so it is asked once."""
    return {Sampling(steps=1): [0]} if model.deterministic else asked


def autocast(device: str, precision: str) -> torch.autocast:
    """The mixed-precision context of a run: bf16 or fp16 products, or nothing for fp32."""
    return torch.autocast(device, dtype=PRECISIONS.get(precision, torch.bfloat16), enabled=precision in PRECISIONS)


def now(device: str) -> float:
    """Seconds on a clock that has waited for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

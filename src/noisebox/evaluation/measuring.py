"""What measuring a model takes, whatever its task: what is asked, the precision, the clock, a pass over images."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from noisebox import processes
from noisebox.config import RunConfig, Sampling
from noisebox.errors import UserError
from noisebox.progress import Progress

if TYPE_CHECKING:
    from noisebox.models import Model

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

Asked = Mapping[Sampling, Sequence[int]]  # each way to sample, with the eval seeds to run it under


def asked_of(model: "Model", asked: Asked) -> Asked:
    """What an evaluation runs; a model that draws no noise gives the same however it is asked, so it is asked once."""
    return {Sampling(steps=1): [0]} if model.deterministic else asked


def autocast(device: str, precision: str) -> torch.autocast:
    """The mixed-precision context of a run: bf16 or fp16 products, or nothing for fp32."""
    return torch.autocast(device, dtype=PRECISIONS.get(precision, torch.bfloat16), enabled=precision in PRECISIONS)


def check_finite(found: Iterable[torch.Tensor], config: RunConfig, what: str, where: str) -> None:
    """Raises UserError where a number that a model gave is not finite: weights are damaged, or fp16 overflowed."""
    if not all(values.isfinite().all() for values in found):
        raise UserError(
            f"{config.lineage}, train seed {config.seed}: {what} are not finite numbers ({where}): "
            f"its weights are damaged, or too large for precision {config.precision}"
        )


def now(device: str) -> float:
    """Seconds on a clock that has waited for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Taken:
    """What a pass has taken so far: batches and images of this process, and the seconds of encoding and of each way to
    sample."""

    batches: int = 0
    images: int = 0
    encoding: float = 0.0
    sampled: list[float] = field(default_factory=list)


def timed_pass(
    model: "Model",
    batches: Iterable[Any],
    config: RunConfig,
    asked: Asked,
    answer: Callable[[Any, Any, Sequence[int], Sampling], Any],
    keep: Callable[[Any, Sampling, Any], None],
    taken: Taken,
    note: Callable[[], None],
    progress: Progress | None = None,
) -> dict[Sampling, float]:
    """Put every batch through the encoder once, and what it gave through `answer(encoded, batch, eval seeds, sampling)`
    in every way asked; `keep(batch, sampling, answer)` is not timed, nor is `note()` after each batch. It is `taken`
    that the pass goes on from. The model is left in the mode it came in.

    Returns the seconds of an image in each way, over all processes: the encoder's share plus one eval seed's share of
    the sampling.
    """
    if progress:
        progress.skip(min(taken.images * processes.count(), progress.total))
    was_training = model.training
    model.eval()
    # Not inference mode: what is encoded in it could not take part in the gradients that guidance climbs.
    with torch.no_grad(), autocast(config.device, config.precision):
        for batch in batches:
            on_device = batch.to(config.device)
            started = now(config.device)
            encoded = model.encode(on_device)
            taken.encoding += now(config.device) - started
            for way, (sampling, eval_seeds) in enumerate(asked.items()):
                started = now(config.device)
                given = answer(encoded, on_device, eval_seeds, sampling)
                taken.sampled[way] += now(config.device) - started
                keep(batch, sampling, given)
            taken.images += len(batch)
            taken.batches += 1
            note()
            if progress:
                about = len(batch) * processes.count()  # the others are about as far
                progress.advance(min(about, progress.total - progress.done))
    model.train(was_training)
    took = processes.gathered((taken.images, taken.encoding, *taken.sampled))
    images, encoding, *ways = (sum(of) for of in zip(*took, strict=True))
    sampled = dict(zip(asked, ways, strict=True))
    return {
        sampling: encoding / images + seconds / (images * len(asked[sampling])) for sampling, seconds in sampled.items()
    }

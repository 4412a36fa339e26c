"""`noisebox bench`: the time of a training iteration and of sampling, at sizes given on the command line.

Synthetic images and boxes; medians with their spread after a warm-up; one machine, one process. The numbers stand
beside those of other implementations only when both were taken in the same session on the same machine.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch

from noisebox.config import (
    DiffusionDetConfig,
    ImageConfig,
    LossConfig,
    RunConfig,
    Sampling,
    SmokeConfig,
    SolverConfig,
)
from noisebox.errors import UserError
from noisebox.evaluation.protocol import autocast
from noisebox.models import Detector, build_model
from noisebox.randomness import numpy_generator
from noisebox.structures import Batch, Targets
from noisebox.training.step import Trainer


@dataclass(frozen=True)
class BenchSettings:
    """What is timed; sizes in pixels, `depth` of a ResNet or the name of a backbone."""

    depth: str
    hidden: int
    dim_dynamic: int
    heads: int
    feedforward: int
    proposals: int
    classes: int
    size: tuple[int, int]
    batch: int
    boxes: int
    steps: tuple[int, ...]
    seeds: int
    images: int
    train_iters: int
    threads: int
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]

    def __post_init__(self) -> None:
        """Raises UserError for settings that cannot be run."""
        if self.precision == "fp16" and self.device == "cpu":
            raise UserError("--precision fp16 needs --device cuda; on cpu use bf16 or fp32")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no GPU is to be seen here; use --device cpu")
        if not self.steps or min(self.steps) < 1:
            raise UserError("--steps must be whole numbers from 1 on, such as --steps 1 5 20")

    @property
    def backbone(self) -> str:
        return f"resnet{self.depth}" if self.depth.isdigit() else self.depth


def bench(settings: BenchSettings) -> dict[str, Any]:
    """Time one configuration: seconds per training iteration, seconds per image and eval seed at each step count (the
    image's features shared by the seeds, as in the protocol), and the peak memory of this process."""
    torch.set_num_threads(settings.threads)
    config = _config(settings)
    trainer = Trainer(config, build_model(config, settings.classes))
    batch = _batch(settings, settings.batch, "train")
    trainer.update(batch, 0)
    train = [
        _seconds(settings.device, partial(trainer.update, batch, step)) for step in range(1, settings.train_iters + 1)
    ]
    sampled = {steps: _sampling(trainer.detector, settings, steps) for steps in settings.steps}
    return {
        "implementation": "noisebox",
        "settings": asdict(settings),
        "train_s_per_iter": statistics.median(train),
        "train_s_per_iter_spread": [min(train), max(train)],
        "infer_s_per_image_and_seed": {str(steps): seconds for steps, seconds in sampled.items()},
        "peak_memory_mib": _peak_mib(settings.device),
        "parameters": sum(parameter.numel() for parameter in trainer.detector.parameters()),
    }


def _sampling(model: Detector, settings: BenchSettings, steps: int) -> float:
    """Seconds per image and eval seed: the median over three passes of the whole batch of images."""
    batch = _batch(settings, settings.images, "infer").to(settings.device)
    model.eval()

    def protocol() -> None:
        with torch.inference_mode(), autocast(settings.device, settings.precision):
            model.detect(model.encode(batch), batch, range(settings.seeds), Sampling(steps=steps))

    protocol()
    return statistics.median(_seconds(settings.device, protocol) for _ in range(3)) / (settings.images * settings.seeds)


def _seconds(device: str, work: Callable[[], object]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _config(settings: BenchSettings) -> RunConfig:
    model = DiffusionDetConfig(
        backbone=settings.backbone,
        hidden_dim=settings.hidden,
        dim_dynamic=settings.dim_dynamic,
        num_heads=settings.heads,
        dim_feedforward=settings.feedforward,
        num_proposals=settings.proposals,
    )
    return RunConfig(
        lineage="bench",
        seed=0,
        scale="bench",
        family="diffusiondet",
        dataset="synthetic",
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        workers=0,
        eval_batch_size=settings.images,
        image=ImageConfig(),
        model=model,
        loss=LossConfig(),
        solver=SolverConfig(max_iter=settings.train_iters + 1, batch_size=settings.batch),
        smoke=SmokeConfig(),
    )


def _batch(settings: BenchSettings, images: int, purpose: str) -> Batch:
    height, width = settings.size
    padded = [-(-side // 32) * 32 for side in settings.size]
    pixels = torch.zeros(images, 3, *padded)
    targets = []
    for index in range(images):
        random = numpy_generator(0, f"bench {purpose}", index)
        pixels[index, :, :height, :width] = torch.from_numpy(random.random((3, height, width), dtype="float32"))
        corner = random.random((settings.boxes, 2)) * [width * 0.6, height * 0.6]
        extent = random.random((settings.boxes, 2)) * [width * 0.3, height * 0.3] + 8
        boxes = torch.from_numpy(corner).float()
        boxes = torch.cat([boxes, boxes + torch.from_numpy(extent).float()], 1)
        targets.append(Targets(boxes, torch.from_numpy(random.integers(0, settings.classes, settings.boxes))))
    sizes = torch.tensor([settings.size] * images)
    return Batch(pixels, sizes, sizes, tuple(range(images)), tuple(targets))

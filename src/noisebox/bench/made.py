"""The models, batches and datasets that are timed: untrained and at random, of the sizes that the settings say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisebox.bench.settings import BenchSettings
from noisebox.config import ImageConfig, RunConfig, SmokeConfig, SolverConfig
from noisebox.config.diffusiondet import DiffusionDetConfig, LossConfig
from noisebox.config.yolc import YolcConfig, YolcLossConfig
from noisebox.data.coco import CocoSplit, ImageRecord
from noisebox.machine import placed
from noisebox.models import Detector, build_model
from noisebox.randomness import numpy_generator
from noisebox.structures import Batch, Targets


def run_config(settings: BenchSettings) -> RunConfig:
    """The configuration of a run of these sizes: YOLC's with `crops`, else DiffusionDet's."""
    return RunConfig(
        lineage="bench",
        seed=0,
        scale="bench",
        dataset="synthetic",
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        workers=0,
        eval_batch_size=settings.images,
        image=ImageConfig(),
        **_sections(settings),
        solver=SolverConfig(
            max_iter=settings.train_iters + 1,
            batch_size=settings.batch,
            compile=settings.compile,
            winograd=settings.winograd,
        ),
        smoke=SmokeConfig(),
    )


def _sections(settings: BenchSettings) -> dict[str, Any]:
    """Family, model and loss."""
    if settings.crops:
        yolc = YolcConfig(
            backbone=settings.backbone,
            hidden_dim=settings.hidden,
            max_patches_per_img=max(settings.crops),
            crop_canvas=settings.crop_canvas,
        )
        return {"family": "yolc", "model": yolc, "loss": YolcLossConfig()}
    model = DiffusionDetConfig(
        backbone=settings.backbone,
        pretrained=settings.backbone != "slim",  # the network that takes pretrained weights; none are fetched
        freeze_at=settings.freeze_at,
        hidden_dim=settings.hidden,
        dim_dynamic=settings.dim_dynamic,
        num_heads=settings.heads,
        dim_feedforward=settings.feedforward,
        num_proposals=settings.proposals,
    )
    return {"family": "diffusiondet", "model": model, "loss": LossConfig()}


def detector(settings: BenchSettings) -> Detector:
    """A detector as evaluation has it."""
    config = run_config(settings)
    model: Detector = build_model(config, settings.classes, fetch_weights=False)
    return placed(model, config).eval()


def batch(settings: BenchSettings, images: int, purpose: str) -> Batch:
    """So many images of noise, uint8 and padded as from a loader, with `settings.boxes` objects each."""
    height, width = settings.size
    padded = [-(-side // 32) * 32 for side in settings.size]
    pixels = torch.zeros(images, 3, *padded, dtype=torch.uint8)
    for index in range(images):
        random = numpy_generator(0, f"bench {purpose}", index)
        pixels[index, :, :height, :width] = torch.from_numpy(random.integers(0, 256, (3, height, width), np.uint8))
    sizes = torch.tensor([settings.size] * images)
    return Batch(pixels, sizes, sizes, tuple(range(images)), tuple(targets(settings, images)))


def targets(settings: BenchSettings, images: int) -> list[Targets]:
    """The random objects of so many images of `settings.size`."""
    every = (record(index, Path(), settings.size, settings) for index in range(images))
    return [Targets(torch.from_numpy(each.boxes_xyxy), torch.from_numpy(each.labels)) for each in every]


def record(identity: int, path: Path, hw: tuple[int, int], settings: BenchSettings) -> ImageRecord:
    """An image file of a dataset, with `settings.boxes` random objects."""
    height, width = hw
    random = numpy_generator(0, "bench objects", identity)
    corner = random.random((settings.boxes, 2)) * [width * 0.6, height * 0.6]
    extent = random.random((settings.boxes, 2)) * [width * 0.3, height * 0.3] + 8
    return ImageRecord(
        id=identity,
        file_name=path.name,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=np.concatenate([corner, corner + extent], axis=1).astype(np.float32),
        labels=random.integers(0, settings.classes, settings.boxes),
        crowd=np.zeros(settings.boxes, dtype=bool),
        stored_xywh=np.concatenate([corner, extent], axis=1),
        areas=extent.prod(axis=1),
    )


def split_of(records: Sequence[ImageRecord], settings: BenchSettings) -> CocoSplit:
    """A dataset of these images."""
    names = tuple(f"class{label}" for label in range(settings.classes))
    return CocoSplit("bench", names, tuple(range(1, settings.classes + 1)), tuple(records), Path("bench.json"))

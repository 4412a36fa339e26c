"""`noisebox bench`: the time of a training iteration, and of sampling or looking twice, at sizes given on the command
line.

Synthetic images and boxes; medians with their spread after a warm-up; one machine, one process. The numbers stand
beside those of other implementations only when both were taken in the same session on the same machine.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, cast

import torch

from noisebox.config import ImageConfig, RunConfig, Sampling, SmokeConfig, SolverConfig
from noisebox.config.diffusiondet import DiffusionDetConfig, LossConfig
from noisebox.config.yolc import YolcConfig, YolcLossConfig
from noisebox.errors import UserError
from noisebox.evaluation.measuring import autocast
from noisebox.models import Detector, build_model
from noisebox.models.yolc.detector import Yolc
from noisebox.models.yolc.lsm import COLUMNS, ROWS
from noisebox.randomness import numpy_generator
from noisebox.structures import Batch, Targets
from noisebox.training.step import Trainer

# Where the planted heatmap is hot: so many places in the grid of the local scale module, none beside another.
PLACES = [(row, column) for row in (2, 7) for column in (2, 7, 12)]
HOT, COLD = 5.0, -5.0  # logits


@dataclass(frozen=True)
class BenchSettings:
    """What is timed; sizes in pixels, `depth` of a ResNet or the name of a backbone. With `crops`, YOLC at so many
    crops an image, on a canvas of `crop_canvas` times the image's sides; else DiffusionDet at so many `steps`."""

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
    crops: tuple[int, ...] = ()
    crop_canvas: float = 1.0

    def __post_init__(self) -> None:
        """Raises UserError for settings that cannot be run."""
        if self.precision == "fp16" and self.device == "cpu":
            raise UserError("--precision fp16 needs --device cuda; on cpu use bf16 or fp32")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no GPU is to be seen here; use --device cpu")
        if not self.steps or min(self.steps) < 1:
            raise UserError("--steps must be whole numbers from 1 on, such as --steps 1 5 20")
        if self.crops and not 1 <= min(self.crops) <= max(self.crops) <= len(PLACES):
            raise UserError(f"--crops must be whole numbers from 1 to {len(PLACES)}, such as --crops 1 2 4")

    @property
    def backbone(self) -> str:
        return f"resnet{self.depth}" if self.depth.isdigit() else self.depth


def bench(settings: BenchSettings) -> dict[str, Any]:
    """Time one configuration: seconds per training iteration, the peak memory of this process, and of DiffusionDet
    seconds per image and eval seed at each step count (the image's features shared by the seeds, as in the protocol),
    of YOLC seconds per image at no crop and at each number of crops."""
    torch.set_num_threads(settings.threads)
    config = _config(settings)
    trainer = Trainer(config, build_model(config, settings.classes))
    batch = _batch(settings, settings.batch, "train")
    trainer.update(batch, 0)
    train = [
        _seconds(settings.device, partial(trainer.update, batch, step)) for step in range(1, settings.train_iters + 1)
    ]
    detector = cast(Detector, trainer.detector)
    detector.eval()
    if settings.crops:
        inference = _looking_at_each(cast(Yolc, detector), settings)
    else:
        sampled = {str(steps): _sampling(detector, settings, steps) for steps in settings.steps}
        inference = {"infer_s_per_image_and_seed": sampled}
    return {
        "implementation": "noisebox",
        "settings": asdict(settings),
        "train_s_per_iter": statistics.median(train),
        "train_s_per_iter_spread": [min(train), max(train)],
        **inference,
        "peak_memory_mib": _peak_mib(settings.device),
        "parameters": sum(parameter.numel() for parameter in trainer.detector.parameters()),
    }


def _sampling(model: Detector, settings: BenchSettings, steps: int) -> float:
    """Seconds per image and eval seed: the median over three passes of the whole batch of images."""
    batch = _batch(settings, settings.images, "infer").to(settings.device)

    def protocol() -> None:
        with torch.inference_mode(), autocast(settings.device, settings.precision):
            model.detect(model.encode(batch), batch, range(settings.seeds), Sampling(steps=steps))

    protocol()
    return statistics.median(_seconds(settings.device, protocol) for _ in range(3)) / (settings.images * settings.seeds)


def _looking_at_each(model: Yolc, settings: BenchSettings) -> dict[str, Any]:
    """Seconds per image at each number of crops, and what a crop costs: the slope from none to the most."""
    seconds = {count: _looking(model, settings, count) for count in (0, *settings.crops)}
    most = max(settings.crops)
    per_crop = (seconds[most] - seconds[0]) / most
    return {
        "infer_s_per_image": {str(count): each for count, each in seconds.items()},
        "infer_s_per_crop": per_crop,
        "crop_to_image": per_crop / seconds[0],
    }


def _looking(model: Yolc, settings: BenchSettings, crops: int) -> float:
    """Seconds per image of a look, and of a second one at so many crops: the median over three passes of all images.

    An untrained network sees no crowds, so they are planted in the heatmap; all else is computed as ever. Raises
    UserError when the images are too small for so many crops.
    """
    batch = _batch(settings, settings.images, "infer").to(settings.device)
    heatmap = _crowded(crops, (settings.images, settings.classes, *batch.images.shape[-2:])).to(settings.device)
    found = len(model.crops(batch, model.regions(heatmap.sigmoid(), batch))) // settings.images
    if found < crops:
        height, width = settings.size
        raise UserError(f"--crops {crops}: an image of {height} × {width} gives {found}; take a larger --size")

    def look_twice() -> None:
        with torch.inference_mode(), autocast(settings.device, settings.precision):
            encoded = model.encode(batch)._replace(heatmap=heatmap)
            model.detect(encoded, batch, [0], Sampling(steps=1, crops=crops > 0))

    look_twice()
    return statistics.median(_seconds(settings.device, look_twice) for _ in range(3)) / settings.images


def _crowded(crops: int, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """A heatmap (B, K, H, W), logits, that is hot in so many cells of the local scale module's grid."""
    heatmap = torch.full(shape, COLD)
    height, width = shape[-2:]
    for row, column in PLACES[:crops]:
        rows, columns = (
            slice(k * side // n, (k + 1) * side // n) for k, side, n in ((row, height, ROWS), (column, width, COLUMNS))
        )
        heatmap[:, 0, rows, columns] = HOT
    return heatmap


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
        hidden_dim=settings.hidden,
        dim_dynamic=settings.dim_dynamic,
        num_heads=settings.heads,
        dim_feedforward=settings.feedforward,
        num_proposals=settings.proposals,
    )
    return {"family": "diffusiondet", "model": model, "loss": LossConfig()}


def _config(settings: BenchSettings) -> RunConfig:
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

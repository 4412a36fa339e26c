"""What `noisebox bench` times: sizes, device and precision."""

from dataclasses import dataclass
from typing import Literal

from noisebox.errors import UserError

MOST_CROPS = 6  # that `crops` knows places for


@dataclass(frozen=True)
class BenchSettings:
    """Sizes in pixels; `depth` of a ResNet or the name of a backbone, whose first stages `freeze_at` leaves untrained.
    With `crops`, training and looking twice are YOLC's, at so many crops an image, on a canvas of `crop_canvas` times
    the image's sides; all else is DiffusionDet's.

    `repeats` is how often everything but a training iteration is timed. Of loader, depth, report and counting, `items`
    is how many images, frames, runs and images there are, by default each part's own number; `stored` is the height and
    width of the loader's files, `workers` its processes, or depth's threads. `compile` and `winograd` are those of
    `solver`.
    """

    depth: str = "18"
    freeze_at: int = 0
    hidden: int = 256
    dim_dynamic: int = 64
    heads: int = 6
    feedforward: int = 2048
    proposals: int = 100
    classes: int = 3
    size: tuple[int, int] = (128, 160)
    batch: int = 4
    boxes: int = 6
    steps: tuple[int, ...] = (1, 5, 20)
    seeds: int = 5
    images: int = 8
    train_iters: int = 6
    repeats: int = 3
    threads: int = 2
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    winograd: bool = False
    crops: tuple[int, ...] = ()
    crop_canvas: float = 1.0
    items: int | None = None
    stored: tuple[int, int] = (480, 640)
    workers: int = 2

    def __post_init__(self) -> None:
        """Raises UserError for settings that cannot be run."""
        if self.precision == "fp16" and self.device == "cpu":
            raise UserError("--precision fp16 needs --device cuda; on cpu use bf16 or fp32")
        if not self.steps or min(self.steps) < 1:
            raise UserError("--steps must be whole numbers from 1 on, such as --steps 1 5 20")
        if self.crops and not 1 <= min(self.crops) <= max(self.crops) <= MOST_CROPS:
            raise UserError(f"--crops must be whole numbers from 1 to {MOST_CROPS}, such as --crops 1 2 4")

    @property
    def backbone(self) -> str:
        return f"resnet{self.depth}" if self.depth.isdigit() else self.depth

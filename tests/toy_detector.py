"""A detector that trains in milliseconds, as family `toy`, for the tests of the training."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebox import graph
from noisebox.config import ImageConfig, RunConfig, Sampling, Section, SmokeConfig, SolverConfig
from noisebox.config.diffusiondet import DistillConfig, LossConfig
from noisebox.config.families import SECTIONS, Family
from noisebox.errors import UserError
from noisebox.models import FAMILIES, Detector
from noisebox.randomness import normal, numpy_generator
from noisebox.structures import Batch, Detections, Targets

CLASSES = ("car", "person")
SIZE = 16


class ToyConfig(Section):
    width: int = 6
    batch_norm: bool = False


FAMILY = Family(ToyConfig, LossConfig, DistillConfig)


class ToyDetector(Detector):
    """One box and class per image, from pooled features with keyed noise."""

    def __init__(self, config: ToyConfig, num_classes: int) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(config.width) if config.batch_norm else nn.Identity()
        self.backbone = nn.Sequential(nn.Conv2d(3, config.width, 3, 2), norm, nn.Tanh())
        self.head = nn.Linear(config.width, 4 + num_classes)

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        clean = self.head(self.encode(batch))
        noise = torch.stack([normal(tuple(clean.shape[1:]), seed, "toy", step, key) for key in batch.image_ids])
        predicted = clean + 0.01 * noise
        boxes = torch.stack([target.boxes_xyxy[0] / SIZE for target in batch.targets])
        labels = torch.stack([target.labels[0] for target in batch.targets])
        return {
            "loss_class": F.cross_entropy(predicted[:, 4:].float(), labels),
            "loss_box": F.l1_loss(predicted[:, :4].float(), boxes),
        }

    def encode(self, batch: Batch) -> Tensor:
        return self.backbone(batch.images).mean((2, 3))

    def detect(
        self, encoded: Any, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        found = self.head(encoded)
        scores, labels = found[:, 4:].softmax(-1).max(-1)
        rows = zip(found[:, None, :4] * SIZE, scores[:, None], labels[:, None], strict=True)
        return [[Detections(*row) for row in rows] for _ in eval_seeds]

    def distil(self, teacher: Detector, batch: Batch, seed: int, step: int, config: DistillConfig) -> dict[str, Tensor]:
        """The teacher's answer is the goal."""
        assert isinstance(teacher, ToyDetector)
        lesson = teacher.head(teacher.encode(batch)).detach()
        return {"loss_lesson": config.box_weight * F.mse_loss(self.head(self.encode(batch)), lesson)}

    def check_teacher(self, teacher: Detector) -> None:
        assert isinstance(teacher, ToyDetector)
        if teacher.head.in_features != self.head.in_features:
            raise UserError(f"it has width {teacher.head.in_features}, the student {self.head.in_features}")

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"backbone": list(self.backbone.parameters())}


def build(config: RunConfig, num_classes: int, fetch_weights: bool = True) -> ToyDetector:
    return ToyDetector(config.model, num_classes)


def register(set_item: Callable[[Any, Any, Any], None] = dict.__setitem__) -> None:
    """Enter the family into the tables; in a test, `set_item` is monkeypatch.setitem."""
    set_item(SECTIONS, "toy", __name__)
    set_item(FAMILIES, "toy", __name__)
    set_item(graph.FAMILY_CODE, "toy", ())


def toy_config(
    *,
    lineage: str = "toy",
    seed: int = 3,
    precision: str = "fp32",
    model: Any = None,
    distill: DistillConfig | None = None,
    **solver: Any,
) -> RunConfig:
    """Twelve steps, with rows, checkpoints and evaluations that do not coincide."""
    settings = {
        "base_lr": 0.01,
        "max_iter": 12,
        "batch_size": 4,
        "warmup_iters": 3,
        "decay_at": [0.7],
        "log_every": 5,
        "checkpoint_every": 4,
        "ema_decay": 0.5,
    }
    return RunConfig(
        lineage=lineage,
        seed=seed,
        scale="test",
        family="toy",
        dataset="toy",
        device="cpu",
        precision=precision,
        threads=1,
        workers=0,
        eval_batch_size=2,
        image=ImageConfig(),
        model=model or ToyConfig(),
        loss=LossConfig(),
        solver=SolverConfig(**(settings | solver)),
        smoke=SmokeConfig(),
        distill=distill,
    )


def toy_batch(step: int, size: int = 4) -> Batch:
    """The batch of a step: noise images with one box each."""
    generator = numpy_generator(0, "toy batch", step)
    corners = torch.tensor(generator.uniform(0, SIZE, (size, 1, 4)), dtype=torch.float32).sort(-1).values
    return Batch(
        images=torch.tensor(generator.uniform(0, 1, (size, 3, SIZE, SIZE)), dtype=torch.float32),
        sizes_hw=torch.full((size, 2), SIZE),
        original_hw=torch.full((size, 2), SIZE),
        image_ids=tuple(range(step * size, (step + 1) * size)),
        targets=tuple(Targets(box, torch.tensor([row % 2])) for row, box in enumerate(corners)),
    )


def toy_batches(start: int, stop: int) -> Iterator[Batch]:
    return (toy_batch(step) for step in range(start, stop))


def toy_ap(detector: Detector) -> float:
    """A stand-in for the AP that goes up and down with the weights."""
    weights = sum(float(parameter.detach().double().sum()) for parameter in detector.parameters())
    return 100 * (1000 * weights % 1)

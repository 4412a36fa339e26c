"""A DiffusionDet that runs in milliseconds, and scenes of coloured rectangles for it."""

from typing import Any

import torch

from noisebox.config import ImageConfig, RunConfig, SmokeConfig, SolverConfig
from noisebox.config.diffusiondet import DiffusionDetConfig, LossConfig
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.randomness import isolated, numpy_generator
from noisebox.structures import Batch, Targets

HEIGHT, WIDTH, CLASSES = 64, 96, 3
SMALL = {
    "backbone": "slim",
    "hidden_dim": 32,
    "dim_dynamic": 8,
    "num_heads": 2,
    "dim_feedforward": 64,
    "attention_heads": 4,
    "num_proposals": 20,
}


def make_detector(seed: int = 0, loss: LossConfig | None = None, **changes: Any) -> DiffusionDet:
    with isolated(seed, "weights"):
        return DiffusionDet(DiffusionDetConfig(**(SMALL | changes)), loss or LossConfig(), CLASSES)


def small_config(
    *, lineage: str = "small", seed: int = 0, distill: Any = None, model: Any = None, **solver: Any
) -> RunConfig:
    """What a training of the detector needs to know: four steps on two images each."""
    settings = {"base_lr": 1e-3, "max_iter": 4, "batch_size": 2, "log_every": 2, "checkpoint_every": 2}
    return RunConfig(
        lineage=lineage,
        seed=seed,
        scale="test",
        family="diffusiondet",
        dataset="small",
        device="cpu",
        precision="fp32",
        threads=1,
        workers=0,
        eval_batch_size=2,
        image=ImageConfig(),
        model=DiffusionDetConfig(**(SMALL | (model or {}))),
        loss=LossConfig(),
        solver=SolverConfig(**(settings | solver)),
        smoke=SmokeConfig(),
        distill=distill,
    )


def make_batch(image_ids: list[int], objects: int = 3) -> Batch:
    """Images of one size, each with coloured rectangles on noise, determined by its id alone."""
    images, targets = [], []
    for image_id in image_ids:
        rng = numpy_generator(0, "scene", image_id)
        image = torch.from_numpy(rng.uniform(0, 0.3, (3, HEIGHT, WIDTH))).float()
        corner = rng.integers(0, (WIDTH - 40, HEIGHT - 40), (objects, 2))
        boxes = torch.from_numpy(numpy_generator(0, "sizes", image_id).integers(12, 40, (objects, 2)) + corner).float()
        boxes = torch.cat((torch.from_numpy(corner).float(), boxes), dim=1)
        labels = torch.from_numpy(rng.integers(0, CLASSES, objects))
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[label, y1:y2, x1:x2] = 1.0
        images.append(image)
        targets.append(Targets(boxes.reshape(-1, 4), labels))
    sizes = torch.tensor([[HEIGHT, WIDTH]] * len(images))
    return Batch(torch.stack(images), sizes, sizes * 2, tuple(image_ids), tuple(targets))


def random_boxes(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """Boxes (rows, count, 4) anywhere in the image."""
    corners = torch.rand(rows, count, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(dim=2).values
    return corners.flatten(2) * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])


def opinionated(model: DiffusionDet) -> DiffusionDet:
    """Class scores spread around one half, so that renewal and NMS have something to decide; in eval mode."""
    model.eval()
    batch = make_batch([1, 2])
    last = model.head.head_series[-1].class_logits
    with torch.no_grad():
        t, every = torch.tensor([500, 500]), torch.arange(2)
        said = model.head(model.encode(batch), random_boxes(2, 50), t, every, batch.image_whwh)
        logits = said.logits[-1].flatten(0, 1)
        centre, spread = logits.mean(0), logits.std(0)
        last.weight.mul_(2 / spread[:, None])
        last.bias.copy_((last.bias - centre) * 2 / spread - 1.5)
    return model


def awaken(model: DiffusionDet, scale: float = 0.5) -> DiffusionDet:
    """Give what the switches add, and what starts at zero, weights that say something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if any(part in name for part in ("label_embedding", "geo_feat", "geo_bias")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model

"""A YOLC that runs in milliseconds, network outputs planted by hand, and scenes of small coloured rectangles."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisebox.config.yolc import YolcConfig, YolcLossConfig
from noisebox.models.yolc.decode import STRIDE, cell_boxes, cells_of, encode
from noisebox.models.yolc.detector import Yolc
from noisebox.models.yolc.network import Output
from noisebox.randomness import isolated, numpy_generator
from noisebox.structures import Batch, Targets

CLASSES = 3
SMALL = {"backbone": "slim", "hidden_dim": 16, "heatmap_channels": 2, "min_patch_size": 32, "max_detections": 40}


def make_yolc(seed: int = 0, loss: YolcLossConfig | None = None, classes: int = CLASSES, **changes: Any) -> Yolc:
    with isolated(seed, "weights"):
        return Yolc(YolcConfig(**(SMALL | changes)), loss or YolcLossConfig(), classes)


def make_batch(image_ids: Sequence[int], size_hw: tuple[int, int] = (96, 160), objects: int = 8) -> Batch:
    """Images of one size with coloured rectangles of 6 to 20 pixels on noise, in two crowds, determined by the id."""
    height, width = size_hw
    images, targets = [], []
    for image_id in image_ids:
        rng = numpy_generator(0, "yolc scene", image_id)
        image = torch.from_numpy(rng.uniform(0, 0.3, (3, height, width))).float()
        crowds = rng.uniform(24, (width - 24, height - 24), (2, 2))
        centres = crowds[rng.integers(0, 2, objects)] + rng.normal(0, 10, (objects, 2))
        sizes = rng.integers(6, 20, (objects, 2))
        corner = (centres - sizes / 2).clip(0, (width, height) - sizes).astype(int)
        boxes = torch.from_numpy(corner).float()
        boxes = torch.cat((boxes, boxes + torch.from_numpy(sizes)), dim=1)
        labels = torch.from_numpy(rng.integers(0, CLASSES, objects))
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[label, y1:y2, x1:x2] = 1.0
        images.append(image)
        targets.append(Targets(boxes, labels))
    sizes_hw = torch.tensor([size_hw] * len(images))
    return Batch(torch.stack(images), sizes_hw, sizes_hw * 2, tuple(image_ids), tuple(targets))


def blank_batch(size_hw: tuple[int, int], padded_hw: tuple[int, int], images: int = 1) -> Batch:
    """Black images without objects, stored as large as they are shown."""
    sizes_hw = torch.tensor([size_hw] * images)
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    return Batch(torch.zeros(images, 3, *padded_hw), sizes_hw, sizes_hw, tuple(range(images)), (nothing,) * images)


def plant(images: Sequence[Sequence[tuple[Tensor, int, float]]], padded_hw: tuple[int, int], width: int = 16) -> Output:
    """What a network says that sees exactly these (box, label, score) in each image, and nothing else."""
    height, columns = padded_hw
    grid_hw = (height // STRIDE, columns // STRIDE)
    heatmap = torch.full((len(images), CLASSES, height, columns), -20.0)
    coarse = torch.zeros(len(images), 4, *grid_hw)
    for row, objects in enumerate(images):
        for box, label, score in objects:
            centre = (box[:2] + box[2:]) / 2
            x, y = centre.long().tolist()
            heatmap[row, label, min(y, height - 1), min(x, columns - 1)] = torch.logit(torch.tensor(score))
            cell = cells_of(centre, grid_hw)
            coarse[row].flatten(1)[:, cell] = encode(box, cell_boxes(cell, grid_hw[1]))
    return Output(heatmap, coarse, torch.zeros(len(images), width, *grid_hw))

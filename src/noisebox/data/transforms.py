"""How an image is shown to a model: perhaps a part of it, resized, perhaps mirrored. Which view it is depends on a key,
never on a state."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as F

from noisebox.config import ImageConfig
from noisebox.config.run import CropConfig
from noisebox.randomness import numpy_generator
from noisebox.structures import Targets

MIN_SIDE = 1e-3  # pixels; a thinner box is no target


@dataclass(frozen=True)
class View:
    """The size an image, or its part `crop` (top, left, height, width in stored pixels), is resized to, and whether it
    is mirrored left to right."""

    height: int
    width: int
    flip: bool = False
    crop: tuple[int, int, int, int] | None = None


def resized_hw(height: int, width: int, short_edge: int, max_edge: int) -> tuple[int, int]:
    """The size whose short edge is `short_edge`, or less where the long edge would pass `max_edge`; never under 1."""
    scale = min(short_edge / min(height, width), max_edge / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def training_view(height: int, width: int, config: ImageConfig, seed: int, step: int, image_id: int) -> View:
    """The view of an image at a training step, drawn by the key (seed, "augment", step, image_id)."""
    generator = numpy_generator(seed, "augment", step, image_id)
    short_edge = config.train_short_edges[generator.integers(len(config.train_short_edges))]
    flip = bool(generator.random() < config.flip)
    crop = cropped(height, width, config.crop, generator) if config.crop else None
    part_hw = crop[2:] if crop else (height, width)
    return View(*resized_hw(*part_hw, short_edge, config.max_edge), flip, crop)


def cropped(
    height: int, width: int, config: CropConfig, generator: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A part to show of an image: top, left, height, width in its stored pixels; None where all of it is shown."""
    if generator.random() >= config.likely:
        return None
    scale = config.short_edges[generator.integers(len(config.short_edges))] / min(height, width)
    spans = []
    for side in (height, width):
        there = round(side * scale)
        part = int(generator.integers(min(there, config.least), min(there, config.most) + 1))
        start = int(generator.integers(there - part + 1))
        first = min(round(start / scale), side - 1)
        spans.append((first, min(max(1, round(part / scale)), side - first)))
    (top, part_height), (left, part_width) = spans
    return top, left, part_height, part_width


def evaluation_view(height: int, width: int, config: ImageConfig) -> View:
    """The one view of an image in evaluation."""
    return View(*resized_hw(height, width, config.eval_short_edge, config.max_edge))


def resized(image: Tensor, view: View) -> Tensor:
    """An image, (3, H, W) uint8, in the size of a view: bilinear with antialiasing, and as it is where it fits."""
    size = [view.height, view.width]
    return image if list(image.shape[-2:]) == size else F.resize(image, size, antialias=True)


def shown(image: Tensor, view: View) -> Tensor:
    """An image, (3, H, W) uint8, in a view: (3, h, w) uint8. It may come resized, if all of it is shown."""
    if view.crop:
        top, left, height, width = view.crop
        image = image[:, top : top + height, left : left + width]
    image = resized(image, view)
    return F.horizontal_flip(image) if view.flip else image


def targets_in(view: View, targets: Targets, stored_hw: tuple[int, int]) -> Targets:
    """The targets of an image, whose boxes are in pixels of its stored size, in those of a view.

    Boxes are clipped, and those with a side under MIN_SIDE dropped; so are crowds.
    """
    objects = len(targets.labels)
    both = torch.cat((targets.boxes_xyxy, targets.crowds_xyxy))
    labels = torch.cat((targets.labels, targets.crowd_labels))
    if view.crop:
        top, left, *part_hw = view.crop
        both, stored_hw = both - torch.tensor([left, top, left, top]), (part_hw[0], part_hw[1])
    boxes = tv_tensors.BoundingBoxes(both, format="XYXY", canvas_size=stored_hw)
    if stored_hw != (view.height, view.width):
        boxes = F.resize(boxes, [view.height, view.width])
    if view.flip:
        boxes = F.horizontal_flip(boxes)
    boxes_xyxy = clip_boxes_to_image(boxes.as_subclass(Tensor), (view.height, view.width))
    kept = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] >= MIN_SIDE).all(dim=1)
    single, crowded = kept[:objects].nonzero()[:, 0], kept[objects:].nonzero()[:, 0] + objects
    return Targets(boxes_xyxy[single], labels[single], boxes_xyxy[crowded], labels[crowded])

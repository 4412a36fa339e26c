"""How an image is shown to a model: resized, perhaps mirrored. Which view it is depends on a key, never on a state."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as F

from noisebox.config import ImageConfig
from noisebox.randomness import numpy_generator
from noisebox.structures import Targets

MIN_SIDE = 1e-3  # pixels; a thinner box is no target


@dataclass(frozen=True)
class View:
    """The size an image is resized to, and whether it is mirrored left to right."""

    height: int
    width: int
    flip: bool = False


def resized_hw(height: int, width: int, short_edge: int, max_edge: int) -> tuple[int, int]:
    """The size whose short edge is `short_edge`, or less where the long edge would pass `max_edge`; never under 1."""
    scale = min(short_edge / min(height, width), max_edge / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def training_view(height: int, width: int, config: ImageConfig, seed: int, step: int, image_id: int) -> View:
    """The view of an image at a training step, drawn by the key (seed, "augment", step, image_id)."""
    generator = numpy_generator(seed, "augment", step, image_id)
    short_edge = config.train_short_edges[generator.integers(len(config.train_short_edges))]
    flip = bool(generator.random() < config.flip)
    return View(*resized_hw(height, width, short_edge, config.max_edge), flip)


def evaluation_view(height: int, width: int, config: ImageConfig) -> View:
    """The one view of an image in evaluation."""
    return View(*resized_hw(height, width, config.eval_short_edge, config.max_edge))


def show(image: Tensor, targets: Targets, view: View) -> tuple[Tensor, Targets]:
    """Bring an image, (3, H, W) uint8, and its targets into a view: (3, h, w) float32 in [0, 1], boxes in its pixels.

    Resizing is bilinear with antialiasing, and nothing at all where the size already fits. Boxes are clipped, and those
    with a side under MIN_SIDE dropped; so are crowds.
    """
    size, objects = [view.height, view.width], len(targets.labels)
    both, labels = (
        torch.cat((targets.boxes_xyxy, targets.crowds_xyxy)),
        torch.cat((targets.labels, targets.crowd_labels)),
    )
    boxes = tv_tensors.BoundingBoxes(both, format="XYXY", canvas_size=tuple(image.shape[-2:]))
    if list(image.shape[-2:]) != size:
        image, boxes = F.resize(image, size, antialias=True), F.resize(boxes, size)
    if view.flip:
        image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
    boxes_xyxy = clip_boxes_to_image(boxes.as_subclass(Tensor), (view.height, view.width))
    kept = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] >= MIN_SIDE).all(dim=1)
    single, crowded = kept[:objects].nonzero()[:, 0], kept[objects:].nonzero()[:, 0] + objects
    shown = Targets(boxes_xyxy[single], labels[single], boxes_xyxy[crowded], labels[crowded])
    return F.to_dtype(image, torch.float32, scale=True), shown

"""Crops in memory: parts of the stored images on canvases of one size, and the way of boxes into them and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2.functional import to_dtype

from noisebox.structures import Batch, Targets

MULTIPLE = 32  # of pixels that a canvas's sides are, as the backbone wants

# A crop's border cuts objects. Less than this share of one is no target; and what is found within so many pixels of
# the border, in the image, is what is left of one.
LEAST_SHARE = 0.5
AT_BORDER = 1.0


@dataclass(frozen=True)
class Crops:
    """C crops on canvases of one size: `images` (C, 3, h, w), the rest beyond the crop 0; `sizes_hw` (C, 2) int64,
    their sizes there; `regions_xyxy` (C, 4), their places in pixels of the resized images; `image` (C,) int64, which
    image of the batch; `within_hw` (C, 2) int64, the sizes of these resized images."""

    images: Tensor
    sizes_hw: Tensor
    regions_xyxy: Tensor
    image: Tensor
    within_hw: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @property
    def scales(self) -> Tensor:
        """(C, 4): pixels of the canvas to a pixel of the image, for x, y, x, y."""
        extent = self.regions_xyxy[:, 2:] - self.regions_xyxy[:, :2]
        return (self.sizes_hw.flip(-1) / extent).repeat(1, 2)

    def to_canvas(self, boxes_xyxy: Tensor, crop: int) -> Tensor:
        """Boxes (N, 4) in pixels of the resized image, brought into one of its crops; they may reach beyond it."""
        return (boxes_xyxy - self._origin(crop)) * self.scales[crop]

    def to_image(self, boxes_xyxy: Tensor, crop: int) -> Tensor:
        """Boxes (N, 4) in pixels of a crop's canvas, brought back into the resized image."""
        return boxes_xyxy / self.scales[crop] + self._origin(crop)

    def targets(self, targets: Sequence[Targets]) -> tuple[Targets, ...]:
        """The objects of the batch's images as each crop shows them: clipped to it, and gone where too little shows; of
        crowds all that shows."""
        shown = []
        for crop, (image, size) in enumerate(zip(self.image.tolist(), self.sizes_hw.tolist(), strict=True)):
            boxes = self.to_canvas(targets[image].boxes_xyxy, crop)
            clipped = clip_boxes_to_image(boxes, tuple(size))
            kept = _area(clipped) >= LEAST_SHARE * _area(boxes)
            crowds = clip_boxes_to_image(self.to_canvas(targets[image].crowds_xyxy, crop), tuple(size))
            crowded = _area(crowds) > 0
            shown.append(
                Targets(
                    clipped[kept], targets[image].labels[kept], crowds[crowded], targets[image].crowd_labels[crowded]
                )
            )
        return tuple(shown)

    def whole(self, boxes_xyxy: Tensor, crop: int) -> Tensor:
        """Which of boxes (N, 4) in the image are not cut by the crop's border; the image's own border cuts nothing."""
        region, (height, width) = self.regions_xyxy[crop], self.within_hw[crop].tolist()
        open_sides = region != region.new_tensor([0, 0, width, height])
        inwards = (boxes_xyxy - region) * region.new_tensor([1, 1, -1, -1])
        return ((inwards > AT_BORDER) | ~open_sides).all(-1)

    def _origin(self, crop: int) -> Tensor:
        return self.regions_xyxy[crop, :2].repeat(2)


def cut(batch: Batch, regions: Sequence[Tensor], share: float) -> Crops:
    """The crops of a batch at each image's `regions` (R, 4) int64 in pixels of the resized image, which grow to whole
    pixels of the stored one, whose pixels are shown.

    The canvas is `share` of the batch's height and width, rounded up to a multiple of 32. A crop is scaled, its aspect
    kept, until it fills the canvas one way; one that would not become larger than in the resized image says nothing new
    and is left out.
    """
    canvas_hw = [MULTIPLE * ceil(side * share / MULTIPLE) for side in batch.images.shape[-2:]]
    canvases, sizes, places, origins = [], [], [], []
    for image, boxes in enumerate(regions):
        stored, (height, width) = batch.detailed(image), batch.sizes_hw[image].tolist()
        down, across = height / stored.shape[1], width / stored.shape[2]
        for x1, y1, x2, y2 in boxes.tolist():
            top, bottom = _touched(y1, y2, height, stored.shape[1])
            left, right = _touched(x1, x2, width, stored.shape[2])
            extent = ((bottom - top) * down, (right - left) * across)
            zoom = min(canvas / side for canvas, side in zip(canvas_hw, extent, strict=True))
            if zoom <= 1:
                continue
            size = [max(1, round(side * zoom)) for side in extent]
            part = to_dtype(stored[None, :, top:bottom, left:right], torch.float32, scale=True)
            part = F.interpolate(part, size, mode="bilinear", antialias=True)
            canvases.append(F.pad(part, (0, canvas_hw[1] - size[1], 0, canvas_hw[0] - size[0])))
            sizes.append(size)
            places.append((left * across, top * down, right * across, bottom * down))
            origins.append(image)
    device = batch.images.device
    which = torch.tensor(origins, dtype=torch.long, device=device)
    return Crops(
        images=torch.cat(canvases) if canvases else batch.images.new_zeros(0, 3, *canvas_hw),
        sizes_hw=torch.tensor(sizes, dtype=torch.long, device=device).reshape(-1, 2),
        regions_xyxy=torch.tensor(places, dtype=torch.float32, device=device).reshape(-1, 4),
        image=which,
        within_hw=batch.sizes_hw[which],
    )


def _touched(low: int, high: int, resized: int, stored: int) -> tuple[int, int]:
    """The first pixel of the stored image's side that an interval of the resized one's touches, and the last + 1."""
    return low * stored // resized, -(-high * stored // resized)


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1)

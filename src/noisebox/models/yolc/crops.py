"""Crops in memory: parts of images enlarged to one canvas, and the way of boxes into them and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from noisebox.structures import Targets

MULTIPLE = 32  # of pixels that a canvas's sides are, as the backbone wants

# A crop's border cuts objects. Less than this share of one is no target; and what is found within so many pixels of
# the border, in the image, is what is left of one.
LEAST_SHARE = 0.5
AT_BORDER = 1.0


@dataclass(frozen=True)
class Crops:
    """C crops on canvases of one size: `images` (C, 3, h, w), the rest beyond the crop 0; `sizes_hw` (C, 2) int64,
    their sizes there; `regions_xyxy` (C, 4) int64, their places in the pixels of their images; `image` (C,) int64,
    which image of the batch; `within_hw` (C, 2) int64, the sizes of these images."""

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
        """Boxes (N, 4) in pixels of the image, brought into one of its crops; they may reach beyond it."""
        return (boxes_xyxy - self._origin(crop)) * self.scales[crop]

    def to_image(self, boxes_xyxy: Tensor, crop: int) -> Tensor:
        """Boxes (N, 4) in pixels of a crop's canvas, brought back into the image."""
        return boxes_xyxy / self.scales[crop] + self._origin(crop)

    def targets(self, targets: Sequence[Targets]) -> tuple[Targets, ...]:
        """The objects of the batch's images as each crop shows them: clipped to it, and gone where too little shows."""
        shown = []
        for crop, (image, size) in enumerate(zip(self.image.tolist(), self.sizes_hw.tolist(), strict=True)):
            boxes = self.to_canvas(targets[image].boxes_xyxy, crop)
            clipped = clip_boxes_to_image(boxes, tuple(size))
            kept = _area(clipped) >= LEAST_SHARE * _area(boxes)
            shown.append(Targets(clipped[kept], targets[image].labels[kept]))
        return tuple(shown)

    def whole(self, boxes_xyxy: Tensor, crop: int) -> Tensor:
        """Which of boxes (N, 4) in the image are not cut by the crop's border; the image's own border cuts nothing."""
        region, (height, width) = self.regions_xyxy[crop], self.within_hw[crop].tolist()
        open_sides = region != region.new_tensor([0, 0, width, height])
        inwards = (boxes_xyxy - region) * region.new_tensor([1, 1, -1, -1])
        return ((inwards > AT_BORDER) | ~open_sides).all(-1)

    def _origin(self, crop: int) -> Tensor:
        return self.regions_xyxy[crop, :2].repeat(2)


def cut(images: Tensor, sizes_hw: Tensor, regions: Sequence[Tensor], share: float) -> Crops:
    """The crops of images (B, 3, H, W), sizes (B, 2) without padding, at each image's `regions` (R, 4) int64.

    The canvas is `share` of H and W, rounded up to a multiple of 32. A crop is enlarged, its aspect kept, until it
    fills the canvas one way; one that would not become larger says nothing new and is left out.
    """
    canvas_hw = [MULTIPLE * ceil(side * share / MULTIPLE) for side in images.shape[-2:]]
    canvases, sizes, places, origins = [], [], [], []
    for image, boxes in enumerate(regions):
        for x1, y1, x2, y2 in boxes.tolist():
            zoom = min(canvas_hw[0] / (y2 - y1), canvas_hw[1] / (x2 - x1))
            if zoom <= 1:
                continue
            height, width = round((y2 - y1) * zoom), round((x2 - x1) * zoom)
            part = F.interpolate(images[image, None, :, y1:y2, x1:x2], (height, width), mode="bilinear")
            canvases.append(F.pad(part, (0, canvas_hw[1] - width, 0, canvas_hw[0] - height)))
            sizes.append((height, width))
            places.append((x1, y1, x2, y2))
            origins.append(image)
    device = images.device
    which = torch.tensor(origins, dtype=torch.long, device=device)
    return Crops(
        images=torch.cat(canvases) if canvases else images.new_zeros(0, 3, *canvas_hw),
        sizes_hw=torch.tensor(sizes, dtype=torch.long, device=device).reshape(-1, 2),
        regions_xyxy=torch.tensor(places, dtype=torch.long, device=device).reshape(-1, 4),
        image=which,
        within_hw=sizes_hw[which],
    )


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1)

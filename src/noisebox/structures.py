"""What travels between data, models and evaluation: batches of images with their targets, and detections."""

from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor


class Examples(Protocol):
    """What training needs of a batch, whatever the task."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...

    def part(self, rows: slice) -> Self:
        """Those rows alone, padded as before."""


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image: `boxes_xyxy` (G, 4) float32 in pixels of the resized image, `labels` (G,) int64; and
    likewise `crowds_xyxy` (N, 4) and `crowd_labels` (N,): in a crowd, what looks like its class is neither an object to
    be found nor a mistake, as in VisDrone's ignored regions."""

    boxes_xyxy: Tensor
    labels: Tensor
    crowds_xyxy: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    crowd_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Batch:
    """B resized images, padded at the right and bottom to one common size, with their ground truth.

    `images`: (B, 3, H, W) float32 in [0, 1], RGB, the padding 0. `sizes_hw`: (B, 2) int64, each image's size without
    padding. `original_hw`: (B, 2) int64, its size as stored. `image_ids`: the dataset's ids, the key of all per-image
    randomness. `targets`: B entries, labels counted from 0. `stored`: B images (3, h, w) uint8 as stored, mirrored
    where the resized ones are; or none, where the family does not look closer.
    """

    images: Tensor
    sizes_hw: Tensor
    original_hw: Tensor
    image_ids: tuple[int, ...]
    targets: tuple[Targets, ...]
    stored: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def detailed(self, row: int) -> Tensor:
        """An image (3, h, w) in all the detail there is: as stored, uint8, if the batch carries that; else as resized,
        without padding."""
        if self.stored:
            return self.stored[row]
        height, width = self.sizes_hw[row].tolist()
        return self.images[row, :, :height, :width]

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            images=self.images.to(device),
            sizes_hw=self.sizes_hw.to(device),
            original_hw=self.original_hw.to(device),
            targets=tuple(target.to(device) for target in self.targets),
            stored=tuple(image.to(device) for image in self.stored),
        )

    def part(self, rows: slice) -> "Batch":
        return Batch(
            self.images[rows],
            self.sizes_hw[rows],
            self.original_hw[rows],
            self.image_ids[rows],
            self.targets[rows],
            self.stored[rows],
        )


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image: `boxes_xyxy` (D, 4) in pixels of the stored image, clipped to it;
    `scores` (D,) in [0, 1], falling; `labels` (D,) int64 counted from 0."""

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor

    def cpu(self) -> "Detections":
        return Detections(self.boxes_xyxy.cpu(), self.scores.cpu(), self.labels.cpu())


@dataclass(frozen=True)
class BevBatch:
    """B camera images with the ground before them.

    `images`: (B, 3, H, W) float32 in [0, 1], RGB. `intrinsics`: (B, 3, 3) float32, in pixels of `images`. `image_ids`:
    the key of all per-image randomness. `labels`: (B, rows, columns) int64 as stored, row 0 the farthest, column 0 the
    leftmost. `gt_depth`: (B, 1, H, W) float32 metres, and `gt_depth_mask` bool, where it is known; nowhere without
    depth ground truth.
    """

    images: Tensor
    intrinsics: Tensor
    image_ids: tuple[int, ...]
    labels: Tensor
    gt_depth: Tensor
    gt_depth_mask: Tensor

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str) -> "BevBatch":
        return replace(
            self,
            images=self.images.to(device),
            intrinsics=self.intrinsics.to(device),
            labels=self.labels.to(device),
            gt_depth=self.gt_depth.to(device),
            gt_depth_mask=self.gt_depth_mask.to(device),
        )

    def part(self, rows: slice) -> "BevBatch":
        return BevBatch(**{name: value[rows] for name, value in vars(self).items()})

"""What travels between data, models and evaluation: a batch of images with its targets, and detections."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image: `boxes_xyxy` (G, 4) float32 in pixels of the resized image, `labels` (G,) int64."""

    boxes_xyxy: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(self.boxes_xyxy.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Batch:
    """B resized images, padded at the right and bottom to one common size, with their ground truth.

    `images`: (B, 3, H, W) float32 in [0, 1], RGB, the padding 0. `sizes_hw`: (B, 2) int64, each image's size without
    padding. `original_hw`: (B, 2) int64, its size as stored. `image_ids`: the dataset's ids, the key of all per-image
    randomness. `targets`: B entries, labels counted from 0.
    """

    images: Tensor
    sizes_hw: Tensor
    original_hw: Tensor
    image_ids: tuple[int, ...]
    targets: tuple[Targets, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            images=self.images.to(device),
            sizes_hw=self.sizes_hw.to(device),
            original_hw=self.original_hw.to(device),
            targets=tuple(target.to(device) for target in self.targets),
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

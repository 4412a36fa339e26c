"""What travels between data, models and evaluation: batches of images with their targets, and detections."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Examples(Protocol):
    """What training needs of a batch, whatever the task."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...

    def part(self, rows: slice) -> Self:
        """Those rows alone, padded as before."""


def whwh_of(sizes_hw: Tensor) -> Tensor:
    """(N, 2) heights and widths as (N, 4) float32 widths, heights, widths, heights: what boxes are divided by."""
    return sizes_hw.flip(-1).repeat(1, 2).float()


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image: `boxes_xyxy` (G, 4) float32 in pixels of the resized image, `labels` (G,) int64; and
    likewise `crowds_xyxy` (N, 4) and `crowd_labels` (N,): in a crowd, what looks like its class is neither an object to
    be found nor a mistake, as in VisDrone's ignored regions. `counted` (K,) bool: the classes that a federated loss
    counts in the image; (0,) where no loss is."""

    boxes_xyxy: Tensor
    labels: Tensor
    crowds_xyxy: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    crowd_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    counted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Batch:
    """B resized images, padded at the right and bottom to one common size, with their ground truth.

    `images`: (B, 3, H, W), RGB, the padding 0: uint8 from a loader, which so hands over a quarter of the bytes, and
    float32 in [0, 1] for a model, from `to` on. `sizes_hw`: (B, 2) int64, each image's size without padding.
    `original_hw`: (B, 2) int64, its size as stored. `image_ids`: the dataset's ids, the key of all per-image
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

    @property
    def image_whwh(self) -> Tensor:
        """(B, 4) float32: what boxes in pixels of the resized images are divided by."""
        return whwh_of(self.sizes_hw)

    @property
    def original_whwh(self) -> Tensor:
        """(B, 4) float32: what boxes in pixels of the stored images are divided by."""
        return whwh_of(self.original_hw)

    def detailed(self, row: int) -> Tensor:
        """An image (3, h, w) in all the detail there is: as stored, uint8, if the batch carries that; else as resized,
        without padding."""
        if self.stored:
            return self.stored[row]
        height, width = self.sizes_hw[row].tolist()
        return self.images[row, :, :height, :width]

    def __reduce__(self) -> tuple[Any, ...]:
        """How it goes from one process to another: each tensor takes a connection of its own, near a millisecond, so
        that all but the images go as arrays, which take none."""
        targets = tuple(tuple(value.numpy() for value in vars(target).values()) for target in self.targets)
        sizes = self.sizes_hw.numpy(), self.original_hw.numpy()
        return _received, (self.images, *sizes, self.image_ids, targets, self.stored)

    def to(self, device: torch.device | str) -> "Batch":
        """On a device, as a model takes it."""
        return replace(
            self,
            images=_scaled(self.images.to(device)),
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


def _received(
    images: Tensor,
    sizes_hw: Any,
    original_hw: Any,
    image_ids: tuple[int, ...],
    targets: Any,
    stored: tuple[Tensor, ...],
) -> Batch:
    """The batch that another process sent."""
    every = tuple(Targets(*(torch.from_numpy(value) for value in values)) for values in targets)
    return Batch(images, torch.from_numpy(sizes_hw), torch.from_numpy(original_hw), image_ids, every, stored)


def _scaled(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) as float32 in [0, 1], channel after channel in memory."""
    if images.dtype != torch.uint8:
        return images
    return images.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image: `boxes_xyxy` (D, 4) in pixels of the stored image, clipped to it;
    `scores` (D,) in [0, 1], falling; `labels` (D,) int64 counted from 0."""

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor

    def at_least(self, score: float) -> "Detections":
        """Those of at least this score."""
        kept = self.scores >= score
        return Detections(self.boxes_xyxy[kept], self.scores[kept], self.labels[kept])

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

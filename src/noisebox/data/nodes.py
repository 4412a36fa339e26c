"""Batches with a fixed number of boxes an image, for denoisers that are trained on sets of one size.

loader = DataLoader(TrainingBatches(split, config), sampler=range(1000), batch_size=None, collate_fn=FixedNodes(100))
"""

import torch
from torch import Tensor

from noisebox.errors import UserError
from noisebox.structures import Batch, Targets


class FixedNodes:
    """A collate function that gives every image `count` nodes: its objects in their order, and padding after them.

    Of more objects than that the largest stay, by the area of their boxes in the resized image, the first of equals.
    """

    def __init__(self, count: int) -> None:
        """Raises UserError when `count` is less than 1."""
        if count < 1:
            raise UserError(f"the number of nodes must be 1 or more, not {count}")
        self.count = count

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """A batch of the loader as tensors of fixed shapes.

        `images` (B, 3, H, W) float32 in [0, 1], `image_whwh` (B, 4) float32, their sizes without padding, `image_ids`
        (B,); `boxes` (B, count, 4) x1, y1, x2, y2 in pixels of `images`, `labels` (B, count) int64, and `valid`
        (B, count) bool, where there is an object; elsewhere box and label are 0.
        """
        boxes = torch.zeros(len(batch), self.count, 4)
        labels = torch.zeros(len(batch), self.count, dtype=torch.long)
        valid = torch.zeros(len(batch), self.count, dtype=torch.bool)
        for row, target in enumerate(batch.targets):
            kept = self._kept(target)
            boxes[row, : len(kept)], labels[row, : len(kept)] = target.boxes_xyxy[kept], target.labels[kept]
            valid[row, : len(kept)] = True
        return {
            "images": batch.to("cpu").images,
            "image_whwh": batch.image_whwh,
            "image_ids": torch.tensor(batch.image_ids),
            "boxes": boxes,
            "labels": labels,
            "valid": valid,
        }

    def _kept(self, target: Targets) -> Tensor:
        """Which objects of an image stay, in their order."""
        areas = (target.boxes_xyxy[:, 2:] - target.boxes_xyxy[:, :2]).prod(-1)
        return areas.sort(descending=True, stable=True).indices[: self.count].sort().values

"""Generalised IoU as a loss, for pairs of boxes."""

import torch
from torch import Tensor

LEAST_AREA = 1e-7  # keeps the loss of boxes without an area finite


def giou_loss(boxes_xyxy: Tensor, goals_xyxy: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019) of each of `boxes_xyxy` (..., 4) with its own of `goals_xyxy` (..., 4): (...),
    the same as torchvision's `generalized_box_iou_loss`.

    That one picks the pairs that overlap: on a GPU the host waits for their number, and to sum the picked gradients in
    a fixed order takes longer than the head does.
    """
    upper_left = torch.maximum(boxes_xyxy[..., :2], goals_xyxy[..., :2])
    lower_right = torch.minimum(boxes_xyxy[..., 2:], goals_xyxy[..., 2:])
    overlap = _area((lower_right - upper_left).relu())
    own, goal = (_area(boxes[..., 2:] - boxes[..., :2]) for boxes in (boxes_xyxy, goals_xyxy))
    union = own + goal - overlap
    hull_start = torch.minimum(boxes_xyxy[..., :2], goals_xyxy[..., :2])
    hull = _area(torch.maximum(boxes_xyxy[..., 2:], goals_xyxy[..., 2:]) - hull_start)
    return 1 - overlap / (union + LEAST_AREA) + (hull - union) / (hull + LEAST_AREA)


def _area(extent: Tensor) -> Tensor:
    """(...) from widths and heights (..., 2)."""
    return extent[..., 0] * extent[..., 1]

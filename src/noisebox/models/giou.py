"""IoU and generalised IoU of boxes (Rezatofighi et al. 2019), and the loss of pairs."""

import torch
from torch import Tensor

LEAST_AREA = 1e-7  # keeps the loss of boxes without an area finite


def iou_and_gap(boxes_xyxy: Tensor, others_xyxy: Tensor, least_area: float = 0.0) -> tuple[Tensor, Tensor]:
    """IoU of `boxes_xyxy` (..., 4) with `others_xyxy` (..., 4), whose shapes broadcast, and the share of their hull
    that is in neither, each (...); GIoU is the first less the second.

    `least_area` is added to what is divided by; without it, at least one box of a pair must have an area.
    """
    upper_left = torch.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    lower_right = torch.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    overlap = _area((lower_right - upper_left).relu())
    own, other = (_area(boxes[..., 2:] - boxes[..., :2]) for boxes in (boxes_xyxy, others_xyxy))
    union = own + other - overlap
    hull_start = torch.minimum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    hull = _area(torch.maximum(boxes_xyxy[..., 2:], others_xyxy[..., 2:]) - hull_start)
    return overlap / (union + least_area), (hull - union) / (hull + least_area)


def giou_loss(boxes_xyxy: Tensor, goals_xyxy: Tensor) -> Tensor:
    """1 - GIoU of each of `boxes_xyxy` (..., 4) with its own of `goals_xyxy` (..., 4): (...), the same as torchvision's
    `generalized_box_iou_loss`.

    That one picks the pairs that overlap: on a GPU the host waits for their number, and to sum the picked gradients in
    a fixed order takes longer than the head does.
    """
    iou, gap = iou_and_gap(boxes_xyxy, goals_xyxy, LEAST_AREA)
    return 1 - iou + gap


def _area(extent: Tensor) -> Tensor:
    """(...) from widths and heights (..., 2)."""
    return extent[..., 0] * extent[..., 1]

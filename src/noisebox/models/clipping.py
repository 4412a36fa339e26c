"""Boxes clipped to their image."""

import torch
from torch import Tensor


def clipped(boxes_xyxy: Tensor, image_whwh: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) clipped to an image, `image_whwh` (4,) in the same unit, and which of them (N,) bool have an area.

    A box that is not of finite numbers comes back as it is and counts among those: no comparison holds for nan, so
    damaged weights would else pass for an image without objects.
    """
    finite = boxes_xyxy.isfinite().all(-1)
    inside = boxes_xyxy.clamp(min=0).minimum(image_whwh)
    has_area = (inside[:, 2:] > inside[:, :2]).all(-1)
    return torch.where(finite[:, None], inside, boxes_xyxy), has_area | ~finite

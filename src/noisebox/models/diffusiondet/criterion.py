"""The set-prediction loss: focal, L1 and generalised IoU over matched proposals, at every stage of the head."""

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from noisebox.config import LossConfig
from noisebox.models.diffusiondet.matcher import PaddedTargets, match


def set_prediction_loss(
    logits: Tensor, boxes_xyxy: Tensor, targets: PaddedTargets, image_whwh: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """Weighted scalars `loss_ce`, `loss_bbox`, `loss_giou` of the last stage and, with deep supervision, the same with
    `_0`, `_1`, … of the stages before it.

    `logits`: (S, N, P, K). `boxes_xyxy`: (S, N, P, 4) in pixels. `image_whwh`: (N, 4). Each stage is matched anew and
    its sums are divided by the number of its matched proposals in the whole batch, over all processes.
    """
    if not config.deep_supervision:
        logits, boxes_xyxy = logits[-1:], boxes_xyxy[-1:]
    matched, gt_index = match(logits.detach(), boxes_xyxy.detach(), targets, image_whwh, config)
    labels = targets.labels.expand(len(logits), -1, -1).gather(-1, gt_index)
    goals = targets.boxes_xyxy.expand(len(logits), -1, -1, -1).gather(-2, gt_index[..., None].expand_as(boxes_xyxy))
    one_hot = F.one_hot(labels, logits.shape[-1]) * matched[..., None]
    # An unmatched proposal stands at its goal, which gives it neither loss nor gradient, whatever its box is.
    boxes = torch.where(matched[..., None], boxes_xyxy, goals)

    focal = sigmoid_focal_loss(logits, one_hot.to(logits.dtype), config.focal_alpha, config.focal_gamma)
    l1 = (boxes - goals).abs() / image_whwh[:, None]
    giou = generalized_box_iou_loss(boxes, goals) * matched
    count = _mean_over_processes(matched.sum((1, 2)).to(logits.dtype)).clamp(min=1)
    terms = {
        "loss_ce": config.class_weight * focal.sum((1, 2, 3)) / count,
        "loss_bbox": config.l1_weight * l1.sum((1, 2, 3)) / count,
        "loss_giou": config.giou_weight * giou.sum((1, 2)) / count,
    }
    last = len(logits) - 1
    return {
        name if stage == last else f"{name}_{stage}": values[stage]
        for stage in (last, *range(last))
        for name, values in terms.items()
    }


def _mean_over_processes(count: Tensor) -> Tensor:
    """`count` averaged over the processes that share a batch, whose gradients are averaged as well."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        return count / distributed.get_world_size()
    return count

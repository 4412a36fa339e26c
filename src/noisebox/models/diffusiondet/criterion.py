"""The set-prediction loss: classes, boxes and their quality at every stage of the head, and the last stage's graph."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from noisebox.config.diffusiondet import LossConfig
from noisebox.models.diffusiondet.head import HeadOutput
from noisebox.models.diffusiondet.matcher import Matches, PaddedTargets, match, pairwise_iou
from noisebox.models.giou import giou_loss, iou_and_gap
from noisebox.processes import norm

# Attention below this costs no more: a sparse graph has edges that are exactly zero.
LEAST_ATTENTION = 1e-8


def set_prediction_loss(
    output: HeadOutput, targets: PaddedTargets, image_whwh: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """Weighted scalars `loss_ce`, `loss_bbox`, `loss_giou`, and with a quality head `loss_quality`, of the last stage;
    with deep supervision, the same with `_0`, `_1`, … of the stages before it; of the last alone, `loss_graph` where
    it has a weight and the head says its attention.

    `image_whwh`: (N, 4). Each stage is matched anew and its sums are divided by the number of its matched proposals in
    the whole batch, over all processes; the quality's is a mean over all proposals. A federated loss counts classes in
    `loss_ce`; matching knows all of them.
    """
    if not config.deep_supervision:
        output = _last_stage(output)
    logits, boxes_xyxy, quality, attention = output
    matches = match(logits.detach(), boxes_xyxy.detach(), targets, image_whwh, config)
    matched, gt_index = matches
    labels = targets.labels.expand(len(logits), -1, -1).gather(-1, gt_index)
    goals = targets.boxes_xyxy.expand(len(logits), -1, -1, -1).gather(-2, gt_index[..., None].expand_as(boxes_xyxy))
    one_hot = F.one_hot(labels, logits.shape[-1]) * matched[..., None]
    # An unmatched proposal stands at its goal, which gives it neither loss nor gradient, whatever its box is.
    boxes = torch.where(matched[..., None], boxes_xyxy, goals)

    if config.cls_loss == "qfl":
        classes = quality_focal_loss(logits, one_hot * _own_iou(boxes, goals)[..., None], config.qfl_beta)
    else:
        classes = sigmoid_focal_loss(logits, one_hot.to(logits.dtype), config.focal_alpha, config.focal_gamma)
    if config.federated:
        classes = classes * targets.counted[:, None]
    l1 = (boxes - goals).abs() / image_whwh[:, None]
    giou = giou_loss(boxes, goals) * matched
    if config.box_loss_iou_weight_power > 0:
        weight = _own_iou(boxes, goals) ** config.box_loss_iou_weight_power
        l1, giou = l1 * weight[..., None], giou * weight
    count = norm(matched.sum((1, 2)).to(logits.dtype))
    terms = {
        "loss_ce": config.class_weight * classes.sum((1, 2, 3)) / count,
        "loss_bbox": config.l1_weight * l1.sum((1, 2, 3)) / count,
        "loss_giou": config.giou_weight * giou.sum((1, 2)) / count,
    }
    if quality is not None:
        terms["loss_quality"] = config.quality_weight * _quality_loss(quality, boxes_xyxy, targets)
    last = len(logits) - 1
    losses = {
        name if stage == last else f"{name}_{stage}": values[stage]
        for stage in (last, *range(last))
        for name, values in terms.items()
    }
    if config.graph_topo_loss_weight > 0 and attention is not None:
        graph = _graph_loss(attention, Matches(matched[last], gt_index[last]))
        losses["loss_graph"] = config.graph_topo_loss_weight * graph / count[last]
    return losses


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float) -> Tensor:
    """Cross-entropy of sigmoid(`logits`) with targets `quality` in [0, 1], times |target - sigmoid|^`beta`; all of one
    shape (QFL, Li et al. 2020, generalized focal loss, section 3.2). Targets 0 and 1 give the focal loss without alpha.
    """
    distance = (quality - logits.sigmoid()).abs()
    return distance**beta * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def _quality_loss(quality: Tensor, boxes_xyxy: Tensor, targets: PaddedTargets) -> Tensor:
    """(S,): mean cross-entropy of `quality` (S, N, P), logits, with each box's best IoU with any object, 0 without."""
    iou, _ = pairwise_iou(boxes_xyxy.detach(), targets.boxes_xyxy)
    best = iou.masked_fill(~targets.valid[:, None], 0).amax(-1)
    return F.binary_cross_entropy_with_logits(quality, best, reduction="none").mean((1, 2))


def _graph_loss(attention: Tensor, matches: Matches) -> Tensor:
    """How far matched proposals are from attending to those matched to the same object, themselves included, and to
    all of these alike: cross-entropy of rows of `attention` (N, P, P), summed over matched proposals."""
    matched, gt_index = matches
    adjacent = matched[:, :, None] & matched[:, None] & (gt_index[:, :, None] == gt_index[:, None])
    goal = adjacent / adjacent.sum(-1, keepdim=True).clamp(min=1)
    return (goal * -attention.float().clamp(min=LEAST_ATTENTION).log()).sum()


@torch.no_grad()
def _own_iou(boxes_xyxy: Tensor, goals_xyxy: Tensor) -> Tensor:
    """The IoU (...) of each of `boxes_xyxy` (..., 4) with its own of `goals_xyxy` (..., 4), without gradient."""
    return iou_and_gap(boxes_xyxy, goals_xyxy)[0]


def _last_stage(output: HeadOutput) -> HeadOutput:
    quality = None if output.quality is None else output.quality[-1:]
    return HeadOutput(output.logits[-1:], output.boxes_xyxy[-1:], quality, output.attention)

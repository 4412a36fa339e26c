"""Who answers for which object: dynamic-k matching of proposals to ground truth (SimOTA, Ge et al. 2021).

Everything is batched over rows and ground truths, padded and masked. Shapes: N rows of P proposals, G the most ground
truths that a row has; predictions may carry further leading dimensions (`...`), such as the head's stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from noisebox.config.diffusiondet import LossConfig
from noisebox.models.giou import iou_and_gap
from noisebox.structures import Targets

CENTRE_RADIUS = 2.5
OUTSIDE_BOX_COST = 100.0
FAR_FROM_ALL_COST = 10_000.0


@dataclass(frozen=True)
class PaddedTargets:
    """Ground truth of N images: `boxes_xyxy` (N, G, 4), `labels` (N, G), `valid` (N, G) bool; G is at least 1.
    `counted` (N, K) bool: the classes that a federated loss counts in each; (N, 0) where no loss is.

    Where not valid, the box is a unit square and the label 0, so that arithmetic on them stays finite.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    valid: Tensor
    counted: Tensor

    @classmethod
    def of(cls, targets: Sequence[Targets]) -> "PaddedTargets":
        device = targets[0].boxes_xyxy.device
        counts = torch.tensor([len(target.labels) for target in targets], device=device)
        boxes = pad_sequence([target.boxes_xyxy for target in targets], batch_first=True)
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        if boxes.shape[1] == 0:
            boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))
        valid = torch.arange(boxes.shape[1], device=device) < counts[:, None]
        shown = torch.where(valid[..., None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
        return cls(shown, labels, valid, torch.stack([target.counted for target in targets]))


class Matches(NamedTuple):
    """`matched` (..., N, P) bool: which proposals answer for an object; `gt_index` (..., N, P) int64: for which one
    (0 where not matched)."""

    matched: Tensor
    gt_index: Tensor


def match(
    logits: Tensor, boxes_xyxy: Tensor, targets: PaddedTargets, image_whwh: Tensor, config: LossConfig
) -> Matches:
    """Match predictions `logits` (..., N, P, K) and `boxes_xyxy` (..., N, P, 4) to the targets of their images."""
    iou, giou = pairwise_iou(boxes_xyxy, targets.boxes_xyxy)
    cost = matching_cost(logits, boxes_xyxy, giou, targets, image_whwh, config)
    return dynamic_k_matches(cost, iou, targets.valid, config.ota_k)


def matching_cost(
    logits: Tensor, boxes_xyxy: Tensor, giou: Tensor, targets: PaddedTargets, image_whwh: Tensor, config: LossConfig
) -> Tensor:
    """What each pair would cost, (..., N, P, G): the loss's terms, and penalties that keep matches near their object.

    A proposal whose centre is outside the object's box costs 100 more, and 10,000 more when it is also further than
    2.5 box sizes from the centre of every object.
    """
    class_cost = _focal_cost(logits, config.focal_alpha, config.focal_gamma)
    labels = targets.labels[:, None].expand(*giou.shape)
    l1 = torch.cdist(boxes_xyxy / image_whwh[:, None], targets.boxes_xyxy / image_whwh[:, None], p=1)
    cost = config.class_weight * class_cost.gather(-1, labels) + config.l1_weight * l1 - config.giou_weight * giou

    proposals: Tensor = box_convert(boxes_xyxy, "xyxy", "cxcywh")[..., :, None, :2]
    objects: Tensor = box_convert(targets.boxes_xyxy, "xyxy", "cxcywh")[..., None, :, :]
    distance = ((proposals - objects[..., :2]).abs() / objects[..., 2:]).amax(-1)  # in box sizes, (..., N, P, G)
    near = (distance < CENTRE_RADIUS) & targets.valid[:, None]
    cost = cost + OUTSIDE_BOX_COST * (distance >= 0.5)
    return cost + FAR_FROM_ALL_COST * ~near.any(-1, keepdim=True)


def dynamic_k_matches(cost: Tensor, iou: Tensor, valid: Tensor, ota_k: int) -> Matches:
    """Each object takes its k cheapest proposals, k being the sum of its `ota_k` best IoUs rounded down, at least 1.

    `cost`, `iou`: (..., N, P, G); `valid`: (N, G). A proposal that several objects take goes to the object cheapest for
    it. An object left with none takes its cheapest free proposal, for as long as there are free ones. Of equals, the
    first wins.
    """
    valid = valid[:, None]
    cost = cost.masked_fill(~valid, torch.inf)
    most = min(ota_k, cost.shape[-2])
    k = iou.topk(most, dim=-2).values.sum(-2, keepdim=True).int().clamp(min=1)
    cheapest = cost.sort(dim=-2, stable=True).indices[..., :most, :]
    rank = torch.arange(most, device=cost.device)[:, None]
    matching = torch.zeros_like(cost, dtype=torch.bool).scatter_(-2, cheapest, (rank < k) & valid)
    contested = matching.sum(-1, keepdim=True) > 1
    matching = torch.where(contested, _cheapest_object(cost), matching)
    matching = _serve_the_lonely(matching, cost, valid)
    return Matches(matching.any(-1), matching.int().argmax(-1))


def _serve_the_lonely(matching: Tensor, cost: Tensor, valid: Tensor) -> Tensor:
    """Give objects without a proposal their cheapest free one; each round serves at least one object of a row."""
    for _ in range(cost.shape[-1]):
        free = ~matching.any(-1, keepdim=True)
        lonely = valid & ~matching.any(-2, keepdim=True) & free.any(-2, keepdim=True)
        if not lonely.any():
            break
        choice = cost.masked_fill(~free, torch.inf).argmin(-2, keepdim=True)
        claims = torch.zeros_like(matching).scatter_(-2, choice, lonely)
        matching = matching | (claims & _cheapest_object(cost.masked_fill(~claims, torch.inf)))
    return matching


def _cheapest_object(cost: Tensor) -> Tensor:
    """(..., P, G) bool: for each proposal, the one object that is cheapest for it."""
    return torch.zeros_like(cost, dtype=torch.bool).scatter_(-1, cost.argmin(-1, keepdim=True), True)


def _focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """The focal loss (Lin et al. 2017) of each class if it is the object's, less that if it is not; (..., K)."""
    probability = logits.float().sigmoid()
    positive = -alpha * (1 - probability) ** gamma * (probability + 1e-8).log()
    negative = -(1 - alpha) * probability**gamma * (1 - probability + 1e-8).log()
    return positive - negative


def pairwise_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of (..., P, 4) with (..., G, 4), each (..., P, G).

    At least one box of a pair must have an area.
    """
    iou, gap = iou_and_gap(boxes_xyxy[..., :, None, :], others_xyxy[..., None, :, :])
    return iou, iou - gap

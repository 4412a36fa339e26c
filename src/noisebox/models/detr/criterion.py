"""The set-prediction loss (Carion et al. 2020, section 3.1): each object is matched with one query, at least cost.

Shapes: L layers of the decoder, N images, Q queries, K classes; G objects of all images together, one after another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from noisebox.config.detr import DetrLossConfig
from noisebox.models.giou import giou_loss
from noisebox.processes import norm
from noisebox.structures import Targets

IMPOSSIBLE = 1e9  # the cost of a pair that has none because the prediction is not finite


class Output(NamedTuple):
    """What every layer says: `logits` (L, N, Q, K + 1), the last class being none; `boxes` (L, N, Q, 4), centre, width
    and height relative to the image, in [0, 1]."""

    logits: Tensor
    boxes: Tensor

    def last_layer(self) -> "Output":
        return Output(self.logits[-1:], self.boxes[-1:])


class Objects(NamedTuple):
    """The ground truth of N images: `labels` (G,), `boxes` (G, 4) as those of Output, and the `counts` of objects that
    the images have."""

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, targets: Sequence[Targets], image_whwh: Tensor) -> "Objects":
        """`image_whwh`: (N, 4), what boxes in pixels are divided by."""
        boxes = [target.boxes_xyxy / whwh for target, whwh in zip(targets, image_whwh, strict=True)]
        counts = tuple(len(target.labels) for target in targets)
        labels = torch.cat([target.labels for target in targets])
        return cls(labels, box_convert(torch.cat(boxes), "xyxy", "cxcywh"), counts)


class Matches(NamedTuple):
    """M pairs in every layer: of image `image` (M,) the query `query` (L, M), and its object `object` (L, M)."""

    image: Tensor
    query: Tensor
    object: Tensor


def set_prediction_loss(output: Output, objects: Objects, config: DetrLossConfig) -> dict[str, Tensor]:
    """Weighted scalars `loss_ce`, `loss_bbox`, `loss_giou` of the last layer; with the auxiliary loss, the same with
    `_0`, `_1`, … of the layers before it.

    Classes are a mean over all queries, weighted by class; the boxes' sums are divided by the number of objects; both
    in the whole batch, over all processes. An object that is left without a query, because there are too few, counts in
    that number alone.
    """
    if not config.auxiliary_loss:
        output = output.last_layer()
    logits, boxes = output
    matches = match(output, objects, config)
    layer = torch.arange(len(logits), device=logits.device)[:, None]
    none = logits.shape[-1] - 1
    labels = torch.full(logits.shape[:-1], none, device=logits.device)
    labels[layer, matches.image, matches.query] = objects.labels[matches.object]
    weight = torch.where(labels == none, config.eos_coefficient, 1.0)
    classes = weight * F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    found, goals = boxes[layer, matches.image, matches.query], objects.boxes[matches.object]
    l1 = (found - goals).abs().sum(-1)
    giou = giou_loss(box_convert(found, "cxcywh", "xyxy"), box_convert(goals, "cxcywh", "xyxy"))
    count = norm(logits.new_tensor(len(objects.labels)))
    terms = {
        "loss_ce": config.class_weight * classes.sum((1, 2)) / norm(weight.sum((1, 2)), 0),
        "loss_bbox": config.l1_weight * l1.sum(1) / count,
        "loss_giou": config.giou_weight * giou.sum(1) / count,
    }
    last = len(logits) - 1
    return {
        name if index == last else f"{name}_{index}": values[index]
        for index in (last, *range(last))
        for name, values in terms.items()
    }


@torch.no_grad()
def match(output: Output, objects: Objects, config: DetrLossConfig) -> Matches:
    """In each layer and image the pairs of query and object that cost least in all (Kuhn 1955), as many as there are of
    the fewer of both."""
    cost = matching_cost(output, objects, config).cpu().numpy()
    layers, images = cost.shape[:2]
    offsets = torch.tensor([0, *objects.counts]).cumsum(0).tolist()
    pairs = [
        [linear_sum_assignment(cost[layer, image, :, offsets[image] : offsets[image + 1]]) for image in range(images)]
        for layer in range(layers)
    ]
    device = output.logits.device
    sizes = [len(query) for query, _ in pairs[0]]
    query = [torch.cat([torch.from_numpy(query) for query, _ in of_layer]) for of_layer in pairs]
    of = [
        torch.cat([torch.from_numpy(own) + offset for (_, own), offset in zip(of_layer, offsets[:-1], strict=True)])
        for of_layer in pairs
    ]
    image = torch.arange(images).repeat_interleave(torch.tensor(sizes))
    return Matches(image.to(device), torch.stack(query).to(device), torch.stack(of).to(device))


def matching_cost(output: Output, objects: Objects, config: DetrLossConfig) -> Tensor:
    """What each pair of a query and an object would cost, (L, N, Q, G): the loss's terms, but for the class less its
    probability in place of its logarithm. Only pairs of one image mean something."""
    probability = output.logits.softmax(-1)[..., objects.labels]
    l1 = torch.cdist(output.boxes, objects.boxes, p=1)
    found, goals = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (output.boxes.flatten(0, 2), objects.boxes))
    giou = generalized_box_iou(found, goals).view_as(l1)
    cost: Tensor = config.l1_weight * l1 - config.class_weight * probability - config.giou_weight * giou
    return cost.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE)

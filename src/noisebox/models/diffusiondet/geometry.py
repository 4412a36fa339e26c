"""What proposals know of their own boxes and of each other's: geometry as features and as a bias on attention.

Boxes come from a network that may have collapsed or diverged. All geometry is read from bounded boxes, so that it and
its gradients stay finite; only coordinates that are not numbers pass through, for the loss to show.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from noisebox.config.diffusiondet import GeoBiasConfig
from noisebox.models.diffusiondet.matcher import pairwise_iou

# In image sizes: how far a corner may lie from the image's origin, and how small a box may be.
FARTHEST_CORNER = 10.0
SMALLEST_SIZE = 1e-4
# Relative offsets and sizes of a pair count between these (Hu et al. 2018 bound theirs by 1e-3 below).
RATIO_BOUNDS = (1e-3, 1e3)
RELATION_WIDTH = 16


class ZeroStartMlp(nn.Module):
    """Two layers whose output is zero at first, so that adding it to a trained model changes nothing."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, width)
        self.output = nn.Linear(width, outputs)
        self.reset_output()

    def reset_output(self) -> None:
        """Set the last layer to zero, again where a model has initialised all its matrices anew."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.output(F.relu(self.hidden(x)))
        return output


class GeometryFeatures(nn.Module):
    """Features of a proposal's box: centre, size, logarithms of size and aspect, through an MLP that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = ZeroStartMlp(7, width, width)

    def reset_output(self) -> None:
        """As `ZeroStartMlp.reset_output`."""
        self.mlp.reset_output()

    def forward(self, boxes_xyxy: Tensor, image_whwh: Tensor) -> Tensor:
        """(N, P, C) from `boxes_xyxy` (N, P, 4) in pixels of images of size `image_whwh` (N, 4).

        Centre and size are relative to the image, the aspect is w / h in pixels.
        """
        boxes = bounded_cxcywh(boxes_xyxy, image_whwh)
        relative = boxes / image_whwh[:, None]
        log_aspect = (boxes[..., 2:3] / boxes[..., 3:]).log()
        features: Tensor = self.mlp(torch.cat((relative, relative[..., 2:].log(), log_aspect), dim=-1))
        return features


class GeometryBias(nn.Module):
    """What is added to the logits of attention between proposals, by where their boxes lie to each other.

    `distance`: minus the distance of the centres, in image diagonals. `iou`: the pair's IoU. `mlp`: learned, a value
    for each attention head from `relation_features`, zero at first. Each times `scale`. With `topk`, -inf between a
    proposal and all but its nearest. Only `mlp` has parameters.
    """

    def __init__(self, config: GeoBiasConfig, attention_heads: int) -> None:
        super().__init__()
        self.config = config
        self.mlp = ZeroStartMlp(4, RELATION_WIDTH, attention_heads) if config.kind == "mlp" else None

    def reset_output(self) -> None:
        """As `ZeroStartMlp.reset_output`, where there is one."""
        if self.mlp is not None:
            self.mlp.reset_output()

    def forward(self, boxes_xyxy: Tensor, image_whwh: Tensor) -> Tensor | None:
        """The bias (N, H, P, P) of H attention heads for `mlp`, else (N, 1, P, P); None where nothing is switched on.

        `boxes_xyxy`: (N, P, 4) in pixels. `image_whwh`: (N, 4). Rows are the proposals that look, columns those looked
        at.
        """
        topk = self.config.topk
        if self.config.kind == "none" and topk is None:
            return None
        boxes = bounded_cxcywh(boxes_xyxy, image_whwh)
        bias = self.config.scale * self._of_pairs(boxes, image_whwh)
        return bias if topk is None else bias.masked_fill(~nearest(centre_distance(boxes), topk)[:, None], -torch.inf)

    def _of_pairs(self, boxes: Tensor, image_whwh: Tensor) -> Tensor:
        """The bias before it is scaled and made sparse, from boxes (cx, cy, w, h)."""
        if self.mlp is not None:
            learned: Tensor = self.mlp(relation_features(boxes)).permute(0, 3, 1, 2).float()
            return learned
        if self.config.kind == "distance":
            diagonal = image_whwh[:, 0].hypot(image_whwh[:, 1])
            return -(centre_distance(boxes) / diagonal[:, None, None])[:, None]
        if self.config.kind == "iou":
            corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
            iou, _ = pairwise_iou(corners, corners)
            return iou[:, None]
        rows, count = boxes.shape[:2]
        return boxes.new_zeros(rows, 1, count, count)


def bounded_cxcywh(boxes_xyxy: Tensor, image_whwh: Tensor) -> Tensor:
    """Boxes (N, P, 4) as (cx, cy, w, h) in pixels, corners and sizes within bounds set by the image's size (N, 4)."""
    limit = FARTHEST_CORNER * image_whwh[:, None]
    centre, size = box_convert(boxes_xyxy.clamp(-limit, limit), "xyxy", "cxcywh").chunk(2, dim=-1)
    return torch.cat((centre, size.maximum(SMALLEST_SIZE * image_whwh[:, None, 2:])), dim=-1)


def centre_distance(boxes_cxcywh: Tensor) -> Tensor:
    """Distances in pixels between the centres of `boxes_cxcywh` (N, P, 4), (N, P, P)."""
    centre = boxes_cxcywh[..., :2]
    # Unlike a square root, the norm has a finite gradient where a proposal meets itself.
    distance: Tensor = torch.linalg.vector_norm(centre[:, :, None] - centre[:, None], dim=-1)
    return distance


def nearest(distance: Tensor, count: int) -> Tensor:
    """(N, P, P) bool: each proposal's `count` nearest by `distance` (N, P, P), first itself; of equals, the first."""
    itself = torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)
    ranked = distance.detach().masked_fill(itself, -1)
    if torch.onnx.is_in_onnx_export():  # ONNX has no stable sort, but its TopK takes the first of equals
        chosen = ranked.topk(min(count, ranked.shape[-1]), largest=False).indices
    else:
        chosen = ranked.sort(dim=-1, stable=True).indices[..., :count]
    return torch.zeros_like(distance, dtype=torch.bool).scatter_(-1, chosen, True)


def relation_features(boxes_cxcywh: Tensor) -> Tensor:
    """How proposal n (row) sees proposal m (column): (N, P, P, 4) from boxes (N, P, 4) (Hu et al. 2018, section 3.1).

    log(|x_m - x_n| / w_m), log(|y_m - y_n| / h_m), log(w_n / w_m), log(h_n / h_m): they change neither when all boxes
    move nor when all grow alike.
    """
    centre, size = boxes_cxcywh.chunk(2, dim=-1)
    offset = (centre[:, None] - centre[:, :, None]).abs() / size[:, None]
    ratio = size[:, :, None] / size[:, None]
    return torch.cat((offset, ratio), dim=-1).clamp(*RATIO_BOUNDS).log()

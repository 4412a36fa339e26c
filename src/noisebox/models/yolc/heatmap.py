"""The heatmap: what it should be, how far it is from that, and where its peaks are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from noisebox.structures import Targets


def gaussian_radius(sizes_wh: Tensor, overlap: float) -> Tensor:
    """The largest displacement (...) in pixels of both corners of boxes of sizes (..., 2) that leaves an IoU of at
    least `overlap` with the box (CornerNet, Law and Deng 2018, section 3.2).

    Each corner moves by the displacement along both axes. The worst of three cases counts: the box moves, shrinks or
    grows. Each is a quadratic equation in the displacement.
    """
    total, area = sizes_wh.sum(-1), sizes_wh.prod(-1)
    moved = _root(total, area * (1 - overlap) / (1 + overlap), 1.0)
    shrunk = _root(2 * total, area * (1 - overlap), 4.0)
    grown = (((2 * overlap * total) ** 2 + 16 * overlap * (1 - overlap) * area).sqrt() - 2 * overlap * total) / (
        8 * overlap
    )
    return torch.stack((moved, shrunk, grown)).amin(0)


def _root(b: Tensor, c: Tensor, a: float) -> Tensor:
    """The smaller root of a r² - b r + c = 0."""
    return (b - (b**2 - 4 * a * c).sqrt()) / (2 * a)


@torch.no_grad()
def heatmap_targets(targets: Sequence[Targets], num_classes: int, size_hw: tuple[int, int], overlap: float) -> Tensor:
    """Heatmaps (B, K, H, W) float32 that are 1 at the pixel of each object's centre in its class, and around it the
    largest of the objects' Gaussians (CenterNet, Zhou et al. 2019, section 3).

    A Gaussian's sigma is a sixth of its diameter 2r + 1, r being the `gaussian_radius`; beyond 3 sigma it is cut to 0.
    """
    height, width = size_hw
    device = targets[0].boxes_xyxy.device
    heatmap = torch.zeros(len(targets), num_classes, height, width, device=device)
    image = torch.cat([target.labels.new_full((len(target.labels),), row) for row, target in enumerate(targets)])
    if len(image) == 0:
        return heatmap
    boxes_xyxy, labels = torch.cat([t.boxes_xyxy for t in targets]), torch.cat([t.labels for t in targets])
    sigma = (2 * gaussian_radius(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], overlap) + 1) / 6
    x, y = centre_pixels(boxes_xyxy, size_hw).unbind(-1)
    reach = int((3 * sigma).amax().ceil())
    away = torch.arange(-reach, reach + 1, device=device)
    fall = torch.exp(-(away**2) / (2 * sigma[:, None] ** 2)) * (away.abs() <= 3 * sigma[:, None])
    columns, rows = x[:, None] + away, y[:, None] + away
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    plane = (image * num_classes + labels) * height * width
    places = plane[:, None, None] + rows[:, :, None] * width + columns[:, None]
    values = fall[:, :, None] * fall[:, None]
    heatmap.view(-1).scatter_reduce_(0, places[inside], values[inside], "amax")
    return heatmap


def centre_pixels(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The pixels (..., 2) int64, x and y, that hold the boxes' centres."""
    x, y = ((boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2).long().unbind(-1)
    return torch.stack((x.clamp(0, size_hw[1] - 1), y.clamp(0, size_hw[0] - 1)), dim=-1)


def crowded_pixels(targets: Sequence[Targets], shape: Sequence[int]) -> Tensor | None:
    """Which values of heatmaps of `shape`, B, K, H, W, lie in a crowd of their class, if partly; None if none do."""
    if not any(len(target.crowd_labels) for target in targets):
        return None
    crowded = torch.zeros(*shape, dtype=torch.bool, device=targets[0].crowds_xyxy.device)
    for row, target in enumerate(targets):
        corners = torch.cat((target.crowds_xyxy[:, :2].floor(), target.crowds_xyxy[:, 2:].ceil()), dim=1).long()
        for (x1, y1, x2, y2), label in zip(corners.tolist(), target.crowd_labels.tolist(), strict=True):
            crowded[row, label, y1:y2, x1:x2] = True
    return crowded


def focal_loss(logits: Tensor, target: Tensor, crowded: Tensor | None = None) -> Tensor:
    """The penalty-reduced focal loss (B,) of heatmaps (B, K, H, W), a sum per image over the number of its centres
    (CornerNet, equation 1, alpha 2, beta 4).

    Where the target y is 1: -(1 - p)² log p. Elsewhere: -(1 - y)⁴ p² log(1 - p), but nothing where it is `crowded`, by
    `crowded_pixels`. Padding counts as background.
    """
    image, *place = (target == 1).nonzero(as_tuple=True)
    at_centre = logits[image, *place]
    centres = (-at_centre).sigmoid().square() * F.logsigmoid(at_centre)
    background = target if crowded is None else target.masked_fill(crowded, 1.0)
    per_image: Tensor = _Background.apply(logits, background).index_add(0, image, centres)
    return -per_image / torch.bincount(image, minlength=len(logits)).clamp(min=1)


class _Background(Function):
    """The sum (B,) of (1 - y)⁴ p² log(1 - p) over a heatmap.

    It has a value for each class and pixel, most of the loss's cost. So the gradient, (1 - y)⁴ p² (2 (1 - p) log(1 - p)
    - p), is taken at once, in place where possible: half the time of autograd's own steps.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        p = logits.sigmoid()
        # log(1 - p) as the logarithm of its own sigmoid: exact for large logits, and far cheaper than softplus.
        log_rest = logits.neg().sigmoid_().clamp_(min=torch.finfo(p.dtype).tiny).log_()
        weight = (1 - target).square_().square_().mul_(p).mul_(p)
        ctx.save_for_backward(torch.addcmul(log_rest, p, log_rest, value=-1).mul_(2).sub_(p).mul_(weight))
        return weight.mul_(log_rest).sum((1, 2, 3))

    @staticmethod
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_total[:, None, None, None], None


@torch.no_grad()
def peaks(logits: Tensor, sizes_hw: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest local maxima of heatmaps (B, K, H, W) within the images' sizes (B, 2): scores (B, N) in
    [0, 1], falling; labels (B, N); x and y (B, N, 2) of the pixels. Where there are fewer, scores are 0.

    A local maximum is no less than its eight neighbours in its class.
    """
    heat = logits.sigmoid()
    height, width = heat.shape[-2:]
    kept = heat * ((heat == _highest_around(heat)) & inside(heat, sizes_hw))
    scores, place = kept.flatten(1).topk(min(count, kept[0].numel()))
    labels, pixel = place // (height * width), place % (height * width)
    return scores, labels, torch.stack((pixel % width, pixel // width), dim=-1)


def _highest_around(heat: Tensor) -> Tensor:
    """The largest of each value and its eight neighbours; on a CPU ten times as fast as max pooling."""
    framed = F.pad(heat, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(framed[..., :-2, :], framed[..., 1:-1, :]), framed[..., 2:, :])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def inside(heatmaps: Tensor, sizes_hw: Tensor) -> Tensor:
    """Which pixels (B, 1, H, W) of heatmaps (B, K, H, W) are the images', of sizes (B, 2), and not padding."""
    height, width = heatmaps.shape[-2:]
    rows = torch.arange(height, device=heatmaps.device)[:, None] < sizes_hw[:, 0, None, None]
    columns = torch.arange(width, device=heatmaps.device) < sizes_hw[:, 1, None, None]
    return (rows & columns)[:, None]

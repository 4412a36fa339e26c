"""RoIAlign over a feature pyramid as one weighted sum of table rows.

A bilinear sample is a weighted sum of four feature vectors, so a bin of a region is a weighted sum of a fixed number of
rows of one table that holds every position of every level and image. That is one `embedding_bag` for all boxes, levels
and images: shapes do not depend on the boxes, nothing waits for the device, and on CPUs it is several times faster than
one RoIAlign kernel a level, backward above all. GPUs take a kernel of ours (region_kernel.py), unless the boxes, too,
have a gradient.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDES = (4, 8, 16, 32)
LEVEL_EDGES = (112, 224, 448)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pyramid:
    """Feature maps p2 to p5 of B images: `table` (positions, C), ordered by level, image, row, column, and `levels`
    (4, 4) int64, a row (first position, height, width, stride) for each level. `kernel`: our own may read it.

    The table is float32 on CPUs. On GPUs it has the precision of the features: there a bag is summed in float32
    whatever its rows are, and what is read of them decides the time.
    """

    table: Tensor
    levels: Tensor
    kernel: bool = False

    @classmethod
    def of(cls, features: Sequence[Tensor]) -> "Pyramid":
        """From maps (B, C, H, W) at strides 4, 8, 16, 32."""
        levels, before = [], 0  # in one image; the number of images may be unknown yet, where a program is exported
        for feature, stride in zip(features, STRIDES, strict=True):
            height, width = feature.shape[-2:]
            levels.append((before, height, width, stride))
            before += height * width
        table = torch.cat([feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features])
        first, sizes = torch.tensor(levels, device=table.device).tensor_split([1], dim=1)
        levels_of_all = torch.cat((first * features[0].shape[0], sizes), dim=1)
        return cls(table if table.is_cuda else table.float(), levels_of_all, table.is_cuda and kernel_runs())


@cache
def kernel_runs() -> bool:
    """Whether Triton can make our kernel for this process's GPU; where it cannot, the reason is logged."""
    try:
        from noisebox.models.diffusiondet.region_kernel import region_sums  # slow to import, and of no use without GPU

        one = torch.ones(1, 1, 1, device="cuda")
        region_sums(one[0], one.long() - 1, one, one.long() - 1, one)
    except Exception as error:  # it fails in many ways: without a C compiler, Python's headers, or itself
        reason = " ".join(str(error).split())[:200]
        log.warning("RoIAlign without our kernel, which Triton cannot make here (%s): it takes longer", reason)
        return False
    return True


def pool_regions(
    pyramid: Pyramid, boxes_xyxy: Tensor, image_index: Tensor, resolution: int, sampling_ratio: int
) -> Tensor:
    """RoIAlign (He et al. 2017), aligned, of each box on the level that fits its size: (N·P, resolution², C), of the
    table's precision.

    `boxes_xyxy`: (N, P, 4) float32 in pixels; `image_index`: (N,) the image of each row. A bin averages
    `sampling_ratio`² bilinear samples. The level is floor(4 + log2(sqrt(area) / 224)), kept within p2 to p5 (Lin et al.
    2017, equation 1). Coordinates that are not finite count as 0, so that a diverged run ends with its own message.
    """
    boxes = torch.nan_to_num(boxes_xyxy, 0.0, 0.0, 0.0).flatten(0, 1)
    extent = boxes[:, 2:] - boxes[:, :2]
    size = extent.prod(-1).sqrt()
    level = torch.stack([size >= edge for edge in LEVEL_EDGES]).sum(0)
    first, height, width, stride = pyramid.levels[level].unbind(-1)
    image = image_index.repeat_interleave(boxes_xyxy.shape[1])
    start, extent = boxes[:, :2] / stride[:, None] - 0.5, extent / stride[:, None]
    column, column_weight = _samples(start[:, 0], extent[:, 0], width, resolution, sampling_ratio)
    row, row_weight = _samples(start[:, 1], extent[:, 1], height, resolution, sampling_ratio)
    row = (first + image * height * width)[:, None, None] + row * width[:, None, None]
    if pyramid.kernel and not row_weight.requires_grad:
        from noisebox.models.diffusiondet.region_kernel import region_sums

        sums: Tensor = region_sums(pyramid.table, row, row_weight, column, column_weight)
        return sums.view(-1, resolution**2, sums.shape[-1])
    # (R, bins down, bins across, samples down, samples across), then one bag of samples for each bin.
    index = row[:, :, None, :, None] + column[:, None, :, None, :]
    weight = (row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]).to(pyramid.table.dtype)
    bags = _weighted_sums(pyramid.table, index.flatten(3).flatten(0, 2), weight.flatten(3).flatten(0, 2))
    return bags.view(-1, resolution**2, bags.shape[-1])


def _weighted_sums(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """The sums (M, C) of rows of `table` (positions, C), S in each, by `index` (M, S) and `weight` (M, S)."""
    if table.requires_grad and not weight.requires_grad:
        trained: Tensor = WeightedSums.apply(table, index, weight)
        return trained
    if not torch.onnx.is_in_onnx_export():
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
    # ONNX has no bags. One term after the other: all S gathered at once would take S times the memory of the sums.
    sums = table[index[:, 0]] * weight[:, :1]
    for place in range(1, index.shape[1]):
        sums = sums + table[index[:, place]] * weight[:, place, None]
    return sums


class WeightedSums(torch.autograd.Function):
    """Bags whose gradient, too, is taken by bags: a position's is the sum over its samples, in the order they come.

    `embedding_bag`'s own gradient of the table is the same, and takes a CPU over twice as long.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """As `_weighted_sums`."""
        ctx.save_for_backward(index, weight)
        ctx.positions = len(table)
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """From that of the sums (M, C) that of the table."""
        index, weight = ctx.saved_tensors
        order, bounds = by_position(index.flatten(), ctx.positions)
        bags, weights = order // index.shape[1], weight.flatten()[order]
        total = F.embedding_bag(
            bags, gradient.contiguous(), bounds, per_sample_weights=weights, mode="sum", include_last_offset=True
        )
        return total, None, None


def by_position(position: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """How samples are ordered by their `position` (M,), those of one as they come: the order (M,) and where in it those
    of each of `positions` begin and end, (positions + 1,). A sample beyond all positions comes last."""
    ordered, order = position.int().sort(stable=True)
    every = torch.arange(positions + 1, dtype=torch.int32, device=position.device)
    return order, torch.searchsorted(ordered, every)


def _samples(start: Tensor, extent: Tensor, size: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Where the samples of each bin lie along one axis, and how much each counts: two (R, bins, 2 · ratio) tensors.

    `start`, `extent`: (R,) the regions in units of positions; `size`: (R,) how many positions there are. A sample lies
    between two positions; beyond the map's margin of one position it counts nothing.
    """
    count = bins * ratio
    fraction = (torch.arange(count, device=start.device) + 0.5) / count
    place = start[:, None] + extent[:, None] * fraction
    size = size[:, None]
    inside = (place >= -1) & (place <= size)
    place = place.clamp(min=0).minimum((size - 1).to(place.dtype))
    below = place.floor()
    towards_next = place - below
    position = below.long()
    positions = torch.stack((position, (position + 1).minimum(size - 1)), dim=-1)
    weights = torch.stack((1 - towards_next, towards_next), dim=-1) * inside[..., None] / ratio
    return positions.view(-1, bins, 2 * ratio), weights.view(-1, bins, 2 * ratio)

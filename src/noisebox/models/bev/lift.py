"""Lift and splat (Philion and Fidler 2020): image features spread along their rays by a distribution over depth, and
all points summed into the cells of the ground that they stand over.

Everything after the convolutions is float32, also under autocast: a sum over thousands of points needs it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebox.config.bev import BevGridConfig, LiftConfig
from noisebox.models.bev.blocks import conv_block


class Lifted(NamedTuple):
    """`depth_logits` (B, D, h, w) over the depth bins, and `context` (B, C, h, w), what each pixel says; float32."""

    depth_logits: Tensor
    context: Tensor


class Lift(nn.Module):
    """Feature maps of several scales to a depth distribution and a context at the finest of them."""

    def __init__(self, widths: Sequence[int], hidden_dim: int, context_channels: int, bins: int) -> None:
        """`widths`: the channels of each map, the finest first."""
        super().__init__()
        self.bins = bins
        self.shared = nn.Sequential(conv_block(sum(widths), hidden_dim), conv_block(hidden_dim, hidden_dim))
        self.said = nn.Conv2d(hidden_dim, bins + context_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Lifted:
        """`features`: (B, width, h, w), then coarser ones, which are brought to the first one's size."""
        size = features[0].shape[-2:]
        same = [features[0], *(F.interpolate(coarse, size, mode="bilinear") for coarse in features[1:])]
        said = self.said(self.shared(torch.cat(same, dim=1))).float()
        return Lifted(said[:, : self.bins], said[:, self.bins :])


def frustum_cells(intrinsics: Tensor, width: int, lift: LiftConfig, grid: BevGridConfig) -> Tensor:
    """The cell of the grid (B, D, w) int64, row × columns + column, over which the points of each column of the frustum
    stand at each depth; rows × columns for those beside the grid.

    A point is the centre of a depth bin on the ray through the centre of a feature cell. Pixels above each other see
    one vertical plane, as the camera has no skew. `intrinsics`: (B, 3, 3) in pixels of the image, whose first pixel
    covers 0 to 1; `width`: that of the feature map.
    """
    device = intrinsics.device
    u = (torch.arange(width, device=device) + 0.5) * lift.stride
    z = lift.near + (torch.arange(lift.bins, device=device) + 0.5) * lift.step
    x = z[:, None] * ((u - intrinsics[:, :1, 2]) / intrinsics[:, :1, 0])[:, None]
    row = ((grid.z_max - z) / grid.cell).floor().long()[:, None]
    column = ((x - grid.x_min) / grid.cell).floor().long()
    inside = (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
    return torch.where(inside, row * grid.columns + column, grid.rows * grid.columns)


def splat(depth: Tensor, context: Tensor, cells: Tensor, grid: BevGridConfig) -> Tensor:
    """Sums of `context` × `depth` over the points of each cell: (B, C, rows, columns) float32.

    `depth`: (B, D, h, w) probabilities. `context`: (B, C, h, w). `cells`: (B, D, w), as `frustum_cells` gives them. The
    points of a column and depth, which share a cell, are summed by a product of matrices, so no point is ever stored.
    """
    batch, channels = context.shape[:2]
    count = grid.rows * grid.columns
    with torch.autocast(context.device.type, enabled=False):
        columns = torch.einsum("bdvu,bcvu->bduc", depth, context)
    # One cell more an image takes what falls beside the grid.
    index = cells + torch.arange(batch, device=cells.device)[:, None, None] * (count + 1)
    sums = columns.new_zeros(batch * (count + 1), channels).index_add(0, index.flatten(), columns.flatten(0, 2))
    inside = sums.view(batch, count + 1, channels)[:, :count]
    return inside.transpose(1, 2).reshape(batch, channels, grid.rows, grid.columns)

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


def frustum_cells(intrinsics: Tensor, feature_hw: tuple[int, int], lift: LiftConfig, grid: BevGridConfig) -> Tensor:
    """The cell of the grid (B, D, h, w) int64, row × columns + column, over which each point of the frustum stands;
    rows × columns for points beside the grid.

    A point is the centre of a depth bin on the ray through the centre of a feature cell. `intrinsics`: (B, 3, 3) in
    pixels of the image, whose first pixel covers 0 to 1.
    """
    height, width = feature_hw
    device = intrinsics.device
    v = (torch.arange(height, device=device) + 0.5) * lift.stride
    u = (torch.arange(width, device=device) + 0.5) * lift.stride
    pixels = torch.stack((*torch.meshgrid(u, v, indexing="xy"), torch.ones(height, width, device=device)), dim=-1)
    # Elementwise, because autocast would round the product of matrices to bfloat16.
    rays = (torch.linalg.inv(intrinsics)[:, None, None] * pixels[..., None, :]).sum(-1)
    z = lift.near + (torch.arange(lift.bins, device=device) + 0.5) * lift.step
    z = z[:, None, None].expand(len(rays), -1, height, width)
    x = z * (rays[..., 0] / rays[..., 2])[:, None]
    row = ((grid.z_max - z) / grid.cell).floor().long()
    column = ((x - grid.x_min) / grid.cell).floor().long()
    inside = (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
    return torch.where(inside, row * grid.columns + column, grid.rows * grid.columns)


def splat(depth: Tensor, context: Tensor, cells: Tensor, grid: BevGridConfig) -> Tensor:
    """Sums of `context` × `depth` over the points of each cell: (B, C, rows, columns) float32.

    `depth`: (B, D, h, w) probabilities. `context`: (B, C, h, w). `cells`: (B, D, h, w), as `frustum_cells` gives them.
    """
    batch, channels = context.shape[:2]
    count = grid.rows * grid.columns
    points = depth[..., None] * context.permute(0, 2, 3, 1)[:, None]
    # One cell more an image takes what falls beside the grid.
    index = cells + torch.arange(batch, device=cells.device)[:, None, None, None] * (count + 1)
    sums = points.new_zeros(batch * (count + 1), channels).index_add(0, index.flatten(), points.flatten(0, 3))
    inside = sums.view(batch, count + 1, channels)[:, :count]
    return inside.transpose(1, 2).reshape(batch, channels, grid.rows, grid.columns)

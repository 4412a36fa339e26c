"""From what the network says to boxes, and back: one reading for loss, distillation and inference.

A box is told relative to a reference box: how far its centre lies from the reference's, in the reference's half width
and height, and the logarithm of its own half width and height over those. A coarse box's reference is the grid cell
that holds the object's centre, with one stride to each side; a refined box's reference is the coarse box.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Pixels from one cell of the regression's grid to the next; the heatmap has a value at every pixel.
STRIDE = 4

# No box is larger than so many times its reference: an untrained network must not overflow.
LARGEST = 256.0


class Regression(NamedTuple):
    """`raw` (..., 4), what the network says, relative to `reference_xyxy` (..., 4) in pixels."""

    raw: Tensor
    reference_xyxy: Tensor

    @property
    def boxes_xyxy(self) -> Tensor:
        """The boxes (..., 4) in pixels."""
        return decode(self.raw, self.reference_xyxy)


def decode(raw: Tensor, reference_xyxy: Tensor) -> Tensor:
    """Boxes (..., 4) in pixels from raw numbers (..., 4): x, y, log half width, log half height."""
    centre, half = _centre_and_half(reference_xyxy)
    shift, growth = raw[..., :2], raw[..., 2:].clamp(max=math.log(LARGEST)).exp()
    return torch.cat((centre + shift * half - growth * half, centre + shift * half + growth * half), dim=-1)


def encode(boxes_xyxy: Tensor, reference_xyxy: Tensor) -> Tensor:
    """The raw numbers (..., 4) that `decode` makes these boxes of; both must have an area."""
    centre, half = _centre_and_half(reference_xyxy)
    own_centre, own_half = _centre_and_half(boxes_xyxy)
    return torch.cat(((own_centre - centre) / half, (own_half / half).log()), dim=-1)


def cells_of(points_xy: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """The cells (...) int64, counted row by row, that hold points (..., 2) in pixels; points outside go to the rim."""
    height, width = grid_hw
    column, row = (points_xy / STRIDE).long().unbind(-1)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1)


def cell_boxes(cells: Tensor, width: int) -> Tensor:
    """The reference boxes (..., 4) of cells (...) in a grid of so many columns: one stride around the cell's centre."""
    centre = torch.stack((cells % width, cells // width), dim=-1) * STRIDE + STRIDE / 2
    return torch.cat((centre - STRIDE, centre + STRIDE), dim=-1)


def _centre_and_half(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (..., 2) and half widths and heights (..., 2)."""
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2, (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]) / 2

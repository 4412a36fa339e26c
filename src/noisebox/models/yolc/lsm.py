"""The local scale module: where objects crowd in an image, by its heatmap alone (Liu et al. 2024, section III-C)."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

ROWS, COLUMNS = 10, 16
DENSEST = 15
EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int64)


def crowded_regions(heatmaps: Tensor, sizes_hw: Tensor, threshold: float, most: int, least_side: int) -> list[Tensor]:
    """For each of B images its regions (R, 4) int64, x1, y1, x2, y2 in pixels of the image; R is at most `most`, and
    the region that holds most comes first.

    `heatmaps`: (B, K, H, W) in [0, 1], a value at every pixel; `sizes_hw`: (B, 2), the images without padding. The
    largest over the classes is compared with `threshold`; the pixels above it are counted in a grid of 10 × 16 cells
    over the image; the 15 densest cells that hold any are joined with their eight neighbours, and each joined group
    gives the box around it. A box with a side under `least_side` grows about its centre, if the image is that large.
    """
    above = (heatmaps.amax(1) > threshold).cpu().numpy()
    return [
        _regions(image[:height, :width], most, least_side)
        for image, (height, width) in zip(above, sizes_hw.tolist(), strict=True)
    ]


def _regions(above: NDArray[np.bool_], most: int, least_side: int) -> Tensor:
    height, width = above.shape
    rows, columns = above.nonzero()
    cells = rows * ROWS // height * COLUMNS + columns * COLUMNS // width
    counts = np.bincount(cells, minlength=ROWS * COLUMNS)
    densest = np.argsort(-counts, kind="stable")[:DENSEST]
    dense = np.zeros(ROWS * COLUMNS, dtype=np.bool_)
    dense[densest] = counts[densest] > 0
    groups, number = ndimage.label(dense.reshape(ROWS, COLUMNS), EIGHT_CONNECTED)
    held = ndimage.sum_labels(counts.reshape(ROWS, COLUMNS), groups, range(1, number + 1))
    fullest = np.argsort(-np.asarray(held), kind="stable")[:most]
    places = ndimage.find_objects(groups)
    boxes = [_grown(_box_around(places[group], height, width), least_side, height, width) for group in fullest]
    return torch.tensor(boxes, dtype=torch.long).reshape(-1, 4)


def _box_around(place: tuple[slice, slice], height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels that fall into a block of the grid's cells."""
    rows, columns = place
    return (
        -(-columns.start * width // COLUMNS),
        -(-rows.start * height // ROWS),
        -(-columns.stop * width // COLUMNS),
        -(-rows.stop * height // ROWS),
    )


def _grown(box: tuple[int, int, int, int], least: int, height: int, width: int) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = box
    (x1, x2), (y1, y2) = _stretched(x1, x2, least, width), _stretched(y1, y2, least, height)
    return x1, y1, x2, y2


def _stretched(low: int, high: int, least: int, limit: int) -> tuple[int, int]:
    """The interval made `least` long about its centre, moved into [0, limit]."""
    length = min(max(high - low, least), limit)
    start = min(max((low + high - length) // 2, 0), limit - length)
    return start, start + length

"""The losses of the BEV family: classes of the map against its labels, depth against lidar."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebox.config.bev import BevConfig, LiftConfig
from noisebox.errors import UserError
from noisebox.processes import norm

IGNORED = -1


def class_targets(labels: Tensor, image_ids: Sequence[int], labelled: int, config: BevConfig) -> Tensor:
    """What is to be predicted (B, rows, columns) int64, counted from 0, IGNORED where nothing is.

    `labels`: (B, rows, columns) label values; `labelled`: how many classes the dataset names. Raises UserError for a
    map of another size than the grid, or a value that is neither a class nor ignored.
    """
    grid = config.grid
    if labels.shape[1:] != (grid.rows, grid.columns):
        raise UserError(
            f"the label maps have {labels.shape[1]} rows and {labels.shape[2]} columns, but model.grid has {grid.rows} "
            f"and {grid.columns}; make them anew or change model.grid"
        )
    values = config.labels.values(labelled)
    targets = labels - values.start
    ignored = labels == config.labels.ignore_index
    if config.labels.reduce_zero_label:
        ignored |= labels == 0
    wrong = ~ignored & ((targets < 0) | (targets >= len(values)))
    if wrong.any():
        image = int(wrong.flatten(1).any(1).nonzero()[0])
        raise UserError(
            f"the label map of image {image_ids[image]} has the value {int(labels[wrong][0])}; {values.start} to "
            f"{values.stop - 1} fit, and model.labels.ignore_index {config.labels.ignore_index}: mend the labels, or "
            "set model.labels to what they mean"
        )
    return targets.masked_fill(ignored, IGNORED)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
    """Cross-entropy of `logits` (B, K, rows, columns) with `targets` (B, rows, columns): the mean over all cells that
    are not IGNORED, of all processes, each weighted by its class's weight; 0 where there is none."""
    logits = logits.float()
    weights = logits.new_ones(logits.shape[1]) if class_weights is None else class_weights
    total = F.cross_entropy(logits, targets, weights, ignore_index=IGNORED, reduction="sum")
    weight = torch.where(targets == IGNORED, 0.0, weights[targets.clamp(min=0)]).sum()
    return total / norm(weight, torch.finfo(torch.float32).tiny)


def depth_loss(depth_logits: Tensor, gt_depth: Tensor, gt_depth_mask: Tensor, lift: LiftConfig) -> Tensor:
    """Cross-entropy of the depth distribution with the bin of the nearest return in each feature cell (BEVDepth, Li et
    al. 2023), the mean over cells with a return between `near` and `far`, of all processes; 0 where there is none.

    `depth_logits`: (B, D, h, w). `gt_depth`: (B, 1, H, W) metres, true where `gt_depth_mask` is.
    """
    nearest = nearest_depth(gt_depth, gt_depth_mask, depth_logits.shape[-2:], lift.stride)
    bins = ((nearest - lift.near) / lift.step).floor()
    known = (bins >= 0) & (bins < lift.bins)
    targets = torch.where(known, bins, IGNORED).long()
    total = F.cross_entropy(depth_logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / norm(known.sum())


def nearest_depth(gt_depth: Tensor, gt_depth_mask: Tensor, feature_hw: Sequence[int], stride: int) -> Tensor:
    """The least valid depth (B, h, w) in each feature cell of `stride` × `stride` pixels, infinity where there is none.

    Feature maps may reach beyond the image (B, 1, H, W), where nothing is valid.
    """
    depth = gt_depth.masked_fill(~gt_depth_mask, torch.inf)
    beyond = (0, feature_hw[1] * stride - depth.shape[-1], 0, feature_hw[0] * stride - depth.shape[-2])
    return -F.max_pool2d(-F.pad(depth, beyond, value=torch.inf), stride)[:, 0]

"""Intersection over union of predicted maps: pixels counted once by label value and predicted class, read many ways.

The counts keep every label value apart, also those that mean nothing, so that what a value means (`reduce_zero_label`,
`ignore_index`) is decided when they are read, and `diagnosis` can say when that does not fit the labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisebox.config.bev import BevLabelsConfig

# Label maps are stored in 8 bits.
LABEL_VALUES = 256

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class SegmentationMetrics:
    """`miou`: the mean IoU over the classes that the ground truth has; `per_class`: each class's IoU; `accuracy`: the
    share of pixels whose class is right. All from 0 to 100, nan where there is nothing to count. `absent` names the
    classes that the ground truth has no pixel of, which are left out of the mean."""

    miou: float
    per_class: dict[str, float]
    accuracy: float
    absent: tuple[str, ...]


def pixel_counts(predicted: Tensor, labels: Tensor, num_classes: int) -> Counts:
    """How many pixels of each label value (row) were predicted as each class (column): (256, num_classes).

    `predicted`: class indices below `num_classes`, of any shape; `labels`: label values from 0 to 255, of that shape.
    Counts of several images are added.
    """
    pairs = labels.flatten().long() * num_classes + predicted.flatten().long()
    counts: Counts = torch.bincount(pairs, minlength=LABEL_VALUES * num_classes).cpu().numpy()
    return counts.reshape(LABEL_VALUES, num_classes)


def predicted_names(names: Sequence[str], labels: BevLabelsConfig) -> tuple[str, ...]:
    """The classes that are predicted, of `names`, the dataset's, the zero label's first."""
    return tuple(names[value] for value in labels.values(len(names)))


def confusion(counts: Counts, labels: BevLabelsConfig) -> Counts:
    """(K, K): pixels of each class (row) by predicted class (column), without those that count nowhere."""
    values = labels.values(counts.shape[1] + int(labels.reduce_zero_label))
    matrix = counts[values.start : values.stop].copy()
    if labels.ignore_index in values:
        matrix[labels.ignore_index - values.start] = 0
    return matrix


def segmentation_metrics(matrix: Counts, names: Sequence[str]) -> SegmentationMetrics:
    """What a confusion matrix (K, K) of classes `names` says."""
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    present = truth > 0
    iou = np.where(present, 100 * hits / np.maximum(truth + predicted - hits, 1), np.nan)
    return SegmentationMetrics(
        miou=float(iou[present].mean()) if present.any() else float("nan"),
        per_class=dict(zip(names, iou.tolist(), strict=True)),
        accuracy=float(100 * hits.sum() / truth.sum()) if present.any() else float("nan"),
        absent=tuple(name for name, there in zip(names, present, strict=True) if not there),
    )

"""Why an mIoU sticks: what labels and predictions are made of, and a plain verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisebox.config.bev import BevLabelsConfig
from noisebox.evaluation.segmentation import (
    Counts,
    SegmentationMetrics,
    confusion,
    predicted_names,
    segmentation_metrics,
)

# A prediction has collapsed when one class has more than this percentage of its pixels, and the truth's has not.
COLLAPSED = 95.0

NOTHING_LABELLED = "no pixel counts: all are ignored or mean nothing; set model.labels to what the label maps hold"


@dataclass(frozen=True)
class Diagnosis:
    """`findings`: a sentence for each verdict that applies, the gravest first; `verdict`: the first of them, or fine.

    `truth` and `predicted`: the percentage of counted pixels of each class; `ignored`: the percentage of all pixels
    that count nowhere. `matrix`: (K, K) pixels, truth by prediction.
    """

    verdict: str
    findings: dict[str, str]
    truth: dict[str, float]
    predicted: dict[str, float]
    ignored: float
    matrix: Counts
    metrics: SegmentationMetrics


def diagnose(counts: Counts, names: Sequence[str], labels: BevLabelsConfig) -> Diagnosis:
    """What `counts` (256, K) of `pixel_counts` say; `names`: the dataset's classes, the zero label's first."""
    matrix, classes = confusion(counts, labels), predicted_names(names, labels)
    truth, predicted = (_percentages(matrix.sum(axis), classes) for axis in (1, 0))
    findings = {
        "labels out of range": _out_of_range(counts.sum(1), len(names), labels.ignore_index),
        "nothing labelled": None if matrix.any() else NOTHING_LABELLED,
        "collapsed": _collapsed(truth, predicted),
        "classes never predicted": _never_predicted(truth, predicted),
    }
    found = {verdict: sentence for verdict, sentence in findings.items() if sentence}
    return Diagnosis(
        verdict=next(iter(found), "fine"),
        findings=found,
        truth=truth,
        predicted=predicted,
        ignored=100 - 100 * float(matrix.sum() / max(1, counts.sum())),
        matrix=matrix,
        metrics=segmentation_metrics(matrix, classes),
    )


def _percentages(pixels: Counts, classes: Sequence[str]) -> dict[str, float]:
    shares = 100 * pixels / max(1, pixels.sum())
    return dict(zip(classes, shares.tolist(), strict=True))


def _out_of_range(pixels: Counts, labelled: int, ignore_index: int) -> str | None:
    """`pixels`: (256,) of each label value; `labelled`: how many classes the dataset names."""
    values = [value for value in np.flatnonzero(pixels).tolist() if value >= labelled and value != ignore_index]
    if not values:
        return None
    shown = ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
    return (
        f"{100 * pixels[values].sum() / pixels.sum():.1f} % of label pixels have values that mean nothing ({shown}): "
        f"the dataset names {labelled} classes, 0 to {labelled - 1}, and model.labels.ignore_index is {ignore_index}; "
        "mend the labels, or name every class, the zero label included"
    )


def _collapsed(truth: dict[str, float], predicted: dict[str, float]) -> str | None:
    name, share = max(predicted.items(), key=lambda item: item[1])
    if share <= COLLAPSED or truth[name] > COLLAPSED:
        return None
    return (
        f"{share:.1f} % of pixels are predicted as {name}, which has {truth[name]:.1f} % of the truth; lower the rate, "
        "train longer, or give the other classes more of loss.class_weights"
    )


def _never_predicted(truth: dict[str, float], predicted: dict[str, float]) -> str | None:
    missing = [f"{name} ({share:.2f} % of the truth)" for name, share in truth.items() if share and not predicted[name]]
    if not missing:
        return None
    return f"never predicted: {', '.join(missing)}; train longer, or give them more of loss.class_weights"

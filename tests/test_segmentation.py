"""Segmentation metrics against a count pixel by pixel, and the diagnosis against planted cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebox.config.bev import BevLabelsConfig
from noisebox.evaluation.diagnosis import diagnose
from noisebox.evaluation.segmentation import confusion, pixel_counts, predicted_names, segmentation_metrics

NAMES = ("background", "road", "pavement", "car")


def brute_force_iou(predicted, labels, meaning):
    """IoU in percent by predicted class, None without ground truth, counting pixel by pixel."""
    hits, union, truth = {}, {}, {}
    for said, value in zip(predicted, labels, strict=True):
        if value == meaning.ignore_index or (meaning.reduce_zero_label and value == 0):
            continue
        real = value - 1 if meaning.reduce_zero_label else value
        truth[real] = truth.get(real, 0) + 1
        for class_ in {said, real}:
            union[class_] = union.get(class_, 0) + 1
        if said == real:
            hits[real] = hits.get(real, 0) + 1
    return [100 * hits.get(k, 0) / union[k] if k in truth else None for k in range(4 - meaning.reduce_zero_label)]


@given(
    pixels=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 3, 255])), min_size=1, max_size=60),
    reduce_zero_label=st.booleans(),
    ignore_index=st.sampled_from([255, 2]),
    cut=st.integers(0, 60),
)
@settings(max_examples=100, deadline=None)
def test_iou_equals_a_count_pixel_by_pixel(pixels, reduce_zero_label, ignore_index, cut):
    pixels = [(said, value) for said, value in pixels if value != 255 or ignore_index == 255] or [(0, 1)]
    meaning = BevLabelsConfig(reduce_zero_label=reduce_zero_label, ignore_index=ignore_index)
    names = predicted_names(NAMES, meaning)
    parts = [part for part in (pixels[:cut], pixels[cut:]) if part]
    counts = sum(
        pixel_counts(
            torch.tensor([said for said, _ in part]),
            torch.tensor([value for _, value in part], dtype=torch.uint8),
            len(names),
        )
        for part in parts
    )
    metrics = segmentation_metrics(confusion(counts, meaning), names)
    expected = brute_force_iou(*zip(*pixels, strict=True), meaning)
    assert tuple(metrics.per_class) == names
    for iou, value in zip(metrics.per_class.values(), expected, strict=True):
        assert math.isnan(iou) if value is None else iou == pytest.approx(value)
    assert metrics.absent == tuple(name for name, value in zip(names, expected, strict=True) if value is None)
    present = [value for value in expected if value is not None]
    assert metrics.miou == pytest.approx(sum(present) / len(present)) if present else math.isnan(metrics.miou)


def test_a_class_without_truth_is_named_and_left_out_of_the_mean():
    labels = torch.tensor([0, 0, 1, 1, 1, 255])
    predicted = torch.tensor([0, 3, 1, 1, 0, 2])
    metrics = segmentation_metrics(confusion(pixel_counts(predicted, labels, 4), BevLabelsConfig()), NAMES)
    assert metrics.absent == ("pavement", "car")
    assert metrics.miou == pytest.approx(100 * (1 / 3 + 2 / 3) / 2)
    assert metrics.accuracy == pytest.approx(100 * 3 / 5)


def planted(table):
    """Counts (256, 4) from {label value: (pixels predicted as each class)}."""
    counts = np.zeros((256, 4), dtype=np.int64)
    for value, row in table.items():
        counts[value] = row
    return counts


HEALTHY = {0: (500, 20, 0, 5), 1: (30, 300, 10, 0), 2: (5, 5, 90, 0), 3: (2, 0, 0, 33), 255: (400, 100, 100, 0)}


def test_a_healthy_prediction_is_fine():
    diagnosis = diagnose(planted(HEALTHY), NAMES, BevLabelsConfig())
    assert diagnosis.verdict == "fine"
    assert diagnosis.findings == {}
    assert diagnosis.ignored == pytest.approx(100 * 600 / 1600)
    assert diagnosis.truth["car"] == pytest.approx(3.5)
    assert diagnosis.predicted["background"] == pytest.approx(53.7)
    assert diagnosis.metrics.per_class["car"] == pytest.approx(100 * 33 / 40)


def test_a_collapsed_prediction_is_told_with_its_class():
    table = {0: (500, 10, 0, 0), 1: (330, 5, 0, 0), 2: (100, 0, 1, 0), 3: (35, 0, 0, 1), 255: (0, 600, 0, 0)}
    diagnosis = diagnose(planted(table), NAMES, BevLabelsConfig())
    assert diagnosis.verdict == "collapsed"
    assert diagnosis.findings["collapsed"].startswith("98.3 % of pixels are predicted as background, which has 51.9 %")
    assert "classes never predicted" not in diagnosis.findings


def test_a_truth_of_one_class_is_no_collapse():
    diagnosis = diagnose(planted({0: (970, 1, 1, 1), 3: (10, 0, 0, 17)}), NAMES, BevLabelsConfig())
    assert diagnosis.verdict == "fine"


def test_labels_out_of_range_come_first():
    table = HEALTHY | {9: (10, 0, 0, 0), 4: (0, 90, 0, 0), 255: (0, 0, 0, 0)}
    diagnosis = diagnose(planted(table), NAMES, BevLabelsConfig())
    assert diagnosis.verdict == "labels out of range"
    assert diagnosis.findings["labels out of range"].startswith(
        "9.1 % of label pixels have values that mean nothing (4, 9): the dataset names 4 classes, 0 to 3"
    )
    assert diagnose(planted(HEALTHY), NAMES, BevLabelsConfig(ignore_index=0)).verdict == "labels out of range"


def test_a_class_that_is_never_predicted_is_named():
    diagnosis = diagnose(planted(HEALTHY | {3: (20, 15, 0, 0), 0: (525, 0, 0, 0)}), NAMES, BevLabelsConfig())
    assert diagnosis.verdict == "classes never predicted"
    assert diagnosis.findings["classes never predicted"].startswith("never predicted: car (3.50 % of the truth);")


def test_a_collapse_to_one_class_is_also_told_as_classes_never_predicted():
    diagnosis = diagnose(planted({0: (50, 0, 0, 0), 1: (50, 0, 0, 0)}), NAMES, BevLabelsConfig())
    assert list(diagnosis.findings) == ["collapsed", "classes never predicted"]


def test_labels_that_are_all_ignored_are_told():
    diagnosis = diagnose(planted({255: (50, 0, 0, 9)}), NAMES, BevLabelsConfig())
    assert diagnosis.verdict == "nothing labelled"
    assert math.isnan(diagnosis.metrics.miou)
    assert diagnosis.ignored == 100


def test_the_zero_label_is_no_class_when_it_is_reduced():
    counts = planted({0: (9, 9, 9, 0), 1: (8, 0, 0, 0), 2: (0, 7, 1, 0), 3: (0, 0, 6, 0)})[:, :3]
    diagnosis = diagnose(counts, NAMES, BevLabelsConfig(reduce_zero_label=True))
    assert diagnosis.verdict == "fine"
    assert tuple(diagnosis.truth) == ("road", "pavement", "car")
    assert diagnosis.metrics.accuracy == pytest.approx(100 * 21 / 22)

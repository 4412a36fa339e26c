"""The BEV losses against torch's own and loops: label values, weighted cross-entropy, depth from sparse returns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from noisebox.config.bev import BevConfig, LiftConfig
from noisebox.errors import UserError
from noisebox.models.bev.criterion import (
    IGNORED,
    class_targets,
    depth_loss,
    nearest_depth,
    weighted_cross_entropy,
)
from noisebox.randomness import normal, uniform

LABELLED = 4


def config(**labels):
    return BevConfig(grid={"x_min": -2.0, "x_max": 2.0, "z_min": 1.0, "z_max": 4.0, "cell": 1.0}, labels=labels)


def as_mmsegmentation(value, reduce_zero_label, ignore_index):
    """The class that mmsegmentation trains for a label value, or None."""
    if reduce_zero_label:
        value = 255 if value == 0 else value - 1
        value = 255 if value == 254 else value
        return None if value in (ignore_index - 1, 255) else value
    return None if value == ignore_index else value


@given(
    values=st.lists(st.sampled_from([0, 1, 2, 3, 255]), min_size=12, max_size=12),
    reduce_zero_label=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_targets_are_what_mmsegmentation_makes_of_labels(values, reduce_zero_label):
    targets = class_targets(
        torch.tensor(values).view(1, 3, 4), [7], LABELLED, config(reduce_zero_label=reduce_zero_label)
    )
    expected = [as_mmsegmentation(value, reduce_zero_label, 255) for value in values]
    assert [None if target == IGNORED else target for target in targets.flatten().tolist()] == expected


def test_another_ignore_index_takes_its_value_out():
    labels = torch.tensor([[[0, 1, 2, 3]] * 3])
    assert class_targets(labels, [7], LABELLED, config(ignore_index=2))[0, 0].tolist() == [0, 1, IGNORED, 3]


@pytest.mark.parametrize(
    ("value", "labels", "fit"),
    [
        (4, {}, "0 to 3 fit, and model.labels.ignore_index 255"),
        (255, {"ignore_index": 0}, "0 to 3 fit, and model.labels.ignore_index 0"),
        (4, {"reduce_zero_label": True}, "1 to 3 fit"),
    ],
)
def test_a_value_that_means_nothing_is_named_with_its_image(value, labels, fit):
    maps = torch.zeros(2, 3, 4, dtype=torch.int64)
    maps[1, 2, 0] = value
    with pytest.raises(UserError, match=f"image 8 has the value {value}; {fit}"):
        class_targets(maps, [7, 8], LABELLED, config(**labels))


def test_a_map_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"4 rows and 3 columns, but model\.grid has 3 and 4"):
        class_targets(torch.zeros(1, 4, 3, dtype=torch.int64), [7], LABELLED, config())


@given(seed=st.integers(0, 10_000), weighted=st.booleans())
@settings(max_examples=30, deadline=None)
def test_cross_entropy_is_torchs_weighted_mean(seed, weighted):
    logits = normal((2, LABELLED, 3, 5), seed, "logits")
    targets = (uniform((2, 3, 5), seed, "targets") * (LABELLED + 1)).long() - 1
    weights = uniform((LABELLED,), seed, "weights") + 0.1 if weighted else None
    expected = F.cross_entropy(logits, targets, weights, ignore_index=IGNORED)
    assert torch.allclose(weighted_cross_entropy(logits, targets, weights), expected, rtol=1e-5)


def test_a_map_without_labels_costs_nothing():
    logits = normal((1, LABELLED, 3, 5), 0, "logits").requires_grad_()
    loss = weighted_cross_entropy(logits, torch.full((1, 3, 5), IGNORED), None)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@given(seed=st.integers(0, 10_000), height=st.integers(1, 20), width=st.integers(1, 20), stride=st.sampled_from([4, 8]))
@settings(max_examples=30, deadline=None)
def test_nearest_depth_equals_a_loop_over_pixels(seed, height, width, stride):
    depth = uniform((2, 1, height, width), seed, "depth") * 60
    mask = uniform((2, 1, height, width), seed, "mask") < 0.1
    found = nearest_depth(depth.masked_fill(~mask, float("nan")), mask, (24 // stride, 24 // stride), stride)
    expected = torch.full(found.shape, math.inf)
    for image, _, i, j in mask.nonzero().tolist():
        cell = (image, i // stride, j // stride)
        expected[cell] = min(float(expected[cell]), float(depth[image, 0, i, j]))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("metres", "bin_"), [(1.0, 0), (1.999, 0), (2.0, 1), (30.5, 29), (49.99, 48), (50.0, None), (0.99, None)]
)
def test_a_return_teaches_its_bin_and_none_beyond_the_bins(metres, bin_):
    logits = normal((1, 49, 1, 2), 0, "logits").requires_grad_()
    depth, mask = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8, dtype=torch.bool)
    depth[0, 0, 3, 5], mask[0, 0, 3, 5] = metres, True
    loss = depth_loss(logits, depth, mask, LiftConfig(stride=4))
    expected = 0.0 if bin_ is None else -logits[0, :, 0, 1].log_softmax(0)[bin_].item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_without_a_return_depth_costs_nothing():
    logits = normal((1, 49, 1, 2), 0, "logits").requires_grad_()
    loss = depth_loss(logits, torch.full((1, 1, 4, 8), 10.0), torch.zeros(1, 1, 4, 8).bool(), LiftConfig(stride=4))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()

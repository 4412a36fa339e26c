"""The heatmap against its definitions: radius by overlaps, Gaussians and focal loss by their words, peaks by search."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from noisebox.models.yolc.heatmap import (
    centre_pixels,
    crowded_pixels,
    focal_loss,
    gaussian_radius,
    heatmap_targets,
    peaks,
)
from noisebox.structures import Targets

SIZE = (24, 40)


def worst_iou(width, height, r):
    """Of the box moved by r along both axes, shrunk by r at each side, and grown by r."""
    box = torch.tensor([[0, 0, width, height]], dtype=torch.float64)
    others = box + r * torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [-1, -1, 1, 1]], dtype=torch.float64)
    return box_iou(box, others).min().item()


def random_targets(seed, count, size_hw=SIZE, classes=3):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([size_hw[1], size_hw[0]])
    corner = torch.rand(count, 2, generator=generator) * (scale - 2)
    extent = 1 + torch.rand(count, 2, generator=generator) * (scale - corner - 1)
    return Targets(torch.cat((corner, corner + extent), 1), torch.randint(classes, (count,), generator=generator))


@given(width=st.floats(1, 300), height=st.floats(1, 300), overlap=st.floats(0.05, 0.95))
@settings(max_examples=60)
def test_boxes_displaced_by_the_radius_still_overlap_and_no_further(width, height, overlap):
    r = gaussian_radius(torch.tensor([width, height], dtype=torch.float64), overlap).item()
    assert 0 < r < min(width, height) / 2
    assert worst_iou(width, height, r) == pytest.approx(overlap, abs=1e-9)
    assert worst_iou(width, height, 1.001 * r) < overlap < worst_iou(width, height, 0.999 * r)


@given(seed=st.integers(0, 100_000), counts=st.lists(st.integers(0, 6), min_size=1, max_size=3))
@settings(max_examples=25)
def test_targets_are_the_largest_gaussian_at_each_pixel(seed, counts):
    targets = [random_targets(seed + row, count) for row, count in enumerate(counts)]
    expected = torch.zeros(len(counts), 3, *SIZE)
    for row, target in enumerate(targets):
        for (x1, y1, x2, y2), label in zip(target.boxes_xyxy.tolist(), target.labels.tolist(), strict=True):
            r = gaussian_radius(torch.tensor([x2 - x1, y2 - y1]), 0.3).item()
            sigma = (2 * r + 1) / 6
            cx, cy = int((x1 + x2) / 2), int((y1 + y2) / 2)
            for y in range(SIZE[0]):
                for x in range(SIZE[1]):
                    if max(abs(x - cx), abs(y - cy)) <= 3 * sigma:
                        value = math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
                        expected[row, label, y, x] = max(expected[row, label, y, x], value)
    heatmap = heatmap_targets(targets, 3, SIZE, 0.3)
    # A pixel exactly 3 sigma away may round to either side, where the Gaussian is exp(-4.5).
    assert ((heatmap - expected).abs() < 1e-5).float().mean() > 0.999
    assert torch.allclose(heatmap, expected, atol=0.0112)


def test_each_centre_is_exactly_one_and_an_image_does_not_change_its_neighbours():
    targets = [random_targets(1, 5), random_targets(2, 0), random_targets(3, 2)]
    heatmap = heatmap_targets(targets, 3, SIZE, 0.3)
    for row, target in enumerate(targets):
        for (x, y), label in zip(centre_pixels(target.boxes_xyxy, SIZE).tolist(), target.labels, strict=True):
            assert heatmap[row, label, y, x] == 1
        assert torch.equal(heatmap_targets([target], 3, SIZE, 0.3)[0], heatmap[row])
    assert heatmap[1].max() == 0


def test_a_centre_on_the_border_belongs_to_the_last_pixel():
    target = Targets(torch.tensor([[39.0, 23.0, 41.0, 25.0]]), torch.tensor([0]))
    assert (heatmap_targets([target], 1, SIZE, 0.3)[0, 0] == 1).nonzero().tolist() == [[23, 39]]


def focal_by_its_words(logits, target):
    total, centres = 0.0, 0
    for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        if y == 1:
            total -= (1 - p) ** 2 * math.log(p)
            centres += 1
        else:
            total -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    return total / max(1, centres)


@given(seed=st.integers(0, 100_000), scale=st.sampled_from([1.0, 4.0]))
@settings(max_examples=20)
def test_the_focal_loss_is_what_its_words_say(seed, scale):
    targets = [random_targets(seed, 3), random_targets(seed, 0)]
    heatmap = heatmap_targets(targets, 3, SIZE, 0.3)
    logits = scale * torch.randn(heatmap.shape, generator=torch.Generator().manual_seed(seed))
    expected = [focal_by_its_words(*row) for row in zip(logits.double(), heatmap.double(), strict=True)]
    assert focal_loss(logits, heatmap).tolist() == pytest.approx(expected, rel=1e-4)


def test_in_a_crowd_nothing_of_its_class_is_background_but_objects_stay_objects():
    """Loss and gradient by hand: the terms of crowded values that are no centres are gone, all others are as before."""
    object_, crowds = (
        torch.tensor([[4.0, 4.0, 10.0, 9.0]]),
        torch.tensor([[2.5, 3.0, 20.0, 12.2], [30.0, 0.0, 40.0, 24.0]]),
    )
    targets = [Targets(object_, torch.tensor([1]), crowds, torch.tensor([1, 0])), random_targets(3, 2)]
    heatmap = heatmap_targets(targets, 3, SIZE, 0.3)
    crowded = crowded_pixels(targets, heatmap.shape)
    expected = torch.zeros_like(crowded)
    expected[0, 1, 3:13, 2:20] = expected[0, 0, :, 30:] = True
    assert torch.equal(crowded, expected)
    logits = torch.randn(heatmap.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = focal_loss(logits, heatmap, crowded)
    p, unjudged = logits.detach().double().sigmoid(), crowded & (heatmap != 1)
    gone = -((1 - heatmap) ** 4 * p**2 * (1 - p).log() * unjudged).sum((1, 2, 3)) / torch.tensor([1, 2])
    assert gone[0] > 1 and gone[1] == 0
    assert loss.tolist() == pytest.approx((focal_loss(logits, heatmap) - gone).tolist(), rel=1e-4)
    loss.sum().backward()
    assert (logits.grad[unjudged] == 0).all() and (logits.grad[~unjudged] != 0).all()
    assert crowded_pixels([random_targets(3, 2)], heatmap.shape) is None


def test_the_gradient_of_the_focal_loss_is_its_derivative():
    heatmap = heatmap_targets([random_targets(0, 2, (6, 8)), random_targets(1, 0)], 2, (6, 8), 0.3).double()
    logits = 3 * torch.randn(heatmap.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, heatmap), logits.requires_grad_())


@pytest.mark.parametrize("logit", [-200.0, -90.0, 90.0, 200.0])
def test_extreme_logits_give_finite_loss_and_gradient(logit):
    heatmap = heatmap_targets([random_targets(0, 2)], 3, SIZE, 0.3)
    logits = torch.full_like(heatmap, logit, requires_grad=True)
    loss = focal_loss(logits, heatmap).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_loss_is_zero_where_the_heatmap_is_right():
    heatmap = heatmap_targets([random_targets(0, 4)], 3, SIZE, 0.3)
    assert focal_loss(torch.where(heatmap == 1, 30.0, -30.0), heatmap).item() == pytest.approx(0, abs=1e-9)


@given(seed=st.integers(0, 100_000), height=st.integers(4, 12), width=st.integers(4, 12), count=st.integers(1, 60))
@settings(max_examples=30)
def test_peaks_are_the_highest_local_maxima_within_the_image(seed, height, width, count):
    logits = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(seed))
    found = []
    for label in range(2):
        for y in range(height):
            for x in range(width):
                around = logits[0, label, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                if logits[0, label, y, x] >= around.max():
                    found.append((logits[0, label, y, x].sigmoid().item(), label, x, y))
    found.sort(reverse=True)
    scores, labels, pixels = (each[0] for each in peaks(logits, torch.tensor([[height, width]]), count))
    real = int((scores > 0).sum())
    assert real == min(count, len(found))
    assert scores[:real].tolist() == pytest.approx([score for score, *_ in found[:real]])
    assert labels[:real].tolist() == [label for _, label, *_ in found[:real]]
    assert pixels[:real].tolist() == [[x, y] for *_, x, y in found[:real]]

"""Boxes of YOLC: decoding against encoding, the Wasserstein distance against matrices, and where refinement looks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from small_yolc import make_batch, make_yolc
from torch.nn import functional as F

from noisebox.config.yolc import YolcLossConfig
from noisebox.models.yolc.decode import LARGEST, STRIDE, cell_boxes, cells_of, decode, encode
from noisebox.models.yolc.heatmap import heatmap_targets
from noisebox.models.yolc.losses import gwd_loss, squared_wasserstein, supervised_terms
from noisebox.models.yolc.network import Refinement, sampling_places
from noisebox.structures import Targets

GRID = (20, 32)


def random_boxes(seed, count, size_wh=(128.0, 80.0)):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64).sort(dim=1).values
    boxes = corners.flatten(1) * torch.tensor(size_wh).repeat(2)
    boxes[:, 2:] += 0.5
    return boxes


@given(seed=st.integers(0, 100_000))
@settings(max_examples=40)
def test_what_is_encoded_is_decoded(seed):
    boxes = random_boxes(seed, 30)
    cells = cells_of((boxes[:, :2] + boxes[:, 2:]) / 2, GRID)
    coarse = cell_boxes(cells, GRID[1]).double()
    assert torch.allclose(decode(encode(boxes, coarse), coarse), boxes, atol=1e-9)
    reference = random_boxes(seed + 1, 30)
    assert torch.allclose(decode(encode(boxes, reference), reference), boxes, atol=1e-9)
    raw = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(encode(decode(raw, reference), reference), raw, atol=1e-9)


def test_a_coarse_box_is_told_in_strides_from_the_centre_of_its_cell():
    """x, y and half the width and height relative to the grid: nothing said is one stride to each side."""
    cells = torch.tensor([0, 33])
    assert cell_boxes(cells, 32).tolist() == [[-2, -2, 6, 6], [2, 2, 10, 10]]
    raw = torch.tensor([0.25, -0.5, 1.0, 0.0])
    half_width = STRIDE * torch.e
    expected = [6 + 1 - half_width, 6 - 2 - 4, 6 + 1 + half_width, 6 - 2 + 4]
    assert decode(raw, cell_boxes(cells[1], 32)).tolist() == pytest.approx(expected)


def test_a_cell_holds_the_points_of_its_square_and_the_rim_what_lies_outside():
    points = torch.tensor([[0.0, 0.0], [3.99, 3.99], [4.0, 3.99], [127.9, 79.9], [128.0, 80.0], [-1.0, 500.0]])
    assert cells_of(points, GRID).tolist() == [0, 0, 1, 32 * 20 - 1, 32 * 20 - 1, 32 * 19]


def test_no_raw_number_makes_a_box_infinite():
    box = decode(torch.tensor([0.0, 0.0, 1e4, -1e4]), torch.tensor([0.0, 0.0, 2.0, 2.0]))
    assert box.tolist() == pytest.approx([1 - LARGEST, 1, 1 + LARGEST, 1])


@given(seed=st.integers(0, 100_000))
@settings(max_examples=30)
def test_the_squared_distance_is_that_of_the_gaussians(seed):
    """Yang et al. 2021, equation 3: |m1 - m2|² + Tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½), S = diag(w²/4, h²/4)."""
    boxes, others = random_boxes(seed, 4), random_boxes(seed + 1, 4)
    found = squared_wasserstein(boxes, others)
    for index in range(4):
        one, two = boxes[index].numpy(), others[index].numpy()
        means = [(box[:2] + box[2:]) / 2 for box in (one, two)]
        s1, s2 = (np.diag(((box[2:] - box[:2]) / 2) ** 2) for box in (one, two))
        root = sqrtm(s1)
        expected = ((means[0] - means[1]) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(root @ s2 @ root)))
        assert found[index].item() == pytest.approx(expected, rel=1e-6)
        d2 = expected / STRIDE**2
        assert gwd_loss(boxes, others, 2.0)[index].item() == pytest.approx(1 - 1 / (2 + np.log(d2 + 1)), rel=1e-6)


def test_the_wasserstein_loss_of_equal_boxes_is_zero_and_grows_with_distance_alone():
    box = torch.tensor([10.0, 10.0, 18.0, 30.0])
    steps = torch.arange(6.0)[:, None]
    moved = gwd_loss(box + steps, box.expand(6, 4), 1.0)
    assert moved[0] == 0
    assert (moved.diff() > 0).all()
    assert (moved < 1).all()
    assert gwd_loss(10 * box, 10 * box + 2, 1.0).item() == pytest.approx(gwd_loss(box, box + 2, 1.0).item(), rel=1e-3)


def bilinear(features, y, x):
    """Features (C, h, w) at a point, 0 outside."""
    total = torch.zeros(len(features))
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < features.shape[1] and 0 <= column < features.shape[2]:
                total += features[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_the_places_are_corners_middles_and_centre_in_the_features_coordinates():
    places = sampling_places(torch.tensor([2.0, 6.0, 10.0, 30.0]))
    assert places.tolist() == [[y, x] for y in (1.0, 4.0, 7.0) for x in (0.0, 1.0, 2.0)]


def test_refinement_is_a_convolution_over_the_nine_places_of_each_box():
    refinement = Refinement(8)
    features = torch.randn(2, 8, 10, 12, generator=torch.Generator().manual_seed(0))
    boxes = random_boxes(3, 10, (48.0, 40.0)).float().view(2, 5, 4)
    with torch.no_grad():
        refinement.bias.normal_(generator=torch.Generator().manual_seed(1))
        seen = refinement.look(features, boxes)
        for image in range(2):
            for index in range(5):
                places = sampling_places(boxes[image, index]).tolist()
                taps = torch.stack([bilinear(features[image], y, x) for y, x in places], dim=-1)
                expected = (refinement.weight.flatten(2) * taps).sum((1, 2)) + refinement.bias
                assert torch.allclose(seen[image, index], expected, atol=1e-5)


def test_boxes_of_one_stride_around_each_cell_make_it_an_ordinary_convolution():
    """Raw numbers of 0 give offsets of 0. All cells are asked, many more than fit into one row."""
    refinement = Refinement(8)
    features = torch.randn(1, 8, 5, 6, generator=torch.Generator().manual_seed(0))
    boxes = cell_boxes(torch.arange(30), 6)[None]
    with torch.no_grad():
        torch.nn.init.normal_(refinement.change.weight, generator=torch.Generator().manual_seed(1))
        expected = F.conv2d(features, refinement.weight, refinement.bias, padding=1).flatten(2).transpose(1, 2)
        assert torch.allclose(refinement(features, boxes), refinement.change(expected.relu()), atol=1e-4)


def test_at_first_refined_boxes_are_the_coarse_ones():
    model, batch = make_yolc(), make_batch([1, 2])
    cells = torch.tensor([[3, 500, 959], [0, 1, 2]])
    coarse, refined = model.network.boxes_at(model.encode(batch), cells)
    assert torch.equal(refined.raw, torch.zeros(2, 3, 4))
    assert torch.allclose(refined.boxes_xyxy, coarse.boxes_xyxy, atol=1e-5)
    assert not refined.reference_xyxy.requires_grad


@pytest.mark.parametrize("seed", range(3))
def test_box_terms_are_means_over_each_images_objects_at_their_cells(seed):
    model, batch = make_yolc(), make_batch([seed, seed + 10, seed + 20])
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    targets = (batch.targets[0], nothing, batch.targets[2])
    with torch.no_grad():
        torch.nn.init.normal_(model.network.refine.change.weight, std=0.1)
        output = model.encode(batch)
        config = YolcLossConfig(gwd_weight=3.0, l1_weight=0.7, gwd_tau=1.5)
        heatmap = heatmap_targets(targets, 3, (96, 160), 0.3)
        terms, boxes = supervised_terms(model.network, output, targets, heatmap, config)
        assert len(boxes) == 16
        for name in ("coarse", "refined"):
            for row, target in enumerate(targets):
                gwd = l1 = 0.0
                for x1, y1, x2, y2 in target.boxes_xyxy.tolist():
                    cell = int((y1 + y2) / 2 / 4) * 40 + int((x1 + x2) / 2 / 4)
                    stage = model.network.boxes_at(output, torch.full((3, 1), cell))[name == "refined"]
                    goal = torch.tensor([x1, y1, x2, y2])
                    gwd += gwd_loss(stage.boxes_xyxy[row, 0], goal, 1.5).item()
                    l1 += (stage.raw[row, 0] - encode(goal, stage.reference_xyxy[row, 0])).abs().sum().item()
                count = max(1, len(target.labels))
                assert terms[f"loss_{name}_gwd"][row].item() == pytest.approx(3 * gwd / count, rel=1e-3)
                assert terms[f"loss_{name}_l1"][row].item() == pytest.approx(0.7 * l1 / count, rel=1e-3)

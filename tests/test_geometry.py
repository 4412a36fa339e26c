"""Geometry of proposals: biases against loops and torchvision, invariances, and boxes that collapsed or exploded."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from noisebox.config.diffusiondet import GeoBiasConfig
from noisebox.models.diffusiondet.geometry import GeometryBias, GeometryFeatures, bounded_cxcywh, relation_features
from noisebox.randomness import isolated

WHWH = torch.tensor([64.0, 48.0, 64.0, 48.0])
KINDS = ("none", "distance", "iou", "mlp")
seeds = st.integers(0, 100_000)


def boxes_on_a_grid(seed, count, rows=2):
    """Boxes with corners on a coarse grid, so that many centres and distances are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 8, (rows, count, 2), generator=generator) * 4.0
    return torch.cat((corner, corner + torch.randint(1, 8, (rows, count, 2), generator=generator) * 4.0), dim=-1)


def trained(module, seed=0):
    """The module with weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return module


def bias_of(boxes, heads=2, **config):
    return trained(GeometryBias(GeoBiasConfig(**config), heads))(boxes, WHWH.expand(len(boxes), 4))


def centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


@given(seed=seeds, scale=st.sampled_from([0.5, 3.0]))
@settings(max_examples=20, deadline=None)
def test_distance_is_that_of_centres_in_image_diagonals(seed, scale):
    boxes = boxes_on_a_grid(seed, 6)
    bias = bias_of(boxes, kind="distance", scale=scale)
    assert bias.shape == (2, 1, 6, 6)
    for row, image in enumerate(boxes.tolist()):
        for i, a in enumerate(image):
            for j, b in enumerate(image):
                assert bias[row, 0, i, j].item() == pytest.approx(-scale * math.dist(centre(a), centre(b)) / 80)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_iou_is_torchvisions(seed):
    boxes = boxes_on_a_grid(seed, 6)
    bias = bias_of(boxes, kind="iou", scale=2.0)
    assert bias.shape == (2, 1, 6, 6)
    for row, image in enumerate(boxes):
        assert torch.allclose(bias[row, 0], 2 * box_iou(image, image), atol=1e-6)


def test_relations_are_those_of_the_paper():
    """Hu et al. 2018: proposal n looks at m, offsets and sizes are in units of m."""
    n, m = [10.0, 20.0, 4.0, 6.0], [13.0, 15.0, 8.0, 2.0]
    relations = relation_features(torch.tensor([[n, m]]))
    expected = [math.log(value) for value in (3 / 8, 5 / 2, 4 / 8, 6 / 2)]
    assert relations[0, 0, 1].tolist() == pytest.approx(expected, rel=1e-6)
    expected = [math.log(value) for value in (3 / 4, 5 / 6, 8 / 4, 2 / 6)]
    assert relations[0, 1, 0].tolist() == pytest.approx(expected, rel=1e-6)


@given(seed=seeds, grow=st.sampled_from([0.25, 1.0, 2.0]), shift=st.sampled_from([-16.0, 0.0, 32.0]))
@settings(max_examples=20, deadline=None)
def test_the_learned_bias_sees_neither_a_common_shift_nor_a_common_scale(seed, grow, shift):
    boxes = boxes_on_a_grid(seed, 5)
    bias = bias_of(boxes, heads=3, kind="mlp")
    assert bias.shape == (2, 3, 5, 5)
    assert torch.allclose(bias, bias_of(boxes * grow + shift, heads=3, kind="mlp"), atol=1e-5)


def test_the_learned_bias_is_scaled_and_tells_heads_and_pairs_apart():
    boxes = boxes_on_a_grid(1, 5)
    bias = bias_of(boxes, kind="mlp")
    assert torch.allclose(bias_of(boxes, kind="mlp", scale=3.0), 3 * bias)
    assert (bias[:, 0] - bias[:, 1]).abs().max() > 0.1
    assert bias[0, 0].std() > 0.1


def test_only_the_learned_kind_has_parameters():
    with_parameters = [kind for kind in KINDS if list(GeometryBias(GeoBiasConfig(kind=kind, topk=2), 2).parameters())]
    assert with_parameters == ["mlp"]
    assert GeometryBias(GeoBiasConfig(), 2)(boxes_on_a_grid(0, 3), WHWH.expand(2, 4)) is None


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds, topk=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_topk_keeps_itself_and_the_nearest_of_equals_the_first(kind, seed, topk):
    boxes = boxes_on_a_grid(seed, 7)
    sparse = bias_of(boxes, kind=kind, topk=topk)
    dense = bias_of(boxes, kind=kind)
    dense = torch.zeros(2, 1, 7, 7) if dense is None else dense
    for row, image in enumerate(boxes.tolist()):
        for i, looks in enumerate(image):

            def squared_distance(j, looks=looks, image=image):
                (x, y), (other_x, other_y) = centre(looks), centre(image[j])
                return (x - other_x) ** 2 + (y - other_y) ** 2

            others = sorted((j for j in range(7) if j != i), key=squared_distance)
            kept = {i, *others[: topk - 1]}
            for j in range(7):
                expected = dense[row, :, i, j] if j in kept else torch.full_like(dense[row, :, i, j], -torch.inf)
                assert torch.equal(sparse[row, :, i, j], expected)


def test_of_many_boxes_on_one_spot_each_keeps_itself_and_the_first():
    sparse = bias_of(boxes_on_a_grid(0, 1, rows=1).repeat(1, 300, 1), topk=3)[0, 0]
    for i, row in enumerate(sparse):
        assert set((row == 0).nonzero().flatten().tolist()) == {i, *[j for j in range(3) if j != i][:2]}


def strange_boxes():
    """Points that coincide, lines, boxes beyond the image, and ones that only a diverging network makes."""
    return torch.tensor(
        [
            [10.0, 10.0, 10.0, 10.0],
            [10.0, 10.0, 10.0, 10.0],
            [10.0, 10.0, 30.0, 10.0],
            [0.0, 0.0, 64.0, 48.0],
            [5.0, 5.0, 5.0 + 1e-6, 5.0 + 1e-30],
            [-400.0, 300.0, 900.0, 5000.0],
            [-1e30, -1e30, 1e30, 1e30],
            [1e20, 1e20, torch.inf, torch.inf],
        ]
    )[None]


@pytest.mark.parametrize("kind", ["distance", "iou", "mlp"])
@pytest.mark.parametrize("topk", [None, 3])
def test_biases_of_strange_boxes_and_their_gradients_are_finite(kind, topk):
    boxes = strange_boxes().requires_grad_()
    bias = bias_of(boxes, kind=kind, topk=topk)
    kept = bias[bias != -torch.inf]
    assert kept.isfinite().all()
    assert len(kept) == bias.shape[1] * 8 * (topk or 8)
    kept.square().sum().backward()
    assert boxes.grad.isfinite().all()


def test_features_of_strange_boxes_and_their_gradients_are_finite():
    boxes = strange_boxes().requires_grad_()
    features = trained(GeometryFeatures(6))(boxes, WHWH[None])
    assert features.shape == (1, 8, 6)
    assert features.isfinite().all()
    features.square().sum().backward()
    assert boxes.grad.isfinite().all()
    assert (boxes.grad[0, 3] != 0).all()


def test_bounds_leave_ordinary_boxes_alone():
    boxes = torch.tensor([[[-3.0, 10.0, 70.0, 11.0], [0.0, 0.0, 64.0, 48.0]]])
    assert bounded_cxcywh(boxes, WHWH[None]).tolist() == [[[33.5, 10.5, 73.0, 1.0], [32.0, 24.0, 64.0, 48.0]]]


def test_features_change_with_each_of_centre_size_and_aspect_but_not_with_resolution():
    features = trained(GeometryFeatures(6))
    box = torch.tensor([8.0, 8.0, 24.0, 16.0])
    moved = torch.tensor([[8.0, 0, 8, 0], [0, 8.0, 0, 8], [0, 0, 8.0, 0], [0, 0, 0, 8.0]])
    seen = features(torch.cat((box[None], box + moved))[None], WHWH[None])[0]
    assert torch.pdist(seen).min() > 1e-3
    assert torch.allclose(features(3 * box[None, None], 3 * WHWH[None])[0, 0], seen[0], atol=1e-6)


@pytest.mark.parametrize("make", [lambda: GeometryFeatures(6), lambda: GeometryBias(GeoBiasConfig(kind="mlp"), 2)])
def test_output_starts_at_zero_also_after_matrices_are_drawn_anew_and_then_learns(make):
    with isolated(0, "geometry test"):
        module = make()
        boxes, whwh = boxes_on_a_grid(3, 5), WHWH.expand(2, 4)
        assert (module(boxes, whwh) == 0).all()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    assert (module(boxes, whwh) != 0).any()
    module.reset_output()
    assert (module(boxes, whwh) == 0).all()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (module(boxes, whwh) - 1).square().mean().backward()
        optimizer.step()
    assert all((parameter.grad != 0).any() for parameter in module.parameters())


def test_geometry_does_not_depend_on_the_other_rows():
    boxes = boxes_on_a_grid(5, 6, rows=3)
    whwh = torch.stack((WHWH, 2 * WHWH, 3 * WHWH))
    features = trained(GeometryFeatures(6))
    bias = trained(GeometryBias(GeoBiasConfig(kind="distance", topk=3), 2))
    for row in range(3):
        alone = boxes[row, None], whwh[row, None]
        assert torch.allclose(features(boxes, whwh)[row], features(*alone)[0], atol=1e-6)
        assert torch.equal(bias(boxes, whwh)[row], bias(*alone)[0])

"""The pyramid pooling against torchvision's RoIAlign, level by level, forward and backward."""

import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import embedding_bag
from torchvision.ops import roi_align

from noisebox.models.diffusiondet.pooling import STRIDES, Pyramid, WeightedSums, kernel_runs, pool_regions


def features_of(images, height, width, generator):
    shape = [(images, 6, -(-height // stride), -(-width // stride)) for stride in STRIDES]
    return [torch.randn(size, generator=generator).requires_grad_() for size in shape]


def one_roi_at_a_time(features, boxes_xyxy, image_index, resolution, ratio):
    pooled = []
    for row, image in enumerate(image_index.tolist()):
        for box in boxes_xyxy[row]:
            size = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
            level = int(torch.floor(4 + torch.log2(size / 224 + 1e-8)).clamp(2, 5)) - 2
            region = [box[None]] if image == 0 else [box.new_zeros(0, 4)] * image + [box[None]]
            feature = features[level][: image + 1]
            pooled.append(roi_align(feature, region, resolution, 1 / STRIDES[level], ratio, aligned=True))
    return torch.cat(pooled).flatten(2).transpose(1, 2)


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(20, 700),
    width=st.integers(20, 700),
    resolution=st.sampled_from([1, 3, 7]),
    ratio=st.integers(1, 3),
)
@settings(max_examples=20, deadline=None)
def test_equals_roi_align_on_the_level_of_each_box(seed, height, width, resolution, ratio):
    generator = torch.Generator().manual_seed(seed)
    features = features_of(2, height, width, generator)
    image_index = torch.tensor([1, 0, 1])
    # Boxes of every size, some beyond the image or without an area.
    corners = torch.rand(3, 8, 2, 2, generator=generator).sort(dim=2).values * 1.6 - 0.3
    boxes = corners.flatten(2) * torch.tensor([width, height, width, height])
    boxes[0, 0, 2:] = boxes[0, 0, :2]
    ours = pool_regions(Pyramid.of(features), boxes, image_index, resolution, ratio)
    theirs = one_roi_at_a_time(features, boxes, image_index, resolution, ratio)
    assert torch.allclose(ours, theirs, atol=2e-3)
    weight = torch.randn(ours.shape, generator=generator)
    for mine, reference in zip(
        torch.autograd.grad((ours * weight).sum(), features, allow_unused=True),
        torch.autograd.grad((theirs * weight).sum(), features, allow_unused=True),
        strict=True,
    ):
        assert torch.allclose(mine, torch.zeros_like(mine) if reference is None else reference, atol=2e-3)


def test_where_the_kernel_cannot_be_made_the_reason_is_told(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "noisebox.models.diffusiondet.region_kernel", None)  # as without Triton
    assert kernel_runs.__wrapped__() is False
    [message] = caplog.messages
    assert "RoIAlign without our kernel" in message
    assert "region_kernel" in message


def test_a_box_that_is_not_finite_harms_nobody():
    generator = torch.Generator().manual_seed(0)
    pyramid = Pyramid.of([feature.detach() for feature in features_of(1, 64, 64, generator)])
    good = torch.tensor([8.0, 8.0, 40.0, 30.0])
    nan, inf = torch.nan, torch.inf
    bad = torch.tensor([[nan, nan, nan, nan], [-inf, 0, inf, inf], [0, 0, 3e38, 3e38], [-3e38, nan, 3e38, 1]])
    pooled = pool_regions(pyramid, torch.cat((good[None], bad))[None], torch.tensor([0]), 7, 2)
    assert torch.isfinite(pooled).all()
    assert torch.equal(pooled[:1], pool_regions(pyramid, good[None, None], torch.tensor([0]), 7, 2))


@given(seed=st.integers(0, 10_000), sums=st.integers(1, 30), samples=st.integers(1, 9), positions=st.integers(1, 12))
def test_the_gradient_is_that_of_bags(seed, sums, samples, positions):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(positions, 5, generator=generator).requires_grad_()
    index = torch.randint(0, positions, (sums, samples), generator=generator)
    weight = torch.randn(sums, samples, generator=generator)
    towards = torch.randn(5, generator=generator).expand(sums, 5)  # not contiguous, as that of a mean is
    ours = WeightedSums.apply(table, index, weight)
    theirs = embedding_bag(index, table, per_sample_weights=weight, mode="sum")
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(result, table, towards)[0] for result in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-5)

"""The kernels of RoIAlign against PyTorch's bags, pooling on a GPU against a CPU; test_region_kernel.py runs these."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from noisebox.models.diffusiondet.pooling import STRIDES, Pyramid, pool_regions
from noisebox.models.diffusiondet.region_kernel import region_sums

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def places_of(regions, bins, samples, positions, generator):
    """Rows, columns and what they count, many of them nothing."""
    rows, columns = torch.randint(0, positions // 2, (2, regions, bins, samples), generator=generator)
    weights = torch.rand(2, regions, bins, samples, generator=generator) - 0.5
    weights[torch.rand(weights.shape, generator=generator) < 0.3] = 0
    return [part.to(DEVICE) for part in (rows, weights[0], columns, weights[1])]


def bags(table, rows, row_weights, columns, column_weights):
    index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    weight = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    return F.embedding_bag(
        index.flatten(3).flatten(0, 2), table, per_sample_weights=weight.flatten(3).flatten(0, 2), mode="sum"
    )


@given(
    seed=st.integers(0, 10_000),
    regions=st.integers(1, 3),
    bins=st.sampled_from([1, 3, 4]),
    samples=st.sampled_from([2, 4, 6]),
    channels=st.sampled_from([1, 16, 33]),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_sums_and_gradients_are_those_of_bags(seed, regions, bins, samples, channels):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(20, channels, generator=generator).to(DEVICE).requires_grad_()
    places = places_of(regions, bins, samples, len(table), generator)
    ours, theirs = region_sums(table, *places), bags(table, *places)
    assert torch.allclose(ours, theirs, atol=1e-5)
    weight = torch.randn(ours.shape, generator=generator).to(DEVICE)
    gradients = [torch.autograd.grad(sums, table, weight)[0] for sums in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_rows_of_less_precision_are_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, 16, generator=generator).bfloat16().to(DEVICE)
    places = places_of(4, 3, 6, len(table), generator)
    exact = bags(table.float(), *places)
    error = (region_sums(table, *places).float() - exact).abs()
    assert (error <= 2**-7 * exact.abs() + 1e-6).all()  # one rounding, of the sum; the interpreter cuts off


@pytest.mark.filterwarnings("ignore:No CUDA runtime is found")
def test_the_operation_keeps_the_rules_of_operations():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, 16, generator=generator).to(DEVICE).requires_grad_()
    torch.library.opcheck(region_sums, (table, *places_of(2, 3, 4, len(table), generator)))


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_pools_what_a_cpu_pools_and_the_same_bytes_again(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 32, -(-300 // stride), -(-400 // stride)) for stride in STRIDES]
    features = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    corners = torch.rand(3, 50, 2, 2, generator=generator).sort(dim=2).values * 1.6 - 0.3
    boxes, image_index = corners.flatten(2) * torch.tensor([400, 300, 400, 300]), torch.tensor([1, 0, 1])
    weight = torch.randn(150, 49, 32, generator=generator)

    def pooled(device):
        given = [feature.to(device).requires_grad_() for feature in features]
        pyramid = Pyramid.of(given)
        assert pyramid.kernel is (device == "cuda")
        regions = pool_regions(pyramid, boxes.to(device), image_index.to(device), 7, 2)
        gradients = torch.autograd.grad(regions, given, weight.to(device, regions.dtype))
        return [part.float().cpu() for part in (regions, *gradients)]

    first, again, expected = pooled("cuda"), pooled("cuda"), pooled("cpu")
    for ours, same, theirs in zip(first, again, expected, strict=True):
        assert torch.equal(ours, same)
        assert (ours - theirs).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * theirs.norm()


@on_a_gpu
def test_on_a_gpu_boxes_have_a_gradient():
    """Guidance climbs it."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(1, 8, 64 // stride, 64 // stride, generator=generator) for stride in STRIDES]
    slopes = []
    for device in ("cuda", "cpu"):
        boxes = torch.tensor([[[8.0, 9.0, 41.0, 30.0]]], device=device, requires_grad=True)
        pyramid = Pyramid.of([feature.to(device) for feature in features])
        regions = pool_regions(pyramid, boxes, torch.zeros(1, dtype=torch.long, device=device), 7, 2)
        slopes.append(torch.autograd.grad(regions.square().sum(), boxes)[0].cpu())
    assert torch.allclose(*slopes, rtol=1e-3)

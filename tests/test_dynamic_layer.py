"""The layer of the proposals' weights: what an ordinary linear layer gives, cut in two, and its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from noisebox.models.diffusiondet.dynamic_layer import MANY, halves


def layer_and_rows(rows, width, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(width, 2 * outputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    towards = torch.randn(rows, 2 * outputs, generator=generator)
    return layer, torch.randn(rows, width, generator=generator).requires_grad_(), towards


def gradients(output, layer, rows, towards, training=True):
    """Those of the rows and, in training alone, of the parameters."""
    return torch.autograd.grad(output, (rows, *(layer.parameters() if training else ())), towards)


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 33),
    outputs=st.integers(1, 50),
    training=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_equals_a_linear_layer_and_its_gradients(rows, width, outputs, training, seed):
    layer, given_rows, towards = layer_and_rows(rows, width, outputs, seed)
    layer.train(training)
    whole, parts = layer(given_rows), halves(layer, given_rows)
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, rtol=1e-5, atol=1e-4)
    expected = gradients(whole, layer, given_rows, towards, training)
    found = gradients(parts, layer, given_rows, towards.chunk(2, dim=-1), training)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [30, MANY])
@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_products_are_those_of_the_layer(training, count):
    layer, rows, towards = layer_and_rows(count, 16, 24)
    layer.train(training)
    with torch.autocast("cpu", torch.bfloat16):
        whole, parts = layer(rows), halves(layer, rows)
    assert {part.dtype for part in parts} == {torch.bfloat16}
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, rtol=2**-7, atol=2**-7)
    expected = gradients(whole, layer, rows, towards.bfloat16(), training)
    found = gradients(parts, layer, rows, towards.bfloat16().chunk(2, dim=-1), training)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= 2**-7 * theirs.abs().max()  # sums of two products round apart


def test_frozen_weights_get_no_gradient():
    layer, rows, towards = layer_and_rows(30, 16, 24)
    (expected,) = torch.autograd.grad(layer(rows), rows, towards)
    layer.requires_grad_(False)
    (found,) = torch.autograd.grad(halves(layer, rows), rows, towards.chunk(2, dim=-1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_halves_share_no_memory(training):
    layer, rows, _ = layer_and_rows(30, 16, 24)
    layer.train(training)
    first, second = halves(layer, rows)
    assert first.is_contiguous()
    assert second.is_contiguous()
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()

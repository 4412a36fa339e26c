"""Winograd's algorithm against PyTorch's convolution, forward and backward, and where a model takes it."""

import pytest
import torch
from drawn import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import make_batch, make_detector, small_config
from torch import nn
from torch.nn import functional as F

from noisebox.machine import placed
from noisebox.models import winograd
from noisebox.models.winograd import FEWEST_CHANNELS, FEWEST_TILES, WinogradConv2d, convolve, use_winograd
from noisebox.training.step import Trainer

SIDE = 4 * int(FEWEST_TILES**0.5)  # of the smallest square map that has enough tiles


def layer_and_maps(images=1, channels=FEWEST_CHANNELS):
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(normal(*layer.weight.shape, seed=1) / 50)
    return layer, normal(images, channels, SIDE, SIDE)


@given(
    images=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    channels_last=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_equals_a_convolution_and_its_gradients(images, channels, size, channels_last, seed):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = normal(images, channels[0], *size, seed=seed, dtype=torch.float64).contiguous(memory_format=layout)
    weight = normal(channels[1], channels[0], 3, 3, seed=seed + 1, dtype=torch.float64)
    inputs = maps.requires_grad_(), weight.requires_grad_()
    ours, theirs = convolve(*inputs), F.conv2d(*inputs, padding=1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    towards = normal(*theirs.shape, seed=seed + 2, dtype=torch.float64)
    mine, reference = (torch.autograd.grad(result, inputs, towards) for result in (ours, theirs))
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_float32_keeps_its_tolerance():
    layer, maps = layer_and_maps()
    inputs = maps.requires_grad_(), layer.weight
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    ours, theirs = convolve(*inputs), F.conv2d(*exact, padding=1)
    towards = normal(*ours.shape, seed=2)
    found = [ours, *torch.autograd.grad(ours, inputs, towards)]
    expected = [theirs, *torch.autograd.grad(theirs, exact, towards.double())]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


def test_only_the_gradients_that_are_asked_for_are_taken():
    maps, weight = normal(1, 3, 8, 8), normal(2, 3, 3, 3, seed=1)
    for given_maps, given_weight in ((maps.clone().requires_grad_(), weight), (maps, weight.clone().requires_grad_())):
        convolve(given_maps, given_weight).sum().backward()
        plain_maps, plain_weight = (
            tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (given_maps, given_weight)
        )
        F.conv2d(plain_maps, plain_weight, padding=1).sum().backward()
        for ours, theirs in ((given_maps, plain_maps), (given_weight, plain_weight)):
            assert (ours.grad is None) == (theirs.grad is None)
            assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, atol=1e-4)


def test_an_image_has_the_same_bits_in_any_batch():
    layer, maps = layer_and_maps(images=2)
    with torch.no_grad():
        together = convolve(maps, layer.weight)
        assert all(torch.equal(convolve(maps[i, None], layer.weight)[0], together[i]) for i in range(2))


def test_a_layer_takes_it_for_large_maps_in_float32_alone(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 16)  # some processors multiply in bf16 a hundred times as slowly
    layer, maps = layer_and_maps(channels=16)
    plain, small = layer(maps), layer(maps[..., :-4])
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(maps)
    use_winograd(layer)
    assert type(layer) is WinogradConv2d
    taken = layer(maps)
    assert not torch.equal(taken, plain)
    torch.testing.assert_close(taken, plain, rtol=0, atol=2e-5 * plain.abs().max().item())
    assert torch.equal(layer(maps[..., :-4]), small)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(maps), half)


@pytest.mark.parametrize(
    "other",
    [
        {"kernel_size": 1, "padding": 0},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"in_channels": FEWEST_CHANNELS - 1},
    ],
)
def test_a_layer_that_does_not_fit_stays_as_it_is(other):
    shape = {"in_channels": FEWEST_CHANNELS, "out_channels": FEWEST_CHANNELS, "kernel_size": 3, "padding": 1}
    layer = nn.Conv2d(**(shape | other))
    use_winograd(layer)
    assert type(layer) is nn.Conv2d


def test_solver_winograd_is_for_training_its_teacher_and_evaluation():
    config = small_config(winograd=True, model={"hidden_dim": FEWEST_CHANNELS, "attention_heads": 8})
    models = [make_detector(hidden_dim=FEWEST_CHANNELS) for _ in range(3)]
    names = models[0].state_dict().keys()
    trainer = Trainer(config, models[0], teacher=models[1])
    placed(models[2], config)
    for model in models:
        taken = [name for name, module in model.named_modules() if isinstance(module, WinogradConv2d)]
        assert len(taken) == 4
        assert all(name.startswith("backbone.pyramid.layer_blocks") for name in taken)
        assert model.state_dict().keys() == names
    assert trainer.update(make_batch([0, 1]), 0)["loss_ce"] > 0
    plain = make_detector(hidden_dim=FEWEST_CHANNELS)
    placed(plain, small_config())
    assert not any(isinstance(module, WinogradConv2d) for module in plain.modules())

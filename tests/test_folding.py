"""Frozen norms folded into convolutions, against the network as its library computes it."""

import copy

import pytest
import timm
import torch
from drawn import normal
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from noisebox.models.backbone import Backbone
from noisebox.models.folding import FoldedConv2d, fold_frozen_norms
from noisebox.models.winograd import FEWEST_CHANNELS, FEWEST_TILES, WinogradConv2d, use_winograd
from noisebox.randomness import isolated


def frozen(name, seed=0):
    """A network with feature maps in float64 whose norms are not those of the start."""
    with isolated(seed, "weights"):
        network = freeze_batch_norm_2d(timm.create_model(name, features_only=True)).double()
    for index, norm in enumerate(norms(network)):
        draws = normal(4, len(norm.weight), seed=seed + index, dtype=torch.float64)
        norm.weight.copy_(1 + draws[0] / 4)
        norm.bias.copy_(draws[1] / 4)
        norm.running_mean.copy_(draws[2] / 4)
        norm.running_var.copy_(draws[3].exp())
    return network


def norms(network):
    return [module for module in network.modules() if isinstance(module, FrozenBatchNorm2d)]


def folded(network):
    return [module for module in network.modules() if isinstance(module, FoldedConv2d)]


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 20), ("resnet50", 53), ("resnet26d", 30), ("seresnext26d_32x4d", 30)],
)
def test_a_network_computes_and_learns_as_before(name, count):
    plain = frozen(name)
    network = copy.deepcopy(plain)
    fold_frozen_norms(network)
    assert len(folded(network)) == count
    assert network.state_dict().keys() == plain.state_dict().keys()
    images = normal(2, 3, 64, 96, seed=1, dtype=torch.float64)
    ours, theirs = network(images), plain(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for maps in (ours, theirs):
        sum(level.square().mean() for level in maps).backward()
    for mine, reference in zip(network.parameters(), plain.parameters(), strict=True):
        assert (mine.grad - reference.grad).abs().max() <= 1e-10 * reference.grad.abs().max()


def test_norms_that_come_with_a_checkpoint_are_those_that_count():
    network, other = frozen("resnet18"), frozen("resnet18", seed=100)
    fold_frozen_norms(network)
    images = normal(1, 3, 64, 64, dtype=torch.float64)
    network.load_state_dict(other.state_dict())
    torch.testing.assert_close(network(images), other(images), rtol=1e-9, atol=1e-9)


def test_a_copy_has_norms_of_its_own():
    network = frozen("resnet18")
    fold_frozen_norms(network)
    images = normal(1, 3, 64, 64, dtype=torch.float64)
    before = network(images)
    copied = copy.deepcopy(network)
    for norm in norms(copied):
        norm.weight.zero_()
    assert not torch.equal(copied(images)[-1], before[-1])
    assert all(torch.equal(*levels) for levels in zip(network(images), before, strict=True))


def test_a_norm_with_its_activation_stays_apart():
    network = freeze_batch_norm_2d(timm.create_model("efficientnet_b0", features_only=True))
    fold_frozen_norms(network)
    assert not folded(network)


def test_a_pretrained_backbone_is_folded_and_one_from_scratch_has_nothing_to_fold():
    assert len(folded(Backbone("resnet18", 16, pretrained=True, fetch_weights=False))) == 20
    assert not folded(Backbone("resnet18", 16))


def test_winograd_takes_a_folded_layer_with_its_norm():
    width, side = FEWEST_CHANNELS, 4 * int(FEWEST_TILES**0.5)
    norm = FrozenBatchNorm2d(width)
    norm.weight.copy_(normal(width, seed=1))
    norm.bias.copy_(normal(width, seed=2))
    series = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), norm)
    maps = normal(1, width, side, side)
    plain = series(maps)
    fold_frozen_norms(series)
    use_winograd(series)
    assert isinstance(series[0], FoldedConv2d)
    assert isinstance(series[0], WinogradConv2d)
    taken = series(maps)
    assert not torch.equal(taken, plain)
    torch.testing.assert_close(taken, plain, rtol=0, atol=2e-5 * plain.abs().max().item())

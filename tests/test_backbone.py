"""Backbones: shapes and strides, independence of the batch, frozen pretrained statistics, clear refusals."""

import pytest
import torch
from small_detector import make_detector
from torch import nn

from noisebox.config import SolverConfig
from noisebox.errors import UserError
from noisebox.models.backbone import Backbone
from noisebox.randomness import isolated, normal
from noisebox.training.optim import build_optimizer


def backbone(name, **options):
    with isolated(0, "weights"):
        return Backbone(name, hidden_dim=16, **options).eval()


@pytest.mark.parametrize("name", ["slim", "resnet18", "swin_tiny_patch4_window7_224", "regnety_002"])
def test_four_levels_of_one_width_at_any_image_size(name):
    with torch.no_grad():
        levels = backbone(name)(torch.rand(1, 3, 70, 100), torch.tensor([[70, 100]]))
    assert [tuple(level.shape) for level in levels] == [(1, 16, 96 // s, 128 // s) for s in (4, 8, 16, 32)]
    assert all(torch.isfinite(level).all() for level in levels)


@pytest.mark.parametrize("name", ["slim", "regnety_002"])
def test_an_image_does_not_depend_on_the_batch_it_is_in(name):
    model = backbone(name).train()
    images = normal((4, 3, 64, 64), 0, "images").sigmoid()
    sizes = torch.tensor([[64, 64]] * 4)
    with torch.no_grad():
        together = model(images, sizes)
        for index in range(4):
            alone = model(images[index, None], sizes[:1])
            for one, all_ in zip(alone, together, strict=True):
                assert torch.allclose(one[0], all_[index], atol=1e-4)


def test_what_lies_in_the_padding_does_not_matter():
    model = backbone("slim")
    images = normal((1, 3, 64, 64), 0, "images").sigmoid()
    other = images.clone()
    other[..., 40:] = 0.5
    with torch.no_grad():
        for one, two in zip(
            model(images, torch.tensor([[64, 40]])), model(other, torch.tensor([[64, 40]])), strict=True
        ):
            assert torch.equal(one, two)


def test_training_from_scratch_uses_no_batch_norm_and_draws_nothing():
    model = backbone("swin_tiny_patch4_window7_224").train()
    state = torch.get_rng_state()
    images, sizes = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([[64, 64]])
    with torch.no_grad():
        first, second = model(images, sizes), model(images, sizes)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone("resnet18").modules())


def test_a_pretrained_network_keeps_its_batch_norm_frozen():
    model = backbone("resnet18", pretrained=True, fetch_weights=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    loss = sum(level.square().mean() for level in model(torch.rand(2, 3, 64, 64), torch.tensor([[64, 64]] * 2)))
    loss.backward()
    assert len(before) == 2 * 20
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(".bn" in name for name, _ in model.named_parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_hub_out_of_reach_is_told_in_one_sentence(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="weights of 'resnet18' could not be fetched") as error:
        backbone("resnet18", pretrained=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("resnet81", False, "did you mean 'resnet18'"),
        ("slim", True, "no weights for backbone 'slim'"),
        ("vit_tiny_patch16_224", False, "strides"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(name, pretrained, message):
    with pytest.raises(UserError, match=message):
        backbone(name, pretrained=pretrained)


STAGES = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize(("stages", "frozen"), [(0, []), (1, STAGES[:2]), (2, STAGES[:3]), (5, STAGES)])
def test_the_first_stages_can_be_frozen(stages, frozen):
    model = backbone("slim")
    model.freeze(stages)
    still = [name.partition(".")[0] for name, weight in model.body.named_parameters() if not weight.requires_grad]
    assert list(dict.fromkeys(still)) == frozen
    assert all(weight.requires_grad for weight in model.pyramid.parameters())


def test_a_backbone_without_a_stem_before_its_stages_cannot_be_frozen_in_part():
    model = backbone("hrnet_w18_small")
    model.freeze(0)
    with pytest.raises(UserError, match=r"model.freeze_at: this backbone is not a stem and stages"):
        model.freeze(2)


def test_what_is_frozen_stays_out_of_the_optimiser():
    detector = make_detector(freeze_at=2)
    optimizer = build_optimizer(detector, SolverConfig())
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left = {name.split(".")[2] for name, parameter in detector.named_parameters() if id(parameter) not in moved}
    assert left == set(STAGES[:3])

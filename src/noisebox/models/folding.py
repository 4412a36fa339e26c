"""Frozen BatchNorm folded into the convolution before it: its scale into the weights, its shift into the bias.

A frozen norm multiplies each channel by one number and adds another. Apart, that is two passes over the map and one
over its gradient; folded, it is a product with the weights, which are far fewer. Both give the same up to rounding.
"""

from collections.abc import Iterator
from typing import cast

from timm.models import FeatureListNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


def fold_frozen_norms(body: nn.Module) -> None:
    """Fold the norms of which it is known what they follow: in a series of modules, and in the blocks of a ResNet.

    In place: parameters and buffers keep their names, and weights may be loaded later.
    """
    for module in body.modules():
        for layer, norm in _followed(module):
            if type(layer) is nn.Conv2d and type(norm) is FrozenBatchNorm2d:
                # Networks come from libraries that ask for no other class.
                layer.__class__, norm.__class__ = FoldedConv2d, FoldedNorm
                # In a tuple, lest the layer call the norm's buffers its own.
                cast(FoldedConv2d, layer).norm = (norm,)


def _followed(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs of children of which the second takes what the first gives."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential | FeatureListNet):
        yield from zip(children.values(), list(children.values())[1:], strict=False)
    elif isinstance(module, BasicBlock | Bottleneck):
        numbers = (name.removeprefix("conv") for name in children if name.startswith("conv"))
        yield from ((children[f"conv{number}"], children[f"bn{number}"]) for number in numbers)


class FoldedConv2d(nn.Conv2d):
    """A convolution whose result is what the norm after it would give."""

    norm: tuple[FrozenBatchNorm2d]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (norm,) = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        shift = shift if bias is None else shift + bias * scale
        maps: Tensor = super()._conv_forward(input, weight * scale[:, None, None, None], shift)
        return maps


class FoldedNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    """A norm that the convolution before it has done already."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` as it is."""
        return x

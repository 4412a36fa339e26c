"""Backbones: any timm network with feature maps at strides 4 to 32, alone or followed by a feature pyramid.

Normalisation never looks at the batch: networks trained from scratch get GroupNorm in place of BatchNorm, pretrained
ones keep their BatchNorm with statistics and affine parameters frozen. Dropout and stochastic depth are off, because
they would draw from the global generators.
"""

import difflib
import math
from collections import OrderedDict
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, DropPath, GroupNormAct, freeze_batch_norm_2d
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from noisebox.config.run import IMAGENET_MEAN, IMAGENET_STD, Colour
from noisebox.errors import UserError
from noisebox.models.folding import fold_frozen_norms

STRIDES = (4, 8, 16, 32)

# A network of our own for CPUs, in timm's terms: ResNet-18 with half the blocks and a quarter of the width.
SLIM = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "stem_type": "deep", "stem_width": 8}


class FeatureMaps(nn.Module):
    """Images in, the network's own feature maps out, one for each of `strides`, which are the last of STRIDES.

    `name` is `slim` or any timm model with feature maps at these strides. With `pretrained`, timm's weights are loaded,
    unless `fetch_weights` is off because a checkpoint will bring them. `mean` and `std` are those of the colours red,
    green and blue, from 0 to 1. Raises UserError when the name is unknown, the strides do not fit, or the weights
    cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        fetch_weights: bool = True,
        strides: tuple[int, ...] = STRIDES,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
    ) -> None:
        super().__init__()
        body = _create(name, pretrained and fetch_weights, len(strides))
        found = tuple(body.feature_info.reduction())
        if found != strides:
            raise UserError(f"model.backbone: {name!r} has feature maps at strides {found}; {strides} are needed")
        _switch_off_dropout(body)
        _pad_before_shifts(body)
        self.body = _with_frozen_norms(body) if pretrained else _with_group_norm(body)
        self.channels: list[int] = body.feature_info.channels()
        # Transformers with feature maps (N, H, W, C) leave their stages unnormalised (Swin, Liu et al. 2021).
        self.channels_last = getattr(body, "output_fmt", None) == "NHWC"
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in self.channels] if self.channels_last else [])
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, channels, ceil(H / stride), ceil(W / stride)), with H and W rounded up to multiples of 32.

        `images`: (B, 3, H, W) in [0, 1]. `sizes_hw`: (B, 2), the sizes without padding; the padding is set to 0 after
        normalisation, as if the mean colour were beyond the image.
        """
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)[:, None] < sizes_hw[:, 0, None, None]
        columns = torch.arange(width, device=images.device) < sizes_hw[:, 1, None, None]
        normalised = (images - self.mean) / self.std * (rows & columns)[:, None]
        padded = F.pad(normalised, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        # Channels last is what convolutions are fastest in, on either device, and what RoIAlign reads rows of.
        features = self.body(padded.contiguous(memory_format=torch.channels_last))
        if self.channels_last:
            features = [norm(level).permute(0, 3, 1, 2) for norm, level in zip(self.norms, features, strict=True)]
        return tuple(features)

    def freeze(self, stages: int) -> None:
        """Leave the parameters of the first `stages` untrained: 1 is the stem, before the stages that end in maps.

        Raises UserError when the network is not so made.
        """
        network: Any = self.body
        ends = {name.replace(".", "_") for name in network.feature_info.module_name()}
        children = dict(self.body.named_children())
        if stages and not ends <= children.keys():
            raise UserError("model.freeze_at: this backbone is not a stem and stages, one after another; leave it at 0")
        begun = 1
        for name, child in children.items():
            begun += name in ends
            if begun <= stages:
                child.requires_grad_(False)


class Backbone(FeatureMaps):
    """Images in, feature maps p2 to p5 out (Lin et al. 2017), at strides 4, 8, 16, 32, each with `hidden_dim` channels.

    Raises UserError as `FeatureMaps` does.
    """

    def __init__(
        self,
        name: str,
        hidden_dim: int,
        pretrained: bool = False,
        fetch_weights: bool = True,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
    ) -> None:
        super().__init__(name, pretrained, fetch_weights, mean=mean, std=std)
        self.pyramid = FeaturePyramidNetwork(self.channels, hidden_dim)

    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, ...]:
        """Four maps (B, hidden_dim, ceil(H / stride), ceil(W / stride)); images and sizes as for `FeatureMaps`."""
        features = super().forward(images, sizes_hw)
        levels = OrderedDict((f"p{index}", level) for index, level in enumerate(features, start=2))
        return tuple(self._top_down(levels).values())

    # Compiled, its enlarged maps would get their gradients by sums of scattered parts, which takes a GPU far longer.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _top_down(self, levels: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        found: OrderedDict[str, Tensor] = self.pyramid(levels)
        return found


def _create(name: str, pretrained: bool, count: int) -> Any:
    """The timm network that returns its last `count` feature maps."""
    last = tuple(range(-count, 0))
    if name == "slim":
        if pretrained:
            raise UserError("model.pretrained: there are no weights for backbone 'slim'; set it to false")
        return timm.create_model("resnet18", features_only=True, out_indices=last, **SLIM)
    if not timm.models.is_model(name):
        near = difflib.get_close_matches(name, ["slim", *timm.list_models()], 1)
        hint = f"did you mean {near[0]!r}?" if near else "timm.list_models() lists what there is"
        raise UserError(f"model.backbone: {name!r} is no model of timm; {hint}")
    options: dict[str, Any] = {}
    if timm.models.is_model_in_modules(name, {"swin_transformer", "swin_transformer_v2"}):
        # Any image size; windows shift in every stage, also in those that fit in one window at the nominal size.
        options = {"strict_img_size": False, "always_partition": True}
    try:
        return timm.create_model(name, pretrained, features_only=True, out_indices=last, **options)
    except Exception as error:  # whatever the hub's client and what lies below it may raise
        if not pretrained:
            raise
        raise UserError(
            f"model.pretrained: the weights of {name!r} could not be fetched ({type(error).__name__}); give access to "
            "huggingface.co, or copy a filled cache here and point HF_HOME to it, or set pretrained to false"
        ) from error


def _with_frozen_norms(body: nn.Module) -> nn.Module:
    frozen: nn.Module = freeze_batch_norm_2d(body)
    fold_frozen_norms(frozen)
    return frozen


def _with_group_norm(body: nn.Module) -> nn.Module:
    """`body` with each BatchNorm replaced by a GroupNorm (Wu and He 2018) that starts with the same scale and shift."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _group_norm_like(child))
    return body


def _group_norm_like(batch_norm: nn.BatchNorm2d) -> nn.Module:
    """At most 32 groups, of at least 4 channels where the width allows; a fused activation is kept."""
    channels = batch_norm.num_features
    norm = GroupNormAct(channels, math.gcd(channels, channels // 4, 32), eps=batch_norm.eps, apply_act=False)
    norm.load_state_dict({"weight": batch_norm.weight, "bias": batch_norm.bias})
    if isinstance(batch_norm, BatchNormAct2d):
        norm.drop, norm.act = batch_norm.drop, batch_norm.act
    return norm  # type: ignore[no-any-return]


def _switch_off_dropout(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0


class PaddedWindows(SwinTransformerBlock):  # type: ignore[misc]
    """A block of Swin that pads its map to whole windows before it shifts them, as Swin's own detection code does;
    timm's shifts first, and so has other neighbours at the borders of maps that are no whole number of windows."""

    def _attn(self, x: Tensor) -> Tensor:
        """`x` (N, H, W, C) to the same shape."""
        height, width = x.shape[1:3]
        down, across = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % across, 0, -height % down))
        attended: Tensor = super()._attn(padded)
        return attended[:, :height, :width]


def _pad_before_shifts(body: nn.Module) -> None:
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = PaddedWindows  # timm names the class of its blocks nowhere that one could choose it

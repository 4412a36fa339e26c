"""What our tensors are called by Detectron2 and the public DiffusionDet, and which backbones both know.

Names are translated one way, ours to theirs; the names of a whole model so translated are the way back.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

BOTTOM_UP = "backbone.bottom_up."
OWN_BACKBONE = "backbone.body."  # where ours stand in its place


class ResNet(NamedTuple):
    """What tells ResNets apart: the blocks of each stage, and whether a block has three convolutions."""

    blocks: tuple[int, ...]
    bottleneck: bool


class Swin(NamedTuple):
    """What tells Swin Transformers apart: the blocks of each stage, the width of the first, the side of a window."""

    blocks: tuple[int, ...]
    width: int
    window: int


RESNETS = {
    ResNet((2, 2, 2, 2), False): "resnet18",
    ResNet((3, 4, 6, 3), False): "resnet34",
    ResNet((3, 4, 6, 3), True): "resnet50",
    ResNet((3, 4, 23, 3), True): "resnet101",
    ResNet((3, 8, 36, 3), True): "resnet152",
}
SWINS = {
    Swin((2, 2, 6, 2), 96, 7): "swin_tiny_patch4_window7_224",
    Swin((2, 2, 18, 2), 96, 7): "swin_small_patch4_window7_224",
    Swin((2, 2, 18, 2), 128, 7): "swin_base_patch4_window7_224",
    Swin((2, 2, 18, 2), 128, 12): "swin_base_patch4_window12_384",
    Swin((2, 2, 18, 2), 192, 7): "swin_large_patch4_window7_224",
    Swin((2, 2, 18, 2), 192, 12): "swin_large_patch4_window12_384",
}
# What MODEL.SWIN.SIZE of the public DiffusionDet stands for: timm's network with the weights it starts from.
SWIN_NETWORKS = {
    "T": "swin_tiny_patch4_window7_224.ms_in1k",
    "S": "swin_small_patch4_window7_224.ms_in1k",
    "B": "swin_base_patch4_window7_224.ms_in1k",
    "B-22k": "swin_base_patch4_window7_224.ms_in22k",
    "B-22k-384": "swin_base_patch4_window12_384.ms_in22k",
    "L-22k": "swin_large_patch4_window7_224.ms_in22k",
    "L-22k-384": "swin_large_patch4_window12_384.ms_in22k",
}
# The size of each network; of those that differ in their weights alone, the first.
SWIN_SIZES = {weights.partition(".")[0]: size for size, weights in reversed(SWIN_NETWORKS.items())}

_RULES: tuple[tuple[str, str | Callable[["re.Match[str]"], str]], ...] = (
    (r"backbone\.pyramid\.inner_blocks\.(\d)\.0", lambda found: f"backbone.fpn_lateral{int(found[1]) + 2}"),
    (r"backbone\.pyramid\.layer_blocks\.(\d)\.0", lambda found: f"backbone.fpn_output{int(found[1]) + 2}"),
    (r"backbone\.body\.layer(\d)\.", lambda found: f"{BOTTOM_UP}res{int(found[1]) + 1}."),  # stages of a ResNet
    (r"backbone\.body\.(conv1|bn1)\.", rf"{BOTTOM_UP}stem.\1."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (rf"^({re.escape(BOTTOM_UP)}.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    # timm merges patches where a stage of Swin begins, the public code where it ends.
    (r"backbone\.body\.layers_(\d)\.downsample\.", lambda found: f"{BOTTOM_UP}layers.{int(found[1]) - 1}.downsample."),
    (r"backbone\.body\.layers_(\d)\.", rf"{BOTTOM_UP}layers.\1."),
    (r"backbone\.body\.patch_embed\.", f"{BOTTOM_UP}patch_embed."),
    (r"backbone\.norms\.(\d)\.", rf"{BOTTOM_UP}norm\1."),
)


def public_name(name: str) -> str:
    """The public name of a tensor of ours; those of the head are the same."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def backbone_of(name: str) -> str | None:
    """The network, one of RESNETS and SWINS, that a backbone's name in timm stands for; None where it is another."""
    network = name.partition(".")[0]  # what follows names weights
    return network if network in (*RESNETS.values(), *SWINS.values()) else None

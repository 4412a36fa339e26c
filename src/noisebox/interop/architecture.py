"""What the tensors of a public checkpoint, by their names and shapes, say about the network they are from."""

import math
import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from noisebox.errors import UserError
from noisebox.interop.names import BOTTOM_UP, RESNETS, SWINS, ResNet, Swin
from noisebox.interop.weight_files import WeightFile

HEAD = "head.head_series."
STAGE = f"{HEAD}0."
SCHEDULE_LENGTH = "betas"
CAFFE_STRIDE = (
    "the stride of their stages lies in the 1x1 convolution, as in Caffe's, and ours in the 3x3, where torchvision's "
    "have it"
)


def with_full_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names they have in a detector: those of a backbone alone, as a classifier is published, get
    what stands before them there."""
    if any(name.startswith(BOTTOM_UP) for name in tensors):
        return tensors
    prefix = "" if any(name.startswith("bottom_up.") for name in tensors) else "bottom_up."
    return {f"backbone.{prefix}{name}": tensor for name, tensor in tensors.items()}


def other_heads(tensors: Iterable[str]) -> list[str]:
    """What a file holds beside a backbone, by the first words of the names."""
    first = {name.partition(".")[0] for name in tensors if "." in name}
    return sorted(first - {"backbone"})


def backbone_in(file: WeightFile, tensors: dict[str, Tensor], stride_in_3x3: bool) -> str:
    """The network, in timm's words, whose tensors have these full names.

    Raises UserError, saying why, where there is none or Noisebox has none that computes the same.
    """
    if any(name.endswith(("_branch2a_w", "res_conv1_bn_s", "conv1_w")) for name in tensors):
        raise UserError(
            f"{file.path} holds a ResNet of Caffe2 (MSRA's): {CAFFE_STRIDE}, so it would compute something else; take "
            "torchvision-R-50.pkl, which the public DiffusionDet starts from"
        )
    if f"{BOTTOM_UP}patch_embed.proj.weight" in tensors:
        return _swin(file, tensors)
    if f"{BOTTOM_UP}stem.conv1.weight" in tensors:
        return _resnet(file, tensors, stride_in_3x3)
    raise UserError(
        f"{file.path} holds no backbone that Noisebox knows, a ResNet or Swin Transformer with Detectron2's names; it "
        f"has {next(iter(file.tensors))}, for example"
    )


def _resnet(file: WeightFile, tensors: dict[str, Tensor], stride_in_3x3: bool) -> str:
    blocks = tuple(_count(tensors, rf"{BOTTOM_UP}res{stage}\.(\d+)\.") for stage in (2, 3, 4, 5))
    bottleneck = f"{BOTTOM_UP}res2.0.conv3.weight" in tensors
    name = RESNETS.get(ResNet(blocks, bottleneck))
    if name is None:
        raise UserError(
            f"{file.path} holds a ResNet with {', '.join(map(str, blocks))} blocks a stage; known are: "
            f"{', '.join(RESNETS.values())}"
        )
    means = [tensor for key, tensor in tensors.items() if key.endswith(".norm.running_mean")]
    if not means:
        raise UserError(
            f"{file.path} holds a {name} without the statistics of batch norms; one trained with GroupNorm or with "
            "LayerNorm does not fit"
        )
    if bottleneck and not stride_in_3x3 and not any(mean.any() for mean in means):
        raise UserError(
            f"{file.path} holds a {name} whose batch norms have means of 0, so it comes from Caffe's weights (MSRA's): "
            f"{CAFFE_STRIDE}; if it was trained with STRIDE_IN_1X1: False nevertheless, say so with --stride-in-3x3"
        )
    return name


def _swin(file: WeightFile, tensors: dict[str, Tensor]) -> str:
    blocks = tuple(_count(tensors, rf"{BOTTOM_UP}layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4))
    width = len(tensors[f"{BOTTOM_UP}patch_embed.proj.weight"])
    table = tensors.get(f"{BOTTOM_UP}layers.0.blocks.0.attn.relative_position_bias_table")
    window = 0 if table is None else (math.isqrt(len(table)) + 1) // 2
    name = SWINS.get(Swin(blocks, width, window))
    if name is None:
        raise UserError(
            f"{file.path} holds a Swin Transformer of width {width} with {', '.join(map(str, blocks))} blocks a stage "
            f"and windows of {window}; known are: {', '.join(SWINS.values())}"
        )
    return name


def pyramid_width(tensors: dict[str, Tensor]) -> int | None:
    """The channels of the feature pyramid; None where there is none."""
    output = tensors.get("backbone.fpn_output2.weight")
    return None if output is None else len(output)


def head_config(file: WeightFile) -> tuple[dict[str, Any], int]:
    """The keys of DiffusionDetConfig that a DiffusionDet's head tells, and how many classes it has.

    Raises UserError when it lacks a tensor that tells one, or cannot be a head of ours.
    """
    width = _size(file, "class_logits.weight", 1)
    narrow = _size(file, "inst_interact.norm1.weight", 0)
    layers = _size(file, "inst_interact.dynamic_layer.weight", 0)
    if layers != 2 * width * narrow:
        raise UserError(
            f"{file.path}: {STAGE}inst_interact.dynamic_layer.weight has {layers} rows, {2 * width * narrow} would "
            "fit: Noisebox has two dynamic convolutions, NUM_DYNAMIC 2"
        )
    keys = {
        "num_heads": _count(file.tensors, rf"{HEAD}(\d+)\."),
        "hidden_dim": width,
        "dim_dynamic": narrow,
        "dim_feedforward": _size(file, "linear1.weight", 0),
        "num_cls": _count(file.tensors, rf"{STAGE}cls_module\.(\d+)\.") // 3 + 1,
        "num_reg": _count(file.tensors, rf"{STAGE}reg_module\.(\d+)\.") // 3 + 1,
        "pooler_resolution": math.isqrt(_size(file, "inst_interact.out_layer.weight", 1) // width),
    }
    if SCHEDULE_LENGTH in file.tensors:
        keys["timesteps"] = len(file.tensors[SCHEDULE_LENGTH])
    return keys, _size(file, "class_logits.weight", 0)


def _size(file: WeightFile, name: str, dimension: int) -> int:
    tensor = file.tensors.get(f"{STAGE}{name}")
    if tensor is None or tensor.dim() <= dimension:
        raise UserError(f"{file.path}: {STAGE}{name} is missing, so this is no head of the public DiffusionDet")
    return tensor.shape[dimension]


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the pattern finds at the start of a name."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1

"""The public DiffusionDet, run by Detectron2, with weights that say something: the outside truth for imported ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

REASON = "Detectron2 and the public DiffusionDet are on no package index: see README"
HEAD = {  # a head that is quick; the backbones are of full size
    "NUM_CLASSES": 5,
    "NUM_PROPOSALS": 60,
    "NUM_HEADS": 3,
    "NHEADS": 4,
    "HIDDEN_DIM": 64,
    "DIM_DYNAMIC": 16,
    "DIM_FEEDFORWARD": 128,
}
NETWORKS = {
    "resnet18": ("build_resnet_fpn_backbone", {"RESNETS.DEPTH": 18, "RESNETS.RES2_OUT_CHANNELS": 64}),
    "resnet50": ("build_resnet_fpn_backbone", {"RESNETS.DEPTH": 50}),
    "resnet101": ("build_resnet_fpn_backbone", {"RESNETS.DEPTH": 101}),
    "swin_base_patch4_window7_224": ("build_swintransformer_fpn_backbone", {"SWIN.SIZE": "B-22k"}),
}


def empty_config() -> Any:
    """Detectron2's configuration with the keys of DiffusionDet."""
    pytest.importorskip("detectron2", reason=REASON)
    module = pytest.importorskip("diffusiondet", reason=REASON)
    from detectron2.config import get_cfg

    cfg = get_cfg()
    module.add_diffusiondet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def public_config(network: str, **head: Any) -> Any:
    cfg = empty_config()
    builder, keys = NETWORKS[network]
    stages = [f"swin{k}" for k in range(4)] if "SWIN.SIZE" in keys else [f"res{k}" for k in range(2, 6)]
    values = {
        "META_ARCHITECTURE": "DiffusionDet",
        "BACKBONE.NAME": builder,
        "RESNETS.STRIDE_IN_1X1": False,
        "RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "FPN.IN_FEATURES": stages,
        "FPN.OUT_CHANNELS": (HEAD | head)["HIDDEN_DIM"],
        "ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
        "ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "PIXEL_MEAN": [123.675, 116.280, 103.530],
        "PIXEL_STD": [58.395, 57.120, 57.375],
        **keys,
        **{f"DiffusionDet.{key}": value for key, value in (HEAD | head).items()},
    }
    cfg.merge_from_list([word for key, value in values.items() for word in (f"MODEL.{key}", value)])
    return cfg


def build_public(cfg: Any, seed: int = 0) -> Any:
    """The public model, in eval mode, with random weights: scores around one half, batch norms that do something."""
    from detectron2.modeling import build_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(cfg).eval()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                enliven(name, value)
    return model


def enliven(name: str, value: torch.Tensor) -> None:
    """Give a tensor, by its public name, random values where fresh ones would hide a mistake."""
    if name.endswith("running_var"):
        value.uniform_(0.5, 2.0)
    elif name.endswith("running_mean"):
        value.normal_(0, 0.3)
    elif ".norm" in name and name.endswith("weight"):
        value.uniform_(0.4, 0.9)
    elif name.endswith("class_logits.bias"):
        value.normal_(0, 0.5)
    elif "bias" in name:  # of layers, and of positions in a window
        value.normal_(0, 0.1)
    elif name.endswith("class_logits.weight"):
        value.mul_(2.0)
    elif name.endswith("bboxes_delta.weight"):
        value.mul_(0.3)  # as of trained ones, whose stages bring boxes closer and rounding with them


@contextmanager
def same_noise(*shape: int) -> Iterator[Callable[[], None]]:
    """Inside, both samplers start from the same boxes of `shape` (N, P, 4) whenever what is yielded has been called.
    What they draw later is one box for all proposals, so that it does not matter in which order they keep them.

    The public one draws from torch's global generator, ours by `_gaussian`.
    """
    from noisebox.diffusion.sampler import BoxSampler

    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(call)) for call in range(10)]
    waiting: list[torch.Tensor] = []

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return waiting.pop(0)

    def draw_for(given: Any, *size: Any, **_: Any) -> torch.Tensor:
        wanted = given.shape if isinstance(given, torch.Tensor) else (given, *size) if size else given
        return draw()[: wanted[0], : wanted[1]]

    def again() -> None:
        waiting[:] = [drawn[0], *(later[:1, :1].expand(shape) for later in drawn[1:])]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", draw_for)
        patch.setattr(torch, "randn_like", draw_for)
        patch.setattr(BoxSampler, "_gaussian", draw)
        yield again

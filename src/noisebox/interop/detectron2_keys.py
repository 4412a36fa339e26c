"""The table of Detectron2's keys: what each means here, and how its value is converted.

A key is in one of three lists. KEYS have a place: below `recipe` (a file of params/recipes/), `scale` (a file of
params/scales/), `sampling` (how --eval-only samples) or `run` (this training). FIXED have one value here, and why.
UNREAD is what DiffusionDet does not look at in Detectron2 either. All else is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from noisebox.config.diffusiondet import DiffusionDetConfig, LossConfig, SamplerConfig
from noisebox.interop.names import SWIN_NETWORKS

OWN = "MODEL.DiffusionDet."
IMAGENET_WEIGHTS = r"detectron2://ImageNetPretrained/torchvision[/-]R-\d+\.pkl|(.*/)?(torchvision-)?R-\d+\.pkl"
SWIN_WEIGHTS = r"(.*/)?swin_[a-z0-9_]+\.(pkl|pth)"
SAMPLERS = "TrainingSampler", "RepeatFactorTrainingSampler"
RESNET, SWIN = "build_resnet_fpn_backbone", "build_swintransformer_fpn_backbone"

# How the public code samples, which has a key for suppression alone: several steps without the last, as `public` says.
PUBLIC_SAMPLER = SamplerConfig(eta=1.0, box_renewal=True, renewal_threshold=0.5, ensemble="public", nms_threshold=0.5)
WITHOUT_NMS = 1.0  # the threshold that no two boxes are above

Of = Callable[[str], Any]  # the value of another key


class _Nothing:
    """What a key comes to that has nothing to say."""


NOTHING = _Nothing()


def _same(value: Any, of: Of) -> Any:
    return value


@dataclass(frozen=True)
class Key:
    """A key with a place. `convert(value, of)` gives what stands there, or NOTHING, and raises ValueError, saying what
    would fit. `needs`: the switch without which it has no effect."""

    name: str
    default: Any
    place: str
    convert: Callable[[Any, Of], Any] = _same
    needs: str | None = None


@dataclass(frozen=True)
class ValueOf:
    """The one value that fits where it is that of another key."""

    name: str


def is_imagenet(weights: str) -> bool:
    """Whether a name of weights is that of a backbone trained on ImageNet, as Detectron2 and DiffusionDet name them."""
    return bool(re.fullmatch(f"{IMAGENET_WEIGHTS}|{SWIN_WEIGHTS}", weights))


# Conversions


def _one_of(**meanings: Any) -> Callable[[Any, Of], Any]:
    def convert(value: Any, of: Of) -> Any:
        if value not in meanings:
            raise ValueError(f"must be one of {', '.join(meanings)}, not {value!r}")
        return meanings[value]

    return convert


def _or_none(value: Any, of: Of) -> Any:
    """0 is all there are."""
    return value or None


def _backbone(value: str, of: Of) -> str:
    if value == SWIN:
        size = of("MODEL.SWIN.SIZE")
        if size not in SWIN_NETWORKS:
            raise ValueError(f"MODEL.SWIN.SIZE must be one of {', '.join(SWIN_NETWORKS)}, not {size!r}")
        return SWIN_NETWORKS[size]
    if value == RESNET:
        return f"resnet{of('MODEL.RESNETS.DEPTH')}.tv_in1k"
    if value.startswith("build_"):
        raise ValueError(f"must be {RESNET}, {SWIN} or the name of a backbone of timm, not {value!r}")
    return value


def _of_255(value: Any, of: Of) -> tuple[float, ...]:
    return tuple(round(colour / 255, 12) for colour in value)


def _freeze_at(value: int, of: Of) -> int:
    """Of a ResNet; DiffusionDet's Swin does not look at it."""
    return value if of("MODEL.BACKBONE.NAME") == RESNET else 0


def _clip_norm(value: float, of: Of) -> float:
    if not of("SOLVER.CLIP_GRADIENTS.ENABLED"):
        return 0.0
    kind = of("SOLVER.CLIP_GRADIENTS.CLIP_TYPE")
    if kind != "full_model":
        raise ValueError(f"is the length of the whole gradient here: CLIP_TYPE must be full_model, not {kind!r}")
    return value


def _decay_at(value: Any, of: Of) -> list[float]:
    """As shares of the training; a step after its end never comes, as in Detectron2."""
    last = of("SOLVER.MAX_ITER")
    return [step / last for step in value if step <= last]


def _short_edges(value: Any, of: Of) -> list[int]:
    edges = [value] if isinstance(value, int) else list(value)
    if of("INPUT.MIN_SIZE_TRAIN_SAMPLING") == "choice":
        return edges
    if len(edges) != 2:
        raise ValueError(f"must be the least and the largest, because MIN_SIZE_TRAIN_SAMPLING is range, not {value!r}")
    return list(range(edges[0], edges[1] + 1))


def _max_edge(value: int, of: Of) -> int:
    other = of("INPUT.MAX_SIZE_TEST")
    if value != other:
        raise ValueError(f"must be MAX_SIZE_TEST, {other}: images have one longest edge here, not {value}")
    return value


def _crop(value: bool, of: Of) -> Any:
    """As DiffusionDet's mapper does: half of the images, of a short edge of 400, 500 or 600."""
    kind, sizes = of("INPUT.CROP.TYPE"), of("INPUT.CROP.SIZE")
    if value and kind != "absolute_range":
        raise ValueError(f"True needs INPUT.CROP.TYPE absolute_range, which the public files give, not {kind!r}")
    if value and not (len(sizes) == 2 and all(isinstance(size, int) for size in sizes)):
        raise ValueError(f"True needs INPUT.CROP.SIZE, the least and the largest side in pixels, not {sizes!r}")
    return {"least": sizes[0], "most": sizes[1]} if value else None


def _sampler(value: str, of: Of) -> Any:
    if value not in SAMPLERS:
        raise ValueError(f"must be one of {', '.join(SAMPLERS)}, not {value!r}")
    return NOTHING


def _repeat_threshold(value: float, of: Of) -> Any:
    return value if of("DATALOADER.SAMPLER_TRAIN") == SAMPLERS[1] else NOTHING


def _federated(value: bool, of: Of) -> Any:
    """The public code draws among 50 classes, whatever FED_LOSS_NUM_CLASSES is."""
    return {"classes": 50} if value else None


def _geo_bias(value: bool, of: Of) -> Any:
    kinds = ("distance", "iou", "mlp")
    kind = of(f"{OWN}GEO_BIAS_TYPE")
    if value and kind not in kinds:
        raise ValueError(f"needs GEO_BIAS_TYPE, one of {', '.join(kinds)}, not {kind!r}")
    return kind if value else "none"


def _kind_of_teaching(kind: str) -> Callable[[Any, Of], Any]:
    def convert(value: bool, of: Of) -> Any:
        if value and all(of(f"{OWN}{switch}") for switch in ("CONSISTENCY_DISTILL", "SAMPLER_DISTILL")):
            raise ValueError("and its like are both True; a student learns in one of these ways")
        return kind if value else NOTHING

    return convert


def _teacher(value: str, of: Of) -> str:
    if not value.endswith(".pth"):
        raise ValueError(f"must be the path of the teacher's weights, a .pth, not {value!r}")
    return value


def _with_another(value: Any, of: Of) -> Any:
    """Read by the key that it acts through."""
    return NOTHING


_MODEL, _LOSS = DiffusionDetConfig(), LossConfig()
_SIZED, _RECIPE, _WEIGHED = "scale.models.diffusiondet.", "recipe.model.", "recipe.loss."
_SOLVER, _IMAGE, _DISTILL, _GUIDANCE = "scale.solver.", "scale.image.", "recipe.distill.", "sampling.guidance."
_CONSISTENCY, _SAMPLER = f"{OWN}CONSISTENCY_DISTILL", f"{OWN}SAMPLER_DISTILL"


def _own(name: str, default: Any, place: str, convert: Any = _same, needs: str | None = None) -> Key:
    return Key(f"{OWN}{name}", default, place, convert, f"{OWN}{needs}" if needs else None)


KEYS = (
    # The architecture: the public DiffusionDet's keys
    Key("MODEL.BACKBONE.NAME", RESNET, f"{_SIZED}backbone", _backbone),
    Key("MODEL.RESNETS.DEPTH", 50, "with MODEL.BACKBONE.NAME", _with_another),
    Key("MODEL.SWIN.SIZE", "B", "with MODEL.BACKBONE.NAME", _with_another),
    Key("MODEL.BACKBONE.FREEZE_AT", 2, f"{_SIZED}freeze_at", _freeze_at),
    Key("MODEL.PIXEL_MEAN", (123.675, 116.28, 103.53), f"{_SIZED}pixel_mean", _of_255),
    Key("MODEL.PIXEL_STD", (58.395, 57.12, 57.375), f"{_SIZED}pixel_std", _of_255),
    Key("MODEL.WEIGHTS", "", "run.weights"),
    Key("MODEL.DEVICE", "cuda", "scale.device"),
    _own("NUM_CLASSES", 80, "run.num_classes"),
    _own("NUM_PROPOSALS", 300, f"{_SIZED}num_proposals"),
    _own("NUM_HEADS", 6, f"{_SIZED}num_heads"),
    _own("HIDDEN_DIM", 256, f"{_SIZED}hidden_dim"),
    _own("DIM_DYNAMIC", 64, f"{_SIZED}dim_dynamic"),
    _own("DIM_FEEDFORWARD", 2048, f"{_SIZED}dim_feedforward"),
    _own("NHEADS", 8, f"{_SIZED}attention_heads"),
    _own("NUM_CLS", 1, f"{_SIZED}num_cls"),
    _own("NUM_REG", 3, f"{_SIZED}num_reg"),
    Key("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7, f"{_SIZED}pooler_resolution"),
    Key("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2, f"{_SIZED}sampling_ratio"),
    _own("SNR_SCALE", 2.0, f"{_RECIPE}snr_scale"),
    _own(
        "USE_NMS",
        True,
        f"{_RECIPE}sampler.nms_threshold",
        lambda value, of: PUBLIC_SAMPLER.nms_threshold if value else WITHOUT_NMS,
    ),
    _own("SAMPLE_STEP", 1, "sampling.steps"),
    # The switches
    _own("LABEL_STATE", False, f"{_RECIPE}label_state"),
    _own("LABEL_D3PM", False, f"{_RECIPE}label_d3pm"),
    _own("LABEL_D3PM_KERNEL", _MODEL.label_kernel, f"{_RECIPE}label_kernel", needs="LABEL_D3PM"),
    _own("LABEL_D3PM_USE_DISTRIBUTION", False, f"{_RECIPE}use_distribution"),
    _own(
        "LABEL_D3PM_TRAIN_STATE",
        _MODEL.label_training,
        f"{_RECIPE}label_training",
        needs="LABEL_D3PM_USE_DISTRIBUTION",
    ),
    _own("QUALITY_HEAD", False, f"{_RECIPE}quality_head"),
    _own("QUALITY_HEAD_LR_MULT", 1.0, "recipe.solver.quality_head_multiplier", needs="QUALITY_HEAD"),
    _own("QUALITY_LOSS_WEIGHT", _LOSS.quality_weight, f"{_WEIGHED}quality_weight", needs="QUALITY_HEAD"),
    _own("QUALITY_GUIDANCE_SCALE", 0.0, f"{_GUIDANCE}scale"),
    _own("QUALITY_GUIDANCE_MODE", "all", f"{_GUIDANCE}mode", needs="QUALITY_GUIDANCE_SCALE"),
    _own("QUALITY_GUIDANCE_STEPS", 1, f"{_GUIDANCE}langevin_steps", needs="QUALITY_GUIDANCE_SCALE"),
    _own("QUALITY_GUIDANCE_NORMALIZE", True, f"{_GUIDANCE}normalise", needs="QUALITY_GUIDANCE_SCALE"),
    _own("QUALITY_GUIDANCE_TOPK", 0, f"{_GUIDANCE}topk", _or_none, "QUALITY_GUIDANCE_SCALE"),
    _own("GEO_FEAT", False, f"{_RECIPE}geo_feat.enabled"),
    _own("GEO_FEAT_LR_MULT", 1.0, "recipe.solver.geo_feat_multiplier", needs="GEO_FEAT"),
    _own("GEO_FEAT_SCHEDULE", _MODEL.geo_feat.schedule, f"{_RECIPE}geo_feat.schedule", needs="GEO_FEAT"),
    _own("GEO_BIAS", False, f"{_RECIPE}geo_bias.kind", _geo_bias),
    _own("GEO_BIAS_TYPE", "", "with MODEL.DiffusionDet.GEO_BIAS", _with_another, "GEO_BIAS"),
    _own("GEO_BIAS_SCALE", _MODEL.geo_bias.scale, f"{_RECIPE}geo_bias.scale", needs="GEO_BIAS"),
    _own("GEO_BIAS_TOPK", 0, f"{_RECIPE}geo_bias.topk", _or_none),
    _own("GRAPH_TOPO_LOSS_WEIGHT", 0.0, f"{_WEIGHED}graph_topo_loss_weight"),
    _own("ANISO_NOISE", False, "with MODEL.DiffusionDet.ANISO_NOISE_SIGMA_W, _H", _with_another),
    _own("ANISO_NOISE_SIGMA_W", 1.0, f"{_RECIPE}aniso_noise.sigma_w", needs="ANISO_NOISE"),
    _own("ANISO_NOISE_SIGMA_H", 1.0, f"{_RECIPE}aniso_noise.sigma_h", needs="ANISO_NOISE"),
    _own("DISABLE_SELF_ATTN", False, f"{_RECIPE}disable_self_attn"),
    _own("SELF_ATTN_IMPL", _MODEL.self_attn, f"{_RECIPE}self_attn"),
    # The loss
    _own("CLASS_WEIGHT", 2.0, f"{_WEIGHED}class_weight"),
    _own("L1_WEIGHT", 5.0, f"{_WEIGHED}l1_weight"),
    _own("GIOU_WEIGHT", 2.0, f"{_WEIGHED}giou_weight"),
    _own("DEEP_SUPERVISION", True, f"{_WEIGHED}deep_supervision"),
    _own("ALPHA", 0.25, f"{_WEIGHED}focal_alpha"),
    _own("GAMMA", 2.0, f"{_WEIGHED}focal_gamma"),
    _own("OTA_K", 5, f"{_WEIGHED}ota_k"),
    _own("CLS_LOSS_TYPE", _LOSS.cls_loss, f"{_WEIGHED}cls_loss"),
    _own("QFL_BETA", _LOSS.qfl_beta, f"{_WEIGHED}qfl_beta"),
    _own("BOX_LOSS_IOU_WEIGHT_POWER", 0.0, f"{_WEIGHED}box_loss_iou_weight_power"),
    _own("USE_FED_LOSS", False, f"{_WEIGHED}federated", _federated),
    Key(
        "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER",
        0.5,
        f"{_WEIGHED}federated.power",
        needs=f"{OWN}USE_FED_LOSS",
    ),
    # Teachers
    _own("CONSISTENCY_DISTILL", False, f"{_DISTILL}kind", _kind_of_teaching("consistency")),
    _own("CONSISTENCY_TEACHER_WEIGHTS", "", f"{_DISTILL}teacher", _teacher, "CONSISTENCY_DISTILL"),
    _own("CONSISTENCY_TOPK", 0, f"{_DISTILL}top_k", _or_none, "CONSISTENCY_DISTILL"),
    _own("CONSISTENCY_BOX_WEIGHT", 1.0, f"{_DISTILL}box_weight", needs="CONSISTENCY_DISTILL"),
    _own("CONSISTENCY_CLS_WEIGHT", 1.0, f"{_DISTILL}cls_weight", needs="CONSISTENCY_DISTILL"),
    _own("CONSISTENCY_GT_WEIGHT", 1.0, f"{_DISTILL}supervision", needs="CONSISTENCY_DISTILL"),
    _own("SAMPLER_DISTILL", False, f"{_DISTILL}kind", _kind_of_teaching("sampler")),
    _own("SAMPLER_DISTILL_TEACHER_WEIGHTS", "", f"{_DISTILL}teacher", _teacher, "SAMPLER_DISTILL"),
    _own("SAMPLER_DISTILL_TEACHER_STEPS", 20, f"{_DISTILL}teacher_steps", needs="SAMPLER_DISTILL"),
    _own("SAMPLER_DISTILL_STUDENT_STEPS", 1, f"{_DISTILL}student_steps", needs="SAMPLER_DISTILL"),
    _own("SAMPLER_DISTILL_TOPK", 0, f"{_DISTILL}top_k", _or_none, "SAMPLER_DISTILL"),
    _own("SAMPLER_DISTILL_BOX_WEIGHT", 1.0, f"{_DISTILL}box_weight", needs="SAMPLER_DISTILL"),
    _own("SAMPLER_DISTILL_CLS_WEIGHT", 1.0, f"{_DISTILL}cls_weight", needs="SAMPLER_DISTILL"),
    _own("SAMPLER_DISTILL_GT_WEIGHT", 1.0, f"{_DISTILL}supervision", needs="SAMPLER_DISTILL"),
    # The solver
    Key("SOLVER.BASE_LR", 0.001, f"{_SOLVER}base_lr"),
    Key("SOLVER.MAX_ITER", 40000, f"{_SOLVER}max_iter"),
    Key("SOLVER.STEPS", (30000,), f"{_SOLVER}decay_at", _decay_at),
    Key("SOLVER.GAMMA", 0.1, f"{_SOLVER}decay_factor"),
    Key(
        "SOLVER.WARMUP_ITERS",
        1000,
        f"{_SOLVER}warmup_iters",
        lambda value, of: min(value, of("SOLVER.MAX_ITER")),  # so is Detectron2's
    ),
    Key("SOLVER.WARMUP_FACTOR", 0.001, f"{_SOLVER}warmup_factor"),
    Key("SOLVER.WEIGHT_DECAY", 0.0001, f"{_SOLVER}weight_decay"),
    Key("SOLVER.IMS_PER_BATCH", 16, f"{_SOLVER}batch_size"),
    Key("SOLVER.CHECKPOINT_PERIOD", 5000, f"{_SOLVER}checkpoint_every"),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, f"{_SOLVER}clip_norm", _clip_norm),
    Key("SOLVER.CLIP_GRADIENTS.ENABLED", False, "with SOLVER.CLIP_GRADIENTS.CLIP_VALUE", _with_another),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "with SOLVER.CLIP_GRADIENTS.CLIP_VALUE", _with_another),
    Key("SOLVER.AMP.ENABLED", False, "scale.precision", lambda value, of: "fp16" if value else "fp32"),
    Key("SOLVER.TORCH_COMPILE", False, f"{_SOLVER}compile"),
    Key("SOLVER.BACKBONE_MULTIPLIER", 1.0, "recipe.solver.backbone_multiplier"),
    Key("MODEL_EMA.ENABLED", False, "with MODEL_EMA.DECAY", _with_another),
    Key("MODEL_EMA.DECAY", 0.999, f"{_SOLVER}ema_decay", lambda value, of: value if of("MODEL_EMA.ENABLED") else 0.0),
    Key("TEST.EVAL_PERIOD", 0, f"{_SOLVER}eval_every"),
    # Images and data
    Key("INPUT.MIN_SIZE_TRAIN", (800,), f"{_IMAGE}train_short_edges", _short_edges),
    Key("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "with INPUT.MIN_SIZE_TRAIN", _with_another),
    Key("INPUT.MIN_SIZE_TEST", 800, f"{_IMAGE}eval_short_edge"),
    Key("INPUT.MAX_SIZE_TRAIN", 1333, f"{_IMAGE}max_edge", _max_edge),
    Key("INPUT.MAX_SIZE_TEST", 1333, "with INPUT.MAX_SIZE_TRAIN", _with_another),
    Key("INPUT.RANDOM_FLIP", "horizontal", f"{_IMAGE}flip", _one_of(horizontal=0.5, none=0.0)),
    Key("INPUT.CROP.ENABLED", False, f"{_IMAGE}crop", _crop),
    Key("INPUT.CROP.TYPE", "relative_range", "with INPUT.CROP.ENABLED", _with_another),
    Key("INPUT.CROP.SIZE", (0.9, 0.9), "with INPUT.CROP.ENABLED", _with_another),
    Key("DATASETS.TRAIN", (), "run.train"),
    Key("DATASETS.TEST", (), "run.test"),
    Key("DATALOADER.NUM_WORKERS", 4, "scale.workers"),
    Key("DATALOADER.SAMPLER_TRAIN", SAMPLERS[0], "with DATALOADER.REPEAT_THRESHOLD", _sampler),
    Key("DATALOADER.REPEAT_THRESHOLD", 0.0, f"{_SOLVER}repeat_threshold", _repeat_threshold),
    Key("SEED", -1, "run.seed"),
    Key("OUTPUT_DIR", "./output", "run.output_dir"),
)
BY_NAME = {key.name: key for key in KEYS}

# Other names of the same keys.
ALIASES = {
    f"{OWN}{other}": f"{OWN}{name}"
    for other, name in {
        "QUALITY_GUIDANCE_LANGEVIN_STEPS": "QUALITY_GUIDANCE_STEPS",
        "QUALITY_GUIDANCE_TOP_K": "QUALITY_GUIDANCE_TOPK",
        "GEO_BIAS_KIND": "GEO_BIAS_TYPE",
        "GEO_BIAS_TOP_K": "GEO_BIAS_TOPK",
        "CONSISTENCY_ENABLED": "CONSISTENCY_DISTILL",
        "CONSISTENCY_TEACHER": "CONSISTENCY_TEACHER_WEIGHTS",
        "SAMPLER_DISTILL_ENABLED": "SAMPLER_DISTILL",
        "SAMPLER_DISTILL_TEACHER": "SAMPLER_DISTILL_TEACHER_WEIGHTS",
        "SAMPLER_DISTILL_TOP_K": "SAMPLER_DISTILL_TOPK",
    }.items()
}

_LEVELS = (["res2", "res3", "res4", "res5"], ["swin0", "swin1", "swin2", "swin3"])

# What fits, and why nothing else does.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "VERSION": ((2,), "the version of Detectron2's files that is read"),
    "MODEL.META_ARCHITECTURE": (("DiffusionDet",), "the one architecture whose configurations are read"),
    "MODEL.MASK_ON": ((False,), "boxes are detected, no masks"),
    "MODEL.KEYPOINT_ON": ((False,), "boxes are detected, no keypoints"),
    "MODEL.LOAD_PROPOSALS": ((False,), "proposals are noise"),
    "MODEL.RESNETS.STRIDE_IN_1X1": ((False,), "torchvision's and timm's layout has the stride in the 3 × 3"),
    "MODEL.RESNETS.NORM": (("FrozenBN",), "pretrained backbones keep their frozen BatchNorm"),
    "MODEL.RESNETS.NUM_GROUPS": ((1,), "for a ResNeXt give timm's name, such as resnext50_32x4d, in BACKBONE.NAME"),
    "MODEL.RESNETS.WIDTH_PER_GROUP": ((64,), "for a wide ResNet give timm's name in MODEL.BACKBONE.NAME"),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": ((256, 64), "the width is that of timm's network"),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": ((64,), "the width is that of timm's network"),
    "MODEL.RESNETS.RES5_DILATION": ((1,), "feature maps have strides 4, 8, 16 and 32"),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (([False] * 4,), "there are no deformable convolutions"),
    "MODEL.RESNETS.OUT_FEATURES": (_LEVELS[:1], "the pyramid is made of all four stages"),
    "MODEL.SWIN.OUT_FEATURES": (([0, 1, 2, 3],), "the pyramid is made of all four stages"),
    "MODEL.FPN.IN_FEATURES": (_LEVELS, "the pyramid is made of all four stages"),
    "MODEL.FPN.OUT_CHANNELS": (
        (ValueOf(f"{OWN}HIDDEN_DIM"),),
        "the pyramid is as wide as MODEL.DiffusionDet.HIDDEN_DIM",
    ),
    "MODEL.FPN.FUSE_TYPE": (("sum",), "levels are summed (Lin et al. 2017)"),
    "MODEL.FPN.NORM": (("",), "the pyramid has no normalisation"),
    "MODEL.ROI_HEADS.IN_FEATURES": ((["p2", "p3", "p4", "p5"],), "features are pooled from all four levels"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": (("ROIAlignV2",), "features are pooled by aligned RoIAlign"),
    f"{OWN}DROPOUT": ((0.0,), "the head has no dropout"),
    f"{OWN}ACTIVATION": (("relu",), "the head's activation is ReLU"),
    f"{OWN}NUM_DYNAMIC": ((2,), "the dynamic convolution has two layers"),
    f"{OWN}USE_FOCAL": ((True,), "classes are told apart by focal loss, or with CLS_LOSS_TYPE qfl by its quality form"),
    f"{OWN}PRIOR_PROB": ((0.01,), "the class logits start there"),
    f"{OWN}SAMPLER_DISTILL_ETA": ((0.0,), "the teacher samples deterministically"),
    f"{OWN}SAMPLER_DISTILL_ENSEMBLE": ((False,), "the teacher samples without ensemble"),
    f"{OWN}SAMPLER_DISTILL_BOX_RENEWAL": ((False,), "the teacher samples without box renewal"),
    "SOLVER.OPTIMIZER": (("ADAMW",), "the optimiser is AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": (("WarmupMultiStepLR",), "the rate falls at SOLVER.STEPS"),
    "SOLVER.WARMUP_METHOD": (("linear",), "the rate rises linearly"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": ((2.0,), "the gradient's length is Euclidean"),
    "SOLVER.REFERENCE_WORLD_SIZE": ((0,), "the batch is IMS_PER_BATCH whatever the number of processes"),
    "MODEL_EMA.YOLOX": ((False,), "the average's decay is constant"),
    "MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY": ((False,), "the averaged weights are the result"),
    "TEST.AUG.ENABLED": ((False,), "an image is looked at once; there is no test-time augmentation"),
    "TEST.PRECISE_BN.ENABLED": ((False,), "no normalisation looks at the batch"),
    "TEST.DETECTIONS_PER_IMAGE": ((100,), "COCO's metrics count 100 an image and class"),
    "TEST.EXPECTED_RESULTS": (([],), "results are held against others by `noisebox verify`"),
    "INPUT.FORMAT": (("RGB",), "images are read as RGB"),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": ((False,), "images without objects are trained on as well"),
    "DATALOADER.REPEAT_SQRT": ((True,), "an image is repeated by the square root (Gupta et al. 2019)"),
    "DATALOADER.ASPECT_RATIO_GROUPING": ((True, False), "what is computed of an image does not depend on its padding"),
    "FLOAT32_PRECISION": (("",), "products are computed as SOLVER.AMP.ENABLED says"),
    "VIS_PERIOD": ((0,), "nothing is drawn while training; `noisebox predict` draws"),
}

# Beginnings of keys that DiffusionDet does not look at, whatever their value.
UNREAD = (
    *(f"MODEL.{part}." for part in ("ANCHOR_GENERATOR", "PANOPTIC_FPN", "PROPOSAL_GENERATOR", "RETINANET", "RPN")),
    *(f"MODEL.{part}." for part in ("ROI_BOX_CASCADE_HEAD", "ROI_BOX_HEAD", "ROI_HEADS", "ROI_KEYPOINT_HEAD")),
    *(f"MODEL.{part}." for part in ("ROI_MASK_HEAD", "SEM_SEG_HEAD")),
    *("MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS", "MODEL.SWIN.USE_CHECKPOINT"),
    *("MODEL_EMA.DEVICE", f"{OWN}NO_OBJECT_WEIGHT"),
    *("SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_", "SOLVER.BASE_LR_END"),
    *("SOLVER.NUM_DECAYS", "SOLVER.RESCALE_INTERVAL"),
    *("TEST.AUG.", "TEST.PRECISE_BN.", "TEST.KEYPOINT_OKS_SIGMAS", "INPUT.MASK_FORMAT"),
    *("DATASETS.PROPOSAL_FILES_", "DATASETS.PRECOMPUTED_"),
    *("CUDNN_BENCHMARK", "GLOBAL."),
)

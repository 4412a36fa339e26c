"""Weights of the public DiffusionDet and of Detectron2 as a checkpoint of Noisebox, and back.

A checkpoint comes in where all that its detections depend on has a place here, so that they are the original's. What
tensors do not say (`Untold`) is as in the public configurations, unless it is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisebox import graph
from noisebox.config import ImageConfig, RunConfig, ScaleConfig, SmokeConfig, SolverConfig
from noisebox.config.diffusiondet import AnisoNoiseConfig, DiffusionDetConfig, GeoBiasConfig, LossConfig, SamplerConfig
from noisebox.config.section import check_section
from noisebox.data.catalog import load_dataset
from noisebox.data.coco import declared_classes
from noisebox.diffusion.gaussian import cosine_betas
from noisebox.errors import UserError
from noisebox.files import write_text
from noisebox.interop.architecture import (
    HEAD,
    backbone_in,
    head_config,
    other_heads,
    pyramid_width,
    with_full_names,
)
from noisebox.interop.detectron2_keys import PUBLIC_SAMPLER, WITHOUT_NMS
from noisebox.interop.names import BOTTOM_UP, RESNETS, SWIN_SIZES, backbone_of, public_name
from noisebox.interop.weight_files import WeightFile, read_weights
from noisebox.models import build_model
from noisebox.models.backbone import Backbone, FeatureMaps
from noisebox.randomness import isolated
from noisebox.training.checkpoint import load_model, save_checkpoint

PUBLIC_TIMESTEPS = 1000  # of the public DiffusionDet, which has no key for it
IMPORTED = "imported"  # in place of the lineage, scale and dataset that a run of ours would have
FIRST = (f"{BOTTOM_UP}stem.conv1.weight", f"{BOTTOM_UP}patch_embed.proj.weight")  # what sees the colours
# Buffers that change nothing: how often batch norms were updated, and masks that are made for each image.
COUNTERS = (".num_batches_tracked", ".attn_mask")


@dataclass(frozen=True)
class Untold:
    """What a detector depends on and its tensors do not say, each with the value of the public configurations.

    `classes`: names joined by commas, a dataset of params/datasets/, or a COCO file that declares them. `pixel_mean`
    and `pixel_std` are on the scale of 0 to 255 and in the order of the network's channels, which `bgr` says is blue,
    green, red. `size`: the short edge that images are brought to, and the longest that the long edge may be.
    `stride_in_3x3` vouches for a ResNet that looks like one of Caffe's.
    """

    classes: str | None = None
    proposals: int = 500
    attention_heads: int = 8
    sampling_ratio: int = 2
    snr_scale: float = 2.0
    pixel_mean: tuple[float, float, float] | None = None
    pixel_std: tuple[float, float, float] | None = None
    bgr: bool = False
    size: tuple[int, int] = (800, 1333)
    stride_in_3x3: bool = False

    def __post_init__(self) -> None:
        if self.pixel_mean and any(self.pixel_mean) and not 1 < max(self.pixel_mean) <= 255:
            given = " ".join(f"{value:g}" for value in self.pixel_mean)
            raise UserError(f"--pixel-mean {given}: must be on the scale of 0 to 255, with --pixel-std on the same")

    def pixels(self) -> dict[str, Any]:
        """The keys of DiffusionDetConfig about colours."""
        given = {"pixel_mean": self.pixel_mean, "pixel_std": self.pixel_std}
        order = -1 if self.bgr else 1
        return {key: tuple(value / 255 for value in colour[::order]) for key, colour in given.items() if colour}


@dataclass(frozen=True)
class Translation:
    """What became of each tensor: `used` gives ours for a public name; `derived` are buffers that follow from the
    configuration, which were compared or made; `missing` ones the file lacks, `unused` ones have no place here."""

    used: dict[str, str]
    derived: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        counts = {"used": self.used, "derived": self.derived, "missing": self.missing, "unused": self.unused}
        return ", ".join(f"{len(names)} {word}" for word, names in counts.items())

    def write(self, path: Path) -> None:
        """Write a row for each tensor: what became of it, its public name, ours."""
        rows = [("status", "public", "noisebox"), *(("used", *pair) for pair in sorted(self.used.items()))]
        for status in ("derived", "missing", "unused"):
            rows += [(status, name, "") for name in sorted(getattr(self, status))]
        write_text(path, "".join("\t".join(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Imported:
    """What came of an import: the checkpoint at `path`, of the `backbone` named; `config` is None where it is that
    backbone alone. `table` lists the tensors."""

    path: Path
    table: Path
    translation: Translation
    backbone: str
    config: DiffusionDetConfig | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """What came of an export: the file at `path`, its `table` of tensors, and the `settings`, KEY and VALUE by turns,
    that Detectron2's configuration must have to build the model around it. `notes` are sentences about where the public
    detector finds something else all the same."""

    path: Path
    table: Path
    translation: Translation
    settings: list[str]
    notes: list[str]


def table_of(path: Path) -> Path:
    """Where the table of a checkpoint's tensors lies: beside it."""
    return path.with_suffix(".tensors.tsv")


def import_checkpoint(
    source: Path, out: Path, untold: Untold | None = None, key: str | None = None, backbone_only: bool = False
) -> Imported:
    """Make of a public file of weights the checkpoint `out`, and a table of its tensors beside it.

    A DiffusionDet becomes one of ours. A backbone as it is published for starting from, or of any detector with
    `backbone_only`, becomes a checkpoint that only a training can start from. `key` names what in the file holds the
    weights. Raises UserError when the file cannot be read, or holds what would compute something else here.
    """
    untold = untold or Untold()
    if out.suffix != ".pth":
        raise UserError(f"{out} must end in .pth, as the checkpoints of Noisebox do")
    if out.resolve() == source.resolve():
        raise UserError(f"{out} is the file to read; name another one to write")
    file = read_weights(source, key)
    tensors = with_full_names(file.tensors)
    headless = not any(name.startswith(HEAD) for name in tensors)
    if headless and not backbone_only and (others := other_heads(tensors)):
        raise UserError(
            f"{source} holds no head of the public DiffusionDet, but {', '.join(others)}; with --backbone-only its "
            "backbone is taken alone, for trainings to start from"
        )
    backbone = backbone_in(file, tensors, untold.stride_in_3x3)
    if headless or backbone_only:
        return _import_backbone(file, tensors, backbone, out, untold)
    return _import_detector(file, backbone, out, untold)


def _import_detector(file: WeightFile, backbone: str, out: Path, untold: Untold) -> Imported:
    told, count = head_config(file)
    classes, dataset = class_names(untold.classes, count, file.path)
    keys = {
        "backbone": backbone,
        "pretrained": True,  # with batch norms that stay as they are, whoever brings the weights
        "num_proposals": untold.proposals,
        "attention_heads": untold.attention_heads,
        "sampling_ratio": untold.sampling_ratio,
        "snr_scale": untold.snr_scale,
        "sampler": PUBLIC_SAMPLER,
        **untold.pixels(),
        **told,
    }
    model_config = check_section(DiffusionDetConfig, keys, file.path, "model")
    config = _run_config(model_config, dataset, untold)
    model = build_model(config, count, fetch_weights=False)
    weights, translation = _translated(file.path, file.tensors, model, "", untold.bgr)
    if translation.missing:
        raise UserError(
            f"{file.path} lacks {len(translation.missing)} tensors of the DiffusionDet that its others tell of, such "
            f"as {translation.missing[0]}"
        )
    model.load_state_dict(weights)
    state = {
        "model": model.state_dict(),
        "config": config.model_dump(),
        "classes": list(classes),
        "iteration": file.iteration,
    }
    save_checkpoint(out, state)
    translation.write(table_of(out))
    return Imported(out, table_of(out), translation, backbone, model_config, classes)


def _import_backbone(
    file: WeightFile, tensors: dict[str, Tensor], backbone: str, out: Path, untold: Untold
) -> Imported:
    width = pyramid_width(tensors)
    with isolated(0, "weights"):
        model = (
            FeatureMaps(backbone, pretrained=True, fetch_weights=False)
            if width is None
            else Backbone(backbone, width, pretrained=True, fetch_weights=False)
        )
    weights, translation = _translated(file.path, tensors, model, "backbone.", untold.bgr, whole=False)
    save_checkpoint(out, {"model": weights})
    translation.write(table_of(out))
    return Imported(out, table_of(out), translation, backbone, None, ())


def _translated(
    path: Path, tensors: Mapping[str, Tensor], model: nn.Module, prefix: str, bgr: bool, whole: bool = True
) -> tuple[dict[str, Tensor], Translation]:
    """The tensors by our names, for a model whose own names follow `prefix`, with the colours in our order.

    Raises UserError when one has another shape, a buffer is not what follows from the configuration, or, where the
    file is to be used `whole`, one of the network's has no place.
    """
    own = {public_name(prefix + name): (prefix + name, tensor) for name, tensor in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for public in own.keys() & tensors.keys():
        (name, like), given = own[public], tensors[public]
        if given.shape != like.shape:
            raise UserError(
                f"{path}: {public} has the shape {tuple(given.shape)}, {tuple(like.shape)} would fit what its other "
                "tensors tell of"
            )
        weights[name] = (given.flip(1) if bgr and public in FIRST else given).to(like.dtype)
    derived = {name: value for name, value in derived_buffers(model, prefix).items() if name in tensors}
    for name, value in derived.items():
        given = tensors[name]
        if given.shape != value.shape or not torch.allclose(given.double(), value.double(), rtol=1e-4, atol=1e-6):
            raise UserError(f"{path}: {name} is not the one that Noisebox computes with, so detections would differ")
    unused = sorted(tensors.keys() - own.keys() - derived.keys())
    strange = [name for name in unused if name.startswith(("backbone.", "head.")) and not name.endswith(COUNTERS)]
    if whole and strange:
        raise UserError(
            f"{path}: {len(strange)} tensors of the network have no place in Noisebox's DiffusionDet, such as "
            f"{strange[0]}, so detections would differ"
        )
    missing = tuple(public for public in own if public not in tensors)
    used = {public: name for public, (name, _) in own.items() if name in weights}
    return weights, Translation(used, tuple(derived), missing, tuple(unused))


def derived_buffers(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The buffers, by public names, that public checkpoints have beside the weights and that follow from the
    configuration: what the schedule of a diffusion comes to, and which offset two places in a window have."""
    buffers = {
        public_name(prefix + name): buffer
        for name, buffer in model.named_buffers()
        if name.endswith(".relative_position_index")
    }
    diffusion = getattr(model, "diffusion", None)
    return buffers if diffusion is None else schedule_buffers(diffusion.timesteps) | buffers


def schedule_buffers(timesteps: int) -> dict[str, Tensor]:
    """The cosine schedule of the public DiffusionDet, all (T,) float64, and the posterior q(x_{t-1} | x_t, x_0) (Ho et
    al. 2020, equation 7)."""
    betas = cosine_betas(timesteps)
    bars = torch.cumprod(1 - betas, dim=0)
    before = torch.cat((bars.new_ones(1), bars[:-1]))
    variance = betas * (1 - before) / (1 - bars)
    return {
        "betas": betas,
        "alphas_cumprod": bars,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bars.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bars).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bars).log(),
        "sqrt_recip_alphas_cumprod": (1 / bars).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bars - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - bars),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - bars),
    }


def class_names(given: str | None, count: int, path: Path, root: Path = Path()) -> tuple[tuple[str, ...], str]:
    """The names of `count` classes, see `Untold`, by default `class0` and so on; and the dataset that they are of.

    Raises UserError when there are more or fewer.
    """
    dataset = IMPORTED
    if given is None:
        return tuple(f"class{index}" for index in range(count)), dataset
    if given.endswith(".json"):
        names = declared_classes(Path(given))
    elif (root / graph.dataset_file(given)).exists():
        names, dataset = tuple(load_dataset(given, root).open(given, "val", root).classes), given
    else:
        names = tuple(name.strip() for name in given.split(","))
    if len(names) != count:
        background = "; a class for the background, which softmax needs, has no place here"
        raise UserError(
            f"{path} has logits for {count} classes, but --classes {given} names {len(names)}"
            f"{background if len(names) == count - 1 else '; give as many names, a dataset, or a COCO file'}"
        )
    return names, dataset


def _run_config(model: DiffusionDetConfig, dataset: str, untold: Untold) -> RunConfig:
    scale = ScaleConfig(dataset=dataset)
    return RunConfig(
        lineage=IMPORTED,
        seed=0,
        scale=IMPORTED,
        family="diffusiondet",
        dataset=dataset,
        device=scale.device,
        precision=scale.precision,
        threads=scale.threads,
        workers=scale.workers,
        eval_batch_size=scale.eval_batch_size,
        image=ImageConfig(eval_short_edge=untold.size[0], max_edge=untold.size[1]),
        model=model,
        loss=LossConfig(),
        solver=SolverConfig(),
        smoke=SmokeConfig(),
    )


def export_checkpoint(checkpoint: Path, out: Path) -> Exported:
    """Make of a DiffusionDet of ours the file `out`, which Detectron2's checkpointer loads into the public one.

    Raises UserError when the public one has no such detector.
    """
    if out.suffix != ".pth":
        raise UserError(f"{out} must end in .pth, by which Detectron2 knows files of PyTorch")
    if out.resolve() == checkpoint.resolve():
        raise UserError(f"{out} is the file to read; name another one to write")
    model, config, state = load_model(checkpoint)
    if config.family != "diffusiondet":
        raise UserError(f"{checkpoint} is of family {config.family}; the public DiffusionDet takes family diffusiondet")
    _check_exportable(checkpoint, config.model)
    _check_sampler(checkpoint, config.model.sampler)
    own = {public_name(name): name for name in state["model"]}
    used = {public: name for public, name in own.items() if ".quality." not in name}
    derived = derived_buffers(model)
    save_checkpoint(out, {"model": {public: state["model"][name] for public, name in used.items()} | derived})
    unused = tuple(name for public, name in own.items() if public not in used)
    translation = Translation(used, tuple(derived), (), unused)
    translation.write(table_of(out))
    settings = detectron2_settings(config, len(state["classes"]))
    return Exported(out, table_of(out), translation, settings, _notes(config.model.sampler))


def _check_exportable(path: Path, config: DiffusionDetConfig) -> None:
    """Raises UserError when the public DiffusionDet lacks something that this one detects by."""
    network = backbone_of(config.backbone)
    if network is None:
        raise UserError(f"{path}: Detectron2 has no backbone {config.backbone!r}; it has ResNets and Swin Transformers")
    if network in RESNETS.values() and not config.pretrained:
        raise UserError(
            f"{path}: its {network} has GroupNorm in groups that Detectron2's has not, because it was trained with "
            "model.pretrained: false; only frozen batch norms go there"
        )
    switches = {
        "label_state": config.label_state,
        "geo_feat": config.geo_feat.enabled,
        "geo_bias": config.geo_bias != GeoBiasConfig(),
        "disable_self_attn": config.disable_self_attn,
        "aniso_noise": config.aniso_noise != AnisoNoiseConfig(),
        f"timesteps {config.timesteps}": config.timesteps != PUBLIC_TIMESTEPS,
    }
    if on := [name for name, switched in switches.items() if switched]:
        raise UserError(f"{path} was trained with {', '.join(on)}, which the public DiffusionDet does not have")


def _check_sampler(path: Path, config: SamplerConfig) -> None:
    """Raises UserError when the public DiffusionDet has no key by which it would sample so; about the ensemble, which
    changes nothing at one step, see `_notes`."""
    fixed = {key: (value,) for key, value in PUBLIC_SAMPLER if key != "ensemble"}
    for key, fitting in (fixed | {"nms_threshold": (PUBLIC_SAMPLER.nms_threshold, WITHOUT_NMS)}).items():
        if (value := getattr(config, key)) not in fitting:
            raise UserError(
                f"{path} samples with model.sampler.{key} {value}; the public DiffusionDet has "
                f"{' or '.join(map(str, fitting))}, and no key for another"
            )


def _notes(config: SamplerConfig) -> list[str]:
    if config.ensemble == PUBLIC_SAMPLER.ensemble:
        return []
    here = {"all": "all of them", "none": "the last alone"}[config.ensemble]
    return [
        "at one step the public detector finds the same; of several it leaves the last out and merges the others, "
        f"where this one takes {here} (model.sampler.ensemble: {config.ensemble})"
    ]


def detectron2_settings(config: RunConfig, num_classes: int) -> list[str]:
    """KEY and VALUE by turns, as Detectron2's command line takes them, that build the public DiffusionDet around the
    weights of such a run."""
    model: DiffusionDetConfig = config.model
    network, own = backbone_of(model.backbone), "MODEL.DiffusionDet."
    stages = "swin" if network in SWIN_SIZES else "res"
    values: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "DiffusionDet",
        f"{own}NUM_CLASSES": num_classes,
        f"{own}NUM_PROPOSALS": model.num_proposals,
        f"{own}NHEADS": model.attention_heads,
        f"{own}DIM_FEEDFORWARD": model.dim_feedforward,
        f"{own}HIDDEN_DIM": model.hidden_dim,
        f"{own}NUM_CLS": model.num_cls,
        f"{own}NUM_REG": model.num_reg,
        f"{own}NUM_HEADS": model.num_heads,
        f"{own}DIM_DYNAMIC": model.dim_dynamic,
        f"{own}SNR_SCALE": model.snr_scale,
        f"{own}USE_NMS": model.sampler.nms_threshold != WITHOUT_NMS,
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": model.pooler_resolution,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": model.sampling_ratio,
        "MODEL.FPN.OUT_CHANNELS": model.hidden_dim,
        "MODEL.FPN.IN_FEATURES": [f"{stages}{index}" for index in (range(4) if stages == "swin" else range(2, 6))],
        "MODEL.PIXEL_MEAN": [round(255 * value, 4) for value in model.pixel_mean],
        "MODEL.PIXEL_STD": [round(255 * value, 4) for value in model.pixel_std],
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": config.image.eval_short_edge,
        "INPUT.MAX_SIZE_TEST": config.image.max_edge,
    }
    if network in SWIN_SIZES:
        values |= {
            "MODEL.BACKBONE.NAME": "build_swintransformer_fpn_backbone",
            "MODEL.SWIN.SIZE": SWIN_SIZES[network],
        }
    else:
        depth = int(str(network).removeprefix("resnet"))
        values |= {
            "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
            "MODEL.RESNETS.DEPTH": depth,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.RESNETS.OUT_FEATURES": values["MODEL.FPN.IN_FEATURES"],
        }
    return [word for key, value in values.items() for word in (key, str(value))]

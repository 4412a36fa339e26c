"""The sections that every training has, whatever its family: solver, images, scale, recipe, and the resolved run."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from noisebox import graph
from noisebox.config.families import sections_of
from noisebox.config.section import AboveZero, Count, Fraction, NotNegative, Positive, Section, merged
from noisebox.errors import UserError, what_fits

Precision = Literal["fp32", "bf16", "fp16"]
DURATIONS = ("max_iter", "epochs")  # keys of a solver, of which one holds
Colour = tuple[Fraction, Fraction, Fraction]  # red, green, blue; on the scale of 0 to 255, numbers would be too large
Spread = Annotated[float, Field(gt=0, le=1)]
ColourSpread = tuple[Spread, Spread, Spread]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: ColourSpread = (0.229, 0.224, 0.225)
AUTO = 0  # the batch size that is yet to be found
FP16_ON_CPU = "precision fp16 needs device cuda; on cpu use bf16 or fp32"


def _auto(value: Any) -> Any:
    if value == AUTO:
        raise ValueError(f"must be at least 1, or auto, not {value!r}")
    return AUTO if value == "auto" else value


class SolverConfig(Section):
    """How a stage trains: for `max_iter` iterations or, in their place, `epochs` passes over the images; if both are
    null, for the scale's times `length`. The rate is `base_lr` × `lr_factor`.

    `subset_size` trains on so many images, drawn by `subset_seed` whatever the train seed; smaller subsets lie in
    larger ones. `overfit` trains on the first ones instead, in their order and as they are evaluated, and evaluates on
    them. `repeat_threshold` shows an image more often if it has an object of a class that fewer than this share of the
    images have (repeat-factor sampling, Gupta et al. 2019); an epoch has what is repeated, too. `batch_size: auto` is
    the largest that fits the GPU, here AUTO until that is known. `checkpoint_epochs` keeps the weights of every so many
    epochs; `compile` trains through torch.compile. `winograd` takes large 3×3 convolutions by Winograd's
    algorithm where they are a CPU's in float32, and changes nothing elsewhere.
    """

    base_lr: AboveZero = 2.5e-5
    lr_factor: AboveZero = 1.0
    weight_decay: NotNegative = 1e-4
    backbone_multiplier: NotNegative = 1.0
    geo_feat_multiplier: AboveZero = 1.0
    quality_head_multiplier: AboveZero = 1.0
    clip_norm: NotNegative = 1.0
    max_iter: Positive | None = None
    epochs: AboveZero | None = None
    length: AboveZero = 1.0
    warmup_iters: Count = 0
    warmup_factor: Fraction = 0.01
    decay_at: list[Fraction] = []
    decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    batch_size: Annotated[Count, BeforeValidator(_auto)] = 16
    accumulate: Positive = 1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    log_every: Positive = 20
    checkpoint_every: Positive = 1000
    checkpoint_epochs: Count = 0
    eval_every: Count = 0
    subset_size: Positive | None = None
    subset_seed: Count = 0
    repeat_threshold: Fraction = 0.0
    overfit: bool = False
    compile: bool = False
    winograd: bool = False

    @property
    def iterations(self) -> int:
        """The resolved number of optimiser steps."""
        if self.max_iter is None:
            raise ValueError("the configuration is not resolved")
        return self.max_iter

    def iterations_of(self, epochs: float, images: int) -> int:
        """The optimiser steps that show each of so many images `epochs` times."""
        return max(1, math.ceil(round(epochs * images / self.batch_size, 6)))  # 0.1 × 30 is a little more than 3

    def epochs_in(self, iterations: int, images: int) -> int:
        """How many times so many steps show each of so many images."""
        return iterations * self.batch_size // images

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return self.base_lr * self.lr_factor

    @model_validator(mode="after")
    def _batch_divides(self) -> "SolverConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self


def lasting(solver: dict[str, Any]) -> list[str]:
    """The keys by which a section says how long to train."""
    return [key for key in DURATIONS if solver.get(key) is not None]


def solver_over(solver: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """`solver` with the keys of `others`; one that says how long to train stands for those of `solver` that do."""
    kept = {key: value for key, value in solver.items() if not (key in DURATIONS and lasting(others))}
    return merged(kept, others)


class CropConfig(Section):
    """Random crops in training (DETR, Carion et al. 2020): so `likely` a part of an image is shown, resized as an image
    is. Of the image with its short edge brought to one of `short_edges`, the part's height and width are each drawn
    from `least` to `most` pixels, as far as the image has them."""

    likely: Fraction = 0.5
    short_edges: Annotated[list[Positive], Field(min_length=1)] = [400, 500, 600]
    least: Positive = 384
    most: Positive = 600

    @model_validator(mode="after")
    def _sizes_rise(self) -> "CropConfig":
        if self.least > self.most:
            raise ValueError(f"least {self.least} must not exceed most {self.most}")
        return self


class ImageConfig(Section):
    """Resizing: the short edge is brought to one of `train_short_edges` (drawn per image) or to `eval_short_edge`, the
    long edge kept within `max_edge`; `flip` is the probability of a mirror image in training.

    `resize_schedule`, a list of [epoch, short edge], takes the place of `train_short_edges`: from that epoch on, the
    first being 1, every image of a batch has that short edge. `crop` shows parts of images in training, of detection
    alone.
    """

    train_short_edges: Annotated[list[Positive], Field(min_length=1)] = list(range(480, 801, 32))
    eval_short_edge: Positive = 800
    max_edge: Positive = 1333
    flip: Fraction = 0.5
    cache_mib: Count = 512
    resize_schedule: list[tuple[Positive, Positive]] = []
    crop: CropConfig | None = None

    @model_validator(mode="after")
    def _schedule_rises(self) -> "ImageConfig":
        starts = [start for start, _ in self.resize_schedule]
        if starts != sorted(set(starts)) or starts[:1] not in ([], [1]):
            raise ValueError(f"the epochs of resize_schedule must rise from 1, not be {starts}")
        return self

    def scheduled(self, epoch: int) -> int | None:
        """The short edge of an epoch, from 1, in training; None where none is scheduled."""
        return next((edge for start, edge in reversed(self.resize_schedule) if start <= epoch), None)


class ResourcesConfig(Section):
    """What a cluster is asked for, per training or evaluation job; `processes` share it, each with the scale's threads
    and, on GPUs, one of them."""

    mem_mb: Positive = 4000
    runtime: Positive = 60
    gpu: Count = 0
    processes: Positive = 1


class SmokeConfig(Section):
    """The smoke run: `iterations` steps over the same `images` images, whose mean loss must fall."""

    iterations: Annotated[int, Field(ge=4)] = 10
    images: Positive = 2


class ScaleConfig(Section):
    """A file of `params/scales/`: how big everything is.

    `finetune` changes `solver` for stages that have a parent, the iterations that their `length` multiplies included.
    `lengths` gives single lineages another length than their recipe does. `models` sizes each family's model, or a
    single recipe's by its name; `losses` weighs a family's loss, where its dataset asks for it; `families` says what
    else is other for a family, such as its dataset: any of the keys above `resources`. `datasets` says what is other
    again where such a dataset is trained on: any key but `resources`, which are those of all jobs, and under `families`
    of its own what is so for a family.
    """

    dataset: str
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "fp32"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    workers: Annotated[int, Field(ge=0, le=512)] = 0
    eval_batch_size: Positive = 8
    image: ImageConfig = ImageConfig()
    solver: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    smoke: SmokeConfig = SmokeConfig()
    resources: ResourcesConfig = ResourcesConfig()
    lengths: dict[str, AboveZero] = {}
    models: dict[str, dict[str, Any]] = {}
    losses: dict[str, dict[str, Any]] = {}
    families: dict[str, dict[str, Any]] = {}
    datasets: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _half_precision_needs_gpu(self) -> "ScaleConfig":
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError(FP16_ON_CPU)
        return self

    def dataset_of(self, line: str) -> str:
        """The name of the dataset of a line of research: that of its families.

        Raises UserError for a line that there is none of.
        """
        if line not in graph.SECTIONS.values():
            lines = list(dict.fromkeys(graph.SECTIONS.values()))
            raise UserError(f"{line!r} is no line of research; {what_fits(line, lines, 'there are')}")
        families = [family for family in graph.SECTION_OF if graph.line_of(family) == line]
        return self.of(families[0]).dataset

    def of(self, family: str, dataset: str | None = None) -> "ScaleConfig":
        """The scale as a family has it, on its own dataset or on another one."""
        own = self.families.get(family, {})
        chosen = dataset or own.get("dataset", self.dataset)
        other = self.datasets.get(chosen, {})
        general = {key: value for key, value in other.items() if key != "families"}
        return self.over(own, {"dataset": chosen}, general, other.get("families", {}).get(family, {}))

    def over(self, *others: dict[str, Any]) -> "ScaleConfig":
        """The scale with the keys of `others` in place of its own, those of later ones in place of earlier ones'."""
        own = self.model_dump()
        for other in others:
            solvers = {key: solver_over(own[key], other.get(key, {})) for key in ("solver", "finetune")}
            own = {**merged(own, other), **solvers}
        return type(self)(**own)


class FromSearchConfig(Section):
    """The trial at `rank`, from 1, of the budget search `name`."""

    name: str
    rank: Positive = 1


class RecipeConfig(Section):
    """A file of `params/recipes/`: what the method is; `precision` where it needs another than the scale's. With
    `from_search`, the values that a search found best stand in place of its own."""

    description: Annotated[str, Field(min_length=1)]
    family: str = "diffusiondet"
    model: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    solver: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    precision: Precision | None = None
    distill: dict[str, Any] | None = None
    from_search: FromSearchConfig | None = None


class RunConfig(Section):
    """Everything one training or evaluation needs to know, resolved; written to `config.yaml` and into checkpoints."""

    lineage: str
    seed: int
    scale: str
    family: str
    dataset: str
    device: Literal["cpu", "cuda"]
    precision: Precision
    threads: int
    workers: int
    eval_batch_size: int
    image: ImageConfig
    model: Any
    loss: Any
    solver: SolverConfig
    smoke: SmokeConfig
    distill: Any = None

    @model_validator(mode="before")
    @classmethod
    def _sections_of_its_family(cls, values: dict[str, Any]) -> dict[str, Any]:
        parts = {key: values[key] for key in ("model", "loss", "distill") if isinstance(values.get(key), dict)}
        return {**values, **{key: getattr(sections_of(values["family"]), key)(**parts[key]) for key in parts}}


def smoke_config(config: RunConfig) -> RunConfig:
    """The configuration of the smoke run: its first batch has `smoke.images` images, trained at the peak rate."""
    solver = config.solver.model_copy(
        update={
            "batch_size": config.smoke.images,
            "accumulate": 1,
            "warmup_iters": 0,
            "decay_at": [],
            "ema_decay": 0.0,
            "backbone_multiplier": config.solver.backbone_multiplier or 1.0,
        }
    )
    return config.model_copy(update={"solver": solver})

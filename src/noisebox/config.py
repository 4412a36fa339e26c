"""The validated configuration of a run: lineage × scale, read from `params/`, checked before any work starts.

Precedence, weakest first: the defaults below, the scale file, then each recipe of the lineage from first to last for
`model` and `loss`; `solver` and `distill` come from the last recipe alone, because they say how this stage trains, and
its `finetune:` section counts only where the recipe has a parent.
"""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noisebox import graph
from noisebox.errors import UserError, what_fits
from noisebox.files import read_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


SectionT = TypeVar("SectionT", bound=Section)


class GuidanceConfig(Section):
    """Quality guidance at inference (after classifier guidance, Dhariwal and Nichol 2021): at each guided step the
    noisy boxes climb `langevin_steps` times, by `scale`, the gradient of the quality that the head predicts.

    `mode: final` guides the last sampling step alone. `normalise` gives each proposal's gradient unit length. `topk`
    lets only so many proposals move, those with the highest class scores. Scale 0 is no guidance.
    """

    scale: NotNegative = 0.0
    mode: Literal["final", "all"] = "all"
    langevin_steps: Positive = 1
    normalise: bool = True
    topk: Positive | None = None


class Sampling(Section):
    """One way to sample from a checkpoint: so many steps, and with which guidance."""

    steps: Positive
    guidance: GuidanceConfig = GuidanceConfig()


class SamplerConfig(Section):
    """How boxes are sampled at inference (DDIM, Song et al. 2021; DiffusionDet, Chen et al. 2023, section 3.4)."""

    eta: Fraction = 1.0
    box_renewal: bool = True
    renewal_threshold: Fraction = 0.5
    ensemble: Literal["all", "public", "none"] = "all"
    nms_threshold: Fraction = 0.5


class GeoFeatConfig(Section):
    """Proposal geometry added to proposal features: in full at every time (`constant`), or less and less from t = 0 to
    nothing at T (`fade`)."""

    enabled: bool = False
    schedule: Literal["constant", "fade"] = "constant"


class GeoBiasConfig(Section):
    """Geometry added to the logits of proposal self-attention, times `scale`; with `topk`, each proposal attends to
    itself and its nearest others only, k in all."""

    kind: Literal["none", "distance", "iou", "mlp"] = "none"
    scale: NotNegative = 1.0
    topk: Positive | None = None


class AnisoNoiseConfig(Section):
    """Standard deviations of the noise on box width and height, relative to that on the centre."""

    sigma_w: AboveZero = 1.0
    sigma_h: AboveZero = 1.0


class DiffusionDetConfig(Section):
    """Architecture of DiffusionDet: backbone, feature pyramid, dynamic head, diffusion of boxes.

    The switches after `snr_scale` are off by default. `label_state`: each proposal carries a label, or none of the K
    classes, embedded and added to its feature; alone it is the head's own last prediction (self-conditioning, Chen et
    al. 2023, Analog Bits), with `label_d3pm` it is diffused by `label_kernel`. `use_distribution`: the state is a
    distribution; training samples one label of it (`label_training: sampled`) or takes the expected embedding
    (`expected`), evaluation always takes the expected one.
    """

    backbone: str = "resnet50"
    pretrained: bool = False
    hidden_dim: Positive = 256
    dim_dynamic: Positive = 64
    num_heads: Positive = 6
    dim_feedforward: Positive = 2048
    attention_heads: Positive = 8
    num_cls: Positive = 1
    num_reg: Positive = 3
    pooler_resolution: Positive = 7
    sampling_ratio: Positive = 2
    num_proposals: Positive = 500
    timesteps: Positive = 1000
    snr_scale: AboveZero = 2.0
    label_state: bool = False
    label_d3pm: bool = False
    label_kernel: Literal["mask", "uniform", "gaussian"] = "mask"
    use_distribution: bool = False
    label_training: Literal["sampled", "expected"] = "sampled"
    geo_feat: GeoFeatConfig = GeoFeatConfig()
    geo_bias: GeoBiasConfig = GeoBiasConfig()
    self_attn: Literal["mha", "sdpa"] = "mha"
    disable_self_attn: bool = False
    aniso_noise: AnisoNoiseConfig = AnisoNoiseConfig()
    quality_head: bool = False
    sampler: SamplerConfig = SamplerConfig()

    @model_validator(mode="after")
    def _switches_agree(self) -> "DiffusionDetConfig":
        if self.hidden_dim % self.attention_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of attention_heads {self.attention_heads}"
            )
        if self.label_d3pm and not self.label_state:
            raise ValueError("label_d3pm diffuses the label state: set label_state to true as well")
        if self.use_distribution and not (self.label_d3pm and self.label_kernel != "gaussian"):
            raise ValueError("use_distribution needs label_d3pm with label_kernel mask or uniform")
        if self.label_training == "expected" and not self.use_distribution:
            raise ValueError("label_training expected needs use_distribution")
        if self.disable_self_attn and self.geo_bias != GeoBiasConfig():
            raise ValueError("geo_bias acts on the self-attention that disable_self_attn takes away: choose one")
        return self


# One line a family: the section that `model:` is checked against.
MODELS: dict[str, type[Section]] = {"diffusiondet": DiffusionDetConfig}


class LossConfig(Section):
    """Weights of the set-prediction loss and its dynamic-k matching (OTA, Ge et al. 2021).

    `cls_loss: qfl` is the quality focal loss (Li et al. 2020) with exponent `qfl_beta`. A box's loss is weighted by
    its IoU with its object to the power `box_loss_iou_weight_power`. `graph_topo_loss_weight` holds the last stage's
    attention against which proposals share an object.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: NotNegative = 2.0
    cls_loss: Literal["focal", "qfl"] = "focal"
    qfl_beta: NotNegative = 2.0
    box_loss_iou_weight_power: NotNegative = 0.0
    graph_topo_loss_weight: NotNegative = 0.0
    quality_weight: NotNegative = 1.0
    ota_k: Positive = 5
    deep_supervision: bool = True


class DistillConfig(Section):
    """How a student learns from a frozen teacher: the lineage's parent, or the lineage `teacher`, of the run's own
    train seed or of `teacher_seed`.

    `consistency`: both see the same noise at the same time. `sampler`: the teacher samples `teacher_steps` steps (eta
    0, no renewal, no ensemble), and the student learns the outcome in its `student_steps` steps from the same noise.
    Only the teacher's `top_k` most certain proposals count, by default a fifth of them (the published 100 of 500).
    `supervision` weighs the loss against ground truth.
    """

    kind: Literal["consistency", "sampler"]
    teacher: str | None = None
    teacher_seed: Count | None = None
    teacher_steps: Positive = 1
    student_steps: Positive = 1
    top_k: Positive | None = None
    box_weight: NotNegative = 1.0
    cls_weight: NotNegative = 1.0
    supervision: NotNegative = 0.0

    @model_validator(mode="after")
    def _steps_fall(self) -> "DistillConfig":
        if self.student_steps > self.teacher_steps:
            raise ValueError(f"student_steps {self.student_steps} must not exceed teacher_steps {self.teacher_steps}")
        if self.kind == "consistency" and self.teacher_steps > 1:
            raise ValueError("kind consistency compares single predictions: leave teacher_steps at 1")
        return self


class SolverConfig(Section):
    """How a stage trains: `max_iter` is, if null, the scale's times `length`; the rate is `base_lr` × `lr_factor`."""

    base_lr: AboveZero = 2.5e-5
    lr_factor: AboveZero = 1.0
    weight_decay: NotNegative = 1e-4
    backbone_multiplier: NotNegative = 1.0
    geo_feat_multiplier: AboveZero = 1.0
    quality_head_multiplier: AboveZero = 1.0
    clip_norm: NotNegative = 1.0
    max_iter: Positive | None = None
    length: AboveZero = 1.0
    warmup_iters: Count = 0
    warmup_factor: Fraction = 0.01
    decay_at: list[Fraction] = []
    decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    batch_size: Positive = 16
    accumulate: Positive = 1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    log_every: Positive = 20
    checkpoint_every: Positive = 1000
    eval_every: Count = 0

    @property
    def iterations(self) -> int:
        """The resolved number of optimiser steps."""
        if self.max_iter is None:
            raise ValueError("the configuration is not resolved")
        return self.max_iter

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return self.base_lr * self.lr_factor

    @model_validator(mode="after")
    def _batch_divides(self) -> "SolverConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self


class ImageConfig(Section):
    """Resizing: the short edge is brought to one of `train_short_edges` (drawn per image) or to `eval_short_edge`, the
    long edge kept within `max_edge`; `flip` is the probability of a mirror image in training."""

    train_short_edges: Annotated[list[Positive], Field(min_length=1)] = [
        480,
        512,
        544,
        576,
        608,
        640,
        672,
        704,
        736,
        768,
        800,
    ]
    eval_short_edge: Positive = 800
    max_edge: Positive = 1333
    flip: Fraction = 0.5
    cache_mib: Count = 512


class ResourcesConfig(Section):
    """What a cluster is asked for, per training or evaluation job."""

    mem_mb: Positive = 4000
    runtime: Positive = 60
    gpu: Count = 0


class SmokeConfig(Section):
    """The smoke run: `iterations` steps over the same `images` images, whose mean loss must fall."""

    iterations: Annotated[int, Field(ge=4)] = 10
    images: Positive = 2


class ScaleConfig(Section):
    """A file of `params/scales/`: how big everything is.

    `finetune` changes `solver` for stages that have a parent, the iterations that their `length` multiplies included.
    `lengths` gives single lineages another length than their recipe does.
    """

    dataset: str
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: Positive = 1
    workers: Count = 0
    eval_batch_size: Positive = 8
    image: ImageConfig = ImageConfig()
    solver: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    lengths: dict[str, AboveZero] = {}
    models: dict[str, dict[str, Any]] = {}
    smoke: SmokeConfig = SmokeConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _half_precision_needs_gpu(self) -> "ScaleConfig":
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 needs device cuda; on cpu use bf16 or fp32")
        return self


class RecipeConfig(Section):
    """A file of `params/recipes/`: what the method is."""

    description: Annotated[str, Field(min_length=1)]
    family: str = "diffusiondet"
    model: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    solver: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    distill: DistillConfig | None = None


class PicturesConfig(Section):
    """The picture grid: the first `images` validation images, and whose detections stand beside the ground truth."""

    images: Count = 6
    lineages: Annotated[list[str], Field(min_length=1)]


class ProtocolConfig(Section):
    """What checkpoints are asked: each eval seed at each step count."""

    eval_seeds: Annotated[list[Count], Field(min_length=1)]
    sample_steps: Annotated[list[Positive], Field(min_length=1)]

    def asked(self) -> list[Sampling]:
        """The ways to sample, each to be run under each eval seed."""
        return [Sampling(steps=steps) for steps in self.sample_steps]


class GuidanceProtocol(ProtocolConfig):
    """Quality guidance: no guidance, and each scale above 0 × mode × number of Langevin steps."""

    scales: Annotated[list[NotNegative], Field(min_length=1)]
    modes: Annotated[list[Literal["final", "all"]], Field(min_length=1)]
    langevin_steps: Annotated[list[Positive], Field(min_length=1)]

    def asked(self) -> list[Sampling]:
        grid = itertools.product(sorted(set(self.scales) - {0}), self.modes, self.langevin_steps)
        guided = [GuidanceConfig(scale=scale, mode=mode, langevin_steps=count) for scale, mode, count in grid]
        every = [GuidanceConfig(), *guided]
        return [Sampling(steps=steps, guidance=guidance) for steps in self.sample_steps for guidance in every]


class ProtocolsConfig(Section):
    """The protocols by name. A lineage that is asked several is evaluated once, in all the ways that they ask for.

    `main` makes the main table, `steps` the trade-off of AP and time, `guidance` the guidance sweep, `ablations` the
    ablation table, `distillation` holds students against their teachers.
    """

    main: ProtocolConfig
    steps: ProtocolConfig | None = None
    guidance: GuidanceProtocol | None = None
    ablations: ProtocolConfig | None = None
    distillation: ProtocolConfig | None = None

    def by_name(self) -> dict[str, ProtocolConfig]:
        """Those that the experiment has."""
        return {name: protocol for name in type(self).model_fields if (protocol := getattr(self, name)) is not None}


class ExperimentConfig(Section):
    """`params/experiment.yaml`: which scale, which lineages, which seeds, which protocols.

    `recipes` are in use and smoke-tested; `scratch` are those trained from scratch, `parents` says what each of the
    others goes on from. `lineages` are evaluated and reported, `asked` names the protocols of each: so naming one more
    lineage is no reason to evaluate another again. `ablations` are groups of lineages that differ in one switch, each
    variant's lineage by the variant's name.
    """

    scale: str
    train_seeds: Annotated[list[Count], Field(min_length=1)]
    recipes: Annotated[list[str], Field(min_length=1)]
    scratch: Annotated[list[str], Field(min_length=1)]
    parents: dict[str, list[str]] = {}
    lineages: Annotated[list[str], Field(min_length=1)]
    asked: dict[str, Annotated[list[str], Field(min_length=1)]]
    protocols: ProtocolsConfig
    ablations: dict[str, dict[str, str]] = {}
    pictures: PicturesConfig

    @model_validator(mode="after")
    def _lineages_are_planned(self) -> "ExperimentConfig":
        planned = set(self.planned_lineages())
        for name in self.lineages:
            lineage = graph.Lineage.parse(name)
            for ancestor in lineage.ancestry():
                if ancestor.name not in planned:
                    fit = (
                        f"add {ancestor.parent.name!r} to parents.{ancestor.recipe}"
                        if ancestor.parent
                        else f"add {ancestor.recipe!r} to scratch"
                    )
                    raise ValueError(f"lineages names {name!r}, but nothing trains {ancestor.name!r}: {fit}")
            for recipe in lineage.parts:
                if recipe not in self.recipes:
                    raise ValueError(f"lineages names {name!r}, but recipes does not list {recipe!r}")
        return self

    @model_validator(mode="after")
    def _recipes_are_in_use(self) -> "ExperimentConfig":
        grown = [recipe for recipe, parents in self.parents.items() if parents]
        for place, names in (("scratch", self.scratch), ("parents", grown)):
            for name in names:
                if name not in self.recipes:
                    raise ValueError(f"{place} names {name!r}, but {what_fits(name, self.recipes, 'recipes has')}")
        return self

    @model_validator(mode="after")
    def _asked_agrees(self) -> "ExperimentConfig":
        protocols = list(self.protocols.by_name())
        shown = [name for group in self.ablations.values() for name in group.values()]
        for place, names in (("asked", self.asked), ("ablations", shown), ("pictures", self.pictures.lineages)):
            for name in names:
                if name not in self.lineages:
                    raise ValueError(f"{place} names {name!r}, but {what_fits(name, self.lineages, 'lineages has')}")
        for lineage in self.lineages:
            if lineage not in self.asked:
                raise ValueError(f"lineages names {lineage!r}, but asked does not: give it protocols, such as [main]")
            for name in self.asked[lineage]:
                if name not in protocols:
                    fit = what_fits(name, protocols, "protocols has")
                    raise ValueError(f"asked.{lineage} names protocol {name!r}, but {fit}")
        for name in shown:
            if "ablations" not in self.asked[name]:
                raise ValueError(f"ablations names {name!r}: add ablations to asked.{name}")
        if "main" not in {name for names in self.asked.values() for name in names}:
            raise ValueError("asked gives no lineage the protocol main, so the main table would be empty")
        return self

    def planned_lineages(self) -> list[str]:
        """Every lineage that has a training stage: those from scratch, then recipe by recipe."""
        grown = [f"{parent}+{recipe}" for recipe, parents in self.parents.items() for parent in parents]
        return [*self.scratch, *grown]

    def lineages_asked(self, protocol: str) -> list[str]:
        """The lineages that are asked a protocol, in the experiment's order."""
        return [lineage for lineage in dict.fromkeys(self.lineages) if protocol in self.asked[lineage]]

    def asked_of(self, lineage: str) -> dict[Sampling, list[int]]:
        """What an evaluation of the lineage runs: each way to sample that a protocol asks for, with its eval seeds.

        A lineage that the experiment does not name is asked the protocol main.
        """
        asked: dict[Sampling, set[int]] = {}
        protocols = self.protocols.by_name()
        for name in self.asked.get(lineage, ["main"]):
            for sampling in protocols[name].asked():
                asked.setdefault(sampling, set()).update(protocols[name].eval_seeds)
        return {sampling: sorted(seeds) for sampling, seeds in asked.items()}


class RunConfig(Section):
    """Everything one training or evaluation needs to know, resolved; written to `config.yaml` and into checkpoints."""

    lineage: str
    seed: int
    scale: str
    family: str
    dataset: str
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    threads: int
    workers: int
    eval_batch_size: int
    image: ImageConfig
    model: Any
    loss: LossConfig
    solver: SolverConfig
    smoke: SmokeConfig
    distill: DistillConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _model_of_its_family(cls, values: dict[str, Any]) -> dict[str, Any]:
        model = values["model"]
        return values if isinstance(model, Section) else {**values, "model": MODELS[values["family"]](**model)}


def load_experiment(root: Path = Path()) -> ExperimentConfig:
    """Read and check `params/experiment.yaml`; UserError names the key and what fits."""
    path = root / graph.EXPERIMENT
    return check_section(ExperimentConfig, read_yaml(path), path)


def load_scale(name: str, root: Path = Path()) -> ScaleConfig:
    """Read and check `params/scales/<name>.yaml`."""
    path = root / graph.scale_file(name)
    if not path.exists():
        raise UserError(f"{graph.EXPERIMENT}: scale {name!r} is unknown; {which_exist(path)}")
    scale = check_section(ScaleConfig, read_yaml(path), path)
    for family in scale.models:
        if family not in MODELS:
            raise UserError(f"{path}: models.{family} is no family; these are: {', '.join(MODELS)}")
    for lineage in scale.lengths:
        _named(lineage, path, "lengths", root)
    return scale


def load_recipe(name: str, root: Path = Path()) -> RecipeConfig:
    """Read and check `params/recipes/<name>.yaml`."""
    path = root / graph.recipe_file(name)
    if not path.exists():
        raise UserError(f"recipe {name!r} is missing: {path} does not exist; {which_exist(path)}")
    recipe = check_section(RecipeConfig, read_yaml(path), path)
    if recipe.family not in MODELS:
        raise UserError(f"{path}: family {recipe.family!r} is unknown; these are: {', '.join(MODELS)}")
    return recipe


def resolve(
    lineage: graph.Lineage | str, seed: int, scale_name: str, root: Path = Path(), *, smoke: bool = False
) -> RunConfig:
    """The configuration of one run; raises UserError naming file, key and what fits.

    A distillation needs a teacher, but for its smoke run.
    """
    lineage = _parsed(lineage)
    scale = load_scale(scale_name, root)
    recipes = _recipes(lineage, root)
    last, path = recipes[-1], root / graph.recipe_file(lineage.recipe)
    if not smoke:
        teacher_of(lineage, seed, root)
    scale_path = root / graph.scale_file(scale_name)
    model = scale.models.get(last.family, {})
    check_section(MODELS[last.family], model, scale_path, f"models.{last.family}")
    loss: dict[str, Any] = {}
    for part, recipe in zip(lineage.parts, recipes, strict=True):
        model, loss = _merge(model, recipe.model), _merge(loss, recipe.loss)
        check_section(MODELS[last.family], model, root / graph.recipe_file(part), "model")
        check_section(LossConfig, loss, root / graph.recipe_file(part), "loss")
    check_section(SolverConfig, scale.solver, scale_path, "solver")
    check_section(SolverConfig, scale.finetune, scale_path, "finetune")
    if "max_iter" not in scale.solver:
        raise UserError(f"{scale_path}: solver.max_iter is missing; give the iterations of a training from scratch")
    return RunConfig(
        lineage=lineage.name,
        seed=seed,
        scale=scale_name,
        family=last.family,
        dataset=scale.dataset,
        device=scale.device,
        precision=scale.precision,
        threads=scale.threads,
        workers=scale.workers,
        eval_batch_size=scale.eval_batch_size,
        image=scale.image,
        model=MODELS[last.family](**model),
        loss=LossConfig(**loss),
        solver=_solver(scale, last, lineage, path),
        smoke=scale.smoke,
        distill=last.distill,
    )


def teacher_of(lineage: graph.Lineage | str, seed: int, root: Path = Path()) -> tuple[str, int] | None:
    """Lineage and train seed of whom a run learns from, None where its last recipe distils nothing.

    Raises UserError when there is nobody to learn from, or nobody of that name or family.
    """
    lineage = _parsed(lineage)
    recipe, path = load_recipe(lineage.recipe, root), root / graph.recipe_file(lineage.recipe)
    distill = recipe.distill
    if distill is None:
        return None
    teacher = _named(distill.teacher, path, "distill.teacher", root) if distill.teacher else lineage.parent
    if teacher is None:
        raise UserError(
            f"recipe {lineage.recipe!r} needs a teacher: start it from a parent, such as baseline+{lineage.recipe}, "
            f"or name one under distill.teacher in {path}"
        )
    if lineage in teacher.ancestry():
        raise UserError(f"{path}: distill.teacher: {teacher.name!r} goes through {lineage.name!r}, the student itself")
    family = load_recipe(teacher.recipe, root).family
    if family != recipe.family:
        raise UserError(f"{path}: distill.teacher: {teacher.name!r} is {family}, the student is {recipe.family}")
    return teacher.name, seed if distill.teacher_seed is None else distill.teacher_seed


def _recipes(lineage: graph.Lineage, root: Path) -> list[RecipeConfig]:
    """Those of a lineage, first to last; raises UserError when one does not exist or is of another family."""
    recipes = [load_recipe(part, root) for part in lineage.parts]
    for part, recipe in zip(lineage.parts, recipes, strict=True):
        if recipe.family != recipes[-1].family:
            raise UserError(
                f"lineage {lineage.name!r} mixes families: {part!r} is {recipe.family}, "
                f"{lineage.recipe!r} is {recipes[-1].family}"
            )
    return recipes


def _named(name: str, path: Path, key: str, root: Path) -> graph.Lineage:
    """The lineage that a file names under `key`; raises UserError when its recipes do not exist."""
    try:
        lineage = graph.Lineage.parse(name)
        _recipes(lineage, root)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error}") from None
    return lineage


def _parsed(lineage: graph.Lineage | str) -> graph.Lineage:
    return graph.Lineage.parse(lineage) if isinstance(lineage, str) else lineage


def _solver(scale: ScaleConfig, recipe: RecipeConfig, lineage: graph.Lineage, path: Path) -> SolverConfig:
    check_section(SolverConfig, recipe.solver, path, "solver")
    check_section(SolverConfig, recipe.finetune, path, "finetune")
    given, own = scale.solver, recipe.solver
    if lineage.parent:
        given, own = _merge(given, scale.finetune), _merge(own, recipe.finetune)
    solver = check_section(SolverConfig, _merge({**given, "max_iter": None}, own), path, "solver")
    length = scale.lengths.get(lineage.name, solver.length)
    iterations = solver.max_iter or max(1, round(given["max_iter"] * length))
    return solver.model_copy(update={"max_iter": iterations, "length": length})


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def check_section(section: type[SectionT], values: dict[str, Any], path: Path, within: str = "") -> SectionT:
    """`values` as a `section`; `path` and `within`, the keys above, tell where they were read.

    Raises UserError naming file, key and what fits.
    """
    try:
        return section(**values)
    except ValidationError as error:
        raise UserError(f"{path}: {_describe(section, error, within)}") from None
    except TypeError:
        raise UserError(f"{path}: the keys{' of ' + within if within else ''} must be words") from None


def _describe(section: type[BaseModel], error: ValidationError, within: str) -> str:
    """The first complaint of pydantic, in our words: key, what is wrong, what fits."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(filter(None, [within, *location]))
    if first["type"] == "extra_forbidden":
        known = _keys(section, location[:-1])
        return f"key {key!r} does not exist; {what_fits(location[-1], known, 'known keys')}"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f", not {given!r}" if first["type"] != "value_error" and not isinstance(given, dict) else ""
    return f"{key + ': ' if key else ''}{message[0].lower() + message[1:]}{shown}"


def _keys(section: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that fit at `location` below a section."""
    for part in location:
        field = section.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        nested = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)


def which_exist(path: Path) -> str:
    """The end of a sentence about a missing YAML file: its nearest neighbour, or all that lie where it should be."""
    return what_fits(path.stem, sorted(file.stem for file in path.parent.glob("*.yaml")), "these exist")

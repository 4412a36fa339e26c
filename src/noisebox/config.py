"""The validated configuration of a run: lineage × scale, read from `params/`, checked before any work starts.

Precedence, weakest first: the defaults below, the scale file, then each recipe of the lineage from first to last for
`model` and `loss`; `solver` and `distill` come from the last recipe alone, because they say how this stage trains, and
its `finetune:` section counts only where the recipe has a parent.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noisebox import graph
from noisebox.errors import UserError, what_fits
from noisebox.files import read_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


SectionT = TypeVar("SectionT", bound=Section)


class SamplerConfig(Section):
    """How boxes are sampled at inference (DDIM, Song et al. 2021; DiffusionDet, Chen et al. 2023, section 3.4)."""

    eta: Fraction = 1.0
    box_renewal: bool = True
    renewal_threshold: Fraction = 0.5
    ensemble: Literal["all", "public", "none"] = "all"
    nms_threshold: Fraction = 0.5


class DiffusionDetConfig(Section):
    """Architecture of DiffusionDet: backbone, feature pyramid, dynamic head, diffusion of boxes."""

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
    snr_scale: Annotated[float, Field(gt=0)] = 2.0
    sampler: SamplerConfig = SamplerConfig()

    @model_validator(mode="after")
    def _attention_divides(self) -> "DiffusionDetConfig":
        if self.hidden_dim % self.attention_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of attention_heads {self.attention_heads}"
            )
        return self


# One line a family: the section that `model:` is checked against.
MODELS: dict[str, type[Section]] = {"diffusiondet": DiffusionDetConfig}


class LossConfig(Section):
    """Weights of the set-prediction loss and its dynamic-k matching (OTA, Ge et al. 2021)."""

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    ota_k: Positive = 5
    deep_supervision: bool = True


class SolverConfig(Section):
    """How a stage trains: `max_iter` is, if null, the scale's times `length`; the rate is `base_lr` × `lr_factor`."""

    base_lr: Annotated[float, Field(gt=0)] = 2.5e-5
    lr_factor: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    backbone_multiplier: Annotated[float, Field(ge=0)] = 1.0
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    max_iter: Positive | None = None
    length: Annotated[float, Field(gt=0)] = 1.0
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
    """A file of `params/scales/`: how big everything is."""

    dataset: str
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: Positive = 1
    workers: Count = 0
    eval_batch_size: Positive = 8
    image: ImageConfig = ImageConfig()
    solver: dict[str, Any] = {}
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


class ProtocolConfig(Section):
    """What every checkpoint is asked: each eval seed at each step count."""

    eval_seeds: Annotated[list[Count], Field(min_length=1)]
    sample_steps: Annotated[list[Positive], Field(min_length=1)]
    pictures: Count = 6


class ExperimentConfig(Section):
    """`params/experiment.yaml`: which scale, which lineages, which seeds, which protocol."""

    scale: str
    train_seeds: Annotated[list[Count], Field(min_length=1)]
    recipes: Annotated[list[str], Field(min_length=1)]
    parents: dict[str, list[str]] = {}
    lineages: Annotated[list[str], Field(min_length=1)]
    evaluation: ProtocolConfig

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
                        else f"add {ancestor.recipe!r} to recipes"
                    )
                    raise ValueError(f"lineages names {name!r}, but nothing trains {ancestor.name!r}: {fit}")
            for recipe in lineage.parts:
                if recipe not in self.recipes:
                    raise ValueError(f"lineages names {name!r}, but recipes does not list {recipe!r}")
        return self

    def planned_lineages(self) -> list[str]:
        """Every lineage that has a training stage: the recipes without parents, then recipe by recipe."""
        scratch = [recipe for recipe in self.recipes if recipe not in self.parents]
        return scratch + [f"{parent}+{recipe}" for recipe, parents in self.parents.items() for parent in parents]


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


def resolve(lineage: "graph.Lineage | str", seed: int, scale_name: str, root: Path = Path()) -> RunConfig:
    """The configuration of one run; raises UserError naming file, key and what fits."""
    lineage = graph.Lineage.parse(lineage) if isinstance(lineage, str) else lineage
    scale = load_scale(scale_name, root)
    recipes = [load_recipe(part, root) for part in lineage.parts]
    last, path = recipes[-1], root / graph.recipe_file(lineage.recipe)
    for part, recipe in zip(lineage.parts, recipes, strict=True):
        if recipe.family != last.family:
            raise UserError(
                f"lineage {lineage.name!r} mixes families: {part!r} is {recipe.family}, "
                f"{lineage.recipe!r} is {last.family}"
            )
    scale_path = root / graph.scale_file(scale_name)
    model = scale.models.get(last.family, {})
    check_section(MODELS[last.family], model, scale_path, f"models.{last.family}")
    loss: dict[str, Any] = {}
    for part, recipe in zip(lineage.parts, recipes, strict=True):
        model, loss = _merge(model, recipe.model), _merge(loss, recipe.loss)
        check_section(MODELS[last.family], model, root / graph.recipe_file(part), "model")
        check_section(LossConfig, loss, root / graph.recipe_file(part), "loss")
    check_section(SolverConfig, scale.solver, scale_path, "solver")
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
        solver=_solver(scale.solver, last, lineage.parent is not None, path),
        smoke=scale.smoke,
    )


def _solver(scale: dict[str, Any], recipe: RecipeConfig, has_parent: bool, path: Path) -> SolverConfig:
    check_section(SolverConfig, recipe.solver, path, "solver")
    check_section(SolverConfig, recipe.finetune, path, "finetune")
    own = _merge(recipe.solver, recipe.finetune if has_parent else {})
    solver = check_section(SolverConfig, _merge({**scale, "max_iter": None}, own), path, "solver")
    iterations = solver.max_iter or max(1, round(scale["max_iter"] * solver.length))
    return solver.model_copy(update={"max_iter": iterations})


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

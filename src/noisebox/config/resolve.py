"""From the files of `params/` to the configuration of one run: lineage × scale.

Precedence, weakest first: the defaults of the sections, the scale file, then each recipe of the lineage from first to
last for `model` and `loss`; `solver`, `precision` and `distill` come from the last recipe alone, because they say how
this stage trains, and its `finetune:` section counts only where the recipe has a parent; and overrides, that is dotted
keys such as `solver.base_lr`, over all. What a scale says of a recipe's model by its name stands over the recipe; what
a search found best for the recipe, over both, as it did in the search.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from noisebox import graph
from noisebox.config.best import best_of, with_values
from noisebox.config.experiment import ExperimentConfig
from noisebox.config.families import SECTIONS, Family, TeacherConfig, sections_of
from noisebox.config.run import (
    DURATIONS,
    FP16_ON_CPU,
    ImageConfig,
    RecipeConfig,
    RunConfig,
    ScaleConfig,
    SolverConfig,
    lasting,
    solver_over,
)
from noisebox.config.section import Section, check_overrides, check_section, first_complaint, merged, which_exist
from noisebox.errors import UserError, what_fits
from noisebox.files import parsed_yaml, read_yaml

# Who a run is, and who teaches it, is no setting of it.
NOT_OVERRIDDEN = ("lineage", "seed", "scale", "family")
OF_SCALE = ("dataset", "device", "precision", "threads", "workers", "eval_batch_size", "smoke")
SECTIONS_OF_A_RUN = ("image", "model", "loss", "solver", "smoke", "distill")
NOT_READ = ("detr.searches",)  # by the engines, which have no stage for it
NOT_OVERRIDDEN_WITHIN = ("distill.enable", "distill.teacher", "distill.teacher_seed")


def load_experiment(root: Path = Path()) -> ExperimentConfig:
    """Read and check `params/experiment.yaml`; UserError names the key and what fits. All keys must be there but those
    that are null by default, and NOT_READ: the engines read the file themselves, and know of no default."""
    path = root / graph.EXPERIMENT
    content = read_yaml(path)
    experiment = check_section(ExperimentConfig, content, path)
    if missing := next((key for key in _left_out(experiment, content) if key not in NOT_READ), None):
        raise UserError(f"{path}: key {missing!r} is missing, which both engines read; without any it is {{}} or []")
    return experiment


def _left_out(section: Section, content: dict[str, Any]) -> Iterator[str]:
    """The keys, with those above them, that a file leaves to their defaults, other than null."""
    for key, value in section:
        if value is not None and key not in content:
            yield key
        elif isinstance(value, Section):
            yield from (f"{key}.{within}" for within in _left_out(value, content[key]))


def load_scale(name: str, root: Path = Path()) -> ScaleConfig:
    """Read and check `params/scales/<name>.yaml`."""
    path = root / graph.scale_file(name)
    if not path.exists():
        raise UserError(f"scale {name!r} is unknown; {which_exist(root / graph.scale_file(Path(name).name))}")
    scale = check_section(ScaleConfig, read_yaml(path), path)
    _check_names(scale, path, "", root)
    _check_families(scale.families, scale, path, "families", root)
    for name, other in scale.datasets.items():
        within = f"datasets.{name}"
        if not (root / graph.dataset_file(name)).exists():
            raise UserError(f"{path}: {within} is no dataset; {which_exist(root / graph.dataset_file(name))}")
        if "dataset" in other:
            raise UserError(f"{path}: {within}.dataset: what is under {within} is of that dataset; take the key out")
        general = {key: value for key, value in other.items() if key != "families"}
        _check_families({"": general}, scale, path, within, root)
        _check_families(other.get("families", {}), scale, path, f"{within}.families", root)
    for family in SECTIONS:
        line, own = graph.line_of(family), _scale_of(scale, path, family).dataset
        if own != scale.dataset_of(line):
            raise UserError(
                f"{path}: family {family} has dataset {own!r}, but the line {line} has {scale.dataset_of(line)!r}: "
                "give all families of a line the same"
            )
    return scale


def _check_names(scale: ScaleConfig, path: Path, within: str, root: Path) -> None:
    """Raises UserError where a scale, or what it says under `within`, names what there is not: it would not count."""
    families = ", ".join(SECTIONS)
    for name in scale.models:
        if name not in SECTIONS and not (root / graph.recipe_file(name)).exists():
            raise UserError(f"{path}: {within}models.{name} is no recipe and no family; families are: {families}")
    for name in scale.losses:
        if name not in SECTIONS:
            raise UserError(f"{path}: {within}losses.{name} is no family; these are: {families}")
    for lineage in scale.lengths:
        _named(lineage, path, f"{within}lengths", root)


def _scale_of(scale: ScaleConfig, path: Path, family: str, dataset: str | None = None) -> ScaleConfig:
    """The scale as a family has it; raises UserError where keys that are fine each do not go together there."""
    try:
        return scale.of(family, dataset)
    except ValidationError as error:
        where, complaint = first_complaint(ScaleConfig, error, "")
        raise UserError(f"{path}: of family {family}: {where}{': ' if where else ''}{complaint}") from None


def _check_families(others: Any, scale: ScaleConfig, path: Path, within: str, root: Path) -> None:
    """Check what a scale says of families, by their names, under the key `within`; of none in particular under ""."""
    if not isinstance(others, dict):
        raise UserError(f"{path}: {within} must be a section of families, not {others!r}")
    for family, other in others.items():
        where = f"{within}.{family}" if family else within
        if family and family not in SECTIONS:
            raise UserError(f"{path}: {where} is no family; these are: {', '.join(SECTIONS)}")
        if not isinstance(other, dict):
            raise UserError(f"{path}: {where} must be a section of a scale's keys, not {other!r}")
        for key in ("families", "datasets", "resources"):
            if key in other:
                raise UserError(f"{path}: {where}.{key} has no effect there: {key} stands at the top of a scale")
        own = check_section(ScaleConfig, {"dataset": scale.dataset, **other}, path, where)
        _check_names(own, path, f"{where}.", root)
        for key in ("solver", "finetune"):
            check_section(SolverConfig, other.get(key, {}), path, f"{where}.{key}")


def load_recipe(name: str, root: Path = Path()) -> RecipeConfig:
    """Read and check `params/recipes/<name>.yaml`."""
    path = root / graph.recipe_file(name)
    if not path.exists():
        raise UserError(f"recipe {name!r} is missing: {path} does not exist; {which_exist(path)}")
    recipe = check_section(RecipeConfig, read_yaml(path), path)
    if recipe.family not in SECTIONS:
        raise UserError(f"{path}: family {recipe.family!r} is unknown; these are: {', '.join(SECTIONS)}")
    return recipe


def resolve(
    lineage: graph.Lineage | str,
    seed: int,
    scale_name: str,
    root: Path = Path(),
    *,
    smoke: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of one run; raises UserError naming file, or override, key and what fits.

    A distillation needs a teacher, and what takes the best of a search its results, but for the smoke run. Where the
    solver counts in epochs its `max_iter` is null until the task, which knows the dataset, gives it.
    """
    lineage = _parsed(lineage)
    recipes = _recipes(lineage, root)
    whole, scale_path = load_scale(scale_name, root), root / graph.scale_file(scale_name)
    scale = _scale_of(whole, scale_path, recipes[-1].family, _dataset(_nested(overrides or {}), root))
    best = {} if smoke else _best(lineage, recipes, root)
    if not smoke:
        teacher_of(lineage, seed, root)
    return combined(lineage, seed, scale_name, scale, recipes, root, overrides=overrides, best=best)


def combined(
    lineage: graph.Lineage,
    seed: int,
    scale_name: str,
    scale: ScaleConfig,
    recipes: Sequence[RecipeConfig],
    root: Path = Path(),
    *,
    overrides: Mapping[str, Any] | None = None,
    best: Mapping[str, Mapping[str, Any]] | None = None,
) -> RunConfig:
    """The configuration of one run from its scale and the recipes of its lineage, wherever they were read, and by
    recipe the values that a search found best; raises UserError naming the file below `root` that they would stand in,
    or the override, key and what fits."""
    others, best = _nested(overrides or {}), best or {}
    recipes = [with_values(recipe, best.get(part, {})) for part, recipe in zip(lineage.parts, recipes, strict=True)]
    last, path = recipes[-1], root / graph.recipe_file(lineage.recipe)
    scale_path = root / graph.scale_file(scale_name)
    sections = sections_of(last.family)
    model = _sized({}, scale, last.family, sections, scale_path)
    loss: dict[str, Any] = scale.losses.get(last.family, {})
    check_section(sections.loss, loss, scale_path, f"losses.{last.family}")
    for part, recipe in zip(lineage.parts, recipes, strict=True):
        recipe_path = root / graph.recipe_file(part)
        model, loss = merged(model, recipe.model), merged(loss, recipe.loss)
        check_section(sections.model, model, recipe_path, "model")
        check_section(sections.loss, loss, recipe_path, "loss")
        if part != last.family:
            model = _sized(model, scale, part, sections, scale_path)
        if part in best:
            model = merged(model, _nested(best[part]).get("model", {}))
            check_section(sections.model, model, recipe_path, "model")
    sized = _as_asked(scale, last, others, path)
    solver = _solver(sized, last, lineage, path, scale_path, others.get("solver", {}))
    resolved = check_overrides(sections.model, merged(model, others.get("model", {})), "model")
    return RunConfig(
        lineage=lineage.name,
        seed=seed,
        scale=scale_name,
        family=last.family,
        dataset=sized.dataset,
        device=sized.device,
        precision=sized.precision,
        threads=sized.threads,
        workers=sized.workers,
        eval_batch_size=sized.eval_batch_size,
        image=_image(sized, solver, others.get("image", {}), sections, resolved, scale_path),
        model=resolved,
        loss=check_overrides(sections.loss, merged(loss, others.get("loss", {})), "loss"),
        solver=solver,
        smoke=sized.smoke,
        distill=_distill(last, sections, path, others.get("distill")),
    )


def teacher_of(
    lineage: graph.Lineage | str,
    seed: int,
    root: Path = Path(),
    place: Callable[[str, int], str] = graph.checkpoint,
) -> str | None:
    """The checkpoint that a run learns from, below `root`; None where its last recipe distils nothing. Those of
    lineages and seeds lie where `place` says.

    Raises UserError when there is nobody to learn from, or nobody of that name or family.
    """
    lineage = _parsed(lineage)
    recipe, path = load_recipe(lineage.recipe, root), root / graph.recipe_file(lineage.recipe)
    distill = _distill(recipe, sections_of(recipe.family), path)
    if distill is None:
        return None
    if distill.teacher and distill.teacher.endswith(".pth"):
        return distill.teacher
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
    return place(teacher.name, seed if distill.teacher_seed is None else distill.teacher_seed)


def _dataset(others: dict[str, Any], root: Path) -> str | None:
    """The dataset that overrides name; raises UserError when there is none of that name."""
    name = others.get("dataset")
    if not isinstance(name, str | None):
        raise UserError(f"override 'dataset' must be a name, not {name!r}")
    if name is not None and not (root / graph.dataset_file(name)).exists():
        raise UserError(f"override 'dataset': there is no {name!r}; {which_exist(root / graph.dataset_file(name))}")
    return name


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"solver.base_lr": 1}` as `{"solver": {"base_lr": 1}}`; raises UserError at a key that no run has."""
    nested: dict[str, Any] = {}
    known = [key for key in RunConfig.model_fields if key not in NOT_OVERRIDDEN]
    for dotted, value in overrides.items():
        first, *others = dotted.split(".")
        if first in NOT_OVERRIDDEN or dotted in NOT_OVERRIDDEN_WITHIN:
            raise UserError(f"override {dotted!r}: {first} says what a run is, and cannot be overridden")
        if first not in known:
            raise UserError(f"override {dotted!r} does not exist; {what_fits(first, known, 'known keys')}")
        for key in reversed(others):
            value = {key: value}
        if first in SECTIONS_OF_A_RUN and not isinstance(value, dict):
            raise UserError(f"override {dotted!r} is a section: name one of its keys, as in solver.base_lr")
        nested = merged(nested, {first: value})
    return nested


def _distill(
    recipe: RecipeConfig, sections: Family, path: Path, others: dict[str, Any] | None = None
) -> TeacherConfig | None:
    """How a recipe distils, None where it does not; `others` overrides it."""
    distill = None
    if recipe.distill is not None:
        if sections.distill is None:
            raise UserError(f"{path}: family {recipe.family!r} cannot be distilled: take distill out")
        distill = check_section(sections.distill, recipe.distill, path, "distill")
    if distill is None or not distill.enable:
        if others:
            raise UserError(f"override 'distill.{next(iter(others))}': recipe {path.stem!r} does not distil")
        return None
    return check_overrides(type(distill), merged(distill.model_dump(), others or {}), "distill")


def _sized(model: dict[str, Any], scale: ScaleConfig, name: str, sections: Family, path: Path) -> dict[str, Any]:
    """`model` with what the scale says under `models.<name>`."""
    model = merged(model, scale.models.get(name, {}))
    check_section(sections.model, model, path, f"models.{name}")
    return model


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


def _best(lineage: graph.Lineage, recipes: Sequence[RecipeConfig], root: Path) -> dict[str, dict[str, Any]]:
    """By recipe, for those of a lineage that take the best of a search, its values."""
    taken = {part: recipe.from_search for part, recipe in zip(lineage.parts, recipes, strict=True)}
    return {part: best_of(search.name, search.rank, root) for part, search in taken.items() if search}


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


def _as_asked(scale: ScaleConfig, recipe: RecipeConfig, others: dict[str, Any], path: Path) -> ScaleConfig:
    """The scale with the recipe's precision, and with what overrides say of its own keys."""
    own = {key: others[key] for key in OF_SCALE if key in others}
    if recipe.precision and "precision" not in own:
        if recipe.precision == "fp16" and own.get("device", scale.device) == "cpu":
            raise UserError(f"{path}: {FP16_ON_CPU}")
        own["precision"] = recipe.precision
    return check_overrides(ScaleConfig, merged(scale.model_dump(), own))


def _solver(
    scale: ScaleConfig,
    recipe: RecipeConfig,
    lineage: graph.Lineage,
    path: Path,
    scale_path: Path,
    others: dict[str, Any],
) -> SolverConfig:
    for values, section, file in (
        (scale.solver, "solver", scale_path),
        (scale.finetune, "finetune", scale_path),
        (recipe.solver, "solver", path),
        (recipe.finetune, "finetune", path),
    ):
        check_section(SolverConfig, values, file, section)
        _one_duration(values, f"{file}: {section}")
    _one_duration(others, "override 'solver'")
    if not lasting(scale.solver):
        raise UserError(
            f"{scale_path}: solver.max_iter is missing; give the iterations, or epochs, of a training from scratch"
        )
    given, own = scale.solver, recipe.solver
    if lineage.parent:
        given, own = solver_over(given, scale.finetune), solver_over(own, recipe.finetune)
    check_section(SolverConfig, merged({**given, **dict.fromkeys(DURATIONS)}, own), path, "solver")
    own = solver_over(own, others)
    solver = check_overrides(SolverConfig, merged({**given, **dict.fromkeys(DURATIONS)}, own), "solver")
    length = solver.length if "length" in others else scale.lengths.get(lineage.name, solver.length)
    if lasting(own):
        return solver.model_copy(update={"length": length})
    durations = {key: given.get(key) for key in DURATIONS}
    lasts = check_section(SolverConfig, durations, scale_path, "solver")  # as numbers: YAML may have them as text
    if lasts.epochs:
        return solver.model_copy(update={"epochs": lasts.epochs * length, "length": length})
    iterations = max(1, round(lasts.iterations * length))
    return solver.model_copy(update={"max_iter": iterations, "length": length})


def _one_duration(solver: dict[str, Any], where: str) -> None:
    if len(lasting(solver)) > 1:
        raise UserError(f"{where} has both max_iter and epochs: a training lasts so many iterations or so many epochs")


def _image(
    scale: ScaleConfig, solver: SolverConfig, others: dict[str, Any], sections: Family, model: Section, path: Path
) -> ImageConfig:
    """How images are shown to a model; a training that is to overfit shows them as they are evaluated."""
    image = check_overrides(ImageConfig, merged(scale.image.model_dump(), others), "image")
    if image.crop and not sections.shows_parts:
        raise UserError(f"{path}: image.crop: this family sees whole images in training; take it out for the family")
    if solver.overfit:
        as_evaluated = {"train_short_edges": [image.eval_short_edge], "resize_schedule": [], "flip": 0.0, "crop": None}
        return image.model_copy(update=as_evaluated)
    if image.flip and (fault := sections.lopsided(model)):
        raise UserError(f"{path}: image.flip is {image.flip:g}, but {fault}; set image.flip to 0 for the family")
    return image


def overrides_of(settings: Sequence[str]) -> dict[str, Any]:
    """Overrides from `KEY=VALUE` as typed on a command line, the value in YAML; raises UserError where one is not."""
    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise UserError(f"--set takes KEY=VALUE, such as solver.base_lr=0.001, not {setting!r}")
        if key in overrides:
            raise UserError(f"override {key!r} is given twice")
        try:
            overrides[key] = parsed_yaml(value)
        except (yaml.YAMLError, ValueError):  # such as a date in a month that there is not
            raise UserError(f"override {key!r}: {value!r} is not valid YAML") from None
    return overrides

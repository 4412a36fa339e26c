"""From the files of `params/` to the configuration of one run: lineage × scale.

Precedence, weakest first: the defaults of the sections, the scale file, then each recipe of the lineage from first to
last for `model` and `loss`; `solver` and `distill` come from the last recipe alone, because they say how this stage
trains, and its `finetune:` section counts only where the recipe has a parent.
"""

from pathlib import Path
from typing import Any

from noisebox import graph
from noisebox.config.experiment import ExperimentConfig
from noisebox.config.families import SECTIONS, Family, TeacherConfig, sections_of
from noisebox.config.run import RecipeConfig, RunConfig, ScaleConfig, SolverConfig
from noisebox.config.section import check_section, merged, which_exist
from noisebox.errors import UserError
from noisebox.files import read_yaml


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
    for name in scale.models:
        if name not in SECTIONS and not (root / graph.recipe_file(name)).exists():
            raise UserError(f"{path}: models.{name} is no recipe and no family; families are: {', '.join(SECTIONS)}")
    for family, other in scale.families.items():
        if family not in SECTIONS:
            raise UserError(f"{path}: families.{family} is no family; these are: {', '.join(SECTIONS)}")
        check_section(ScaleConfig, {"dataset": scale.dataset, **other}, path, f"families.{family}")
    for family in SECTIONS:
        line, own = graph.line_of(family), scale.of(family).dataset
        if own != scale.dataset_of(line):
            raise UserError(
                f"{path}: family {family} has dataset {own!r}, but the line {line} has {scale.dataset_of(line)!r}: "
                "give all families of a line the same"
            )
    for lineage in scale.lengths:
        _named(lineage, path, "lengths", root)
    return scale


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
    sized = scale.of(last.family)
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
        image=sized.image,
        model=sections.model(**model),
        loss=sections.loss(**loss),
        solver=_solver(sized, last, lineage, path, scale_path),
        smoke=sized.smoke,
        distill=_distill(last, sections, path),
    )


def teacher_of(lineage: graph.Lineage | str, seed: int, root: Path = Path()) -> str | None:
    """The checkpoint that a run learns from, below `root`; None where its last recipe distils nothing.

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
    return graph.checkpoint(teacher.name, seed if distill.teacher_seed is None else distill.teacher_seed)


def _distill(recipe: RecipeConfig, sections: Family, path: Path) -> TeacherConfig | None:
    """How a recipe distils, None where it does not."""
    if recipe.distill is None:
        return None
    if sections.distill is None:
        raise UserError(f"{path}: family {recipe.family!r} cannot be distilled: take distill out")
    distill = check_section(sections.distill, recipe.distill, path, "distill")
    return distill if distill.enable else None


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


def _solver(
    scale: ScaleConfig, recipe: RecipeConfig, lineage: graph.Lineage, path: Path, scale_path: Path
) -> SolverConfig:
    check_section(SolverConfig, scale.solver, scale_path, "solver")
    check_section(SolverConfig, scale.finetune, scale_path, "finetune")
    if "max_iter" not in scale.solver:
        raise UserError(f"{scale_path}: solver.max_iter is missing; give the iterations of a training from scratch")
    check_section(SolverConfig, recipe.solver, path, "solver")
    check_section(SolverConfig, recipe.finetune, path, "finetune")
    given, own = scale.solver, recipe.solver
    if lineage.parent:
        given, own = merged(given, scale.finetune), merged(own, recipe.finetune)
    solver = check_section(SolverConfig, merged({**given, "max_iter": None}, own), path, "solver")
    length = scale.lengths.get(lineage.name, solver.length)
    iterations = solver.max_iter or max(1, round(given["max_iter"] * length))
    return solver.model_copy(update={"max_iter": iterations, "length": length})

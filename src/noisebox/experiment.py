"""The whole experiment checked before an engine starts anything, so that no mistake waits behind hours of training."""

from pathlib import Path

from noisebox import graph
from noisebox.config import ExperimentConfig, RunConfig, load_recipe, resolve, teacher_of
from noisebox.config.search import Search
from noisebox.errors import UserError


def check_experiment(experiment: ExperimentConfig, root: Path = Path()) -> None:
    """Resolve every recipe and lineage in use, hold what each is asked against its model, and check the searches.

    Raises UserError naming file, key and what fits.
    """
    for name, section in experiment.sections().items():
        for recipe in section.recipes:
            family = resolve(recipe, 0, experiment.scale, root, smoke=True).family
            if graph.section_of(family) != name:
                raise UserError(
                    f"{root / graph.EXPERIMENT}: {recipe!r} is of family {family}, whose recipes stand under "
                    f"{graph.section_of(family)}, not among those of {name}"
                )
        for lineage in dict.fromkeys([*section.planned_lineages(), *section.lineages]):
            _resolved(lineage, experiment, root)
    for lineage in experiment.lineages:
        model = _resolved(lineage, experiment, root).model
        guided = "guidance" in experiment.asked[lineage]
        if guided and not getattr(model, "quality_head", False):
            raise UserError(
                f"{root / graph.EXPERIMENT}: asked.{lineage} has guidance, which needs a quality head: add a recipe "
                "that sets model.quality_head to the lineage, such as qhead, or take guidance out"
            )
    _check_searches(experiment, root)


def _resolved(lineage: str, experiment: ExperimentConfig, root: Path) -> RunConfig:
    """The configuration of a lineage, without what it takes of a search that is still to be made."""
    recipes = [load_recipe(part, root) for part in graph.Lineage.parse(lineage).parts]
    taken = [recipe.from_search.name for recipe in recipes if recipe.from_search]
    waits = any(name in experiment.every_search() and not (root / graph.search_csv(name)).exists() for name in taken)
    if waits:
        teacher_of(lineage, 0, root)
    return resolve(lineage, 0, experiment.scale, root, smoke=waits)


def _check_searches(experiment: ExperimentConfig, root: Path) -> None:
    for name, recipe in experiment.every_search().items():
        search, path = Search(Path(graph.search_file(name)), experiment.scale, root), root / graph.search_file(name)
        if search.config.lineage != recipe:
            raise UserError(
                f"{root / graph.EXPERIMENT}: searches.{name} is {recipe!r}, but {path} tunes {search.config.lineage!r}"
            )
        if isinstance(search.config.trials, str):
            raise UserError(
                f"{path}: trials names the file {search.config.trials}, which the graph does not watch: put the list "
                "itself there (JSON is YAML)"
            )
        earlier = load_recipe(recipe, root).from_search
        needed = teacher_of(recipe, search.config.seed, root) or (earlier and graph.search_csv(earlier.name))
        if needed:
            raise UserError(
                f"{root / graph.EXPERIMENT}: searches.{name}: {recipe!r} needs {needed}, for which no stage of a "
                f"search waits: take {name!r} out there, and run noisebox search {graph.search_file(name)}"
            )
    for recipe in experiment.tuned:
        taken, path = load_recipe(recipe, root).from_search, root / graph.recipe_file(recipe)
        if taken is None or taken.name != recipe:
            raise UserError(
                f"{path}: from_search.name must be {recipe!r}, because {graph.EXPERIMENT} has it under tuned"
            )

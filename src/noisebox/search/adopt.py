"""The best of a search become recipes, ready for the graph."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from noisebox import graph
from noisebox.config import RecipeConfig, load_recipe, load_scale
from noisebox.config.best import Trial, best_of, ranked, read_trials, with_values
from noisebox.config.search import load_search
from noisebox.errors import UserError
from noisebox.files import write_text


def adopt(path: Path, count: int, scale: str, root: Path = Path()) -> Iterator[str]:
    """Write the best `count` trials of the search in `path` as recipes `<search>_best1` and so on; yields what to say.

    Raises UserError when fewer were completed, or a recipe of that name says something else; nothing is written then.
    """
    search, results = load_search(path, root), root / graph.search_csv(path.stem)
    best = ranked(read_trials(results))[:count]
    if len(best) < count:
        raise UserError(f"{results}: {len(best)} trials completed, so {count} cannot be taken")
    lineage = graph.Lineage.parse(search.lineage)
    recipe = load_recipe(lineage.recipe, root)
    if taken := recipe.from_search:  # the trials stood over its best, which the new ones do not take
        recipe = with_values(recipe, best_of(taken.name, taken.rank, root))
    texts = {f"{path.stem}_best{rank}": _text(recipe, trial, path.stem) for rank, trial in enumerate(best, start=1)}
    for name, text in texts.items():
        file = root / graph.recipe_file(name)
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise UserError(f"{file} exists and says something else; rename it or delete it, and adopt again")
    for name, text in texts.items():
        write_text(root / graph.recipe_file(name), text)
        of_lineage = graph.Lineage((*lineage.parts[:-1], name)).name
        where = f"parents.{name}: [{lineage.parent.name}]" if lineage.parent else "scratch"
        asked = ", asked" if graph.section_of(recipe.family) == "detection" else ""
        keys = f"recipes, {where}, lineages{asked}"
        yield f"{graph.recipe_file(name)}; to make {of_lineage}: {graph.EXPERIMENT}, under {keys}"
    yield from _by_name(lineage, scale, root)


def _text(recipe: RecipeConfig, trial: Trial, search: str) -> str:
    """The recipe with the values of a trial, as its file says it."""
    tuned = with_values(recipe, trial.values)
    sections = tuned.model_dump(exclude={"description", "family", "from_search"}, exclude_defaults=True)
    said = f"{recipe.description}; tuned by trial {trial.number} of search {search}, whose metric was {trial.score:.4f}"
    return yaml.safe_dump({"description": said, "family": recipe.family, **sections}, sort_keys=False, width=120)


def _by_name(lineage: graph.Lineage, scale: str, root: Path) -> Iterator[str]:
    """What the scale says of the tuned recipe by its name, and so does not say of the new ones."""
    said, sized = load_scale(scale, root), lineage.recipe
    keys = [f"models.{sized}"] if sized in said.models and sized != load_recipe(sized, root).family else []
    keys += [f"lengths.{lineage.name}"] if lineage.name in said.lengths else []
    if keys:
        yield f"{graph.scale_file(scale)} has {' and '.join(keys)}: say the same of the new ones, if they need it"

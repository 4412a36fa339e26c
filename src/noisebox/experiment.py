"""The whole experiment checked before an engine starts anything, so that no mistake waits behind hours of training."""

from pathlib import Path

from noisebox import graph
from noisebox.config import ExperimentConfig, resolve
from noisebox.errors import UserError


def check_experiment(experiment: ExperimentConfig, root: Path = Path()) -> None:
    """Resolve every recipe and lineage in use, and hold what each is asked against its model.

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
            resolve(lineage, 0, experiment.scale, root)
    for lineage in experiment.lineages:
        model = resolve(lineage, 0, experiment.scale, root).model
        guided = "guidance" in experiment.asked[lineage]
        if guided and not getattr(model, "quality_head", False):
            raise UserError(
                f"{root / graph.EXPERIMENT}: asked.{lineage} has guidance, which needs a quality head: add a recipe "
                "that sets model.quality_head to the lineage, such as qhead, or take guidance out"
            )

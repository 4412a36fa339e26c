"""The whole experiment checked before an engine starts anything, so that no mistake waits behind hours of training."""

from pathlib import Path

from noisebox import graph
from noisebox.config import ExperimentConfig, resolve
from noisebox.errors import UserError


def check_experiment(experiment: ExperimentConfig, root: Path = Path()) -> None:
    """Resolve every recipe and lineage in use, and hold what each is asked against its model.

    Raises UserError naming file, key and what fits.
    """
    for recipe in experiment.recipes:
        resolve(recipe, 0, experiment.scale, root, smoke=True)
    for lineage in dict.fromkeys([*experiment.planned_lineages(), *experiment.lineages]):
        model = resolve(lineage, 0, experiment.scale, root).model
        guided = lineage in experiment.lineages and "guidance" in experiment.asked[lineage]
        if guided and not getattr(model, "quality_head", False):
            raise UserError(
                f"{root / graph.EXPERIMENT}: asked.{lineage} has guidance, which needs a quality head: add a recipe "
                "that sets model.quality_head to the lineage, such as qhead, or take guidance out"
            )

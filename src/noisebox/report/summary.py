"""`reports/summary.md`, and everything it shows: read every evaluation of the experiment, write graph.REPORT_FILES.

Only files below `evals/` and `imported/`, and the images that they name, are read, nothing tells the time, and the
order is the experiment's: the same inputs give the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import pandas as pd

from noisebox import graph
from noisebox.config import ExperimentConfig, ProtocolsConfig
from noisebox.files import write_json, write_text
from noisebox.report import aerial, bev, detail, imported, pictures, plots, sections, tables
from noisebox.report.evaluations import (
    CLASS_PREFIX,
    Asked,
    Evaluated,
    Run,
    asked,
    detections_path,
    iterations_before,
    read_run,
    under_all,
    unguided,
)
from noisebox.report.manifest import report_entries, write_manifest
from noisebox.report.markdown import listed, plot
from noisebox.report.outcome import outcome
from noisebox.report.pictures import Pictures, read_pictures
from noisebox.report.plots import Curve


@dataclass(frozen=True)
class Tables:
    """The report's tables; each is written to `tables/<name>.tsv`."""

    main: pd.DataFrame
    differences: pd.DataFrame
    steps: pd.DataFrame
    speed: pd.DataFrame
    tradeoff: pd.DataFrame
    guidance: pd.DataFrame
    ablations: pd.DataFrame
    distillation: pd.DataFrame
    errors: pd.DataFrame
    sizes: pd.DataFrame


@dataclass(frozen=True)
class Evidence:
    """All that the report is made from: the experiment, its runs, by protocol the rows that it asks for, by student its
    teachers, by lineage the iterations of its last stage, and by lineage of the picture grid what to show of its run of
    the first train seed."""

    experiment: ExperimentConfig
    runs: Sequence[Run]
    asked: Mapping[str, Asked]
    taught: tables.Taught
    iterations: dict[str, str]
    pictured: dict[str, Pictures]

    def tabulated(self) -> Tables:
        main, noiseless = self.asked["main"], self.experiment.detr.lineages
        return Tables(
            main=tables.without_noise(tables.main_table(main.results, self.iterations), noiseless),
            differences=tables.without_noise(tables.differences_table(main.results, self.iterations), noiseless),
            steps=tables.without_noise(tables.steps_table(main.results), noiseless),
            speed=tables.without_noise(tables.speed_table(main.speed), noiseless),
            tradeoff=tables.tradeoff_table(self.asked["steps"]),
            guidance=tables.guidance_table(self.asked["guidance"]),
            ablations=tables.ablations_table(self.asked["ablations"], self.experiment.ablations, self.iterations),
            distillation=tables.distillation_table(self.asked["distillation"], self.taught),
            errors=tables.without_noise(tables.errors_table(self.of_main()), noiseless),
            sizes=tables.without_noise(tables.sizes_table(self.of_main()), noiseless),
        )

    def of_main(self) -> list[Run]:
        """The runs of the main table's lineages."""
        lineages = self.experiment.lineages_asked("main")
        return [run for run in self.runs if run.lineage in lineages]

    def scalars(self) -> dict[str, dict[str, float | None]]:
        """By lineage, those that are not in the main table included, what it has of the protocol main."""
        main, noiseless = self.experiment.protocols.main, self.experiment.detr.lineages
        every = unguided(self.runs, list(dict.fromkeys(self.experiment.lineages)), main.eval_seeds).results
        asked, once = every[every["sample_step"].isin(main.sample_steps)], self.asked["main"].results
        of_all = pd.concat([asked, once[once["run"].isin(noiseless)]])
        found = tables.scalars(of_all, len(set(main.eval_seeds)), noiseless)
        return {lineage: found.get(lineage, {}) for lineage in self.experiment.detectors()}


def gather(experiment: ExperimentConfig, root: Path) -> Evidence:
    """Read the evaluations of every lineage and train seed of the experiment.

    Raises UserError when one is missing or broken, or lacks a row that a protocol asks for.
    """
    lineages, seeds = experiment.detectors(), dict.fromkeys(experiment.train_seeds)
    runs = [read_run(lineage, seed, root) for lineage in lineages for seed in seeds]
    rows = asked(runs, experiment)
    if experiment.protocols.distillation and (compared := experiment.lineages_asked("distillation")):
        rows["distillation"] = under_all(runs, compared, experiment.protocols.distillation.eval_seeds)
    iterations = {name: listed(run.iterations for run in runs if run.lineage == name) for name in lineages}
    taught = tables.students(runs, experiment.lineages_asked("distillation"))
    first = next(iter(seeds))
    pictured = {name: read_pictures(root / detections_path(name, first)) for name in experiment.pictures.lineages}
    return Evidence(experiment, runs, rows, taught, iterations, pictured)


def write_report(experiment: ExperimentConfig, root: Path) -> list[Path]:
    """Write graph.REPORT_FILES and graph.METRICS below `root` from the evaluations of every lineage and train seed of
    the experiment.

    Returns the paths of what was written. Raises UserError when an evaluation is missing or broken; nothing is written
    then.
    """
    evidence, from_above, of_bev = (
        gather(experiment, root),
        aerial.gather(experiment, root),
        bev.gather(experiment, root),
    )
    found, of_aerial, maps = evidence.tabulated(), aerial.tabulated(from_above), bev.tabulated(of_bev)
    past = imported.imported_table(imported.read_imported(root))
    reports = root / graph.REPORTS
    classes = [name.removeprefix(CLASS_PREFIX) for name in tables.class_columns(found.main)]
    grid = pictures.picture_grid(evidence.pictured, classes, root)
    pictures.write_png(grid, reports / "pictures/detections.png")
    _write_plots(evidence, found, reports / "plots")
    for table in fields(found):
        write_text(reports / f"tables/{table.name}.tsv", tables.tsv(getattr(found, table.name)))
    write_text(reports / "tables/imported.tsv", tables.tsv(past))
    aerial.write(from_above, of_aerial, reports)
    _write_metrics(evidence.scalars(), root / graph.METRICS)
    bev.write(of_bev, maps, reports)
    every: list[Evaluated] = [*evidence.runs, *from_above.runs, *of_bev.runs]
    others = [*aerial.section(from_above, of_aerial), *bev.section(of_bev, maps)]
    write_text(reports / "summary.md", summary(evidence, found, others, imported.section(past), every))
    write_manifest(root / graph.RESULTS_MANIFEST, report_entries(experiment, every, root))
    return [root / path for path in (*graph.report_outputs(), graph.METRICS)]


def _write_metrics(metrics: Mapping[str, Mapping[str, float | None]], folder: Path) -> None:
    """A file for each lineage; those of lineages that are no longer reported go."""
    for lineage, scalars in metrics.items():
        write_json(folder / f"{lineage}.json", scalars)
    for path in folder.glob("*.json"):
        if path.stem not in metrics:
            path.unlink()


def _write_plots(evidence: Evidence, found: Tables, folder: Path) -> None:
    """Every plot; words in place of those that have nothing to draw."""
    looks = {lineage: plots.appearance(place) for place, lineage in enumerate(evidence.experiment.detectors())}
    of_main, of_tradeoff = (
        {lineage: looks[lineage] for lineage in table["run"].unique()} for table in (found.main, found.tradeoff)
    )
    curves = [curve for curve in training_curves(evidence.runs) if curve.lineage in of_main]
    points = tables.tradeoff_table(evidence.asked["distillation"])
    plots.loss_plot(curves, of_main, folder / "loss.png")
    plots.steps_plot(evidence.asked["main"].results, of_main, folder / "steps.png", evidence.experiment.detr.lineages)
    breakdowns = tables.of_lineage(evidence.of_main())
    detail.curves_plot(breakdowns, of_main, folder / "curves.png")
    detail.confusion_plot(breakdowns, folder / "confusion.png")
    detail.errors_plot(breakdowns, of_main, folder / "errors.png")
    optional: dict[str, tuple[Path, Callable[[Path], None]]] = {
        "steps": (folder / "tradeoff.png", partial(plots.tradeoff_plot, found.tradeoff, of_tradeoff)),
        "guidance": (folder / "guidance.png", partial(plots.guidance_plot, found.guidance)),
        "distillation": (
            folder / "distillation.png",
            partial(plots.distillation_plot, found.distillation, points, looks),
        ),
    }
    missing = nothing_to_show(evidence.experiment, found)
    for name, (path, draw) in optional.items():
        if name in missing:
            plots.words_plot(missing[name], path)
        else:
            draw(path)


def nothing_to_show(experiment: ExperimentConfig, found: Tables) -> dict[str, str]:
    """The protocols that have neither section nor plot, each with the sentence that says why."""
    declared = experiment.protocols.by_name()
    missing = {
        name: f"The experiment declares no protocol {name}."
        for name in ProtocolsConfig.model_fields
        if name not in declared
    }
    if "guidance" in declared and not (found.guidance["guidance_scale"] > 0).any():
        missing["guidance"] = "The protocol guidance has no scale above 0."
    if "distillation" in declared and found.distillation.empty:
        missing["distillation"] = "The protocol distillation has no student at the steps that it asks for."
    of_none = [name for name in declared if not experiment.lineages_asked(name)]
    return missing | {name: f"No lineage is asked the protocol {name}." for name in of_none}


def training_curves(runs: Sequence[Run]) -> list[Curve]:
    """Each run's loss over its own iterations, after those of its ancestors, as far as these are in the report."""
    iterations = {(run.lineage, run.train_seed): run.iterations for run in runs}
    curves = []
    for run in runs:
        start = iterations_before(run.lineage, run.train_seed, iterations)
        steps, losses = tuple(run.training), tuple(run.training.values())
        curves.append(Curve(run.lineage, run.train_seed, steps, losses, start))
    return curves


def summary(
    evidence: Evidence, found: Tables, others: Sequence[str], past: Sequence[str], every: Sequence[Evaluated]
) -> str:
    """The text of summary.md; its numbers are those of the tables, which are rounded already. `others` are the sections
    of the other lines of research, `past` is that of past experiments, `every` are the runs of all lines."""
    experiment, runs, taught = evidence.experiment, evidence.runs, evidence.taught
    results, missing = evidence.asked["main"].results, nothing_to_show(experiment, found)
    students = {run.lineage for run in runs if run.teacher}

    def unless_missing(name: str, *parts: str) -> Sequence[str]:
        return [missing[name]] if name in missing else parts

    parts = [
        "# Results",
        outcome(found.main, found.tradeoff, found.distillation, found.differences, students),
        "## What was run",
        sections.what_was_run(experiment, runs, evidence.iterations),
        "## Average precision",
        sections.main(found.main),
        *sections.nan_note(results),
        "Each train seed, mean over its eval seeds:",
        sections.train_seeds(found.steps),
        plot("AP against sampling steps", "steps"),
        sections.steps_caption(found.main),
        "### By class and size",
        sections.classes(found.main),
        "## Differences",
        sections.differences(found.differences),
        "## Step trade-off",
        *unless_missing(
            "steps",
            sections.tradeoff(found.tradeoff),
            plot("AP and seconds per image against sampling steps", "tradeoff"),
            f"*AP{sections.bars(found.tradeoff)} and seconds per image against sampling steps.*",
        ),
        "## Distillation",
        *unless_missing(
            "distillation",
            sections.distillation(found.distillation, evidence.asked["distillation"], taught, runs),
            plot("AP against seconds per image", "distillation"),
            f"*AP{sections.bars(found.distillation)} against seconds per image: students at the steps of the table "
            "(filled), teachers at all steps measured under the protocol's eval seeds, up to those that were learned "
            "from (joined); above the plot, sampling steps at their mean time.*",
        ),
        "## Ablations",
        *unless_missing("ablations", sections.ablations(found.ablations)),
        "## Guidance",
        *unless_missing(
            "guidance",
            sections.guidance(found.guidance),
            plot("Difference of AP to no guidance", "guidance"),
            "*Difference of AP to no guidance, by guidance scale and Langevin steps k: blue above, red below; with a "
            "star where the table's verdict is better or worse. The intervals are in the table.*",
        ),
        "## Errors",
        sections.errors(found.errors),
        plot("AP50 gained without each kind of error", "errors"),
        sections.errors_caption(found.errors),
        plot("Precision against recall", "curves"),
        "*Precision against recall, means over train and eval seeds, as far as any detection reaches.* Numbers: "
        "breakdown.json as above.",
        plot("Confusion of classes", "confusion"),
        sections.confusion_caption([run.breakdown for run in evidence.of_main()]),
        sections.sizes(found.sizes),
        "## Speed",
        sections.speed(found.speed),
        "## Training",
        plot("Training loss", "loss"),
        "*Training loss of each train seed of the main table's lineages (thin) and its mean over them (thick), "
        "averaged over hundredths of the axis; finetunes below, from where their parents ended. Losses of different "
        "recipes may have different terms.* Numbers: training.csv under [Provenance](#provenance).",
        "## Pictures",
        "![Ground truth and detections](pictures/detections.png)",
        sections.pictures_caption(evidence.pictured, runs[0].train_seed),
        *others,
        *(["## Budget searches", sections.searches(experiment)] if experiment.every_search() else []),
        *past,
        "## Provenance",
        sections.provenance(every),
    ]
    return "\n\n".join(parts) + "\n"

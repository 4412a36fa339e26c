# The graph, for Snakemake. `params/` says what exists, workflow/rules/ how each part is made, and dvc.yaml says the
# same to DVC; tests/test_parity.py holds the two together.
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from noisebox import graph
from noisebox.config import load_experiment, load_recipe, load_scale, resolve, teacher_of
from noisebox.errors import UserError
from noisebox.experiment import check_experiment
from noisebox.files import read_yaml
from snakemake.exceptions import WorkflowError

# Hundreds of jobs ask for the same few, and nothing changes while the graph is resolved.
code_files, read_recipe, resolved = cache(graph.code_files), cache(load_recipe), cache(resolve)


configfile: graph.EXPERIMENT


def lineages_of(section):
    """The pattern of lineages of a section of the experiment, declared or not: its recipes, joined by '+'."""
    recipes = [path.stem for path in shown_files("params/recipes") if re.fullmatch(graph.RECIPE_PATTERN, path.stem)]
    own = "|".join(recipe for recipe in recipes if graph.section_of(read_recipe(recipe).family) == section)
    return rf"({own})(\+({own}))*" if own else "(?!)"


def shown_files(folder):
    """The YAML files of a folder; an editor keeps some of its own there, whose names begin with a dot."""
    return sorted(path for path in Path(folder).glob("*.yaml") if not path.name.startswith("."))


try:
    if config != read_yaml(Path(graph.EXPERIMENT)):
        raise UserError(f"--config and --configfile have no effect here: edit {graph.EXPERIMENT} instead")
    EXPERIMENT = load_experiment()
    SCALE = load_scale(EXPERIMENT.scale)
    check_experiment(EXPERIMENT)
    LINEAGES = {section: lineages_of(section) for section in graph.SECTIONS}
except UserError as error:
    raise WorkflowError(str(error))

EVALUATIONS = [
    path
    for key, section in EXPERIMENT.sections().items()
    for lineage in section.lineages
    for seed in EXPERIMENT.train_seeds
    for path in graph.evaluation_outputs(lineage, seed, key)
]


def settings_of(wildcards):
    """What the scale says for the recipe that a job smokes, trains, evaluates or searches for: all of one family."""
    if lineage := wildcards.get("lineage"):
        recipe = graph.Lineage.parse(lineage).recipe
    else:
        recipe = wildcards.get("recipe") or EXPERIMENT.every_search()[wildcards.search]
    return resolved(recipe, 0, EXPERIMENT.scale, smoke=True)


def threads_of(wildcards):
    """Of one process."""
    return settings_of(wildcards).threads


def cpus_of(wildcards):
    """Of one process, where a cluster shares them out."""
    return settings_of(wildcards).threads + settings_of(wildcards).workers


def shared_threads(wildcards):
    """Of all processes of a training or evaluation."""
    return threads_of(wildcards) * SCALE.resources.processes


def shared_cpus(wildcards):
    return cpus_of(wildcards) * SCALE.resources.processes


# The jobs' progress shares one terminal, and `noisebox` is the one installed beside this Snakemake.
shell.prefix(f"export NOISEBOX_PROGRESS=plain PATH='{Path(sys.executable).parent}':\"$PATH\"; ")


report: "workflow/report/workflow.rst"


wildcard_constraints:
    lineage=graph.LINEAGE_PATTERN,
    recipe=graph.RECIPE_PATTERN,
    line="|".join(graph.LINE_NAMES),
    search=graph.RECIPE_PATTERN,
    split="train|val",
    seed=r"0|[1-9]\d*",


include: "workflow/rules/shown.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/search.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


# The report is in git, so a fresh clone has it: what it was made from is asked for as well. So are the smoke runs of
# recipes that no lineage holds.
rule all:
    default_target: True
    input:
        graph.report_outputs(),
        EVALUATIONS,
        [graph.smoke_tsv(recipe) for recipe in EXPERIMENT.every("recipes")],
        [graph.search_csv(name) for name in EXPERIMENT.every_search()],
        [graph.search_report_outputs(name) for name in EXPERIMENT.every_search()],


def record():
    """Tell DVC what was made, and what is current: not what a failure or `--until` kept from being made, nor what
    `--touch` only calls current."""
    if workflow.touch:
        return
    told = {"made": [], "current": []}
    for job in workflow.dag.jobs:
        if workflow.dag.finished(job):
            told["made"] += map(str, job.output)
        elif not workflow.dag.needrun(job):
            told["current"] += map(str, job.output)
    subprocess.run([sys.executable, "-m", "noisebox", "record"], input=json.dumps(told), text=True, check=False)


# To keep to a rate of submissions, Snakemake looks for jobs again a second later, once more for every job that has
# ended: after some hundred that takes a core. Its own rate of 100 a second limits nothing here; a user's does.
onstart:
    rate = workflow.scheduling_settings.max_jobs_per_timespan
    if (rate.max_jobs, rate.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


onsuccess:
    record()


onerror:
    record()

"""One graph, two engines: Snakemake and DVC, resolved, must name the same commands, dependencies and outputs."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, edit_yaml, run, small_experiment
from graphs import dvc_jobs, snakemake_details, snakemake_jobs

from noisebox.config import ExperimentConfig, load_experiment
from noisebox.config.best import Trial, write_trials
from noisebox.errors import UserError
from noisebox.experiment import check_experiment
from noisebox.graph import Lineage

BOTH = ["baseline", "baseline+finetune"]
LONG = [*BOTH, "baseline+finetune+finetune"]
IMPORTED = ["imported/baseline/seed0/results.tsv", "imported/elsewhere/seed3/results.tsv"]
EXPERIMENTS: dict[str, dict[str, object]] = {
    "two lineages": {},
    "one seed, one lineage": {
        "train_seeds": [4],
        "lineages": ["baseline"],
        "asked": {"baseline": ["main"]},
        "pictures__lineages": ["baseline"],
    },
    "a longer lineage": {
        "train_seeds": [0, 1, 2],
        "parents__finetune": ["baseline", "baseline+finetune"],
        "lineages": LONG,
        "asked": {name: ["main"] for name in LONG},
    },
    "two recipes from scratch": {
        "recipes": ["baseline", "label_state", "finetune", "kitchen_sink"],
        "scratch": ["baseline", "label_state"],
        "parents__finetune": ["baseline", "label_state"],
        "lineages": [*BOTH, "label_state", "label_state+finetune"],
        "asked": {name: ["main"] for name in [*BOTH, "label_state", "label_state+finetune"]},
    },
    "another scale": {"scale": "demo"},
    "another protocol": {
        "protocols__main__sample_steps": [1],
        "protocols__steps": {"eval_seeds": [7], "sample_steps": [1, 50]},
        "asked__baseline": ["main", "steps"],
    },
    "two detector families": {
        "detr__recipes": ["detr", "detr_finetune"],
        "detr__scratch": ["detr"],
        "detr__parents": {"detr_finetune": ["detr"]},
        "detr__lineages": ["detr", "detr+detr_finetune"],
    },
}


def assert_same_jobs(project: Path, unasked: set[str] | None = None) -> set[str]:
    """Both engines name the same jobs, but for the commands `unasked`, which DVC alone names; returns all commands.

    DVC makes every planned training; Snakemake only those that something asks for.
    """
    by_snakemake, by_dvc = snakemake_jobs(project), dvc_jobs(project)
    alone = {outputs: job for outputs, job in by_dvc.items() if outputs not in by_snakemake}
    assert by_snakemake == {outputs: job for outputs, job in by_dvc.items() if outputs not in alone}
    assert {job.command for job in alone.values()} == (unasked or set())
    return {job.command for job in by_dvc.values()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_both_engines_name_the_same_jobs(project: Path, name: str) -> None:
    edit_yaml(project / "params/experiment.yaml", **EXPERIMENTS[name])
    assert_same_jobs(
        project, {"noisebox train baseline+finetune --seed 4 --if-changed fresh"} if "one seed" in name else set()
    )


def test_the_whole_experiment_is_the_same_in_both(project: Path) -> None:
    """The experiment as it comes: its smoke runs, trainings and evaluations, data and report, and nothing else."""
    shutil.copy(ROOT / "params/experiment.yaml", project / "params/experiment.yaml")
    experiment = load_experiment(ROOT)
    needed = {each.name for name in experiment.every("lineages") for each in Lineage.parse(name).ancestry()}
    planned = [name for section in experiment.sections().values() for name in section.planned_lineages()]
    unasked = [name for name in planned if name not in needed]
    assert assert_same_jobs(project, commands("train", unasked, experiment)) == {
        *(f"noisebox data {line}" for line in experiment.data),
        *(f"noisebox depth-gt --split {split}" for split in experiment.bev.depth_gt),
        *(f"noisebox smoke {recipe}" for recipe in experiment.every("recipes")),
        *commands("train", planned, experiment),
        *commands("evaluate", experiment.every("lineages"), experiment),
        *(f"noisebox search params/searches/{search}.yaml" for search in experiment.every_search()),
        *(f"noisebox report --search {search}" for search in experiment.every_search()),
        "noisebox report",
    }


def commands(verb: str, lineages: Sequence[str], experiment: ExperimentConfig) -> set[str]:
    how = " --if-changed fresh" if verb == "train" else ""  # what was begun with other settings, an engine begins anew
    return {f"noisebox {verb} {name} --seed {seed}{how}" for name in lineages for seed in experiment.train_seeds}


def test_every_finetune_stage_has_its_parents_in_the_experiment() -> None:
    """And the other way round: DVC needs the key, and a recipe with parents needs its stage."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    experiment = yaml.safe_load((ROOT / "params/experiment.yaml").read_text())
    grown = {name: stage["matrix"] for name, stage in stages.items() if "parent" in stage.get("matrix", {})}
    sections = {"": experiment, **{f"{name}.": experiment[name] for name in ("detr", "aerial", "bev")}}
    assert grown == {
        name: {"parent": f"${{{key}parents.{name}}}", "seed": "${train_seeds}"}
        for key, section in sections.items()
        for name in section["parents"]
    }


def test_the_report_alone_depends_on_past_experiments(project: Path) -> None:
    """And on nothing that lies beside them: neither the page about them nor imported checkpoints."""
    for path in [*IMPORTED, "imported/diffdet.pth", "imported/diffdet.pth.sha256"]:
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("something")
    assert_same_jobs(project)
    waiting = {job.command: job.inputs & {*IMPORTED} for job in snakemake_jobs(project).values()}
    assert {command for command, inputs in waiting.items() if inputs} == {"noisebox report"}
    assert waiting["noisebox report"] == {*IMPORTED}
    kept = run(project, "git", "status", "--porcelain", "--untracked-files=all", "imported").stdout.split()[1::2]
    assert kept == IMPORTED


@pytest.mark.parametrize(
    ("named", "teacher"),
    [
        ({"teacher": "finetune"}, "runs/finetune/seed${item.seed}/model_final.pth"),
        ({"teacher_seed": 5}, "runs/${item.parent}/seed5/model_final.pth"),
        ({"teacher": "baseline", "teacher_seed": 5}, "runs/baseline/seed5/model_final.pth"),
        ({"teacher": "baseline"}, None),
    ],
    ids=["another lineage", "another seed", "both", "the parent by name"],
)
def test_a_named_teacher_is_a_dependency(project: Path, named: dict[str, object], teacher: str | None) -> None:
    recipe = {"description": "learns from a named teacher", "distill": {"kind": "consistency", **named}}
    (project / "params/recipes/pupil.yaml").write_text(yaml.safe_dump(recipe))
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text())
    pupil = {**pipeline["stages"]["finetune"], "vars": [{"recipe": "pupil"}]}
    pupil["matrix"] = {"parent": "${parents.pupil}", "seed": "${train_seeds}"}
    pupil["deps"] = [*pupil["deps"], *([teacher] if teacher else [])]
    pipeline["stages"]["pupil"] = pupil
    (project / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    lineages = ["baseline", "finetune", "baseline+pupil"]
    edit_yaml(
        project / "params/experiment.yaml",
        train_seeds=[0, 5],
        recipes=["baseline", "finetune", "pupil"],
        scratch=["baseline", "finetune"],
        parents={**small_experiment()["parents"], "finetune": [], "pupil": ["baseline"]},
        lineages=lineages,
        asked={name: ["main"] for name in lineages},
        pictures__lineages=lineages,
    )
    assert_same_jobs(project)


def test_a_search_and_what_takes_its_best_are_stages(project: Path) -> None:
    """A recipe of `tuned` waits for the search of its name, and what goes on from it for nothing more."""
    search = {"description": "which rate", "lineage": "baseline", "budget": {"iters": 2}}
    search["trials"] = [{"solver.base_lr": rate} for rate in (1e-3, 1e-2)]
    (project / "params/searches/faster.yaml").write_text(yaml.safe_dump(search))
    recipe = {"description": "takes the best", "from_search": {"name": "faster"}}
    (project / "params/recipes/faster.yaml").write_text(yaml.safe_dump(recipe))
    lineages = ["baseline", "faster", "faster+finetune"]
    edit_yaml(
        project / "params/experiment.yaml",
        recipes=["baseline", "finetune", "faster"],
        parents__finetune=["faster"],
        searches={"faster": "baseline"},
        tuned=["faster"],
        lineages=lineages,
        asked={name: ["main"] for name in lineages},
        pictures__lineages=lineages,
    )
    assert_same_jobs(project)
    waiting = {job.command for job in snakemake_jobs(project).values() if "reports/searches/faster.csv" in job.inputs}
    assert waiting == {
        "noisebox report --search faster",
        *(f"noisebox train faster --seed {seed} --if-changed fresh" for seed in (0, 1)),
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"searches": {"faster": "finetune"}}, "searches.faster tunes 'finetune', but scratch has: baseline"),
        ({"searches": {"faster": "baseline"}}, "params/searches/faster.yaml does not exist"),
        ({"tuned": ["finetune"]}, "tuned names 'finetune', which takes the best of the search of its name"),
        ({"tuned": ["faster"]}, "tuned names 'faster', but recipes has: baseline, finetune"),
        (
            {
                "searches": {"plain": "baseline"},
                "tuned": ["plain"],
                "recipes": ["baseline", "finetune", "plain"],
            },
            "from_search.name must be 'plain'",
        ),
    ],
)
def test_searches_that_do_not_agree_are_told(project: Path, changes: dict[str, object], sentence: str) -> None:
    (project / "params/recipes/plain.yaml").write_text("description: takes nothing\n")
    search = {"description": "nothing", "lineage": "baseline", "budget": {"iters": 2}, "trials": [{}]}
    (project / "params/searches/plain.yaml").write_text(yaml.safe_dump(search))
    edit_yaml(project / "params/experiment.yaml", **changes)
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_experiment(load_experiment(project), project)


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [
        ({"distill": {"kind": "consistency", "teacher": "finetune"}}, "runs/finetune/seed0/model_final.pth"),
        ({"from_search": {"name": "rates"}}, "reports/searches/rates.csv"),
    ],
)
def test_a_search_that_waits_for_more_than_its_stage_does_is_told(
    project: Path, recipe: dict[str, object], needed: str
) -> None:
    (project / "params/recipes/plain.yaml").write_text(yaml.safe_dump({"description": "needs more", **recipe}))
    search = {"description": "nothing", "lineage": "plain", "budget": {"iters": 2}, "trials": [{}]}
    (project / "params/searches/plain.yaml").write_text(yaml.safe_dump(search))
    write_trials(project / "reports/searches/rates.csv", [Trial(0, "completed", 1, 1, 1, {"solver.base_lr": 0.1})])
    recipes = {"recipes": ["baseline", "finetune", "plain"], "scratch": ["baseline", "plain"]}
    edit_yaml(project / "params/experiment.yaml", searches={"plain": "plain"}, **recipes)
    with pytest.raises(UserError, match=re.escape(f"searches.plain: 'plain' needs {needed}, for which no stage")):
        check_experiment(load_experiment(project), project)


def test_rules_say_what_a_cluster_wants_to_know(project: Path) -> None:
    for job in snakemake_details(project):
        assert job["log"] and job["benchmark"] and job["message"], job["rule"]
        assert {"mem_mb", "runtime"} <= set(job["resources"]), job["rule"]
        assert job["rule"] not in ("smoke", "train", "evaluate") or {"gpu", "cpus_per_task"} <= set(job["resources"])


def test_a_cluster_is_asked_for_the_cpus_of_every_process(project: Path) -> None:
    edit_yaml(project / "params/scales/test.yaml", workers=2, resources={"processes": 3})
    asked = {job["rule"]: job["resources"].get("cpus_per_task") for job in snakemake_details(project)}
    assert (asked["smoke"], asked["train"], asked["evaluate"]) == (3, 9, 9)


def test_a_job_has_the_cores_that_the_scale_gives_its_family(project: Path) -> None:
    edit_yaml(project / "params/scales/test.yaml", families={"bev": {"threads": 2, "workers": 3}})
    jobs = snakemake_details(project, "runs/lss/seed0/model_final.pth", "runs/baseline/seed0/model_final.pth")
    given = {job["log"][0]: (job["threads"], job["resources"].get("cpus_per_task")) for job in jobs}
    assert [given[f"logs/{verb}.log"] for verb in ("smoke/lss", "train/lss/seed0")] == [(2, 5), (2, 5)]
    assert [given[f"logs/{verb}.log"] for verb in ("smoke/baseline", "train/baseline/seed0")] == [(1, 1), (1, 1)]


def test_undeclared_lineage_resolves(project: Path) -> None:
    jobs = snakemake_jobs(project, "runs/baseline+geofeat+distill_20to1/seed7/model_final.pth")
    assert {job.command for job in jobs.values()} == {
        "noisebox data detection",
        "noisebox smoke baseline",
        "noisebox smoke geofeat",
        "noisebox smoke distill_20to1",
        "noisebox train baseline --seed 7 --if-changed fresh",
        "noisebox train baseline+geofeat --seed 7 --if-changed fresh",
        "noisebox train baseline+geofeat+distill_20to1 --seed 7 --if-changed fresh",
    }


def test_a_file_whose_name_is_no_recipes_is_left_out(project: Path) -> None:
    (project / "params/recipes/finetune (2.yaml").write_text((project / "params/recipes/finetune.yaml").read_text())
    run(project, "snakemake", "-n", "evals/baseline/seed0/results.tsv")


def test_a_seed_has_one_name(project: Path) -> None:
    """seed01 would be trained, and would come out as seed1."""
    done = run(project, "snakemake", "-n", "runs/baseline/seed01/model_final.pth", check=False)
    assert done.returncode and "No rule to produce runs/baseline/seed01/model_final.pth" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("lineage", "sentence"),
    [
        ("baseline+geofeet", "recipe 'geofeet' is missing"),
        ("distill_20to1", "recipe 'distill_20to1' needs a teacher"),
        ("distill_20to1+geofeat", "recipe 'distill_20to1' needs a teacher"),
        ("lss+baseline", "lineage 'lss+baseline' mixes families: 'lss' is bev, 'baseline' is diffusiondet"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_runs(project: Path, lineage: str, sentence: str) -> None:
    done = run(project, "snakemake", "-n", f"runs/{lineage}/seed3/model_final.pth", check=False)
    assert done.returncode and sentence in done.stdout + done.stderr

"""One graph, two engines: Snakemake and DVC, resolved, must name the same commands, dependencies and outputs."""

from pathlib import Path

import pytest
from conftest import edit_yaml
from graphs import dvc_jobs, snakemake_details, snakemake_jobs

EXPERIMENTS: dict[str, dict[str, object]] = {
    "two lineages": {},
    "as it comes": {"recipes": ["baseline"], "parents": {"finetune": []}, "lineages": ["baseline"]},
    "one seed, one lineage": {"train_seeds": [4], "lineages": ["baseline"]},
    "a longer lineage": {
        "train_seeds": [0, 1, 2],
        "parents": {"finetune": ["baseline", "baseline+finetune"]},
        "lineages": ["baseline", "baseline+finetune", "baseline+finetune+finetune"],
    },
    "another scale": {"scale": "demo"},
    "another protocol": {"evaluation__sample_steps": [1], "evaluation__eval_seeds": [7]},
}


UNASKED = {"one seed, one lineage": ("noisebox smoke finetune", "noisebox train baseline+finetune --seed 4")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_both_engines_name_the_same_jobs(project: Path, name: str) -> None:
    edit_yaml(project / "params/experiment.yaml", **EXPERIMENTS[name])
    by_snakemake, by_dvc = snakemake_jobs(project), dvc_jobs(project)
    unasked = {outputs: job for outputs, job in by_dvc.items() if outputs not in by_snakemake}
    assert by_snakemake == {outputs: job for outputs, job in by_dvc.items() if outputs not in unasked}
    # DVC makes every planned training; Snakemake only those that the report needs.
    assert {job.command for job in unasked.values()} == set(UNASKED.get(name, ()))


def test_rules_say_what_a_cluster_wants_to_know(project: Path) -> None:
    for job in snakemake_details(project):
        assert job["log"] and job["benchmark"] and job["message"], job["rule"]
        assert {"mem_mb", "runtime"} <= set(job["resources"]), job["rule"]
        assert job["rule"] not in ("smoke", "train", "evaluate") or "gpu" in job["resources"]


def test_undeclared_lineage_resolves(project: Path) -> None:
    target = "runs/baseline+finetune+finetune/seed7/model_final.pth"
    jobs = snakemake_jobs(project, target)
    commands = {job.command for job in jobs.values()}
    assert {
        "noisebox train baseline --seed 7",
        "noisebox train baseline+finetune --seed 7",
        "noisebox train baseline+finetune+finetune --seed 7",
    } <= commands

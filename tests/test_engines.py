"""The graph really run at scale `test`: by Snakemake, by DVC, cloned, pulled, changed and grown."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import edit_yaml, run

NOTHING = "Nothing to be done"
UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture(scope="module")
def by_snakemake(tmp_path_factory: pytest.TempPathFactory, new_project: Callable[[Path], Path]) -> Path:
    """A project whose whole graph Snakemake has made, with a remote to share it through; tests work on copies."""
    root = new_project(tmp_path_factory.mktemp("snakemake") / "project")
    run(root, "dvc", "remote", "add", "-q", "-d", "shared", str(root.parent / "remote"))
    run(root, "snakemake", "--cores", "2")
    return root


@pytest.fixture
def made(by_snakemake: Path, tmp_path: Path) -> Path:
    return shutil.copytree(by_snakemake, tmp_path / "made", symlinks=True)


@pytest.fixture
def clone(made: Path, tmp_path: Path) -> Path:
    """Another checkout that got everything through git and the remote."""
    run(made, "git", "add", "-A")
    run(made, "git", "commit", "-qm", "results")
    run(made, "dvc", "push", "-q")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(made), str(clone))
    run(clone, "dvc", "pull", "-q")
    return clone


def results(root: Path) -> dict[str, bytes]:
    """Every checkpoint and result TSV."""
    kept = [*root.glob("runs/*/seed*/*.pth"), *root.glob("evals/*/seed*/results.tsv"), *root.glob("runs/*/smoke.tsv")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in kept}


def planned(root: Path) -> list[str]:
    """The commands that Snakemake would run now."""
    done = run(root, "snakemake", "-n", "--printshellcmds")
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    commands = sorted({line.removeprefix("Shell command: ") for line in lines if "noisebox " in line})
    assert bool(commands) != (NOTHING in done.stdout + done.stderr)
    return commands


def test_snakemake_leaves_both_engines_with_nothing_to_do(made: Path) -> None:
    assert planned(made) == []
    assert UP_TO_DATE in run(made, "dvc", "status").stdout
    assert not list(made.glob("runs/*/seed*/work"))


def test_a_clone_with_only_the_report_makes_everything(made: Path) -> None:
    """The report lies in git: its presence alone, however new, must not pass for a finished graph."""
    shutil.rmtree(made / ".snakemake")
    for folder in ("runs", "evals", "data"):
        shutil.rmtree(made / folder)
    for path in made.glob("reports/**/*.*"):
        path.touch()
    commands = planned(made)
    assert "noisebox data" in commands and "noisebox evaluate baseline+finetune --seed 1" in commands


def test_dvc_makes_the_same_bytes(by_snakemake: Path, project: Path) -> None:
    run(project, "dvc", "repro")
    expected = results(by_snakemake)
    assert len(expected) == 4 * 3 + 4 + 2
    assert results(project) == expected
    assert UP_TO_DATE in run(project, "dvc", "status", "dvc.yaml").stdout


def test_clone_and_pull_then_sync_leaves_nothing_to_do(clone: Path) -> None:
    said = run(clone, "noisebox", "sync").stdout
    assert "stages are up to date" in said and "made again" not in said
    assert planned(clone) == []
    assert UP_TO_DATE in run(clone, "dvc", "status").stdout


def test_a_parameter_changed_meanwhile_still_reruns(clone: Path) -> None:
    edit_yaml(clone / "params/recipes/finetune.yaml", solver__lr_factor=0.2)
    assert "finetune@baseline-0" in run(clone, "noisebox", "sync").stdout
    commands = planned(clone)
    assert "noisebox train baseline+finetune --seed 0" in commands
    assert "noisebox report" in commands
    assert "noisebox train baseline --seed 0" not in commands


def test_the_protocol_changed_after_sync_still_reruns(clone: Path) -> None:
    run(clone, "noisebox", "sync")
    edit_yaml(clone / "params/experiment.yaml", protocols__main__sample_steps=[1])
    commands = planned(clone)
    assert "noisebox evaluate baseline --seed 1" in commands
    assert not [command for command in commands if "train" in command]


def test_sync_never_hides_a_stale_file(clone: Path) -> None:
    """A code change that reached the clone after the pull, with every time stamp claiming the opposite."""
    model = clone / "src/noisebox/models/diffusiondet/head.py"
    model.write_text(model.read_text() + "\n")
    os.utime(model, (1_200_000_000, 1_200_000_000))
    run(clone, "noisebox", "sync")
    assert "noisebox train baseline --seed 0" in planned(clone)


def test_code_decides_what_reruns(made: Path) -> None:
    report = made / "src/noisebox/report/tables.py"
    report.write_text(report.read_text() + "\n")
    assert planned(made) == ["noisebox report"]
    assert run(made, "dvc", "status", "--json").stdout.count('"report"') == 1
    model = made / "src/noisebox/models/diffusiondet/head.py"
    model.write_text(model.read_text() + "\n")
    assert "noisebox train baseline+finetune --seed 1" in planned(made)


def test_record_leaves_what_snakemake_did_not_make_stale(made: Path) -> None:
    edit_yaml(made / "params/recipes/finetune.yaml", description="other words")
    run(made, "snakemake", "--cores", "1", "runs/baseline/seed0/model_final.pth")
    assert "finetune@baseline-0" in run(made, "dvc", "status").stdout


def test_exp_run_with_more_seeds_runs_only_the_new_ones(made: Path) -> None:
    run(made, "git", "add", "-A")
    run(made, "git", "commit", "-qm", "results")
    before = results(made)
    done = run(made, "dvc", "exp", "run", "-S", "params/experiment.yaml:train_seeds=[0,1,2]")
    ran = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]
    assert sorted(ran) == [
        "evaluate@baseline+finetune-2",
        "evaluate@baseline-2",
        "finetune@baseline-2",
        "report",
        "train@baseline-2",
    ]
    after = results(made)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2 * 3 + 2


def test_what_users_type_works(made: Path) -> None:
    assert "train@baseline-0" in run(made, "dvc", "dag").stdout
    assert "digraph" in run(made, "snakemake", "--rulegraph").stdout
    assert "baseline" in run(made, "dvc", "metrics", "show").stdout
    run(made, "git", "add", "-A")
    run(made, "git", "commit", "-qm", "results")
    edit_yaml(made / "params/scales/test.yaml", solver__base_lr=0.5)
    difference = run(made, "dvc", "params", "diff").stdout
    assert "solver.base_lr" in difference and "0.5" in difference
    missing = run(made, "snakemake", "-n", "runs/baseline+geofeet/seed3/model_final.pth", check=False)
    assert missing.returncode and "recipe 'geofeet' is missing" in missing.stdout + missing.stderr

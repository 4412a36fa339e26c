"""The graph really run at scale `test`: by Snakemake, by DVC, cloned, pulled, changed and grown."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import edit_yaml, run
from dvc.repo import Repo
from made_graphs import UP_TO_DATE, planned, reproduced, results

from noisebox.engines import record, sync
from noisebox.errors import UserError
from noisebox.interrupt import Interrupted


@pytest.fixture(scope="module")
def by_snakemake(tmp_path_factory: pytest.TempPathFactory, new_project: Callable[[Path], Path]) -> Path:
    """A project of one train seed whose graph Snakemake has made, with a remote to share it through; tests work on
    copies."""
    root = new_project(tmp_path_factory.mktemp("snakemake") / "project")
    edit_yaml(root / "params/experiment.yaml", train_seeds=[0])
    run(root, "git", "commit", "-qam", "one train seed")
    run(root, "dvc", "remote", "add", "-q", "-d", "shared", str(root.parent / "remote"))
    said = run(root, "snakemake", "--cores", "2", "--verbose").stderr
    root.with_name("snakemake.log").write_text(said)
    return root


@pytest.fixture
def made(by_snakemake: Path, tmp_path: Path) -> Path:
    return shutil.copytree(by_snakemake, tmp_path / "made", symlinks=True)


@pytest.fixture(scope="module")
def cloned(by_snakemake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkout that got everything through git and the remote; tests work on copies."""
    made = shutil.copytree(by_snakemake, tmp_path_factory.mktemp("pushed") / "made", symlinks=True)
    run(made, "git", "add", "-A")
    run(made, "git", "commit", "-qm", "results")
    run(made, "dvc", "push", "-q")
    clone = made.with_name("clone")
    run(made, "git", "clone", "-q", str(made), str(clone))
    run(clone, "dvc", "pull", "-q")
    return clone


@pytest.fixture
def clone(cloned: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cloned, tmp_path / "clone", symlinks=True)


def test_snakemake_leaves_both_engines_with_nothing_to_do(made: Path) -> None:
    assert planned(made) == []
    assert UP_TO_DATE in run(made, "dvc", "status").stdout
    assert not [*made.glob("runs/*/seed*/work"), *made.glob("runs/*/seed*/.finished")]


def test_snakemake_looks_for_jobs_when_one_has_ended(by_snakemake: Path) -> None:
    """Not also every second, and by each job that has ended once more a second: that took a core of two."""
    said = by_snakemake.with_name("snakemake.log").read_text()
    assert 1 < said.count("Ready jobs: ") <= 1 + said.count("Finished jobid: ")


def test_a_clone_with_only_the_report_makes_everything(made: Path) -> None:
    """The report lies in git: its presence alone, however new, must not pass for a finished graph."""
    shutil.rmtree(made / ".snakemake")
    for folder in ("runs", "evals", "data"):
        shutil.rmtree(made / folder)
    for path in made.glob("reports/**/*.*"):
        path.touch()
    commands = planned(made)
    assert "noisebox data detection" in commands and "noisebox evaluate baseline+finetune --seed 0" in commands


def test_dvc_makes_the_same_bytes(by_snakemake: Path, project: Path) -> None:
    edit_yaml(project / "params/experiment.yaml", train_seeds=[0])
    run(project, "dvc", "repro")
    expected = results(by_snakemake)
    assert len(expected) == 2 * 3 + 2 + 2
    assert results(project) == expected
    assert UP_TO_DATE in run(project, "dvc", "status", "dvc.yaml").stdout


def test_a_parameter_changed_meanwhile_still_reruns(clone: Path) -> None:
    edit_yaml(clone / "params/recipes/finetune.yaml", solver__lr_factor=0.2)
    assert "finetune@baseline-0" in run(clone, "noisebox", "sync").stdout
    commands = planned(clone)
    assert "noisebox train baseline+finetune --seed 0 --if-changed fresh" in commands
    assert "noisebox report" in commands
    assert "noisebox train baseline --seed 0 --if-changed fresh" not in commands


def test_the_protocol_changed_after_sync_still_reruns(clone: Path) -> None:
    run(clone, "noisebox", "sync")
    edit_yaml(clone / "params/experiment.yaml", protocols__main__sample_steps=[1])
    commands = planned(clone)
    assert "noisebox evaluate baseline --seed 0" in commands
    assert not [command for command in commands if "train" in command]


def test_sync_never_hides_a_stale_file(clone: Path) -> None:
    """A code change that reached the clone after the pull, with every time stamp claiming the opposite."""
    model = clone / "src/noisebox/models/diffusiondet/head.py"
    model.write_text(model.read_text() + "\n")
    os.utime(model, (1_200_000_000, 1_200_000_000))
    run(clone, "noisebox", "sync")
    assert "noisebox train baseline --seed 0 --if-changed fresh" in planned(clone)


def test_outputs_that_are_links_into_the_cache_are_known_to_both_engines(made: Path) -> None:
    """As docs/scale.md has it where the cache is on another disk; what is stale is told whatever times claim."""
    run(made, "dvc", "cache", "dir", "--local", str(shutil.move(made / ".dvc/cache", made.with_name("cache"))))
    run(made, "dvc", "config", "--local", "cache.type", "symlink")
    run(made, "dvc", "checkout", "-q", "--relink")
    assert (made / "runs/baseline/seed0/model_final.pth").is_symlink()
    recipe = made / "params/recipes/finetune.yaml"
    edit_yaml(recipe, description="other words")
    os.utime(recipe, (1_200_000_000, 1_200_000_000))
    assert "smoke@finetune, finetune@baseline-0" in run(made, "noisebox", "sync").stdout
    commands = planned(made)
    assert "noisebox train baseline+finetune --seed 0 --if-changed fresh" in commands
    assert "noisebox train baseline --seed 0 --if-changed fresh" not in commands
    run(made, "snakemake", "--cores", "1", "runs/finetune/smoke.tsv")
    assert "finetune@baseline-0" in stale(made) and "smoke@finetune" not in stale(made)


def test_code_decides_what_reruns(made: Path) -> None:
    report = made / "src/noisebox/report/tables.py"
    report.write_text(report.read_text() + "\n")
    assert planned(made) == ["noisebox report"]
    assert run(made, "dvc", "status", "--json").stdout.count('"report"') == 1
    model = made / "src/noisebox/models/diffusiondet/head.py"
    model.write_text(model.read_text() + "\n")
    assert "noisebox train baseline+finetune --seed 0 --if-changed fresh" in planned(made)


def test_past_experiments_make_the_report_anew_and_nothing_else(made: Path) -> None:
    path = made / "imported/baseline/seed7/results.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("of a log")
    assert planned(made) == ["noisebox report"]
    assert list(json.loads(run(made, "dvc", "status", "--json").stdout)) == ["report"]


def test_record_leaves_what_snakemake_did_not_make_stale(made: Path) -> None:
    edit_yaml(made / "params/recipes/finetune.yaml", description="other words")
    run(made, "snakemake", "--cores", "1", "runs/baseline/seed0/model_final.pth")
    assert "finetune@baseline-0" in run(made, "dvc", "status").stdout


def stale(root: Path) -> set[str]:
    """The stages that DVC would run again, for changes of their own."""
    return set(json.loads(run(root, "dvc", "status", "dvc.yaml", "--json").stdout))


def test_record_leaves_what_until_and_touch_kept_from_being_made(made: Path) -> None:
    edit_yaml(made / "params/scales/test.yaml", solver__base_lr=2e-3)
    said = run(made, "snakemake", "--cores", "1", "--until", "smoke")
    assert "recorded 3 of 3 finished stages" in said.stdout + said.stderr
    untouched = stale(made)
    assert untouched >= {"train@baseline-0", "finetune@baseline-0"}
    assert not untouched & {"smoke@baseline", "smoke@finetune"}
    run(made, "snakemake", "--cores", "1", "--touch")
    assert stale(made) == untouched


def test_what_is_current_by_time_alone_stays_stale_to_dvc(made: Path) -> None:
    """Such as a source file that came with an old time of change, from an archive."""
    source, report = (made / f"src/noisebox/{name}.py" for name in ("training/optim", "report/tables"))
    for path in (source, report):
        path.write_text(path.read_text() + "\n")
    os.utime(source, (1_200_000_000, 1_200_000_000))
    said = run(made, "snakemake", "--cores", "1")
    assert "recorded 1 of" in said.stdout + said.stderr
    assert "current by time, but stale to DVC: " in said.stdout + said.stderr
    assert {"train@baseline-0", "finetune@baseline-0"} <= stale(made) and "report" not in stale(made)
    run(made, "noisebox", "sync")
    assert "noisebox train baseline --seed 0 --if-changed fresh" in planned(made)


def test_what_was_made_before_a_failure_is_recorded(made: Path) -> None:
    edit_yaml(made / "params/recipes/baseline.yaml", description="other words")
    edit_yaml(made / "params/recipes/finetune.yaml", finetune={"base_lr": 1e30})
    failed = run(made, "snakemake", "--cores", "1", "runs/baseline+finetune/seed0/model_final.pth", check=False)
    assert failed.returncode
    left = stale(made)
    assert "finetune@baseline-0" in left
    assert not left & {"smoke@baseline", "train@baseline-0"}


@pytest.mark.parametrize("engine", ["snakemake", "dvc"])
def test_what_ends_after_its_engine_was_killed_is_not_trained_again(made: Path, engine: str) -> None:
    before, folder = results(made), made / "runs/baseline/seed0"
    checkpoint = "runs/baseline/seed0/model_final.pth"
    command = {
        "snakemake": ["snakemake", "--cores", "1", checkpoint],
        "dvc": ["dvc", "repro", "-s", "train@baseline-0"],
    }
    edit_yaml(made / "params/recipes/baseline.yaml", description="other words")
    with (made / "said").open("w") as said:
        killed = subprocess.Popen(command[engine], cwd=made, stdout=said, stderr=said)
        wait_for(lambda: (folder / "work/config.yaml").exists())
        killed.kill()
        killed.wait()
        wait_for(lambda: (folder / ".finished/last.pth").exists())
    done = run(made, *command[engine])
    assert "trained to its end before" in done.stdout + done.stderr
    assert results(made) == before
    assert (folder / ".finished").exists() == (engine == "dvc"), "Snakemake's end notes it"
    run(made, "noisebox", "evaluate", "baseline")
    assert not (folder / ".finished").exists()


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_made_as_the_lock_file_says_is_kept(made: Path) -> None:
    """A fresh clone has that file and no cache; made there again, results are the same bytes."""
    lock = (made / "dvc.lock").read_text()
    shutil.rmtree(made / ".dvc/cache")
    assert "not in cache" in run(made, "dvc", "status").stdout
    every = [out["path"] for stage in yaml.safe_load(lock)["stages"].values() for out in stage["outs"]]
    assert run(made, "noisebox", "record", *every).stdout == "recorded 7 of 8 finished stages with DVC\n"
    assert UP_TO_DATE in run(made, "dvc", "status").stdout
    assert (made / "dvc.lock").read_text() == lock
    assert run(made, "noisebox", "record", *every).stdout == ""


def test_a_pruned_graph_is_current(made: Path) -> None:
    """Nothing is missed, nothing is recorded as lost, and what has changed is made again all the same."""
    lock = (made / "dvc.lock").read_text()
    kept = {path: content for path, content in results(made).items() if Path(path).stem not in ("best", "last")}
    run(made, "noisebox", "prune", "--yes")
    assert results(made) == kept
    assert planned(made) == []
    every = [out["path"] for stage in yaml.safe_load(lock)["stages"].values() for out in stage["outs"]]
    assert run(made, "noisebox", "record", *every).stdout == ""
    assert (made / "dvc.lock").read_text() == lock
    assert run(made, "noisebox", "sync").stdout == "8 of 8 stages are up to date\n"
    assert planned(made) == []
    edit_yaml(made / "params/recipes/finetune.yaml", description="other words")
    assert run(made, "noisebox", "sync").stdout.splitlines() == [
        "4 of 8 stages are up to date",
        "to be made again: smoke@finetune, finetune@baseline-0, evaluate@baseline+finetune-0, report",
    ]
    assert "noisebox train baseline --seed 0 --if-changed fresh" not in planned(made)
    run(made, "git", "checkout", "-q", "params")
    run(made, "dvc", "checkout", "-q")
    assert UP_TO_DATE in run(made, "dvc", "status").stdout


def test_exp_run_with_more_seeds_runs_only_the_new_ones(made: Path) -> None:
    run(made, "git", "add", "-A")
    run(made, "git", "commit", "-qm", "results")
    before = results(made)
    assert reproduced(made, "exp", "run", "-S", "params/experiment.yaml:train_seeds=[0,1]") == [
        "evaluate@baseline+finetune-1",
        "evaluate@baseline-1",
        "finetune@baseline-1",
        "report",
        "train@baseline-1",
    ]
    after = results(made)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2 * 3 + 2


def test_what_users_type_works(made: Path) -> None:
    assert "train@baseline-0" in run(made, "dvc", "dag").stdout
    assert "digraph" in run(made, "snakemake", "--rulegraph").stdout
    run(made, "git", "add", "-A")
    run(made, "git", "commit", "-qm", "results")
    edit_yaml(made / "params/scales/test.yaml", solver__base_lr=0.5)
    difference = run(made, "dvc", "params", "diff").stdout
    assert "solver.base_lr" in difference and "0.5" in difference
    missing = run(made, "snakemake", "-n", "runs/baseline+geofeet/seed3/model_final.pth", check=False)
    assert missing.returncode and "recipe 'geofeet' is missing" in missing.stdout + missing.stderr


def test_dvc_shows_metrics_of_each_lineage_and_what_changed(made: Path) -> None:
    shown = json.loads(run(made, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert {path: list(each["data"]) for path, each in shown.items()} == {
        f"reports/metrics/{lineage}.json": ["AP@1", "AP50@1", "AP@2", "AP50@2"]
        for lineage in ("baseline", "baseline+finetune")
    }
    run(made, "git", "add", "-A")
    run(made, "git", "commit", "-qm", "results")
    file = made / "reports/metrics/baseline.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"AP@1": 99.0}))
    changed = json.loads(run(made, "dvc", "metrics", "diff", "--json").stdout)
    assert [(path, list(each)) for path, each in changed.items()] == [("reports/metrics/baseline.json", ["AP@1"])]
    table = list(csv.DictReader(run(made, "dvc", "exp", "show", "--csv", "--only-changed").stdout.splitlines()))
    assert list(table[0]) == ["rev", "Created", "reports/metrics/baseline.json:AP@1"]
    assert table[0]["reports/metrics/baseline.json:AP@1"] == "99.0"


def test_dvc_plots_a_line_a_lineage(made: Path) -> None:
    """The templates are filled with columns that the report's tables have."""
    declared = yaml.safe_load((made / "dvc.yaml").read_text())["plots"]
    drawn = json.loads(run(made, "dvc", "plots", "show", "--json").stdout)["data"]
    assert list(drawn) == [name for each in declared for name in (each if isinstance(each, dict) else [each])]
    for (plot,) in (parts for parts in drawn.values() if parts[0]["type"] == "vega"):
        specification = plot["content"]
        assert "DVC_METRIC" not in json.dumps(specification)
        assert specification["encoding"]["color"]["field"] == "run"
        assert {row["run"] for row in specification["data"]["values"]} == {"baseline", "baseline+finetune"}
        axes = [specification["encoding"][axis] for axis in ("x", "y")]
        assert all(axis["title"] for axis in axes)


def test_without_dvc_it_is_told(tmp_path: Path) -> None:
    told = "no DVC repository here (`dvc init` makes one)"
    assert record(tmp_path, ["reports/summary.md"]) == [f"nothing recorded: {told}"]
    with pytest.raises(UserError, match=re.escape(told)):
        sync(tmp_path)


@pytest.fixture
def one_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a project of one stage, whose output is there."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "made").write_bytes(bytes(2**20))
    (project / "dvc.yaml").write_text("stages: {make: {cmd: make, outs: [made]}}")
    Repo.init(str(project), no_scm=True).close()
    monkeypatch.chdir(project)
    return project


def test_what_a_full_cache_did_not_take_is_not_recorded(one_stage: Path, small_disk: Path) -> None:
    """DVC tells of it, and goes on as if it had."""
    (one_stage / ".dvc/cache").symlink_to(small_disk)
    assert record(one_stage, ["made"])[0].startswith("not recorded, as DVC's cache did not take all of it: make; ")
    assert not (one_stage / "dvc.lock").exists()
    (one_stage / ".dvc/cache").unlink()
    assert record(one_stage, ["made"]) == ["recorded 1 of 1 finished stages with DVC"]


def test_a_lock_file_is_whole_whenever_record_is_ended(one_stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(one_stage, ["made"])
    before = (one_stage / "dvc.lock").read_bytes()
    (one_stage / "made").write_bytes(b"anew")

    def asked_to_end(*anything: object) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr("ruamel.yaml.emitter.Emitter.expect_block_mapping", asked_to_end)
        record(one_stage, ["made"])
    assert (one_stage / "dvc.lock").read_bytes() == before
    record(one_stage, ["made"])
    assert (one_stage / "dvc.lock").read_bytes() != before
    assert UP_TO_DATE in run(one_stage, "dvc", "status").stdout


def test_data_whose_pinning_was_cut_off_is_pinned(one_stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, pin = one_stage / "data/detection.json", one_stage / "data.dvc"
    (one_stage / "data/small").mkdir(parents=True)
    (one_stage / "data/small/image").write_text("pixels")
    manifest.write_text(json.dumps({"dataset": "small"}))

    def asked_to_end(*anything: object, **named: object) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Repo, "commit", asked_to_end)
        record(one_stage, ["data/detection.json"])
    assert record(one_stage, ["data/detection.json"]) == ["data.dvc now pins data/small"]
    assert "md5: " in pin.read_text()
    assert record(one_stage, ["data/detection.json"]) == []

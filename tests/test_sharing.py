"""Results shared through git and a DVC remote, a folder or S3: clones take them over, merge them, and train nothing."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import edit_yaml, run
from made_graphs import UP_TO_DATE, planned, reproduced, results

BUCKET = "noisebox"
EXPERIMENT = "params/experiment.yaml"
MANIFEST = "reports/results_manifest.tsv"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, new_project: Callable[[Path], Path]) -> Path:
    """A project with one lineage and one train seed, made by Snakemake and committed; tests work on copies."""
    root = new_project(tmp_path_factory.mktemp("sharing") / "project")
    edit_yaml(root / EXPERIMENT, **one_lineage())
    run(root, "snakemake", "--cores", "2")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "results")
    return root


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_once, tmp_path / "made", symlinks=True)


def one_lineage(*further: str) -> dict[str, Any]:
    """What params/experiment.yaml says of `baseline` and of finetunes by recipes that go on from it."""
    stages = yaml.safe_load(Path(__file__).parent.parent.joinpath(EXPERIMENT).read_text())["parents"]
    lineages = ["baseline", *(f"baseline+{recipe}" for recipe in further)]
    return {
        "train_seeds": [0],
        "recipes": ["baseline", *further],
        "parents": {recipe: ["baseline"] if recipe in further else [] for recipe in stages},
        "lineages": lineages,
        "asked": {lineage: ["main"] for lineage in lineages},
        "pictures": {"images": 2, "lineages": ["baseline"]},
    }


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server, in a process of its own, with an empty bucket."""
    pytest.importorskip("moto", reason="needs moto[server], an S3 server")
    pytest.importorskip("dvc_s3", reason="needs dvc[s3]")
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for key, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while server.poll() is None and not is_listening(port):
                time.sleep(0.1)
            address = f"http://127.0.0.1:{port}"
            boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
            yield address
        finally:
            server.terminate()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def push(root: Path) -> None:
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "results")
    run(root, "dvc", "push", "-q")


def clone_of(root: Path, name: str) -> Path:
    """Another checkout, with what git has."""
    clone = root.parent / name
    run(root.parent, "git", "clone", "-q", str(root), str(clone))
    run(clone, "git", "config", "user.email", f"{name}@example.invalid")
    run(clone, "git", "config", "user.name", name)
    return clone


def check_taken_over(clone: Path, made: Path) -> None:
    """A clone takes everything over, byte by byte, and neither engine finds anything to make."""
    run(clone, "dvc", "pull", "-q")
    stages = len(yaml.safe_load((clone / "dvc.lock").read_text())["stages"])
    assert run(clone, "noisebox", "sync").stdout == f"{stages} of {stages} stages are up to date\n"
    assert planned(clone) == []
    assert UP_TO_DATE in run(clone, "dvc", "status").stdout
    assert results(clone) == results(made) != {}
    assert not any(path.read_text() for path in clone.glob("logs/**/*.log")), "no stage has run"
    assert run(clone, "git", "status", "--porcelain").stdout == ""


def test_through_a_folder(made: Path) -> None:
    run(made, "dvc", "remote", "add", "-q", "-d", "shared", str(made.parent / "remote"))
    push(made)
    clone = clone_of(made, "clone")
    check_taken_over(clone, made)
    verified = run(clone, "noisebox", "verify")
    assert "rows of results evaluated again" in verified.stdout and "not evaluated" not in verified.stdout


def test_through_s3(made: Path, s3: str) -> None:
    import boto3

    run(made, "dvc", "remote", "add", "-q", "-d", "shared", f"s3://{BUCKET}/results")
    run(made, "dvc", "remote", "modify", "shared", "endpointurl", s3)
    push(made)
    stored = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket=BUCKET, Prefix="results/")["Contents"]
    assert sum(each["Size"] for each in stored) > sum(path.stat().st_size for path in made.glob("runs/*/*/model_*.pth"))
    clone = clone_of(made, "clone")
    check_taken_over(clone, made)
    verified = run(clone, "noisebox", "verify", "--rows", "0").stdout.split(" files are what ")
    assert int(verified[0]) == len((made / MANIFEST).read_text().splitlines()[1:])


def test_two_researchers(made: Path) -> None:
    """Each adds a lineage, one with Snakemake, one with DVC; merged, both are there, and only the report runs again."""
    run(made, "git", "config", "receive.denyCurrentBranch", "updateInstead")
    run(made, "dvc", "remote", "add", "-q", "-d", "shared", str(made.parent / "remote"))
    push(made)
    ann, bob = clone_of(made, "ann"), clone_of(made, "bob")
    for clone in (ann, bob):
        run(clone, "dvc", "pull", "-q")
    run(ann, "noisebox", "sync")
    edit_yaml(ann / EXPERIMENT, **one_lineage("finetune"))
    run(ann, "snakemake", "--cores", "2")
    push(ann)
    run(ann, "git", "push", "-q")
    edit_yaml(bob / EXPERIMENT, **one_lineage("geofeat"))
    assert reproduced(bob) == ["evaluate@baseline+geofeat-0", "geofeat@baseline-0", "report", "smoke@geofeat"]
    push(bob)
    every = results(bob) | results(ann)

    assert run(bob, "git", "pull", "-q", "--no-rebase", check=False).returncode == 1
    asked = run(bob, "noisebox", "merge", check=False)
    assert asked.returncode == 2 and asked.stderr.startswith(f"noisebox: {EXPERIMENT}: these conflicts are yours")
    run(bob, "git", "checkout", "-q", "--ours", EXPERIMENT)
    edit_yaml(bob / EXPERIMENT, **one_lineage("finetune", "geofeat"))
    run(bob, "git", "add", EXPERIMENT)
    assert "made anew: report\n" in run(bob, "noisebox", "merge").stdout
    run(bob, "git", "commit", "-qm", "both")
    run(bob, "dvc", "pull", "-q")
    assert run(bob, "noisebox", "sync").stdout.splitlines()[1:] == ["to be made again: report"]
    assert results(bob) == every and len(every) == 3 * (3 + 1 + 1), "checkpoints, results.tsv, smoke.tsv"
    assert planned(bob) == ["noisebox report"]
    assert reproduced(bob) == ["report"]
    push(bob)
    run(bob, "git", "push", "-q")
    run(ann, "git", "pull", "-q")
    run(ann, "dvc", "pull", "-q")
    assert run(ann, "noisebox", "sync").stdout == "11 of 11 stages are up to date\n"
    assert planned(ann) == []
    assert {"baseline", "baseline+finetune", "baseline+geofeat"} == {
        line.split("\t")[0] for line in (ann / "reports/tables/main.tsv").read_text().splitlines()[1:]
    }

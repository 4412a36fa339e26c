"""Published datasets through the command line: each miniature trains a little at scale `test` and is evaluated."""

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, edit_yaml, small_experiment
from nuscenes_root import VERSION, write_root
from PIL import Image
from published import PUBLISHED

from noisebox.data.nuscenes import read_nuscenes

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of params/ alone as the working directory, and the folder of datasets elsewhere."""
    shutil.copytree(ROOT / "params", tmp_path / "work/params")
    edit_yaml(tmp_path / "work/params/experiment.yaml", **small_experiment())
    monkeypatch.setenv("NOISEBOX_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_miniature_trains_and_is_evaluated(name: str, here: Path, command_line: CommandLine) -> None:
    PUBLISHED[name](here.parent / "datasets")
    recipe = "yolc" if name == "visdrone" else "baseline"
    options = ("--scale", "test", "--dataset", name)
    code, _, told = command_line("train", recipe, *options, "--iters", 2)
    assert code == 0, told
    assert command_line("evaluate", recipe, *options)[0] == 0
    folder = here / f"tries/{recipe}/test-{name}-seed0"
    rows = results(folder / "evaluation")
    assert rows and all(math.isnan(float(row["AP"])) or 0 <= float(row["AP"]) <= 100 for row in rows)
    manifest = json.loads((here / f"tries/data/{name}.json").read_text())
    assert ("APr" in rows[0]) == (name == "lvis_v1")
    assert {key for key in rows[0] if key.startswith("AP-")} == {f"AP-{label}" for label in manifest["classes"]}
    assert json.loads((folder / "run.json").read_text())["data_hash"] == manifest["hash"]
    assert not any((here / place).exists() for place in ("runs", "evals", "data")), "the graph is as it was"
    if name == "repro_10k":
        assert {row["AP-person"] for row in rows} == {"nan"} and {row["AP-car"] for row in rows} != {"nan"}


def test_nuscenes_trains_and_is_evaluated(here: Path, command_line: CommandLine) -> None:
    """In the graph, which makes its depth ground truth."""
    root = write_root(here.parent / "datasets/nuscenes")
    for split in ("train", "val"):
        for frame in read_nuscenes(root, VERSION).frames(split):
            label = root / "ann_bev_dir" / split / f"{frame.stem}.png"
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (100, 98), 1).save(label)
    edit_yaml(here / "params/datasets/nuscenes.yaml", version=VERSION, size=[32, 64])
    edit_yaml(here / "params/scales/test.yaml", families__bev__dataset="nuscenes")
    edit_yaml(here / "params/experiment.yaml", bev__pictures=[0])
    for command in (("data", "bev"), ("depth-gt", "--split", "train"), ("train", "lss"), ("evaluate", "lss")):
        code, _, told = command_line(*command)
        assert code == 0, told
    assert results(here / "evals/lss/seed0")


def test_a_lineage_of_tries_stays_together(here: Path, command_line: CommandLine) -> None:
    """Parent and teacher are tries of the same scale and dataset; smoke runs have a table there too."""
    PUBLISHED["repro_10k"](here.parent / "datasets")
    options = ("--scale", "test", "--dataset", "repro_10k")
    student = "baseline+consistency"
    code, _, told = command_line("train", student, *options)
    parent = "tries/baseline/test-repro_10k-seed0/model_final.pth"
    wanted = f"{parent} does not exist; make it with: noisebox train baseline --seed 0 --scale test --dataset repro_10k"
    assert code == 2 and wanted in told
    assert command_line("smoke", "consistency", *options)[0] == 0
    assert (here / "tries/consistency/test-repro_10k-seed0/smoke.tsv").exists()
    for lineage in ("baseline", student):
        assert command_line("train", lineage, *options, "--iters", 2)[0] == 0
    record = json.loads((here / f"tries/{student}/test-repro_10k-seed0/run.json").read_text())
    weights = hashlib.sha256((here / parent).read_bytes()).hexdigest()
    assert (record["parent"]["sha256"], record["teacher"]["sha256"]) == (weights, weights)


def test_mistakes_are_one_sentence_and_nothing_is_left(here: Path, command_line: CommandLine) -> None:
    train = ("train", "baseline", "--scale", "test")
    for arguments, sentence in {
        (*train, "--dataset", "coco_2071"): "override 'dataset': there is no 'coco_2071'; did you mean 'coco_2017'?",
        ("train", "baseline", "--scale", "papr"): "scale 'papr' is unknown; did you mean 'paper'?",
        (*train, "--dataset", "voc_2007"): "voc_2007.yaml: train.images: there is no folder ",
        ("evaluate", "baseline", "--dataset", "voc_2007"): "make it with: noisebox train baseline --seed 0 --dataset",
        (*train, "--dataset", "nuscenes"): "dataset 'nuscenes' is one of line bev, and nothing of line detection can",
        ("data", "detection", "--dataset", "voc_2007"): "--dataset voc_2007 stands in place of detection",
    }.items():
        code, _, told = command_line(*arguments)
        lines = [line for line in told.splitlines() if line.startswith("noisebox: ")]
        assert code == 2 and len(lines) == 1 and sentence in lines[0], (arguments, told)
    assert not [path for path in (here / "tries").rglob("*") if path.is_file()]
    edit_yaml(here / "params/datasets/voc_2007.yaml", train__images="$VOC_HOME/JPEGImages")
    code, _, told = command_line(*train, "--dataset", "voc_2007")
    assert code == 2 and "the environment variable VOC_HOME, in $VOC_HOME/JPEGImages, is not set" in told


def test_data_describes_a_dataset_anew(here: Path, command_line: CommandLine) -> None:
    """After a change in place, which a training refuses."""
    PUBLISHED["repro_10k"](here.parent / "datasets")
    options = ("--scale", "test", "--dataset", "repro_10k", "--iters", 2)
    assert command_line("train", "baseline", *options)[0] == 0
    file = here.parent / "datasets/repro_10k/annotations/train.json"
    file.write_text(file.read_text().replace("20, 28", "20, 27"))
    code, _, told = command_line("train", "baseline", *options)
    assert code == 2 and "train.json has changed since; run `noisebox data --dataset repro_10k` first" in told
    code, said, _ = command_line("data", "--dataset", "repro_10k")
    assert code == 0 and said.startswith("repro_10k: train 2 images, val 2 images; data hash ")
    assert command_line("train", "baseline", *options)[0] == 0

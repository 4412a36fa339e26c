"""`noisebox check <dataset>`: what is there and what is missing, what is in it, and which faults stop a training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, edit_yaml
from nuscenes_root import VERSION, write_root
from PIL import Image
from published import PUBLISHED

from noisebox.data.dataset_check import check_dataset
from noisebox.data.findings import Finding
from noisebox.data.nuscenes import read_nuscenes
from noisebox.errors import UserError

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with params/ alone; the folder of datasets is beside it."""
    shutil.copytree(ROOT / "params", tmp_path / "work/params")
    (tmp_path / "datasets").mkdir()
    monkeypatch.setenv("NOISEBOX_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def told(findings: list[Finding], severity: str) -> list[tuple[str, str]]:
    return [(finding.where, finding.what) for finding in findings if finding.severity == severity]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_sound_dataset_passes(name: str, here: Path, command_line: CommandLine) -> None:
    PUBLISHED[name](here.parent / "datasets")
    findings = check_dataset(name)
    assert not told(findings, "error")
    assert [what for where, what in told(findings, "ok") if where == "val"][-1].endswith("images decoded")
    code, said, _ = command_line("check", name)
    assert code == 0 and "boxes by class" in " ".join(said.split())


def test_counts_are_those_of_the_file(here: Path) -> None:
    PUBLISHED["repro_10k"](here.parent / "datasets")
    findings = check_dataset("repro_10k", images=1)
    assert told(findings, "ok")[-3:] == [
        ("val", "images: 2, boxes: 2, and 0 that cost nothing; classes: 3"),
        ("val", "boxes by class: car 1, motorbike 1"),
        ("val", "1 of 2 images decoded"),
    ]
    assert told(findings, "warning") == [("val", "classes without a box: person")]


def test_what_is_missing_is_named_with_its_source(here: Path, command_line: CommandLine) -> None:
    PUBLISHED["voc_2007"](here.parent / "datasets")
    (here.parent / "datasets/VOC2007/ImageSets/Main/test.txt").unlink()
    errors = [finding for finding in check_dataset("voc_2007") if finding.severity == "error"]
    assert [(Path(each.where).name, each.what) for each in errors] == [("test.txt", "there is no such file")]
    assert "VOCtest_06-Nov-2007.tar" in errors[0].fits
    code, said, complaint = command_line("check", "voc_2007")
    assert code == 2 and said.count("error") == 1
    assert complaint.splitlines()[-1] == "noisebox: a training on voc_2007 would fail: 1 error in the table above"
    shutil.rmtree(here.parent / "datasets/VOC2007")
    assert {Path(where).name for where, _ in told(check_dataset("voc_2007"), "error")} == {
        "JPEGImages", "Annotations", "trainval.txt", "test.txt",
    }  # fmt: skip


def test_a_variable_that_leads_nowhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOISEBOX_DATASETS")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    for name in ("coco_2017", "nuscenes"):
        first = check_dataset(name)[0]
        assert (first.where, first.what) == ("DETECTRON2_DATASETS", "is /nowhere, which is no folder")
    edit_yaml(here / "params/datasets/coco_2017.yaml", val__images="$COCO/val2017")
    edit_yaml(here / "params/datasets/nuscenes.yaml", root="$NUSC")
    with pytest.raises(UserError, match=r"nuscenes\.yaml: root: the environment variable NUSC, in \$NUSC, is not set"):
        check_dataset("nuscenes")
    with pytest.raises(UserError, match=r"yaml: val: the environment variable COCO, in \$COCO/val2017, is not set"):
        check_dataset("coco_2017")


def test_faults_inside_the_files(here: Path) -> None:
    PUBLISHED["crowdhuman"](here.parent / "datasets")
    folder = here.parent / "datasets/crowdhuman"
    picture = folder / "Images/273275,val.jpg"
    picture.write_bytes(picture.read_bytes()[:-200])
    broken = folder / "annotation_train.odgt"
    broken.write_text(broken.read_text()[:-20])
    findings = check_dataset("crowdhuman")
    (train, said), (val, damaged) = told(findings, "error")
    assert (train, val) == ("train", "val")
    assert said.startswith(f"{broken}, line 2: this is not valid JSON")
    assert damaged.startswith("2 of 2 images decoded, 1 are faulty, the first: image 2: ") and str(picture) in damaged
    assert not told(check_dataset("crowdhuman", images=1), "error")[1:], "the first image alone is whole"


def test_a_split_that_teaches_nothing(here: Path) -> None:
    PUBLISHED["repro_10k"](here.parent / "datasets")
    findings = check_dataset("repro_10k")
    (file,) = (here.parent / "datasets").rglob("*train*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    assert not told(findings, "error")
    assert told(check_dataset("repro_10k"), "error") == [("train", "no image has a box to learn")]


def test_splits_of_other_classes(here: Path) -> None:
    PUBLISHED["objects365"](here.parent / "datasets")
    file = here.parent / "datasets/objects365/annotations/zhiyuan_objv2_val.json"
    file.write_text(file.read_text().replace("Sneakers", "Boots"))
    ((where, what),) = told(check_dataset("objects365"), "error")
    assert where == "classes" and "declares the classes Person, Boots, Chair" in what


def test_nuscenes_by_name_and_embedded_worlds(here: Path, command_line: CommandLine) -> None:
    write_root(here.parent / "datasets/nuscenes")
    edit_yaml(here / "params/datasets/nuscenes.yaml", version=VERSION)
    findings = check_dataset("nuscenes")
    assert told(findings, "ok")[0][0] == VERSION and told(findings, "ok")[0][1].startswith("tables: 13, samples: 3, ")
    assert ("ann_bev_dir/train", "ann_bev_dir/train does not exist") in told(findings, "error")
    assert told(check_dataset("world_demo"), "ok") == [("data/world_demo", "embedded, and not drawn yet")]
    code, _, complaint = command_line("check", "voc_2007", "/data/voc")
    assert code == 2 and "only nuscenes takes a root" in complaint
    code, _, complaint = command_line("check", "voc_2077")
    assert code == 2 and "did you mean 'voc_2007'?" in complaint


def test_maps_may_have_any_size_that_is_asked_for(here: Path, command_line: CommandLine) -> None:
    root = write_root(here.parent / "datasets/nuscenes")
    edit_yaml(here / "params/datasets/nuscenes.yaml", version=VERSION)
    for split in ("train", "val"):
        for frame in read_nuscenes(root, VERSION).frames(split):
            label = root / "ann_bev_dir" / split / f"{frame.stem}.png"
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 30), 1).save(label)
    for asked, faulty in (((), False), ((30, 40), False), ((98, 100), True)):
        code, said, _ = command_line("check", "nuscenes", *(("--label-size", *asked) if asked else ()))
        assert (code, "faulty" in said, "--label-size" in said) == (2 if faulty else 0, faulty, not asked)


def test_options_that_a_dataset_by_name_has_no_use_for(here: Path, command_line: CommandLine) -> None:
    for options in (("--classes", 3), ("--version", VERSION), ("--cameras", "CAM_FRONT")):
        code, said, complaint = command_line("check", "nuscenes", *options)
        named = f"{options[0]} without a ROOT: what dataset 'nuscenes' has, params/datasets/nuscenes.yaml says; change"
        assert code == 2 and not said and complaint.startswith(f"noisebox: {named}")
    code, _, complaint = command_line("check", "voc_2007", "--label-size", 98, 100)
    assert code == 2 and "--label-size is of label maps, and dataset 'voc_2007' has boxes: leave it out" in complaint

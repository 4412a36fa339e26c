"""`noisebox check nuscenes`: a sound root passes, and each planted fault is found, named and judged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nuscenes_root import VERSION, edit, table_file, write_root
from PIL import Image

from noisebox.data.findings import Finding
from noisebox.data.nuscenes import read_nuscenes
from noisebox.data.nuscenes_check import check_nuscenes

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]


def label_file(root: Path, place: int = 0) -> Path:
    frame = read_nuscenes(root, VERSION).frames("train")[place]
    return root / "ann_bev_dir/train" / f"{frame.stem}.png"


def write_label(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with images and labels where the published runbook has them."""
    root = write_root(tmp_path_factory.mktemp("sound") / "nuscenes", cameras=("CAM_FRONT", "CAM_BACK"))
    dataset, rng = read_nuscenes(root, VERSION), np.random.default_rng(0)
    for split in ("train", "val"):
        for frame in dataset.frames(split):
            image = root / "img_dir" / split / frame.image.name
            image.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(frame.image, image)
            label = rng.choice([0, 1, 5, 255], (98, 100)).astype(np.uint8)
            write_label(root / "ann_bev_dir" / split / f"{frame.stem}.png", label)
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "nuscenes"))


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity != "ok"]


def test_a_sound_root_passes(root: Path, command_line: CommandLine) -> None:
    findings = check_nuscenes(root, classes=6)
    assert wrong(findings) == []
    said = {finding.where: finding.what for finding in findings}
    assert said[VERSION] == "tables: 13, samples: 3, sample_data: 12; every token leads somewhere"
    assert said["train"].startswith("frames: 2") and said["img_dir/val"] == "image files: 1, frames: 1"
    assert said["ann_bev_dir/val"].endswith("with the values 0, 1, 5, 255")
    code, said_aloud, _ = command_line("check", "nuscenes", root, "--classes", 6, "--cameras", "CAM_FRONT")
    assert code == 0 and "error" not in said_aloud


def plant(root: Path, fault: str) -> None:
    frame = read_nuscenes(root, VERSION).frames("train")[0]
    label, depth = label_file(root), root / "ann_bev_dir/train_depth"
    match fault:
        case "table gone":
            table_file(root, "ego_pose").unlink()
        case "table cut":
            table_file(root, "sample").write_text(table_file(root, "sample").read_text()[:-9])
        case "unused table gone":
            table_file(root, "attribute").unlink()
        case "link in use":
            edit(root, "sample_data", 1, ego_pose_token="gone")
        case "link not in use":
            edit(root, "sample_data", 3, ego_pose_token="gone")
        case "link of a list":
            edit(root, "map", 0, log_tokens=["log", "gone"])
        case "no val":
            (root / VERSION / "splits.json").write_text('{"val": []}')
        case "sweep gone":
            frame.sweep.unlink()
        case "sweep cut":
            frame.sweep.write_bytes(frame.sweep.read_bytes()[:-1])
        case "image cut":
            frame.image.write_bytes(frame.image.read_bytes()[:-20])
        case "case of a folder":
            (root / "samples/LIDAR_TOP").rename(root / "samples/lidar_top")
        case "no labels":
            shutil.rmtree(label.parent)
        case "label gone":
            label.unlink()
        case "label more":
            shutil.copy(label, label.with_name("more.png"))
        case "label shape":
            write_label(label, np.zeros((100, 98), np.uint8))
        case "label range":
            write_label(label, np.full((98, 100), 6, np.uint8))
        case "label colours":
            write_label(label, np.zeros((98, 100, 3), np.uint8))
        case "label cut":
            label.write_bytes(label.read_bytes()[:60])
        case "image of img_dir gone":
            (root / "img_dir/train" / frame.image.name).unlink()
        case "no img_dir":
            shutil.rmtree(root / "img_dir/train")
        case "depth incomplete":
            depth.mkdir()
            (depth / f"{frame.stem}.npz").touch()


@pytest.mark.parametrize(
    ("fault", "severity", "where", "what"),
    [
        ("table gone", "error", f"{VERSION}/ego_pose.json", "does not exist"),
        ("table cut", "error", f"{VERSION}/sample.json", "is not valid JSON"),
        ("unused table gone", "warning", f"{VERSION}/attribute.json", "a training can do without"),
        ("link in use", "error", VERSION, "has ego_pose_token 'gone', which ego_pose.json does not list"),
        (
            "link not in use",
            "warning",
            f"{VERSION}/sample_data.json",
            "rows with a ego_pose_token that ego_pose.json does not list: 1, the first",
        ),
        (
            "link of a list",
            "warning",
            f"{VERSION}/map.json",
            "rows with a log_tokens that log.json does not list: 1, the first 'map'",
        ),
        ("no val", "error", "val", "has no frame"),
        ("sweep gone", "error", "samples/LIDAR_TOP", "missing files of train: 1 of 2"),
        ("sweep cut", "error", "samples/LIDAR_TOP", "damaged files of train: 1 of 2"),
        ("image cut", "error", "samples/CAM_FRONT", "damaged files of train: 1 of 2"),
        ("case of a folder", "error", "samples/LIDAR_TOP", "does; mind the letter case"),
        ("no labels", "error", "ann_bev_dir/train", "ann_bev_dir/train does not exist"),
        ("label gone", "error", "ann_bev_dir/train", "label files: 1, frames: 2; frames without one: 1"),
        (
            "label more",
            "warning",
            "ann_bev_dir/train",
            "label files: 3, frames: 2; files of no frame of this split and these cameras: 1",
        ),
        ("label shape", "error", "ann_bev_dir/train", "100 × 98 cells, not 98 × 100): 1 of 2"),
        ("label range", "error", "ann_bev_dir/train", "values beside 0-5 and 255): 1 of 2"),
        ("label colours", "error", "ann_bev_dir/train", "no 8-bit pictures of one channel): 1 of 2"),
        ("label cut", "error", "ann_bev_dir/train", "no 8-bit pictures of one channel): 1 of 2"),
        ("image of img_dir gone", "warning", "img_dir/train", "image files: 1, frames: 2; frames without one: 1"),
        ("no img_dir", "warning", "img_dir/train", "img_dir/train does not exist"),
        ("depth incomplete", "warning", "ann_bev_dir/train_depth", "depth files: 1, frames: 2; frames without one: 1"),
    ],
)
def test_a_planted_fault_is_found(
    fault: str, severity: str, where: str, what: str, root: Path, command_line: CommandLine
) -> None:
    plant(root, fault)
    findings = wrong(check_nuscenes(root, classes=6))
    assert any(
        (finding.severity, finding.where) == (severity, where) and what in finding.what for finding in findings
    ), findings
    assert all(finding.fits for finding in findings)
    assert len({finding.what for finding in findings}) == len(findings)
    assert severity == "error" or {finding.severity for finding in findings} == {"warning"}
    code, said, told = command_line("check", "nuscenes", root, "--classes", 6)
    assert code == (2 if severity == "error" else 0)
    assert severity in said and ("would fail" in told) == (severity == "error")


def test_labels_of_any_class_and_size_may_be_asked_for(root: Path) -> None:
    label = np.full((4, 5), 9, np.uint8)
    for path in (root / "ann_bev_dir").glob("*/*.png"):
        write_label(path, label)
    (told,) = wrong(check_nuscenes(root))
    assert (told.severity, told.where) == ("warning", "ann_bev_dir")
    assert told.what == "labels have 4 × 5 cells, model.grid has 98 × 100 unless it is set"
    assert told.fits == "a model.grid of 4 rows and 5 columns; --label-size 4 5 if it has them"
    assert wrong(check_nuscenes(root, label_hw=(4, 5))) == []
    (told, other) = wrong(check_nuscenes(root, label_hw=(5, 4)))
    assert {told.severity, other.severity} == {"error"} and "(4 × 5 cells, not 5 × 4): 2 of 2" in told.what
    assert {finding.severity for finding in wrong(check_nuscenes(root, label_hw=(4, 5), classes=9))} == {"error"}


def test_labels_of_several_sizes_are_an_error(root: Path) -> None:
    """Of both splits together, the rarer size is at fault."""
    for path, hw in zip(sorted((root / "ann_bev_dir").glob("*/*.png")), [(4, 5), (4, 5), (98, 100)], strict=True):
        write_label(path, np.zeros(hw, np.uint8))
    found = {(finding.severity, finding.where): finding.what for finding in wrong(check_nuscenes(root))}
    assert set(found) == {("warning", "ann_bev_dir"), ("error", "ann_bev_dir/val")}
    assert "(98 × 100 cells, not 4 × 5): 1 of 1" in found["error", "ann_bev_dir/val"]


def test_roots_that_are_not_there(root: Path, tmp_path: Path) -> None:
    (finding,) = check_nuscenes(root.with_name("NuScenes"))
    assert finding.severity == "error" and finding.what.endswith(f"but {root} does")
    assert finding.fits == "mind the letter case"
    (finding,) = check_nuscenes(tmp_path)
    assert finding.severity == "error" and "no folder of tables" in finding.what
    (finding,) = check_nuscenes(root, "v1.0-trainval")
    assert finding.severity == "error" and "has no version 'v1.0-trainval'" in finding.what
    write_root(root, version="v1.0-other")
    (finding,) = check_nuscenes(root)
    assert finding.what == f"it has {VERSION}, v1.0-other" and "--version" in finding.fits

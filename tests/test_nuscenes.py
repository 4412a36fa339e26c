"""nuScenes tables: rows as JSON has them, frames joined by hand, official splits, faults told in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes_root import VERSION, edit, read_table, table_file, write_root, write_table
from scipy.spatial.transform import Rotation

from noisebox.data.nuscenes import check_image, check_sweep, read_nuscenes, read_splits, read_sweep
from noisebox.data.nuscenes_tables import Table
from noisebox.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text('a,[]{}" \\\n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "nuscenes", cameras=("CAM_FRONT", "CAM_BACK"))


@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), max_size=5), indent=st.sampled_from([None, 0, 2]))
@settings(max_examples=60)
def test_rows_are_those_of_the_json_parser(
    rows: list[dict[str, Any]], indent: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = [{"token": f"t{place}", **row} for place, row in enumerate(rows)]
    (folder / "rows.json").write_text(json.dumps(rows, indent=indent))
    table = Table(folder, "rows")
    assert list(table.rows()) == rows
    assert table.by_token({"t0", "t3"}) == {row["token"]: row for row in rows if row["token"] in ("t0", "t3")}


def test_a_table_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = json.dumps([{"token": "a", "list": [1, {"b": "]"}]}, {"token": "b"}])
    for length in range(len(whole)):
        (tmp_path / "cut.json").write_text(whole[:length])
        with pytest.raises(UserError, match=r"cut\.json"):
            list(Table(tmp_path, "cut").rows())


@pytest.mark.parametrize(
    "content", ['{"token": ["a"]}', '[["token"]]', '[{"name": "no token"}]', '[{"token": 3}]', "[1"]
)
def test_what_is_no_list_of_rows_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError, match=r"odd\.json"):
        list(Table(tmp_path, "odd").rows())


def test_frames_are_joined_by_tokens(root: Path) -> None:
    """Whatever the order of the tables' rows, and with sweeps between the key frames."""
    for name in ("sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor"):
        write_table(root, name, read_table(root, name)[::-1])
    dataset = read_nuscenes(root, VERSION, ("CAM_BACK", "CAM_FRONT"))
    samples = ["scene-0061_0", "scene-0061_1", "scene-0103_0"]
    assert [(f.sample, f.camera) for f in dataset.all_frames] == [
        (sample, camera) for sample in samples for camera in ("CAM_BACK", "CAM_FRONT")
    ]
    shots = {row["token"]: row for row in read_table(root, "sample_data")}
    for frame in dataset.all_frames:
        shot = shots[f"{frame.sample}_{frame.camera}"]
        assert frame.image == root / shot["filename"] and frame.stem == Path(shot["filename"]).stem
        assert frame.sweep == root / shots[f"{frame.sample}_LIDAR_TOP"]["filename"]
        assert (frame.timestamp, frame.width, frame.height) == (shot["timestamp"], 64, 36)
        assert frame.intrinsics.tolist() == [[51.2, 0, 32], [0, 51.2, 18], [0, 0, 1]]
        assert read_sweep(frame).shape == (300, 5)
        check_image(frame)
    assert [frame.sample for frame in dataset.frames("train")[::2]] == samples[:2]
    assert {frame.scene for frame in dataset.frames("val")} == {"scene-0103"}


def test_points_go_through_the_vehicles_two_poses(root: Path) -> None:
    """Step by step with scipy's rotations: lidar → vehicle → world → vehicle at the image's time → camera."""
    ego, mounted = (
        {
            row["token"]: (Rotation.from_quat(row["rotation"], scalar_first=True), np.array(row["translation"]))
            for row in read_table(root, name)
        }
        for name in ("ego_pose", "calibrated_sensor")
    )
    xyz = np.random.default_rng(0).normal(0, 20, (50, 3))
    for frame in read_nuscenes(root, VERSION).all_frames:
        moved = xyz
        for rotation, translation in (mounted["at_LIDAR_TOP"], ego[f"ego_{frame.sample}_LIDAR_TOP"]):
            moved = rotation.apply(moved) + translation
        for rotation, translation in (ego[f"ego_{frame.sample}_CAM_FRONT"], mounted["at_CAM_FRONT"]):
            moved = rotation.inv().apply(moved - translation)
        ours = xyz @ frame.camera_from_lidar[:3, :3].T + frame.camera_from_lidar[:3, 3]
        np.testing.assert_allclose(ours, moved, atol=1e-9)


def test_the_official_splits(tmp_path: Path) -> None:
    numbered = [f"scene-{number:04}" for number in range(1, 1111)]
    mini = read_splits(tmp_path / "v1.0-mini", numbered)
    assert mini["val"] == ("scene-0103", "scene-0916")
    trainval = read_splits(tmp_path / "v1.0-trainval", numbered)
    assert len(trainval["val"]) == 150
    assert sum(int(name[-4:]) for name in trainval["val"]) == 88_948
    assert {*trainval["train"], *trainval["val"]} == {*numbered}
    assert not {*trainval["train"]} & {*trainval["val"]}
    for name in ("scene-0003", "scene-0035", "scene-0553", "scene-0796", "scene-0802", "scene-1073"):
        assert name in trainval["val"]
    for name in ("scene-0001", "scene-0061", "scene-0628", "scene-0801", "scene-0918", "scene-1077"):
        assert name in trainval["train"]


def test_splits_json_comes_first(root: Path) -> None:
    (root / VERSION / "splits.json").write_text('{"val": ["scene-0061"], "tiny": ["scene-0103"]}')
    dataset = read_nuscenes(root, VERSION)
    assert dataset.splits == {"train": ("scene-0061",), "val": ("scene-0061",), "tiny": ("scene-0103",)}
    with pytest.raises(UserError, match="has no split 'tinny'; did you mean 'tiny'"):
        dataset.frames("tinny")
    (root / VERSION / "splits.json").write_text('{"train": ["scene-0061", "scene-9999"]}')
    with pytest.raises(UserError, match=r"splits\.json: split 'train' names the scene 'scene-9999'"):
        read_nuscenes(root, VERSION)
    (root / VERSION / "splits.json").write_text('["train"]')
    with pytest.raises(UserError, match=r"splits\.json must map each split"):
        read_nuscenes(root, VERSION)


def test_another_version_needs_its_splits(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", version="v1.0-mine")
    with pytest.raises(UserError, match=r"v1\.0-mine/splits\.json is missing"):
        read_nuscenes(root, "v1.0-mine")
    (root / "v1.0-mine/splits.json").write_text('{"train": ["scene-0103"]}')
    assert [frame.scene for frame in read_nuscenes(root, "v1.0-mine").frames("train")] == ["scene-0103"]


def test_roots_and_versions_that_are_not_there(root: Path) -> None:
    other_case = root.with_name("nuScenes")
    for path, version, sentence in (
        (other_case, VERSION, f"{other_case} does not exist, but {root} does; mind the letter case"),
        (root / "nowhere", VERSION, f"{root / 'nowhere'} does not exist"),
        (root, "V1.0-mini", f"{root} has no version 'V1.0-mini'; did you mean 'v1.0-mini'?"),
        (root, "v1.0-trainval", f"{root} has no version 'v1.0-trainval'; "),
        (root / VERSION, VERSION, f"{root / VERSION} holds the tables of a version; name the folder above it, {root}"),
    ):
        with pytest.raises(UserError) as told:
            read_nuscenes(path, version)
        assert str(told.value).startswith(sentence)


@pytest.mark.parametrize(
    ("table", "place", "changes", "complaint"),
    [
        ("sample", 1, {"scene_token": "gone"}, "token 'scene-0061_1' has scene_token 'gone', which scene.json does"),
        ("sample_data", 0, {"sample_token": "gone"}, "has sample_token 'gone', which sample.json does not list"),
        ("sample_data", 1, {"ego_pose_token": "gone"}, "token 'scene-0061_0_CAM_FRONT' has ego_pose_token 'gone'"),
        ("sample_data", 1, {"calibrated_sensor_token": "gone"}, "which calibrated_sensor.json does not list"),
        ("calibrated_sensor", 1, {"sensor_token": "gone"}, "token 'at_CAM_FRONT' has sensor_token 'gone'"),
        ("sample_data", 1, {"is_key_frame": False}, "sample 'scene-0061_0' has no key frame of CAM_FRONT"),
        ("sample_data", 3, {"is_key_frame": True}, "is another key frame of LIDAR_TOP for sample 'scene-0061_0'"),
        ("sample_data", 1, {"width": 0}, "needs a whole number from 1 up as 'width'"),
        ("sample_data", 1, {"filename": "../secret.jpg"}, "has filename '../secret.jpg', which leaves the root"),
        ("sample_data", 1, {"filename": None}, "needs a text as 'filename'"),
        ("calibrated_sensor", 1, {"camera_intrinsic": [[1, 2], [3, 4]]}, "needs 3 × 3 finite numbers"),
        (
            "calibrated_sensor", 1, {"camera_intrinsic": [[51.2, 1.5, 32], [0, 51.2, 18], [0, 0, 1]]},
            "token 'at_CAM_FRONT' gives its camera a skew of 1.5 pixels; maps are made of images without",
        ),
        (
            "calibrated_sensor", 1, {"camera_intrinsic": [[0, 0, 0]] * 3},
            "token 'at_CAM_FRONT' has focal lengths of 0 and 0 pixels in 'camera_intrinsic'; both must be above 0",
        ),
        (
            "calibrated_sensor", 1, {"camera_intrinsic": [[51.2, 0, 32], [0, -51.2, 18], [0, 0, 1]]},
            "has focal lengths of 51.2 and -51.2 pixels",
        ),
        ("calibrated_sensor", 0, {"rotation": [1, 0, 0, 1]}, "has a rotation of length 1.414"),
        ("ego_pose", 0, {"translation": [1, 2]}, "token 'ego_scene-0061_0_LIDAR_TOP' needs 3 finite numbers"),
        ("ego_pose", 0, {"translation": [1, 2, float("nan")]}, "needs 3 finite numbers as 'translation'"),
        ("ego_pose", 1, {"token": "ego_scene-0061_0_LIDAR_TOP"}, "token 'ego_scene-0061_0_LIDAR_TOP' comes twice"),
        ("scene", 0, {"name": 61}, "token 'scene-0061' needs a text as 'name'"),
        ("sensor", 0, {"channel": "LIDAR"}, "has no sensor 'LIDAR_TOP'"),
        ("sensor", 1, {"modality": "radar"}, "has no camera 'CAM_FRONT'; it has: CAM_BACK"),
        ("sample_data", 6, {"filename": "samples/CAM_BACK/drive__CAM_FRONT__1500000500000001.jpg"}, "have one name"),
    ],
)  # fmt: skip
def test_a_faulty_row_is_named(table: str, place: int, changes: dict[str, Any], complaint: str, root: Path) -> None:
    edit(root, table, place, **changes)
    with pytest.raises(UserError) as told:
        read_nuscenes(root, VERSION, ("CAM_FRONT", "CAM_BACK") if "one name" in complaint else ("CAM_FRONT",))
    assert complaint in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor"])
def test_a_missing_table_is_named(name: str, root: Path) -> None:
    table_file(root, name).unlink()
    with pytest.raises(UserError, match=rf"{name}\.json does not exist"):
        read_nuscenes(root, VERSION)


def test_damaged_files_are_named(root: Path) -> None:
    frame = read_nuscenes(root, VERSION).all_frames[0]
    image, sweep = frame.image.read_bytes(), frame.sweep.read_bytes()
    for cut in (*range(0, len(image), 37), len(image) - 1):
        frame.image.write_bytes(image[:cut])
        with pytest.raises(UserError, match=frame.image.name):
            check_image(frame)
    frame.image.write_bytes(image[: len(image) // 2] + bytes(len(image) - len(image) // 2))
    with pytest.raises(UserError, match="is cut short"):
        check_image(frame)
    for cut in (0, 1, 19, 21, len(sweep) - 4):
        frame.sweep.write_bytes(sweep[:cut])
        with pytest.raises(UserError, match=frame.sweep.name):
            check_sweep(frame)
    frame.sweep.parent.rename(root / "samples/lidar_top")
    with pytest.raises(UserError, match="mind the letter case"):
        read_sweep(frame)
    edit(root, "sample_data", 1, width=65)
    frame.image.write_bytes(image)
    with pytest.raises(UserError, match=r"is 64 × 36 pixels, but sample_data\.json says 65 × 36"):
        check_image(read_nuscenes(root, VERSION).all_frames[0])

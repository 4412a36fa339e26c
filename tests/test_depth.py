"""Depth ground truth: a real frame, known pixels, brute force; then files that are whole, resumed and told about."""

import io
import itertools
import multiprocessing
import os
import signal
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from nuscenes_root import VERSION, edit, read_table, write_root
from PIL import Image
from scipy.spatial.transform import Rotation

from noisebox.data.depth import DepthSettings, make_depth_gt, project, rasterise, read_depth
from noisebox.data.depth_check import overlay, write_depth_report
from noisebox.data.nuscenes import Frame, read_nuscenes, read_sweep
from noisebox.errors import UserError

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
SHARED = Path(os.environ.get("NOISEBOX_SHARED", ROOT.parent / "shared"))
SMALL = DepthSettings(24, 32, 1.0, 50.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "nuscenes", cameras=("CAM_FRONT", "CAM_BACK"))


def frame_of(width: int, height: int, focal: float, camera_from_lidar: np.ndarray) -> Frame:
    intrinsics = np.array([[focal, 0.3, width / 2 + 1], [0, 1.1 * focal, height / 2 - 1], [0, 0, 1]])
    return Frame("s", "scene", "CAM", 0, Path("i.jpg"), Path("s.bin"), width, height, intrinsics, camera_from_lidar)


def sweep_of(points_in_camera: np.ndarray, frame: Frame) -> np.ndarray:
    """Points (N, 3) of the camera's frame as a sweep (N, 5)."""
    back = np.linalg.inv(frame.camera_from_lidar)
    xyz = points_in_camera @ back[:3, :3].T + back[:3, 3]
    return np.hstack([xyz, np.zeros((len(xyz), 2))]).astype(np.float32)


def test_a_real_frame_agrees_with_the_public_devkit() -> None:
    root, golden = SHARED / "data/nuscenes_frame", SHARED / "golden/nuscenes_frame_cam_front_points.npz"
    if not (root.exists() and golden.exists()):
        pytest.skip(f"the real frame may not be part of this project, and is not in {SHARED}")
    with np.load(golden) as truth:
        width, height = truth["size"].tolist()
        (frame,) = read_nuscenes(root, "v1.0-mini").frames("train")
        u, v, depth = project(read_sweep(frame), frame, DepthSettings(height, width, 1.0, 1000.0))
        assert len(depth) == len(truth["depth"]) == 3053
        np.testing.assert_allclose(depth, truth["depth"], atol=1e-3)
        np.testing.assert_allclose(u, truth["u"], atol=0.05)
        np.testing.assert_allclose(v, truth["v"], atol=0.05)


@given(
    rotation=st.tuples(*[st.floats(-3, 3)] * 3),
    translation=st.tuples(*[st.floats(-5, 5)] * 3),
    size=st.tuples(st.integers(60, 1600), st.integers(40, 900)),
    depth_hw=st.tuples(st.integers(10, 700), st.integers(10, 900)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    depth=st.floats(1.001, 49.99),
)
def test_a_point_at_a_known_pixel_comes_back_there(
    rotation: tuple[float, ...],
    translation: tuple[float, ...],
    size: tuple[int, int],
    depth_hw: tuple[int, int],
    place: tuple[float, float],
    depth: float,
) -> None:
    (width, height), (rows, columns) = size, depth_hw
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(rotation).as_matrix(), translation
    frame = frame_of(width, height, 500.0, pose)
    low_row, low_column = int(np.ceil(rows / height)), int(np.ceil(columns / width))  # one pixel of the stored image
    row = low_row + round(place[0] * (rows - 1 - 2 * low_row))
    column = low_column + round(place[1] * (columns - 1 - 2 * low_column))
    pixel = [(column + 0.5) * width / columns, (row + 0.5) * height / rows, 1.0]
    point = depth * np.linalg.solve(frame.intrinsics, pixel)
    settings = DepthSettings(rows, columns)
    image, mask = rasterise(*project(sweep_of(point[None], frame), frame, settings), rows, columns)
    assert np.argwhere(mask).tolist() == [[row, column]]
    assert image[row, column] == pytest.approx(depth, rel=1e-4)
    assert np.count_nonzero(image) == 1


@given(seed=st.integers(0, 1000), count=st.integers(0, 400), rows=st.integers(1, 12), columns=st.integers(1, 12))
def test_the_nearest_return_wins(seed: int, count: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    u, v = (rng.uniform(0, n, count).astype(np.float32).clip(max=n - 1e-3) for n in (columns, rows))
    depth = rng.choice(np.linspace(1, 49, 20), count).astype(np.float32)
    expected = np.zeros((rows, columns), np.float32)
    for x, y, d in zip(u, v, depth, strict=True):
        before = expected[int(y), int(x)]
        expected[int(y), int(x)] = d if before == 0 else min(before, d)
    image, mask = rasterise(u, v, depth, rows, columns)
    assert (image == expected).all() and (mask == (expected > 0)).all()
    assert (image.dtype, mask.dtype) == (np.float32, np.bool_)


def test_which_returns_count() -> None:
    """In front, from the least up to the greatest depth, more than a pixel inside the image, and finite."""
    frame = frame_of(100, 80, 50.0, np.eye(4))
    settings = DepthSettings(80, 100, 2.0, 10.0)

    def counted(u: float, v: float, depth: float) -> bool:
        x, y, z = depth * np.linalg.solve(frame.intrinsics, [u, v, 1.0])
        return len(project(np.array([[x, y, z]], np.float32), frame, settings)[0]) == 1

    assert [counted(50, 40, depth) for depth in (-5, 0, 1.99, 2, 9.99, 10, 60)] == [0, 0, 0, 1, 1, 0, 0]
    assert [counted(u, 40, 5) for u in (-3, 0.9, 1.1, 98.9, 99.1, 120)] == [0, 0, 1, 1, 0, 0]
    assert [counted(50, v, 5) for v in (-3, 0.9, 1.1, 78.9, 79.1, 120)] == [0, 0, 1, 1, 0, 0]
    odd = np.array([[np.nan, 0, 5], [0, 0, np.inf], [np.inf, -np.inf, 5], [0, 0, 5]], np.float32)
    assert project(odd, frame, settings)[2].tolist() == [5.0]


@pytest.mark.parametrize(
    "wrong", [{"height": 0}, {"width": -1}, {"min_depth": 0}, {"max_depth": 1}, {"max_depth": float("nan")}]
)
def test_settings_without_a_pixel_or_a_depth_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        replace(DepthSettings(), **wrong)


def test_ego_motion_between_sweep_and_image_matters(root: Path) -> None:
    """Where the vehicle has driven 3 m along the camera's axis since the sweep, everything is 3 m nearer."""
    dataset = read_nuscenes(root, VERSION)
    frame, forward = dataset.all_frames[0], np.array([0.0, 0.0, 3.0])
    ego, mounted = read_table(root, "ego_pose")[1], read_table(root, "calibrated_sensor")[1]
    assert ego["token"] == f"ego_{frame.sample}_CAM_FRONT" and mounted["token"] == "at_CAM_FRONT"
    for row in (mounted, ego):
        forward = Rotation.from_quat(row["rotation"], scalar_first=True).apply(forward)
    edit(root, "ego_pose", 1, translation=(np.array(ego["translation"]) + forward).tolist())
    moved = read_nuscenes(root, VERSION).all_frames[0]
    points = np.hstack([np.array([[0, 0, 10], [1, -1, 20]]), np.ones((2, 1))]).T
    in_lidar = (np.linalg.inv(frame.camera_from_lidar) @ points)[:3].T.astype(np.float32)
    (u, v, depth), (moved_u, moved_v, moved_depth) = (project(in_lidar, each, SMALL) for each in (frame, moved))
    assert moved_depth.tolist() == pytest.approx([7, 17], abs=1e-4)
    assert depth.tolist() == pytest.approx([10, 20], abs=1e-4)
    assert [moved_u[0], moved_v[0]] == pytest.approx([u[0], v[0]], abs=1e-3)
    assert moved_u[1] - 16 == pytest.approx((u[1] - 16) * 20 / 17, abs=1e-3)


def test_files_hold_depth_and_mask(root: Path, tmp_path: Path) -> None:
    frames = read_nuscenes(root, VERSION, ("CAM_FRONT", "CAM_BACK")).frames("train")
    made = make_depth_gt(frames, tmp_path / "out", SMALL)
    assert made == [tmp_path / "out" / f"{frame.stem}.npz" for frame in frames] and len(made) == 4
    for path, frame in zip(made, frames, strict=True):
        depth, mask = read_depth(path)
        expected, where = rasterise(*project(read_sweep(frame), frame, SMALL), 24, 32)
        assert (depth == expected).all() and (mask == where).all()
        with np.load(path) as archive:
            assert sorted(archive) == ["depth", "mask"]
    assert read_depth(made[0])[1].sum() > 20


def test_only_what_is_missing_is_made_again(root: Path, tmp_path: Path) -> None:
    dataset, out = read_nuscenes(root, VERSION), tmp_path / "out"
    frames = dataset.all_frames
    first = {path: path.read_bytes() for path in make_depth_gt(frames, out, SMALL)}
    paths = list(first)
    assert make_depth_gt(frames, out, SMALL) == []
    paths[0].unlink()
    paths[1].write_bytes(first[paths[1]][:-300])
    (out / ".writing-killed").mkdir()
    assert make_depth_gt(frames, out, SMALL) == paths[:2]
    assert {path: path.read_bytes() for path in sorted(out.iterdir())} == dict(sorted(first.items()))
    frames[2].sweep.write_bytes(frames[2].sweep.read_bytes()[:-20])
    assert make_depth_gt(frames, out, SMALL) == paths[2:]
    edit(root, "ego_pose", 0, translation=[400.0, 1100.0, 0.0])
    assert make_depth_gt(read_nuscenes(root, VERSION).all_frames, out, SMALL) == paths[:1]
    for other in ({"max_depth": 20.0}, {"height": 12}):
        assert make_depth_gt(frames, out, replace(SMALL, **other)) == paths


def command(root: Path, out: Path, *more: str) -> list[str]:
    return ["depth-gt", "--nuscenes-root", str(root), "--version", VERSION, "--output-dir", str(out), *more]


def make_and_die(out: Path, frames: tuple[Frame, ...], moment: int) -> None:
    """Make the files with two workers; at the given one of its operations below `out`, end as by kill -9."""
    passed = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        paths = [Path(argument) for argument in arguments if isinstance(argument, str | os.PathLike)]
        if any(path.is_relative_to(out) for path in paths) and next(passed) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    make_depth_gt(frames, out, SMALL, workers=2)


@pytest.mark.parametrize("moment", [150, 151, 152, 153, 154, 155])
def test_a_killed_run_goes_on_to_the_same_bytes(moment: int, tmp_path: Path) -> None:
    """Killed with -9 among its files, it leaves whole files only, and ends as if nothing had been."""
    root = write_root(tmp_path / "nuscenes", scenes={"scene-0061": 40})
    frames = read_nuscenes(root, VERSION).frames("train")
    make_depth_gt(frames, tmp_path / "alone", SMALL, workers=1)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    out = tmp_path / "train_depth"
    started = multiprocessing.get_context("spawn").Process(target=make_and_die, args=(out, frames, moment))
    started.start()
    started.join()
    assert started.exitcode == -signal.SIGKILL
    left = {path.name: path.read_bytes() for path in out.glob("*.npz")}
    assert 0 < len(left) < len(expected) and left.items() <= expected.items()
    make_depth_gt(frames, out, SMALL, workers=2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


@pytest.mark.parametrize("fault", ["no sweep", "cut sweep", "empty sweep", "no image", "cut image", "wrong size"])
def test_a_damaged_file_is_told_in_one_sentence(
    fault: str, root: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    frame = read_nuscenes(root, VERSION).frames("train")[1]
    path = frame.sweep if "sweep" in fault else frame.image
    content = path.read_bytes()
    if fault == "wrong size":
        Image.new("RGB", (30, 20)).save(path)
    elif fault.startswith("no"):
        path.unlink()
    else:
        path.write_bytes(b"" if fault.startswith("empty") else content[: len(content) - 7])
    code, out, err = command_line(*command(root, tmp_path / "out"))
    assert (code, out) == (2, "")
    assert str(path) in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_runbooks_options(root: Path, tmp_path: Path, command_line: CommandLine) -> None:
    size = ["--height", "24", "--width", "32", "--min-depth", "1", "--max-depth", "50"]
    wanted = ["--split", "train", "--cameras", "CAM_FRONT", "CAM_BACK", *size]
    code, said, _ = command_line(*command(root, tmp_path, *wanted))
    assert code == 0 and "4 files made, 0 were there" in said
    shots = {row["filename"] for row in read_table(root, "sample_data") if row["sample_token"].startswith("scene-0061")}
    images = {Path(name).stem for name in shots if name.endswith(".jpg")}
    assert {path.stem for path in (tmp_path / "train_depth").glob("*.npz")} == images
    code, said, _ = command_line(*command(root, tmp_path, "--check", *wanted))
    assert code == 0 and "CAM_BACK: 2 files of 24 × 32, valid ratio 0." in said
    assert {path.stem for path in (tmp_path / "train_depth_pictures").glob("*.png")} == images
    code, _, told = command_line(*command(root, tmp_path, "--check", "--split", "val"))
    assert code == 2 and "val_depth" in told and "does not exist" in told
    assert not (tmp_path / "val_depth_report.tsv").exists()
    code, _, told = command_line("depth-gt", "val")
    assert code == 2 and "'val' is one word too many" in told and "--split" in told
    code, _, told = command_line("depth-gt", "--output-dir", tmp_path / "mine", "--max-depth", 80)
    assert code == 2 and "--output-dir and --max-depth without --nuscenes-root: " in told
    code, _, told = command_line(*command(root, tmp_path, "--cameras", "CAM_FRON"))
    assert code == 2 and "did you mean 'CAM_FRONT'?" in told


def test_the_report_counts_what_the_files_hold(root: Path, tmp_path: Path) -> None:
    frames = read_nuscenes(root, VERSION, ("CAM_FRONT", "CAM_BACK")).all_frames
    settings, out = DepthSettings(24, 32, 1.5, 33.0), tmp_path / "out"
    make_depth_gt(frames, out, settings)
    write_depth_report(frames, out, settings, tmp_path / "report.tsv", tmp_path / "pictures")
    report = pd.read_csv(tmp_path / "report.tsv", sep="\t", index_col="camera")
    assert [*report.columns[10:]] == ["1.5-5m", "5-10m", "10-15m", "15-20m", "20-25m", "25-30m", "30-33m"]
    for camera in ("CAM_FRONT", "CAM_BACK"):
        depths = [read_depth(out / f"{frame.stem}.npz")[0] for frame in frames if frame.camera == camera]
        found = np.concatenate([depth[depth > 0] for depth in depths])
        ratios = [np.count_nonzero(depth) / (24 * 32) for depth in depths]
        row = report.loc[camera]
        assert [row["files"], row["height"], row["width"], row["empty"]] == [3, 24, 32, 0]
        measured = row[["valid_ratio", "valid_ratio_min", "valid_ratio_max", "depth_min", "depth_mean", "depth_max"]]
        expected = [np.mean(ratios), min(ratios), max(ratios), found.min(), found.mean(dtype=np.float64), found.max()]
        assert measured.tolist() == pytest.approx(expected, abs=1e-5)
        shares = [((found >= low) & (found < high)).mean() for low, high in
                  zip([1.5, 5, 10, 15, 20, 25, 30], [5, 10, 15, 20, 25, 30, 33], strict=True)]  # fmt: skip
        assert row.iloc[10:].tolist() == pytest.approx(shares, abs=1e-5)


def test_a_return_is_drawn_where_it_fell(root: Path) -> None:
    frame = read_nuscenes(root, VERSION).all_frames[0]
    depth, mask = np.zeros((24, 32), np.float32), np.zeros((24, 32), np.bool_)
    grey = np.asarray(overlay(frame, depth, mask, SMALL))
    depth[3, 4], depth[20, 30] = 1, 49.9
    mask[3, 4] = mask[20, 30] = True
    drawn = np.asarray(overlay(frame, depth, mask, SMALL))
    assert grey.shape == drawn.shape and drawn.shape[1] == 640
    changed = np.argwhere((grey[:480] != drawn[:480]).any(axis=2)) // 20
    assert {tuple(place) for place in changed.tolist()} == {(3, 4), (20, 30)}
    assert drawn[70, 90].sum() > drawn[410, 610].sum() + 100


def rewritten(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


def test_damaged_or_foreign_files_are_named(root: Path, tmp_path: Path) -> None:
    frames, out = read_nuscenes(root, VERSION).all_frames, tmp_path / "out"
    path = make_depth_gt(frames, out, SMALL)[1]
    whole = path.read_bytes()
    depth, mask = read_depth(path)
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset + 80
    broken = bytearray(whole)
    broken[start : start + 40] = bytes(40)

    def complaint(settings: DepthSettings = SMALL) -> str:
        with pytest.raises(UserError) as told:
            write_depth_report(frames, out, settings, tmp_path / "report.tsv", tmp_path / "pictures")
        return str(told.value)

    for content in (b"", whole[:100], whole[: len(whole) // 2], bytes(len(whole)), bytes(broken), b"\x80\x04nothing"):
        path.write_bytes(content)
        assert f"{path} is no whole depth file" in complaint()
    for arrays, said in (
        ({"depth": depth}, "is no whole depth file"),
        ({"depth": depth.astype(np.float64), "mask": mask}, "holds depth float64 (24, 32)"),
        ({"depth": depth[:20], "mask": mask}, "mask bool (24, 32); it must be"),
        ({"depth": depth[:20], "mask": mask[:20]}, "is 20 × 32 pixels (height × width), not 24 × 32"),
        ({"depth": depth, "mask": ~mask}, "holds depths outside its mask"),
        ({"depth": depth * 10, "mask": mask}, "not from 1 to 50 m"),
    ):
        rewritten(path, **arrays)
        assert said in complaint() and str(path) in complaint()
    path.write_bytes(whole)
    assert "not from 1 to 5 m" in complaint(replace(SMALL, max_depth=5.0))
    for each in out.iterdir():
        rewritten(each, depth=np.zeros((24, 32), np.float32), mask=np.zeros((24, 32), np.bool_))
    assert "no file of CAM_FRONT holds a return" in complaint()
    assert not (tmp_path / "report.tsv").exists() and not (tmp_path / "pictures").exists()

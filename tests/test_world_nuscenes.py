"""The embedded world's nuScenes root: rays by brute force, frames and labels through the tables alone, files whole."""

import json
from collections import Counter
from dataclasses import dataclass
from errno import ENOSPC
from itertools import pairwise
from math import atan, degrees, floor, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation
from test_world import FLOOR, block, scene_of

from noisebox.data.world import nuscenes_export, render, shapes
from noisebox.data.world.birdseye import CLASSES, IGNORED, RAY, covers
from noisebox.data.world.drive import LENGTH, Drive, make_drive
from noisebox.data.world.lidar import COLUMNS, FARTHEST, NEAREST, RINGS, RISE, Sweep, cast, firings
from noisebox.data.world.nuscenes_export import LONGEST, MAP_CELL, TABLES, VERSION, box_of, record, write_nuscenes_world
from noisebox.data.world.pose import Pose, product, rotation_about
from noisebox.data.world.render import SAMPLES
from noisebox.data.world.scene import KERB, Scene, Thing
from noisebox.errors import UserError

SEED, SCENES, PER_SCENE, HEIGHT, WIDTH = 3, {"train": 2, "val": 1}, 3, 96, 120
COLUMNS_OF = {  # the published schema
    "attribute": "token name description",
    "calibrated_sensor": "token sensor_token translation rotation camera_intrinsic",
    "category": "token name description",
    "ego_pose": "token timestamp translation rotation",
    "instance": "token category_token nbr_annotations first_annotation_token last_annotation_token",
    "log": "token logfile vehicle date_captured location",
    "map": "token log_tokens category filename",
    "sample": "token timestamp prev next scene_token",
    "sample_annotation": "token sample_token instance_token visibility_token attribute_tokens translation rotation "
    "size prev next num_lidar_pts num_radar_pts",
    "sample_data": "token sample_token ego_pose_token calibrated_sensor_token timestamp fileformat is_key_frame "
    "height width filename prev next",
    "scene": "token log_token nbr_samples first_sample_token last_sample_token name description",
    "sensor": "token channel modality",
    "visibility": "token level description",
}


@dataclass(frozen=True)
class Root:
    """A root on disk, its tables and their rows by token."""

    path: Path
    tables: dict[str, list[dict[str, Any]]]

    def row(self, table: str, token: str) -> dict[str, Any]:
        (found,) = [row for row in self.tables[table] if row["token"] == token]
        return found

    def data(self, sample: dict[str, Any], channel: str) -> dict[str, Any]:
        (found,) = [
            row
            for row in self.tables["sample_data"]
            if row["sample_token"] == sample["token"] and f"/{channel}/" in row["filename"]
        ]
        return found

    def poses(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """The frames a sensor's points go through to the global one."""
        sensor = self.row("calibrated_sensor", data["calibrated_sensor_token"])
        return [sensor, self.row("ego_pose", data["ego_pose_token"])]

    def recording(self, sample: dict[str, Any]) -> nuscenes_export.Recording:
        """What the sample was drawn from."""
        _, split, number = self.row("scene", sample["scene_token"])["name"].split("-")
        return record(SEED, split, int(number) - 1)


def read_root(path: Path) -> Root:
    return Root(path, {name: json.loads((path / VERSION / f"{name}.json").read_text()) for name in TABLES})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    path = tmp_path_factory.mktemp("nuscenes") / "world"
    write_nuscenes_world(path, SEED, SCENES, PER_SCENE, (HEIGHT, WIDTH))
    return read_root(path)


def out(points: np.ndarray, *poses: dict[str, Any]) -> np.ndarray:
    """Points through frame after frame, by scipy's quaternions (which are x, y, z, w)."""
    for pose in poses:
        w, x, y, z = pose["rotation"]
        points = points @ Rotation.from_quat([x, y, z, w]).as_matrix().T + pose["translation"]
    return points


def into(points: np.ndarray, *poses: dict[str, Any]) -> np.ndarray:
    """The way back, the last frame first."""
    for pose in reversed(poses):
        w, x, y, z = pose["rotation"]
        points = (points - pose["translation"]) @ Rotation.from_quat([x, y, z, w]).as_matrix()
    return points


def returns(root: Root, data: dict[str, Any]) -> np.ndarray:
    return np.fromfile(root.path / data["filename"], dtype="<f4").reshape(-1, 5).astype(np.float64)


def corners_of(annotation: dict[str, Any]) -> np.ndarray:
    """The corners (4, 3) of a box's lower side in the global frame."""
    width, length, height = annotation["size"]
    return out(np.array([(1, 1, -1), (-1, 1, -1), (-1, -1, -1), (1, -1, -1)]) * (length, width, height) / 2, annotation)


# Poses


angles = st.floats(-pi, pi)
points = st.tuples(*[st.floats(-50, 50)] * 3)


@given(st.lists(st.tuples(st.sampled_from("xyz"), angles), min_size=1, max_size=3), points, points)
def test_pose_moves_points_as_scipy_does(turns: list[tuple[str, float]], place: Any, point: Any) -> None:
    quaternion, expected = (1.0, 0.0, 0.0, 0.0), Rotation.identity()
    for axis, angle in turns:
        quaternion = product(quaternion, rotation_about(axis, angle))
        expected = expected * Rotation.from_rotvec(angle * np.eye(3)["xyz".index(axis)])
    pose = Pose(quaternion, place)
    np.testing.assert_allclose(pose.out(np.array(point)), expected.apply(point) + place, atol=1e-5)
    np.testing.assert_allclose(pose.into(pose.out(np.array(point))), point, atol=1e-5)
    inner = Pose(rotation_about("y", 0.3), point)
    np.testing.assert_allclose((pose @ inner).out(np.ones(3)), pose.out(inner.out(np.ones(3))), atol=1e-6)


# The lidar


@given(st.floats(-2, 2), st.floats(0.5, 4), st.floats(-0.02, 0.02), st.floats(-pi, pi))
@settings(max_examples=25, deadline=None)
def test_floor_returns_from_where_each_ray_meets_it(yaw: float, height: float, tilt: float, first: float) -> None:
    pose = Pose(product(rotation_about("z", yaw), rotation_about("x", tilt)), (1.0, 5.0, height))
    sweep = cast(scene_of(FLOOR).faces(), pose, first)
    units = np.concatenate([firings(first)[:, None] * RISE[:, :1], np.tile(RISE[:, 1:], (COLUMNS, 1, 1))], axis=2)
    down = -(units @ np.array(pose.axes())[:, 2])
    with np.errstate(divide="ignore"):
        expected = np.where(down > 0, height / down, np.inf)
    meets = (expected > NEAREST + 1e-6) & (expected < FARTHEST - 1e-6)
    assert abs(len(sweep.points) - meets.sum()) <= ((expected > NEAREST - 1e-6) & ~meets).sum()
    distance = np.linalg.norm(sweep.points, axis=1)
    firing = np.round((np.arctan2(sweep.points[:, 1], sweep.points[:, 0]) - first) / (2 * pi) * COLUMNS).astype(int)
    np.testing.assert_allclose(distance, expected[firing % COLUMNS, sweep.rings], rtol=1e-6)
    np.testing.assert_allclose(pose.out(sweep.points)[:, 2], 0, atol=1e-6)


def test_block_returns_from_its_front_as_wide_and_high_as_it_is() -> None:
    wall = block("car", (-2.0, 10.0, 0.0), (3.0, 12.0, 1.5))
    sweep = cast(scene_of(wall).faces(), Pose(rotation_about("z", 0.0), (0.0, 0.0, 1.0)), 0.0)
    np.testing.assert_allclose(sweep.points[:, 1], 10, atol=1e-6)
    azimuths = (np.degrees(np.arctan2(sweep.points[:, 0], sweep.points[:, 1]))).round(6)
    assert len(np.unique(azimuths)) == int(degrees(atan(0.3)) / 0.75) + int(degrees(atan(0.2)) / 0.75) + 1
    ahead = sweep.points[np.abs(sweep.points[:, 0]) < 0.01]
    elevations = -30.67 + 41.34 * np.arange(RINGS) / 31
    inside = (elevations > degrees(atan(-0.1))) & (elevations < degrees(atan(0.05)))
    assert len(ahead) == inside.sum()
    assert set(sweep.rings) == set(np.flatnonzero(inside))


def nearest_hits(scene: Scene, pose: Pose, units: np.ndarray) -> np.ndarray:
    """The distance of the nearest triangle's front along each of the lidar's rays (Möller and Trumbore 1997)."""
    triangles, _ = scene.triangles()
    one, two = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    away = np.array(pose.translation) - triangles[:, 0]
    turned = np.cross(away, one)
    found = []
    for ray in units @ np.array(pose.axes()):
        across_two = np.cross(ray, two)
        determinant = (one * across_two).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = (away * across_two).sum(axis=1) / determinant, turned @ ray / determinant
            distance = (two * turned).sum(axis=1) / determinant
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0) & (determinant > 0)
        found.append(np.where(hit, distance, np.inf).min())
    return np.array(found)


@pytest.mark.parametrize("index", range(3))
def test_street_returns_as_by_ray_casting(index: int) -> None:
    drive = make_drive(0, "train", index)
    pose, faces = drive.course.pose(2.0) @ drive.rig.lidar, drive.still(2.0).faces()
    sweep = cast(faces, pose, 0.4)
    firing = np.round((np.arctan2(sweep.points[:, 1], sweep.points[:, 0]) - 0.4) / (2 * pi) * COLUMNS).astype(int)
    distance, face = np.full((COLUMNS, RINGS), np.inf), np.zeros((COLUMNS, RINGS), dtype=int)
    distance[firing % COLUMNS, sweep.rings] = np.linalg.norm(sweep.points, axis=1)
    face[firing % COLUMNS, sweep.rings] = sweep.faces
    rng = np.random.default_rng(index)
    on_objects = rng.permutation(np.flatnonzero(faces.instances[sweep.faces]))[:150]
    columns = np.append(rng.integers(0, COLUMNS, 250), firing[on_objects] % COLUMNS)
    rings = np.append(rng.integers(0, RINGS, 250), sweep.rings[on_objects])
    expected = nearest_hits(
        drive.still(2.0), pose, np.column_stack([firings(0.4)[columns] * RISE[rings, :1], RISE[rings, 1]])
    )
    expected[(expected < NEAREST) | (expected > FARTHEST)] = np.inf
    found = distance[columns, rings]
    # Some faces of bodywork are a little bent, and then two triangles are not the same surface.
    corners = faces.vertices[face[columns, rings]]
    normal = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    height = ((corners[:, 1] - corners[:, 0]) * normal).sum(axis=1) / np.linalg.norm(normal, axis=1)
    flat = np.isinf(found) | (np.abs(height) < 1e-4)
    assert flat.mean() > 0.7
    assert np.isclose(found, expected, rtol=0, atol=1e-3)[flat].mean() > 0.99
    assert np.isclose(found, expected, rtol=0, atol=3e-2).mean() > 0.995


# The drive


@pytest.mark.parametrize("index", range(6))
def test_nothing_ever_touches_anything(index: int) -> None:
    drive = make_drive(1, "train", index)
    for second in np.random.default_rng(index).uniform(0, LENGTH, 25).tolist():
        x, y, yaw = drive.course.place(second)
        assert abs(yaw) < 0.5
        spots = [((x - 0.9, x + 0.9), (y - 0.8, y + 3.5))]
        for thing in drive.present(second).values():
            (x0, x1), (y0, y1) = thing.footprint()
            assert not any(x0 < b1 and b0 < x1 and y0 < d1 and d0 < y1 for (b0, b1), (d0, d1) in spots)
            spots.append(((x0, x1), (y0, y1)))


def test_traffic_keeps_to_its_ground_and_its_pace() -> None:
    categories = Counter()
    for index in range(6):
        drive = make_drive(2, "val", index)
        for number, mover in enumerate(drive.movers):
            things = [drive.present(second).get(number) for second in np.arange(0, LENGTH, 0.5).tolist()]
            categories[mover.thing.category, mover.speed > 0] += 1
            for thing in filter(None, things):
                allowed = drive.street.walkways() if thing.position[2] == KERB else drive.street.drivable()
                x, y, _ = thing.position
                assert any(p[:, 0].min() <= x <= p[:, 0].max() and p[:, 1].min() <= y <= p[:, 1].max() for p in allowed)
                assert thing.category == "person" or thing.position[2] == 0
            for one, other in pairwise(things):
                if one and other:
                    step = np.hypot(*np.subtract(one.position, other.position)[:2])
                    assert step < mover.speed * 0.5 + 1e-3
    assert len(categories) == 6


def test_ego_vehicle_looks_where_it_goes() -> None:
    for index in range(4):
        drive = make_drive(0, "train", index)
        for second in (0.5, 2.0, 5.0):
            before, after = (np.array(drive.course.pose(second + d).translation) for d in (-0.01, 0.01))
            way = (after - before) / np.linalg.norm(after - before)
            np.testing.assert_allclose(drive.course.pose(second).axes()[0], way, atol=2e-3)


# Tables


def test_tables_have_the_published_columns_and_keyed_tokens(root: Root) -> None:
    assert set(TABLES) == set(COLUMNS_OF)
    for name, rows in root.tables.items():
        assert rows
        assert all(set(row) == set(COLUMNS_OF[name].split()) for row in rows)
        tokens = [row["token"] for row in rows]
        assert len(set(tokens)) == len(tokens)
        assert name == "visibility" or all(len(token) == 32 and int(token, 16) >= 0 for token in tokens)
    everything = [row["token"] for rows in root.tables.values() for row in rows]
    assert len(set(everything)) == len(everything)


def test_every_token_is_somewhere(root: Root) -> None:
    tokens = {name: {row["token"] for row in rows} for name, rows in root.tables.items()}
    aliases = {"first_sample": "sample", "last_sample": "sample", "attribute": "attribute", "log": "log"}
    aliases |= {"first_annotation": "sample_annotation", "last_annotation": "sample_annotation"}
    for name, rows in root.tables.items():
        for row in rows:
            for column, value in row.items():
                if column in ("prev", "next"):
                    assert value == "" or value in tokens[name]
                elif column.endswith(("_token", "_tokens")):
                    table = column.rsplit("_", 1)[0]
                    for each in value if isinstance(value, list) else [value]:
                        assert each in tokens[aliases.get(table, table)]


def test_chains_run_through_a_scene_in_time(root: Root) -> None:
    def chain(table: str, first: str) -> list[dict[str, Any]]:
        rows = [root.row(table, first)]
        assert rows[0]["prev"] == ""
        while rows[-1]["next"]:
            rows.append(root.row(table, rows[-1]["next"]))
            assert rows[-1]["prev"] == rows[-2]["token"]
        return rows

    for scene in root.tables["scene"]:
        samples = chain("sample", scene["first_sample_token"])
        assert len(samples) == scene["nbr_samples"] == PER_SCENE
        assert samples[-1]["token"] == scene["last_sample_token"]
        assert {sample["scene_token"] for sample in samples} == {scene["token"]}
        assert [b["timestamp"] - a["timestamp"] for a, b in pairwise(samples)] == [500_000] * (PER_SCENE - 1)
        for channel in ("CAM_FRONT", "LIDAR_TOP"):
            data = chain("sample_data", root.data(samples[0], channel)["token"])
            assert [row["sample_token"] for row in data] == [sample["token"] for sample in samples]
    order = {sample["token"]: sample["timestamp"] for sample in root.tables["sample"]}
    for instance in root.tables["instance"]:
        annotations = chain("sample_annotation", instance["first_annotation_token"])
        assert len(annotations) == instance["nbr_annotations"]
        assert annotations[-1]["token"] == instance["last_annotation_token"]
        assert {row["instance_token"] for row in annotations} == {instance["token"]}
        assert len({tuple(row["size"]) for row in annotations}) == 1
        assert [order[row["sample_token"]] for row in annotations] == sorted(
            {order[row["sample_token"]] for row in annotations}
        )
    assert sum(row["nbr_annotations"] for row in root.tables["instance"]) == len(root.tables["sample_annotation"])


def test_files_are_what_the_tables_say(root: Root) -> None:
    splits = json.loads((root.path / VERSION / "splits.json").read_text())
    assert {split: len(names) for split, names in splits.items()} == SCENES
    for data in root.tables["sample_data"]:
        path = root.path / data["filename"]
        sample = root.row("sample", data["sample_token"])
        scene = root.row("scene", sample["scene_token"])
        assert data["timestamp"] == root.row("ego_pose", data["ego_pose_token"])["timestamp"]
        if data["fileformat"] == "pcd":
            assert data["timestamp"] == sample["timestamp"]
            records = returns(root, data)
            distance = np.linalg.norm(records[:, :3], axis=1)
            assert 5_000 < len(records) <= RINGS * COLUMNS
            assert NEAREST - 1e-3 <= distance.min() < distance.max() <= FARTHEST + 1e-3
            assert ((records[:, 3] >= 0) & (records[:, 3] <= 255) & (records[:, 3] % 1 == 0)).all()
            assert set(records[:, 4]) == set(range(RINGS))
            continue
        assert 10_000 <= sample["timestamp"] - data["timestamp"] < 50_000
        with Image.open(path) as image:
            assert (image.format, image.height, image.width) == ("JPEG", data["height"], data["width"])
            assert (image.height, image.width) == (HEIGHT, WIDTH)
        (split,) = [split for split, names in splits.items() if scene["name"] in names]
        assert (root.path / "img_dir" / split / path.name).read_bytes() == path.read_bytes()
        with Image.open(root.path / "ann_bev_dir" / split / f"{path.stem}.png") as labels:
            assert (labels.height, labels.width, labels.mode) == (98, 100, "L")
    images = sorted(path.name for path in (root.path / "samples/CAM_FRONT").iterdir())
    for folder in ("img_dir", "ann_bev_dir"):
        stems = sorted(path.stem for path in (root.path / folder).rglob("*.*"))
        assert stems == [Path(name).stem for name in images]


# Frames


def test_sensors_sit_as_on_nuscenes_vehicles(root: Root) -> None:
    for row in root.tables["calibrated_sensor"]:
        right, ahead_or_down, up_or_ahead = out(np.eye(3), row | {"translation": [0, 0, 0]})
        assert np.linalg.norm(row["rotation"]) == pytest.approx(1, abs=1e-8)
        if row["camera_intrinsic"]:
            np.testing.assert_allclose(
                [right, ahead_or_down, up_or_ahead], [(0, -1, 0), (0, 0, -1), (1, 0, 0)], atol=0.1
            )
            focal = row["camera_intrinsic"][0][0]
            assert row["camera_intrinsic"] == [[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]]
        else:
            np.testing.assert_allclose(
                [right, ahead_or_down, up_or_ahead], [(0, -1, 0), (1, 0, 0), (0, 0, 1)], atol=0.03
            )


def test_tables_lead_from_the_world_to_where_it_is_drawn(root: Root) -> None:
    rng = np.random.default_rng(0)
    for sample in root.tables["sample"]:
        recording, data = root.recording(sample), root.data(sample, "CAM_FRONT")
        somewhere = rng.uniform(-30, 30, (20, 3))
        camera = recording.drive.camera(recording.second(data["timestamp"]))
        seen = into(recording.town.out(somewhere), *root.poses(data))
        np.testing.assert_allclose(seen, camera.view(somewhere), atol=1e-4)


def overlaid(root: Root, sample: dict[str, Any], motion: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sweep's points inside the image: u, v and depth (n, 3), height above ground, and whether in an annotated box.

    Without `motion`, as if the ego vehicle had stood still between image and sweep.
    """
    lidar, camera = root.data(sample, "LIDAR_TOP"), root.data(sample, "CAM_FRONT")
    world = out(returns(root, lidar)[:, :3], *root.poses(lidar))
    sensor, ego = root.poses(camera)
    seen = into(world, sensor, ego if motion else root.poses(lidar)[1])
    boxed = np.zeros(len(world), dtype=bool)
    for annotation in root.tables["sample_annotation"]:
        if annotation["sample_token"] == sample["token"]:
            width, length, height = annotation["size"]
            boxed |= (np.abs(into(world, annotation)) <= np.array([length, width, height]) / 2 + 0.01).all(axis=1)
    u, v, w = np.array(sensor["camera_intrinsic"]) @ seen.T
    inside = (w > 1) & (u >= 0) & (u < WIDTH * w) & (v >= 0) & (v < HEIGHT * w)
    w = w[inside]
    return np.column_stack([u[inside] / w, v[inside] / w, w]), world[inside, 2], boxed[inside]


def rendered_depths(root: Root, sample: dict[str, Any]) -> np.ndarray:
    """The least and the greatest depth (2, rows, columns) that the renderer has in the 3 × 3 samples around each."""
    recording, data = root.recording(sample), root.data(sample, "CAM_FRONT")
    depth = render(recording.drive.still(recording.second(data["timestamp"])), HEIGHT, WIDTH).depth
    padded = np.pad(depth, 1, mode="edge")
    around = np.stack([padded[r : r + len(depth), c : c + depth.shape[1]] for r in range(3) for c in range(3)])
    return np.stack([around.min(axis=0), around.max(axis=0)])


def at(depths: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Those depths where the points are."""
    column, row = (points[:, :2] * SAMPLES).astype(int).T
    return depths[:, row, column]


def test_sweep_lies_on_the_surfaces_that_the_image_shows(root: Root) -> None:
    agreeing = []
    for sample in root.tables["sample"]:
        points, _, boxed = overlaid(root, sample)
        low, high = at(rendered_depths(root, sample), points)
        depth = points[:, 2]
        assert len(points) > 1000
        # The lidar sees past edges that hide a surface from the camera, but nothing that stands still before it.
        assert (depth[~boxed] > 0.999 * low[~boxed] - 0.01).mean() > 0.998
        smooth = ~boxed & (high < 1.03 * low)
        assert smooth.mean() > 0.5
        agreeing.append((depth >= 0.999 * low - 0.01)[smooth] & (depth <= 1.001 * high + 0.01)[smooth])
    assert np.concatenate(agreeing).mean() > 0.97


def test_ego_motion_matters(root: Root) -> None:
    """How far upright surfaces are off in depth, in units of what the ego vehicle drove between image and sweep."""
    errors: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for sample in root.tables["sample"]:
        taken = root.data(sample, "CAM_FRONT")["timestamp"]
        driven = root.recording(sample).drive.course.speed * (sample["timestamp"] - taken) / 1_000_000
        depths = rendered_depths(root, sample)
        for motion, found in errors.items():
            points, height, boxed = overlaid(root, sample, motion)
            low, high = at(depths, points)
            upright = ~boxed & (height > 0.5) & (high < 1.01 * low)  # the ground looks the same from further on
            found.append((points[:, 2] - (low + high) / 2)[upright] / driven)
    assert np.median(np.abs(np.concatenate(errors[True]))) < 0.05
    assert np.median(np.abs(np.concatenate(errors[False]))) > 0.5


def test_boxes_hold_the_returns_they_count(root: Root) -> None:
    counted = 0
    for annotation in root.tables["sample_annotation"]:
        sample = root.row("sample", annotation["sample_token"])
        lidar = root.data(sample, "LIDAR_TOP")
        world = out(returns(root, lidar)[:, :3], *root.poses(lidar))
        width, length, height = annotation["size"]
        local = into(world, annotation)
        inside = (np.abs(local) <= np.array([length, width, height]) / 2 + 1e-3).all(axis=1)
        above = inside & (local[:, 2] > KERB + 0.03 - height / 2)  # ground and kerb reach into the box
        assert above.sum() <= annotation["num_lidar_pts"] <= inside.sum()
        assert annotation["num_lidar_pts"] > 0
        counted += annotation["num_lidar_pts"]
    assert counted > 500


def test_boxes_are_tight_and_look_ahead(root: Root) -> None:
    drive = make_drive(SEED, "train", 0)
    assert {mover.thing.category for mover in drive.movers} == {"car", "motorbike", "person"}
    for thing in drive.present(1.0).values():
        pose, (width, length, height) = box_of(thing)
        corners = pose.into(thing.quads().reshape(-1, 3))
        np.testing.assert_allclose(corners.max(axis=0), np.array([length, width, height]) / 2, atol=2e-4)
        np.testing.assert_allclose(corners.min(axis=0), -np.array([length, width, height]) / 2, atol=2e-4)
    nose = Thing("car", shapes.car("van"), (4.0, 7.0, 0.0), yaw=0.5)
    ahead = np.array([-np.sin(0.5), np.cos(0.5), 0])
    np.testing.assert_allclose(box_of(nose)[0].axes()[0], ahead, atol=1e-6)


def test_visibility_and_attributes_tell_what_is_seen(root: Root) -> None:
    checked = 0
    for sample in root.tables["sample"]:
        recording, data = root.recording(sample), root.data(sample, "CAM_FRONT")
        rendering = render(recording.drive.still(recording.second(data["timestamp"])), HEIGHT, WIDTH)
        numbers = list(recording.drive.present(recording.second(data["timestamp"])))
        rows = {
            row["instance_token"]: row
            for row in root.tables["sample_annotation"]
            if row["sample_token"] == sample["token"]
        }
        for instance, number in enumerate(numbers, start=1):
            row = rows.get(recording.token("instance", number))
            if row is None:
                continue
            alone, visible = rendering.alone[instance], (rendering.instances == instance).sum()
            share = visible / alone if alone else 0
            level = root.row("visibility", row["visibility_token"])["level"]
            low, high = (int(part) / 100 for part in level[1:].split("-"))
            assert low <= share <= high
            (attribute,) = [root.row("attribute", token)["name"] for token in row["attribute_tokens"]]
            mover = recording.drive.movers[number]
            name = root.row("category", root.row("instance", row["instance_token"])["category_token"])["name"]
            assert name.split(".")[0] == {"person": "human"}.get(mover.thing.category, "vehicle")
            if mover.speed == 0:
                assert attribute in ("vehicle.parked", "cycle.with_rider", "pedestrian.standing")
            checked += 1
    assert checked > 30


# Maps and labels


def within(polygon: list[tuple[float, float]], x: float, y: float) -> bool:
    """Whether a point is inside a polygon, by the edges that a line to the right crosses."""
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


@given(
    st.tuples(*[st.integers(-9, 9)] * 2),
    st.tuples(*[st.integers(-9, 9)] * 2),
    st.tuples(*[st.integers(-9, 9)] * 2),
    st.booleans(),
)
def test_cells_are_covered_as_crossings_say(start: Any, along: Any, across: Any, reverse: bool) -> None:
    one, two, three = np.array(start), np.array(along), np.array(across)
    corners = np.array([one, one + two, one + two + three, one + three], dtype=np.float64)[:: -1 if reverse else 1]
    x, y = np.meshgrid(np.arange(-30, 30) + 0.37, np.arange(-30, 30) + 0.41)  # no point lies on an edge
    if two[0] * three[1] != two[1] * three[0]:
        expected = [
            within(corners.tolist(), *point) for point in zip(x.ravel().tolist(), y.ravel().tolist(), strict=True)
        ]
        np.testing.assert_array_equal(covers(corners, x, y).ravel(), expected)


def labels_of(root: Root, data: dict[str, Any]) -> np.ndarray:
    (path,) = (root.path / "ann_bev_dir").rglob(f"{Path(data['filename']).stem}.png")
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("position", [1, 8])
def test_label_map_is_what_brute_force_finds(root: Root, position: int) -> None:
    """Every cell on its own: annotations and sweep through the tables, the street's plan by its pose in the world."""
    sample = root.tables["sample"][position]
    camera, lidar = root.data(sample, "CAM_FRONT"), root.data(sample, "LIDAR_TOP")
    recording = root.recording(sample)

    def seen(world: np.ndarray) -> list[tuple[float, float]]:
        return into(world, *root.poses(camera))[:, ::2].tolist()

    areas = [(1, polygon, 0.0) for polygon in recording.drive.street.drivable()]
    areas += [(2, polygon, KERB) for polygon in recording.drive.street.walkways()]
    flat = [(label, seen(recording.town.out(np.insert(plan, 2, height, axis=1)))) for label, plan, height in areas]
    names = {"vehicle.car": 3, "vehicle.motorcycle": 4, "human.pedestrian.adult": 5}
    for row in root.tables["sample_annotation"]:
        if row["sample_token"] == sample["token"]:
            category = root.row("instance", row["instance_token"])["category_token"]
            flat.append((names[root.row("category", category)["name"]], seen(corners_of(row))))
    farthest: dict[int, float] = {}
    for x, z in seen(out(returns(root, lidar)[:, :3], *root.poses(lidar))):
        if z > 1:
            ray = floor(x / z / RAY)
            farthest[ray] = max(z, farthest.get(ray, 0.0))
    focal = root.poses(camera)[0]["camera_intrinsic"][0][0]
    expected = np.full((98, 100), IGNORED)
    for row, column in np.ndindex(98, 100):
        x, z = -24.75 + 0.5 * column, 49.75 - 0.5 * row
        if abs(focal * x / z) <= WIDTH / 2 and z <= farthest.get(floor(x / z / RAY), 0.0):
            expected[row, column] = max([label for label, polygon in flat if within(polygon, x, z)], default=0)
    np.testing.assert_array_equal(labels_of(root, camera), expected)


def test_labels_agree_with_the_ground_that_the_lidar_hits(root: Root) -> None:
    agreeing, seen = [], Counter()
    for sample in root.tables["sample"]:
        lidar, camera = root.data(sample, "LIDAR_TOP"), root.data(sample, "CAM_FRONT")
        world = out(returns(root, lidar)[:, :3], *root.poses(lidar))
        x, _, z = into(world, *root.poses(camera)).T
        row, column = np.floor((50 - z) / 0.5).astype(int), np.floor((x + 25) / 0.5).astype(int)
        labels = labels_of(root, camera)
        seen.update(labels.ravel().tolist())
        valid = (row >= 0) & (row < 98) & (column >= 0) & (column < 100)
        label = np.where(valid, labels[row.clip(0, 97), column.clip(0, 99)], IGNORED)
        known = label != IGNORED
        carriageway = known & (np.abs(world[:, 2]) < 0.02)
        raised = known & (np.abs(world[:, 2] - KERB) < 0.005)
        agreeing += [label[carriageway] != 2, np.isin(label[raised], (0, 2, 5))]
        assert carriageway.sum() > 300
    # A cell at a kerb is what its middle is.
    assert np.concatenate(agreeing).mean() > 0.95
    assert set(seen) == {*range(len(CLASSES)), IGNORED}
    assert 0.3 < seen[IGNORED] / seen.total() < 0.8


def test_map_mask_shows_where_one_may_walk_or_drive(root: Root) -> None:
    for sample in root.tables["sample"][::PER_SCENE]:
        recording = root.recording(sample)
        scene = root.row("scene", sample["scene_token"])
        (row,) = [row for row in root.tables["map"] if row["log_tokens"] == [scene["log_token"]]]
        mask = np.asarray(Image.open(root.path / row["filename"]))
        assert set(np.unique(mask)) == {0, 255}
        street = recording.drive.street
        plans = [*street.drivable(), *street.walkways()]
        inner, outer = ([[(p.min(0) + m).tolist(), (p.max(0) - m).tolist()] for p in plans] for m in (0.3, -0.3))
        for x, y in np.random.default_rng(0).uniform((-60, -39), (60, 139), (400, 2)).tolist():
            u, v, _ = (recording.town.out(np.array([x, y, 0.0])) / MAP_CELL).astype(int)
            shown = mask[len(mask) - 1 - v, u] == 255
            surely, perhaps = (
                any(low[0] <= x <= high[0] and low[1] <= y <= high[1] for low, high in plan) for plan in (inner, outer)
            )
            assert surely <= shown <= perhaps


# Files


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_other_processes_write_the_same_bytes(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuscenes_export, "WORTH_PROCESSES", 1)
    seen: list[tuple[int, int]] = []
    write_nuscenes_world(
        tmp_path / "again", SEED, SCENES, PER_SCENE, (HEIGHT, WIDTH), lambda done, total: seen.append((done, total))
    )
    assert contents(tmp_path / "again") == contents(root.path)
    assert seen == [(3, 9), (6, 9), (9, 9)]


def test_fewer_samples_are_the_first_ones(root: Root, tmp_path: Path) -> None:
    write_nuscenes_world(tmp_path / "few", SEED, {"train": 1}, 2, (HEIGHT, WIDTH))
    few, more = contents(tmp_path / "few"), contents(root.path)
    files = [name for name in few if not name.startswith(VERSION)]
    assert len(files) == 2 * 4 + 1
    assert all(few[name] == more[name] for name in files)
    later = {"next", "nbr_samples", "last_sample_token", "nbr_annotations", "last_annotation_token"}
    for table, rows in read_root(tmp_path / "few").tables.items():
        for row in rows:
            other = root.row(table, row["token"])
            assert {key: row[key] for key in row if key not in later} == {
                key: other[key] for key in row if key not in later
            }


def test_root_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "world"
    with pytest.raises(KeyboardInterrupt):
        write_nuscenes_world(folder, 0, {"train": 1}, 1, (32, 40), interrupt)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        write_nuscenes_world(folder, 0, {"train": 1}, 1, (32, 40), interrupt)
    assert [path.name for path in folder.iterdir()] == ["old"]
    write_nuscenes_world(folder, 0, {"train": 1}, 1, (32, 40))
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(sweep: Sweep) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(Sweep, "records", fill)
    with pytest.raises(UserError, match=r"the disk is full: .*world"):
        write_nuscenes_world(tmp_path / "world", 0, {"train": 1}, 1, (32, 40))
    assert list(tmp_path.iterdir()) == []


def test_what_the_world_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holdout"):
        write_nuscenes_world(tmp_path / "world", 0, {"holdout": 1}, 1, (32, 40))
    for samples in (0, LONGEST + 1):
        with pytest.raises(ValueError, match=f"1 to {LONGEST}"):
            write_nuscenes_world(tmp_path / "world", 0, {"train": 1}, samples, (32, 40))
    assert list(tmp_path.iterdir()) == []


def test_scenes_and_seeds_differ() -> None:
    def faces(drive: Drive) -> bytes:
        return drive.still(0.0).faces().vertices.tobytes()

    keys = [(0, "train", 0), (0, "train", 1), (0, "val", 0), (1, "train", 0)]
    assert len({faces(make_drive(*key)) for key in keys}) == len(keys)

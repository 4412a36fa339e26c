"""A miniature nuScenes root: all tables, tiny images and short sweeps, with poses drawn by a seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

VERSION = "v1.0-mini"
SCENES = {"scene-0061": 2, "scene-0103": 1}  # samples of each; the second one is of the official val split
WIDTH, HEIGHT = 64, 36
LOOKS_FORWARD = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # camera axes in the vehicle's frame

Row = dict[str, Any]


def pose(token: str, rotation: Rotation, translation: Sequence[float], **more: Any) -> Row:
    w, x, y, z = rotation.as_quat(scalar_first=True).tolist()
    return {"token": token, "rotation": [w, x, y, z], "translation": [float(t) for t in translation], **more}


def intrinsics(width: int = WIDTH, height: int = HEIGHT) -> list[list[float]]:
    return [[0.8 * width, 0.0, width / 2], [0.0, 0.8 * width, height / 2], [0.0, 0.0, 1.0]]


def points(rng: np.random.Generator, count: int = 300) -> np.ndarray:
    """Returns around the vehicle, most of them ahead (the lidar's y axis)."""
    xyz = rng.normal([0, 12, 0], [8, 10, 2], (count, 3))
    return np.hstack([xyz, rng.uniform(0, 255, (count, 1)), rng.integers(0, 32, (count, 1))]).astype(np.float32)


def write_root(
    root: Path,
    scenes: dict[str, int] = SCENES,
    cameras: Sequence[str] = ("CAM_FRONT",),
    version: str = VERSION,
    seed: int = 0,
) -> Path:
    """Write the root; every sample has one sweep, an image of each camera, and a sweep between the samples."""
    rng = np.random.default_rng(seed)
    tables: dict[str, list[Row]] = {
        name: []
        for name in (
            *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
            *("sample_annotation", "sample_data", "scene", "sensor", "visibility"),
        )
    }
    tables["log"].append({"token": "log", "logfile": "drive"})
    tables["map"].append({"token": "map", "log_tokens": ["log"], "filename": "maps/none.png"})
    tables["category"].append({"token": "car", "name": "vehicle.car"})
    tables["visibility"].append({"token": "4", "level": "v80-100"})
    for channel in ("LIDAR_TOP", *cameras):
        lidar = channel == "LIDAR_TOP"
        mounted = Rotation.from_euler("z", -90, degrees=True) if lidar else LOOKS_FORWARD
        mounted = mounted * Rotation.from_rotvec(rng.normal(0, 0.02, 3))
        tables["sensor"].append({"token": channel, "channel": channel, "modality": "lidar" if lidar else "camera"})
        calibrated = {"sensor_token": channel, "camera_intrinsic": [] if lidar else intrinsics()}
        tables["calibrated_sensor"].append(pose(f"at_{channel}", mounted, rng.normal([1, 0, 1.7], 0.1), **calibrated))
    for name, samples in scenes.items():
        write_scene(root, tables, name, samples, ("LIDAR_TOP", *cameras), rng)
    for name, rows in tables.items():
        write_table(root, name, rows, version)
    return root


def write_scene(
    root: Path, tables: dict[str, list[Row]], name: str, samples: int, channels: Sequence[str], rng: np.random.Generator
) -> None:
    tokens = [f"{name}_{k}" for k in range(samples)]
    tables["scene"].append(
        {
            "token": name,
            "name": name,
            "log_token": "log",
            "first_sample_token": tokens[0],
            "last_sample_token": tokens[-1],
        }
    )
    for k, sample in enumerate(tokens):
        time = 1_500_000_000_000_000 + 500_000 * (1000 * len(tables["scene"]) + k)
        links = {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < samples else ""}
        tables["sample"].append({"token": sample, "timestamp": time, "scene_token": name, **links})
        annotation = {"instance_token": f"i_{sample}", "visibility_token": "4", "attribute_tokens": []}
        tables["sample_annotation"].append(
            {"token": f"a_{sample}", "sample_token": sample, **annotation, "prev": "", "next": ""}
        )
        ends = {"first_annotation_token": f"a_{sample}", "last_annotation_token": f"a_{sample}"}
        tables["instance"].append({"token": f"i_{sample}", "category_token": "car", **ends})
        heading, position = rng.uniform(-3, 3), rng.normal([400, 1100, 0], [30, 30, 1])
        for place, (channel, is_key) in enumerate([*((channel, True) for channel in channels), ("LIDAR_TOP", False)]):
            token = f"{sample}_{channel}" if is_key else f"{sample}_between"
            turn, moved = Rotation.from_euler("zyx", rng.normal([heading, 0, 0], 0.02)), rng.normal(position, 0.3)
            tables["ego_pose"].append(pose(f"ego_{token}", turn, moved, timestamp=time + 30_000 * place))
            suffix = ".pcd.bin" if channel == "LIDAR_TOP" else ".jpg"
            file = f"{'samples' if is_key else 'sweeps'}/{channel}/drive__{channel}__{time + place}{suffix}"
            shot = {"sample_token": sample, "ego_pose_token": f"ego_{token}", "filename": file, "is_key_frame": is_key}
            shot |= {"calibrated_sensor_token": f"at_{channel}", "timestamp": time + 30_000 * place}
            size = {"width": 0, "height": 0} if channel == "LIDAR_TOP" else {"width": WIDTH, "height": HEIGHT}
            tables["sample_data"].append({"token": token, **shot, **size, "prev": "", "next": ""})
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            if channel == "LIDAR_TOP":
                points(rng).tofile(root / file)
            else:
                pixels = np.full((HEIGHT, WIDTH, 3), rng.integers(60, 200), np.uint8)
                Image.fromarray(pixels).save(root / file)


def table_file(root: Path, name: str, version: str = VERSION) -> Path:
    return root / version / f"{name}.json"


def read_table(root: Path, name: str) -> list[Row]:
    rows: list[Row] = json.loads(table_file(root, name).read_text())
    return rows


def write_table(root: Path, name: str, rows: list[Row], version: str = VERSION) -> None:
    table_file(root, name, version).parent.mkdir(parents=True, exist_ok=True)
    table_file(root, name, version).write_text(json.dumps(rows, indent=0))


def edit(root: Path, table: str, place: int, **changes: Any) -> Row:
    """Change keys of one row of a table; returns the row."""
    rows = read_table(root, table)
    rows[place] |= changes
    write_table(root, table, rows)
    return rows[place]

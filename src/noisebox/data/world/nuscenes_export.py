"""The street world as a complete nuScenes root: drives through streets, with the tables, files and folders of v1.0.

Every scene is a drive of its own, with its own log and map. A key frame is one LIDAR_TOP sweep, whose time is the
sample's, and the CAM_FRONT image taken 10 to 50 ms before it, while everything moves. Beside nuScenes' own folders lie
`img_dir/<split>/`, the images once more, and `ann_bev_dir/<split>/`, their label maps as `birdseye` says, drawn from
the annotations and the map as they stand in the tables.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import pi
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from noisebox.data.world import birdseye, lidar
from noisebox.data.world.drive import LENGTH, Drive, make_drive
from noisebox.data.world.export import SPLITS, WORTH_PROCESSES
from noisebox.data.world.pose import Pose, rotation_about
from noisebox.data.world.render import Rendering, render
from noisebox.data.world.scene import END, START, Street, Thing, turn
from noisebox.data.world.shapes import Point
from noisebox.files import atomic_folder, write_json
from noisebox.randomness import numpy_generator

VERSION = "v1.0-world"  # the tables' folder
TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip
CHANNELS = {"CAM_FRONT": ("camera", "jpg", "jpg"), "LIDAR_TOP": ("lidar", "pcd", "pcd.bin")}  # modality, format, ending
CATEGORIES = {"car": "vehicle.car", "motorbike": "vehicle.motorcycle", "person": "human.pedestrian.adult"}
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "cycle.with_rider", "pedestrian.moving", "pedestrian.standing")
VISIBILITIES = {"v0-40": 0.4, "v40-60": 0.6, "v60-80": 0.8, "v80-100": 1.0}  # up to which share

BETWEEN_SAMPLES = 500_000  # microseconds
LONGEST = int(LENGTH * 1_000_000) // BETWEEN_SAMPLES  # samples that a scene may have
CAMERA_LEAD = (10_000, 50_000)  # microseconds between image and sweep, at least and less than
EPOCH = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000  # when the first scene of the first split begins
MINUTE = 60_000_000  # microseconds; scenes begin so far apart
JPEG_QUALITY = 95
MAP_SIDE, MAP_CELL = 260.0, 0.1  # metres: a map is square, and the street's middle is its own

Row = dict[str, Any]
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Recording:
    """A drive to be written. `town` is the street's pose in the global frame, `start` microseconds since 1970."""

    drive: Drive
    town: Pose
    start: int
    name: str

    def second(self, stamp: int) -> float:
        """The second of the drive at a time stamp."""
        return (stamp - self.start) / 1_000_000

    def token(self, table: str, *key: int | str) -> str:
        return token(self.drive.key[0], table, *self.drive.key[1:], *key)

    def file(self, channel: str, stamp: int) -> str:
        """The path of a sensor's file below the root."""
        return f"samples/{channel}/{self.name}__{channel}__{stamp}.{CHANNELS[channel][2]}"


@dataclass(frozen=True)
class Seen:
    """An object in one sample; `number` is its own in the drive.

    `pose`: of its box in the street's frame, the origin in the box's middle, x ahead, y to the left; `size`: the box's
    width, length and height, metres. `returns`: how many of the lidar's; `visible`: the share the camera sees of what
    the object would cover in the image, were it alone, and 0 outside.
    """

    number: int
    category: str
    pose: Pose
    size: Point
    returns: int
    visible: float
    moves: bool

    def foot(self) -> NDArray[np.float64]:
        """The corners (4, 3) of the box's lower side in the street's frame."""
        width, length, height = self.size
        half = np.array([(1, 1, -1), (-1, 1, -1), (-1, -1, -1), (1, -1, -1)]) / 2
        return self.pose.out(half * (length, width, height))


@dataclass(frozen=True)
class Sample:
    """A key frame: when each channel was taken (microseconds), and what is annotated."""

    stamps: dict[str, int]
    objects: list[Seen]


def token(seed: int, table: str, *key: int | str) -> str:
    """The token of a row: 32 hexadecimal digits that follow from the key."""
    return hashlib.blake2b(repr((seed, "nuscenes", table, *key)).encode(), digest_size=16).hexdigest()


def write_nuscenes_world(
    folder: Path,
    seed: int,
    scenes: dict[str, int],
    samples_per_scene: int,
    image_size: tuple[int, int],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a nuScenes root at `folder`, whole or not at all; what lay there is replaced.

    `scenes`: how many scenes each of the splits has; `image_size`: height, width. Sample k of a scene is the same
    however many samples and scenes there are, but for the tokens of what follows. `progress(done, total)` counts
    samples. Raises ValueError for a split it does not know or a scene that would outlast a drive, UserError when the
    disk is full or the place cannot be written.
    """
    unknown = set(scenes) - set(SPLITS)
    if unknown:
        raise ValueError(f"unknown splits {sorted(unknown)}: the world has {sorted(SPLITS)}")
    if not 1 <= samples_per_scene <= LONGEST:
        raise ValueError(f"{samples_per_scene} samples per scene: a drive of {LENGTH} s has 1 to {LONGEST}")
    places = [(split, index) for split, count in scenes.items() for index in range(count)]
    total = len(places) * samples_per_scene
    tables = common_tables(seed)
    with atomic_folder(folder) as root:
        for name in ("samples/CAM_FRONT", "samples/LIDAR_TOP", "maps"):
            (root / name).mkdir(parents=True)
        for split in scenes:
            (root / "img_dir" / split).mkdir(parents=True)
            (root / "ann_bev_dir" / split).mkdir(parents=True)
        for done, found in enumerate(_draw_all(root, seed, samples_per_scene, image_size, places), start=1):
            for name, rows in found.items():
                tables[name] += rows
            if progress:
                progress(done * samples_per_scene, total)
        for name in TABLES:
            write_json(root / VERSION / f"{name}.json", tables[name])
        names = {split: [scene_name(split, index) for index in range(count)] for split, count in scenes.items()}
        write_json(root / VERSION / "splits.json", names)


def scene_name(split: str, index: int) -> str:
    return f"scene-{split}-{index + 1:04d}"


def _draw_all(
    root: Path, seed: int, samples: int, image_size: tuple[int, int], places: list[tuple[str, int]]
) -> Iterator[Tables]:
    """Write the files of every scene, in the order of `places`; where they are many, on all cores."""
    draw = partial(_draw, root, seed, samples, image_size)
    if len(places) * samples < WORTH_PROCESSES:
        yield from map(draw, places)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, places)


def _draw(root: Path, seed: int, samples: int, image_size: tuple[int, int], place: tuple[str, int]) -> Tables:
    """Write the files of one scene; returns its rows."""
    recording = record(seed, *place)
    recorded = [write_sample(root, recording, k, image_size) for k in range(samples)]
    mask = map_mask(recording.drive.street, recording.town)
    Image.fromarray(mask).save(root / map_file(recording), compress_level=1)
    return scene_tables(recording, recorded, image_size)


def record(seed: int, split: str, index: int) -> Recording:
    """Scene `index` of a split: its drive, and a place in the world for its street."""
    rng = numpy_generator(seed, "world-town", split, index)
    turned = rotation_about("z", round(float(rng.uniform(-pi, pi)), 6))
    middle = Pose(turned, (0.0, 0.0, 0.0)).out(np.array([0.0, (START + END) / 2, 0.0])).tolist()
    town = Pose(turned, (round(MAP_SIDE / 2 - middle[0], 6), round(MAP_SIDE / 2 - middle[1], 6), 0.0))
    start = EPOCH + (SPLITS[split] + index) * MINUTE
    return Recording(make_drive(seed, split, index), town, start, f"world-{split}-{index + 1:04d}")


# Files


def write_sample(root: Path, recording: Recording, k: int, image_size: tuple[int, int]) -> Sample:
    """Drive to sample `k`, write image, sweep and label map, and say what is there."""
    drive, split = recording.drive, recording.drive.key[1]
    rng = numpy_generator(drive.key[0], "world-sample", *drive.key[1:], k)
    swept_at = recording.start + k * BETWEEN_SAMPLES
    shot_at = swept_at - int(rng.integers(*CAMERA_LEAD))
    shot, swept = recording.second(shot_at), recording.second(swept_at)

    rendering = render(drive.still(shot), *image_size)
    faces = drive.still(swept).faces()
    lidar_pose = drive.course.pose(swept) @ drive.rig.lidar
    sweep = lidar.cast(faces, lidar_pose, float(rng.uniform(-pi, pi)))
    objects = objects_seen(drive, shot, rendering, swept, np.bincount(faces.instances[sweep.faces]))

    camera = drive.camera(shot)
    labels = birdseye.label_map(drive.street, camera, [(thing.category, thing.foot()) for thing in objects])
    labels[~birdseye.known(camera.focal, camera.view(lidar_pose.out(sweep.points)))] = birdseye.IGNORED

    image = root / recording.file("CAM_FRONT", shot_at)
    Image.fromarray(rendering.image).save(image, quality=JPEG_QUALITY)
    (root / "img_dir" / split / image.name).write_bytes(image.read_bytes())
    Image.fromarray(labels).save(root / "ann_bev_dir" / split / f"{image.stem}.png")
    (root / recording.file("LIDAR_TOP", swept_at)).write_bytes(sweep.records().tobytes())
    return Sample({"CAM_FRONT": shot_at, "LIDAR_TOP": swept_at}, objects)


def objects_seen(
    drive: Drive, shot: float, rendering: Rendering, swept: float, returns: NDArray[np.int64]
) -> list[Seen]:
    """The objects at the second of the sweep from which at least one of the lidar's `returns`, by instance, came."""
    drawn = np.bincount(rendering.instances.ravel(), minlength=len(rendering.alone)) / np.maximum(rendering.alone, 1)
    visible = {number: float(drawn[instance]) for instance, number in enumerate(drive.present(shot), start=1)}
    seen = []
    for instance, (number, thing) in enumerate(drive.present(swept).items(), start=1):
        if instance < len(returns) and returns[instance]:
            moves = drive.movers[number].at(swept - 0.1, drive.street).position != thing.position
            pose, size = box_of(thing)
            count, share = int(returns[instance]), visible.get(number, 0.0)
            seen.append(Seen(number, thing.category, pose, size, count, share, moves))
    return seen


def box_of(thing: Thing) -> tuple[Pose, Point]:
    """The tight box along a thing's heading, as `Seen` has it."""
    corners = thing.model.quads.reshape(-1, 3) * thing.scale
    low, high = corners.min(axis=0), corners.max(axis=0)
    (x, y, z), (width, length, height) = ((low + high) / 2).tolist(), (high - low).tolist()
    c, s = turn(thing.yaw)
    middle = (thing.position[0] + c * x - s * y, thing.position[1] + s * x + c * y, thing.position[2] + z)
    return Pose(rotation_about("z", thing.yaw + pi / 2), middle), (width, length, height)


def map_file(recording: Recording) -> str:
    return f"maps/{recording.token('map')}.png"


def map_mask(street: Street, town: Pose) -> NDArray[np.uint8]:
    """A map as nuScenes has it: 255 where there is carriageway or pavement, MAP_CELL metres a pixel, the global frame's
    x to the right and y upwards, the origin in the lower left corner."""
    side = round(MAP_SIDE / MAP_CELL)
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for polygon in (*street.drivable(), *street.walkways()):
        corners = town.out(birdseye.on_level(polygon, 0.0))[:, :2] / MAP_CELL
        draw.polygon([(x, side - y) for x, y in corners.tolist()], fill=255)
    return np.asarray(mask)


# Tables


def common_tables(seed: int) -> Tables:
    """The tables that every scene refers to, and the others, empty."""
    tables: Tables = {name: [] for name in TABLES}
    for channel, (modality, _, _) in CHANNELS.items():
        tables["sensor"].append({"token": token(seed, "sensor", channel), "channel": channel, "modality": modality})
    for name in CATEGORIES.values():
        tables["category"].append({"token": token(seed, "category", name), "name": name, "description": ""})
    for name in ATTRIBUTES:
        tables["attribute"].append({"token": token(seed, "attribute", name), "name": name, "description": ""})
    for number, level in enumerate(VISIBILITIES, start=1):
        description = f"visibility of the object in CAM_FRONT is within {level[1:]} %"
        tables["visibility"].append({"token": str(number), "level": level, "description": description})
    return tables


def scene_tables(recording: Recording, samples: list[Sample], image_size: tuple[int, int]) -> Tables:
    """All rows of one scene."""
    sample_tokens = [recording.token("sample", k) for k in range(len(samples))]
    split, index = recording.drive.key[1:]
    log, scene = recording.token("log"), recording.token("scene")
    stamps = [sample.stamps["LIDAR_TOP"] for sample in samples]
    sample_data, ego_poses = data_rows(recording, samples, sample_tokens, image_size)
    annotations, instances = annotation_rows(recording, samples, sample_tokens)
    return {
        "log": [
            {
                "token": log,
                "logfile": recording.name,
                "vehicle": "world",
                "date_captured": datetime.fromtimestamp(recording.start / 1_000_000, UTC).date().isoformat(),
                "location": f"street-{split}-{index + 1:04d}",
            }
        ],
        "map": [
            {
                "token": recording.token("map"),
                "log_tokens": [log],
                "category": "semantic_prior",
                "filename": map_file(recording),
            }
        ],
        "scene": [
            {
                "token": scene,
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": sample_tokens[0],
                "last_sample_token": sample_tokens[-1],
                "name": scene_name(split, index),
                "description": f"street world, {recording.drive.weather.name}",
            }
        ],
        "sample": [
            {"token": each, "timestamp": stamp, **links, "scene_token": scene}
            for each, stamp, links in zip(sample_tokens, stamps, chained(sample_tokens), strict=True)
        ],
        "calibrated_sensor": calibration_rows(recording, image_size),
        "sample_data": sample_data,
        "ego_pose": ego_poses,
        "sample_annotation": annotations,
        "instance": instances,
    }


def chained(tokens: list[str]) -> list[Row]:
    """`prev` and `next` of rows that follow each other; empty at the ends."""
    return [
        {"prev": before, "next": after} for before, after in zip(["", *tokens[:-1]], [*tokens[1:], ""], strict=True)
    ]


def pose_columns(pose: Pose) -> Row:
    return {
        "translation": [round(part, 6) for part in pose.translation],
        "rotation": [round(part, 9) for part in pose.rotation],
    }


def calibration_rows(recording: Recording, image_size: tuple[int, int]) -> list[Row]:
    rig, seed = recording.drive.rig, recording.drive.key[0]
    intrinsics = recording.drive.camera(0.0).intrinsics(*image_size).tolist()
    return [
        {
            "token": recording.token("calibrated_sensor", channel),
            "sensor_token": token(seed, "sensor", channel),
            **pose_columns(pose),
            "camera_intrinsic": matrix,
        }
        for channel, pose, matrix in (("CAM_FRONT", rig.camera, intrinsics), ("LIDAR_TOP", rig.lidar, []))
    ]


def data_rows(
    recording: Recording, samples: list[Sample], sample_tokens: list[str], image_size: tuple[int, int]
) -> tuple[list[Row], list[Row]]:
    """The rows of sample_data and ego_pose, which belong to each other."""
    data, poses = [], []
    for channel, (modality, fileformat, _) in CHANNELS.items():
        height, width = image_size if modality == "camera" else (0, 0)
        tokens = [recording.token("sample_data", channel, k) for k in range(len(samples))]
        for k, (sample, links) in enumerate(zip(samples, chained(tokens), strict=True)):
            stamp, ego_pose = sample.stamps[channel], recording.token("ego_pose", channel, k)
            pose = recording.town @ recording.drive.course.pose(recording.second(stamp))
            poses.append({"token": ego_pose, "timestamp": stamp, **pose_columns(pose)})
            data.append(
                {
                    "token": tokens[k],
                    "sample_token": sample_tokens[k],
                    "ego_pose_token": ego_pose,
                    "calibrated_sensor_token": recording.token("calibrated_sensor", channel),
                    "timestamp": stamp,
                    "fileformat": fileformat,
                    "is_key_frame": True,
                    "height": height,
                    "width": width,
                    "filename": recording.file(channel, stamp),
                    **links,
                }
            )
    return data, poses


def annotation_rows(
    recording: Recording, samples: list[Sample], sample_tokens: list[str]
) -> tuple[list[Row], list[Row]]:
    """The rows of sample_annotation and of instance, object by object."""
    annotations, instances = [], []
    for number in sorted({thing.number for sample in samples for thing in sample.objects}):
        instance = recording.token("instance", number)
        found = [(k, thing) for k, sample in enumerate(samples) for thing in sample.objects if thing.number == number]
        tokens = [recording.token("sample_annotation", number, k) for k, _ in found]
        for (k, thing), each, links in zip(found, tokens, chained(tokens), strict=True):
            annotations.append(
                {
                    "token": each,
                    "sample_token": sample_tokens[k],
                    "instance_token": instance,
                    "visibility_token": visibility_token(thing.visible),
                    "attribute_tokens": [token(recording.drive.key[0], "attribute", attribute_of(thing))],
                    **pose_columns(recording.town @ thing.pose),
                    "size": [round(part, 6) for part in thing.size],
                    **links,
                    "num_lidar_pts": thing.returns,
                    "num_radar_pts": 0,
                }
            )
        instances.append(
            {
                "token": instance,
                "category_token": token(recording.drive.key[0], "category", CATEGORIES[found[0][1].category]),
                "nbr_annotations": len(found),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
    return annotations, instances


def visibility_token(share: float) -> str:
    """The level of a visible share, in 0 … 1."""
    return str(next(number for number, top in enumerate(VISIBILITIES.values(), start=1) if share < top or top == 1))


def attribute_of(thing: Seen) -> str:
    if thing.category == "motorbike":
        return "cycle.with_rider"
    if thing.category == "car":
        return "vehicle.moving" if thing.moves else "vehicle.parked"
    return "pedestrian.moving" if thing.moves else "pedestrian.standing"

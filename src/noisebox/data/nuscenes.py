"""nuScenes roots: the v1.0 tables joined to frames, each a camera's image with the lidar sweep of the same sample.

Any fault is told in one sentence, with table and token or with the file.
"""

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noisebox.data.nuscenes_tables import Matrix, Row, Table, missing, text_of
from noisebox.errors import UserError, what_fits
from noisebox.pixels import rgb_pixels

LIDAR = "LIDAR_TOP"
SPLITS_FILE = "splits.json"
POINT_BYTES = 20  # of a sweep's point: x, y, z, intensity, ring as float32
END_OF_IMAGE = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # within the last TAIL bytes of a whole file
TAIL = 64

# The numbers of the official validation scenes; all other scenes of the version train.
OFFICIAL_VAL = {
    "v1.0-mini": "103 916",
    "v1.0-trainval": (
        "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
        "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
    ),
}


@dataclass(frozen=True, eq=False)
class Frame:
    """A key frame of one camera and the sweep of its sample.

    `width` and `height` are those of the stored image in pixels, `intrinsics` (3, 3) in the same pixels.
    `camera_from_lidar` (4, 4) takes a point of the sweep, in metres, to the camera's frame (x right, y down, z forward)
    at the image's time. `timestamp` is the image's, in microseconds.
    """

    sample: str
    scene: str
    camera: str
    timestamp: int
    image: Path
    sweep: Path
    width: int
    height: int
    intrinsics: Matrix
    camera_from_lidar: Matrix

    @property
    def stem(self) -> str:
        """Names what is made from the image."""
        return self.image.stem


@dataclass(frozen=True, eq=False)
class NuScenes:
    """A version of a root: the scenes of each split, and all frames of the chosen cameras by scene and time."""

    folder: Path
    splits: dict[str, tuple[str, ...]]
    all_frames: tuple[Frame, ...]

    def frames(self, split: str) -> tuple[Frame, ...]:
        """The frames of a split; raises UserError when the split is unknown or has none."""
        if split not in self.splits:
            raise UserError(f"{self.folder} has no split {split!r}; {what_fits(split, list(self.splits), 'it has')}")
        scenes = set(self.splits[split])
        found = tuple(frame for frame in self.all_frames if frame.scene in scenes)
        if not found:
            raise UserError(f"{self.folder}: split {split!r} has no frame; scene.json lists none of its scenes")
        return found


def read_nuscenes(root: Path, version: str, cameras: Sequence[str] = ("CAM_FRONT",)) -> NuScenes:
    """Read the tables of a version for some cameras; images and sweeps are not looked at.

    Raises UserError for a root, version, table or camera that is not there, a row without what is needed, and a token
    that leads nowhere.
    """
    folder = version_folder(root, version)
    scene_table, sample_table, shot_table = (Table(folder, name) for name in ("scene", "sample", "sample_data"))
    scenes = {token: scene_table.text(row, "name") for token, row in scene_table.by_token().items()}
    place = {token: position for position, token in enumerate(scenes)}
    samples = sample_table.by_token()
    order = {
        token: (place[sample_table.link(row, "scene_token", scenes)], sample_table.whole(row, "timestamp"))
        for token, row in samples.items()
    }
    shots = _key_frames(shot_table, _sensors(folder, cameras), samples)
    poses = _ego_poses(Table(folder, "ego_pose"), shot_table, shots)
    frames = []
    for token in sorted(samples, key=order.__getitem__):
        for channel in (LIDAR, *cameras):
            if (token, channel) not in shots:
                raise UserError(f"{shot_table.file}: sample {token!r} has no key frame of {channel}")
        scene, sweep = scenes[samples[token]["scene_token"]], shots[token, LIDAR]
        frames += [_frame(shot_table, shots[token, camera], sweep, poses, scene) for camera in cameras]
    _refuse_equal_stems(frames)
    return NuScenes(folder, read_splits(folder, list(scenes.values())), tuple(frames))


def version_folder(root: Path, version: str) -> Path:
    """The folder of a version's tables; raises UserError, naming what is there, when it is not."""
    if not root.is_dir():
        raise UserError(missing(root))
    if not (root / version).is_dir():
        found = versions(root)
        if not found and (root / "scene.json").is_file():
            raise UserError(f"{root} holds the tables of a version; name the folder above it, {root.absolute().parent}")
        raise UserError(f"{root} has no version {version!r}; {what_fits(version, found, 'it has')}")
    return root / version


def versions(root: Path) -> list[str]:
    """The names of a root's folders of tables."""
    return sorted(table.parent.name for table in root.glob("*/scene.json"))


def read_splits(folder: Path, scenes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The scenes of each split: nuScenes' official ones, and those of splits.json, which come before them.

    `scenes` are the names in the scene table; an official split keeps those that are there. Raises UserError when
    splits.json does not map splits to such names, and when there is none beside a version without official splits.
    """
    splits: dict[str, tuple[str, ...]] = {}
    if folder.name in OFFICIAL_VAL:
        val = _official_val(folder.name)
        splits["train"] = tuple(name for name in scenes if name not in val)
        splits["val"] = tuple(name for name in scenes if name in val)
    file = folder / SPLITS_FILE
    if not file.exists():
        if not splits:
            raise UserError(
                f'{file} is missing; write {{"train": [names of scenes], "val": [...]}} there, since only '
                f"{' and '.join(OFFICIAL_VAL)} have official splits"
            )
        return splits
    try:
        custom = json.loads(text_of(file))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(custom, dict) or not all(isinstance(names, list) for names in custom.values()):
        raise UserError(f"{file} must map each split to a list of scene names")
    for split, names in custom.items():
        unknown = [name for name in names if name not in scenes]
        if unknown:
            raise UserError(f"{file}: split {split!r} names the scene {unknown[0]!r}, which scene.json does not list")
        splits[split] = tuple(names)
    return splits


def _official_val(version: str) -> set[str]:
    ranges = (numbers.split("-") for numbers in OFFICIAL_VAL[version].split())
    return {f"scene-{number:04}" for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}


def read_sweep(frame: Frame) -> NDArray[np.float32]:
    """The points of a frame's sweep, (N, 5): x, y, z in metres in the lidar's frame, intensity, ring.

    Raises UserError when the file is missing, empty or cut short.
    """
    check_sweep(frame)
    return np.fromfile(frame.sweep, np.float32).reshape(-1, 5)


def check_sweep(frame: Frame) -> None:
    """Raises UserError when a frame's sweep is missing, empty or cut within a point; it is not read."""
    size = _size_of(frame.sweep)
    if size % POINT_BYTES:
        raise UserError(
            f"{frame.sweep} is cut short: its {size} bytes are no whole number of points ({POINT_BYTES} each)"
        )


def check_image(frame: Frame) -> None:
    """Raises UserError when a frame's image is missing, cut short, or of another size than the tables say.

    Its head and its end are read, nothing is decoded, so that a whole dataset takes seconds.
    """
    _size_of(frame.image)
    try:
        with frame.image.open("rb") as file:
            with Image.open(file) as image:
                size, kind = image.size, str(image.format)
            end = END_OF_IMAGE.get(kind, b"")
            file.seek(max(0, file.seek(0, 2) - TAIL))
            whole = end in file.read()
    except Exception:  # Pillow raises nearly anything on a damaged file
        raise UserError(f"{frame.image} cannot be read as an image; copy it anew") from None
    if not whole:
        raise UserError(f"{frame.image} is cut short; copy it anew")
    if size != (frame.width, frame.height):
        raise UserError(
            f"{frame.image} is {size[0]} × {size[1]} pixels, but sample_data.json says {frame.width} × {frame.height} "
            f"(width × height)"
        )


def read_image(frame: Frame) -> NDArray[np.uint8]:
    """The image of a frame, as `rgb_pixels` makes it RGB (height, width, 3); raises UserError when it cannot."""
    try:
        with Image.open(frame.image) as image:
            return rgb_pixels(image)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise UserError(f"{frame.image} cannot be read as an image ({error}); replace the file") from None


def _size_of(path: Path) -> int:
    """The size of a file of data, in bytes."""
    if not path.is_file():
        raise UserError(f"{path} does not exist" if path.parent.is_dir() else missing(path))
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty; copy it anew")
    return size


@dataclass(frozen=True, eq=False)
class _Sensor:
    """A row of calibrated_sensor: `pose` (4, 4) from its frame to the vehicle's; a lidar's intrinsics are zeros."""

    channel: str
    pose: Matrix
    intrinsics: Matrix


@dataclass(frozen=True, eq=False)
class _Shot:
    """A row of sample_data and its sensor."""

    row: Row
    sensor: _Sensor


_Shots = dict[tuple[str, str], _Shot]  # by sample and channel


def _sensors(folder: Path, cameras: Sequence[str]) -> dict[str, _Sensor | None]:
    """The sensor behind each token of calibrated_sensor; None where its channel is not in use."""
    sensor_table, table = Table(folder, "sensor"), Table(folder, "calibrated_sensor")
    sensors = sensor_table.by_token()
    channels = {token: sensor_table.text(row, "channel") for token, row in sensors.items()}
    known = sorted({channels[token] for token, row in sensors.items() if row.get("modality") == "camera"})
    for camera in cameras:
        if camera not in known:
            raise UserError(f"{sensor_table.file} has no camera {camera!r}; {what_fits(camera, known, 'it has')}")
    if LIDAR not in channels.values():
        raise UserError(f"{sensor_table.file} has no sensor {LIDAR!r}")
    found: dict[str, _Sensor | None] = {}
    for token, row in table.by_token().items():
        channel = channels[table.link(row, "sensor_token", channels)]
        if channel in cameras:
            found[token] = _Sensor(channel, table.pose(row), _intrinsics(table, row))
        else:
            found[token] = _Sensor(channel, table.pose(row), np.zeros((3, 3))) if channel == LIDAR else None
    return found


def _intrinsics(table: Table, row: Row) -> Matrix:
    """A camera's (3, 3), in pixels; raises UserError for a focal length that is not above 0, and for skew."""
    matrix = table.numbers(row, "camera_intrinsic", 3, 3)
    if min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise table.faulty(
            row,
            f"has focal lengths of {matrix[0, 0]:g} and {matrix[1, 1]:g} pixels in 'camera_intrinsic'; both must be "
            "above 0",
        )
    if matrix[0, 1]:
        raise table.faulty(
            row,
            f"gives its camera a skew of {matrix[0, 1]:g} pixels; maps are made of images without, so rectify them and "
            "set the second number of camera_intrinsic to 0",
        )
    return matrix


def _key_frames(table: Table, sensors: dict[str, _Sensor | None], samples: Container[str]) -> _Shots:
    """The key frame of each sample and channel; raises UserError when there are two."""
    found: _Shots = {}
    for row in table.rows():
        if row.get("is_key_frame") is not True:
            continue
        sensor = sensors[table.link(row, "calibrated_sensor_token", sensors)]
        if sensor:
            key = table.link(row, "sample_token", samples), sensor.channel
            if key in found:
                raise table.faulty(row, f"is another key frame of {key[1]} for sample {key[0]!r}")
            found[key] = _Shot(row, sensor)
    return found


def _ego_poses(table: Table, shot_table: Table, shots: _Shots) -> dict[str, Matrix]:
    """The vehicle's pose (4, 4), from its frame to the world's, behind each token that the key frames hold."""
    wanted = {shot_table.text(shot.row, "ego_pose_token") for shot in shots.values()}
    return {token: table.pose(row) for token, row in table.by_token(wanted).items()}


def _frame(table: Table, shot: _Shot, sweep: _Shot, ego_poses: dict[str, Matrix], scene: str) -> Frame:
    """Lidar → vehicle at the sweep's time → world → vehicle at the image's time → camera."""
    world_from_lidar, world_from_camera = (
        ego_poses[table.link(each.row, "ego_pose_token", ego_poses)] @ each.sensor.pose for each in (sweep, shot)
    )
    return Frame(
        sample=shot.row["sample_token"],
        scene=scene,
        camera=shot.sensor.channel,
        timestamp=table.whole(shot.row, "timestamp"),
        image=_path(table, shot.row),
        sweep=_path(table, sweep.row),
        width=table.whole(shot.row, "width", 1),
        height=table.whole(shot.row, "height", 1),
        intrinsics=shot.sensor.intrinsics,
        camera_from_lidar=np.linalg.inv(world_from_camera) @ world_from_lidar,
    )


def _path(table: Table, row: Row) -> Path:
    """The file of a row of sample_data, below the root."""
    name = PurePosixPath(table.text(row, "filename"))
    if name.is_absolute() or ".." in name.parts:
        raise table.faulty(row, f"has filename {str(name)!r}, which leaves the root")
    return table.folder.parent / name


def _refuse_equal_stems(frames: Sequence[Frame]) -> None:
    """What is made from an image is named by its stem, so no two may share one."""
    seen: dict[str, Frame] = {}
    for frame in frames:
        other = seen.setdefault(frame.stem, frame)
        if other is not frame:
            raise UserError(f"{frame.image} and {other.image} have one name; what is made from them would collide")

"""The time of depth ground truth: frames of as many returns as a real sweep has, to files, by one process."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.data.depth import DepthSettings, make_depth_gt
from noisebox.data.nuscenes import Frame
from noisebox.randomness import numpy_generator

FRAMES, RETURNS = 16, 35_000
WIDTH, HEIGHT = 1600, 900  # of the stored image in pixels
FOCAL = 1266.0  # pixels
REACH = 60.0  # metres


def timings(settings: BenchSettings) -> list[Timing]:
    count, size = settings.items or FRAMES, DepthSettings()
    with tempfile.TemporaryDirectory() as folder:
        frames, made = list(_frames(Path(folder), count)), iter(range(settings.repeats + 10))
        work = timed(
            lambda: make_depth_gt(frames, Path(folder) / f"depth{next(made)}", size, workers=1),
            settings,
            part="depth",
            what=f"{RETURNS} returns to {size.height} × {size.width}",
            unit="frame",
            units=count,
            images=count,
        )
    return [work]


def _frames(folder: Path, count: int) -> Iterator[Frame]:
    """Frames whose returns lie all around; those before the camera are seen."""
    camera_from_lidar = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    for index in range(count):
        random = numpy_generator(0, "bench sweep", index)
        points = random.uniform(-REACH, REACH, (RETURNS, 5)).astype(np.float32)
        points[:, 2] /= REACH / 2
        image, sweep = folder / f"{index}.jpg", folder / f"{index}.bin"
        Image.new("RGB", (WIDTH, HEIGHT)).save(image)
        points.tofile(sweep)
        yield Frame(
            sample=f"{index}",
            scene="bench",
            camera="CAM_FRONT",
            timestamp=index,
            image=image,
            sweep=sweep,
            width=WIDTH,
            height=HEIGHT,
            intrinsics=intrinsics,
            camera_from_lidar=camera_from_lidar,
        )

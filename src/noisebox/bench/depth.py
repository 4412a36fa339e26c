"""The time of depth ground truth: frames of a real vehicle's sizes, generated, projected, rasterised, written."""

import os
import tempfile
from functools import partial
from itertools import count
from math import pi
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.data.depth import DepthSettings, make_depth_gt
from noisebox.data.nuscenes import Frame
from noisebox.randomness import numpy_generator
from noisebox.report.markdown import plural

FRAMES = 500
POINTS, RINGS = 35_000, 32  # of a sweep
WIDTH, HEIGHT, FOCAL = 1600, 900, 1266.0  # of a stored image, pixels
LOWEST, HIGHEST = -0.535, 0.186  # radians, of the lidar's rings
LIDAR_HEIGHT, FARTHEST = 1.84, 80.0  # metres
SWEEPS = 16  # different ones, which frames take in turn


def timings(settings: BenchSettings) -> list[Timing]:
    """Seconds per frame by one worker and by `settings.workers`."""
    frames = settings.items or FRAMES
    with tempfile.TemporaryDirectory() as folder:
        drawn, numbers = draw_frames(Path(folder), frames), count()

        def make(workers: int) -> None:
            make_depth_gt(drawn, Path(folder) / f"depth{next(numbers)}", DepthSettings(), workers)

        return [
            timed(
                partial(make, workers),
                settings,
                part="depth",
                what=plural(workers, "worker"),
                unit="frame",
                units=frames,
                images=frames,
            )
            for workers in dict.fromkeys((1, settings.workers))
        ]


def draw_frames(folder: Path, count: int) -> list[Frame]:
    """Frames of a camera that looks ahead from under the lidar, with their sweeps and images written to `folder`."""
    for k in range(min(SWEEPS, count)):
        draw_sweep(k).tofile(folder / f"{k}.pcd.bin")
    plain = folder / "plain.jpg"
    Image.new("RGB", (WIDTH, HEIGHT), (90, 110, 100)).save(plain)
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    camera_from_lidar = np.array([[1.0, 0, 0, 0], [0, 0, -1, -0.33], [0, 1, 0, -0.76], [0, 0, 0, 1]])
    frames = []
    for k in range(count):
        image, sweep = folder / f"{k}.jpg", folder / f"{k % SWEEPS}.pcd.bin"
        os.link(plain, image)
        frames.append(
            Frame(str(k), "bench", "CAM_FRONT", k, image, sweep, WIDTH, HEIGHT, intrinsics, camera_from_lidar)
        )
    return frames


def draw_sweep(k: int) -> NDArray[np.float32]:
    """A sweep (POINTS, 5): each firing ends at the ground, or before at something a drawn distance away."""
    random = numpy_generator(0, "bench sweep", k)
    firing, ring = np.divmod(np.arange(POINTS), RINGS)
    azimuth, rise = firing * (2 * pi * RINGS / POINTS), LOWEST + (HIGHEST - LOWEST) * ring / (RINGS - 1)
    ground = np.where(rise < 0, LIDAR_HEIGHT / np.sin(np.minimum(rise, -1e-3)) * -1, FARTHEST)
    reach = np.minimum(ground, random.uniform(3.0, FARTHEST, firing[-1] + 1)[firing])
    flat = reach * np.cos(rise)
    xyz = np.stack([flat * np.sin(azimuth), flat * np.cos(azimuth), reach * np.sin(rise)], axis=1)
    return np.column_stack([xyz, random.integers(0, 256, POINTS), ring]).astype(np.float32)

"""Depth ground truth: the returns of a sweep as a camera sees them, one file per image, made by several threads.

A file is an .npz of `depth` (H, W) float32, metres along the camera's axis and 0 where no return fell, and `mask`
(H, W) bool, where one did. The archive's comment says what it was made from and with, so that a run which was killed
goes on where it stopped, and other settings or tables make a file anew.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from noisebox.data.bev import BevSplit
from noisebox.data.npz import write_npz
from noisebox.data.nuscenes import Frame, check_image, check_sweep, read_sweep
from noisebox.errors import UserError
from noisebox.files import atomic_path, clear_unfinished, only_here
from noisebox.progress import Progress

EDGE = 1.0  # pixels of the stored image; like the public devkit, a return nearer to the edge does not count

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Result = TypeVar("Result")


@dataclass(frozen=True)
class DepthSettings:
    """The depth image's size in pixels; a return counts from `min_depth` up to, not including, `max_depth` metres.

    Raises UserError when there is no pixel or no such depth.
    """

    height: int = 600
    width: int = 800
    min_depth: float = 1.0
    max_depth: float = 50.0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise UserError(f"a depth image of {self.height} × {self.width} has no pixel; both must be 1 or more")
        if not 0 < self.min_depth < self.max_depth < float("inf"):
            raise UserError(
                f"no depth lies from {self.min_depth:g} to {self.max_depth:g} m; it takes 0 < min_depth < max_depth"
            )


def settings_of(split: BevSplit) -> DepthSettings:
    """The dataset's own."""
    view = split.view
    return DepthSettings(*view.size, view.min_depth, view.max_depth)


def depth_file(folder: Path, frame: Frame) -> Path:
    return folder / f"{frame.stem}.npz"


def project(points: Floats, frame: Frame, settings: DepthSettings) -> tuple[Floats, Floats, Floats]:
    """The returns that count among the points of a sweep (N, ≥ 3), in their order: u, v and depth, (M,) each.

    u and v are in pixels of the depth image, over which the stored image is stretched; (0, 0) is the corner of its
    first pixel. A return counts within the depths and EDGE inside the image.
    """
    scale_u, scale_v = settings.width / frame.width, settings.height / frame.height
    matrix = np.diag([scale_u, scale_v, 1.0]) @ frame.intrinsics @ frame.camera_from_lidar[:3]
    of_u, of_v, of_depth = matrix.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite does not count
        depth = _along(of_depth, points)
        near = np.flatnonzero((depth >= settings.min_depth) & (depth < settings.max_depth))
        points, depth = points[near], depth[near]
        u, v = _along(of_u, points) / depth, _along(of_v, points) / depth
        inside = (u > EDGE * scale_u) & (u < settings.width - EDGE * scale_u)
        inside &= (v > EDGE * scale_v) & (v < settings.height - EDGE * scale_v)
    return u[inside], v[inside], depth[inside]


def _along(row: Floats, points: Floats) -> Floats:
    """A row (4,) of a transform applied to points, (N,): elementwise, so that it is the same on any machine."""
    along: Floats = row[0] * points[:, 0] + row[1] * points[:, 1] + row[2] * points[:, 2] + row[3]
    return along


def rasterise(u: Floats, v: Floats, depth: Floats, height: int, width: int) -> tuple[Floats, Mask]:
    """Depth (H, W), 0 where no return falls, and the mask (H, W) of where one does; the nearest return wins a pixel."""
    image, mask = np.zeros(height * width, np.float32), np.zeros(height * width, np.bool_)
    pixels = v.astype(np.int64) * width + u.astype(np.int64)
    image[pixels] = np.inf
    np.minimum.at(image, pixels, depth)
    mask[pixels] = True
    return image.reshape(height, width), mask.reshape(height, width)


def make_depth_gt(
    frames: Sequence[Frame], folder: Path, settings: DepthSettings, workers: int | None = None
) -> list[Path]:
    """Write `folder/<image stem>.npz` of every frame; returns those written now, the others were there.

    `workers` threads share the work, by default one per core. Every sweep and image is looked at before the first
    file is written. Raises UserError naming the one that is missing or damaged, and when another process makes files
    there; what is written stays, and is whole.
    """
    for frame in frames:
        check_sweep(frame)
        check_image(frame)
    make, written = partial(_make, folder=folder, settings=settings), []
    with only_here(folder / "lock", f"{folder} is being made"):
        clear_unfinished(folder)
        missing = [frame for frame in frames if not is_made(frame, folder, settings)]
        with Progress(f"depth-gt {folder.name}", len(frames), len(frames) - len(missing)) as progress:
            for path in in_threads(make, missing, workers):
                written.append(path)
                progress.advance()
    return written


def _make(frame: Frame, folder: Path, settings: DepthSettings) -> Path:
    """Make the file of one frame; its bytes depend on the inputs only."""
    u, v, depth = project(read_sweep(frame), frame, settings)
    image, mask = rasterise(u, v, depth, settings.height, settings.width)
    path = depth_file(folder, frame)
    with atomic_path(path, durable=False) as temporary:
        write_npz(temporary, {"depth": image, "mask": mask}, _made_with(frame, settings))
    return path


def _made_with(frame: Frame, settings: DepthSettings) -> bytes:
    """All that a depth image depends on, as JSON."""
    source = {
        "sweep": frame.sweep.name,
        "sweep_bytes": frame.sweep.stat().st_size,
        "image_hw": [frame.height, frame.width],
        "intrinsics": frame.intrinsics.round(6).tolist(),
        "camera_from_lidar": frame.camera_from_lidar.round(6).tolist(),
    }
    return json.dumps(asdict(settings) | source).encode()


def is_made(frame: Frame, folder: Path, settings: DepthSettings) -> bool:
    """Whether a frame's file is there to its end, where the archive keeps its table of contents, and was made from just
    this frame and with these settings."""
    try:
        with zipfile.ZipFile(depth_file(folder, frame)) as archive:
            return archive.comment == _made_with(frame, settings)
    except (OSError, zipfile.BadZipFile):
        return False


def all_made(frames: Sequence[Frame], folder: Path, settings: DepthSettings) -> bool:
    """Whether the folder has the file of every frame; it may have others."""
    return all(is_made(frame, folder, settings) for frame in frames)


def read_depth(path: Path) -> tuple[Floats, Mask]:
    """Depth and mask (H, W) of a file; raises UserError when it is missing, damaged or holds something else."""
    try:
        with np.load(path) as archive:
            depth, mask = archive["depth"], archive["mask"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; make it with: noisebox depth-gt") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path} is no whole depth file; delete it and make it anew with: noisebox depth-gt") from None
    if depth.ndim != 2 or depth.dtype != np.float32 or mask.shape != depth.shape or mask.dtype != np.bool_:
        raise UserError(
            f"{path} holds depth {depth.dtype} {depth.shape} and mask {mask.dtype} {mask.shape}; it must be float32 "
            "and bool of one shape (H, W)"
        )
    return depth, mask


def in_threads(
    function: Callable[[Frame], Result], frames: Sequence[Frame], workers: int | None = None
) -> Iterator[Result]:
    """What `function` makes of every frame, in their order, by `workers` threads, by default one per core.

    Threads suffice: reading, arithmetic over thousands of points, deflating and writing all run beside each other.
    """
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, frames)

"""BEV data: a nuScenes root, the user's or the embedded one, as splits of samples and as batches.

A sample is a camera image, stretched to the size that the dataset's file names, the camera's intrinsics at that size, a
map of labels on the ground, and where it was made the depth ground truth. Label maps lie in `ann_bev_dir/<split>` under
the image's stem, depth in graph.depth_folder(split).
"""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from noisebox import graph
from noisebox.config.section import AboveZero, Count, Positive
from noisebox.data.coco import size_of
from noisebox.data.datasets import READERS, SPLITS, Dataset, EmbeddedDataset, Progress
from noisebox.data.nuscenes import Frame, check_image, check_sweep, read_image, read_nuscenes
from noisebox.errors import UserError
from noisebox.files import expanded, sha256

WORLD_VERSION = "v1.0-world"
WORLD_CLASSES = ("background", "road", "pavement", "car", "motorbike", "person")


@dataclass(frozen=True, eq=False)
class BevSplit:
    """A split: `frames` in the order of scenes and time; the id of frame k, by which randomness is keyed, is k."""

    name: str
    classes: tuple[str, ...]
    frames: tuple[Frame, ...]
    labels: tuple[Path, ...]
    view: "BevView"

    def __len__(self) -> int:
        return len(self.frames)

    def only(self, places: Sequence[int]) -> "BevSplit":
        """The frames at these places alone, with ids anew."""
        frames = tuple(self.frames[place] for place in places)
        return replace(self, frames=frames, labels=tuple(self.labels[place] for place in places))

    def intrinsics(self, k: int) -> NDArray[np.float32]:
        """(3, 3) of frame k, in pixels of the stretched image."""
        (height, width), frame = self.view.size, self.frames[k]
        stretched: NDArray[np.float32] = (
            np.diag([width / frame.width, height / frame.height, 1.0]) @ frame.intrinsics
        ).astype(np.float32)
        return stretched

    def image(self, k: int) -> NDArray[np.uint8]:
        """(H, W, 3) RGB of frame k, stretched; raises UserError when the file does not decode."""
        height, width = self.view.size
        stored = Image.fromarray(read_image(self.frames[k]))
        return np.asarray(stored.resize((width, height), Image.Resampling.BILINEAR))

    def label_map(self, k: int) -> NDArray[np.uint8]:
        """(rows, columns) as stored; raises UserError when the file is missing or is no map of single values."""
        path = self.labels[k]
        try:
            with Image.open(path) as image:
                labels = np.asarray(image)
        except OSError as error:
            raise UserError(f"{path} cannot be read as a label map ({error})") from None
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise UserError(f"{path} holds {labels.dtype} {labels.shape}; a label map has one 8-bit value a cell")
        return labels

    def known_labels(self, k: int, ignore_index: int) -> NDArray[np.uint8]:
        """As `label_map`; raises UserError, too, for a value that is neither a class of the dataset nor ignored."""
        labels = self.label_map(k)
        if strange := sorted(set(np.unique(labels).tolist()) - self.values(ignore_index)):
            raise UserError(
                f"{self.labels[k]} has the value {strange[0]}; 0 to {len(self.classes) - 1} fit, as the dataset's "
                f"classes, and model.labels.ignore_index {ignore_index}: mend the labels, or set model.labels to what "
                "they mean"
            )
        return labels

    def values(self, ignore_index: int) -> set[int]:
        """What a label map may hold."""
        return {*range(len(self.classes)), ignore_index}

    def check_sizes(self, rows: int, columns: int) -> None:
        """Raises UserError for a label map of another size; their headers are all that is read."""
        for path in self.labels:
            width, height = size_of(path)
            if (height, width) != (rows, columns):
                raise UserError(
                    f"{path} has {height} rows and {width} columns, but model.grid has {rows} and {columns}; make the "
                    "label maps anew or change model.grid"
                )


class BevView(Dataset):
    """What is taken of a nuScenes root: `cameras`, stretched to `size` (height, width); and of the lidar the returns
    from `min_depth` up to `max_depth` metres, as depth ground truth of that size."""

    lines = ("bev",)

    cameras: Annotated[list[str], Field(min_length=1)] = ["CAM_FRONT"]
    size: tuple[Positive, Positive] = (600, 800)
    min_depth: AboveZero = 1.0
    max_depth: AboveZero = 50.0

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the label maps' values from 0 on."""

    @abstractmethod
    def tables(self, name: str, root: Path) -> tuple[Path, str]:
        """The folder of the nuScenes root, and the version of its tables."""

    def open(self, name: str, split: str, root: Path) -> BevSplit:
        folder, version = self.tables(name, root)
        frames = read_nuscenes(folder, version, self.cameras).frames(split)
        labels = tuple(folder / "ann_bev_dir" / split / f"{frame.stem}.png" for frame in frames)
        for path in labels:
            if not path.is_file():
                raise UserError(f"{path} does not exist: every image of split {split!r} needs a map of labels")
        return BevSplit(f"{name}/{split}", self.names, frames, labels, self)

    def describe(self, name: str, root: Path, progress: Progress | None) -> dict[str, Any]:
        splits = {split: self.open(name, split, root) for split in SPLITS}
        total, done, described = sum(len(split.frames) for split in splits.values()), 0, {}
        # Of the same files, another view makes other inputs.
        view = self.model_dump(mode="json", include={"size", "min_depth", "max_depth"})
        for key, split in splits.items():
            cells, content = np.zeros(256, np.int64), hashlib.sha256()
            with ThreadPoolExecutor(READERS) as pool:
                for counts, digests in pool.map(partial(_checked, split), range(len(split))):
                    cells += counts
                    content.update(digests.encode())
                    done += 1
                    if progress:
                        progress(done, total)
            values = {str(value): int(count) for value, count in enumerate(cells) if count}
            facts = {"images": len(split.frames), **view, "cells": values, "frames_sha256": _frames_sha256(split)}
            described[key] = {**facts, "sha256": content.hexdigest()}
        return {"classes": list(self.names), "splits": described}

    def changed(self, opened: BevSplit, facts: dict[str, Any]) -> str | None:
        same = _frames_sha256(opened) == facts["frames_sha256"]
        return None if same else f"the tables of {opened.name} have changed since"


class NuScenesDataset(BevView):
    """A nuScenes root of the user's; `classes` names the label maps' values from 0 on. `source` says where the files
    come from, and is no part of what the data is."""

    kind: Literal["nuscenes"]
    root: str
    version: str = "v1.0-trainval"
    classes: Annotated[list[str], Field(min_length=1)]
    source: Annotated[str | None, Field(exclude=True)] = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def tables(self, name: str, root: Path) -> tuple[Path, str]:
        try:
            return expanded(self.root, root), self.version
        except UserError as error:
            raise UserError(f"{root / graph.dataset_file(name)}: root: {error}") from None


class DriveDataset(BevView, EmbeddedDataset):
    """The embedded world as a nuScenes root: `train` and `val` scenes of `samples` samples, images of `image_size`."""

    kind: Literal["world_drive"]
    seed: Count = 0
    image_size: tuple[Positive, Positive]
    train: Positive
    val: Positive
    samples: Annotated[int, Field(ge=1, le=20)] = 8

    @property
    def names(self) -> tuple[str, ...]:
        return WORLD_CLASSES

    def tables(self, name: str, root: Path) -> tuple[Path, str]:
        return root / graph.dataset_folder(name), WORLD_VERSION

    def is_complete(self, folder: Path) -> bool:
        return (folder / WORLD_VERSION / "splits.json").is_file()

    def draw(self, folder: Path, progress: Progress | None) -> None:
        from noisebox.data.world import write_nuscenes_world

        scenes = {split: getattr(self, split) for split in SPLITS}
        write_nuscenes_world(folder, self.seed, scenes, self.samples, self.image_size, progress)


DATASETS: dict[str, type[Dataset]] = {"nuscenes": NuScenesDataset, "world_drive": DriveDataset}


def _checked(split: BevSplit, k: int) -> tuple[NDArray[np.int64], str]:
    """Of frame k how many cells have each label value, (256,), and the SHA-256 and name of each file, a line each;
    raises UserError when one of them is missing or damaged, and to know that decodes the image."""
    frame = split.frames[k]
    check_image(frame)
    check_sweep(frame)
    read_image(frame)
    counts = np.bincount(split.label_map(k).ravel(), minlength=256)
    return counts, "".join(f"{sha256(path)} {path.name}\n" for path in (frame.image, frame.sweep, split.labels[k]))


def _frames_sha256(split: BevSplit) -> str:
    """Of what the tables say of each frame, and of where its label map lies."""
    content = hashlib.sha256()
    for frame, labels in zip(split.frames, split.labels, strict=True):
        content.update(f"{frame.image.name} {frame.sweep.name} {labels.name}\n".encode())
        content.update(frame.camera_from_lidar.round(6).tobytes() + frame.intrinsics.round(6).tobytes())
    return content.hexdigest()

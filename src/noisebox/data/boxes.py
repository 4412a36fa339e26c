"""Datasets of boxes: the embedded worlds, COCO files and VisDrone, opened as CocoSplit."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from noisebox import graph
from noisebox.config.section import Count, Positive, Section
from noisebox.data.coco import CocoSplit, ImageRecord, decode_image, read_bytes, read_split
from noisebox.data.datasets import SPLITS, Dataset, EmbeddedDataset, Progress
from noisebox.data.visdrone import read_visdrone
from noisebox.errors import UserError
from noisebox.files import expanded, sha256

READERS = 8  # threads that read and decode images; reading waits on the disk, decoding releases Python's lock


class BoxDataset(Dataset):
    """What the kinds below have in common."""

    @abstractmethod
    def open(self, name: str, split: str, root: Path) -> CocoSplit: ...

    def describe(self, name: str, root: Path, progress: Progress | None) -> dict[str, Any]:
        train, val = (self.open(name, split, root) for split in SPLITS)
        if train.classes != val.classes:
            raise UserError(
                f"{val.annotation_file} declares the classes {', '.join(val.classes)}, but {train.annotation_file} "
                f"{', '.join(train.classes)}; list the ones to use under 'classes' in {root / graph.dataset_file(name)}"
            )
        digests = _image_digests([*train.images, *val.images], progress)
        splits = {key: _describe_split(split, digests) for key, split in zip(SPLITS, (train, val), strict=True)}
        return {"classes": list(train.classes), "splits": splits}

    def check_unchanged(self, opened: CocoSplit, facts: dict[str, Any]) -> None:
        if _annotations_sha256(opened) != facts["annotations_sha256"]:
            raise UserError(f"{opened.annotation_file} has changed since; run `noisebox data` first")


class WorldDataset(BoxDataset, EmbeddedDataset):
    """An embedded world, the street's or the one from above: image k of a split is the same however many there are."""

    kind: Literal["world", "world_aerial"]
    seed: Count = 0
    image_size: tuple[Positive, Positive]
    train: Positive
    val: Positive

    def open(self, name: str, split: str, root: Path) -> CocoSplit:
        folder = root / graph.dataset_folder(name)
        return read_split(f"{name}/{split}", folder / "annotations" / f"{split}.json", folder / "images" / split)

    def is_complete(self, folder: Path) -> bool:
        return all((folder / "annotations" / f"{split}.json").is_file() for split in SPLITS)

    def draw(self, folder: Path, progress: Progress | None) -> None:
        from noisebox.data.world import WORLDS, write_world

        counts = {split: getattr(self, split) for split in SPLITS}
        write_world(folder, self.seed, counts, self.image_size, progress, WORLDS[self.kind])


class CocoFiles(Section):
    """One split of a user's data; paths count from the repository's root, `~` and `$NAME` are expanded.

    `annotations` is a COCO file; of kind `visdrone` it may be the folder of VisDrone's text files.
    """

    images: str
    annotations: str


class CocoDataset(BoxDataset):
    """A user's own data in COCO form, or VisDrone; `classes` selects and orders the categories, by default all of them
    by rising id."""

    kind: Literal["coco", "visdrone"]
    train: CocoFiles
    val: CocoFiles
    classes: Annotated[list[str], Field(min_length=1)] | None = None

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: list[str] | None) -> list[str] | None:
        for name in classes or ():
            if classes is not None and classes.count(name) > 1:
                raise ValueError(f"{name!r} is listed twice")
        return classes

    def open(self, name: str, split: str, root: Path) -> CocoSplit:
        files: CocoFiles = getattr(self, split)
        images, annotations = expanded(files.images, root), expanded(files.annotations, root)
        visdrone = self.kind == "visdrone"
        stored = annotations.is_file() or (visdrone and annotations.is_dir())
        for key, path, exists in (("images", images, images.is_dir()), ("annotations", annotations, stored)):
            if not exists:
                wanted = "folder" if key == "images" else "file or folder" if visdrone else "file"
                raise UserError(f"{root / graph.dataset_file(name)}: {split}.{key}: there is no {wanted} {path}")
        read = read_visdrone if visdrone else read_split
        return read(f"{name}/{split}", annotations, images, self.classes)


DATASETS: dict[str, type[Dataset]] = {
    "world": WorldDataset,
    "world_aerial": WorldDataset,
    "coco": CocoDataset,
    "visdrone": CocoDataset,
}


def _describe_split(split: CocoSplit, digests: Iterator[str]) -> dict[str, Any]:
    """What the manifest says of a split; takes its images' digests off the iterator."""
    annotations = _annotations_sha256(split)
    content = hashlib.sha256(annotations.encode())
    for record in split.images:
        content.update(f"\n{next(digests)} {record.file_name}".encode())
    return {
        "images": len(split.images),
        "objects": split.objects_per_class(),
        "annotations_sha256": annotations,
        "sha256": content.hexdigest(),
    }


def _annotations_sha256(split: CocoSplit) -> str:
    """The SHA-256 of the annotation file, or of the listing of a folder's text files with theirs."""
    if not split.annotation_file.is_dir():
        return sha256(split.annotation_file)
    files = sorted(split.annotation_file.glob("*.txt"))
    listing = "".join(f"{sha256(file)} {file.name}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _image_digests(records: list[ImageRecord], progress: Progress | None) -> Iterator[str]:
    """The SHA-256 of each image file, in order; raises UserError at the first that does not decode."""
    with ThreadPoolExecutor(READERS) as pool:
        for done, digest in enumerate(pool.map(_checked_digest, records), start=1):
            if progress:
                progress(done, len(records))
            yield digest


def _checked_digest(record: ImageRecord) -> str:
    content = read_bytes(record)
    decode_image(content, record)
    return hashlib.sha256(content).hexdigest()

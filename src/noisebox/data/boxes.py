"""Datasets of boxes: the embedded worlds, COCO files and published ones in forms of their own, opened as CocoSplit."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from noisebox import graph
from noisebox.config.section import Count, Positive, Section
from noisebox.data.coco import CocoSplit, ImageRecord, decode_image, read_bytes, read_split
from noisebox.data.crowdhuman import read_crowdhuman
from noisebox.data.datasets import READERS, SPLITS, Dataset, EmbeddedDataset, Progress
from noisebox.data.detectron2 import files_of
from noisebox.data.lvis import read_lvis
from noisebox.data.objects365 import read_objects365
from noisebox.data.visdrone import read_visdrone
from noisebox.data.voc import read_voc
from noisebox.errors import UserError
from noisebox.files import expanded, sha256


class BoxDataset(Dataset):
    """What the kinds below have in common."""

    lines = ("detection", "aerial")

    @abstractmethod
    def open(self, name: str, split: str, root: Path) -> CocoSplit: ...

    def describe(self, name: str, root: Path, progress: Progress | None) -> dict[str, Any]:
        train, val = (self.open(name, split, root) for split in SPLITS)
        check_classes_agree(train, val, root / graph.dataset_file(name))
        digests = _image_digests([*train.images, *val.images], progress)
        splits = {key: _describe_split(split, digests) for key, split in zip(SPLITS, (train, val), strict=True)}
        return {"classes": list(train.classes), "splits": splits}

    def changed(self, opened: CocoSplit, facts: dict[str, Any]) -> str | None:
        same = _annotations_sha256(opened) == facts["annotations_sha256"]
        return None if same else f"{opened.annotation_file} has changed since"


def check_classes_agree(train: CocoSplit, val: CocoSplit, definition: Path) -> None:
    """Raises UserError when the splits have other classes."""
    if train.classes != val.classes:
        raise UserError(
            f"{val.annotation_file} declares the classes {', '.join(val.classes)}, but {train.annotation_file} "
            f"{', '.join(train.classes)}; list the ones to use under 'classes' in {definition}"
        )


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


class Files(Section):
    """One split of a user's data; paths count from the repository's root, `~` and `$NAME` are expanded as
    `noisebox.files.expanded` says.

    `annotations` is a file; of kind `visdrone` it may be the folder of VisDrone's text files.
    """

    images: str
    annotations: str

    @property
    def folders(self) -> tuple[str, ...]:
        """The keys that must name a folder; the others must name a file."""
        return ("images",)


class VocFiles(Files):
    """A split in VOC's form: the folders of its images and of their XML files, and the `list` of those that are its."""

    list: str

    @property
    def folders(self) -> tuple[str, ...]:
        return ("images", "annotations")


class UserDataset(BoxDataset):
    """A user's own data; `classes` selects and orders the classes, by default all of them. `source` says where the
    files come from, and is no part of what the data is."""

    kind: str
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    source: Annotated[str | None, Field(exclude=True)] = None

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: list[str] | None) -> list[str] | None:
        for name in classes or ():
            if classes is not None and classes.count(name) > 1:
                raise ValueError(f"{name!r} is listed twice")
        return classes

    def files(self, split: str) -> Files:
        """Where a split lies; raises UserError where that cannot be told."""
        files: Files = getattr(self, split)
        return files

    def open(self, name: str, split: str, root: Path) -> CocoSplit:
        paths = self.paths(name, split, root)
        for key, wanted in self.missing(name, split, root).items():
            raise UserError(f"{root / graph.dataset_file(name)}: {split}.{key}: there is no {wanted} {paths[key]}")
        return self.read(f"{name}/{split}", paths)

    def paths(self, name: str, split: str, root: Path) -> dict[str, Path]:
        """The files and folders of a split by key; raises UserError where one cannot be told."""
        try:
            return {key: expanded(path, root) for key, path in self.files(split)}
        except UserError as error:
            raise UserError(f"{root / graph.dataset_file(name)}: {split}: {error}") from None

    def missing(self, name: str, split: str, root: Path) -> dict[str, str]:
        """What of a split is not there, by key: a file or a folder."""
        folders, missing = self.files(split).folders, {}
        for key, path in self.paths(name, split, root).items():
            if self.kind == "visdrone" and key == "annotations":
                wanted, there = "file or folder", path.exists()
            else:
                wanted, there = ("folder", path.is_dir()) if key in folders else ("file", path.is_file())
            if not there:
                missing[key] = wanted
        return missing

    def read(self, name: str, paths: dict[str, Path]) -> CocoSplit:
        """A split whose files are there."""
        return READERS_OF[self.kind](name, paths["annotations"], paths["images"], self.classes)


class FormDataset(UserDataset):
    """Data in the form of a published dataset, read by the reader of that kind."""

    kind: Literal["visdrone", "lvis", "objects365", "crowdhuman"]
    train: Files
    val: Files


class CocoDataset(UserDataset):
    """Data in COCO form; classes come by rising id. Boxes without area, or that leave their image, are refused where
    `boxes` is `strict`; `mended`, the former are left out and the latter clipped, as published data needs it."""

    kind: Literal["coco"]
    train: Files
    val: Files
    boxes: Literal["strict", "mended"] = "strict"

    def read(self, name: str, paths: dict[str, Path]) -> CocoSplit:
        return read_split(name, paths["annotations"], paths["images"], self.classes, self.boxes == "mended")


class Detectron2Dataset(UserDataset):
    """Datasets in COCO form that Detectron2 knows by name, mended as published data needs it."""

    kind: Literal["detectron2"]
    train: str
    val: str

    def files(self, split: str) -> Files:
        images, annotations = files_of(getattr(self, split))
        return Files(images=images, annotations=annotations)

    def read(self, name: str, paths: dict[str, Path]) -> CocoSplit:
        return read_split(name, paths["annotations"], paths["images"], self.classes, mended=True)


class VocDataset(UserDataset):
    """Data in VOC's form; by default in VOC's 20 classes."""

    kind: Literal["voc"]
    train: VocFiles
    val: VocFiles

    def read(self, name: str, paths: dict[str, Path]) -> CocoSplit:
        return read_voc(name, paths["annotations"], paths["images"], paths["list"], self.classes)


READERS_OF: dict[str, Callable[[str, Path, Path, Sequence[str] | None], CocoSplit]] = {
    "visdrone": read_visdrone,
    "lvis": read_lvis,
    "objects365": read_objects365,
    "crowdhuman": read_crowdhuman,
}
DATASETS: dict[str, type[Dataset]] = {
    "world": WorldDataset,
    "world_aerial": WorldDataset,
    "coco": CocoDataset,
    "voc": VocDataset,
    **dict.fromkeys(READERS_OF, FormDataset),
    "detectron2": Detectron2Dataset,
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
    """The SHA-256 of the annotation file, or of the listing of a folder's files with theirs: all text files, or with a
    list the XML files of its images."""
    if not split.annotation_file.is_dir():
        return sha256(split.annotation_file)
    if split.list_file:
        names = [str(PurePath(record.file_name).with_suffix(".xml")) for record in split.images]
    else:
        names = sorted(file.name for file in split.annotation_file.glob("*.txt"))
    listing = "".join(f"{sha256(split.annotation_file / name)} {name}\n" for name in names)
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

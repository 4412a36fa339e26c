"""COCO detection files and their images: read, checked, and turned into records; any fault is told in one sentence.

The file is checked column by column, so that a large one takes seconds. Image folders are never walked: what is not
named in the file does not exist.
"""

import difflib
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from noisebox.errors import UserError

ROUNDING = 1.0  # pixels by which a box may leave its image; it is clipped
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image with its G annotations, in the file's order.

    `boxes_xyxy` (G, 4) float32 in pixels, clipped to the image; `labels` (G,) int64, positions in the split's classes;
    `crowd` (G,) bool. `stored_xywh` (G, 4) and `areas` (G,) float64 are the file's own numbers, for evaluation.
    """

    id: int
    file_name: str
    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    stored_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """A checked split: its images in the file's order, its classes, and the file's category id of each class."""

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    annotation_file: Path

    def __len__(self) -> int:
        return len(self.images)

    def only(self, places: Sequence[int]) -> "CocoSplit":
        """The images at these places alone."""
        return replace(self, images=tuple(self.images[place] for place in places))

    def objects_per_class(self) -> dict[str, int]:
        """How many objects, crowds aside, each class has."""
        labels = np.concatenate([record.labels[~record.crowd] for record in self.images])
        return dict(zip(self.classes, np.bincount(labels, minlength=len(self.classes)).tolist(), strict=True))

    def ground_truth(self) -> dict[str, Any]:
        """The split in COCO form, for counting: the chosen classes only, under the file's category ids.

        Boxes and areas are the file's own. Annotations are numbered anew from 1, because the COCO counters take id 0
        for "matched with nothing".
        """
        annotations: list[dict[str, Any]] = []
        for record in self.images:
            columns = (record.labels, record.stored_xywh, record.areas, record.crowd)
            for label, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.id,
                        "category_id": self.category_ids[label],
                        "bbox": box,
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        return {
            "images": [
                {"id": record.id, "file_name": record.file_name, "width": record.width, "height": record.height}
                for record in self.images
            ],
            "annotations": annotations,
            "categories": [
                {"id": identity, "name": name} for identity, name in zip(self.category_ids, self.classes, strict=True)
            ],
        }


def read_split(name: str, annotation_file: Path, image_folder: Path, classes: Sequence[str] | None = None) -> CocoSplit:
    """Read and check a COCO detection file; the images must exist but are not opened.

    `classes` selects and orders the categories; None takes all of them by rising id. Annotations of other classes are
    dropped before their boxes are looked at. Raises UserError naming file and image or annotation id.
    """
    return parse_split(name, read_json(annotation_file), annotation_file, image_folder, classes)


def parse_split(
    name: str,
    content: dict[str, Any],
    annotation_file: Path,
    image_folder: Path,
    classes: Sequence[str] | None = None,
) -> CocoSplit:
    """As `read_split`, from the content of the annotation file."""
    declared = _declared(_table(content, "categories", annotation_file))
    names = _chosen(declared, classes, annotation_file)
    images = _table(content, "images", annotation_file)
    if not images.rows:
        raise UserError(f"{annotation_file}: the split has no images; list at least one under 'images'")
    label_of = {identity: names.index(name) if name in names else -1 for name, identity in declared.items()}
    return CocoSplit(
        name=name,
        classes=names,
        category_ids=tuple(declared[name] for name in names),
        images=_records(images, _table(content, "annotations", annotation_file), label_of, image_folder),
        annotation_file=annotation_file,
    )


def read_image(record: ImageRecord) -> NDArray[np.uint8]:
    """The image of a record as RGB (height, width, 3); raises UserError as `decode_image` does."""
    return decode_image(read_bytes(record), record)


def read_bytes(record: ImageRecord) -> bytes:
    """The content of a record's image file; raises UserError when it cannot be read."""
    try:
        return record.path.read_bytes()
    except OSError as error:
        raise UserError(f"image {record.id}: {record.path} cannot be read ({error.strerror})") from None


def decode_image(content: bytes, record: ImageRecord) -> NDArray[np.uint8]:
    """Decode an image file to RGB (height, width, 3).

    Grey and palette images become RGB, 16-bit grey is scaled to 8 bits, transparency is dropped. An EXIF orientation is
    followed wherever the turned image has the size that the annotation file states, since its boxes are meant so.

    Raises UserError when the content is no image, is cut short, has 32-bit pixels, or another size than stated.
    """
    stated = (record.width, record.height)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            shown: Image.Image = image
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                turned = ImageOps.exif_transpose(image)
                shown = turned if turned.size == stated else image
            pixels = _rgb(shown)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise UserError(
            f"image {record.id}: {record.path} cannot be read as an image ({_one_line(error)}); replace the file "
            "or take the image out of the annotations"
        ) from None
    if shown.size != stated:
        raise UserError(
            f"image {record.id}: {record.path} is {shown.size[0]} x {shown.size[1]} pixels (width x height), but the "
            f"annotation file says {record.width} x {record.height}"
        )
    return pixels


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers; save it with 8 or 16 bits")
    if image.mode != "RGB" and image.has_transparency_data:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its format is unknown"
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class _Table:
    """One list of a COCO file, read by columns; knows how to name a faulty row."""

    file: Path
    kind: str
    rows: list[dict[str, Any]]

    def column(self, key: str, fits: Callable[[Any], bool], wanted: str, default: Any = None) -> list[Any]:
        """The values of `key`, all of which fit; a row without the key takes the default, if there is one."""
        if default is None:
            self.refuse([key not in row for row in self.rows], lambda row: f"has no {key!r}; it must be {wanted}")
        self.refuse(
            [key in row and not fits(row[key]) for row in self.rows],
            lambda row: f"has {key} {_shown(self.rows[row][key])}; it must be {wanted}",
        )
        return [row.get(key, default) for row in self.rows]

    def ids(self) -> NDArray[np.int64]:
        """The rows' ids, none of them twice."""
        ids = np.array(self.column("id", _is_integer, "a whole number"), np.int64)
        order = np.argsort(ids, kind="stable")
        again = np.zeros(len(ids), np.bool_)
        again[order[1:]] = ids[order[1:]] == ids[order[:-1]]
        self.refuse(again, lambda row: "comes twice; ids must be unique")
        return ids

    def refuse(self, faulty: ArrayLike, complaint: Callable[[int], str]) -> None:
        """Raise UserError about the first faulty row, if there is one, and say how many more there are."""
        found = np.flatnonzero(faulty)
        if not found.size:
            return
        row = int(found[0])
        more = f" ({found.size - 1} more like it)" if found.size > 1 else ""
        raise UserError(f"{self.file}: {self._name(row)} {complaint(row)}{more}")

    def _name(self, row: int) -> str:
        """How a message calls a row: by its id if it has one, else by its place in the list."""
        entry = self.rows[row]
        if not _is_integer(entry.get("id")):
            return f"{self.kind} number {row + 1} of the list"
        of_image = f" (image {_shown(entry['image_id'])})" if "image_id" in entry else ""
        return f"{self.kind} {entry['id']}{of_image}"


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_flag(value: Any) -> bool:
    return type(value) in (int, bool) and value in (0, 1)


def _is_number(value: Any) -> bool:
    """Finite (NaN compares false) and small enough for exact pixels."""
    return type(value) in (int, float) and -1e12 < value < 1e12


def _is_area(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(_is_number, value))


def _is_name(value: Any) -> bool:
    return type(value) is str and bool(value.strip()) and value.isprintable()


def _is_file_name(value: Any) -> bool:
    if type(value) is not str or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds; raises UserError when it holds none."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no COCO detection file: it must hold an object, not a {type(content).__name__}")
    return content


def _table(content: dict[str, Any], key: str, file: Path) -> _Table:
    kind = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    rows = content.get(key)
    if not isinstance(rows, list) or not all(type(row) is dict for row in rows):
        fault = "is missing" if key not in content else "is no list of objects"
        raise UserError(
            f"{file} is no COCO detection file: {key!r} {fault}; images, annotations and categories must each be a list"
        )
    return _Table(file, kind, rows)


def _declared(table: _Table) -> dict[str, int]:
    """The category id of every name that the file declares."""
    ids, names = table.ids().tolist(), table.column("name", _is_name, "a printable name")
    if not names:
        raise UserError(f"{table.file}: 'categories' is empty; declare at least one class")
    table.refuse(
        [name in names[:row] for row, name in enumerate(names)],
        lambda row: f"has the name {names[row]!r} of another category; names must be unique",
    )
    return dict(zip(names, ids, strict=True))


def _chosen(declared: dict[str, int], classes: Sequence[str] | None, file: Path) -> tuple[str, ...]:
    """The classes asked for, or all by rising category id."""
    for name in classes or ():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, 10, cutoff=0.0)
            rest = f" and {len(declared) - len(near)} more" if len(declared) > len(near) else ""
            raise UserError(f"{file} declares no class {name!r}; it declares {', '.join(near)}{rest}")
    return tuple(sorted(declared, key=declared.__getitem__) if classes is None else classes)


def _records(images: _Table, annotations: _Table, label_of: dict[int, int], folder: Path) -> tuple[ImageRecord, ...]:
    """Check images and annotations and bring them together; `label_of` a category id is -1 where it is not chosen."""
    ids = images.ids()
    widths = images.column("width", _is_size, "a whole number of pixels")
    heights = images.column("height", _is_size, "a whole number of pixels")
    names = images.column("file_name", _is_file_name, "the name of a file")
    paths = _image_paths(images, names, folder)
    owners, labels = _owners(annotations, ids), _labels(annotations, label_of)
    chosen = np.flatnonzero(labels >= 0)
    annotations = _Table(annotations.file, annotations.kind, [annotations.rows[row] for row in chosen])
    owners, labels = owners[chosen], labels[chosen]
    stored_xywh, boxes_xyxy = _boxes(annotations, np.array(widths)[owners], np.array(heights)[owners])
    crowd = np.array(annotations.column("iscrowd", _is_flag, "0 or 1", default=0), np.bool_)
    columns = (boxes_xyxy, labels, crowd, stored_xywh, _areas(annotations, stored_xywh))
    by_image = np.argsort(owners, kind="stable")
    cuts = np.searchsorted(owners[by_image], np.arange(1, len(ids)))
    of_images = zip(*(np.split(column[by_image], cuts) for column in columns), strict=True)
    return tuple(
        ImageRecord(*stated, *own)
        for stated, own in zip(zip(ids.tolist(), names, paths, widths, heights, strict=True), of_images, strict=True)
    )


def _image_paths(images: _Table, names: list[str], folder: Path) -> list[Path]:
    """Where the images lie; every one exists, and in the folder.

    The file itself may be a link, as in folders that DVC or a user made of links; the folders on the way to it may not
    lead out.
    """
    parts = [PurePosixPath(name) for name in names]
    home = os.path.realpath(folder)
    within = {
        parent: Path(os.path.realpath(folder / parent)).is_relative_to(home)
        for parent in {part.parent for part in parts}
    }
    images.refuse(
        [".." in part.parts or part.is_absolute() or not within[part.parent] for part in parts],
        lambda row: f"has file_name {_shown(names[row])}, which leaves the image folder {folder}",
    )
    paths = [folder / part for part in parts]
    images.refuse(
        [not os.path.isfile(path) for path in paths],  # noqa: PTH113  (Path.is_file raises on a name too long)
        lambda row: f"has file_name {_shown(names[row])}, but {paths[row]} does not exist",
    )
    return paths


def _owners(annotations: _Table, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position of each annotation's image; the annotations' own ids are checked too."""
    annotations.ids()
    wanted = np.array(annotations.column("image_id", _is_integer, "the id of an image"), np.int64)
    order = np.argsort(image_ids)
    owners: NDArray[np.int64] = order[np.searchsorted(image_ids[order], wanted).clip(max=len(order) - 1)]
    annotations.refuse(image_ids[owners] != wanted, lambda row: "belongs to an image that the file does not list")
    return owners


def _labels(annotations: _Table, label_of: dict[int, int]) -> NDArray[np.int64]:
    """The label of each annotation, -1 where its category is not chosen."""
    categories = annotations.column("category_id", _is_integer, "the id of a category")
    known = ", ".join(map(str, sorted(label_of)[:10])) + (", ..." if len(label_of) > 10 else "")
    annotations.refuse(
        [category not in label_of for category in categories],
        lambda row: f"has category_id {categories[row]}, which is not declared; declared are {known}",
    )
    return np.array([label_of[category] for category in categories], np.int64)


def _boxes(
    annotations: _Table, widths: NDArray[np.int64], heights: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The boxes as stored (x, y, width, height) and clipped to their images (x1, y1, x2, y2)."""
    stored = annotations.column("bbox", _is_box, "four finite numbers [x, y, width, height]")
    xywh = np.array(stored, np.float64).reshape(-1, 4)
    limits = np.stack([widths, heights, widths, heights], axis=1).reshape(-1, 4)
    annotations.refuse(
        (xywh[:, 2:] <= 0).any(axis=1),
        lambda row: f"has the box {stored[row]} of no area; width and height must be above 0",
    )
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    clipped = xyxy.clip(0, limits).astype(np.float32)
    outside = (xyxy < -ROUNDING) | (xyxy > limits + ROUNDING)
    outside |= clipped[:, [2, 3, 2, 3]] <= clipped[:, [0, 1, 0, 1]]
    annotations.refuse(
        outside.any(axis=1),
        lambda row: (
            f"has the box {stored[row]} (x, y, width, height) outside its image, "
            f"which is {widths[row]} x {heights[row]} pixels (width x height)"
        ),
    )
    return xywh, clipped


def _areas(annotations: _Table, xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """The stated areas, in square pixels; the box's own where none is stated."""
    areas = np.array(annotations.column("area", _is_area, "a finite number, 0 or more", default=math.nan), np.float64)
    return np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas)

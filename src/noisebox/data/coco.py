"""COCO detection files and their images: read, checked, and turned into records; any fault is told in one sentence.

The file is checked column by column, so that a large one takes seconds. Image folders are never walked: what is not
named in the file does not exist.
"""

import difflib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from noisebox.errors import UserError
from noisebox.pixels import rgb_pixels, turned_as

ROUNDING = 1.0  # pixels by which a box may leave its image; it is clipped
BOX = "four finite numbers [x, y, width, height]"

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Federated:
    """What counts where each image was searched for some classes alone, as in LVIS: by image id the labels `judged`
    there, and of the detections of an image, over all classes, the `limit` best. `groups` are labels whose mean AP has
    a name of its own, such as APr of the rare ones."""

    judged: dict[int, frozenset[int]]
    limit: int
    groups: dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """A checked split: its images in the file's order, its classes, and the file's category id of each class.

    `annotation_file` is a folder where each image has a file of its own; `list_file` then says which images there are.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    annotation_file: Path
    federated: Federated | None = None
    list_file: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    def only(self, places: Sequence[int]) -> "CocoSplit":
        """The images at these places alone."""
        return replace(self, images=tuple(self.images[place] for place in places))

    def objects_per_class(self) -> dict[str, int]:
        """How many objects, crowds aside, each class has."""
        labels = np.concatenate([record.labels[~record.crowd] for record in self.images])
        return dict(zip(self.classes, np.bincount(labels, minlength=len(self.classes)).tolist(), strict=True))

    def images_per_class(self) -> NDArray[np.int64]:
        """How many images, (K,), have an object of each class, crowds aside; an image that comes more often is one."""
        images = {record.id: record for record in self.images}.values()
        return np.bincount(np.concatenate([_present(record) for record in images]), minlength=len(self.classes))

    def repeat_factors(self, threshold: float) -> NDArray[np.float64]:
        """How often an epoch should show each image, (images,), at least once: the square root of `threshold` over the
        share of images that have an object of its rarest class (Gupta et al. 2019, LVIS)."""
        shares = self.images_per_class() / len(self.images)
        present = [_present(record) for record in self.images]
        return np.array([max(1.0, math.sqrt(threshold / shares[own].min())) if len(own) else 1.0 for own in present])

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


def _present(record: ImageRecord) -> NDArray[np.int64]:
    """The labels that an image has an object of, each once."""
    return np.unique(record.labels[~record.crowd])


def read_split(
    name: str, annotation_file: Path, image_folder: Path, classes: Sequence[str] | None = None, mended: bool = False
) -> CocoSplit:
    """Read and check a COCO detection file; the images must exist but are not opened.

    `classes` selects and orders the categories; None takes all of them by rising id. Annotations of other classes are
    dropped before their boxes are looked at. Where boxes are to be `mended`, one without area or outside its image is
    left out, and one that leaves it is clipped; the number left out is logged. Raises UserError naming file and image
    or annotation id.
    """
    return parse_split(name, read_json(annotation_file), annotation_file, image_folder, classes, mended)


def declared_classes(annotation_file: Path) -> tuple[str, ...]:
    """The classes that a COCO file declares, by rising id; raises UserError where it declares none."""
    return _chosen(_declared(_table(read_json(annotation_file), "categories", annotation_file)), None, annotation_file)


def parse_split(
    name: str,
    content: dict[str, Any],
    annotation_file: Path,
    image_folder: Path,
    classes: Sequence[str] | None = None,
    mended: bool = False,
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
        images=_records(images, _table(content, "annotations", annotation_file), label_of, image_folder, mended),
        annotation_file=annotation_file,
    )


def mended_record(
    identity: int,
    path: Path,
    size_wh: tuple[int, int],
    xywh: ArrayLike,
    labels: ArrayLike,
    crowd: ArrayLike,
) -> ImageRecord:
    """The record of an image of this size, boxes (G, 4) clipped to it and those without anything of it left out: fewer
    than were given. They are so for evaluation, too."""
    stored = np.array(xywh, np.float64).reshape(-1, 4)
    clipped = clipped_xyxy(stored, np.tile(np.array(size_wh), (len(stored), 1)))
    shown = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    corners = clipped[shown].astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    return ImageRecord(
        id=identity,
        file_name=path.name,
        path=path,
        width=size_wh[0],
        height=size_wh[1],
        boxes_xyxy=clipped[shown],
        labels=np.array(labels, np.int64)[shown],
        crowd=np.array(crowd, np.bool_)[shown],
        stored_xywh=np.concatenate([corners[:, :2], sides], axis=1),
        areas=sides.prod(axis=1),
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
            shown = turned_as(image, stated)
            pixels = rgb_pixels(shown)
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


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file as stored, which is all that is read of it; raises UserError."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise UserError(f"{path} cannot be read as an image ({_one_line(error)})") from None


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

    def only(self, places: NDArray[np.int64]) -> "_Table":
        """The rows at these places alone."""
        return _Table(self.file, self.kind, [self.rows[row] for row in places])

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


def is_box(value: Any) -> bool:
    """Whether it is a list of four finite numbers."""
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


def _records(
    images: _Table, annotations: _Table, label_of: dict[int, int], folder: Path, mended: bool
) -> tuple[ImageRecord, ...]:
    """Check images and annotations and bring them together; `label_of` a category id is -1 where it is not chosen."""
    ids = images.ids()
    widths = images.column("width", _is_size, "a whole number of pixels")
    heights = images.column("height", _is_size, "a whole number of pixels")
    names = images.column("file_name", _is_file_name, "the name of a file")
    paths = _image_paths(images, names, folder)
    owners, labels = _owners(annotations, ids), _labels(annotations, label_of)
    chosen = np.flatnonzero(labels >= 0)
    sizes_wh = np.stack([np.array(widths)[owners], np.array(heights)[owners]], axis=1)
    if mended:
        chosen = _with_area(annotations, chosen, sizes_wh)
    annotations = annotations.only(chosen)
    owners, labels = owners[chosen], labels[chosen]
    stored_xywh, boxes_xyxy = _boxes(annotations, sizes_wh[chosen], mended)
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


def _with_area(annotations: _Table, chosen: NDArray[np.int64], sizes_wh: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the rows chosen those whose boxes show something of their images."""
    kept = annotations.only(chosen)
    stored = np.array(kept.column("bbox", is_box, BOX), np.float64).reshape(-1, 4)
    clipped = clipped_xyxy(stored, sizes_wh[chosen])
    shown = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    tell_left_out(int((~shown).sum()), annotations.file)
    return chosen[shown]


def clipped_xyxy(xywh: NDArray[np.float64], sizes_wh: NDArray[np.int64]) -> NDArray[np.float32]:
    """Boxes (N, 4) as x1, y1, x2, y2 within images of these widths and heights (N, 2)."""
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return corners.clip(0, np.tile(sizes_wh, 2)).astype(np.float32)


def tell_left_out(count: int, annotations: Path) -> None:
    """Log how many boxes were left out because there is nothing of their image in them."""
    if count:
        logger.warning("%s: boxes left out, without area or outside their images: %d", annotations, count)


def _boxes(
    annotations: _Table, sizes_wh: NDArray[np.int64], mended: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The boxes as stored (x, y, width, height) and clipped to their images (x1, y1, x2, y2)."""
    stored = annotations.column("bbox", is_box, BOX)
    xywh = np.array(stored, np.float64).reshape(-1, 4)
    clipped = clipped_xyxy(xywh, sizes_wh)
    if mended:
        return xywh, clipped
    annotations.refuse(
        (xywh[:, 2:] <= 0).any(axis=1),
        lambda row: f"has the box {stored[row]} of no area; width and height must be above 0",
    )
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    outside = (xyxy < -ROUNDING) | (xyxy > np.tile(sizes_wh, 2) + ROUNDING)
    outside |= clipped[:, [2, 3, 2, 3]] <= clipped[:, [0, 1, 0, 1]]
    annotations.refuse(
        outside.any(axis=1),
        lambda row: (
            f"has the box {stored[row]} (x, y, width, height) outside its image, "
            f"which is {sizes_wh[row, 0]} x {sizes_wh[row, 1]} pixels (width x height)"
        ),
    )
    return xywh, clipped


def _areas(annotations: _Table, xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """The stated areas, in square pixels; the box's own where none is stated."""
    areas = np.array(annotations.column("area", _is_area, "a finite number, 0 or more", default=math.nan), np.float64)
    return np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas)

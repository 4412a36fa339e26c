"""VisDrone's own annotations, as text files or in COCO form, with what they say is to be ignored.

Beside its ten classes VisDrone marks regions to be ignored (category 0) and other things (11). Neither is a target in
training nor counts in evaluation, whatever the class of a detection. COCO's counters know only crowds of one category,
in which any number of detections may lie unpunished, so each such box becomes a crowd of every class. An object that
lies mostly in an ignored region, or has score 0, becomes a crowd of its own class. All that is ignored still takes its
place among the 100 detections that an image and class may have.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisebox.data.coco import ROUNDING, CocoSplit, ImageRecord, parse_split, read_json, size_of, tell_left_out
from noisebox.errors import UserError, what_fits

CLASSES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip
CATEGORIES = ("ignored regions", *CLASSES, "others")  # by number in the text files
REGION, OTHER, UNCHOSEN = -1, -2, -3  # in place of labels
NOT_COUNTED = {"ignored-regions": REGION, "ignored-region": REGION, "others": OTHER, "other": OTHER}  # in lower case
INSIDE = 0.5  # the share of an object from which on it counts as lying in an ignored region
COLUMNS = ("left", "top", "width", "height", "score", "category", "truncation", "occlusion")
SUFFIXES = (".jpg", ".jpeg", ".png")


def read_visdrone(name: str, annotations: Path, images: Path, classes: Sequence[str] | None = None) -> CocoSplit:
    """Read and check a split: `annotations` is the folder of text files, one an image, or a COCO file.

    `classes` selects and orders some of CLASSES; None takes all. Boxes of no width or height, of which VisDrone has a
    few, are left out, and their number is logged. Raises UserError naming file and line, or file and annotation id.
    """
    for chosen in classes or ():
        if chosen not in CLASSES:
            raise UserError(f"{annotations}: VisDrone has no class {chosen!r}; {what_fits(chosen, CLASSES, 'it has')}")
    split = _read_folder(name, annotations, images) if annotations.is_dir() else _read_coco(name, annotations, images)
    return _honoured(split, tuple(classes or CLASSES))


def _honoured(split: CocoSplit, classes: tuple[str, ...]) -> CocoSplit:
    """The split in these classes, what is to be ignored as a crowd of each of them."""
    plain = [name.lower().replace(" ", "-").replace("_", "-") for name in split.classes]
    for name in classes:
        if name not in plain:
            raise UserError(f"{split.annotation_file} declares no category {name!r}")
    for name, spelt in zip(split.classes, plain, strict=True):
        if spelt not in (*CLASSES, *NOT_COUNTED):
            raise UserError(
                f"{split.annotation_file} declares the category {name!r}, which VisDrone has not; it has "
                f"{', '.join(CATEGORIES)}"
            )
    meaning = NOT_COUNTED | dict.fromkeys(CLASSES, UNCHOSEN) | {name: label for label, name in enumerate(classes)}
    label_of = np.array([meaning[spelt] for spelt in plain])
    return replace(
        split,
        classes=classes,
        category_ids=tuple(split.category_ids[plain.index(name)] for name in classes),
        images=tuple(_relabelled(record, label_of[record.labels], len(classes)) for record in split.images),
    )


def _relabelled(record: ImageRecord, labels: NDArray[np.int64], classes: int) -> ImageRecord:
    """First the objects of the chosen classes, then what is to be ignored, once for each class.

    `labels` (G,) are the record's in these classes, or REGION, OTHER, UNCHOSEN.
    """
    own, everywhere = np.flatnonzero(labels >= 0), np.flatnonzero((labels == REGION) | (labels == OTHER))
    inside = _share_inside(record.boxes_xyxy[own], record.boxes_xyxy[labels == REGION]) >= INSIDE
    rows = np.concatenate([own, np.repeat(everywhere, classes)])
    return replace(
        record,
        boxes_xyxy=record.boxes_xyxy[rows],
        labels=np.concatenate([labels[own], np.tile(np.arange(classes), len(everywhere))]),
        crowd=np.concatenate([record.crowd[own] | inside, np.ones(classes * len(everywhere), np.bool_)]),
        stored_xywh=record.stored_xywh[rows],
        areas=record.areas[rows],
    )


def _share_inside(boxes_xyxy: NDArray[np.float32], regions_xyxy: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest share (n,) of each box that one region covers."""
    boxes, regions = boxes_xyxy[:, None].astype(np.float64), regions_xyxy[None].astype(np.float64)
    sides = np.minimum(boxes[..., 2:], regions[..., 2:]) - np.maximum(boxes[..., :2], regions[..., :2])
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    largest: NDArray[np.float64] = np.max(sides.clip(0).prod(axis=-1) / areas, axis=1, initial=0.0)
    return largest


# The COCO form


def _read_coco(name: str, file: Path, images: Path) -> CocoSplit:
    content = read_json(file)
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        kept = [annotation for annotation in annotations if not _has_no_area(annotation)]
        tell_left_out(len(annotations) - len(kept), file)
        content = {**content, "annotations": kept}
    return parse_split(name, content, file, images)


def _has_no_area(annotation: Any) -> bool:
    box = annotation.get("bbox") if isinstance(annotation, dict) else None
    return isinstance(box, list) and len(box) == 4 and 0 in box[2:]


# The text form


def _read_folder(name: str, folder: Path, images: Path) -> CocoSplit:
    """A split of CATEGORIES; its images are those that have a text file, numbered from 1 in their names' order."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"{folder} holds no .txt file; VisDrone has one for each image")
    records, left_out = [], 0
    for number, file in enumerate(files, start=1):
        record, without_area = _read_text(number, file, images)
        records.append(record)
        left_out += without_area
    tell_left_out(left_out, folder)
    return CocoSplit(name, CATEGORIES, tuple(range(len(CATEGORIES))), tuple(records), folder)


def _read_text(number: int, file: Path, images: Path) -> tuple[ImageRecord, int]:
    """One image with all of its boxes, and how many boxes of no area were left out."""
    path = _image_of(file, images)
    width, height = size_of(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text ({error})") from None
    rows = []
    for place, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows.append(_numbers(line, width, height))
        except ValueError as error:
            raise UserError(f"{file}, line {place}: {error}") from None
    table = np.array([row for row in rows if 0 not in row[2:4]], np.float64).reshape(-1, len(COLUMNS))
    xywh = table[:, :4]
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    record = ImageRecord(
        id=number,
        file_name=path.name,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=corners.clip(0, [width, height, width, height]).astype(np.float32),
        labels=table[:, 5].astype(np.int64),
        crowd=table[:, 4] == 0,
        stored_xywh=xywh,
        areas=xywh[:, 2] * xywh[:, 3],
    )
    return record, len(rows) - len(table)


def _numbers(line: str, width: int, height: int) -> list[float]:
    """The COLUMNS of a line, which may end with one more comma; raises ValueError saying what does not fit."""
    fields = line.strip().removesuffix(",").split(",")
    if len(fields) != len(COLUMNS):
        raise ValueError(f"it has {len(fields)} values, but must have {len(COLUMNS)}: {','.join(COLUMNS)}")
    values = []
    for column, text in zip(COLUMNS, fields, strict=True):
        try:
            values.append(float(text))
        except ValueError:
            raise ValueError(f"{column} is {text.strip()!r}; it must be a number") from None
        if not math.isfinite(values[-1]):
            raise ValueError(f"{column} is {text.strip()}; it must be finite")
    x, y, wide, high, score, category = values[:6]
    if category not in range(len(CATEGORIES)):
        known = ", ".join(f"{k} {name}" for k, name in enumerate(CATEGORIES))
        raise ValueError(f"category {fields[5].strip()} is unknown; it must be one of: {known}")
    if score not in (0, 1):
        raise ValueError(f"score is {fields[4].strip()}; in an annotation it must be 1, or 0 for what is not to count")
    if wide < 0 or high < 0:
        raise ValueError(f"the box is {wide:g} x {high:g} pixels (width x height); neither may be negative")
    outside = x < -ROUNDING or y < -ROUNDING or x + wide > width + ROUNDING or y + high > height + ROUNDING
    beyond = min(x + wide, width) <= max(x, 0) or min(y + high, height) <= max(y, 0)
    if wide and high and (outside or beyond):
        raise ValueError(
            f"the box {', '.join(field.strip() for field in fields[:4])} (left, top, width, height) leaves its image, "
            f"which is {width} x {height} pixels (width x height)"
        )
    return values


def _image_of(file: Path, images: Path) -> Path:
    for suffix in SUFFIXES:
        if (path := images / f"{file.stem}{suffix}").is_file():
            return path
    raise UserError(f"{file} has no image: {images / file.stem} does not exist, whether {', '.join(SUFFIXES)}")

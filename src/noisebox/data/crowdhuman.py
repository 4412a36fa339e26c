"""CrowdHuman's annotations: a line of JSON for each image, people by their full boxes.

A full box reaches as far as the person does, out of the image too; it is clipped, as CrowdHuman's own evaluation does.
What is marked `ignore`, and whatever is no person (tag `mask`: a reflection, a crowd, a picture), is neither a target
in training nor counts in evaluation: a crowd.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noisebox.data.coco import CocoSplit, ImageRecord, is_box, mended_record, size_of, tell_left_out
from noisebox.errors import UserError

CLASSES = ("person",)


def read_crowdhuman(name: str, annotations: Path, images: Path, classes: Sequence[str] | None = None) -> CocoSplit:
    """Read and check a split: `annotations` is an .odgt file, whose image `ID` is `images/ID.jpg`. Images are numbered
    from 1 in the file's order; their sizes are read from their heads.

    `classes` may be left out, or be that of CrowdHuman. Boxes without area in their image are left out, and their
    number is logged. Raises UserError naming file and line.
    """
    for chosen in classes or ():
        if chosen not in CLASSES:
            raise UserError(f"{annotations}: CrowdHuman has no class {chosen!r}; it has {', '.join(CLASSES)}")
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{annotations} cannot be read as text ({error})") from None
    given, records, line_of = 0, list[ImageRecord](), dict[Path, int]()
    for place, line in enumerate(lines, start=1):
        if line.strip():
            try:
                record, boxes = _read(len(records) + 1, line, images)
                if line_of.setdefault(record.path, place) != place:
                    raise ValueError(
                        f"image {record.path.stem!r} is in line {line_of[record.path]} already; "
                        "each image may be there once"
                    )
            except ValueError as error:
                raise UserError(f"{annotations}, line {place}: {error}") from None
            records.append(record)
            given += boxes
    if not records:
        raise UserError(f"{annotations} has no line; CrowdHuman has one for each image")
    tell_left_out(given - sum(len(record.labels) for record in records), annotations)
    return CocoSplit(name, CLASSES, (1,), tuple(records), annotations)


def _read(number: int, line: str, images: Path) -> tuple[ImageRecord, int]:
    """One image, and how many boxes its line has; raises ValueError saying what does not fit."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not valid JSON ({error})") from None
    identity = entry.get("ID") if isinstance(entry, dict) else None
    boxes = entry.get("gtboxes") if isinstance(entry, dict) else None
    if not isinstance(identity, str) or not isinstance(boxes, list):
        raise ValueError('an image must be {"ID": "...", "gtboxes": [...]}')
    path = images / f"{identity}.jpg"
    try:
        there = path.parent == images and path.is_file()
    except OSError as error:
        raise ValueError(
            f"ID {identity[:20]!r}... of {len(identity)} letters names no file ({error.strerror}); "
            "it must be the name of an image, without .jpg"
        ) from None
    if not there:
        raise ValueError(f"image {identity!r} is missing: {path} does not exist")
    xywh, ignored = [], []
    for place, box in enumerate(boxes, start=1):
        if not isinstance(box, dict) or not is_box(box.get("fbox")):
            raise ValueError(f"box {place} of image {identity!r} has no fbox of four numbers [x, y, width, height]")
        xywh.append(box["fbox"])
        ignored.append(_is_ignored(box))
    return mended_record(number, path, size_of(path), xywh, [0] * len(xywh), ignored), len(xywh)


def _is_ignored(box: dict[str, Any]) -> bool:
    extra = box.get("extra")
    return box.get("tag") != "person" or (isinstance(extra, dict) and extra.get("ignore") == 1)

"""Objects365 in its second version: a COCO file whose images lie in patches, three of which were never published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noisebox.data.coco import CocoSplit, parse_split, read_json

UNPUBLISHED = (
    "patch16/objects365_v2_00908726.jpg",
    "patch6/objects365_v1_00320532.jpg",
    "patch6/objects365_v1_00320534.jpg",
)


def read_objects365(name: str, annotations: Path, images: Path, classes: Sequence[str] | None = None) -> CocoSplit:
    """Read and check a split: `images` is the folder that its patches were unpacked to, `patch0` and so on.

    `classes` as in `read_split`, and boxes are mended. Raises UserError naming file and image or annotation id.
    """
    content = read_json(annotations)
    rows, boxes = content.get("images"), content.get("annotations")
    if isinstance(rows, list) and isinstance(boxes, list):
        named = [_with_file_name(row) for row in rows]
        lost = [row.get("id") for row in named if isinstance(row, dict) and row.get("file_name") in UNPUBLISHED]
        kept = [box for box in boxes if not (isinstance(box, dict) and box.get("image_id") in lost)]
        published = [row for row in named if not (isinstance(row, dict) and row.get("id") in lost)]
        content = {**content, "images": published, "annotations": kept}
    return parse_split(name, content, annotations, images, classes, mended=True)


def _with_file_name(row: Any) -> Any:
    """An image of the file with the name that it has below the folder: its patch, and its own."""
    name = row.get("file_name") if isinstance(row, dict) else None
    return {**row, "file_name": "/".join(name.split("/")[-2:])} if isinstance(name, str) else row

"""LVIS: COCO's images under far more classes, for each of which only some images were searched (Gupta et al. 2019).

An image lists the classes that it was searched for in vain, and those of its own of which more may be there than are
annotated. So a detection counts only where its class was searched for; and where not all was annotated, one that finds
nothing is no mistake, which a crowd of the class over the whole image says. Of an image's detections 300 count.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from noisebox.data.coco import CocoSplit, Federated, ImageRecord, parse_split, read_json
from noisebox.errors import UserError

LIMIT = 300  # detections of an image that count
GROUPS = {"APr": "r", "APc": "c", "APf": "f"}
IN_VAIN, IN_PART = "neg_category_ids", "not_exhaustive_category_ids"


def read_lvis(name: str, annotations: Path, images: Path, classes: Sequence[str] | None = None) -> CocoSplit:
    """Read and check a split: `images` is the folder that holds train2017 and val2017, both of which a split of LVIS
    may draw from.

    `classes` as in `read_split`, and boxes are mended. Raises UserError naming file and image or annotation id.
    """
    content = read_json(annotations)
    rows = content.get("images")
    if isinstance(rows, list):
        content = {**content, "images": [_with_file_name(row) for row in rows]}
    split = parse_split(name, content, annotations, images, classes, mended=True)
    label_of = {identity: label for label, identity in enumerate(split.category_ids)}
    judged, records = {}, []
    for row, record in zip(content["images"], split.images, strict=True):
        in_vain, in_part = (_labels(row, key, label_of, annotations) for key in (IN_VAIN, IN_PART))
        judged[record.id] = frozenset([*in_vain, *record.labels.tolist()])
        records.append(_with_crowds(record, in_part))
    rules = Federated(judged, LIMIT, _groups(content["categories"], label_of))
    return replace(split, images=tuple(records), federated=rules)


def _groups(categories: list[dict[str, Any]], label_of: dict[int, int]) -> dict[str, tuple[int, ...]]:
    """The chosen labels that are rare, common and frequent, where the file says so, by the name of their mean AP."""
    groups: dict[str, tuple[int, ...]] = {}
    for name, frequency in GROUPS.items():
        chosen = [row["id"] for row in categories if row.get("frequency") == frequency and row["id"] in label_of]
        if chosen:
            groups[name] = tuple(label_of[identity] for identity in chosen)
    return groups


def _with_file_name(row: Any) -> Any:
    """An image of the file with the name below the folder of COCO's images, which LVIS gives by an address alone."""
    address = row.get("coco_url") if isinstance(row, dict) else None
    return {**row, "file_name": "/".join(address.split("/")[-2:])} if isinstance(address, str) else row


def _labels(row: dict[str, Any], key: str, label_of: dict[int, int], file: Path) -> list[int]:
    """The chosen ones among the classes that an image lists."""
    listed = row.get(key)
    if not isinstance(listed, list) or not all(type(identity) is int for identity in listed):
        raise UserError(
            f"{file}: image {row['id']} has no list {key!r} of category ids, which LVIS v1 has for each image"
        )
    return [label_of[identity] for identity in listed if identity in label_of]


def _with_crowds(record: ImageRecord, labels: list[int]) -> ImageRecord:
    """The record with crowds of these labels over the whole image."""
    count = len(labels)
    whole = np.tile([0.0, 0.0, record.width, record.height], (count, 1))
    return replace(
        record,
        boxes_xyxy=np.concatenate([record.boxes_xyxy, whole.astype(np.float32)]),
        labels=np.concatenate([record.labels, np.array(labels, np.int64)]),
        crowd=np.concatenate([record.crowd, np.ones(count, np.bool_)]),
        stored_xywh=np.concatenate([record.stored_xywh, whole]),
        areas=np.concatenate([record.areas, np.full(count, float(record.width * record.height))]),
    )

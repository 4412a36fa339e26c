"""Average precision and recall of detections as COCO counts them, with faster-coco-eval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from noisebox import garbage
from noisebox.data.coco import CocoSplit
from noisebox.structures import Detections

# The order of COCO's summary: precision over IoU 0.50:0.95, at 0.50, at 0.75, by object size; recall at 1, 10 and 100
# (in a federated split, as many as count) detections an image, by object size.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class DetectionMetrics:
    """`summary`: the numbers of NAMES, and the mean AP of a federated split's groups; `per_class`: AP of each class in
    the split's order. All from 0 to 100.

    nan stands for what the ground truth has no object of: a size, or a class, which is then left out of the means.
    """

    summary: dict[str, float]
    per_class: dict[str, float]

    @property
    def ap(self) -> float:
        """Mean AP over classes and IoU 0.50:0.95."""
        return self.summary["AP"]


def coco_metrics(split: CocoSplit, detections: Mapping[int, Detections]) -> DetectionMetrics:
    """Count detections, by image id, against a split; an image without an entry has none.

    At most 100 detections an image and class count, those of highest score; in a federated split all that are given,
    which `noisebox.evaluation.protocol.judged` chose by its rules. Raises ValueError for an image id that the split
    does not have.
    """
    split, detections = _numbered(split, detections)
    with garbage.left_alone():  # a mapping for every detection: among them it would take a third of the time
        truth = COCO(split.ground_truth())
        counter = COCOeval_faster(truth, truth.loadRes(to_coco_results(split, detections)), iouType="bbox")
        if split.federated:
            counter.params.maxDets = [1, 10, split.federated.limit]
        counter.run()
    # (IoU threshold, recall, category by rising id, size, detections an image), -1 where there is no ground truth
    precision: NDArray[np.float64] = counter.eval["precision"][..., 0, -1]
    place = {identity: k for k, identity in enumerate(counter.params.catIds)}
    summary = {name: _percent(value) for name, value in zip(NAMES, counter.stats[: len(NAMES)], strict=True)}
    by_label = [_percent(precision[:, :, place[identity]].mean()) for identity in split.category_ids]
    for name, labels in split.federated.groups.items() if split.federated else ():
        counted = [by_label[label] for label in labels if not math.isnan(by_label[label])]
        summary[name] = sum(counted) / len(counted) if counted else math.nan
    return DetectionMetrics(summary, dict(zip(split.classes, by_label, strict=True)))


def _numbered(split: CocoSplit, detections: Mapping[int, Detections]) -> tuple[CocoSplit, dict[int, Detections]]:
    """Images and categories under their places by rising id, which decide ties as the ids would: the counter keeps ids
    as floats, and takes two beyond 2**53 for one."""
    _refuse_unknown(split, detections)
    images = tuple(sorted(split.images, key=lambda record: record.id))
    place = {record.id: number for number, record in enumerate(images, 1)}
    category_place = {identity: number for number, identity in enumerate(sorted(split.category_ids), 1)}
    numbered = replace(
        split,
        images=tuple(replace(record, id=place[record.id]) for record in images),
        category_ids=tuple(category_place[identity] for identity in split.category_ids),
    )
    return numbered, {place[image_id]: found for image_id, found in detections.items()}


def _refuse_unknown(split: CocoSplit, detections: Mapping[int, Detections]) -> None:
    unknown = detections.keys() - {record.id for record in split.images}
    if unknown:
        raise ValueError(f"{split.name} has no image {min(unknown)}")


def to_coco_results(split: CocoSplit, detections: Mapping[int, Detections]) -> list[dict[str, Any]]:
    """Detections in the COCO results form, under the category ids of the split's own annotation file.

    Boxes become x, y, width, height in pixels. Raises ValueError for an image id that the split does not have.
    """
    _refuse_unknown(split, detections)
    results = []
    for image_id, found in detections.items():
        xyxy = found.boxes_xyxy.double()
        boxes = xyxy.clone()
        boxes[:, 2:] -= xyxy[:, :2]
        columns = (found.labels, boxes, found.scores.double())
        for label, box, score in zip(*(column.tolist() for column in columns), strict=True):
            results.append(
                {"image_id": image_id, "category_id": split.category_ids[label], "bbox": box, "score": score}
            )
    return results


def _percent(value: float) -> float:
    """COCO's -1 says that there is nothing to count."""
    return float("nan") if value == -1 else 100 * float(value)

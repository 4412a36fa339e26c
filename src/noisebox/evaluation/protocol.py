"""A detector measured in one pass: every way to sample that the protocols ask for, under its eval seeds.

Each image's features are computed once and shared; all eval seeds go through the head as one batch.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from noisebox import processes
from noisebox.config import RunConfig, Sampling
from noisebox.data.coco import CocoSplit, Federated
from noisebox.data.loader import evaluation_batches
from noisebox.evaluation.detection import DetectionMetrics, coco_metrics
from noisebox.evaluation.measuring import Asked, check_finite, timed_pass
from noisebox.evaluation.ongoing import Ongoing
from noisebox.progress import Progress
from noisebox.structures import Batch, Detections

if TYPE_CHECKING:
    from noisebox.models import Detector

COUNTED = 100  # detections an image and class that COCO's metrics look at


@dataclass
class Measurement:
    """What an evaluation gave.

    `metrics` and `detections` are keyed by (eval seed, sampling); of the detections of an image those are kept that
    metrics look at, see `counted` and `judged`. `seconds_per_image` by sampling: the encoder's share of one image plus
    one eval seed's share of the sampling.
    """

    metrics: dict[tuple[int, Sampling], DetectionMetrics] = field(default_factory=dict)
    detections: dict[tuple[int, Sampling], dict[int, Detections]] = field(default_factory=dict)
    seconds_per_image: dict[Sampling, float] = field(default_factory=dict)


def measure(
    model: "Detector",
    split: CocoSplit,
    config: RunConfig,
    asked: Asked,
    progress: Progress | None = None,
    ongoing: Ongoing | None = None,
) -> Measurement:
    """Evaluate a model on a split in every way asked, each process a share of the batches; all get the whole. The model
    is left in the mode it came in. What is `ongoing` is gone on with.

    Raises UserError naming the image when a score or box is not finite: weights are damaged, or fp16 overflowed.
    """
    keys = [(seed, sampling) for sampling, eval_seeds in asked.items() for seed in eval_seeds]
    measured = Measurement(detections={key: {} for key in keys})

    def keep(batch: Batch, sampling: Sampling, by_seed: list[list[Detections]]) -> None:
        for seed, found in zip(asked[sampling], by_seed, strict=True):
            of_image = zip(batch.image_ids, found, strict=True)
            for image, each in of_image:
                own = each.cpu()
                where = f"image {image}, {sampling.steps} steps, eval seed {seed}"
                check_finite([own.scores, own.boxes_xyxy], config, "scores or boxes", where)
                kept = judged(own, split.federated, image) if split.federated else counted(own)
                measured.detections[seed, sampling][image] = kept

    def restore(kept: list[Any]) -> None:
        measured.detections |= {key: _unpacked(*each) for key, each in zip(keys, kept, strict=True)}

    def kept() -> list[Any]:
        return [_packed(measured.detections[key]) for key in keys]

    ongoing = ongoing or Ongoing()
    taken = ongoing.begin(asked, restore)
    note = partial(ongoing.note, taken, kept)
    batches = evaluation_batches(split, config, shared=True, done=taken.batches)
    measured.seconds_per_image = timed_pass(model, batches, config, asked, model.detect, keep, taken, note, progress)
    for key in keys:
        measured.detections[key] = _of_all(measured.detections[key])
        measured.metrics[key] = coco_metrics(split, measured.detections[key])
    return measured


def _of_all(found: dict[int, Detections]) -> dict[int, Detections]:
    """The detections of all processes, by image id, in the order in which one process alone finds them."""
    if processes.count() == 1:
        return found
    every: dict[int, Detections] = {}
    for packed in processes.gathered(_packed(found)):
        every |= _unpacked(*packed)
    return every


def _packed(found: dict[int, Detections]) -> tuple[list[int], list[int], list[Tensor]]:
    """Detections by image as ids, counts, and three tensors, which travel faster than thousands."""
    rows = [vars(each).values() for each in found.values()]
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    return list(found), [len(each.scores) for each in found.values()], columns


def _unpacked(images: list[int], counts: list[int], columns: list[Tensor]) -> dict[int, Detections]:
    parts = zip(*(torch.split(column, counts) for column in columns), strict=True)
    return {image: Detections(*part) for image, part in zip(images, parts, strict=True)}


def counted(found: Detections) -> Detections:
    """The COUNTED best of each class, still in falling order of score; COCO's metrics are the same without the rest.

    An ensemble over many steps finds thousands of boxes an image, and an evaluation holds all its ways at once.
    """
    if len(found.scores) <= COUNTED:
        return found
    rank = one_hot(found.labels).cumsum(0).gather(1, found.labels[:, None])[:, 0]
    return _those(found, rank <= COUNTED)


def judged(found: Detections, rules: Federated, image_id: int) -> Detections:
    """Of an image's best detections those whose class the image was searched for, in falling order of score."""
    best = _those(found, torch.arange(len(found.labels)) < rules.limit)
    searched = torch.tensor(sorted(rules.judged[image_id]), dtype=best.labels.dtype)
    return _those(best, torch.isin(best.labels, searched))


def _those(found: Detections, kept: Tensor) -> Detections:
    return Detections(found.boxes_xyxy[kept], found.scores[kept], found.labels[kept])

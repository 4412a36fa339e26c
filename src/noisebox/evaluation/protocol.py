"""A detector measured in one pass: every way to sample that the protocols ask for, under its eval seeds.

Each image's features are computed once and shared; all eval seeds go through the head as one batch.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch.nn.functional import one_hot

from noisebox.config import RunConfig, Sampling
from noisebox.data.coco import CocoSplit
from noisebox.data.loader import evaluation_batches
from noisebox.evaluation.detection import DetectionMetrics, coco_metrics
from noisebox.evaluation.measuring import Asked, timed_pass
from noisebox.progress import Progress
from noisebox.structures import Batch, Detections

if TYPE_CHECKING:
    from noisebox.models import Detector

COUNTED = 100  # detections an image and class that COCO's metrics look at


@dataclass
class Measurement:
    """What an evaluation gave.

    `metrics` and `detections` are keyed by (eval seed, sampling); of the detections of an image and class only the
    COUNTED best are kept, as no metric looks at more. `seconds_per_image` by sampling: the encoder's share of one image
    plus one eval seed's share of the sampling.
    """

    metrics: dict[tuple[int, Sampling], DetectionMetrics] = field(default_factory=dict)
    detections: dict[tuple[int, Sampling], dict[int, Detections]] = field(default_factory=dict)
    seconds_per_image: dict[Sampling, float] = field(default_factory=dict)


def measure(
    model: "Detector", split: CocoSplit, config: RunConfig, asked: Asked, progress: Progress | None = None
) -> Measurement:
    """Evaluate a model on a split in every way asked; the model is left in the mode it came in."""
    keys = [(seed, sampling) for sampling, eval_seeds in asked.items() for seed in eval_seeds]
    measured = Measurement(detections={key: {} for key in keys})

    def keep(batch: Batch, sampling: Sampling, by_seed: list[list[Detections]]) -> None:
        for seed, found in zip(asked[sampling], by_seed, strict=True):
            of_image = zip(batch.image_ids, found, strict=True)
            measured.detections[seed, sampling].update({image: counted(each.cpu()) for image, each in of_image})

    batches = evaluation_batches(split, config)
    measured.seconds_per_image = timed_pass(model, batches, config, asked, model.detect, keep, progress)
    for key in keys:
        measured.metrics[key] = coco_metrics(split, measured.detections[key])
    return measured


def counted(found: Detections) -> Detections:
    """The COUNTED best of each class, still in falling order of score; COCO's metrics are the same without the rest.

    An ensemble over many steps finds thousands of boxes an image, and an evaluation holds all its ways at once.
    """
    if len(found.scores) <= COUNTED:
        return found
    rank = one_hot(found.labels).cumsum(0).gather(1, found.labels[:, None])[:, 0]
    kept = rank <= COUNTED
    return Detections(found.boxes_xyxy[kept], found.scores[kept], found.labels[kept])

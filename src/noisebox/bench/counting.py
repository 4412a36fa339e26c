"""The time of counting AP over a whole validation split, and of pycocotools, the judge, where it is installed."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from noisebox.bench.made import record, split_of
from noisebox.bench.settings import BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.data.coco import CocoSplit
from noisebox.evaluation.detection import coco_metrics, to_coco_results
from noisebox.randomness import numpy_generator
from noisebox.structures import Detections

IMAGES, FOUND = 5000, 100  # by default, and detections an image
STORED, JITTER = (480, 640), 4.0  # pixels: of an image, and of a detection beside its object


def timings(settings: BenchSettings) -> list[Timing]:
    images = settings.items or IMAGES
    records = [record(index + 1, Path(f"{index}.jpg"), STORED, settings) for index in range(images)]
    split = split_of(records, settings)
    detections = dict(found_in(split))
    work: dict[str, Callable[[], object]] = {"Noisebox": lambda: coco_metrics(split, detections)}
    if find_spec("pycocotools"):
        work["pycocotools"] = lambda: _judge(split, detections)
    return [
        timed(
            count,
            settings,
            part="counting",
            what=name,
            unit=f"{images} images",
            images=images,
        )
        for name, count in work.items()
    ]


def found_in(split: CocoSplit) -> Iterator[tuple[int, Detections]]:
    """Detections near the objects of each image, every object found many times over."""
    for image in split.images:
        random = numpy_generator(0, "bench detections", image.id)
        whose = random.integers(0, max(1, len(image.labels)), FOUND if len(image.labels) else 0)
        boxes = image.boxes_xyxy[whose] + random.normal(0, JITTER, (len(whose), 4))
        labels = np.where(random.random(len(whose)) < 0.8, image.labels[whose], 0)
        scores = np.sort(random.random(len(whose)))[::-1].copy()
        found = torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(labels)
        yield image.id, Detections(*found)


def _judge(split: CocoSplit, detections: Mapping[int, Detections]) -> list[float]:
    """The twelve numbers as pycocotools counts them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = split.ground_truth()
        truth.createIndex()
        counter = COCOeval(truth, truth.loadRes(to_coco_results(split, detections)), "bbox")
        counter.evaluate()
        counter.accumulate()
        counter.summarize()
    return [float(value) for value in counter.stats]

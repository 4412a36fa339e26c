"""Counting detections: pycocotools is the judge of the twelve numbers and of each class's own."""

import contextlib
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import content, write
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from noisebox.data.coco import CocoSplit, ImageRecord, read_split
from noisebox.evaluation.detection import NAMES, DetectionMetrics, coco_metrics, to_coco_results
from noisebox.structures import Detections

CLASSES, CATEGORY_IDS = ("a", "b", "c", "absent"), (9, 0, 4, 2)


def random_boxes(generator: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    """Boxes x, y, width, height of all three of COCO's sizes, on quarter pixels so that IoUs and scores can tie."""
    sides = np.exp(generator.uniform(np.log(4), np.log(size / 2), (count, 2)))
    corners = generator.uniform(0, size - sides)
    return np.round(4 * np.concatenate([corners, sides], axis=1)) / 4


def random_split(generator: np.random.Generator, images: int = 6, size: int = 400) -> CocoSplit:
    """Ground truth without class 3, with crowds, areas unlike the boxes', and one empty image."""
    records = []
    for k in range(images):
        count = 0 if k == 1 else int(generator.integers(1, 12))
        xywh = random_boxes(generator, count, size)
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        records.append(
            ImageRecord(
                id=100 - 7 * k,
                file_name=f"{k}.png",
                path=Path(f"{k}.png"),
                width=size,
                height=size,
                boxes_xyxy=xyxy.astype(np.float32),
                labels=generator.integers(0, 3, count),
                crowd=generator.random(count) < 0.15,
                stored_xywh=xywh,
                areas=xywh[:, 2] * xywh[:, 3] * generator.uniform(0.5, 1, count),
            )
        )
    return CocoSplit("random", CLASSES, CATEGORY_IDS, tuple(records), Path("random.json"))


def random_detections(generator: np.random.Generator, split: CocoSplit) -> dict[int, Detections]:
    """Jittered ground truth and noise, with tied scores; image 2 has none, image 3 well over 100."""
    found = {}
    for k, record in enumerate(split.images):
        if k == 2:
            continue
        times, noise = (40, 90) if k == 3 else (2, 10)
        boxes = np.repeat(record.boxes_xyxy, times, axis=0)
        labels = np.where(generator.random(len(boxes)) < 0.8, np.repeat(record.labels, times), 0)
        boxes = boxes + generator.normal(0, 0.06, boxes.shape) * (boxes[:, [2, 3, 2, 3]] - boxes[:, [0, 1, 0, 1]])
        stray = random_boxes(generator, noise, record.width)
        stray[:, 2:] += stray[:, :2]
        boxes = np.concatenate([boxes, stray]).clip(0, record.width)
        labels = np.concatenate([labels, generator.integers(0, 4, noise)])
        scores = np.sort(np.round(generator.random(len(boxes)), 2))[::-1]
        order = generator.permutation(len(boxes))
        found[record.id] = Detections(
            torch.tensor(boxes[order], dtype=torch.float32),
            torch.tensor(scores.copy(), dtype=torch.float32),
            torch.tensor(labels[order]),
        )
    return found


def judged(split: CocoSplit, results: list[dict[str, Any]]) -> tuple[list[float], dict[str, float]]:
    """What pycocotools says: the twelve numbers, and AP of each class evaluated alone."""

    def stats(category_ids: tuple[int, ...]) -> list[float]:
        counter = COCOeval(truth, found, "bbox")
        counter.params.catIds = list(category_ids)
        counter.evaluate()
        counter.accumulate()
        counter.summarize()
        return [math.nan if value == -1 else 100 * float(value) for value in counter.stats]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = split.ground_truth()
        truth.createIndex()
        found = truth.loadRes(results)
        alone = {name: stats((k,))[0] for name, k in zip(split.classes, split.category_ids, strict=True)}
        return stats(split.category_ids), alone


def assert_equal(metrics: DetectionMetrics, twelve: list[float], alone: dict[str, float]) -> None:
    assert tuple(metrics.summary) == NAMES
    assert list(metrics.summary.values()) == pytest.approx(twelve, abs=1e-9, nan_ok=True)
    assert metrics.per_class == pytest.approx(alone, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_pycocotools_counts_the_same(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(seed)
    split = random_split(generator)
    detections = random_detections(generator, split)
    assert max(len(found.scores) for found in detections.values()) > 130
    metrics = coco_metrics(split, detections)
    assert capfd.readouterr() == ("", ""), "nothing is printed"
    assert_equal(metrics, *judged(split, to_coco_results(split, detections)))
    assert math.isnan(metrics.per_class["absent"])
    present = [value for value in metrics.per_class.values() if not math.isnan(value)]
    assert metrics.ap == pytest.approx(np.mean(present), abs=1e-9), "the absent class is left out of the mean"
    assert 5 < metrics.ap < 95


def test_ids_that_a_float_would_take_for_one_another_count_alike() -> None:
    generator, first = np.random.default_rng(3), 2**53
    split = random_split(generator)
    images = tuple(replace(record, id=first + place) for place, record in enumerate(split.images))
    split = replace(split, images=images, category_ids=tuple(first + identity for identity in CATEGORY_IDS))
    detections = random_detections(generator, split)
    assert_equal(coco_metrics(split, detections), *judged(split, to_coco_results(split, detections)))


def test_the_order_of_images_does_not_matter() -> None:
    generator = np.random.default_rng(9)
    split = random_split(generator)
    detections = random_detections(generator, split)
    backwards = {image_id: detections[image_id] for image_id in reversed(detections)}
    assert coco_metrics(split, detections).summary == pytest.approx(coco_metrics(split, backwards).summary, nan_ok=True)


def test_no_detection_at_all() -> None:
    split = random_split(np.random.default_rng(0))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    for detections in ({}, {split.images[0].id: nothing}):
        metrics = coco_metrics(split, detections)
        assert metrics.summary["AP"] == metrics.summary["AR100"] == metrics.per_class["a"] == 0
        assert math.isnan(metrics.per_class["absent"])


def test_no_ground_truth_at_all() -> None:
    generator = np.random.default_rng(0)
    split = random_split(generator)
    detections = random_detections(generator, split)
    metrics = coco_metrics(CocoSplit("empty", CLASSES, CATEGORY_IDS, split.images[1:2], Path("e.json")), {})
    assert all(map(math.isnan, [*metrics.summary.values(), *metrics.per_class.values()]))
    with pytest.raises(ValueError, match="has no image"):
        coco_metrics(CocoSplit("empty", CLASSES, CATEGORY_IDS, split.images[1:2], Path("e.json")), detections)


def test_results_count_against_the_users_own_file(tmp_path: Path) -> None:
    """Perfect detections of two of three classes, counted by pycocotools against the annotation file as it lies."""
    file, images = write(tmp_path, "val", content())
    split = read_split("signs/val", file, images, ["dog", "cat"])
    detections = {
        record.id: Detections(
            torch.tensor(record.boxes_xyxy), torch.ones(len(record.labels)), torch.tensor(record.labels)
        )
        for record in split.images
    }
    assert coco_metrics(split, detections).per_class == pytest.approx({"dog": 100, "cat": 100})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        counter = COCOeval(truth, truth.loadRes(to_coco_results(split, detections)), "bbox")
        counter.evaluate()
        counter.accumulate()
        counter.summarize()
    assert counter.stats[0] == pytest.approx(1)

"""The breakdown of an AP against pycocotools and faster-coco-eval; its errors, repaired and counted again."""

import contextlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from noisebox.data.coco import CocoSplit, ImageRecord
from noisebox.evaluation.breakdown import CONFIDENT, KINDS, SIZES, breakdown
from noisebox.evaluation.detection import coco_metrics, to_coco_results
from noisebox.randomness import numpy_generator
from noisebox.structures import Detections

SIDE = 400
CLASSES = ("dog", "cat", "cow", "absent")


def make_split(objects: Mapping[int, list[tuple[list[float], int, bool]]]) -> CocoSplit:
    """Images by id, each with its objects: box x1, y1, x2, y2, label, and whether it is a crowd."""
    images = []
    for image_id, own in objects.items():
        xyxy = np.array([box for box, _, _ in own], np.float64).reshape(-1, 4)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        images.append(
            ImageRecord(
                id=image_id,
                file_name=f"{image_id}.png",
                path=Path(f"{image_id}.png"),
                width=SIDE,
                height=SIDE,
                boxes_xyxy=xyxy.astype(np.float32),
                labels=np.array([label for _, label, _ in own], np.int64),
                crowd=np.array([crowd for _, _, crowd in own], np.bool_),
                stored_xywh=xywh,
                areas=xywh[:, 2] * xywh[:, 3],
            )
        )
    return CocoSplit("val", CLASSES, (7, 2, 5, 11), tuple(images), Path("val.json"))


def make_found(found: list[tuple[list[float], int, float]]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in found], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([score for _, _, score in found], dtype=torch.float32)
    order = scores.argsort(descending=True, stable=True)
    labels = torch.tensor([label for _, label, _ in found], dtype=torch.int64)
    return Detections(boxes[order], scores[order], labels[order])


@st.composite
def scenes(draw: st.DrawFn) -> tuple[CocoSplit, dict[int, Detections]]:
    """Objects of all sizes, some of them crowds, and boxes near and far from them, with scores that repeat."""
    random = numpy_generator(draw(st.integers(0, 10**6)), "scene")
    objects, found = {}, {}
    for image_id in random.permutation(draw(st.integers(1, 5))).tolist():
        own = []
        for _ in range(random.integers(0, 6)):
            size = random.choice([20, 60, 150]) * random.uniform(0.7, 1.4, 2)
            corner = random.uniform(0, SIDE - size)
            own.append(([*corner, *(corner + size)], int(random.integers(3)), bool(random.random() < 0.1)))
        objects[image_id] = own
        boxes = []
        for _ in range(random.integers(0, 15)):
            if own and random.random() < 0.85:
                box, label, _ = own[random.integers(len(own))]
                reach = np.tile([box[2] - box[0], box[3] - box[1]], 2)
                moved = np.array(box) + random.normal(0, random.choice([0.03, 0.12, 0.3])) * reach
                label = label if random.random() < 0.7 else int(random.integers(4))
            else:
                corner = random.uniform(0, SIDE - 60, 2)
                moved, label = np.concatenate([corner, corner + random.uniform(5, 60, 2)]), int(random.integers(4))
            boxes.append((moved.tolist(), label, float(random.integers(1, 20) / 20)))
        found[image_id] = make_found(boxes)
    return make_split(objects), found


def close(one: object, other: float) -> bool:
    """Equality to the four decimals that are written, where None stands for nan."""
    return math.isnan(other) if one is None else one == pytest.approx(other, abs=6e-5)


def mean(values: list[float | None]) -> float:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else math.nan


@settings(max_examples=60)
@given(scenes())
def test_ap_is_that_of_faster_coco_eval(scene: tuple[CocoSplit, dict[int, Detections]]) -> None:
    split, found = scene
    told, metrics = breakdown(split, [found]), coco_metrics(split, found)
    json.dumps(told, allow_nan=False)
    assert close(told["AP50"], metrics.summary["AP50"])
    for iou, name in (("0.5", "AP50"), ("0.75", "AP75")):
        areas = [None if row[0] is None else 100 * float(np.mean(row)) for row in told["curves"][iou]]
        assert mean(areas) == pytest.approx(metrics.summary[name], abs=6e-3, nan_ok=True)
    for size, name in zip(SIZES, ("AP", "APs", "APm", "APl"), strict=True):
        assert mean(told["sizes"][size]) == pytest.approx(metrics.summary[name], abs=6e-5, nan_ok=True)
    for name, ap in zip(CLASSES, told["sizes"]["all"], strict=True):
        assert close(ap, metrics.per_class[name])
    assert told["objects"] == list(split.objects_per_class().values())


@settings(max_examples=30)
@given(scenes())
def test_curves_are_those_of_pycocotools(scene: tuple[CocoSplit, dict[int, Detections]]) -> None:
    split, found = scene
    results = to_coco_results(split, found)
    if not results or not any(len(image.labels) for image in split.images):
        return
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = split.ground_truth()
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
    place = {identity: k for k, identity in enumerate(judge.params.catIds)}
    told = breakdown(split, [found])
    for iou, threshold in (("0.5", 0), ("0.75", 5)):
        for row, identity in zip(told["curves"][iou], split.category_ids, strict=True):
            expected = judge.eval["precision"][threshold, :, place[identity], 0, -1]
            own = [-1.0 if value is None else value for value in row]
            assert own == pytest.approx(expected.tolist(), abs=6e-5)


# Errors: told apart by a reference with loops, and repaired for COCO to count again


def reference(split: CocoSplit, found: dict[int, Detections]) -> dict[tuple[int, int], tuple[str, int]]:
    """(image, place of the detection) → its kind and the object it is about (-1: none), for all that count."""
    kinds = {}
    for image in split.images:
        if image.id not in found:
            continue
        own = found[image.id]
        xywh = torch.from_numpy(image.stored_xywh)
        iou = box_iou(own.boxes_xyxy.double(), torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))
        real = [g for g in range(len(image.labels)) if not image.crowd[g]]
        taken: set[int] = set()
        for d, label in enumerate(own.labels.tolist()):
            same = sorted((g for g in real if image.labels[g] == label), key=lambda g: -iou[d, g])
            other = sorted((g for g in real if image.labels[g] != label), key=lambda g: -iou[d, g])
            free = [g for g in same if g not in taken and iou[d, g] >= 0.5]
            if free:
                taken.add(free[0])
                kinds[image.id, d] = ("true", free[0])
            elif _on_a_crowd(image, own.boxes_xyxy[d].double().numpy(), label):
                continue
            elif same and iou[d, same[0]] >= 0.5:
                kinds[image.id, d] = ("duplicate", same[0])
            elif other and iou[d, other[0]] >= 0.5:
                kinds[image.id, d] = ("class", other[0])
            elif same and iou[d, same[0]] >= 0.1:
                kinds[image.id, d] = ("location", same[0])
            elif other and iou[d, other[0]] >= 0.1:
                kinds[image.id, d] = ("both", other[0])
            else:
                kinds[image.id, d] = ("background", -1)
    return kinds


def _on_a_crowd(image: ImageRecord, box: np.ndarray, label: int) -> bool:
    """Whether at least half of the box lies in a crowd of its class."""
    for (x, y, w, h), own, crowd in zip(image.stored_xywh, image.labels, image.crowd, strict=True):
        wide, high = min(box[2], x + w) - max(box[0], x), min(box[3], y + h) - max(box[1], y)
        area = (box[2] - box[0]) * (box[3] - box[1])
        if crowd and own == label and max(wide, 0) * max(high, 0) >= 0.5 * area:
            return True
    return False


def repaired(
    split: CocoSplit, found: dict[int, Detections], kinds: dict[tuple[int, int], tuple[str, int]], wrong: str
) -> tuple[CocoSplit, dict[int, Detections]]:
    """Ground truth and detections once every error of one kind is put right."""
    if wrong == "missed":
        known = {(i, g) for (i, _), (kind, g) in kinds.items() if kind in ("true", "class", "location")}
        left = []
        for image in split.images:
            stays = np.array([image.crowd[g] or (image.id, g) in known for g in range(len(image.labels))], np.bool_)
            columns = ("boxes_xyxy", "labels", "crowd", "stored_xywh", "areas")
            left.append(replace(image, **{name: getattr(image, name)[stays] for name in columns}))
        return replace(split, images=tuple(left)), found
    moved = {}
    images = {image.id: image for image in split.images}
    for image_id, own in found.items():
        boxes, labels = own.boxes_xyxy.clone(), own.labels.clone()
        counts: list[bool] = []
        taken: set[int] = set()
        for d in range(len(labels)):
            kind, g = kinds.get((image_id, d), ("ignored", -1))
            if kind == wrong and wrong in ("class", "location"):
                boxes[d] = torch.from_numpy(images[image_id].boxes_xyxy[g])
                labels[d] = int(images[image_id].labels[g])
            if kind == "true" or (kind == wrong and wrong in ("class", "location")):
                counts.append(g not in taken)
                taken.add(g)
            else:
                counts.append(kind != wrong)
        kept = torch.tensor(counts, dtype=torch.bool)
        moved[image_id] = Detections(boxes[kept], own.scores[kept], labels[kept])
    return split, moved


@settings(max_examples=60)
@given(scenes())
def test_an_error_costs_what_coco_counts_more_without_it(scene: tuple[CocoSplit, dict[int, Detections]]) -> None:
    split, found = scene
    kinds = reference(split, found)
    told = breakdown(split, [found])
    before = coco_metrics(split, found).summary["AP50"]
    for wrong in KINDS:
        error = told["errors"][wrong]
        truth, moved = repaired(split, found, kinds, wrong)
        after = coco_metrics(truth, moved).summary["AP50"]
        if wrong == "missed":
            objects, left = sum(split.objects_per_class().values()), sum(truth.objects_per_class().values())
            assert error["count"] == objects - left
            after = 100.0 if objects and not left else after
        else:
            assert error["count"] == [kind for kind, _ in kinds.values()].count(wrong)
        assert close(error["cost"], after - before), wrong


def test_one_error_of_each_kind() -> None:
    """By hand: an object found and found again, one taken for another class, one badly located, one never seen."""
    dog, cat, cow, lost = [0.0, 0.0, 40.0, 40.0], [100.0, 0.0, 140.0, 40.0], [200.0, 0.0, 240.0, 40.0], [300.0] * 4
    lost = [300.0, 300.0, 340.0, 340.0]
    split = make_split({1: [(dog, 0, False), (cat, 1, False), (cow, 2, False), (lost, 2, False)]})
    found = [
        (dog, 0, 0.9),
        (dog, 0, 0.8),  # duplicate
        (cat, 0, 0.7),  # class
        ([220.0, 0.0, 260.0, 40.0], 2, 0.6),  # location: IoU 1/3
        ([120.0, 0.0, 160.0, 40.0], 2, 0.5),  # both: IoU 1/3 with the cat
        ([0.0, 300.0, 40.0, 340.0], 1, 0.4),  # background
    ]
    told = breakdown(split, [{1: make_found(found)}])
    assert {kind: error["count"] for kind, error in told["errors"].items() if kind in KINDS} == dict.fromkeys(KINDS, 1)
    assert told["AP50"] == pytest.approx(100 / 3, abs=1e-4)  # the dogs alone
    costs = {kind: told["errors"][kind]["cost"] for kind in KINDS}
    # The cat is found, above the box on background; at the cows, one of two is found first: recall up to a half, 51 of
    # 101 points.
    half = 100 * 51 / 101
    expected = {"class": 100 / 3, "location": half / 3, "both": 0, "duplicate": 0, "background": 0, "missed": 0}
    assert costs == pytest.approx(expected, abs=1e-4)
    counts = np.array(told["confusion"]["counts"])
    dog_row, cat_row, cow_row, _, background = counts.tolist()
    assert dog_row == [1, 0, 0, 0, 0]
    assert cat_row == [1, 0, 0, 0, 0]
    assert cow_row == [0, 0, 0, 0, 2]
    assert background == [1, 1, 2, 0, 0]


def test_missing_everything_costs_everything() -> None:
    split = make_split({1: [([0.0, 0.0, 40.0, 40.0], 0, False)], 2: []})
    told = breakdown(split, [{}])
    assert told["AP50"] == 0
    assert told["errors"]["missed"] == {"count": 1, "cost": 100.0}
    assert told["curves"]["0.5"] == [[0.0] * 101, *[[None] * 101] * 3]


@settings(max_examples=40)
@given(scenes())
def test_a_confusion_matrix_counts_every_object_and_every_confident_detection_once(
    scene: tuple[CocoSplit, dict[int, Detections]],
) -> None:
    split, found = scene
    counts = np.array(breakdown(split, [found])["confusion"]["counts"])
    assert counts[:-1].sum(1).tolist() == list(split.objects_per_class().values())
    if not any(image.crowd.any() for image in split.images):
        confident = torch.cat([each.labels[each.scores >= CONFIDENT] for each in found.values()])
        assert counts[:, :-1].sum(0).tolist() == confident.bincount(minlength=4).tolist()
    assert counts[-1, -1] == 0


@settings(max_examples=20)
@given(scenes(), st.integers(0, 10**6))
def test_several_eval_seeds_are_averaged_and_counts_added_up(
    scene: tuple[CocoSplit, dict[int, Detections]], seed: int
) -> None:
    split, first = scene
    kept = {
        image: torch.from_numpy(numpy_generator(seed, "kept", image).random(len(f.scores)) < 0.5)
        for image, f in first.items()
    }
    second = {i: Detections(f.boxes_xyxy[kept[i]], f.scores[kept[i]], f.labels[kept[i]]) for i, f in first.items()}
    one, other, both = (breakdown(split, every) for every in ([first], [second], [first, second]))
    assert close_to_mean(both["AP50"], one["AP50"], other["AP50"])
    for name in ("curves", "sizes"):
        for key in both[name]:
            flat = [np.array(told[name][key], np.float64).ravel() for told in (both, one, other)]
            assert all(close_to_mean(*values) for values in zip(*flat, strict=True))
    counts = [np.array(told["confusion"]["counts"]) for told in (both, one, other)]
    assert (counts[0] == counts[1] + counts[2]).all()
    for kind in KINDS:
        errors = [told["errors"][kind] for told in (both, one, other)]
        assert errors[0]["count"] == errors[1]["count"] + errors[2]["count"]
        assert close_to_mean(*(error["cost"] for error in errors))


def close_to_mean(both: float | None, one: float | None, other: float | None) -> bool:
    values = np.array([both, one, other], np.float64)
    return bool(np.isnan(values).all()) or abs(values[0] - values[1:].mean()) < 1.1e-4

"""VisDrone's files: a miniature in its own layout, both forms alike, every fault a sentence, ignored regions free."""

import contextlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from noisebox import graph
from noisebox.config import resolve
from noisebox.data.catalog import open_split, prepare_dataset
from noisebox.data.coco import CocoSplit
from noisebox.data.loader import evaluation_batches
from noisebox.data.visdrone import CATEGORIES, CLASSES, read_visdrone
from noisebox.errors import UserError
from noisebox.evaluation.detection import NAMES, DetectionMetrics, coco_metrics, to_coco_results
from noisebox.structures import Detections

WIDTH, HEIGHT = 96, 64
Row = Sequence[int]  # left, top, width, height, score, category, truncation, occlusion

MINIATURE: dict[str, list[Row]] = {
    "0000001_02999_d_0000005": [
        (10, 8, 20, 12, 1, 4, 0, 0),  # a car
        (40, 30, 5, 9, 1, 1, 0, 1),  # a pedestrian
        (0, 40, 30, 24, 0, 0, 0, 0),  # a region to be ignored
        (4, 44, 10, 8, 1, 4, 0, 0),  # a car in it
        (70, 10, 16, 12, 0, 11, 0, 0),  # something else
    ],
    "0000002_00005_d_0000014": [
        (60, 20, 24, 14, 1, 9, 1, 2),  # a bus
        (50, 50, 8, 8, 0, 10, 0, 0),  # a motor that is not to count
        (30, 30, 0, 7, 1, 4, 0, 0),  # no width
        (31, 30, 9, 0, 0, 0, 0, 0),  # no height
    ],
    "9999952_00000_d_0000017": [],
}


def write_text(folder: Path, rows: dict[str, list[Row]], ending: str = "\n") -> tuple[Path, Path]:
    """`annotations/*.txt` and `images/*.jpg` in `folder`; returns both, as `read_visdrone` takes them."""
    annotations, images = folder / "annotations", folder / "images"
    annotations.mkdir(parents=True, exist_ok=True)
    for stem, lines in rows.items():
        text = "".join(",".join(map(str, row)) + ending for row in lines)
        (annotations / f"{stem}.txt").write_text(text)
    write_images(images, rows)
    return annotations, images


def write_images(images: Path, rows: dict[str, list[Row]]) -> None:
    images.mkdir(parents=True, exist_ok=True)
    for stem in rows:
        if not (images / f"{stem}.jpg").exists():
            Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(images / f"{stem}.jpg")


def coco_form(rows: dict[str, list[Row]], ids: Sequence[int] = range(12), names: Sequence[str] = CATEGORIES) -> Any:
    """The same annotations as a COCO file whose category k has the id `ids[k]`."""
    annotations = [
        {"id": 0, "image_id": k, "category_id": ids[row[5]], "bbox": list(row[:4]), "iscrowd": int(row[4] == 0)}
        for k, stem in enumerate(sorted(rows), start=1)
        for row in rows[stem]
    ]
    return {
        "images": [
            {"id": k, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT}
            for k, stem in enumerate(sorted(rows), start=1)
        ],
        "annotations": [entry | {"id": number} for number, entry in enumerate(annotations, start=1)],
        "categories": [{"id": identity, "name": name} for identity, name in zip(ids, names, strict=True)],
    }


def read(folder: Path, rows: dict[str, list[Row]] = MINIATURE, classes: list[str] | None = None) -> CocoSplit:
    return read_visdrone("visdrone/val", *write_text(folder, rows), classes)


# What is read


def test_the_text_form_becomes_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        split = read(tmp_path)
    assert caplog.messages == [f"{tmp_path / 'annotations'}: boxes left out, without area or outside their images: 2"]
    assert (split.classes, split.category_ids) == (CLASSES, tuple(range(1, 11)))
    first, second, empty = split.images
    assert (first.id, first.file_name, first.width, first.height) == (1, "0000001_02999_d_0000005.jpg", WIDTH, HEIGHT)
    assert first.boxes_xyxy[:3].tolist() == [[10, 8, 30, 20], [40, 30, 45, 39], [4, 44, 14, 52]]
    assert first.labels[:3].tolist() == [3, 0, 3] and first.crowd[:3].tolist() == [False, False, True]
    assert first.labels[3:].tolist() == [*range(10), *range(10)] and first.crowd[3:].all()
    assert {tuple(box) for box in first.stored_xywh[3:].tolist()} == {(0, 40, 30, 24), (70, 10, 16, 12)}
    assert first.areas[:3].tolist() == [240, 45, 80]
    assert second.labels.tolist() == [8, 9] and second.crowd.tolist() == [False, True]
    assert empty.boxes_xyxy.shape == (0, 4)
    assert split.objects_per_class() == dict.fromkeys(CLASSES, 0) | {"car": 1, "pedestrian": 1, "bus": 1}


@pytest.mark.parametrize("ending", [",\n", "\r\n", " \n\n"])
def test_endings_of_lines_do_not_matter(tmp_path: Path, ending: str) -> None:
    one = read(tmp_path / "one").ground_truth()
    other = read_visdrone("visdrone/val", *write_text(tmp_path / "other", MINIATURE, ending)).ground_truth()
    assert one == other


def test_classes_select_and_order(tmp_path: Path) -> None:
    split = read(tmp_path, classes=["bus", "car"])
    assert (split.classes, split.category_ids) == (("bus", "car"), (9, 4))
    first, second, _ = split.images
    assert first.labels.tolist() == [1, 1, 0, 1, 0, 1] and first.crowd.tolist() == [False, *[True] * 5]
    assert second.labels.tolist() == [0]
    with pytest.raises(UserError, match=r"annotations: VisDrone has no class 'buss'; did you mean 'bus'\?"):
        read(tmp_path, classes=["buss"])


rows = st.tuples(
    st.integers(0, 80), st.integers(0, 50), st.integers(0, 16), st.integers(0, 14),
    st.integers(0, 1), st.integers(0, 11), st.integers(0, 1), st.integers(0, 2),
)  # fmt: skip
PLAIN = ["Ignored_Regions", *(name.replace("-", " ").title() for name in CLASSES), "other"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(rows, max_size=8), min_size=1, max_size=3), st.permutations(range(20)), st.booleans())
def test_both_forms_say_the_same(tmp_path: Path, drawn: list[list[Row]], ids: list[int], renamed: bool) -> None:
    """Under whatever ids, and however the names are spelt; boxes keep within the image, crowds are of every class."""
    for old in (tmp_path / "annotations").glob("*.txt"):
        old.unlink()
    content = {f"{k:07d}_d": lines for k, lines in enumerate(drawn)}
    text = read(tmp_path, content)
    file = tmp_path / "val.json"
    file.write_text(json.dumps(coco_form(content, ids[:12], PLAIN if renamed else CATEGORIES)))
    coco = read_visdrone("visdrone/val", file, tmp_path / "images")
    assert coco.classes == text.classes == CLASSES
    assert coco.category_ids == tuple(ids[1:11])
    for one, other in zip(text.images, coco.images, strict=True):
        for field in ("boxes_xyxy", "labels", "crowd", "stored_xywh", "areas"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        x1, y1, x2, y2 = one.boxes_xyxy.T
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= WIDTH) & (y1 >= 0) & (y1 < y2) & (y2 <= HEIGHT)).all()
    for record, lines in zip(text.images, drawn, strict=True):
        kept = [row for row in lines if row[2] and row[3]]
        everywhere = sum(row[5] in (0, 11) for row in kept)
        assert len(record.labels) == len(kept) + 9 * everywhere
        assert np.bincount(record.labels[len(kept) - everywhere :], minlength=10).tolist() == [everywhere] * 10


# What is ignored


def found(boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float]) -> Detections:
    return Detections(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores), torch.tensor(labels))


def joined(one: Detections, other: Detections) -> Detections:
    return Detections(
        torch.cat([one.boxes_xyxy, other.boxes_xyxy]),
        torch.cat([one.scores, other.scores]),
        torch.cat([one.labels, other.labels]),
    )


def judged(split: CocoSplit, detections: dict[int, Detections]) -> list[float]:
    """The numbers of pycocotools that `assert_same` compares."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = split.ground_truth()
        truth.createIndex()
        counter = COCOeval(truth, truth.loadRes(to_coco_results(split, detections)), "bbox")
        counter.evaluate()
        counter.accumulate()
        counter.summarize()
    return [float(value) for name, value in zip(NAMES, counter.stats, strict=True) if name not in ("AR1", "AR10")]


def assert_same(one: DetectionMetrics, other: DetectionMetrics) -> None:
    """All but the recall at 1 and at 10 detections an image, among which the ignored ones take their places."""
    for name in set(NAMES) - {"AR1", "AR10"}:
        assert one.summary[name] == pytest.approx(other.summary[name], abs=1e-9, nan_ok=True)
    assert one.per_class == pytest.approx(other.per_class, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_detections_where_all_is_ignored_cost_nothing(tmp_path: Path, seed: int) -> None:
    """Detections of every class inside a region, or on other things, before and after all true ones by their score."""
    generator = np.random.default_rng(seed)
    split = read(tmp_path)
    true = {
        record.id: found(
            (record.boxes_xyxy + generator.uniform(-0.7, 0.7, (len(record.labels), 4)))[~record.crowd].tolist(),
            record.labels[~record.crowd].tolist(),
            generator.uniform(0.3, 0.7, int((~record.crowd).sum())).tolist(),
        )
        for record in split.images
    }
    strays = []
    for x, y, width, height in ((0, 40, 30, 24), (70, 10, 16, 12)):
        corners = np.sort(generator.uniform(0, 1, (40, 2, 2)), axis=1) * [width, height] + [x, y]
        strays += corners.reshape(-1, 4).tolist()
    labels, scores = generator.integers(0, 10, 80).tolist(), generator.uniform(0, 1, 80).tolist()
    inside = true | {1: joined(true[1], found(strays, labels, scores))}
    metrics = coco_metrics(split, true)
    assert metrics.ap > 20
    assert_same(coco_metrics(split, inside), metrics)
    assert judged(split, inside) == pytest.approx(judged(split, true), abs=1e-9)
    elsewhere = true | {2: joined(true[2], found(strays, labels, scores))}
    assert coco_metrics(split, elsewhere).ap < metrics.ap - 1, "the same detections cost something where nothing is"


def test_what_lies_in_a_region_need_not_be_found(tmp_path: Path) -> None:
    """Found or missed, an object mostly inside a region does not count; one less than half inside does."""
    half = {"1": [(10, 10, 40, 40, 0, 0, 0, 0), (44, 12, 10, 10, 1, 4, 0, 0), (45, 30, 14, 10, 1, 4, 0, 0)]}
    record = read(tmp_path, half).images[0]
    assert record.crowd[:2].tolist() == [True, False], "six of ten and five of fourteen columns lie inside"
    split = read(tmp_path / "miniature")
    bus = {2: found([[60, 20, 84, 34]], [8], [0.9])}
    cars = found([[10, 8, 30, 20], [4, 44, 14, 52]], [3, 3], [0.5, 0.8])
    one = coco_metrics(split, bus | {1: cars})
    other = coco_metrics(split, bus | {1: Detections(cars.boxes_xyxy[:1], cars.scores[:1], cars.labels[:1])})
    assert_same(one, other)
    assert (one.per_class["car"], one.per_class["bus"], one.per_class["pedestrian"]) == (100, 100, 0)


def test_nothing_ignored_is_a_target(tmp_path: Path) -> None:
    config = resolve("baseline", 0, "test", ROOT)
    targets = {
        image_id: labels.labels.tolist()
        for batch in evaluation_batches(read(tmp_path), config)
        for image_id, labels in zip(batch.image_ids, batch.targets, strict=True)
    }
    assert targets == {1: [3, 0], 2: [8], 3: []}


# What is refused


def line(*values: Any) -> str:
    return ",".join(map(str, values))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2,3,4,1,4,0", "it has 7 values, but must have 8: left,top,width,height,score,category"),
        ("1,2,3,4,1,4,0,0,0", "it has 9 values"),
        ("1 2 3 4 1 4 0 0", "it has 1 values"),
        (line(1, 2, "x", 4, 1, 4, 0, 0), "width is 'x'; it must be a number"),
        (line(1, 2, "", 4, 1, 4, 0, 0), "width is ''; it must be a number"),
        (line("nan", 2, 3, 4, 1, 4, 0, 0), "left is nan; it must be finite"),
        (line(1, 2, 3, "inf", 1, 4, 0, 0), "height is inf; it must be finite"),
        (line(1, 2, 3, 4, 1, 12, 0, 0), "category 12 is unknown; it must be one of: 0 ignored regions, 1 pedestrian"),
        (line(1, 2, 3, 4, 1, 4.5, 0, 0), "category 4.5 is unknown"),
        (line(1, 2, 3, 4, 0.7, 4, 0, 0), "score is 0.7; in an annotation it must be 1, or 0"),
        (line(1, 2, -3, 4, 1, 4, 0, 0), "the box is -3 x 4 pixels (width x height); neither may be negative"),
        (
            line(90, 2, 9, 4, 1, 4, 0, 0),
            "the box 90, 2, 9, 4 (left, top, width, height) leaves its image, which is 96 x",
        ),
        (line(1, -2, 9, 4, 1, 4, 0, 0), "leaves its image"),
        (line(96, 2, 1, 4, 1, 4, 0, 0), "leaves its image"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    annotations, images = write_text(tmp_path, MINIATURE)
    file = annotations / "0000002_00005_d_0000014.txt"
    file.write_text(line(5, 5, 5, 5, 1, 4, 0, 0) + "\n\n" + text + "\n")
    with pytest.raises(UserError) as told:
        read_visdrone("visdrone/val", annotations, images)
    assert said in str(told.value)
    assert str(told.value).startswith(f"{file}, line 3: ") and "\n" not in str(told.value)


def test_images_and_files_that_are_not_there(tmp_path: Path) -> None:
    annotations, images = write_text(tmp_path, MINIATURE)
    damaged = images / "9999952_00000_d_0000017.jpg"
    damaged.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"9999952_00000_d_0000017\.jpg cannot be read as an image"):
        read_visdrone("visdrone/val", annotations, images)
    damaged.unlink()
    with pytest.raises(UserError, match=r"9999952_00000_d_0000017\.txt has no image: .*images.* does not exist"):
        read_visdrone("visdrone/val", annotations, images)
    (annotations / "9999952_00000_d_0000017.txt").write_bytes(b"\xff\xfe,1")
    Image.new("RGB", (WIDTH, HEIGHT)).save(damaged)
    with pytest.raises(UserError, match=r"9999952_00000_d_0000017\.txt cannot be read as text"):
        read_visdrone("visdrone/val", annotations, images)
    with pytest.raises(UserError, match=r"images holds no \.txt file"):
        read_visdrone("visdrone/val", images, images)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda coco: coco["categories"][4].update(name="lorry"), "declares no category 'car'"),
        (lambda coco: coco["categories"].append({"id": 30, "name": "boat"}), "category 'boat', which VisDrone has not"),
        (lambda coco: coco["annotations"][0].update(category_id=50), "annotation 1 (image 1) has category_id 50"),
        (lambda coco: coco["annotations"][0].update(bbox=[90, 1, 9, 9]), "annotation 1 (image 1) has the box"),
        (lambda coco: coco.update(annotations=3), "'annotations' is no list"),
    ],
)
def test_a_faulty_coco_form_is_named(tmp_path: Path, change: Any, said: str) -> None:
    _, images = write_text(tmp_path, MINIATURE)
    content = coco_form(MINIATURE)
    change(content)
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as told:
        read_visdrone("visdrone/val", file, images)
    assert str(file) in str(told.value) and said in str(told.value) and "\n" not in str(told.value)


# As a dataset


def define(root: Path, annotations: Path) -> None:
    files = {"images": str(root.parent / "drone/images"), "annotations": str(annotations)}
    path = root / graph.dataset_file("drone")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"kind": "visdrone", "train": files, "val": files}))


def test_it_is_described_opened_and_watched(tmp_path: Path) -> None:
    annotations, _ = write_text(tmp_path / "drone", MINIATURE)
    root = tmp_path / "root"
    define(root, annotations)
    manifest = prepare_dataset("drone", root)
    assert manifest["classes"] == list(CLASSES)
    assert manifest["splits"]["val"]["objects"] == dict.fromkeys(CLASSES, 0) | {"car": 1, "pedestrian": 1, "bus": 1}
    assert open_split("drone", "val", root).ground_truth() == read(tmp_path / "drone").ground_truth()
    assert prepare_dataset("drone", root) == manifest
    (annotations / "9999952_00000_d_0000017.txt").write_text(line(1, 2, 3, 4, 1, 4, 0, 0))
    with pytest.raises(UserError, match=r"drone/annotations has changed since"):
        open_split("drone", "train", root)
    assert prepare_dataset("drone", root)["hash"] != manifest["hash"]


def test_its_coco_form_is_a_dataset_too(tmp_path: Path) -> None:
    write_images(tmp_path / "drone/images", MINIATURE)
    file = tmp_path / "drone/val.json"
    file.write_text(json.dumps(coco_form(MINIATURE)))
    root = tmp_path / "root"
    define(root, file)
    assert prepare_dataset("drone", root)["splits"]["train"]["images"] == 3
    define(root, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"drone\.yaml: train\.annotations: there is no file or folder .*nowhere"):
        prepare_dataset("drone", root)

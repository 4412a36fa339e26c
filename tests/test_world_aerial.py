"""The world from above: where things stand and crowd, boxes against masks, the same bytes in every process."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise
from math import pi
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from noisebox import graph
from noisebox.data.catalog import open_split, prepare_dataset
from noisebox.data.visdrone import CLASSES
from noisebox.data.world import AERIAL, Rendering, Scene, annotate, fleet, write_world
from noisebox.data.world.aerial import SAMPLES, make_scene
from noisebox.data.world.export import MIN_VISIBLE, Annotation
from noisebox.data.world.render import render
from noisebox.data.world.scene import KERB, Camera, Thing
from noisebox.data.world.stage import MARGIN, Stage
from noisebox.data.world.street import Random
from noisebox.data.world.town import Plot, Road, arms_of, draw_roads
from noisebox.randomness import numpy_generator

SIZE = (160, 256)  # of dataset world_aerial_test
Drawn = tuple[Scene, Rendering, list[Annotation]]


def draw(split: str, index: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Drawn:
    scene, rendering = AERIAL.draw(seed, split, index, size)
    return scene, rendering, annotate(scene, rendering, AERIAL)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Drawn]]:
    """The images of dataset world_aerial_test; those of the larger datasets show the same scenes, and more."""
    return {split: [draw(split, index) for index in range(count)] for split, count in (("train", 8), ("val", 4))}


@pytest.fixture(scope="module")
def large() -> list[Drawn]:
    """Some images at the size of scale `demo`."""
    return [draw("train", index, (320, 512)) for index in range(10)]


# Models


@pytest.mark.parametrize(
    ("category", "width", "length", "height"),
    [
        ("pedestrian", (0.3, 1.1), (0.2, 1.4), (1.1, 2.0)),
        ("people", (0.4, 0.8), (0.6, 1.2), (1.1, 1.6)),
        ("bicycle", (0.5, 0.9), (1.5, 2.1), (1.4, 2.0)),
        ("car", (1.7, 2.1), (3.6, 5.1), (1.3, 1.9)),
        ("van", (1.8, 2.3), (4.8, 5.9), (2.0, 2.5)),
        ("truck", (2.2, 2.7), (6.6, 7.9), (2.2, 3.6)),
        ("tricycle", (1.0, 1.5), (2.5, 3.2), (1.4, 1.9)),
        ("awning-tricycle", (1.1, 1.6), (2.5, 3.2), (1.7, 2.2)),
        ("bus", (2.4, 2.7), (10.7, 12.3), (3.0, 3.5)),
        ("motor", (0.6, 0.9), (1.6, 2.3), (0.9, 1.9)),
    ],
)
def test_things_have_their_class_and_size_and_stand_on_the_ground(
    category: str, width: tuple[float, float], length: tuple[float, float], height: tuple[float, float]
) -> None:
    for index in range(20):
        thing = fleet.draw(numpy_generator(0, "fleet", index), category)
        assert thing.category == category
        assert thing.quads()[..., 2].min() == pytest.approx(0, abs=0.03)
        for side, (low, high) in zip(thing.size, (width, length, height), strict=True):
            assert low < side < high
        x, y = thing.footprint()
        assert abs(sum(x)) < 0.5 and abs(sum(y)) < 0.6, "it stands around the origin"


def test_no_other_class_is_drawn() -> None:
    with pytest.raises(ValueError, match="'boat' is none of"):
        fleet.draw(numpy_generator(0, "fleet"), "boat")


# The plan


@given(st.integers(0, 3), st.floats(1, 30), st.floats(1, 30), st.floats(0, 1), st.floats(0, 1))
def test_a_plot_is_the_same_seen_from_any_side(quarter: int, wide: float, high: float, u: float, v: float) -> None:
    """(u, v) runs from the front left corner; turning the plot's frame back gives the point in the world."""
    plot = Plot((5.0, 5.0 + wide), (-3.0, -3.0 + high), quarter)
    x, y = plot.at(u * plot.width, v * plot.depth)
    frame = np.array([[0, -1], [1, 0]])
    across, inwards = (np.linalg.matrix_power(frame, quarter) @ axis for axis in ([1, 0], [0, 1]))
    corner = np.array([5.0 + wide / 2, -3.0 + high / 2]) - across * plot.width / 2 - inwards * plot.depth / 2
    np.testing.assert_allclose((x, y), corner + across * u * plot.width + inwards * v * plot.depth, atol=1e-9)
    assert plot.x[0] - 1e-9 <= x <= plot.x[1] + 1e-9 and plot.y[0] - 1e-9 <= y <= plot.y[1] + 1e-9


def test_arms_lead_to_crossings_and_drive_on_the_right() -> None:
    columns, rows = [Road(-40.0, 1), Road(0.0, 2), Road(50.0, 1)], [Road(-30.0, 1), Road(20.0, 2)]
    arms = arms_of(columns, rows)
    assert len(arms) == 2 * 3 * 1 + 2 * 2 * 2
    for arm in arms:
        assert arm.crossing[0] in (-40, 0, 50) and arm.crossing[1] in (-30, 20)
        start, end = np.array(arm.at(arm.length, 1.5)), np.array(arm.at(0.0, 1.5))
        ahead = np.array([-np.sin(arm.heading), np.cos(arm.heading)])
        np.testing.assert_allclose((end - start) / arm.length, ahead, atol=1e-9)
        right = np.array([np.cos(arm.heading), np.sin(arm.heading)])
        np.testing.assert_allclose(end - arm.crossing, 1.5 * right, atol=1e-9)
        along, across = (rows, columns) if abs(ahead[0]) > 0.5 else (columns, rows)
        assert any(np.isclose(np.dot(np.array(arm.crossing), abs(right)), road.centre) for road in along)
        assert arm.setback in {road.half for road in across}


@given(st.integers(0, 200), st.floats(-200, -1), st.floats(1, 200))
def test_roads_reach_beyond_what_is_seen(seed: int, low: float, high: float) -> None:
    roads = draw_roads(numpy_generator(seed, "roads"), (low, high))
    assert roads[0].centre <= low and roads[-1].centre >= high and len(roads) >= 2
    for one, other in pairwise(roads):
        assert 36 <= other.centre - other.half - one.centre - one.half <= 56


@given(
    st.floats(-pi, pi),
    st.floats(-1.5, -0.95),
    st.floats(0.7, 1.0),
    st.floats(0.3, 1),
    st.floats(-1, 1),
    st.floats(-1, 1),
)
def test_what_the_stage_sees_is_what_the_camera_shows(
    yaw: float, pitch: float, focal: float, aspect: float, across: float, below: float
) -> None:
    """A point of the ground by the pinhole formula: seen exactly if it projects into the image or little beside it."""
    camera = Camera((3.0, -2.0, 50.0), yaw, pitch, focal)
    stage = Stage(camera, aspect)
    right, down, ahead = (np.array(axis) for axis in camera.axes())
    ray = ahead + across * 0.7 / focal * right + below * 0.7 * aspect / focal * down
    if ray[2] > -0.2:
        return
    x, y, _ = np.array(camera.position) + ray * (50.0 / -ray[2])
    inside = abs(across * 0.7) <= 0.5 and abs(below * 0.7) <= 0.5
    beside = 50.0 / -ray[2] * 0.7 / focal * max(abs(across) - 0.5 / 0.7, aspect * (abs(below) - 0.5 / 0.7))
    if inside or beside > MARGIN + 1e-6:
        assert stage.sees(x, y) == inside
    if inside:
        (x0, x1), (y0, y1) = stage.reach()
        assert x0 - 1e-6 <= x <= x1 + 1e-6 and y0 - 1e-6 <= y <= y1 + 1e-6


def test_nothing_is_put_out_of_sight_or_into_another() -> None:
    stage = Stage(Camera((0.0, 0.0, 50.0), 0.0, -pi / 2, 1.0), 0.5)
    rng: Random = numpy_generator(0, "stage")
    for place in ((0.0, 0.0), (1.0, 0.0), (24.0, 0.0), (27.0, 0.0), (0.0, 12.0), (0.0, 14.0)):
        stage.put(rng, "car", place, 0.0)
    assert [thing.position[:2] for thing in stage.objects] == [(0, 0), (24, 0), (0, 12)]
    stage.stand(Thing("house", stage.objects[0].model, (-10.0, 0.0, 0.0)))
    stage.put(rng, "car", (-10.5, 0.0), 0.0)
    assert len(stage.objects) == 3


# Scenes


def test_things_stand_clear_of_each_other_and_of_houses(large: list[Drawn]) -> None:
    for scene, _, _ in large:
        spots = [thing.footprint() for thing in scene.objects]
        houses = [thing.footprint() for thing in scene.scenery if thing.category == "house"]
        pairs = [*combinations(spots, 2), *((spot, house) for spot in spots for house in houses)]
        assert not any(
            a0 < b1 and b0 < a1 and c0 < d1 and d0 < c1 for ((a0, a1), (c0, c1)), ((b0, b1), (d0, d1)) in pairs
        )
        assert {thing.position[2] for thing in scene.objects} <= {0.0, KERB}


def test_the_ground_fills_the_image(large: list[Drawn]) -> None:
    assert all(np.isfinite(rendering.depth).all() for _, rendering, _ in large)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(64, 64), (48, 160), (90, 120)]))
def test_any_wide_image_is_filled(seed: int, size: tuple[int, int]) -> None:
    assert np.isfinite(draw("val", 0, size, seed)[1].depth).all()


def test_many_small_things_of_all_classes(drawn: dict[str, list[Drawn]], large: list[Drawn]) -> None:
    for images in drawn.values():
        assert {CLASSES[found.category_id - 1] for *_, founds in images for found in founds} == set(CLASSES)
    counts = [len(founds) for *_, founds in large]
    assert 30 <= np.median(counts) <= 80 and min(counts) >= 10
    found = [annotation for *_, founds in large for annotation in founds]
    assert np.mean([annotation.area < 32**2 for annotation in found]) > 0.9
    longest = np.array([max(annotation.bbox[2:]) for annotation in found])
    assert np.mean((longest >= 5) & (longest <= 30)) > 0.6
    assert {scene.weather.name for scene, *_ in large} == {"day", "evening", "fog"}


def test_things_crowd(large: list[Drawn]) -> None:
    """Counts on a 16 × 10 grid: thrown evenly, their variance would be their mean (Poisson)."""
    dispersion, empty = [], []
    for *_, founds in large:
        middles = np.array([(x + w / 2, y + h / 2) for x, y, w, h in (annotation.bbox for annotation in founds)])
        cells = np.histogram2d(middles[:, 1], middles[:, 0], bins=(10, 16), range=((0, 320), (0, 512)))[0]
        dispersion.append(cells.var() / cells.mean())
        empty.append((cells == 0).mean() - np.exp(-cells.mean()))
    assert np.mean(dispersion) > 1.5 and np.mean(empty) > 0.05


# Boxes


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["train", "val"]), st.sampled_from([SIZE, (120, 192)]))
def test_boxes_are_the_tight_boxes_of_what_is_visible(seed: int, split: str, size: tuple[int, int]) -> None:
    scene, rendering, founds = draw(split, seed % 7, size, seed)
    assert rendering.samples == SAMPLES and rendering.image.shape == (*size, 3)
    annotations = {annotation.instance: annotation for annotation in founds}
    for instance, thing in enumerate(scene.objects, start=1):
        mask = rendering.instances == instance
        if not mask.any():
            assert instance not in annotations
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = np.array([columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]) / SAMPLES
        share, area = mask.sum() / rendering.alone[instance], mask.sum() / SAMPLES**2
        shown = share >= MIN_VISIBLE and min(box[2:]) >= AERIAL.min_side and area >= AERIAL.min_area
        assert (instance in annotations) == shown
        if shown:
            annotation = annotations[instance]
            assert annotation.bbox == tuple(box) and CLASSES[annotation.category_id - 1] == thing.category
            assert (annotation.area, annotation.visibility) == (area, pytest.approx(share))


def test_fewer_samples_a_pixel_see_the_same() -> None:
    scene = make_scene(0, "train", 1, 0.625)
    two, four = (render(scene, 100, 160, samples=samples) for samples in (2, 4))
    assert (two.samples, four.samples) == (2, 4)
    ratio = four.alone[1:].clip(1) / (4 * two.alone[1:].clip(1))
    assert np.median(abs(ratio - 1)[two.alone[1:] > 40]) < 0.1
    assert np.mean(abs(two.image.astype(int) - four.image.astype(int))) < 4
    boxes = [{found.instance: found.bbox for found in annotate(scene, seen, AERIAL)} for seen in (two, four)]
    both = [(boxes[0][k], boxes[1][k]) for k in boxes[0].keys() & boxes[1].keys()]
    assert len(both) > 30 and np.median(np.abs(np.subtract(*zip(*both, strict=True)))) <= 0.5


# Files


PROGRAM = """
import sys
from pathlib import Path
from noisebox.data.world import AERIAL, write_world
write_world(Path(sys.argv[1]), 0, {"train": 2, "val": 1}, (160, 256), world=AERIAL)
"""


PINS = {
    "annotations/train.json": "b1a7cd827d0ea944",
    "annotations/val.json": "a06f26389e22804f",
    "images/train/000001.png": "f1bc0f0749a559f3",
    "images/train/000002.png": "371fcb7517bac7da",
    "images/val/000001.png": "fcb40831abcfa505",
}


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """And in every version: where these change, so do the published datasets and all that was learnt from them."""
    write_world(tmp_path / "here", 0, {"train": 2, "val": 1}, SIZE, world=AERIAL)
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "there")], check=True, timeout=60)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    assert digests(tmp_path / "here") == PINS


def test_fewer_images_are_the_first_ones(tmp_path: Path) -> None:
    size = (64, 102)
    write_world(tmp_path / "few", 3, {"train": 1}, size, world=AERIAL)
    write_world(tmp_path / "more", 3, {"train": 3, "val": 1}, size, world=AERIAL)
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    assert few["images/train/000001.png"] == more["images/train/000001.png"]
    assert len({more[name] for name in more if name.endswith(".png")}) == 4
    few_json, more_json = (
        json.loads((tmp_path / name / "annotations/train.json").read_text()) for name in ("few", "more")
    )
    assert few_json["annotations"] == more_json["annotations"][: len(few_json["annotations"])]


def test_it_is_a_dataset_that_coco_reads(tmp_path: Path) -> None:
    path = tmp_path / graph.dataset_file("tiny")
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"kind": "world_aerial", "image_size": [80, 128], "train": 2, "val": 1}))
    manifest = prepare_dataset("tiny", tmp_path)
    assert manifest["classes"] == list(CLASSES) and manifest["splits"]["train"]["images"] == 2
    folder = tmp_path / graph.dataset_folder("tiny")
    before = digests(folder)
    coco = COCO(str(folder / "annotations/val.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    split = open_split("tiny", "val", tmp_path)
    assert Counter(CLASSES[label] for label in split.images[0].labels) == {
        name: count for name, count in manifest["splits"]["val"]["objects"].items() if count
    }
    for image in (folder / "images").rglob("*.png"):
        image.unlink()
    assert prepare_dataset("tiny", tmp_path) == manifest and digests(folder) == before

"""The embedded world: geometry against formulas and brute force, boxes against masks, files against themselves."""

import json
from math import pi
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from noisebox.data.world import CLASSES, Rendering, Scene, annotate, make_scene, render, shapes, write_world
from noisebox.data.world.export import MIN_AREA, MIN_SIDE, MIN_VISIBLE
from noisebox.data.world.render import CORNERS, SAMPLES, SUBPIXEL, Projected, runs_of
from noisebox.data.world.scene import KERB, Camera, Thing, Weather

HEIGHT, WIDTH = 64, 80
LOOKING_AHEAD = Camera((0.0, 0.0, 1.5), 0.0, 0.0, 1.0)
NOON = Weather(
    "day", (0.0, 0.0, 1.0), (0.6, 0.6, 0.6), (0.5, 0.5, 0.5), (200, 210, 220), (100, 150, 210), 400.0, 0.6, 0.0, False
)


def scene_of(*things: Thing, camera: Camera = LOOKING_AHEAD) -> Scene:
    """A scene without a street; what belongs to CLASSES is an object, the rest scenery."""
    objects = tuple(thing for thing in things if thing.category in CLASSES)
    return Scene((0, "test", 0), NOON, camera, objects, tuple(thing for thing in things if thing not in objects))


def block(category: str, low: shapes.Point, high: shapes.Point) -> Thing:
    """An upright box with world corners `low` and `high`."""
    return Thing(category, shapes.model(("paint", shapes.box(low, high))), (0.0, 0.0, 0.0))


FLOOR = Thing("ground", shapes.model(("asphalt", shapes.rectangle(-200, 200, -50, 300, 0.0))), (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, Rendering]]:
    scenes = [make_scene(0, "train", index) for index in range(12)]
    return [(scene, render(scene, 128, 160)) for scene in scenes]


# Projection


@given(st.floats(-5, 5), st.floats(2, 80), st.floats(-2, 8))
def test_point_lands_where_the_pinhole_formula_says(x: float, y: float, z: float) -> None:
    matrix = LOOKING_AHEAD.intrinsics(HEIGHT, WIDTH)
    u, v, w = matrix @ LOOKING_AHEAD.view(np.array([x, y, z]))
    assert u / w == pytest.approx(WIDTH / 2 + WIDTH * x / y)
    assert v / w == pytest.approx(HEIGHT / 2 + WIDTH * (1.5 - z) / y)


def test_turned_camera_sees_what_lies_ahead_of_it_in_the_middle() -> None:
    left = Camera((1.0, 2.0, 1.5), pi / 2, 0.0, 1.0)
    np.testing.assert_allclose(left.view(np.array([-9.0, 2.0, 1.5])), [0, 0, 10], atol=1e-8)
    up = Camera((0.0, 0.0, 0.0), 0.0, pi / 4, 1.0)
    np.testing.assert_allclose(up.view(np.array([0.0, 1.0, 1.0])), [0, 0, 2**0.5], atol=1e-8)


@pytest.mark.parametrize(("x", "y", "z"), [(0.0, 10.0, 1.5), (2.0, 8.0, 0.5), (-3.0, 12.0, 3.0)])
def test_small_thing_is_drawn_at_its_pixel(x: float, y: float, z: float) -> None:
    size = 0.2
    seen = render(scene_of(block("car", (x - size, y, z - size), (x + size, y + 1e-3, z + size))), HEIGHT, WIDTH)
    rows, columns = np.nonzero(seen.instances)
    assert (columns.mean() + 0.5) / SAMPLES == pytest.approx(WIDTH / 2 + WIDTH * x / y, abs=1 / SAMPLES)
    assert (rows.mean() + 0.5) / SAMPLES == pytest.approx(HEIGHT / 2 + WIDTH * (1.5 - z) / y, abs=1 / SAMPLES)
    np.testing.assert_allclose(seen.depth[rows, columns], y, atol=2e-3)


def test_depth_of_the_floor_follows_from_the_camera_height() -> None:
    depth = render(scene_of(FLOOR), HEIGHT, WIDTH).depth
    below = (np.arange(HEIGHT * SAMPLES) + 0.5) / SAMPLES - HEIGHT / 2
    rows = np.flatnonzero(below > 0.6)
    np.testing.assert_allclose(depth[rows], np.tile(WIDTH * 1.5 / below[rows, None], WIDTH * SAMPLES), rtol=1e-4)
    assert np.isinf(depth[below < 0]).all()


# Rasteriser


@settings(max_examples=50)
@given(st.tuples(st.integers(0, 640), st.integers(0, 640)), st.integers(0, 300), st.integers(340, 640))
def test_faces_that_share_edges_cover_every_sample_once(middle: tuple[int, int], low: int, high: int) -> None:
    """A square cut into four triangles at any inner point."""
    inner = tuple(min(max(part, low + 1), high - 1) for part in middle)
    square = [(low, low), (high, low), (high, high), (low, high)]
    corners = np.array([[square[k], square[(k + 1) % 4], *[inner] * (CORNERS - 2)] for k in range(4)])
    seen = Projected(np.arange(4), corners.transpose(1, 0, 2), np.zeros((4, 3)), np.zeros((4, 2)))
    cover = np.zeros((50, 50), dtype=int)
    runs = runs_of(seen, 50, 50)
    for row, start, length in zip(runs.row, runs.start, runs.length, strict=True):
        cover[row, start : start + length] += 1
    centres = np.arange(50) * SUBPIXEL + SUBPIXEL // 2
    inside = (centres >= low) & (centres < high)
    np.testing.assert_array_equal(cover, np.outer(inside, inside))


def nearest_hits(
    scene: Scene, rows: np.ndarray, columns: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Instance and depth of the nearest triangle on the ray through each sample's centre (Möller and Trumbore 1997)."""
    triangles, instances = scene.triangles()
    right, down, ahead = (np.array(axis) for axis in scene.camera.axes())
    across = ((columns + 0.5) / SAMPLES - width / 2) / (scene.camera.focal * width)
    below = ((rows + 0.5) / SAMPLES - height / 2) / (scene.camera.focal * width)
    rays = ahead + across[:, None] * right + below[:, None] * down
    one, two = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    away = np.array(scene.camera.position) - triangles[:, 0]
    turned = np.cross(away, one)
    found_instances, found_depths = [], []
    for ray in rays:
        across_two = np.cross(ray, two)
        determinant = (one * across_two).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = (away * across_two).sum(axis=1) / determinant
            v = turned @ ray / determinant
            distance = (two * turned).sum(axis=1) / determinant
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0.25)
        distance = np.where(hit, distance, np.inf)
        found_instances.append(instances[distance.argmin()] if hit.any() else 0)
        found_depths.append(distance.min())
    return np.array(found_instances), np.array(found_depths)


def test_nearest_face_wins_as_by_ray_casting(drawn: list[tuple[Scene, Rendering]]) -> None:
    rng = np.random.default_rng(0)
    for scene, rendering in drawn[:4]:
        rows, columns = rng.integers(0, 128 * SAMPLES, 120), rng.integers(0, 160 * SAMPLES, 120)
        on_objects = rng.permutation(np.argwhere(rendering.instances > 0))[:80]
        rows, columns = np.append(rows, on_objects[:, 0]), np.append(columns, on_objects[:, 1])
        instances, depths = nearest_hits(scene, rows, columns, 128, 160)
        depth = rendering.depth[rows, columns]
        close = np.isclose(depth, depths, rtol=0.01, atol=0.02)
        # Corners are rounded to 1/16 of a sample, so a ray close to an edge may fall on its other side.
        assert (instances == rendering.instances[rows, columns]).mean() > 0.98
        assert close.mean() > 0.97


def test_order_of_things_does_not_matter() -> None:
    behind, before = block("car", (-1, 12, 0), (1, 14, 2)), block("person", (0, 8, 0), (0.6, 8.5, 1.8))
    one, other = (
        render(scene_of(FLOOR, behind, before), HEIGHT, WIDTH),
        render(scene_of(before, behind, FLOOR), HEIGHT, WIDTH),
    )
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.instances == 1, other.instances == 2)
    assert one.depth[one.instances == 2].max() < one.depth[one.instances == 1].min()


# Boxes


def test_boxes_are_the_tight_boxes_of_the_visible_masks(drawn: list[tuple[Scene, Rendering]]) -> None:
    for scene, rendering in drawn:
        annotations = {annotation.instance: annotation for annotation in annotate(scene, rendering)}
        for instance, thing in enumerate(scene.objects, start=1):
            mask = rendering.instances == instance
            rows = [row for row in range(len(mask)) if mask[row].any()]
            columns = [column for column in range(mask.shape[1]) if mask[:, column].any()]
            if not rows:
                assert instance not in annotations
                continue
            box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
            share, area = mask.sum() / rendering.alone[instance], mask.sum() / SAMPLES**2
            large = min(box[2:]) / SAMPLES >= MIN_SIDE and area >= MIN_AREA
            assert (instance in annotations) == (large and share >= MIN_VISIBLE)
            if instance in annotations:
                annotation = annotations[instance]
                assert annotation.bbox == tuple(part / SAMPLES for part in box)
                assert (annotation.area, annotation.visibility) == (area, pytest.approx(share))
                assert CLASSES[annotation.category_id - 1] == thing.category


def test_boxes_lie_within_the_image_and_every_class_occurs(drawn: list[tuple[Scene, Rendering]]) -> None:
    found = [annotation for scene, rendering in drawn for annotation in annotate(scene, rendering)]
    assert {annotation.category_id for annotation in found} == {1, 2, 3}
    boxes = np.array([annotation.bbox for annotation in found])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 160).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 128).all()
    assert {scene.weather.name for scene, _ in drawn} == {"day", "dusk", "fog"}


def test_alone_counts_what_an_object_covers_without_the_others(drawn: list[tuple[Scene, Rendering]]) -> None:
    scene, rendering = drawn[0]
    for instance, thing in enumerate(scene.objects, start=1):
        alone = render(scene_of(thing, camera=scene.camera), 128, 160)
        assert (alone.instances == 1).sum() == rendering.alone[instance]


@pytest.mark.parametrize("hidden", [0.0, 0.5, 0.8, 0.9, 1.0])
def test_object_behind_a_wall_is_annotated_while_enough_of_it_shows(hidden: float) -> None:
    """The wall stands right before a flat object 4 m wide and hides this share of it from the left."""
    flat = block("car", (-2, 10.01, 0), (2, 10.02, 1.5))
    wall = block("building", (-4, 10.0, 0), (-2 + 4 * hidden, 10.005, 3))
    scene = scene_of(FLOOR, flat, wall)
    annotations = annotate(scene, render(scene, HEIGHT, WIDTH))
    if 1 - hidden < MIN_VISIBLE:
        assert annotations == []
    else:
        (annotation,) = annotations
        left, right = (WIDTH / 2 + WIDTH * x / 10.01 for x in (-2 + 4 * hidden, 2))
        assert annotation.visibility == pytest.approx(1 - hidden, abs=0.02)
        assert annotation.bbox[0] == pytest.approx(left, abs=1.5 / SAMPLES)
        assert annotation.bbox[0] + annotation.bbox[2] == pytest.approx(right, abs=1.5 / SAMPLES)


def test_what_is_outside_the_image_does_not_count_as_hidden() -> None:
    scene = scene_of(block("car", (3.0, 6, 0), (8.0, 7, 1.5)))
    (annotation,) = annotate(scene, render(scene, HEIGHT, WIDTH))
    assert annotation.visibility == 1.0
    assert annotation.bbox[0] + annotation.bbox[2] == WIDTH


# Scenes


def inside(polygons: list[np.ndarray], x: float, y: float) -> bool:
    return any(p[:, 0].min() <= x <= p[:, 0].max() and p[:, 1].min() <= y <= p[:, 1].max() for p in polygons)


def test_things_stand_where_they_belong(drawn: list[tuple[Scene, Rendering]]) -> None:
    for scene, _ in drawn:
        assert scene.street is not None
        for thing in scene.objects:
            x, y, z = thing.position
            assert inside(scene.street.walkways() if z == KERB else scene.street.drivable(), x, y)
            width, length, height = thing.size
            low, high = {"car": (3.5, 5.4), "motorbike": (1.6, 2.4), "person": (0.2, 1.3)}[thing.category]
            assert low < length < high
            assert 0.3 < width < 2.1
            assert 1.0 < height < 2.3
        spots = [thing.footprint() for thing in scene.objects]
        for k, ((x0, x1), (y0, y1)) in enumerate(spots):
            assert not any(x0 < b1 and b0 < x1 and y0 < d1 and d0 < y1 for (b0, b1), (d0, d1) in spots[:k])


@pytest.mark.parametrize(
    "model",
    [
        *(shapes.car(style) for style in shapes.CARS),
        *(shapes.motorbike(style) for style in shapes.MOTORBIKE_STYLES),
        *(shapes.person(stride, bag, bag) for stride, bag in ((-2, True), (0, False), (2, False))),
    ],
)
def test_models_look_the_same_size_in_a_mirror_and_stand_on_the_ground(model: shapes.Model) -> None:
    assert model.quads[..., 2].min() == pytest.approx(0, abs=0.02)
    mirror = shapes.mirrored(model.quads, -1)
    np.testing.assert_allclose(mirror[..., 0].min(), -model.quads[..., 0].max())
    np.testing.assert_array_equal(shapes.mirrored(mirror, -1), model.quads)


def test_seeds_and_splits_give_different_worlds() -> None:
    keys = [(0, "train", 0), (0, "train", 1), (0, "val", 0), (1, "train", 0)]
    images = {render(make_scene(*key), HEIGHT, WIDTH).image.tobytes() for key in keys}
    assert len(images) == len(keys)


# Files


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_written_twice_it_has_the_same_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_world(
        tmp_path / "a", 7, {"train": 2, "val": 1}, (HEIGHT, WIDTH), lambda done, total: seen.append((done, total))
    )
    first = contents(tmp_path / "a")
    write_world(tmp_path / "a", 7, {"train": 2, "val": 1}, (HEIGHT, WIDTH))
    write_world(tmp_path / "b", 7, {"train": 2, "val": 1}, (HEIGHT, WIDTH))
    assert first == contents(tmp_path / "a") == contents(tmp_path / "b")
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert list(first) == [
        "annotations/train.json",
        "annotations/val.json",
        "images/train/000001.png",
        "images/train/000002.png",
        "images/val/000001.png",
    ]


def test_fewer_images_are_the_first_ones(tmp_path: Path) -> None:
    write_world(tmp_path / "few", 3, {"train": 2}, (HEIGHT, WIDTH))
    write_world(tmp_path / "more", 3, {"train": 4}, (HEIGHT, WIDTH))
    few, more = contents(tmp_path / "few"), contents(tmp_path / "more")
    assert all(few[name] == more[name] for name in few if name.endswith(".png"))
    few_json, more_json = (json.loads(files["annotations/train.json"]) for files in (few, more))
    assert few_json["images"] == more_json["images"][:2]
    assert few_json["annotations"] == more_json["annotations"][: len(few_json["annotations"])]


def test_coco_reads_it(tmp_path: Path) -> None:
    write_world(tmp_path, 0, {"train": 3, "val": 2}, (HEIGHT, WIDTH))
    splits = {split: COCO(str(tmp_path / "annotations" / f"{split}.json")) for split in ("train", "val")}
    for split, coco in splits.items():
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
        for image in coco.loadImgs(coco.getImgIds()):
            picture = Image.open(tmp_path / "images" / split / image["file_name"])
            assert (picture.height, picture.width, picture.mode) == (image["height"], image["width"], "RGB")
        for annotation in coco.loadAnns(coco.getAnnIds()):
            assert annotation["iscrowd"] == 0
            assert 0 < annotation["area"] <= annotation["bbox"][2] * annotation["bbox"][3]
    for ids in (COCO.getImgIds, COCO.getAnnIds):
        assert not set(ids(splits["train"])) & set(ids(splits["val"]))


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holdout"):
        write_world(tmp_path, 0, {"holdout": 1}, (HEIGHT, WIDTH))

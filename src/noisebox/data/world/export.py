"""Embedded worlds as COCO datasets: images, and boxes around what is visible of each object."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noisebox.data.world.render import Rendering, render
from noisebox.data.world.scene import CLASSES, Scene
from noisebox.data.world.traffic import make_scene
from noisebox.files import atomic_path, write_json

MIN_VISIBLE = 0.15  # of what the object would cover within the image, were it alone
MIN_SIDE, MIN_AREA = 3.0, 12.0  # pixels, in the street world
SPLITS = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # what a split adds to its image ids
WORTH_PROCESSES = 32  # images; fewer are drawn sooner than other processes would start

Drawn = tuple[dict[str, Any], list[dict[str, Any]]]  # an image's entry of `images`, and those of `annotations`


@dataclass(frozen=True)
class World:
    """A kind of embedded data: `draw(seed, split, index, image_size)` makes its scene of that key and renders it.

    Objects under `min_side` or `min_area`, in pixels, are not annotated.
    """

    name: str
    supercategory: str
    classes: tuple[str, ...]
    min_side: float
    min_area: float
    draw: Callable[[int, str, int, tuple[int, int]], tuple[Scene, Rendering]]


def draw_street_image(seed: int, split: str, index: int, image_size: tuple[int, int]) -> tuple[Scene, Rendering]:
    scene = make_scene(seed, split, index)
    return scene, render(scene, *image_size)


STREET = World("street world", "street", CLASSES, MIN_SIDE, MIN_AREA, draw_street_image)


@dataclass(frozen=True)
class Annotation:
    """A visible object: `instance` k + 1 for `objects[k]`, `bbox` x, y, width, height and `area`, of its visible part,
    in pixels; `visibility` the visible share of what it would cover alone."""

    instance: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    visibility: float


def annotate(scene: Scene, rendering: Rendering, world: World = STREET) -> list[Annotation]:
    """The objects at least MIN_VISIBLE visible and not tiny, in the scene's order.

    The box is the tight one around the visible samples, so its edges are multiples of 1/samples pixel.
    """
    samples = rendering.samples
    annotations = []
    all_rows, all_columns = np.nonzero(rendering.instances)
    owners = rendering.instances[all_rows, all_columns]
    for instance, thing in enumerate(scene.objects, start=1):
        visible = owners == instance
        count, alone = int(np.count_nonzero(visible)), int(rendering.alone[instance])
        if count == 0 or count < MIN_VISIBLE * alone:
            continue
        rows, columns = all_rows[visible], all_columns[visible]
        x, y = int(columns.min()) / samples, int(rows.min()) / samples
        width, height = (int(columns.max()) + 1) / samples - x, (int(rows.max()) + 1) / samples - y
        area = count / samples**2
        if min(width, height) >= world.min_side and area >= world.min_area:
            category = world.classes.index(thing.category) + 1
            annotations.append(Annotation(instance, category, (x, y, width, height), area, count / alone))
    return annotations


def write_world(
    root: Path,
    seed: int,
    splits: dict[str, int],
    image_size: tuple[int, int],
    progress: Callable[[int, int], None] | None = None,
    world: World = STREET,
) -> None:
    """Write `root/images/<split>/000001.png` … and `root/annotations/<split>.json`.

    `splits`: how many images each of SPLITS has; `image_size`: height, width. Image k of a split is the same however
    many there are. `progress(done, total)` is called after each image. Raises ValueError for a split it does not know.
    """
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise ValueError(f"unknown splits {sorted(unknown)}: the world has {sorted(SPLITS)}")
    places = [(split, index) for split, count in splits.items() for index in range(count)]
    drawn: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {split: ([], []) for split in splits}
    for done, (place, (entry, found)) in enumerate(
        zip(places, _draw_all(root, world, seed, image_size, places), strict=True)
    ):
        images, annotations = drawn[place[0]]
        images.append(entry)
        annotations += found
        if progress:
            progress(done + 1, len(places))
    for split, (images, annotations) in drawn.items():
        write_json(root / "annotations" / f"{split}.json", coco_file(world, seed, split, images, annotations))


def _draw_all(
    root: Path, world: World, seed: int, image_size: tuple[int, int], places: list[tuple[str, int]]
) -> Iterator[Drawn]:
    """Draw and write every image, in the order of `places`; many of them on all cores."""
    draw = partial(_draw, root, world, seed, image_size)
    if len(places) < WORTH_PROCESSES:
        yield from map(draw, places)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, places, chunksize=8)


def _draw(root: Path, world: World, seed: int, image_size: tuple[int, int], place: tuple[str, int]) -> Drawn:
    """Draw and write one image; returns its entries of `images` and `annotations`."""
    (split, index), (height, width) = place, image_size
    scene, rendering = world.draw(seed, split, index, image_size)
    name, image_id = f"{index + 1:06d}.png", SPLITS[split] + index + 1
    with atomic_path(root / "images" / split / name) as temporary:
        Image.fromarray(rendering.image).save(temporary, compress_level=0)
    entry = {"id": image_id, "file_name": name, "height": height, "width": width, "weather": scene.weather.name}
    return entry, [coco_entry(annotation, image_id) for annotation in annotate(scene, rendering, world)]


def coco_entry(annotation: Annotation, image_id: int) -> dict[str, Any]:
    """One entry of `annotations`; its id follows from image and instance."""
    return {
        "id": image_id * 1000 + annotation.instance,
        "image_id": image_id,
        "category_id": annotation.category_id,
        "bbox": list(annotation.bbox),
        "area": annotation.area,
        "iscrowd": 0,
        "visibility": round(annotation.visibility, 4),
    }


def coco_file(
    world: World, seed: int, split: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> dict[str, Any]:
    categories = [
        {"id": k, "name": name, "supercategory": world.supercategory} for k, name in enumerate(world.classes, start=1)
    ]
    return {
        "info": {"description": f"noisebox {world.name}, seed {seed}, {split}", "version": "1"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }

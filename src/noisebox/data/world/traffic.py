"""The traffic, and with it the whole scene: a function of (seed, split, index) and of nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import pi

import numpy as np

from noisebox.data.world import shapes
from noisebox.data.world.scene import KERB, PARKING, Camera, Range, Scene, Street, Thing
from noisebox.data.world.shapes import Colour, Point
from noisebox.data.world.street import (
    SIGNS,
    Random,
    between,
    chance,
    draw_camera,
    draw_street,
    draw_weather,
    furniture,
    ground,
    houses,
    pick,
)
from noisebox.randomness import numpy_generator

PAINTS: tuple[Colour, ...] = (
    (226, 226, 224), (176, 180, 184), (98, 102, 108), (34, 36, 40), (178, 28, 30), (34, 70, 150), (28, 40, 84),
    (40, 96, 70), (226, 178, 40), (216, 96, 34), (190, 176, 150), (112, 24, 40), (92, 160, 190),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (196, 44, 44), (44, 84, 168), (232, 226, 214), (36, 38, 44), (60, 128, 84), (228, 186, 60), (150, 70, 140),
    (224, 120, 60), (96, 150, 190), (120, 116, 110), (206, 120, 150),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((38, 44, 66), (28, 28, 32), (92, 84, 72), (66, 78, 104), (130, 118, 98), (76, 48, 46))
SKINS: tuple[Colour, ...] = ((228, 186, 160), (208, 158, 124), (166, 116, 84), (112, 76, 56), (84, 58, 46))
HAIRS: tuple[Colour, ...] = ((40, 30, 26), (86, 58, 36), (166, 130, 76), (24, 22, 24), (150, 148, 146))
HELMETS: tuple[Colour, ...] = ((232, 232, 230), (30, 30, 34), (196, 40, 36), (40, 80, 160), (232, 196, 50))

Place = tuple[float, float, float, float]  # x, y, z, yaw


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Scene `index` of a split. Distinct (seed, split, index) never share a random number."""
    rng = numpy_generator(seed, "world", split, index)
    street = draw_street(rng)
    weather = draw_weather(rng)
    camera = draw_camera(rng, street)
    scenery = [*ground(rng, street), *houses(rng, street, weather), *furniture(rng, street)]
    obstacles = [thing.position for thing in scenery if thing.category in ("furniture", "tree")]
    objects = draw_traffic(rng, street, camera, obstacles)
    return Scene((seed, split, index), weather, camera, tuple(objects), tuple(scenery), street)


def draw_traffic(rng: Random, street: Street, camera: Camera, obstacles: Sequence[Point]) -> list[Thing]:
    """Cars, motorbikes and persons that the camera has a chance to see, none standing inside another."""
    plans: list[tuple[Callable[[Random], Thing], Callable[[Random, Street], Place | None], int]] = [
        (draw_car, car_place, int(rng.integers(2, 6))),
        (draw_motorbike, motorbike_place, int(rng.integers(1, 4))),
        (draw_person, person_place, int(rng.integers(1, 6))),
    ]
    objects: list[Thing] = []
    taken = [((x - 0.5, x + 0.5), (y - 0.5, y + 0.5)) for x, y, _ in obstacles]
    for draw, place, wanted in plans:
        found = 0
        for _ in range(12 * wanted):
            spot = place(rng, street) if found < wanted else None
            if spot is None:
                continue
            x, y, z, yaw = spot
            thing = replace(draw(rng), position=(round(x, 3), round(y, 3), z), yaw=round(yaw, 4))
            footprint = thing.footprint()
            if in_view(camera, thing) and not any(overlap(footprint, other) for other in taken):
                objects.append(thing)
                taken.append(footprint)
                found += 1
    return objects


def in_view(camera: Camera, thing: Thing) -> bool:
    """Whether some of the thing may be inside the image: its middle is in the view's wedge, or a little beside it."""
    x, _, z = camera.view(np.array(thing.position)).tolist()
    margin = 0.3 * max(thing.size[:2])
    return bool(z > 3.0 + thing.size[1] / 2 and abs(x) < z / (2 * camera.focal) + margin)


def overlap(one: tuple[Range, Range], other: tuple[Range, Range], margin: float = 0.15) -> bool:
    """Whether two footprints come closer than twice `margin` to each other."""
    return all(a[0] - margin < b[1] and b[0] - margin < a[1] for a, b in zip(one, other, strict=True))


def near(rng: Random, low: float, high: float) -> float:
    """A distance between `low` and `high`, more often a near one."""
    share: float = rng.random(2).min()
    return low + (high - low) * share


def heading(rng: Random, ahead: bool, spread: float) -> float:
    """A yaw along the street, or against it, `spread` radians off at most."""
    return (0.0 if ahead else pi) + between(rng, -spread, spread)


def side_street_place(rng: Random, side_street: Range, reach: float) -> Place:
    """In a lane of the side street, driving along it, within `reach` metres of the crossing."""
    start, end = side_street
    eastward = chance(rng, 0.5)
    y = start + (end - start) * (0.27 if eastward else 0.73)
    return between(rng, -reach, reach), y, 0.0, (-pi / 2 if eastward else pi / 2) + between(rng, -0.07, 0.07)


def car_place(rng: Random, street: Street) -> Place | None:
    """Parked at a kerb, in the side street, or in a lane of either direction; None where parking is not allowed."""
    way = int(rng.integers(10))
    if way < 3 and any(street.parking):
        right = street.parking[1] and (chance(rng, 0.5) or not street.parking[0])
        y = near(rng, 5, 40)
        if any(part and part[0] - 4 < y < part[1] + 4 for part in (street.side_street, street.crosswalk)):
            return None
        x = street.right - PARKING / 2 if right else street.left + PARKING / 2
        return x + between(rng, -0.1, 0.1), y, 0.0, heading(rng, right, 0.04)
    if way < 6 and street.side_street:
        return side_street_place(rng, street.side_street, 25)
    ahead = chance(rng, 0.5)
    x = (int(rng.integers(street.lanes)) + 0.5) * street.lane + between(rng, -0.3, 0.3)
    return (x if ahead else -x), near(rng, 6, 42), 0.0, heading(rng, ahead, 0.06)


def motorbike_place(rng: Random, street: Street) -> Place | None:
    """In the side street, or anywhere on its half of the carriageway, now and then turning."""
    if street.side_street and chance(rng, 0.3):
        return side_street_place(rng, street.side_street, 14)
    ahead = chance(rng, 0.55)
    x = between(rng, 0.5, street.lanes * street.lane - 0.4)
    return (x if ahead else -x), near(rng, 4.5, 26), 0.0, heading(rng, ahead, 0.7 if chance(rng, 0.3) else 0.1)


def person_place(rng: Random, street: Street) -> Place | None:
    """On the zebra crossing, crossing the road elsewhere, or on a pavement; None where the side street cuts it."""
    way = int(rng.integers(10))
    across = (pi / 2 if chance(rng, 0.5) else -pi / 2) + between(rng, -0.3, 0.3)
    if way < 5 and street.crosswalk:
        return between(rng, street.left, street.right), between(rng, *street.crosswalk), 0.0, across
    if way < 7:
        edge = street.lanes * street.lane
        return between(rng, -edge, edge), near(rng, 5, 20), 0.0, across
    from_kerb, y = between(rng, 0.4, street.walk - 0.4), near(rng, 4.5, 26)
    if street.side_street and street.side_street[0] - 0.3 < y < street.side_street[1] + 0.3:
        return None
    x = street.left - from_kerb if chance(rng, 0.45) else street.right + from_kerb
    return x, y, KERB, heading(rng, chance(rng, 0.5), 0.5)


def draw_car(rng: Random) -> Thing:
    style = pick(rng, ("sedan", "sedan", "hatchback", "hatchback", "suv", "van"))
    stretch = (between(rng, 0.96, 1.06), between(rng, 0.94, 1.06), between(rng, 0.96, 1.05))
    return Thing("car", shapes.car(style), (0.0, 0.0, 0.0), 0.0, stretch, {"paint": pick(rng, PAINTS)})


def draw_motorbike(rng: Random) -> Thing:
    style = pick(rng, ("roadster", "roadster", "scooter", "courier"))
    stretch = between(rng, 0.96, 1.08)
    palette = {
        "paint": pick(rng, PAINTS),
        "top": pick(rng, CLOTHES),
        "trousers": pick(rng, TROUSERS),
        "helmet": pick(rng, HELMETS),
        "skin": pick(rng, SKINS),
        "case": pick(rng, SIGNS),
    }
    return Thing("motorbike", shapes.motorbike(style), (0.0, 0.0, 0.0), 0.0, (stretch,) * 3, palette)


def draw_person(rng: Random) -> Thing:
    shape = shapes.person(int(rng.integers(-2, 3)), chance(rng, 0.25), chance(rng, 0.2))
    child = chance(rng, 0.12)
    tall = between(rng, 0.66, 0.8) if child else between(rng, 0.93, 1.08)
    wide = tall * between(rng, 0.95, 1.15)
    palette = {
        "top": pick(rng, CLOTHES),
        "trousers": pick(rng, TROUSERS),
        "skin": pick(rng, SKINS),
        "hair": pick(rng, HAIRS),
        "bag": pick(rng, CLOTHES),
    }
    return Thing("person", shape, (0.0, 0.0, 0.0), 0.0, (wide, wide, tall), palette)

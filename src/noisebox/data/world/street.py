"""The street without its traffic: plan, weather, camera, ground, houses, trees, lamps."""

from collections.abc import Sequence
from math import pi
from typing import TypeVar

import numpy as np

from noisebox.data.world import shapes
from noisebox.data.world.scene import END, KERB, REACH, SQUARE, START, Camera, Range, Street, Thing, Weather, turn
from noisebox.data.world.shapes import MATERIAL_INDEX, Colour, Model, Point, Quads

Random = np.random.Generator
Choice = TypeVar("Choice")

SKIES: dict[str, tuple[tuple[Colour, Colour], ...]] = {  # horizon and zenith
    "day": (((206, 220, 232), (96, 148, 208)), ((222, 226, 228), (150, 172, 196)), ((226, 222, 208), (122, 160, 204))),
    "dusk": (((214, 138, 96), (58, 66, 110)), ((176, 122, 132), (44, 50, 92)), ((120, 112, 142), (30, 36, 70))),
}
PAVINGS: tuple[Colour, ...] = ((158, 152, 143), (170, 166, 160), (150, 138, 128), (140, 142, 146))
WALLS: tuple[Colour, ...] = (
    (188, 166, 140), (172, 112, 92), (206, 196, 178), (150, 146, 142), (196, 152, 112),
    (152, 164, 172), (214, 204, 190), (132, 96, 82), (180, 178, 150), (168, 140, 140),
)  # fmt: skip
SIGNS: tuple[Colour, ...] = ((40, 90, 130), (150, 40, 40), (40, 100, 70), (190, 150, 50), (90, 60, 110), (60, 60, 64))
LEAVES: tuple[tuple[Colour, Colour], ...] = (
    ((70, 108, 50), (96, 136, 62)),
    ((86, 112, 44), (122, 142, 60)),
    ((58, 92, 58), (80, 118, 70)),
    ((150, 106, 44), (178, 132, 56)),
)


def between(rng: Random, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def chance(rng: Random, probability: float) -> bool:
    return bool(rng.random() < probability)


def pick(rng: Random, choices: Sequence[Choice]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def draw_street(rng: Random) -> Street:
    """One or two lanes a way; half of the streets are crossed by another, about half have a zebra crossing."""
    lanes = 1 if chance(rng, 0.65) else 2
    lane, walk = between(rng, 3.0, 3.5), between(rng, 2.4, 3.8)
    parking = (chance(rng, 0.5), chance(rng, 0.4))
    side_street, crosswalk = None, None
    if chance(rng, 0.5):
        start = between(rng, 13, 32)
        side_street = (start, start + between(rng, 7, 9))
        crosswalk = (start - 4.2, start - 1.2) if chance(rng, 0.75) else None
    elif chance(rng, 0.45):
        start = between(rng, 8, 20)
        crosswalk = (start, start + 3)
    return Street(lanes, lane, parking, walk, side_street, crosswalk)


def draw_weather(rng: Random) -> Weather:
    """Day (55 %), dusk (20 %) or fog (25 %). Where no sun shines, shadows fall straight down."""
    name = pick(rng, ("day",) * 11 + ("dusk",) * 4 + ("fog",) * 5)
    (east, north), (level, up) = turn(between(rng, 0, 2 * pi)), turn(between(rng, 0.75, 1.2))
    strength = between(rng, 0.92, 1.08)
    if name == "fog":
        grey = int(rng.integers(186, 214))
        veil = (grey - 4, grey, grey + 4)
        light, haze, lights = (0.22, 0.22, 0.22), between(rng, 45, 90), chance(rng, 0.5)
        return Weather(name, (0.0, 0.0, 1.0), light, (0.56, 0.58, 0.60), veil, veil, haze, 0.72, 0.0, lights)
    horizon, zenith = pick(rng, SKIES[name])
    if name == "dusk":
        light, clouds = (0.16 * strength, 0.11 * strength, 0.08 * strength), between(rng, 0.3, 0.9)
        return Weather(name, (0.0, 0.0, 1.0), light, (0.34, 0.33, 0.42), horizon, zenith, 260.0, 0.7, clouds, True)
    sun, light = (level * east, level * north, up), (0.66 * strength, 0.62 * strength, 0.54 * strength)
    clouds = between(rng, 0.2, 1.0)
    return Weather(name, sun, light, (0.50, 0.53, 0.58), horizon, zenith, 420.0, 0.56, clouds, False)


def draw_camera(rng: Random, street: Street) -> Camera:
    """The ego vehicle drives in its rightmost lane; now and then it is about to turn."""
    x = (street.lanes - 0.5) * street.lane + between(rng, -0.5, 0.5)
    yaw = between(rng, -0.12, 0.16) if chance(rng, 0.65) else between(rng, -0.42, 0.42)
    return Camera((x, 0.0, between(rng, 1.35, 1.85)), yaw, between(rng, -0.09, -0.03), between(rng, 0.88, 1.12))


# The ground


def ground(rng: Random, street: Street) -> list[Thing]:
    """Carriageway with its marks, raised pavements with kerbs."""
    tone = int(rng.integers(-14, 12))
    asphalt = (88 + tone, 89 + tone, 93 + tone)
    parts = [("asphalt", shapes.rectangle(street.left, street.right, START, END + SQUARE, 0.0))]
    if street.side_street:
        for x0, x1 in ((-REACH, street.left), (street.right, REACH)):
            parts.append(("asphalt", shapes.rectangle(x0, x1, *street.side_street, 0.0)))
    for inner, outer in ((street.left, -REACH), (street.right, REACH)):
        for start, end in street.blocks():
            kerb = inner + (0.25 if outer > 0 else -0.25)
            (x0, x1), (k0, k1) = sorted((kerb, outer)), sorted((inner, kerb))
            parts.append(("paving", shapes.rectangle(x0, x1, start + 0.25, end - 0.25, KERB)))
            parts.append(("kerb", shapes.box((k0, start, 0.0), (k1, end, KERB))))
            parts += [("kerb", shapes.box((x0, y, 0.0), (x1, y + 0.25, KERB))) for y in (start, end - 0.25)]
    parts += [("mark", quads) for quads in lane_marks(street)]
    for _ in range(int(rng.integers(0, 5))):
        x, y = between(rng, street.left, street.right - 2), between(rng, 3, 30)
        width, length = between(rng, 0.6, 1.8), between(rng, 0.5, 4)
        parts.append(("patch", shapes.rectangle(x, x + width, y, y + length, 0.005)))
    palette = {"asphalt": asphalt, "paving": pick(rng, PAVINGS)}
    return [Thing("ground", shapes.model(*parts), (0.0, 0.0, 0.0), palette=palette)]


def lane_marks(street: Street) -> list[Quads]:
    """Centre and lane lines (broken at the side street), edge lines, stop line and zebra."""
    marks, z = [], 0.01
    breaks = [part for part in (street.side_street, street.crosswalk) if part]
    for line in range(1 - street.lanes, street.lanes):
        x = line * street.lane
        long, step = (3.0, 6.0) if line == 0 else (2.0, 6.0)
        for k in range(int((END + 10) / step)):
            y = -6.0 + k * step
            if not any(start - 1.5 < y + long and y < end + 1.0 for start, end in breaks):
                marks.append(shapes.rectangle(x - 0.08, x + 0.08, y, y + long, z))
    for x in (-street.lanes * street.lane + 0.1, street.lanes * street.lane - 0.1):
        for start, end in street.blocks():
            marks.append(shapes.rectangle(x - 0.06, x + 0.06, start, end, z))
    if street.crosswalk:
        y0, y1 = street.crosswalk
        stripes = int(street.right - street.left)
        for k in range(stripes):
            x = street.left + 0.3 + k * (street.right - street.left - 0.1) / stripes
            marks.append(shapes.rectangle(x, x + 0.5, y0, y1, z))
        marks.append(shapes.rectangle(0.2, street.lanes * street.lane - 0.2, y0 - 1.4, y0 - 1.0, z))
    return marks


# What lines the street


def houses(rng: Random, street: Street, weather: Weather) -> list[Thing]:
    """Rows of houses along both sides and the far end, or a park with trees in place of a row."""
    things = []
    for side in (-1, 1):
        front = street.left - street.walk if side < 0 else street.right + street.walk
        for start, end in street.blocks():
            first, last = start + (street.walk if start > 0 else 0), end - street.walk
            if chance(rng, 0.18):
                things += park(rng, side, front, (first, last))
            else:
                things += row_of_houses(rng, weather, (front, first), (0, 1), last - first, mirror=side > 0)
        if street.side_street:
            corner = (front + side * shapes.HOUSE_DEPTH, street.side_street[1] + street.walk)
            things += row_of_houses(rng, weather, corner, (side, 0), REACH - 20 - abs(corner[0]))
    return things + row_of_houses(rng, weather, (-REACH / 2, END + SQUARE), (1, 0), REACH)


def row_of_houses(
    rng: Random, weather: Weather, start: tuple[float, float], way: tuple[int, int], length: float, mirror: bool = False
) -> list[Thing]:
    """Houses side by side from `start` along the axis `way`, with a gap here and there.

    Their fronts look to -y where the row runs along x; where it runs along y, to +x, or to -x if `mirror`.
    """
    things: list[Thing] = []
    at = 0.0
    while True:
        columns, stretch = int(rng.integers(3, 7)), between(rng, 0.92, 1.06)
        width = columns * shapes.WINDOW_WIDTH * stretch
        if at + width > length:
            return things
        shape = shapes.building(columns, int(rng.integers(1, 6)), chance(rng, 0.3), chance(rng, 0.5))
        materials = shape.materials
        if weather.name == "dusk":
            panes = np.isin(materials, [MATERIAL_INDEX["window"], MATERIAL_INDEX["shop"]])
            materials = np.where(panes & (rng.random(len(materials)) < 0.3), MATERIAL_INDEX["lit"], materials)
        shape = Model(shapes.mirrored(shape.quads, -1 if mirror else 1), materials)
        wall, shade = pick(rng, WALLS), int(rng.integers(-16, 17))
        red, green, blue = (part + shade for part in wall)
        light = (red + 20, green + 20, blue + 20)
        palette = {"wall": (red, green, blue), "band": light, "sign": pick(rng, SIGNS)}
        middle = at + width / 2
        position = (start[0] + way[0] * middle, start[1] + way[1] * middle, KERB)
        things.append(Thing("building", shape, position, -pi / 2 if way[0] else 0.0, (1.0, stretch, 1.0), palette))
        at += width + (0.0 if chance(rng, 0.75) else between(rng, 1.5, 5))


def park(rng: Random, side: int, front: float, reach: Range) -> list[Thing]:
    """A lawn with a low hedge and trees."""
    x0, x1 = sorted((front, side * REACH))
    lawn = Thing("ground", shapes.model(("grass", shapes.rectangle(x0, x1, *reach, KERB + 0.03))), (0.0, 0.0, 0.0))
    low, high = sorted((front + side * 0.2, front + side * 0.9))
    leaves = shapes.box((low, reach[0], KERB), (high, reach[1], KERB + between(rng, 0.5, 0.9)))
    things = [lawn, Thing("building", shapes.model(("leaf", leaves)), (0.0, 0.0, 0.0))]
    for _ in range(int((reach[1] - reach[0]) / 5)):
        position = (front + side * between(rng, 3, 26), between(rng, *reach), KERB)
        things.append(draw_tree(rng, position, between(rng, 5, 10)))
    return things


def draw_tree(rng: Random, position: Point, height: float) -> Thing:
    leaf, light = pick(rng, LEAVES)
    wide, tall = height / 6 * between(rng, 0.8, 1.1), height / 6
    shape, palette = shapes.tree(int(rng.integers(len(shapes.CROWNS)))), {"leaf": leaf, "leaf_light": light}
    return Thing("tree", shape, position, between(rng, -pi, pi), (wide, wide, tall), palette)


def furniture(rng: Random, street: Street) -> list[Thing]:
    """Trees and lamps in a row along each kerb, some bins, bollards and advertising columns, a traffic light."""
    things: list[Thing] = []
    lamp = shapes.street_lamp()
    kept_free = [part for part in (street.side_street, street.crosswalk) if part]
    for side in (-1, 1):
        kerb = (street.left - 0.6) if side < 0 else (street.right + 0.6)
        trees, spacing = chance(rng, 0.45), between(rng, 7, 12)
        for k in range(int(110 / spacing)):
            y = 4 + k * spacing + between(rng, -1, 1)
            if any(start - 1.5 < y < end + 1.5 for start, end in kept_free):
                continue
            if k % 3 == 2:
                turned = Model(shapes.mirrored(lamp.quads, -side), lamp.materials)
                things.append(Thing("furniture", turned, (kerb, y, KERB)))
            elif trees:
                things.append(draw_tree(rng, (kerb, y, KERB), between(rng, 4.5, 7)))
            elif y < 60 and chance(rng, 0.5):
                shape = pick(rng, (shapes.bollard, shapes.bollard, shapes.rubbish_bin, shapes.advertising_column))()
                position = (kerb + side * between(rng, 0, 0.4), y + 0.5, KERB)
                things.append(Thing("furniture", shape, position, palette={"sign": pick(rng, SIGNS)}))
    if street.side_street and chance(rng, 0.6):
        y = street.side_street[0] - 0.6
        places = ((street.right + 0.5, y, KERB), (street.left - 0.5, y, KERB))
        things += [Thing("furniture", shapes.traffic_light(), place) for place in places]
    return things

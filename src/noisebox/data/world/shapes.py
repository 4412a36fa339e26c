"""What things look like: solids made of quads, and the cars, motorbikes, persons, houses and trees built from them.

A model lives in its own frame, in metres: x to its right, y ahead, z up, the origin on the ground under its middle.
Every quad lists its corners anticlockwise as seen from outside; a triangle repeats its last corner.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import cos, pi, sin, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Quads = NDArray[np.float64]  # (n, 4, 3)
Point = tuple[float, float, float]
Colour = tuple[int, int, int]

# Materials and their colours (RGB), unless the thing's palette says otherwise.
MATERIALS: dict[str, Colour] = {
    "asphalt": (88, 89, 93),
    "patch": (74, 75, 79),
    "mark": (226, 226, 216),
    "kerb": (176, 174, 168),
    "paving": (158, 152, 143),
    "grass": (104, 136, 66),
    "paint": (180, 30, 30),
    "glass": (52, 66, 80),
    "tyre": (28, 28, 30),
    "hub": (165, 168, 172),
    "trim": (46, 47, 50),
    "metal": (130, 132, 138),
    "headlight": (244, 242, 226),
    "taillight": (196, 26, 24),
    "plate": (232, 232, 220),
    "seat": (36, 34, 34),
    "case": (40, 110, 90),
    "helmet": (230, 230, 230),
    "skin": (214, 168, 140),
    "hair": (58, 40, 30),
    "top": (60, 80, 140),
    "trousers": (48, 54, 74),
    "shoes": (44, 38, 36),
    "bag": (120, 60, 40),
    "wall": (190, 170, 150),
    "band": (206, 198, 184),
    "roof": (120, 74, 62),
    "window": (70, 86, 102),
    "lit": (255, 214, 140),
    "door": (86, 58, 42),
    "shop": (60, 78, 92),
    "sign": (40, 90, 130),
    "trunk": (92, 72, 54),
    "leaf": (78, 116, 54),
    "leaf_light": (104, 142, 66),
    "pole": (84, 88, 92),
    "lamp": (250, 228, 176),
}
MATERIAL_INDEX = {name: index for index, name in enumerate(MATERIALS)}


@dataclass(frozen=True)
class Model:
    """Quads (n, 4, 3) in metres and the material index (n,) of each."""

    quads: Quads
    materials: NDArray[np.int64]

    @cached_property
    def size(self) -> Point:
        """Width (x), length (y) and height (z) of the bounding box, metres."""
        corners = self.quads.reshape(-1, 3)
        width, length, height = (corners.max(axis=0) - corners.min(axis=0)).tolist()
        return width, length, height


def model(*parts: tuple[str, Quads]) -> Model:
    """A model from (material, quads) pairs."""
    indices = [np.full(len(quads), MATERIAL_INDEX[material]) for material, quads in parts]
    return Model(np.concatenate([quads for _, quads in parts]), np.concatenate(indices).astype(np.int64))


# Solids


# A trapezoid across a loft: y, the heights of its lower and upper edge, half their widths.
Station = tuple[float, float, float, float, float]


class Loft(NamedTuple):
    """The skin of a loft, from rear to front: `sides` (left and right of each segment), `tops`, `ends`, `bottoms`."""

    sides: Quads
    tops: Quads
    ends: Quads
    bottoms: Quads

    def all(self) -> Quads:
        return np.concatenate(self)


def loft(*stations: Station) -> Loft:
    """The solid through `stations`, which follow each other from rear (small y) to front, symmetric about x = 0."""
    rings = [
        ((-half_low, y, low), (half_low, y, low), (half_high, y, high), (-half_high, y, high))
        for y, low, high, half_low, half_high in stations
    ]
    sides, tops, bottoms = [], [], []
    for (left, right, right_top, left_top), (left2, right2, right_top2, left_top2) in pairwise(rings):
        sides += [(left2, left, left_top, left_top2), (right, right2, right_top2, right_top)]
        tops.append((left_top, right_top, right_top2, left_top2))
        bottoms.append((left, left2, right2, right))
    first, last = rings[0], rings[-1]
    ends = [first, (last[1], last[0], last[3], last[2])]
    return Loft(np.array(sides), np.array(tops), np.array(ends), np.array(bottoms))


def box(low: Point, high: Point) -> Quads:
    """The six sides of an upright box."""
    middle, half = (low[0] + high[0]) / 2, (high[0] - low[0]) / 2
    solid = loft((low[1], low[2], high[2], half, half), (high[1], low[2], high[2], half, half)).all()
    return shifted(solid, x=middle)


def shifted(quads: Quads, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Quads:
    moved: Quads = quads + np.array([x, y, z])
    return moved


def mirrored(quads: Quads, sign: int) -> Quads:
    """`quads` (sign 1) or their mirror image in the plane x = 0 (sign -1), seen from outside either way."""
    return quads if sign == 1 else (quads * np.array([-1.0, 1.0, 1.0]))[:, ::-1]


def rectangle(x0: float, x1: float, y0: float, y1: float, z: float) -> Quads:
    """One level quad, seen from above."""
    return np.array([[(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]])


@lru_cache
def unit_circle(sides: int) -> tuple[tuple[float, float], ...]:
    """Corners of a regular polygon, rounded so that no platform's sine matters."""
    return tuple((round(cos(2 * pi * k / sides), 9), round(sin(2 * pi * k / sides), 9)) for k in range(sides))


def disc(centre: Point, radius: float, facing: int, sides: int = 10) -> Quads:
    """A regular polygon (even `sides`) across the x axis, seen from +x (`facing` 1) or from -x (-1)."""
    x, y, z = centre
    ring = [(x, y + facing * radius * c, z + radius * s) for c, s in unit_circle(sides)]
    return np.array([(ring[0], ring[k], ring[k + 1], ring[k + 2]) for k in range(1, sides - 1, 2)])


def wheel(centre: Point, radius: float, width: float, sides: int = 10) -> tuple[tuple[str, Quads], ...]:
    """A tyre with its hubs, the axle along x."""
    x, y, z = centre
    left, right = x - width / 2, x + width / 2
    ring = [(y + radius * c, z + radius * s) for c, s in unit_circle(sides)]
    tread = [
        ((right, *ring[k]), (left, *ring[k]), (left, *ring[(k + 1) % sides]), (right, *ring[(k + 1) % sides]))
        for k in range(sides)
    ]
    walls = [disc((right, y, z), radius, 1, sides), disc((left, y, z), radius, -1, sides)]
    hubs = [disc((right + 0.01, y, z), radius * 0.58, 1, 8), disc((left - 0.01, y, z), radius * 0.58, -1, 8)]
    return ("tyre", np.concatenate([np.array(tread), *walls])), ("hub", np.concatenate(hubs))


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = vector.tolist()
    return np.array([x, y, z]) / sqrt(x * x + y * y + z * z)


def limb(start: Point, end: Point, start_radius: float, end_radius: float, sides: int = 5) -> Quads:
    """A tapering prism from `start` to `end`, capped at both."""
    p, q = np.array(start), np.array(end)
    along = q - p
    sideways = abs(along[0]) >= max(abs(along[1]), abs(along[2]))
    across = unit(np.cross(along, [0.0, 1.0, 0.0] if sideways else [1.0, 0.0, 0.0]))
    other = unit(np.cross(along, across))
    spokes = [c * across + s * other for c, s in unit_circle(sides)]
    foot, head = [p + start_radius * spoke for spoke in spokes], [q + end_radius * spoke for spoke in spokes]
    faces = []
    for k in range(sides):
        following = (k + 1) % sides
        faces.append((foot[k], foot[following], head[following], head[k]))
        faces.append((p, foot[following], foot[k], foot[k]))
        faces.append((q, head[k], head[following], head[following]))
    return np.array(faces)


def ellipsoid(centre: Point, radii: Point, around: int = 8, rings: int = 5) -> Quads:
    """A ball of `around` × `rings` quads, stretched by `radii`."""
    circle = unit_circle(around)
    faces = []
    for (low, r0), (high, r1) in pairwise((-c, s) for c, s in unit_circle(2 * rings)[: rings + 1]):
        for k in range(around):
            (c0, s0), (c1, s1) = circle[k], circle[(k + 1) % around]
            lower = ((c0 * r0, s0 * r0, low), (c1 * r0, s1 * r0, low))
            upper = ((c1 * r1, s1 * r1, high), (c0 * r1, s0 * r1, high))
            faces.append(lower + upper)
    ball: Quads = np.array(faces) * np.array(radii) + np.array(centre)
    return ball


def wall_grid(
    corner: Point, along: Point, width: float, height: float, columns: int, rows: int, fill: tuple[float, float]
) -> Quads:
    """`columns` × `rows` panels on an upright wall, each filling the share `fill` (across, up) of its cell.

    `corner`: the grid's lower left corner seen from outside; `along`: the unit vector to its right.
    """
    column, row = (part.ravel() for part in np.meshgrid(np.arange(columns), np.arange(rows)))
    u0, u1 = (column + (1 - fill[0]) / 2) * (width / columns), (column + (1 + fill[0]) / 2) * (width / columns)
    z0, z1 = (row + (1 - fill[1]) / 2) * (height / rows), (row + (1 + fill[1]) / 2) * (height / rows)
    corners = [
        np.stack([corner[0] + u * along[0], corner[1] + u * along[1], corner[2] + z], axis=-1)
        for u, z in ((u0, z0), (u1, z0), (u1, z1), (u0, z1))
    ]
    return np.stack(corners, axis=1)


# What moves


class CarPlan(NamedTuple):
    """The side view of a car, metres: `body` lists y, lower and upper edge; `cabin` the y of the rear window's foot, of
    the roof's two ends and of the windscreen's foot; then the roof's height, the axles' y and the wheels' radius."""

    body: tuple[tuple[float, float, float], ...]
    cabin: tuple[float, float, float, float]
    roof: float
    axles: tuple[float, float]
    radius: float


CARS = {
    "sedan": CarPlan(
        (
            (-2.3, 0.4, 0.86), (-2.2, 0.24, 0.94), (-1.2, 0.24, 0.98),
            (0.85, 0.24, 0.95), (2.1, 0.24, 0.76), (2.3, 0.32, 0.62),
        ),
        (-1.85, -1.05, 0.25, 1.15), 1.45, (-1.4, 1.42), 0.33,
    ),
    "hatchback": CarPlan(
        (
            (-1.95, 0.4, 0.92), (-1.88, 0.24, 1.0), (-1.0, 0.24, 1.0),
            (0.75, 0.24, 0.97), (1.8, 0.24, 0.82), (1.98, 0.32, 0.64),
        ),
        (-1.86, -1.45, 0.25, 1.05), 1.5, (-1.2, 1.22), 0.31,
    ),
    "suv": CarPlan(
        (
            (-2.25, 0.46, 1.0), (-2.2, 0.32, 1.12), (-1.0, 0.32, 1.12),
            (0.9, 0.32, 1.1), (2.1, 0.32, 0.98), (2.28, 0.4, 0.78),
        ),
        (-2.15, -1.85, 0.25, 1.05), 1.75, (-1.38, 1.42), 0.38,
    ),
    "van": CarPlan(
        (
            (-2.5, 0.36, 1.0), (-2.48, 0.26, 1.15), (-1.0, 0.26, 1.15),
            (1.2, 0.26, 1.13), (2.2, 0.26, 0.98), (2.45, 0.34, 0.72),
        ),
        (-2.47, -2.35, 0.9, 1.75), 2.1, (-1.6, 1.6), 0.35,
    ),
}  # fmt: skip
CAR_HALF_WIDTH = 0.9


@lru_cache
def car(style: str) -> Model:
    """One of CARS: a lofted body, a cabin with windows under a painted roof, wheels, lights, bumpers and plates."""
    plan, half = CARS[style], CAR_HALF_WIDTH
    shell = loft(*((y, low, high, half, half - 0.04) for y, low, high in plan.body))
    parts = [("paint", shell.all()), *car_cabin(plan, closed=style == "van")]
    for sign in (-1, 1):
        for y in plan.axles:
            arch = plan.radius + 0.07
            parts.append(("trim", disc((sign * (half + 0.004), y, arch), arch, sign)))
            parts += wheel((sign * (half - 0.09), y, plan.radius), plan.radius, 0.22)
    (rear, _, rear_high), (front, _, front_high) = plan.body[0], plan.body[-1]
    parts += [
        ("trim", box((-half - 0.005, rear - 0.03, 0.3), (half + 0.005, rear + 0.25, 0.5))),
        ("trim", box((-half - 0.005, front - 0.25, 0.28), (half + 0.005, front + 0.03, 0.44))),
        ("trim", box((-0.42, front - 0.1, 0.46), (0.42, front + 0.015, front_high - 0.06))),
        ("plate", box((-0.26, rear - 0.04, 0.52), (0.26, rear, 0.64))),
        ("plate", box((-0.26, front, 0.31), (0.26, front + 0.045, 0.42))),
    ]
    for x0, x1 in ((-half + 0.02, -0.52), (0.52, half - 0.02)):
        parts.append(("taillight", box((x0, rear - 0.02, rear_high - 0.24), (x1, rear + 0.1, rear_high - 0.04))))
        parts.append(("headlight", box((x0, front - 0.12, front_high - 0.17), (x1, front + 0.02, front_high - 0.01))))
    return model(*parts)


def car_cabin(plan: CarPlan, closed: bool) -> list[tuple[str, Quads]]:
    """Glass all around with a post in each side, or (`closed`) sheet metal with one window beside the driver."""
    half, roof_half = CAR_HALF_WIDTH - 0.05, 0.8 if closed else 0.68
    belt = min(high for _, _, high in plan.body[1:4]) - 0.03
    rear, roof_rear, roof_front, front = plan.cabin
    top = plan.roof - 0.04
    glass = loft(
        (rear, belt, belt + 0.02, half, half - 0.01),
        (roof_rear, belt, top, half, roof_half),
        (roof_front, belt, top, half, roof_half),
        (front, belt, belt + 0.02, half, half - 0.01),
    )
    lid = loft(
        (roof_rear - 0.05, top - 0.03, plan.roof, roof_half + 0.01, roof_half - 0.05),
        (roof_front + 0.05, top - 0.03, plan.roof, roof_half + 0.01, roof_half - 0.05),
    )
    if closed:
        outline = [
            (half + 0.015, 0.55, 1.28),
            (half + 0.015, 1.3, 1.28),
            (half + 0.01, 0.85, 1.9),
            (half + 0.01, 0.55, 1.9),
        ]
    else:
        post, foot, head = (roof_rear + roof_front) / 2, half + 0.005, roof_half + 0.01
        outline = [
            (foot, post - 0.06, belt),
            (foot, post + 0.06, belt),
            (head, post + 0.06, top),
            (head, post - 0.06, top),
        ]
    detail, sides = ("glass", "paint") if closed else ("paint", "glass")
    parts = [("paint", lid.all()), ("glass", glass.tops), (sides, glass.sides)]
    return parts + [(detail, mirrored(np.array([outline]), sign)) for sign in (-1, 1)]


MOTORBIKE_STYLES = ("roadster", "scooter", "courier")


@lru_cache
def motorbike(style: str, ridden: bool = True) -> Model:
    """A motorbike of one of MOTORBIKE_STYLES, as a rule with its rider, who counts as part of it."""
    scooter = style != "roadster"
    radius, axle, tail = (0.25, 0.62, -0.93) if scooter else (0.32, 0.72, -1.0)
    parts = [*wheel((0, -axle, radius), radius, 0.14, 12), *wheel((0, axle, radius), radius, 0.12, 12)]
    if scooter:
        rump = (-0.9, 0.5, 0.72, 0.12, 0.14), (-0.55, 0.36, 0.76, 0.2, 0.17), (-0.05, 0.26, 0.72, 0.2, 0.17)
        shield = (0.32, 0.26, 1.0, 0.22, 0.17), (0.42, 0.28, 0.98, 0.2, 0.15)
        parts += [
            ("paint", loft(*rump).all()),
            ("paint", loft(*shield).all()),
            ("trim", box((-0.17, -0.08, 0.22), (0.17, 0.42, 0.32))),
            ("seat", box((-0.15, -0.8, 0.72), (0.15, 0.0, 0.8))),
        ]
    else:
        tank = (-0.12, 0.62, 0.86, 0.1, 0.08), (0.1, 0.6, 0.98, 0.19, 0.12), (0.38, 0.64, 0.96, 0.15, 0.1)
        rump = (-0.98, 0.78, 0.86, 0.07, 0.08), (-0.5, 0.62, 0.8, 0.14, 0.13), (-0.12, 0.6, 0.78, 0.13, 0.12)
        parts += [
            ("paint", loft(*tank).all()),
            ("paint", loft(*rump).all()),
            ("metal", box((-0.16, -0.22, 0.26), (0.16, 0.3, 0.58))),
            ("seat", box((-0.13, -0.66, 0.77), (0.13, -0.08, 0.84))),
            ("metal", limb((0.2, 0.05, 0.3), (0.22, -0.85, 0.44), 0.05, 0.07)),
            ("trim", limb((0, -axle, radius), (0, -0.1, 0.4), 0.07, 0.07)),
        ]
    fork = limb((0.1, axle, radius), (0.12, axle - 0.28, 1.0), 0.035, 0.035, 4)
    cowl = (axle - 0.3, 0.84, 1.08, 0.13, 0.1), (axle - 0.14, 0.86, 1.04, 0.1, 0.08)
    parts += [
        *(("metal", mirrored(fork, sign)) for sign in (-1, 1)),
        ("trim", limb((-0.38, axle - 0.34, 1.06), (0.38, axle - 0.34, 1.06), 0.03, 0.03, 4)),
        ("paint", loft(*cowl).all()),
        ("headlight", box((-0.08, axle - 0.15, 0.88), (0.08, axle - 0.1, 1.03))),
        ("taillight", box((-0.09, tail, 0.62), (0.09, -0.88, 0.74))),
        ("plate", box((-0.09, tail - 0.01, 0.46), (0.09, tail + 0.06, 0.58))),
    ]
    if style == "courier":
        parts.append(("case", box((-0.26, -1.02, 0.84), (0.26, -0.5, 1.36))))
    return model(*parts, *(rider(0.78, (0.33, axle - 0.36, 1.07), upright=scooter) if ridden else []))


def rider(seat: float, grip: Point, upright: bool) -> list[tuple[str, Quads]]:
    """Someone who sits at height `seat` with the hands at `grip` and its mirror image."""
    hip_y, chest_y, chest = -0.3, -0.22 if upright else -0.02, seat + 0.56
    knee, foot = (0.2, 0.12, seat - 0.14), (0.2, 0.2 if upright else -0.02, 0.34)
    shoulder, elbow = (0.22, chest_y, chest - 0.06), (0.32, chest_y + 0.12, chest - 0.3)
    side = [
        ("top", limb(shoulder, elbow, 0.065, 0.055)),
        ("top", limb(elbow, grip, 0.055, 0.045)),
        ("trousers", limb((0.1, hip_y, seat + 0.06), knee, 0.1, 0.08)),
        ("trousers", limb(knee, foot, 0.08, 0.055)),
        ("shoes", box((0.15, foot[1] - 0.08, 0.26), (0.25, foot[1] + 0.18, 0.36))),
    ]
    return [
        ("top", torso((hip_y, seat), (chest_y, chest), 0.17, 0.23, 0.24)),
        ("skin", limb((0.0, chest_y, chest), (0.0, chest_y + 0.05, chest + 0.1), 0.06, 0.06)),
        ("helmet", ellipsoid((0.0, chest_y + 0.06, chest + 0.2), (0.14, 0.16, 0.16))),
        ("glass", box((-0.09, chest_y + 0.14, chest + 0.15), (0.09, chest_y + 0.215, chest + 0.25))),
        *((material, mirrored(quads, sign)) for material, quads in side for sign in (-1, 1)),
    ]


def torso(
    low: tuple[float, float], high: tuple[float, float], half_low: float, half_high: float, depth: float
) -> Quads:
    """A flat trunk from `low` to `high` (y and z), where it is half as wide as `half_low` and `half_high`."""
    foot, head = (
        [(x, y + side * depth / 2, z) for x, side in ((-half, -1), (half, -1), (half, 1), (-half, 1))]
        for (y, z), half in ((low, half_low), (high, half_high))
    )
    faces = [(foot[k], foot[(k + 1) % 4], head[(k + 1) % 4], head[k]) for k in range(4)]
    return np.array([*faces, head, foot[::-1]])


@lru_cache
def person(stride: int, bag: bool, skirt: bool) -> Model:
    """Someone 1.75 m tall who walks: `stride` in -2 … 2 says how far the left leg is ahead (0: standing)."""
    hip, chest = 0.9, 1.42
    parts = [
        ("top", torso((0, hip - 0.06), (0.02, chest), 0.17, 0.22, 0.22)),
        ("top", torso((0.02, chest), (0.02, chest + 0.06), 0.22, 0.1, 0.18)),
        ("skin", limb((0, 0.02, chest), (0, 0.03, chest + 0.12), 0.06, 0.06)),
        ("skin", ellipsoid((0, 0.04, 1.61), (0.1, 0.11, 0.135))),
        ("hair", ellipsoid((0, 0.015, 1.65), (0.108, 0.115, 0.11))),
    ]
    for sign in (-1, 1):
        step = -sign * 0.11 * stride
        behind, lift = (0.08, 0.06) if step < 0 else (0.0, 0.0)
        knee, ankle = (0.1, step + 0.06, 0.48), (0.1, step * 1.7 - behind, 0.09 + lift)
        elbow, hand = (0.28, -step * 0.8 - 0.02, 1.14), (0.27, -step * 1.7 + 0.08, 0.9)
        leg = "skin" if skirt else "trousers"
        side = [
            (leg, limb((0.09, 0, hip), knee, 0.1, 0.075)),
            (leg, limb(knee, ankle, 0.075, 0.055)),
            ("shoes", box((0.05, ankle[1] - 0.08, lift), (0.15, ankle[1] + 0.18, lift + 0.11))),
            ("top", limb((0.22, 0.02, chest - 0.02), elbow, 0.06, 0.05)),
            ("top", limb(elbow, hand, 0.05, 0.04)),
            ("skin", ellipsoid(hand, (0.045, 0.05, 0.06), 6, 3)),
        ]
        parts += [(material, mirrored(quads, sign)) for material, quads in side]
    if skirt:
        parts.append(("trousers", torso((0, 0.52), (0, hip), 0.26, 0.16, 0.3)))
    if bag:
        parts.append(("bag", box((-0.15, -0.28, 1.02), (0.15, -0.1, 1.42))))
    return model(*parts)


# What stands


WINDOW_WIDTH, STOREY, GROUND_STOREY, HOUSE_DEPTH = 2.6, 3.1, 3.6, 10.4


@lru_cache
def building(columns: int, floors: int, gable: bool, shop: bool) -> Model:
    """A house `columns` windows wide whose front (width along y) looks to its right (+x) at x = 0.

    The front and the -y wall have windows on each of the `floors` above the ground floor.
    """
    half, height, windows = columns * WINDOW_WIDTH / 2, GROUND_STOREY + STOREY * floors, (0.44, 0.54)
    ahead, inward = (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)
    front, side = (0.02, -half, GROUND_STOREY), (-HOUSE_DEPTH, -half - 0.02, GROUND_STOREY)
    foot = (0.02, -half, 0.0)
    parts = [
        ("wall", box((-HOUSE_DEPTH, -half, 0.0), (0.0, half, height))),
        ("band", box((-HOUSE_DEPTH - 0.1, -half, height), (0.25, half, height + 0.35))),
        ("window", wall_grid(front, ahead, 2 * half, STOREY * floors, columns, floors, windows)),
        ("window", wall_grid(side, inward, HOUSE_DEPTH, STOREY * floors, 3, floors, windows)),
    ]
    if gable:
        profile = 0.0, 2.6, HOUSE_DEPTH / 2 + 0.1, 0.0
        ridge = loft((-half, *profile), (half, *profile)).all()
        parts.append(("roof", shifted(ridge, x=0.1 - HOUSE_DEPTH / 2, z=height + 0.3)))
    if shop:
        parts.append(("shop", wall_grid(foot, ahead, 2 * half, GROUND_STOREY - 0.8, columns - 1, 1, (0.84, 0.76))))
        parts.append(("sign", box((0.0, 0.3 - half, 2.7), (0.3, half - 0.3, 3.35))))
    else:
        lower = wall_grid(foot, ahead, 2 * half, GROUND_STOREY, columns, 1, (0.42, 0.42))
        parts += [("door", shifted(lower[:1], z=-0.5)), ("window", lower[1:])]
        parts.append(("band", box((0.0, -half, 0.0), (0.12, half, 0.5))))
    return model(*parts)


CROWNS: tuple[tuple[Point, ...], ...] = (
    ((0.0, 0.0, 0.0), (0.35, 0.2, 0.5), (-0.4, -0.1, 0.4), (0.1, -0.35, 0.7)),
    ((-0.3, 0.3, 0.0), (0.4, 0.0, 0.2), (0.0, -0.3, 0.5), (-0.1, 0.1, 0.8)),
    ((0.2, 0.0, 0.0), (-0.3, 0.3, 0.3), (-0.2, -0.3, 0.1), (0.1, 0.1, 0.6)),
)


@lru_cache
def tree(crown: int) -> Model:
    """A tree 6 m tall: a trunk under the blobs of `CROWNS[crown]`, whose places are in units of a blob's width."""
    radius = 1.7
    blobs = [
        ellipsoid((x * radius, y * radius, 4.0 + radius * z), (radius * 0.8, radius * 0.8, radius * 0.64), 7, 5)
        for x, y, z in CROWNS[crown]
    ]
    return model(
        ("trunk", limb((0.0, 0.0, 0.0), (0.0, 0.0, 3.8), 0.16, 0.1)),
        ("leaf", np.concatenate(blobs[::2])),
        ("leaf_light", np.concatenate(blobs[1::2])),
    )


@lru_cache
def street_lamp() -> Model:
    """A lamp post whose arm reaches to its right (+x), over the road."""
    return model(
        ("pole", limb((0.0, 0.0, 0.0), (0.0, 0.0, 5.6), 0.09, 0.06)),
        ("pole", limb((0.0, 0.0, 5.55), (1.5, 0.0, 5.8), 0.05, 0.04, 4)),
        ("lamp", box((1.1, -0.13, 5.64), (1.8, 0.13, 5.74))),
    )


@lru_cache
def advertising_column() -> Model:
    """A round column with posters: clutter of about a person's width."""
    return model(
        ("sign", limb((0.0, 0.0, 0.2), (0.0, 0.0, 2.5), 0.55, 0.55, 10)),
        ("pole", limb((0.0, 0.0, 0.0), (0.0, 0.0, 0.25), 0.62, 0.62, 10)),
        ("roof", limb((0.0, 0.0, 2.5), (0.0, 0.0, 2.9), 0.66, 0.1, 10)),
    )


@lru_cache
def rubbish_bin() -> Model:
    """A wheeled rubbish bin."""
    return model(
        ("sign", loft((-0.3, 0.08, 1.0, 0.24, 0.3), (0.3, 0.08, 1.05, 0.24, 0.3)).all()),
        ("trim", loft((-0.33, 1.0, 1.1, 0.32, 0.3), (0.33, 1.05, 1.1, 0.32, 0.3)).all()),
    )


@lru_cache
def bollard() -> Model:
    """A post that keeps cars off the pavement."""
    return model(
        ("pole", limb((0.0, 0.0, 0.0), (0.0, 0.0, 0.95), 0.07, 0.06, 6)),
        ("mark", limb((0.0, 0.0, 0.72), (0.0, 0.0, 0.84), 0.08, 0.08, 6)),
    )


@lru_cache
def traffic_light() -> Model:
    """A signal on a post, red, for those who come from its rear (-y)."""
    lenses = [box((-0.08, -0.17, z), (0.08, -0.13, z + 0.16)) for z in (2.65, 2.4, 2.15)]
    return model(
        ("pole", limb((0.0, 0.0, 0.0), (0.0, 0.0, 2.9), 0.07, 0.06)),
        ("trim", box((-0.15, -0.14, 2.08), (0.15, 0.12, 2.88))),
        ("taillight", lenses[0]),
        ("metal", np.concatenate(lenses[1:])),
    )

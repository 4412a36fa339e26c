"""A street over time: traffic that moves, and an ego vehicle with a camera and a lidar that drives through it.

A drive is a function of (seed, split, index), and what is where at a moment is a function of the drive and that moment.
Nothing collides between its first second and its last. The ego vehicle's frame is nuScenes': the origin under the
middle of the rear axle on the ground, x ahead, y to the left, z up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import atan2, cos, inf, pi, sin

import numpy as np
from numpy.typing import NDArray

from noisebox.data.world.pose import Pose, product, rotation_about
from noisebox.data.world.scene import END, KERB, START, Camera, Scene, Street, Thing, Weather, turn
from noisebox.data.world.shapes import Point
from noisebox.data.world.street import Random, between, chance, draw_street, draw_weather, furniture, ground, houses
from noisebox.data.world.traffic import (
    Place,
    car_place,
    draw_car,
    draw_motorbike,
    draw_person,
    motorbike_place,
    person_place,
)
from noisebox.randomness import numpy_generator

LENGTH = 10.0  # seconds that a drive lasts
PASSING = 1.75  # second at which the ego vehicle passes y = 0 and the traffic stands where the still world would put it
STEP = 0.125  # seconds between the moments at which collisions are looked for
MARGIN = 0.3  # metres kept between things
PLINTH = 0.15  # how far a house's foot may stand out on the pavement, metres
TRUNK = 0.3  # radius of a tree where it leaves the ground, metres
EGO_SIZE = (1.0, 0.9, 3.9)  # half its width, what lies behind the rear axle and before it, metres
SIDE_STREETS_END = 60.0  # metres from the middle of the street
MOMENTS = np.arange(-STEP, LENGTH + STEP, STEP)

Boxes = NDArray[np.float64]  # (moments, 4): x from, x to, y from, y to


@dataclass(frozen=True)
class Mover:
    """A thing that goes straight ahead at `speed` metres a second; `thing` is where it is at the second PASSING, and
    `way` says how many metres it goes at most before (negative) and after that."""

    thing: Thing
    speed: float
    way: tuple[float, float] = (-inf, inf)

    def at(self, second: float, street: Street) -> Thing:
        """The thing at that second, stepping up and down the kerbs."""
        gone = min(max(self.speed * (second - PASSING), self.way[0]), self.way[1])
        (x, y, z), (c, s) = self.thing.position, turn(self.thing.yaw)
        if gone:
            x, y = round(x - s * gone, 4), round(y + c * gone, 4)
            z = KERB if is_raised(street, x, y) else 0.0
        return replace(self.thing, position=(x, y, z))

    def boxes(self) -> Boxes:
        """The upright boxes around it at all MOMENTS."""
        gone = np.clip(self.speed * (MOMENTS - PASSING), *self.way)
        c, s = turn(self.thing.yaw)
        (x0, x1), (y0, y1) = self.thing.footprint()
        return np.stack([x0 - s * gone, x1 - s * gone, y0 + c * gone, y1 + c * gone], axis=1)


@dataclass(frozen=True)
class Course:
    """The ego vehicle's way: `speed` along the street; across it from `x`, by `shift` metres from the second `begin` on
    for `duration` seconds, and to and fro by `sway` metres every `period` seconds."""

    speed: float
    x: float
    shift: float
    begin: float
    duration: float
    sway: float
    period: float
    phase: float

    def place(self, second: float) -> tuple[float, float, float]:
        """Where in the street the ego vehicle is at that second, x and y, and its yaw; it looks where it goes."""
        share = min(max((second - self.begin) / self.duration, 0.0), 1.0)
        angle = 2 * pi * second / self.period + self.phase
        x = self.x + self.shift * share * share * (3 - 2 * share) + self.sway * sin(angle)
        sideways = self.shift * 6 * share * (1 - share) / self.duration + self.sway * cos(angle) * 2 * pi / self.period
        return round(x, 6), round(self.speed * (second - PASSING), 6), round(-atan2(sideways, self.speed), 6)

    def pose(self, second: float) -> Pose:
        """The ego vehicle's pose in the street at that second."""
        x, y, yaw = self.place(second)
        return Pose(rotation_about("z", yaw + pi / 2), (x, y, 0.0))

    def boxes(self) -> Boxes:
        """The upright boxes around the ego vehicle at all MOMENTS."""
        half, rear, front = EGO_SIZE
        x, y, _ = np.array([self.place(moment) for moment in MOMENTS.tolist()]).T
        return np.stack([x - half, x + half, y - rear, y + front], axis=1)


@dataclass(frozen=True)
class Rig:
    """Where camera and lidar sit on the ego vehicle, in its frame.

    `position`, `yaw` and `pitch` are the camera's: at 0 it looks straight and level ahead, else as a Camera does, and
    `focal` is in image widths. The `lidar`'s own frame is x right, y ahead, z up.
    """

    position: Point
    yaw: float
    pitch: float
    focal: float
    lidar: Pose

    @property
    def camera(self) -> Pose:
        """The pose of the camera's frame: x right, y down, z ahead."""
        level = (0.5, -0.5, 0.5, -0.5)
        turned = product(rotation_about("z", self.yaw), rotation_about("y", -self.pitch))
        return Pose(product(turned, level), self.position)


@dataclass(frozen=True)
class Drive:
    """One drive through one street."""

    key: tuple[int, str, int]
    street: Street
    weather: Weather
    scenery: tuple[Thing, ...]
    movers: tuple[Mover, ...]
    course: Course
    rig: Rig

    def present(self, second: float) -> dict[int, Thing]:
        """The movers, by their number, that are in the street at that second."""
        things = {number: mover.at(second, self.street) for number, mover in enumerate(self.movers)}
        return {number: thing for number, thing in things.items() if is_in_town(thing.position)}

    def camera(self, second: float) -> Camera:
        """The camera, in the street, at that second."""
        x, y, z = self.course.pose(second).out(np.array(self.rig.position)).tolist()
        yaw = self.course.place(second)[2] + self.rig.yaw
        return Camera((x, y, z), yaw, self.rig.pitch, self.rig.focal)

    def still(self, second: float) -> Scene:
        """The scene at that second, whose objects are those `present`, in the same order."""
        seed, split, index = self.key
        key, objects = (seed, f"drive-{split}", index), tuple(self.present(second).values())
        return Scene(key, self.weather, self.camera(second), objects, self.scenery, self.street)


def is_raised(street: Street, x: float, y: float) -> bool:
    """Whether the ground is a pavement there, and not a carriageway."""
    side = street.side_street
    return not (street.left <= x <= street.right) and not (side and side[0] <= y <= side[1])


def is_in_town(position: Point) -> bool:
    """Whether there is street on all sides."""
    x, y, _ = position
    return abs(x) < SIDE_STREETS_END and START + 4 < y < END - 4


def make_drive(seed: int, split: str, index: int) -> Drive:
    """Drive `index` of a split. Distinct (seed, split, index) never share a random number."""
    rng = numpy_generator(seed, "world-drive", split, index)
    street = draw_street(rng)
    weather = draw_weather(rng)
    course, rig = draw_course(rng, street), draw_rig(rng)
    scenery = [*ground(rng, street), *houses(rng, street, weather), *furniture(rng, street)]
    movers = draw_movers(rng, street, course, scenery)
    return Drive((seed, split, index), street, weather, tuple(scenery), tuple(movers), course, rig)


def draw_course(rng: Random, street: Street) -> Course:
    """Along the right half of the street at 4 to 11 m/s; now and then from one lane to the other."""
    lane = street.lanes - 1 if chance(rng, 0.7) else 0
    changes = street.lanes > 1 and chance(rng, 0.6)
    shift = street.lane * (1 if lane == 0 else -1) if changes else 0.0
    begin, duration = between(rng, -1.0, 3.0), between(rng, 3.0, 4.5)
    sway, period, phase = between(rng, 0.1, 0.55), between(rng, 5.0, 9.0), between(rng, -pi, pi)
    return Course(between(rng, 4, 11), (lane + 0.5) * street.lane, shift, begin, duration, sway, period, phase)


def draw_rig(rng: Random) -> Rig:
    """Mounted as on nuScenes' vehicles, and as carefully: within a degree. The camera looks a little down."""
    position = (1.70, round(between(rng, -0.02, 0.02), 4), round(between(rng, 1.40, 1.62), 4))
    yaw, pitch, focal = between(rng, -0.015, 0.015), between(rng, -0.09, -0.03), between(rng, 0.76, 0.82)
    turned, nod, lean = (round(between(rng, -0.012, 0.012), 6) for _ in range(3))
    tilted = product(rotation_about("x", nod), rotation_about("y", lean))
    lidar = Pose(product(rotation_about("z", turned - pi / 2), tilted), (0.94, 0.0, 1.84))
    return Rig(position, round(yaw, 6), round(pitch, 6), round(focal, 6), lidar)


# The traffic


def draw_movers(rng: Random, street: Street, course: Course, scenery: list[Thing]) -> list[Mover]:
    """Cars, motorbikes and persons, none ever touching another, the ego vehicle, a tree or a lamp."""
    plans: list[tuple[Callable[[Random], Thing], Callable[[Random, Street], Place | None], int]] = [
        (draw_car, car_place, int(rng.integers(5, 11))),
        (draw_motorbike, motorbike_place, int(rng.integers(4, 9))),
        (draw_person, person_place, int(rng.integers(8, 16))),
    ]
    taken = [course.boxes(), *(foot_of(thing) for thing in scenery if thing.category in ("furniture", "tree"))]
    movers: list[Mover] = []
    for draw, place, wanted in plans:
        found = 0
        for _ in range(8 * wanted):
            spot = further(rng, street, place(rng, street)) if found < wanted else None
            if spot is None:
                continue
            x, y, z, yaw = spot
            thing = replace(draw(rng), position=(round(x, 3), round(y, 3), z), yaw=round(yaw, 4))
            mover = walking(rng, street, thing) if thing.category == "person" else driving(rng, street, thing)
            boxes = mover.boxes()
            if between_houses(street, boxes) and not any(collide(boxes, other) for other in taken):
                movers.append(mover)
                taken.append(boxes)
                found += 1
    return movers


def foot_of(thing: Thing) -> Boxes:
    """The upright box, in one row, around the trunk of a tree or the foot of a lamp, whose arm may be longer."""
    half = TRUNK if thing.category == "tree" else min(thing.size[:2]) / 2
    x, y, _ = thing.position
    return np.array([(x - half, x + half, y - half, y + half)])


def between_houses(street: Street, boxes: Boxes) -> bool:
    """Whether something stays, where no side street opens, between the house fronts of the main street."""
    low, high = street.side_street or (inf, inf)
    beside = (boxes[:, 3] < low - street.walk) | (boxes[:, 2] > high + street.walk)
    room = street.walk - PLINTH
    outside = (boxes[:, 0] < street.left - room) | (boxes[:, 1] > street.right + room)
    return not (beside & outside).any()


def collide(one: Boxes, other: Boxes) -> bool:
    """Whether two things come closer than MARGIN to each other at any of MOMENTS; a thing that stands is one row."""
    low, high = one[:, ::2] - MARGIN, one[:, 1::2] + MARGIN
    return bool(((low < other[:, 1::2]) & (other[:, ::2] < high)).all(axis=1).any())


def further(rng: Random, street: Street, place: Place | None) -> Place | None:
    """The same place, or one further along the street if nothing crosses there; None if something does."""
    if place is None or chance(rng, 0.6):
        return place
    x, y, z, yaw = place
    away = y + between(rng, 0, 55)
    for crossing in (street.side_street, street.crosswalk):
        if crossing and any(crossing[0] - 6 < each < crossing[1] + 6 for each in (y, away)):
            return None
    return x, away, z, yaw


def driving(rng: Random, street: Street, thing: Thing) -> Mover:
    """A vehicle drives straight along its street at 4 to 13 m/s; parked, crooked, or now and then, it stands."""
    straight = round(thing.yaw / (pi / 2)) * (pi / 2)
    along_main = abs(cos(straight)) > 0.5
    parked = along_main and abs(thing.position[0]) > street.lanes * street.lane
    if parked or abs(thing.yaw - straight) > 0.12 or chance(rng, 0.2):
        return Mover(thing, 0.0)
    return Mover(replace(thing, yaw=straight), round(between(rng, 4, 13), 2))


def walking(rng: Random, street: Street, thing: Thing) -> Mover:
    """A person walks at 0.7 to 1.7 m/s as far as there is a `walk`, or stands."""
    if chance(rng, 0.2):
        return Mover(thing, 0.0)
    return Mover(thing, round(between(rng, 0.7, 1.7), 2), walk(street, thing))


def walk(street: Street, thing: Thing) -> tuple[float, float]:
    """How far someone may walk back and on: within their pavement and block, or from one pavement to the other."""
    (x, y, z), (c, s) = thing.position, turn(thing.yaw)
    outer, inner = street.walk - 0.75, 0.4
    if z == 0.0:
        across = (street.left - outer, street.right + outer)
    else:
        across = (street.left - outer, street.left - inner) if x < 0 else (street.right + inner, street.right + outer)
    block = next(((low, high) for low, high in street.blocks() if low <= y <= high), (y - 3, y + 3))
    low, high = -inf, inf
    for at, way, (first, last) in ((x, -s, across), (y, c, (block[0] + 0.5, block[1] - 0.5))):
        if abs(way) > 1e-9:
            ends = sorted(((first - at) / way, (last - at) / way))
            low, high = max(low, ends[0]), min(high, ends[1])
    return round(min(low, 0.0), 4), round(max(high, 0.0), 4)

"""What a scene is: things with a pose in the world, the weather, and the camera that looks at them.

The world is right-handed and in metres: x to the right of the road, y along it (the way the ego vehicle drives), z up;
the ego vehicle's camera stands above y = 0. Angles are in radians; a yaw turns anticlockwise seen from above, and a
thing with yaw 0 looks along +y.
"""

from dataclasses import dataclass, field
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

from noisebox.data.world.shapes import MATERIAL_INDEX, MATERIALS, Colour, Model, Point, Quads

CLASSES = ("car", "motorbike", "person")  # annotated; everything else is scenery
EMITTERS = ("headlight", "taillight", "lamp", "lit")  # materials that shine where the lights are on

START, END = -40.0, 130.0  # of the street, along y
SQUARE = 12.0  # between the street's end and the houses that close the view
REACH = 90.0  # how far the world extends to either side
PARKING = 2.2  # width of a strip for parked cars
KERB = 0.14  # height of the pavements

Polygon = NDArray[np.float64]  # (k, 2) corners on the ground, metres
Range = tuple[float, float]


def turn(angle: float) -> tuple[float, float]:
    """Cosine and sine, rounded so that the last bit of a platform's library does not matter."""
    return round(cos(angle), 9), round(sin(angle), 9)


@dataclass(frozen=True)
class Thing:
    """One thing in the street. `position` is the middle of its foot, `scale` multiplies the model's x, y and z."""

    category: str
    model: Model
    position: Point
    yaw: float = 0.0
    scale: Point = (1.0, 1.0, 1.0)
    palette: dict[str, Colour] = field(default_factory=dict)

    @property
    def size(self) -> Point:
        """Width (across), length (along its heading) and height, metres."""
        width, length, height = self.model.size
        return width * self.scale[0], length * self.scale[1], height * self.scale[2]

    def quads(self) -> Quads:
        """Faces (n, 4, 3) in the world, rounded to a tenth of a millimetre."""
        c, s = turn(self.yaw)
        x, y, z = (self.model.quads[..., axis] * self.scale[axis] for axis in range(3))
        placed = (c * x - s * y + self.position[0], s * x + c * y + self.position[1], z + self.position[2])
        return np.asarray(np.round(np.stack(placed, axis=-1), 4), dtype=np.float64)

    def colours(self) -> NDArray[np.float64]:
        """Face colours (n, 3), RGB in 0 … 255, unlit."""
        table = np.array(list((MATERIALS | self.palette).values()), dtype=np.float64)
        return table[self.model.materials]

    def footprint(self) -> tuple[Range, Range]:
        """The x and y ranges of the upright box around it."""
        width, length, _ = self.size
        c, s = (abs(part) for part in turn(self.yaw))
        half_x, half_y = (c * width + s * length) / 2, (s * width + c * length) / 2
        x, y, _ = self.position
        return (x - half_x, x + half_x), (y - half_y, y + half_y)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. `focal` is in image widths; positive `pitch` looks up."""

    position: Point
    yaw: float
    pitch: float
    focal: float

    def axes(self) -> tuple[Point, Point, Point]:
        """Its right, down and forward unit vectors in the world."""
        (cy, sy), (cp, sp) = turn(self.yaw), turn(self.pitch)
        return (cy, sy, 0.0), (-sy * sp, cy * sp, -cp), (-sy * cp, cy * cp, sp)

    def view(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points (…, 3) in camera coordinates: x right, y down, z ahead, metres."""
        x, y, z = (points[..., axis] - self.position[axis] for axis in range(3))
        return np.stack([a[0] * x + a[1] * y + a[2] * z for a in self.axes()], axis=-1)

    def intrinsics(self, height: int, width: int) -> NDArray[np.float64]:
        """The camera matrix (3, 3) for an image of that size: square pixels, the principal point in the middle."""
        focal = self.focal * width
        return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Weather:
    """Light and air. Colours are RGB; `sun` points to the sun; haze hides half of a colour at 0.41 × `haze` metres."""

    name: str
    sun: Point
    sunlight: tuple[float, float, float]
    ambient: tuple[float, float, float]
    horizon: Colour
    zenith: Colour
    haze: float
    shadow: float  # how much light a cast shadow leaves
    clouds: float  # contrast of clouds
    lights: bool  # headlights, street lamps and windows are on


@dataclass(frozen=True)
class Street:
    """The plan of the ground. The centre line is x = 0; the carriageway reaches from x = `left` to x = `right`."""

    lanes: int  # in each direction
    lane: float  # width of one
    parking: tuple[bool, bool]  # a strip for parked cars on the left, on the right
    walk: float  # width of the pavements
    side_street: Range | None  # the y range of a street that crosses
    crosswalk: Range | None  # the y range of a zebra crossing

    @property
    def left(self) -> float:
        return -(self.lanes * self.lane + PARKING * self.parking[0])

    @property
    def right(self) -> float:
        return self.lanes * self.lane + PARKING * self.parking[1]

    def blocks(self) -> list[Range]:
        """The y ranges between streets."""
        if self.side_street is None:
            return [(START, END)]
        return [(START, self.side_street[0]), (self.side_street[1], END)]

    def drivable(self) -> list[Polygon]:
        """Where vehicles may drive; the polygons may overlap."""
        main = band(self.left, self.right, START, END + SQUARE)
        return [main, band(-REACH, REACH, *self.side_street)] if self.side_street else [main]

    def walkways(self) -> list[Polygon]:
        """The pavements; the polygons may overlap."""
        strips = [
            band(x - self.walk, x, *block) for x in (self.left, self.right + self.walk) for block in self.blocks()
        ]
        if self.side_street:
            for y in (self.side_street[0] - self.walk, self.side_street[1]):
                strips += [band(-REACH, self.left, y, y + self.walk), band(self.right, REACH, y, y + self.walk)]
        return strips

    def crossings(self) -> list[Polygon]:
        """The zebra crossings."""
        return [band(self.left, self.right, *self.crosswalk)] if self.crosswalk else []


def band(x0: float, x1: float, y0: float, y1: float) -> Polygon:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


@dataclass(frozen=True)
class Faces:
    """All faces of a scene, one row each. `vertices` (n, 4, 3) metres, `colours` (n, 3) RGB unlit, `emits` (n,) bool.

    `instances` (n,): k + 1 for the faces of `objects[k]`, 0 for scenery. `ground` (n,): lies flat, takes shadows.
    `casts` (n,): throws a shadow on the level `foot` (n,).
    """

    vertices: Quads
    colours: NDArray[np.float64]
    emits: NDArray[np.bool_]
    instances: NDArray[np.int64]
    ground: NDArray[np.bool_]
    casts: NDArray[np.bool_]
    foot: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """A street at one moment. `objects` are annotated, `scenery` is not; `street` says what the ground is for."""

    key: tuple[int, str, int]
    weather: Weather
    camera: Camera
    objects: tuple[Thing, ...]
    scenery: tuple[Thing, ...]
    street: Street | None = None

    def faces(self) -> Faces:
        """Every face of every thing, the objects first."""
        things = (*self.objects, *self.scenery)
        quads = [thing.quads() for thing in things]
        counts = [len(part) for part in quads]
        numbers = [*range(1, len(self.objects) + 1), *[0] * len(self.scenery)]
        glowing = np.isin(np.arange(len(MATERIALS)), [MATERIAL_INDEX[name] for name in EMITTERS])
        return Faces(
            vertices=np.concatenate(quads),
            colours=np.concatenate([thing.colours() for thing in things]),
            emits=np.concatenate([glowing[thing.model.materials] for thing in things]),
            instances=np.repeat(np.array(numbers, dtype=np.int64), counts),
            ground=np.repeat([thing.category == "ground" for thing in things], counts),
            casts=np.repeat([thing.category not in ("ground", "building") for thing in things], counts),
            foot=np.repeat([thing.position[2] for thing in things], counts),
        )

    def triangles(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Every surface as triangles (m, 3, 3) in metres, for ray casting, with the instance of each (m,)."""
        faces = self.faces()
        triangles = np.concatenate([faces.vertices[:, [0, 1, 2]], faces.vertices[:, [0, 2, 3]]])
        edges = triangles[:, 1:] - triangles[:, :1]
        solid = np.abs(np.cross(edges[:, 0], edges[:, 1])).max(axis=1) > 1e-12
        return triangles[solid], np.tile(faces.instances, 2)[solid]

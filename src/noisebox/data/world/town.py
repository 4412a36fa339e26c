"""The plan of a town that is seen from above: a grid of roads, and between them blocks with pavements around plots.

Coordinates are the world's, in metres; what is looked at lies around the origin.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import pi

import numpy as np

from noisebox.data.world import shapes
from noisebox.data.world.scene import KERB, Range, Thing
from noisebox.data.world.shapes import Colour, Quads, rectangle
from noisebox.data.world.street import PAVINGS, Random, between, chance, pick

LANE = 3.3
WALK = 2.8  # width of a pavement
BLOCK: Range = (36.0, 56.0)  # between two roads
PLOT = 26.0  # a plot longer than 1.3 times this is divided
ZEBRA: Range = (1.0, 4.0)  # where a zebra crossing lies before the crossing road's edge
STOP_LINE = 4.8
GROUND, MARK = KERB + 0.02, KERB + 0.04  # levels of a plot's surface and of what is painted on it


@dataclass(frozen=True)
class Road:
    """A straight road along x or y: where its middle lies on the other axis, and how many lanes it has each way."""

    centre: float
    lanes: int

    @property
    def half(self) -> float:
        return self.lanes * LANE


@dataclass(frozen=True)
class Arm:
    """One way to come to a crossing, heading north turned anticlockwise by `quarter` right angles.

    `half` is the half width of the road, `setback` that of the road it meets; the arm begins `length` metres before the
    crossing's middle.
    """

    crossing: tuple[float, float]
    quarter: int
    half: float
    lanes: int
    setback: float
    length: float

    @property
    def heading(self) -> float:
        """The yaw of who drives towards the crossing."""
        return self.quarter * pi / 2

    def at(self, before: float, right: float) -> tuple[float, float]:
        """The point so many metres before the crossing's middle and to the right of the road's."""
        x, y = turned(self.quarter, right, -before)
        return self.crossing[0] + x, self.crossing[1] + y

    def stripe(self, before: Range, right: Range, z: float) -> Quads:
        """A level rectangle."""
        x, y = spanned(self.at(before[0], right[0]), self.at(before[1], right[1]))
        return rectangle(*x, *y, z)


@dataclass(frozen=True)
class Plot:
    """A rectangle of ground with a use. Its front is the side `quarter` (0 south, then anticlockwise); seen from there,
    u runs along the front and v inwards."""

    x: Range
    y: Range
    quarter: int

    @property
    def width(self) -> float:
        return self.x[1] - self.x[0] if self.quarter % 2 == 0 else self.y[1] - self.y[0]

    @property
    def depth(self) -> float:
        return self.y[1] - self.y[0] if self.quarter % 2 == 0 else self.x[1] - self.x[0]

    @property
    def middle(self) -> tuple[float, float]:
        return sum(self.x) / 2, sum(self.y) / 2

    def at(self, u: float, v: float) -> tuple[float, float]:
        x, y = turned(self.quarter, u - self.width / 2, v - self.depth / 2)
        return self.middle[0] + x, self.middle[1] + y

    def yaw(self, within: float = 0.0) -> float:
        """The world's yaw of a thing that has yaw `within` seen from the front."""
        return within + self.quarter * pi / 2

    def span(self, u: Range, v: Range) -> tuple[Range, Range]:
        """The x and y ranges of a part of it."""
        return spanned(self.at(u[0], v[0]), self.at(u[1], v[1]))

    def patch(self, u: Range, v: Range, z: float = GROUND) -> Quads:
        """A level rectangle."""
        x, y = self.span(u, v)
        return rectangle(*x, *y, z)

    def whole(self) -> Quads:
        return rectangle(*self.x, *self.y, GROUND)


def turned(quarter: int, x: float, y: float) -> tuple[float, float]:
    """(x, y) turned anticlockwise by so many right angles."""
    return ((x, y), (-y, x), (-x, -y), (y, -x))[quarter % 4]


def spanned(one: tuple[float, float], other: tuple[float, float]) -> tuple[Range, Range]:
    """The x and y ranges of the upright rectangle between two opposite corners."""
    (x0, x1), (y0, y1) = sorted((one[0], other[0])), sorted((one[1], other[1]))
    return (x0, x1), (y0, y1)


def ground(*parts: tuple[str, Quads], **palette: Colour) -> Thing:
    """Something flat, which takes shadows; quads in the world's coordinates."""
    return Thing("ground", shapes.model(*parts), (0.0, 0.0, 0.0), palette=palette)


# Roads


def draw_roads(rng: Random, reach: Range) -> list[Road]:
    """Parallel roads by rising place, one of them near 0, the outermost beyond `reach`."""

    def draw() -> Road:
        return Road(0.0, 1 if chance(rng, 0.55) else 2)

    roads = [replace(draw(), centre=between(rng, -20, 20))]
    while roads[-1].centre < reach[1]:
        road = draw()
        roads.append(Road(roads[-1].centre + roads[-1].half + between(rng, *BLOCK) + road.half, road.lanes))
    while roads[0].centre > reach[0]:
        road = draw()
        roads.insert(0, Road(roads[0].centre - roads[0].half - between(rng, *BLOCK) - road.half, road.lanes))
    return roads


def arms_of(columns: list[Road], rows: list[Road]) -> list[Arm]:
    """The arms of all crossings of roads along y (`columns`) and along x (`rows`)."""
    arms = []
    for quarter in range(4):
        own, met = (columns, rows) if quarter % 2 == 0 else (rows, columns)
        forward = quarter in (0, 3)  # towards rising y or x
        for road in own:
            for before, after in pairwise(met):
                end, start = (after, before) if forward else (before, after)
                crossing = (road.centre, end.centre) if quarter % 2 == 0 else (end.centre, road.centre)
                length = abs(end.centre - start.centre) / 2
                arms.append(Arm(crossing, quarter, road.half, road.lanes, end.half, length))
    return arms


def marks_of(rng: Random, arm: Arm) -> list[Quads]:
    """Zebra, stop line, centre line and lane lines of an arm."""
    z, start = 0.02, arm.setback + STOP_LINE
    marks = [arm.stripe((start, start + 0.4), (0.2, arm.half - 0.2), z)]
    if chance(rng, 0.85):
        stripes = int(2 * arm.half)
        for k in range(stripes):
            right = -arm.half + 0.25 + k * (2 * arm.half - 0.2) / stripes
            marks.append(arm.stripe((arm.setback + ZEBRA[0], arm.setback + ZEBRA[1]), (right, right + 0.5), z))
    marks.append(arm.stripe((start, arm.length), (0.06, 0.18), z))
    dashes = [(start + 5 * k, start + 5 * k + 2.2) for k in range(int((arm.length - start) / 5))]
    lines = [(line * LANE - 0.07, line * LANE + 0.07) for line in range(1, arm.lanes)]
    marks += [arm.stripe(dash, line, z) for line in lines for dash in dashes]
    return [*marks, arm.stripe((start, arm.length), (arm.half - 0.3, arm.half - 0.15), z)]


def road_surface(rng: Random, columns: list[Road], rows: list[Road], arms: list[Arm]) -> Thing:
    """Asphalt under the whole town, mended here and there, and the marks on it."""
    tone = int(rng.integers(-16, 12))
    span = rectangle(columns[0].centre, columns[-1].centre, rows[0].centre, rows[-1].centre, 0.0)
    patches = []
    for arm in arms:
        for _ in range(int(rng.integers(0, 3))):
            before, right = between(rng, 6, arm.length), between(rng, -arm.half, arm.half - 1.5)
            size = between(rng, 0.8, 5), between(rng, 0.6, 1.5)
            patches.append(arm.stripe((before, before + size[0]), (right, right + size[1]), 0.01))
    marks = [quads for arm in arms for quads in marks_of(rng, arm)]
    worn = int(rng.integers(-40, 10))
    return ground(
        ("asphalt", span), *(("patch", quads) for quads in patches), ("mark", np.concatenate(marks)),
        asphalt=(88 + tone, 89 + tone, 93 + tone), mark=(216 + worn, 216 + worn, 208 + worn),
    )  # fmt: skip


# Blocks


def draw_plots(rng: Random, columns: list[Road], rows: list[Road]) -> list[tuple[Thing, list[Plot]]]:
    """Every block's pavement, and its plots."""
    blocks = []
    for left, right in pairwise(columns):
        for low, high in pairwise(rows):
            x = left.centre + left.half, right.centre - right.half
            y = low.centre + low.half, high.centre - high.half
            parts = [
                ("kerb", rectangle(*x, *y, KERB)),
                ("paving", rectangle(*inset(x, 0.25), *inset(y, 0.25), KERB + 0.01)),
            ]
            inner = Plot(inset(x, WALK), inset(y, WALK), int(rng.integers(4)))
            blocks.append((ground(*parts, paving=pick(rng, PAVINGS)), divided(rng, inner)))
    return blocks


def inset(side: Range, margin: float) -> Range:
    return side[0] + margin, side[1] - margin


def divided(rng: Random, plot: Plot) -> list[Plot]:
    """The plot, or its two halves if it is large, each with its front to the outside."""
    (x0, x1), (y0, y1) = plot.x, plot.y
    if max(x1 - x0, y1 - y0) < 1.3 * PLOT:
        return [plot]
    cut = between(rng, 0.4, 0.6)
    if x1 - x0 > y1 - y0:
        middle = x0 + cut * (x1 - x0)
        return [Plot((x0, middle), plot.y, 3), Plot((middle, x1), plot.y, 1)]
    middle = y0 + cut * (y1 - y0)
    return [Plot(plot.x, (y0, middle), 0), Plot(plot.x, (middle, y1), 2)]

"""What stands in the town and stays empty: houses with gardens, halls, parks, courts; trees and lamps along roads."""

from math import pi

import numpy as np

from noisebox.data.world import shapes
from noisebox.data.world.scene import KERB, Range, Thing
from noisebox.data.world.shapes import Colour, Model, Quads, box, loft, rectangle
from noisebox.data.world.stage import Stage
from noisebox.data.world.street import PAVINGS, WALLS, Random, between, chance, draw_tree, pick
from noisebox.data.world.town import MARK, Arm, Plot, ground, inset

ROOFS: tuple[Colour, ...] = (
    (150, 84, 64), (128, 70, 58), (110, 112, 116), (146, 146, 142), (96, 84, 76), (84, 104, 130), (170, 160, 146),
    (120, 128, 118),
)  # fmt: skip
LAWNS: tuple[Colour, ...] = ((104, 136, 66), (118, 142, 74), (92, 124, 62), (140, 142, 84))
WATER: Colour = (84, 112, 120)
COURTS: tuple[tuple[Colour, Colour], ...] = (  # inside and outside the lines
    ((64, 110, 150), (70, 120, 84)), ((160, 84, 64), (72, 116, 80)), ((84, 140, 84), (110, 150, 90)),
)  # fmt: skip


def house(width: float, depth: float, floors: int, gable: bool, things_on_roof: int) -> Model:
    """A house around the origin with windows on all sides. A flat roof carries boxes, a gable has its ridge along y."""
    x, y, height = width / 2, depth / 2, shapes.STOREY * floors + 0.8
    walls = [
        shapes.wall_grid(corner, along, length, height - 0.8, max(2, int(length / 2.8)), floors, (0.46, 0.5))
        for corner, along, length in (
            ((-x, -y - 0.03, 0.4), (1.0, 0.0, 0.0), width), ((x + 0.03, -y, 0.4), (0.0, 1.0, 0.0), depth),
            ((x, y + 0.03, 0.4), (-1.0, 0.0, 0.0), width), ((-x - 0.03, y, 0.4), (0.0, -1.0, 0.0), depth),
        )
    ]  # fmt: skip
    parts = [("wall", box((-x, -y, 0.0), (x, y, height))), ("window", np.concatenate(walls))]
    if gable:
        profile = height - 0.1, height + 0.28 * width, x + 0.4, 0.0
        return shapes.model(*parts, ("roof", loft((-y - 0.4, *profile), (y + 0.4, *profile)).all()))
    parts.append(("band", box((-x - 0.1, -y - 0.1, height), (x + 0.1, y + 0.1, height + 0.5))))
    parts.append(("roof", rectangle(-x + 0.25, x - 0.25, -y + 0.25, y - 0.25, height + 0.52)))
    for k in range(things_on_roof):  # spread evenly without a random number
        across, along = ((k * 0.38 + 0.21) % 1 - 0.5) * (width - 3), ((k * 0.62 + 0.3) % 1 - 0.5) * (depth - 3)
        material, half, tall = ("metal", 0.55, 1.3) if k % 3 else ("wall", 1.0, 1.7)
        low, high = (across - half, along - half, height + 0.5), (across + half, along + half, height + tall)
        parts.append((material, box(low, high)))
    return shapes.model(*parts)


def draw_house(rng: Random, plot: Plot, u: Range, v: Range, floors: int, gable: bool) -> Thing:
    """A house that fills a part of a plot; long ridges run along the longer side."""
    (x, y), width, depth = plot.at(sum(u) / 2, sum(v) / 2), u[1] - u[0], v[1] - v[0]
    across = gable and width > depth
    shape = house(*((depth, width) if across else (width, depth)), floors, gable, int(rng.integers(1, 5)))
    shade, wall = int(rng.integers(-16, 17)), pick(rng, WALLS)
    red, green, blue = (part + shade for part in wall)
    palette = {"wall": (red, green, blue), "roof": pick(rng, ROOFS), "band": (red + 14, green + 14, blue + 14)}
    return Thing("house", shape, (x, y, KERB), plot.yaw(pi / 2 if across else 0.0), palette=palette)


def houses(rng: Random, plot: Plot, stage: Stage) -> None:
    """A row of houses along the front, a garden with trees behind; or one hall that fills the plot."""
    if chance(rng, 0.3):
        margin = between(rng, 1, 3)
        stage.scenery.append(ground(("paving", plot.whole()), paving=pick(rng, PAVINGS)))
        u, v = inset((0, plot.width), margin), inset((0, plot.depth), margin)
        stage.stand(draw_house(rng, plot, u, v, int(rng.integers(1, 4)), False))
        return
    stage.scenery.append(ground(("grass", plot.whole()), grass=pick(rng, LAWNS)))
    start, deep, gables = between(rng, 0.3, 2), min(between(rng, 9, 12), plot.depth - 1), chance(rng, 0.6)
    while (end := start + between(rng, 8, 14)) <= plot.width:
        stage.stand(draw_house(rng, plot, (start, end), (0.4, deep), int(rng.integers(1, 5)), gables))
        start = end + (0.2 if chance(rng, 0.3) else between(rng, 2, 4))
    for _ in range(int(plot.width * (plot.depth - deep) / 40)):
        place = plot.at(between(rng, 1.5, plot.width - 1.5), between(rng, deep + 0.5, plot.depth))
        stage.scenery.append(tree_at(rng, place, (4, 8)))


def park(rng: Random, plot: Plot, stage: Stage) -> None:
    """A lawn with two paths, trees and perhaps a pond."""
    u, v = between(rng, 0.3, 0.7) * plot.width, between(rng, 0.3, 0.7) * plot.depth
    paths = [
        plot.patch((u - 0.9, u + 0.9), (0, plot.depth), MARK),
        plot.patch((0, plot.width), (v - 0.9, v + 0.9), MARK),
    ]
    parts = [("grass", plot.whole()), ("paving", np.concatenate(paths))]
    pond = chance(rng, 0.35)
    if pond:
        x, y = plot.span((1.5, u - 1.5), (v + 1.5, plot.depth - 1.5))
        parts += [("kerb", ellipse(x, y, 0.4, MARK)), ("glass", ellipse(x, y, 0.0, MARK + 0.02))]
        stage.taken.append((x, y))
    stage.scenery.append(ground(*parts, grass=pick(rng, LAWNS), paving=pick(rng, PAVINGS), glass=WATER))
    for _ in range(int(plot.width * plot.depth / between(rng, 28, 80))):
        across, along = between(rng, 1.5, plot.width - 1.5), between(rng, 1.5, plot.depth - 1.5)
        if min(abs(across - u), abs(along - v)) > 2 and not (pond and across < u and along > v):
            stage.scenery.append(tree_at(rng, plot.at(across, along), (4.5, 9)))


def court(rng: Random, plot: Plot, stage: Stage) -> None:
    """Sports courts side by side, with their lines."""
    inside, outside = pick(rng, COURTS)
    count = max(1, int(plot.width / 15))
    each = plot.width / count
    surfaces: list[tuple[str, Quads]] = [("grass", plot.whole())]
    for k in range(count):
        u, v = inset((k * each, (k + 1) * each), 1.5), inset((0, plot.depth), 2.0)
        middle, goal = sum(v) / 2, inset(u, 0.3 * (u[1] - u[0]))
        fields = [(u, v), (u, (v[0], middle)), (goal, (v[0], v[0] + 4)), (goal, (v[1] - 4, v[1]))]
        for height, (across, along) in enumerate(fields):
            z = MARK + 0.04 * height
            surfaces.append(("mark", plot.patch(across, along, z)))
            surfaces.append(("sign", plot.patch(inset(across, 0.15), inset(along, 0.15), z + 0.02)))
    stage.scenery.append(ground(*surfaces, grass=outside, sign=inside))


def tree_at(rng: Random, place: tuple[float, float], heights: Range) -> Thing:
    return draw_tree(rng, (*place, KERB), between(rng, *heights))


def avenue(rng: Random, arm: Arm, stage: Stage) -> None:
    """Trees or lamps along the right-hand pavement of an arm."""
    trees, spacing, post = chance(rng, 0.5), between(rng, 7, 11), shapes.street_lamp()
    lamp = Model(shapes.mirrored(post.quads, -1), post.materials)  # its arm over the road
    at = arm.setback + between(rng, 6, 9)
    while at < arm.length:
        place = arm.at(at, arm.half + 0.7)
        if trees:
            stage.scenery.append(tree_at(rng, place, (4, 6.5)))
        elif chance(rng, 0.4):
            stage.scenery.append(Thing("furniture", lamp, (*place, KERB), arm.heading))
        at += spacing


def ellipse(x: Range, y: Range, margin: float, z: float, sides: int = 16) -> Quads:
    """A level polygon that fills the rectangle and goes `margin` metres beyond it."""
    (middle_x, radius_x), (middle_y, radius_y) = ((sum(side) / 2, (side[1] - side[0]) / 2 + margin) for side in (x, y))
    ring = [(middle_x + radius_x * c, middle_y + radius_y * s, z) for c, s in shapes.unit_circle(sides)]
    return np.array([(ring[0], ring[k], ring[k + 1], ring[k + 2]) for k in range(1, sides - 1, 2)])
